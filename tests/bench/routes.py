"""Routes to other nodes' pods in the kernel: `make bench-routes`. Every figure is beside its bar; nothing is judged.

In a network namespace of its own, with 10,000 routes of each family by 100 nodes. Rows of build/bench/routes.json:
`family, what, routes, seconds, cpu_s, writes`.
"""

from __future__ import annotations

import os
import time
from ipaddress import IPv4Network, IPv6Network, ip_address

from fib import kernel
from fib.plan import Desired, IPAddress, IPNetwork, plan
from tests.bench.report import Row, at_most, forget, machine, write
from tests.netns.lab.netns import Namespace, entered, run

ROUTES, NODES = 10_000, 100
BARS = {"put": 1.0, "resync": 1.0, "move": 1.0, "remove": 1.0}  # seconds
SCENE = (
    "link add eth0 type veth peer name far0",
    "link set eth0 up",
    "link set far0 up",
    "addr add 10.0.0.1/16 dev eth0",
    "addr add fd00::1/64 dev eth0 nodad",
)


def wish(version: int, shift: int) -> Desired:
    """`shift`: by how many nodes each prefix has moved."""
    return Desired({_prefix(version, n): (_node(version, (n + shift) % NODES),) for n in range(ROUTES)})


def _prefix(version: int, number: int) -> IPNetwork:
    if version == 4:
        return IPv4Network((int(ip_address("100.64.0.0")) + (number << 8), 24))
    return IPv6Network((int(ip_address("fd64::")) + (number << 64), 64))


def _node(version: int, number: int) -> IPAddress:
    return ip_address("10.0.1.0" if version == 4 else "fd00::100") + number


def brought(desired: Desired) -> tuple[float, float, int]:
    """Seconds of a whole look and its changes, those of the CPU, and the routes that were written."""
    began, busy, writes = time.perf_counter(), time.process_time(), 0
    for action in plan(desired, kernel.observe(desired)):
        kernel.apply(action)
        writes += len(getattr(action, "routes", getattr(action, "prefixes", ())))
    return time.perf_counter() - began, time.process_time() - busy, writes


def measured(version: int) -> list[Row]:
    first, moved = wish(version, 0), wish(version, 1)
    steps = {"put": first, "resync": first, "move": moved, "remove": Desired()}
    rows = []
    for what, desired in steps.items():
        seconds, busy, writes = brought(desired)
        row: Row = {"family": version, "what": what, "routes": ROUTES, "seconds": seconds}
        rows.append({**row, "cpu_s": busy, "writes": writes})
    return rows


def main() -> None:
    forget("routes")
    namespace = Namespace(f"broutes{os.getpid()}", "node")
    namespace.create()
    try:
        namespace.ip(*SCENE)
        with entered(namespace.name):
            rows = [row for version in (4, 6) for row in measured(version)]
    finally:
        run(["ip", "netns", "del", namespace.name])
    print(machine())
    for row in rows:
        told = at_most(row["seconds"], BARS[row["what"]])
        busy = f"{row['cpu_s']:.3f} s of a CPU"
        print(f"IPv{row['family']} {row['what']:7} {row['seconds']:.3f} s ({told}), {busy}, {row['writes']:,} written")
    print(write("routes", rows))


if __name__ == "__main__":
    main()
