"""Whatever is killed, lost, repeated or late: no address has two owners, and in the end what is noted is what is so."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ipam.pod_addresses import counts, settled
from routerd.agent.plugins.pod_addresses import GONE, LOOK, PodAddressDesk
from routerd.model import Pod, Snapshot
from tests.models import cluster
from tests.models.ipam_runtime import ask
from tests.models.virtual_time import VirtualLoop, elapse, now

BLOCKS = (ip_network("10.1.0.0/29"), ip_network("fd00:1::/125"))  # room for five and six
NODES = {"a": cluster.node("a", 1, pod_cidrs=BLOCKS)}
PODS = range(8)
POD = st.sampled_from(PODS)
OFTEN, RARELY = st.sampled_from([True, True, True, False]), st.sampled_from([False, False, False, True])


class Faults(RuleBasedStateMachine):
    """A runtime with containers, an agent that is killed at any moment, a store that comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.directory = tempfile.TemporaryDirectory()
        self.sandboxes, self.uids = Counter[int](), Counter[int]()
        self.is_read = True
        self.live: dict[str, frozenset[str]] = {}  # what the runtime gave its containers
        self.start()

    def teardown(self) -> None:
        self.quiet()
        self.directory.cleanup()
        self.runner.close()

    def start(self) -> None:
        path = Path(self.directory.name) / "pod-addresses.json"
        self.desk = PodAddressDesk("a", path, self.snapshot, clock=lambda: 1e9 + self.runner.get_loop().time())

    def snapshot(self) -> Snapshot:
        if not self.is_read:
            return Snapshot()
        pods = [Pod("default", f"p{pod}", "a", uid=f"u{self.uids[pod]}") for pod in PODS]
        return replace(cluster.snapshot(pods={each.key: each for each in pods}), nodes=NODES)

    def container(self, pod: int, before: int = 0) -> str:
        return f"p{pod}+{self.sandboxes[pod] - before}"

    def ask(self, command: str, container: str, **more: Any) -> tuple[int, Any]:
        name = container.partition("+")[0]
        uid = f"u{self.uids[int(name[1:])]}"
        found: tuple[int, Any] = self.runner.run(ask(self.desk, command, container, f"default/{name}", uid, **more))
        return found

    @rule(pod=POD, is_lost=RARELY, is_read=OFTEN)
    def add(self, pod: int, is_lost: bool, is_read: bool) -> None:
        """Also again; `is_lost`: the agent is killed before anybody hears its answer."""
        self.is_read, container = is_read, self.container(pod)
        known = self.live.get(container)
        code, found = self.ask("ADD", container)
        self.is_read = True
        if is_lost:
            self.start()
        elif code == 0:
            given = frozenset(str(ip_interface(each["address"]).ip) for each in found["ips"])
            assert known in (None, given)
            self.live[container] = given

    @rule(pod=POD)
    def dies(self, pod: int) -> None:
        """The sandbox; the kubelet ends it, late, and makes the next one."""
        self.live.pop(self.container(pod), None)
        self.sandboxes[pod] += 1

    @rule(pod=POD, hears=OFTEN)
    def end(self, pod: int, hears: bool) -> None:
        """The pod is deleted, and another one of its name may come. `hears`: an agent was there."""
        container = self.container(pod)
        self.live.pop(container, None)
        if hears:
            assert self.ask("DEL", container) == (0, None)
        self.sandboxes[pod] += 1
        self.uids[pod] += 1

    @rule(pod=POD, before=st.integers(1, 3))
    def late(self, pod: int, before: int) -> None:
        """The end of a sandbox that is no more, perhaps again."""
        self.ask("DEL", self.container(pod, before))

    @rule(seconds=st.sampled_from([1.0, 31.0, 3 * GONE]))
    def time(self, seconds: float) -> None:
        self.runner.run(self.pass_time(seconds))

    async def pass_time(self, seconds: float) -> None:
        task = asyncio.create_task(self.desk.run())
        await elapse(seconds)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    @rule()
    def kill(self) -> None:
        self.start()

    @invariant()
    def nobody_shares(self) -> None:
        given = [address for each in self.live.values() for address in each]
        assert len(given) == len(set(given))
        noted = {str(address): each for address, each in self.desk.held.holds.items()}
        for container, addresses in self.live.items():
            assert all(noted[each].attachment.container == container for each in addresses)
            assert all(noted[each].state == "used" for each in addresses)

    @invariant()
    def states_add_up(self) -> None:
        for version in (4, 6):
            found = counts(self.desk.held, version, ())
            assert found.free + found.used + found.cooling + found.reserved == found.total
            assert min(found.free, found.used, found.cooling, found.reserved) >= 0

    def quiet(self) -> None:
        """Everybody has said all, and time has passed: what is noted is what the runtime has."""
        self.is_read = True
        self.start()
        valid = [{"containerID": container, "ifname": "eth0"} for container in self.live]
        self.ask("GC", self.container(0), **{"cni.dev/valid-attachments": valid})
        self.runner.run(self.pass_time(2 * GONE + 2 * LOOK))
        held = settled(self.desk.held, 1e9 + self.runner.run(self.clock()))
        assert {str(address) for address in held.holds} == {each for found in self.live.values() for each in found}

    async def clock(self) -> float:
        return now()


TestFaults = Faults.TestCase
TestFaults.settings = settings(max_examples=25, stateful_step_count=50)
