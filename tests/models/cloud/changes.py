"""What calls do to the state of the fake cloud: preconditions first, then the change."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any

from tests.models.cloud import looks
from tests.models.cloud.state import Attachment, Eni, Refusal

if TYPE_CHECKING:
    from tests.models.cloud.core import Cloud

Data = Mapping[str, Any]


def create(cloud: Cloud, given: Data) -> Data:
    text = json.dumps({key: given[key] for key in sorted(given) if key != "ClientToken"}, default=str)
    token = given.get("ClientToken", "")
    if token in cloud.tokens:
        before, name = cloud.tokens[token]
        if before != text:
            raise Refusal("IdempotentParameterMismatch", "the token came with other parameters")
        if name in cloud.enis:
            return {"NetworkInterface": looks.interface_data(cloud, cloud.enis[name]), "ClientToken": token}
    subnet = given["SubnetId"]
    if subnet not in cloud.subnets:
        raise Refusal("InvalidSubnetID.NotFound", subnet)
    if missing := set(given["Groups"]) - set(cloud.groups):
        raise Refusal("InvalidGroup.NotFound", ", ".join(sorted(missing)))
    if len(cloud.enis) >= cloud.quota:
        raise Refusal("NetworkInterfaceLimitExceeded", f"limit of {cloud.quota}")
    tags = {each["Key"]: each["Value"] for spec in given.get("TagSpecifications", ()) for each in spec["Tags"]}
    eni = cloud.new(subnet, tuple(given["Groups"]), tags, given.get("Description", ""))
    try:
        eni = _with_more(cloud, eni, given)
    except Refusal:
        cloud.enis[eni.id] = eni
        cloud.remove(eni)
        raise
    cloud.put(eni)
    if token:
        cloud.tokens[token] = text, eni.id
    return {"NetworkInterface": looks.interface_data(cloud, eni), "ClientToken": token}


def _with_more(cloud: Cloud, eni: Eni, given: Data) -> Eni:
    count, prefixes = given.get("SecondaryPrivateIpAddressCount", 0), given.get("Ipv4PrefixCount", 0)
    if count and prefixes:
        raise Refusal("InvalidParameterCombination", "addresses and prefixes")
    cloud.limit(eni, count + prefixes)
    if prefixes:
        cloud.prefixes_allowed(eni)
        eni = replace(eni, prefixes=eni.prefixes + cloud.take_prefixes(eni.subnet, prefixes))
    if count:
        eni = replace(eni, addresses=eni.addresses + cloud.take(eni.subnet, count))
    if given.get("Ipv6PrefixCount"):
        eni = replace(eni, prefixes6=eni.prefixes6 + cloud.take_prefixes6(eni.subnet, given["Ipv6PrefixCount"]))
    return eni


def attach(cloud: Cloud, given: Data) -> Data:
    eni, name, index = cloud.eni(given), given["InstanceId"], given["DeviceIndex"]
    instance = cloud.instances.get(name)
    if instance is None:
        raise Refusal("InvalidInstanceID.NotFound", f"The instance ID '{name}' does not exist")
    if instance.state not in ("running", "stopped"):
        raise Refusal("IncorrectState", f"Instance '{name}' is not 'running'")
    if eni.attachment is not None:
        raise Refusal("InvalidParameterValue", f"Interface '{eni.id}' is currently in use")
    if cloud.subnets[eni.subnet].zone != instance.zone:
        raise Refusal("InvalidParameterValue", "the interface is in another availability zone")
    there, type_ = cloud.of(name), cloud.types[instance.type]
    if any(each.attachment and each.attachment.index == index for each in there):
        raise Refusal("InvalidParameterValue", f"Instance '{name}' already has an interface attached at device index")
    if len(there) >= type_.interfaces:
        raise Refusal("AttachmentLimitExceeded", f"limit of {type_.interfaces}")
    if eni.slots > type_.ipv4:
        raise Refusal("PrivateIpAddressLimitExceeded", f"limit of {type_.ipv4}")
    attachment = Attachment(f"eni-attach-{next(cloud.numbers):017x}", name, index, "attaching")
    cloud.put(replace(eni, attachment=attachment))
    cloud.later(cloud.attaching, lambda: _attached(cloud, eni.id, attachment.id))
    return {"AttachmentId": attachment.id, "NetworkCardIndex": 0}


def _attached(cloud: Cloud, name: str, attachment: str) -> None:
    eni = cloud.enis.get(name)
    if eni is not None and eni.attachment is not None and eni.attachment.id == attachment:
        cloud.put(replace(eni, attachment=replace(eni.attachment, status="attached")))


def detach(cloud: Cloud, given: Data) -> Data:
    attached = (each for each in cloud.enis.values() if each.attachment and each.attachment.id == given["AttachmentId"])
    eni = next(attached, None)
    if eni is None or eni.attachment is None:
        raise Refusal("InvalidAttachmentID.NotFound", given["AttachmentId"])
    if eni.attachment.index == 0 or eni.attachment.status != "attached":
        raise Refusal("IncorrectState", "the primary interface, or one that is not attached (any more)")
    cloud.put(replace(eni, attachment=replace(eni.attachment, status="detaching")))
    cloud.later(cloud.attaching, lambda: detached(cloud, eni.id, given["AttachmentId"]))
    return {}


def detached(cloud: Cloud, name: str, attachment: str) -> None:
    eni = cloud.enis.get(name)
    if eni is not None and eni.attachment is not None and eni.attachment.id == attachment:
        cloud.put(replace(eni, attachment=None))


def modify(cloud: Cloud, given: Data) -> Data:
    eni, change = cloud.eni(given), given["Attachment"]
    if eni.attachment is None or eni.attachment.id != change["AttachmentId"]:
        raise Refusal("InvalidAttachmentID.NotFound", change["AttachmentId"])
    attachment = replace(eni.attachment, delete_on_termination=change["DeleteOnTermination"])
    cloud.put(replace(eni, attachment=attachment))
    return {}


def assign(cloud: Cloud, given: Data) -> Data:
    eni = cloud.eni(given)
    if "PrivateIpAddresses" in given:
        return _assign_named(cloud, eni, given)
    more = _with_more(cloud, eni, given)
    cloud.put(more)
    new = [{"PrivateIpAddress": str(each)} for each in more.addresses[len(eni.addresses) :]]
    prefixes = [{"Ipv4Prefix": str(each)} for each in more.prefixes[len(eni.prefixes) :]]
    return {"NetworkInterfaceId": eni.id, "AssignedPrivateIpAddresses": new, "AssignedIpv4Prefixes": prefixes}


def _assign_named(cloud: Cloud, eni: Eni, given: Data) -> Data:
    """Another interface's secondary address moves along where that is allowed."""
    wanted = [IPv4Address(each) for each in given["PrivateIpAddresses"]]
    cidr = cloud.subnets[eni.subnet].cidr
    for address in wanted:
        holder = next((each for each in cloud.enis.values() if address in (each.primary, *each.addresses)), None)
        if address not in cidr or (holder and (address == holder.primary or not given.get("AllowReassignment"))):
            raise Refusal("InvalidParameterValue", f"Address {address} is not of the subnet, or in use")
        if holder is not None and holder.id != eni.id:
            cloud.put(replace(holder, addresses=tuple(each for each in holder.addresses if each != address)))
        elif holder is None and int(address) in cloud.taken[eni.subnet]:
            raise Refusal("InvalidParameterValue", f"Address {address} is in a prefix")
    eni = cloud.enis[eni.id]
    new = tuple(each for each in wanted if each not in eni.addresses)
    cloud.limit(eni, len(new))
    cloud.taken[eni.subnet] |= set(map(int, new))
    cloud.put(replace(eni, addresses=eni.addresses + new))
    shown = [{"PrivateIpAddress": str(each)} for each in wanted]
    return {"NetworkInterfaceId": eni.id, "AssignedPrivateIpAddresses": shown}


def assign6(cloud: Cloud, given: Data) -> Data:
    eni = cloud.eni(given)
    more = _with_more(cloud, eni, given)
    cloud.put(more)
    new = [str(each) for each in more.prefixes6[len(eni.prefixes6) :]]
    return {"NetworkInterfaceId": eni.id, "AssignedIpv6Prefixes": new}


def unassign(cloud: Cloud, given: Data) -> Data:
    eni = cloud.eni(given)
    gone = {IPv4Address(each) for each in given.get("PrivateIpAddresses", ())}
    prefixes = {IPv4Network(each) for each in given.get("Ipv4Prefixes", ())}
    if not (gone <= set(eni.addresses) and prefixes <= set(eni.prefixes)):
        raise Refusal("InvalidParameterValue", "an address is the primary one, or not the interface's")
    cloud.unassign(eni, gone, prefixes)
    return {}


def delete(cloud: Cloud, given: Data) -> Data:
    eni = cloud.eni(given)
    if eni.attachment is not None:
        raise Refusal("InvalidParameterValue", f"Network interface '{eni.id}' is currently in use")
    cloud.remove(eni)
    return {}


DOES: Mapping[str, Callable[[Any, Data], Data]] = {
    "CreateNetworkInterface": create,
    "AttachNetworkInterface": attach,
    "DetachNetworkInterface": detach,
    "ModifyNetworkInterfaceAttribute": modify,
    "AssignPrivateIpAddresses": assign,
    "AssignIpv6Addresses": assign6,
    "UnassignPrivateIpAddresses": unassign,
    "DeleteNetworkInterface": delete,
}
