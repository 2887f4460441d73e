"""The calls that change something in a cloud, and what became of one. Values.

A call is recorded as an intent before it is sent, as a row of plain cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Address, ip_network
from typing import Any, Literal

from cloud.model import Network

Row = list[Any]
Problem = Literal[
    "no-addresses",  # the subnet has none left
    "no-prefixes",  # the subnet has no whole prefix left
    "limit",  # of the instance type, or a quota of the account
    "throttled",
    "denied",  # a permission is missing, or credentials are not accepted
    "gone",  # what the call names is not there (any more)
    "not-now",  # its state does not allow it
    "unreachable",  # it was never sent
    "other",
]


@dataclass(frozen=True, slots=True)
class Create:
    """A new interface with `count` secondary addresses, or prefixes. `token` makes a repetition give the same one."""

    token: str
    subnet: str
    groups: tuple[str, ...]
    count: int
    prefixes: bool = False
    prefix6: bool = False  # with one /80
    tags: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Attach:
    interface: str
    instance: str
    index: int


@dataclass(frozen=True, slots=True)
class Bind:
    """From now on the interface is deleted with its instance."""

    interface: str
    attachment: str


@dataclass(frozen=True, slots=True)
class Assign:
    """`count` more secondary addresses, or prefixes. Without a token it gives twice as many when it is sent twice."""

    interface: str
    count: int
    prefixes: bool = False
    token: str = ""


@dataclass(frozen=True, slots=True)
class AssignPrefix6:
    """One /80 more."""

    interface: str
    token: str = ""


@dataclass(frozen=True, slots=True)
class Take:
    """These very addresses, away from whichever interface has one as a secondary one: all of them, or none."""

    interface: str
    addresses: tuple[IPv4Address, ...]


@dataclass(frozen=True, slots=True)
class Unassign:
    """Of IPv4: the one IPv6 prefix of an instance stays."""

    interface: str
    blocks: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class Detach:
    """An interface that has no blocks any more, from the instance that has it."""

    interface: str
    attachment: str
    instance: str


@dataclass(frozen=True, slots=True)
class Delete:
    """An interface that is attached to nothing."""

    interface: str


Call = Create | Attach | Bind | Assign | AssignPrefix6 | Take | Unassign | Detach | Delete
KINDS: Mapping[str, type[Call]] = {
    "create": Create,
    "attach": Attach,
    "bind": Bind,
    "assign": Assign,
    "assign-prefix6": AssignPrefix6,
    "take": Take,
    "unassign": Unassign,
    "detach": Detach,
    "delete": Delete,
}
_NAMES = {kind: name for name, kind in KINDS.items()}


def name(call: Call) -> str:
    return _NAMES[type(call)]


def call_row(call: Call) -> Row:
    """The name of its kind, then its fields."""
    return [name(call), *(_cell(getattr(call, each.name)) for each in fields(call))]


def _cell(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_cell(each) for each in value]
    return value if isinstance(value, str | int | bool) else str(value)


def read_call(kind: str, *cells: Any) -> Call:
    """Raises ValueError or TypeError for what is no row of a call."""
    if kind not in KINDS:
        raise ValueError(f"call {kind!r}")
    if kind == "unassign":
        interface, blocks = cells
        return Unassign(interface, tuple(map(ip_network, blocks)))
    if kind == "take":
        interface, named = cells
        addresses = [named] if isinstance(named, str) else named  # one text, as it was while a call took one address
        return Take(interface, tuple(map(IPv4Address, addresses)))
    if kind == "create":
        token, subnet, groups, count, prefixes, prefix6, tags = cells
        return Create(token, subnet, tuple(groups), count, prefixes, prefix6, tuple((key, text) for key, text in tags))
    return KINDS[kind](*cells)


# --- what became of it


@dataclass(frozen=True, slots=True)
class Done:
    """It was accepted. What it gave, where the cloud says so at once; that it is there, only describe can tell."""

    interface: str = ""
    blocks: tuple[Network, ...] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was changed. `code` and `message` are the cloud's own, as is `after`: seconds to wait; 0 = unsaid."""

    problem: Problem
    code: str
    message: str
    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Unknown:
    """Sent, and no answer that says whether it was done: only describe can tell."""

    message: str


Outcome = Done | Refused | Unknown
