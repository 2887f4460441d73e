"""`routerd operator` against each fake cloud, by its real SDK: an egress IP finds its gateway, `show cloud` tells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.models.cloud import server as ec2
from tests.models.cloud.alibaba import server as alibaba
from tests.models.cloud.alibaba.front import ALIBABA_FRONT
from tests.models.cloud.azure import names
from tests.models.cloud.azure import server as azure
from tests.models.cloud.azure.front import AZURE_FRONT
from tests.models.cloud.core import Cloud
from tests.models.cloud.ec2_front import EC2_FRONT
from tests.models.cloud.front import Front
from tests.models.many import parse_allocations
from tests.waiting import PATIENCE, wait

REPOSITORY = Path(__file__).parents[2]
STARTED = 240.0  # seconds: on a busy machine an SDK's import takes 25 alone, and an interpreter's start 18
CLUSTER = """\
apiVersion: v1
kind: Node
metadata: {name: gw1, labels: {routerd.io/egress-gateway: ""}}
spec: {providerID: "PROVIDER-ID"}
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


@dataclass(frozen=True)
class Provider:
    name: str
    front: Front
    served: Callable[[Cloud], AbstractContextManager[str]]
    provider_id: str
    region: str
    environment: dict[str, str]  # {endpoint} stands for the fake's
    instance: str = "i-1"  # as our records have it
    changes: str = "CreateNetworkInterface"


AWS = Provider(
    "aws", EC2_FRONT, ec2.served, "aws:///a/i-1", "eu-central-1",
    {"AWS_ACCESS_KEY_ID": ec2.ACCESS, "AWS_SECRET_ACCESS_KEY": ec2.SECRET, "AWS_EC2_METADATA_DISABLED": "true"},
)  # fmt: skip
ALIBABA = Provider(
    "alibaba", ALIBABA_FRONT, alibaba.served, "cn-hangzhou.i-1", "cn-hangzhou",
    {"ALIBABA_CLOUD_ACCESS_KEY_ID": alibaba.ACCESS, "ALIBABA_CLOUD_ACCESS_KEY_SECRET": alibaba.SECRET,
     "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true"},
)  # fmt: skip
AZURE = Provider(
    "azure", AZURE_FRONT, azure.served, f"azure://{names.vm('i-1')}", "",
    {"AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential", "AZURE_POD_IDENTITY_AUTHORITY_HOST": "{endpoint}"},
    names.vm("i-1").lower(), "NetworkInterfaces_CreateOrUpdate",
)  # fmt: skip


def write(directory: Path, provider: Provider, endpoint: str) -> Path:
    (directory / "manifests").mkdir()
    (directory / "manifests" / "cluster.yaml").write_text(CLUSTER.replace("PROVIDER-ID", provider.provider_id))
    (directory / "gw1.yaml").write_text(REPORT)
    config = directory / "routerd.yaml"
    config.write_text(yaml.safe_dump({
        "apiVersion": "routerd.io/v1alpha1", "kind": "Config", "node-name": "operator",
        "state-dir": str(directory / "state"), "run-dir": str(directory / "run"),
        "store": {"manifests": str(directory / "manifests"), "node-reports": [str(directory / "gw1.yaml")]},
        "operator": {"metrics-listen": ""},
        "cloud": {"provider": provider.name, "endpoint": endpoint, "cluster": "test",
                  **({"region": provider.region} if provider.region else {}), "egress-networks": ["10.0.0.0/24"]},
    }))  # fmt: skip
    return config


@contextmanager
def operator(config: Path, provider: Provider, endpoint: str) -> Iterator[None]:
    command = [sys.executable, "-m", "routerd.cli.main", "operator", "--config", str(config)]
    given = {name: value.replace("{endpoint}", endpoint) for name, value in provider.environment.items()}
    with (config.parent / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, **given}, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0


def shown(config: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "routerd.cli.main", "show", "cloud", "-o", "json", "--config", str(config)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("provider", [AWS, ALIBABA, AZURE], ids=lambda provider: provider.name)
def test_an_egress_ip_finds_its_gateway_and_pods_their_addresses(tmp_path: Path, provider: Provider) -> None:
    cloud = Cloud(provider.front, attaching=0.5)
    cloud.add_subnet("subnet-1", "10.0.0.0/24")
    cloud.add_group("sg-1")
    cloud.add_instance("i-1", "subnet-1")
    published = tmp_path / "manifests" / "allocations.yaml"

    def gateways() -> tuple[str, ...]:
        cloud.advance(0.1)
        found = parse_allocations(published.read_text(), "f").groups if published.exists() else ()
        return found[0].gateways if found else ()

    with provider.served(cloud) as endpoint:
        config = write(tmp_path, provider, endpoint)
        with operator(config, provider, endpoint):
            assert wait(gateways, "the group has a gateway", timeout=STARTED) == ("gw1",)
            (row,) = shown(config)
            assert (row["instance"], row["node"], row["egress_ips"]) == (provider.instance, "gw1", "10.0.0.200")
            assert row["waiting"] == 2
    assert [str(address) for address in cloud.of("i-1")[0].addresses] == ["10.0.0.200"]
    assert cloud.mutations()[provider.changes] > 0
    assert "event=cloud-call" in (tmp_path / "log").read_text()
