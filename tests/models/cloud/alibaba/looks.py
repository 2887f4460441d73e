"""What looks at the fake cloud show, with the names of ECS and VPC. Interfaces may be shown as they were before."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tests.models.cloud.state import Eni, FakeGroup, FakeInstance, FakeSubnet, Refusal

if TYPE_CHECKING:
    from tests.models.cloud.core import Cloud

Data = Mapping[str, Any]
Seen = Mapping[str, Eni]


def status(eni: Eni) -> str:
    if eni.changing or eni.attachment is None:
        return eni.changing or "Available"
    return "InUse" if eni.attachment.status == "attached" else eni.attachment.status.capitalize()


def _tags(tags: Mapping[str, str], key: str, value: str) -> Data:
    return {"Tag": [{key: name, value: text} for name, text in sorted(tags.items())]}


def created_data(cloud: Cloud, eni: Eni) -> Data:
    """Of its creation: the same but for what it is only later."""
    addresses = [(eni.primary, True), *((each, False) for each in eni.addresses)]
    return {
        "NetworkInterfaceId": eni.id,
        "MacAddress": eni.mac,
        "VSwitchId": eni.subnet,
        "VpcId": cloud.subnets[eni.subnet].vpc,
        "ZoneId": cloud.subnets[eni.subnet].zone,
        "PrivateIpAddress": str(eni.primary),
        "PrivateIpSets": {
            "PrivateIpSet": [{"PrivateIpAddress": str(each), "Primary": first} for each, first in addresses]
        },
        "Ipv4PrefixSets": {"Ipv4PrefixSet": [{"Ipv4Prefix": str(each)} for each in eni.prefixes]},
        "Ipv6PrefixSets": {"Ipv6PrefixSet": [{"Ipv6Prefix": str(each)} for each in eni.prefixes6]},
        "Status": status(eni),
        "Type": "Primary" if eni.attachment and eni.attachment.index == 0 else eni.kind,
        "SecurityGroupIds": {"SecurityGroupId": [*eni.groups]},
        "Tags": _tags(eni.tags, "TagKey", "TagValue"),
        "Description": eni.description,
    }


def _interface_data(cloud: Cloud, eni: Eni) -> Data:
    goes = eni.attachment.delete_on_termination if eni.attachment else eni.goes_with_instance
    return {
        **created_data(cloud, eni),
        "InstanceId": eni.attachment.instance if eni.attachment else "",
        "CreationTime": datetime.fromtimestamp(eni.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "DeleteOnRelease": goes,
        "NetworkInterfaceTrafficMode": eni.traffic,
    }


def _page(found: list[Any], given: Data, *, most: int, least: int = 1) -> tuple[list[Any], Data]:
    """At most so many objects an answer, and where to go on."""
    size, first = given.get("MaxResults", 10), int(given.get("NextToken") or 0)
    if not least <= size <= most:
        raise Refusal("InvalidParameter", f"MaxResults must be between {least} and {most}")
    return found[first : first + size], {"NextToken": str(first + size) if first + size < len(found) else ""}


def instances(cloud: Cloud, seen: Seen, given: Data) -> Data:
    names = json.loads(given["InstanceIds"])
    if len(names) > 100:
        raise Refusal("InvalidParameter", "more than 100 instances")
    there = [each for each in cloud.instances.values() if each.id in names and each.state != "terminated"]
    found, rest = _page(there, given, most=100)
    return {"Instances": {"Instance": [_instance_data(each) for each in found]}, **rest}


def _instance_data(each: FakeInstance) -> Data:
    return {
        "InstanceId": each.id,
        "InstanceType": each.type,
        "ZoneId": each.zone,
        "VpcAttributes": {"VpcId": each.vpc, "VSwitchId": each.subnet},
        "SecurityGroupIds": {"SecurityGroupId": [*each.groups]},
        "Status": each.state.capitalize(),
    }


def interfaces(cloud: Cloud, seen: Seen, given: Data) -> Data:
    vpc, tags = given.get("VpcId"), {each["Key"]: each["Value"] for each in given.get("Tag", ())}
    there = [
        each for each in seen.values()
        if vpc in (None, cloud.subnets[each.subnet].vpc) and tags.items() <= each.tags.items()
    ]  # fmt: skip
    found, rest = _page(there, given, most=500, least=10)
    return {"NetworkInterfaceSets": {"NetworkInterfaceSet": [_interface_data(cloud, each) for each in found]}, **rest}


def switches(cloud: Cloud, seen: Seen, given: Data) -> Data:
    size, number = given.get("PageSize", 10), given.get("PageNumber", 1)
    if not 1 <= size <= 50:
        raise Refusal("InvalidParameter", "PageSize must be between 1 and 50")
    there = [each for each in cloud.subnets.values() if each.vpc == given["VpcId"]]
    found = there[(number - 1) * size : number * size]
    shown = [_switch_data(cloud, each, seen) for each in found]
    return {"VSwitches": {"VSwitch": shown}, "TotalCount": len(there), "PageNumber": number, "PageSize": size}


def _switch_data(cloud: Cloud, each: FakeSubnet, seen: Seen) -> Data:
    enis = [eni for eni in seen.values() if eni.subnet == each.id]
    used = sum(1 + len(eni.addresses) + 16 * len(eni.prefixes) for eni in enis)
    return {
        "VSwitchId": each.id,
        "VpcId": each.vpc,
        "ZoneId": each.zone,
        "CidrBlock": str(each.cidr),
        "Ipv6CidrBlock": str(each.cidr6 or ""),
        "AvailableIpAddressCount": max(each.cidr.num_addresses - sum(cloud.front.reserved) - used, 0),
        "Tags": _tags(each.tags, "Key", "Value"),
    }


def groups(cloud: Cloud, seen: Seen, given: Data) -> Data:
    found, rest = _page([each for each in cloud.groups.values() if each.vpc == given["VpcId"]], given, most=100)
    return {"SecurityGroups": {"SecurityGroup": [_group_data(each) for each in found]}, **rest}


def _group_data(each: FakeGroup) -> Data:
    return {"SecurityGroupId": each.id, "VpcId": each.vpc, "Tags": _tags(each.tags, "TagKey", "TagValue")}


def types(cloud: Cloud, seen: Seen, given: Data) -> Data:
    names = given["InstanceTypes"]
    if len(names) > 10:
        raise Refusal("InvalidParameter", "more than 10 instance types")
    found, rest = _page([each for each in cloud.types if each in names], given, most=100)
    return {"InstanceTypes": {"InstanceType": [_type_data(cloud, each) for each in found]}, **rest}


def _type_data(cloud: Cloud, name: str) -> Data:
    each = cloud.types[name]
    return {
        "InstanceTypeId": name,
        "EniQuantity": each.interfaces,
        "EniTotalQuantity": each.interfaces + 10,
        "EniPrivateIpAddressQuantity": each.ipv4,
        "EniIpv6AddressQuantity": each.ipv6,
        "EniTrunkSupported": True,
    }


LOOKS: Mapping[str, Callable[[Any, Seen, Data], Data]] = {
    "DescribeInstances": instances,
    "DescribeNetworkInterfaces": interfaces,
    "DescribeVSwitches": switches,
    "DescribeSecurityGroups": groups,
    "DescribeInstanceTypes": types,
}
