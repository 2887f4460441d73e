"""exabgp.conf: as a golden text, and as the installed ExaBGP reads it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import fields, replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from exabgp.bgp.neighbor import Neighbor
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bgp import conf, plan, relay
from bgp.inside import commands, patches
from bgp.path import FAMILIES, Desired, SpeakerPeer
from tests.models.real_exabgp import loaded


@pytest.fixture
def mended() -> Iterator[None]:
    stock = Neighbor.__eq__
    Neighbor.__eq__ = patches.equal_in_all(stock)
    yield
    Neighbor.__eq__ = stock


PEER = SpeakerPeer(ip_address("10.9.0.2"), ip_address("10.9.0.1"), 64512, 65000, IPv4Address("10.9.0.1"))
OTHER = SpeakerPeer(
    ip_address("fd09::2"), ip_address("fd09::1"), 64512, 64512, IPv4Address("10.9.0.1"), port=1790, hold_time=9,
    password='p"w', graceful_restart_time=0, families=("ipv6 unicast",), description="ToR; } 'x'",
)  # fmt: skip

GOLDEN = """\
# peer 10.9.0.2,10.9.0.1 8f3a
neighbor 10.9.0.2 {
    router-id 10.9.0.1;
    local-address 10.9.0.1;
    local-as 64512;
    peer-as 65000;
    hold-time 90;
    outgoing-ttl 255;
    manual-eor true;
    adj-rib-in false;
    adj-rib-out true;
    group-updates true;
    capability {
        asn4 enable;
        route-refresh enable;
        graceful-restart 120;
    }
    family {
        ipv4 unicast;
        ipv6 unicast;
    }
    api {
        processes [ relay ];
        neighbor-changes;
        negotiated;
    }
}
# peer fd09::2,fd09::1 8f3a
neighbor fd09::2 {
    router-id 10.9.0.1;
    local-address fd09::1;
    local-as 64512;
    peer-as 64512;
    hold-time 9;
    connect 1790;
    outgoing-ttl 255;
    md5-base64 true;
    md5-password "cCJ3";
    manual-eor true;
    adj-rib-in false;
    adj-rib-out true;
    group-updates true;
    capability {
        asn4 enable;
        route-refresh enable;
        graceful-restart disable;
    }
    family {
        ipv6 unicast;
    }
    api {
        processes [ relay ];
        neighbor-changes;
        negotiated;
    }
}
"""


def test_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conf, "digest", lambda peer: "8f3a")
    assert conf.peers_text([OTHER, PEER]) == conf.peers_text([PEER, OTHER]) == GOLDEN


def test_exabgp_reads_it() -> None:
    neighbors = {str(n["peer-address"]): n for n in loaded(conf.peers_text([PEER, OTHER])).neighbors.values()}
    first, second = neighbors["10.9.0.2"], neighbors["fd09::2"]
    assert (first["connect"], first["hold-time"], first["capability"]["graceful-restart"]) == (0, 90, 120)
    assert (first["manual-eor"], first["adj-rib-out"], first["md5-password"]) == (True, True, None)
    assert (second["connect"], second["hold-time"], second["capability"]["graceful-restart"]) == (1790, 9, False)
    assert (second["outgoing-ttl"], base64.b64decode(second["md5-password"])) == (255, b'p"w')
    assert len(second.families()) == 1


passwords = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


@settings(max_examples=60)
@given(password=passwords)
@example(password='\'";{}[]#\\ \\" md5-password x; }\\')
def test_a_password_is_carried_and_ends_nothing(password: str) -> None:
    (neighbor,) = loaded(conf.peers_text([replace(PEER, password=password)])).neighbors.values()
    assert neighbor["md5-base64"] is True
    assert base64.b64decode(neighbor["md5-password"]).decode() == password
    assert neighbor["hold-time"] == 90


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"password": "secret\n"}, "Password"),
        ({"password": "é" * 41}, "Password"),
        ({"hold_time": 2}, "HoldTime"),
        ({"port": 0}, "Port"),
        ({"passive": True}, "Port"),
        ({"listen_port": 65536}, "Port"),
        ({"remote_as": 0}, "AsNumber"),
        ({"graceful_restart_time": 4096}, "RestartTime"),
        ({"families": ()}, "NoFamily"),
        ({"local_address": ip_address("fd09::1")}, "AddressFamily"),
    ],
)
def test_what_exabgp_cannot_carry_is_refused(change: dict[str, object], reason: str) -> None:
    peer = replace(PEER, **change)  # type: ignore[arg-type]
    refusal = conf.peer_refusal(peer)
    assert refusal is not None
    assert refusal.reason == reason
    assert "secret" not in str(refusal)
    assert conf.peers_text([peer, OTHER]) == conf.peers_text([OTHER])


def test_a_digest_tells_sessions_apart() -> None:
    assert conf.digest(PEER) == conf.digest(replace(PEER, description="other"))  # no reset for a description
    assert conf.digest(PEER) != conf.digest(replace(PEER, password="x"))
    assert conf.digest(PEER) != conf.digest(replace(PEER, hold_time=30))


def test_a_link_local_peer_bears_its_interface(tmp_path: Path) -> None:
    one, other = (
        replace(PEER, address=ip_address(f"fe80::1%{name}"), local_address=ip_address(local), interface=name)
        for name, local in (("eth1", "fe80::a1"), ("uplink.7", "fe80::a2"))
    )
    text = conf.peers_text([one, other])
    (tmp_path / "exabgp.conf").write_text(text)
    assert commands.loaded_peers(tmp_path / "exabgp.conf").keys() == {
        "fe80::1%eth1,fe80::a1",
        "fe80::1%uplink.7,fe80::a2",
    }
    found = {str(n["peer-address"]): n for n in loaded(text).neighbors.values()}
    assert found.keys() == {"fe80::1%eth1", "fe80::1%uplink.7"}
    assert all(n["peer-address"].top() == "fe80::1" for n in found.values())  # to which it connects
    assert found["fe80::1%eth1"]["source-interface"] == "eth1"


# What of a session may change. With what else the change goes where it cannot be alone.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "address": ({"address": ip_address("fd09::3")}, {}),
    "local_address": ({"local_address": ip_address("fd09::4")}, {}),
    "local_as": ({"local_as": 1}, {}),
    "remote_as": ({"remote_as": 1}, {}),
    "router_id": ({"router_id": IPv4Address("10.9.0.9")}, {}),
    "port": ({"port": 1791}, {}),
    "passive": ({"passive": True}, {"listen_port": 179}),
    "listen_port": ({"listen_port": 1790}, {}),
    "connect_retry": ({"connect_retry": 30}, {}),
    "hold_time": ({"hold_time": 30}, {}),
    "password": ({"password": "other"}, {}),
    "graceful_restart_time": ({"graceful_restart_time": 60}, {}),
    "families": ({"families": ("ipv4 unicast",)}, {}),
    "min_ttl": ({"min_ttl": 255}, {}),
    "extended_next_hop": ({"extended_next_hop": True}, {"families": FAMILIES}),
    "interface": ({"interface": "eth1"}, {}),
    "keepalive_time": ({"keepalive_time": 1}, {}),
    "imports": ({"imports": (ip_network("10.244.0.0/16"),)}, {}),
    "max_prefixes": ({"max_prefixes": 1000}, {}),
}


def test_whatever_of_a_session_changes_exabgp_begins_another_one(mended: None) -> None:
    """Its own comparison overlooks some; what we write and it takes for the same would never be in force."""
    assert CHANGES.keys() == {each.name for each in fields(SpeakerPeer)} - {"description", "override"}
    for name, (change, beside) in CHANGES.items():
        (one,) = loaded(conf.peers_text([replace(OTHER, **beside)])).neighbors.values()
        (again,) = loaded(conf.peers_text([replace(OTHER, **beside)])).neighbors.values()
        (other,) = loaded(conf.peers_text([replace(OTHER, **beside, **change)])).neighbors.values()
        assert one == again, name
        assert one != other or one.name() != other.name(), name


def test_a_router_may_connect_to_several_addresses_of_the_node() -> None:
    """Stock ExaBGP takes these for one peer."""
    first = replace(PEER, passive=True, listen_port=179)
    neighbors = loaded(conf.peers_text([first, replace(first, local_address=ip_address("10.9.0.4"))])).neighbors
    assert [(n["passive"], n["listen"], str(n["local-address"])) for n in neighbors.values()] == [
        (True, 179, "10.9.0.1"), (True, 179, "10.9.0.4"),
    ]  # fmt: skip


def test_nothing_shows_a_password() -> None:
    peer = replace(PEER, password="s3cret")
    planned = plan.plan(Desired({peer.key: peer}, {}), plan.Observed({}, {}))
    shown = repr(planned) + "".join(map(str, planned.actions))
    assert "s3cret" not in shown
    assert base64.b64encode(b"s3cret").decode() not in shown
    assert relay.without_passwords('line 9: md5-password "czNjcmV0" ;\nmd5-password czNjcmV0;') == (
        'line 9: md5-password "***" ;\nmd5-password ***;'
    )


def test_a_path_that_would_break_the_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match="quotes"):
        relay.configuration_text('/opt/"x"/python', "/relay.py", "")


@pytest.mark.parametrize("keepalive", [0, 3])
def test_a_session_that_takes_paths_says_of_which_networks(keepalive: int) -> None:
    networks = (ip_network("10.244.0.0/16"), ip_network("fd00::/48"))
    text = conf.peers_text([replace(PEER, imports=networks, keepalive_time=keepalive), OTHER])
    first, second = loaded(text).neighbors.values()
    assert [first.api.get(key) for key in ("receive-parsed", "receive-open", "receive-update")] == [["relay"]] * 3
    assert not second.api.get("receive-update")
    received = relay.Received()
    received.configure(text)
    assert received.networks == [*networks]
