"""The loop: record, then publish; faults leave the last good document; timers and changes wake it up."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from routerd.cluster.assign import AssignSettings
from routerd.cluster.ledger import Changes, Ledger
from routerd.errors import StoreError
from routerd.log import JsonFormatter, LogfmtFormatter, configure, event
from routerd.model import Allocations, ServiceAllocation, Writer
from routerd.operator import loop
from routerd.operator.loop import WRITES, Operator
from routerd.serve.api import Noted, RequestRefused
from routerd.store.embedded.ledger import SqliteLedger
from tests.models.operator_world import FakeLedger, FakeStore, World
from tests.models.virtual_time import elapse, in_virtual_time, now, settle
from tests.waiting import PATIENCE, eventually, turns


@pytest.fixture
def store() -> FakeStore:
    world = World()
    world.pool("p", "192.0.2.0/24")
    world.service("web")
    return FakeStore(world)


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


@pytest.fixture
def operator(store: FakeStore, ledger: FakeLedger) -> Operator:
    return Operator(store, ledger, store.world.settings, clock=lambda: store.world.now)


def test_nothing_is_published_before_it_is_recorded(operator: Operator, store: FakeStore, ledger: FakeLedger) -> None:
    ledger.fault = StoreError("disk")
    with pytest.raises(StoreError):
        operator.round()
    assert store.written == []
    ledger.fault = None
    operator.round()
    assert [each.generation for each in store.written] == [1]


def test_a_store_that_fails_gets_the_same_document_later(
    operator: Operator, store: FakeStore, ledger: FakeLedger
) -> None:
    store.fault = StoreError("unreachable")
    with pytest.raises(StoreError):
        operator.round()
    recorded = ledger.content
    store.fault = None
    operator.round()
    assert ledger.content == recorded
    assert [each.generation for each in store.written] == [1]


def test_nothing_is_written_when_nothing_changed(operator: Operator, store: FakeStore) -> None:
    for _ in range(3):
        operator.round()
    assert len(store.written) == 1


def test_a_store_that_lags_is_not_written_again(operator: Operator, store: FakeStore) -> None:
    operator.round()
    seen = store.world.allocations
    store.world.allocations = Allocations()
    operator.round()
    operator.round()
    assert len(store.written) == 1
    store.world.allocations = Allocations(generation=7)
    operator.round()
    assert store.written[-1].services == seen.services, "somebody else wrote the document: it is put right"


def test_an_unsynced_store_is_left_alone(operator: Operator, store: FakeStore, ledger: FakeLedger) -> None:
    store.synced = False
    assert operator.round() == loop.LONGEST_WAIT
    assert (store.written, ledger.content) == ([], Ledger())


def test_the_next_round_is_due_when_something_has_cooled(operator: Operator, store: FakeStore) -> None:
    assert operator.round() == loop.LONGEST_WAIT
    store.world.services.clear()
    assert operator.round() == 30
    store.world.now += 29
    assert operator.round() == 1


def test_release(operator: Operator, store: FakeStore, ledger: FakeLedger) -> None:
    store.world.node("g")
    store.world.policy("out", pool="p")
    operator.round()
    store.world.policies.clear()
    operator.round()
    (released,) = operator.release("EgressPolicy/out")
    assert (str(released.address), released.state) == ("192.0.2.0", "cooling")
    assert {record.state for record in ledger.content.addresses} == {"used", "cooling"}
    assert operator.release("EgressPolicy/out") == ()


def test_the_loop(operator: Operator, store: FakeStore, ledger: FakeLedger) -> None:
    """A change, a fault with its pause, and a timer, each bring the next document."""

    async def story() -> None:
        task = asyncio.create_task(operator.run(), name="operator")
        try:
            await eventually(lambda: len(store.written) == 1)
            store.fault = StoreError("unreachable")
            store.world.service("db")
            store.changed()
            await eventually(lambda: ledger.content.generation == 2)
            assert len(store.written) == 1
            store.fault = None
            await eventually(lambda: len(store.written) == 2)

            del store.world.services["d/db"]
            store.changed()
            await eventually(lambda: len(store.written) == 3)
            store.world.now += 29.9  # the operator wakes up by itself 0.1 s later
            store.changed()
            await settle()
            assert operator.last is not None and operator.last.counts["p"].cooling == 1
            store.world.now += 0.1
            await eventually(lambda: operator.last is not None and operator.last.counts["p"].cooling == 0)
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    in_virtual_time(story())


class Requesting(FakeLedger):
    """Each record of it takes 50 requests."""

    def record(self, changes: Changes) -> None:
        super().record(changes)
        self.writes += 50


def test_after_a_round_that_wrote_much_the_next_one_waits(store: FakeStore) -> None:
    """So that a thousand nodes that ask one after another do not make hundreds of requests a second."""

    async def story() -> None:
        operator = Operator(store, Requesting(), clock=lambda: 1000 + now(), ticks=now, in_thread=True)
        operator._timed()
        began = now()
        await operator._join()
        assert now() - began == pytest.approx(50 / WRITES)
        await elapse(60)
        began = now()
        await operator._join()
        assert now() - began < 1, "one ask after a quiet time waits for none"

    in_virtual_time(story())


def test_with_the_real_ledger(store: FakeStore, tmp_path: Path) -> None:
    for _ in range(2):
        opened = SqliteLedger(tmp_path / "ledger.db")
        try:
            Operator(store, opened, store.world.settings, clock=lambda: store.world.now).round()
        finally:
            opened.close()
    assert len(store.written) == 1


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What the process would write; the handlers of the test run are put back."""
    root = logging.getLogger()
    handlers, level, stream = root.handlers[:], root.level, io.StringIO()
    root.handlers = []
    configure(stream=stream)
    yield stream
    root.handlers = handlers
    root.setLevel(level)


def test_one_line_per_decision(operator: Operator, store: FakeStore, logged: io.StringIO) -> None:
    operator.round()
    operator.round()
    store.world.service("bad", ips="198.51.100.1")
    operator.round()
    operator.round()
    lines = [line.split(" ", 1)[1] for line in logged.getvalue().splitlines()]
    assert lines[0].startswith("level=info logger=routerd.operator event=decided generation=1 services=1 groups=0 ")
    assert lines[1].startswith("level=info logger=routerd.operator event=decided generation=2 ")
    assert lines[2].startswith(
        "level=error logger=routerd.operator event=refused object=svc/d/bad reason=NotInPool message="
    )
    assert len(lines) == 3


@pytest.mark.parametrize("formatter", [LogfmtFormatter(), JsonFormatter()])
def test_lines_hold_no_secret_and_no_line_break(formatter: logging.Formatter) -> None:
    logger = logging.getLogger("routerd.test")
    records: list[logging.LogRecord] = []
    keeper = logging.Handler()
    keeper.emit = records.append  # type: ignore[method-assign]
    logger.addHandler(keeper)
    try:
        event(logger, logging.WARNING, "peer", address="10.0.0.1", password="hunter2", text='a "b"\nc', nothing=None)
    finally:
        logger.removeHandler(keeper)
    line = formatter.format(records[0])
    assert "hunter2" not in line and "\n" not in line and "nothing" not in line
    if isinstance(formatter, JsonFormatter):
        fields = json.loads(line)
        del fields["time"]
        assert fields == {
            "level": "warning", "logger": "routerd.test", "event": "peer", "address": "10.0.0.1", "password": "***",
            "text": 'a "b"\nc',
        }  # fmt: skip
    else:
        assert line.split(" ", 1)[1] == (
            'level=warning logger=routerd.test event=peer address=10.0.0.1 password=*** text="a \\"b\\"\\nc"'
        )


# --- a second operator


def another(generation: int, *services: ServiceAllocation) -> Allocations:
    return Allocations(generation, services, writer=Writer("host-b", "theirs", 4))


def test_what_was_there_is_taken_over_and_a_rival_afterwards_is_an_error(store: FakeStore, ledger: FakeLedger) -> None:
    given = ServiceAllocation("d/web", "p", (ip_address("192.0.2.9"),))
    store.world.allocations = another(7, given)
    operator = Operator(store, ledger, AssignSettings(writer=Writer("host-a", "ours", 1)), clock=lambda: 1.0)
    operator.round()
    assert store.written == []  # the content is the same: the published generation is ours now
    assert ledger.content.generation == 7
    store.world.service("more", status="192.0.2.8")
    operator.round()
    assert [(each.generation, each.writer) for each in store.written] == [(8, Writer("host-a", "ours", 1))]
    store.world.allocations = another(9, given)
    with pytest.raises(
        StoreError, match=r"another operator, on host-b \(ledger theirs, lease 4\), published .* 9: stop"
    ):
        operator.round()
    assert len(store.written) == 1
    assert ledger.content.generation == 8  # nor is anything recorded
    store.world.allocations = replace(store.written[0], generation=10, writer=Writer("host-b", "theirs", 4))
    operator.round()  # it says the same: nothing to fight about
    assert len(store.written) == 1
    assert ledger.content.generation == 10
    assert store.world.allocations.generation == 10


def test_an_older_document_of_another_is_written_over(store: FakeStore, ledger: FakeLedger) -> None:
    operator = Operator(store, ledger, AssignSettings(writer=Writer("host-a", "ours", 1)), clock=lambda: 1.0)
    operator.round()
    store.world.service("more")
    operator.round()
    store.world.allocations = another(1)
    operator.round()
    assert [each.generation for each in store.written] == [1, 2, 2]


def test_the_release_of_an_address_by_its_socket(store: FakeStore, ledger: FakeLedger) -> None:
    store.world.policy("e", pool="p")
    operator = Operator(store, ledger, clock=lambda: 1.0)
    operator.round()
    store.world.policies.clear()
    operator.round()
    ((address, owner),) = [(each.address, each.owner) for each in ledger.content.addresses if each.state == "reserved"]
    record = {"address": str(address), "owner": "EgressPolicy/e", "pool": "p", "since": "1970-01-01T00:00:01Z"}

    def ask(request: dict[str, Any]) -> list[dict[str, str]]:
        found: list[dict[str, str]] = asyncio.run(operator.answer(request)).result
        return found

    assert [each["state"] for each in ask({"get": "ledger"})] == ["reserved", "used"]
    assert {**record, "state": "reserved"} in ask({"get": "ledger"})
    assert ask({"do": "release", "name": owner}) == [{**record, "state": "cooling"}]
    assert {**record, "state": "cooling"} in ask({"get": "ledger"})
    with pytest.raises(RequestRefused, match="nothing is reserved as 'EgressPolicy/e'"):
        ask({"do": "release", "name": "EgressPolicy/e"})
    with pytest.raises(RequestRefused, match="unknown request"):
        ask({"do": "away", "name": owner})


def test_whose_a_port_is_or_was_by_its_socket(store: FakeStore, ledger: FakeLedger) -> None:
    now = 1000.0
    operator = Operator(store, ledger, clock=lambda: now)
    store.world.node("g")
    store.world.policy("e", "198.51.100.7")
    operator.round()

    def who(port: object, at: object = None, address: str = "198.51.100.7") -> list[dict[str, str]]:
        request = {"get": "who", "address": address, "port": port, "at": at}
        found: list[dict[str, str]] = asyncio.run(operator.answer(request)).result
        return found

    row = {"egress_ip": "198.51.100.7", "ports": "1024-2047", "node": "g", "since": "1970-01-01T00:16:40Z", "until": ""}
    assert (who(1500), who(1500, 1001), who(1500, 999), who(80)) == ([row], [row], [], [])
    now = 2000.0
    store.world.nodes.clear()
    operator.round()
    assert who(1500, 1500.0) == [{**row, "until": "1970-01-01T00:33:20Z"}]
    assert who(1500) == who(1500, None, "2001:db8::1") == []
    for port, at in (("x", None), (1, "yesterday"), (None, None)):
        with pytest.raises(RequestRefused, match="unknown request"):
            who(port, at)


# --- questions while the store does not answer


@dataclass
class SlowLedger(FakeLedger):
    """`record` waits for `answers`, and then raises `fault` if there is one; `inside` are the calls under way."""

    answers: threading.Event = field(default_factory=threading.Event)
    inside: int = 0
    most: int = 0

    def record(self, changes: Changes) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            assert self.answers.wait(PATIENCE)
            super().record(changes)
        finally:
            self.inside -= 1


@asynccontextmanager
async def hanging(store: FakeStore, ledger: SlowLedger) -> AsyncIterator[Operator]:
    """An operator in the middle of a write that is not answered, with one address reserved before that."""
    store.world.policy("e", pool="p")
    operator = Operator(store, ledger, clock=lambda: 1.0, in_thread=True)
    ledger.answers.set()
    operator.round()
    store.world.policies.clear()
    operator.round()
    ledger.answers.clear()
    store.world.service("late")
    task = asyncio.create_task(operator.run())
    try:
        await eventually(lambda: ledger.inside)
        yield operator
    finally:
        ledger.answers.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def states(found: Noted) -> list[str]:
    return sorted(row["state"] for row in found.result)


def test_the_ledger_is_shown_while_its_change_is_not_answered(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PATIENCE", 0.05)
    ledger = SlowLedger()

    async def story() -> None:
        async with hanging(store, ledger) as operator:
            found = await operator.answer({"get": "ledger"})
            assert states(found) == ["reserved", "used"]
            assert "not known to be stored yet" in found.note
            ledger.answers.set()
            await eventually(lambda: len(ledger.content.addresses) == 3)
            await eventually(lambda: not operator._turn.locked())
            found = await operator.answer({"get": "ledger"})
            assert (states(found), found.note) == (["reserved", "used", "used"], "")

    asyncio.run(story())


def test_a_round_that_ends_soon_is_waited_for(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PATIENCE", PATIENCE)
    ledger = SlowLedger()

    async def story() -> None:
        async with hanging(store, ledger) as operator:
            asking = asyncio.create_task(operator.answer({"get": "ledger"}))
            await turns()
            ledger.answers.set()
            found = await asking
            assert (states(found), found.note) == (["reserved", "used", "used"], "")

    asyncio.run(story())


def test_a_release_is_refused_while_a_round_hangs_and_not_made_later(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PATIENCE", 0.05)
    ledger = SlowLedger()

    async def story() -> None:
        async with hanging(store, ledger) as operator:
            with pytest.raises(RequestRefused, match=r"busy: .* nothing was done, try again"):
                await operator.answer({"do": "release", "name": "EgressPolicy/e"})
            ledger.answers.set()
            await eventually(lambda: len(ledger.content.addresses) == 3)
            await eventually(lambda: not operator._turn.locked())
            assert states(await operator.answer({"get": "ledger"})) == ["reserved", "used", "used"]
            assert ledger.most == 1

    asyncio.run(story())


def test_a_release_whose_write_is_not_answered_says_that_it_may_have_been_made(store: FakeStore) -> None:
    ledger = SlowLedger()

    async def story() -> None:
        async with hanging(store, ledger) as operator:
            ledger.answers.set()
            await eventually(lambda: len(ledger.content.addresses) == 3)
            await eventually(lambda: not operator._turn.locked())
            ledger.fault = StoreError("no answer")
            with pytest.raises(StoreError, match=r"no answer: .*`routerd ledger` shows whether"):
                await operator.answer({"do": "release", "name": "EgressPolicy/e"})

    asyncio.run(story())


def test_a_release_makes_a_round_at_once(store: FakeStore, ledger: FakeLedger) -> None:
    """The pool's figures follow it, and the end of its cooldown is waited for."""
    store.world.policy("e", pool="p")
    operator = Operator(store, ledger, clock=lambda: 1.0)
    operator.round()
    store.world.policies.clear()

    async def story() -> None:
        task = asyncio.create_task(operator.run())
        try:
            await eventually(lambda: operator.last and operator.last.counts["p"].reserved == 1)
            await settle()  # it waits for a change now
            await operator.answer({"do": "release", "name": "EgressPolicy/e"})
            await eventually(lambda: operator.last and operator.last.counts["p"].cooling == 1)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    in_virtual_time(story())


def test_a_gateway_whose_agent_falls_silent_is_replaced_without_a_round_for_each_beat() -> None:
    """Files and API server alike: the reports say the same but for their beats, which wake nobody."""

    async def story() -> None:
        world = World()
        for name in ("g1", "g2"):
            world.node(name)
        world.agent("g1", "g2")
        world.policy("out", "198.51.100.7")
        store = FakeStore(world)
        body = Operator(store, FakeLedger(), world.settings, clock=lambda: 1000 + now(), ticks=now)
        tasks = [asyncio.create_task(each) for each in (body.run(), body.listen())]

        async def beats(seconds: int) -> None:
            for _ in range(seconds):
                await elapse(1)
                world.beat(1)

        await beats(60)
        assert [*world.allocations.groups[0].gateways] == ["g1", "g2"]
        rounds = body.rounds.done
        await beats(3600)
        assert body.rounds.done <= rounds + 1
        world.silence("g1")
        await beats(38)
        assert [*world.allocations.groups[0].gateways] == ["g1", "g2"]
        await beats(8)
        assert [*world.allocations.groups[0].gateways] == ["g2"]
        assert [str(each.object) for each in world.allocations.refusals] == ["node/g1"]
        for task in tasks:
            task.cancel()

    in_virtual_time(story())
