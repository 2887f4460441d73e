"""MetalLB's BGPPeer (metallb.io/v1beta2), as a BGP configuration of one peer, and BFDProfile (v1beta1). Pure.

What we cannot do is refused by name, as a value: a session that could not come up is not tried. Graceful restart is
offered whatever `enableGracefulRestart` says, as daemons here are replaced while sessions stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv6Address

from routerd.formats.document import Section, Value
from routerd.formats.legacy_bgp import LegacyConfig
from routerd.formats.legacy_bgp.addresses import INTERFACE
from routerd.formats.legacy_bgp.bfd import PROFILE_INTERVAL
from routerd.formats.legacy_bgp.golang import parse_duration, whole_seconds
from routerd.formats.legacy_bgp.times import MAX_CONNECT_RETRY, MAX_HOLD_TIME
from routerd.formats.meta import label_selector, read_meta
from routerd.model import Bfd, BfdProfile, IPAddress, IPFamily, Peer, Refusal
from routerd.refs import Ref

HOLD_TIME = 90  # seconds
PORT = 179
_OF_CONNECTING = {
    "connectTime": "a passive peer connects itself: this is not used",
    "peerPort": "a passive peer connects itself, to our port 179: this is not used",
}
_NOT_DONE = {
    "dynamicASN": "the AS number is not learnt from the router: give peerASN",
    "passwordSecret": "this Secret is not read: write the peer in the BGP ConfigMap, with a password-file",
    "vrf": "sessions in a VRF are not supported",
}


def read_bgp_peer(value: Value) -> tuple[LegacyConfig | None, tuple[Refusal, ...]]:
    """Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    about = Ref(meta.kind, meta.namespace_or_default, meta.name)
    if refusals := tuple(_not_done(about, spec)):
        return None, refusals
    peer = _peer(meta.name, value, spec)
    unheeded = tuple(_unheeded(about, spec)) if peer.passive else ()
    if peer.passive:
        peer = replace(peer, port=PORT, connect_retry=0)
    if peer.bfd_profile and (peer.ebgp_multihop or peer.found or peer.address.is_link_local):
        over = "over several hops" if peer.ebgp_multihop else "with a link-local address"
        message = f"BFD {over} is not done: the session runs without BFD"
        refusal = Refusal(peer.ref, "BFDNotSupported", str(spec.require("bfdProfile").error(message)))
        return LegacyConfig((replace(peer, bfd_profile=""),)), (*unheeded, refusal)
    return LegacyConfig((peer,)), unheeded


def _unheeded(about: Ref, spec: Section) -> Iterator[Refusal]:
    """Of a peer that connects itself. `PORT` is what an API server fills in."""
    for key, why in _OF_CONNECTING.items():
        given = spec.get(key)
        if given is not None and not (key == "peerPort" and given.integer(0, 65535) in (0, PORT)):
            yield Refusal(about, "PeeringNotSupported", str(given.error(why)))


def with_bfd(peer: Peer, profiles: Mapping[str, BfdProfile]) -> Peer:
    """As the profile that it names says; without BFD while there is none of that name."""
    if not peer.bfd_profile:
        return peer
    profile = profiles.get(peer.bfd_profile)
    return replace(peer, bfd=profile.bfd if profile is not None else None, bfd_profile="")


def without_profile(peer: Peer, profiles: Mapping[str, BfdProfile]) -> Iterator[Refusal]:
    if peer.bfd_profile and peer.bfd_profile not in profiles:
        message = f"{peer.origin}: there is no BFDProfile {peer.bfd_profile}: the session runs without BFD"
        yield Refusal(peer.ref, "BFDNotSupported", message)


def read_bfd_profile(value: Value) -> tuple[BfdProfile, tuple[Refusal, ...]]:
    """Intervals are milliseconds. Raises InputError."""
    meta = read_meta(value)
    spec = value.section.section("spec") or Section.empty(value)
    bfd = Bfd(
        interval=spec.integer("transmitInterval", 10, 60000, PROFILE_INTERVAL) * 1000,
        min_rx=spec.integer("receiveInterval", 10, 60000, PROFILE_INTERVAL) * 1000,
        multiplier=spec.integer("detectMultiplier", 2, 255, 3),
        passive=spec.boolean("passiveMode", False),
    )
    profile = BfdProfile(meta.name, bfd, value.origin)
    if not spec.boolean("echoMode", False):
        return profile, ()
    about = Ref(meta.kind, meta.namespace_or_default, meta.name)
    message = str(spec.require("echoMode").error("it is not done, asynchronous mode alone sees the peer"))
    return profile, (Refusal(about, "BFDNotSupported", message),)


def _not_done(about: Ref, spec: Section) -> Iterator[Refusal]:
    if spec.boolean("passiveMode", False) and spec.string("interface"):
        why = "a router that is found on a link knows no address of the node"
        yield Refusal(about, "PeerNotSupported", str(spec.require("passiveMode").error(f"{why}; the peer is not used")))
    for key, why in _NOT_DONE.items():
        given = spec.get(key)
        if given is not None and not (given.is_scalar and not given.text) and not _is_empty(given):
            yield Refusal(about, "PeerNotSupported", str(given.error(f"{why}; the peer is not used")))


def _is_empty(given: Value) -> bool:
    """A reference to nothing, as an API server writes it."""
    return given.is_mapping and not given.section.string("name")


def _peer(name: str, value: Value, spec: Section) -> Peer:
    found, address, interface = _address(spec)
    source, router_id = (found if found is not None and found.text else None for found in map(spec.get, _ADDRESSES))
    hold_time = _seconds(spec, "holdTime", HOLD_TIME)
    if 0 < hold_time < 3 or hold_time > MAX_HOLD_TIME:
        raise spec.require("holdTime").error(f"found {hold_time} s, expected 0 or 3 to {MAX_HOLD_TIME} s")
    keepalive = _seconds(spec, "keepaliveTime", -1)
    if keepalive > hold_time:
        raise spec.require("keepaliveTime").error(f"found {keepalive} s, expected at most the hold time, {hold_time} s")
    retry = _seconds(spec, "connectTime", 0)
    if not ("connectTime" not in spec.entries or 1 <= retry <= MAX_CONNECT_RETRY):
        raise spec.require("connectTime").error(f"found {retry} s, expected 1 to {MAX_CONNECT_RETRY} s")
    remote_as, local_as = (spec.require(key).integer(1, 2**32 - 1) for key in ("peerASN", "myASN"))
    family: IPFamily = "IPv4" if address.version == 4 else "IPv6"
    has_both = found or spec.boolean("dualStackAddressFamily", False)
    return Peer(
        address=address,
        remote_as=remote_as,
        local_as=local_as,
        port=spec.integer("peerPort", 0, 65535, PORT) or PORT,
        passive=spec.boolean("passiveMode", False),
        source_address=source.address() if source is not None else None,
        router_id=router_id.ipv4() if router_id is not None else None,
        hold_time=hold_time,
        keepalive_time=keepalive if keepalive >= 0 else None,
        connect_retry=retry,
        password=spec.string("password"),
        ebgp_multihop=spec.boolean("ebgpMultiHop", False) and remote_as != local_as,
        bfd_profile=spec.string("bfdProfile"),
        families=("IPv4", "IPv6") if has_both else (family,),
        found="router" if found else "",
        interface=interface,
        extended_next_hop=found,
        node_selectors=tuple(label_selector(item, strict=False) for item in spec.items("nodeSelectors")),
        name=name,
        origin=value.origin,
    )


def _address(spec: Section) -> tuple[bool, IPAddress, str]:
    """Whether the router is found on an interface, its address or what stands for it, and that interface."""
    interface = spec.get("interface")
    if interface is None or not interface.text:
        return False, spec.require("peerAddress").address(), ""
    if not INTERFACE.fullmatch(interface.text):
        raise interface.error(f"{interface.text!r} is no name of an interface")
    if spec.string("peerAddress"):
        raise interface.error("expected either peerAddress or interface, found both")
    return True, IPv6Address(f"::%{interface.text}"), interface.text


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
