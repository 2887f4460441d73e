"""What is known of a resource's objects, from lists, watches and answers that come in any order."""

from __future__ import annotations

import pytest

from routerd.store.kubernetes.objects import Collection, Raw
from routerd.store.kubernetes.resources import ALLOCATIONS, CONFIG_MAPS, SERVICES, Resource


def service(version: str, uid: str = "1") -> Raw:
    meta = {"name": "web", "namespace": "default", "uid": uid, "resourceVersion": version}
    return {"metadata": meta, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}


def known(collection: Collection) -> list[str]:
    return [each.version for each in collection.objects.values()]


@pytest.fixture
def services() -> Collection:
    collection = Collection(Resource(SERVICES))
    collection.replace([collection.read(service("9"))])
    return collection


def test_a_newer_answer_is_taken_before_the_watch_says_it(services: Collection) -> None:
    assert services.put_answer(service("10"))
    assert known(services) == ["10"]


@pytest.mark.parametrize("version", ["8", "9"])
def test_an_answer_that_the_watch_has_overtaken_is_not(services: Collection, version: str) -> None:
    assert not services.put_answer(service(version))
    assert known(services) == ["9"]


def test_an_answer_does_not_bring_back_what_is_gone(services: Collection) -> None:
    assert services.remove(service("11"))
    assert not services.put_answer(service("10"))
    assert known(services) == []


def test_an_answer_about_an_object_that_was_made_anew_is_not_for_the_new_one(services: Collection) -> None:
    assert not services.put_answer(service("12", uid="2"))
    assert known(services) == ["9"]


@pytest.mark.parametrize("how", ["watch", "list"])
def test_deleted_allocations_are_known_to_be_deleted(how: str) -> None:
    """Whoever wrote them a moment ago must not wait for a watch that has told of it already."""
    meta = {"name": ALLOCATIONS, "namespace": "routerd", "uid": "7", "resourceVersion": "1"}
    maps = Collection(Resource(CONFIG_MAPS, "routerd"))
    maps.replace([maps.read({"metadata": meta, "data": {}})])
    assert maps.deleted == ""
    if how == "watch":
        maps.remove({"metadata": meta})
    else:
        maps.replace([])
    assert maps.deleted == "7"
