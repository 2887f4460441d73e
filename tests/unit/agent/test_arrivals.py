"""What the kernel tells of new connections, and which of them count."""

from __future__ import annotations

import errno
import os
import struct
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress.host.conntrack import NFGEN
from netlink.wire import HEADER, attribute
from routerd.agent.arrivals import CT_NEW, Arrivals, Expected, begun_in

VIP, SIX = ip_address("192.0.2.1"), ip_address("2001:db8::1")
CLIENT = ip_address("198.51.100.10")
EXPECTED = Expected(frozenset({VIP, SIX}), frozenset({ip_address("10.0.0.11")}), (ip_network("10.244.1.0/24"),))


def message(source: str, destination: str, kind: int = CT_NEW) -> bytes:
    """As nf_conntrack sends it: the original tuple first, then more."""
    here, there = ip_address(source), ip_address(destination)
    keys = (1, 2) if here.version == 4 else (3, 4)
    addresses = attribute(keys[0], here.packed) + attribute(keys[1], there.packed)
    ports = attribute(1, b"\6") + attribute(2, struct.pack(">H", 40000)) + attribute(3, struct.pack(">H", 80))
    original = attribute(1 | 0x8000, attribute(1 | 0x8000, addresses) + attribute(2 | 0x8000, ports))
    body = NFGEN.pack(2, 0, 0) + original + attribute(3, b"\0\0\0\1")
    return HEADER.pack(HEADER.size + len(body), kind, 0x600, 0, 0) + body


def test_several_in_one_datagram() -> None:
    data = message("198.51.100.10", "192.0.2.1") + message("2001:db8::9", "2001:db8::1")
    assert list(begun_in(data)) == [(CLIENT, VIP), (ip_address("2001:db8::9"), SIX)]


def test_other_messages_are_passed_over() -> None:
    other = message("198.51.100.10", "192.0.2.9", kind=CT_NEW | 2)  # IPCTNL_MSG_CT_DELETE
    assert list(begun_in(other + message("198.51.100.10", "192.0.2.1"))) == [(CLIENT, VIP)]


@given(st.binary(max_size=200))
def test_no_datagram_is_too_strange(data: bytes) -> None:
    assert list(begun_in(data)) == list(begun_in(data))


def test_what_begins_on_this_node_does_not_count() -> None:
    assert EXPECTED.counts(CLIENT, VIP)
    assert EXPECTED.counts(ip_address("10.244.2.5"), VIP)
    assert not EXPECTED.counts(ip_address("10.244.1.5"), VIP)
    assert not EXPECTED.counts(ip_address("10.0.0.11"), VIP)
    assert not EXPECTED.counts(CLIENT, ip_address("192.0.2.2"))
    assert EXPECTED.counts(ip_address("2001:db8::9"), SIX)


@pytest.mark.parametrize("number", [errno.EPROTONOSUPPORT, errno.EMFILE])
def test_where_no_socket_can_be_had_nothing_is_seen(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuses(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("routerd.agent.arrivals.socket.socket", refuses)
    arrivals = Arrivals()
    for _ in range(2):
        assert arrivals.take(EXPECTED) == frozenset()
    arrivals.stop()
