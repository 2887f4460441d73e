"""Azure's network interfaces of VMs, also of deleted ones, and of instances of uniform scale sets, as our values. Pure.

Ids are ARM's, in lower case: it ignores case. IP configurations that are ours have names that begin with `routerd-`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network

from cloud.backend import CloudFault, Data, Send
from cloud.model import Instance, Interface, Inventory, Limits, Network, Subnet, block_order
from cloud.providers import arm

MOST = 256  # private addresses of a network interface, and of a VM
RESERVED = 5  # addresses of a subnet that nobody gets
OURS = "routerd-"
# In place of a size, none of which counts. No interface is made, so neither takes a further one; an instance of a
# scale set takes no address that is named.
VM, IN_SET = "VM", "scale set's VM"
_LIMITS = Limits(interfaces=0, ipv4=MOST, ipv6=MOST, prefixes=True)
LIMITS = {VM: _LIMITS, IN_SET: replace(_LIMITS, named=False)}


def describe(send: Send, instances: Collection[str]) -> Inventory:
    """What is in the resource groups and scale sets of these instances. Raises CloudFault."""
    nics = [each for place in sorted(_places(instances)) for each in _interfaces_in(send, *place)]
    found = {each.id: each for vm in _by_vm(nics).values() for each in _interfaces(vm)}
    found |= {each.id: each for each in map(_loose, nics) if each is not None}
    primaries = {each.instance: each for each in found.values() if each.index == 0 and each.instance in instances}
    there = {
        name: Instance(name, IN_SET if SET.match(name) else VM, "", _vnet(each.subnet), each.subnet)
        for name, each in primaries.items()
    }
    subnets = {
        each.id: each
        for vnet in sorted({each.vpc for each in there.values()})
        for each in _subnets(send(arm.VNET, {"id": vnet}), nics)
    }
    return Inventory(there, found, subnets, limits=LIMITS)


GROUP = re.compile(r"(/subscriptions/[^/]+/resourcegroups/[^/]+)/providers/microsoft\.compute/virtualmachines/[^/]+")
SET = re.compile(
    r"(/subscriptions/.+/providers/microsoft\.compute/virtualmachinescalesets/[^/]+)/virtualmachines/[^/]+"
)


def _places(instances: Collection[str]) -> set[tuple[str, str]]:
    """What lists their interfaces, and of what: of a resource group, or of a scale set."""
    groups = {(arm.LIST, match[1]) for each in instances if (match := GROUP.fullmatch(each))}
    return groups | {(arm.SET_LIST, match[1]) for each in instances if (match := SET.fullmatch(each))}


def _interfaces_in(send: Send, operation: str, id_: str) -> Iterator[Data]:
    """A group or a set that is gone has none, nor has a set without instances."""
    try:
        yield from _pages(send, operation, {"id": id_})
    except CloudFault as error:
        if error.problem != "gone":
            raise


def _pages(send: Send, operation: str, parameters: Data) -> Iterator[Data]:
    while True:
        answer = send(operation, parameters)
        yield from answer["value"]
        if not answer.get("nextLink"):
            return
        parameters = {"url": answer["nextLink"]}


def _by_vm(nics: Sequence[Data]) -> dict[str, list[Data]]:
    """Of each its primary interface first, the others by name: nothing rests on their indexes but that they differ."""
    found: dict[str, list[Data]] = {}
    attached = (each for each in nics if each["properties"].get("virtualMachine"))
    for each in sorted(attached, key=lambda each: (not each["properties"].get("primary"), each["id"].lower())):
        found.setdefault(each["properties"]["virtualMachine"]["id"].lower(), []).append(each)
    return found


def _interfaces(nics: Sequence[Data]) -> Iterator[Interface]:
    """Of one VM, which has room for so many addresses as each of its interfaces has."""
    total = sum(len(configurations(each)) for each in nics)
    first = 0 if nics[0]["properties"].get("primary") else 1
    for index, each in enumerate(nics, first):
        own = _interface(each)
        instance = each["properties"]["virtualMachine"]["id"].lower()
        others = total - 1 - sum(block.version == 4 for block in own.blocks)
        yield replace(own, status="in-use", instance=instance, index=index, goes_with_instance=True, others=others)


def _loose(nic: Data) -> Interface | None:
    """That of a VM which is deleted, and which it was not deleted with: its egress addresses are nowhere else."""
    if nic["properties"].get("virtualMachine") or not any(map(is_ours, configurations(nic))):
        return None
    return _interface(nic)


def _interface(nic: Data) -> Interface:
    """As it is on no VM."""
    own = _own(nic)
    return Interface(
        id=nic["id"].lower(),
        mac=nic["properties"].get("macAddress", "").replace("-", ":").lower(),
        subnet=own["subnet"]["id"].lower(),
        primary=IPv4Address(own["privateIPAddress"]),
        status="available",
        blocks=tuple(sorted(_blocks(nic), key=block_order)),
        tags=nic.get("tags") or {},
    )


def configurations(nic: Data) -> list[Data]:
    return list(nic["properties"]["ipConfigurations"])


def _own(nic: Data) -> Data:
    """The properties of its primary IP configuration, which is never ours."""
    found = [each["properties"] for each in configurations(nic)]
    own: Data = next((each for each in found if each.get("primary")), found[0])
    return own


def is_ours(configuration: Data) -> bool:
    return str(configuration["name"]).startswith(OURS) and not configuration["properties"].get("primary")


def _blocks(nic: Data) -> Iterator[Network]:
    """Also of configurations that are being changed, or whose last change failed: pods have had these addresses."""
    for each in configurations(nic):
        if is_ours(each) and each["properties"].get("provisioningState") != "Deleting":
            yield from block_of(each)


def block_of(configuration: Data) -> Iterator[Network]:
    """None as long as it has no address yet."""
    if text := configuration["properties"].get("privateIPAddress"):
        yield ip_network(text)


def _vnet(subnet: str) -> str:
    return subnet.rpartition("/subnets/")[0]


def _subnets(vnet: Data, nics: Sequence[Data]) -> Iterator[Subnet]:
    """A subnet shows who has addresses of it, but neither of which family they are, nor how many a prefix is."""
    ours = {
        each["id"].lower(): block.num_addresses if block.version == 4 else 0
        for nic in nics
        for each in configurations(nic)
        for block in block_of(each)
    }
    for each in vnet["properties"]["subnets"]:
        given = each["properties"]
        cidrs = [ip_network(text) for text in given.get("addressPrefixes") or [given["addressPrefix"]]]
        cidr = next((one for one in cidrs if isinstance(one, IPv4Network)), None)
        if cidr is not None:
            taken = sum(ours.get(one["id"].lower(), 1) for one in given.get("ipConfigurations") or ())
            cidr6 = next((one for one in cidrs if isinstance(one, IPv6Network)), None)
            free = max(cidr.num_addresses - RESERVED - taken, 0)
            yield Subnet(each["id"].lower(), vnet["id"].lower(), "", cidr, free, cidr6)
