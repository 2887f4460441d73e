"""A stand-in for kube-proxy, in nft: services' addresses to endpoints. Pure: yields the ruleset of one node as text.

Cluster policy: any endpoint; traffic to an external address is masqueraded, as kube-proxy does it, so that the reply
comes back through the node that holds the connection. Local policy: endpoints of this node only, source kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TABLE = "demo-kube-proxy"
MASQUERADE_MARK = "0x4000"  # kube-proxy's own


@dataclass(frozen=True, slots=True)
class Backend:
    """An endpoint."""

    address: str
    port: int
    node: str


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """One port of a service. `cluster_ip` or `vip` may be ""."""

    name: str
    protocol: Literal["tcp", "udp"]
    port: int
    backends: tuple[Backend, ...]
    cluster_ip: str = ""
    vip: str = ""
    policy: Literal["Cluster", "Local"] = "Cluster"


def ruleset(services: Sequence[ServiceEntry], node: str, pod_network: str) -> str:
    """The whole table of `node`; loading it replaces the one before."""
    rules = [line for service in services for line in _service_rules(service, node, pod_network)]
    body = "".join(f"        {line}\n" for line in rules)
    return f"""\
table ip {TABLE}
delete table ip {TABLE}
table ip {TABLE} {{
    chain services {{
{body}    }}
    chain prerouting {{ type nat hook prerouting priority dstnat; policy accept; jump services; }}
    chain output {{ type nat hook output priority -100; policy accept; jump services; }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        meta mark and {MASQUERADE_MARK} == {MASQUERADE_MARK} masquerade
    }}
}}
"""


def _service_rules(service: ServiceEntry, node: str, pod_network: str) -> list[str]:
    rules = []
    if service.cluster_ip and service.backends:
        rules.append(f"ip daddr {service.cluster_ip} {_port(service)} {_dnat(service.backends)}")
    local = tuple(backend for backend in service.backends if backend.node == node)
    chosen = local if service.policy == "Local" else service.backends
    if service.vip and chosen:
        match = f"ip daddr {service.vip} {_port(service)}"
        if service.policy == "Cluster":
            rules.append(f"{match} ip saddr != {pod_network} meta mark set meta mark or {MASQUERADE_MARK}")
        rules.append(f"{match} {_dnat(chosen)}")
    return rules


def _port(service: ServiceEntry) -> str:
    return f"{service.protocol} dport {service.port}"


def _dnat(backends: Sequence[Backend]) -> str:
    if len(backends) == 1:
        return f"dnat to {backends[0].address}:{backends[0].port}"
    choices = ", ".join(f"{n} : {backend.address} . {backend.port}" for n, backend in enumerate(backends))
    return f"dnat ip addr . port to numgen random mod {len(backends)} map {{ {choices} }}"
