"""Files on disk for the embedded store: which there are, what each last said, and atomic writing."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from routerd.errors import InputError, StoreError

T = TypeVar("T")
Stamp = tuple[int, int, int]  # inode, size, mtime in nanoseconds
MAX_SIZE = 64 << 20  # bytes of one file; a hundred times what a large cluster's objects take
KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}
SUFFIXES = (".yaml", ".yml", ".json")


def is_manifest(name: str) -> bool:
    """Whether a file counts: not those that editors and tools leave while they write."""
    return name.endswith(SUFFIXES) and not name.startswith((".", "#", "~"))


def manifest_files(directory: Path) -> list[Path]:
    """All manifests below `directory`, sorted by path; hidden directories are left out. Raises OSError.

    A directory below that goes while it is looked at is gone, as a file is. Links to directories are followed, as
    Kubernetes mounts a ConfigMap with paths in it; each directory counts once.
    """
    files: list[Path] = []
    visited: set[tuple[int, int]] = set()

    def on_error(error: OSError) -> None:
        if error.errno != errno.ENOENT or error.filename == str(directory):
            raise error

    for root, directories, names in os.walk(str(directory), onerror=on_error, followlinks=True):
        try:
            status = Path(root).stat()
        except OSError as error:
            on_error(error)
            continue
        if (status.st_dev, status.st_ino) in visited:
            directories.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        directories[:] = [name for name in directories if not name.startswith(".")]
        files.extend(Path(root, name) for name in names if is_manifest(name))
    return sorted(files)


def stamp(path: Path) -> Stamp | None:
    """None if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def is_hidden(path: Path) -> bool:
    """Whether it cannot be told if there is such a file: a directory above may not be searched, a handle is stale."""
    try:
        path.stat()
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)
    return False


class NotAFile(InputError):
    """A FIFO, device or socket: it can hold no manifest, and reading it could wait for ever."""


def read_text(path: Path) -> str:
    """The text of a regular file of at most `MAX_SIZE`. Raises InputError."""
    try:
        _check_kind(path, path.stat())  # before it is opened: opening a device may do something
        # O_NONBLOCK: what became a FIFO in between is not waited for.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as file:
            _check_kind(path, os.fstat(file.fileno()))
            content = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=str(path)) from error
    if len(content) > MAX_SIZE:
        raise InputError(f"larger than {MAX_SIZE >> 20} MiB: split the file", file=str(path))
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start}", file=str(path)) from error


def _check_kind(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise NotAFile(f"found {kind}, expected a file: move it elsewhere", file=str(path))
    if status.st_size > MAX_SIZE:
        raise InputError(f"{status.st_size} bytes, larger than {MAX_SIZE >> 20} MiB: split the file", file=str(path))


@dataclass(frozen=True, slots=True)
class FileState(Generic[T]):
    """What a file last said (`good`), and why it does not say anything better now (`error`)."""

    stamp: Stamp | None = None
    good: T | None = None
    error: InputError | None = None


def refresh(state: FileState[T], path: Path, parse: Callable[[str, str], T], *, again: bool = False) -> FileState[T]:
    """Reads the file if it has another stamp, or `again`. A file that is wrong keeps what it last said.

    The same state if nothing of it is different.
    """
    now = stamp(path)
    if now == state.stamp and not again:
        return state
    found = FileState(now, *_read(state.good, path, parse))
    # Errors are equal only to themselves; told in the same words they are the same.
    return state if replace(found, error=state.error) == state and str(found.error) == str(state.error) else found


def _read(good: T | None, path: Path, parse: Callable[[str, str], T]) -> tuple[T | None, InputError | None]:
    try:
        return parse(read_text(path), str(path)), None
    except InputError as error:
        return good, error
    except ValueError as error:  # a mistake of ours: it costs the file, not the daemon
        return good, InputError(f"not understood: {error}", file=str(path))


def claim(path: Path, owner: str) -> int | None:
    """Locks the file beside `path` for its one writer; the descriptor holds the lock, and the kernel frees it.

    None where the file system has no locks. StoreError if another process has it.
    """
    beside = path.with_name(f".{path.name}.lock")
    try:
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{owner}, process {os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        holder = os.read(descriptor, 400).decode("utf-8", "replace").strip()
        os.close(descriptor)
        message = f"another operator ({holder or 'unknown'}) writes it: stop one of the two"
        raise StoreError(f"{path}: {message}") from error
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old file or the whole new one, also after a power cut. Raises StoreError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
