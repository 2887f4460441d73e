"""The operator of the embedded store, asked over HTTP what a probe and Prometheus ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

from routerd.config import Config, OperatorConfig, StoreConfig
from routerd.daemon.lifetime import ConfigSource
from routerd.daemon.processes import operator
from tests.models.web import answer, free_port, ok

NODE = """\
apiVersion: v1
kind: Node
metadata: {name: a}
status: {addresses: [{type: InternalIP, address: 10.0.0.11}]}
"""
POOL = """\
apiVersion: routerd.io/v1alpha1
kind: AddressPool
metadata: {name: vips}
spec: {blocks: [{cidr: 192.0.2.0/30}]}
"""
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec: {{type: LoadBalancer, ports: [{{port: 80, protocol: TCP}}]}}
"""


@asynccontextmanager
async def embedded(directory: Path) -> AsyncIterator[int]:
    """An operator; gives its port."""
    port, manifests = free_port(), directory / "manifests"
    store = StoreConfig(
        manifests=manifests, allocations=manifests / "allocations.yaml", node_report=directory / "node.yaml",
        node_reports=(str(directory / "*.yaml"),),
    )  # fmt: skip
    settings = OperatorConfig(ledger=directory / "ledger", metrics_listen=(ip_address("127.0.0.1"), port))
    task = asyncio.create_task(
        operator(Config("a", store, state_dir=directory, run_dir=directory, operator=settings), ConfigSource())
    )
    try:
        yield port
        assert not task.done()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def test_probes_and_metrics_of_an_operator_with_files(tmp_path: Path) -> None:
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    for name, text in (("node", NODE), ("pool", POOL), ("web", SERVICE.format(name="web"))):
        (manifests / f"{name}.yaml").write_text(text)
    (manifests / "broken.yaml").write_text("kind: [")

    async def story() -> None:
        async with embedded(tmp_path) as port:
            assert await answer(port, "/healthz", ok) == "alive\n"
            why = await answer(port, "/readyz", lambda code, text: code == 503)
            assert why.startswith("not read from the store yet: ")
            lines = (await answer(port, "/metrics", ok)).splitlines()
            assert "routerd_ready 0.0" in lines and "routerd_operator_decision_duration_seconds_count 0.0" in lines
            (manifests / "broken.yaml").unlink()
            await answer(port, "/readyz", lambda code, text: (code, text) == (200, "ready\n"))
            for name in ("b", "c", "d", "e"):  # one more than the pool has
                (manifests / f"{name}.yaml").write_text(SERVICE.format(name=name))
            full = 'routerd_refusals{reason="PoolExhausted",severity="error"} 1.0'
            lines = (await answer(port, "/metrics", lambda code, text: full in text)).splitlines()
            assert {
                "routerd_operator_active 1.0",
                "routerd_operator_decision_errors_total 0.0",
                'routerd_pool_addresses{pool="vips"} 4.0',
                'routerd_operator_pool_addresses{pool="vips",state="used"} 4.0',
                'routerd_operator_pool_addresses{pool="vips",state="free"} 0.0',
            } <= set(lines)
            assert not [line for line in lines if "lease" in line or "routerd_store_lists" in line]

    asyncio.run(story())
