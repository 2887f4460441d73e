"""Azure's own models have all that we write and the fake says, and its own clients understand the fake."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError
from azure.core.pipeline import PipelineRequest
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.mgmt.compute import ComputeManagementClient
from azure.mgmt.compute.models import VirtualMachineScaleSetVM
from azure.mgmt.network import NetworkManagementClient
from azure.mgmt.network.models import NetworkInterface, VirtualNetwork

from cloud.providers import arm
from tests.models.cloud.azure import looks, names
from tests.models.cloud.azure.front import AZURE_FRONT
from tests.models.cloud.azure.server import Desk, served
from tests.models.cloud.world import World

IN_SET = names.IN_SET + "1"
GROUP = names.last(names.GROUP)
MODELS = {arm.PUT: NetworkInterface, arm.VM_PUT: VirtualMachineScaleSetVM}


def unknown(found: Any, where: str) -> Iterator[str]:
    """Keys that the model does not have, at any depth."""
    fields = {field._rest_name: name for name, field in found._attr_to_rest_field.items()}
    yield from (f"{where}.{key}" for key in found if key not in fields)
    for key, name in fields.items():
        value = getattr(found, name)
        for each in value if isinstance(value, list) else [value]:
            if hasattr(each, "_attr_to_rest_field"):
                yield from unknown(each, f"{where}.{key}")


@pytest.fixture
def world() -> World:
    """A VM and an instance of a scale set, whose pods have addresses of both families."""
    world = World.of(front=AZURE_FRONT, ipv6=True, prefixes=True)
    world.add(IN_SET)
    world.run(40)
    return world


def test_what_is_written_and_shown_is_of_the_models(world: World) -> None:
    written = [(action, given["body"]) for _, action, given, code in world.cloud.log if "body" in given and not code]
    assert {action for action, _ in written} == MODELS.keys()
    assert [key for action, body in written for key in unknown(MODELS[action](body), action)] == []
    cloud, enis = world.cloud, world.cloud.enis
    shown = [NetworkInterface(looks.nic_data(cloud, eni)) for eni in enis.values()]
    shown.append(VirtualNetwork(looks.virtual_network(cloud, enis, {"id": names.vnet("vpc-1")})))
    shown.append(VirtualMachineScaleSetVM(looks.instance(cloud, enis, {"id": names.vm(IN_SET)})))
    assert [key for each in shown for key in unknown(each, type(each).__name__)] == []


class Bearer(SansIOHTTPPolicy[Any, Any]):
    """The clients' own gives no token to what is not https."""

    def on_request(self, request: PipelineRequest[Any]) -> None:
        request.http_request.headers["Authorization"] = "Bearer token"


def test_their_clients_understand_the_fake(world: World) -> None:
    cloud, desk = world.cloud, Desk(tokens={"token"})
    with served(cloud, desk) as endpoint:
        given: dict[str, Any] = {
            "credential": object(), "subscription_id": names.last(names.SUBSCRIPTION), "base_url": endpoint,
            "authentication_policy": Bearer(), "polling_interval": 0,
        }  # fmt: skip
        with NetworkManagementClient(**given) as network:
            (first, second) = network.network_interfaces.list(GROUP)
            assert [first.primary, second.primary] == [True, False]
            in_set = list(
                network.network_interfaces.list_virtual_machine_scale_set_network_interfaces(GROUP, names.SET)
            )
            assert [each.name for each in in_set] == [eni.id for eni in cloud.of(IN_SET)]
            (subnet,) = network.virtual_networks.get(GROUP, "vpc-1").subnets
            assert len(subnet.ip_configurations) == 8
            second.ip_configurations = second.ip_configurations[:1]
            match = {"If-Match": second.etag}
            write = network.network_interfaces.begin_create_or_update
            done = write(GROUP, second.name, second, headers=match).result()
            assert (len(done.ip_configurations), done.provisioning_state) == (1, "Succeeded")
            with pytest.raises(HttpResponseError) as caught:
                write(GROUP, second.name, second, headers=match)
            assert (caught.value.status_code, caught.value.error.code) == (412, "PreconditionFailed")
        with ComputeManagementClient(**given) as compute:
            vm = compute.virtual_machine_scale_set_vms.get(GROUP, names.SET, IN_SET.removeprefix(names.IN_SET))
            interfaces = vm.network_profile_configuration.network_interface_configurations
            assert [len(each.ip_configurations) for each in interfaces] == [1, 3]
