"""Stories of two ends in virtual time: how a session comes up, what ends it, and what each end says of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bfd import session as machine
from bfd.packet import Diagnostic, Packet, State, encode
from bfd.session import Timers
from bfd.table import Order
from bfd.wheel import NEVER
from tests.models.bfd_wire import A, B, Wire

FAST = Timers()  # 50 ms x 3


def up(first: Timers = FAST, second: Timers = FAST, seed: int = 0) -> Wire:
    wire = Wire(seed)
    wire.order(A, first)
    wire.order(B, second)
    wire.until(lambda: wire.states() == "UP UP", 5)
    wire.until(lambda: not (wire.session(A).polling or wire.session(B).polling), 1)
    return wire


def test_a_session_comes_up_within_a_few_slow_packets_and_then_runs_fast() -> None:
    wire = up()
    assert {wire.session(at).interval for at in (A, B)} == {50_000}
    assert {wire.session(at).detection for at in (A, B)} == {150_000}
    before = [packet.desired_min_tx for _, _, packet in wire.said if packet.state != State.UP]
    assert set(before) == {1_000_000}  # section 6.8.3
    wire.said.clear()
    wire.run(10)
    times = [when for when, sender, _ in wire.said if sender == A]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert 0.0374 < min(gaps) < max(gaps) < 0.0501  # 75 to 100 %, section 6.8.7
    assert wire.states() == "UP UP"


def test_intervals_are_the_slower_of_what_one_sends_and_the_other_takes() -> None:
    wire = up(Timers(50_000, 300_000, 3), Timers(100_000, 20_000, 5))
    assert wire.session(A).interval == 50_000
    assert wire.session(B).interval == 300_000
    assert wire.session(A).detection == 5 * 300_000  # the peer's multiplier, section 6.8.4
    assert wire.session(B).detection == 3 * 50_000


def test_a_silent_cut_is_seen_by_both_within_the_detection_time() -> None:
    wire = up()
    wire.cut = lambda sender, packet: True
    took = wire.until(lambda: "UP" not in wire.states(), 1)
    assert took < 0.16
    for at in (A, B):
        session = wire.session(at)
        assert (session.state, session.diagnostic, session.falls) == (State.DOWN, Diagnostic.DETECTION_TIME_EXPIRED, 1)
        assert session.has_failed
        assert session.reason == "nothing was heard for the detection time of 150 ms"
        assert session.remote.discriminator == 0  # section 6.8.1
    wire.cut = lambda sender, packet: False
    wire.until(lambda: wire.states() == "UP UP", 5)
    assert not wire.session(A).has_failed


def test_a_cut_in_one_direction_is_told_to_the_other_end() -> None:
    wire = up()
    wire.cut = lambda sender, packet: sender == A
    assert wire.until(lambda: wire.states() == "DOWN DOWN", 1) < 0.16
    assert wire.session(B).diagnostic == Diagnostic.DETECTION_TIME_EXPIRED
    assert wire.session(A).diagnostic == Diagnostic.NEIGHBOR_DOWN
    told = "the peer says that it is down (it heard nothing from here for its detection time)"
    assert wire.session(A).reason == told
    wire.run(3)
    assert wire.session(A).reason == told  # what made it fall, not what is heard since


def test_two_lost_packets_are_no_failure() -> None:
    wire = up()
    for lost in (1, 2):
        left = [lost]

        def loses(sender: object, packet: Packet, left: list[int] = left) -> bool:
            left[0] -= sender == A
            return sender == A and left[0] >= 0

        wire.cut = loses
        wire.run(1)
    assert wire.states() == "UP UP"
    assert wire.session(B).falls == 0


def test_what_is_switched_off_at_the_peer_is_no_failure() -> None:
    """RFC 5882, 3.2; and the session comes again when it is wanted again."""
    wire = up()
    wire.order(B, None)
    wire.run(0.1)
    session = wire.session(A)
    assert (session.state, session.remote.state, session.has_failed) == (State.DOWN, State.ADMIN_DOWN, False)
    assert session.reason == "the peer is administratively down"
    wire.run(10)
    assert not wire.session(A).has_failed
    said = len(wire.said)
    assert {packet.state for _, sender, packet in wire.said[said:] if sender == B} == set()
    wire.order(B, FAST)
    wire.until(lambda: wire.states() == "UP UP", 5)


def test_the_last_word_of_a_session_is_admin_down_for_a_detection_time() -> None:
    wire = up()
    wire.said.clear()
    wire.order(B, None)
    wire.run(1)
    last = [packet for _, sender, packet in wire.said if sender == B]
    assert {(each.state, each.diagnostic) for each in last} == {(State.ADMIN_DOWN, Diagnostic.ADMIN_DOWN)}
    assert 3 <= len(last) <= 6
    assert wire.tables[B].numbers() == frozenset()


def test_what_never_came_up_is_no_failure() -> None:
    wire = Wire()
    wire.order(A, FAST)
    wire.run(30)
    session = wire.session(A)
    assert (session.state, session.has_failed, session.falls) == (State.DOWN, False, 0)
    assert session.reason == "nothing was heard from the peer yet"
    assert 29 <= len(wire.said) <= 41  # once a second at most


def test_what_never_came_up_says_what_the_peer_does_instead() -> None:
    """A cut in one direction and a peer that is switched off, from the start: neither is silence."""
    wire = Wire()
    wire.cut = lambda sender, packet: sender == A
    wire.order(A, FAST)
    wire.order(B, FAST)
    wire.run(3)
    assert wire.states() == "INIT DOWN"
    assert wire.session(A).reason == "the peer answers, and has not heard this end yet"
    assert wire.session(B).reason == "nothing was heard from the peer yet"
    off = Packet(State.ADMIN_DOWN, 3, 9, wire.session(B).discriminator)
    wire.tables[B].receive(encode(off), (A, B), 255, 1, wire.now)
    assert (wire.session(B).state, wire.session(B).reason) == (State.DOWN, "the peer is administratively down")
    assert not (wire.session(A).has_failed or wire.session(B).has_failed)
    wire.cut = lambda sender, packet: False
    wire.until(lambda: wire.states() == "UP UP", 5)
    assert wire.session(A).reason == wire.session(B).reason == ""


def test_a_peer_that_is_switched_off_after_it_fell_has_failed_no_more_and_says_why() -> None:
    wire = up()
    wire.cut = lambda sender, packet: True
    wire.until(lambda: wire.states() == "DOWN DOWN", 1)
    off = Packet(State.ADMIN_DOWN, 3, 9, wire.session(A).discriminator)
    wire.tables[A].receive(encode(off), (B, A), 255, 1, wire.now)
    session = wire.session(A)
    assert (session.has_failed, session.falls, session.reason) == (False, 1, "the peer is administratively down")


def test_a_passive_end_says_nothing_before_it_is_spoken_to() -> None:
    wire = Wire()
    wire.order(A, replace(FAST, passive=True))
    wire.run(10)
    assert wire.said == []
    wire.order(B, FAST)
    wire.until(lambda: wire.states() == "UP UP", 5)


@pytest.mark.parametrize("faster", [Timers(20_000, 20_000, 3), Timers(300_000, 300_000, 3), Timers(50_000, 50_000, 9)])
def test_timers_change_while_the_session_stays_up(faster: Timers) -> None:
    """By a poll (6.8.3): no end waits for what the other does not do yet."""
    wire = up()
    wire.order(A, faster)
    wire.run(2)
    assert (wire.states(), wire.session(A).falls, wire.session(B).falls) == ("UP UP", 0, 0)
    assert not wire.session(A).polling
    assert wire.session(A).interval == max(faster.min_tx, 50_000)
    assert wire.session(B).detection == faster.multiplier * max(faster.min_tx, 50_000)


def test_a_poll_is_answered_at_once() -> None:
    wire = up()
    wire.said.clear()
    wire.order(A, Timers(300_000, 300_000, 3))
    wire.until(lambda: not wire.session(A).polling, 1)
    polls = [when for when, sender, packet in wire.said if sender == A and packet.poll]
    finals = [when for when, sender, packet in wire.said if sender == B and packet.final]
    assert finals[0] - polls[0] < 0.001
    assert not any(packet.poll and packet.final for _, _, packet in wire.said)


def test_a_peer_that_restarts_with_another_discriminator_comes_up_again() -> None:
    wire = up()
    wire.tables[B] = wire.table(77)
    wire.order(B, FAST)
    wire.until(lambda: wire.states() == "UP UP", 5)
    assert wire.session(A).falls == 1


def test_a_process_that_pauses_flaps_nothing() -> None:
    """It asks for patience, is away for seconds, and the next one goes on with what it left."""
    wire = up()
    table = wire.tables[A]
    table.prepare_pause(wire.now)
    wire.until(lambda: table.is_patience_granted, 1)
    left, orders = table.sessions(), table.orders
    wire.tables[A] = wire.table(5)  # a process that says nothing
    wire.run(5)
    for peer, session in left.items():
        wire.tables[A].resume(orders[peer], session, wire.now)
    wire.tables[A].order(orders, wire.now)
    wire.run(5)
    assert (wire.states(), wire.session(A).falls, wire.session(B).falls) == ("UP UP", 0, 0)
    assert wire.session(B).detection == 150_000


def test_a_process_that_paused_and_does_not_come_back_is_down_in_the_end() -> None:
    wire = up()
    wire.tables[A].prepare_pause(wire.now)
    wire.until(lambda: wire.tables[A].is_patience_granted, 1)
    wire.tables[A] = wire.table(5)
    wire.run(29)
    assert wire.session(B).state == State.UP
    wire.run(2)
    assert wire.session(B).state == State.DOWN


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.integers(1, 2**32 - 1))
def test_transmissions_are_spread_as_the_rfc_says(chance: float, multiplier: int, remote_rx: int) -> None:
    idle = machine.new(1, Timers(multiplier=multiplier), 0.0, chance)
    heard, _ = machine.receive(idle, Packet(State.DOWN, 3, 9, 0, 1_000_000, remote_rx), 1.0, chance)
    sent, _ = machine.transmit(heard, 2.0, chance)
    share = (sent.next_tx - 2.0) * 1e6 / sent.interval
    assert 0.7499 <= share <= (0.9001 if multiplier == 1 else 1.0001)


def test_a_peer_that_wants_no_packets_gets_none_but_answers_to_polls() -> None:
    """Required Min RX Interval 0, section 6.8.7."""
    wire = up()
    peer = wire.session(A).remote.discriminator
    quiet = Packet(State.UP, 3, peer, wire.session(A).discriminator, 50_000, 0, poll=True)
    answer = wire.tables[A].receive(encode(quiet), (B, A), 255, 1, wire.now)
    assert len(answer) == 1
    assert wire.session(A).next_tx == NEVER


def test_demand_of_the_peer_is_obeyed() -> None:
    wire = up()
    asks = Packet(State.UP, 3, 9, wire.session(A).discriminator, 50_000, 50_000, demand=True)
    wire.tables[A].receive(encode(asks), (B, A), 255, 1, wire.now)
    assert wire.session(A).next_tx == NEVER


# --- whose a packet is


def refusals(wire: Wire, packet: Packet, source: object = B, ttl: int = 255, device: int = 1) -> dict[str, int]:
    table = wire.tables[A]
    before = (wire.session(A), dict(table.refused))
    assert table.receive(encode(packet), (source, A), ttl, device, wire.now) == []  # type: ignore[arg-type]
    assert wire.session(A) == before[0]
    return {reason: count for reason, count in table.refused.items() if before[1].get(reason) != count}


def test_packets_that_are_not_the_session_s_are_counted_and_change_nothing() -> None:
    wire = up()
    mine = wire.session(A).discriminator
    down = Packet(State.DOWN, 3, 9)
    named = replace(down, your_discriminator=mine)
    assert refusals(wire, named, ttl=254) == {"ttl": 1}  # RFC 5881, section 5
    assert refusals(wire, named, ttl=-1) == {"ttl": 2}
    assert refusals(wire, replace(down, your_discriminator=mine ^ 1)) == {"unknown-session": 1}
    assert refusals(wire, named, source=A) == {"other-source": 1}
    assert refusals(wire, down, source=A) == {"unknown-peer": 1}
    assert refusals(wire, down, device=7) == {"other-device": 1}
    assert refusals(wire, replace(named, multiplier=0)) == {"multiplier-zero": 1}


def test_a_process_that_stood_still_hears_what_waits_before_it_takes_anybody_for_dead() -> None:
    """Packets of one peer let nobody else's time run out, and its own only if nothing came."""
    wire = up()
    wire.tables[B].order({}, wire.now)
    number = wire.session(A).discriminator
    stale = Packet(State.UP, 3, wire.session(A).remote.discriminator, number, 50_000, 50_000)
    wire.now += 1.0
    other = Packet(State.DOWN, 3, 5, 77)
    assert wire.tables[A].receive(encode(other), (B, A), 255, 1, wire.now) == []
    assert wire.session(A).state == State.UP
    wire.tables[A].receive(encode(stale), (B, A), 255, 1, wire.now)
    wire.tables[A].advance(wire.now)
    assert wire.session(A).state == State.UP


def test_two_sessions_with_one_peer_are_told_apart_by_our_address() -> None:
    wire = up()
    (order,) = wire.tables[A].orders.values()
    twin = Order(order.peer, type(order.local)(int(order.local) + 8), order.timers)
    wire.tables[A].order({order.ends: order, twin.ends: twin}, wire.now)
    first = Packet(State.DOWN, 3, 9, 0, 50_000, 50_000)
    wire.tables[A].receive(encode(first), twin.ends, 255, 1, wire.now)
    states = {ends: each.state for ends, each in wire.tables[A].sessions().items()}
    assert states == {order.ends: State.UP, twin.ends: State.INIT}


def test_an_address_that_moves_makes_another_session() -> None:
    wire = up()
    number = wire.session(A).discriminator
    (order,) = wire.tables[A].orders.values()
    other = Order(order.peer, type(order.local)(int(order.local) + 8), order.timers)
    wire.tables[A].order({other.ends: other}, wire.now)
    assert wire.session(A).discriminator != number
    assert wire.tables[A].sessions().keys() == {other.ends}
    wire.run(5)
    assert len(wire.tables[A].numbers()) == 1, "the old one has said goodbye, from where it was"


@given(st.lists(st.tuples(st.sampled_from(State), st.sampled_from([0, 1, 2]), st.booleans()), max_size=20))
def test_whatever_a_peer_says_the_session_is_one_of_the_rfc(heard: list[tuple[State, int, bool]]) -> None:
    """No packet makes it Up by itself from Down but an Init, and what is due is never in the past for long."""
    wire = Wire()
    wire.order(A, FAST)
    for state, yours, poll in heard:
        before = wire.session(A).state
        number = wire.session(A).discriminator if yours else 0
        packet = Packet(state, 3, 9, number, 50_000, 50_000, poll=poll)
        wire.send(wire.tables[A].receive(encode(packet), (B, A), 255, 1, wire.now))
        after = wire.session(A).state
        if before == State.DOWN and after == State.UP:
            assert state == State.INIT
        assert after != State.ADMIN_DOWN
        wire.run(0.01)
