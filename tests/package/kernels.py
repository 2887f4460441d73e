"""The matrix of kernels and devices: each of Debian's newest kernels is started in QEMU, and a selected pod is tried
there on a device of each kind. Prints a row for each, as docs/devices.md has them. Ends with 1 if one is wrong.

    python -m tests.package.kernels
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.package import machine
from tests.package.device_check import EGRESS_IP, EGRESS_IP6

HOOKED = ("veth", "bridge", "netkit-l3", "netkit-l2")
PAST_HOOKS = ("macvlan-bridge", "ipvlan-l2", "ipvlan-l3", "nic")
NETKIT_SINCE = (6, 7)


def kernels() -> dict[str, Path]:
    """By release, the oldest first."""
    places = [machine.KERNEL, *(machine.CACHE / "kernels").iterdir()]
    found = {(place / "release").read_text(encoding="ascii").strip(): place for place in places}
    return {release: found[release] for release in sorted(found, key=_version)}


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.partition("+")[0].partition("-")[0].split("."))


def kinds(release: str) -> tuple[str, ...]:
    hooked = HOOKED if _version(release)[:2] >= NETKIT_SINCE else HOOKED[:2]
    return (*hooked, *PAST_HOOKS)


def result(row: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether it is as it should be, and what it is in words."""
    if row["error"]:
        return False, str(row["error"]).splitlines()[0]
    sources, past, told = row["sources"], row["past"], row["told"]
    if row["kind"] in PAST_HOOKS:
        left = f"left with {', '.join(past)}" if past else "nothing left the worker"
        is_kept = row["kind"] == "nic" or not past
        return told == ["DeviceUnhooked"] and is_kept, f"told ({', '.join(told) or 'nothing'}); {left}"
    expected = {name: str(EGRESS_IP6 if name.endswith("6") else EGRESS_IP) for name in sources}
    wrong = [f"{name} as {source or 'no answer'}" for name, source in sources.items() if source != expected[name]]
    leaks = [f"{each} left as well" for each in past]
    told_too = [f"told: {each}" for each in told]
    faults = [*wrong, *leaks, *told_too]
    return not faults, "; ".join(faults) or f"translated: {', '.join(sources)}"


def main() -> int:
    faults = 0
    print("| kernel | device | result |\n|---|---|---|")
    for release, place in kernels().items():
        with tempfile.TemporaryDirectory() as directory:
            found = machine.check_devices(Path(directory), kinds(release), place)
        for kind, row in found.items():
            good, words = result(row)
            faults += not good
            print(f"| {row['release']} | {kind} | {'' if good else 'WRONG: '}{words} |", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
