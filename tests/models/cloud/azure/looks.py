"""What looks at the fake Azure show, as ARM has it. Interfaces may be shown as they were before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tests.models.cloud.azure import names
from tests.models.cloud.state import Eni, Refusal

if TYPE_CHECKING:
    from tests.models.cloud.core import Cloud

Data = Mapping[str, Any]
Seen = Mapping[str, Eni]
PAGE = 50


def refers(kind: str, name: str) -> Data:
    return {"id": f"{names.NETWORK}/{kind}/{name}"}


# What Azure's users have on a node's interface, and a change by us must leave as it is.
SETTINGS: Data = {
    "enableIPForwarding": True,
    "enableAcceleratedNetworking": True,
    "networkSecurityGroup": refers("networkSecurityGroups", "nsg-1"),
    "dnsSettings": {"dnsServers": ["10.0.0.4"]},
}


def first(cloud: Cloud, eni: Eni) -> Data:
    """The primary IP configuration, before anybody has written another one."""
    given = {
        "subnet": {"id": names.subnet(cloud.subnets[eni.subnet].vpc, eni.subnet)},
        "primary": True,
        "privateIPAddress": str(eni.primary),
        "privateIPAllocationMethod": "Dynamic",
        "privateIPAddressVersion": "IPv4",
        "loadBalancerBackendAddressPools": [refers("loadBalancers", "lb-1/backendAddressPools/nodes")],
        "publicIPAddress": refers("publicIPAddresses", f"ip-{eni.id}"),
        "applicationSecurityGroups": [refers("applicationSecurityGroups", "nodes")],
    }
    return {"name": "ipconfig1", "properties": given}


def address(configuration: Data) -> str:
    return str(configuration["properties"].get("privateIPAddress", ""))


def configurations(cloud: Cloud, eni: Eni) -> tuple[Data, ...]:
    """Those whose addresses it still has."""
    there = {str(each) for each in (eni.primary, *eni.addresses, *eni.prefixes, *eni.prefixes6)}
    return tuple(each for each in eni.configurations or (first(cloud, eni),) if address(each) in there)


def etag(eni: Eni) -> str:
    return f'W/"{eni.version}"'


def state(eni: Eni) -> str:
    return eni.changing or "Succeeded"


def of(eni: Eni) -> str:
    """Its VM."""
    return eni.attachment.instance if eni.attachment else ""


def nic_data(cloud: Cloud, eni: Eni) -> Data:
    id_ = names.nic(eni.id, of(eni))
    shown = [
        {"name": each["name"], "id": f"{id_}/ipConfigurations/{each['name']}", "etag": etag(eni),
         "properties": {**each["properties"], "provisioningState": state(eni)}}
        for each in configurations(cloud, eni)
    ]  # fmt: skip
    given = {**(eni.settings or SETTINGS), "provisioningState": state(eni), "ipConfigurations": shown}
    if eni.attachment is not None:
        given["virtualMachine"] = {"id": names.vm(eni.attachment.instance).upper()}
        given["primary"] = eni.attachment.index == 0
        given["macAddress"] = eni.mac.replace(":", "-").upper()
    return {
        "name": eni.id, "id": id_, "etag": etag(eni), "type": "Microsoft.Network/networkInterfaces",
        "location": names.LOCATION, "tags": dict(eni.tags), "properties": given,
    }  # fmt: skip


def interfaces(cloud: Cloud, seen: Seen, given: Data) -> Data:
    """Without those of scale sets."""
    id_ = given.get("url", given.get("id", ""))
    if id_.partition("?")[0].lower() != names.GROUP.lower():
        raise Refusal("ResourceGroupNotFound", id_, 404)
    return _page(cloud, id_, [seen[name] for name in sorted(seen) if not names.is_in_set(of(seen[name]))])


def interfaces_of_set(cloud: Cloud, seen: Seen, given: Data) -> Data:
    id_ = given.get("url", given.get("id", ""))
    found = [seen[name] for name in sorted(seen) if names.is_in_set(of(seen[name]))]
    if not found or id_.partition("?")[0].lower() != names.scale_set(names.SET).lower():
        raise Refusal("ResourceNotFound", id_, 404)
    return _page(cloud, id_, found)


def _page(cloud: Cloud, id_: str, found: list[Eni]) -> Data:
    place, _, rest = id_.partition("?$skiptoken=")
    start = int(rest or 0)
    more = {"nextLink": f"{place}?$skiptoken={start + PAGE}"} if start + PAGE < len(found) else {}
    return {"value": [nic_data(cloud, each) for each in found[start : start + PAGE]], **more}


UNSAID = ("privateIPAddress", "privateIPAllocationMethod")


def in_set(configuration: Data) -> Data:
    """As an instance of a scale set has it in itself."""
    given = configuration["properties"].items()
    said = {key: value for key, value in given if key not in UNSAID}
    if public := said.pop("publicIPAddress", None):
        said["publicIPAddressConfiguration"] = {"name": names.last(public["id"])}
    return {"name": configuration["name"], "properties": said}


def vm_etag(enis: list[Eni]) -> str:
    return f'"{max(each.version for each in enis)}"'


def vm_data(cloud: Cloud, name: str, enis: list[Eni]) -> Data:
    """An instance of a scale set, of which our calls are about its interfaces."""
    shown = [
        {"name": each.id,
         "properties": {**(each.settings or SETTINGS), "primary": bool(each.attachment and not each.attachment.index),
                        "ipConfigurations": [in_set(one) for one in configurations(cloud, each)]}}
        for each in enis
    ]  # fmt: skip
    given = {
        "provisioningState": next((each.changing for each in enis if each.changing), "Succeeded"),
        "latestModelApplied": True,
        "storageProfile": {"imageReference": {"id": "/subscriptions/other/galleries/of/images"}, "osDisk": {}},
        "networkProfileConfiguration": {"networkInterfaceConfigurations": shown},
    }
    return {
        "name": name, "id": names.vm(name), "instanceId": name.removeprefix(names.IN_SET), "etag": vm_etag(enis),
        "location": names.LOCATION, "properties": given,
    }  # fmt: skip


def instance(cloud: Cloud, seen: Seen, given: Data) -> Data:
    name = names.instance(given["id"])
    enis = [each for each in seen.values() if of(each) == name]
    if not enis:
        raise Refusal("ResourceNotFound", given["id"], 404)
    return vm_data(cloud, name, sorted(enis, key=lambda each: each.attachment.index if each.attachment else 0))


def interface(cloud: Cloud, seen: Seen, given: Data) -> Data:
    name = names.last(given["id"])
    if name not in seen:
        raise Refusal("ResourceNotFound", given["id"], 404)
    return nic_data(cloud, seen[name])


def virtual_network(cloud: Cloud, seen: Seen, given: Data) -> Data:
    name = names.last(given["id"])
    subnets = [each for each in cloud.subnets.values() if each.vpc == name]
    if not subnets:
        raise Refusal("ResourceNotFound", given["id"], 404)
    users: dict[str, list[Data]] = {}
    for eni in seen.values():
        refs = [
            {"id": f"{names.nic(eni.id, of(eni))}/ipConfigurations/{each['name']}"}
            for each in configurations(cloud, eni)
        ]
        users.setdefault(eni.subnet, []).extend(refs)
    shown = [
        {"name": each.id, "id": names.subnet(name, each.id),
         "properties": {**_prefixes(each.cidr, each.cidr6), "ipConfigurations": users.get(each.id, [])}}
        for each in subnets
    ]  # fmt: skip
    return {"name": name, "id": names.vnet(name), "location": names.LOCATION, "properties": {"subnets": shown}}


def _prefixes(cidr: object, cidr6: object) -> Data:
    return {"addressPrefixes": [str(cidr6), str(cidr)]} if cidr6 else {"addressPrefix": str(cidr)}


LOOKS: Mapping[str, Callable[[Any, Seen, Data], Data]] = {
    "NetworkInterfaces_List": interfaces,
    "NetworkInterfaces_Get": interface,
    "NetworkInterfaces_ListVirtualMachineScaleSetNetworkInterfaces": interfaces_of_set,
    "NetworkInterfaces_GetVirtualMachineScaleSetNetworkInterface": interface,
    "VirtualMachineScaleSetVMs_Get": instance,
    "VirtualNetworks_Get": virtual_network,
}
