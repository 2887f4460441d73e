"""Whose an address is already. Pure: a snapshot and what nodes say of their networks in, words for people out.

A gateway blackholes and announces an egress IP, so one that is somebody's is taken away from them: a peer's ends its
session. Only what operators, nodes and allocators say counts. A service's `externalIPs` are a user's word: by them one
team could take an egress IP from another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import ip_network

from routerd.model import IPAddress, IPNetwork, Snapshot
from routerd.refs import POD, Ref

TAKEN = "AddressTaken"  # reason of a refusal
# No host's for anybody: RFC 6890 and RFC 1112. Ranges for documentation are as good as others.
RESERVED: tuple[tuple[IPNetwork, str], ...] = tuple(
    (ip_network(text), f"{words} ({text})")
    for text, words in (
        ("0.0.0.0/8", "an address of no network"),
        ("127.0.0.0/8", "a loopback address"),
        ("169.254.0.0/16", "a link-local address"),
        ("224.0.0.0/4", "a multicast address"),
        ("255.255.255.255/32", "the broadcast address"),
        ("240.0.0.0/4", "in a reserved range"),
        ("::/128", "an address of no network"),
        ("::1/128", "a loopback address"),
        ("::ffff:0:0/96", "an IPv4 address in IPv6"),
        ("fe80::/10", "a link-local address"),
        ("ff00::/8", "a multicast address"),
    )
)


def claims(
    addresses: Iterable[IPAddress],
    snapshot: Snapshot,
    networks: Mapping[str, Iterable[IPNetwork]],
    held: Collection[IPAddress] = (),
) -> dict[IPAddress, str]:
    """Those of `addresses` that are somebody's, with words for whose: "the address of peer/tor".

    `networks`: by node, what its interfaces are in and its next hops. `held`: addresses on a node's interface with
    which that node may leave; no node has a claim on them.
    """
    wanted = set(addresses)
    found: dict[IPAddress, str] = {}
    if not wanted:
        return found
    for address, words in _hosts(wanted, snapshot):
        found.setdefault(address, words)
    of_nodes = dict(_of_nodes(wanted - {*held}, snapshot, networks))
    within = ((address, _within(address, _ranges(snapshot))) for address in wanted)
    return {**of_nodes, **{address: words for address, words in within if words}, **found, **_reserved(wanted)}


def _reserved(wanted: Iterable[IPAddress]) -> dict[IPAddress, str]:
    found = ((address, _within(address, RESERVED)) for address in wanted)
    return {address: words for address, words in found if words}


def _within(address: IPAddress, ranges: Iterable[tuple[IPNetwork, str]]) -> str:
    """The words of the first range that holds the address, "" = none does."""
    return next((words for net, words in ranges if net.version == address.version and address in net), "")


def _hosts(wanted: set[IPAddress], snapshot: Snapshot) -> Iterator[tuple[IPAddress, str]]:
    for peer in snapshot.bgp.peers if snapshot.bgp else ():
        if peer.address in wanted:
            yield peer.address, f"the address of {peer.ref}"
    for service in (snapshot.services or {}).values():
        for address in wanted.intersection(snapshot.cluster_ips(service)):
            yield address, f"the ClusterIP of {service.ref}"
        for address in wanted.intersection(service.status_ips if service.type == "LoadBalancer" else ()):
            yield address, f"the load balancer's address of {service.ref}"
    for pod in (snapshot.pods or {}).values():
        if not pod.host_network and not pod.finished:
            for address in wanted.intersection(pod.addresses):
                yield address, f"the address of {Ref(POD, pod.namespace, pod.name)}"


def _ranges(snapshot: Snapshot) -> Iterator[tuple[IPNetwork, str]]:
    for cidr in snapshot.service_cidrs:
        yield cidr, f"in the service CIDR {cidr}"
    for node in (snapshot.nodes or {}).values():
        for cidr in node.pod_cidrs:
            yield cidr, f"in the pod CIDR {cidr} of {node.ref}"


def _of_nodes(
    wanted: set[IPAddress], snapshot: Snapshot, networks: Mapping[str, Iterable[IPNetwork]]
) -> Iterator[tuple[IPAddress, str]]:
    """The last word counts: an address is more than the network that it is in. Of several nodes the first by name."""
    for name, each in sorted(networks.items(), reverse=True):
        for network in each:
            for address in wanted:
                if address.version == network.version and address in network:
                    what = "a next hop" if network.prefixlen == network.max_prefixlen else f"in the network {network}"
                    yield address, f"{what} of node/{name}"
    for node in (snapshot.nodes or {}).values():
        for address in wanted.intersection(node.addresses):
            yield address, f"an address of {node.ref}"
