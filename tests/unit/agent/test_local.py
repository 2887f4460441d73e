"""What the kernel says of this node, on loopback, and the text of /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from netlink.wire import DumpInterrupted, NetlinkSocket
from routerd.agent.local import global_ipv6, is_ours, passwords_of, session_addresses, source_towards
from routerd.model import Peer
from routerd.node.sessions import Way
from tests.netns.lab.netns import Namespace, entered, run

LOOPBACK = ip_address("127.0.0.1")
NOWHERE = ip_address("fe80::1")  # link-local without an interface: no route
FOREIGN = ip_address("192.0.2.77")

IF_INET6 = """\
00000000000000000000000000000001 01 80 10 80       lo
20010db8000000000000000000000005 02 40 00 80     eth0
fe80000000000000000000fffe000001 02 40 20 80     eth0
"""


def peer(address: str, **fields: object) -> Peer:
    return Peer(ip_address(address), 1, 2, **fields)  # type: ignore[arg-type]


def test_the_kernel_chooses_the_source() -> None:
    assert source_towards(LOOPBACK) == LOOPBACK
    assert source_towards(NOWHERE) is None


def test_only_addresses_on_interfaces_are_ours() -> None:
    assert is_ours(LOOPBACK)
    assert not is_ours(FOREIGN)


def test_a_configured_source_must_be_on_the_node() -> None:
    here = session_addresses([peer("127.0.0.9", source_address=LOOPBACK)], {})
    away = session_addresses([peer("127.0.0.9", source_address=FOREIGN)], {})
    assert ([*here.values()], [*away.values()]) == ([LOOPBACK], [None])


def test_a_route_that_is_away_keeps_the_address_while_the_node_has_it() -> None:
    assert session_addresses([peer("fe80::1")], {Way(NOWHERE): LOOPBACK}) == {Way(NOWHERE): LOOPBACK}
    assert session_addresses([peer("fe80::1")], {Way(NOWHERE): FOREIGN}) == {Way(NOWHERE): None}
    assert session_addresses([peer("fe80::1")], {}) == {Way(NOWHERE): None}


def test_a_link_that_flaps_keeps_its_link_local_session() -> None:
    """Its address is gone with it, or not to be used yet; while the interface is there it will be the same."""
    router, own = Way(ip_address("fe80::1%lo"), interface="lo"), ip_address("fe80::a1")  # which lo has no address for
    assert session_addresses([peer("fe80::1%lo", interface="lo")], {router: own}) == {router: own}
    assert session_addresses([peer("fe80::1%lo", interface="lo")], {}) == {router: None}
    gone = Way(ip_address("fe80::1%none"), interface="none")
    assert session_addresses([peer("fe80::1%none", interface="none")], {gone: own}) == {gone: None}


def test_a_source_by_an_interface_or_of_one() -> None:
    assert source_towards(LOOPBACK, interface="lo") == LOOPBACK
    assert source_towards(LOOPBACK, interface="none") is None
    found = session_addresses([peer("127.0.0.9", interface="none"), peer("10.0.0.1", source_interface="none")], {})
    assert [*found.values()] == [None, None]


def test_global_ipv6_addresses_only() -> None:
    assert global_ipv6(IF_INET6) == (ip_address("2001:db8::5"),)


def test_passwords_are_read_from_files_of_one_directory(tmp_path: Path) -> None:
    (tmp_path / "tor").write_text("s3cret \n")
    (tmp_path / "odd").write_bytes(b"\xff")
    (tmp_path / "empty").write_text("\n")  # no session without a password, where one is asked for
    peers = [peer("10.0.0.1", password_file=name) for name in ("tor", "odd", "empty", "none", "")]
    assert passwords_of(peers, tmp_path, None) == {"tor": "s3cret "}
    (tmp_path / "tor").write_text("")  # somebody writes it anew
    assert passwords_of(peers, tmp_path, {"tor": "s3cret "}) == {"tor": "s3cret "}
    (tmp_path / "tor").unlink()  # a Secret is renewed
    assert passwords_of(peers, tmp_path, {"tor": "s3cret ", "old": "x"}) == {"tor": "s3cret "}


@pytest.fixture
def space() -> Iterator[Namespace]:
    made = Namespace(f"source-{os.getpid()}", "sources")
    made.create()
    try:
        with entered(made.name):
            yield made
    finally:
        run(["ip", "netns", "del", made.name])


def test_the_address_of_an_interface_stays_a_sessions_source_while_it_is_there(space: Namespace) -> None:
    """And one that goes by itself is none where another is there."""
    router = Way(ip_address("2001:db8::1"), source_interface="up0")

    def source(last: str) -> str:
        asked = [peer("2001:db8::1", source_interface="up0")]
        return str(session_addresses(asked, {router: ip_address(last)} if last else {})[router])

    space.ip("link add up0 type veth peer name up1", "link set up0 up", "link set up1 up")
    add = "addr add 2001:db8::{}/64 dev up0 nodad {}"
    space.ip(add.format("a", ""), add.format("b", "preferred_lft 0 valid_lft 900"), add.format("c", ""))
    assert (source("2001:db8::a"), source("2001:db8::c")) == ("2001:db8::a", "2001:db8::c")
    assert source("2001:db8::9") in ("2001:db8::a", "2001:db8::c")
    space.ip("addr del 2001:db8::a/64 dev up0", "addr del 2001:db8::c/64 dev up0")
    assert source("") == "2001:db8::b"
    space.ip(add.format("d", ""), add.format("0", ""))
    assert (source("2001:db8::b"), source("") == "2001:db8::b") == ("2001:db8::b", False)


def test_the_source_of_an_interface_stays_while_the_kernel_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise DumpInterrupted("busy")

    monkeypatch.setattr(NetlinkSocket, "dump", interrupted)
    there, gone = (Way(ip_address("10.0.0.1"), source_interface=name) for name in ("lo", "none"))
    own = ip_address("10.0.0.2")
    assert session_addresses([peer("10.0.0.1", source_interface="lo")], {there: own}) == {there: own}
    assert session_addresses([peer("10.0.0.1", source_interface="none")], {gone: own}) == {gone: None}
