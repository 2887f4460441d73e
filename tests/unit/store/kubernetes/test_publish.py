"""What the operator remembers of its writes to status subresources, and how it gets through an outage."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from routerd.cluster.assign import Decision
from routerd.cluster.ledger import Ledger
from routerd.formats.kinds import Kind, Role
from routerd.model import Allocations, Refusal, ServiceAllocation, Snapshot
from routerd.refs import service_ref
from routerd.store.kubernetes.client import UNREACHABLE, ApiError
from routerd.store.kubernetes.contact import Contact
from routerd.store.kubernetes.objects import Collection
from routerd.store.kubernetes.publish import Publisher
from routerd.store.kubernetes.resources import SERVICES, Resource
from routerd.store.kubernetes.watch import Timings
from tests.models.virtual_time import elapse, in_virtual_time, now
from tests.waiting import eventually, turns

TIMINGS = Timings()
ANSWER = {"metadata": {"resourceVersion": "1"}}
Answer = Callable[[str], Awaitable[Any]]  # by the name of an object


def service(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
    }


class Store:
    """Services with an address each."""

    def __init__(self, *names: str) -> None:
        self.services = Collection(Resource(SERVICES), keep_status=True)
        self.refusals: tuple[Refusal, ...] = ()
        self.only(*names)

    def only(self, *names: str) -> None:
        self.services.replace([self.services.read(service(name)) for name in names])

    def objects(self, kind: str) -> list[Any]:
        return list(self.services.objects.values()) if kind == "Service" else []

    def uid_of(self, kind: Kind, namespace: str, name: str) -> str:
        found = self.services.objects.get((namespace, name)) if kind.name == "Service" else None
        return found.uid if found is not None else ""

    def view(self, kind: str) -> Any:
        return self.services.view() if kind == "Service" else {}

    def count(self, kind: str) -> int:
        return len(self.objects(kind))

    def snapshot(self) -> Snapshot:
        given = [
            ServiceAllocation(f"default/{each.name}", "default", (ip_address("192.0.2.1"),))
            for each in self.services.objects.values()
        ]
        allocations = Allocations(1, tuple(given))
        return Snapshot(services={}, pools={}, policies={}, allocations=allocations, refusals=self.refusals)

    def take(self, kind: str, raw: Any) -> None:
        """The watch says it as well."""


class Client:
    """Every request as `answer` says; it tells the contact as a real one does."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.contact = Contact(lambda: now())
        self.answer = answer
        self.tried: list[str] = []  # names of services
        self.events: list[str] = []  # names of objects

    async def patch(self, path: str, body: Any, media: str) -> Any:
        self.tried.append(body["metadata"]["name"])
        return await self._answered(body["metadata"]["name"])

    async def create(self, path: str, body: Any) -> Any:
        self.events.append(body["involvedObject"]["name"])
        return await self._answered(f"event of {body['involvedObject']['name']}")

    async def _answered(self, name: str) -> Any:
        began = self.contact.clock()
        try:
            found = await self.answer(name) if self.answer else ANSWER
        except ApiError:
            self.contact.failed(began)
            raise
        self.contact.answered()
        return found


class Holder:
    """It has the lease, and keeps it."""

    identity = "me"
    role: Role = "operator"

    def is_held(self) -> bool:
        return True


def no_answer() -> ApiError:
    return ApiError(0, UNREACHABLE, "no answer")


def publisher_of(store: Store, client: Client, timings: Timings = TIMINGS) -> Publisher:
    untyped: Any = store
    anything: Any = client
    decision = Decision(Allocations(1), Ledger())
    return Publisher(anything, untyped, Holder(), lambda: decision, timings, now)


def while_running(publisher: Publisher, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def both() -> None:
        task = asyncio.create_task(publisher.run())
        try:
            await story()
            assert not task.done(), task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    in_virtual_time(both())


def test_what_was_written_to_services_that_are_gone_is_forgotten() -> None:
    store, client = Store(), Client()
    publisher = publisher_of(store, client)

    async def story() -> None:
        for number in range(50):
            store.only(f"s{number}")
            await publisher._write_all(publisher._plan())

    in_virtual_time(story())
    assert publisher.writes == 50
    assert len(publisher._written) <= 2


def test_what_a_short_loss_of_contact_left_undone_is_written_though_nothing_wakes_it() -> None:
    slow = asyncio.Event()

    async def answer(name: str) -> Any:
        if name == "broken" and client.tried.count(name) == 1:
            raise no_answer()
        if name == "slow":
            await slow.wait()
        return ANSWER

    client = Client(answer)
    publisher = publisher_of(Store("slow", "broken"), client)

    async def story() -> None:
        await eventually(lambda: client.contact.is_lost, "the loss is noticed")
        client.contact.answered()  # the lease is renewed, while the last write is in flight
        slow.set()
        await eventually(lambda: publisher.writes == 2, "both are written")
        assert client.tried.count("broken") == 2

    while_running(publisher, story)


def test_while_the_server_is_away_nothing_is_tried_and_afterwards_all_is_written() -> None:
    """Of more services than are written at once, those that wait for their turn meet a contact that is lost."""
    names = [f"s{number}" for number in range(40)]
    is_away = True

    async def answer(name: str) -> Any:
        await turns(1)
        if is_away:
            raise no_answer()
        return ANSWER

    client = Client(answer)
    publisher = publisher_of(Store(*names), client)

    async def story() -> None:
        nonlocal is_away
        await eventually(lambda: client.contact.is_lost, "the loss is noticed")
        await elapse(20 * TIMINGS.last_pause)
        assert len(client.tried) <= 16  # those that were in flight
        for _ in range(5):
            publisher.wake()
            await elapse(TIMINGS.last_pause)
        assert len(client.tried) <= 16
        is_away = False
        client.contact.answered()
        await eventually(lambda: publisher.writes == len(names), "all are written")

    while_running(publisher, story)


def test_a_path_that_breaks_while_others_are_answered_is_tried_after_pauses() -> None:
    async def answer(name: str) -> Any:
        raise no_answer()

    client = Client(answer)
    publisher = publisher_of(Store("broken"), client)

    async def story() -> None:
        for _ in range(6000):
            client.contact.answered()
            await elapse(0.1)
        assert 20 <= len(client.tried) <= 1200  # in 600 s

    while_running(publisher, story)


# --- Events


def refusals(*names: str) -> tuple[Refusal, ...]:
    return tuple(Refusal(service_ref(f"default/{name}"), "PoolExhausted", "no address is free") for name in names)


def test_events_that_hang_hold_no_status_and_are_made_once_the_server_is_back() -> None:
    hung = asyncio.Event()

    async def answer(name: str) -> Any:
        if name.startswith("event") and not hung.is_set():
            await hung.wait()
            raise no_answer()
        return ANSWER

    store, client = Store("one"), Client(answer)
    store.refusals = refusals("a", "b", "c")
    publisher = publisher_of(store, client)

    async def story() -> None:
        await eventually(lambda: client.events == ["a"], "the first Event is on its way")
        await eventually(lambda: client.tried == ["one"], "a status is written")
        store.only("two")
        publisher.wake()
        await eventually(lambda: client.tried == ["one", "two"], "the next status is written meanwhile")
        hung.set()
        await eventually(lambda: client.events == ["a", "a", "b", "c"], "all are made, though nothing wakes it")

    while_running(publisher, story)


def test_while_the_server_is_away_no_event_is_tried() -> None:
    is_away = True

    async def answer(name: str) -> Any:
        if is_away:
            raise no_answer()
        return ANSWER

    store, client = Store(), Client(answer)
    store.refusals = refusals(*map(str, range(30)))
    publisher = publisher_of(store, client)

    async def story() -> None:
        nonlocal is_away
        await eventually(lambda: client.contact.is_lost, "the loss is noticed")
        for _ in range(10):
            publisher.wake()
            await elapse(TIMINGS.last_pause)
        assert len(client.events) == 1
        store.refusals = refusals("1")  # the others are gone meanwhile
        publisher.wake()
        is_away = False
        client.contact.answered()
        await eventually(lambda: client.events[1:] == ["1"], "what still stands is told")

    while_running(publisher, story)


def test_an_event_that_is_refused_is_not_tried_again_until_its_refusal_comes_back() -> None:
    async def answer(name: str) -> Any:
        if name == "event of a":
            client.contact.answered()
            raise ApiError(403, "Forbidden", "no")
        return ANSWER

    store, client = Store(), Client(answer)
    store.refusals = refusals("a", "b")
    publisher = publisher_of(store, client)

    async def story() -> None:
        await eventually(lambda: client.events == ["a", "b"], "both are tried")
        for names, expected in [(("a", "b"), ["a", "b"]), (("b",), ["a", "b"]), (("a", "b"), ["a", "b", "a"])]:
            store.refusals = refusals(*names)
            publisher.wake()
            await elapse(TIMINGS.last_pause)
            assert client.events == expected

    while_running(publisher, story)
