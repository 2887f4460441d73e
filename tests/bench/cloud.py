"""Many instances whose pods all appear at once, on a fake cloud that throttles: `make bench-cloud`. In virtual time.

Where the last pods' calls are of the action that all wait for, and another one serves the first ones meanwhile, the
mean of the waiting falls and its p99 cannot: so it is held against what any order of instances made of it, too.
It prints calls, time and waiting beside their bars, and the CPU time of a turn; it judges nothing.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from statistics import mean, median
from typing import Any

from cloud.buckets import Buckets, Rate
from cloud.demand import Rules
from cloud.providers import arm
from cloud.turn import Memory
from tests.bench import report
from tests.models.cloud.core import TYPES, Cloud
from tests.models.cloud.faulty import FRONTS
from tests.models.cloud.state import TypeOfInstance
from tests.models.cloud.world import World, api_of

PODS = 50
TYPE = "m5.4xlarge"
BURST, RATE = 20, 10.0  # of each mutating action, in the cloud and in our own buckets


def world_of(provider: str, count: int) -> World:
    cloud = Cloud(FRONTS[provider], types=TYPES | {TYPE: TypeOfInstance(8, 30)}, quota=100_000)
    api = api_of(cloud.front)
    world = World(cloud, Rules("bench", api=api, first_index=1 if api.makes else 0))
    cloud.add_group("sg-1")
    for number in range(-(-count // 500)):
        cloud.add_subnet(f"subnet-{number}", f"10.{number}.0.0/16")
    for number in range(count):
        world.add(f"i-{number}", f"subnet-{number // 500}", TYPE).used = PODS
    mutating = (name for name, call in cloud.front.calls.items() if call.mode != "read")
    cloud.buckets = dict.fromkeys(mutating, (BURST, RATE))
    world.memory = Memory(Buckets(default=Rate(RATE, BURST)))
    return world


def given(world: World, addresses: int) -> Iterator[tuple[str, int]]:
    """The calls of one instance that give so many addresses, with as few interfaces as can be, and what each gives."""
    if not world.rules.api.makes:
        yield arm.PUT, addresses
        return
    room, at_once = world.cloud.types[TYPE].ipv4 - 1, world.rules.api.at_once or addresses
    for start in range(0, addresses, room):
        on_it = min(room, addresses - start)
        yield "CreateNetworkInterface", min(on_it, at_once)
        for first in range(at_once, on_it, at_once):
            yield "AssignPrivateIpAddresses", min(on_it - first, at_once)


BESIDES = ("AttachNetworkInterface", "ModifyNetworkInterfaceAttribute")  # for each that is made, where there are such


def least(world: World, count: int) -> Counter[str]:
    """Calls of each action, each with all that one may give, and as few interfaces as can be."""
    found = Counter(action for action, _ in given(world, PODS + world.rules.marks.pre_allocate))
    found |= Counter(dict.fromkeys(world.cloud.front.calls.keys() & set(BESIDES), found["CreateNetworkInterface"]))
    return Counter({action: each * count for action, each in found.items()})


def least_p99(world: World, count: int) -> float:
    """Seconds within which 99 of 100 pods cannot have an address, in whatever order instances are served: by then all
    have had all calls, but for the last one of as many instances as a hundredth of the pods can be spread over.
    """
    wanted = PODS + world.rules.marks.pre_allocate
    *_, (_, gives) = given(world, wanted)
    by_the_last = PODS - (wanted - gives)  # pods of an instance
    late = min(PODS / 100 / by_the_last, 1)
    return (max(least(world, count).values()) - late * count - BURST) / RATE


def run(provider: str, count: int) -> dict[str, float | str]:
    world, waits, turns, served = world_of(provider, count), list[float](), list[float](), dict[str, int]()
    began = world.cloud.now
    while len(waits) < count * PODS:
        before = time.process_time()
        world.turn()
        turns.append(time.process_time() - before)
        for name, node in world.nodes.items():
            new = len(node.pods) - served.get(name, 0)
            waits += [world.cloud.now - began] * new
            served[name] = len(node.pods)
        world.cloud.advance(1)
    needed, calls = least(world, count), world.cloud.mutations()
    allowed = (max(needed.values()) - BURST) / RATE
    waits.sort()
    throttled, _ = world.cloud.front.codes["throttled"]
    return {
        "provider": provider,
        "instances": count,
        "seconds": waits[-1],
        "allowed_seconds": round(allowed, 1),
        "calls": sum(calls.values()),
        "least_calls": sum(needed.values()),
        "throttled": sum(code == throttled for _, _, _, code in world.cloud.log),
        "wait_mean": round(mean(waits), 1),
        "wait_p99": waits[int(0.99 * len(waits))],
        "least_p99": round(least_p99(world, count), 1),
        "turn_ms": round(1000 * median(turns), 1),
    }


def main() -> None:
    report.forget("cloud")
    parser = argparse.ArgumentParser()
    parser.add_argument("--instances", type=int, default=1000)
    rows = [run(provider, parser.parse_args().instances) for provider in FRONTS]
    report.write("cloud", rows)
    for row in rows:
        tell(row)


def tell(row: dict[str, Any]) -> None:
    print(
        f"{row['provider']}: {row['instances']} instances, {PODS} pods each at once, "
        f"{RATE:g} calls a second of each action"
    )
    for what, value, bar in (
        ("calls that change something", row["calls"], 1.2 * row["least_calls"]),
        ("seconds until every pod is served", row["seconds"], 1.3 * row["allowed_seconds"]),
        ("p99 of the waiting against its mean, seconds", row["wait_p99"], 2.2 * row["wait_mean"]),
        ("p99 of the waiting against any order's, seconds", row["wait_p99"], 1.3 * row["least_p99"]),
    ):
        print(f"{what}: {value:g}, bar {bar:g}: {'held' if value <= bar else 'MISSED'}")
    print(
        f"throttled by the cloud: {row['throttled']}; a turn, the fake's answers included: {row['turn_ms']} ms of CPU"
    )


if __name__ == "__main__":
    main()
