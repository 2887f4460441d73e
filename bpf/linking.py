"""Puts a program and its callbacks together from code in which maps and callbacks are numbers. Pure.

An instruction is 8 bytes: opcode, registers, 16-bit offset, 32-bit immediate, in the host's byte order (little-endian,
as everywhere that bcc's code comes from). Loading 64 bits takes two of them; the source register of the first says what
the immediate is: 1 = a map's descriptor, 4 = the distance to a function (BPF_PSEUDO_MAP_FD and BPF_PSEUDO_FUNC in
<linux/bpf.h>).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

INSTRUCTION = 8
LOAD_64 = 0x18
MAP, FUNCTION = 1, 4
BTF_MAGIC = 0xEB9F
BTF_HEADER = struct.Struct("<HBB5I")
BTF_KIND_FUNC, BTF_KIND_FUNC_PROTO = 12, 13
BTF_PROTO_ID = 1


@dataclass(frozen=True, slots=True)
class Linked:
    """A program for the kernel: its instructions, and the first instruction and the name of each function in it."""

    code: bytes
    functions: tuple[tuple[int, str], ...]


def _references(code: bytes, kind: int) -> Iterator[tuple[int, int]]:
    """(offset in bytes, number) of the loads of maps or functions."""
    offset = 0
    while offset < len(code):
        wide = code[offset] == LOAD_64
        if wide and code[offset + 1] >> 4 == kind:
            yield offset, int.from_bytes(code[offset + 4 : offset + 8], "little")
        offset += 2 * INSTRUCTION if wide else INSTRUCTION


def link(name: str, code: bytes, callbacks: Sequence[tuple[str, bytes]], maps: Mapping[int, int]) -> Linked:
    """`callbacks`: (name, code) by number; those that are reached are appended. `maps`: number -> file descriptor."""
    linked, functions, places = bytearray(code), [(0, name)], {}
    waiting = [number for _, number in _references(code, FUNCTION)]
    while waiting:
        number = waiting.pop(0)
        if number in places:
            continue
        places[number] = len(linked)
        functions.append((len(linked) // INSTRUCTION, callbacks[number][0]))
        linked += callbacks[number][1]
        waiting += [other for _, other in _references(callbacks[number][1], FUNCTION)]
    for offset, number in list(_references(bytes(linked), FUNCTION)):
        # The distance counts instructions from the one after the first half.
        _set(linked, offset, (places[number] - offset) // INSTRUCTION - 1)
    for offset, number in list(_references(bytes(linked), MAP)):
        _set(linked, offset, maps[number])
    return Linked(bytes(linked), tuple(functions))


def _set(code: bytearray, offset: int, value: int) -> None:
    struct.pack_into("<i", code, offset + 4, value)


def function_types(names: Sequence[str]) -> bytes:
    """The least BTF that the kernel takes callbacks with: each name a static function, from and to nothing.

    The type of the n-th name is `function_type(n)`. Format: Documentation/bpf/btf.rst in the kernel's sources.
    """
    strings = b"\0"
    types = struct.pack("<3I", 0, BTF_KIND_FUNC_PROTO << 24, 0)
    for name in names:
        types += struct.pack("<3I", len(strings), BTF_KIND_FUNC << 24, BTF_PROTO_ID)
        strings += name.encode() + b"\0"
    sizes = (BTF_HEADER.size, 0, len(types), len(types), len(strings))
    return BTF_HEADER.pack(BTF_MAGIC, 1, 0, *sizes) + types + strings


def function_type(position: int) -> int:
    return BTF_PROTO_ID + 1 + position


def function_rows(linked: Linked) -> bytes:
    """`struct bpf_func_info` of each function, for BTF that was made of the same names."""
    return b"".join(struct.pack("<2I", start, function_type(n)) for n, (start, _) in enumerate(linked.functions))
