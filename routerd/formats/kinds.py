"""Every kind of object that routerd knows, one row each: how it is read, by whom, and what rests on it. Pure.

What stores watch, keep and write, and what `routerd check` refuses by name, are queries of this table. A kind of
somebody else's takes a reader, a row here, and its line in configs/deploy/rbac.yaml.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from routerd.formats import core, native
from routerd.formats.closed import FailClosed
from routerd.formats.document import Value
from routerd.formats.foreign import (
    antrea,
    metallb,
    metallb_advertisements,
    metallb_bgp,
    ovn_kubernetes,
    pod_pools,
)
from routerd.formats.foreign.calico import bgp as calico_bgp
from routerd.formats.foreign.calico import filters as calico_filters
from routerd.formats.foreign.calico import pools as calico_pools
from routerd.formats.foreign.cilium import bgp as cilium_bgp
from routerd.formats.foreign.cilium import egress as cilium_egress
from routerd.formats.foreign.cilium import overrides as cilium_overrides
from routerd.formats.foreign.cilium import peering as cilium_peering
from routerd.formats.foreign.cilium import pools as cilium_pools
from routerd.formats.foreign.kube_ovn import named as ovn_named
from routerd.formats.foreign.kube_ovn import pods as ovn_pods
from routerd.formats.foreign.kube_ovn import policies as ovn_policies
from routerd.formats.legacy_bgp import LegacyConfig
from routerd.formats.published.allocations import read_allocations, read_node_report
from routerd.formats.resembling import node_labels, slice_labels
from routerd.model import (
    AddressPool,
    Allocations,
    BfdProfile,
    CommunityNames,
    EgressPolicy,
    EndpointSlice,
    Namespace,
    Node,
    NodeReport,
    Pod,
    PodPool,
    PoolAdvertisement,
    Refusal,
    Service,
)
from routerd.refs import NODE, SERVICE

_Cluster = Node | Namespace | Pod | Service | EndpointSlice
_Pools = AddressPool | PoolAdvertisement | CommunityNames | PodPool | ovn_named.Named
_Ciliums = (
    cilium_bgp.ClusterConfig
    | cilium_bgp.PeerConfig
    | cilium_overrides.NodeOverride
    | cilium_bgp.Advertised
    | cilium_peering.PeeringPolicy
)
_Calicos = calico_bgp.Configuration | calico_bgp.FilteredPeer | calico_filters.Filter
_Peers = LegacyConfig | BfdProfile | _Ciliums | _Calicos
Object = _Cluster | core.ClaimedDevices | _Pools | _Peers | EgressPolicy | Allocations | NodeReport
Read = tuple[Object | None, tuple[Refusal, ...]]  # what an object says, and what of it cannot be done
Reader = Callable[[Value], Read]
T = TypeVar("T", bound=Object)
Role = Literal["agent", "operator"]

OURS = "routerd.io"
AGENT: frozenset[Role] = frozenset({"agent"})
OPERATOR: frozenset[Role] = frozenset({"operator"})
BOTH = AGENT | OPERATOR
LIKENESS = 0.9  # 1 = equal; other policies of Cilium's are less than 0.8 like those that are read
CONFIGURATION = frozenset({"bgp", "pools", "policies"})  # parts of the snapshot that people write

_CALICOS = ("projectcalico.org", "crd.projectcalico.org")
_RESTS: Mapping[tuple[str, str], frozenset[str]] = {
    ("", "ConfigMap"): frozenset({"bgp", "pools"}),
    ("cilium.io", "CiliumBGPClusterConfig"): frozenset({"bgp"}),
    ("cilium.io", "CiliumBGPPeerConfig"): frozenset({"bgp"}),
    ("cilium.io", "CiliumBGPPeeringPolicy"): frozenset({"bgp"}),
    **{(group, name): frozenset({"bgp"}) for group in _CALICOS for name in ("BGPConfiguration", "BGPFilter")},
}


@dataclass(frozen=True, slots=True)
class Kind:
    """`group` "" is Kubernetes' core. A reader does not ask for the version, which is the one that is watched."""

    group: str
    version: str
    name: str
    plural: str = ""  # "" = an API server is never asked for it
    namespaced: bool = False
    custom: bool = True  # defined by a CRD, which may be absent
    reader: Reader | None = None  # a ConfigMap is read by `objects`, what routerd keeps in an API server by that store
    parts: tuple[str, ...] = ()  # of the snapshot (or "node_reports") that are not known before it was read
    kept: tuple[str, ...] = ("spec",)  # what its reader looks at beside metadata: the rest of a pod is most of it
    read_by: frozenset[Role] = frozenset()
    status_by: frozenset[Role] = frozenset()  # who writes its status
    word: str = ""  # the kind in a `Ref`, if it is not the name
    instead: str = ""  # of a kind that means something to a daemon like this and is not taken: what to do

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def placed(self) -> bool:
        """Written by people: messages point into the object (the others are too many to keep a place for each)."""
        return not CONFIGURATION.isdisjoint(self.parts)

    @property
    def rests_on_each(self) -> frozenset[str]:
        """Parts that are not known, after a start, before each object of the kind has said something.

        A BGP ConfigMap that is wrong may name any peer: without it every session would be ended. So may a
        CiliumBGPClusterConfig or a CiliumBGPPeeringPolicy; a CiliumBGPPeerConfig, a BGPConfiguration and a
        BGPFilter are how they are. Of all other kinds a wrong object costs itself, a CiliumBGPNodeConfigOverride the
        sessions of its node (`closed_by`).
        """
        return _RESTS.get((self.group, self.name), frozenset())


def _plain(read: Callable[[Value], T]) -> Callable[[Value], tuple[T, tuple[Refusal, ...]]]:
    return lambda value: (read(value), ())


def _told(
    read: Callable[[Value], T], look: Callable[[T, Value], Iterable[Refusal]]
) -> Callable[[Value], tuple[T, tuple[Refusal, ...]]]:
    """`read`, and what `look` finds beside it."""

    def reader(value: Value) -> tuple[T, tuple[Refusal, ...]]:
        found = read(value)
        return found, tuple(look(found, value))

    return reader


_CORE = (
    Kind(
        "", "v1", "Node", "nodes", custom=False, reader=_told(core.read_node, node_labels), parts=("nodes",),
        kept=(
            "spec.podCIDR", "spec.podCIDRs", "spec.providerID", "spec.unschedulable", "spec.taints",
            "status.addresses", "status.allocatable", "status.conditions",
        ),
        read_by=BOTH, word=NODE,
    ),
    Kind(
        "", "v1", "Namespace", "namespaces", custom=False,
        reader=_told(core.read_namespace, ovn_pods.told_of_namespace), parts=("namespaces",), read_by=BOTH, kept=(),
    ),
    Kind(
        "", "v1", "Pod", "pods", namespaced=True, custom=False,
        reader=_told(core.read_pod, ovn_pods.told_of_pod), parts=("pods",), read_by=AGENT,
        kept=("spec.nodeName", "spec.hostNetwork", "status.phase", "status.podIP", "status.podIPs"),
    ),
    Kind(
        "", "v1", "Service", "services", namespaced=True, custom=False, reader=core.read_service,
        parts=("services",), read_by=BOTH, kept=("spec", "status.loadBalancer"), status_by=OPERATOR, word=SERVICE,
    ),
    Kind(
        "discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", namespaced=True, custom=False,
        reader=_told(core.read_endpoint_slice, slice_labels), parts=("endpoint_slices",), read_by=AGENT,
        kept=("addressType", "endpoints", "ports"),
    ),
    Kind(
        "", "v1", "ConfigMap", "configmaps", namespaced=True, custom=False, parts=("bgp", "pools", "allocations"),
        read_by=BOTH, kept=("data",),
    ),
    # In files alone, for `routerd check`: on a node a pod's network namespace says what it has.
    Kind("resource.k8s.io", "v1", "ResourceClaim", custom=False, reader=_plain(core.read_resource_claim)),
    Kind("", "v1", "Event", "events", namespaced=True, custom=False),
    Kind(
        "coordination.k8s.io", "v1", "Lease", "leases", namespaced=True, custom=False, parts=("node_reports",),
        read_by=OPERATOR,
    ),
)  # fmt: skip

_OWN = (
    Kind(
        OURS, "v1alpha1", "AddressPool", "addresspools", reader=_plain(native.read_address_pool), parts=("pools",),
        read_by=BOTH, status_by=OPERATOR,
    ),
    Kind(
        OURS, "v1alpha1", "EgressPolicy", "egresspolicies",
        reader=FailClosed(_plain(native.read_egress_policy), native.covered_by_egress_policy),
        parts=("policies",), read_by=BOTH, status_by=OPERATOR,
    ),
    Kind(
        OURS, "v1alpha1", "RouterdNode", "routerdnodes", parts=("node_reports",), read_by=OPERATOR,
        status_by=BOTH,  # the operator when there is no agent any more
    ),
    # what the same things are called in files
    Kind(OURS, "v1alpha1", "Allocations", reader=_plain(read_allocations)),
    Kind(OURS, "v1alpha1", "NodeReport", reader=_plain(read_node_report)),
)  # fmt: skip

_FOREIGN = (
    Kind(
        "cilium.io", "v2", "CiliumEgressGatewayPolicy", "ciliumegressgatewaypolicies",
        reader=FailClosed(cilium_egress.read_egress_gateway_policy, cilium_egress.covered_by_gateway_policy),
        parts=("policies",), read_by=BOTH,
    ),
    Kind(
        "cilium.io", "v2alpha1", "CiliumEgressNATPolicy", "ciliumegressnatpolicies",
        reader=FailClosed(cilium_egress.read_egress_nat_policy, cilium_egress.covered_by_nat_policy),
        parts=("policies",), read_by=BOTH,
    ),
    Kind(
        "cilium.io", "v2", "CiliumLoadBalancerIPPool", "ciliumloadbalancerippools",
        reader=_plain(cilium_pools.read_load_balancer_pool), parts=("pools",), read_by=BOTH, status_by=OPERATOR,
    ),
    Kind(
        "cilium.io", "v2", "CiliumBGPClusterConfig", "ciliumbgpclusterconfigs",
        reader=cilium_bgp.read_cluster_config, parts=("bgp",), read_by=BOTH,
    ),
    Kind(
        "cilium.io", "v2", "CiliumBGPPeerConfig", "ciliumbgppeerconfigs",
        reader=cilium_bgp.read_peer_config, parts=("bgp",), read_by=BOTH,
    ),
    Kind(
        "cilium.io", "v2", "CiliumBGPNodeConfigOverride", "ciliumbgpnodeconfigoverrides",
        reader=cilium_overrides.read_node_override, parts=("bgp",), read_by=BOTH,
    ),
    Kind(
        "cilium.io", "v2alpha1", "CiliumBGPPeeringPolicy", "ciliumbgppeeringpolicies",
        reader=cilium_peering.read_peering_policy, parts=("bgp", "pools"), read_by=BOTH,
    ),
    Kind(
        "cilium.io", "v2", "CiliumBGPAdvertisement", "ciliumbgpadvertisements",
        reader=cilium_bgp.read_advertisement, parts=("bgp", "pools"), read_by=BOTH,
    ),
    Kind(
        "metallb.io", "v1beta1", "IPAddressPool", "ipaddresspools", namespaced=True,
        reader=metallb.read_ip_address_pool, parts=("pools",), read_by=BOTH, status_by=OPERATOR,
    ),
    Kind(
        "metallb.io", "v1beta1", "BGPAdvertisement", "bgpadvertisements", namespaced=True,
        reader=_plain(metallb_advertisements.read_bgp_advertisement), parts=("pools",), read_by=BOTH,
    ),
    Kind(
        "metallb.io", "v1beta1", "Community", "communities", namespaced=True,
        reader=_plain(metallb_advertisements.read_communities), parts=("pools",), read_by=BOTH,
    ),
    Kind(
        "metallb.io", "v1beta2", "BGPPeer", "bgppeers", namespaced=True, reader=metallb_bgp.read_bgp_peer,
        parts=("bgp",), read_by=BOTH,
    ),
    Kind(
        "metallb.io", "v1beta1", "BFDProfile", "bfdprofiles", namespaced=True, reader=metallb_bgp.read_bfd_profile,
        parts=("bgp",), read_by=BOTH,
    ),
    # Written, and read by nobody here.
    Kind("metallb.io", "v1beta1", "ServiceBGPStatus", "servicebgpstatuses", namespaced=True, status_by=AGENT),
    Kind("metallb.io", "v1beta1", "ConfigurationState", "configurationstates", namespaced=True, status_by=OPERATOR),
    Kind(
        "crd.antrea.io", "v1beta1", "Egress", "egresses",
        reader=FailClosed(antrea.read_egress, antrea.covered_by_egress), parts=("policies",), read_by=BOTH,
    ),
    Kind(
        "crd.antrea.io", "v1beta1", "ExternalIPPool", "externalippools",
        reader=antrea.read_external_ip_pool, parts=("pools",), read_by=BOTH,
    ),
    Kind(
        "crd.antrea.io", "v1beta1", "IPPool", "ippools", reader=_plain(pod_pools.read_antrea), parts=("pools",),
        read_by=BOTH,
    ),
    Kind("projectcalico.org", "v3", "IPPool", "ippools", reader=calico_pools.read_ip_pool, parts=("pools",)),
    # What people write is served by pods of Calico's, on which no start may rest; this is what it is kept as.
    Kind(
        "crd.projectcalico.org", "v1", "IPPool", "ippools", reader=calico_pools.read_ip_pool, parts=("pools",),
        read_by=BOTH,
    ),
    # In files alone, as people write them and as they are kept: where an API server has them, Calico has the sessions.
    Kind(
        "projectcalico.org", "v3", "BGPConfiguration", "bgpconfigurations", reader=calico_bgp.read_configuration,
        parts=("bgp",),
    ),
    Kind(
        "crd.projectcalico.org", "v1", "BGPConfiguration", "bgpconfigurations", reader=calico_bgp.read_configuration,
        parts=("bgp",),
    ),
    Kind("projectcalico.org", "v3", "BGPPeer", "bgppeers", reader=calico_bgp.read_peer, parts=("bgp",)),
    Kind("crd.projectcalico.org", "v1", "BGPPeer", "bgppeers", reader=calico_bgp.read_peer, parts=("bgp",)),
    Kind("projectcalico.org", "v3", "BGPFilter", "bgpfilters", reader=calico_filters.read_filter, parts=("bgp",)),
    Kind("crd.projectcalico.org", "v1", "BGPFilter", "bgpfilters", reader=calico_filters.read_filter, parts=("bgp",)),
    Kind(
        "cilium.io", "v2", "CiliumPodIPPool", "ciliumpodippools", reader=_plain(pod_pools.read_cilium),
        parts=("pools",), read_by=BOTH,
    ),
    Kind(
        "k8s.ovn.org", "v1", "EgressIP", "egressips",
        reader=FailClosed(ovn_kubernetes.read_egress_ip, ovn_kubernetes.covered_by_egress_ip),
        parts=("policies",), read_by=BOTH,
    ),
    Kind(
        "k8s.ovn.org", "v1", "EgressService", "egressservices", namespaced=True,
        reader=FailClosed(
            ovn_kubernetes.read_egress_service, ovn_kubernetes.covered_by_egress_service, namespaced=True
        ),
        parts=("policies",), read_by=BOTH,
    ),
)  # fmt: skip

_KUBE_OVN = (
    Kind(
        "kubeovn.io", "v1", "OvnEip", "ovn-eips", reader=ovn_named.read_ovn_eip, parts=("policies",), read_by=BOTH,
        kept=("spec", "status.v4Ip", "status.v6Ip"),
    ),
    Kind(
        "kubeovn.io", "v1", "OvnSnatRule", "ovn-snat-rules",
        reader=FailClosed(ovn_policies.read_ovn_snat_rule, ovn_policies.covered_by_ovn_snat_rule),
        parts=("policies",), read_by=BOTH,
    ),
    Kind(
        "kubeovn.io", "v1", "IptablesEIP", "iptables-eips", reader=ovn_named.read_iptables_eip, parts=("policies",),
        read_by=BOTH, kept=("spec", "status.ip"),
    ),
    Kind(
        "kubeovn.io", "v1", "IptablesSnatRule", "iptables-snat-rules",
        reader=FailClosed(ovn_policies.read_iptables_snat_rule, ovn_policies.covered_by_iptables_snat_rule),
        parts=("policies",), read_by=BOTH,
    ),
    Kind(
        "kubeovn.io", "v1", "VpcEgressGateway", "vpc-egress-gateways", namespaced=True,
        reader=FailClosed(
            ovn_policies.read_vpc_egress_gateway, ovn_policies.covered_by_vpc_egress_gateway, namespaced=True
        ),
        parts=("policies",), read_by=BOTH,
    ),
    Kind(
        "kubeovn.io", "v1", "Subnet", "subnets", reader=ovn_named.read_subnet, parts=("policies",), read_by=BOTH,
    ),
    Kind(
        "kubeovn.io", "v1", "VpcNatGateway", "vpc-nat-gateways", reader=ovn_named.read_nat_gateway,
        parts=("policies",), read_by=BOTH,
    ),
    Kind(
        "kubeovn.io", "v1", "IPPool", "ippools", reader=ovn_pods.read_ip_pool, parts=("pools",), read_by=BOTH,
    ),
)  # fmt: skip

_POLICY = "write it as an EgressPolicy"
_REFUSED = (
    Kind("metallb.io", "v1beta1", "L2Advertisement", instead="what is announced is announced by BGP"),
    Kind("isovalent.com", "v1", "IsovalentEgressGatewayPolicy", instead=_POLICY),
)

KINDS: tuple[Kind, ...] = (*_CORE, *_OWN, *_FOREIGN, *_KUBE_OVN, *_REFUSED)
BY_NAME: Mapping[tuple[str, str], Kind] = {(each.group, each.name): each for each in KINDS}
NAMES = frozenset(each.name for each in KINDS)


# Others are named by policies.
POLICY_KINDS: Mapping[str, Kind] = {each.name: each for each in KINDS if isinstance(each.reader, FailClosed)}


def policy_meant(group: str, name: str) -> Kind | None:
    """The kind of policy that a kind which nobody knows must be a misspelling of: its name stands in another group, or
    all of it is near.
    """
    names = {f"{each.group}/{each.name}".lower(): each for each in POLICY_KINDS.values()}
    near = difflib.get_close_matches(f"{group}/{name}".lower(), names, n=1, cutoff=LIKENESS)
    return names[near[0]] if near else POLICY_KINDS.get(name)


def read_by(role: Role) -> tuple[Kind, ...]:
    """What a role lists and watches."""
    return tuple(each for each in KINDS if role in each.read_by)


__all__ = [
    "BY_NAME", "KINDS", "OURS", "POLICY_KINDS", "Kind", "Object", "Read", "Reader", "Role", "policy_meant", "read_by",
]  # fmt: skip
