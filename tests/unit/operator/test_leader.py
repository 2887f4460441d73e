"""One candidate and what it says while it is not, not yet, or no longer active; the API server is a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from routerd.config.cloud import CloudSettings
from routerd.operator.leader import Candidate
from routerd.serve.api import RequestRefused
from routerd.store.kubernetes.client import UNREACHABLE, ApiError, Client
from routerd.store.kubernetes.lease import Lease, LeaseTimes
from routerd.store.kubernetes.resources import LEDGER
from routerd.store.kubernetes.watch import Timings
from tests.waiting import eventually, turns

# A pause that no test outlasts: whoever goes on was woken.
TIMINGS = Timings(first_pause=3600.0, last_pause=3600.0, spread=0.01)


@dataclass
class Objects(Client):
    """Objects by path; `fault` for requests to paths that contain its key."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: dict[str, ApiError] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    version: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def _ask(self, path: str) -> None:
        self.asked.append(path)
        for part, error in self.faults.items():
            if part in path:
                self.contact.failed(self.contact.clock())
                raise error
        self.contact.answered()

    async def get_metadata(self, path: str, **query: str) -> dict[str, Any]:
        return await self.get(path, **query)

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        self._ask(path)
        if path.endswith("/configmaps"):
            return {"items": []}  # parts, of which there are none
        if path not in self.objects:
            raise ApiError(404, "NotFound", path)
        return self.objects[path]

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self.replace(f"{path}/{body['metadata']['name']}", body)

    async def replace(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self._ask(path)
        self.version += 1
        self.objects[path] = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        return self.objects[path]


def candidate(client: Client, times: LeaseTimes | None = None, **more: Any) -> Candidate:
    lease = Lease(client, "routerd", "pod-a_1", times or LeaseTimes(), **more)
    return Candidate(client, "routerd", lease, timings=TIMINGS)


@asynccontextmanager
async def leading(one: Candidate) -> AsyncIterator[None]:
    """It has the lease and does what follows; the store that watches is left out."""
    await one.lease.acquire()
    task = asyncio.create_task(one._lead())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("is_on", [True, False])
def test_the_configuration_s_state_is_shown_unless_it_is_switched_off(is_on: bool) -> None:
    async def story() -> None:
        one = candidate(Objects())
        assert one.metallb_status
        one.metallb_status = is_on
        async with leading(one):
            await eventually(lambda: one.publisher is not None)
            await eventually(lambda: "publisher" in {task.get_name() for task in asyncio.all_tasks()})
            await turns()
            assert ("configuration-state" in {task.get_name() for task in asyncio.all_tasks()}) == is_on

    asyncio.run(story())


async def no(one: Candidate) -> str:
    with pytest.raises(RequestRefused) as refused:
        await one.answer({"get": "ledger"})
    return str(refused.value)


def test_one_that_cannot_take_over_says_why_and_counts_it() -> None:
    async def story() -> None:
        client = Objects(faults={LEDGER: ApiError(500, "InternalError", "no disk")})
        one = candidate(client)
        async with leading(one):
            await eventually(lambda: one.status().rounds.errors)
            assert await no(one) == "this operator is taking over: API server: 500 InternalError: no disk"
            status = one.status()
            assert (status.active, status.rounds.errors, status.rounds.last_error) == (
                False, 1, "API server: 500 InternalError: no disk",
            )  # fmt: skip

    asyncio.run(story())


def test_what_another_candidate_says_follows_the_lease() -> None:
    async def story() -> None:
        one = candidate(Objects())
        assert await no(one) == "this operator is not the active one; the Lease has not been read yet"
        one.lease.holder = ""
        assert await no(one) == "this operator is not the active one; nobody is"
        one.lease.holder = "pod-b_2"
        assert "ask it: kubectl -n routerd exec pod-b -- routerd" in await no(one)
        one.lease.holder = one.lease.identity
        assert "it has lost the Lease" in await no(one) and "ask it" not in await no(one)

    asyncio.run(story())


def test_without_the_lease_it_is_not_called_active() -> None:
    async def story() -> None:
        ahead = [0.0]
        one = candidate(Objects(), clock=lambda: asyncio.get_running_loop().time() + ahead[0])
        async with leading(one):
            await eventually(lambda: one.operator)
            assert one.status().active
            ahead[0] = 11.0  # of which the task that renews has not heard yet
            assert one.operator is not None and not one.status().active

    asyncio.run(story())


def test_in_an_outage_the_take_over_is_tried_again_as_soon_as_the_api_server_answers() -> None:
    async def story() -> None:
        client = Objects(faults={LEDGER: ApiError(0, UNREACHABLE, "no answer")})
        one = candidate(client)
        async with leading(one):
            await eventually(lambda: one.status().rounds.errors)
            client.faults.clear()
            client.contact.answered()
            await eventually(lambda: one.operator)  # and not after TIMINGS.first_pause

    asyncio.run(story())


class Fault(Exception):
    """A mistake of ours."""


@dataclass
class Broken(Objects):
    """A request to a path that contains `part` meets a mistake of ours, once it is `armed`."""

    part: str = ""
    armed: bool = False

    def _ask(self, path: str) -> None:
        if self.armed and self.part in path:
            raise Fault(path)
        super()._ask(path)


async def at_once(seconds: float) -> None:
    await turns(1)


@pytest.mark.parametrize("part", ["leases", LEDGER])
def test_a_mistake_of_ours_ends_the_process(part: str) -> None:
    """Whichever task makes it: the next process begins anew, and the log has the traceback."""

    async def story() -> None:
        client = Broken(part=part)
        one = candidate(client, sleep=at_once)
        await one.lease.acquire()
        client.armed = True
        await one._lead()

    with pytest.raises(Fault):
        asyncio.run(story())


def test_a_mistake_while_it_gives_up_ends_the_process() -> None:
    @dataclass(slots=True)
    class Working(Candidate):
        async def _work(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise Fault

    async def story() -> None:
        client = Objects()
        lease = Lease(client, "routerd", "pod-a_1", sleep=at_once)
        one = Working(client, "routerd", lease, timings=TIMINGS)
        await lease.acquire()
        for found in client.objects.values():
            found["spec"]["holderIdentity"] = "pod-b_2"  # which has taken it
            found["metadata"]["resourceVersion"] = "77"
        lease._record = None
        await one._lead()

    with pytest.raises(Fault):
        asyncio.run(story())


def test_an_api_error_of_the_lease_is_tried_again() -> None:
    async def story() -> None:
        client = Objects()
        one = candidate(client, sleep=at_once)
        async with leading(one):
            client.faults["leases"] = ApiError(500, "InternalError", "no disk")
            before = len(client.asked)
            await eventually(lambda: len([path for path in client.asked[before:] if "leases" in path]) > 3)
            client.faults.clear()
            await eventually(lambda: one.operator)
            assert one.status().active

    asyncio.run(story())


def test_a_cloud_is_asked_while_it_leads_and_no_longer() -> None:
    async def story() -> None:
        one = candidate(Objects())
        one.cloud = CloudSettings("aws", calls=False)
        async with leading(one):
            await eventually(lambda: one.clouds)
            noted = await one.answer({"get": "cloud"})
            assert "cloud.calls is off" in noted.note
            assert "CloudStopped" in [each.reason for each in one.status().refusals]
        assert one.clouds is None

    asyncio.run(story())
