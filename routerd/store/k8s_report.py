"""This node's report in its RouterdNode object: written when it changes, and from time to time that it is alive."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from routerd.model import NodeReport, Refusal
from routerd.store.k8s_client import ApiError, Client
from routerd.store.k8s_documents import report_status
from routerd.store.k8s_resources import REPORTS
from routerd.store.k8s_status import dated
from routerd.store.k8s_watch import Timings


class Reporter:
    """`run` beside the store; `want` says what to report."""

    def __init__(self, client: Client, node: str, timings: Timings, on_change: Callable[[], None]) -> None:
        self._client, self._node, self._timings, self._on_change = client, node, timings, on_change
        self._wanted: NodeReport | None = None
        self._wake = asyncio.Event()
        self._fault: ApiError | None = None
        self._said: Mapping[str, Any] = {}
        self.health: Callable[[], Mapping[str, Any]] = dict  # more of the status: peers, conditions
        self.writes = 0

    def want(self, report: NodeReport) -> None:
        """Called from time to time: what is the same as before is written as a heartbeat only."""
        self._wanted = report
        if self._status() != self._said:
            self._wake.set()

    def _status(self) -> dict[str, Any]:
        return {**(report_status(self._wanted) if self._wanted else {}), **self.health()}

    def refusal(self) -> Refusal | None:
        if self._fault is None:
            return None
        reason = "Forbidden" if self._fault.status == 403 else "ReportFailed"
        return Refusal(f"RouterdNode/{self._node}", reason, f"this node's report is not written: {self._fault}")

    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        await self._wake.wait()
        while True:
            self._wake.clear()
            try:
                await self._write()
            except ApiError as error:
                failures += 1
                if not (error.is_conflict and failures == 1):
                    self._is(error)
                pause = min(self._timings.last_pause, self._timings.first_pause * 2 ** min(failures - 1, 16))
                await asyncio.sleep(0 if error.is_conflict and failures == 1 else pause * random.uniform(0.5, 1))
                continue
            failures = 0
            self._is(None)
            await self._is_woken(self._timings.heartbeat * random.uniform(0.75, 1.25))

    def _is(self, fault: ApiError | None) -> None:
        before, self._fault = self._fault, fault
        if (before is None) != (fault is None):
            self._on_change()

    async def _is_woken(self, delay: float) -> None:
        try:
            async with asyncio.timeout(delay):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _write(self) -> None:
        """Reads first: after a start, the report is most often there already."""
        raw = await self._object()
        wanted, before = self._status(), raw.get("status") or {}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        status = {**wanted, "lastSeen": now}
        if "conditions" in wanted:
            status["conditions"] = dated(wanted["conditions"], before.get("conditions") or (), now)
        meta = {"name": self._node, "resourceVersion": raw["metadata"]["resourceVersion"]}
        body = {"apiVersion": REPORTS.api_version, "kind": REPORTS.kind, "metadata": meta, "status": status}
        await self._client.patch(REPORTS.object_path(self._node, subresource="status"), body)
        self._said = wanted
        self.writes += 1

    async def _object(self) -> Mapping[str, Any]:
        try:
            return await self._client.get(REPORTS.object_path(self._node))
        except ApiError as error:
            if error.status != 404:
                raise
        body = {"apiVersion": REPORTS.api_version, "kind": REPORTS.kind, "metadata": {"name": self._node}}
        return await self._client.create(REPORTS.path, body)
