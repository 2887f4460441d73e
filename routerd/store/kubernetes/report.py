"""This node's report in its RouterdNode object: written when it changes, and from time to time that it is alive.

What there is to say is looked at every PERIOD, so that no more is written than that, and what was true last always is.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from routerd.model import NODE_HEARTBEAT, NodeReport, Refusal
from routerd.refs import Ref
from routerd.store.kubernetes.client import ApiError, Client
from routerd.store.kubernetes.documents import HEARTBEAT, is_said, is_urgent, report_status, seconds_since
from routerd.store.kubernetes.resources import NODE_UID, REPORTS, collection_path, object_path
from routerd.store.kubernetes.status.patches import dated
from routerd.store.kubernetes.watch import Timings

PERIOD = 2.0  # seconds between two writes at least
RECOVERY = 10.0  # seconds after an outage in which what was said of the store before it stays
NUMBERS = 10.0  # the same for what is but a number or a message: under churn they change on every node all the time


@dataclass(frozen=True, slots=True)
class WrittenReport:
    """The object as it was last read or written."""

    version: str  # resourceVersion
    status: Mapping[str, Any]

    @property
    def conditions(self) -> list[Mapping[str, Any]]:
        return [each for each in self.status.get("conditions") or () if isinstance(each, dict)]

    def age(self, now: datetime) -> float:
        """Seconds since it was written; infinite if it never was."""
        return seconds_since(self.status.get("lastSeen"), now)


def version_of(raw: Mapping[str, Any]) -> str:
    return str((raw.get("metadata") or {}).get("resourceVersion") or "")


def is_synced(health: Mapping[str, Any]) -> bool:
    """Whether the condition StoreSynced does not say otherwise."""
    conditions = {each["type"]: each["status"] for each in health.get("conditions") or ()}
    return conditions.get("StoreSynced") != "False"


class Reporter:
    """`run` beside the store; `want` and `health` say what to report."""

    def __init__(
        self, client: Client, node: str, owner: Callable[[], str], timings: Timings, on_change: Callable[[], None]
    ) -> None:
        """`owner` gives the uid of the Node; "" = not known."""
        self._client, self._node, self._owner, self._timings, self._on_change = client, node, owner, timings, on_change
        self._node_report: NodeReport | None = None
        self._has_report = asyncio.Event()
        self._has_ask = asyncio.Event()
        self._fault: ApiError | None = None
        self._last: WrittenReport | None = None  # None = to be read
        self._was_away = False  # the API server: the operator may have called this node absent since
        self._written = -math.inf  # of the loop's clock, as is the next
        self._heartbeat = math.inf
        self.health: Callable[[], Mapping[str, Any]] = dict  # more of the status; does not fail
        self.writes = 0

    def want(self, report: NodeReport) -> None:
        """May be called again and again. What is asked for, or given back, is written at once."""
        before, self._node_report = self._node_report, report
        self._has_report.set()
        if before is not None and (before.ports, before.egress_asks) != (report.ports, report.egress_asks):
            self._has_ask.set()

    def _status(self) -> dict[str, Any]:
        """After an outage, that not everything has been read again yet is nothing to tell: it is in seconds."""
        health = dict(self.health())
        if not is_synced(health) and self._client.contact.is_recovering(RECOVERY):
            health.pop("conditions", None)
        report = report_status(self._node_report) if self._node_report else {}
        if uid := self._owner():
            report = {NODE_UID: uid, **report}
        if self._last is None or HEARTBEAT not in self._last.status:
            report = {HEARTBEAT: NODE_HEARTBEAT, **report}
        return {**report, **health}

    def refusal(self) -> Refusal | None:
        if self._fault is None:
            return None
        reason = "Forbidden" if self._fault.status == 403 else "ReportFailed"
        return Refusal(Ref("RouterdNode", name=self._node), reason, f"this node's report is not written: {self._fault}")

    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        await self._has_report.wait()
        while True:
            try:
                await self._report()
            except ApiError as error:
                self._last = None
                failures += 1
                await self._client.rest(error, self._after(error, failures), self._timings.pace)
                continue
            failures = 0
            self._is(None)
            await self._rest()

    async def _rest(self) -> None:
        """Until it is time to look again, or there is something to ask for."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._has_ask.wait(), PERIOD)
        self._has_ask.clear()

    def _after(self, error: ApiError, failures: int) -> float:
        """Takes note of a failure; seconds until the next attempt."""
        if (error.is_conflict or error.status == 404) and failures == 1:
            return 0.0  # somebody else wrote it or took it away: ordinary
        self._is(error)
        pause: float = min(self._timings.last_pause, self._timings.first_pause * 2 ** min(failures - 1, 16))
        return max(pause * random.uniform(0.5, 1), error.retry_after)

    def _is(self, fault: ApiError | None) -> None:
        before, self._fault = self._fault, fault
        if (before is None) != (fault is None):
            self._on_change()

    async def _report(self) -> None:
        """Reads first: after a start, the report is most often there already.

        It bears no heartbeat before there is something to tell: an agent that crashes over and over is not alive.
        """
        loop = asyncio.get_running_loop()
        if self._client.contact.is_lost:
            self._was_away = True
        elif self._was_away:
            self._was_away, self._last = False, None
        if self._last is None:
            raw = await self._object()
            self._last = WrittenReport(version_of(raw), raw.get("status") or {})
            self._heartbeat = loop.time() + self._next_heartbeat() - self._last.age(datetime.now(UTC))
        last, status, now = self._last, self._status(), loop.time()
        is_news = not is_said(status, last.status)
        is_time = is_urgent(status, last.status) or now >= self._written + NUMBERS
        if (is_news and is_time) or (now >= self._heartbeat and self.health()):
            self._last = await self._write(status, last)
            self._written, self._heartbeat = now, now + self._next_heartbeat()
            self.writes += 1

    def _next_heartbeat(self) -> float:
        return self._timings.heartbeat * random.uniform(1, 1.25)

    async def _write(self, report: Mapping[str, Any], last: WrittenReport) -> WrittenReport:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        status = {**report, "lastSeen": now}
        if "conditions" in report:
            status["conditions"] = dated(report["conditions"], last.conditions, now)
        meta = {"name": self._node, "resourceVersion": last.version}
        body = {"apiVersion": REPORTS.api_version, "kind": REPORTS.name, "metadata": meta, "status": status}
        raw = await self._client.patch(object_path(REPORTS, self._node, subresource="status"), body)
        # What we said and not what became of it: a field that an older CRD drops must not be written for ever.
        return WrittenReport(version_of(raw), {**last.status, **status})

    async def _object(self) -> Mapping[str, Any]:
        try:
            return await self._client.get(object_path(REPORTS, self._node))
        except ApiError as error:
            if error.status != 404:
                raise
        body = {"apiVersion": REPORTS.api_version, "kind": REPORTS.name, "metadata": {"name": self._node}}
        return await self._client.create(collection_path(REPORTS), body)
