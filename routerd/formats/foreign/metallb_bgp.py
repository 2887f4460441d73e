"""MetalLB's BGPPeer (metallb.io/v1beta2), as a BGP configuration of one peer. Pure.

What we cannot do is refused by name, as a value: a session that could not come up is not tried. Graceful restart is
offered whatever `enableGracefulRestart` says, as daemons here are replaced while sessions stay.
"""

from __future__ import annotations

from collections.abc import Iterator

from routerd.formats.document import Section, Value
from routerd.formats.legacy_bgp import LegacyConfig
from routerd.formats.legacy_bgp.golang import parse_duration, whole_seconds
from routerd.formats.legacy_bgp.peers import MAX_HOLD_TIME
from routerd.formats.meta import label_selector, read_meta
from routerd.model import IPFamily, Peer, Refusal
from routerd.refs import PEER, Ref

HOLD_TIME = 90  # seconds
_NOT_DONE = {
    "interface": "a session without addresses is not supported: name the router with peerAddress",
    "dynamicASN": "the AS number is not learnt from the router: give peerASN",
    "passwordSecret": "Secrets are not read: write the peer with its password in the BGP ConfigMap",
    "vrf": "sessions in a VRF are not supported",
}


def read_bgp_peer(value: Value) -> tuple[LegacyConfig | None, tuple[Refusal, ...]]:
    """Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    about = Ref(meta.kind, meta.namespace_or_default, meta.name)
    if refusals := tuple(_not_done(about, spec)):
        return None, refusals
    return LegacyConfig((_peer(meta.name, value, spec),)), tuple(_without_bfd(meta.name, spec))


def _not_done(about: Ref, spec: Section) -> Iterator[Refusal]:
    for key, why in _NOT_DONE.items():
        given = spec.get(key)
        if given is not None and not (given.is_scalar and not given.text) and not _is_empty(given):
            yield Refusal(about, "PeerNotSupported", str(given.error(f"{why}; the peer is not used")))


def _is_empty(given: Value) -> bool:
    """A reference to nothing, as an API server writes it."""
    return given.is_mapping and not given.section.string("name")


def _without_bfd(name: str, spec: Section) -> Iterator[Refusal]:
    profile = spec.get("bfdProfile")
    if profile is not None and profile.text:
        message = "BFDProfiles are not read: the session runs without BFD; write the peer with bfd in the BGP ConfigMap"
        yield Refusal(Ref(PEER, name=name), "BFDNotSupported", str(profile.error(message)))


def _peer(name: str, value: Value, spec: Section) -> Peer:
    address = spec.require("peerAddress").address()
    source, router_id = (found if found is not None and found.text else None for found in map(spec.get, _ADDRESSES))
    hold_time = _seconds(spec, "holdTime", HOLD_TIME)
    if 0 < hold_time < 3 or hold_time > MAX_HOLD_TIME:
        raise spec.require("holdTime").error(f"found {hold_time} s, expected 0 or 3 to {MAX_HOLD_TIME} s")
    keepalive = _seconds(spec, "keepaliveTime", -1)
    if keepalive > hold_time:
        raise spec.require("keepaliveTime").error(f"found {keepalive} s, expected at most the hold time, {hold_time} s")
    family: IPFamily = "IPv4" if address.version == 4 else "IPv6"
    return Peer(
        address=address,
        remote_as=spec.require("peerASN").integer(1, 2**32 - 1),
        local_as=spec.require("myASN").integer(1, 2**32 - 1),
        port=spec.integer("peerPort", 0, 65535, 179) or 179,
        source_address=source.address() if source is not None else None,
        router_id=router_id.ipv4() if router_id is not None else None,
        hold_time=hold_time,
        keepalive_time=keepalive if keepalive >= 0 else None,
        password=spec.string("password"),
        ebgp_multihop=spec.boolean("ebgpMultiHop", False),
        families=("IPv4", "IPv6") if spec.boolean("dualStackAddressFamily", False) else (family,),
        node_selectors=tuple(label_selector(item, strict=False) for item in spec.items("nodeSelectors")),
        name=name,
        origin=value.origin,
    )


_ADDRESSES = ("sourceAddress", "routerID")


def _seconds(spec: Section, key: str, default: int) -> int:
    """Of a duration as Go writes it, "1m30s"; parts of a second are left out."""
    given = spec.get(key)
    if given is None:
        return default
    try:
        return whole_seconds(parse_duration(given.string("a duration such as 90s")))
    except ValueError as error:
        raise given.error(str(error)) from error
