"""Which keys of a peer begin its session anew: each that ExaBGP's configuration can differ by has a name."""

from __future__ import annotations

from dataclasses import fields, replace
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest

from bgp import conf
from bgp.conf import OTHERWISE, changed_keys
from bgp.path import FAMILIES, SpeakerPeer

PEER = SpeakerPeer(
    ip_address("fd09::2"), ip_address("fd09::1"), 64512, 65000, IPv4Address("10.9.0.1"), password="s3cret",
    listen_port=179, families=("ipv6 unicast",),
)  # fmt: skip
OTHER = replace(PEER, address=ip_address("fd09::3"), hold_time=9)
CHANGES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "local_as": ({"local_as": 1}, ("my-asn",)),
    "remote_as": ({"remote_as": 1}, ("peer-asn",)),
    "router_id": ({"router_id": IPv4Address("10.9.0.9")}, ("router-id",)),
    "port": ({"port": 1790}, ("peer-port",)),
    "passive": ({"passive": True}, ("passive",)),
    "listen_port": ({"listen_port": 0}, ("listen-port",)),
    "connect_retry": ({"connect_retry": 9}, ("connect-retry",)),
    "hold_time": ({"hold_time": 30}, ("hold-time",)),
    "keepalive_time": ({"keepalive_time": 3}, ("keepalive-time",)),
    "password": ({"password": ""}, ("password",)),
    "graceful_restart_time": ({"graceful_restart_time": 0}, ("graceful-restart-time",)),
    "families": ({"families": FAMILIES}, ("families",)),
    "min_ttl": ({"min_ttl": 255}, ("ttl-security",)),
    "extended_next_hop": ({"families": FAMILIES, "extended_next_hop": True}, ("extended-next-hop", "families")),
    "max_prefixes": ({"max_prefixes": 7}, ("max-prefixes",)),
    "interface": ({"interface": "eth1"}, ("interface",)),
    "imports": ({"imports": (ip_network("10.244.0.0/16"),)}, ("native-routing.learn",)),
    "description": ({"description": "x"}, ()),
    "override": ({"override": "x"}, ()),
}


@pytest.mark.parametrize("name", [each.name for each in fields(SpeakerPeer) if "address" not in each.name])
def test_what_of_a_peer_begins_its_session_anew(name: str) -> None:
    change, keys = CHANGES[name]
    other = replace(PEER, **change)
    assert changed_keys(conf.peers_text([OTHER, PEER]), other) == keys
    assert changed_keys(conf.peers_text([other, OTHER]), PEER) == keys


def test_a_peer_that_is_not_loaded_begins_and_another_release_is_told_as_such() -> None:
    assert changed_keys(conf.peers_text([OTHER]), PEER) == ()
    assert changed_keys(conf.peers_text([PEER]).replace("    manual-eor true;\n", ""), PEER) == (OTHERWISE,)
