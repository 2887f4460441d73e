"""The calls that the fake cloud knows: the one table of what they take, refuse and need. Docs are held against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

READ_ERRORS: Mapping[str, str] = {"InvalidParameterValue": "a filter that it does not have"}


@dataclass(frozen=True, slots=True)
class ApiCall:
    name: str
    permission: str
    parameters: tuple[str, ...]  # any other is an error
    errors: Mapping[str, str] = field(default_factory=dict)  # by code: when
    mode: Literal["read", "sync", "async"] = "read"  # async = what it says is so some seconds later
    also: Mapping[str, str] = field(default_factory=dict)  # by parameter: the permission that it needs besides


def read(name: str, *parameters: str) -> ApiCall:
    return ApiCall(name, f"ec2:{name}", ("Filters", "MaxResults", "NextToken", *parameters), READ_ERRORS)


NOT_THERE = {"InvalidNetworkInterfaceID.NotFound": "there is no such interface, or not yet"}
FULL = {
    "PrivateIpAddressLimitExceeded": "the instance type holds no more on an interface",
    "InsufficientFreeAddressesInSubnet": "the subnet has too few free addresses",
    "InsufficientCidrBlocks": "the subnet has no whole prefix left",
}
EC2: tuple[ApiCall, ...] = (
    read("DescribeInstances"),
    read("DescribeInstanceTypes"),
    read("DescribeNetworkInterfaces"),
    read("DescribeSubnets"),
    read("DescribeSecurityGroups"),
    ApiCall(
        "CreateNetworkInterface",
        "ec2:CreateNetworkInterface",
        (
            "SubnetId", "Groups", "Description", "ClientToken", "TagSpecifications", "SecondaryPrivateIpAddressCount",
            "Ipv4PrefixCount", "Ipv6PrefixCount",
        ),
        {
            "InvalidSubnetID.NotFound": "there is no such subnet",
            "InvalidGroup.NotFound": "there is no such security group",
            "IdempotentParameterMismatch": "the token came with other parameters before",
            "NetworkInterfaceLimitExceeded": "the account's quota of interfaces is reached",
            **FULL,
        },
        "sync",
        {"TagSpecifications": "ec2:CreateTags"},
    ),
    ApiCall(
        "AttachNetworkInterface",
        "ec2:AttachNetworkInterface",
        ("NetworkInterfaceId", "InstanceId", "DeviceIndex"),
        NOT_THERE
        | {
            "InvalidInstanceID.NotFound": "there is no such instance",
            "IncorrectState": "the instance is neither running nor stopped",
            "InvalidParameterValue": "the index is taken, the interface is in use, or in another zone",
            "AttachmentLimitExceeded": "the instance type holds no more interfaces",
            "PrivateIpAddressLimitExceeded": "the interface has more addresses than the type holds",
        },
        "async",
    ),
    ApiCall(
        "DetachNetworkInterface",
        "ec2:DetachNetworkInterface",
        ("AttachmentId",),
        {
            "InvalidAttachmentID.NotFound": "there is no such attachment",
            "IncorrectState": "it is the primary interface's, or is not attached (any more)",
        },
        "async",
    ),
    ApiCall(
        "ModifyNetworkInterfaceAttribute",
        "ec2:ModifyNetworkInterfaceAttribute",
        ("NetworkInterfaceId", "Attachment"),
        NOT_THERE | {"InvalidAttachmentID.NotFound": "the attachment is not this interface's"},
        "sync",
    ),
    ApiCall(
        "AssignPrivateIpAddresses",
        "ec2:AssignPrivateIpAddresses",
        ("NetworkInterfaceId", "SecondaryPrivateIpAddressCount", "Ipv4PrefixCount", "PrivateIpAddresses",
         "AllowReassignment"),
        NOT_THERE
        | FULL
        | {
            "InvalidParameterValue": "an address is in use and may not be reassigned, or is not of the subnet",
        },
        "sync",
    ),
    ApiCall(
        "AssignIpv6Addresses",
        "ec2:AssignIpv6Addresses",
        ("NetworkInterfaceId", "Ipv6PrefixCount"),
        NOT_THERE | {"InvalidParameterValue": "the subnet has no IPv6", **FULL},
        "sync",
    ),
    ApiCall(
        "UnassignPrivateIpAddresses",
        "ec2:UnassignPrivateIpAddresses",
        ("NetworkInterfaceId", "PrivateIpAddresses", "Ipv4Prefixes"),
        NOT_THERE | {"InvalidParameterValue": "an address is the primary one, or not the interface's"},
        "sync",
    ),
    ApiCall(
        "DeleteNetworkInterface",
        "ec2:DeleteNetworkInterface",
        ("NetworkInterfaceId",),
        NOT_THERE | {"InvalidParameterValue": "it is in use"},
        "sync",
    ),
)  # fmt: skip
BY_NAME: Mapping[str, ApiCall] = {each.name: each for each in EC2}
# Of any call.
EVERY: Mapping[str, str] = {
    "UnauthorizedOperation": "the permission is missing",
    "RequestLimitExceeded": "the bucket of the action is empty",
    "UnknownParameter": "a parameter is not the call's",
    "InvalidAction": "there is no such call",
    "InternalError": "the cloud failed: it may have been done",
}
