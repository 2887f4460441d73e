"""Prometheus metrics of a daemon, made from its status at the moment of the scrape; names are in docs/metrics.md.

It must not touch the kernel, the speaker or a daemon's loop: a scrape reads one frozen value, from another thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from routerd.model import severity_of
from routerd.store.interface import ResourceStatus, StoreStatus
from routerd.tell.drain import State
from routerd.tell.status import BUCKETS, AgentStatus, Durations, PeerStatus, Rounds

if TYPE_CHECKING:
    from egress.host.enforcement import Way
    from egress.status import EgressStatus, Probed
    from fib.plan import Status as RouteStatus
    from ipam.pool import Counts
    from ipam.port_sets import PortCounts
    from routerd.model import IPAddress
    from routerd.tell.operator_status import OperatorStatus, Tenure
    from upstream.targets import Upstream

Sample = tuple[tuple[str, ...], float]


def _gauge(name: str, help_text: str, labels: tuple[str, ...], samples: Iterable[Sample]) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for values, number in samples:
        family.add_metric(values, number)
    return family


def _counter(name: str, help_text: str, labels: tuple[str, ...], samples: Iterable[Sample]) -> Metric:
    family = CounterMetricFamily(name, help_text, labels=labels)
    for values, number in samples:
        family.add_metric(values, number)
    return family


def _one(number: float) -> list[Sample]:
    return [((), float(number))]


def _build(version: str) -> Iterator[Metric]:
    yield _gauge("routerd_build_info", "The running version; always 1.", ("version",), [((version,), 1.0)])


def _refusals(by_reason: Mapping[str, int]) -> Iterator[Metric]:
    samples = [((reason, severity_of(reason)), float(count)) for reason, count in by_reason.items()]
    yield _gauge("routerd_refusals", "Things wanted that are not done now, by reason.", ("reason", "severity"), samples)


def _agent(status: AgentStatus) -> Iterator[Metric]:
    yield from _build(status.version)
    yield _gauge("routerd_config_loaded", "1 if a configuration is in use.", (), _one(status.config.loaded))
    yield _gauge(
        "routerd_config_stale", "1 if the newest configuration was refused and an older one works on.", (),
        _one(status.config.stale),
    )  # fmt: skip
    yield _gauge("routerd_store_synced", "1 if every part of the store has been read.", (), _one(not status.missing))
    yield _gauge("routerd_ready", "1 if the last round was done and nothing is missing.", (), _one(status.ready))
    yield from _refusals(status.refusals_by_reason())


def _brake(status: AgentStatus) -> Iterator[Metric]:
    text = "Paths whose withdrawal is held, because they are many and no change explains it."
    yield _gauge("routerd_bgp_brake_held_paths", text, (), _one(status.braked))


def _drain(status: AgentStatus) -> Iterator[Metric]:
    states: tuple[State, ...] = ("serving", "draining", "drained")
    samples = [((state,), float(status.drain.state == state)) for state in states]
    yield _gauge("routerd_drain_state", "1 for the state that the node is in.", ("state",), samples)


def _durations(name: str, help_text: str, counts: Durations | Rounds) -> Metric:
    buckets = [(str(bound), float(count)) for bound, count in zip(BUCKETS, counts.buckets, strict=True)]
    buckets.append(("+Inf", float(counts.done)))
    return HistogramMetricFamily(name, help_text, buckets=buckets, sum_value=counts.seconds)


def _rounds(rounds: Rounds) -> Iterator[Metric]:
    yield _durations("routerd_reconcile_duration_seconds", "Time of a round: decide, read back, apply.", rounds)
    yield _counter("routerd_reconcile_errors", "Rounds that failed and were tried again.", (), _one(rounds.errors))
    yield _gauge(
        "routerd_reconcile_held", "1 if the last round left something undone on purpose.", (), _one(bool(rounds.held))
    )


def _bgp(peers: tuple[PeerStatus, ...]) -> Iterator[Metric]:
    def samples(number: Callable[[PeerStatus], float]) -> list[Sample]:
        return [((peer.label,), float(number(peer))) for peer in peers]

    label = ("peer",)
    yield _gauge("routerd_bgp_session_up", "1 if the session is Established.", label, samples(lambda p: p.view.up))
    yield _gauge(
        "routerd_bgp_announced_prefixes", "Paths that the peer has: of negotiated families, while it is up.", label,
        samples(lambda p: p.view.session.announced),
    )  # fmt: skip
    yield _gauge(
        "routerd_bgp_desired_prefixes", "Paths that the peer should have.", label, samples(lambda p: p.desired)
    )
    yield _counter(
        "routerd_bgp_session_flaps",
        "How often the session went from up to down.",
        label,
        samples(lambda p: p.view.session.flaps),
    )


def _bfd(status: AgentStatus) -> Iterator[Metric]:
    watched = [(peer.label, peer.view.bfd) for peer in status.peers if peer.view.bfd is not None]
    label = ("peer",)
    up = [((name,), float(bfd.state == "up")) for name, bfd in watched]
    yield _gauge("routerd_bfd_session_up", "1 if the BFD session of the peer is up.", label, up)
    flaps = [((name,), float(bfd.falls)) for name, bfd in watched]
    yield _counter("routerd_bfd_session_flaps", "How often the BFD session went from up to down.", label, flaps)
    detection = [((name,), bfd.detection / 1e6) for name, bfd in watched]
    text = "Time without a packet after which the peer is taken for dead, as agreed; 0 while it is unknown."
    yield _gauge("routerd_bfd_detection_seconds", text, label, detection)
    refused = [((reason,), float(count)) for reason, count in sorted(status.bfd_refused.items())]
    text = "Packets to the port of BFD that were no session's, by reason."
    yield _counter("routerd_bfd_refused_packets", text, ("reason",), refused)


def _by(numbers: Mapping[str, int]) -> list[Sample]:
    return [((name,), float(number)) for name, number in sorted(numbers.items())]


def _egress(status: EgressStatus) -> Iterator[Metric]:
    yield _gauge("routerd_egress_datapath_up", "1 if the datapath is attached and was read.", (), _one(status.datapath))
    yield _counter(
        "routerd_egress_dropped_packets", "Packets that the datapath dropped, by reason.", ("reason",),
        _by(status.drops),
    )  # fmt: skip
    yield _counter(
        "routerd_egress_packets", "Packets that the datapath took and passed on, by outcome.", ("outcome",),
        _by(status.passed),
    )  # fmt: skip
    ways: tuple[Way, ...] = ("direct", "forward", "refused")
    text = "1 for the way of the first packet of a flow that a pod here begins."
    samples = [((way,), float(status.first_packets == way)) for way in ways] if status.first_packets else []
    yield _gauge("routerd_egress_first_packets", text, ("way",), samples)
    text = "1 for who makes and takes this node's tunnel packets."
    makers = [((by,), float(status.tunnel_packets == by)) for by in ("programs", "device") if status.tunnel_packets]
    yield _gauge("routerd_egress_tunnel_packets", text, ("by",), makers)
    text = "First packets that were handed to the host's forward hook and did not come out."
    yield _gauge("routerd_egress_held_back_packets", text, (), _one(status.held_back))
    yield _gauge("routerd_egress_table_entries", "Entries of the tables that fill.", ("table",), _by(status.entries))
    yield _gauge("routerd_egress_table_limit", "Entries that there is room for.", ("table",), _by(status.room))
    text = "Searches for a free port that took long, by egress group."
    yield _counter("routerd_egress_long_port_searches", text, ("group",), _by(status.long_searches))
    text = "1 for an egress group that is short of ports, and for a pod that is near its share of the tables."
    yield _gauge("routerd_egress_pressed", text, ("object",), _by(status.pressed))
    yield from _gateways(status.probed)
    yield _gauge("routerd_egress_pods", "Pods of this node that a policy selects.", (), _one(status.pods))
    text = "Pods that a policy selects and that have a device which leads past the programs."
    yield _gauge("routerd_egress_unhooked_pods", text, (), _one(len(status.unhooked)))


def _gateways(probed: Sequence[Probed]) -> Iterator[Metric]:
    def samples(number: Callable[[Probed], float]) -> list[Sample]:
        return [((each.node, each.by), float(number(each))) for each in probed]

    label = ("gateway", "by")
    yield _gauge(
        "routerd_gateway_up", "1 if the gateway answers probes.", label, samples(lambda g: g.state != "silent")
    )
    serves = "1 if the gateway answers probes and does not ask to be left alone."
    yield _gauge("routerd_gateway_serves", serves, label, samples(lambda g: g.state == "serves"))
    trip = "Smoothed time from a probe to its answer."
    yield _gauge("routerd_gateway_round_trip_seconds", trip, label, samples(lambda g: g.round_trip))
    yield _counter("routerd_gateway_probes", "Probes sent to the gateway.", label, samples(lambda g: g.sent))
    answers = "Answers of the gateway; what it is short of the probes is loss, but for the one on its way."
    yield _counter("routerd_gateway_probe_answers", answers, label, samples(lambda g: g.answered))


def _upstream(upstream: Upstream) -> Iterator[Metric]:
    asked = _one(not upstream.is_lost) if upstream.targets else []
    yield _gauge("routerd_upstream_up", "1 unless what this gateway asks upstream of it counts as lost.", (), asked)
    text = "1 if the target counts as answering."
    targets = [((str(target),), float(each.answers)) for target, each in upstream.targets.items()]
    yield _gauge("routerd_upstream_target_up", text, ("target",), targets)


def _routes(status: RouteStatus) -> Iterator[Metric]:
    there = Counter(prefix.version for prefix in status.observed.routes) if status.observed else Counter[int]()
    text = "Routes to other nodes' pods in the table of ours."
    yield _gauge("routerd_routes", text, ("family",), [((f"ipv{v}",), float(there[v])) for v in (4, 6)])
    yield _counter("routerd_route_writes", "Such routes that were put or removed.", (), _one(status.writes))


def _pools(status: AgentStatus) -> Iterator[Metric]:
    rows = [(str(row["pool"]), float(row["addresses"] or 0), float(row["used"] or 0)) for row in status.pools]
    yield from _pool_sizes(rows)


def _pool_sizes(pools: list[tuple[str, float, float]]) -> Iterator[Metric]:
    """Name, addresses, and how many have an owner."""
    sizes = [((name,), size) for name, size, _ in pools]
    used = [((name,), used) for name, _, used in pools]
    yield _gauge("routerd_pool_addresses", "Addresses that the pool can give.", ("pool",), sizes)
    yield _gauge("routerd_pool_addresses_in_use", "Addresses of the pool that have an owner.", ("pool",), used)


def _store(store: StoreStatus) -> Iterator[Metric]:
    def samples(number: Callable[[ResourceStatus], float]) -> list[Sample]:
        return [((each.resource,), float(number(each))) for each in store.resources]

    label = ("resource",)
    synced, stale = "1 if the resource has been read once.", "Time since the resource could last be read, 0 if it can."
    yield _gauge("routerd_store_resource_synced", synced, label, samples(lambda r: r.synced))
    yield _gauge("routerd_store_stale_seconds", stale, label, samples(lambda r: r.stale))
    yield _counter("routerd_store_lists", "Complete lists of the resource.", label, samples(lambda r: r.lists))
    yield _counter("routerd_store_watches", "Watches that were opened.", label, samples(lambda r: r.watches))
    requests = [((method,), float(count)) for method, count in sorted(store.requests.items())]
    yield _counter("routerd_store_requests", "Requests to the API server.", ("method",), requests)
    responses = [((each.method, each.code), float(each.count)) for each in store.responses]
    text = 'Answers of the API server, by HTTP status; "none" = it did not answer.'
    yield _counter("routerd_store_responses", text, ("method", "code"), responses)


def _operator(status: OperatorStatus) -> Iterator[Metric]:
    yield from _build(status.version)
    read = not status.missing
    yield _gauge("routerd_store_synced", "1 if every part of the store has been read.", (), _one(read))
    yield _gauge("routerd_ready", "1 if the operator could decide at once, active or not.", (), _one(status.ready))
    yield from _refusals(status.refusals_by_reason())
    yield _gauge("routerd_operator_active", "1 if this operator is the one that decides.", (), _one(status.active))
    text = "Time of a round: decide, record, publish."
    yield _durations("routerd_operator_decision_duration_seconds", text, status.rounds)
    text = "Rounds that failed and were made again."
    yield _counter("routerd_operator_decision_errors", text, (), _one(status.rounds.errors))
    generation = [] if status.generation is None else _one(status.generation)
    yield _gauge("routerd_operator_generation", "Of the allocations that were decided last.", (), generation)
    silent = [((node,), datetime.fromisoformat(since).timestamp()) for node, since in sorted(status.silent.items())]
    text = "When an agent was heard last of which nothing was heard for too long, in seconds of the Unix epoch."
    yield _gauge("routerd_operator_agent_silent_since_seconds", text, ("node",), silent)


def _counts(counts: Mapping[str, Counts]) -> Iterator[Metric]:
    pools = sorted(counts.items())
    yield from _pool_sizes([(name, each.total, each.used) for name, each in pools])
    states = [
        ((name, state), float(getattr(each, state)))
        for name, each in pools
        for state in ("free", "used", "cooling", "reserved")
    ]
    text = "Addresses of the pool by state; the states add up to all of them."
    yield _gauge("routerd_operator_pool_addresses", text, ("pool", "state"), states)


def _ports(counts: Mapping[IPAddress, PortCounts], pending: Mapping[int, int]) -> Iterator[Metric]:
    states = [
        ((str(address), state), float(getattr(each, state)))
        for address, each in counts.items()
        for state in ("free", "granted", "returning", "cooling")
    ]
    text = "Granules of 64 ports of the egress IP by state; the states add up to all that can be given."
    yield _gauge("routerd_operator_port_granules", text, ("egress_ip", "state"), states)
    text = "Nodes that do not get all the ports that they want."
    nodes = [((str(group),), float(count)) for group, count in sorted(pending.items())]
    yield _gauge("routerd_operator_port_asks_pending", text, ("group",), nodes)


def _cloud(calls: Mapping[tuple[str, str], int]) -> Iterator[Metric]:
    text = "Calls that change something in a cloud, by what came of them."
    found = [(labels, float(count)) for labels, count in sorted(calls.items())]
    yield _counter("routerd_operator_cloud_calls", text, ("action", "result"), found)


def _tenure(tenure: Tenure) -> Iterator[Metric]:
    changes = [(("acquired",), float(tenure.acquired)), (("lost",), float(tenure.lost))]
    text = "How often this operator got or lost the lease."
    yield _counter("routerd_operator_lease_transitions", text, ("change",), changes)
    text = "Writes to the status of objects."
    yield _counter("routerd_operator_status_writes", text, (), _one(tenure.writes))
    text = "Writes to the status of objects that came after someone else's, and were decided again."
    yield _counter("routerd_operator_status_conflicts", text, (), _one(tenure.conflicts))


def operator_families(status: OperatorStatus) -> Iterator[Metric]:
    """Every metric family of an operator, in the order of the documentation."""
    yield from _operator(status)
    yield from _counts(status.counts)
    yield from _ports(status.ports, status.asks_pending)
    yield from _cloud(status.cloud_calls)
    if status.tenure is not None:
        yield from _tenure(status.tenure)
    if status.store is not None:
        yield from _store(status.store)


def families(status: AgentStatus) -> Iterator[Metric]:
    """Every metric family, in the order of the documentation."""
    yield from _agent(status)
    yield from _rounds(status.rounds)
    text = "From a change in the store to the speaker's acknowledgment of all paths that came of it."
    yield _durations("routerd_bgp_update_delay_seconds", text, status.updates)
    yield from _bgp(status.peers)
    yield from _bfd(status)
    yield from _brake(status)
    yield from _drain(status)
    yield from _egress(status.egress)
    yield from _upstream(status.upstream)
    yield from _routes(status.routes)
    yield from _pools(status)
    if status.store is not None:
        yield from _store(status.store)


class StatusCollector(Collector):
    """Turns the status of the moment into metrics at each scrape."""

    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        return self._collect()


def registry(status: Callable[[], AgentStatus]) -> CollectorRegistry:
    return _registry(lambda: families(status()))


def operator_registry(status: Callable[[], OperatorStatus]) -> CollectorRegistry:
    return _registry(lambda: operator_families(status()))


def _registry(collect: Callable[[], Iterator[Metric]]) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(collect))
    return registry
