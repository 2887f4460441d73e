"""What a written network interface does to the state of the fake Azure: preconditions first, then the change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Any

from tests.models.cloud.azure import looks, names
from tests.models.cloud.azure.calls import BY_NAME
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
    if given.get("etag", looks.etag(eni)) != looks.etag(eni):
        raise Refusal("PreconditionFailed", f"{name} has changed", 412)
    if eni.changing == "Updating":
        raise Refusal("AnotherOperationInProgress", f"{name} is being changed", 409)
    wanted = [_plain(each) for each in body["properties"]["ipConfigurations"]]
    cloud.permit(*_joined(body["properties"], wanted))
    _judged(cloud, eni, body, wanted)
    taken, taken6 = set(cloud.taken[eni.subnet]), set(cloud.taken6[eni.subnet])
    try:
        eni = _written(cloud, eni, wanted)
    except Refusal:
        cloud.taken[eni.subnet], cloud.taken6[eni.subnet] = taken, taken6
        raise
    settings = {key: value for key, value in body["properties"].items() if key not in READ_ONLY}
    cloud.put(replace(eni, settings=settings, tags=body.get("tags", {}), changing="Updating"))
    cloud.later(UPDATING, lambda: _settled(cloud, name))
    return looks.nic_data(cloud, cloud.enis[name])


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
    yield from (need for key, need in BY_NAME["NetworkInterfaces_CreateOrUpdate"].also.items() if key in has)


def _judged(cloud: Cloud, eni: Eni, body: Data, wanted: list[Data]) -> None:
    called = [each["name"] for each in wanted]
    primaries = [each for each in wanted if each["properties"].get("primary")]
    subnets = {each["properties"]["subnet"]["id"].lower() for each in wanted}
    groups = [each["properties"].get("applicationSecurityGroups", []) for each in wanted]
    if len(called) > len(set(called)) or len(primaries) != 1 or looks.address(primaries[0]) != str(eni.primary):
        raise Refusal("InvalidRequestFormat", "names are not unique, or the primary configuration is another")
    if body["location"] != names.LOCATION or any(each != groups[0] for each in groups):
        raise Refusal("InvalidRequestFormat", "location, or application security groups that are not the same for all")
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
    return {"name": configuration["name"], "properties": {**given, "privateIPAddress": str(_new(cloud, eni, given))}}


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


DOES: Mapping[str, Callable[[Any, Data], Data]] = {"NetworkInterfaces_CreateOrUpdate": put}
