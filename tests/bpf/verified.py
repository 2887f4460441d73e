"""How many instructions the verifier goes through for each program, and the counts that are recorded in verified.json.

The kernel refuses a program of a million. The count differs between kernels and between compilers, so each pair has its
own. `make verified` (python -m tests.bpf.verified) records what is there now, on this kernel and on the floor's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tests.bpf.world import World
from tests.package import machine
from tests.package.packet_check import all_verified

RECORDED = Path(__file__).with_name("verified.json")
MOST = 500_000  # of a program, where no count is recorded: half of what the kernel allows
GROWTH = 1.1
RENEW = "simplify it, or record what it is by `make verified` and say why in the commit"

Counts = Mapping[str, int]


@cache
def clang() -> str:
    shown = subprocess.run(["clang", "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    found = re.search(r"version (\d+)", shown)
    return found[1] if found else "unknown"


def place(release: str) -> str:
    """The name under which counts of a kernel are recorded. `release` as uname says it."""
    return f"Linux {'.'.join(release.split('.')[:2])}, clang {clang()}"


def recorded() -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = json.loads(RECORDED.read_text())
    return found


def complaints(found: Counts, known: Counts | None) -> list[str]:
    """What has grown by more than a tenth of what is recorded, or is too much where nothing is."""
    told = []
    for name, count in sorted(found.items()):
        before = (known or {}).get(name)
        most, why = (GROWTH * before, f"{before:,} are recorded") if before else (MOST, f"{MOST:,} are too many")
        if count > most:
            told.append(f"{name}: the verifier goes through {count:,} instructions, {why}: {RENEW}")
    return told


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        inside = machine.check_packets(Path(directory))
    world = World(f"rverify{os.getpid()}")
    try:
        here = all_verified(world.pins)
    finally:
        world.close()
    counts = recorded() | {place(inside["release"]): inside["verified"], place(os.uname().release): here}
    RECORDED.write_text(json.dumps(counts, indent=2, sort_keys=True) + "\n")
    print(RECORDED)


if __name__ == "__main__":
    main()
