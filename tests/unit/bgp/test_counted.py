"""How many prefixes a peer has announced: against what ExaBGP itself reads from UPDATEs."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, ip_address, ip_network
from types import SimpleNamespace
from typing import Any

import pytest
from exabgp.bgp.message import Action, Notify
from exabgp.bgp.message.direction import Direction
from exabgp.bgp.message.open.asn import ASN
from exabgp.bgp.message.update import Update
from hypothesis import given
from hypothesis import strategies as st

from bgp import wire
from bgp.inside import outgoing
from bgp.inside.counted import Counted
from bgp.path import IPNetwork

ATTRIBUTES = bytes.fromhex("40010100400200")
PREFIXES: list[IPNetwork] = [ip_network((int(IPv4Address("192.0.2.0")) + n, 32)) for n in range(6)]
PREFIXES += [ip_network((int(ip_address("2001:db8::")) + n, 128)) for n in range(6)]


def session(*, path_ids: bool = False) -> Any:
    addpath = SimpleNamespace(receive=lambda afi, safi: path_ids, send=lambda afi, safi: path_ids)
    return SimpleNamespace(
        families=(outgoing.IPV4, outgoing.IPV6), nexthop=(), addpath=addpath, asn4=True, aigp=False, msg_size=4096,
        local_as=ASN(1), peer_as=ASN(2), cached_attributes=None,
    )  # fmt: skip


def body(version: int, prefixes: Iterable[IPNetwork], *, announced: bool, path_ids: bool = False) -> bytes:
    """Of the UPDATE of our own encoder, without its header."""
    family, hop = outgoing.FAMILIES[version], bytes([10, 0, 0, 1]) if version == 4 else bytes(15) + b"\x01"
    way = outgoing.way(family, hop, ATTRIBUTES) if announced else None
    nlris = [wire.nlri_bytes([prefix]) for prefix in prefixes]
    (message,) = outgoing.Batch(family, way, nlris).messages(session(path_ids=path_ids))
    return message[19:]


steps = st.lists(
    st.tuples(st.sampled_from([4, 6]), st.sets(st.sampled_from(range(6)), min_size=1), st.booleans()), max_size=8
)


@given(steps, st.booleans(), st.integers(0, 7))
def test_the_count_is_of_what_exabgp_reads(taken: list[tuple[int, set[int], bool]], path_ids: bool, limit: int) -> None:
    counted, there = Counted(limit, session(path_ids=path_ids)), dict[int, set[bytes]]({4: set(), 6: set()})
    for version, numbers, announced in taken:
        prefixes = [PREFIXES[number + (0 if version == 4 else 6)] for number in sorted(numbers)]
        update = body(version, prefixes, announced=announced, path_ids=path_ids)
        for nlri in Update.unpack_message(update, Direction.IN, session(path_ids=path_ids)).nlris:
            (there[version].add if nlri.action == Action.ANNOUNCE else there[version].discard)(nlri.cidr.pack_nlri())
        if len(there[version]) > limit:
            with pytest.raises(Notify) as ended:
                counted.take(update)
            assert (ended.value.code, ended.value.subcode) == (6, 1)
            assert ended.value.data == bytes([0, 1 if version == 4 else 2, 1]) + limit.to_bytes(4, "big")
            return
        counted.take(update)


@given(st.binary(max_size=60))
def test_any_bytes_are_counted_or_end_the_session(data: bytes) -> None:
    counted = Counted(3, session())
    try:
        counted.take(data)
    except Notify as ended:
        assert (ended.code, ended.subcode) in {(3, 1), (6, 1)}


@pytest.mark.parametrize("cut", range(1, 20))
def test_an_update_that_is_cut_ends_the_session(cut: int) -> None:
    whole = body(6, PREFIXES[6:7], announced=True)
    with pytest.raises(Notify) as ended:
        Counted(3, session()).take(whole[:-cut])
    assert (ended.value.code, ended.value.subcode) == (3, 1)


def test_only_updates_are_counted() -> None:
    update = body(4, PREFIXES[:2], announced=True)
    messages: list[tuple[int, int, bytes, bytes, Any]] = [
        (0, 0, b"", b"", None), (19, 4, b"", b"", None), (19 + len(update), 2, b"", update, None)
    ]  # fmt: skip
    assert list(Counted(2, session()).watch(iter(messages))) == messages
    with pytest.raises(Notify):
        list(Counted(1, session()).watch(iter(messages)))
