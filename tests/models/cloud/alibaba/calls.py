"""The calls of Alibaba Cloud that the fake knows: what they take, refuse and need. Docs are held against this table."""

from __future__ import annotations

from collections.abc import Mapping

from tests.models.cloud.calls import ApiCall


def read(product: str, name: str, *parameters: str) -> ApiCall:
    return ApiCall(name, f"{product}:{name}", parameters, {"InvalidParameter": "a value that it refuses"})


def write(name: str, mode: str, parameters: tuple[str, ...], errors: Mapping[str, str]) -> ApiCall:
    return ApiCall(name, f"ecs:{name}", ("RegionId", *parameters), errors, mode)  # type: ignore[arg-type]


NOT_THERE = {"InvalidEniId.NotFound": "there is no such interface, or not yet"}
STATE = NOT_THERE | {"InvalidOperation.InvalidEniState": "the interface's state does not allow it"}
TOKEN = {"IdempotentFailed": "the token came with other parameters before"}
FULL = {
    "InvalidOperation.Ipv4CountExceeded": "the instance type holds no more on an interface",
    "InvalidVSwitchId.IpNotEnough": "the vSwitch has too few free addresses, or no whole prefix",
    "InvalidParameter": "addresses and prefixes, more than ten, or an interface that has the other kind",
}
ECS: tuple[ApiCall, ...] = (
    read("ecs", "DescribeInstances", "RegionId", "InstanceIds", "MaxResults", "NextToken"),
    read("ecs", "DescribeInstanceTypes", "InstanceTypes", "MaxResults", "NextToken"),
    read("ecs", "DescribeNetworkInterfaces", "RegionId", "VpcId", "Tag", "MaxResults", "NextToken"),
    read("ecs", "DescribeSecurityGroups", "RegionId", "VpcId", "MaxResults", "NextToken"),
    read("vpc", "DescribeVSwitches", "RegionId", "VpcId", "PageSize", "PageNumber"),
    write(
        "CreateNetworkInterface",
        "async",
        ("VSwitchId", "SecurityGroupIds", "InstanceType", "Description", "DeleteOnRelease", "ClientToken", "Tag",
         "SecondaryPrivateIpAddressCount", "Ipv4PrefixCount", "Ipv6PrefixCount"),
        {
            "InvalidVSwitchId.NotFound": "there is no such vSwitch",
            "InvalidSecurityGroupId.NotFound": "there is no such security group",
            "MaxEniCountExceeded": "the account's quota of interfaces is reached",
            **TOKEN,
            **FULL,
        },
    ),
    write(
        "AttachNetworkInterface",
        "async",
        ("NetworkInterfaceId", "InstanceId"),
        STATE
        | {
            "InvalidEcsId.NotFound": "there is no such instance",
            "InvalidOperation.InvalidEcsState": "the instance is neither running nor stopped",
            "InvalidOperation.AvailabilityZoneMismatch": "the interface is in another zone",
            "EniPerInstanceLimitExceeded": "the instance type holds no more interfaces",
            "InvalidOperation.Ipv4CountExceeded": "the interface has more addresses than the type holds",
        },
    ),
    write(
        "DetachNetworkInterface",
        "async",
        ("NetworkInterfaceId", "InstanceId"),
        STATE | {"InvalidEcsId.NotFound": "the interface is not this instance's"},
    ),
    write(
        "AssignPrivateIpAddresses",
        "sync",
        ("NetworkInterfaceId", "SecondaryPrivateIpAddressCount", "Ipv4PrefixCount", "PrivateIpAddress", "ClientToken"),
        STATE | TOKEN | FULL | {"InvalidIPAddress.AlreadyUsed": "an address is in use, by whomever"},
    ),
    write(
        "AssignIpv6Addresses",
        "sync",
        ("NetworkInterfaceId", "Ipv6PrefixCount", "ClientToken"),
        STATE
        | TOKEN
        | {
            "InvalidOperation.Ipv6CountExceeded": "the instance type holds no more on an interface",
            "InvalidParameter": "the vSwitch has no IPv6",
        },
    ),
    write(
        "UnassignPrivateIpAddresses",
        "sync",
        ("NetworkInterfaceId", "PrivateIpAddress", "Ipv4Prefix"),
        STATE | {"InvalidIp.IpUnassigned": "an address is the primary one, or not the interface's"},
    ),
    write("DeleteNetworkInterface", "async", ("NetworkInterfaceId",), STATE),
)  # fmt: skip
BY_NAME: Mapping[str, ApiCall] = {each.name: each for each in ECS}
# Of any call.
EVERY: Mapping[str, str] = {
    "Forbidden.RAM": "the permission is missing",
    "Throttling": "too many calls of the action in this minute",
    "UnknownParameter": "a parameter is not the call's",
    "InvalidAction.NotFound": "there is no such call",
    "InternalError": "the cloud failed: it may have been done",
}
