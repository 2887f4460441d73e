"""Looks after the pins of maps and programs: says which are gone, and pins again what is still in use.

A pin that somebody removed takes nothing from the packets: links hold their programs, and programs their maps. Loading
the object again would make empty maps in place of those, and cut every live connection.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from bpf import syscall
from bpf.layout import MAPS, PROGRAMS


def missing(pin_directory: Path) -> list[str]:
    """Pins that should be there and are not, as `maps/NAME` and `programs/NAME`."""
    wanted = [f"maps/{name}" for name in MAPS] + [f"programs/{name}" for name in PROGRAMS]
    return [name for name in wanted if not (pin_directory / name).exists()]


def restore(pin_directory: Path) -> None:
    """Pins again what is gone and still in use; programs first, as maps are found by them.

    The kernel asks for CAP_SYS_ADMIN to open an object by its number; without it, or where nothing uses a map any more,
    the programs are unpinned, so that the object is loaded anew.
    """
    for name, program in _attached(pin_directory):
        _pin_again(syscall.PROG_BY_ID, program, pin_directory / "programs" / name)
    for name, number in _used(pin_directory):
        _pin_again(syscall.MAP_BY_ID, number, pin_directory / "maps" / name)
    if missing(pin_directory):
        for name in PROGRAMS:
            (pin_directory / "programs" / name).unlink(missing_ok=True)


def _attached(pin_directory: Path) -> Iterator[tuple[str, int]]:
    """(name, kernel's id) of the programs that links hold; a link is pinned as PROGRAM_at_IFINDEX."""
    for path in _entries(pin_directory / "links"):
        link = syscall.open_pinned(path)
        number = syscall.link_info(link).program_id
        os.close(link)
        name = path.name.partition("_at_")[0]
        if name in PROGRAMS and number:
            yield name, number


def _used(pin_directory: Path) -> Iterator[tuple[str, int]]:
    """(name, kernel's id) of the maps of pinned programs."""
    for path in _entries(pin_directory / "programs"):
        program = syscall.open_pinned(path)
        numbers = syscall.program_map_ids(program)
        os.close(program)
        for number in numbers:
            name = _map_name(number)
            if name in MAPS:
                yield name, number


def _map_name(number: int) -> str:
    """ "" when it may not be asked."""
    try:
        opened = syscall.open_by_id(syscall.MAP_BY_ID, number)
    except OSError:
        return ""
    name = syscall.map_identity(opened)[1]
    os.close(opened)
    return name


def _pin_again(command: int, number: int, path: Path) -> None:
    if path.exists():
        return
    with suppress(OSError):  # not allowed, or gone meanwhile: the object is loaded anew
        opened = syscall.open_by_id(command, number)
        path.parent.mkdir(exist_ok=True)
        syscall.pin(opened, path)
        os.close(opened)


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []
