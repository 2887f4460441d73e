"""What a written network interface does to the state of the fake Azure: preconditions first, then the change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Any

from tests.models.cloud.azure import looks, names
from tests.models.cloud.azure.calls import JOINS
from tests.models.cloud.state import Eni, Refusal

if TYPE_CHECKING:
    from tests.models.cloud.core import Cloud

Data = Mapping[str, Any]
MOST = 256
UPDATING = 1.5  # seconds
READ_ONLY = ("provisioningState", "ipConfigurations", "virtualMachine", "primary", "macAddress")


def put(cloud: Cloud, given: Data) -> Data:
    """All of it or nothing."""
    name = names.last(given["id"])
    if name not in cloud.enis:
        raise Refusal("ResourceNotFound", given["id"], 404)
    eni, body = cloud.enis[name], given["body"]
    _free(given, looks.etag(eni), [eni])
    wanted = [_plain(each) for each in body["properties"]["ipConfigurations"]]
    if body["location"] != names.LOCATION:
        raise Refusal("InvalidRequestFormat", "the location is another")
    eni = _put(cloud, eni, body["properties"], wanted)
    cloud.put(replace(eni, tags=body.get("tags", {})))
    return looks.nic_data(cloud, cloud.enis[name])


def put_vm(cloud: Cloud, given: Data) -> Data:
    """An instance of a scale set: what is said otherwise than it was is a change, of one interface at a time."""
    name, body = names.instance(given["id"]), given["body"]
    enis = cloud.of(name)
    if not enis:
        raise Refusal("ResourceNotFound", given["id"], 404)
    _free(given, looks.vm_etag(enis), enis)
    if body["properties"]["storageProfile"]["imageReference"] is not None:
        raise Refusal("LinkedAuthorizationFailed", "the image may not be read", 403)
    written = body["properties"]["networkProfileConfiguration"]["networkInterfaceConfigurations"]
    if [each["name"] for each in written] != [each.id for each in enis]:
        raise Refusal("InvalidRequestFormat", "interfaces come and go")
    for eni, each in zip(enis, written, strict=True):
        wanted = [_of_set(cloud, eni, one) for one in each["properties"]["ipConfigurations"]]
        if wanted != list(looks.configurations(cloud, eni)) or eni.changing == "Failed":
            _put(cloud, eni, each["properties"], wanted)
    return looks.vm_data(cloud, name, cloud.of(name))


def _free(given: Data, etag: str, enis: list[Eni]) -> None:
    if given.get("etag", etag) != etag:
        raise Refusal("PreconditionFailed", f"{given['id']} has changed", 412)
    if any(each.changing == "Updating" for each in enis):
        raise Refusal("AnotherOperationInProgress", f"{given['id']} is being changed", 409)


def _of_set(cloud: Cloud, eni: Eni, configuration: Data) -> Data:
    """What is there must be said as it was; what is new gets an address."""
    there = {each["name"]: each for each in looks.configurations(cloud, eni)}
    known = there.get(configuration["name"])
    if known is not None and looks.in_set(known) != configuration:
        raise Refusal("InvalidRequestFormat", f"{configuration['name']} is another")
    if any(key in configuration["properties"] for key in looks.UNSAID):
        raise Refusal("InvalidRequestFormat", "a scale set gives addresses itself")
    return known or _with(configuration, privateIPAllocationMethod="Dynamic")


def _with(configuration: Data, **properties: Any) -> Data:
    return {**configuration, "properties": {**configuration["properties"], **properties}}


def _put(cloud: Cloud, eni: Eni, properties: Data, wanted: list[Data]) -> Eni:
    cloud.permit(*_joined(properties, wanted))
    _judged(cloud, eni, wanted)
    taken, taken6 = set(cloud.taken[eni.subnet]), set(cloud.taken6[eni.subnet])
    try:
        eni = _written(cloud, eni, wanted)
    except Refusal:
        cloud.taken[eni.subnet], cloud.taken6[eni.subnet] = taken, taken6
        raise
    settings = {key: value for key, value in properties.items() if key not in READ_ONLY}
    cloud.put(replace(eni, settings=settings, changing="Updating"))
    cloud.later(UPDATING, lambda: _settled(cloud, eni.id))
    return cloud.enis[eni.id]


def _settled(cloud: Cloud, name: str) -> None:
    if name in cloud.enis:
        cloud.put(replace(cloud.enis[name], changing=""))


def _plain(configuration: Data) -> Data:
    """Without what only Azure says."""
    given = {key: value for key, value in configuration["properties"].items() if key != "provisioningState"}
    return {"name": configuration["name"], "properties": given}


def _joined(properties: Data, wanted: list[Data]) -> Iterator[str]:
    """Permissions by what the interface and its configurations refer to."""
    has = {key for each in (properties, *(one["properties"] for one in wanted)) for key, value in each.items() if value}
    yield from (need for key, need in JOINS.items() if key in has)


def _judged(cloud: Cloud, eni: Eni, wanted: list[Data]) -> None:
    called = [each["name"] for each in wanted]
    primaries = [each for each in wanted if each["properties"].get("primary")]
    subnets = {each["properties"]["subnet"]["id"].lower() for each in wanted}
    groups = [each["properties"].get("applicationSecurityGroups", []) for each in wanted]
    if len(called) > len(set(called)) or len(primaries) != 1 or looks.address(primaries[0]) != str(eni.primary):
        raise Refusal("InvalidRequestFormat", "names are not unique, or the primary configuration is another")
    if any(each != groups[0] for each in groups):
        raise Refusal("InvalidRequestFormat", "application security groups are not the same for all")
    if subnets != {names.subnet(cloud.subnets[eni.subnet].vpc, eni.subnet).lower()}:
        raise Refusal("IpConfigurationsOnSameNicCannotUseDifferentSubnets", ", ".join(sorted(subnets)))
    others = [] if eni.attachment is None else [each for each in cloud.of(eni.attachment.instance) if each.id != eni.id]
    if len(wanted) + sum(len(looks.configurations(cloud, each)) for each in others) > MOST:
        raise Refusal("NetworkInterfaceIPConfigurationLimitReached", f"more than {MOST} addresses")


def _written(cloud: Cloud, eni: Eni, wanted: list[Data]) -> Eni:
    """What is there no more is free before anything is taken."""
    kept = {looks.address(each) for each in wanted}
    gone = [each for each in eni.addresses if str(each) not in kept]
    prefixes = [each for each in eni.prefixes if str(each) not in kept]
    cloud.taken[eni.subnet] -= {*map(int, gone), *(int(each) for prefix in prefixes for each in prefix)}
    cloud.taken6[eni.subnet] -= {each for each in eni.prefixes6 if str(each) not in kept}
    before = {str(each) for each in (eni.primary, *eni.addresses, *eni.prefixes, *eni.prefixes6)}
    configurations = tuple(each if looks.address(each) in before else _given(cloud, eni, each) for each in wanted)
    networks = [ip_network(looks.address(each)) for each in configurations]
    return replace(
        eni,
        configurations=configurations,
        addresses=tuple(n[0] for n in networks if n.prefixlen == 32 and n[0] != eni.primary),
        prefixes=tuple(n for n in networks if n.version == 4 and n.prefixlen < 32),
        prefixes6=tuple(n for n in networks if n.version == 6),
    )


def _given(cloud: Cloud, eni: Eni, configuration: Data) -> Data:
    """With an address, or a block, that nobody else has."""
    given = configuration["properties"]
    if given["privateIPAllocationMethod"] == "Static":
        _take(cloud, eni, IPv4Address(given["privateIPAddress"]))
        return configuration
    if "privateIPAddress" in given:
        raise Refusal("InvalidRequestFormat", "an address that it does not have, and that is not static")
    return _with(configuration, privateIPAddress=str(_new(cloud, eni, given)))


def _new(cloud: Cloud, eni: Eni, given: Data) -> IPv4Address | IPv4Network | IPv6Network:
    length = given.get("privateIPAddressPrefixLength")
    if given["privateIPAddressVersion"] == "IPv6":
        assert length == 80
        return cloud.take_prefixes6(eni.subnet, 1)[0]
    return cloud.take_prefixes(eni.subnet, 1)[0] if length == 28 else cloud.take(eni.subnet, 1)[0]


def _take(cloud: Cloud, eni: Eni, address: IPv4Address) -> None:
    if address not in cloud.subnets[eni.subnet].cidr:
        raise Refusal("PrivateIPAddressNotInSubnet", str(address))
    if int(address) in cloud.taken[eni.subnet]:
        raise Refusal("PrivateIPAddressInUse", f"{address} is in use")
    cloud.taken[eni.subnet].add(int(address))


DOES: Mapping[str, Callable[[Any, Data], Data]] = {
    "NetworkInterfaces_CreateOrUpdate": put,
    "VirtualMachineScaleSetVMs_Update": put_vm,
}
