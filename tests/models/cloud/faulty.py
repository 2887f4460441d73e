"""A random life of instances on a fake cloud, with faults at any step; what must hold is asserted after each.

It judges by what nodes use, what is on record and what the cloud really has, not by what looks show.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, ip_network
from itertools import product
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from cloud.egress import Wanted
from cloud.model import INSTANCE_TAG
from cloud.need import Watermarks
from cloud.providers import arm
from tests.models.cloud.alibaba.front import ALIBABA_FRONT
from tests.models.cloud.azure import names
from tests.models.cloud.azure.front import AZURE_FRONT
from tests.models.cloud.core import Fault
from tests.models.cloud.desk_node import DeskNode
from tests.models.cloud.ec2_front import EC2_FRONT
from tests.models.cloud.front import Front
from tests.models.cloud.world import World
from tests.models.virtual_time import VirtualLoop

SHM = "/dev/shm" if Path("/dev/shm").is_dir() else None  # agents write often
LATE = (*[0] * 9, 1, 4, 15)  # words by which nodes and operator hear of each other late
FAULTS = ("before", "after", "throttled", "internal", "internal-done")
EGRESS = (IPv4Address("10.0.0.120"), IPv4Address("10.0.0.121"))  # of one group
LATEST = 55.0  # seconds by which looks are late at most
FRONTS = {"aws": EC2_FRONT, "alibaba": ALIBABA_FRONT, "azure": AZURE_FRONT}


@dataclass
class Life:
    """`choose` picks one of several: `random.Random.choice`, or what hypothesis draws."""

    choose: Callable[[Any], Any]
    prefixes: bool = False
    front: Front = EC2_FRONT
    loop: VirtualLoop = field(default_factory=VirtualLoop)
    directory: Path = field(default_factory=lambda: Path(mkdtemp(prefix="routerd-life", dir=SHM)))
    world: World = field(init=False)
    count: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    stolen: set[IPv4Address] = field(default_factory=set)

    def __post_init__(self) -> None:
        world = World.of(
            front=self.front, prefixes=self.prefixes, ipv6=True, marks=Watermarks(pre_allocate=2), cidr="10.0.0.0/25",
        )  # fmt: skip
        world.cloud.lag = lambda: self.choose((0.0, 0.0, 7.0, 30.0, LATEST))
        growing = ("CreateNetworkInterface", "AssignPrivateIpAddresses", arm.PUT, arm.VM_PUT)
        world.cloud.buckets = dict.fromkeys(growing, (3, 0.5))
        self.world = world
        world.nodes.clear()
        world.cloud.terminate("i-1")
        self._come()

    def close(self) -> None:
        self.loop.close()
        rmtree(self.directory)

    STEPS = (
        *["turn"] * 24,
        *["pods"] * 4,
        *["fault"] * 3,
        *["start"] * 2,
        *["wait"] * 6,
        "crash",
        "cut",
        "kill",
        "again",
        "gateways",
        "gateways",
        "come",
        "go",
        "stop",
        "steal",
    )

    def step(self) -> None:
        name = self.choose(self.STEPS)
        self.steps[name] += 1
        getattr(self, f"_{name}")()
        self.check()

    def _turn(self) -> None:
        self.world.turn()
        self.world.cloud.advance(self.choose((1, 3, 10)))

    def _wait(self) -> None:
        self.world.cloud.advance(self.choose((5, 60, 200)))

    def _pods(self) -> None:
        if self.world.nodes:
            self.world.want(self.choose(range(12)), self.choose(sorted(self.world.nodes)))

    def _fault(self) -> None:
        self.world.cloud.faults = [
            Fault(self.choose(sorted(self.front.calls)), self.choose(FAULTS), self.choose((1, 2)))
        ]

    def _crash(self) -> None:
        """Between record and call, or between call and its answer's record."""
        turn = self.world.decided()
        if turn is not None and self.choose((True, False)):
            for order in turn.orders:
                self.world.backend.send(order.call)
        self.world.restart()
        self.world.cloud.advance(1)

    def _cut(self) -> None:
        """A crash in the middle of several calls."""
        turn = self.world.decided()
        for order in (turn.orders if turn else ())[:1]:
            self.world.backend.send(order.call)
        self.world.restart()

    def _kill(self) -> None:
        """An agent, between its disk and the answer."""
        node = self.world.nodes[self.choose(sorted(self.world.nodes))]
        assert isinstance(node, DeskNode)
        node.killed()

    def _come(self) -> None:
        if len(self.world.nodes) < 4:
            self._add(f"n{self.count + 1}")

    def _add(self, node: str) -> None:
        """An instance, whose disk is that of the last node of this name."""
        self.count += 1
        name, directory = f"i-{self.count:x}", self.directory / node
        if self.front is AZURE_FRONT and self.choose((True, False)):
            name = f"{names.IN_SET}{self.count:x}"
        directory.mkdir(exist_ok=True)
        self.world.add(name, type_=self.choose(("t3.small", "m5.large", "t2.small")))
        self.world.nodes[name] = DeskNode(
            name=node, directory=directory, clock=lambda: self.world.cloud.now, run=self.loop.run_until_complete,
            late=lambda: self.choose(LATE),
        )  # fmt: skip

    def _go(self) -> str:
        name = self.choose(sorted(self.world.nodes))
        node = self.world.nodes[name]
        if len(self.world.nodes) > 1:
            self.world.cloud.terminate(name)
            del self.world.nodes[name]
            self.world.wanted = tuple(
                replace(each, candidates=tuple(one for one in each.candidates if one != name))
                for each in self.world.wanted
            )
        assert isinstance(node, DeskNode)
        return node.name

    def _again(self) -> None:
        """A new instance under the name of an old one's node."""
        name, count = self._go(), len(self.world.nodes)
        if all(node.name != name for node in self.world.nodes.values() if isinstance(node, DeskNode)):
            assert count < 4
            self._add(name)

    def _gateways(self) -> None:
        """Another order of a policy's gateways, none of them, or no policy."""
        names, count = sorted(self.world.nodes), self.choose(range(len(self.world.nodes) + 1))
        order = [names.pop(names.index(self.choose(names))) for _ in range(count)]
        self.world.wanted = self.choose(((Wanted(EGRESS, tuple(order)),),) * 3 + ((),))

    def _stop(self) -> None:
        self.world.cloud.set_state(self.choose(sorted(self.world.nodes)), "stopped")

    def _start(self) -> None:
        for name in self.world.nodes:
            self.world.cloud.set_state(name, "running")

    def _steal(self) -> None:
        """Somebody unassigns an address by hand, and takes it himself."""
        loaded = [eni for eni in self.world.cloud.enis.values() if eni.addresses and eni.attachment]
        if loaded:
            eni = self.choose(sorted(loaded, key=lambda each: each.id))
            self.stolen.add(eni.addresses[0])
            self.world.cloud.unassign(eni, eni.addresses[:1])

    # --- what must hold

    def check(self) -> None:
        recorded = [block.network for each in self.world.holdings.values() for _, block in each.blocks()]
        doubles = [network for network, count in Counter(recorded).items() if count > 1]
        assert not doubles, f"on record twice: {doubles}"
        for one in recorded:
            assert not any(one != other and one.version == other.version and one.overlaps(other) for other in recorded)
        pods = Counter(address for node in self.world.nodes.values() for address in node.addresses())
        twice = {address for address, count in pods.items() if count > 1} - self.stolen
        assert not twice, f"two pods have one of {twice}"
        owners = self._owners()
        for name, node in self.world.nodes.items():
            mine = owners.get(name, [])
            wrong = {each for each in node.addresses() if not any(each in network for network in mine)} - self.stolen
            assert not wrong, f"{name}: pods have {wrong}, which the cloud gives to others or to nobody"
        assert not pods.keys() & set(EGRESS), "a pod has an egress IP"
        for address in EGRESS:
            assert len(self._holders(address)) <= 1, f"{address} is on several: {self._holders(address)}"

    def _holders(self, address: IPv4Address) -> list[str]:
        """Instances that have it, as the cloud has it."""
        having = (each for each in self.world.cloud.enis.values() if address in each.addresses)
        return [each.attachment.instance if each.attachment else "" for each in having]

    def _owners(self) -> dict[str, list[Any]]:
        """Networks for pods by instance, as the cloud has them."""
        found: dict[str, list[Any]] = {}
        for eni in self.world.cloud.enis.values():
            if eni.attachment:
                there = (*map(ip_network, eni.addresses), *eni.prefixes, *eni.prefixes6)
                found.setdefault(eni.attachment.instance, []).extend(there)
        return found

    def calm(self) -> None:
        """Without further faults: what is on record is what is there, and nothing is left behind."""
        world = self.world
        world.cloud.faults, world.cloud.lag = [], lambda: 0.0
        self._start()
        world.run(1500, step=20)
        self.check()
        for name in world.nodes:
            mine = world.cloud.of(name)[1:]
            there = {ip_network(each) for eni in mine for each in (*eni.addresses, *eni.prefixes, *eni.prefixes6)}
            assert {block.network for _, block in world.holdings[name].blocks()} == there, name
            assert world.holdings[name].intent is None
        for eni in world.cloud.enis.values():
            assert eni.attachment is not None or eni.tags[INSTANCE_TAG] in world.nodes, f"{eni.id} is left behind"
        assert set(world.holdings) <= set(world.nodes)
        self._calm_egress()

    def _calm_egress(self) -> None:
        """Each is with a gateway that takes it, if there is one, on record and in the cloud."""
        world = self.world
        wanted = {address: each.candidates for each in world.wanted for address in each.addresses}
        assert set(world.seats) == set(wanted)
        for address in EGRESS:
            (holder,) = self._holders(address) or [""]
            able = [name for name in wanted.get(address, ()) if not names.is_in_set(name)]
            assert holder == (world.seats[address].instance if address in wanted else ""), (address, holder)
            assert holder in able or not able, f"{address} is with {holder!r}, and should be with one of {able}"


def seeded(seed: int, steps: int, *, prefixes: bool, provider: str = "aws") -> Life:
    """A life of so many steps, then calm. Raises AssertionError, with the seed."""
    life = Life(random.Random(seed).choice, prefixes, FRONTS[provider])
    try:
        for number in range(steps):
            life.step()
            if number % 200 == 199:
                life.calm()
                life.world.cloud.lag = lambda: life.choose((0.0, 0.0, 7.0, 30.0, LATEST))
        life.calm()
    except AssertionError as error:
        raise AssertionError(f"{provider}, seed {seed}, prefixes {prefixes}: {error}") from error
    finally:
        life.close()
    return life


def main() -> None:
    arguments = argparse.ArgumentParser(description="random lives of instances on a fake cloud, with faults")
    arguments.add_argument("--steps", type=int, default=10_000)
    arguments.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments.add_argument("--provider", choices=FRONTS, action="append", help="default: each")
    given = arguments.parse_args()
    logging.disable()  # each refusal is a line
    for provider, prefixes in product(given.provider or FRONTS, (False, True)):
        what = "prefixes" if prefixes else "addresses"
        print(f"{provider}, seed {given.seed}, {given.steps} steps, {what}", flush=True)
        life = seeded(given.seed, given.steps, prefixes=prefixes, provider=provider)
        print(dict(life.world.cloud.mutations()))


if __name__ == "__main__":
    main()
