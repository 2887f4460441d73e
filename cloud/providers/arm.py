"""Azure Resource Manager: our calls as changes of a whole network interface, its answers as our values. Pure.

Azure makes no interfaces for us: pods get further IP configurations of those that a VM has. A change is what was read,
with configurations more or less, written back under its ETag; whatever else is there goes back as it came. Ours have
names that begin with `routerd-`, and no other one is ever taken away. Ids are ARM's, in lower case: it ignores case.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any

from cloud.backend import CloudFault, Data, Send, Unanswered
from cloud.buckets import Rate
from cloud.calls import Assign, AssignPrefix6, Call, Done, Outcome, Problem, Take, Unassign
from cloud.model import Api, Instance, Interface, Inventory, Limits, Network, Subnet, Vpc, block_order
from cloud.providers.answers import outcome, understood

API = Api(tokens=True, reassigns=False, makes=False)
VPC = Vpc(router6=IPv6Address("fe80::1234:5678:9abc"), metadata=(IPv4Address("169.254.169.254"),))
MOST = 256  # private addresses of a network interface, and of a VM
LIMITS = Limits(interfaces=0, ipv4=MOST, ipv6=MOST, prefixes=True)  # none is made, so a VM takes no further one
VM = "VM"  # in place of a size: none of it counts
RESERVED = 5  # addresses of a subnet that nobody gets
NETWORK = "2025-03-01"  # api-version
OURS, OF_EGRESS = "routerd-", "routerd-egress-"  # beginnings of names
TRIES = 4  # of a change, as long as others change the same interface in between


@dataclass(frozen=True, slots=True)
class Operation:
    """Of ARM, by the name that its specifications have for it."""

    method: str
    suffix: str = ""  # of the id
    version: str = NETWORK


def url(endpoint: str, operation: Operation, id_: str) -> str:
    return f"{endpoint}{id_}{operation.suffix}?api-version={operation.version}"


LIST, GET, PUT = "NetworkInterfaces_List", "NetworkInterfaces_Get", "NetworkInterfaces_CreateOrUpdate"
VNET = "VirtualNetworks_Get"
OPERATIONS: Mapping[str, Operation] = {
    LIST: Operation("GET", "/providers/microsoft.network/networkinterfaces"),
    GET: Operation("GET"),
    PUT: Operation("PUT"),
    VNET: Operation("GET"),
}
# A subscription may write 1,000 times in 5 minutes. Others write, too: we take four fifths.
RATES: Mapping[str, Rate] = {PUT: Rate(0.8 * 1000 / 300, 40)}

PROBLEMS: Mapping[str, Problem] = {
    "SubnetIsFull": "no-addresses",
    "TooManyRequests": "throttled",
    "SubscriptionRequestsThrottled": "throttled",
    "AuthorizationFailed": "denied",
    "LinkedAuthorizationFailed": "denied",
    "AuthenticationFailed": "denied",
    "ExpiredAuthenticationToken": "denied",
    "InvalidAuthenticationToken": "denied",
    "ResourceNotFound": "gone",
    "ResourceGroupNotFound": "gone",
    "NotFound": "gone",
    "AnotherOperationInProgress": "not-now",
    "RetryableError": "not-now",
    "PrivateIPAddressInUse": "not-now",
    "PrivateIPAddressIsAllocated": "not-now",
}
BY_STATUS: Mapping[int, Problem] = {401: "denied", 403: "denied", 404: "gone", 409: "not-now", 429: "throttled"}
CHANGED = 412  # by somebody else since it was read


def problem(code: str, status: int) -> Problem:
    if code in PROBLEMS:
        return PROBLEMS[code]
    if code.endswith(("LimitReached", "QuotaExceeded", "LimitExceeded")):
        return "limit"
    return BY_STATUS.get(status, "other")


def fault(status: int, body: Any, after: float = 0.0) -> CloudFault:
    """A 5xx may have been done. `after`: seconds of Retry-After."""
    code, message = _error(body)
    code = code or str(status)
    if status >= 500:
        return Unanswered("other", code, message)
    if status == CHANGED:
        return Changed("not-now", code, message)
    return CloudFault(problem(code, status), code, message, after)


FAILED = ("Failed", "Canceled")
ENDED = ("Succeeded", *FAILED)


def state_of(found: Data) -> str:
    """Of an operation, or of a resource."""
    return str(found.get("status") or (found.get("properties") or {}).get("provisioningState") or "Succeeded")


def is_under_way(body: Any, headers: Mapping[str, str]) -> bool:
    """Whether a change was accepted, and is not done."""
    return "Azure-AsyncOperation" in headers or (isinstance(body, Mapping) and state_of(body) not in ENDED)


def failure(found: Data) -> CloudFault | None:
    """Of an operation, or of a resource, that has ended."""
    if (state := state_of(found)) not in FAILED:
        return None
    code, message = _error(found)
    return CloudFault(problem(code, 0), code or state, message)


def _error(body: Any) -> tuple[str, str]:
    """Code and message, as far as it says them."""
    said = body.get("error") if isinstance(body, Mapping) else None
    return (str(said.get("code", "")), str(said.get("message", ""))) if isinstance(said, Mapping) else ("", "")


class Changed(CloudFault):
    """What was read is not what is there: the ETag is another one."""


# --- looks


def describe(send: Send, instances: Collection[str]) -> Inventory:
    """What is in the resource groups of these instances. Raises CloudFault."""
    nics = [each for group in sorted(_groups(instances)) for each in _interfaces_in(send, group)]
    found = {each.id: each for vm in _by_vm(nics).values() for each in _interfaces(vm)}
    primaries = {each.instance: each for each in found.values() if each.index == 0 and each.instance in instances}
    there = {name: Instance(name, VM, "", _vnet(each.subnet), each.subnet) for name, each in primaries.items()}
    subnets = {
        each.id: each
        for vnet in sorted({each.vpc for each in there.values()})
        for each in _subnets(send("VirtualNetworks_Get", {"id": vnet}), nics)
    }
    return Inventory(there, found, subnets, limits={VM: LIMITS})


GROUP = re.compile(r"(/subscriptions/[^/]+/resourcegroups/[^/]+)/providers/microsoft\.compute/virtualmachines/[^/]+")


def _groups(instances: Collection[str]) -> set[str]:
    return {match[1] for each in instances if (match := GROUP.fullmatch(each))}


def _interfaces_in(send: Send, group: str) -> Iterator[Data]:
    """Those of VMs. A group that is gone has none."""
    try:
        found = list(_pages(send, LIST, {"id": group}))
    except CloudFault as error:
        if error.problem != "gone":
            raise
        return
    yield from (each for each in found if each["properties"].get("virtualMachine"))


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
    for each in sorted(nics, key=lambda each: (not each["properties"].get("primary"), each["id"].lower())):
        found.setdefault(each["properties"]["virtualMachine"]["id"].lower(), []).append(each)
    return found


def _interfaces(nics: Sequence[Data]) -> Iterator[Interface]:
    """Of one VM, which has room for so many addresses as each of its interfaces has."""
    total = sum(len(configurations(each)) for each in nics)
    first = 0 if nics[0]["properties"].get("primary") else 1
    for index, each in enumerate(nics, first):
        blocks = tuple(sorted(_blocks(each), key=block_order))
        own = _own(each)
        yield Interface(
            id=each["id"].lower(),
            mac=each["properties"].get("macAddress", "").replace("-", ":").lower(),
            subnet=own["subnet"]["id"].lower(),
            primary=IPv4Address(own["privateIPAddress"]),
            status="in-use",
            instance=each["properties"]["virtualMachine"]["id"].lower(),
            index=index,
            goes_with_instance=True,
            blocks=blocks,
            others=total - 1 - sum(block.version == 4 for block in blocks),
            tags=each.get("tags") or {},
        )


def configurations(nic: Data) -> list[Data]:
    return list(nic["properties"]["ipConfigurations"])


def _own(nic: Data) -> Data:
    """The properties of its primary IP configuration, which is never ours."""
    found = [each["properties"] for each in configurations(nic)]
    own: Data = next((each for each in found if each.get("primary")), found[0])
    return own


def _is_ours(configuration: Data) -> bool:
    return str(configuration["name"]).startswith(OURS) and not configuration["properties"].get("primary")


def _blocks(nic: Data) -> Iterator[Network]:
    """Also of configurations that are being changed, or whose last change failed: pods have had these addresses."""
    for each in configurations(nic):
        if _is_ours(each) and each["properties"].get("provisioningState") != "Deleting":
            yield from _block(each)


def _block(configuration: Data) -> Iterator[Network]:
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
        for block in _block(each)
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


# --- changes


def action(call: Call) -> str:
    return PUT


def make(send: Send, call: Call) -> Done:
    """Reads the interface and writes it changed; again, if somebody else wrote it in between. Raises CloudFault.

    Sending the same call twice makes one change: what it asks for has names, or is there no more.
    """
    for _ in range(TRIES):
        nic = _read(send, call)
        wanted = changed(configurations(nic), call)
        if wanted is None and state_of(nic) == "Failed":
            wanted = configurations(nic)  # what has failed is mended by writing it again
        try:
            if wanted is not None:
                nic = send(PUT, {"id": _target(call), "etag": nic["etag"], "body": _with(nic, wanted)})
            return _done(nic, call)
        except Changed:
            continue
        except CloudFault as error:
            raise _of_prefixes(error, call) from error
    raise Unanswered("other", "PreconditionFailed", f"others change {_target(call)} all the time")


def _target(call: Call) -> str:
    if isinstance(call, Assign | AssignPrefix6 | Take | Unassign):
        return call.interface
    raise NotImplementedError(f"{call}: never planned for Azure")


def _read(send: Send, call: Call) -> Data:
    """Nothing has been changed where this fails."""
    try:
        return send(GET, {"id": _target(call)})
    except Unanswered as error:
        raise CloudFault("unreachable", error.code, str(error)) from error


def _with(nic: Data, wanted: list[Data]) -> Data:
    return {**nic, "properties": {**nic["properties"], "ipConfigurations": wanted}}


def changed(there: list[Data], call: Call) -> list[Data] | None:
    """The configurations after the call; None = there is nothing to do (any more)."""
    if isinstance(call, Unassign):
        kept = [each for each in there if not _is_ours(each) or not set(_block(each)) & set(call.blocks)]
        return kept if len(kept) < len(there) else None
    if isinstance(call, Take) and any(IPv4Network(call.address) in _block(each) for each in there):
        return None
    names = {each["name"] for each in there}
    lacking = [name for name in _names(call) if name not in names]
    return [*there, *(_configuration(name, there, call) for name in lacking)] if lacking else None


def _names(call: Call) -> list[str]:
    """Of what the call asks for: the same ones, however often it is sent."""
    if isinstance(call, Take):
        return [OF_EGRESS + str(call.address).replace(".", "-")]
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
        given |= {"privateIPAllocationMethod": "Static", "privateIPAddress": str(call.address)}
    if isinstance(call, AssignPrefix6):
        given["privateIPAddressPrefixLength"] = 80
    if isinstance(call, Assign) and call.prefixes:
        given["privateIPAddressPrefixLength"] = 28
    return {"name": name, "properties": given}


def _state(nic: Data) -> str:
    return str(nic["properties"].get("provisioningState", "Succeeded"))


def _done(nic: Data, call: Call) -> Done:
    """Raises Unanswered while the change is on its way, and may still fail."""
    if (state := state_of(nic)) != "Succeeded":
        raise Unanswered("other", state, f"{_target(call)} is being changed")
    if not isinstance(call, Assign | AssignPrefix6):
        return Done()
    names = set(_names(call))
    return Done(_target(call), tuple(block for each in configurations(nic) if each["name"] in names
                                     for block in _block(each)))  # fmt: skip


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
