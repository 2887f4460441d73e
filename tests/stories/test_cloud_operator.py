"""`routerd operator` against the fake EC2, by the real SDK: an egress IP finds its gateway, and `show cloud` tells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.models.cloud.core import Cloud
from tests.models.cloud.server import ACCESS, SECRET, served
from tests.models.many import parse_allocations
from tests.waiting import wait

REPOSITORY = Path(__file__).parents[2]
CLUSTER = """\
apiVersion: v1
kind: Node
metadata: {name: gw1, labels: {routerd.io/egress-gateway: ""}}
spec: {providerID: "aws:///a/i-1"}
status: {addresses: [{type: InternalIP, address: 10.0.0.4}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: routerd.io/v1alpha1
kind: EgressPolicy
metadata: {name: billing}
spec:
  selectors: [{podSelector: {matchLabels: {app: billing}}}]
  destinationCIDRs: [203.0.113.0/24]
  egressIP: 10.0.0.200
"""
REPORT = """\
apiVersion: routerd.io/v1alpha1
kind: NodeReport
node: gw1
addresses: [10.0.0.4]
pods: {withAddress: 0, waiting: 2}
"""


def write(directory: Path, endpoint: str) -> Path:
    (directory / "manifests").mkdir()
    (directory / "manifests" / "cluster.yaml").write_text(CLUSTER)
    (directory / "gw1.yaml").write_text(REPORT)
    config = directory / "routerd.yaml"
    config.write_text(yaml.safe_dump({
        "apiVersion": "routerd.io/v1alpha1", "kind": "Config", "node-name": "operator",
        "state-dir": str(directory / "state"), "run-dir": str(directory / "run"),
        "store": {"manifests": str(directory / "manifests"), "node-reports": [str(directory / "gw1.yaml")]},
        "operator": {"metrics-listen": ""},
        "cloud": {"provider": "aws", "region": "eu-central-1", "endpoint": endpoint, "cluster": "test",
                  "egress-networks": ["10.0.0.0/24"]},
    }))  # fmt: skip
    return config


@contextmanager
def operator(config: Path) -> Iterator[None]:
    keys = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}
    command = [sys.executable, "-m", "routerd.cli.main", "operator", "--config", str(config)]
    with (config.parent / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, **keys}, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(30) == 0


def shown(config: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "routerd.cli.main", "show", "cloud", "-o", "json", "--config", str(config)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_an_egress_ip_finds_its_gateway_and_pods_their_addresses(tmp_path: Path) -> None:
    cloud = Cloud(attaching=0.5)
    cloud.add_subnet("subnet-1", "10.0.0.0/24")
    cloud.add_group("sg-1")
    cloud.add_instance("i-1", "subnet-1")
    published = tmp_path / "manifests" / "allocations.yaml"

    def gateways() -> tuple[str, ...]:
        cloud.advance(0.1)
        found = parse_allocations(published.read_text(), "f").groups if published.exists() else ()
        return found[0].gateways if found else ()

    with served(cloud) as endpoint:
        config = write(tmp_path, endpoint)
        with operator(config):
            assert wait(gateways, "the group has a gateway") == ("gw1",)
            (row,) = shown(config)
            assert (row["instance"], row["node"], row["egress_ips"]) == ("i-1", "gw1", "10.0.0.200")
            assert row["waiting"] == 2
    assert [str(address) for address in cloud.of("i-1")[0].addresses] == ["10.0.0.200"]
    assert cloud.mutations()["CreateNetworkInterface"] == 1
    assert "event=cloud-call" in (tmp_path / "log").read_text()
