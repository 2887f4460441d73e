"""Desired state -> contents of the maps, as bytes; and back into text. Pure: what only the kernel knows comes as
`Facts`.

A policy set is what one or more pods have in common: every destination prefix of their policies, each with the ordered
rules that hold for it. Prefixes are flattened: a longer one carries the rules of the shorter ones too, so one
longest-prefix lookup decides. Equal sets are one set; a set's number never changes its content, so a pod is moved to
another set in one write, after that set is complete.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from itertools import groupby
from zlib import crc32

from bpf import layout
from egress.host.enforcement import Surroundings, Way, first_packets
from egress.host.links import PodDevice, Unhooked
from egress.memo import Made
from egress.policy import (
    NO_LIMITS,
    Desired,
    Group,
    Hindrance,
    IPAddress,
    IPNetwork,
    Limits,
    Policy,
    Served,
    Watch,
)

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1}
HINDRANCES: Mapping[Hindrance, int] = {
    "draining": layout.SERVICE_DRAINING, "no-session": layout.SERVICE_NO_SESSION,
    "no-uplink": layout.SERVICE_NO_UPLINK, "no-route": layout.SERVICE_NO_ROUTE,
    "no-upstream": layout.SERVICE_NO_UPSTREAM,
}  # fmt: skip
WAYS: Mapping[Way, int] = {
    "direct": layout.POLICY_DIRECT, "forward": layout.POLICY_FORWARD, "refused": layout.POLICY_REFUSED,
}  # fmt: skip
PROTOCOL_NAMES = {0: "any", **{number: name.lower() for name, number in PROTOCOLS.items()}}

# On an address that the node itself uses, only ports that neither its own connections (ip_local_port_range ends at
# 60999) nor node ports (30000-32767) take.
FIRST_NODE_PORT, LAST_NODE_PORT = 61440, 65535

# Of the link or the node: left to the node's own stack, whatever policies cover. A node's DNS cache (169.254.20.10), a
# cloud's metadata (169.254.169.254), DHCP and neighbour discovery live there (RFC 3927, section 7; RFC 4291, section
# 2.5.6; RFC 1812, section 5.3.5.1).
OF_THE_LINK = frozenset(
    map(ip_network, ["169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", "fe80::/10", "ff00::/8"])
)
# No host has such an address where another one can reach it: dropped where policies cover it, unless an operator says
# that it is in the cluster, as some clouds use 240.0.0.0/4 (RFC 6890; RFC 1112, section 4).
NOBODYS = frozenset(map(ip_network, ["0.0.0.0/8", "127.0.0.0/8", "240.0.0.0/4", "::/127", "::ffff:0:0/96"]))

# What only a default route leads to, of each family: the route that is looked up for it tells whether there is one.
ANYWHERE: Mapping[int, IPAddress] = {4: ip_address("0.0.0.0"), 6: ip_address("2000::")}

# Time-outs in seconds. Established TCP: RFC 5382, REQ-5 asks for 2 h 4 min at least. UDP: RFC 4787, REQ-5 recommends 5
# min. ICMP: RFC 5508, REQ-2 asks for 60 s.
TCP_ESTABLISHED, TCP_OPENING, TCP_CLOSING, UDP, ICMP = 7440, 240, 10, 300, 60

MapEntries = dict[bytes, bytes]


def is_sayable(device: str) -> bool:
    """Whether nft's language can say a device's name. The kernel takes any bytes but blanks, "/" and ":"; between the
    quotation marks of a string nft knows no escape, and a * at its end stands for any name that begins so.
    """
    return device.isascii() and device.isprintable() and not {'"', "\\"} & {*device} and not device.endswith("*")


@dataclass(frozen=True, slots=True)
class Link:
    """The device that other nodes are on without a router between. `networks`: whose addresses are reached so."""

    ifindex: int
    name: str
    mtu: int
    networks: frozenset[IPNetwork] = frozenset()


@dataclass(frozen=True, slots=True)
class Facts:
    """What only the kernel knows."""

    devices: Mapping[IPAddress, PodDevice] = field(default_factory=dict)
    uplinks: Mapping[str, int] = field(
        default_factory=dict
    )  # name -> ifindex: the configured ones that exist, else found
    tunnel_ifindex: int = 0  # 0 = there is no tunnel device yet
    tunnel_mtu: int = 0
    object_digest: int = 0
    underlay: str = ""  # the device that holds the node's tunnel address
    link: Link | None = None  # the same, if it bears Ethernet frames of other nodes
    by_stack: bool = False  # the host's stack may do more to tunnel packets than send them; see `netdev.needs_stack`
    limits: Limits = NO_LIMITS
    host_devices: frozenset[str] = frozenset()  # by which no pod's packets come in, in the forward hook's eyes
    ways_out: Mapping[int, IPAddress] = field(
        default_factory=dict
    )  # IP version -> an address to which an uplink leads, where no default route does
    surroundings: Surroundings = field(default_factory=Surroundings)
    cut_off: bool = False  # no uplink has a carrier, or none an Ethernet header: routes stay, and lead nowhere
    unhooked: Mapping[IPAddress, tuple[Unhooked, ...]] = field(
        default_factory=dict
    )  # address of a pod here that policies select -> devices of this pod's that lead past the hooks
    second_devices: frozenset[str] = frozenset()  # that lead to pods here as well
    headerless: frozenset[str] = frozenset()  # devices that would be uplinks, and whose packets have no Ethernet header


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """One rule of a policy set; ports in host order, 0-0 = any."""

    group: int
    protocol: int = 0
    first: int = 0
    last: int = 0
    exit_local: bool = False


Rules = tuple[RuleSpec, ...]
PolicySet = Mapping[IPNetwork, Rules]

DROP_ALL = RuleSpec(0)


# --- policy sets


Index = dict[int, dict[int, frozenset[int]]]  # version -> prefix length -> prefixes without their host bits
NO_PREFIXES: Mapping[int, frozenset[int]] = {}
BITS = {4: 32, 6: 128}  # of an address


@dataclass(frozen=True, slots=True)
class _Reach:
    """A policy with its prefixes indexed, longest first: thousands of them are looked up against each other."""

    policy: Policy
    destinations: Index
    excluded: Index

    def covers(self, version: int, address: int, length: int) -> int | None:
        """Length of the longest destination that holds all of a prefix; None if none does or it is excluded."""
        if self.excluded and _holding(self.excluded, version, address, length) is not None:
            return None
        return _holding(self.destinations, version, address, length)


def _index(networks: Iterable[IPNetwork]) -> Index:
    by_length: dict[tuple[int, int], set[int]] = defaultdict(set)
    for network in networks:
        shift = network.max_prefixlen - network.prefixlen
        by_length[network.version, network.prefixlen].add(int(network.network_address) >> shift)
    index: Index = defaultdict(dict)
    for version, length in sorted(by_length, reverse=True):
        index[version][length] = frozenset(by_length[version, length])
    return index


def _holding(index: Index, version: int, address: int, length: int) -> int | None:
    """Length of the longest network in `index` that holds all of a prefix."""
    bits = BITS[version]
    for each, prefixes in index.get(version, NO_PREFIXES).items():
        if each <= length and address >> bits - each in prefixes:
            return each
    return None


def _order(covering: tuple[int, Policy]) -> tuple[int, int, str, str]:
    """Longest destination, then the higher priority, then the older, then the name. No creation time counts as
    youngest.
    """
    length, policy = covering
    return -length, -policy.priority, policy.created or "~", policy.name


def _rules_of(policy: Policy) -> Rules:
    every = RuleSpec(policy.group, exit_local=policy.exit_local)
    if not policy.ports:
        return (every,)
    return tuple(replace(every, protocol=PROTOCOLS[p.protocol], first=p.first, last=p.last) for p in policy.ports)


Covering = tuple[int | None, ...]  # by how long a destination of each policy a prefix is held, None = by none


def _ruled(policies: Sequence[Policy]) -> Iterator[tuple[IPNetwork, Rules]]:
    """Every prefix at which the verdict may change, with the ordered rules for what is in it, however many; some more
    than once. Most have the same as others have, by the same policies.
    """
    reaches = [_Reach(policy, _index(policy.destinations), _index(policy.excluded)) for policy in policies]
    known: dict[Covering, Rules] = {}
    for policy in policies:
        for prefix in (*policy.destinations, *policy.excluded):
            address = int(prefix.network_address)
            covering = tuple([reach.covers(prefix.version, address, prefix.prefixlen) for reach in reaches])
            if covering not in known:
                known[covering] = _all_rules(policies, covering)
            yield prefix, known[covering]


def _all_rules(policies: Sequence[Policy], covering: Covering) -> Rules:
    """In order, however many."""
    found = [(length, policy) for length, policy in zip(covering, policies, strict=True) if length is not None]
    rules = tuple(dict.fromkeys(rule for _, policy in sorted(found, key=_order) for rule in _rules_of(policy)))
    for position, rule in enumerate(rules):
        if rule.protocol == 0:  # nothing behind a rule that takes everything is ever reached
            return rules[: position + 1]
    return rules


def _fitting(rules: Rules) -> Rules:
    """More than the datapath holds: the rest is dropped, not let through."""
    return rules if len(rules) <= layout.MAX_RULES else (*rules[: layout.MAX_RULES - 1], DROP_ALL)


def policy_set(policies: Sequence[Policy]) -> PolicySet:
    """Every prefix that the programs take at which the verdict may change, with its ordered rules; () at an
    exclusion.
    """
    return {prefix: _fitting(rules) for prefix, rules in _ruled(policies)}


def overloaded(*policies: Policy) -> Sequence[IPNetwork]:
    """Prefixes that have more rules than the datapath holds: what comes after is dropped there."""
    over = {prefix for prefix, rules in _ruled(policies) if len(rules) > layout.MAX_RULES}
    return sorted(over, key=lambda prefix: (prefix.version, prefix.network_address, prefix.prefixlen))


def _policy_value(rules: Rules) -> bytes:
    value = layout.PolicyValue(len(rules))
    for slot, rule in zip(value.rules, rules, strict=False):
        slot.group, slot.protocol, slot.first_port, slot.last_port = rule.group, rule.protocol, rule.first, rule.last
        slot.exit_local = rule.exit_local
    return bytes(value)


Content = frozenset[tuple[bytes, bytes]]


def _contents(*policies: Policy) -> tuple[MapEntries, Content]:
    """A set without its number, as keys of prefixes and values: what makes two sets equal."""
    values: dict[Rules, bytes] = {}
    entries: MapEntries = {}
    for prefix, rules in _ruled(policies):
        if rules not in values:
            values[rules] = _policy_value(_fitting(rules))
        entries[layout.cidr_key(prefix)] = values[rules]
    return entries, frozenset(entries.items())


def observed_sets(entries: Mapping[bytes, bytes]) -> dict[int, frozenset[tuple[bytes, bytes]]]:
    """Contents of the sets in the `policies` map, by number."""
    sets: dict[int, list[tuple[bytes, bytes]]] = defaultdict(list)
    for raw, value in entries.items():
        number, key = layout.set_and_prefix(raw)
        sets[number].append((key, value))
    return {number: frozenset(content) for number, content in sets.items()}


Numbered = Mapping[tuple[str, ...], int]


@dataclass(slots=True)
class KeptSets:
    """Policy sets as they were made for the last plan."""

    contents: Made[tuple[MapEntries, Content]] = field(default_factory=Made)  # by names of policies
    numbered: Made[tuple[Numbered, MapEntries]] = field(default_factory=Made)


def number_sets(
    wanted: Iterable[tuple[str, ...]],
    policies: Mapping[str, Policy],
    observed: Mapping[bytes, bytes],
    kept: KeptSets | None = None,
) -> tuple[Numbered, MapEntries]:
    """A number for the set of each combination of policy names, and the entries of all; a complete set that is there
    already keeps its number. A set without any prefix is 0, no policy: no entry would show that another is taken.
    """
    kept = kept or KeptSets()
    combinations = sorted(set(wanted))
    kept.contents.drop_but(combinations)
    sets = [
        (names, kept.contents(names, _contents, *(policies[name] for name in names if name in policies)))
        for names in combinations
    ]
    return kept.numbered(None, _numbered, observed, *sets)


def _numbered(
    observed: Mapping[bytes, bytes], *sets: tuple[tuple[str, ...], tuple[MapEntries, Content]]
) -> tuple[Numbered, MapEntries]:
    there = observed_sets(observed)
    present = {content: number for number, content in sorted(there.items(), reverse=True)}
    taken = set(there)
    numbers: dict[tuple[str, ...], int] = {}
    entries: MapEntries = {}
    for names, (contents, content) in sets:
        if contents and content not in present:
            present[content] = next(number for number in range(1, len(taken) + 2) if number not in taken)
            taken.add(present[content])
        numbers[names] = number = present[content] if contents else 0
        entries.update((layout.in_set(number, prefix), value) for prefix, value in contents.items())
    return numbers, entries


# --- the other maps


def attached(desired: Desired, facts: Facts) -> dict[IPAddress, PodDevice]:
    """Pods here whose devices are known."""
    return {a: facts.devices[a] for a in desired.pods if a in facts.devices}


def kept_back(desired: Desired, facts: Facts) -> dict[tuple[int, IPAddress], tuple[str, ...]]:
    """Sources of selected pods by devices that lead past the hooks: (device beneath, address) -> policies."""
    return {
        (device.beneath, address): desired.pods[pod]
        for pod, devices in facts.unhooked.items()
        if desired.pods.get(pod)
        for device in devices
        if device.beneath
        for address in device.addresses
    }


def kept_back_macs(desired: Desired, facts: Facts) -> dict[tuple[int, bytes], tuple[str, ...]]:
    """The same by the MACs of those devices that have one of their own: (device beneath, MAC) -> policies."""
    found: dict[tuple[int, bytes], set[str]] = defaultdict(set)
    for pod, devices in facts.unhooked.items():
        for device in devices:
            if device.mac and desired.pods.get(pod):
                found[device.beneath, device.mac].update(desired.pods[pod])
    return {sender: tuple(sorted(names)) for sender, names in found.items()}


def _mac(address: bytes) -> object:
    return layout.Bytes6.from_buffer_copy(address)


def places(desired: Desired) -> MapEntries:
    """What the operator says of a prefix comes last: it holds also for one that is nobody's elsewhere."""
    inside = dict.fromkeys((*OF_THE_LINK, *desired.cluster), layout.PLACE_INSIDE)
    found = {**dict.fromkeys(NOBODYS, layout.PLACE_NOWHERE), **inside}
    return {layout.cidr_key(network): layout.u32(place) for network, place in found.items()}


def _icmp_source(desired: Desired, version: int) -> object:
    found = next((address for address in desired.icmp_sources if address.version == version), None)
    return layout.ip_field(found) if found else layout.Bytes16()


def _way_out(desired: Desired, facts: Facts, version: int) -> object:
    """Where a gateway in service has a route to: asked with each probe, for families of which it serves addresses."""
    if not any(address.version == version for address in desired.served):
        return layout.Bytes16()
    return layout.ip_field(facts.ways_out.get(version, ANYWHERE[version]))


def hindrances(desired: Desired, facts: Facts) -> int:
    """Why this node is not to be used as a gateway, as `settings` has it."""
    found: set[Hindrance] = {*desired.out_of_service, *(("no-uplink",) if facts.cut_off else ())}
    return sum(HINDRANCES[each] for each in found)


def direct_link(desired: Desired, facts: Facts) -> Link | None:
    """The device by which nodes send without the tunnel; None = nobody does."""
    return facts.link if desired.neighbours else None


def underlay_link(desired: Desired, facts: Facts) -> Link | None:
    """The device by which the programs send and take tunnel packets themselves; None = the tunnel device does all."""
    over_ipv4 = desired.node_address is not None and desired.node_address.version == 4
    return facts.link if desired.tunnel_packets == "auto" and over_ipv4 and not facts.by_stack else None


def _on_link(desired: Desired, facts: Facts) -> frozenset[int]:
    """Numbers of the nodes that are on this node's link, and say by which device: what they send by it is taken."""
    link = direct_link(desired, facts)
    return frozenset(
        number
        for number in desired.neighbours
        if link and (address := desired.nodes.get(number)) and address != desired.node_address
        and any(address in network for network in link.networks if network.version == address.version)
    )  # fmt: skip


def _direct_nodes(desired: Desired, facts: Facts) -> frozenset[int]:
    """Those to which this node sends without the tunnel."""
    return _on_link(desired, facts) if desired.transport != "vxlan" else frozenset()


def _settings(desired: Desired, facts: Facts) -> MapEntries:
    assert desired.node_address is not None  # a node without one has no maps
    most = facts.limits
    watch = desired.watch or Watch(0, 0)
    first = first_packets(desired, facts.surroundings)
    link, tunnels = direct_link(desired, facts), desired.transport != "direct"
    underlay = underlay_link(desired, facts)
    value = layout.Settings(
        node_address=layout.ip_field(desired.node_address), icmp_source4=_icmp_source(desired, 4),
        icmp_source6=_icmp_source(desired, 6), way_out4=_way_out(desired, facts, 4),
        way_out6=_way_out(desired, facts, 6), object_digest=facts.object_digest,
        probe_grace=int(watch.interval * 1e9 / 2), probe_multiplier=watch.multiplier,
        out_of_service=hindrances(desired, facts), direct_ifindex=link.ifindex if link else 0,
        flow_mtu=facts.tunnel_mtu if tunnels or not link else link.mtu, tunnels=int(tunnels),
        layout_version=layout.LAYOUT_VERSION, tunnel_ifindex=facts.tunnel_ifindex, tunnel_mtu=facts.tunnel_mtu,
        tunnel_port=desired.tunnel_port, tcp_established_seconds=TCP_ESTABLISHED,
        tcp_opening_seconds=TCP_OPENING, tcp_closing_seconds=TCP_CLOSING, udp_seconds=UDP, icmp_seconds=ICMP,
        deadline_seconds=desired.flow_deadline, flow_room=most.flow_room, port_room=most.port_room,
        flows_per_pod=most.flows_per_pod, ports_per_pod=most.ports_per_pod, outside_flows=most.outside_flows,
        network_policy=WAYS[first.way], forward_mark=first.mark, underlay_ifindex=underlay.ifindex if underlay else 0,
    )  # fmt: skip
    return {layout.u32(0): bytes(value)}


def _node_entries(desired: Desired, facts: Facts) -> dict[str, MapEntries]:
    """Both ways between numbers and what packets of these nodes bear: tunnel endpoints, and MACs on the link."""
    nodes: MapEntries = {}
    numbers: MapEntries = {}
    neighbours: MapEntries = {}
    on_link, direct = _on_link(desired, facts), _direct_nodes(desired, facts)
    for number, address in sorted(desired.nodes.items()):
        nodes[layout.ip16(address)] = layout.u32(number)
        local = int(address == desired.node_address)
        value = layout.NodeValue(layout.ip_field(address), local=local)
        if number in on_link:
            neighbour = desired.neighbours[number]
            value.direct = int(number in direct)
            if neighbour.link_local:
                value.link_local = layout.ip_field(neighbour.link_local)
            neighbours[layout.neighbour_key(neighbour.mac)] = layout.u32(number)
        numbers[layout.u32(number)] = bytes(value)
    return {"nodes": nodes, "node_numbers": numbers, "neighbours": neighbours}


def _group(group: Group, here: int) -> bytes:
    """`here`: this node's number. As a gateway it knows its own ports; others must echo them (`trials.py`)."""
    gateways, blocks = group.gateways[: layout.MAX_GATEWAYS], group.blocks[: layout.MAX_BLOCKS]
    echoed = sum(1 << place for place, gateway in enumerate(gateways) if gateway.number == here)
    value = layout.GroupValue(len(gateways), len(blocks))
    for position, gateway in enumerate(gateways):
        order = position if group.in_order else 0
        value.gateways[position] = layout.Gateway(gateway.number, int(gateway.up), order)
    for position, block in enumerate(blocks):
        shift = block.size.bit_length() - 1
        address = layout.ip_field(block.egress_ip)
        value.blocks[position] = layout.Block(address, block.first, shift, int(block.closed), echoed=echoed)
    return bytes(value)


def _host_below(served: Served) -> int:
    if served.node_address:
        return layout.ALL_PORTS
    return layout.VIP_PORTS if served.vip else 0


def _egress_ip(served: Served) -> bytes:
    value = layout.EgressIpValue(_host_below(served), served.group)
    value.nodes[:] = served.numbers
    return bytes(value)


def _own_egress_ips(desired: Desired, facts: Facts) -> set[IPAddress]:
    """Answers to them may come by the link."""
    if direct_link(desired, facts) is None:
        return set()
    return {block.egress_ip for group in desired.groups.values() for block in group.blocks}


def _epoch(desired: Desired, facts: Facts, groups: MapEntries) -> MapEntries:
    """One number that changes with what a flow's gateway and way were chosen by: the content of `groups`, whether this
    node is to be used as a gateway, and which ways there are. No probe goes by a way that is none any more, so that
    liveness tells nobody of it.
    """
    content = (key + value for key, value in sorted(groups.items()))
    direct = sorted(_direct_nodes(desired, facts))
    ways = (layout.u32(each) + bytes([desired.neighbours[each].link_local is not None]) for each in direct)
    no_tunnel = b"no tunnel" if desired.transport == "direct" else b""
    digest = crc32(b"".join((*content, *ways, no_tunnel)), hindrances(desired, facts))
    return {layout.u32(0): layout.u32(digest or 1)}


def _pod_entries(desired: Desired, facts: Facts, numbers: Mapping[tuple[str, ...], int]) -> dict[str, MapEntries]:
    pods: MapEntries = {}
    devices: MapEntries = {}
    strict: MapEntries = {}
    for address, device in attached(desired, facts).items():
        names = desired.pods[address]
        key = layout.PodKey(device.ifindex, layout.ip_field(address))
        number = numbers[names] if names else 0
        pods[bytes(key)] = bytes(layout.PodValue(number, _mac(device.pod_mac), _mac(device.device_mac)))
        if number:
            devices[layout.ip16(address)] = layout.u32(device.ifindex)
            strict[layout.u32(device.ifindex)] = layout.u32(1)
    for (beneath, address), names in kept_back(desired, facts).items():
        pods[bytes(layout.PodKey(beneath, layout.ip_field(address)))] = bytes(layout.PodValue(numbers[names]))
    macs = {
        layout.pod_mac_key(*sender): layout.u32(numbers[names])
        for sender, names in kept_back_macs(desired, facts).items()
    }
    return {"pods": pods, "pod_macs": macs, "pod_devices": devices, "strict_devices": strict}


def map_entries(
    desired: Desired,
    facts: Facts,
    observed_policies: Mapping[bytes, bytes],
    cluster: MapEntries | None = None,
    kept: KeptSets | None = None,
) -> dict[str, MapEntries]:
    """Contents of every map that user space owns. `cluster`: its `places`, if they are known. `kept`: of the last
    plan; it is renewed.
    """
    combinations = {desired.pods[address] for address in attached(desired, facts) if desired.pods[address]}
    combinations.update(kept_back(desired, facts).values(), kept_back_macs(desired, facts).values())
    numbers, policies = number_sets(combinations, desired.policies, observed_policies, kept)
    here = next((number for number, address in desired.nodes.items() if address == desired.node_address), 0)
    groups = {layout.u32(group.id): _group(group, here) for group in desired.groups.values()}
    one = layout.u32(1)
    return {
        "settings": _settings(desired, facts),
        **_node_entries(desired, facts),
        "own_egress_ips": {layout.ip16(address): one for address in _own_egress_ips(desired, facts)},
        "cluster": places(desired) if cluster is None else cluster,
        "uplinks": {layout.u32(ifindex): one for ifindex in facts.uplinks.values()},
        "groups": groups,
        "epoch": _epoch(desired, facts, groups),
        "egress_ips": {layout.ip16(address): _egress_ip(served) for address, served in desired.served.items()},
        "policies": policies,
        **_pod_entries(desired, facts, numbers),
    }


# --- text


def _rule_text(rule: layout.Rule) -> str:
    protocol = PROTOCOL_NAMES.get(rule.protocol, str(rule.protocol))
    ports = f" {rule.first_port}-{rule.last_port}" if rule.first_port else ""
    exit_ = ", out here" if rule.exit_local else ""
    return f"{protocol}{ports} -> {f'group {rule.group}{exit_}' if rule.group else 'drop'}"


def _policy_text(key: bytes, value: bytes) -> str:
    k, v = layout.decode(layout.PolicyKey, key), layout.decode(layout.PolicyValue, value)
    network = layout.network_of(k.prefixlen, k.policy_set, k.destination)
    rules = ", ".join(_rule_text(rule) for rule in v.rules[: v.count])
    return f"set {layout.policy_set_of(k)} {network}: {rules or 'leave alone'}"


def _pod_text(key: bytes, value: bytes) -> str:
    k, number = layout.decode(layout.PodKey, key), layout.decode(layout.PodValue, value).policy_set
    return f"device {k.ifindex} {layout.ip_of(k.address)}: {f'set {number}' if number else 'no policy'}"


def _pod_mac_text(key: bytes, value: bytes) -> str:
    k = layout.decode(layout.PodMacKey, key)
    return f"device {k.ifindex} {bytes(k.mac).hex(':')}: set {layout.number(value)}"


def _group_text(key: bytes, value: bytes) -> str:
    v = layout.decode(layout.GroupValue, value)
    gateways = (
        f"{'then ' if g.order else ''}node {g.node}{'' if g.up else ' down'}" for g in v.gateways[: v.gateway_count]
    )
    blocks = (
        f"{layout.ip_of(b.egress_ip)} ports {b.first}-{b.first + (1 << b.shift) - 1}{' closed' if b.closed else ''}"
        for b in v.blocks[: v.block_count]
    )
    return f"group {layout.number(key)}: {', '.join(blocks) or 'no port set'} by {', '.join(gateways) or 'no gateway'}"


def port_ranges(nodes: Iterable[int]) -> Iterator[tuple[int, int, int]]:
    """(first port, last port, node number) of what an egress IP's granules give to nodes, in order."""
    first = 0
    for number, run in groupby(nodes):
        size = len(list(run)) * layout.GRANULE
        if number:
            yield first, first + size - 1, number
        first += size


def _egress_ip_text(key: bytes, value: bytes) -> str:
    v = layout.decode(layout.EgressIpValue, value)
    ranges = ", ".join(f"{first}-{last} node {number}" for first, last, number in port_ranges(v.nodes))
    group = f" of group {v.group}" if v.group else ""
    also = {layout.ALL_PORTS: " (node address)", layout.VIP_PORTS: " (VIP)"}.get(v.host_below, "")
    return f"{layout.ip_of(key)}{group}: {ranges or 'no port set'}{also}"


def _node_text(key: bytes, value: bytes) -> str:
    return f"{layout.ip_of(key)}: node {layout.number(value)}"


def _node_number_text(key: bytes, value: bytes) -> str:
    v = layout.decode(layout.NodeValue, value)
    where = " here" if v.local else " on this link" if v.direct else ""
    return f"node {layout.number(key)}: {layout.ip_of(v.address)}{where}"


def _neighbour_text(key: bytes, value: bytes) -> str:
    return f"{key[:6].hex(':')}: node {layout.number(value)}"


def _own_egress_ip_text(key: bytes, _value: bytes) -> str:
    return str(layout.ip_of(key))


def _pod_device_text(key: bytes, value: bytes) -> str:
    return f"{layout.ip_of(key)}: device {layout.number(value)}"


def _epoch_text(_key: bytes, value: bytes) -> str:
    return f"groups {layout.number(value):08x}"


def _settings_text(_key: bytes, value: bytes) -> str:
    v = layout.decode(layout.Settings, value)
    tunnel = f"tunnel device {v.tunnel_ifindex} port {v.tunnel_port} mtu {v.tunnel_mtu}"
    out = [name for name, bit in HINDRANCES.items() if v.out_of_service & bit]
    ways = [str(layout.ip_of(way)) for way in (v.way_out4, v.way_out6) if any(way)]
    gateway = f", way out {' and '.join(ways)}" if ways else ""
    service = f", out of service: {', '.join(out)}" if out else ""
    first = f", first packets by the forward hook with mark {v.forward_mark:#x}" if v.forward_mark else ""
    first = ", no first packets" if v.network_policy == layout.POLICY_REFUSED else first
    own = f", tunnel packets by device {v.underlay_ifindex}" if v.underlay_ifindex else ""
    return f"node {layout.ip_of(v.node_address)}, {tunnel}, object {v.object_digest:016x}{gateway}{service}{first}{own}"


def _cidr_text(key: bytes, value: bytes) -> str:
    k = layout.decode(layout.CidrKey, key)
    nobodys = ": nobody's" if layout.number(value) == layout.PLACE_NOWHERE else ""
    return f"{layout.network_of(k.prefixlen, k.family, k.address)}{nobodys}"


def describe(map_name: str, key: bytes, value: bytes) -> str:
    """One entry as a line, for plans and `show`."""
    texts = {
        "policies": _policy_text, "pods": _pod_text, "groups": _group_text, "settings": _settings_text,
        "cluster": _cidr_text, "egress_ips": _egress_ip_text, "nodes": _node_text, "node_numbers": _node_number_text,
        "epoch": _epoch_text, "pod_devices": _pod_device_text, "neighbours": _neighbour_text,
        "own_egress_ips": _own_egress_ip_text, "pod_macs": _pod_mac_text,
    }  # fmt: skip
    if map_name in texts:
        return texts[map_name](key, value)
    return f"device {layout.number(key)}"
