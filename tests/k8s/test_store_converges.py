"""Random changes under random faults: in the end the store says what the embedded one would say of these objects."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from routerd.model import Snapshot
from routerd.store.kubernetes.store import KubernetesStore
from routerd.store.merge import merge
from tests.k8s.store_lab import (
    QUICK,
    Cluster,
    Json,
    agent_store,
    bgp_config,
    cluster,
    config_map,
    node,
    pod,
    policy,
    pool,
    service,
)
from tests.models.manifests import read_text
from tests.waiting import eventually

TIMINGS = replace(QUICK, silence=0.4)
STEPS = 40
READ = (
    "/api/v1/nodes", "/api/v1/namespaces", "/api/v1/pods", "/api/v1/services",
    "/apis/discovery.k8s.io/v1/endpointslices", "/api/v1/namespaces/kube-system/configmaps",
    "/apis/routerd.io/v1alpha1/addresspools", "/apis/routerd.io/v1alpha1/egresspolicies",
)  # fmt: skip


class Churn:
    """What may happen, drawn from a seed."""

    def __init__(self, api: Cluster, seed: int) -> None:
        self.api, self.random = api, random.Random(seed)
        self.there: dict[str, Json] = {}

    def object(self) -> Json:
        number, draw = self.random.randrange(5), self.random
        made: list[Callable[[], Json]] = [
            lambda: service(
                f"s{number}", draw.randrange(1, 9), externalTrafficPolicy=draw.choice(["Local", "Cluster"])
            ),
            lambda: pod(f"p{number}", draw.choice(["node1", "node2"]), f"10.244.1.{draw.randrange(1, 250)}"),
            lambda: node(f"node{number}", f"10.0.0.{draw.randrange(1, 250)}", {"zone": draw.choice("ab")}),
            lambda: pool(f"pool{number}", f"10.{draw.randrange(3)}.0.0/{draw.choice([24, 25])}"),
            lambda: policy(f"policy{number}", egressIP=f"10.168.60.{draw.randrange(1, 250)}"),
            lambda: bgp_config(f"10.0.0.{draw.randrange(1, 5)}"),
            lambda: slice_of(f"s{number}", draw.randrange(1, 250)),
        ]
        return draw.choice(made)()

    async def step(self) -> None:
        server = self.api.server
        faults: list[Callable[[], object]] = [
            server.drop_watches, server.mute_watches, server.compact,
            lambda: server.fault(gone=self.random.randrange(1, 9), gone_as_answer=self.random.random() < 0.5),
            lambda: server.fault(broken=self.random.randrange(1, 9), only=lambda one: one.verb in ("list", "watch")),
        ]  # fmt: skip
        if self.random.random() < 0.25:
            await asyncio.to_thread(self.random.choice(faults))
            return
        await self.change(self.object())

    async def change(self, wanted: Json) -> None:
        key = f"{wanted['kind']}/{wanted['metadata']['name']}"
        before = self.there.pop(key, None)
        work: list[Awaitable[None]] = []
        if before is not None and (self.random.random() < 0.5 or wanted["kind"] == "Pod"):
            work.append(self.api.delete(before))
        if not work or wanted["kind"] == "Pod" or self.random.random() < 0.3:
            work.append(self.api.apply(wanted))  # changed in place, or deleted and made anew
            self.there[key] = wanted
        for each in work:
            await each


def slice_of(name: str, last: int) -> Json:
    meta = {"name": f"{name}-x", "namespace": "default", "labels": {"kubernetes.io/service-name": name}}
    endpoints = [{"addresses": [f"10.244.1.{last}"], "nodeName": "node1", "conditions": {"ready": True}}]
    return {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta, "addressType": "IPv4",
            "endpoints": endpoints, "ports": []}  # fmt: skip


async def as_files(api: Cluster) -> Snapshot:
    """The objects of the server as a file of manifests, read by the embedded store's own readers."""
    items: list[Json] = []
    for path in READ:
        found = await api.get(path)
        typed = {"apiVersion": found["apiVersion"], "kind": found["kind"].removesuffix("List")}
        items += [{**each, **typed} for each in found["items"]]
    items = [each for each in items if each["kind"] != "Pod" or each["spec"].get("nodeName") == "node1"]
    items.sort(key=lambda each: (each["metadata"]["creationTimestamp"], each["kind"], each["metadata"]["name"]))
    return merge([read_text(json.dumps(each)) for each in items], allocations=None)


def plain(value: Any) -> Any:
    """Without the places that messages name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (field.name for field in dataclasses.fields(value) if field.name != "origin")
        return {name: plain(getattr(value, name)) for name in fields}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def compared(snapshot: Snapshot) -> dict[str, Any]:
    found = plain(snapshot)
    found["refusals"] = sorted((str(refusal.object), refusal.reason) for refusal in snapshot.refusals)
    found["endpoint_slices"] = sorted(found["endpoint_slices"] or (), key=str)
    return dict(found)


@pytest.mark.parametrize("seed", range(6))
def test_it_converges(seed: int) -> None:
    async def story() -> None:
        async with cluster(node("node1"), bgp_config()) as api, agent_store(api, timings=TIMINGS) as agent:
            churn = Churn(api, seed)
            nothing_before_all = watch_for_losses(agent.store)
            for _ in range(STEPS):
                await churn.step()
            await asyncio.to_thread(api.server.heal)
            await same(api, agent.store, f"seed {seed} converges")
            for _ in range(STEPS):  # with nothing in the way: a new list must not be what mends everything
                await churn.change(churn.object())
            await same(api, agent.store, f"seed {seed} follows")
            assert nothing_before_all() == []

    asyncio.run(story())


async def same(api: Cluster, store: KubernetesStore, what: str) -> None:
    wanted = compared(await as_files(api))
    await eventually(lambda: compared(store.snapshot()) == wanted, what)


def watch_for_losses(store: KubernetesStore) -> Callable[[], list[str]]:
    """Parts that were known and became unknown: never, whatever happens."""
    lost: list[str] = []
    known: set[str] = set()

    def look() -> None:
        for name in ("nodes", "namespaces", "pods", "services", "endpoint_slices", "bgp", "pools", "policies"):
            if getattr(store.snapshot(), name) is not None:
                known.add(name)
            elif name in known:
                lost.append(name)

    store._on_change = look
    return lambda: lost


def test_what_is_never_deleted_never_vanishes() -> None:
    """Objects that stay through every fault are in every snapshot in between."""

    async def story() -> None:
        kept = [service(f"kept{each}", 100 + each) for each in range(30)]
        async with cluster(node("node1"), *kept) as api, agent_store(api, timings=TIMINGS) as agent:
            await agent.synced()
            missing: list[set[str]] = []
            names = {f"default/kept{each}" for each in range(30)}
            agent.store._on_change = lambda: missing.append(names - set(agent.store.snapshot().services or {}))
            churn = Churn(api, 99)
            for _ in range(60):
                await churn.step()
            await asyncio.to_thread(api.server.heal)
            await api.apply(config_map("routerd", "unrelated", {"a": "b"}), service("last"))
            await agent.until(lambda store: "default/last" in (store.snapshot().services or {}), "the last change")
            assert missing and not any(missing)

    asyncio.run(story())
