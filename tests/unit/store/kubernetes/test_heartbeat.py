"""Heartbeats at the API server: how many writes they are, and what a node does whose beat fails. In virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from routerd.formats.published.allocations import parse_node_report, write_node_report
from routerd.model import GATEWAY_HEARTBEAT, NODE_HEARTBEAT, BlockReport, EgressAsk, Heartbeat, NodeReport, PodCount
from routerd.store.kubernetes import report as k8s_report
from routerd.store.kubernetes.client import UNREACHABLE, ApiError
from routerd.store.kubernetes.contact import Contact
from routerd.store.kubernetes.documents import is_urgent, read_report, report_status, with_lease
from routerd.store.kubernetes.heartbeat import Heartbeats
from routerd.store.kubernetes.report import Reporter
from routerd.store.kubernetes.watch import Timings
from tests.models.virtual_time import elapse, in_virtual_time, now

LEASE = "/apis/coordination.k8s.io/v1/namespaces/routerd/leases/node-g0"
CONDITION = {"type": "Ready", "status": "True", "reason": "Ready", "message": ""}


@dataclass
class Api:
    """Objects by path, and how many writes there were of each kind. As a `Client`, of one node or of all."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    writes: Counter[str] = field(default_factory=Counter)
    fault: ApiError | None = None
    contact: Contact = field(default_factory=lambda: Contact(now))

    async def get(self, path: str) -> dict[str, Any]:
        self._may()
        if path not in self.objects:
            raise ApiError(404, "NotFound", "")
        return self.objects[path]

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self._may()
        name = body["metadata"]["name"]
        self.objects[f"{path}/{name}"] = dict(body)
        self.writes[body["kind"]] += 1
        return self.objects[f"{path}/{name}"]

    async def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self._may()
        path = path.removesuffix("/status")
        if path not in self.objects:
            raise ApiError(404, "NotFound", "")
        self.objects[path] = {**self.objects[path], **body}
        self.writes["Lease" if "/leases/" in path else "RouterdNode"] += 1
        return self.objects[path]

    async def rest(self, error: ApiError, seconds: float, pace: Any) -> None:
        await elapse(seconds)

    def _may(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.contact.answered()


def heartbeats(api: Api, node: str) -> Heartbeats:
    return Heartbeats(api, "routerd", node, lambda: "uid-1", Timings())  # type: ignore[arg-type]


def reporter(api: Api, node: str, seconds: int, health: Callable[[], Mapping[str, Any]]) -> Reporter:
    one = Reporter(api, node, str, Timings(), lambda: None)  # type: ignore[arg-type]
    one.health = health
    one.want(NodeReport(node, heartbeat=Heartbeat(seconds)))
    return one


def healthy() -> Mapping[str, Any]:
    return {"conditions": [CONDITION]}


def test_a_thousand_nodes_of_which_four_are_gateways_write_less_than_five_times_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(k8s_report, "PERIOD", 20.0)  # how often they look at what there is to say, and not less

    async def story() -> None:
        api, gateways = Api(), [f"g{number}" for number in range(4)]
        beating = [heartbeats(api, name) for name in gateways]
        nodes = [(name, GATEWAY_HEARTBEAT) for name in gateways] + [(f"n{i}", NODE_HEARTBEAT) for i in range(996)]
        tasks = [asyncio.create_task(each.run()) for each in beating]
        tasks += [asyncio.create_task(reporter(api, name, seconds, healthy).run()) for name, seconds in nodes]
        await elapse(NODE_HEARTBEAT)
        api.writes.clear()
        for _ in range(60):
            await elapse(GATEWAY_HEARTBEAT)
            for each in beating:
                each.beat()
        await elapse(1)
        assert api.writes["Lease"] == 4 * 60
        assert api.writes["RouterdNode"] <= 4.4 * 600
        assert api.writes.total() < 5 * 600
        for task in tasks:
            task.cancel()

    in_virtual_time(story())


def test_the_lease_goes_with_its_node_and_is_found_by_its_label() -> None:
    async def story() -> None:
        api = Api()
        one = heartbeats(api, "g0")
        task = asyncio.create_task(one.run())
        one.beat()
        await elapse(1)
        lease = api.objects[LEASE]
        assert lease["metadata"]["labels"] == {"routerd.io/heartbeat": "node"}
        assert [each["uid"] for each in lease["metadata"]["ownerReferences"]] == ["uid-1"]
        first = lease["spec"]["renewTime"]
        one.beat()
        await elapse(1)
        assert api.objects[LEASE]["spec"]["renewTime"] != first
        assert api.objects[LEASE]["metadata"] == lease["metadata"]
        task.cancel()

    in_virtual_time(story())


def test_a_beat_that_fails_is_lost_and_one_that_was_due_in_an_outage_comes_when_it_ends() -> None:
    async def story() -> None:
        api = Api()
        one = heartbeats(api, "g0")
        task = asyncio.create_task(one.run())
        api.fault = ApiError(500, "InternalError", "")
        one.beat()
        await elapse(100)
        assert api.writes.total() == 0
        api.fault = ApiError(0, UNREACHABLE, "")
        api.contact.failed(now())
        for _ in range(10):
            one.beat()
            await elapse(10)
        assert api.writes.total() == 0
        api.fault = None
        api.contact.answered()
        await elapse(3)
        assert api.writes == {"Lease": 1}
        task.cancel()

    in_virtual_time(story())


def test_an_agent_that_crashes_before_it_has_anything_to_say_does_not_say_that_it_lives() -> None:
    """Its object was written before; each new process reads it, and ends before ten seconds."""

    async def story() -> None:
        api = Api()
        path = "/apis/routerd.io/v1alpha1/routerdnodes/g0"
        task = asyncio.create_task(reporter(api, "g0", GATEWAY_HEARTBEAT, healthy).run())
        await elapse(5)
        task.cancel()
        seen, writes = api.objects[path]["status"], api.writes.total()
        for _ in range(100):
            task = asyncio.create_task(reporter(api, "g0", GATEWAY_HEARTBEAT, dict).run())
            await elapse(9)
            task.cancel()
            await elapse(60)
        assert (api.objects[path]["status"], api.writes.total()) == (seen, writes)

    in_virtual_time(story())


def test_after_an_outage_a_node_that_was_called_absent_says_how_it_is() -> None:
    async def story() -> None:
        api = Api()
        path = "/apis/routerd.io/v1alpha1/routerdnodes/g0"
        task = asyncio.create_task(reporter(api, "g0", GATEWAY_HEARTBEAT, healthy).run())
        await elapse(5)
        api.contact.failed(now())
        await elapse(60)
        absent = [{**CONDITION, "status": "Unknown", "reason": "AgentAbsent"}]
        api.objects[path] = {**api.objects[path], "status": {**api.objects[path]["status"], "conditions": absent}}
        api.contact.answered()
        await elapse(15)
        assert api.objects[path]["status"]["conditions"][0]["status"] == "True"
        task.cancel()

    in_virtual_time(story())


def test_of_a_gateway_its_lease_counts_and_of_others_their_report() -> None:
    seen = {"addresses": [], "lastSeen": "2026-01-01T00:00:00Z"}
    old, node, gateway = (
        with_lease(report, "renewed")
        for report in (
            read_report("n", seen),
            read_report("n", {**seen, "heartbeatSeconds": NODE_HEARTBEAT}),
            read_report("n", {**seen, "heartbeatSeconds": GATEWAY_HEARTBEAT}),
        )
        if report is not None
    )
    beats = [each.heartbeat.beat if each.heartbeat else None for each in (old, node, gateway)]
    assert beats == [None, "2026-01-01T00:00:00Z", "renewed"]


ONE = ip_network("10.0.0.9")


@pytest.mark.parametrize("pods", [None, PodCount(3, 1)])
def test_how_many_pods_there_are_is_read_back(pods: PodCount | None) -> None:
    report = NodeReport("n", pods=pods)
    assert read_report("n", report_status(report)) == report


@pytest.mark.parametrize("blocks", [None, BlockReport(), BlockReport((ONE, ip_network("fd00::/80")), (ONE,), 7)])
def test_which_blocks_a_node_keeps_is_read_back(blocks: BlockReport | None) -> None:
    report = NodeReport("n", blocks=blocks)
    assert read_report("n", report_status(report)) == report


@pytest.mark.parametrize("asks", [None, (), (EgressAsk("shop", ip_address("172.10.0.1")),)])
def test_what_pods_ask_for_is_read_back(asks: tuple[EgressAsk, ...] | None) -> None:
    report = NodeReport("n", egress_asks=asks)
    assert read_report("n", report_status(report)) == report
    assert parse_node_report(write_node_report(report), "f") == report


@pytest.mark.parametrize("asks", [1, [{}], [{"namespace": "shop"}], ["x"]])
def test_what_is_no_ask_says_nothing(asks: object) -> None:
    assert read_report("n", {"addresses": [], "egressAsks": asks}) == NodeReport("n")


@pytest.mark.parametrize("text", ["x", "fd00::1%1", "127.0.0.1"])
def test_one_ask_that_is_no_address_costs_itself_alone(text: str) -> None:
    asks = [{"namespace": "shop", "egressIP": text}, {"namespace": "shop", "egressIP": "172.10.0.1"}]
    report = NodeReport("n", egress_asks=(EgressAsk("shop", ip_address("172.10.0.1")),))
    assert read_report("n", {"addresses": [], "egressAsks": asks}) == report


def test_another_ask_is_urgent() -> None:
    one, two = (report_status(NodeReport("n", egress_asks=(EgressAsk(each, ONE[0]),))) for each in ("shop", "till"))
    assert is_urgent(two, one) and not is_urgent(one, one)


@pytest.mark.parametrize("blocks", [1, [], {"kept": 1}, {"kept": ["x"], "busy": []}, {"generation": "x"}])
def test_what_are_no_blocks_say_nothing(blocks: object) -> None:
    assert read_report("n", {"addresses": [], "blocks": blocks}) == NodeReport("n")


@pytest.mark.parametrize("pods", [None, 1, [], {}, {"withAddress": "x", "waiting": 1}])
def test_what_is_no_number_of_pods_says_nothing(pods: object) -> None:
    assert read_report("n", {"addresses": [], "pods": pods}) == NodeReport("n")


def test_that_pods_wait_is_urgent_and_that_they_have_addresses_is_not() -> None:
    before = report_status(NodeReport("n", pods=PodCount(3, 1)))
    assert not is_urgent(report_status(NodeReport("n", pods=PodCount(4, 1))), before)
    assert is_urgent(report_status(NodeReport("n", pods=PodCount(3, 2))), before)
