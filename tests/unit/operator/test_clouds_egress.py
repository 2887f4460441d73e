"""Egress IPs of a cloud, from a policy to what nodes read: one gateway, and only after the cloud has shown it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import Any

import pytest

from cloud.backend import Backend
from cloud.calls import Call, Outcome, Take
from cloud.demand import Rules
from cloud.egress import Seat
from cloud.model import Inventory
from cloud.providers import ec2
from cloud.providers.account import Account
from cloud.records import Block, Held, Holding, Intent
from routerd.clock import Clock
from routerd.cluster.assign import AssignSettings
from routerd.cluster.port_sets import PortRules
from routerd.config.cloud import CloudSettings
from routerd.operator.clouds import Clouds, begun, clouds_of
from routerd.operator.loop import Operator
from tests.models.cloud.calls import EC2
from tests.models.cloud.core import Cloud, Fault
from tests.models.cloud.direct import sender
from tests.models.operator_world import FakeLedger, FakeStore, World
from tests.models.virtual_time import beside, elapse, in_virtual_time

DEADLINE = 120
NETWORKS = (ip_network("10.0.0.0/24"),)


class Scene:
    """Gateways g1 and g2 are the instances i-1 and i-2; a policy has an address of their subnet."""

    def __init__(self, **policy: Any) -> None:
        self.world, self.cloud, self.ledger = World(), Cloud(), FakeLedger()
        self.cloud.add_subnet("subnet-1", "10.0.0.0/24")
        self.cloud.add_group("sg-1")
        for number in (1, 2):
            self.cloud.add_instance(f"i-{number}", "subnet-1")
            self.world.node(f"g{number}", provider_id=f"aws:///a/i-{number}")
            self.world.report(f"g{number}", networks="10.0.0.0/24 10.0.0.1/32")
        self.world.policy("out", "10.0.0.200", **policy)
        settings = CloudSettings("aws", egress_networks=NETWORKS, rules=Rules("test"))
        assigning = AssignSettings(cloud_networks=NETWORKS, port_rules=PortRules(deadline=DEADLINE))
        self.operator = Operator(FakeStore(self.world), self.ledger, assigning, clock=lambda: self.cloud.now)
        clouds = clouds_of(settings, self.operator)
        assert clouds is not None
        self.clouds: Clouds = clouds
        clouds.open = lambda settings: Account(ec2, sender(self.cloud), settings.rules)
        clouds.clock = lambda: self.cloud.now

    def change(self) -> None:
        for callback in self.operator.store.callbacks:  # type: ignore[attr-defined]
            callback()

    def published(self) -> tuple[tuple[str, ...], str]:
        (group,) = self.world.allocations.groups
        return group.gateways, group.gateway_mode

    def refusals(self) -> list[str]:
        return [each.reason for each in self.world.allocations.refusals]

    async def live(self, seconds: int) -> None:
        for _ in range(seconds):
            await elapse(1)
            self.cloud.advance(1)


def play(scene: Scene, story: Callable[[], Awaitable[None]]) -> None:
    in_virtual_time(beside(story, scene.operator.run, scene.clouds.run))


def other(name: str) -> str:
    return {"g1": "g2", "g2": "g1"}[name]


def test_a_group_has_no_gateway_until_the_cloud_shows_its_address_there() -> None:
    scene = Scene()

    async def story() -> None:
        await scene.live(1)
        assert scene.published() == ((), "active-standby")
        assert scene.refusals() == ["AwaitingCloud"]
        await scene.live(10)
        ((holder,), mode) = scene.published()
        assert (holder in ("g1", "g2"), mode, scene.refusals()) == (True, "active-standby", [])
        (row,) = [each for each in scene.clouds.rows() if each["egress_ips"]]
        assert row["egress_ips"] == "10.0.0.200"

    play(scene, story)


def test_show_cloud_says_why_an_address_has_no_gateway() -> None:
    scene = Scene()

    async def story() -> None:
        scene.cloud.permissions = {each.permission for each in EC2 if each.mode == "read"}
        await scene.live(10)
        assert [(str(each.object), each.reason) for each in scene.clouds.refusals()] == [
            ("egress/10.0.0.200", "CloudDenied")
        ]
        assert "10.0.0.200: UnauthorizedOperation: not allowed: ec2:Assign" in scene.clouds.shown().note
        scene.cloud.permissions = None
        for name, node in scene.world.nodes.items():
            scene.world.nodes[name] = replace(node, provider_id="")
        scene.change()
        await scene.live(120)
        assert [each.reason for each in scene.clouds.refusals()] == ["NoCloudGateway"]
        assert "the subnet of 10.0.0.200" in scene.clouds.shown().note

    play(scene, story)


def test_a_gateway_that_is_gone_is_left_once_the_address_has_moved() -> None:
    scene = Scene()

    async def story() -> None:
        await scene.live(10)
        ((first,), _) = scene.published()
        scene.cloud.faults = [Fault("AssignPrivateIpAddresses", "throttled", 3)]
        scene.world.nodes[first] = replace(scene.world.nodes[first], ready=False)
        scene.change()
        await scene.live(3)
        assert scene.published()[0] == (first,), "nobody is told before the cloud has shown it"
        await scene.live(30)
        assert scene.published()[0] == (other(first),)
        scene.world.nodes[first] = replace(scene.world.nodes[first], ready=True)
        scene.change()
        await scene.live(60)
        assert scene.published()[0] == (other(first),), "a move is a pause: it does not move back"

    play(scene, story)


@dataclass
class Looking:
    """A backend that remembers of whom it was asked."""

    backend: Backend
    asked: set[str] = field(default_factory=set)

    def describe(self, instances: Collection[str]) -> Inventory:
        self.asked = {*instances}
        return self.backend.describe(instances)

    def send(self, call: Call) -> Outcome:
        return self.backend.send(call)

    def action(self, call: Call) -> str:
        return self.backend.action(call)


def test_a_look_is_also_at_who_has_an_address_and_is_no_node_any_more() -> None:
    """Where looks are at the places of those that are named, nothing else shows his interface."""
    scene = Scene()
    looking = Looking(scene.clouds.open(scene.clouds.settings))
    scene.clouds.open = lambda settings: looking

    async def story() -> None:
        await scene.live(10)
        ((holder,), _) = scene.published()
        del scene.world.nodes[holder]
        scene.cloud.faults = [Fault("AssignPrivateIpAddresses", "throttled", 100)]
        scene.change()
        await scene.live(10)
        assert f"i-{holder[1:]}" in looking.asked

    play(scene, story)


def test_while_the_cloud_does_not_answer_nothing_moves() -> None:
    scene = Scene()

    async def story() -> None:
        await scene.live(10)
        ((first,), _) = scene.published()
        scene.cloud.permissions = set()
        scene.world.nodes[first] = replace(scene.world.nodes[first], ready=False)
        scene.change()
        await scene.live(120)
        assert scene.published()[0] == (first,)
        assert [each.reason for each in scene.clouds.refusals()] == ["CloudDenied"]

    play(scene, story)


def test_an_address_elsewhere_is_no_business_of_the_cloud() -> None:
    scene = Scene()
    scene.world.policy("plain", "203.0.113.9")

    async def story() -> None:
        await scene.live(10)
        plain = next(each for each in scene.world.allocations.groups if str(each.egress_ip) == "203.0.113.9")
        assert (len(plain.gateways), plain.gateway_mode) == (2, "ecmp")

    play(scene, story)


def test_exit_local_is_refused() -> None:
    scene = Scene(exit_local=True)

    async def story() -> None:
        await scene.live(10)
        assert scene.published()[0] == ()
        assert scene.refusals() == ["CloudExitLocal"]

    play(scene, story)


def test_a_network_without_tunnels_is_refused() -> None:
    scene = Scene()
    scene.operator.settings = replace(scene.operator.settings, direct=True)

    async def story() -> None:
        await scene.live(10)
        assert scene.published()[0] == ()
        assert scene.refusals() == ["CloudDirect"]

    play(scene, story)


def test_a_policy_that_is_gone_gives_its_address_back() -> None:
    scene = Scene()

    async def story() -> None:
        await scene.live(10)
        scene.world.policies.clear()
        scene.world.node("w1", None, provider_id="aws:///a/i-1")
        scene.change()
        await scene.live(60)
        assert scene.published()[0], "what runs has its answers"
        await scene.live(DEADLINE)
        assert not [eni for eni in scene.cloud.enis.values() if eni.addresses]

    play(scene, story)


def test_what_a_policy_has_left_moves_with_its_gateway() -> None:
    scene = Scene()

    async def story() -> None:
        await scene.live(10)
        ((first,), _) = scene.published()
        scene.world.policies.clear()
        scene.change()
        await scene.live(5)
        scene.world.nodes[first] = replace(scene.world.nodes[first], ready=False)
        scene.change()
        await scene.live(30)
        assert scene.published()[0] == (other(first),)
        numbers = {each.node: each.number for each in scene.world.allocations.numbers}
        (table,) = scene.world.allocations.bindings
        assert numbers[other(first)] in table.told, "its ports are given again when it, too, has dropped them"

    play(scene, story)


@pytest.mark.parametrize("networks", [(), (IPv4Network("192.0.2.0/24"),)])
def test_without_networks_egress_asks_no_cloud(networks: tuple[IPv4Network, ...]) -> None:
    scene = Scene()
    for name in ("g1", "g2"):
        scene.world.report(name)
    scene.clouds.settings = replace(scene.clouds.settings, egress_networks=networks)
    scene.operator.settings = replace(scene.operator.settings, cloud_networks=networks)

    async def story() -> None:
        await scene.live(20)
        assert len(scene.published()[0]) == 2
        assert scene.cloud.mutations() == {}

    play(scene, story)


def test_a_call_that_nobody_answers_is_made_again_although_the_clock_was_set_back() -> None:
    scene, off = Scene(), [0.0]
    scene.clouds.clock = Clock(lambda: scene.cloud.now + off[0], lambda: scene.cloud.now)
    scene.cloud.faults = [Fault("AssignPrivateIpAddresses", "before")]

    async def story() -> None:
        await scene.live(4)
        (seat,) = scene.ledger.content.cloud_addresses
        assert seat.intent is not None
        off[0] = -3600.0
        await scene.live(60)
        assert scene.published()[0] != ()

    play(scene, story)


def test_times_to_come_are_of_a_clock_that_was_wrong() -> None:
    address = IPv4Address("10.0.0.200")
    call = Take("eni-1", (address,))
    ahead = Intent(call, 4600.0)
    block = Block(ip_network("10.0.0.16/28"), "leaving", 4600.0, 0.0)
    one = Held("eni-2", "", 1, address, IPv4Network("10.0.0.0/24"), (block,))
    holdings = {"i-1": Holding("i-1", held=(one,), intent=ahead, served=4600.0, missing=10.0)}
    seats = {address: Seat(address, "i-1", "eni-1", ahead, missing=4600.0)}
    for anew, missing in ((False, 10.0), (True, 1000.0)):
        held, seated = begun(holdings, seats, 1000.0, anew=anew)
        assert seated == {address: Seat(address, "i-1", "eni-1", Intent(call, 1000.0), missing=1000.0)}
        kept = replace(one, blocks=(replace(block, since=1000.0),))
        assert held == {"i-1": Holding("i-1", "", (kept,), Intent(call, 1000.0), 1000.0, missing)}
