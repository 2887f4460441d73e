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

from routerd.formats.kinds import Role
from routerd.log import event
from routerd.store.kubernetes.client import UNREACHABLE, ApiError, Client
from routerd.store.kubernetes.resources import LEASE, LEASES, collection_path

LOGGER = logging.getLogger("routerd.operator")
RELEASE_TIMEOUT = 2.5  # seconds, of the time that a process has to end: without it the others wait for `duration`


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
class LeaseRecord:
    """A Lease as read, and when (monotonic) it was first seen to be so."""

    version: str  # resourceVersion; "" = there is no Lease
    holder: str
    duration: float
    transitions: int
    since: float
    acquired: str = ""

    def is_free(self, identity: str, now: float) -> bool:
        return not self.holder or self.holder == identity or now - self.since > self.duration


def lease_record(raw: Mapping[str, Any], before: LeaseRecord | None, now: float) -> LeaseRecord:
    """`raw` is empty where there is no Lease. The same version again keeps its first time."""
    spec = raw.get("spec") or {}
    version = str((raw.get("metadata") or {}).get("resourceVersion") or "")
    since = before.since if before is not None and before.version == version else now
    return LeaseRecord(
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
    holder: str | None = None
    """Identity of whoever had it when it was read last, "" = nobody, None = it has not been read yet."""
    _record: LeaseRecord | None = None
    _logged: str = ""  # the failure that was logged last
    _renewed: float | None = None  # when the last successful renewal was begun
    _claimed: bool = False  # a write that names us as holder was begun: it may have arrived, or arrive yet

    @property
    def role(self) -> Role:
        return "operator"

    def is_held(self) -> bool:
        """By our own clock; also after this process was stopped and continued."""
        return self._left() > 0

    def _left(self) -> float:
        """Seconds until the renew deadline."""
        return 0.0 if self._renewed is None else max(0.0, self._renewed + self.times.renew_deadline - self.clock())

    async def acquire(self) -> None:
        """Returns when it is held."""
        while not await self._tried(self._acquire_once):
            await self.sleep(self.times.retry * random.uniform(0.8, 1.2))
        event(LOGGER, logging.INFO, "lease-acquired", identity=self.identity, generation=self.generation)

    async def keep(self) -> None:
        """Renews; returns when it is lost."""
        while True:
            await self.sleep(min(self.times.retry, self._left()))
            lost = not await self._tried(self._renew_once) and (self._renewed is None or not self.is_held())
            if lost:
                self._renewed = None
                event(LOGGER, logging.WARNING, "lease-lost", identity=self.identity, generation=self.generation)
                return

    async def release(self) -> None:
        """Lets the next one take over at once, if the API server answers soon. Does nothing if it was never claimed."""
        if not self._claimed:
            return
        self._renewed = None
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT):
                await self._give_up()
        except (ApiError, TimeoutError) as error:
            reason = str(error) or f"no answer within {RELEASE_TIMEOUT} s"
            event(LOGGER, logging.WARNING, "lease-not-released", reason=reason)
        else:
            self._claimed = False

    async def _give_up(self) -> None:
        try:
            await self._give_up_once()
        except ApiError as error:
            if error.status != 409:
                raise
            await self._give_up_once()  # a claim or renewal that was cancelled has come to the server only now

    async def _give_up_once(self) -> None:
        """Also a Lease that is free is written: a claim of ours that is still on its way then comes too late."""
        record = self._record or await self._read()
        if record.holder in ("", self.identity):
            await self._write(record, "", record.transitions)

    # --- one attempt

    async def _tried(self, attempt: Callable[[], Any]) -> bool:
        """One attempt leaves time for another before the renew deadline, and does not outlast that."""
        limit = self.times.renew_deadline / 2
        limit = limit if self._renewed is None else min(limit, self._left())
        try:
            try:
                async with asyncio.timeout(limit):
                    done = bool(await attempt())
            except TimeoutError:
                raise ApiError(0, UNREACHABLE, f"no answer within {self.times.renew_deadline / 2:g} s") from None
        except ApiError as error:
            if not error.is_conflict and str(error) != self._logged:
                self._logged = str(error)
                event(LOGGER, logging.WARNING, "lease-failed", reason=str(error))
            return False
        self._logged = ""
        return done

    async def _acquire_once(self) -> bool:
        record = await self._read()
        if not record.is_free(self.identity, self.clock()):
            return False
        is_new = not record.version
        await self._write(record, self.identity, 0 if is_new else record.transitions + 1)
        return True

    async def _renew_once(self) -> bool:
        before = self._record
        if before is None or before.holder != self.identity:
            before = await self._read()
        if before.holder != self.identity:
            self._renewed = None  # someone else has it
            return False
        await self._write(before, self.identity, before.transitions)
        return True

    async def _read(self) -> LeaseRecord:
        try:
            raw = await self.client.get(f"{self._path()}/{LEASE}")
        except ApiError as error:
            if error.status != 404:
                raise
            raw = {}
        self._record = lease_record(raw, self._record, self.clock())
        self.holder = self._record.holder
        return self._record

    async def _write(self, base: LeaseRecord, holder: str, transitions: int) -> None:
        began = self.clock()
        self._record = None  # whatever happens to the write, it must be read again
        self._claimed = self._claimed or bool(holder)
        if base.version:
            raw = await self.client.replace(f"{self._path()}/{LEASE}", self._body(base, holder, transitions))
        else:
            raw = await self.client.create(self._path(), self._body(base, holder, transitions))
        self._record, self.holder = lease_record(raw, None, began), holder
        if holder:
            self._renewed, self.generation = began, transitions + 1

    def _body(self, base: LeaseRecord, holder: str, transitions: int) -> dict[str, Any]:
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
        return {"apiVersion": LEASES.api_version, "kind": LEASES.name, "metadata": meta, "spec": spec}

    def _path(self) -> str:
        return collection_path(LEASES, self.namespace)
