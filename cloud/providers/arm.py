"""Azure Resource Manager: its operations, what its answers say of a change's end, and its faults as ours. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from cloud.backend import CloudFault, Data, Unanswered
from cloud.buckets import Rate
from cloud.calls import Problem
from cloud.model import Api, Vpc

API = Api(tokens=True, reassigns=False, makes=False, whole=True)
VPC = Vpc(router6=IPv6Address("fe80::1234:5678:9abc"), metadata=(IPv4Address("169.254.169.254"),))
NETWORK, OF_SCALE_SETS, COMPUTE = "2025-03-01", "2018-10-01", "2026-04-01"  # api-version


@dataclass(frozen=True, slots=True)
class Operation:
    """Of ARM, by the name that its specifications have for it."""

    method: str
    suffix: str = ""  # of the id
    version: str = NETWORK


def url(endpoint: str, operation: Operation, id_: str) -> str:
    return f"{endpoint}{id_}{operation.suffix}?api-version={operation.version}"


LIST, GET, PUT = "NetworkInterfaces_List", "NetworkInterfaces_Get", "NetworkInterfaces_CreateOrUpdate"
SET_LIST = "NetworkInterfaces_ListVirtualMachineScaleSetNetworkInterfaces"
SET_GET = "NetworkInterfaces_GetVirtualMachineScaleSetNetworkInterface"
VM_GET, VM_PUT = "VirtualMachineScaleSetVMs_Get", "VirtualMachineScaleSetVMs_Update"
VNET = "VirtualNetworks_Get"
OPERATIONS: Mapping[str, Operation] = {
    LIST: Operation("GET", "/providers/microsoft.network/networkinterfaces"),
    GET: Operation("GET"),
    PUT: Operation("PUT"),
    SET_LIST: Operation("GET", "/networkinterfaces", OF_SCALE_SETS),
    SET_GET: Operation("GET", version=OF_SCALE_SETS),
    VM_GET: Operation("GET", version=COMPUTE),
    VM_PUT: Operation("PUT", version=COMPUTE),
    VNET: Operation("GET"),
}
# A subscription may write 1,000 interfaces in 5 minutes. Others write, too: we take four fifths. How many instances of
# scale sets it may write is not said, and less.
RATES: Mapping[str, Rate] = {PUT: Rate(0.8 * 1000 / 300, 40), VM_PUT: Rate(1.0, 10)}

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


ACCEPTED = 202  # without a body, mostly


def is_under_way(status: int, body: Any, headers: Mapping[str, str]) -> bool:
    """Whether a change was taken, and is not done."""
    if not 200 <= status < 300:
        return False
    is_told = status == ACCEPTED or "Azure-AsyncOperation" in headers
    return is_told or (isinstance(body, Mapping) and state_of(body) not in ENDED)


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
