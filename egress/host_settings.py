"""Remembers which of the host's own settings we changed, so that cleanup puts them back as they were.

A record is a directory under the pin directory: bpffs holds no files, but directories, and like the settings themselves
it does not outlive a reboot. Without a record a setting counts as the host's and is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from egress import devices

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


def reserve_ports(pin_directory: Path, ports: range) -> None:
    """Reserves them, beside those that are, and remembers which of them were."""
    record_ports(pin_directory, devices.reserved_ports() & set(ports))
    devices.reserve_ports(ports)


def release_ports(pin_directory: Path, ports: range) -> bool:
    """Takes those of them back that we reserved, and forgets it; whether there were any.

    OSError where sysctls cannot be written: the record stays.
    """
    before = recorded_ports(pin_directory)
    ours = set(ports) - before if before is not None else set()
    if devices.reserved_ports() & ours:
        devices.release_ports(ours)
    _forget(pin_directory / PORTS)
    return before is not None


def record_qdisc(pin_directory: Path, ifindex: int) -> None:
    """We made the clsact qdisc of this device."""
    (pin_directory / QDISCS / str(ifindex)).mkdir(parents=True, exist_ok=True)


def recorded_qdiscs(pin_directory: Path) -> set[int]:
    with suppress(FileNotFoundError):
        return {int(path.name) for path in (pin_directory / QDISCS).iterdir()}
    return set()


def forget_qdiscs(pin_directory: Path) -> None:
    _forget(pin_directory / QDISCS)


def _forget(record: Path) -> None:
    with suppress(FileNotFoundError):
        for path in record.iterdir():
            path.rmdir()
        record.rmdir()
