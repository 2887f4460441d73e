"""What is in the fake cloud. Values; the core replaces them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Any


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, code: str, message: str = "", status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status = code, message or code, status


class Dropped(Exception):
    """No answer: the connection breaks."""


@dataclass(frozen=True, slots=True)
class TypeOfInstance:
    interfaces: int
    ipv4: int
    hypervisor: str = "nitro"
    ipv6: int = 10


@dataclass(frozen=True, slots=True)
class FakeInstance:
    id: str
    type: str
    zone: str
    vpc: str
    subnet: str
    groups: tuple[str, ...]
    state: str = "running"


@dataclass(frozen=True, slots=True)
class FakeSubnet:
    id: str
    vpc: str
    zone: str
    cidr: IPv4Network
    cidr6: IPv6Network | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FakeGroup:
    id: str
    vpc: str
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attachment:
    id: str
    instance: str
    index: int
    status: str  # attaching, attached, detaching
    delete_on_termination: bool = False


@dataclass(frozen=True, slots=True)
class Eni:
    id: str
    mac: str
    subnet: str
    primary: IPv4Address
    addresses: tuple[IPv4Address, ...] = ()
    prefixes: tuple[IPv4Network, ...] = ()
    prefixes6: tuple[IPv6Network, ...] = ()
    groups: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    attachment: Attachment | None = None
    created: float = 0.0  # seconds of the Unix epoch
    kind: str = "Secondary"  # as ECS has it, or Trunk, Member
    traffic: str = "Standard"  # or HighPerformance
    changing: str = ""  # "Creating", "Updating" or "Deleting" while it is; "Failed"
    goes_with_instance: bool = False  # from its creation
    configurations: tuple[Mapping[str, Any], ...] = ()  # of IP, and what else was written, as ARM has them
    settings: Mapping[str, Any] = field(default_factory=dict)
    version: int = field(default=0, compare=False)  # another one with each change: ARM's ETag

    @property
    def status(self) -> str:
        return "in-use" if self.attachment else "available"

    @property
    def slots(self) -> int:
        """How much of what an interface holds is taken; the primary address counts."""
        return 1 + len(self.addresses) + len(self.prefixes)
