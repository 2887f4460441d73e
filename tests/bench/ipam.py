"""What addresses cost: `make bench-ipam`. Every figure stands beside its bar; nothing is judged, machines differ.

Each case runs in a process of its own, so that its peak of resident memory is its own. Rows of build/bench/ipam.json:
`what, structure, n, us_per_op, worst_us, rss_mib`.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from statistics import mean, quantiles

import netaddr

from ipam import pod_addresses
from ipam.bitmap import Bitmap
from ipam.plan import plan
from ipam.pod_addresses import Attachment, Interface, Owner, PodAddresses
from ipam.pool import Pool, PoolSpec, Use
from ipam.round import Request
from routerd.model import Allocations
from routerd.operator.loop import Operator
from routerd.store.embedded.ledger import SqliteLedger
from routerd.store.embedded.published import PublishedFile
from tests.bench import report
from tests.bench.report import at_least, at_most
from tests.models.operator_world import FakeStore, World

SIZE, FIRST = 1 << 24, int(ip_address("10.0.0.0"))  # a /8
SPEC = PoolSpec("p", (ip_network("10.0.0.0/8"),))
VIPS = ip_network("100.64.0.0/10")
SERVICES = 10_000
BLOCKS = 735  # /28 of a cloud's interfaces, on the largest of its instances

Times = list[float]  # seconds, of one operation each
Case = tuple[str, str, int, Times]  # what, structure, n


def timed(action: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - began


def offsets(count: int) -> list[int]:
    return random.Random(1).sample(range(SIZE), count)


def allocations() -> Case:
    pool, use = Pool(SPEC), Use()

    def one(owner: str) -> None:
        key = pool.find(owner, 4, use)
        assert key is not None and pool.hold(key, owner, use) is None

    return "allocation", "Pool", 100_000, [timed(one, f"o{n}") for n in range(100_000)]


def requests() -> Case:
    wanted = [Request(f"o{n:06}", "loadbalancer") for n in range(100_000)]
    return "allocation", "plan", 100_000, [timed(plan, [SPEC], (), wanted, 0.0) / 100_000]


def lowest_free() -> Case:
    """The first million of a /8 is used, and one of them, somewhere, is free: every word before it is full."""
    bitmap, used, times = Bitmap(SIZE), 1_000_000, []
    for offset in range(used):
        bitmap.occupy(offset)
    for offset in random.Random(1).sample(range(used), 100_000):
        bitmap.release(offset)
        times.append(timed(bitmap.lowest_free))
        assert bitmap.lowest_free() == offset
        bitmap.occupy(offset)
    return "lowest free", "Bitmap", used, times


def three_of_ours() -> Case:
    bitmap, rounds = Bitmap(SIZE), offsets(110_000)
    for offset in rounds[:100_000]:
        bitmap.occupy(offset)

    def three(offset: int) -> None:
        bitmap.occupy(offset)
        bitmap.lowest_free()
        bitmap.release(offset)

    return "add, lowest free, remove", "Bitmap", 100_000, [timed(three, each) for each in rounds[100_000:]]


def three_of_netaddr() -> Case:
    """The lowest free one as a set that knows no other way finds it: the first gap between its ranges."""
    rounds = offsets(100_003)
    used = netaddr.IPSet(netaddr.IPAddress(FIRST + offset) for offset in rounds[:100_000])

    def three(address: netaddr.IPAddress) -> None:
        used.add(address)
        free = FIRST
        for each in used.iter_ipranges():
            if each.first > free:
                break
            free = each.last + 1
        used.remove(address)

    times = [timed(three, netaddr.IPAddress(FIRST + offset)) for offset in rounds[100_000:]]
    return "add, lowest free, remove", "netaddr.IPSet", 100_000, times


class Published(FakeStore):
    """Like a directory of manifests: what is written is on disk when `write_allocations` returns."""

    def __init__(self, world: World, directory: Path) -> None:
        super().__init__(world)
        self._file = PublishedFile(directory / "allocations.yaml")

    def write_allocations(self, allocations: Allocations) -> None:
        self._file.write(allocations)
        self.world.allocations = allocations


@contextmanager
def operator_of(services: int, status: bool) -> Iterator[tuple[World, Operator]]:
    """`status`: the services bear their addresses already, as after the ledger and what was published are lost."""
    world = World()
    world.pool("p", str(VIPS))
    world.node("g1")
    for number in range(services):
        world.service(f"s{number:06}", status=str(VIPS[number]) if status else "")
    with tempfile.TemporaryDirectory() as name:
        ledger = SqliteLedger(Path(name) / "ledger.db")
        yield world, Operator(Published(world, Path(name)), ledger)
        ledger.close()


def adopted() -> Case:
    """From the snapshot alone, without a ledger and without what was published, until both are on disk."""
    with operator_of(SERVICES, True) as (world, operator):
        took = timed(operator.round)
        assert all(world.services[each.service].status_ips == each.addresses for each in world.allocations.services)
        assert len(world.allocations.services) == SERVICES
    return "services adopted at a start", "Operator", SERVICES, [took]


def burst() -> Case:
    with operator_of(SERVICES, False) as (world, operator):
        operator.round()
        new = {f"d/new{n}": replace(world.services["d/s000000"], name=f"new{n}") for n in range(1000)}
        world.services = {**world.services, **new}
        took = timed(operator.round)
        assert len(world.allocations.services) == SERVICES + 1000
    return "1,000 new services, on disk", "Operator", SERVICES, [took]


def one_service() -> Case:
    times = []
    with operator_of(SERVICES, False) as (world, operator):
        operator.round()
        for number in range(30):
            other = replace(world.services["d/s000000"], name=f"new{number}")
            world.services = {**world.services, other.key: other}
            times.append(timed(operator.round))
    return "one new service, on disk", "Operator", SERVICES, times


def node_counts() -> Case:
    blocks = tuple(ip_network((FIRST + 16 * number, 28)) for number in range(BLOCKS))
    held = PodAddresses(blocks, interfaces=(Interface("02:00:00:00:00:01", ip_interface("10.0.0.1/8"), blocks),))
    for number in range(400):
        pod = Owner(f"d/p{number}", f"u{number}")
        held, _ = pod_addresses.give(held, Attachment("n", f"c{number}", "eth0"), pod, {}, 1000.0)
    others = [ip_address(FIRST + 16 * number + 9) for number in range(300)]
    times = [timed(pod_addresses.counts, held, 4, others) for _ in range(100)]
    return "counts of a node's addresses", "PodAddresses", BLOCKS, times


CASES: tuple[Callable[[], Case], ...] = (
    allocations, requests, lowest_free, three_of_ours, three_of_netaddr, adopted, one_service, burst, node_counts,
)  # fmt: skip


def measured(case: Callable[[], Case]) -> report.Row:
    what, structure, n, times = case()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = {"us_per_op": mean(times) * 1e6, "worst_us": max(times) * 1e6, "rss_mib": peak}
    if len(times) >= 1000:
        figures["p99_9_us"] = quantiles(times, n=1000)[-1] * 1e6
    return {"what": what, "structure": structure, "n": n, **{name: round(each, 2) for name, each in figures.items()}}


def judged(rows: dict[tuple[str, str], report.Row]) -> Iterator[str]:
    three = "add, lowest free, remove"
    of = {each: rows[each]["us_per_op"] for each in rows}
    free = rows["lowest free", "Bitmap"]
    hundred = of["allocation", "Pool"] * 100
    yield f"100,000 allocations of a pool: {hundred:.0f} ms, {at_most(hundred, 500)}"
    yield f"lowest free of a /8 with a million used: {free['us_per_op']:.1f} µs, {at_most(free['us_per_op'], 5)}"
    yield f"  99.9 % of them: {free['p99_9_us']:.1f} µs, {at_most(free['p99_9_us'], 50)}"
    ratio = of[three, "netaddr.IPSet"] / of[three, "Bitmap"]
    yield f"{three}, 100,000 used: {ratio:,.0f} × netaddr.IPSet's speed, {at_least(ratio, 1000)}"
    for what, bar in (
        ("services adopted at a start", 1000), ("one new service, on disk", 50), ("1,000 new services, on disk", 2000)
    ):  # fmt: skip
        took = of[what, "Operator"] / 1000
        yield f"{what}, of {SERVICES:,}: {took:.0f} ms, {at_most(took, bar)}"
    counts = of["counts of a node's addresses", "PodAddresses"] / 1000
    yield f"counts of a node's addresses in {BLOCKS} blocks: {counts:.1f} ms"


def main() -> None:
    report.forget("ipam")
    print(report.machine())
    apart = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, apart, max_tasks_per_child=1) as processes:
        rows = list(processes.map(measured, CASES))
    for row in rows:
        print(f"{row['what']:28} {row['structure']:14} {row['n']:>9,} {row['us_per_op']:>13,.1f} µs"
              f" worst {row['worst_us']:>13,.1f} µs {row['rss_mib']:>6.0f} MiB")  # fmt: skip
    print(*judged({(row["what"], row["structure"]): row for row in rows}), sep="\n")
    print(report.write("ipam", rows))


if __name__ == "__main__":
    main()
