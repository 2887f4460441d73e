"""Which nodes are instances of a cloud, by what their Node says."""

from __future__ import annotations

import pytest

from routerd.cluster.instances import instance_of
from routerd.formats.compose import documents
from routerd.formats.core import read_node


@pytest.mark.parametrize(
    ("provider_id", "instance"),
    [
        ("aws:///eu-central-1a/i-0123456789abcdef0", "i-0123456789abcdef0"),
        ("aws:///eu-central-1a/fargate-ip-10-0-0-1.ec2.internal", ""),
        ("aws://eu-central-1a/i-0123", ""),
        ("cn-hangzhou.i-bp1abcdefghijklmnopq", "i-bp1abcdefghijklmnopq"),
        ("alicloud://ap-southeast-1.i-t4n0123", "i-t4n0123"),
        ("cn-hangzhou.eci-bp1abc", ""),
        (
            "azure:///subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachines/vm-1",
            "/subscriptions/s/resourcegroups/g/providers/microsoft.compute/virtualmachines/vm-1",
        ),
        (
            "azure:///subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/a/virtualMachines/0",
            "/subscriptions/s/resourcegroups/g/providers/microsoft.compute/virtualmachinescalesets/a/virtualmachines/0",
        ),
        ("gce://project/zone/i-0123", ""),
        ("", ""),
    ],
)
def test_the_instance_of_a_node(provider_id: str, instance: str) -> None:
    (value,) = documents(f"{{kind: Node, metadata: {{name: n}}, spec: {{providerID: '{provider_id}'}}}}")
    assert instance_of(read_node(value)) == instance


def test_a_node_of_no_cloud() -> None:
    (value,) = documents("{kind: Node, metadata: {name: n}}")
    assert instance_of(read_node(value)) == ""
