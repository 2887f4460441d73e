"""A small synced cluster for tests of pure decisions: node a and b, one service, one pool, one peer, one policy."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from bgp.path import SessionKey
from routerd.formats.published.bindings import binding_table
from routerd.model import (
    EXCLUDE_LABEL,
    AddressPool,
    Advertisement,
    Allocations,
    BindingTable,
    CoolingPorts,
    EgressGroup,
    EgressPolicy,
    Endpoint,
    EndpointSlice,
    IPAddress,
    Namespace,
    Node,
    NodeNumber,
    Peer,
    Peering,
    Pod,
    PodSelection,
    PortBlock,
    Service,
    ServiceAllocation,
    Snapshot,
)
from routerd.node.sessions import Way
from routerd.selectors import LabelSelector

TOR = ip_address("10.0.0.1")
LOCAL: dict[Way, IPAddress | None] = {Way(TOR): ip_address("10.0.0.11")}
SESSION = SessionKey(TOR, ip_address("10.0.0.11"))  # of node a
NUMBERS = (NodeNumber("a", 1), NodeNumber("b", 2))
ONLY_B = LabelSelector((("kubernetes.io/hostname", "b"),))


def node(name: str, last: int, **fields: object) -> Node:
    values: dict[str, object] = {
        "labels": {"kubernetes.io/hostname": name},
        "addresses": (ip_address(f"10.0.0.{last}"), ip_address(f"fd00::{last}")),
        "pod_cidrs": (ip_network(f"10.1.{last}.0/24"),),
    }
    return Node(name, **{**values, **fields})  # type: ignore[arg-type]


def service(name: str, **fields: object) -> Service:
    values: dict[str, object] = {"type": "LoadBalancer", "cluster_ips": (ip_address("10.96.0.10"),)}
    return Service("default", name, **{**values, **fields})  # type: ignore[arg-type]


def endpoints(name: str, *nodes: str, ready: bool = True, draining: bool = False, version: int = 4) -> EndpointSlice:
    network = "10.1.11." if version == 4 else "fd00:1::"
    found = [Endpoint((ip_address(f"{network}{i + 2}"),), node, ready, draining) for i, node in enumerate(nodes)]
    return EndpointSlice("default", f"{name}-{version}", name, tuple(found))


def allocation(name: str, *addresses: str, pool: str = "default") -> ServiceAllocation:
    return ServiceAllocation(f"default/{name}", pool, tuple(ip_address(address) for address in addresses))


def pool(name: str = "default", block: str = "192.0.2.0/24", **fields: object) -> AddressPool:
    return AddressPool(name, (ip_network(block),), **fields)  # type: ignore[arg-type]


def advertisement(**fields: object) -> Advertisement:
    return Advertisement(**fields)  # type: ignore[arg-type]


def group(**fields: object) -> EgressGroup:
    values: dict[str, object] = {
        "id": 7,
        "egress_ip": ip_address("198.51.100.7"),
        "policies": ("EgressPolicy/web",),
        "gateways": ("b", "a"),
    }
    return EgressGroup(**{**values, **fields})  # type: ignore[arg-type]


def table(egress_ip: str = "198.51.100.7") -> BindingTable:
    """Node a has some ports, and others that were asked back; node b some, and some rest."""
    blocks = (PortBlock(1024, 1024, 1), PortBlock(2048, 64, 1, returning=True), PortBlock(4096, 128, 2))
    cooling = (CoolingPorts(1000, 3, ((8192, 128),)),)
    return binding_table(ip_address(egress_ip), 4, blocks, told=(2,), awaited=3, cooling=cooling)


def allocations(*groups: EgressGroup, **fields: object) -> Allocations:
    """What is published for the cluster of `snapshot`, with ports of all egress IPs."""
    given = groups or (group(),)
    values: dict[str, object] = {
        "services": (allocation("web", "192.0.2.1"),),
        "groups": given,
        "numbers": NUMBERS,
        "bindings": tuple(table(str(address)) for each in given for address in each.egress_ips),
    }
    return Allocations(1, **{**values, **fields})  # type: ignore[arg-type]


def policy(name: str = "web", **fields: object) -> EgressPolicy:
    values: dict[str, object] = {
        "selections": (PodSelection(pods=LabelSelector((("app", "web"),))),),
        "destinations": (ip_network("203.0.113.0/24"),),
    }
    return EgressPolicy(name, **{**values, **fields})  # type: ignore[arg-type]


def pod(name: str, address: str, **fields: object) -> Pod:
    values: dict[str, object] = {"node": "a", "addresses": (ip_address(address),), "labels": {"app": "web"}}
    return Pod("default", name, **{**values, **fields})  # type: ignore[arg-type]


def snapshot(**fields: object) -> Snapshot:
    """A cluster in which node a announces 192.0.2.1/32 and steers pod default/web-1 by EgressPolicy/web."""
    web = service("web")
    web_pod = pod("web-1", "10.1.11.2")
    whole = Snapshot(
        nodes={"a": node("a", 11), "b": node("b", 12)},
        namespaces={"default": Namespace("default")},
        pods={web_pod.key: web_pod},
        services={web.key: web},
        endpoint_slices=(endpoints("web", "a", "b"),),
        bgp=Peering((Peer(TOR, 64512, 64512),)),
        pools={"default": pool()},
        policies={"EgressPolicy/web": policy()},
        allocations=allocations(),
        service_cidrs=(ip_network("10.96.0.0/12"),),
    )
    return replace(whole, **fields)  # type: ignore[arg-type]


def local_service() -> dict[str, object]:
    web = service("web", external_traffic_policy="Local")
    return {"services": {web.key: web}}


def node_a(**fields: object) -> dict[str, object]:
    return {"nodes": {"a": node("a", 11, **fields), "b": node("b", 12)}}


# Reason for which node a does not announce default/web -> what in the snapshot makes it so.
NOES: dict[str, dict[str, object]] = {
    "OtherClass": {"services": {"default/web": service("web", load_balancer_class="service.k8s.aws/nlb")}},
    "NoAddress": {"allocations": Allocations(1)},
    "PoolNotBgp": {"pools": {"default": pool(protocol="layer2")}},
    "NotAdvertisedHere": {"pools": {"default": pool(advertisements=(advertisement(node_selectors=(ONLY_B,)),))}},
    "NodeExcluded": node_a(labels={EXCLUDE_LABEL: ""}),
    "NetworkUnavailable": node_a(network_unavailable=True),
    "NoEndpoints": {"endpoint_slices": (endpoints("web", "a", ready=False),)},
    "NoLocalEndpoints": {**local_service(), "endpoint_slices": (endpoints("web", "b"),)},
}
