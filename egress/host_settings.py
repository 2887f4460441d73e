"""Remembers which of the host's own settings we changed, so that cleanup puts them back as they were.

A record is a directory under the pin directory: bpffs holds no files, but directories, and like the settings themselves
it does not outlive a reboot. Without a record a setting counts as the host's and is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

PORTS, QDISCS = "reserved", "qdiscs"


def record_ports(pin_directory: Path, held: Iterable[int]) -> None:
    """Of the ports that we are about to reserve, those that were reserved already: they stay so."""
    if not (pin_directory / PORTS).exists():
        for name in ("", *map(str, held)):
            (pin_directory / PORTS / name).mkdir(parents=True, exist_ok=True)


def recorded_ports(pin_directory: Path) -> set[int] | None:
    """What `record_ports` wrote; None = we reserved none."""
    with suppress(FileNotFoundError):
        return {int(path.name) for path in (pin_directory / PORTS).iterdir()}
    return None


def record_qdisc(pin_directory: Path, ifindex: int) -> None:
    """We made the clsact qdisc of this device."""
    (pin_directory / QDISCS / str(ifindex)).mkdir(parents=True, exist_ok=True)


def recorded_qdiscs(pin_directory: Path) -> set[int]:
    with suppress(FileNotFoundError):
        return {int(path.name) for path in (pin_directory / QDISCS).iterdir()}
    return set()


def forget(pin_directory: Path) -> None:
    """Removes all records."""
    for part in (PORTS, QDISCS):
        with suppress(FileNotFoundError):
            for path in (pin_directory / part).iterdir():
                path.rmdir()
            (pin_directory / part).rmdir()
