"""What `routerd-cni`, `routerd-ipam` and the agent say to each other, as values. Pure.

    request   NAME=VALUE and a zero byte for each variable CNI_…, one more zero byte, the network configuration as the
              runtime wrote it, the end of the stream
    answer    "EXIT LENGTH\\n" and LENGTH bytes for the plugin's standard output

One request and one answer a connection. Form and codes of results and errors: CNI specification 1.1.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface
from typing import Any

IPAddress = IPv4Address | IPv6Address
Pod = tuple[str, str]  # namespace, name
MOST_BYTES = (1 << 20) + (1 << 18)  # of a request: a configuration of 1 MiB, and variables
NEWEST = "1.1.0"
ATTACHED = ("ADD", "CHECK", "DEL")  # commands about one attachment
CHAINED, IPAM = "routerd-cni", "routerd-ipam"  # the program's names
DEFAULT_TIMEOUT = 5  # seconds that a plugin waits, if its configuration does not say
MOST_TIMEOUT = 60  # seconds; of routerd-cni.c
PATIENCE = 0.8  # of that: the plugin is told why, before it gives up

# Codes of errors: the specification's section "Error".
UNKNOWN_CONTAINER, WRONG_ENVIRONMENT, NOT_DECODED, WRONG_CONFIGURATION, TRY_AGAIN, NOT_AVAILABLE = 3, 4, 6, 7, 11, 50


class Refused(Exception):
    """The runtime is told no: `code` of the specification, and one line."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Request:
    """`arguments`: CNI_ARGS. `network`: the configuration, with `prevResult`."""

    command: str
    container: str = ""
    interface: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str:
        return str(self.network.get("cniVersion", ""))

    @property
    def section(self) -> Mapping[str, Any]:
        """Of the main plugin's configuration what is for its IPAM plugin."""
        found = self.network.get("ipam")
        return found if isinstance(found, dict) else {}

    @property
    def gateways(self) -> tuple[IPAddress, ...]:
        """Of that section: the host's own in blocks of the node. Raises Refused."""
        try:
            return tuple(map(ip_address, self.section.get("gateways", ())))
        except (TypeError, ValueError) as error:
            raise Refused(WRONG_CONFIGURATION, f"ipam.gateways is no list of addresses: {error}") from error

    @property
    def pod(self) -> Pod | None:
        """None = it is not Kubernetes that makes the container."""
        namespace, name = (self.arguments.get(f"K8S_POD_{part}", "") for part in ("NAMESPACE", "NAME"))
        return (namespace, name) if namespace and name else None

    @property
    def uid(self) -> str:
        """Of the pod; "" = the runtime does not tell."""
        return self.arguments.get("K8S_POD_UID", "")

    @property
    def allows(self) -> bool:
        """Whether a pod may start that the agent knows nothing of."""
        return self.network.get("onAgentAbsent") == "allow"

    @property
    def result(self) -> Mapping[str, Any]:
        """Of the plugins before us. Raises Refused: without one it is no chain."""
        found = self.network.get("prevResult")
        if not isinstance(found, dict):
            raise Refused(WRONG_CONFIGURATION, "no prevResult: routerd-cni is no main plugin, it follows one")
        return found

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """The pod's, as the plugins before us gave them. Raises Refused."""
        try:
            interfaces = self.result.get("interfaces") or []
            ips = [each for each in self.result.get("ips") or [] if _is_inside(each.get("interface"), interfaces)]
            return tuple(dict.fromkeys(ip_interface(each["address"]).ip for each in ips))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise Refused(WRONG_CONFIGURATION, "prevResult.ips or prevResult.interfaces is not as specified") from error

    @property
    def devices(self) -> tuple[str, ...]:
        """The node's ends of what the plugins before us made, by name. Raises Refused."""
        try:
            return tuple(str(each["name"]) for each in self.result.get("interfaces") or [] if not each.get("sandbox"))
        except (AttributeError, KeyError, TypeError) as error:
            raise Refused(WRONG_CONFIGURATION, "prevResult.interfaces is not as specified") from error

    @property
    def valid(self) -> frozenset[tuple[str, str]]:
        """GC: container and interface of every attachment that still is. Raises Refused."""
        try:
            found = self.network["cni.dev/valid-attachments"]
            return frozenset((each["containerID"], each["ifname"]) for each in found)
        except (KeyError, TypeError) as error:
            raise Refused(WRONG_CONFIGURATION, "cni.dev/valid-attachments is not as specified") from error


def _is_inside(index: int | None, interfaces: list[Any]) -> bool:
    """Whether an address is the container's: its interface has a sandbox, or the plugin names none."""
    return index is None or bool(interfaces[index].get("sandbox"))


def parse(data: bytes) -> Request:
    """Raises Refused."""
    head, there, body = data.partition(b"\0\0")
    if not there:
        raise Refused(NOT_DECODED, "the request is cut")
    variables = dict(_pair(each) for each in head.decode(errors="replace").split("\0"))
    try:
        network = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(NOT_DECODED, "the network configuration is no JSON") from error
    if not isinstance(network, dict):
        raise Refused(NOT_DECODED, "the network configuration is no JSON object")
    arguments = dict(_pair(each) for each in variables.get("CNI_ARGS", "").split(";"))
    names = ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME")
    command, container, interface = (variables.get(name, "") for name in names)
    if command in ATTACHED and not (container and interface):
        raise Refused(WRONG_ENVIRONMENT, f"{command} without CNI_CONTAINERID or CNI_IFNAME")
    return Request(command, container, interface, arguments, network)


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def answer(result: Mapping[str, Any] | None) -> bytes:
    """Success; None = nothing is printed."""
    return _framed(0, b"" if result is None else json.dumps(result, separators=(",", ":")).encode())


def timeout_of(settings: Mapping[str, Any]) -> float:
    """Seconds. The plugin has refused what is out of range, but whoever reaches the socket may send it."""
    found = settings.get("timeout", DEFAULT_TIMEOUT)
    return float(max(0, min(found, MOST_TIMEOUT))) if isinstance(found, int) else DEFAULT_TIMEOUT


@dataclass(frozen=True, slots=True)
class Given:
    """One address of a pod. `gateway`: what the main plugin makes the host's own for it."""

    interface: IPv4Interface | IPv6Interface
    gateway: IPAddress


def addresses_result(request: Request, given: Iterable[Given]) -> dict[str, Any]:
    """What an IPAM plugin prints: the addresses, and the routes that its section names, else to everywhere."""
    given = tuple(given)
    ips = [{"address": str(each.interface), "gateway": str(each.gateway)} for each in given]
    if request.version.startswith("0."):  # the family was told apart by name before 1.0
        ips = [{"version": str(each.interface.version), **ip} for each, ip in zip(given, ips, strict=True)]
    everywhere = [{"dst": "0.0.0.0/0" if each.interface.version == 4 else "::/0"} for each in given]
    return {"cniVersion": request.version, "ips": ips, "routes": request.section.get("routes", everywhere)}


def refusal(refused: Refused, version: object = NEWEST, program: str = CHAINED) -> bytes:
    """An error, in the request's version."""
    error = {"cniVersion": version, "code": refused.code, "msg": f"{program}: {refused}"}
    return _framed(1, json.dumps(error, separators=(",", ":")).encode())


def _framed(code: int, body: bytes) -> bytes:
    return b"%d %d\n%s" % (code, len(body), body)
