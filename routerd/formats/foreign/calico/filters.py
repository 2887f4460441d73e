"""Calico's BGPFilter: rules by which paths go to a peer. Pure.

What routers announce to nodes is learnt as `native-routing.learn` says: rules of imports are told. Of paths that nodes
begin, which alone go out, none was learnt from a peer, and none has an AS in its path before it leaves: a rule that
asks for one takes nothing, and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Literal, cast

from bgp.path import normal_communities
from routerd.formats.document import Section, Value
from routerd.formats.legacy_bgp.export import unreachable
from routerd.formats.meta import ENVELOPE, read_meta
from routerd.formats.native import read_community
from routerd.model import ExportAction, ExportRule, IPNetwork, PrefixMatch, Refusal
from routerd.refs import Ref

PeerType = Literal["", "eBGP", "iBGP"]  # "" = of both
EVERYTHING: Mapping[int, IPNetwork] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
LONGEST = 128  # of a prefix, where nothing is said
_MATCHES: Mapping[str, PrefixMatch] = {"In": "in", "NotIn": "not-in", "Equal": "equal", "NotEqual": "not-equal"}
_ACTIONS: Mapping[str, ExportAction] = {"Accept": "accept", "Reject": "reject"}
_SPEC = ("exportV4", "exportV6", "importV4", "importV6")
_RULE = (
    "action", "asPathPrefix", "cidr", "communities", "interface", "matchOperator", "operations", "peerType",
    "prefixLength", "priority", "source",
)  # fmt: skip
_ADD, _OPERATIONS_NOT_DONE = "addCommunity", ("prependASPath", "setPriority")


@dataclass(frozen=True, slots=True)
class Filter:
    """Rules in their order, each with the sessions that it is for."""

    name: str
    rules: tuple[tuple[PeerType, ExportRule], ...]


def rules_for(one: Filter, kind: PeerType) -> Iterator[ExportRule]:
    return (rule for of, rule in one.rules if of in ("", kind))


def read_filter(value: Value) -> tuple[Filter | None, tuple[Refusal, ...]]:
    """None where a rule cannot be carried: without it the others would let out too much. Raises InputError."""
    value.section.only(*ENVELOPE)
    meta, spec = read_meta(value), (value.section.section("spec") or Section.empty(value)).only(*_SPEC)
    ref = Ref(meta.kind, name=meta.name)
    rules: list[tuple[PeerType, ExportRule]] = []
    for version in (4, 6):
        for item in spec.items(f"exportV{version}"):
            if fault := _not_done(_known(item)):
                message = str(fault[0].error(f"{fault[1]}; the filter is not used, nor is a peer that names it"))
                return None, (Refusal(ref, "AdvertisementNotSupported", message),)
            rule = _rule(item.section, version)
            if not _is_of_others(item.section):
                rules.append(rule)
    imports = [place for version in (4, 6) if (place := spec.get(f"importV{version}")) is not None and place.items()]
    told = (
        place.error("name the networks that are learnt in native-routing.learn; it is left out") for place in imports
    )
    return Filter(meta.name, tuple(rules)), tuple(Refusal(ref, "AdvertisementNotSupported", str(each)) for each in told)


def _known(item: Value) -> Section:
    """A rule. A key that nobody knows may be the misspelling of one by which it would take less. Raises InputError."""
    rule = item.section.only(*_RULE)
    for each in rule.items("operations"):
        each.section.only(_ADD, *_OPERATIONS_NOT_DONE)
    return rule


def _is_of_others(item: Section) -> bool:
    """About paths that were learnt, or that are of a device."""
    source = item.get("source")
    is_learnt = source is not None and source.choice("RemotePeers", "") != ""
    return bool(is_learnt or item.string("interface") or item.items("asPathPrefix"))


def _not_done(item: Section) -> tuple[Value, str] | None:
    for key in ("communities", "priority"):
        if (place := item.get(key)) is not None:
            return place, f"paths are not told apart by {key}"
    for each in item.items("operations"):
        for key in _OPERATIONS_NOT_DONE:
            if (place := each.section.get(key)) is not None:
                return place, f"{key} is not done: see as-path-prepend and localpref of advertisements"
    return None


def _rule(item: Section, version: int) -> tuple[PeerType, ExportRule]:
    """Without a CIDR it takes every path of its family."""
    kind = cast(PeerType, place.choice("eBGP", "iBGP") if (place := item.get("peerType")) is not None else "")
    action = _ACTIONS[item.require("action").choice(*_ACTIONS)]
    added = [each.section.require(_ADD).section.only("value") for each in item.items("operations")]
    communities = normal_communities(read_community(each.require("value")) for each in added)
    rule = ExportRule(action, (EVERYTHING[version],), communities=communities if action == "accept" else ())
    cidr = item.get("cidr")
    if cidr is None:
        for key in ("matchOperator", "prefixLength"):
            if (place := item.get(key)) is not None:
                raise place.error(f"{key} goes with a cidr, and the rule has none")
        return kind, rule
    network = cidr.network(host_bits=True)
    if network.version != version:
        raise cidr.error(f"found {network}, expected an IPv{version} CIDR")
    match = _MATCHES[item.require("matchOperator").choice(*_MATCHES)]
    low, high = _lengths(item, match, network.max_prefixlen)
    whole = replace(rule, prefixes=(network,), match=match, min_length=low, max_length=high)
    if fault := unreachable(whole):
        raise item.require("prefixLength").section.require(fault[0]).error(fault[1])
    return kind, whole


def _lengths(item: Section, match: PrefixMatch, most: int) -> tuple[int, int]:
    lengths = item.section("prefixLength")
    if lengths is not None:
        lengths.only("min", "max")
    if lengths is None or match in ("equal", "not-equal"):
        return 0, LONGEST
    low, high = lengths.integer("min", 0, most, 0), lengths.integer("max", 0, most, LONGEST)
    if low > high:
        raise lengths.value.error(f"min {low} is more than max {high}")
    return low, high
