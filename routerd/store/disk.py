"""Files on disk for the embedded store: which there are, what each last said, and atomic writing."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from routerd.errors import InputError, StoreError

T = TypeVar("T")
Stamp = tuple[int, int, int]  # inode, size, mtime in nanoseconds
SUFFIXES = (".yaml", ".yml", ".json")


def is_manifest(name: str) -> bool:
    """Whether a file counts: not those that editors and tools leave while they write."""
    return name.endswith(SUFFIXES) and not name.startswith((".", "#", "~"))


def manifest_files(directory: Path) -> list[Path]:
    """All manifests below `directory`, sorted by path; hidden directories are left out. Raises OSError."""
    found: list[Path] = []
    for root, directories, names in os.walk(directory, onerror=_raise):
        directories[:] = [name for name in directories if not name.startswith(".")]
        found.extend(Path(root, name) for name in names if is_manifest(name))
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def stamp(path: Path) -> Stamp | None:
    """None if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def read_text(path: Path) -> str:
    """Raises InputError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=str(path)) from error
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start}", file=str(path)) from error


@dataclass(frozen=True, slots=True)
class Held(Generic[T]):
    """What a file last said (`good`), and why it does not say anything better now (`error`)."""

    stamp: Stamp | None = None
    good: T | None = None
    error: InputError | None = None


def refresh(held: Held[T], path: Path, parse: Callable[[str, str], T], *, again: bool = False) -> Held[T]:
    """Reads the file if it has another stamp, or `again`. A file that is wrong keeps what it last said."""
    now = stamp(path)
    if now == held.stamp and not again:
        return held
    try:
        return Held(now, parse(read_text(path), str(path)))
    except InputError as error:
        return Held(now, held.good, error)


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
