"""routerd's own configuration file (`routerd.yaml`): strict, every setting with its unit and its default's reason.

This module reads one file and decides nothing; command line options are laid over the result with
`dataclasses.replace`.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Literal, cast

from bpf.layout import PROBES_KEPT
from egress.entries import is_sayable
from egress.policy import NetworkPolicy, Transport, TunnelPackets
from eni.plan import MARK
from routerd.config.cloud import CloudSettings, read_cloud
from routerd.errors import InputError
from routerd.formats.compose import documents
from routerd.formats.document import Section, Source, Value, parse_address
from routerd.formats.meta import ROUTERD
from routerd.model import GATEWAY_HEARTBEAT, NODE_HEARTBEAT, ClusterCIDR, GatewayMode, IPAddress, IPNetwork
from upstream.targets import Rules, Target

DAY = 86400
SOURCES = ("auto", "node", "routerd")  # of nodes' pod CIDRs
MOST_BLOCK_BITS = 16  # of pod-cidrs: 65,536 blocks of one CIDR, as Kubernetes has it
MOST_TARGETS = 16  # of a gateway's probe
_RUN_DIR = re.compile(r"^run-dir:\s+[\"']?(/[^\s\"',#]+)", re.MULTILINE)
_INTERVAL = re.compile(r"(\d{1,5})(ms|s)")
_TAINT = re.compile(r"[\w./-]+(=[\w.-]*)?(:(NoSchedule|PreferNoSchedule|NoExecute))?", re.ASCII)
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Where the desired objects are."""

    kind: Literal["files", "kubernetes"] = "files"
    """files = the embedded store; it needs nothing else to run. kubernetes = the API server."""
    manifests: Path = Path("/etc/routerd/manifests")
    """Directory of YAML manifests, read with its subdirectories and watched."""
    allocations: Path = Path("/etc/routerd/manifests/allocations.yaml")
    """File that the operator writes and agents read; beside the manifests, to be replicated with them."""
    node_report: Path = Path("/var/lib/routerd/node.yaml")
    """File in which this node's agent reports its addresses; in the state directory, which no two nodes share."""
    node_reports: tuple[str, ...] = ("/var/lib/routerd/node.yaml",)
    """Glob patterns of the reports that the operator reads; this node's own by default: one host needs no more."""
    kubeconfig: Path | None = None
    """How to reach the API server; none = the service account of the pod."""
    namespace: str = "routerd"
    """Namespace of what routerd itself keeps in the API server, and of ConfigMaps of its own."""
    metallb_status: bool = True
    """Whether ServiceBGPStatus and ConfigurationState of MetalLB are written there, where their CRDs are: the former is
    an object for each node and Service."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What is written to standard error."""

    format: Literal["logfmt", "json"] = "logfmt"
    """logfmt reads well in a terminal; json is for collectors."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """info tells every change of state and nothing that repeats."""


@dataclass(frozen=True, slots=True)
class LivenessConfig:
    """How nodes watch the gateways of their pods: by BFD echo through the tunnel."""

    enabled: bool = True
    """Off: a gateway that dies is replaced by the operator, 40 s after the last word of its agent."""
    interval: int = 50_000
    """Microseconds between two probes; with the multiplier a gateway is left after at most 175 ms."""
    multiplier: int = 3
    """Probes without an answer that make a gateway dead; fewer than three would be one burst of loss."""


@dataclass(frozen=True, slots=True)
class EgressConfig:
    """The egress gateway of this node."""

    enabled: bool = True
    """Off: no program is attached and no map is made."""
    uplinks: tuple[str, ...] = ()
    """Devices by which egress traffic leaves; none = those of the default routes."""
    host_devices: tuple[str, ...] = ()
    """Devices that look like pods' and are not: the host forwards for others by them."""
    tunnel_port: int = 8473
    """UDP port of the tunnel between nodes; not 8472 (VXLAN of most CNIs) nor 4789 (IANA's VXLAN)."""
    transport: Transport = "vxlan"
    """How packets go between nodes: vxlan = through the tunnel; direct = without it, between nodes on one link alone;
    auto = so where it was tried and works, else through the tunnel."""
    tunnel_packets: TunnelPackets = "auto"
    """Who makes and takes tunnel packets: auto = the programs where they can, past the host's stack; device = the
    tunnel device alone, so that the host's own rules and IPsec policies see them."""
    attach: Literal["auto", "tcx", "clsact"] = "auto"
    """How programs are attached; auto = tcx where the kernel has it (6.6), else clsact."""
    loader: Literal["libbpf", "bcc"] = "libbpf"
    """Where programs come from: libbpf = the compiled object in the package, bcc = compiled on the node at start."""
    network_policy: NetworkPolicy = "auto"
    """Whether the CNI's NetworkPolicies see what leaves: forward = the first packet of each flow takes the host's
    forward hook, where most CNIs enforce them; direct = none does; auto = as the CNI that is found asks for."""
    forward_mark_bit: int = 12
    """Bit of the mark that such first packets bear on the host, 12 = 0x1000; nobody else on the node may use it."""
    nat_entries: int = 262144
    """Connections of its own pods that a node can translate at once; as many as nf_conntrack has on most hosts."""
    flows_per_pod: int = 0
    """Most connections of one pod, so that none takes the room of the others; 0 = a quarter of nat_entries."""
    ports_per_pod: int = 0
    """Most ports that one pod has in use and at rest, towards whichever remote; 0 = half of nat_entries."""
    in_cluster: tuple[IPNetwork, ...] = ()
    """Networks in which `externalIPs` of services are in-cluster; none, because any user may write a Service."""
    liveness: LivenessConfig = field(default_factory=LivenessConfig)
    upstream_probe: Rules | None = None
    """What a gateway asks of the world behind its routers; none = it believes its uplink, routes and BGP sessions."""
    allowed_addresses: tuple[IPNetwork, ...] = ()
    """Networks that every egress IP must lie in, for the operator; none = any address that is nobody's."""


@dataclass(frozen=True, slots=True)
class AnnounceConfig:
    """Which addresses are announced by BGP."""

    loadbalancer: bool = True
    """VIPs of services of type LoadBalancer: the main purpose."""
    pod_cidrs: bool = False
    """Pod CIDRs of this node; off, because most networks do not want them and a CNI may announce them."""
    egress: bool = True
    """Egress IPs for which this node is a gateway: replies come back by them."""
    external_ips: tuple[IPNetwork, ...] = ()
    """ExternalIPs of Services in these networks; none, as whoever may write a Service may name any address."""
    cluster_ips: tuple[IPNetwork, ...] = ()
    """ClusterIPs of Services in these networks; none, as they are made for use within the cluster."""


@dataclass(frozen=True, slots=True)
class BrakeConfig:
    """Withdrawals that are many at once and that no change explains are held."""

    enabled: bool = True
    """Off: whatever the store says is done at once."""
    percent: int = 50
    """Held is what takes more than this part of a peer's paths: a mistake with the store rarely takes less."""
    paths: int = 20
    """Fewer paths than this are never held: small sets change as a whole."""
    hold: int = 600
    """Seconds after which it is done all the same: time for a person to look."""


@dataclass(frozen=True, slots=True)
class BgpConfig:
    """BGP of this node; the peers are in the store."""

    enabled: bool = True
    """Off: no speaker is started."""
    router_id: IPv4Address | None = None
    """BGP identifier of this node; none = the peer's `router-id`, else the node's first IPv4 address."""
    password_dir: Path = Path("/etc/routerd/passwords")
    """Where the files are that peers name by `password-file`."""
    announce: AnnounceConfig = field(default_factory=AnnounceConfig)
    brake: BrakeConfig = field(default_factory=BrakeConfig)


@dataclass(frozen=True, slots=True)
class DrainConfig:
    """How this node is taken out of service."""

    notice: int = 5
    """Seconds in which peers are asked to prefer other nodes (GRACEFUL_SHUTDOWN) before the paths are withdrawn."""
    cordoned: bool = False
    """Whether a cordoned node counts as drained; off, because a cluster of one node may be cordoned, too."""
    taints: tuple[str, ...] = ()
    """Taints for which a node counts as drained: "key", "key=value", each with ":Effect" or without."""


@dataclass(frozen=True, slots=True)
class NativeRoutingConfig:
    """How packets come to pods of other nodes, where the CNI leaves that to us."""

    auto_direct_node_routes: bool = False
    """Routes to the pod CIDRs of nodes on one link with this one; off, because most CNIs have a way of their own."""
    learn: tuple[IPNetwork, ...] = ()
    """Networks in which routes are learnt from BGP peers; none, as whoever may announce them leads packets."""


@dataclass(frozen=True, slots=True)
class OperatorConfig:
    """The one writer of allocations."""

    ledger: Path = Path("/var/lib/routerd/ledger.sqlite")
    """SQLite file of every allocation and its history; in the state directory, never on a shared file system."""
    retention: int = 400 * DAY
    """Seconds that the history of released addresses is kept: a year and a month, for audits."""
    egress_retention: int = 30 * DAY
    """Seconds that an egress IP stays bound to a policy that is gone: firewalls elsewhere still trust it."""
    flow_deadline: int = 3600
    """Seconds that nodes keep the ports of an egress IP which no policy has any more: what runs may end meanwhile."""
    cooldown: int = 30
    """Seconds before a freed address may be used again: caches of neighbours and routers run out."""
    lease_duration: int = 15
    """Kubernetes: seconds after which another operator takes over from one that says nothing; as its controllers do."""
    lease_renew_deadline: int = 10
    """Kubernetes: seconds after which an operator that cannot renew its lease stops; less than `lease_duration`."""
    lease_retry: int = 2
    """Kubernetes: seconds between attempts to get or to renew the lease."""
    gateway_patience: int = 4 * GATEWAY_HEARTBEAT
    """Seconds without a word of its agent after which a gateway is replaced: four beats, as one may be late."""
    node_patience: int = 4 * NODE_HEARTBEAT
    """The same for any other node, whose agent is then shown as absent; those beat every 5 minutes."""
    gateway_mode: GatewayMode = "ecmp"
    """How gateways share an egress IP whose policy does not say; ecmp = all alike, as none of them keeps state."""
    metrics_listen: tuple[IPAddress, int] | None = (IPv4Address("127.0.0.1"), 9794)
    """Address and TCP port of the operator's /metrics and probes; an agent on the same host has another. None = off."""


def own_name() -> str:
    """One configuration serves all nodes of a cluster: a pod is told its node by its environment."""
    return os.environ.get("NODE_NAME") or socket.gethostname()


@dataclass(frozen=True, slots=True)
class PodAddressConfig:
    """`pod-addresses`: what `routerd-ipam` gives."""

    retention: int = DAY
    """Seconds that an address is kept for a pod that is gone and asked for it by name, or was a StatefulSet's."""


@dataclass(frozen=True, slots=True)
class Config:
    """The whole file."""

    node_name: str = field(default_factory=own_name)
    """Name of this node's Node object; the host name, as kubelet does, unless the environment has NODE_NAME."""
    store: StoreConfig = field(default_factory=StoreConfig)
    state_dir: Path = Path("/var/lib/routerd")
    """What must survive a reboot. No two nodes may share it."""
    run_dir: Path = Path("/run/routerd")
    """Sockets and what must not survive a reboot."""
    pin_dir: Path = Path("/sys/fs/bpf/routerd")
    """Pinned eBPF maps and links: the datapath goes on when no routerd runs."""
    metrics_listen: tuple[IPAddress, int] | None = (IPv4Address("127.0.0.1"), 9793)
    """Address and TCP port of /metrics; loopback, because what is not asked for is not exposed. None = off."""
    log: LogConfig = field(default_factory=LogConfig)
    service_cidrs: tuple[IPNetwork, ...] = ()
    """The cluster's service CIDRs: never sent out by a gateway, never handed out as addresses."""
    cluster_cidrs: tuple[IPNetwork, ...] = ()
    """More in-cluster prefixes besides node addresses, pod and service CIDRs."""
    egress: EgressConfig = field(default_factory=EgressConfig)
    bgp: BgpConfig = field(default_factory=BgpConfig)
    native_routing: NativeRoutingConfig = field(default_factory=NativeRoutingConfig)
    drain: DrainConfig = field(default_factory=DrainConfig)
    operator: OperatorConfig = field(default_factory=OperatorConfig)
    cloud: CloudSettings = field(default_factory=CloudSettings)
    pod_addresses: PodAddressConfig = field(default_factory=PodAddressConfig)
    pod_cidrs: tuple[ClusterCIDR, ...] = ()
    """Of which the operator gives nodes blocks for their pods; they are cluster CIDRs, too. () = somebody else does."""
    pod_cidr_source: Literal["auto", "node", "routerd"] = "auto"
    """auto: the operator, where there are `pod_cidrs`; node: what Nodes say, from whomever; routerd: the operator, also
    of the pools of pods that other makers' objects say."""

    @property
    def gives_blocks(self) -> bool:
        """Whether the operator gives nodes blocks for their pods."""
        return self.of_pod_pools or (self.pod_cidr_source == "auto" and bool(self.pod_cidrs))

    @property
    def of_pod_pools(self) -> bool:
        """Whether it gives them blocks of pools of pods as well."""
        return self.pod_cidr_source == "routerd"


def boot_guard(config: Config) -> Path:
    """What `nft -f` loads at boot, see `routerd.agent.egress.BootGuard`."""
    return config.state_dir / "guard.nft"


DEFAULT = Config(node_name="localhost")


def load_config(path: Path) -> Config:
    """Raises InputError, also if the file cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=str(path)) from error
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8", file=str(path)) from error
    return parse_config(text, str(path))


def run_dir_of(text: str) -> Path | None:
    """What a file says of `run-dir`, whatever else is wrong with it: its text need not even be YAML."""
    match = _RUN_DIR.search(text)
    return Path(match[1]) if match else None


def parse_config(text: str, file: str = "") -> Config:
    """Raises InputError. What is not given has its default; paths follow `state-dir` and `store.manifests`."""
    found = documents(text, Source(file))
    if len(found) != 1:
        raise InputError(f"found {len(found)} documents, expected one of kind Config", file=file)
    return read_config(found[0])


def read_config(value: Value) -> Config:
    """One document. Raises InputError."""
    section = value.section
    section.require("apiVersion").choice(ROUTERD)
    section.require("kind").choice("Config")
    section.only(
        "apiVersion", "kind", "node-name", "store", "state-dir", "run-dir", "pin-dir", "metrics-listen", "log",
        "service-cidrs", "cluster-cidrs", "egress", "bgp", "drain", "operator", "cloud", "pod-addresses", "pod-cidrs",
        "pod-cidr-source", "native-routing",
    )  # fmt: skip
    state_dir = _path(section, "state-dir", DEFAULT.state_dir)
    pod_cidrs = _pod_cidrs(section)
    egress, cloud = _egress(section), read_cloud(section.section("cloud"))
    told = section.section("egress")
    if told is not None and cloud.provider != "none" and 1 << egress.forward_mark_bit == MARK:
        told.require("forward-mark-bit").expected(
            "another bit beside cloud, whose nodes mark what is for pods by this one"
        )
    return Config(
        node_name=section.string("node-name") or own_name(),
        store=_store(section, state_dir),
        state_dir=state_dir,
        run_dir=_path(section, "run-dir", DEFAULT.run_dir),
        pin_dir=_path(section, "pin-dir", DEFAULT.pin_dir),
        metrics_listen=_listen(section, DEFAULT.metrics_listen),
        log=_log(section),
        service_cidrs=tuple(item.network() for item in section.items("service-cidrs")),
        cluster_cidrs=(
            *(item.network() for item in section.items("cluster-cidrs")),
            *(each.network for each in pod_cidrs),
        ),
        egress=egress,
        bgp=_bgp(section),
        native_routing=_native_routing(section),
        drain=_drain(section),
        operator=_operator(section, state_dir),
        cloud=cloud,
        pod_addresses=_pod_addresses(section),
        pod_cidrs=pod_cidrs,
        pod_cidr_source=cast(Literal["auto", "node", "routerd"], _choice(section, "pod-cidr-source", *SOURCES)),
    )


def _sub(section: Section, key: str, *known: str) -> Section:
    """The section at `key`, an empty one if it is not given."""
    value = section.get(key)
    return (value.section if value is not None else Section.empty(section.value)).only(*known)


def _path(section: Section, key: str, default: Path) -> Path:
    value = section.get(key)
    if value is None:
        return default
    path = Path(value.name("an absolute path"))
    if not path.is_absolute():
        value.expected("an absolute path")
    return path


def _choice(section: Section, key: str, *options: str) -> str:
    """The first option is the default."""
    value = section.get(key)
    return options[0] if value is None else value.choice(*options)


def _store(section: Section, state_dir: Path) -> StoreConfig:
    store = _sub(
        section, "store", "kind", "manifests", "allocations", "node-report", "node-reports", "kubeconfig", "namespace",
        "metallb-status",
    )  # fmt: skip
    kind = cast(Literal["files", "kubernetes"], _choice(store, "kind", "files", "kubernetes"))
    manifests = _path(store, "manifests", DEFAULT.store.manifests)
    report = _path(store, "node-report", state_dir / "node.yaml")
    reports = store.get("node-reports")
    return StoreConfig(
        kind=kind,
        manifests=manifests,
        allocations=_path(store, "allocations", manifests / "allocations.yaml"),
        node_report=report,
        node_reports=tuple(item.name("a pattern of paths") for item in reports.items()) if reports else (str(report),),
        kubeconfig=_path(store, "kubeconfig", Path()) if store.get("kubeconfig") else None,
        namespace=_namespace(store),
        metallb_status=store.boolean("metallb-status", DEFAULT.store.metallb_status),
    )


def _namespace(store: Section) -> str:
    value = store.get("namespace")
    if value is None:
        return DEFAULT.store.namespace
    if not _LABEL.fullmatch(value.name("the name of a namespace")):
        value.expected("the name of a namespace")
    return value.text


def _log(section: Section) -> LogConfig:
    log = _sub(section, "log", "format", "level")
    return LogConfig(
        format=cast(Literal["logfmt", "json"], _choice(log, "format", "logfmt", "json")),
        level=cast(
            Literal["debug", "info", "warning", "error"], _choice(log, "level", "info", "debug", "warning", "error")
        ),
    )


def _listen(section: Section, default: tuple[IPAddress, int] | None) -> tuple[IPAddress, int] | None:
    value = section.get("metrics-listen")
    if value is None:
        return default
    text = value.string()
    if not text:
        return None
    found = _endpoint(text)
    if found is None:
        example = default[1] if default else 9793
        value.expected(f'ADDRESS:PORT such as 127.0.0.1:{example} or [::1]:{example}, or "" for none')
    return found


def _egress(section: Section) -> EgressConfig:
    egress = _sub(
        section, "egress", "enabled", "uplinks", "host-devices", "tunnel-port", "transport", "tunnel-packets", "attach",
        "loader", "network-policy", "forward-mark-bit", "nat-entries", "flows-per-pod", "ports-per-pod", "in-cluster",
        "allowed-addresses", "liveness", "upstream-probe",
    )  # fmt: skip
    return EgressConfig(
        enabled=egress.boolean("enabled", True),
        uplinks=tuple(_device(item) for item in egress.items("uplinks")),
        host_devices=tuple(_device(item) for item in egress.items("host-devices")),
        tunnel_port=egress.integer("tunnel-port", 1, 65535, DEFAULT.egress.tunnel_port),
        transport=cast(Transport, _choice(egress, "transport", "vxlan", "auto", "direct")),
        tunnel_packets=cast(TunnelPackets, _choice(egress, "tunnel-packets", "auto", "device")),
        attach=cast(Literal["auto", "tcx", "clsact"], _choice(egress, "attach", "auto", "tcx", "clsact")),
        loader=cast(Literal["libbpf", "bcc"], _choice(egress, "loader", "libbpf", "bcc")),
        network_policy=cast(NetworkPolicy, _choice(egress, "network-policy", "auto", "forward", "direct")),
        forward_mark_bit=egress.integer("forward-mark-bit", 0, 31, DEFAULT.egress.forward_mark_bit),
        nat_entries=egress.integer("nat-entries", 1024, 2**24, DEFAULT.egress.nat_entries),
        flows_per_pod=egress.integer("flows-per-pod", 0, 2**24, 0),
        ports_per_pod=egress.integer("ports-per-pod", 0, 2**25, 0),
        in_cluster=tuple(item.network() for item in egress.items("in-cluster")),
        liveness=_liveness(egress),
        upstream_probe=_upstream(egress),
        allowed_addresses=tuple(item.network() for item in egress.items("allowed-addresses")),
    )


def _liveness(egress: Section) -> LivenessConfig:
    liveness, default = _sub(egress, "liveness", "enabled", "interval", "multiplier"), DEFAULT.egress.liveness
    interval = liveness.get("interval")
    return LivenessConfig(
        enabled=liveness.boolean("enabled", default.enabled),
        interval=_microseconds(interval) if interval is not None else default.interval,
        multiplier=liveness.integer("multiplier", 1, PROBES_KEPT - 1, default.multiplier),
    )


def _upstream(egress: Section) -> Rules | None:
    value = egress.get("upstream-probe")
    if value is None:
        return None
    probe = value.section.only(
        "icmp", "tcp", "http", "require", "interval", "timeout", "failure-threshold", "success-threshold"
    )
    targets = tuple(dict.fromkeys(read(each) for kind, read in _TARGETS.items() for each in probe.items(kind)))
    if not 1 <= len(targets) <= MOST_TARGETS:
        raise value.error(f"found {len(targets)} targets, expected 1 to {MOST_TARGETS} under icmp, tcp and http")
    default = Rules(targets)
    interval, timeout = probe.get("interval"), probe.get("timeout")
    rules = replace(
        default,
        require=cast(Literal["any", "all"], _choice(probe, "require", "any", "all")),
        interval=_microseconds(interval) / 1e6 if interval is not None else default.interval,
        timeout=_microseconds(timeout) / 1e6 if timeout is not None else default.timeout,
        failure_threshold=probe.integer("failure-threshold", 1, 100, default.failure_threshold),
        success_threshold=probe.integer("success-threshold", 1, 100, default.success_threshold),
    )
    if rules.timeout > rules.interval:
        place = timeout or interval or value
        raise place.error(f"the timeout, {rules.timeout:g} s, is longer than the interval, {rules.interval:g} s")
    return rules


def _echoed(value: Value) -> Target:
    return Target("icmp", value.address())


def _connected(value: Value) -> Target:
    found = _endpoint(value.string())
    if found is None:
        value.expected("ADDRESS:PORT such as 203.0.113.1:443 or [2001:db8::1]:443")
    return Target("tcp", *found)


def _got(value: Value) -> Target:
    """A name in the place of the address would ask a resolver, too, and blame the way for its silence."""
    match = _URL.fullmatch(value.string())
    port = f":{443 if match[1] else 80}" if match and not match[3] else ""
    found = _endpoint(match[2] + (match[3] or port)) if match else None
    if match is None or found is None:
        value.expected("a URL with an address such as http://203.0.113.1:8080/healthz or https://[2001:db8::1]/")
    return Target("http", *found, match[4] or "/", bool(match[1]))


def _endpoint(text: str) -> tuple[IPAddress, int] | None:
    """An address and a TCP port, IPv6 in brackets; None = it is none."""
    host, _, port = text.rpartition(":")
    address = parse_address(host.removeprefix("[").removesuffix("]"))
    if address is None or (address.version == 6) != (host[0] + host[-1] == "[]"):
        return None
    return (address, int(port)) if port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535 else None


_URL = re.compile(r"http(s)?://(\[[0-9a-fA-F:.]+\]|[0-9.]+)(:[0-9]{1,5})?(/[!-~]*)?")
_TARGETS = {"icmp": _echoed, "tcp": _connected, "http": _got}


def _microseconds(value: Value) -> int:
    """An interval as `bfd` of a peer has it: a whole number of milliseconds or seconds, 10 ms to 60 s."""
    match = _INTERVAL.fullmatch(value.string())
    found = int(match[1]) * {"ms": 1_000, "s": 1_000_000}[match[2]] if match else 0
    if not 10_000 <= found <= 60_000_000:
        value.expected("an interval from 10ms to 60s")
    return found


def _device(value: Value) -> str:
    """IFNAMSIZ is 16 with the closing zero."""
    name = value.name("the name of a network device")
    if len(name) > 15 or "/" in name or any(char.isspace() for char in name):
        value.expected("the name of a network device")
    if not is_sayable(name):
        value.expected("the name of a network device that nft can say: no quotation mark, no \\, no * at its end")
    return name


def _bgp(section: Section) -> BgpConfig:
    bgp = _sub(section, "bgp", "enabled", "router-id", "password-dir", "announce", "brake")
    announce = _sub(bgp, "announce", "loadbalancer", "pod-cidrs", "egress", "external-ips", "cluster-ips")
    router_id = bgp.get("router-id")
    return BgpConfig(
        enabled=bgp.boolean("enabled", True),
        router_id=router_id.ipv4() if router_id else None,
        password_dir=_path(bgp, "password-dir", DEFAULT.bgp.password_dir),
        announce=AnnounceConfig(
            loadbalancer=announce.boolean("loadbalancer", True),
            pod_cidrs=announce.boolean("pod-cidrs", False),
            egress=announce.boolean("egress", True),
            external_ips=tuple(item.network() for item in announce.items("external-ips")),
            cluster_ips=tuple(item.network() for item in announce.items("cluster-ips")),
        ),
        brake=_brake(bgp),
    )


def _brake(bgp: Section) -> BrakeConfig:
    brake, default = _sub(bgp, "brake", "enabled", "percent", "paths", "hold"), DEFAULT.bgp.brake
    return BrakeConfig(
        enabled=brake.boolean("enabled", True),
        percent=brake.integer("percent", 1, 99, default.percent),
        paths=brake.integer("paths", 1, 2**31 - 1, default.paths),
        hold=_seconds(brake, "hold", default.hold),
    )


def _native_routing(section: Section) -> NativeRoutingConfig:
    found = _sub(section, "native-routing", "auto-direct-node-routes", "learn")
    learn = tuple(sorted({item.network() for item in found.items("learn")}, key=lambda each: (each.version, each)))
    return NativeRoutingConfig(found.boolean("auto-direct-node-routes", False), learn)


def _drain(section: Section) -> DrainConfig:
    drain = _sub(section, "drain", "notice", "cordoned", "taints")
    taints = tuple(_taint(item) for item in drain.items("taints"))
    return DrainConfig(_seconds(drain, "notice", DEFAULT.drain.notice), drain.boolean("cordoned", False), taints)


def _taint(item: Value) -> str:
    taint = item.string("a taint")
    if not _TAINT.fullmatch(taint):
        raise item.error(f"{taint!r} is no taint: expected key or key=value, each with :Effect or without")
    return taint


def _pod_cidrs(section: Section) -> tuple[ClusterCIDR, ...]:
    found: list[ClusterCIDR] = []
    for item in section.items("pod-cidrs"):
        one = item.section.only("cidr", "node-prefix")
        place = one.require("cidr")
        network = place.network()
        for other in found:
            if other.network.version == network.version and other.network.overlaps(network):
                raise place.error(f"{network} overlaps with {other.network}")
        longest = min(network.prefixlen + MOST_BLOCK_BITS, 30 if network.version == 4 else 126)
        prefix = one.integer(
            "node-prefix", network.prefixlen, longest, min(24 if network.version == 4 else 64, longest)
        )
        found.append(ClusterCIDR(network, prefix))
    return tuple(found)


def _pod_addresses(section: Section) -> PodAddressConfig:
    found = _sub(section, "pod-addresses", "retention")
    return PodAddressConfig(_seconds(found, "retention", DEFAULT.pod_addresses.retention))


def _operator(section: Section, state_dir: Path) -> OperatorConfig:
    operator = _sub(
        section, "operator", "ledger", "retention", "egress-retention", "flow-deadline", "cooldown",
        "lease-duration", "lease-renew-deadline", "lease-retry", "gateway-patience", "node-patience",
        "gateway-mode", "metrics-listen",
    )  # fmt: skip
    times = [
        _seconds(operator, key, default)
        for key, default in (
            ("lease-duration", DEFAULT.operator.lease_duration),
            ("lease-renew-deadline", DEFAULT.operator.lease_renew_deadline),
            ("lease-retry", DEFAULT.operator.lease_retry),
        )
    ]
    if not times[0] > times[1] > times[2] > 0:
        shown = " > ".join(f"{seconds}s" for seconds in times)
        raise operator.value.error(f"found {shown}, expected lease-duration > lease-renew-deadline > lease-retry > 0")
    return OperatorConfig(
        ledger=_path(operator, "ledger", state_dir / "ledger.sqlite"),
        retention=_seconds(operator, "retention", DEFAULT.operator.retention),
        egress_retention=_seconds(operator, "egress-retention", DEFAULT.operator.egress_retention),
        flow_deadline=_seconds(operator, "flow-deadline", DEFAULT.operator.flow_deadline),
        cooldown=_seconds(operator, "cooldown", DEFAULT.operator.cooldown),
        lease_duration=times[0],
        lease_renew_deadline=times[1],
        lease_retry=times[2],
        gateway_patience=_patience(operator, "gateway-patience", DEFAULT.operator.gateway_patience, GATEWAY_HEARTBEAT),
        node_patience=_patience(operator, "node-patience", DEFAULT.operator.node_patience, NODE_HEARTBEAT),
        gateway_mode=cast(GatewayMode, _choice(operator, "gateway-mode", "ecmp", "active-standby")),
        metrics_listen=_listen(operator, DEFAULT.operator.metrics_listen),
    )


def _patience(section: Section, key: str, default: int, beat: int) -> int:
    seconds, value = _seconds(section, key, default), section.get(key)
    if value is not None and seconds < 2 * beat:
        value.expected(f"at least {2 * beat}s, two heartbeats")
    return seconds


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": DAY}


def _seconds(section: Section, key: str, default: int) -> int:
    """A duration as a whole number and a unit: 30s, 5m, 12h, 400d; 0 needs none."""
    value = section.get(key)
    if value is None:
        return default
    text = value.string()
    if text == "0":
        return 0
    if not (text[:-1].isascii() and text[:-1].isdigit() and text[-1] in _UNITS and len(text) < 10):
        value.expected("a duration such as 30s, 5m, 12h or 400d")
    return int(text[:-1]) * _UNITS[text[-1]]
