"""The one model behind every format: frozen values, no I/O, no YAML, no Kubernetes client.

A `Snapshot` is a frozen view of the store. A field that is `None` has not been synced yet: touch nothing that depends
on it. Empty means that there is nothing: remove what is ours. Addresses are `ipaddress` objects, in both families;
byte order is nobody's business before `bpf/layout.py` and the wire.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

from routerd.refs import EGRESS, NODE, PEER, Ref, service_ref
from routerd.selectors import EVERYTHING, LabelSelector

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
IPFamily = Literal["IPv4", "IPv6"]
Gets = Literal["services", "pod-cidrs", "egress"]  # addresses of Services, of pods, and egress IPs
Labels = Mapping[str, str]
PathOrigin = Literal["igp", "egp", "incomplete"]  # RFC 4271, section 5.1.1

EXCLUDE_LABEL = "node.kubernetes.io/exclude-from-external-load-balancers"
GATEWAY_LABEL = "routerd.io/egress-gateway"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"  # whose an EndpointSlice is
GATEWAY_HEARTBEAT = 10  # seconds between heartbeats of a node that may be a gateway
NODE_HEARTBEAT = 300  # of any other: 10 s of 1,000 nodes would be 100 writes a second to an API server
OWN_CLASS = "routerd.io/bgp"  # spec.loadBalancerClass; a service without a class is ours too
NAMESPACE_LABEL = "io.kubernetes.pod.namespace"  # Cilium's pseudo label for a pod's namespace
SERVICE_LABEL = "io.kubernetes.service.name"  # Cilium's pseudo labels of a service
SERVICE_NAMESPACE_LABEL = "io.kubernetes.service.namespace"
NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"  # set on every namespace by Kubernetes 1.21+
EIP, SNAT = "ovn.kubernetes.io/eip", "ovn.kubernetes.io/snat"  # Kube-OVN's annotations: with which address a pod leaves
LOWEST = -1_000_001  # priority of what users say of their own pods: no policy of the cluster's has one below
ASKED_LABEL = "egress IP asked for"  # our pseudo label for what they say; no label may be called so


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an object came from: a file and the line of its document (1-based), or an API server's object."""

    file: str = ""  # for messages; of an API server's object its kind and name, "" = not kept
    line: int = 0
    is_api: bool = False  # an API server gave it: what is gone there was deleted, while a file may be lost

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.file else "<store>"


GatewayMode = Literal["ecmp", "active-standby"]  # all gateways of a group alike, or one while it serves
Severity = Literal["error", "warning", "info"]
ORDINARY = frozenset(  # somebody asked for it
    {
        "NoLocalEndpoints", "NodeDrained", "NodeExcluded", "NotAdvertisedHere", "NotConfigured", "NotExported",
        "NotForPeer", "OtherClass", "PoolNotBgp",
    }
)  # fmt: skip
OF_PORTS = ("PortsExhausted", "PortsShort")  # some nodes have none of an egress IP, or fewer than they want
HALFWAY = frozenset(  # what matters goes on, but not all of it as it was meant
    {
        "AdvertisementNotSupported", "AgentAbsent", "AwaitingNodeReports", "BandwidthNotLimited", "BFDDown",
        "BFDNotSupported",
        "ConflictingAnnotations", "EgressAnnotationUnused", "EgressByAnnotation", "FamilyNotNegotiated",
        "ForwardingOff", "GatewayNotUsed",
        "GatewaysUnwatched", "HoldTimeTooLong", "KeyNotUsed", "MaxPodsTooHigh",
        "InvalidRouterID", "NetworkUnavailable", "NoBFD", "NoDevice", "NoEndpoints", "NumberMisread",
        "OverrideUnused",
        "PeeringNotSupported", "PodNearShare", "PodCIDRTaken", "PodCIDRsShort", "PodOutsideCluster", "PoolOverCluster",
        *OF_PORTS, "PortsScarce", "PrefixLimit", "RouteTaken", "StatusOfOther", "SubnetNotUsed", "TableNearlyFull",
        "UnknownAnnotation", "UnknownGateway", "UnknownLabel", "UnknownPeer", "UnreadConfiguration", "UpstreamLost",
        "UpstreamUnknown",
    }
)  # fmt: skip


def severity_of(reason: str) -> Severity:
    """How grave a refusal is. error: what was wanted is not done until somebody acts; warning: it is done in part, or
    waits for something that may come by itself; info: nobody need act.
    """
    return "info" if reason in ORDINARY else "warning" if reason in HALFWAY else "error"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something that was wanted is not done. `reason` is shared by status, metrics, events and `why`."""

    object: Ref
    reason: str  # "NoReadyEndpoint"
    message: str  # one sentence that says who must do what

    @property
    def order(self) -> tuple[str, str, str]:
        """The key by which documents and lists are sorted."""
        return str(self.object), self.reason, self.message

    @property
    def severity(self) -> Severity:
        return severity_of(self.reason)

    @property
    def gravity(self) -> int:
        """The gravest have the least: the key by which lists for people are sorted."""
        return ("error", "warning", "info").index(self.severity)


# --- Kubernetes core -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CloudInterface:
    """A network interface of an instance, as its node must know it."""

    mac: str
    own: IPv4Interface  # its primary address, with the subnet's mask
    blocks: tuple[IPNetwork, ...]  # of which pods get addresses: single ones as /32, prefixes
    leaving: tuple[IPNetwork, ...] = ()  # of which no pod gets one any more, though some may have one
    vpc: tuple[IPNetwork, ...] = ()  # networks of its VPC, where nodes translate what leaves it


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    labels: Labels = field(default_factory=dict)
    annotations: Labels = field(default_factory=dict)
    addresses: tuple[IPAddress, ...] = ()  # InternalIP first, then ExternalIP
    pod_cidrs: tuple[IPNetwork, ...] = ()
    ready: bool = True  # condition Ready is not False/Unknown; a node without conditions counts as ready
    network_unavailable: bool = False
    unschedulable: bool = False
    leaving: Literal["", "down", "to-be-deleted"] = ""  # it is shutting down or is down; an autoscaler wants it away
    taints: tuple[str, ...] = ()  # "key=value:Effect", sorted
    fenced: bool = False  # out of service by a taint: somebody vouches that it is off, and sends no packet
    most_pods: int = 0  # that its kubelet takes (maxPods); 0 = it does not say
    provider_id: str = (
        ""  # spec.providerID: what a cloud calls it, "aws:///ZONE/INSTANCE", "REGION.INSTANCE", "azure://ID"
    )
    interfaces: tuple[CloudInterface, ...] = ()  # the operator's word: of whose blocks its pods have addresses
    interfaces_generation: int = 0
    origin: Origin = Origin()

    @property
    def ref(self) -> Ref:
        return Ref(NODE, name=self.name)

    @property
    def tunnel_endpoint(self) -> IPAddress | None:
        """The first IPv4 address, else the first IPv6 one; packets of both families pass by it. None = the node can
        neither send to gateways nor be one.
        """
        return min(self.addresses, key=lambda address: address.version, default=None)


@dataclass(frozen=True, slots=True)
class Namespace:
    name: str
    labels: Labels = field(default_factory=dict)  # always holds NAMESPACE_NAME_LABEL
    annotations: Labels = field(default_factory=dict)
    origin: Origin = Origin()


@dataclass(frozen=True, slots=True)
class Pod:
    namespace: str
    name: str
    node: str = ""  # spec.nodeName; "" = not scheduled
    addresses: tuple[IPAddress, ...] = ()
    labels: Labels = field(default_factory=dict)
    annotations: Labels = field(default_factory=dict)
    host_network: bool = False
    finished: bool = False  # phase Succeeded or Failed: its address may already be another pod's
    uid: str = ""
    origin: Origin = Origin()

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class ServicePort:
    """Of a Service, or of its endpoints: then `port` 0 is every port."""

    protocol: Literal["TCP", "UDP", "SCTP"]
    port: int
    name: str = ""
    node_port: int = 0  # at every node's addresses; 0 = none


@dataclass(frozen=True, slots=True)
class Service:
    namespace: str
    name: str
    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] = "ClusterIP"
    cluster_ips: tuple[IPAddress, ...] = ()  # "None" (headless) is left out
    external_ips: tuple[IPAddress, ...] = ()
    requested_ips: tuple[IPAddress, ...] = ()  # spec.loadBalancerIP and the annotations that ask for addresses
    requested_pool: str = ""  # annotation …/address-pool
    unread_wishes: bool = False  # it asks for addresses by a mistake: it keeps what it has, and gets nothing new
    status_ips: tuple[IPAddress, ...] = ()  # status.loadBalancer.ingress: what was assigned before
    ports: tuple[ServicePort, ...] = ()
    selector: Labels = field(default_factory=dict)
    external_traffic_policy: Literal["Cluster", "Local"] = "Cluster"
    internal_traffic_policy: Literal["Cluster", "Local"] = "Cluster"
    load_balancer_class: str = ""
    ip_families: tuple[IPFamily, ...] = ()  # () = IPv4 first, by what pools offer
    ip_family_policy: Literal["SingleStack", "PreferDualStack", "RequireDualStack"] = "SingleStack"
    sharing_key: str = ""
    sharing_namespaces: frozenset[str] | None = None  # beside its own, "*" = all; None = whoever has the key
    labels: Labels = field(default_factory=dict)
    annotations: Labels = field(default_factory=dict)
    created: str = ""  # metadata.creationTimestamp (RFC 3339) or ""
    origin: Origin = Origin()
    egress: EgressPolicy | None = None  # how its pods leave, by its annotations

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def ref(self) -> Ref:
        return service_ref(self.key)

    @property
    def selectable(self) -> Labels:
        """What selectors of Services see: its labels, and Cilium's pseudo labels."""
        return {**self.labels, SERVICE_LABEL: self.name, SERVICE_NAMESPACE_LABEL: self.namespace}

    @property
    def is_left_to_us(self) -> bool:
        """Whether its class names no other load balancer."""
        return self.load_balancer_class in ("", OWN_CLASS)


@dataclass(frozen=True, slots=True)
class Endpoint:
    addresses: tuple[IPAddress, ...]
    node: str = ""
    ready: bool = True  # conditions.ready; absent counts as true (EndpointSlice API)
    draining: bool = False  # not ready, but serving and terminating: used where none is ready (KEP-1669)


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    namespace: str
    name: str
    service: str  # label kubernetes.io/service-name
    endpoints: tuple[Endpoint, ...] = ()
    origin: Origin = Origin()
    ports: tuple[ServicePort, ...] = ()  # of each endpoint; the Service's of the same name leads there

    @property
    def service_key(self) -> str:
        return f"{self.namespace}/{self.service}"


# --- BGP ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bfd:
    """How a peer is watched by BFD (RFC 5880). Intervals in microseconds; `multiplier` lost packets are a fault."""

    interval: int = 50_000  # between packets of ours, if the peer takes as many
    min_rx: int = 50_000  # between packets of the peer, at least
    multiplier: int = 3
    passive: bool = False  # says nothing before the peer does


@dataclass(frozen=True, slots=True)
class BfdProfile:
    """MetalLB's, by which a peer is watched that names it."""

    name: str
    bfd: Bfd
    origin: Origin = Origin()


PrefixMatch = Literal["in", "not-in", "equal", "not-equal"]
ExportAction = Literal["", "accept", "reject"]  # "" = the rules behind it decide


@dataclass(frozen=True, slots=True)
class ExportRule:
    """What becomes of paths that go to a peer. Of several rules the first one with an action that takes a path decides;
    a path that none decides goes out.
    """

    action: ExportAction = ""
    prefixes: tuple[IPNetwork, ...] = ()  # () = every path; else those of their families alone
    match: PrefixMatch = "in"  # within one of them; or one of them itself
    min_length: int = 0  # of a prefix that counts as "in"
    max_length: int = 128
    of: tuple[Gets, ...] = ()  # () = all
    communities: tuple[str, ...] = ()  # that a path gets, as normalised strings

    def takes(self, prefix: IPNetwork, what: Gets) -> bool:
        if self.of and what not in self.of:
            return False
        theirs = [each for each in self.prefixes if each.version == prefix.version]
        if not theirs:
            return not self.prefixes
        is_there = prefix in theirs if self.match in ("equal", "not-equal") else self._holds(theirs, prefix)
        return is_there != self.match.startswith("not-")

    def _holds(self, networks: Iterable[IPNetwork], prefix: IPNetwork) -> bool:
        if not self.min_length <= prefix.prefixlen <= self.max_length:
            return False
        return any(prefix.subnet_of(each) for each in networks)  # type: ignore[arg-type]  # of one version


@dataclass(frozen=True, slots=True)
class PeerOverride:
    """What some nodes have otherwise of a peer; None = as the peer says. `nodes` and `node_selectors` must both take a
    node; () = any.
    """

    name: str  # for messages
    nodes: tuple[str, ...] = ()
    node_selectors: tuple[LabelSelector, ...] = ()  # OR
    address: IPAddress | None = None
    local_as: int | None = None
    router_id: IPv4Address | None = None
    source_address: IPAddress | None = None
    listen_port: int | None = None
    password: str | None = field(default=None, repr=False)
    password_file: str | None = None
    closed: str = ""  # why there is no session on these nodes

    @property
    def says_nothing(self) -> bool:
        return replace(self, name="", nodes=(), node_selectors=()) == PeerOverride("")


@dataclass(frozen=True, slots=True)
class Peer:
    """A BGP peer as configured; times in seconds. Which nodes open the session is `node_selectors` (OR; none = all)."""

    address: IPAddress
    remote_as: int
    local_as: int
    port: int = 179
    passive: bool = False  # the router opens the session
    listen_port: int = 0  # where it may do so, also where the node opens it, too; 0 = nowhere, or 179 of a passive one
    found: Literal["", "router", "default-gateway"] = ""  # whose address it has; `address` is unspecified until then
    interface: str = ""  # by which the peer is reached; "" = by any. A link-local address has it as its zone (RFC 4007)
    source_address: IPAddress | None = None
    source_interface: str = ""  # whose address is the source
    router_id: IPv4Address | None = None
    hold_time: int = 90  # 0 = timers off
    keepalive_time: int | None = None
    connect_retry: int = 0  # between attempts to connect, and for one, at most; 0 = 5, and one takes what it takes
    password: str = field(default="", repr=False)
    password_file: str = ""  # the password is in this file of `bgp.password-dir`, on each node
    ebgp_multihop: bool = False  # as written; the TTL that we send with is large enough anyway
    graceful_restart_time: int = 120  # 0 = capability not offered
    bfd: Bfd | None = None  # None = without
    bfd_profile: str = ""  # of a reader: a BfdProfile that says `bfd` (`routerd.store.merge`)
    families: tuple[IPFamily, ...] = ("IPv4", "IPv6")  # of the paths that it gets
    ttl_security: int = 0  # the peer is at most so many hops away (RFC 5082); 0 = not asked
    max_prefixes: int = 0  # that the peer may announce, of each family; 0 = any number
    extended_next_hop: bool = False  # IPv4 paths go out with a next hop of IPv6 (RFC 8950)
    gets: tuple[Gets, ...] = ("services", "pod-cidrs", "egress")  # beside that for which advertisements name it
    export: tuple[ExportRule, ...] = ()  # in this order
    node_selectors: tuple[LabelSelector, ...] = ()
    overrides: tuple[PeerOverride, ...] = ()  # the first that takes a node counts there
    overridden: str = ""  # of a node's own peer, by which of them
    closed: str = ""  # why a node has no session with it, by its override
    name: str = ""  # for messages; "" = the address
    origin: Origin = Origin()

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """Its own, and those that it has for some nodes."""
        return (self.address, *(each.address for each in self.overrides if each.address is not None))

    @property
    def label(self) -> str:
        """How metrics, status and messages name the peer."""
        return self.name or str(self.address)

    @property
    def ref(self) -> Ref:
        return Ref(PEER, name=self.label)


@dataclass(frozen=True, slots=True)
class Advertisement:
    """How the addresses of a pool are announced. Communities are normalised strings, "64512:1", "rt:64512:1"."""

    aggregation_length: int = 32
    aggregation_length_v6: int = 128
    local_pref: int = 0  # sent to iBGP peers only; 0 is sent as it is (legacy dialects)
    communities: tuple[str, ...] = ()
    med: int | None = None  # MULTI_EXIT_DISC (RFC 4271, section 5.1.4); None = not sent
    prepend: int = 0  # how many times more the local AS stands in AS_PATH; eBGP only
    peers: tuple[str, ...] = ()  # by name or address; () = all
    node_selectors: tuple[LabelSelector, ...] = ()  # OR; () = all nodes
    services: tuple[LabelSelector, ...] = ()  # OR, by their labels; () = all, and egress IPs
    origin: PathOrigin = "igp"


@dataclass(frozen=True, slots=True)
class ServiceSelection:
    """Services that a pool is for: all parts that are given must match."""

    services: LabelSelector | None = None  # it also sees Cilium's pseudo labels for name and namespace
    namespaces: LabelSelector | None = None

    def matches(self, service: Service, namespace_labels: Labels) -> bool:
        labels = service.selectable
        return (self.services is None or self.services.matches(labels)) and (
            self.namespaces is None or self.namespaces.matches(namespace_labels)
        )


@dataclass(frozen=True, slots=True)
class AddressPool:
    """A pool of addresses. `blocks` keep the order of the file; a range is kept as its minimal list of networks."""

    name: str
    blocks: tuple[IPNetwork, ...]
    protocol: Literal["bgp", "layer2"] = "bgp"  # layer2 pools allocate, but are not announced by BGP
    uses: frozenset[Literal["loadbalancer", "egress"]] = frozenset({"loadbalancer"})
    auto_assign: bool = True
    avoid_buggy_ips: bool = False  # leave out x.x.x.0 and x.x.x.255
    priority: int = 0  # higher first, then name
    disabled: bool = False  # drain: keeps what it has, gives nothing new
    advertisements: tuple[Advertisement, ...] = (Advertisement(),)
    services: tuple[ServiceSelection, ...] | None = None  # which may have addresses of it (OR); None = every one
    gateways: LabelSelector | None = None  # of policies that leave with its addresses and do not say
    egress_annotations: bool = False  # pods and namespaces may ask for its addresses by EIP and SNAT
    labels: Labels | None = None  # of a reader: PoolAdvertisements take it by these (`routerd.store.merge`)
    ranges: tuple[tuple[IPNetwork, ...], ...] = ()  # of a reader, with `labels`: blocks that were written as one
    origin: Origin = Origin()


@dataclass(frozen=True, slots=True)
class PoolAdvertisement:
    """MetalLB's: how the pools that it takes, by name or label, are announced; both () = all that have labels.

    A community without a colon is a name that some `CommunityNames` says.
    """

    ref: Ref
    way: Advertisement
    pools: tuple[str, ...] = ()
    pool_selectors: tuple[LabelSelector, ...] = ()
    origin: Origin = Origin()


@dataclass(frozen=True, slots=True)
class CommunityName:
    name: str
    community: str


@dataclass(frozen=True, slots=True)
class CommunityNames:
    """MetalLB's: names of communities."""

    ref: Ref
    names: tuple[CommunityName, ...]
    origin: Origin = Origin()


@dataclass(frozen=True, slots=True)
class ClusterCIDR:
    """Of which each node has blocks of `node_prefix` bits for its pods."""

    network: IPNetwork
    node_prefix: int


@dataclass(frozen=True, slots=True)
class PodPool:
    """Addresses for pods, as another maker's object says: nodes have blocks of it, and pods may name it."""

    name: str
    networks: tuple[IPNetwork, ...]  # what is a pod's that names it
    cidrs: tuple[ClusterCIDR, ...] = ()  # of which nodes may have blocks; () = it only says who may have what
    reserved: tuple[IPNetwork, ...] = ()  # of these nobody gets anything new
    disabled: bool = False  # drain: keeps what it has, gives nothing new
    asked_only: bool = False  # for nodes and pods that name it
    nodes: LabelSelector | None = None  # which may have blocks; None = every one
    for_pods: LabelSelector | None = None  # whose pods have addresses of it that name no pool; both None = nobody's
    for_namespaces: LabelSelector | None = None  # where both are given, both must match
    announced: bool = True
    origin: Origin = Origin()


# --- egress ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PodSelection:
    """Pods that a policy takes: all parts that are given must match. `node` selects the source node."""

    pods: LabelSelector | None = None
    namespaces: LabelSelector | None = None
    nodes: LabelSelector | None = None


@dataclass(frozen=True, slots=True)
class PortRange:
    """Destination ports, both ends included. `first` = 0 means any port of the protocol."""

    protocol: Literal["TCP", "UDP", "SCTP", "ICMP"]
    first: int = 0
    last: int = 0


@dataclass(frozen=True, slots=True)
class Awaited:
    """What a policy of another make names, and another object says."""

    kind: str  # "CIDR": the Subnet that has it
    name: str
    at: str  # where it is written, as a message begins: "FILE:LINE:COLUMN: KEY: "
    vpc: str = ""  # of a Subnet; "" = any


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """Selected pods leave for `destinations` (less `excluded`) with an egress IP.

    The addresses are given (`egress_ips`), or so many (`count`) of each family are taken from a pool (`pool`), or they
    are the VIPs of a Service (`service`), whose backends are the pods that are selected.
    `gateways` selects gateway nodes; None means the node that holds the addresses on an interface, else the nodes
    labelled `routerd.io/egress-gateway`; of VIPs every node that announces them.
    """

    name: str  # "namespace/name" of what has a namespace
    kind: str = "EgressPolicy"  # the kind that the user wrote, for messages
    selections: tuple[PodSelection, ...] = ()
    destinations: tuple[IPNetwork, ...] = ()  # () = of a reader: all in the pool's families (`routerd.store.merge`)
    excluded: tuple[IPNetwork, ...] = ()
    ports: tuple[PortRange, ...] = ()  # () = every protocol that the datapath translates
    egress_ip: IPAddress | None = None
    pool: str = ""
    gateways: LabelSelector | None = None
    priority: int = 0
    created: str = ""
    origin: Origin = Origin()
    refused: bool = False  # only who and what it covers was taken: that is dropped, and a refusal says why
    further_ips: tuple[IPAddress, ...] = ()  # that are given beside `egress_ip`
    count: int = 1
    exit_local: bool = False  # packets leave by the pod's own node; gateways bring the answers
    gateway_mode: GatewayMode | None = None  # None = as the operator has it
    service: str = ""  # "namespace/name"; `selections` are then its backends, as stores put them there
    awaits: tuple[Awaited, ...] = ()  # of a reader: stores put in what it says (`foreign.kube_ovn.joined`)

    @property
    def egress_ips(self) -> tuple[IPAddress, ...]:
        """Those that are given, in the order of the file; () = they come from the pool."""
        return (self.egress_ip, *self.further_ips) if self.egress_ip is not None else ()

    @property
    def key(self) -> str:
        """Under which a snapshot and the operator's documents hold it."""
        return f"{self.kind}/{self.name}"  # as `str(ref)`

    @property
    def ref(self) -> Ref:
        return Ref.parse(self.key)


def asked_egress_ip(annotations: Labels) -> str:
    """As it is written: `eip` wins over `snat`, as in Kube-OVN; "" = none."""
    return annotations.get(EIP, "").strip() or annotations.get(SNAT, "").strip()


def is_gateway(selector: LabelSelector | None, node: Node) -> bool:
    """Whether a policy with this selector may have `node` as gateway; None = the nodes labelled as such."""
    if selector is not None:
        return selector.matches(node.labels)
    return node.labels.get(GATEWAY_LABEL, "false") != "false"


# --- what the operator publishes ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServiceAllocation:
    service: str  # "namespace/name"
    pool: str
    addresses: tuple[IPAddress, ...]


@dataclass(frozen=True, slots=True)
class EgressGroup:
    """What one or more policies leave through. `id` is the VNI, 1 … 2^24-1. `gateways` are names of nodes in order of
    preference.
    """

    id: int
    egress_ip: IPAddress
    policies: tuple[str, ...]  # keys of EgressPolicy, sorted
    gateways: tuple[str, ...] = ()
    node_address: bool = (
        False  # the address sits on an interface of its only gateway: not announced, reserved port range
    )
    pool: str = ""  # the pool the address came from, "" = given by the policy
    further_ips: tuple[IPAddress, ...] = ()  # for nodes and connections that one has no ports for; of either family
    gateway_mode: GatewayMode = "ecmp"
    service: str = ""  # "namespace/name" of the one whose VIPs they are: it is announced as the Service is

    @property
    def active_gateways(self) -> tuple[str, ...]:
        """Those by which traffic goes while all of them serve."""
        return self.gateways[:1] if self.gateway_mode == "active-standby" else self.gateways

    @property
    def egress_ips(self) -> tuple[IPAddress, ...]:
        return (self.egress_ip, *self.further_ips)

    @property
    def ref(self) -> Ref:
        """Whose its path is."""
        return Ref(EGRESS, name=str(self.id))

    @property
    def address_ref(self) -> Ref:
        """What refusals about its address and its gateways name."""
        return Ref(EGRESS, name=str(self.egress_ip))


@dataclass(frozen=True, slots=True)
class NodeLink:
    """How neighbours on its link know a node's interface."""

    address: IPAddress
    mac: str  # of the frames that it sends: "02:00:5e:10:00:01"
    link_local: IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class NodeAddresses:
    """What the operator knows of a node beside its Node object."""

    node: str
    addresses: tuple[IPAddress, ...] = ()  # on its interfaces, and on no other node's; sorted, IPv4 first
    silent_since: str = ""  # RFC 3339: when its agent was heard last, if it is absent; "" = it is there
    link: NodeLink | None = None  # of its tunnel endpoint, if it says so


@dataclass(frozen=True, slots=True)
class PoolWays:
    """How the addresses of a pool are announced, for the time when the pool is gone and they are still in use."""

    pool: str
    protocol: Literal["bgp", "layer2"] = "bgp"
    advertisements: tuple[Advertisement, ...] = (Advertisement(),)


@dataclass(frozen=True, slots=True)
class NodeNumber:
    """By which tables of ports name a node: 1 … 65535. It rests before another node gets it."""

    node: str
    number: int


@dataclass(frozen=True, slots=True)
class PortBlock:
    """An aligned power of two of ports of an egress IP that a node has."""

    first: int  # port
    size: int  # ports, 64 at least
    node: int  # its number
    returning: bool = False  # asked back: no new mapping is made there, and it is given back after the last flow

    @property
    def last(self) -> int:
        return self.first + self.size - 1


@dataclass(frozen=True, slots=True)
class CoolingPorts:
    """Ports that somebody had, and nobody has before they have rested. Only the operator reads it."""

    since: int  # seconds of the Unix epoch
    version: int  # of the table, in which they were taken out
    ranges: tuple[tuple[int, int], ...]  # first port, ports


@dataclass(frozen=True, slots=True)
class BindingTable:
    """Whose the ports of an egress IP are, as gateways and nodes read it (as the binding table of RFC 7596).

    A granule is the 64 ports with `port >> 6` in common; tables have an entry for each of the 1,024.
    """

    egress_ip: IPAddress
    version: int  # grows with every change of this table
    owners: bytes  # of each granule: the node's number, an unsigned 16-bit integer in network byte order; 0 = nobody
    starts: bytes  # of each granule: a bit, 1 where a block begins; the lowest bit of the first byte is granule 0
    returning: tuple[int, ...] = ()  # first ports of the blocks that were asked back
    told: tuple[int, ...] = ()  # numbers of the gateways that may have bindings of it, also of those that are none now
    awaited: int = (
        0  # these confirm that they have applied this version, or a later one; 0 = there is nothing to confirm
    )
    cooling: tuple[CoolingPorts, ...] = ()
    asked: int = 0  # the version in which a block of `returning` was asked back last

    def numbers(self) -> tuple[int, ...]:
        """Of each granule the node's number, 0 = nobody."""
        return struct.unpack("!1024H", self.owners)

    def blocks(self, number: int | None = None) -> tuple[PortBlock, ...]:
        """All blocks in the order of their ports, or those of the node with this number."""
        owners, starts = self.numbers(), int.from_bytes(self.starts, "little")
        firsts = [granule for granule, owner in enumerate(owners) if starts >> granule & 1 and owner]
        found = []
        for granule in firsts:
            owner, end = owners[granule], granule + 1
            if number not in (None, owner):
                continue
            while end < len(owners) and owners[end] == owner and not starts >> end & 1:
                end += 1
            first = granule << 6
            found.append(PortBlock(first, end - granule << 6, owner, first in self.returning))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Writer:
    """Which operator wrote a document."""

    node: str  # where it runs, for people
    ledger: str  # which ledger it decides from
    lease: int  # of that ledger: a later one outdates the earlier ones


@dataclass(frozen=True, slots=True)
class NodeBlocks:
    """What a node's pods have their addresses from."""

    node: str
    blocks: tuple[IPNetwork, ...]  # IPv4 first


@dataclass(frozen=True, slots=True)
class NodeInterfaces:
    """What a node's pods have their addresses from where these are a cloud's."""

    node: str
    interfaces: tuple[CloudInterface, ...]  # by index of the device
    generation: int = 0  # grows with each change, also where the node has another instance now


def with_blocks(
    nodes: Mapping[str, Node], given: Iterable[NodeBlocks], of_cloud: Iterable[NodeInterfaces] = ()
) -> Mapping[str, Node]:
    """The nodes with the pod CIDRs that the operator gave them, in place of what their Nodes say, and with the
    interfaces that it made for them; the same if there are none.
    """
    found = dict(nodes)
    found |= {each.node: replace(found[each.node], pod_cidrs=each.blocks) for each in given if each.node in nodes}
    found |= {
        each.node: replace(found[each.node], interfaces=each.interfaces, interfaces_generation=each.generation)
        for each in of_cloud
        if each.node in nodes
    }
    return nodes if found == nodes else found


@dataclass(frozen=True, slots=True)
class Allocations:
    """The one document that the operator writes and every agent reads."""

    generation: int = 0
    services: tuple[ServiceAllocation, ...] = ()  # sorted by service
    groups: tuple[EgressGroup, ...] = ()  # sorted by id
    refusals: tuple[Refusal, ...] = ()  # sorted by object
    nodes: tuple[NodeAddresses, ...] = ()  # sorted by node
    pools: tuple[PoolWays, ...] = ()  # in use, and announced otherwise than by default; sorted by pool
    numbers: tuple[NodeNumber, ...] = ()  # sorted by node
    bindings: tuple[BindingTable, ...] = ()  # sorted by egress IP, IPv4 first; also of those that no group has any more
    pod_cidrs: tuple[NodeBlocks, ...] = ()  # sorted by node
    interfaces: tuple[NodeInterfaces, ...] = ()  # sorted by node
    writer: Writer | None = field(default=None, compare=False)  # the same content of another writer is the same


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How often an agent says that its node serves, and its latest word: every beat is another text.

    Whoever reads it measures by its own clock how long it has seen the same; no two clocks are compared.
    """

    seconds: int = NODE_HEARTBEAT  # between two beats; `GATEWAY_HEARTBEAT` if the node may be a gateway
    beat: str = field(default="", compare=False)  # "" = none yet: the agent has not served since it reports


@dataclass(frozen=True, slots=True)
class PortAsk:
    """A node has selected pods of a group, and so needs ports."""

    group: int  # number
    ports: int = 0  # that it wants in all; 0 = a first set
    used: int = field(
        default=0, compare=False
    )  # of those that it has: minutes old, for people; no reason to decide anew


@dataclass(frozen=True, slots=True)
class UnusedBlock:
    """A block that was asked back, and in which the node has no flow left, and makes no mapping any more."""

    egress_ip: IPAddress
    first: int  # port
    size: int  # ports
    version: int  # of the table in force on the node when it said so


@dataclass(frozen=True, slots=True)
class AppliedTable:
    """A gateway has no binding of this egress IP any more that is not in the table of this version."""

    egress_ip: IPAddress
    version: int


@dataclass(frozen=True, slots=True)
class PortReport:
    """What an agent says of ports; each part is sorted."""

    asks: tuple[PortAsk, ...] = ()
    unused: tuple[UnusedBlock, ...] = ()
    applied: tuple[AppliedTable, ...] = ()  # of tables that wait for this gateway's word


@dataclass(frozen=True, slots=True)
class PodCount:
    """Pods of a node with a network of their own."""

    with_address: int = 0
    waiting: int = 0  # that are on the node and have no address yet


@dataclass(frozen=True, slots=True)
class BlockReport:
    """What an agent says of the blocks of its node's interfaces; each part is sorted."""

    kept: tuple[IPNetwork, ...] = ()  # of which it gives addresses, or somebody has one
    busy: tuple[IPNetwork, ...] = ()  # of these, those of which an address is not free
    generation: int = 0  # of what it has read: nothing older counts for it any more, also after a restart


@dataclass(frozen=True, slots=True, order=True)
class EgressAsk:
    """Pods of a namespace leave with this address, by their annotations; which pods, agents alone know."""

    namespace: str
    egress_ip: IPAddress


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What only a node knows; its agent writes it, the operator reads it."""

    node: str
    addresses: tuple[IPAddress, ...] = ()  # global addresses on the node's own interfaces
    networks: tuple[IPNetwork, ...] = ()  # that those interfaces are in; its default next hops as /32 and /128
    draining: bool = False  # it is being taken out of service, or is out: a gateway only where no other node can be
    heartbeat: Heartbeat | None = None  # None = of a release that has none: its agent counts as there
    ports: PortReport | None = None  # None = it has not read all that it asks by, or is of a release that asks for none
    pods: PodCount | None = None  # None = nobody asks for it, or it has not read its pods
    links: tuple[NodeLink, ...] = ()  # by address, of interfaces that other nodes may be on; () = it wants tunnels
    blocks: BlockReport | None = None  # None = its pods have no addresses of a cloud, or it has not read them
    egress_asks: tuple[EgressAsk, ...] | None = None  # sorted; None = it has not read its pods


# --- the view ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Peering:
    """Every BGP peer of the cluster, of whichever ConfigMap."""

    peers: tuple[Peer, ...] = ()


@dataclass(frozen=True, slots=True)
class Unread:
    """Allocations that were published, and cannot be read now."""

    message: str
    head: Allocations | None = None  # generation and writer, without records; None = not even those are known


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A frozen view of the store. `None` = not synced yet. Parts bear the words in which people are told of them."""

    nodes: Mapping[str, Node] | None = field(default=None, metadata={"words": "nodes"})
    namespaces: Mapping[str, Namespace] | None = field(default=None, metadata={"words": "namespaces"})
    # by "namespace/name", and services too
    pods: Mapping[str, Pod] | None = field(default=None, metadata={"words": "pods"})
    services: Mapping[str, Service] | None = field(default=None, metadata={"words": "services"})
    endpoint_slices: tuple[EndpointSlice, ...] | None = field(default=None, metadata={"words": "endpoint slices"})
    # no ConfigMap at all is an empty Peering
    bgp: Peering | None = field(default=None, metadata={"words": "BGP peers"})
    pools: Mapping[str, AddressPool] | None = field(default=None, metadata={"words": "address pools"})
    # by key, "Kind/name"
    policies: Mapping[str, EgressPolicy] | None = field(default=None, metadata={"words": "egress policies"})
    pod_pools: Mapping[str, PodPool] = field(default_factory=dict)  # by name; known when `pools` are
    allocations: Allocations | None = field(default=None, metadata={"words": "allocations (the operator's)"})
    unread: Unread | None = None  # what is published; `allocations` is then what it said before, None = never
    refusals: tuple[Refusal, ...] = ()  # objects that the store could not take, with why
    service_cidrs: tuple[IPNetwork, ...] = ()  # from configuration

    @property
    def is_synced(self) -> bool:
        """Whether all is read that people and the API server say; the operator may have published nothing yet."""
        return not self.missing(name for name in PARTS if name != "allocations")

    def cluster_ips(self, service: Service) -> tuple[IPAddress, ...]:
        """Those that count: what an API server gave; what a file says only in service CIDRs, if its family has any."""
        if service.origin.is_api or not self.service_cidrs:
            return service.cluster_ips
        return tuple(filter(self._may_be_cluster_ip, service.cluster_ips))

    def _may_be_cluster_ip(self, address: IPAddress) -> bool:
        cidrs = [cidr for cidr in self.service_cidrs if cidr.version == address.version]
        return not cidrs or any(address in cidr for cidr in cidrs)

    def missing(self, parts: Iterable[str] | None = None) -> tuple[str, ...]:
        """Which of these parts, of all without, have not been read; in words."""
        return tuple(PARTS[name] for name in (PARTS if parts is None else parts) if getattr(self, name) is None)


PARTS: Mapping[str, str] = {each.name: each.metadata["words"] for each in fields(Snapshot) if "words" in each.metadata}


def selection_matches(selection: PodSelection, pod: Pod, namespace_labels: Labels, node_labels: Labels) -> bool:
    """Whether `selection` takes `pod`. Pod selectors also see Cilium's pseudo label for the namespace, and our own."""
    pod_labels = {**pod.labels, NAMESPACE_LABEL: pod.namespace}
    if asked := asked_egress_ip(pod.annotations):
        pod_labels[ASKED_LABEL] = asked
    return (
        (selection.pods is None or selection.pods.matches(pod_labels))
        and (selection.namespaces is None or selection.namespaces.matches(namespace_labels))
        and (selection.nodes is None or selection.nodes.matches(node_labels))
    )


__all__ = [
    "ASKED_LABEL", "EIP", "EVERYTHING", "EXCLUDE_LABEL", "GATEWAY_HEARTBEAT", "GATEWAY_LABEL", "LOWEST",
    "NAMESPACE_LABEL", "NAMESPACE_NAME_LABEL", "NODE_HEARTBEAT", "OF_PORTS", "PARTS", "SERVICE_NAME_LABEL", "SNAT",
    "AddressPool", "Advertisement", "Allocations", "AppliedTable", "BfdProfile", "BindingTable", "BlockReport",
    "CloudInterface", "ClusterCIDR", "CommunityName", "CommunityNames", "CoolingPorts", "EgressAsk", "EgressGroup",
    "EgressPolicy", "Endpoint", "EndpointSlice", "ExportRule", "GatewayMode", "Heartbeat", "IPAddress", "IPNetwork",
    "LabelSelector", "Labels", "Namespace", "Node", "NodeAddresses", "NodeBlocks", "NodeInterfaces", "NodeLink",
    "NodeNumber", "NodeReport", "Origin", "Peer", "Peering", "Pod", "PodCount", "PodSelection", "PoolAdvertisement",
    "PoolWays", "PortAsk", "PortBlock", "PortRange", "PortReport", "Refusal", "Service", "ServiceAllocation",
    "ServicePort", "ServiceSelection", "Snapshot", "Unread", "UnusedBlock", "Writer", "asked_egress_ip", "is_gateway",
    "selection_matches", "with_blocks",
]  # fmt: skip
