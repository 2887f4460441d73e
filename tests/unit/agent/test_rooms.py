"""The real rooms' values as the agent sees them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, ip_address, ip_network
from types import SimpleNamespace
from typing import Any

import pytest

from bgp.rib import PathRefusal
from bgp.routers import Routers
from bgp.session import PeerStatus
from egress.plan import AddBlackhole, Observed
from egress.policy import Group, Served
from egress.status import EgressStatus, NatEntry
from routerd.agent.egress import EgressRoom
from routerd.agent.rooms import Rooms, WithRouters
from routerd.model import Node, Peer, Peering, Snapshot
from routerd.refs import Ref
from tests.models.cluster import SESSION, TOR
from tests.models.egress_wishes import EGRESS_IP, GROUP, SERVED, on_gateway
from tests.models.tables import granules
from tests.models.virtual_time import elapse, in_virtual_time

READ = EgressStatus(True, 0, {"flows": 3}, {"flows": 100}, passed={"translated": 5}, drops={"no_gateway": 2})


def story(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        in_virtual_time(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


class Speaker:
    """A speaker that says what it is told to."""

    def __init__(self, connected: bool, status: PeerStatus, *refusals: PathRefusal) -> None:
        self.connected = connected
        self.peers = {SESSION: status}
        self.refusals = refusals


class Datapath:
    """A datapath with a mapping, or one that cannot be read."""

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def status(self) -> EgressStatus:
        if self.broken:
            raise OSError("nft is missing")
        return READ

    def port_use(self) -> None:
        return None

    def nat(self) -> list[NatEntry]:
        a, b, c = (IPv4Address(f"192.0.2.{last}") for last in (1, 2, 3))
        return [NatEntry(7, 6, a, 1000, b, 2000, c, 443, 9, 1.25)]


def rooms(speaker: Any = None, datapath: Any = None) -> Rooms:
    store: Any = None
    return Rooms(store, speaker, EgressRoom(datapath) if datapath is not None else None, ())


def test_a_session_that_is_up_is_no_refusal() -> None:
    here = rooms(Speaker(True, PeerStatus("up", since=1.0, announced=4, flaps=2)))
    assert here.refusals() == ()
    view = here.peers()[SESSION]
    assert (view.up, view.session.announced, view.session.flaps) == (True, 4, 2)
    assert view.since is not None and view.since > 0


@pytest.mark.parametrize("state", ["connecting", "down"])
def test_a_peer_that_cannot_be_reached_is_a_refusal_not_a_fault(state: Any) -> None:
    (refusal,) = rooms(Speaker(True, PeerStatus(state, last_reason="peer reset"))).refusals()
    assert (str(refusal.object), refusal.reason) == ("peer/10.0.0.1", "SessionDown")
    assert "peer reset" in refusal.message


def test_no_speaker_is_told_once() -> None:
    (refusal,) = rooms(Speaker(False, PeerStatus("unknown"))).refusals()
    assert refusal.reason == "NoSpeaker"
    assert rooms().refusals() == ()


def test_what_the_speaker_refuses_is_passed_on() -> None:
    refused = PathRefusal(SESSION, ip_network("192.0.2.1/32"), "BadCommunity", "x is none")
    (refusal,) = rooms(Speaker(True, PeerStatus("up"), refused)).refusals()
    assert (str(refusal.object), refusal.reason) == ("path/192.0.2.1/32", "BadCommunity")
    assert refusal.message == "to peer 10.0.0.1: x is none"


def test_the_datapath_says_what_it_is() -> None:
    assert (rooms(datapath=Datapath()).egress(), rooms().egress()) == (READ, EgressStatus())


def test_a_datapath_that_cannot_be_read_is_not_attached() -> None:
    assert rooms(datapath=Datapath(broken=True)).egress() == EgressStatus()


def test_mappings_are_rows() -> None:
    (row,) = rooms(datapath=Datapath()).nat()
    assert row["gateway"] == 9
    assert (row["protocol"], row["pod"], row["remote"], row["egress_ip"], row["port"], row["idle_seconds"]) == (
        "TCP",
        "192.0.2.1:1000",
        "192.0.2.3:443",
        "192.0.2.2",
        2000,
        1.2,
    )


class Once(Datapath):
    """A datapath that notices when it is entered twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = threading.Lock()
        self.calls = 0

    def collect(self) -> None:
        assert self.inside.acquire(blocking=False), "another call runs"
        try:
            for _ in range(20):
                os.sched_yield()  # gives the other threads their turn
            self.calls += 1
        finally:
            self.inside.release()

    def status(self) -> EgressStatus:
        self.collect()
        return super().status()


def test_calls_of_several_threads_never_overlap() -> None:
    once: Any = Once()
    shared = EgressRoom(once)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(call) for _ in range(10) for call in (shared.collect, shared.status)]
        for answer in answers:
            answer.result()
    assert once.calls == 20


def test_the_egress_room_carries_the_groups_whose_state_is_in_place() -> None:
    """And it has nothing to say of a VIP, not even before it has been read."""
    other_ip = IPv4Address("192.0.2.101")
    served = {**SERVED, other_ip: Served(granules({}))}
    desired = on_gateway(groups={7: GROUP, 8: Group(8, (other_ip,), GROUP.gateways)}, served=served)
    lacking = AddBlackhole(EGRESS_IP)
    nothing: Any = None
    here = EgressRoom(nothing)
    undone = here.undone(desired, Observed())
    owners = [Ref.parse(text) for text in ("egress/7", "egress/8", "svc/default/web", "node/a")]
    assert [here.carries(owner, None) for owner in owners] == [False, False, True, True]
    assert all(here.carries(owner, undone) for owner in owners)
    undone.add(lacking)
    assert [here.carries(owner, undone) for owner in owners] == [False, True, True, True]


@story
async def test_a_new_agent_keeps_the_sessions_with_routers_that_it_has_not_heard_yet() -> None:
    """A router may say only every ten minutes that it is there, and the speaker has had its session all along."""
    peers = tuple(Peer(ip_address(f"::%{name}"), 1, 2, found="router", interface=name) for name in ("none1", "none2"))
    snapshot = Snapshot(nodes={"a": Node("a")}, bgp=Peering(peers))
    speaker: Any = Speaker(False, PeerStatus())
    store: Any = SimpleNamespace(snapshot=lambda: snapshot)
    here = Rooms(store, speaker, None, (), with_routers=WithRouters("a", Routers()))
    assert here.snapshot().bgp is None  # it is not known yet: nobody is ended

    def connect() -> None:
        speaker.connected = True
        speaker.loaded = {
            SESSION._replace(peer=ip_address(each))
            for each in ("fe80::1%none1", "fe80::2%none1", "fe80::3%other", "10.0.0.2")
        }

    asyncio.get_running_loop().call_later(0.5, connect)
    task = asyncio.create_task(here.find_routers())
    for _ in range(3):  # before it is looked at the links, and after
        await elapse(2)
        found = here.snapshot().bgp
        assert found is not None
        assert [str(peer.address) for peer in found.peers] == ["fe80::1%none1", "fe80::2%none1", "::%none2"]
    task.cancel()


@story
async def test_no_peer_waits_long_for_a_speaker() -> None:
    peers = (Peer(ip_address("::%none1"), 1, 2, found="router", interface="none1"), Peer(TOR, 1, 2))
    store: Any = SimpleNamespace(snapshot=lambda: Snapshot(nodes={"a": Node("a")}, bgp=Peering(peers)))
    speaker: Any = Speaker(False, PeerStatus())
    speaker.loaded = frozenset()
    here = Rooms(store, speaker, None, (), with_routers=WithRouters("a", Routers()))
    task = asyncio.create_task(here.find_routers())
    await elapse(2)
    assert here.snapshot().bgp == Peering(peers)
    task.cancel()
