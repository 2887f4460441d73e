"""What `routerd-cni` and the agent say to each other, as values. Pure.

    request   NAME=VALUE and a zero byte for each variable CNI_…, one more zero byte, the network configuration as the
              runtime wrote it, the end of the stream
    answer    "EXIT LENGTH\\n" and LENGTH bytes for the plugin's standard output

One request and one answer a connection. Form and codes of results and errors: CNI specification 1.1.0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_interface
from typing import Any

IPAddress = IPv4Address | IPv6Address
Pod = tuple[str, str]  # namespace, name
MOST_BYTES = (1 << 20) + (1 << 18)  # of a request: a configuration of 1 MiB, and variables
NEWEST = "1.1.0"
ATTACHED = ("ADD", "CHECK", "DEL")  # commands about one attachment

# Codes of errors: the specification's section "Error".
WRONG_ENVIRONMENT, NOT_DECODED, WRONG_CONFIGURATION, TRY_AGAIN, NOT_AVAILABLE = 4, 6, 7, 11, 50


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


def refusal(refused: Refused, version: object = NEWEST) -> bytes:
    """An error, in the request's version."""
    error = {"cniVersion": version, "code": refused.code, "msg": f"routerd-cni: {refused}"}
    return _framed(1, json.dumps(error, separators=(",", ":")).encode())


def _framed(code: int, body: bytes) -> bytes:
    return b"%d %d\n%s" % (code, len(body), body)
