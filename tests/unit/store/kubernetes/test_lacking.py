"""Published allocations whose parts are not there."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from routerd.formats.published.whole import AllocationsWriter
from routerd.store.kubernetes.client import Client
from routerd.store.kubernetes.documents import allocations_data
from routerd.store.kubernetes.resources import ALLOCATIONS
from routerd.store.kubernetes.store import LACKING, KubernetesStore, Scope
from tests.models.many import allocations_of, small_parts
from tests.models.virtual_time import elapse, in_virtual_time


class Counting(KubernetesStore):
    merges = 0

    def merge(self) -> None:
        self.merges += 1
        super().merge()


def store_without_parts() -> Counting:
    """What an API server told it of an index."""
    store = Counting(cast(Client, None), Scope.of_agent("worker", "r"))
    with small_parts():
        data = dict(allocations_data(AllocationsWriter().written(allocations_of(100, 3))))
    meta = {"name": ALLOCATIONS, "namespace": "r", "uid": "u", "resourceVersion": "1"}
    raw: dict[str, Any] = {"kind": "ConfigMap", "metadata": meta, "data": data}
    for each in store.reflectors:
        resource = each.collection.resource
        has_it = resource.kind.name == "ConfigMap" and resource.namespace == "r" and not resource.part
        each.collection.replace([each.collection.read(raw)] if has_it else [])
    return store


def test_parts_that_lack_are_looked_for_as_often_whatever_else_changes() -> None:
    async def story() -> None:
        store = store_without_parts()
        task = asyncio.create_task(store._merge_changes())
        for _ in range(5):
            store.reflectors[0].on_change()
            await elapse(0.9)
        before = store.merges
        await elapse(10 * LACKING)
        assert store.merges - before in (10, 11)
        task.cancel()

    in_virtual_time(story())
