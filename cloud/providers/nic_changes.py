"""Our calls as changes of a whole network interface of Azure. Pure.

Azure makes no interfaces for us: pods get further IP configurations of those that a VM has. A change is what was read,
with configurations more or less, written back under its ETag; whatever else is there goes back as it came. Only
configurations of ours are ever taken away. Interfaces of an instance of a uniform scale set are written as a part of
that instance, which does not tell their addresses.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Network
from typing import Any

from cloud.backend import CloudFault, Data, Send, Unanswered
from cloud.calls import Assign, AssignPrefix6, Call, Done, Outcome, Take, Unassign
from cloud.model import Inventory
from cloud.providers import arm
from cloud.providers.answers import outcome, understood
from cloud.providers.nics import OURS, block_of, configurations, describe, is_ours

OF_EGRESS = f"{OURS}egress-"
TRIES = 4  # of a change, as long as others change the same interface in between
IN_SET = re.compile(r"(.+/virtualmachinescalesets/[^/]+/virtualmachines/[^/]+)/networkinterfaces/([^/]+)")
NOT_OF_SETS = ("privateIPAddress", "privateIPAllocationMethod")  # what a scale set's instance does not say of them


@dataclass(frozen=True, slots=True)
class Shown:
    """What is written as a whole, and the IP configurations in it, with their addresses."""

    resource: Data
    configurations: list[Data]


def action(call: Call) -> str:
    return arm.VM_PUT if IN_SET.fullmatch(_target(call)) else arm.PUT


def make(send: Send, call: Call) -> Done:
    """Reads the interface and writes it changed; again, if somebody else wrote it in between. Raises CloudFault.

    Sending the same call twice makes one change: what it asks for has names, or is there no more.
    """
    for _ in range(TRIES):
        shown = _read_first(send, _target(call))
        wanted = changed(shown.configurations, call)
        if wanted is None and arm.state_of(shown.resource) == "Failed":
            wanted = shown.configurations  # what has failed is mended by writing it again
        try:
            if wanted is not None:
                shown = _written(send, _target(call), shown.resource, wanted)
            return _done(shown, call)
        except arm.Changed:
            continue
        except CloudFault as error:
            raise _of_prefixes(error, call) from error
    raise Unanswered("other", "PreconditionFailed", f"others change {_target(call)} all the time")


def _target(call: Call) -> str:
    if isinstance(call, Assign | AssignPrefix6 | Take | Unassign):
        return call.interface
    raise NotImplementedError(f"{call}: never planned for Azure")


def _read_first(send: Send, interface: str) -> Shown:
    """Nothing has been changed where this fails."""
    try:
        return _read(send, interface)
    except Unanswered as error:
        raise CloudFault("unreachable", error.code, str(error)) from error


def _read(send: Send, interface: str) -> Shown:
    match = IN_SET.fullmatch(interface)
    if match is None:
        nic = send(arm.GET, {"id": interface})
        return Shown(nic, configurations(nic))
    vm = send(arm.VM_GET, {"id": match[1]})
    return Shown(vm, _with_addresses(vm, send(arm.SET_GET, {"id": interface})))


def _written(send: Send, interface: str, resource: Data, wanted: list[Data]) -> Shown:
    match = IN_SET.fullmatch(interface)
    if match is None:
        body = _with(resource, ipConfigurations=wanted)
        nic = send(arm.PUT, {"id": interface, "etag": resource["etag"], "body": body})
        return Shown(nic, configurations(nic))
    body = _with_interface(resource, match[2], wanted)
    vm = send(arm.VM_PUT, {"id": match[1], "etag": resource["etag"], "body": body})
    try:
        return Shown(vm, _with_addresses(vm, send(arm.SET_GET, {"id": interface})))
    except CloudFault as error:  # it was written
        raise Unanswered("other", error.code, str(error)) from error


def _with(resource: Data, **properties: Any) -> Data:
    return {**resource, "properties": {**resource["properties"], **properties}}


# --- instances of uniform scale sets


def _with_addresses(vm: Data, nic: Data) -> list[Data]:
    """The configurations of one interface as the instance has them, with what the interface says of their addresses."""
    name = nic["id"].rpartition("/")[2].lower()
    known = {each["name"]: each["properties"].get("privateIPAddress") for each in configurations(nic)}
    (mine,) = [each for each in _interfaces_of(vm) if each["name"].lower() == name]
    return [_with(each, privateIPAddress=known.get(each["name"])) for each in configurations(mine)]


def _interfaces_of(vm: Data) -> list[Data]:
    return list(vm["properties"]["networkProfileConfiguration"]["networkInterfaceConfigurations"])


def _with_interface(vm: Data, name: str, wanted: list[Data]) -> Data:
    """Without its image, which whoever writes the instance would have to be allowed to read."""
    bare = [{**each, "properties": {key: value for key, value in each["properties"].items() if key not in NOT_OF_SETS}}
            for each in wanted]  # fmt: skip
    mine = [_with(each, ipConfigurations=bare) if each["name"].lower() == name else each for each in _interfaces_of(vm)]
    profile = {**vm["properties"]["networkProfileConfiguration"], "networkInterfaceConfigurations": mine}
    storage = {**vm["properties"].get("storageProfile", {}), "imageReference": None}
    return _with(vm, networkProfileConfiguration=profile, storageProfile=storage)


# --- configurations


def changed(there: list[Data], call: Call) -> list[Data] | None:
    """The configurations after the call; None = there is nothing to do (any more). Raises CloudFault."""
    if isinstance(call, Unassign):
        kept = [each for each in there if not is_ours(each) or not set(block_of(each)) & set(call.blocks)]
        return kept if len(kept) < len(there) else None
    if isinstance(call, Take):
        _refuse_others(there, call)
    names = {each["name"] for each in there}
    lacking = [name for name in _names(call) if name not in names]
    return [*there, *(_configuration(name, there, call) for name in lacking)] if lacking else None


def _refuse_others(there: list[Data], call: Take) -> None:
    """Raises CloudFault: no look shows as taken what is not ours by its name, and it would be asked for for ever."""
    wanted = {IPv4Network(each) for each in call.addresses}
    for each in there:
        if not is_ours(each) and (found := wanted.intersection(block_of(each))):
            address = found.pop().network_address
            message = f"{address} is of IP configuration {each['name']} of {call.interface}, which is not ours"
            raise CloudFault("not-now", "PrivateIPAddressInUse", message)


def _names(call: Call) -> list[str]:
    """Of what the call asks for: the same ones, however often it is sent."""
    if isinstance(call, Take):
        return [OF_EGRESS + str(each).replace(".", "-") for each in call.addresses]
    assert isinstance(call, Assign | AssignPrefix6)
    text = sha256(call.token.encode()).hexdigest()[:16]
    return [f"{OURS}{text}-{number}" for number in range(call.count if isinstance(call, Assign) else 1)]


def _configuration(name: str, there: list[Data], call: Call) -> Data:
    """In the subnet and the application security groups of the primary one: Azure has them the same for all."""
    own = next((each["properties"] for each in there if each["properties"].get("primary")), there[0]["properties"])
    given: dict[str, Any] = {
        "subnet": {"id": own["subnet"]["id"]},
        "primary": False,
        "privateIPAllocationMethod": "Dynamic",
        "privateIPAddressVersion": "IPv6" if isinstance(call, AssignPrefix6) else "IPv4",
    }
    if own.get("applicationSecurityGroups"):
        given["applicationSecurityGroups"] = own["applicationSecurityGroups"]
    if isinstance(call, Take):
        address = name.removeprefix(OF_EGRESS).replace("-", ".")
        given |= {"privateIPAllocationMethod": "Static", "privateIPAddress": address}
    if isinstance(call, AssignPrefix6):
        given["privateIPAddressPrefixLength"] = 80
    if isinstance(call, Assign) and call.prefixes:
        given["privateIPAddressPrefixLength"] = 28
    return {"name": name, "properties": given}


def _state(nic: Data) -> str:
    return str(nic["properties"].get("provisioningState", "Succeeded"))


def _done(shown: Shown, call: Call) -> Done:
    """Raises Unanswered while the change is on its way, and may still fail."""
    if (state := arm.state_of(shown.resource)) != "Succeeded":
        raise Unanswered("other", state, f"{_target(call)} is being changed")
    if not isinstance(call, Assign | AssignPrefix6):
        return Done()
    names = _names(call)
    given = tuple(block for each in shown.configurations if each["name"] in names for block in block_of(each))
    if len(given) < len(names):
        raise Unanswered("other", "", f"{_target(call)} does not show all of its addresses yet")
    return Done(_target(call), given)


def _of_prefixes(error: CloudFault, call: Call) -> CloudFault:
    """The same code says that a subnet has no address and that it has no whole prefix: it depends on the question."""
    if error.problem == "no-addresses" and isinstance(call, Assign) and call.prefixes:
        return CloudFault("no-prefixes", error.code, str(error))
    return error


@dataclass(frozen=True, slots=True)
class Subscription:
    """See `cloud.backend.Backend`."""

    call: Send

    def describe(self, instances: Collection[str]) -> Inventory:
        return understood(lambda: describe(self.call, instances))

    def action(self, call: Call) -> str:
        return action(call)

    def send(self, call: Call) -> Outcome:
        return outcome(lambda: make(self.call, call))
