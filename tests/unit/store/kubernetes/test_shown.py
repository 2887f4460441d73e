"""Objects of another maker's kind: what they cost an API server, and whose they are. In virtual time."""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from routerd.store.kubernetes.client import ApiError
from routerd.store.kubernetes.status.metallb import OWNER_LABEL, SERVICE_STATUSES, owner_of, service_statuses
from routerd.store.kubernetes.status.shown import BATCH, RATE, ShownObjects
from routerd.store.kubernetes.watch import Timings
from tests.models.virtual_time import beside, elapse, in_virtual_time, now

HOUR = 3600.0
WEB = service_statuses("a", {"default/web": ("tor",)})
(NAME,) = WEB


@dataclass
class Api:
    """As a `Client`: objects by name, and when there was which request. `fault`: of every list."""

    fault: ApiError | None = None
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    lists: list[float] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)

    async def get(self, path: str, labelSelector: str, fieldSelector: str = "") -> dict[str, Any]:
        self.lists.append(now())
        if self.fault is not None:
            raise self.fault
        label, _, value = labelSelector.partition("=")
        found = [each for each in self.objects.values() if each["metadata"]["labels"].get(label) == value]
        return {"items": [each for each in found if fieldSelector in ("", f"metadata.name={each['metadata']['name']}")]}

    async def create(self, path: str, body: Mapping[str, Any]) -> None:
        name = body["metadata"]["name"]
        if name in self.objects:
            raise ApiError(409, "AlreadyExists", f"{name} already exists")
        self.objects[name] = dict(body)
        self.writes.append("create")

    async def patch(self, path: str, body: Mapping[str, Any]) -> None:
        self.objects[path.split("/")[-2]] |= body
        self.writes.append("patch")

    async def delete(self, path: str) -> None:
        del self.objects[path.rpartition("/")[2]]
        self.writes.append("delete")

    async def rest(self, error: ApiError, seconds: float, pace: Any) -> None:
        await elapse(seconds)


def agent(api: Api, node: str = "a") -> ShownObjects:
    one = ShownObjects(api, SERVICE_STATUSES, "routerd", owner_of(node), Timings())  # type: ignore[arg-type]
    one.wanted = lambda: WEB
    return one


def absent() -> ApiError:
    return ApiError(404, "NotFound", "the server could not find the requested resource")


def hours(count: float, *agents: ShownObjects) -> Coroutine[Any, Any, None]:
    return beside(lambda: elapse(count * HOUR), *(each.run for each in agents))


@pytest.mark.parametrize(("fault", "told"), [(absent(), 0), (ApiError(403, "Forbidden", "no list"), 1)])
def test_a_kind_that_cannot_be_listed_costs_a_thousand_nodes_three_lists_a_second(
    fault: ApiError, told: int, caplog: pytest.LogCaptureFixture
) -> None:
    api = Api(fault)
    with caplog.at_level(logging.INFO, "routerd.store"):
        in_virtual_time(hours(1, agent(api)))
    assert 8 <= len(api.lists) <= 16, "in an hour"
    assert (api.writes, len(caplog.records)) == ([], told)


def test_nodes_that_started_together_do_not_look_together() -> None:
    api = Api(absent())
    in_virtual_time(hours(1, *(agent(api, f"n{number}") for number in range(100))))
    late = [int(when) for when in api.lists if when > HOUR / 2]
    assert max(late.count(second) for second in set(late)) < 20


def test_a_kind_that_comes_is_found_within_seven_minutes() -> None:
    api = Api(absent())

    async def story() -> None:
        await elapse(HOUR)
        api.fault = None
        await elapse(7 * 60)
        assert api.writes == ["create", "patch"]
        await elapse(HOUR)
        assert api.writes == ["create", "patch"], "and nothing is written again"

    in_virtual_time(beside(story, agent(api).run))


def test_an_object_of_another_that_has_the_name_of_ours_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    other = {"metadata": {"name": NAME, "labels": {"metallb.io/node": "a"}}, "status": {"peers": ["theirs"]}}
    api = Api(objects={NAME: dict(other)})
    one = agent(api)
    more = service_statuses("a", {"default/web": ("tor",), "default/mail": ("tor",)})

    async def story() -> None:
        one.wanted = lambda: more
        await elapse(HOUR)
        assert api.objects[NAME] == other
        assert (len(api.objects), api.writes) == (2, ["create", "patch"])
        one.wanted = dict
        await elapse(HOUR)
        assert api.objects == {NAME: other}

    with caplog.at_level(logging.WARNING, "routerd.store"):
        in_virtual_time(beside(story, one.run))
    assert len(caplog.records) == 1


def test_what_another_agent_of_the_node_made_meanwhile_is_ours() -> None:
    api = Api()
    one = agent(api)

    async def story() -> None:
        await elapse(60)
        (body,) = api.objects.values()
        assert body["metadata"]["labels"][OWNER_LABEL] == owner_of("a")
        twin = next(iter(service_statuses("a", {"default/mail": ()})))
        api.objects[twin] = {"metadata": {"name": twin, "labels": {OWNER_LABEL: owner_of("a")}}}
        one.wanted = lambda: service_statuses("a", {"default/mail": ("tor",)})
        await elapse(60)
        assert api.objects[twin]["status"]["peers"] == ["tor"]
        assert NAME not in api.objects

    in_virtual_time(beside(story, one.run))


def test_an_object_that_somebody_deleted_comes_back_within_a_minute() -> None:
    api, told = Api(), {"default/web": ("tor",)}
    one = agent(api)
    one.wanted = lambda: service_statuses("a", told)

    async def story() -> None:
        await elapse(60)
        api.objects.clear()
        told["default/web"] = ("tor-b",)

        async def gone(path: str, body: Mapping[str, Any]) -> None:
            del api.patch  # type: ignore[method-assign]
            raise absent()

        api.patch = gone  # type: ignore[method-assign]
        await elapse(60)
        assert api.objects[NAME]["status"]["peers"] == ["tor-b"]

    in_virtual_time(beside(story, one.run))


def test_all_nodes_together_write_no_more_than_an_api_server_bears() -> None:
    many, seconds = {f"default/web-{number}": ("tor",) for number in range(50)}, 100.0
    api = Api()
    agents = [agent(api, f"n{number}") for number in range(100)]
    for number, each in enumerate(agents):
        each.writers = lambda: len(agents)
        shown = service_statuses(f"n{number}", many)
        each.wanted = lambda shown=shown: shown  # type: ignore[misc]
    in_virtual_time(hours(seconds / HOUR, *agents))
    assert BATCH * len(agents) <= api.writes.count("create") <= RATE * seconds + BATCH * len(agents)
