"""Takes flows over from a release whose maps have another layout, while packets pass.

What is pinned makes room in `before/`; its programs stay on their hooks, with their maps. When the maps of this release
are full and none of its programs is on a hook yet, flows and ports are copied; then the other release is told that
nothing new begins, waited for until no packet is in a program that has not read that, and what has changed since is
copied. From then on both have the same flows, and no port gets a user: so programs are replaced one after the other, in
any time that it takes. A flow that asks to begin meanwhile is dropped, and asks again.

The first two words of `settings` are the same in every release: layout version, and whether it hands over.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpf import layout, syscall

BEFORE = "before"
PARTS = ("maps", "programs")
CARRIED = ("flows", "reverse")
WORD = ctypes.sizeof(ctypes.c_uint32)

Shape = tuple[type[ctypes.Structure] | None, type[ctypes.Structure] | None]
MapEntries = dict[bytes, bytes]
Move = tuple[int, int, int]  # bytes: from where, to where, how many

# Layout version -> key and value of `flows`, `reverse` and `groups` as releases with it have them. Who raises
# LAYOUT_VERSION leaves here, as they were, the structures of bpf/layout.py that change. A field goes over by its name:
# one that gets another meaning gets another name. No release has had another layout than this one yet.
EARLIER: Mapping[int, Mapping[str, Shape]] = {}


def layout_version(pin_directory: Path) -> int:
    """Of what is pinned; 0 = nothing is, or it has not been told its settings yet."""
    try:
        settings = _open(pin_directory, "settings")
    except FileNotFoundError:
        return 0
    value = settings.get(layout.u32(0))
    settings.close()
    return layout.number(value[:WORD]) if value else 0


def is_set_aside(pin_directory: Path) -> bool:
    """Whether another release's programs may be on hooks still."""
    return (pin_directory / BEFORE).is_dir()


def can_take_over(pin_directory: Path, other_layout: bool) -> bool:
    """Whether there are flows of another layout that can be copied: what was set aside, else what is pinned and known.

    Who finds a third release's maps in the midst of that, or comes back in it, can do nothing with either.
    """
    if is_set_aside(pin_directory):
        return not other_layout
    return other_layout and layout_version(pin_directory) in EARLIER


def set_aside(pin_directory: Path) -> None:
    """What is pinned makes room, and runs on: links and filters hold the programs, and programs the maps."""
    (pin_directory / BEFORE).mkdir(exist_ok=True)
    for part in PARTS:
        with suppress(FileNotFoundError):
            (pin_directory / part).rename(pin_directory / BEFORE / part)


def put_back(pin_directory: Path) -> None:
    """Undoes `set_aside`: what was pinned since goes."""
    for part in PARTS:
        _remove(pin_directory / part)
        with suppress(FileNotFoundError):
            (pin_directory / BEFORE / part).rename(pin_directory / part)
    drop_before(pin_directory)


def drop_before(pin_directory: Path) -> None:
    """The other release's programs are on no hook any more: its maps go."""
    for part in PARTS:
        _remove(pin_directory / BEFORE / part)
    with suppress(FileNotFoundError):
        (pin_directory / BEFORE).rmdir()


def rooms(pin_directory: Path) -> dict[str, int]:
    """How many entries the tables have whose content goes over."""
    found = {}
    for name in CARRIED:
        with suppress(FileNotFoundError):
            bpf_map = _open(pin_directory / BEFORE, name)
            found[name] = bpf_map.max_entries
            bpf_map.close()
    return found


def hold(pin_directory: Path, held: bool) -> None:
    """Tells the programs that were set aside whether anything new may begin; all of them know it at the return."""
    settings = _open(pin_directory / BEFORE, "settings")
    try:
        value = settings.get(layout.u32(0))
        assert value is not None
        settings.put(layout.u32(0), value[:WORD] + layout.u32(int(held)) + value[2 * WORD :])
    finally:
        settings.close()
    syscall.wait_for_programs()


def entries(pin_directory: Path, name: str) -> MapEntries:
    """A map that was set aside, with keys and values as this release has them."""
    key, value = _converters(pin_directory, name)
    return {key.convert(k): value.convert(v) for k, v in _read(pin_directory / BEFORE, name).items()}


def _converters(pin_directory: Path, name: str) -> tuple[Converter, Converter]:
    """Of keys, and of values."""
    old, new = EARLIER[layout_version(pin_directory / BEFORE)][name], layout.MAPS[name]
    return converter(old[0], new[0]), converter(old[1], new[1])


def carry(pin_directory: Path, known: Mapping[str, MapEntries] | None = None) -> dict[str, MapEntries]:
    """Makes flows and ports those that were set aside, and says which those are; nobody else may write meanwhile.

    `known`: what an earlier call said: only what differs from it is written.
    """
    return {name: _carry(pin_directory, name, (known or {}).get(name, {})) for name in CARRIED}


def _carry(pin_directory: Path, name: str, known: MapEntries) -> MapEntries:
    before = _read(pin_directory / BEFORE, name)
    convert_key, convert_value = (each.convert for each in _converters(pin_directory, name))
    after = _open(pin_directory, name)
    try:
        for key in known.keys() - before.keys():
            after.delete(convert_key(key))
        for key, value in before.items():
            if known.get(key) != value:
                after.put(convert_key(key), convert_value(value))
    finally:
        after.close()
    return before


@dataclass(frozen=True, slots=True)
class Converter:
    """Makes a structure of one layout one of another. What the other does not have is left out, what is new is 0."""

    moves: tuple[Move, ...]
    size: int  # bytes, afterwards
    same: bool = field(default=False)

    def convert(self, data: bytes) -> bytes:
        if self.same:
            return data
        made = bytearray(self.size)
        for source, target, size in self.moves:
            made[target : target + size] = data[source : source + size]
        return bytes(made)


def converter(before: type[ctypes.Structure] | None, after: type[ctypes.Structure] | None) -> Converter:
    """TypeError if a field has another type under its name. None is a plain number or an address."""
    if before is after or before is None or after is None:
        return Converter((), 0, same=True)
    return Converter(tuple(_joined(_moves(before, after))), ctypes.sizeof(after))


def _moves(before: Any, after: Any) -> Iterator[Move]:
    if issubclass(before, ctypes.Structure) and issubclass(after, ctypes.Structure):
        old, new = dict(_fields(before)), dict(_fields(after))
        for name in (name for name in old if name in new):
            parts = _moves(old[name], new[name])
            yield from _shifted(parts, getattr(before, name).offset, getattr(after, name).offset)
    elif issubclass(before, ctypes.Array) and issubclass(after, ctypes.Array):
        steps = ctypes.sizeof(before._type_), ctypes.sizeof(after._type_)
        for place in range(min(before._length_, after._length_)):
            yield from _shifted(_moves(before._type_, after._type_), place * steps[0], place * steps[1])
    elif before is after:
        yield 0, 0, ctypes.sizeof(before)
    else:
        raise TypeError(f"{before.__name__} became {after.__name__}: the field needs another name")


def _fields(structure: type[ctypes.Structure]) -> Iterator[tuple[str, Any]]:
    return ((row[0], row[1]) for row in structure._fields_)


def _shifted(moves: Iterator[Move], source: int, target: int) -> Iterator[Move]:
    return ((source + start, target + place, size) for start, place, size in moves)


def _joined(moves: Iterator[Move]) -> Iterator[Move]:
    """Neighbours that stay neighbours go as one."""
    last: Move | None = None
    for move in moves:
        if last and (last[0] + last[2], last[1] + last[2]) == move[:2]:
            last = last[0], last[1], last[2] + move[2]
            continue
        if last:
            yield last
        last = move
    if last:
        yield last


def _open(pin_directory: Path, name: str) -> syscall.BpfMap:
    return syscall.BpfMap(syscall.open_pinned(pin_directory / "maps" / name))


def _read(pin_directory: Path, name: str) -> MapEntries:
    bpf_map = _open(pin_directory, name)
    try:
        return bpf_map.items()
    finally:
        bpf_map.close()


def _remove(directory: Path) -> None:
    if directory.is_dir():
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
