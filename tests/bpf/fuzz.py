"""Random packets of both families, model against programs: `make fuzz`, or python -m tests.bpf.fuzz.

An example is a few policies and a hundred packets, all of it from one number; so is whether the tables are large, small
or shared tightly. What fails is told with its number: SEED=NUMBER COUNT=1 does it again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import closing
from dataclasses import replace
from random import Random, SystemRandom

from egress.policy import NO_LIMITS, Policy, Transport
from tests.bpf import oracle
from tests.bpf.draws import DESTINATIONS, EXCLUDED, GROUPS, MOST_PORTS, SOME_PORTS, WORKERS, policies_of
from tests.bpf.wishes import by_forward_hook, desired
from tests.bpf.world import SMALL, TIGHT, World

COUNT, PACKETS, REPORT = 1_000_000, 100, 100_000


def policies(random: Random) -> list[Policy]:
    return policies_of(
        [
            (
                random.choice(GROUPS),
                random.choices(DESTINATIONS, k=random.randint(1, 3)),
                random.choices(EXCLUDED, k=random.randint(0, 1)),
                random.choices(SOME_PORTS, k=random.choice((0, 0, 1, MOST_PORTS))),
                random.randint(0, 2),
                random.choice((False, True)),
            )
            for _ in range(random.randint(1, 3))
        ]
    )


def example(seed: int, large: World, small: World) -> None:
    random = Random(seed)
    world = random.choice((large, large, small))
    world.limits = random.choice((NO_LIMITS, TIGHT))
    transport: Transport = random.choice(("vxlan", "auto", "auto", "direct"))
    wished = desired(*policies(random), both=random.choice((False, True)), transport=transport)
    wished = random.choice((wished, wished, replace(wished, served={})))
    wished = random.choice((wished, by_forward_hook(wished)))
    asked = random.sample(WORKERS, random.randint(0, 2))
    oracle.check(world, wished, [random.getrandbits(96) for _ in range(PACKETS)], asked=asked)


def run(first: int, count: int) -> None:
    """`count` is rounded up to whole examples. AssertionError of the first one that fails, after its number is told."""
    started, done = time.monotonic(), 0
    with closing(World(f"rfuzz{os.getpid()}")) as large, closing(World(f"rfuzs{os.getpid()}", SMALL)) as small:
        for seed in range(first, first + -(-count // PACKETS)):
            try:
                example(seed, large, small)
            except AssertionError:
                print(f"fuzz: error: SEED={seed} COUNT=1 make fuzz does it again", file=sys.stderr)
                raise
            done += PACKETS
            if done % REPORT == 0:
                print(f"{done:,} packets, {time.monotonic() - started:.0f} s", flush=True)
    print(f"{done:,} packets: model and programs agree (SEED={first})")


def main() -> None:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__, allow_abbrev=False)
    parser.add_argument("--count", type=int, default=COUNT, help="packets")
    parser.add_argument("--seed", type=int, default=SystemRandom().getrandbits(32))
    given = parser.parse_args()
    run(given.seed, given.count)


if __name__ == "__main__":
    main()
