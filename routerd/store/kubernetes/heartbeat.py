"""The heartbeats of a node that may be a gateway: a Lease of its own, small enough to be written every ten seconds.

Times in it are for people; whoever reads it sees that it changed. A beat that fails is lost: the next one is due soon.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from routerd.log import event
from routerd.model import GATEWAY_HEARTBEAT
from routerd.store.kubernetes.client import ApiError, Client
from routerd.store.kubernetes.resources import HEARTBEAT_LABEL, LEASES, collection_path, heartbeat_lease, object_path
from routerd.store.kubernetes.watch import Timings

LOGGER = logging.getLogger("routerd.store")


class Heartbeats:
    """`run` beside the store. `owner` gives the uid of the Node, with which the Lease goes; "" = not known."""

    def __init__(self, client: Client, namespace: str, node: str, owner: Callable[[], str], timings: Timings) -> None:
        self._client, self._namespace, self._node = client, namespace, node
        self._owner, self._timings = owner, timings
        self._due = asyncio.Event()
        self._logged = ""

    def beat(self) -> None:
        """The node serves now."""
        self._due.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                await self._write()
                self._logged = ""
            except ApiError as error:
                if str(error) != self._logged:
                    event(LOGGER, logging.WARNING, "heartbeat-failed", reason=str(error))
                self._logged = str(error)
            await self._client.contact.returned(self._timings.pace)

    async def _write(self) -> None:
        spec = {
            "holderIdentity": self._node,
            "leaseDurationSeconds": GATEWAY_HEARTBEAT,
            "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        name = heartbeat_lease(self._node)
        try:
            await self._client.patch(object_path(LEASES, name, self._namespace), {"spec": spec})
        except ApiError as error:
            if error.status != 404:
                raise
            await self._client.create(collection_path(LEASES, self._namespace), self._lease(name, spec))

    def _lease(self, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        meta: dict[str, Any] = {"name": name, "namespace": self._namespace, "labels": {HEARTBEAT_LABEL: "node"}}
        if uid := self._owner():
            meta["ownerReferences"] = [{"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": uid}]
        return {"apiVersion": LEASES.api_version, "kind": LEASES.name, "metadata": meta, "spec": spec}
