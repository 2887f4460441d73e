"""What looks at the fake cloud show, with the names of EC2's own model. Interfaces may be shown as they were before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tests.models.cloud.state import Eni, FakeGroup, FakeInstance, FakeSubnet, Refusal

if TYPE_CHECKING:
    from tests.models.cloud.core import Cloud

Data = Mapping[str, Any]
Seen = Mapping[str, Eni]
Values = Callable[[Any], str]


def tag_list(tags: Mapping[str, str]) -> list[Data]:
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def interface_data(cloud: Cloud, eni: Eni) -> Data:
    subnet = cloud.subnets[eni.subnet]
    addresses = [(eni.primary, True), *((each, False) for each in eni.addresses)]
    data = {
        "NetworkInterfaceId": eni.id,
        "MacAddress": eni.mac,
        "SubnetId": eni.subnet,
        "VpcId": subnet.vpc,
        "AvailabilityZone": subnet.zone,
        "PrivateIpAddress": str(eni.primary),
        "PrivateIpAddresses": [{"PrivateIpAddress": str(each), "Primary": first} for each, first in addresses],
        "Ipv4Prefixes": [{"Ipv4Prefix": str(each)} for each in eni.prefixes],
        "Ipv6Prefixes": [{"Ipv6Prefix": str(each)} for each in eni.prefixes6],
        "Status": eni.status,
        "Groups": [{"GroupId": each} for each in eni.groups],
        "TagSet": tag_list(eni.tags),
        "Description": eni.description,
        "SourceDestCheck": True,
    }
    if eni.attachment is not None:
        data["Attachment"] = {
            "AttachmentId": eni.attachment.id,
            "InstanceId": eni.attachment.instance,
            "DeviceIndex": eni.attachment.index,
            "Status": eni.attachment.status,
            "DeleteOnTermination": eni.attachment.delete_on_termination,
        }
    return data


def _instance_data(each: FakeInstance) -> Data:
    return {
        "InstanceId": each.id,
        "InstanceType": each.type,
        "Placement": {"AvailabilityZone": each.zone},
        "VpcId": each.vpc,
        "SubnetId": each.subnet,
        "SecurityGroups": [{"GroupId": group} for group in each.groups],
        "State": {"Name": each.state},
    }


def _subnet_data(cloud: Cloud, each: FakeSubnet, seen: Seen) -> Data:
    enis = [eni for eni in seen.values() if eni.subnet == each.id]
    used = sum(1 + len(eni.addresses) + 16 * len(eni.prefixes) for eni in enis)
    state: list[Data] = []
    if each.cidr6 is not None:
        state = [{"Ipv6CidrBlock": str(each.cidr6), "Ipv6CidrBlockState": {"State": "associated"}}]
    return {
        "SubnetId": each.id,
        "VpcId": each.vpc,
        "AvailabilityZone": each.zone,
        "CidrBlock": str(each.cidr),
        "AvailableIpAddressCount": max(each.cidr.num_addresses - 5 - used, 0),
        "Ipv6CidrBlockAssociationSet": state,
        "Tags": tag_list(each.tags),
    }


def _filtered(found: Iterable[Any], given: Data, values: Mapping[str, Values]) -> list[Any]:
    kept = list(found)
    for each in given.get("Filters", ()):
        name, wanted = each["Name"], each["Values"]
        if len(wanted) > 200:
            raise Refusal("FilterLimitExceeded", f"{name}: more than 200 values")
        if name.startswith("tag:"):
            kept = [one for one in kept if one.tags.get(name[4:]) in wanted]
        elif name in values:
            kept = [one for one in kept if values[name](one) in wanted]
        else:
            raise Refusal("InvalidParameterValue", f"The filter '{name}' is invalid")
    return kept


def _page(found: list[Any], given: Data, *, most: int, least: int = 5) -> tuple[list[Any], Data]:
    """At most so many objects an answer, and where to go on."""
    size, first = given.get("MaxResults", most), int(given.get("NextToken", 0))
    if not least <= size <= most:
        raise Refusal("InvalidParameterValue", f"MaxResults must be between {least} and {most}")
    rest = {"NextToken": str(first + size)} if first + size < len(found) else {}
    return found[first : first + size], rest


def instances(cloud: Cloud, seen: Seen, given: Data) -> Data:
    values = {"instance-id": lambda each: each.id, "vpc-id": lambda each: each.vpc}
    found, rest = _page(_filtered(cloud.instances.values(), given, values), given, most=1000)
    return {"Reservations": [{"Instances": [_instance_data(each)]} for each in found], **rest}


def interfaces(cloud: Cloud, seen: Seen, given: Data) -> Data:
    values: Mapping[str, Values] = {
        "vpc-id": lambda each: cloud.subnets[each.subnet].vpc,
        "subnet-id": lambda each: each.subnet,
        "status": lambda each: each.status,
        "attachment.instance-id": lambda each: each.attachment.instance if each.attachment else "",
    }
    found, rest = _page(_filtered(seen.values(), given, values), given, most=1000)
    return {"NetworkInterfaces": [interface_data(cloud, each) for each in found], **rest}


def subnets(cloud: Cloud, seen: Seen, given: Data) -> Data:
    values: Mapping[str, Values] = {"vpc-id": lambda each: each.vpc, "subnet-id": lambda each: each.id}
    found, rest = _page(_filtered(cloud.subnets.values(), given, values), given, most=1000)
    return {"Subnets": [_subnet_data(cloud, each, seen) for each in found], **rest}


def groups(cloud: Cloud, seen: Seen, given: Data) -> Data:
    values: Mapping[str, Values] = {"vpc-id": lambda each: each.vpc, "group-id": lambda each: each.id}
    found, rest = _page(_filtered(cloud.groups.values(), given, values), given, most=1000)
    return {"SecurityGroups": [_group_data(each) for each in found], **rest}


def _group_data(each: FakeGroup) -> Data:
    return {"GroupId": each.id, "GroupName": each.id, "VpcId": each.vpc, "Tags": tag_list(each.tags)}


def types(cloud: Cloud, seen: Seen, given: Data) -> Data:
    values: Mapping[str, Values] = {"instance-type": lambda each: each}
    found, rest = _page(_filtered(cloud.types, given, values), given, most=100)
    return {"InstanceTypes": [_type_data(cloud, each) for each in found], **rest}


def _type_data(cloud: Cloud, name: str) -> Data:
    each = cloud.types[name]
    card = {"NetworkCardIndex": 0, "MaximumNetworkInterfaces": each.interfaces}
    network = {
        "MaximumNetworkInterfaces": each.interfaces,
        "Ipv4AddressesPerInterface": each.ipv4,
        "Ipv6AddressesPerInterface": each.ipv6,
        "NetworkCards": [card],
    }
    return {"InstanceType": name, "Hypervisor": each.hypervisor, "BareMetal": False, "NetworkInfo": network}


LOOKS: Mapping[str, Callable[[Any, Seen, Data], Data]] = {
    "DescribeInstances": instances,
    "DescribeNetworkInterfaces": interfaces,
    "DescribeSubnets": subnets,
    "DescribeSecurityGroups": groups,
    "DescribeInstanceTypes": types,
}
