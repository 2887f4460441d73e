"""Alibaba Cloud ECS and VPC: our calls as their actions with their parameters, their answers as our values. Pure.

API versions 2014-05-26 and 2016-04-28, in RPC style. Parameters are mappings with their names; lists of values and of
tags become NAME.1, NAME.1.Key where they are sent. Nearly each bears the region besides.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from typing import Any, Literal

from cloud.backend import CloudFault, Data, Request, Send
from cloud.buckets import Rate
from cloud.calls import Assign, AssignPrefix6, Attach, Bind, Call, Create, Delete, Detach, Done, Problem, Take, Unassign
from cloud.model import CLUSTER_TAG, Api, Group, Instance, Interface, Limits, Network, Subnet, Vpc, block_order

Product = Literal["ecs", "vpc"]
VERSIONS: Mapping[Product, str] = {"ecs": "2014-05-26", "vpc": "2016-04-28"}
VPC_ACTIONS = frozenset({"DescribeVSwitches"})
NO_REGION = frozenset({"DescribeInstanceTypes"})  # the same everywhere

# Ten addresses or prefixes a call, and no more on an interface that is attached to nothing: pages of the API's
# documentation name 10, 32 and 49, and the least of them holds everywhere.
API = Api(at_once=10, tokens=True, mixes=False, reassigns=False, prefix6_each=True)
VPC = Vpc(router=-3, router6=None, metadata=(IPv4Address("100.100.100.200"),))
# Calls a minute of an account and region, as Alibaba's own plugin counts them. Others call, too: we take four fifths.
PER_MINUTE: Mapping[str, int] = {
    "CreateNetworkInterface": 500,
    "AttachNetworkInterface": 500,
    "DetachNetworkInterface": 500,
    "DeleteNetworkInterface": 500,
    "AssignPrivateIpAddresses": 400,
    "AssignIpv6Addresses": 400,
    "UnassignPrivateIpAddresses": 400,
}
RATES: Mapping[str, Rate] = {action: Rate(0.8 * most / 60, most // 20) for action, most in PER_MINUTE.items()}

PAGE, INTERFACES, SWITCHES = 100, 500, 50  # objects of an answer
TYPES = 10  # instance types of a question
PROBLEMS: Mapping[str, Problem] = {
    "InvalidVSwitchId.IpNotEnough": "no-addresses",
    "QuotaExceeded.PrivateIpAddress": "no-addresses",
    "EniPerInstanceLimitExceeded": "limit",
    "MaxEniCountExceeded": "limit",
    "SecurityGroupInstanceLimitExceed": "limit",
    "InvalidOperation.Ipv4CountExceeded": "limit",
    "InvalidOperation.Ipv6CountExceeded": "limit",
    "Forbidden.RAM": "denied",
    "Forbidden": "denied",
    "NoPermission": "denied",
    "InvalidAccessKeyId.NotFound": "denied",
    "InvalidAccessKeyId.Inactive": "denied",
    "InvalidSecurityToken.Expired": "denied",
    "InvalidSecurityToken.Malformed": "denied",
    "InvalidSecurityToken.MismatchWithAccessKey": "denied",
    "IncompleteSignature": "denied",
    "SignatureDoesNotMatch": "denied",
    "InvalidTimeStamp.Expired": "denied",
    "InvalidEniId.NotFound": "gone",
    "InvalidEcsId.NotFound": "gone",
    "InvalidVSwitchId.NotFound": "gone",
    "InvalidIp.IpUnassigned": "gone",
    "InvalidIPAddress.AlreadyUsed": "not-now",
    "InvalidOperation.InvalidEniState": "not-now",
    "InvalidOperation.InvalidEcsState": "not-now",
    "Operation.Conflict": "not-now",
}


def product(action: str) -> Product:
    return "vpc" if action in VPC_ACTIONS else "ecs"


def in_region(action: str, parameters: Data, region: str) -> Data:
    return parameters if action in NO_REGION else {**parameters, "RegionId": region}


def request(call: Call) -> Request:
    """The action, and what it is told. An interface goes with its instance from its creation: nothing is bound."""
    match call:
        case Create():
            return "CreateNetworkInterface", _creation(call)
        case Attach():
            return "AttachNetworkInterface", {"NetworkInterfaceId": call.interface, "InstanceId": call.instance}
        case Assign():
            count = "Ipv4PrefixCount" if call.prefixes else "SecondaryPrivateIpAddressCount"
            parameters = {"NetworkInterfaceId": call.interface, count: call.count, "ClientToken": call.token}
            return "AssignPrivateIpAddresses", parameters
        case AssignPrefix6():
            parameters = {"NetworkInterfaceId": call.interface, "Ipv6PrefixCount": 1, "ClientToken": call.token}
            return "AssignIpv6Addresses", parameters
        case Unassign():
            return _unassignment(call)
        case Detach():
            return "DetachNetworkInterface", {"NetworkInterfaceId": call.interface, "InstanceId": call.instance}
        case Delete():
            return "DeleteNetworkInterface", {"NetworkInterfaceId": call.interface}
        case Take():
            named = [str(each) for each in call.addresses]
            return "AssignPrivateIpAddresses", {"NetworkInterfaceId": call.interface, "PrivateIpAddress": named}
        case Bind():
            raise NotImplementedError(f"{call}: never planned for Alibaba Cloud")


def _creation(call: Create) -> Data:
    count = "Ipv4PrefixCount" if call.prefixes else "SecondaryPrivateIpAddressCount"
    return {
        "VSwitchId": call.subnet,
        "SecurityGroupIds": [*call.groups],
        "InstanceType": "Secondary",
        "Description": "pods (routerd)",
        "DeleteOnRelease": True,
        "ClientToken": call.token,
        "Tag": [{"Key": key, "Value": value} for key, value in call.tags],
        **({count: call.count} if call.count else {}),
        **({"Ipv6PrefixCount": 1} if call.prefix6 else {}),
    }


def _unassignment(call: Unassign) -> Request:
    single = [str(each.network_address) for each in call.blocks if each.prefixlen == 32]
    prefixes = [str(each) for each in call.blocks if each.prefixlen < 32]
    return "UnassignPrivateIpAddresses", {
        "NetworkInterfaceId": call.interface,
        **({"PrivateIpAddress": single} if single else {}),
        **({"Ipv4Prefix": prefixes} if prefixes else {}),
    }


def done(call: Call, answer: Data) -> Done:
    """What an answer says that was given."""
    match call:
        case Create():
            return Done(str(answer["NetworkInterfaceId"]))
        case Assign():
            given = answer["AssignedPrivateIpAddressesSet"]
            blocks = (*_list(given, "PrivateIpSet", "PrivateIpAddress"), *_list(given, "Ipv4PrefixSet", "Ipv4Prefixes"))
            return Done(call.interface, tuple(map(ip_network, blocks)))
        case AssignPrefix6():
            return Done(call.interface, tuple(map(ip_network, _list(answer, "Ipv6PrefixSets", "Ipv6Prefix"))))
    return Done()


# --- looks


def _list(answer: Data, wrapper: str, key: str) -> list[Any]:
    """Lists come in a wrapper of their own, which may be missing."""
    return list((answer.get(wrapper) or {}).get(key) or ())


def pages(send: Send, action: str, parameters: Data, key: tuple[str, str], size: int = PAGE) -> Iterator[Data]:
    """All objects of a look, page by page. Raises CloudFault."""
    token: Data = {}
    while True:
        answer = send(action, {**parameters, "MaxResults": size, **token})
        yield from _list(answer, *key)
        if not answer.get("NextToken"):
            return
        token = {"NextToken": answer["NextToken"]}


def look_at_instances(send: Send, wanted: Iterable[str]) -> dict[str, Instance]:
    """An id that is not there is no error."""
    names = sorted(wanted)
    found: dict[str, Instance] = {}
    for first in range(0, len(names), PAGE):
        parameters = {"InstanceIds": json.dumps(names[first : first + PAGE])}
        answer = pages(send, "DescribeInstances", parameters, ("Instances", "Instance"))
        found |= {each["InstanceId"]: _instance(each) for each in answer}
    return found


def _instance(each: Data) -> Instance:
    groups = tuple(sorted(_list(each, "SecurityGroupIds", "SecurityGroupId")))
    place, running = each["VpcAttributes"], each["Status"] == "Running"
    return Instance(
        each["InstanceId"], each["InstanceType"], each["ZoneId"], place["VpcId"], place["VSwitchId"], groups, running
    )


def look_at_interfaces(send: Send, vpcs: Collection[str], cluster: str) -> dict[str, Interface]:
    """Members of a trunk are left out: an instance has room of its own for them."""
    ours: list[Data] = [{"Tag": [{"Key": CLUSTER_TAG, "Value": cluster}]}]
    asked = [{"VpcId": vpc} for vpc in sorted(vpcs)] or ours
    key = ("NetworkInterfaceSets", "NetworkInterfaceSet")
    found = [
        each for given in asked for each in pages(send, "DescribeNetworkInterfaces", given, key, INTERFACES)
        if each.get("Type") != "Member"
    ]  # fmt: skip
    return {each["NetworkInterfaceId"]: interface(each, index) for each, index in _numbered(found)}


def _numbered(found: list[Data]) -> Iterator[tuple[Data, int]]:
    """With an index of the device: 0 is the primary one, and the others of an instance count from 1, the oldest first.

    ECS has none that holds, and nothing rests on it but that each has its own.
    """
    last: dict[str, int] = {}
    for each in sorted(found, key=lambda each: (each.get("CreationTime", ""), each["NetworkInterfaceId"])):
        name = each.get("InstanceId", "")
        if each.get("Type") == "Primary":
            yield each, 0
        elif not name:
            yield each, -1
        else:
            last[name] = last.get(name, 0) + 1
            yield each, last[name]


STATUSES = {"Available": "available", "InUse": "in-use", "Attaching": "attaching", "Detaching": "detaching"}


def interface(each: Data, index: int) -> Interface:
    standard = each.get("NetworkInterfaceTrafficMode") in (None, "", "Standard")
    return Interface(
        id=each["NetworkInterfaceId"],
        mac=each.get("MacAddress", ""),
        subnet=each["VSwitchId"],
        primary=IPv4Address(each["PrivateIpAddress"]),
        status=STATUSES.get(each["Status"], str(each["Status"]).lower()),
        instance=each.get("InstanceId", ""),
        index=index,
        goes_with_instance=bool(each.get("DeleteOnRelease")),
        blocks=tuple(sorted(_blocks(each), key=block_order)),
        plain=standard and each.get("Type") in ("Primary", "Secondary"),
        groups=tuple(sorted(_list(each, "SecurityGroupIds", "SecurityGroupId"))),
        tags=_tags(each, "TagKey", "TagValue"),
    )


def _blocks(each: Data) -> Iterator[Network]:
    for address in _list(each, "PrivateIpSets", "PrivateIpSet"):
        if not address.get("Primary"):
            yield IPv4Network(address["PrivateIpAddress"])
    for prefix in _list(each, "Ipv4PrefixSets", "Ipv4PrefixSet"):
        yield IPv4Network(prefix["Ipv4Prefix"])
    for prefix in _list(each, "Ipv6PrefixSets", "Ipv6PrefixSet"):
        yield IPv6Network(prefix["Ipv6Prefix"])


def look_at_subnets(send: Send, vpcs: Iterable[str]) -> dict[str, Subnet]:
    """VSwitches, which VPC shows by number of page."""
    found: dict[str, Subnet] = {}
    for vpc in sorted(vpcs):
        number = 1
        while True:
            given = {"VpcId": vpc, "PageSize": SWITCHES, "PageNumber": number}
            answer = send("DescribeVSwitches", given)
            shown = _list(answer, "VSwitches", "VSwitch")
            found |= {each["VSwitchId"]: _subnet(each) for each in shown}
            if not shown or number * SWITCHES >= answer["TotalCount"]:
                break
            number += 1
    return found


def _subnet(each: Data) -> Subnet:
    return Subnet(
        each["VSwitchId"],
        each["VpcId"],
        each["ZoneId"],
        IPv4Network(each["CidrBlock"]),
        each["AvailableIpAddressCount"],
        IPv6Network(each["Ipv6CidrBlock"]) if each.get("Ipv6CidrBlock") else None,
        _tags(each, "Key", "Value"),
    )


def look_at_groups(send: Send, vpcs: Iterable[str]) -> dict[str, Group]:
    found: dict[str, Group] = {}
    for vpc in sorted(vpcs):
        answer = pages(send, "DescribeSecurityGroups", {"VpcId": vpc}, ("SecurityGroups", "SecurityGroup"))
        found |= {each["SecurityGroupId"]: _group(each) for each in answer}
    return found


def _group(each: Data) -> Group:
    return Group(each["SecurityGroupId"], each["VpcId"], _tags(each, "TagKey", "TagValue"))


def look_at_limits(send: Send, types: Iterable[str]) -> dict[str, Limits]:
    """A type that ECS does not know is no error, and has no limits here."""
    names = sorted(types)
    found: dict[str, Limits] = {}
    for first in range(0, len(names), TYPES):
        parameters = {"InstanceTypes": names[first : first + TYPES]}
        answer = pages(send, "DescribeInstanceTypes", parameters, ("InstanceTypes", "InstanceType"))
        found |= {each["InstanceTypeId"]: _limits(each) for each in answer}
    return found


def _limits(each: Data) -> Limits:
    """Members of a trunk, which EniTotalQuantity counts, are not ours."""
    return Limits(
        each["EniQuantity"], each["EniPrivateIpAddressQuantity"], each.get("EniIpv6AddressQuantity", 0), prefixes=True
    )


def _tags(each: Data, key: str, value: str) -> dict[str, str]:
    return {tag[key]: tag.get(value, "") for tag in _list(each, "Tags", "Tag")}


def problem(code: str, parameters: Data) -> Problem:
    """The same code says that a vSwitch has no address and that it has no whole prefix: it depends on the question."""
    if code.startswith("Throttling"):
        return "throttled"
    found = PROBLEMS.get(code, "other")
    return "no-prefixes" if found == "no-addresses" and "Ipv4PrefixCount" in parameters else found


def fault(code: str, message: str, parameters: Data) -> CloudFault:
    return CloudFault(problem(code, parameters), code, message)
