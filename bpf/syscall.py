"""bpf(2), as far as the project needs it: pinned objects, maps (single and in batches), links, test runs.

Structures are those of `union bpf_attr` in <linux/bpf.h> (Linux 6.6 for TCX links). Every function raises `OSError`
with the kernel's errno. Nothing here knows what the maps mean.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Numbers of bpf(2) and of membarrier(2).
_NUMBERS = {"x86_64": (321, 324), "ppc64le": (361, 365), "s390x": (351, 356)}
_NUMBER, _MEMBARRIER = _NUMBERS.get(platform.machine(), (280, 283))

MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_NEXT_KEY = 1, 2, 3, 4
OBJ_PIN, OBJ_GET, PROG_TEST_RUN = 6, 7, 10
PROG_BY_ID, MAP_BY_ID = 13, 14
OBJ_INFO, PROG_QUERY = 15, 16
MAP_LOOKUP_BATCH = 24
LINK_CREATE, LINK_UPDATE, LINK_DETACH = 28, 29, 34

TCX_INGRESS, TCX_EGRESS = 46, 47
MAP_TYPE_PERCPU_ARRAY = 6
F_MMAPABLE = 1 << 10
F_BEFORE = 1 << 3
ENOTSUPP = 524  # the kernel's own, not in errno(3)
BATCH = 4096  # rows
BATCH_BYTES = 1 << 20  # of values: large ones come in fewer rows
ROWS_AT_ONCE = 64  # of a mapped array, which are compared with zeros
ATTRIBUTES_ROOM = 512  # bytes; `union bpf_attr` has 168 in Linux 6.18

UPDATE_ANY, UPDATE_NOEXIST = 0, 1
MEMBARRIER_GLOBAL = 1 << 0


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: ctypes.Structure) -> int:
    """The system call. `attributes` holds what the kernel is given, and afterwards what it gave back."""
    size = ctypes.sizeof(attributes)
    # The kernel answers some commands in fields behind those that it was given (PROG_QUERY: `revision`), whatever size
    # it was told: without the room, that would be written over other objects of this process.
    buffer = ctypes.create_string_buffer(bytes(attributes), ATTRIBUTES_ROOM)
    result: int = _libc().syscall(
        ctypes.c_long(_NUMBER), ctypes.c_int(command), ctypes.byref(buffer), ctypes.c_uint(size)
    )
    number = ctypes.get_errno()
    ctypes.memmove(ctypes.byref(attributes), buffer, size)  # also on failure: a batch tells how far it came
    if result < 0:
        raise OSError(number, os.strerror(number) if number != ENOTSUPP else "operation not supported by the kernel")
    return result


def wait_for_programs() -> None:
    """Until every run of a program that has begun is over: what was written to a map before, the next ones read.

    Programs on packets run within a read side of RCU, which this command of membarrier(2) waits for. Where CPUs are
    isolated (nohz_full) the kernel refuses it: a run takes microseconds, and what follows here, longer.
    """
    _libc().syscall(ctypes.c_long(_MEMBARRIER), ctypes.c_int(MEMBARRIER_GLOBAL), ctypes.c_uint(0), ctypes.c_int(0))


class _Object(ctypes.Structure):
    _fields_ = [("path", ctypes.c_uint64), ("fd", ctypes.c_uint32), ("flags", ctypes.c_uint32)]


class _Element(ctypes.Structure):
    _fields_ = [
        ("fd", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("key", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    ]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("in_batch", ctypes.c_uint64),
        ("out_batch", ctypes.c_uint64),
        ("keys", ctypes.c_uint64),
        ("values", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("fd", ctypes.c_uint32),
        ("element_flags", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    ]


class _Info(ctypes.Structure):
    _fields_ = [("fd", ctypes.c_uint32), ("length", ctypes.c_uint32), ("info", ctypes.c_uint64)]


class _MapInfo(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    ]


class _ProgramInfo(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("code_lengths", ctypes.c_uint32 * 2),
        ("code", ctypes.c_uint64 * 2),
        ("load_time", ctypes.c_uint64),
        ("uid", ctypes.c_uint32),
        ("map_count", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
    ]


class _ById(ctypes.Structure):
    _fields_ = [("number", ctypes.c_uint32), ("next", ctypes.c_uint32), ("flags", ctypes.c_uint32)]


class _LinkInfo(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("program_id", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
    ]


class _LinkCreate(ctypes.Structure):
    _fields_ = [
        ("program_fd", ctypes.c_uint32),
        ("target_ifindex", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("relative_fd", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("expected_revision", ctypes.c_uint64),
    ]


class _LinkUpdate(ctypes.Structure):
    _fields_ = [
        ("link_fd", ctypes.c_uint32),
        ("new_program_fd", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("old_program_fd", ctypes.c_uint32),
    ]


class TestRun(ctypes.Structure):
    _fields_ = [
        ("program_fd", ctypes.c_uint32),
        ("return_value", ctypes.c_uint32),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("data_in", ctypes.c_uint64),
        ("data_out", ctypes.c_uint64),
        ("repeat", ctypes.c_uint32),
        ("duration", ctypes.c_uint32),
        ("context_size_in", ctypes.c_uint32),
        ("context_size_out", ctypes.c_uint32),
        ("context_in", ctypes.c_uint64),
        ("context_out", ctypes.c_uint64),
    ]


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def open_pinned(path: Path) -> int:
    """A file descriptor of the object pinned at `path`; FileNotFoundError when there is none."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return bpf(OBJ_GET, _Object(_address(name), 0, 0))


def pin(fd: int, path: Path) -> None:
    name = ctypes.create_string_buffer(os.fsencode(path))
    bpf(OBJ_PIN, _Object(_address(name), fd, 0))


@dataclass(frozen=True, slots=True)
class LinkInfo:
    type: int
    id: int
    program_id: int
    ifindex: int  # 0 = its device has gone
    attach_type: int


def _info(fd: int, info: ctypes.Structure) -> None:
    bpf(OBJ_INFO, _Info(fd, ctypes.sizeof(info), ctypes.addressof(info)))


def link_info(fd: int) -> LinkInfo:
    info = _LinkInfo()
    _info(fd, info)
    return LinkInfo(info.type, info.id, info.program_id, info.ifindex, info.attach_type)


def program_id(fd: int) -> int:
    info = _ProgramInfo()
    _info(fd, info)
    return int(info.id)


def program_map_ids(fd: int) -> list[int]:
    """Kernel's ids of the maps that a program uses."""
    ids = (ctypes.c_uint32 * 64)()
    info = _ProgramInfo(map_count=len(ids), map_ids=ctypes.addressof(ids))
    _info(fd, info)
    return list(ids[: info.map_count])


def map_identity(fd: int) -> tuple[int, str]:
    """(kernel's id, name) of a map; the kernel keeps 15 characters of a name."""
    info = _MapInfo()
    _info(fd, info)
    return int(info.id), bytes(info.name).decode()


def open_by_id(command: int, number: int) -> int:
    """A file descriptor of a program (PROG_BY_ID) or map (MAP_BY_ID). The kernel asks for CAP_SYS_ADMIN here."""
    return bpf(command, _ById(number, 0, 0))


def create_tcx_link(program: int, ifindex: int, attach_type: int) -> int:
    """A TCX link at the head of the hook's chain (Linux 6.6). The link lives as long as a descriptor or a pin of it."""
    return bpf(LINK_CREATE, _LinkCreate(program, ifindex, attach_type, F_BEFORE, 0, 0, 0))


def update_link(link: int, program: int) -> None:
    bpf(LINK_UPDATE, _LinkUpdate(link, program, 0, 0))


def detach_link(link: int) -> None:
    class Detach(ctypes.Structure):
        _fields_ = [("fd", ctypes.c_uint32)]

    bpf(LINK_DETACH, Detach(link))


def run_program(program: int, packet: bytes, context: bytes = b"", room: int = 256) -> tuple[int, bytes]:
    """One BPF_PROG_TEST_RUN: (verdict, packet afterwards). `context`: `struct __sk_buff`; `room` for growth, bytes."""
    data_in = ctypes.create_string_buffer(packet, len(packet))
    data_out = ctypes.create_string_buffer(len(packet) + room)
    context_in = ctypes.create_string_buffer(context, max(len(context), 1))
    run = TestRun(
        program, 0, len(packet), len(data_out), _address(data_in), _address(data_out), 1, 0,
        len(context), 0, _address(context_in) if context else 0, 0,
    )  # fmt: skip
    bpf(PROG_TEST_RUN, run)
    verdict = ctypes.c_int32(run.return_value).value
    return verdict, data_out.raw[: run.data_size_out]


class BpfMap:
    """A map by its file descriptor. Keys and values are bytes of exactly the map's sizes."""

    def __init__(self, fd: int) -> None:
        info = _MapInfo()
        _info(fd, info)
        self.fd = fd
        self.key_size = int(info.key_size)
        self.max_entries = int(info.max_entries)
        self.type = int(info.type)
        self._is_mapped = bool(info.map_flags & F_MMAPABLE)
        rows = possible_cpus() if self.type == MAP_TYPE_PERCPU_ARRAY else 1
        self.value_size = int(info.value_size) if rows == 1 else (int(info.value_size) + 7) // 8 * 8 * rows

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def get(self, key: bytes) -> bytes | None:
        key_buffer = ctypes.create_string_buffer(key, len(key))
        value = ctypes.create_string_buffer(self.value_size)
        try:
            bpf(MAP_LOOKUP, _Element(self.fd, 0, _address(key_buffer), _address(value), 0))
        except FileNotFoundError:
            return None
        return value.raw

    def put(self, key: bytes, value: bytes, flags: int = UPDATE_ANY) -> None:
        self._check(key, value)
        key_buffer = ctypes.create_string_buffer(key, len(key))
        value_buffer = ctypes.create_string_buffer(value, len(value))
        bpf(MAP_UPDATE, _Element(self.fd, 0, _address(key_buffer), _address(value_buffer), flags))

    def delete(self, key: bytes) -> None:
        """Deleting what is not there is no error."""
        key_buffer = ctypes.create_string_buffer(key, len(key))
        with suppress(FileNotFoundError):
            bpf(MAP_DELETE, _Element(self.fd, 0, _address(key_buffer), 0, 0))

    def _check(self, key: bytes, value: bytes) -> None:
        if len(key) != self.key_size or len(value) != self.value_size:
            sizes = f"{len(key)}/{len(value)} bytes, the map has {self.key_size}/{self.value_size}"
            raise ValueError(f"key/value of {sizes}")

    def items(self, *, zeros: bool = True) -> dict[bytes, bytes]:
        """Everything in the map. While others write, an entry may be seen or missed; none is seen twice.

        Without `zeros`, values of zeros alone are left out, fast: an array's elements are there from the start.
        """
        if self._is_mapped and not zeros:
            return self._items_in_memory()
        try:
            return self._items_in_batches(zeros)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP, errno.ENOSPC):
                raise
        found = {key: value for key in self.keys() if (value := self.get(key)) is not None}
        return {key: value for key, value in found.items() if zeros or any(value)}

    def _items_in_memory(self) -> dict[bytes, bytes]:
        """An array's values that are not zeros alone, from where they lie: the kernel's copies of 65,536 take 15 ms."""
        stride = (self.value_size + 7) // 8 * 8
        length, step = self.max_entries * stride, ROWS_AT_ONCE * stride
        with mmap.mmap(self.fd, length, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
            parts = ((first, memory[first : first + step]) for first in range(0, length, step))
            there = [(first, part) for first, part in parts if part != bytes(len(part))]
        rows = (
            (first + at, part[at : at + self.value_size]) for first, part in there for at in range(0, len(part), stride)
        )
        return {(at // stride).to_bytes(4, sys.byteorder): value for at, value in rows if any(value)}

    def _items_in_batches(self, zeros: bool) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        # A position is a bucket number (hash) or a key (trie): room for either.
        position = ctypes.create_string_buffer(max(self.key_size, 8))
        room = min(BATCH, max(BATCH_BYTES // self.value_size, 256))  # a bucket of a hash must fit
        keys = ctypes.create_string_buffer(self.key_size * room)
        values = ctypes.create_string_buffer(self.value_size * room)
        first = True
        while True:
            start = 0 if first else _address(position)
            batch = _Batch(start, _address(position), _address(keys), _address(values), room, self.fd, 0, 0)
            last = False
            try:
                bpf(MAP_LOOKUP_BATCH, batch)
            except FileNotFoundError:  # the end; what was found before it is in the buffers
                last = True
            raw_keys = ctypes.string_at(keys, batch.count * self.key_size)
            raw_values = ctypes.string_at(values, batch.count * self.value_size)
            for row in range(batch.count if zeros or raw_values.strip(b"\0") else 0):
                key = raw_keys[row * self.key_size : (row + 1) * self.key_size]
                value = raw_values[row * self.value_size : (row + 1) * self.value_size]
                if zeros or any(value):
                    found[key] = value
            if last:
                return found
            first = False

    def keys(self) -> Iterator[bytes]:
        key: ctypes.Array[ctypes.c_char] | None = None
        while True:
            following = ctypes.create_string_buffer(self.key_size)
            element = _Element(self.fd, 0, _address(key) if key else 0, _address(following), 0)
            try:
                bpf(MAP_NEXT_KEY, element)
            except FileNotFoundError:
                return
            yield following.raw
            key = following


@cache
def possible_cpus() -> int:
    """Rows of a per-CPU value: CPUs that may ever come online."""
    ranges = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip().split(",")
    return max(int(part.rpartition("-")[2]) for part in ranges) + 1
