"""What peers announce: which path is the best, what is a loop, and when paths of a session that ended go."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from bgp.relay import Received as Kept
from bgp.rib.received import (
    LONGEST,
    MANY,
    PATIENCE,
    REST,
    Attributes,
    Inbound,
    NextHops,
    Path,
    Received,
    Side,
    best_paths,
    is_loop,
)

PREFIX, SIX = ip_network("10.244.2.0/24"), ip_network("fd00:244::/64")
A, B = "10.0.0.1,10.0.0.11", "10.0.0.2,10.0.0.11"
SIDE = {"local_as": 64512, "peer_as": 65000, "own_id": "10.0.0.11", "peer_id": "10.0.0.1", "restart": 120}
HOP, OTHER_HOP = ip_address("10.0.0.1"), ip_address("10.0.0.2")


def inbound(hop: str, side: Side | None = None, **attributes: Any) -> Inbound:
    by = Side(64512, 65000, "10.0.0.11", hop, 120) if side is None else side
    return Inbound(by, {PREFIX: Path(ip_address(hop), Attributes(**{"as_path": (65000,), "length": 1, **attributes}))})


def chosen(one: Inbound, other: Inbound) -> list[str]:
    found = best_paths({A: one, B: other})
    assert found == best_paths({A: other, B: one}) or set(found[PREFIX]) == {HOP, OTHER_HOP}
    return [*map(str, found[PREFIX])]


IBGP = Side(64512, 64512, "10.0.0.11", "10.0.0.2", 120)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (inbound("10.0.0.1", IBGP, local_pref=200), inbound("10.0.0.2", IBGP)),
        (inbound("10.0.0.1"), inbound("10.0.0.2", local_pref=900, length=2)),  # of another AS it does not count
        (inbound("10.0.0.1"), inbound("10.0.0.2", length=2)),
        (inbound("10.0.0.1", origin=0), inbound("10.0.0.2", origin=1)),
        (inbound("10.0.0.1", med=5), inbound("10.0.0.2", med=6)),
        (inbound("10.0.0.1"), inbound("10.0.0.2", IBGP)),  # eBGP before iBGP
    ],
)
def test_the_better_path_wins(better: Inbound, worse: Inbound) -> None:
    assert chosen(better, worse) == ["10.0.0.1"]


def test_paths_that_are_equal_share() -> None:
    assert chosen(inbound("10.0.0.1"), inbound("10.0.0.2")) == ["10.0.0.1", "10.0.0.2"]
    of_another_as = inbound("10.0.0.2", as_path=(65001,), med=900)
    assert set(chosen(inbound("10.0.0.1", med=5), of_another_as)) == {"10.0.0.1", "10.0.0.2"}, "MEDs of one AS alone"


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        (Attributes(as_path=(65000, 64512)), True),
        (Attributes(originator="10.0.0.11"), True),
        (Attributes(clusters=("10.0.0.5", "10.0.0.11")), True),
        (Attributes(as_path=(65000,), originator="10.0.0.5", clusters=("10.0.0.5",)), False),
    ],
)
def test_what_has_been_here_is_a_loop(attributes: Attributes, told: bool) -> None:
    side = Side(**SIDE)
    assert is_loop(attributes, side) is told
    assert bool(best_paths({A: Inbound(side, {PREFIX: Path(HOP, attributes)})})) is not told


# --- a session's life, by ExaBGP's own events through the relay's memory


def state(session: str, word: str, when: float, reason: str = "closing connection") -> dict[str, Any]:
    peer, local = session.split(",")
    said = {"state": word, **({"reason": reason} if word == "down" else {})}
    return {"type": "state", "time": when, "neighbor": {"address": {"peer": peer, "local": local}, **said}}


def of(session: str, kind: str, **content: Any) -> dict[str, Any]:
    peer, local = session.split(",")
    neighbor = {"address": {"peer": peer, "local": local}, "asn": {"local": 64512, "peer": 65000}}
    return {"type": kind, "neighbor": {**neighbor, "router-id": "10.0.0.11", **content}}


BOTH = {"ipv4/unicast": ["restart"], "ipv6/unicast": ["restart"]}  # as ExaBGP writes the F bits


def opened(session: str, restart: int | None = 120, flags: dict[str, list[str]] = BOTH) -> dict[str, Any]:
    asked = {"name": "graceful restart", "time": restart, "address-family-flags": flags}
    graceful = {"64": asked} if restart is not None else {}
    capabilities = {"1": ["ipv4/unicast"], **graceful}
    return of(session, "open", open={"router_id": session.split(",")[0], "capabilities": capabilities})


def announced(session: str, *prefixes: str, hop: str = "10.0.0.1", **attributes: Any) -> dict[str, Any]:
    path = {"0": {"element": "as-sequence", "value": [65000]}}
    update = {
        "attribute": {"origin": "igp", "as-path": path, "atomic-aggregate": False, **attributes},
        "announce": {"ipv4 unicast": {hop: [{"nlri": prefix} for prefix in prefixes]}},
    }
    return of(session, "update", message={"update": update})


def withdrawn(session: str, *prefixes: str) -> dict[str, Any]:
    gone = {"ipv4 unicast": [{"nlri": prefix} for prefix in prefixes]}
    return of(session, "update", message={"update": {"withdraw": gone}})


def ended(session: str, family: str = "ipv4") -> dict[str, Any]:
    return of(session, "update", message={"eor": {"afi": family, "safi": "unicast"}})


CONFIGURATION = (
    f"# peer {A} ab\n# peer {B} ab\n" + '    description "import 10.244.0.0/16,fd00:244::/32 keepalive 3";\n'
)


class World:
    """A relay that remembers, and an agent that may be started again."""

    def __init__(self) -> None:
        self.relay = Kept()
        self.relay.configure(CONFIGURATION)
        self.states: dict[str, dict[str, Any]] = {}
        self.speaker = (7, 1.0)
        self.agent_starts(1000.0)

    def agent_starts(self, when: float) -> None:
        self.started, self.agent = when, Received()
        self.connect()

    def connect(self) -> None:
        self.agent.restart(self.speaker)
        for event in self.states.values():
            self.agent.take_event(event)
        for update in self.relay.replay():
            self.agent.take(update)

    def speaker_starts(self, when: float) -> None:
        self.relay, self.states, self.speaker = Kept(), {}, (8, when)
        self.relay.configure(CONFIGURATION)
        self.connect()

    def say(self, *events: dict[str, Any]) -> None:
        for event in events:
            if event["type"] == "state":
                address = event["neighbor"]["address"]
                name = f"{address['peer']},{address['local']}"
                self.states[name] = event
                is_up = event["neighbor"]["state"] == "up"
                reason = event["neighbor"].get("reason", "")
                gone = self.relay.goes_up(name) if is_up else self.relay.goes_down(name, reason, event["time"])
                self.agent.take(gone or {})
                self.agent.take_event(event)
            elif (update := self.relay.take(event)) is not None:
                self.agent.take(update)

    def best(self, now: float, *sessions: str) -> NextHops | None:
        return self.agent.best(now, self.started, sessions or (A,))

    def begin(
        self,
        session: str = A,
        when: float = 1000.0,
        restart: int | None = 120,
        flags: dict[str, list[str]] = BOTH,
    ) -> None:
        self.say(opened(session, restart, flags), state(session, "up", when))


@pytest.fixture
def world() -> World:
    world = World()
    world.begin()
    world.say(announced(A, str(PREFIX), "192.0.2.0/24"), ended(A))
    return world


def test_what_lies_in_the_networks_is_taken_and_nothing_else(world: World) -> None:
    assert world.best(1001) == {PREFIX: (HOP,)}
    world.say(announced(A, str(PREFIX), hop="10.0.0.9"))
    assert world.best(1001) == {PREFIX: (ip_address("10.0.0.9"),)}
    world.say(withdrawn(A, str(PREFIX), "10.244.9.0/24"))
    assert world.best(1001) == {}
    both = of(A, "update", message={"update": {"announce": {"ipv6 unicast": {
        "fe80::1": [{"nlri": str(SIX)}], "fd00::1": [{"nlri": str(SIX)}]}}}})  # fmt: skip
    world.say(both)
    assert world.best(1001) == {SIX: (ip_address("fd00::1"),)}, "one next hop of a pair"


def test_nothing_is_known_before_each_session_has_told_all_or_the_patience_ends() -> None:
    for ends in (True, False):
        world = World()
        world.begin()
        world.say(announced(A, str(PREFIX)))
        assert world.best(1001) is None
        if ends:
            world.say(ended(A))
            assert world.best(1002, A, B) is None, "B may tell of it, too"
        assert world.best(1002 if ends else 1000 + PATIENCE) == {PREFIX: (HOP,)}


def test_without_sessions_there_is_nothing_to_wait_for() -> None:
    """A relay whose configuration names no networks tells nothing."""
    agent = Received()
    assert (agent.best(1000, 1000, ()), agent.best(1000, 1000, (A,))) == ({}, None)


def test_what_is_known_once_stays_known(world: World) -> None:
    """A session that flaps soon after a start, and a relay that comes anew."""
    assert world.best(1001) == {PREFIX: (HOP,)}
    world.say(state(A, "down", 1002.0))
    world.begin(when=1003.0)
    assert world.best(1004) == {PREFIX: (HOP,)}
    world.agent.restart(world.speaker)
    assert world.best(1005) == {PREFIX: (HOP,)}


def test_a_session_that_ends_leaves_its_paths_for_the_time_that_its_peer_asked_for(world: World) -> None:
    world.say(state(A, "down", 2000.0))
    assert world.best(2119) == {PREFIX: (HOP,)}
    assert world.best(2120) == {}
    world.begin(when=2130.0, restart=None)
    world.say(announced(A, str(PREFIX)), ended(A), state(A, "down", 3000.0))
    assert world.best(3000) == {}, "it offers no graceful restart"


@pytest.mark.parametrize(
    "reason", ["notification sent (6,10)", "notification received (6,2)", "notification sent (4,0)"]
)
def test_a_session_that_ends_by_a_notification_leaves_nothing(world: World, reason: str) -> None:
    """Whoever sent it: as BFD does, the hold timer, an administrator (RFC 4724, section 4)."""
    world.say(state(A, "down", 2000.0, reason))
    assert world.best(2000) == {}
    world.agent_starts(2001.0)
    assert world.best(2001 + PATIENCE) == {}


def test_attempts_that_fail_change_nothing_of_what_is_kept(world: World) -> None:
    world.say(state(A, "down", 2000.0), state(A, "down", 2010.0, "notification received (6,5)"))
    assert world.best(2011) == {PREFIX: (HOP,)}
    world.say(state(A, "down", 2100.0, "connection to 10.0.0.1:179 failed"))
    world.agent_starts(2110.0)
    assert world.best(2119) == {PREFIX: (HOP,)}
    assert world.best(2120) == {}


@pytest.mark.parametrize(("family", "stays"), [("ipv4/unicast", True), ("ipv6/unicast", False)])
def test_what_is_kept_is_of_the_families_that_the_peer_named(family: str, *, stays: bool) -> None:
    """FRR, as it is by default, names none: it keeps others' paths, and asks for nothing itself."""
    world = World()
    world.begin(flags={family: []})
    world.say(announced(A, str(PREFIX)), ended(A), state(A, "down", 2000.0))
    assert world.best(2001) == ({PREFIX: (HOP,)} if stays else {})


@pytest.mark.parametrize(("restart", "flags"), [(None, {}), (120, {}), (120, {"ipv4/unicast": []})])
def test_a_peer_that_comes_back_without_its_routes_loses_its_paths(
    world: World, restart: int | None, flags: dict[str, list[str]]
) -> None:
    world.say(state(A, "down", 2000.0))
    assert world.best(2001) == {PREFIX: (HOP,)}
    world.begin(when=2010.0, restart=restart, flags=flags)
    assert world.best(2010) == {}


@pytest.mark.parametrize("flags", [BOTH, {"ipv4/unicast": [], "ipv6/unicast": []}])
def test_a_session_that_is_said_to_be_up_again_has_told_what_it_told(flags: dict[str, list[str]]) -> None:
    """As ExaBGP says to a relay that greets it when the session is up already, whatever came in between."""
    world = World()
    world.begin(flags=flags)
    world.say(announced(A, str(PREFIX), "10.244.3.0/24"), ended(A))
    world.speaker_starts(2000.0)
    world.begin(when=2001.0, flags=flags)
    world.say(announced(A, str(PREFIX)), ended(A), state(A, "up", 2001.0))
    world.connect()
    assert world.best(2002) == {PREFIX: (HOP,)}
    world.agent_starts(2003.0)
    assert world.best(2004) == {PREFIX: (HOP,)}, "and its End-of-RIB has come"
    networks, world.relay = world.relay.networks, Kept()  # one that has not heard the OPEN
    world.relay.networks = networks
    world.say(announced(A, str(PREFIX)), ended(A), state(A, "up", 2001.0))
    assert not world.relay.knows(A), "whether that is all"
    world.agent_starts(2005.0)
    assert world.best(2005 + LONGEST) == {PREFIX: (HOP,)}


def test_a_session_that_the_configuration_named_once_is_over(world: World) -> None:
    world.relay.configure("")
    world.relay.configure(CONFIGURATION)
    assert [*world.relay.replay()] == [{"whole": True}]
    world.relay.configure(CONFIGURATION.replace(A, "10.0.0.3,10.0.0.11"))
    world.begin(B)
    world.relay.configure(CONFIGURATION.replace(B, A))
    assert [*world.relay.replay()] == [{"whole": True}]


def test_what_one_update_withdraws_and_announces_is_announced(world: World) -> None:
    """RFC 4271, section 4.3."""
    both = announced(A, str(PREFIX), hop="10.0.0.9")
    both["neighbor"]["message"]["update"]["withdraw"] = {"ipv4 unicast": [{"nlri": str(PREFIX)}]}
    world.say(both)
    assert world.best(1001) == {PREFIX: (ip_address("10.0.0.9"),)}


def test_bits_behind_a_prefix_do_not_count(world: World) -> None:
    world.say(announced(A, "10.244.3.7/24"))
    assert world.best(1001) == {PREFIX: (HOP,), ip_network("10.244.3.0/24"): (HOP,)}
    world.say(withdrawn(A, "10.244.3.9/24"))
    assert world.best(1001) == {PREFIX: (HOP,)}


def test_what_is_not_told_again_goes_with_the_end_of_rib_and_not_before(world: World) -> None:
    world.say(announced(A, "10.244.3.0/24"), state(A, "down", 2000.0))
    world.begin(when=2010.0)
    world.say(announced(A, str(PREFIX)))
    both = {PREFIX: (HOP,), ip_network("10.244.3.0/24"): (HOP,)}
    assert world.best(2200) == both
    world.say(ended(A, "ipv6"))
    assert world.best(2200) == both
    world.say(ended(A))
    assert world.best(2200) == {PREFIX: (HOP,)}


def test_a_peer_that_never_ends_its_rib_is_not_waited_for_without_end(world: World) -> None:
    world.say(announced(A, "10.244.3.0/24"), state(A, "down", 2000.0))
    world.begin(when=2010.0)
    world.say(announced(A, str(PREFIX)))
    assert len(world.best(2010 + LONGEST - 1) or ()) == 2
    assert world.best(2010 + LONGEST) == {PREFIX: (HOP,)}


def test_an_agent_that_starts_again_is_told_all(world: World) -> None:
    world.say(announced(A, "10.244.3.0/24", med=7), state(A, "down", 2000.0))
    world.agent_starts(2001.0)
    both = {PREFIX: (HOP,), ip_network("10.244.3.0/24"): (HOP,)}
    assert world.best(2002) == both, "its session is down, and the time of its peer runs"
    world.begin(when=2010.0)
    world.say(announced(A, str(PREFIX)))
    world.agent_starts(2011.0)
    assert world.best(2012) is None, "the End-of-RIB is to come"
    assert world.best(2011 + PATIENCE) == both
    world.say(ended(A))
    assert world.best(2012) == {PREFIX: (HOP,)}
    world.say(state(A, "down", 3000.0))
    world.agent_starts(3130.0)
    assert world.best(3130) == {}


def test_a_relay_that_comes_later_and_an_agent_after_it_know_whose_paths_they_are(world: World) -> None:
    """Only the OPEN, which nobody kept, has the peer's identifier and its wish; each UPDATE has the AS numbers."""
    networks, world.relay = world.relay.networks, Kept()
    world.relay.networks = networks
    loop = {"0": {"element": "as-sequence", "value": [65000, 64512]}}
    world.say(announced(A, str(PREFIX)), announced(A, "10.244.3.0/24", **{"as-path": loop}))
    assert world.best(1001) == {PREFIX: (HOP,)}
    world.say(state(A, "down", 2000.0))
    assert world.best(2119) == {PREFIX: (HOP,)}, "this agent knows what the OPEN asked for"
    world.begin(when=2120.0)
    world.relay = Kept()
    world.relay.networks = networks
    world.say(announced(A, str(PREFIX)), announced(A, "10.244.3.0/24", **{"as-path": loop}), ended(A))
    world.agent_starts(2130.0)
    assert world.best(2130 + PATIENCE) == {PREFIX: (HOP,)}


def test_an_agent_that_hears_nothing_of_the_speaker_keeps_paths_for_a_while(world: World) -> None:
    world.agent.lose(2000.0)
    assert world.best(2119) == {PREFIX: (HOP,)}
    world.agent.restart(world.speaker)
    for event in world.states.values():
        world.agent.take_event(event)
    assert world.best(2120) == {PREFIX: (HOP,)}, "its session is older than they are kept, and it has not told all"
    world.connect()
    assert world.best(2500) == {PREFIX: (HOP,)}
    world.agent.lose(2500.0)
    assert world.best(2620) == {}


@pytest.mark.parametrize("restart", [120, 0, None])
def test_another_speaker_leaves_paths_until_its_sessions_have_told_all(restart: int | None) -> None:
    """Whatever the peer asked for in case of its own restart."""
    world = World()
    world.begin(restart=restart)
    world.say(announced(A, str(PREFIX)), ended(A))
    world.speaker_starts(2000.0)
    world.say(state(A, "down", 2001.0, "connection to 10.0.0.1:179 failed"))
    world.connect()
    assert world.best(2010) == {PREFIX: (HOP,)}
    world.begin(when=2015.0)
    assert world.best(2016) == {PREFIX: (HOP,)}
    world.say(ended(A))
    assert world.best(2016) == {}


def test_another_speaker_whose_peer_does_not_come_loses_its_paths(world: World) -> None:
    world.speaker_starts(2000.0)
    assert world.best(2119) == {PREFIX: (HOP,)}
    assert world.best(2120) == {}


def test_a_session_that_is_no_longer_wanted_is_forgotten(world: World) -> None:
    world.begin(B)
    world.say(announced(B, str(PREFIX), hop="10.0.0.2"), ended(B))
    assert world.best(1001, A, B) == {PREFIX: (HOP, OTHER_HOP)}
    assert world.best(1001, B) == {PREFIX: (OTHER_HOP,)}
    assert world.best(1001, A, B) == {PREFIX: (OTHER_HOP,)}


def test_a_session_that_is_back_before_it_was_ended_has_its_paths(world: World) -> None:
    """Its removal waits for withdrawals, and the peer would not tell again."""
    for sessions, paths in (((A,), {PREFIX: (HOP,)}), ((), {}), ((A,), {PREFIX: (HOP,)})):
        assert world.agent.best(1001, world.started, sessions, (A,)) == paths


def test_the_same_paths_are_the_same_value(world: World) -> None:
    assert world.best(1001) is world.best(1002)


def test_with_many_prefixes_changes_wait_for_each_other(world: World) -> None:
    """Else each UPDATE of a peer stops the agent for a second."""
    world.say(announced(A, *(str(ip_network((0x0AF40000 + n, 32))) for n in range(MANY + 1))))
    first = world.best(1001)
    world.say(withdrawn(A, str(PREFIX)))
    assert world.best(1001 + REST - 0.1) is first
    assert PREFIX not in (world.best(1001 + REST) or {PREFIX: ()})
    assert len(first or ()) > MANY


@pytest.mark.parametrize(
    "update",
    [{"session": A, "put": {"no": "10.0.0.1"}}, {"session": A, "put": {"10.0.0.0/8": "x"}}, {"session": A, "end": "?"}],
)
def test_what_is_no_update_is_refused(update: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Received().take(update)
