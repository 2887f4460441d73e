"""What calls of ECS do to the state of the fake cloud: preconditions first, then the change."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any

from tests.models.cloud.alibaba import looks
from tests.models.cloud.changes import detached
from tests.models.cloud.state import Attachment, Eni, Refusal

if TYPE_CHECKING:
    from tests.models.cloud.core import Cloud

Data = Mapping[str, Any]
CREATING, DELETING = 0.5, 2.0  # seconds
AT_ONCE = 10


def once(does: Callable[[Any, Data], Data]) -> Callable[[Any, Data], Data]:
    """A token that came before, with the same parameters, has the same answer and does nothing."""

    def with_token(cloud: Cloud, given: Data) -> Data:
        token = given.get("ClientToken", "")
        text = json.dumps({key: given[key] for key in sorted(given) if key != "ClientToken"}, default=str)
        if token in cloud.tokens:
            before, answer = cloud.tokens[token]
            if before != text:
                raise Refusal("IdempotentFailed", "the token came with other parameters")
            again: Data = json.loads(answer)
            return again
        done = does(cloud, given)
        if token:
            cloud.tokens[token] = text, json.dumps(done)
        return done

    return with_token


def create(cloud: Cloud, given: Data) -> Data:
    subnet, groups = given["VSwitchId"], tuple(given["SecurityGroupIds"])
    if subnet not in cloud.subnets:
        raise Refusal("InvalidVSwitchId.NotFound", subnet, 404)
    if missing := set(groups) - set(cloud.groups):
        raise Refusal("InvalidSecurityGroupId.NotFound", ", ".join(sorted(missing)), 404)
    if len(cloud.enis) >= cloud.quota:
        raise Refusal("MaxEniCountExceeded", f"limit of {cloud.quota}", 403)
    tags = {each["Key"]: each["Value"] for each in given.get("Tag", ())}
    eni = replace(
        cloud.new(subnet, groups, tags, given.get("Description", "")), kind=given["InstanceType"], changing="Creating",
        goes_with_instance=given["DeleteOnRelease"],
    )  # fmt: skip
    try:
        eni = _with_more(cloud, eni, given)
    except Refusal:
        cloud.enis[eni.id] = eni
        cloud.remove(eni)
        raise
    cloud.put(eni)
    cloud.later(CREATING, lambda: cloud.put(replace(cloud.enis[eni.id], changing="")))
    return looks.created_data(cloud, eni)


def _with_more(cloud: Cloud, eni: Eni, given: Data) -> Eni:
    count, prefixes = given.get("SecondaryPrivateIpAddressCount", 0), given.get("Ipv4PrefixCount", 0)
    mixed = (prefixes and eni.addresses) or (count and eni.prefixes)
    if (count and prefixes) or max(count, prefixes) > AT_ONCE or mixed:
        raise Refusal("InvalidParameter", "addresses and prefixes, or more than ten")
    cloud.limit(eni, count + prefixes)
    more6 = given.get("Ipv6PrefixCount", 0)
    instance = cloud.instances.get(eni.attachment.instance) if eni.attachment else None
    if more6 and instance and len(eni.prefixes6) + more6 > cloud.types[instance.type].ipv6:
        raise Refusal("InvalidOperation.Ipv6CountExceeded", status=403)
    if prefixes:
        eni = replace(eni, prefixes=eni.prefixes + cloud.take_prefixes(eni.subnet, prefixes))
    if count:
        eni = replace(eni, addresses=eni.addresses + cloud.take(eni.subnet, count))
    if more6:
        eni = replace(eni, prefixes6=eni.prefixes6 + cloud.take_prefixes6(eni.subnet, more6))
    return eni


def _settled(cloud: Cloud, given: Data, *statuses: str) -> Eni:
    eni = cloud.eni(given)
    if looks.status(eni) not in statuses:
        raise Refusal("InvalidOperation.InvalidEniState", f"{eni.id} is {looks.status(eni)}", 403)
    return eni


def attach(cloud: Cloud, given: Data) -> Data:
    eni, name = _settled(cloud, given, "Available"), given["InstanceId"]
    instance = cloud.instances.get(name)
    if instance is None or instance.state == "terminated":
        raise Refusal("InvalidEcsId.NotFound", name, 404)
    if instance.state not in ("running", "stopped"):
        raise Refusal("InvalidOperation.InvalidEcsState", f"{name} is {instance.state}", 403)
    if cloud.subnets[eni.subnet].zone != instance.zone:
        raise Refusal("InvalidOperation.AvailabilityZoneMismatch", eni.id, 403)
    there, type_ = [each for each in cloud.of(name) if each.kind != "Member"], cloud.types[instance.type]
    if len(there) >= type_.interfaces:
        raise Refusal("EniPerInstanceLimitExceeded", f"limit of {type_.interfaces}", 403)
    if eni.slots > type_.ipv4:
        raise Refusal("InvalidOperation.Ipv4CountExceeded", f"limit of {type_.ipv4}", 403)
    attachment = Attachment(f"{next(cloud.numbers)}", name, len(there), "attaching", eni.goes_with_instance)
    cloud.put(replace(eni, attachment=attachment))
    cloud.later(cloud.attaching, lambda: _attached(cloud, eni.id, attachment.id))
    return {}


def _attached(cloud: Cloud, name: str, attachment: str) -> None:
    eni = cloud.enis.get(name)
    if eni is not None and eni.attachment is not None and eni.attachment.id == attachment:
        cloud.put(replace(eni, attachment=replace(eni.attachment, status="attached")))


def detach(cloud: Cloud, given: Data) -> Data:
    eni = _settled(cloud, given, "InUse")
    if eni.attachment is None or eni.attachment.instance != given["InstanceId"] or eni.attachment.index == 0:
        raise Refusal("InvalidEcsId.NotFound", given["InstanceId"], 404)
    attachment = eni.attachment
    cloud.put(replace(eni, attachment=replace(attachment, status="detaching")))
    cloud.later(cloud.attaching, lambda: detached(cloud, eni.id, attachment.id))
    return {}


def assign(cloud: Cloud, given: Data) -> Data:
    eni = _settled(cloud, given, "Available", "InUse")
    more = _with_named(cloud, eni, given["PrivateIpAddress"]) if "PrivateIpAddress" in given else None
    more = more or _with_more(cloud, eni, given)
    cloud.put(more)
    return {
        "AssignedPrivateIpAddressesSet": {
            "NetworkInterfaceId": eni.id,
            "PrivateIpSet": {"PrivateIpAddress": [str(each) for each in more.addresses[len(eni.addresses) :]]},
            "Ipv4PrefixSet": {"Ipv4Prefixes": [str(each) for each in more.prefixes[len(eni.prefixes) :]]},
        }
    }


def _with_named(cloud: Cloud, eni: Eni, names: list[str]) -> Eni:
    """Nothing is taken away from another interface."""
    wanted = tuple(map(IPv4Address, names))
    if eni.prefixes or not all(each in cloud.subnets[eni.subnet].cidr for each in wanted):
        raise Refusal("InvalidParameter", "an address is not of the vSwitch, or beside prefixes")
    if any(int(each) in cloud.taken[eni.subnet] for each in wanted):
        raise Refusal("InvalidIPAddress.AlreadyUsed", ", ".join(names), 403)
    cloud.limit(eni, len(wanted))
    cloud.taken[eni.subnet] |= set(map(int, wanted))
    return replace(eni, addresses=eni.addresses + wanted)


def assign6(cloud: Cloud, given: Data) -> Data:
    eni = _settled(cloud, given, "Available", "InUse")
    more = _with_more(cloud, eni, given)
    cloud.put(more)
    new = [str(each) for each in more.prefixes6[len(eni.prefixes6) :]]
    return {"NetworkInterfaceId": eni.id, "Ipv6PrefixSets": {"Ipv6Prefix": new}}


def unassign(cloud: Cloud, given: Data) -> Data:
    eni = _settled(cloud, given, "Available", "InUse")
    gone = {IPv4Address(each) for each in given.get("PrivateIpAddress", ())}
    prefixes = {IPv4Network(each) for each in given.get("Ipv4Prefix", ())}
    if not (gone <= set(eni.addresses) and prefixes <= set(eni.prefixes)):
        raise Refusal("InvalidIp.IpUnassigned", "an address is the primary one, or not the interface's")
    cloud.unassign(eni, gone, prefixes)
    return {}


def delete(cloud: Cloud, given: Data) -> Data:
    eni = replace(_settled(cloud, given, "Available"), changing="Deleting")
    cloud.put(eni)
    cloud.later(DELETING, lambda: cloud.remove(eni))
    return {}


DOES: Mapping[str, Callable[[Any, Data], Data]] = {
    "CreateNetworkInterface": once(create),
    "AttachNetworkInterface": attach,
    "DetachNetworkInterface": detach,
    "AssignPrivateIpAddresses": once(assign),
    "AssignIpv6Addresses": once(assign6),
    "UnassignPrivateIpAddresses": unassign,
    "DeleteNetworkInterface": delete,
}
