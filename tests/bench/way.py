"""Nanoseconds of a packet's whole way, from the pod's socket to the remote's and back: `make bench-way`, or
python -m tests.bench.way.

The sites are those of `tests.bench.egress`, each without other rules of netfilter and with such as kube-proxy makes.
One thread sends and receives, and sites take turns in batches of a few hundred microseconds, so a busy machine is
hardly worse than a quiet one. Rows go to `build/bench/way.json`. It judges nothing.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.bench.egress import REMOTE, Site, sites
from tests.bench.report import Row, compiled, forget, machine, spread, write

MODES = {  # -> what it is compared with
    "plain": "plain", "nft": "plain", "routerd_direct": "plain",
    "plain_vxlan": "plain_vxlan", "nft_vxlan": "plain_vxlan", "routerd_vxlan": "plain_vxlan",
    "routerd_device": "plain_vxlan", "routerd_forward": "routerd_vxlan",
}  # fmt: skip
FIGURES = ("out_ns", "back_ns", "connection_ns")


def measure(made: Sequence[Site], way: Path, batches: int) -> list[Row]:
    names = [site.parts[part].name for site in made for part in ("pod", "remote")]
    words = [str(way), made[0].text(REMOTE), str(batches), *names]
    lines = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60 + batches).stdout.splitlines()
    return [row(made[place], batch, figures) for place, batch, *figures in (map(int, line.split()) for line in lines)]


def row(site: Site, batch: int, figures: Sequence[int]) -> Row:
    named = {"mode": site.mode, "policies": site.policies, "netfilter": site.netfilter, "family": f"IPv{site.version}"}
    return {**named, "batch": batch, **dict(zip(FIGURES, figures, strict=True))}


def say(rows: Sequence[Row], mode: str, netfilter: bool) -> None:
    """First quartiles, as others on the machine only add, and how they differ from those of the other mode."""
    print(f"{mode:<14} {'beside other rules' if netfilter else 'alone':<18}", end="")
    for figure in FIGURES:
        value, plain = (
            spread([row[figure] for row in rows if (row["mode"], row["netfilter"]) == (each, netfilter)])[1]
            for each in (mode, MODES[mode])
        )
        print(f"  {figure} {value:6,.0f} ({value - plain:+6,.0f})", end="")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-way", description=__doc__, allow_abbrev=False)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--policies", type=int, default=1)
    parser.add_argument("--family", type=int, choices=(4, 6), default=4)
    given = parser.parse_args()
    forget("way")
    print(f"make bench-way: {machine()}, IPv{given.family}, {given.batches} batches")
    with (
        compiled("load.c") as load,
        compiled("way.c") as way,
        sites([given.policies], (given.family,), tuple(MODES), load, (False, True)) as made,
    ):
        rows = measure(made, way, given.batches)
        dropped = [drops for site in made if (drops := site.dropped())]
    for netfilter in (False, True):
        for mode in MODES:
            say(rows, mode, netfilter)
    if dropped:
        print(f"routerd dropped: {dropped}")
    print(write("way", rows))


if __name__ == "__main__":
    main()
