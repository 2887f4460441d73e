"""Metrics: what Prometheus' own linter says, and the numbers."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import asdict, fields, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from prometheus_client.exposition import generate_latest

from bfd.control import View as Watched
from bgp.session import PeerStatus as Session
from egress.status import EgressStatus, Probed
from fib.plan import Observed
from fib.plan import Status as RouteStatus
from ipam.pool import Counts
from ipam.port_sets import PortCounts
from routerd.model import Refusal
from routerd.refs import Ref
from routerd.store.interface import ResourceStatus, Responses, StoreStatus
from routerd.tell.metrics import operator_registry, registry
from routerd.tell.operator_status import OperatorStatus, Tenure
from routerd.tell.status import AgentStatus, ConfigStatus, Durations, PeerStatus, Rounds, as_json
from routerd.tell.views import PeerView, pool_rows
from tests.models import cluster
from tests.models.cluster import SESSION
from upstream.targets import Judged, Target, Upstream

ROOT = Path(__file__).resolve().parents[3]

BFD = Watched(
    ip_address("10.0.0.1"),
    ip_address("10.0.0.9"),
    "up",
    5.0,
    3,
    False,
    "up",
    interval=50_000,
    detection=150_000,
    reason="",
)
PROBED = Probed(2, "leaves", ("draining",), 100, 97, 0.25, 0.04, "gw")
FULL = AgentStatus(
    node="a",
    version="0.1.0",
    bfd_refused={"ttl": 3},
    upstream=Upstream({Target("tcp", ip_address("2001:db8::1"), 443): Judged(False, 1, "no answer")}, is_lost=True),
    routes=RouteStatus(Observed({ip_network("10.1.12.0/24"): frozenset()}), writes=7),
    rounds=Rounds().after(0.02).after(0.2, error="egress: map is full"),
    updates=Durations().after(0.0625).after(0.1875),
    peers=(PeerStatus("tor", PeerView(SESSION, Session("up", flaps=2, announced=3), bfd=BFD), desired=4),),
    refusals=(
        Refusal(Ref.parse("svc/default/web"), "NoEndpoints", "…"),
        Refusal(Ref.parse("svc/default/api"), "NoEndpoints", "…"),
    ),
    pools=tuple(pool_rows(cluster.snapshot())),
    egress=EgressStatus(
        True,
        1,
        {"flows": 9},
        {"flows": 1000},
        {"7": 3},
        {"egress/7": 1},
        {"translated": 8, "handed_in": 7, "came_out": 4},
        {"no_gateway": 5},
        (PROBED,),
        "forward",
        "programs",
        ("10.1.11.9",),
    ),
    store=StoreStatus(
        (ResourceStatus("pods", synced=True, stale=12.5, lists=2, watches=3), ResourceStatus("nodes", synced=False)),
        {"GET": 9, "PATCH": 1},
        (Responses("GET", "200", 7), Responses("GET", "none", 2)),
    ),
)
OPERATOR = OperatorStatus(
    version="0.1.0",
    active=True,
    rounds=Rounds().after(0.02).after(0.2, error="API server: no answer"),
    generation=7,
    counts={"default": Counts(total=256, free=250, used=3, cooling=2, reserved=1)},
    ports={ip_address("192.0.2.7"): PortCounts(total=1008, free=900, granted=92, returning=0, cooling=16)},
    asks_pending={1: 2},
    refusals=FULL.refusals,
    silent={"gw1": "2026-01-01T00:00:00Z"},
    store=FULL.store,
    tenure=Tenure(acquired=2, lost=1, writes=12, conflicts=4),
)


def exposition(status: AgentStatus | OperatorStatus) -> str:
    if isinstance(status, AgentStatus):
        return generate_latest(registry(lambda: status)).decode()
    return generate_latest(operator_registry(lambda: status)).decode()


@pytest.mark.parametrize("status", [FULL, OPERATOR], ids=["agent", "operator"])
def test_promtool_finds_nothing_to_say(status: AgentStatus | OperatorStatus) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "promtool is missing: tools/setup installs it (Debian: prometheus)"
    command, text = [promtool, "check", "metrics"], exposition(status)
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_numbers() -> None:
    lines = set(exposition(FULL).splitlines())
    assert {
        'routerd_build_info{version="0.1.0"} 1.0',
        "routerd_config_loaded 1.0",
        "routerd_config_stale 0.0",
        "routerd_store_synced 1.0",
        "routerd_ready 0.0",
        'routerd_refusals{reason="NoEndpoints",severity="warning"} 2.0',
        'routerd_bgp_session_up{peer="tor"} 1.0',
        'routerd_bgp_announced_prefixes{peer="tor"} 3.0',
        'routerd_bgp_desired_prefixes{peer="tor"} 4.0',
        'routerd_bgp_session_flaps_total{peer="tor"} 2.0',
        'routerd_egress_dropped_packets_total{reason="no_gateway"} 5.0',
        'routerd_egress_packets_total{outcome="translated"} 8.0',
        'routerd_egress_first_packets{way="forward"} 1.0',
        'routerd_egress_first_packets{way="direct"} 0.0',
        'routerd_egress_tunnel_packets{by="programs"} 1.0',
        'routerd_egress_tunnel_packets{by="device"} 0.0',
        "routerd_egress_held_back_packets 3.0",
        'routerd_egress_table_limit{table="flows"} 1000.0',
        'routerd_egress_table_entries{table="flows"} 9.0',
        'routerd_egress_long_port_searches_total{group="7"} 3.0',
        'routerd_egress_pressed{object="egress/7"} 1.0',
        "routerd_egress_pods 1.0",
        "routerd_egress_unhooked_pods 1.0",
        'routerd_gateway_up{by="tunnel",gateway="gw"} 1.0',
        'routerd_gateway_serves{by="tunnel",gateway="gw"} 0.0',
        'routerd_gateway_round_trip_seconds{by="tunnel",gateway="gw"} 0.25',
        'routerd_gateway_probes_total{by="tunnel",gateway="gw"} 100.0',
        'routerd_gateway_probe_answers_total{by="tunnel",gateway="gw"} 97.0',
        "routerd_upstream_up 0.0",
        'routerd_routes{family="ipv4"} 1.0',
        'routerd_routes{family="ipv6"} 0.0',
        "routerd_route_writes_total 7.0",
        'routerd_upstream_target_up{target="tcp [2001:db8::1]:443"} 0.0',
        'routerd_pool_addresses{pool="default"} 256.0',
        'routerd_pool_addresses_in_use{pool="default"} 1.0',
        'routerd_store_resource_synced{resource="pods"} 1.0',
        'routerd_store_resource_synced{resource="nodes"} 0.0',
        'routerd_store_stale_seconds{resource="pods"} 12.5',
        'routerd_store_lists_total{resource="pods"} 2.0',
        'routerd_store_watches_total{resource="pods"} 3.0',
        'routerd_store_requests_total{method="GET"} 9.0',
        'routerd_store_responses_total{code="200",method="GET"} 7.0',
        'routerd_store_responses_total{code="none",method="GET"} 2.0',
        "routerd_reconcile_errors_total 1.0",
        'routerd_reconcile_duration_seconds_bucket{le="0.025"} 1.0',
        'routerd_reconcile_duration_seconds_bucket{le="+Inf"} 2.0',
        "routerd_reconcile_duration_seconds_count 2.0",
        'routerd_bgp_update_delay_seconds_bucket{le="0.1"} 1.0',
        'routerd_bgp_update_delay_seconds_bucket{le="+Inf"} 2.0',
        "routerd_bgp_update_delay_seconds_sum 0.25",
    } <= lines


def test_the_operator_s_numbers() -> None:
    lines = set(exposition(OPERATOR).splitlines())
    assert {
        'routerd_build_info{version="0.1.0"} 1.0',
        "routerd_store_synced 1.0",
        "routerd_ready 1.0",
        'routerd_refusals{reason="NoEndpoints",severity="warning"} 2.0',
        "routerd_operator_active 1.0",
        "routerd_operator_generation 7.0",
        'routerd_operator_agent_silent_since_seconds{node="gw1"} 1.7672256e+09',
        'routerd_operator_decision_duration_seconds_bucket{le="0.025"} 1.0',
        "routerd_operator_decision_duration_seconds_count 2.0",
        "routerd_operator_decision_errors_total 1.0",
        'routerd_pool_addresses{pool="default"} 256.0',
        'routerd_pool_addresses_in_use{pool="default"} 3.0',
        'routerd_operator_pool_addresses{pool="default",state="free"} 250.0',
        'routerd_operator_pool_addresses{pool="default",state="used"} 3.0',
        'routerd_operator_pool_addresses{pool="default",state="cooling"} 2.0',
        'routerd_operator_pool_addresses{pool="default",state="reserved"} 1.0',
        'routerd_operator_port_granules{egress_ip="192.0.2.7",state="free"} 900.0',
        'routerd_operator_port_granules{egress_ip="192.0.2.7",state="granted"} 92.0',
        'routerd_operator_port_granules{egress_ip="192.0.2.7",state="returning"} 0.0',
        'routerd_operator_port_granules{egress_ip="192.0.2.7",state="cooling"} 16.0',
        'routerd_operator_port_asks_pending{group="1"} 2.0',
        'routerd_operator_lease_transitions_total{change="acquired"} 2.0',
        'routerd_operator_lease_transitions_total{change="lost"} 1.0',
        "routerd_operator_status_writes_total 12.0",
        "routerd_operator_status_conflicts_total 4.0",
        'routerd_store_stale_seconds{resource="pods"} 12.5',
        'routerd_store_responses_total{code="none",method="GET"} 2.0',
    } <= lines


def test_files_have_no_metrics_of_an_api_server() -> None:
    assert "routerd_store_lists" not in exposition(replace(FULL, store=None))
    without = exposition(replace(OPERATOR, store=None, tenure=None))
    assert "routerd_store_lists" not in without and "lease" not in without


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    documented = {
        line.split("`")[1].partition("{")[0]
        for line in (ROOT / "docs/metrics.md").read_text().splitlines()
        if line.startswith("| `routerd_")
    }
    both = [*exposition(FULL).splitlines(), *exposition(OPERATOR).splitlines()]
    assert {line.split()[2] for line in both if line.startswith("# TYPE")} == documented


def test_readiness_tells_why_not() -> None:
    ready = replace(FULL, rounds=Rounds().after(0.1))
    assert (ready.ready, ready.not_ready_because()) == (True, "")
    assert FULL.not_ready_because() == "egress: map is full"
    assert replace(ready, missing=("pods",)).not_ready_because() == "not read from the store yet: pods"
    assert replace(ready, rounds=Rounds()).not_ready_because().startswith("the first round with everything")
    assert "line 3" in replace(ready, config=ConfigStatus(loaded=False, error="line 3")).not_ready_because()


def test_status_as_json_names_the_refusals() -> None:
    document = as_json(FULL)
    assert document["refusals"] == [
        {"severity": "warning", "object": "svc/default/web", "reason": "NoEndpoints", "message": "…"},
        {"severity": "warning", "object": "svc/default/api", "reason": "NoEndpoints", "message": "…"},
    ]


def test_status_as_json_has_the_parts_of_the_rooms() -> None:
    """Scripts read these names."""
    document = as_json(FULL)
    assert document["config"] == {"loaded": True, "stale": False, "error": ""}
    assert document["egress"] == {
        "datapath": True, "pods": 1, "entries": {"flows": 9}, "room": {"flows": 1000}, "long_searches": {"7": 3},
        "pressed": {"egress/7": 1},
        "passed": {"translated": 8, "handed_in": 7, "came_out": 4}, "drops": {"no_gateway": 5},
        "probed": (asdict(PROBED),), "first_packets": "forward",
            "tunnel_packets": "programs", "unhooked": ("10.1.11.9",),
    }  # fmt: skip
    assert document["peers"] == [
        {"peer": "tor", "address": "10.0.0.1", "local_address": "10.0.0.11",
         "up": True, "state": "up", "since_seconds": None, "flaps": 2,
         "announced": 3,
         "desired": 4, "last_error": "", "override": "", "bfd": "up"}
    ]  # fmt: skip
    assert document["routes"] == {"installed": 1, "writes": 7}
    untold = replace(FULL, peers=(PeerStatus("tor", PeerView(SESSION)),))
    assert as_json(untold)["peers"] == [
        {"peer": "tor", "address": "10.0.0.1", "local_address": "10.0.0.11",
         "up": False, "state": "", "since_seconds": None, "flaps": 0,
         "announced": 0,
         "desired": 0, "last_error": "", "override": "", "bfd": ""}
    ]  # fmt: skip


@pytest.mark.parametrize("name", [each.name for each in fields(EgressStatus)])
def test_whatever_the_datapath_says_is_in_the_api_and_in_the_metrics(name: str) -> None:
    """So a new counter is a field, its reading, and its metric."""
    before = getattr(FULL.egress, name)
    other: object = {"other": 1}
    if isinstance(before, bool | int | tuple):
        other = not before if isinstance(before, bool) else before + 1 if isinstance(before, int) else ()
    changed = replace(FULL, egress=replace(FULL.egress, **{name: other}))
    assert as_json(changed)["egress"] == {**asdict(FULL.egress), name: other}
    assert exposition(changed) != exposition(FULL)
