"""Loads the compiled object through libbpf and keeps maps and programs pinned. Attaches nothing.

A pin directory holds `maps/NAME` and `programs/NAME`; both outlive the process. The `settings` map remembers the digest
of the object that the pinned programs came from, so that the next agent adopts them, or swaps them if its object
differs.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from ctypes.util import find_library
from importlib.resources import as_file, files
from pathlib import Path

from bpf import bpffs, handover, layout, syscall
from bpf.layout import PROGRAMS, Settings, decode, u32

OBJECT = "egress.bpf.o"


class LoadError(Exception):
    """The object cannot be loaded; the message says what the kernel or libbpf said, and who must act."""


def object_bytes() -> bytes:
    """The compiled object that is shipped beside this file. LoadError when it was never built."""
    try:
        return files("bpf").joinpath(OBJECT).read_bytes()
    except FileNotFoundError:
        raise LoadError(
            f"bpf/{OBJECT} is missing: run 'make bpf' (clang), or install the wheel that carries it"
        ) from None


def object_digest(content: bytes) -> int:
    """64 bits that name an object."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")


def digest() -> int:
    """64 bits that name what `load` would load."""
    return object_digest(object_bytes())


def open_libbpf() -> ctypes.CDLL:
    """libbpf with the prototypes that are used of it. LoadError when it is not installed."""
    name = find_library("bpf") or "libbpf.so.1"
    try:
        library = ctypes.CDLL(name, use_errno=True)
    except OSError:
        raise LoadError("libbpf.so.1 is missing: install it (Debian: apt-get install libbpf1)") from None
    pointer, string = ctypes.c_void_p, ctypes.c_char_p
    for function, result, arguments in (
        ("bpf_object__open_file", pointer, [string, pointer]),
        ("bpf_object__load", ctypes.c_int, [pointer]),
        ("bpf_object__close", None, [pointer]),
        ("bpf_object__find_map_by_name", pointer, [pointer, string]),
        ("bpf_object__find_program_by_name", pointer, [pointer, string]),
        ("bpf_object__next_map", pointer, [pointer, pointer]),
        ("bpf_map__name", string, [pointer]),
        ("bpf_map__set_pin_path", ctypes.c_int, [pointer, string]),
        ("bpf_map__set_max_entries", ctypes.c_int, [pointer, ctypes.c_uint32]),
        ("bpf_program__fd", ctypes.c_int, [pointer]),
        ("libbpf_set_print", pointer, [pointer]),
        ("libbpf_get_error", ctypes.c_long, [pointer]),
        ("libbpf_probe_bpf_helper", ctypes.c_int, [ctypes.c_int, ctypes.c_int, pointer]),
    ):
        entry = getattr(library, function)
        entry.restype, entry.argtypes = result, arguments
    return library


class _Log:
    """Collects what libbpf prints, for the message of a failure."""

    def __init__(self, library: ctypes.CDLL) -> None:
        libc = ctypes.CDLL(None)
        self.lines: list[str] = []

        def note(level: int, form: bytes, arguments: int) -> int:
            buffer = ctypes.create_string_buffer(4096)
            libc.vsnprintf(buffer, ctypes.c_size_t(len(buffer)), form, ctypes.c_void_p(arguments))
            if level == 0:
                self.lines.append(buffer.value.decode(errors="replace").strip())
            return 0

        self._callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(note)
        library.libbpf_set_print(ctypes.cast(self._callback, ctypes.c_void_p))
        self._library = library

    def close(self) -> None:
        self._library.libbpf_set_print(None)

    def tail(self) -> str:
        wanted = [line for line in self.lines if line and not line.startswith("processed")]
        return "; ".join(wanted[-3:])


def check_bpffs(directory: Path) -> None:
    """LoadError unless `directory` lies on a BPF file system. Its last parts need not exist yet."""
    reason = bpffs.lack(directory)
    if reason:
        raise LoadError(reason)


def load(pin_directory: Path, sizes: Mapping[str, int] | None = None) -> bool:
    """Makes maps and programs pinned under `pin_directory`; True if anything was loaded, False if all was adopted.

    `sizes`: map name -> largest number of entries; only a map that is made now takes it. Maps that are pinned already
    keep their content; programs that came from another object are replaced by new ones at the same paths.
    """
    check_bpffs(pin_directory)
    content = object_bytes()
    if pinned_digest(pin_directory) == object_digest(content) and all_programs_pinned(pin_directory):
        return False
    make_directories(pin_directory)
    with as_file(files("bpf").joinpath(OBJECT)) as path:
        _load_object(path, pin_directory, sizes or {})
    return True


def make_directories(pin_directory: Path) -> None:
    for part in ("maps", "programs", "links"):
        (pin_directory / part).mkdir(parents=True, exist_ok=True)


def all_programs_pinned(pin_directory: Path) -> bool:
    return all((pin_directory / "programs" / name).exists() for name in PROGRAMS)


def pinned_digest(pin_directory: Path) -> int:
    """Digest of the object that the pinned programs came from; 0 when there is none."""
    try:
        fd = syscall.open_pinned(pin_directory / "maps" / "settings")
    except FileNotFoundError:
        return 0
    settings = syscall.BpfMap(fd)
    try:
        value = settings.get(u32(0))
    finally:
        settings.close()
    return int(decode(Settings, value).object_digest) if value and len(value) == ctypes.sizeof(Settings) else 0


def has_other_layout(pin_directory: Path) -> bool:
    """Whether what is pinned came from a release whose maps have other keys or values: it cannot be adopted."""
    try:
        settings = syscall.BpfMap(syscall.open_pinned(pin_directory / "maps" / "settings"))
    except FileNotFoundError:
        return False
    settings.close()
    other_size = settings.value_size != ctypes.sizeof(Settings)
    return other_size or handover.layout_version(pin_directory) not in (0, layout.LAYOUT_VERSION)


def _load_object(path: Path, pin_directory: Path, sizes: Mapping[str, int]) -> None:
    library = open_libbpf()
    log = _Log(library)
    handle = library.bpf_object__open_file(os.fsencode(path), None)
    try:
        if not handle or library.libbpf_get_error(handle):
            raise LoadError(f"libbpf cannot open {path.name}: {log.tail()}")
        _prepare_maps(library, handle, pin_directory, sizes)
        error = library.bpf_object__load(handle)
        if error:
            raise LoadError(f"the kernel refused {path.name} ({os.strerror(-error)}): {log.tail()}")
        _pin_programs(library, handle, pin_directory)
    finally:
        if handle:
            library.bpf_object__close(handle)
        log.close()


def _prepare_maps(library: ctypes.CDLL, handle: int, pin_directory: Path, sizes: Mapping[str, int]) -> None:
    bpf_map = library.bpf_object__next_map(handle, None)
    while bpf_map:
        name = library.bpf_map__name(bpf_map).decode()
        pin_path = pin_directory / "maps" / name
        if not name.startswith("."):
            library.bpf_map__set_pin_path(bpf_map, os.fsencode(pin_path))
        entries = _pinned_entries(pin_path) or sizes.get(name)
        if entries:
            library.bpf_map__set_max_entries(bpf_map, entries)
        bpf_map = library.bpf_object__next_map(handle, bpf_map)


def _pinned_entries(pin_path: Path) -> int:
    """Size of a map that is pinned already: libbpf reuses it only if the object asks for the same."""
    try:
        bpf_map = syscall.BpfMap(syscall.open_pinned(pin_path))
    except FileNotFoundError:
        return 0
    entries = bpf_map.max_entries
    bpf_map.close()
    return entries


def _pin_programs(library: ctypes.CDLL, handle: int, pin_directory: Path) -> None:
    for name in PROGRAMS:
        program = library.bpf_object__find_program_by_name(handle, name.encode())
        if not program:
            raise LoadError(f"{OBJECT} has no program {name}: rebuild it (make bpf)")
        pin_path = pin_directory / "programs" / name
        with suppress(FileNotFoundError):
            pin_path.unlink()
        syscall.pin(library.bpf_program__fd(program), pin_path)


class PinnedMaps:
    """The maps of a pin directory, opened once. FileNotFoundError also for those of a release with other maps."""

    def __init__(self, pin_directory: Path) -> None:
        self._directory = pin_directory
        self._open: dict[str, syscall.BpfMap] = {}

    def __getitem__(self, name: str) -> syscall.BpfMap:
        if name not in self._open:
            if has_other_layout(self._directory):
                raise FileNotFoundError(errno.ENOENT, f"map {name} is that of another layout")
            self._open[name] = syscall.BpfMap(syscall.open_pinned(self._directory / "maps" / name))
        return self._open[name]

    def close(self) -> None:
        for bpf_map in self._open.values():
            bpf_map.close()
        self._open.clear()


def remove_pins(pin_directory: Path) -> None:
    """Unpins everything that `load` and the attach code pinned; what is attached by a link alone goes with it."""
    handover.drop_before(pin_directory)
    for part in ("links", "programs", "maps"):
        directory = pin_directory / part
        if directory.is_dir():
            for entry in directory.iterdir():
                entry.unlink()
            directory.rmdir()
    with suppress(FileNotFoundError, OSError):
        pin_directory.rmdir()
