"""Which Services lead out of the cluster to where policies lead, and which packets go there, in nft's words. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from egress.nftables.frame import Family
from egress.policy import Detour, IPAddress, IPNetwork, Policy, Ports


def matches(detours: Iterable[Detour], policies: Collection[Policy], family: Family) -> Iterator[str]:
    """What is sent to those of `detours` that lead to where one of the policies does."""
    daddr, port = f"{family.header} daddr", "meta l4proto . th dport"
    leading = [
        each for each in detours if each.version == family.version and any(_covers(policy, each) for policy in policies)
    ]
    at_nodes = {f"{each.protocol.lower()} . {each.port}" for each in leading if not each.addresses}
    own = {f"{a} . {each.protocol.lower()} . {each.port}" for each in leading for a in each.addresses}
    if at_nodes:
        yield f"{daddr} @node_addresses{family.suffix} {port} {{ {', '.join(sorted(at_nodes))} }}"
    if own:
        yield f"{daddr} . {port} {{ {', '.join(sorted(own))} }}"


def _covers(policy: Policy, detour: Detour) -> bool:
    return any(
        _holds(policy.destinations, address)
        and not _holds(policy.excluded, address)
        and (not policy.ports or any(_is_among(port, detour.protocol, each) for each in policy.ports))
        for address, port in detour.ends
    )


def _holds(networks: Iterable[IPNetwork], address: IPAddress) -> bool:
    return any(network.version == address.version and address in network for network in networks)


def _is_among(port: int, protocol: str, ports: Ports) -> bool:
    """Port 0 may be any."""
    return ports.protocol == protocol and (not ports.first or not port or ports.first <= port <= ports.last)
