"""Which keys a document may have: the structures of the two parsers, and our superset of them."""

from __future__ import annotations

from typing import Literal

from bgp.path import MAX_PREPEND
from routerd.formats.legacy_bgp.decode import GoInteger, GoList, GoMap, GoScalar, GoStruct, GoType

Dialect = Literal["cilium-1.10", "metallb-0.12", "native"]

MAX_PREFIXES = 2**31 - 1  # what Go's int32 holds, and more than any router has
MAX_HOPS = 254  # that a TTL can tell, which is 255 where it starts

STRING = GoScalar("string")
BOOL = GoScalar("bool")
UINT16 = GoInteger("uint16", 0, 2**16 - 1)
UINT32 = GoInteger("uint32", 0, 2**32 - 1)
AS_NUMBER = GoInteger("uint32", 0, 2**32 - 1, is_as_number=True)
INT = GoInteger("int", -(2**63), 2**63 - 1)
STRINGS = GoList(STRING)

_REQUIREMENT = GoStruct("config.selectorRequirements", {"key": STRING, "operator": STRING, "values": STRINGS})
_SELECTOR = GoStruct("config.nodeSelector", {"match-labels": GoMap(), "match-expressions": GoList(_REQUIREMENT)})

_PEER: dict[str, GoType] = {
    "my-asn": AS_NUMBER,
    "peer-asn": AS_NUMBER,
    "peer-address": STRING,
    "peer-port": UINT16,
    "hold-time": STRING,
    "router-id": STRING,
    "node-selectors": GoList(_SELECTOR),
    "password": STRING,
}
_PEER_0_12: dict[str, GoType] = {
    "source-address": STRING,
    "keepalive-time": STRING,
    "bfd-profile": STRING,
    "ebgp-multihop": BOOL,
}
_BFD: dict[str, GoType] = {"interval": STRING, "multiplier": INT, "min-rx": STRING}
_EXPORT: dict[str, GoType] = {
    "action": STRING,
    "prefixes": STRINGS,
    "match": STRING,
    "min-length": GoInteger("int", 0, 128),
    "max-length": GoInteger("int", 0, 128),
    "of": STRINGS,
    "communities": STRINGS,
}
_OVERRIDE: dict[str, GoType] = {
    "nodes": STRINGS,
    "node-selectors": GoList(_SELECTOR),
    "peer-address": STRING,
    "my-asn": AS_NUMBER,
    "router-id": STRING,
    "source-address": STRING,
    "listen-port": UINT16,
    "password": STRING,
    "password-file": STRING,
}
_PEER_NATIVE: dict[str, GoType] = {
    "name": STRING,
    "graceful-restart-time": STRING,
    "families": STRINGS,
    "announce": STRINGS,
    "password-file": STRING,
    "ttl-security": GoInteger("int", 0, MAX_HOPS),
    "extended-next-hop": BOOL,
    "max-prefixes": GoInteger("int", 0, MAX_PREFIXES),
    "interface": STRING,
    "source-interface": STRING,
    "export": GoList(GoStruct("config.exportRule", _EXPORT)),
    "connect-retry": STRING,
    "passive": BOOL,
    "listen-port": UINT16,
    "bfd": GoStruct("config.bfd", _BFD),
    "node-overrides": GoList(GoStruct("config.nodeOverride", _OVERRIDE)),
}

NOT_DONE = {  # ExaBGP 5.0.15 has nothing of it, or we do not use it
    "long-lived-graceful-restart": "long-lived graceful restart (RFC 9494) is not done; see graceful-restart-time",
    "role": "BGP roles (RFC 9234) are not done",
    "tcp-ao": "TCP-AO (RFC 5925) is not done: password-file is for TCP MD5, and ttl-security keeps far ones away",
    "add-path": "each prefix goes out with one path: leave the key out",
    "vrf": "sessions in a VRF are not done",
}

_ADVERTISEMENT: dict[str, GoType] = {"aggregation-length": INT, "localpref": UINT32, "communities": STRINGS}
_ADVERTISEMENT_0_12: dict[str, GoType] = {"aggregation-length-v6": INT}
_ADVERTISEMENT_NATIVE: dict[str, GoType] = {
    "med": UINT32,
    "origin": STRING,
    "as-path-prepend": GoInteger("int", 0, MAX_PREPEND),
    "peers": STRINGS,
    "node-selectors": GoList(_SELECTOR),
    "service-selectors": GoList(_SELECTOR),
}

_POOL: dict[str, GoType] = {
    "protocol": STRING,
    "name": STRING,
    "addresses": STRINGS,
    "avoid-buggy-ips": BOOL,
    "auto-assign": BOOL,
}
_POOL_NATIVE: dict[str, GoType] = {"uses": STRINGS, "priority": INT, "disabled": BOOL, "egress-annotations": BOOL}

_BFD_PROFILE: dict[str, GoType] = {
    "name": STRING,
    "receive-interval": UINT32,
    "transmit-interval": UINT32,
    "detect-multiplier": UINT32,
    "echo-interval": UINT32,
    "echo-mode": BOOL,
    "passive-mode": BOOL,
    "minimum-ttl": UINT32,
}


def structure(dialect: Dialect) -> GoStruct:
    """The top of a document of that dialect."""
    is_old, is_ours = dialect == "cilium-1.10", dialect == "native"
    newer: dict[str, dict[str, GoType]] = {
        "peer": {} if is_old else _PEER_0_12,
        "advertisement": {} if is_old else _ADVERTISEMENT_0_12,
        "top": {} if is_old else {"bfd-profiles": GoList(GoStruct("config.bfdProfile", _BFD_PROFILE))},
    }
    advertised = {**_ADVERTISEMENT, **newer["advertisement"], **(_ADVERTISEMENT_NATIVE if is_ours else {})}
    advertisement = GoStruct("config.bgpAdvertisement", advertised)
    pool: dict[str, GoType] = {
        **_POOL,
        "bgp-advertisements": GoList(advertisement),
        **(_POOL_NATIVE if is_ours else {}),
    }
    peer: dict[str, GoType] = {**_PEER, **newer["peer"], **(_PEER_NATIVE if is_ours else {})}
    template = GoStruct("config.peerTemplate", peer, NOT_DONE)
    ours: dict[str, GoType] = {"apiVersion": STRING, "kind": STRING, "peer-templates": GoList(template)}
    return GoStruct(
        "config.configFile",
        {
            **(ours if is_ours else {}),
            "peers": GoList(
                GoStruct("config.peer", {**peer, "template": STRING}, NOT_DONE)
                if is_ours
                else GoStruct("config.peer", peer)
            ),
            "bgp-communities": GoMap(),
            "address-pools": GoList(GoStruct("config.addressPool", pool)),
            **newer["top"],
        },
    )
