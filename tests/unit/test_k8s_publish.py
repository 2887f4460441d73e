"""What the operator remembers of its writes to status subresources."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from typing import Any

from routerd.ledger import Ledger
from routerd.model import Allocations, ServiceAllocation, Snapshot
from routerd.store.k8s_contact import Contact
from routerd.store.k8s_objects import Collection
from routerd.store.k8s_publish import Publisher
from routerd.store.k8s_resources import SERVICES
from routerd.store.k8s_watch import Timings


def service(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
    }


class Store:
    """One service at a time, with an address."""

    def __init__(self) -> None:
        self.services = Collection(SERVICES, keep_status=True)
        self.name = ""

    def only(self, name: str) -> None:
        self.name = name
        self.services.replace([self.services.read(service(name))])

    def known(self, kind: str) -> list[Any]:
        return list(self.services.known.values()) if kind == "Service" else []

    def snapshot(self) -> Snapshot:
        given = ServiceAllocation(f"default/{self.name}", "default", (ip_address("192.0.2.1"),))
        return Snapshot(services={}, pools={}, policies={}, allocations=Allocations(1, (given,)))

    def take(self, kind: str, raw: Any) -> None:
        """The watch says it as well."""


class Client:
    contact = Contact()

    async def patch(self, path: str, body: Any) -> Any:
        return {"metadata": {**body["metadata"], "resourceVersion": "2"}}


def test_what_was_written_to_services_that_are_gone_is_forgotten() -> None:
    store, client = Store(), Client()
    untyped: Any = store
    anything: Any = client
    publisher = Publisher(
        anything, untyped, "me", ledger=lambda: Ledger(), counts=dict, may_write=lambda: True, timings=Timings()
    )

    async def story() -> None:
        for number in range(50):
            store.only(f"s{number}")
            await publisher._write_all(publisher._plan())

    asyncio.run(story())
    assert publisher.writes == 50
    assert len(publisher._written) <= 2
