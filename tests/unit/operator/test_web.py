"""What the operator says of itself: readiness, liveness, the rounds it counts."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from ipaddress import ip_address

import pytest

from routerd.cluster.assign import Decision
from routerd.cluster.ledger import Ledger
from routerd.errors import StoreError
from routerd.model import Allocations, Refusal, Snapshot
from routerd.operator.loop import Operator
from routerd.refs import Ref
from routerd.serve import vitals
from routerd.serve.vitals import Vitals, served
from routerd.tell.operator_status import OperatorStatus, operator_status, unread
from routerd.tell.status import Rounds
from tests.models.operator_world import FakeLedger, FakeStore, World
from tests.models.virtual_time import in_virtual_time, settle
from tests.waiting import eventually

LOOPBACK = ip_address("127.0.0.1")


def world() -> World:
    found = World()
    found.pool("p", "192.0.2.0/30")
    found.service("web")
    return found


def test_what_a_decision_needs_is_what_readiness_names() -> None:
    complete = world().snapshot()
    assert unread(complete, {}) == ()
    assert unread(Snapshot(), None) == (
        "nodes",
        "services",
        "address pools",
        "egress policies",
        "BGP peers",
        "node reports",
    )
    for part, name in (("nodes", "nodes"), ("services", "services"), ("pools", "address pools"),
                       ("policies", "egress policies")):  # fmt: skip
        assert unread(replace(complete, **{part: None}), {}) == (name,)  # type: ignore[arg-type]
    assert unread(replace(complete, pods=None, namespaces=None, endpoint_slices=None), {}) == ()


def test_an_operator_that_waits_is_ready_and_tells_no_addresses() -> None:
    found = operator_status("1", world().snapshot(), {}, Rounds(), None, active=False)
    assert (found.ready, found.not_ready_because(), found.active, found.generation) == (True, "", False, None)
    assert found.counts == {}


def test_refusals_are_those_of_the_store_the_decision_and_the_writer() -> None:
    refused = [
        Refusal(Ref.parse("svc/d/a"), reason, "…") for reason in ("InvalidObject", "PoolExhausted", "StatusOfOther")
    ]
    decision = Decision(Allocations(3, refusals=(refused[1],)), Ledger())
    snapshot = replace(world().snapshot(), refusals=(refused[0],))
    found = operator_status("1", snapshot, {}, Rounds(), decision, active=True, refusals=(refused[2],))
    assert found.refusals_by_reason() == {"InvalidObject": 1, "PoolExhausted": 1, "StatusOfOther": 1}
    assert found.generation == 3


def test_rounds_that_decide_or_fail_are_counted_and_those_without_anything_to_decide_on_are_not() -> None:
    store, ledger = FakeStore(world()), FakeLedger()
    operator = Operator(store, ledger, store.world.settings, clock=lambda: store.world.now)

    async def story() -> None:
        store.synced = False
        task = asyncio.create_task(operator.run())
        await eventually(lambda: store.callbacks)
        await settle()
        assert operator.rounds == Rounds()
        store.synced, store.fault = True, StoreError("the disk is full")
        store.changed()
        await eventually(lambda: operator.rounds.errors)
        assert (operator.rounds.done, operator.rounds.last_error) == (1, "the disk is full")
        store.fault = None
        await eventually(lambda: operator.rounds.done == 2)
        assert (operator.rounds.errors, operator.rounds.last_error) == (1, "")
        task.cancel()

    in_virtual_time(story())


def test_a_loop_that_stands_still_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Vitals(lambda: OperatorStatus("1"), list)
    assert found.dead_because() == ""
    monkeypatch.setattr(vitals, "LONGEST_BEAT", 0.0)
    assert found.dead_because() == "the operator's loop does not run"


def test_a_task_that_ended_is_named() -> None:
    async def story() -> None:
        async def work(gate: asyncio.Event) -> None:
            await gate.wait()

        gate = asyncio.Event()
        task = asyncio.create_task(work(gate), name="store")
        found = Vitals(lambda: OperatorStatus("1"), lambda: [task])
        assert found.dead_because() == ""
        gate.set()
        await task
        assert found.dead_because() == "ended: store"

    asyncio.run(story())


def test_a_port_that_is_taken_stops_no_operator(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with served((LOOPBACK, taken.getsockname()[1]), Vitals(lambda: OperatorStatus("1"), list)):
            assert "event=no-metrics" in caplog.text and "change operator.metrics-listen" in caplog.text


def test_none_is_off() -> None:
    with served(None, Vitals(lambda: OperatorStatus("1"), list)):
        pass
