"""Speed of allocation, and size and speed of what is published: `make bench-allocations`. Prints medians; judges
nothing, machines differ.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from statistics import median

from ipam.bitmap import Bitmap
from ipam.plan import plan
from ipam.pool import Pool, PoolSpec, Use
from ipam.round import Request
from routerd.cluster.ledger import Ledger
from routerd.formats.published.parts import Part
from routerd.formats.published.whole import AllocationsReader, AllocationsWriter
from routerd.model import Allocations, NodeReport, Snapshot
from routerd.operator.loop import Operator
from routerd.store.embedded.ledger import SqliteLedger
from routerd.store.kubernetes.documents import LedgerText
from tests.models.many import allocations_of, ledger_of
from tests.models.operator_world import World

RUNS = 3
SPEC = PoolSpec("p", (ip_network("10.0.0.0/8"),))


class Memory:
    """A store that keeps what is written."""

    def __init__(self, world: World) -> None:
        self.world = world

    def snapshot(self) -> Snapshot:
        return self.world.snapshot()

    def node_reports(self) -> dict[str, NodeReport]:
        return self.world.reports

    def write_allocations(self, allocations: Allocations) -> None:
        self.world.allocations = allocations

    def on_change(self, callback: Callable[[], None]) -> None:
        """Rounds are called one by one here."""


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def pool_100k() -> float:
    pool, use = Pool(SPEC), Use()
    return seconds(lambda: [pool.hold(pool.find(f"o{n}", 4, use) or 0, f"o{n}", use) for n in range(100_000)])


def plan_100k() -> float:
    requests = [Request(f"o{n:06}", "loadbalancer") for n in range(100_000)]
    return seconds(lambda: plan([SPEC], (), requests, 0.0))


def nearly_full() -> tuple[float, float]:
    """A /8 with one free address in a random place: seconds for each search, on average and at worst."""
    bitmap = Bitmap(1 << 24)
    for offset in range(1 << 24):
        bitmap.occupy(offset)
    times = []
    for offset in random.Random(1).sample(range(1 << 24), 2000):
        bitmap.release(offset)
        times.append(seconds(bitmap.lowest_free))
        assert bitmap.lowest_free() == offset
        bitmap.occupy(offset)
    return sum(times) / len(times), max(times)


def reactions() -> list[float]:
    """From a change to the published document, with 1,000 services and 100 policies, the ledger on disk included."""
    world = World()
    world.pool("p", "198.18.0.0/16")
    for name in ("g1", "g2", "g3", "g4"):
        world.node(name)
    for n in range(1000):
        world.service(f"s{n:04}")
    for n in range(100):
        world.policy(f"e{n:03}", pool="p")
    with tempfile.TemporaryDirectory() as directory:
        ledger = SqliteLedger(Path(directory) / "ledger.db")
        operator = Operator(Memory(world), ledger)
        operator.round()
        times = []
        for n in range(30):
            world.services = world.services | {f"d/new{n}": replace(world.services["d/s0000"], name=f"new{n}")}
            times.append(seconds(operator.round))
        ledger.close()
    return times


def sizes(index: str, parts: tuple[Part, ...]) -> str:
    found = [len(part.text) for part in parts]
    if not found:
        return f"one document of {len(index) / 1024:.0f} KiB"
    each = f"{min(found) / 1024:.0f} to {max(found) / 1024:.0f} KiB"
    return f"{len(found)} parts of {each}, index {len(index) / 1024:.0f} KiB, together {sum(found) / 2**20:.1f} MiB"


def published(services: int, groups: int) -> None:
    """What is written first, and after one service of all changed; and what an agent needs to read it."""
    writer, reader, before = AllocationsWriter(), AllocationsReader(), allocations_of(services, groups)
    other = replace(before.services[services // 2], addresses=(ip_address("192.0.2.1"),))
    changed = (*before.services[: services // 2], other, *before.services[services // 2 + 1 :])
    print(f"{services:,} services, {groups:,} groups:")
    for what, decision in (("first", before), ("then", replace(before, generation=2, services=changed))):
        began = time.perf_counter()
        document = writer.written(decision)
        written = time.perf_counter()
        reader.read(document.text, "", {part.name: part.text for part in document.parts}.get)
        took = f"written in {(written - began) * 1e3:.0f} ms, read in {(time.perf_counter() - written) * 1e3:.0f} ms"
        print(f"  allocations, {what}: {sizes(document.text, document.parts)}; {took}")


def recorded(ledger: Ledger) -> None:
    text = LedgerText()
    first = seconds(lambda: text.written(ledger, ()))
    data, parts = text.written(ledger, ())
    again = seconds(lambda: text.written(replace(ledger, generation=2, addresses=ledger.addresses[1:]), ()))
    print(f"  ledger: {sizes(''.join(data.values()), parts)}; first in {first * 1e3:.0f} ms, then {again * 1e3:.0f} ms")


def main() -> None:
    for services, groups in ((100, 10), (10_000, 1000), (100_000, 1000)):
        published(services, groups)
        recorded(ledger_of(services, groups))
    print(f"100,000 allocations of a pool:  {median(pool_100k() for _ in range(RUNS)):.3f} s")
    print(f"100,000 requests of one plan:   {median(plan_100k() for _ in range(RUNS)):.3f} s")
    mean, worst = nearly_full()
    print(f"lowest free of a nearly full /8: {mean * 1e6:.1f} µs, worst {worst * 1e6:.1f} µs")
    times = reactions()
    print(f"one change among 1,000 services: {median(times) * 1e3:.1f} ms, worst {max(times) * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
