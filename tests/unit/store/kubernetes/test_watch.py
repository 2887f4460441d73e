"""How one resource is read on after what may go wrong, with the times of production on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from routerd.store.kubernetes.client import UNREACHABLE, ApiError, Client, Json
from routerd.store.kubernetes.contact import Contact
from routerd.store.kubernetes.objects import Collection
from routerd.store.kubernetes.resources import POLICIES, Resource
from routerd.store.kubernetes.watch import Reflector, Timings
from tests.models.virtual_time import elapse, in_virtual_time, now

SPEC = {"selectors": [{"podSelector": {}}], "destinationCIDRs": ["198.51.100.0/24"]}
POLICY = {"metadata": {"name": "p", "uid": "u", "resourceVersion": "5"}, "spec": SPEC}
TIMES = Timings()
REASONS = {"404": "NotFound", "410": "Expired", "429": "TooManyRequests"}


class Scripted(Client):
    """Answers by the script, then well: "ok", "down", or an HTTP status, with the seconds of Retry-After after "/"."""

    def __init__(self, *script: str) -> None:
        super().__init__()
        self.contact = Contact(now)
        self.script = list(script)
        self.asked: list[tuple[str, float]] = []  # "list", "ask" (for one object) or "watch", when
        self.version = "9"
        self.away_until = 0.0  # after the first answer

    async def get(self, path: str, **query: str) -> Json:
        await self._answer("ask" if query["limit"] == "1" else "list")
        return {"metadata": {"resourceVersion": self.version}, "items": [POLICY]}

    @asynccontextmanager
    async def watch(self, path: str, *, silence: float, **query: str) -> AsyncIterator[AsyncIterator[Json]]:
        await self._answer("watch")
        yield self._for_ever()

    async def _for_ever(self) -> AsyncIterator[Json]:
        await asyncio.Event().wait()
        yield {}

    async def _answer(self, verb: str) -> None:
        await elapse(0.01)
        began = now()
        self.asked.append((verb, began))
        await elapse(0.01)
        is_away = len(self.asked) > 1 and began < self.away_until
        said = "down" if is_away else self.script.pop(0) if self.script else "ok"
        what, _, wait = said.partition("/")
        if what == "down":
            self.contact.failed(began)
            raise ApiError(0, UNREACHABLE, "refused")
        if what in ("502", "503", "504"):
            self.contact.failed(began)
            raise ApiError(int(what), "", "from a proxy", float(wait or 0))
        if what == "500":
            raise ApiError(500, "InternalError", "its own")
        if what == "429":
            raise ApiError(429, "TooManyRequests", "later", float(wait or 0))
        self.contact.answered()
        if what != "ok":
            raise ApiError(int(what), REASONS[what], "no", float(wait or 0))


async def read(client: Scripted, seconds: float) -> tuple[Reflector, set[int], list[float]]:
    """The reflector after that time, how many objects there were at any time, and when it told of something."""
    told: list[float] = []
    reflector = Reflector(client, Collection(Resource(POLICIES)), lambda: told.append(now()), TIMES, clock=now)
    seen = set()
    await elapse(1.0)
    task = asyncio.create_task(reflector.run())
    while now() < 1.0 + seconds:
        await elapse(0.05)
        seen.add(len(reflector.collection.objects))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return reflector, seen, told


def test_a_kind_that_has_just_come_is_watched_when_the_server_says() -> None:
    """The list is served at once; the watch is refused with 429 until the server has filled its cache of the kind."""
    client = Scripted("404", "ok", "429/1", "429/8")
    reflector, _, _ = in_virtual_time(read(client, 90))
    assert [each for each, _ in client.asked] == ["list", "list", "watch", "watch", "watch"]
    first, second, third = (at for verb, at in client.asked if verb == "watch")
    assert 1 <= second - first < 2 and 8 <= third - second < 9
    assert (reflector.fault, reflector.lists, len(reflector.collection.objects)) == (None, 1, 1)


def test_nobody_is_told_of_a_cache_that_is_filled_within_seconds() -> None:
    quiet = in_virtual_time(read(Scripted("404", "ok", "ok"), 90))
    refused = in_virtual_time(read(Scripted("404", "429/1", "ok", "429/1"), 90))
    assert len(refused[2]) == len(quiet[2])


@pytest.mark.parametrize("between", ["down", "500", "503", "ok"])
def test_a_kind_is_not_believed_gone_by_two_404_with_something_else_between(between: str) -> None:
    # the watch is refused with 410 where it is opened, so that the list comes again
    script = ["ok", "410", "404", between, *(["410"] if between == "ok" else []), "404", "ok"]
    reflector, seen, _ = in_virtual_time(read(Scripted(*script), 60))
    assert seen == {1} and not reflector.absent


def test_a_kind_is_believed_gone_when_404_has_lasted() -> None:
    client = Scripted("ok", "410", "404", "404")
    reflector, seen, _ = in_virtual_time(read(client, 20))
    first, second = (at for _, at in client.asked[2:4])
    assert second - first >= TIMES.confirm
    assert seen == {0, 1} and reflector.absent


def test_a_proxy_that_asks_for_an_hour_does_not_get_it_when_another_request_is_answered() -> None:
    async def story() -> None:
        client = Scripted("ok", "503/3600")
        reading = asyncio.create_task(read(client, 60))
        await elapse(10)
        assert client.contact.is_lost
        client.contact.answered()
        await reading
        assert [each for each, _ in client.asked] == ["list", "watch", "watch"]
        assert client.asked[2][1] <= 10 + TIMES.spread

    in_virtual_time(story())


def test_a_proxy_that_asks_to_wait_is_not_asked_before() -> None:
    client = Scripted("ok", "503/20")
    in_virtual_time(read(client, 60))
    first, second = (at for verb, at in client.asked if verb == "watch")
    assert 20 <= second - first <= 20 + TIMES.away


def test_what_the_server_refuses_waits_for_itself_though_others_are_answered() -> None:
    async def story() -> None:
        client = Scripted("ok", "429/50")
        reading = asyncio.create_task(read(client, 50))
        await elapse(5)
        for _ in range(20):  # others fail to connect, and are answered again
            client.contact.failed(now())
            assert client.contact.is_lost
            await elapse(1)
            client.contact.answered()
            await elapse(1)
        await reading
        assert [each for each, _ in client.asked] == ["list", "watch"]

    in_virtual_time(story())


def test_failures_before_an_outage_do_not_count_after_it() -> None:
    client = Scripted("ok", "500", "500", "down", "500")
    reflector, _, _ = in_virtual_time(read(client, 60))
    assert reflector.lists == 1
    assert [each for each, _ in client.asked] == ["list", *["watch"] * 5]


def test_one_that_has_ended_tells_nothing_more() -> None:
    async def story() -> None:
        client = Scripted("ok", *["down"] * 100)
        _, _, told = await read(client, 5.0)
        before = list(told)
        await elapse(10 * TIMES.stale)
        assert told == before

    in_virtual_time(story())


# --- after a long outage


def after_a_long_outage(version: str, *script: str) -> tuple[list[str], set[int]]:
    """What was asked after it, and how many objects there were meanwhile; `version` is the server's then."""

    async def story() -> tuple[list[str], set[int]]:
        client = Scripted("ok", *script)
        client.away_until = 2 + TIMES.resume + TIMES.away
        reading = asyncio.create_task(read(client, 120))
        await elapse(5)
        client.version = version
        _, seen, _ = await reading
        return [verb for verb, at in client.asked if at >= client.away_until], seen

    found: tuple[list[str], set[int]] = in_virtual_time(story())
    return found


@pytest.mark.parametrize("version", ["9", "10", "1000"])
def test_a_server_that_is_as_new_as_we_are_is_not_made_to_list_everything(version: str) -> None:
    assert after_a_long_outage(version) == (["ask", "watch"], {1})


@pytest.mark.parametrize("version", ["8", "", "abc"])
def test_a_server_that_is_back_from_a_backup_is_listed_anew(version: str) -> None:
    asked, _ = after_a_long_outage(version)
    assert asked[:2] == ["ask", "list"]


def test_a_server_that_goes_away_again_is_asked_again() -> None:
    assert after_a_long_outage("9", "down", "500", "ok") == (["ask", "ask", "ask", "watch"], {1})


def test_a_kind_that_is_gone_after_an_outage_is_listed_anew_once_it_is_there() -> None:
    asked, seen = after_a_long_outage("9", "404", "404", "ok")
    assert asked == ["ask", "list", "list", "watch"]
    assert seen == {0, 1}
