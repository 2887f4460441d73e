"""Plans: their order, their grouping, and that every prefix of a plan leads to the desired state."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from bgp import conf, plan, rib
from bgp.path import Desired, IPAddress, Path, SpeakerPeer
from tests.models.speaker import SpeakerModel

A = SpeakerPeer(ip_address("10.0.0.2"), ip_address("10.0.0.1"), 64512, 65000, IPv4Address("10.0.0.1"))
B = replace(A, address=ip_address("10.0.1.2"), local_address=ip_address("10.0.1.1"))
C = SpeakerPeer(ip_address("fd00::2"), ip_address("fd00::1"), 64512, 64512, IPv4Address("10.0.0.1"))


def path(prefix: str, **attributes: object) -> Path:
    return Path(ip_network(prefix), **attributes)  # type: ignore[arg-type]


def desired(*tables: tuple[SpeakerPeer, list[Path]]) -> Desired:
    return Desired(
        {peer.key: peer for peer, _ in tables},
        {peer.key: {entry.prefix: entry for entry in table} for peer, table in tables},
    )


def observed(*tables: tuple[SpeakerPeer, list[Path]]) -> plan.Observed:
    wanted = desired(*tables)
    return plan.Observed(conf.digests(wanted.peers), wanted.ribs)


def lines(wanted: Desired, held: plan.Observed) -> list[str]:
    return [str(action) for action in plan.plan(wanted, held).actions]


def test_two_sessions_with_one_peer_are_changed_one_without_the_other() -> None:
    twin, table = replace(A, local_address=ip_address("10.0.0.3")), [path("192.0.2.1/32")]
    both = observed((A, table), (twin, table))
    assert lines(desired((A, table), (twin, [])), both) == ["withdraw 192.0.2.1/32 from 10.0.0.2 from 10.0.0.3"]
    assert lines(desired((A, table), (replace(twin, hold_time=30), table)), both)[0] == (
        "reload peers: reset 10.0.0.2 from 10.0.0.3"
    )
    assert lines(desired((A, table)), both) == [
        "withdraw 192.0.2.1/32 from 10.0.0.2 from 10.0.0.3",
        "wait until the withdrawals have left for 10.0.0.2 from 10.0.0.3",
        "reload peers: remove 10.0.0.2 from 10.0.0.3",
    ]


def test_a_session_that_goes_from_another_address_from_now_on_is_not_waited_for() -> None:
    """The address may be gone: its TCP would acknowledge nothing."""
    moved, table = replace(A, local_address=ip_address("10.0.0.3")), [path("192.0.2.1/32")]
    planned = plan.plan(desired((moved, table)), observed((A, table)))
    assert plan.Flush((), (A.key,)) in planned.actions
    assert plan.Flush((A.key,)) in plan.plan(desired((B, table)), observed((A, table))).actions


def test_nothing_to_do() -> None:
    table = [path("192.0.2.1/32", communities=("1:1",))]
    assert lines(desired((A, table), (B, [])), observed((A, table), (B, []))) == []


def test_a_whole_change_in_its_order() -> None:
    held = observed((A, [path("192.0.2.1/32"), path("192.0.2.9/32")]), (C, [path("2001:db8::9/128")]))
    wanted = desired((A, [path("192.0.2.1/32", med=7), path("192.0.2.2/32")]), (B, [path("192.0.2.2/32")]))
    assert lines(wanted, held) == [
        "announce 192.0.2.1/32 to 10.0.0.2 from 10.0.0.1 next-hop self med 7",
        "announce 192.0.2.2/32 to 10.0.0.2 from 10.0.0.1 next-hop self",
        "withdraw 192.0.2.9/32 from 10.0.0.2 from 10.0.0.1",
        "withdraw 2001:db8::9/128 from fd00::2 from fd00::1",
        "wait until the withdrawals have left for fd00::2 from fd00::1",
        "reload peers: add 10.0.1.2 from 10.0.1.1; remove fd00::2 from fd00::1",
        "announce 192.0.2.2/32 to 10.0.1.2 from 10.0.1.1 next-hop self",
    ]


def test_a_changed_session_is_reset_and_keeps_its_paths() -> None:
    table = [path("192.0.2.1/32")]
    assert lines(desired((replace(A, hold_time=9), table), (B, table)), observed((A, table), (B, table))) == [
        "reload peers: reset 10.0.0.2 from 10.0.0.1"
    ]


def test_identical_paths_are_one_command() -> None:
    table = [path(f"192.0.2.{n}/32", local_pref=5) for n in range(5)]
    assert lines(desired((A, table), (B, table)), observed((A, []), (B, []))) == [
        "announce 192.0.2.0/32, 192.0.2.1/32, 192.0.2.2/32 and 2 more "
        "to 10.0.0.2 from 10.0.0.1, 10.0.1.2 from 10.0.1.1 next-hop self"
    ]
    assert lines(desired((A, []), (B, [])), observed((A, table), (B, table[:1]))) == [
        "withdraw 192.0.2.0/32 from 10.0.0.2 from 10.0.0.1, 10.0.1.2 from 10.0.1.1",
        "withdraw 192.0.2.1/32, 192.0.2.2/32, 192.0.2.3/32 and 1 more from 10.0.0.2 from 10.0.0.1",
    ]


def test_what_a_session_does_not_carry_is_left_out_or_refused() -> None:
    ebgp, ibgp = path("192.0.2.1/32", local_pref=7), path("2001:db8::1/128", prepend=3)
    self_said = path("192.0.2.3/32", next_hop=A.local_address)
    assert rib.normal(ebgp, A) == path("192.0.2.1/32")
    assert rib.normal(ibgp, C) == path("2001:db8::1/128")
    assert rib.normal(self_said, A) == path("192.0.2.3/32")
    wrong = [
        path("2001:db8::1/128"),
        path("192.0.2.4/32", next_hop=ip_address("fd00::1")),
        path("192.0.2.5/32", communities=("70000:1",)),
        path("192.0.2.6/32", med=2**32),
        path("192.0.2.7/32", prepend=33),
    ]
    planned = plan.plan(
        desired((A, wrong), (replace(C, families=("ipv6 unicast",)), [ebgp])), observed((A, []), (C, []))
    )
    assert [(str(refusal.prefix), refusal.reason) for refusal in planned.refusals] == [
        ("2001:db8::1/128", "NextHopFamily"),
        ("192.0.2.4/32", "NextHopFamily"),
        ("192.0.2.5/32", "BadCommunity"),
        ("192.0.2.6/32", "AttributeRange"),
        ("192.0.2.7/32", "AttributeRange"),
        ("192.0.2.1/32", "FamilyNotConfigured"),
    ]


def test_what_exabgp_rejected_is_not_tried_again_while_it_is_the_same() -> None:
    bad, good = path("192.0.2.1/32"), path("192.0.2.2/32")
    rejected = {(A.key, bad.prefix): bad}
    planned = plan.plan(desired((A, [bad, good])), observed((A, [])), rejected)
    assert [str(action) for action in planned.actions] == [
        "announce 192.0.2.2/32 to 10.0.0.2 from 10.0.0.1 next-hop self"
    ]
    changed = replace(bad, med=1)
    planned = plan.plan(desired((A, [changed])), observed((A, [])), rejected)
    assert [str(action) for action in planned.actions] == [
        "announce 192.0.2.1/32 to 10.0.0.2 from 10.0.0.1 next-hop self med 1"
    ]


def test_without_reload_only_loaded_sessions_get_paths() -> None:
    table = [path("192.0.2.1/32")]
    planned = plan.plan(desired((A, table), (B, table)), observed((A, [])), reload=False)
    assert [str(action) for action in planned.actions] == [
        "announce 192.0.2.1/32 to 10.0.0.2 from 10.0.0.1 next-hop self"
    ]
    assert planned.pending == {A.key: 1, B.key: 1}


def test_a_path_that_is_refused_now_is_withdrawn() -> None:
    held = observed((A, [path("192.0.2.1/32"), path("192.0.2.2/32")]))
    planned = plan.plan(desired((A, [path("192.0.2.1/32", communities=("x",)), path("192.0.2.2/32")])), held)
    assert [str(action) for action in planned.actions] == ["withdraw 192.0.2.1/32 from 10.0.0.2 from 10.0.0.1"]
    assert [refusal.reason for refusal in planned.refusals] == ["BadCommunity"]


sessions = st.dictionaries(
    st.sampled_from([A, B, C]),
    st.tuples(st.sampled_from([90, 9, 2]), st.sampled_from([64512, 64513]), st.booleans()),
    max_size=3,
)
tables = st.dictionaries(
    st.sampled_from(["192.0.2.1/32", "192.0.2.0/24", "2001:db8::/64", "2001:db8::1/128"]),
    st.builds(
        lambda hop, med, communities: (hop, med, communities),
        st.sampled_from([None, A.local_address, C.local_address, ip_address("10.0.0.77")]),
        st.sampled_from([None, 0, 5]),
        st.sampled_from([(), ("1:1",), ("1:2:3", "4:5")]),
    ),
)


@st.composite
def states(draw: st.DrawFn) -> Desired:
    chosen = draw(sessions)
    entries = []
    for peer, (hold_time, local_as, both) in chosen.items():
        families = peer.families if both else (rib.family_of(peer.address),)
        session = replace(peer, hold_time=hold_time, local_as=local_as, families=families)
        table = [Path(ip_network(prefix), hop, None, med, 0, c) for prefix, (hop, med, c) in draw(tables).items()]
        entries.append((session, table))
    return desired(*entries)


@settings(max_examples=200)
@given(st.lists(states(), min_size=1, max_size=4), st.data())
def test_every_prefix_of_a_plan_leads_there(wanted: list[Desired], data: st.DataObject) -> None:
    """Plans are cut anywhere, also in favour of another state; read back and planned again, it converges."""
    model = SpeakerModel()
    for state in wanted:
        actions = plan.plan(state, model.observed()).actions
        for action in actions[: data.draw(st.integers(0, len(actions)))]:
            model.carry_out(action)
    for _ in range(2):  # a second time: a reset session may have lost its table
        for action in _until_reload(plan.plan(wanted[-1], model.observed()).actions):
            model.carry_out(action)
    assert model.holds(wanted[-1])
    assert plan.plan(wanted[-1], model.observed()).actions == ()
    assert not model.left_behind  # no removed peer was left with paths


@settings(max_examples=200)
@given(states(), states())
def test_the_difference_is_the_plain_one(wanted: Desired, before: Desired) -> None:
    """The quick way finds what comparing two whole tables in normal form finds."""
    for address, peer in wanted.peers.items():
        rib_in, held_in = wanted.ribs[address], before.ribs.get(address, {})
        held = {prefix: taken for prefix, p in held_in.items() if isinstance(taken := rib.normal(p, peer), Path)}
        table = {prefix: taken for prefix, p in rib_in.items() if isinstance(taken := rib.normal(p, peer), Path)}
        found = rib.difference(rib_in, held, peer)
        assert found.announced == [taken for prefix, taken in table.items() if held.get(prefix) != taken]
        assert found.withdrawn == [prefix for prefix in held if prefix not in table]
        assert len(found.refusals) == len(rib_in) - len(table)


@settings(max_examples=200)
@given(st.lists(states(), min_size=1, max_size=4), st.data())
def test_a_difference_after_others_is_the_one_that_is_made_anew(wanted: list[Desired], data: st.DataObject) -> None:
    settled: dict[IPAddress, rib.Settled] = {}
    model = SpeakerModel()
    for state in (each for one in wanted for each in (one, one)):
        held = model.observed()
        planned = plan.plan(state, held, settled=settled)
        assert planned == plan.plan(state, held)
        for action in planned.actions[: data.draw(st.integers(0, len(planned.actions)))]:
            model.carry_out(action)
    again = model.observed()
    copies = {peer: {prefix: replace(path) for prefix, path in table.items()} for peer, table in again.ribs.items()}
    read_back = plan.Observed(again.digests, copies)
    assert plan.plan(wanted[-1], read_back, settled=settled) == plan.plan(wanted[-1], read_back)


def _until_reload(actions: tuple[plan.Action, ...]) -> list[plan.Action]:
    """As the speaker does: after a reload it reads back and plans again."""
    at = next((index for index, action in enumerate(actions) if isinstance(action, plan.Reload)), len(actions))
    return list(actions[: at + 1])
