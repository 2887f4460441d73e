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


def nic_data(cloud: Cloud, eni: Eni) -> Data:
    id_ = names.nic(eni.id)
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
    """In pages."""
    id_, _, rest = given.get("url", given.get("id", "")).partition("?$skiptoken=")
    if names.GROUP.lower() not in id_.lower():
        raise Refusal("ResourceGroupNotFound", id_, 404)
    start, found = int(rest or 0), [seen[name] for name in sorted(seen)]
    page = {"value": [nic_data(cloud, each) for each in found[start : start + PAGE]]}
    more = {"nextLink": f"{names.GROUP}?$skiptoken={start + PAGE}"} if start + PAGE < len(found) else {}
    return {**page, **more}


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
        refs = [{"id": f"{names.nic(eni.id)}/ipConfigurations/{each['name']}"} for each in configurations(cloud, eni)]
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
    "VirtualNetworks_Get": virtual_network,
}
