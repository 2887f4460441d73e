"""Events for refusals: one per object, reason and message, counted when it comes back."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from routerd.formats.kinds import KINDS, Kind, Role, read_by
from routerd.log import event
from routerd.model import Refusal
from routerd.store.kubernetes.client import ApiError, Client
from routerd.store.kubernetes.resources import EVENTS, object_path
from routerd.store.kubernetes.watch import Timings

LOGGER = logging.getLogger("routerd.store")
LONGEST_MESSAGE = 1024  # bytes, of the API
CLUSTER_SCOPED = "default"  # where Events of objects without namespace go
# Kinds that operator and agents know objects of, by the kind of a `Ref`.
KIND_OF: Mapping[str, Kind] = {
    word: kind for kind in (*read_by("operator"), *read_by("agent")) for word in (kind.name, kind.word) if word
}


@dataclass(frozen=True, slots=True)
class About:
    """The object of an Event."""

    kind: Kind
    namespace: str
    name: str


def about(refusal: Refusal) -> About | None:
    """The object that a refusal names; None if it is none of the API server's."""
    ref = refusal.object
    kind = KIND_OF.get(ref.kind)
    if kind is None or not ref.name:
        return None
    return About(kind, ref.namespace, ref.name) if bool(ref.namespace) == kind.namespaced else None


def event_name(refusal: Refusal, name: str) -> str:
    digest = hashlib.sha256(f"{refusal.object}\n{refusal.reason}\n{refusal.message}".encode()).hexdigest()
    return f"{name[:200]}.{digest[:16]}"


def event_body(refusal: Refusal, to: About, uid: str, writer: Writer, now: str) -> dict[str, Any]:
    involved = {"apiVersion": to.kind.api_version, "kind": to.kind.name, "name": to.name, "uid": uid}
    if to.namespace:
        involved["namespace"] = to.namespace
    meta = {"name": event_name(refusal, to.name), "namespace": to.namespace or CLUSTER_SCOPED}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": meta,
        "involvedObject": {key: value for key, value in involved.items() if value},
        "reason": refusal.reason,
        "message": refusal.message.encode()[:LONGEST_MESSAGE].decode("utf-8", "ignore"),
        "type": "Normal" if refusal.severity == "info" else "Warning",
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": {"component": "routerd", "host": writer.identity},
        "reportingComponent": f"routerd.io/{writer.role}",
        "reportingInstance": writer.identity[:128],
    }


class Writer(Protocol):
    """Who writes, and whether it may now: `routerd.store.kubernetes.lease.Lease`, or an agent."""

    @property
    def role(self) -> Role: ...

    @property
    def identity(self) -> str: ...

    def is_held(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class AgentOf:
    """The agent of a node: it speaks of the pods there, whoever is the active operator."""

    identity: str
    role: Role = "agent"

    def is_held(self) -> bool:
        return True


class Events:
    """`run` beside the writes of status; `want` says which refusals stand.

    While the API server cannot be reached, what is new waits. Any other failure is logged once and loses the Event.
    """

    def __init__(
        self,
        client: Client,
        writer: Writer,
        uid_of: Callable[[Kind, str, str], str],
        timings: Timings,
    ) -> None:
        """`uid_of` (kind, namespace, name) gives "" for what is not known."""
        self._client, self._writer, self._uid_of, self._timings = client, writer, uid_of, timings
        self._standing: frozenset[Refusal] = frozenset()
        self._written: frozenset[Refusal] = frozenset()
        self._has_new = asyncio.Event()
        self._failed = False

    def want(self, refusals: Iterable[Refusal]) -> None:
        """All that stand now: one that goes and comes back is told again."""
        self._standing = frozenset(refusals)
        self._written &= self._standing
        if self._standing - self._written:
            self._has_new.set()

    @property
    def standing(self) -> frozenset[Refusal]:
        return self._standing

    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            await self._has_new.wait()
            self._has_new.clear()
            if await self._tell_all():
                failures = 0
                continue
            self._has_new.set()
            if self._client.contact.is_lost:
                await self._client.contact.returned(self._timings.pace)
                continue
            pause = min(self._timings.last_pause, self._timings.first_pause * 2 ** min(failures, 16))
            failures += 1
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def _tell_all(self) -> bool:
        """False if some are left."""
        for refusal in sorted(self._standing - self._written, key=lambda one: one.order):
            if refusal not in self._standing:
                continue  # it is gone meanwhile
            if not self._writer.is_held() or self._client.contact.is_lost:
                return False
            to = about(refusal)
            if to is not None and not await self._tell(refusal, to):
                return False
            self._written |= {refusal} & self._standing
        return True

    async def _tell(self, refusal: Refusal, to: About) -> bool:
        """False if it is to be tried again."""
        to, uid = self._found(to)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = event_body(refusal, to, uid, self._writer, now)
        try:
            await self._write(body)
            self._failed = False
        except ApiError as error:
            if not self._failed:
                event(LOGGER, logging.WARNING, "event-failed", reason=str(error), object=str(refusal.object))
            self._failed = True
            return not error.is_unreachable
        return True

    def _found(self, to: About) -> tuple[About, str]:
        """The object and its uid: kinds of several makers have one name."""
        alike = (kind for kind in KINDS if kind.name == to.kind.name and kind.plural)
        found = ((kind, self._uid_of(kind, to.namespace, to.name)) for kind in (to.kind, *alike))
        return next(((replace(to, kind=kind), uid) for kind, uid in found if uid), (to, ""))

    async def _write(self, body: dict[str, Any]) -> None:
        """Made, or counted if it is there from before."""
        namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
        path = object_path(EVENTS, name, namespace)
        try:
            await self._client.create(path.rpartition("/")[0], body)
            return
        except ApiError as error:
            if error.status != 409:
                raise
        before = await self._client.get(path)
        meta = {"resourceVersion": before["metadata"]["resourceVersion"]}
        count = int(before.get("count") or 0) + 1
        await self._client.patch(path, {"metadata": meta, "count": count, "lastTimestamp": body["lastTimestamp"]})
