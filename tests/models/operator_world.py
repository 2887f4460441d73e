"""A cluster as the operator sees it, for stories: edit it, let time pass, decide, read the result as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import Any

from ipam.round import Timers
from routerd.cluster.agents import Agents, hear
from routerd.cluster.assign import AssignSettings, Decision, assign, release
from routerd.cluster.ledger import Changes, Ledger
from routerd.errors import StoreError
from routerd.model import (
    GATEWAY_HEARTBEAT,
    GATEWAY_LABEL,
    NODE_HEARTBEAT,
    AddressPool,
    Allocations,
    EgressPolicy,
    Heartbeat,
    IPNetwork,
    Namespace,
    Node,
    NodeReport,
    Peer,
    Peering,
    PortReport,
    Service,
    ServicePort,
    Snapshot,
    UnusedBlock,
)

LOOK = 2  # seconds between two looks at the reports
TUNNEL_ENDPOINT = ip_address("10.0.0.11")  # a node without one is no gateway


@dataclass
class World:
    settings: AssignSettings = field(default_factory=lambda: AssignSettings(Timers(cooldown=30), group_retention=100))
    services: dict[str, Service] = field(default_factory=dict)
    policies: dict[str, EgressPolicy] = field(default_factory=dict)
    pools: dict[str, AddressPool] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    namespaces: dict[str, Namespace] = field(default_factory=dict)
    reports: dict[str, NodeReport] = field(default_factory=dict)
    peers: tuple[Peer, ...] = ()
    service_cidrs: tuple[IPNetwork, ...] = ()
    ledger: Ledger = field(default_factory=Ledger)
    allocations: Allocations = field(default_factory=Allocations)
    now: float = 1000.0
    last: Decision | None = None
    agents: Agents = field(default_factory=lambda: Agents(assumed=False))
    living: set[str] = field(default_factory=set)  # nodes whose agent beats

    def service(self, name: str, port: int = 80, **fields: Any) -> None:
        """A LoadBalancer service of namespace "d". `ips` and `status` are requested and known addresses, as text."""
        ips = tuple(map(ip_address, fields.pop("ips", "").split()))
        status = tuple(map(ip_address, fields.pop("status", "").split()))
        fields = {"type": "LoadBalancer", "ports": (ServicePort("TCP", port),)} | fields
        service = Service("d", name, requested_ips=ips, status_ips=status, **fields)
        self.services[service.key] = service

    def policy(self, name: str, ip: str = "", **fields: Any) -> None:
        fields = {"destinations": (ip_network("203.0.113.0/24"),)} | fields
        given = tuple(map(ip_address, ip.split()))
        policy = EgressPolicy(name, egress_ip=given[0] if given else None, further_ips=given[1:], **fields)
        self.policies[policy.key] = policy

    def pool(self, name: str, *blocks: str, **fields: Any) -> None:
        fields["uses"] = frozenset(fields.pop("uses", "loadbalancer egress").split())
        self.pools[name] = AddressPool(name, tuple(map(ip_network, blocks)), **fields)

    def node(
        self, name: str, label: str | None = "", reports: str | None = "", *, draining: bool = False, **fields: Any
    ) -> None:
        """`label`: the value of the gateway label, None = without. `reports`: its own addresses, None = no report."""
        labels = {} if label is None else {GATEWAY_LABEL: label}
        self.nodes[name] = Node(name, **({"labels": labels, "addresses": (TUNNEL_ENDPOINT,)} | fields))
        self.reports.pop(name, None)
        if reports is not None:
            self.reports[name] = NodeReport(name, tuple(map(ip_address, reports.split())), draining=draining)

    def report(self, name: str, *addresses: str, networks: str = "") -> None:
        """What the node says that is on its interfaces, and which networks these are in."""
        found = tuple(map(ip_network, networks.split()))
        self.reports[name] = NodeReport(name, tuple(map(ip_address, addresses)), found)

    def agent(self, *names: str, gateway: bool = True) -> None:
        """Their agents begin to beat, and go on until `silence`."""
        for name in names:
            seconds = GATEWAY_HEARTBEAT if gateway else NODE_HEARTBEAT
            self.reports[name] = replace(self.reports[name], heartbeat=Heartbeat(seconds))
        self.living |= {*names}

    def silence(self, *names: str) -> None:
        """Their agents are gone, and what they reported stays."""
        self.living -= {*names}

    def restart_operator(self) -> None:
        """Another one reads the same ledger; it has heard nobody."""
        self.agents = Agents(assumed=False)
        self._hear(0)

    def live(self, seconds: int) -> None:
        """Lets time pass in which agents beat and the operator listens."""
        for _ in range(0, seconds, LOOK):
            self._hear(LOOK)

    def _hear(self, seconds: float) -> None:
        self.beat(seconds)
        self.agents = hear(self.agents, self.reports, self.now, self.now, self.nodes)

    def beat(self, seconds: float) -> None:
        """Lets time pass in which agents beat."""
        self.now += seconds
        for name in self.living & self.reports.keys():
            report = self.reports[name]
            assert report.heartbeat is not None
            beat = Heartbeat(report.heartbeat.seconds, str(int(self.now // report.heartbeat.seconds)))
            self.reports[name] = replace(report, heartbeat=beat)

    def end_flows(self) -> None:
        """The nodes say of all that they are asked for that no flow is left there."""
        names = {each.number: each.node for each in self.allocations.numbers}
        unused: dict[str, list[UnusedBlock]] = {}
        for table in self.allocations.bindings:
            for block in table.blocks():
                if block.returning:
                    said = UnusedBlock(table.egress_ip, block.first, block.size, table.version)
                    unused.setdefault(names[block.node], []).append(said)
        for name, blocks in unused.items():
            self.reports[name] = NodeReport(name, ports=PortReport(unused=tuple(blocks)))

    def snapshot(self) -> Snapshot:
        return Snapshot(
            nodes=dict(self.nodes), namespaces=dict(self.namespaces), pods={}, services=dict(self.services),
            endpoint_slices=(), bgp=Peering(self.peers), pools=dict(self.pools), policies=dict(self.policies),
            allocations=self.allocations, service_cidrs=self.service_cidrs,
        )  # fmt: skip

    def decide(self, seconds: float = 0) -> str:
        """Lets `seconds` pass, decides, records and publishes; the result as text."""
        self.now += seconds
        self._hear(0)
        self.last = assign(self.snapshot(), self.ledger, self.reports, self.now, self.settings, self.agents)
        self.ledger, self.allocations = self.last.ledger, self.last.allocations
        return text(self.allocations)

    def release(self, name: str) -> int:
        self.ledger, released = release(self.ledger, name, self.now)
        return len(released)

    def lose_file(self) -> None:
        """The ledger is gone; what was published is still there."""
        self.ledger = Ledger()

    def edit_pool(self, name: str, *blocks: str, **fields: Any) -> None:
        networks = tuple(map(ip_network, blocks)) or self.pools[name].blocks
        self.pools[name] = replace(self.pools[name], blocks=networks, **fields)


def without_versions(allocations: Allocations) -> Allocations:
    """Versions of tables follow the clock: what is decided anew at another time has others."""
    bindings = tuple(replace(each, version=0, asked=0) for each in allocations.bindings)
    return replace(allocations, bindings=bindings)


def ports_text(allocations: Allocations) -> str:
    """A line for each egress IP: who has which ports; "~" is asked back, "x" cools down."""
    names = {each.number: each.node for each in allocations.numbers}
    lines = []
    for table in allocations.bindings:
        blocks = [f"{'~' * each.returning}{names[each.node]}:{each.first}+{each.size}" for each in table.blocks()]
        blocks += [f"x:{first}+{size}" for each in table.cooling for first, size in each.ranges]
        lines.append(f"{table.egress_ip} {' '.join(blocks)} told {','.join(names[each] for each in table.told)}")
    return "\n".join(lines)


def text(allocations: Allocations) -> str:
    """Services, groups and refusals, a line each."""
    lines = [f"{each.service} {each.pool} {' '.join(map(str, each.addresses))}" for each in allocations.services]
    for group in allocations.groups:
        gateways = " ".join(group.gateways) or "none"
        flags = " node-address" if group.node_address else ""
        flags += " in this order" if group.gateway_mode == "active-standby" else ""
        lines.append(
            f"group {group.id} {' '.join(map(str, group.egress_ips))} {','.join(group.policies)} via {gateways}{flags}"
        )
    lines += [f"! {refusal.object} {refusal.reason}: {refusal.message}" for refusal in allocations.refusals]
    return "\n".join(lines)


@dataclass
class FakeStore:
    """What was written is seen again in the next snapshot."""

    world: World
    written: list[Allocations] = field(default_factory=list)
    callbacks: list[Callable[[], None]] = field(default_factory=list)
    fault: StoreError | None = None
    synced: bool = True

    def snapshot(self) -> Snapshot:
        return self.world.snapshot() if self.synced else Snapshot()

    def node_reports(self) -> Mapping[str, NodeReport] | None:
        return self.world.reports

    def write_allocations(self, allocations: Allocations) -> None:
        if self.fault:
            raise self.fault
        self.written.append(allocations)
        self.world.allocations = allocations

    def on_change(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def changed(self) -> None:
        for callback in self.callbacks:
            callback()


@dataclass
class FakeLedger:
    content: Ledger = field(default_factory=Ledger)
    fault: StoreError | None = None
    writes: int = 0

    def read(self) -> Ledger:
        return self.content

    def record(self, changes: Changes) -> None:
        if self.fault:
            raise self.fault
        assert changes.before == self.content
        self.content = changes.after


def busy_world() -> World:
    world = World()
    world.pool("p", "192.0.2.0/29")
    world.node("g")
    for name in ("a", "b"):
        world.service(name)
    world.policy("out", pool="p")
    return world
