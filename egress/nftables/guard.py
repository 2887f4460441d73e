"""The guard: nft table `routerd`, as a value (`egress.nftables.nft` is its text). Pure.

It stands behind the eBPF programs. A packet of a selected pod that would be *forwarded* to a destination that its
policies cover has slipped past the hook (a Service that is translated to an address outside, a device without a
program); a packet of an undecided pod may do so, as its policies are not programmed yet; one to a Service that leads
there would do so on the node that translates it. All are dropped and counted. Replies pass. A source route would lead
past the destination that is seen here, so a pod's packet has none. What comes by a device that is not known for one of
the host's is a pod's: so it holds also for a device that appears while nobody is there to look.

No pod sends with a node's address, an egress IP, or one of a pool that is not its own, to whomever. Everybody but
nodes is kept from the tunnel's port, also by a Service that is translated to it, and connection tracking away from the
tunnel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from ipaddress import ip_network

from bpf import layout
from egress.entries import OF_THE_LINK, Facts, is_sayable
from egress.host.enforcement import FirstPackets, first_packets
from egress.host.links import PodDevice
from egress.kept import Kept, merged
from egress.nftables import detours
from egress.nftables.frame import DECIDED, FAMILIES, FRAME, HOOKED, LEAVING, SELECTED, Family
from egress.policy import Desired, Detour, IPAddress, IPNetwork, Policy, Ports, Served


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


@lru_cache(maxsize=1024)  # most rules stay, and those of policies with thousands of networks are long
def digest(rule: str) -> str:
    if rule.startswith(KEPT):
        return rule.removeprefix(KEPT)
    return hashlib.sha256(rule.encode()).hexdigest()[:16]


def _port_match(ports: Ports, family: Family) -> str:
    if ports.protocol == "ICMP":
        return f"meta l4proto {family.icmp}"
    if not ports.first:
        return f"meta l4proto {ports.protocol.lower()}"
    return f"{ports.protocol.lower()} dport {ports.first}-{ports.last}"


Rules = tuple[str, ...]


def _policy_rules(policy: Policy, family: Family) -> Rules:
    """Drops for what the policy covers; exclusions of one policy do not speak for another, so they are part of the
    match. A policy without destinations covers nothing.
    """
    both = (policy.destinations, policy.excluded)
    destinations, excluded = (", ".join(sorted(merged(networks, family.version))) for networks in both)
    if not destinations:
        return ()
    daddr = f"{family.header} daddr"
    where = f"{daddr} {{ {destinations} }}" + (f" {daddr} != {{ {excluded} }}" if excluded else "")
    matches = [_port_match(ports, family) for ports in policy.ports] or [""]
    return tuple(" ".join(f"{where} {match} counter name selected drop".split()) for match in matches)


def _selected(desired: Desired, family: Family, kept: Kept, names: tuple[str, ...]) -> tuple[str, Rules]:
    """The chain of pods with these policies: drops for what they cover."""
    policies = _named(desired, names)
    return kept.chains(("selected", family.version, names), partial(_selected_chain, family), *policies)


def _selected_chain(family: Family, *policies: Policy) -> tuple[str, Rules]:
    return _chain(tuple(rule for policy in policies for rule in _policy_rules(policy, family)))


def _detoured(desired: Desired, family: Family, kept: Kept, names: tuple[str, ...]) -> tuple[str, Rules]:
    """The same for what a Service, translated by another node, leads to where one of these policies does."""
    policies = _named(desired, names)
    return kept.chains(("detoured", family.version, names), partial(_detour_chain, family), desired.detours, *policies)


def _detour_chain(family: Family, known: frozenset[Detour], *policies: Policy) -> tuple[str, Rules]:
    found = detours.matches(known, policies, family)
    return _chain(tuple(f"{match} counter name detour drop" for match in found))


def _chain_keys(names: tuple[str, ...]) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    return ((kind, family.version, names) for kind in ("selected", "detoured") for family in FAMILIES)


def _named(desired: Desired, names: Iterable[str]) -> list[Policy]:
    return [desired.policies[name] for name in names if name in desired.policies]


def _chain(rules: Rules) -> tuple[str, Rules]:
    return chain_name(rules), rules


def chain_name(rules: Rules) -> str:
    """A name that stands for the chain's content, so that a pod moves between chains and chains never change."""
    return f"set-{digest(chr(10).join(rules))}"


def _forward_rules(desired: Desired, family: Family) -> Rules:
    source, destination, s = f"{family.header} saddr", f"{family.header} daddr", family.suffix
    unknown = f"iifname . {source} != @decided{s}"
    suspects = (f"{source} @pod_sources{s}", "iifname != @host_devices")
    led_out = [*detours.matches(desired.detours, desired.policies.values(), family)]
    return (
        f"iifname @pod_devices {_played(family)} {unknown} counter name foreign_source drop",
        *([f"iifname . {source} vmap @detoured{s}"] if led_out else ()),
        *(f"{who} {match} {unknown} counter name undecided drop" for match in led_out for who in suspects),
        f"{destination} @cluster{s} return",
        f"iifname . {source} vmap @selected{s}",
        *(f"{who} {destination} @covered{s} {unknown} counter name undecided drop" for who in suspects),
    )


def _source_rules(family: Family) -> Rules:
    """What a pod may not send with, wherever to, and whom it may not play to the cluster."""
    s, source = family.suffix, f"{family.header} saddr"
    return (
        f"{source} @no_pods{s} counter name spoofed drop",
        f"iifname . {source} @decided{s} return",
        f"{source} @pools{s} counter name spoofed drop",
        f"{_played(family)} counter name foreign_source drop",
    )


def _played(family: Family) -> str:
    """One outside, to the cluster: answers of a selected pod to who asked by such a packet would leave untranslated.

    It is looked for again where Services are translated, as some of their addresses are not in the cluster. Who looks
    for an address of its own has none yet, and asks the link.
    """
    s, source, destination = family.suffix, f"{family.header} saddr", f"{family.header} daddr"
    link = ", ".join(sorted(merged(OF_THE_LINK, family.version)))
    return f"{source} != @cluster{s} {source} @covered{s} {destination} @cluster{s} {destination} != {{ {link} }}"


# Other nodes take what this one sends without the tunnel for its own by the source of the frame alone. A trial that
# comes back by the link, while no program is there to take it, is from an egress IP to itself, and is not to go on.
BORROWED = tuple(
    f"{f.header} saddr @egress_ips{f.suffix} {of} counter name forged drop"
    for f in FAMILIES
    for of in ("iifname != @host_devices", f"{f.header} daddr @egress_ips{f.suffix}")
)

# What a node that takes source routes forwards elsewhere than to the destination that the packet bears in this hook.
# A routing header is of any type. One without segments left counts as well: a node that takes segments takes out what
# is inside such a packet and sends it on (RFC 8754, section 4.3.1.2), and another such header may follow.
SOURCE_ROUTED = tuple(
    f"{route} iifname != @host_devices counter name source_routed drop"
    for route in ("ip option lsrr exists", "ip option ssrr exists", "exthdr rt exists")
)


def _tunnel_rules(port: int, own: IPAddress | None, underlay: str) -> dict[str, Rules]:
    """Nodes' own tunnel packets alone reach a node's tunnel port.

    They are told apart before anything can translate them, and they alone are never tracked. So what is tracked behind
    that is somebody else's, or was translated to the port. What has a socket of this host comes from a process, not
    from the tunnel. `own`: the node's end of its tunnels; `underlay`: the device that has it.
    """
    tunnel, tracked, drop = f"udp dport {port}", "ct state != untracked", "counter name forged drop"
    ends = [(f"{f.header} saddr @nodes{f.suffix}", f"{f.header} daddr @nodes{f.suffix}") for f in FAMILIES]
    return {
        "prerouting": (*(f"{tunnel} {usual}" for usual in _usual(own, underlay)), f"{tunnel} goto came"),
        "came": (
            f"iifname @pod_devices {drop}",
            "iifname != @host_devices goto foreign",
            *(f"{from_node} {to_node} notrack accept" for from_node, to_node in ends),
            "goto foreign",
        ),
        "output": (f"{tunnel} meta skuid 0-4294967295 goto foreign", f"{tunnel} notrack"),
        "forward": (f"{tunnel} {tracked} jump foreign",),
        "input": (f"{tunnel} {tracked} {drop}",),
        "sent": (f"{tunnel} {tracked} goto foreign",),
        "foreign": tuple(f"{to_node} {drop}" for _, to_node in ends),
    }


def _usual(own: IPAddress | None, underlay: str) -> Rules:
    """How nearly all tunnel packets come. The chain "came" would say the same of them and ask four times as much: the
    underlay is one of the host's devices, and no pod's.
    """
    return tuple(
        f'iifname "{underlay}" {f.header} daddr {own} {f.header} saddr @nodes{f.suffix} notrack accept'
        for f in FAMILIES
        if own and own.version == f.version and underlay and is_sayable(underlay)
    )


def _leaving_rules(desired: Desired) -> Rules:
    """The host's own connections, and those that its NAT translates, bear no port of its address that nodes have: their
    answers would go to these. Nothing keeps NAT from choosing one. Its connection is not recorded before its first
    packet has left, so the next try gets another port where NAT draws them.
    """
    found = []
    for address, served in sorted(desired.served.items(), key=lambda item: (item[0].version, item[0])):
        ports = _ports_of_nodes(served) if served.node_address else ""
        if ports:
            from_it = f"{FAMILIES[address.version == 6].header} saddr {address} meta l4proto {{ tcp, udp, sctp }}"
            found.append(f"{from_it} th sport {{ {ports} }} ct state new counter name taken_port drop")
    return tuple(found)


def _ports_of_nodes(served: Served) -> str:
    """Ranges of ports that some node has."""
    given = {granule for granule, node in enumerate(served.numbers) if node}
    firsts, lasts = (sorted(each for each in given if each + step not in given) for step in (-1, 1))
    size = layout.GRANULE
    return ", ".join(f"{first * size}-{last * size + size - 1}" for first, last in zip(firsts, lasts, strict=True))


HANDED_IN, OF_PODS = "handed_in", "of_pods"


def _handed_rules(first: FirstPackets) -> dict[str, Rules]:
    """First packets of flows that `from_pod` handed to the host's forward hook: no NAT sees them, and they leave where
    `to_uplink` takes them up, or not at all.
    """
    if first.way != "forward":
        return {}
    marked = f"meta mark and {first.mark:#x} == {first.mark:#x}"
    return {
        "prerouting": (f"{marked} notrack",),
        "forward": (f"{marked} goto {HANDED_IN}",),
        HANDED_IN: (f"oif @{HOOKED} accept", "counter name astray drop"),
    }


def render(desired: Desired, facts: Facts, kept: Kept | None = None) -> Guard:
    """The guard for a node. A pod is decided once its device is known, as its map entries are written before the
    guard. A device whose name cannot be said in nft stays unknown to it, and so a suspect.
    `kept`: of the last plan; it is renewed.
    """
    facts, kept = _sayable(facts), kept or Kept()
    inside = kept.inside.update(desired.cluster | OF_THE_LINK)
    attached = {address: facts.devices[address] for address in desired.pods if address in facts.devices}
    chains = _tunnel_rules(desired.tunnel_port, desired.node_address, facts.underlay)
    leaving = (rule for family in FAMILIES for rule in _forward_rules(desired, family))
    handed = _handed_rules(first_packets(desired, facts.surroundings))
    chains["prerouting"] += (f"iifname @pod_devices jump {OF_PODS}", *handed.get("prerouting", ()))
    chains[OF_PODS] = tuple(rule for family in FAMILIES for rule in _source_rules(family))
    chains |= {name: rules for name, rules in handed.items() if name == HANDED_IN}
    taken = _leaving_rules(desired)
    chains |= {LEAVING: taken} if taken else {}
    chains["forward"] += (*SOURCE_ROUTED, *BORROWED, *handed.get("forward", ()), "ct direction reply return", *leaving)
    firsts = frozenset(device.forward_name for device in attached.values())
    sets = {
        "pod_devices": firsts - {facts.underlay} | facts.second_devices - facts.host_devices,
        "host_devices": facts.host_devices,
        HOOKED: frozenset(filter(is_sayable, facts.uplinks)) if handed else frozenset(),
    }
    for family in FAMILIES:
        pods = {address: device for address, device in attached.items() if address.version == family.version}
        sets |= {**_family_sets(desired, pods, family), f"cluster{family.suffix}": inside[family.version]}
        sets[f"covered{family.suffix}"] = kept.covered(
            family.version, partial(_covered, family), *(policy.destinations for policy in desired.policies.values())
        )
        of_pods = {_key(address, device): desired.pods[address] for address, device in pods.items()}
        for name, rules_of in (("selected", _selected), ("detoured", _detoured)):
            sets[f"{name}{family.suffix}"], further = _jumps(of_pods, partial(rules_of, desired, family, kept))
            chains |= further
    kept.chains.drop_but({key for names in set(desired.pods.values()) for key in _chain_keys(names)})
    return Guard(sets, chains)


def _jumps(
    pods: Mapping[str, tuple[str, ...]], chain_of: Callable[[tuple[str, ...]], tuple[str, Rules]]
) -> tuple[frozenset[str], Mapping[str, Rules]]:
    """Elements of a map, and the chains to which they lead. Many pods have the same policies."""
    found = {policies: chain_of(policies) for policies in set(pods.values())}
    elements = (f"{key} : jump {found[policies][0]}" for key, policies in pods.items() if found[policies][1])
    return frozenset(elements), {name: rules for name, rules in found.values() if rules}


def _sayable(facts: Facts) -> Facts:
    devices = {a: device for a, device in facts.devices.items() if is_sayable(device.forward_name)}
    hosts, seconds = (frozenset(filter(is_sayable, names)) for names in (facts.host_devices, facts.second_devices))
    return replace(facts, devices=devices, host_devices=hosts, second_devices=seconds)


def _key(address: IPAddress, device: PodDevice) -> str:
    return f"{device.forward_name} . {address}"


def _family_sets(desired: Desired, pods: Mapping[IPAddress, PodDevice], family: Family) -> dict[str, frozenset[str]]:
    """What is asked of one family; `pods` are those of the family."""
    hosts = (ip_network(address) for address in desired.pods)  # also those outside the node's pod CIDRs
    egress_ips = {address for group in desired.groups.values() for address in group.egress_ips}
    of_nodes = {*desired.node_addresses, *desired.nodes.values(), *desired.icmp_sources}
    no_pods = {*egress_ips, *desired.served, *of_nodes} - desired.pods.keys()
    at_nodes = desired.node_addresses if any(not each.addresses for each in desired.detours) else ()
    return {
        f"nodes{family.suffix}": frozenset(str(a) for a in desired.nodes.values() if a.version == family.version),
        f"pod_sources{family.suffix}": merged((*desired.pod_cidrs, *hosts), family.version),
        f"egress_ips{family.suffix}": frozenset(str(a) for a in egress_ips if a.version == family.version),
        f"decided{family.suffix}": frozenset(_key(address, device) for address, device in pods.items()),
        f"pools{family.suffix}": merged(desired.pools, family.version),
        f"no_pods{family.suffix}": frozenset(str(a) for a in no_pods if a.version == family.version),
        f"node_addresses{family.suffix}": frozenset(str(a) for a in at_nodes if a.version == family.version),
    }


def _covered(family: Family, *destinations: Iterable[IPNetwork]) -> frozenset[str]:
    return merged((network for networks in destinations for network in networks), family.version)


def pod_bridges(
    desired: Desired, candidates: Mapping[IPAddress, Iterable[PodDevice]], own: Mapping[IPAddress, str]
) -> frozenset[str]:
    """Bridges that have pods behind them, or will have: one has an address of this node's pods or of its pod CIDRs, or
    such an address is behind it. Others are for something beside the cluster, though what is behind them looks alike.
    `own`: the host's addresses, with the names of their devices.
    """
    behind = ((a, d.forward_name) for a, found in candidates.items() for d in found if d.forward_name != d.name)
    return frozenset(
        name
        for address, name in (*behind, *own.items())
        if address in desired.pods or any(address in network for network in desired.pod_cidrs)
    )


def early(wanted: Guard, present: Guard | None) -> Guard:
    """What of `wanted` is loaded before the maps change: everything but pods that are decided or selected from now on.

    A pod that loses its policies must lose them here first, or its packets would be dropped between the two; a pod that
    gets some must have its map entries first, or the guard would let through what no program takes. The same holds
    for one that gets more policies: it keeps its chain until then. What is handed to the host leaves by no device that
    has no program yet.
    """
    if present is None or present.frame != wanted.frame:  # made anew: nothing of it is there to keep
        return replace(wanted, sets={**wanted.sets, **dict.fromkeys((*DECIDED, *SELECTED, HOOKED), frozenset())})
    sets, chains = dict(wanted.sets), dict(wanted.chains)
    for name in (*DECIDED, HOOKED):
        sets[name] &= present.sets.get(name, frozenset())
    for name in SELECTED:
        before = dict(_jump(element) for element in present.sets.get(name, ()))
        selected = set()
        for element in wanted.sets[name]:
            pod, chain = _jump(element)
            if pod not in before:
                continue
            old = present.chains.get(before[pod], ())
            if before[pod] != chain and set(old) < set(wanted.digests().chains[chain]):
                chains[before[pod]] = tuple(KEPT + rule for rule in old)
                chain = before[pod]
            selected.add(f"{pod} : jump {chain}")
        sets[name] = frozenset(selected)
    return replace(wanted, sets=sets, chains=chains)


def _jump(element: str) -> tuple[str, str]:
    """Key and chain of an element of the map: "veth3 . 10.1.0.5 : jump set-1"."""
    key, _, chain = element.partition(" : jump ")
    return key, chain
