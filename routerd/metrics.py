"""Prometheus metrics of an agent, made from its status at the moment of the scrape; names are in docs/metrics.md.

It must not touch the kernel, the speaker or the agent's loop: a scrape reads one frozen value, from another thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from routerd.status import BUCKETS, AgentStatus, PeerStatus, Rounds
from routerd.store.interface import ResourceStatus, StoreStatus

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


def _agent(status: AgentStatus) -> Iterator[Metric]:
    yield _gauge("routerd_build_info", "The running version; always 1.", ("version",), [((status.version,), 1.0)])
    yield _gauge("routerd_config_loaded", "1 if a configuration is in use.", (), _one(status.config_loaded))
    yield _gauge(
        "routerd_config_stale", "1 if the newest configuration was refused and an older one works on.", (),
        _one(status.config_stale),
    )  # fmt: skip
    yield _gauge("routerd_store_synced", "1 if every part of the store has been read.", (), _one(not status.missing))
    yield _gauge("routerd_ready", "1 if the last round was done and nothing is missing.", (), _one(status.ready))
    by_reason = [((reason,), float(count)) for reason, count in status.refusals_by_reason().items()]
    yield _gauge("routerd_refusals", "Things wanted that are not done now, by reason.", ("reason",), by_reason)


def _brake(status: AgentStatus) -> Iterator[Metric]:
    text = "Paths whose withdrawal is held, because they are many and no change explains it."
    yield _gauge("routerd_bgp_brake_held_paths", text, (), _one(status.braked))


def _rounds(rounds: Rounds) -> Iterator[Metric]:
    buckets = [(str(bound), float(count)) for bound, count in zip(BUCKETS, rounds.buckets, strict=True)]
    yield HistogramMetricFamily(
        "routerd_reconcile_duration_seconds",
        "Time of a round: decide, read back, apply.",
        buckets=[*buckets, ("+Inf", float(rounds.done))],
        sum_value=rounds.seconds,
    )
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
        "routerd_bgp_announced_prefixes", "Paths that the speaker holds for the peer.", label,
        samples(lambda p: p.view.announced),
    )  # fmt: skip
    yield _gauge(
        "routerd_bgp_desired_prefixes", "Paths that the peer should have.", label, samples(lambda p: p.desired)
    )
    yield _counter(
        "routerd_bgp_session_flaps",
        "How often the session went from up to down.",
        label,
        samples(lambda p: p.view.flaps),
    )


def _egress(status: AgentStatus) -> Iterator[Metric]:
    yield _gauge("routerd_egress_datapath_up", "1 if the datapath is attached and was read.", (), _one(status.datapath))
    yield _counter(
        "routerd_egress_dropped_packets", "Packets that the datapath dropped, by reason.", ("reason",),
        [((reason,), float(count)) for reason, count in sorted(status.drops.items())],
    )  # fmt: skip
    yield _counter(
        "routerd_egress_packets", "Packets that the datapath took and passed on, by outcome.", ("outcome",),
        [((outcome,), float(count)) for outcome, count in sorted(status.passed.items())],
    )  # fmt: skip
    yield _gauge("routerd_egress_nat_entries", "Live flows translated at this gateway.", (), _one(status.nat_entries))
    yield _gauge(
        "routerd_egress_nat_limit", "Flows that this gateway can translate at once.", (), _one(status.nat_room)
    )
    yield _gauge("routerd_egress_pods", "Pods of this node that a policy selects.", (), _one(status.steered_pods))


def _pools(status: AgentStatus) -> Iterator[Metric]:
    def samples(column: str) -> list[Sample]:
        return [((str(row["pool"]),), float(row[column] or 0)) for row in status.pools]

    label = ("pool",)
    yield _gauge("routerd_pool_addresses", "Addresses that the pool can give.", label, samples("addresses"))
    yield _gauge("routerd_pool_addresses_in_use", "Addresses of the pool that have an owner.", label, samples("used"))


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


def families(status: AgentStatus) -> Iterator[Metric]:
    """Every metric family, in the order of the documentation."""
    yield from _agent(status)
    yield from _rounds(status.rounds)
    yield from _bgp(status.peers)
    yield from _brake(status)
    yield from _egress(status)
    yield from _pools(status)
    if status.store is not None:
        yield from _store(status.store)


class StatusCollector(Collector):
    """Turns the status of the moment into metrics at each scrape."""

    def __init__(self, status: Callable[[], AgentStatus]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        return families(self._status())


def registry(status: Callable[[], AgentStatus]) -> CollectorRegistry:
    found = CollectorRegistry(auto_describe=False)
    found.register(StatusCollector(status))
    return found
