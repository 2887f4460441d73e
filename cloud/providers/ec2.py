"""Amazon EC2: our calls as its actions with their parameters, its answers as our values. Pure; API 2016-11-15.

Parameters and answers are mappings with the names of EC2's own model, as boto3 takes and gives them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network

from cloud.backend import CloudFault, Data, Request, Send
from cloud.calls import (
    Assign,
    AssignPrefix6,
    Attach,
    Bind,
    Call,
    Create,
    Delete,
    Detach,
    Done,
    Problem,
    Take,
    Unassign,
)
from cloud.model import CLUSTER_TAG, Group, Instance, Interface, Limits, Network, Subnet, block_order

PAGE = 1000  # objects of an answer; unpaginated looks at large accounts are refused (OperationNotPermitted)
VALUES = 200  # of a filter

PROBLEMS: Mapping[str, Problem] = {
    "InsufficientFreeAddressesInSubnet": "no-addresses",
    "InsufficientCidrBlocks": "no-prefixes",
    "PrivateIpAddressLimitExceeded": "limit",
    "AttachmentLimitExceeded": "limit",
    "NetworkInterfaceLimitExceeded": "limit",
    "RequestLimitExceeded": "throttled",
    "UnauthorizedOperation": "denied",
    "AccessDenied": "denied",  # of STS, which gives the role's credentials
    "AuthFailure": "denied",
    "ExpiredToken": "denied",
    "RequestExpired": "denied",
    "InvalidClientTokenId": "denied",
    "SignatureDoesNotMatch": "denied",
    "InvalidNetworkInterfaceID.NotFound": "gone",
    "InvalidNetworkInterfaceId.NotFound": "gone",
    "InvalidInstanceID.NotFound": "gone",
    "InvalidSubnetID.NotFound": "gone",
    "InvalidAttachmentID.NotFound": "gone",
    "IncorrectState": "not-now",
    "IncorrectInstanceState": "not-now",
    "InvalidParameterValue": "not-now",
}


def request(call: Call) -> Request:
    """The action, and what it is told."""
    match call:
        case Create():
            return "CreateNetworkInterface", _creation(call)
        case Attach():
            return "AttachNetworkInterface", {
                "NetworkInterfaceId": call.interface,
                "InstanceId": call.instance,
                "DeviceIndex": call.index,
            }
        case Bind():
            attachment = {"AttachmentId": call.attachment, "DeleteOnTermination": True}
            parameters = {"NetworkInterfaceId": call.interface, "Attachment": attachment}
            return "ModifyNetworkInterfaceAttribute", parameters
        case Assign():
            count = "Ipv4PrefixCount" if call.prefixes else "SecondaryPrivateIpAddressCount"
            return "AssignPrivateIpAddresses", {"NetworkInterfaceId": call.interface, count: call.count}
        case AssignPrefix6():
            return "AssignIpv6Addresses", {"NetworkInterfaceId": call.interface, "Ipv6PrefixCount": 1}
        case Take():
            return "AssignPrivateIpAddresses", {
                "NetworkInterfaceId": call.interface,
                "PrivateIpAddresses": [str(each) for each in call.addresses],
                "AllowReassignment": True,
            }
        case Unassign():
            return _unassignment(call)
        case Detach():
            return "DetachNetworkInterface", {"AttachmentId": call.attachment}
        case Delete():
            return "DeleteNetworkInterface", {"NetworkInterfaceId": call.interface}


def _creation(call: Create) -> Data:
    count = "Ipv4PrefixCount" if call.prefixes else "SecondaryPrivateIpAddressCount"
    tags = [{"Key": key, "Value": value} for key, value in call.tags]
    return {
        "SubnetId": call.subnet,
        "Groups": [*call.groups],
        "Description": "pods (routerd)",
        "ClientToken": call.token,
        "TagSpecifications": [{"ResourceType": "network-interface", "Tags": tags}],
        **({count: call.count} if call.count else {}),
        **({"Ipv6PrefixCount": 1} if call.prefix6 else {}),
    }


def _unassignment(call: Unassign) -> Request:
    single = [str(each.network_address) for each in call.blocks if each.prefixlen == 32]
    prefixes = [str(each) for each in call.blocks if each.prefixlen < 32]
    return "UnassignPrivateIpAddresses", {
        "NetworkInterfaceId": call.interface,
        **({"PrivateIpAddresses": single} if single else {}),
        **({"Ipv4Prefixes": prefixes} if prefixes else {}),
    }


def done(call: Call, answer: Data) -> Done:
    """What an answer says that was given."""
    match call:
        case Create():
            return Done(str(answer["NetworkInterface"]["NetworkInterfaceId"]))
        case Assign():
            single = [each["PrivateIpAddress"] for each in answer.get("AssignedPrivateIpAddresses", ())]
            prefixes = [each["Ipv4Prefix"] for each in answer.get("AssignedIpv4Prefixes", ())]
            return Done(call.interface, tuple(map(ip_network, (*single, *prefixes))))
        case AssignPrefix6():
            return Done(call.interface, tuple(map(ip_network, answer.get("AssignedIpv6Prefixes", ()))))
    return Done()


# --- looks


def pages(send: Send, action: str, parameters: Data, key: str, *, size: int = PAGE) -> Iterator[Data]:
    """All objects of a look, page by page. Raises CloudFault."""
    token: Data = {}
    while True:
        answer = send(action, {**parameters, "MaxResults": size, **token})
        yield from answer.get(key, ())
        if not answer.get("NextToken"):
            return
        token = {"NextToken": answer["NextToken"]}


def look_at_instances(send: Send, wanted: Iterable[str]) -> dict[str, Instance]:
    """By filter: an id that is not there is no error so."""
    names = sorted(wanted)
    found: dict[str, Instance] = {}
    for first in range(0, len(names), VALUES):
        filters = [{"Name": "instance-id", "Values": names[first : first + VALUES]}]
        for reservation in pages(send, "DescribeInstances", {"Filters": filters}, "Reservations"):
            found |= {each["InstanceId"]: _instance(each) for each in reservation["Instances"] if _is_there(each)}
    return found


def _is_there(each: Data) -> bool:
    return each["State"]["Name"] not in ("terminated", "shutting-down")


def _instance(each: Data) -> Instance:
    groups = tuple(sorted(group["GroupId"] for group in each.get("SecurityGroups", ())))
    zone, running = each["Placement"]["AvailabilityZone"], each["State"]["Name"] == "running"
    return Instance(each["InstanceId"], each["InstanceType"], zone, each["VpcId"], each["SubnetId"], groups, running)


def look_at_interfaces(send: Send, vpcs: Collection[str], cluster: str) -> dict[str, Interface]:
    """See `cloud.providers.account.Dialect`."""
    ours = {"Filters": [{"Name": f"tag:{CLUSTER_TAG}", "Values": [cluster]}]}
    found = pages(send, "DescribeNetworkInterfaces", _of_vpcs(vpcs) if vpcs else ours, "NetworkInterfaces")
    return {each["NetworkInterfaceId"]: interface(each) for each in found}


def interface(each: Data) -> Interface:
    attachment = each.get("Attachment") or {}
    return Interface(
        id=each["NetworkInterfaceId"],
        mac=each.get("MacAddress", ""),
        subnet=each["SubnetId"],
        primary=IPv4Address(each["PrivateIpAddress"]),
        status=_status(each["Status"], attachment),
        instance=attachment.get("InstanceId", "") if attachment.get("Status") != "detached" else "",
        index=attachment.get("DeviceIndex", -1),
        attachment=attachment.get("AttachmentId", ""),
        goes_with_instance=attachment.get("DeleteOnTermination", False),
        blocks=tuple(sorted(_blocks(each), key=block_order)),
        groups=tuple(sorted(group["GroupId"] for group in each.get("Groups", ()))),
        tags=_tags(each.get("TagSet", ())),
    )


def _status(status: str, attachment: Data) -> str:
    """`in-use` is said of an interface as soon as its attachment begins."""
    return str(attachment["Status"]) if attachment.get("Status") in ("attaching", "detaching") else status


def _blocks(each: Data) -> Iterator[Network]:
    for address in each.get("PrivateIpAddresses", ()):
        if not address.get("Primary"):
            yield IPv4Network(address["PrivateIpAddress"])
    for prefix in each.get("Ipv4Prefixes", ()):
        yield IPv4Network(prefix["Ipv4Prefix"])
    for prefix in each.get("Ipv6Prefixes", ()):
        yield IPv6Network(prefix["Ipv6Prefix"])


def look_at_subnets(send: Send, vpcs: Iterable[str]) -> dict[str, Subnet]:
    return {each["SubnetId"]: _subnet(each) for each in pages(send, "DescribeSubnets", _of_vpcs(vpcs), "Subnets")}


def _subnet(each: Data) -> Subnet:
    associated = (
        item["Ipv6CidrBlock"]
        for item in each.get("Ipv6CidrBlockAssociationSet", ())
        if item["Ipv6CidrBlockState"]["State"] == "associated"
    )
    cidr6 = next(map(IPv6Network, associated), None)
    return Subnet(
        each["SubnetId"],
        each["VpcId"],
        each["AvailabilityZone"],
        IPv4Network(each["CidrBlock"]),
        each["AvailableIpAddressCount"],
        cidr6,
        _tags(each.get("Tags", ())),
    )


def look_at_groups(send: Send, vpcs: Iterable[str]) -> dict[str, Group]:
    found = pages(send, "DescribeSecurityGroups", _of_vpcs(vpcs), "SecurityGroups")
    return {each["GroupId"]: Group(each["GroupId"], each["VpcId"], _tags(each.get("Tags", ()))) for each in found}


def look_at_limits(send: Send, types: Iterable[str]) -> dict[str, Limits]:
    """By filter: a type that EC2 does not know is no error so, and has no limits here."""
    names = sorted(types)
    found: dict[str, Limits] = {}
    for first in range(0, len(names), VALUES):
        filters = [{"Name": "instance-type", "Values": names[first : first + VALUES]}]
        answer = pages(send, "DescribeInstanceTypes", {"Filters": filters}, "InstanceTypes", size=100)
        found |= {each["InstanceType"]: _limits(each) for each in answer}
    return found


def _limits(each: Data) -> Limits:
    network = each["NetworkInfo"]
    nitro = each.get("Hypervisor") == "nitro" or bool(each.get("BareMetal"))
    # Interfaces of further network cards need another NetworkCardIndex: those of the first card count.
    first = next((card for card in network.get("NetworkCards", ()) if card["NetworkCardIndex"] == 0), network)
    most = first["MaximumNetworkInterfaces"]
    return Limits(most, network["Ipv4AddressesPerInterface"], network.get("Ipv6AddressesPerInterface", 0), nitro)


def _of_vpcs(vpcs: Iterable[str]) -> Data:
    return {"Filters": [{"Name": "vpc-id", "Values": sorted(vpcs)}]}


def _tags(found: Iterable[Data]) -> dict[str, str]:
    return {each["Key"]: each["Value"] for each in found}


def problem(code: str) -> Problem:
    return PROBLEMS.get(code, "other")


def fault(code: str, message: str) -> CloudFault:
    return CloudFault(problem(code), code, message)
