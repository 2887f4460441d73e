"""What the kernel says of this node, on loopback, and the text of /proc."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from routerd.agent.local import global_ipv6, is_ours, passwords_of, session_addresses, source_towards
from routerd.model import Peer

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
    assert (here, away) == ({ip_address("127.0.0.9"): LOOPBACK}, {ip_address("127.0.0.9"): None})


def test_a_route_that_is_away_keeps_the_address_while_the_node_has_it() -> None:
    assert session_addresses([peer("fe80::1")], {NOWHERE: LOOPBACK}) == {NOWHERE: LOOPBACK}
    assert session_addresses([peer("fe80::1")], {NOWHERE: FOREIGN}) == {NOWHERE: None}
    assert session_addresses([peer("fe80::1")], {}) == {NOWHERE: None}


def test_a_link_that_flaps_keeps_its_link_local_session() -> None:
    """Its address is gone with it, or not to be used yet; while the interface is there it will be the same."""
    router, own = ip_address("fe80::1%lo"), ip_address("fe80::a1")  # which lo has no address for
    assert session_addresses([peer("fe80::1%lo", interface="lo")], {router: own}) == {router: own}
    assert session_addresses([peer("fe80::1%lo", interface="lo")], {}) == {router: None}
    gone = ip_address("fe80::1%none")
    assert session_addresses([peer("fe80::1%none", interface="none")], {gone: own}) == {gone: None}


def test_a_source_by_an_interface_or_of_one() -> None:
    assert source_towards(LOOPBACK, interface="lo") == LOOPBACK
    assert source_towards(LOOPBACK, interface="none") is None
    found = session_addresses([peer("127.0.0.9", interface="none"), peer("10.0.0.1", source_interface="none")], {})
    assert found == {ip_address("127.0.0.9"): None, ip_address("10.0.0.1"): None}


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
