"""Pools, policies and BGP configurations as manifests of ours, from which a reader makes the same again. Pure.

What has its default is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import yaml

from ipam.ranges import networks_between
from routerd.formats.legacy_bgp import LegacyConfig
from routerd.formats.legacy_bgp.addresses import DEFAULT_GATEWAYS
from routerd.formats.legacy_bgp.peers import FAMILY_WORDS, without_place
from routerd.formats.meta import ROUTERD
from routerd.formats.native import PRIORITY
from routerd.model import (
    AddressPool,
    Advertisement,
    Bfd,
    EgressPolicy,
    ExportRule,
    IPNetwork,
    LabelSelector,
    Peer,
    PeerOverride,
    PodSelection,
    PortRange,
    ServiceSelection,
)

Json = dict[str, Any]
WIDTH = 110  # characters of a line
MOST_OF_RANGE = 256  # networks: two of each prefix length of IPv6


def manifest(found: AddressPool | EgressPolicy) -> Json:
    """An AddressPool or an EgressPolicy."""
    if isinstance(found, AddressPool):
        return _head("AddressPool", found.name) | {"spec": _pool(found)}
    return _head("EgressPolicy", found.name.replace("/", "."), found.created) | {"spec": _policy(found)}


def _head(kind: str, name: str, created: str = "") -> Json:
    return {"apiVersion": ROUTERD, "kind": kind, "metadata": _given(name=name, creationTimestamp=created)}


def config_map(namespace: str, name: str, key: str, config: LegacyConfig) -> Json:
    """The BGP configuration in our dialect, at the same place."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": {key: _Block(text_of(_bgp(config)))},
    }


class _Block(str):
    """Text that stands as it is in a manifest."""


class _Dumper(yaml.SafeDumper):
    """Nothing is said by an alias: two that are equal are written twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Dumper.add_representer(_Block, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|"))


def text_of(data: Json) -> str:
    """One document of YAML. Strings that YAML 1.1 reads as something else are quoted."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH))


def _given(**entries: object) -> Json:
    """Without what is empty."""
    return {key: value for key, value in entries.items() if value not in (None, "", [], ())}


def _texts(values: Iterable[object]) -> list[str]:
    return list(map(str, values))


def _selector(selector: LabelSelector | None, labels: str, expressions: str) -> Json | None:
    """A label that is asked for twice, with two values, matches nothing: a mapping cannot say so."""
    if selector is None:
        return None
    first: dict[str, str] = {}
    rules: list[Json] = []
    for key, value in selector.match_labels:
        if first.setdefault(key, value) != value:
            rules.append({"key": key, "operator": "In", "values": [value]})
    rules += [
        {"key": one.key, "operator": one.operator, **_given(values=list(one.values))}
        for one in selector.match_expressions
    ]
    return {**({labels: first} if first else {}), **({expressions: rules} if rules else {})}


def _own(selector: LabelSelector | None) -> Json | None:
    return _selector(selector, "matchLabels", "matchExpressions")


# --- AddressPool, EgressPolicy


def _pool(pool: AddressPool) -> Json:
    """What no advertisement takes is given and not announced, as with layer 2."""
    default = AddressPool("", ())
    protocol = pool.protocol if pool.advertisements else "layer2"
    return {
        "blocks": _blocks(pool.blocks),
        **_given(
            uses=sorted(pool.uses) if pool.uses != default.uses else None,
            protocol=protocol if protocol != default.protocol else None,
            autoAssign=None if pool.auto_assign else False,
            avoidBuggyIPs=pool.avoid_buggy_ips or None,
            priority=pool.priority or None,
            disabled=pool.disabled or None,
            advertisements=_ways(pool) if pool.advertisements else None,
            services=list(map(_services, pool.services or ())),
            gateways=None if pool.gateways is None else {"nodeSelector": _own(pool.gateways)},
            egressAnnotations=pool.egress_annotations or None,
        ),
    }


def _services(selection: ServiceSelection) -> Json:
    return _given(serviceSelector=_own(selection.services), namespaceSelector=_own(selection.namespaces))


def _blocks(networks: tuple[IPNetwork, ...]) -> list[str]:
    """Networks that are one range of addresses, as a range is read, are written as that."""
    found, rest = [], networks
    while rest:
        count = _range_length(rest[:MOST_OF_RANGE])
        first, last = rest[0], rest[count - 1]
        found.append(str(first) if count == 1 else f"{first.network_address}-{last.broadcast_address}")
        rest = rest[count:]
    return found


def _range_length(networks: tuple[IPNetwork, ...]) -> int:
    """How many networks, from the first, are just what the range from the first to the last address of them is."""
    joined = 1
    for one, following in pairwise(networks):
        if one.version != following.version or int(one.broadcast_address) + 1 != int(following.network_address):
            break
        joined += 1
    first = networks[0].network_address
    lengths = range(joined, 1, -1)
    ranges = (networks_between(first, networks[length - 1].broadcast_address) for length in lengths)
    return next((length for length, nets in zip(lengths, ranges, strict=True) if nets == networks[:length]), 1)


def _policy(policy: EgressPolicy) -> Json:
    several = _texts(policy.egress_ips) if policy.further_ips else None
    gateways = _given(mode=policy.gateway_mode, nodeSelector=_own(policy.gateways))
    return {
        **_given(
            service=_service_named(policy.service),
            selectors=None if policy.service else list(map(_pods, policy.selections)),
        ),
        "destinationCIDRs": _texts(policy.destinations),
        **_given(
            excludedCIDRs=_texts(policy.excluded),
            ports=list(map(_ports, policy.ports)),
            egressIP=None if several or policy.egress_ip is None else str(policy.egress_ip),
            egressIPs=several,
            pool=policy.pool,
            count=policy.count if policy.count > 1 else None,
            gateways=gateways or None,
            priority=max(policy.priority, -PRIORITY) or None,
            exit="local" if policy.exit_local else None,
        ),
    }


def _service_named(key: str) -> Json | None:
    namespace, _, name = key.partition("/")
    return {"name": name, "namespace": namespace} if key else None


def _pods(selection: PodSelection) -> Json:
    return _given(
        podSelector=_own(selection.pods),
        namespaceSelector=_own(selection.namespaces),
        nodeSelector=_own(selection.nodes),
    )


def _ports(ports: PortRange) -> Json:
    end = ports.last if ports.last > ports.first else None
    return _given(protocol=ports.protocol, port=ports.first or None, endPort=end)


# --- the BGP configuration


def _bgp(config: LegacyConfig) -> Json:
    passive = tuple(dict.fromkeys(peer.bfd for peer in config.peers if peer.bfd is not None and peer.bfd.passive))
    profiles = {bfd: f"passive-{number}" for number, bfd in enumerate(passive, 1)}
    peers = dict.fromkeys(map(without_place, config.peers))
    return {
        "apiVersion": ROUTERD,
        **_given(
            **{
                "bfd-profiles": [_profile(name, bfd) for bfd, name in profiles.items()],
                "peers": [_peer(peer, profiles) for peer in peers],
                "address-pools": [_bgp_pool(pool) for pool in config.pools if pool.blocks],
            }
        ),
    }


def _profile(name: str, bfd: Bfd) -> Json:
    """Only a profile can be passive; its intervals are in milliseconds."""
    return {
        "name": name,
        "transmit-interval": bfd.interval // 1000,
        "receive-interval": bfd.min_rx // 1000,
        "detect-multiplier": bfd.multiplier,
        "passive-mode": True,
    }


def _peer(peer: Peer, profiles: dict[Bfd, str]) -> Json:
    default = Peer(peer.address, peer.remote_as, peer.local_as)
    restart = peer.graceful_restart_time
    words = [word for word, family in FAMILY_WORDS.items() if family in peer.families]
    by_default = peer.found == "router" and peer.families == default.families
    is_shared = peer.bfd in profiles if peer.bfd is not None else False
    return _given(
        **{
            "name": peer.name,
            "peer-address": _peer_address(peer),
            "interface": peer.interface,
            "peer-asn": peer.remote_as,
            "my-asn": peer.local_as,
            "peer-port": peer.port if peer.port != default.port and not peer.passive else None,
            "passive": peer.passive or None,
            "listen-port": peer.listen_port or None,
            "source-address": str(peer.source_address or ""),
            "source-interface": peer.source_interface,
            "router-id": str(peer.router_id or ""),
            "hold-time": f"{peer.hold_time}s" if peer.hold_time != default.hold_time else None,
            "keepalive-time": f"{peer.keepalive_time}s" if peer.keepalive_time is not None else None,
            "connect-retry": f"{peer.connect_retry}s" if peer.connect_retry and not peer.passive else None,
            "password": peer.password,
            "password-file": peer.password_file,
            "ebgp-multihop": peer.ebgp_multihop or None,
            "ttl-security": peer.ttl_security or None,
            "max-prefixes": peer.max_prefixes or None,
            "extended-next-hop": peer.extended_next_hop if peer.extended_next_hop != by_default else None,
            "graceful-restart-time": f"{restart}s" if restart != default.graceful_restart_time else None,
            "families": words if peer.families != default.families else None,
            "bfd-profile": profiles[peer.bfd] if peer.bfd is not None and is_shared else None,
            "bfd": _bfd(peer.bfd) if peer.bfd is not None and not is_shared else None,
            "node-selectors": _selectors(peer.node_selectors),
            "node-overrides": list(map(_override, peer.overrides)),
            "export": list(map(_export_rule, peer.export)),
        }
    ) | ({"announce": list(peer.gets)} if peer.gets != default.gets else {})  # empty: for what names it alone


def _export_rule(rule: ExportRule) -> Json:
    default = ExportRule()
    return _given(
        **{
            "action": rule.action,
            "of": list(rule.of),
            "prefixes": _texts(rule.prefixes),
            "match": rule.match if rule.match != default.match else None,
            "min-length": rule.min_length or None,
            "max-length": rule.max_length if rule.max_length != default.max_length else None,
            "communities": list(rule.communities),
        }
    )


def _override(override: PeerOverride) -> Json:
    passwords = {"password": override.password, "password-file": override.password_file}  # "" = none
    return _given(
        **{
            "nodes": list(override.nodes),
            "node-selectors": _selectors(override.node_selectors),
            "peer-address": str(override.address or "").partition("%")[0],
            "my-asn": override.local_as,
            "router-id": str(override.router_id or ""),
            "source-address": str(override.source_address or ""),
            "listen-port": override.listen_port,
        }
    ) | {key: said for key, said in passwords.items() if said is not None}


def _peer_address(peer: Peer) -> str:
    if peer.found == "default-gateway":
        return next(word for word, address in DEFAULT_GATEWAYS.items() if address == peer.address)
    return "" if peer.found else str(peer.address).partition("%")[0]


def _bfd(bfd: Bfd) -> Json:
    return {"interval": f"{bfd.interval}us", "min-rx": f"{bfd.min_rx}us", "multiplier": bfd.multiplier}


def _selectors(selectors: Iterable[LabelSelector]) -> list[Json | None]:
    return [_selector(each, "match-labels", "match-expressions") for each in selectors]


def _bgp_pool(pool: AddressPool) -> Json:
    default = AddressPool("", ())
    return {
        "name": pool.name,
        "protocol": pool.protocol,
        "addresses": _blocks(pool.blocks),
        **_given(
            **{
                "auto-assign": None if pool.auto_assign else False,
                "avoid-buggy-ips": pool.avoid_buggy_ips or None,
                "uses": sorted(pool.uses) if pool.uses != default.uses else None,
                "priority": pool.priority or None,
                "disabled": pool.disabled or None,
                "egress-annotations": pool.egress_annotations or None,
                "bgp-advertisements": [_kebab(each) for each in _ways(pool)],
            }
        ),
    }


_KEBAB = {
    "aggregationLength": "aggregation-length",
    "aggregationLengthV6": "aggregation-length-v6",
    "localPref": "localpref",
    "asPathPrepend": "as-path-prepend",
    "nodeSelectors": "node-selectors",
    "serviceSelectors": "service-selectors",
    "matchLabels": "match-labels",
    "matchExpressions": "match-expressions",
}


def _kebab(way: Json) -> Json:
    """An advertisement of an AddressPool with the keys of a BGP document."""
    selectors: Json = {
        key: [{_KEBAB[inner]: what for inner, what in each.items()} for each in way[key]]
        for key in ("nodeSelectors", "serviceSelectors")
        if key in way
    }
    return {_KEBAB.get(key, key): value for key, value in {**way, **selectors}.items()}


def _ways(pool: AddressPool) -> list[Json]:
    """Its advertisements, each once; none where it is announced as a pool that says nothing of it."""
    default = AddressPool("", ())
    ways = dict.fromkeys(pool.advertisements) if pool.advertisements != default.advertisements else ()
    return list(map(_advertisement, ways))


def _advertisement(way: Advertisement) -> Json:
    default = Advertisement()
    v4, v6 = way.aggregation_length, way.aggregation_length_v6
    return _given(
        aggregationLength=v4 if v4 != default.aggregation_length else None,
        aggregationLengthV6=v6 if v6 != default.aggregation_length_v6 else None,
        localPref=way.local_pref or None,
        communities=list(way.communities),
        med=way.med,
        asPathPrepend=way.prepend or None,
        peers=list(way.peers),
        nodeSelectors=list(map(_own, way.node_selectors)),
        serviceSelectors=list(map(_own, way.services)),
        origin=way.origin if way.origin != default.origin else None,
    )
