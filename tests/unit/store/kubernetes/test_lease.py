"""Who is active, on a clock of the test's own: candidates share a model of the API server's Lease."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from routerd.store.kubernetes.client import ApiError
from routerd.store.kubernetes.lease import Lease, LeaseTimes
from tests.models.virtual_time import in_virtual_time, now

TIMES = LeaseTimes(15, 10, 2)


@dataclass
class Server:
    """One Lease with a resourceVersion. `down`: no answer."""

    lease: dict[str, Any] | None = None
    version: int = 0
    down: bool = False
    writes: int = 0

    async def get(self, path: str) -> dict[str, Any]:
        self._answer()
        if self.lease is None:
            raise ApiError(404, "NotFound", "no lease")
        return self.lease

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self._answer()
        if self.lease is not None:
            raise ApiError(409, "AlreadyExists", "there is one")
        return self._keep(body)

    async def replace(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self._answer()
        if body["metadata"]["resourceVersion"] != str(self.version):
            raise ApiError(409, "Conflict", "modified")
        return self._keep(body)

    def _answer(self) -> None:
        if self.down:
            raise ApiError(0, "Unreachable", "no answer")

    def _keep(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.writes += 1
        meta = {**body["metadata"], "resourceVersion": str(self.version)}
        self.lease = {**body, "metadata": meta}
        return self.lease

    @property
    def spec(self) -> dict[str, Any]:
        assert self.lease is not None
        return dict(self.lease["spec"])


@dataclass
class World:
    """Clocks that differ by process: `skew` is added to the time of one."""

    server: Server = field(default_factory=Server)
    now: float = 1000.0

    def lease(self, name: str, skew: float = 0.0) -> Lease:
        async def sleep(seconds: float) -> None:
            raise _Slept(seconds)

        return Lease(self.server, "routerd", name, TIMES, clock=lambda: self.now + skew, sleep=sleep)  # type: ignore[arg-type]


class _Slept(Exception):
    """The candidate would wait now."""


def gets(lease: Lease) -> bool:
    """One attempt to acquire."""
    try:
        asyncio.run(lease.acquire())
    except _Slept:
        return False
    return True


def renews(lease: Lease) -> bool:
    return asyncio.run(lease._tried(lease._renew_once))


def test_one_of_two_is_active_and_the_other_waits() -> None:
    world = World()
    one, two = world.lease("one"), world.lease("two", skew=-500)
    assert gets(one) and one.is_held()
    assert not gets(two)
    assert (world.server.spec["holderIdentity"], world.server.spec["leaseTransitions"]) == ("one", 0)
    assert one.generation == 1


def test_a_lease_that_is_renewed_is_never_taken_however_clocks_differ() -> None:
    world = World()
    one, two = world.lease("one", skew=3600), world.lease("two", skew=-3600)
    assert gets(one)
    for _ in range(60):
        world.now += 2
        assert renews(one)
        assert not gets(two)


def test_a_silent_holder_gives_up_before_another_takes_over() -> None:
    world = World()
    one, two = world.lease("one"), world.lease("two")
    assert gets(one) and not gets(two)
    taken_at = gave_up_at = 0.0
    for _ in range(200):
        world.now += 0.1
        gave_up_at = gave_up_at or (0.0 if one.is_held() else world.now)
        if gets(two):
            taken_at = world.now
            break
    assert 0 < gave_up_at < taken_at and taken_at - 1000 > 15
    assert (two.generation, world.server.spec["leaseTransitions"]) == (2, 1)


def test_one_that_was_stopped_and_continued_knows_that_it_is_late() -> None:
    world = World()
    one, two = world.lease("one"), world.lease("two")
    assert gets(one) and not gets(two)
    world.now += 16
    assert gets(two)
    assert not one.is_held()
    assert not renews(one)
    assert world.server.spec["holderIdentity"] == "two"


def test_a_server_that_is_away_for_a_moment_costs_nothing() -> None:
    world = World()
    one = world.lease("one")
    assert gets(one)
    world.server.down = True
    world.now += 6
    assert not renews(one) and one.is_held()
    world.server.down = False
    assert renews(one)
    world.now += 9
    assert one.is_held()


def test_released_it_is_free_at_once() -> None:
    world = World()
    one, two = world.lease("one"), world.lease("two")
    assert gets(one) and not gets(two)
    asyncio.run(one.release())
    assert not one.is_held()
    assert gets(two) and two.generation == 2


@pytest.mark.parametrize("is_written", [False, True])
def test_it_is_released_also_in_the_middle_of_a_renewal(is_written: bool) -> None:
    """The end of the process cancels a renewal, which may come to the server even after we have read."""
    world = World()
    one, two = world.lease("one"), world.lease("two")
    assert gets(one)
    server, whole = world.server, world.server.replace

    async def cancelled(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        server.replace = whole  # type: ignore[method-assign]
        read = server.get

        async def late(path: str) -> dict[str, Any]:
            server.get = read  # type: ignore[method-assign]
            found = await read(path)
            if is_written:
                await whole("", body)
            return found

        server.get = late  # type: ignore[method-assign]
        raise asyncio.CancelledError

    server.replace = cancelled  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        renews(one)
    asyncio.run(one.release())
    assert not one.is_held()
    assert gets(two)


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("arrives", ["before", "between", "after"])
def test_it_is_released_also_in_the_middle_of_an_acquisition(is_new: bool, arrives: str) -> None:
    """The claim that was cancelled comes to the server before we read, after it, or after we have given up."""
    world = World()
    one, two = world.lease("one"), world.lease("two")
    if not is_new:
        assert gets(two)
        asyncio.run(two.release())
    server, create, replace, read = world.server, world.server.create, world.server.replace, world.server.get
    claim: list[Callable[[], Coroutine[Any, Any, Any]]] = []

    async def cancelled(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        server.create, server.replace = create, replace  # type: ignore[method-assign]
        claim.append(lambda: (create if is_new else replace)(path, body))
        if arrives == "before":
            await claim[0]()
        raise asyncio.CancelledError

    async def reading(path: str) -> dict[str, Any]:
        try:
            return await read(path)
        finally:
            if arrives == "between" and claim:
                await claim.pop()()

    server.create = server.replace = cancelled  # type: ignore[method-assign]
    server.get = reading  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        gets(one)
    asyncio.run(one.release())
    if arrives == "after":
        with pytest.raises(ApiError, match="409"):
            asyncio.run(claim[0]())
    assert server.spec["holderIdentity"] == ""
    assert gets(two)


def test_one_that_never_claimed_it_writes_nothing_at_its_end() -> None:
    world = World()
    one, two = world.lease("one"), world.lease("two")
    assert gets(one) and not gets(two)
    before = world.server.writes
    asyncio.run(two.release())
    assert world.server.writes == before


def test_whose_it_is_is_unknown_until_it_was_read() -> None:
    world = World()
    one, two = world.lease("one"), world.lease("two")
    assert one.holder is None
    assert gets(one) and not gets(two)
    assert (one.holder, two.holder) == ("one", "one")


async def silence(*arguments: object) -> dict[str, Any]:
    """A request that nobody answers, which the client would wait for."""
    await asyncio.Event().wait()
    raise AssertionError("longer than any test")


def test_without_an_answer_the_end_of_the_process_does_not_wait_long() -> None:
    world = World()
    one = world.lease("one")
    assert gets(one)
    world.server.replace = silence  # type: ignore[method-assign]
    in_virtual_time(asyncio.wait_for(one.release(), 5))
    assert not one.is_held()


def test_a_renewal_without_an_answer_ends_by_the_deadline() -> None:
    async def story() -> None:
        world = World()
        one = Lease(world.server, "routerd", "one", clock=now)  # type: ignore[arg-type]
        await one.acquire()
        began = now()
        attempts: list[float] = []

        async def silent(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
            attempts.append(now())
            return await silence()

        world.server.replace = silent  # type: ignore[method-assign]
        await one.keep()
        assert not one.is_held()
        assert now() - began <= one.times.renew_deadline  # and not the client's 15 s
        assert len(attempts) >= 2  # one request that is lost does not cost the Lease

    in_virtual_time(story())


def test_a_lease_that_someone_else_took_is_not_released() -> None:
    world = World()
    one = world.lease("one")
    assert gets(one)
    one._record = None
    world.server._keep({**world.server.lease, "spec": {**world.server.spec, "holderIdentity": "two"}})
    asyncio.run(one.release())
    assert world.server.spec["holderIdentity"] == "two"


def test_an_answer_that_was_lost_is_read_again() -> None:
    world = World()
    one = world.lease("one")
    assert gets(one)
    world.server.version += 1  # as if our own renewal had arrived and its answer had not
    assert world.server.lease is not None
    world.server.lease["metadata"]["resourceVersion"] = str(world.server.version)
    assert not renews(one)
    assert renews(one) and one.is_held()


@pytest.mark.parametrize("status", [0, 403, 500])
def test_keep_returns_when_the_deadline_is_over(status: int) -> None:
    world = World()
    one = world.lease("one")
    assert gets(one)

    async def broken(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        raise ApiError(status, "", "no")

    async def sleep(seconds: float) -> None:
        world.now += seconds

    world.server.replace = broken  # type: ignore[method-assign]
    one.sleep = sleep
    asyncio.run(one.keep())
    assert 10 <= world.now - 1000 <= 12
