"""The guard: nft table `routerd`, as a value, as text for nft, and read back from nft's JSON. Pure.

It stands behind the eBPF programs. A packet of a selected pod that would be *forwarded* to a destination that its
policies cover has slipped past the hook (a Service that is translated to an address outside, a device without a
program); a packet of an undecided pod may do so, as its policies are not programmed yet. Both are dropped and counted.
Replies pass.

It also keeps pods from forging tunnel packets, and connection tracking away from the tunnel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import Any

from egress.entries import NEVER_LEAVES, NEVER_LEAVES6, Facts
from egress.policy import Desired, Policy, Ports

Network = IPv4Network | IPv6Network

TABLE = "routerd"
FAMILY = "inet"
COUNTERS = ("forged", "selected", "undecided")
HOOKS = {  # chain -> type, hook, priority and policy; -300 is raw, -10 just before the filters of others
    "prerouting": ("filter", "prerouting", -300, "accept"),
    "output": ("filter", "output", -300, "accept"),
    "forward": ("filter", "forward", -10, "accept"),
}
SET_TYPES = {
    "cluster": "type ipv4_addr; flags interval;",
    "covered": "type ipv4_addr; flags interval;",
    "nodes": "type ipv4_addr;",
    "cluster6": "type ipv6_addr; flags interval;",
    "covered6": "type ipv6_addr; flags interval;",
    "decided6": "type ipv6_addr;",
    "pod_sources6": "type ipv6_addr; flags interval;",
    "pod_devices": "type ifname;",
    "pod_sources": "type ipv4_addr; flags interval;",
    "decided": "type ifname . ipv4_addr;",
}
MAP_TYPES = {"selected": "type ifname . ipv4_addr : verdict;", "selected6": "type ipv6_addr : verdict;"}


def key_type(declaration: str) -> str:
    """The type of the keys in a set's declaration: "type ifname . ipv4_addr : verdict;" -> "ifname . ipv4_addr"."""
    return declaration.partition(";")[0].partition(" : ")[0].removeprefix("type ")


# What does not depend on the cluster: where the chains are hooked in, what the sets hold, and the table's own flags.
FRAME: Mapping[str, object] = {
    **{f"chain {name}": hook for name, hook in HOOKS.items()},
    **{f"set {name}": key_type(kind) for name, kind in {**SET_TYPES, **MAP_TYPES}.items()},
}


@dataclass(frozen=True, slots=True)
class Guard:
    """The table: elements of its sets and its map, and the rules of its chains, in order.

    `frame` is the rest of it; one that differs is mended by making the table anew.
    """

    sets: Mapping[str, frozenset[str]] = field(default_factory=dict)
    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # rules; when observed, their digests only
    frame: Mapping[str, object] = field(default_factory=lambda: FRAME)

    def digests(self) -> Guard:
        """The same with each rule replaced by its digest, as it can be observed."""
        chains = {name: tuple(digest(rule) for rule in rules) for name, rules in self.chains.items()}
        return replace(self, chains=chains)


KEPT = "="  # in front of a digest: a rule that is there and stays, whose text is not known any more


def digest(rule: str) -> str:
    if rule.startswith(KEPT):
        return rule.removeprefix(KEPT)
    return hashlib.sha256(rule.encode()).hexdigest()[:16]


def _networks(networks: Iterable[Network]) -> frozenset[str]:
    """Of one family, merged, as an interval set may not overlap; a host without its length, as nft prints it."""
    merged: Iterable[Network] = collapse_addresses(networks)  # type: ignore[type-var]
    return frozenset(str(n.network_address) if n.prefixlen == n.max_prefixlen else str(n) for n in merged)


def _port_match(ports: Ports, family: str) -> str:
    if ports.protocol == "ICMP":
        return "meta l4proto icmp" if family == "ip" else "meta l4proto icmpv6"
    if not ports.first:
        return f"meta l4proto {ports.protocol.lower()}"
    return f"{ports.protocol.lower()} dport {ports.first}-{ports.last}"


def _policy_rules(policy: Policy) -> tuple[str, ...]:
    """Drops for what the policy covers; exclusions of one policy do not speak for another, so they are part of the
    match. A policy without destinations covers nothing.
    """
    return _drops("ip", policy, policy.destinations, policy.excluded)


def _policy_rules6(policy: Policy) -> tuple[str, ...]:
    """The same for IPv6, which is not translated: all that is covered is dropped here."""
    return _drops("ip6", policy, policy.destinations6, policy.excluded6)


def _drops(family: str, policy: Policy, covered: Iterable[Network], spared: Iterable[Network]) -> tuple[str, ...]:
    destinations, excluded = (", ".join(sorted(_networks(networks))) for networks in (covered, spared))
    if not destinations:
        return ()
    where = f"{family} daddr {{ {destinations} }}" + (f" {family} daddr != {{ {excluded} }}" if excluded else "")
    matches = [_port_match(ports, family) for ports in policy.ports] or [""]
    return tuple(" ".join(f"{where} {match} counter name selected drop".split()) for match in matches)


Rules = tuple[str, ...]


def rules_of(names: tuple[str, ...], policies: Mapping[str, Policy], rules: Callable[[Policy], Rules]) -> Rules:
    return tuple(rule for name in names if name in policies for rule in rules(policies[name]))


def chain_name(rules: Rules) -> str:
    """A name that stands for the chain's content, so that a pod moves between chains and chains never change."""
    return f"set-{digest(chr(10).join(rules))}"


def _forward_rules() -> tuple[str, ...]:
    return (
        "ct direction reply return",
        "ip6 daddr @cluster6 return",
        "ip6 saddr vmap @selected6",
        "ip6 saddr @pod_sources6 ip6 daddr @covered6 ip6 saddr != @decided6 counter name undecided drop",
        "ip daddr @cluster return",
        "iifname . ip saddr vmap @selected",
        "ip saddr @pod_sources ip daddr @covered iifname . ip saddr != @decided counter name undecided drop",
    )


def _tunnel_rules(port: int) -> tuple[str, ...]:
    return (
        f"udp dport {port} iifname @pod_devices counter name forged drop",
        f"udp dport {port} ip daddr @nodes ip saddr != @nodes counter name forged drop",
        f"udp dport {port} notrack",
    )


def render(desired: Desired, facts: Facts) -> Guard:
    """The guard for a node. A pod is decided once its device is known, as its map entries are written before the
    guard.
    """
    attached = {address: facts.devices[address] for address in desired.pods if address in facts.devices}
    names = {address: f"{device.forward_name} . {address}" for address, device in attached.items()}
    chains = {
        "prerouting": _tunnel_rules(desired.tunnel_port),
        "output": (f"udp dport {desired.tunnel_port} notrack",),
        "forward": _forward_rules(),
    }
    selected, selected6 = set(), set()
    for address, policies in desired.pods.items():
        if address in attached and policies:
            rules = rules_of(policies, desired.policies, _policy_rules)
            chains[chain_name(rules)] = rules
            selected.add(f"{names[address]} : jump {chain_name(rules)}")
    for address6, policies in desired.pods6.items():
        rules = rules_of(policies, desired.policies, _policy_rules6)
        if rules:
            chains[chain_name(rules)] = rules
            selected6.add(f"{address6} : jump {chain_name(rules)}")
    covered = (network for policy in desired.policies.values() for network in policy.destinations)
    covered6 = (network for policy in desired.policies.values() for network in policy.destinations6)
    hosts = (IPv4Network(address) for address in desired.pods)  # also those outside the node's pod CIDRs
    return Guard(
        sets={
            "cluster": _networks((*NEVER_LEAVES, *desired.cluster)),
            "cluster6": _networks((*NEVER_LEAVES6, *desired.cluster6)),
            "covered": _networks(covered),
            "covered6": _networks(covered6),
            "decided6": frozenset(map(str, desired.pods6)),
            "pod_sources6": _networks(desired.pod_cidrs6),
            "nodes": frozenset(str(address) for address in desired.nodes),
            "pod_devices": frozenset(d.forward_name for d in attached.values()) - {facts.underlay},
            "pod_sources": _networks((*desired.pod_cidrs, *hosts)),
            "decided": frozenset(names.values()),
            "selected": frozenset(selected),
            "selected6": frozenset(selected6),
        },
        chains=chains,
    )


def early(wanted: Guard, present: Guard | None) -> Guard:
    """What of `wanted` is loaded before the maps change: everything but pods that are decided or selected from now on.

    A pod that loses its policies must lose them here first, or its packets would be dropped between the two; a pod that
    gets some must have its map entries first, or the guard would let through what no program takes. The same holds
    for one that gets more policies: it keeps its chain until then.
    """
    if present is None or present.frame != wanted.frame:  # made anew: nothing of it is there to keep
        return replace(wanted, sets={**wanted.sets, "decided": frozenset(), "selected": frozenset()})
    before = dict(_jump(element) for element in present.sets.get("selected", ()))
    selected, chains = set(), dict(wanted.chains)
    for element in wanted.sets["selected"]:
        pod, chain = _jump(element)
        if pod not in before:
            continue
        old = present.chains.get(before[pod], ())
        if before[pod] != chain and set(old) < set(wanted.digests().chains[chain]):
            chains[before[pod]] = tuple(KEPT + rule for rule in old)
            chain = before[pod]
        selected.add(f"{pod} : jump {chain}")
    decided = wanted.sets["decided"] & present.sets.get("decided", frozenset())
    sets = {**wanted.sets, "decided": decided, "selected": frozenset(selected)}
    return replace(wanted, sets=sets, chains=chains)


def _jump(element: str) -> tuple[str, str]:
    """Key and chain of an element of the map: "veth3 . 10.1.0.5 : jump set-1"."""
    key, _, chain = element.partition(" : jump ")
    return key, chain


def _quoted(name: str, element: str) -> str:
    """The element with its device's name as a string: nft would read some names as keywords or numbers."""
    if not key_type({**SET_TYPES, **MAP_TYPES}[name]).startswith("ifname"):
        return element
    device, separator, rest = element.partition(" . ")
    return f'"{device}"{separator}{rest}'


def transaction(wanted: Guard, present: Guard | None) -> str:
    """One atomic nft transaction that makes the table `wanted`.

    Counters keep their values, unless the table's frame is not ours: then it is made anew, in the same transaction.
    """
    table = f"{FAMILY} {TABLE}"
    lines = [f"add table {table}"]
    if present is not None and present.frame != wanted.frame:
        lines += [f"delete table {table}", f"add table {table}"]
        present = None
    lines += [*(f"add counter {table} {name}" for name in COUNTERS)]
    lines += [f"add set {table} {name} {{ {kind} }}" for name, kind in SET_TYPES.items()]
    lines += [f"add map {table} {name} {{ {kind} }}" for name, kind in MAP_TYPES.items()]
    there = present.chains if present else {}
    changed = {name: rules for name, rules in wanted.chains.items() if there.get(name) != tuple(map(digest, rules))}
    for name in changed:
        hook = f" {{ {_hook_text(name)} }}" if name in HOOKS else ""
        lines += [f"add chain {table} {name}{hook}", f"flush chain {table} {name}"]
    for name in sorted(wanted.sets):
        kind = "map" if name in MAP_TYPES else "set"
        lines.append(f"flush {kind} {table} {name}")
        if wanted.sets[name]:
            elements = ", ".join(_quoted(name, element) for element in sorted(wanted.sets[name]))
            lines.append(f"add element {table} {name} {{ {elements} }}")
    for name, rules in changed.items():
        lines += [f'add rule {table} {name} {rule} comment "{digest(rule)}"' for rule in rules]
    stale = sorted(set(there) - set(wanted.chains))
    lines += [f"flush chain {table} {name}" for name in stale]  # all first: they may refer to each other
    lines += [f"delete chain {table} {name}" for name in stale]
    return "\n".join(lines) + "\n"


def _hook_text(chain: str) -> str:
    kind, hook, priority, policy = HOOKS[chain]
    return f"type {kind} hook {hook} priority {priority}; policy {policy};"


# --- read back


def _element_text(element: Any) -> str:
    """One element of nft's JSON, in the form that `render` uses."""
    match element:
        case {"elem": {"val": value}}:
            return _element_text(value)
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case {"concat": parts}:
            return " . ".join(_element_text(part) for part in parts)
        case [key, {"jump": {"target": target}}]:
            return f"{_element_text(key)} : jump {target}"
        case {"range": [first, last]}:
            return f"{first}-{last}"
        case _:
            return str(element)


def parse(document: Mapping[str, Any]) -> Guard | None:
    """The table as `nft -j list table inet routerd` printed it; None if it is not there."""
    sets: dict[str, frozenset[str]] = {}
    chains: dict[str, tuple[str, ...]] = {}
    frame: dict[str, object] = {}
    found = False
    for item in document.get("nftables", []):
        found |= "table" in item
        frame |= _frame_of(item)
        body = item.get("set") or item.get("map")
        if body:
            sets[body["name"]] = frozenset(_element_text(element) for element in body.get("elem", []))
        if "chain" in item:
            chains.setdefault(item["chain"]["name"], ())
        if "rule" in item:
            rule = item["rule"]
            chains[rule["chain"]] = (*chains.get(rule["chain"], ()), rule.get("comment", ""))
    return Guard(sets, chains, frame) if found else None


def _frame_of(item: Mapping[str, Any]) -> dict[str, object]:
    """What one item of nft's JSON says of the table's frame."""
    match item:
        case {"table": {"flags": flags}}:
            return {"table": flags}  # dormant: nothing of it is in effect
        case {"chain": {"name": name, "type": kind, "hook": hook, "prio": priority, "policy": policy}}:
            return {f"chain {name}": (kind, hook, priority, policy)}
        case {"set": {"name": name, "type": kind}} | {"map": {"name": name, "type": kind}}:
            return {f"set {name}": kind if isinstance(kind, str) else " . ".join(kind)}
    return {}


def parse_counters(document: Mapping[str, Any]) -> dict[str, int]:
    """Packets that the guard dropped, by its counters' names."""
    rows = (item["counter"] for item in document.get("nftables", []) if "counter" in item)
    return {row["name"]: int(row["packets"]) for row in rows}
