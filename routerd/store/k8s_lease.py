"""Which operator is active: a Lease of coordination.k8s.io.

Clocks of nodes differ, so the times in the Lease are for people: a candidate measures with its own monotonic clock how
long it has seen the same record, and takes over when that exceeds the holder's own duration. The holder gives up
earlier than that (`renew_deadline`). It decides nothing else and writes nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from routerd.log import event
from routerd.store.k8s_client import ApiError, Client
from routerd.store.k8s_resources import LEASE, LEASES, collection_path

LOGGER = logging.getLogger("routerd.operator")


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Seconds; Kubernetes' own controllers have the same."""

    duration: float = 15.0
    """After which others take over from a holder that says nothing."""
    renew_deadline: float = 10.0
    """After which a holder that cannot renew gives up; less than `duration` by more than clocks drift in that time."""
    retry: float = 2.0
    """Between attempts to renew or to acquire."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A Lease as read, and when (monotonic) it was first seen to be so."""

    version: str  # resourceVersion; "" = there is no Lease
    holder: str
    duration: float
    transitions: int
    since: float
    acquired: str = ""

    def is_free(self, identity: str, now: float) -> bool:
        return not self.holder or self.holder == identity or now - self.since > self.duration


def seen(raw: Mapping[str, Any], before: Seen | None, now: float) -> Seen:
    """`raw` is empty where there is no Lease. The same version again keeps its first time."""
    spec = raw.get("spec") or {}
    version = str((raw.get("metadata") or {}).get("resourceVersion") or "")
    since = before.since if before is not None and before.version == version else now
    return Seen(
        version,
        str(spec.get("holderIdentity") or ""),
        float(spec.get("leaseDurationSeconds") or 0),
        int(spec.get("leaseTransitions") or 0),
        since,
        str(spec.get("acquireTime") or ""),
    )


@dataclass(slots=True)
class Lease:
    """`identity` must be unique to the process. `generation` is valid while it is held."""

    client: Client
    namespace: str
    identity: str
    times: LeaseTimes = field(default_factory=LeaseTimes)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Any] = asyncio.sleep
    generation: int = 0
    _seen: Seen | None = None
    _told: str = ""  # the failure that was logged last
    _renewed: float | None = None  # when the last successful renewal was begun

    def is_held(self) -> bool:
        """By our own clock; also after this process was stopped and continued."""
        return self._renewed is not None and self.clock() - self._renewed < self.times.renew_deadline

    @property
    def holder(self) -> str:
        """Identity of whoever had it when it was read last, "" = nobody."""
        return self._seen.holder if self._seen else ""

    async def acquire(self) -> None:
        """Returns when it is held."""
        while not await self._tried(self._acquire_once):
            await self.sleep(self.times.retry * random.uniform(0.8, 1.2))
        event(LOGGER, logging.INFO, "lease-acquired", identity=self.identity, generation=self.generation)

    async def keep(self) -> None:
        """Renews; returns when it is lost."""
        while True:
            await self.sleep(self.times.retry)
            lost = not await self._tried(self._renew_once) and (self._renewed is None or not self.is_held())
            if lost:
                self._renewed = None
                event(LOGGER, logging.WARNING, "lease-lost", identity=self.identity, generation=self.generation)
                return

    async def release(self) -> None:
        """Lets the next one take over at once. Does nothing if it is not held."""
        if not self.is_held():
            return
        self._renewed = None
        try:
            await self._give_up()
        except ApiError as error:
            event(LOGGER, logging.WARNING, "lease-not-released", reason=str(error))

    async def _give_up(self) -> None:
        try:
            await self._give_up_once()
        except ApiError as error:
            if not error.is_conflict:
                raise
            await self._give_up_once()  # a renewal that was cancelled has come to the server only now

    async def _give_up_once(self) -> None:
        found = self._seen or await self._read()
        if found.holder == self.identity:
            await self._write(found, "", found.transitions)

    # --- one attempt

    async def _tried(self, attempt: Callable[[], Any]) -> bool:
        try:
            done = bool(await attempt())
        except ApiError as error:
            if not error.is_conflict and str(error) != self._told:
                self._told = str(error)
                event(LOGGER, logging.WARNING, "lease-failed", reason=str(error))
            return False
        self._told = ""
        return done

    async def _acquire_once(self) -> bool:
        found = await self._read()
        if not found.is_free(self.identity, self.clock()):
            return False
        is_new = not found.version
        await self._write(found, self.identity, 0 if is_new else found.transitions + 1)
        return True

    async def _renew_once(self) -> bool:
        before = self._seen
        if before is None or before.holder != self.identity:
            before = await self._read()
        if before.holder != self.identity:
            self._renewed = None  # someone else has it
            return False
        await self._write(before, self.identity, before.transitions)
        return True

    async def _read(self) -> Seen:
        try:
            raw = await self.client.get(f"{self._path()}/{LEASE}")
        except ApiError as error:
            if error.status != 404:
                raise
            raw = {}
        self._seen = seen(raw, self._seen, self.clock())
        return self._seen

    async def _write(self, base: Seen, holder: str, transitions: int) -> None:
        began = self.clock()
        self._seen = None  # whatever happens to the write, it must be read again
        if base.version:
            raw = await self.client.replace(f"{self._path()}/{LEASE}", self._body(base, holder, transitions))
        else:
            raw = await self.client.create(self._path(), self._body(base, holder, transitions))
        self._seen = seen(raw, None, began)
        if holder:
            self._renewed, self.generation = began, transitions + 1

    def _body(self, base: Seen, holder: str, transitions: int) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        meta = {"name": LEASE, "namespace": self.namespace}
        if base.version:
            meta["resourceVersion"] = base.version
        is_ours = base.holder == self.identity and base.acquired
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": max(1, round(self.times.duration)),
            "acquireTime": base.acquired if is_ours else now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }
        return {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": meta, "spec": spec}

    def _path(self) -> str:
        return collection_path(LEASES.group, LEASES.version, LEASES.plural, self.namespace)
