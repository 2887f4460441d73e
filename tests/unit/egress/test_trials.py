"""Which port sets are to be tried, and that what was echoed outlasts a change of the group."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from bpf import layout
from egress import plan as plans
from egress.entries import Facts, MapEntries, map_entries
from egress.policy import Block, Desired, Gateway, Group, IPAddress
from egress.trials import Trial, filtered, frame, on_link, untried, with_echoes
from tests.bpf.packets import parse
from tests.models.egress_wishes import DEVICES, on_worker
from tests.models.node import FakeNode

FOUR, SIX = ip_address("192.0.2.1"), ip_address("2001:db8::1")
FIRST, SECOND, THIRD = Gateway("a", 2), Gateway("b", 3), Gateway("c", 4)
A, B, C = Block(FOUR, 1024, 1024), Block(SIX, 4096, 64), Block(FOUR, 2048, 64, closed=True)
HERE = ip_address("10.0.0.1")


def entries(*blocks: Block, gateways: tuple[Gateway, ...] = (FIRST, SECOND), number: int = 1) -> MapEntries:
    group = Group(7, (FOUR, SIX), gateways, blocks)
    return map_entries(Desired("n", HERE, groups={7: group}, nodes={number: HERE}), Facts(), {})["groups"]


def echo(given: MapEntries, address: IPAddress, port: int, gateway: int) -> MapEntries:
    """As the programs note it."""
    value = layout.decode(layout.GroupValue, given[layout.u32(7)])
    for block in value.blocks[: value.block_count]:
        if (layout.ip_of(block.egress_ip), block.first) == (address, port):
            block.echoed |= 1 << [each.node for each in value.gateways].index(gateway)
    return {layout.u32(7): bytes(value)}


def test_each_block_is_tried_by_each_gateway_until_that_has_echoed_it() -> None:
    given = entries(A, B, C)
    assert untried(given) == [
        Trial(7, address, port, gateway)
        for address, port in ((FOUR, 1024), (SIX, 4096), (FOUR, 2048))
        for gateway in (2, 3)
    ]
    given = echo(echo(given, SIX, 4096, 3), FOUR, 1024, 2)
    assert untried(given) == [
        Trial(7, FOUR, 1024, 3),
        Trial(7, SIX, 4096, 2),
        Trial(7, FOUR, 2048, 2),
        Trial(7, FOUR, 2048, 3),
    ]


def test_a_node_does_not_try_its_sets_by_itself() -> None:
    assert untried(entries(A, number=3)) == [Trial(7, FOUR, 1024, 2)]


def by_link(given: MapEntries, address: IPAddress, port: int, gateway: int) -> MapEntries:
    """As `echo`, without the tunnel."""
    found = echo(given, address, port, gateway)
    before, after = (layout.decode(layout.GroupValue, each[layout.u32(7)]) for each in (given, found))
    for old, new in zip(before.blocks, after.blocks, strict=True):
        new.echoed = old.echoed | (new.echoed & ~old.echoed) << layout.ECHOED_DIRECT
    return {layout.u32(7): bytes(after)}


def test_a_gateway_on_the_link_is_tried_by_both_ways() -> None:
    given, near = entries(A, B), [(2, 4)]
    link = Trial(7, FOUR, 1024, 2, direct=True)
    assert {*untried(given, near)} == {*untried(given), link}
    assert untried(given, near, tunnels=False) == [link]
    assert Trial(7, FOUR, 1024, 2, spare=True) in untried(by_link(given, FOUR, 1024, 2), near)
    assert Trial(7, FOUR, 1024, 2, direct=True, spare=True) in untried(echo(given, FOUR, 1024, 2), near)
    assert not filtered(untried(given, near))
    assert filtered(untried(echo(given, FOUR, 1024, 2), near)) == {2 | layout.WAY_DIRECT}
    assert not untried(by_link(given, FOUR, 1024, 2), near, tunnels=False)


def test_what_was_echoed_by_the_link_goes_with_its_gateway_and_its_block() -> None:
    before = by_link(entries(A, B), FOUR, 1024, 2)
    after = with_echoes(entries(B, A, gateways=(THIRD, SECOND, FIRST)), before)
    every = [(gateway, version) for gateway in (2, 3, 4) for version in (4, 6)]
    lacking = {(each.egress_ip, each.gateway) for each in untried(after, every, tunnels=False)}
    assert lacking == {(FOUR, 3), (FOUR, 4), (SIX, 2), (SIX, 3), (SIX, 4)}


def test_ipv6_needs_a_link_local_address() -> None:
    def node(address: str, link_local: bool, direct: int = 1) -> bytes:
        value = layout.NodeValue(layout.ip_field(ip_address(address)), direct=direct)
        if link_local:
            value.link_local = layout.ip_field(ip_address("fe80::1"))
        return bytes(value)

    given = {1: node("10.0.0.1", True), 2: node("10.0.0.2", False), 3: node("fd00::3", True), 4: node("fd00::4", False)}
    nodes = {layout.u32(number): value for number, value in {**given, 5: node("10.0.0.5", True, 0)}.items()}
    assert on_link(nodes) == {(1, 4), (1, 6), (2, 4), (3, 4), (3, 6)}


def test_what_was_echoed_goes_with_its_gateway_and_its_block() -> None:
    before = echo(echo(entries(A, B), FOUR, 1024, 2), SIX, 4096, 3)
    after = with_echoes(entries(C, B, A, gateways=(THIRD, SECOND, FIRST)), before)
    assert {(each.egress_ip, each.port, each.gateway) for each in untried(after)} == {
        (FOUR, 2048, 4), (FOUR, 2048, 3), (FOUR, 2048, 2), (SIX, 4096, 4), (SIX, 4096, 2), (FOUR, 1024, 4),
        (FOUR, 1024, 3),
    }  # fmt: skip


def test_a_block_of_another_size_is_another_one() -> None:
    before = echo(entries(A), FOUR, 1024, 2)
    assert len(untried(with_echoes(entries(Block(FOUR, 1024, 512)), before))) == 2


some_gateways = st.lists(st.sampled_from([FIRST, SECOND, THIRD]), unique=True, max_size=3).map(tuple)
some_blocks = st.lists(st.sampled_from([A, B, C]), unique=True, max_size=3)


@given(some_blocks, some_gateways, some_blocks, some_gateways, st.integers(0, (1 << 9) - 1))
def test_nothing_is_good_that_was_not_echoed_and_nothing_that_stays_is_tried_again(
    old: list[Block], by: tuple[Gateway, ...], new: list[Block], then: tuple[Gateway, ...], chosen: int
) -> None:
    given = entries(*old, gateways=by)
    pairs = {(block.egress_ip, block.first, gateway.number) for block in old for gateway in by}
    echoed = {pair for place, pair in enumerate(sorted(pairs, key=str)) if chosen >> place & 1}
    for address, port, gateway in echoed:
        given = echo(given, address, port, gateway)
    wanted = {(block.egress_ip, block.first, gateway.number) for block in new for gateway in then}
    found = untried(with_echoes(entries(*new, gateways=then), given))
    assert {(each.egress_ip, each.port, each.gateway) for each in found} == wanted - echoed


def test_the_programs_own_words_are_nothing_to_do() -> None:
    """And a group that changes keeps them."""
    node = FakeNode(DEVICES)
    for _ in range(3):
        for action in plans.plan(on_worker(), node.observe()):
            node.apply(action)
    before = node.maps["groups"]
    node.maps["groups"] = {key: bytes(_all_echoed(value)) for key, value in before.items()}
    assert untried(before) and not untried(node.maps["groups"])
    assert plans.plan(on_worker(), node.observe()) == ()
    wish = on_worker()
    moved = {key: replace(group, blocks=(*group.blocks, C)) for key, group in wish.groups.items()}
    for action in plans.plan(replace(wish, groups=moved), node.observe()):
        node.apply(action)
    assert {each.port for each in untried(node.maps["groups"])} == {C.first}


def _all_echoed(value: bytes) -> layout.GroupValue:
    group = layout.decode(layout.GroupValue, value)
    for block in group.blocks[: group.block_count]:
        block.echoed = (1 << group.gateway_count) - 1
    return group


def test_a_trial_is_a_packet_of_the_set_in_its_family() -> None:
    for address in (FOUR, SIX):
        inner = frame(Trial(7, address, 1024, 2), 5)
        packet = parse(inner[:-16] + inner[-16:]) if address.version == 4 else None
        if packet is not None:
            assert (packet.source, packet.destination, packet.source_port, packet.ttl) == (address, address, 1024, 255)
        trial = layout.decode(layout.Trial, inner[-16:])
        assert (trial.kind, trial.group, trial.gateway, trial.token) == (layout.TRIAL_REQUEST, 7, 2, 5)
