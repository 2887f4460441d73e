"""What is said on the socket of control, as values and as lines of JSON. Pure. The protocol, version 1:

    to the process     {"sessions": [ORDER, …]}   the whole of what is wanted; replaces what was wanted before
    from the process   {"bfd": 1, "process": TEXT, "realtime": BOOL, "problem": TEXT, "refused": {REASON: COUNT},
                        "sessions": [VIEW, …]}    at once when somebody connects, and after every change

An ORDER has peer, local, min_tx, min_rx (microseconds), multiplier, passive; a VIEW the fields of `View`. Unknown keys
are ignored. What the process wants is kept in a file by its side, so that it needs nobody to begin again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from ipaddress import ip_address
from typing import Any

from bfd.packet import MAX_INTERVAL, Diagnostic, State
from bfd.session import Remote, Session, Timers
from bfd.table import IPAddress, Order

SOCKET = "bfd.sock"  # in the run directory
PROTOCOL = 1
LINE_LIMIT = 1 << 20  # bytes, of either end
WORDS = {State.ADMIN_DOWN: "admin-down", State.DOWN: "down", State.INIT: "init", State.UP: "up"}


class ControlError(ValueError):
    """What came is not of this protocol."""


@dataclass(frozen=True, slots=True)
class View:
    """One session as others see it. `since` is unix time; intervals are microseconds."""

    peer: IPAddress
    local: IPAddress
    state: str
    since: float
    falls: int  # from up to not up
    failed: bool  # it was up and is not, and nobody wanted that
    peer_state: str
    interval: int  # between our packets, as agreed; 0 = none are wanted
    detection: int  # 0 = the peer is unknown
    reason: str  # why it is not up, "" = it is


@dataclass(frozen=True, slots=True)
class Report:
    """All that the process tells. `process` names this run of it: counts of another begin anew."""

    process: str = ""
    realtime: bool = False
    problem: str = ""
    refused: Mapping[str, int] = field(default_factory=dict)
    sessions: Mapping[IPAddress, View] = field(default_factory=dict)


def view(order: Order, session: Session, moved: float) -> View:
    """`moved`: unix time minus the monotonic clock."""
    return View(
        order.peer,
        order.local,
        WORDS[session.state],
        round(session.since + moved, 3),
        session.falls,
        session.has_failed,
        WORDS[session.remote.state],
        session.interval if session.remote.discriminator else session.tx_in_use,
        session.detection,
        session.reason,
    )


def report_line(report: Report) -> bytes:
    """One line with its end."""
    value = {
        "bfd": PROTOCOL,
        "process": report.process,
        "realtime": report.realtime,
        "problem": report.problem,
        "refused": dict(sorted(report.refused.items())),
        "sessions": [_plain(asdict(each)) for each in report.sessions.values()],
    }
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def parse_report(line: bytes) -> Report:
    """Raises ControlError."""
    value = _object(line)
    if value.get("bfd") != PROTOCOL:
        raise ControlError(f"restart the bfd process: this agent does not speak its protocol {value.get('bfd')}")
    try:
        views = [_made(View, each) for each in value["sessions"]]
        refused = {str(reason): int(count) for reason, count in value["refused"].items()}
        told = str(value["process"]), bool(value["realtime"]), str(value["problem"])
        return Report(*told, refused, {each.peer: each for each in views})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ControlError(f"what the bfd process says is not understood: {error!r}") from error


def order_line(orders: Iterable[Order]) -> bytes:
    """One line with its end."""
    return json.dumps({"sessions": _orders(orders)}, separators=(",", ":")).encode() + b"\n"


def _orders(orders: Iterable[Order]) -> list[dict[str, Any]]:
    return [_plain({"peer": each.peer, "local": each.local, **asdict(each.timers)}) for each in orders]


def parse_orders(line: bytes) -> dict[IPAddress, Order]:
    """Raises ControlError."""
    value = _object(line)
    try:
        found = [_order(each) for each in value["sessions"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ControlError(f"these are no sessions: {error!r}") from error
    return {order.peer: order for order in found}


def _order(value: Mapping[str, Any]) -> Order:
    order = Order(ip_address(value["peer"]), ip_address(value["local"]), _made(Timers, value))
    if order.peer.version != order.local.version:
        raise ValueError(f"{order.peer} and {order.local} are of two families")
    timers = order.timers
    intervals = (timers.min_tx, timers.min_rx)
    if not (1 <= timers.multiplier <= 255 and all(0 < each <= MAX_INTERVAL for each in intervals)):
        raise ValueError(f"timers out of range: {timers}")
    return order


# --- the file beside the process


@dataclass(frozen=True, slots=True)
class Kept:
    """What a process leaves to the next: orders, and sessions that were up when it paused, until `good_until`.

    `good_until`: seconds of the monotonic clock, which goes on from process to process, not over a reboot.
    """

    orders: Mapping[IPAddress, Order] = field(default_factory=dict)
    paused: Mapping[IPAddress, Session] = field(default_factory=dict)
    good_until: float = 0.0


def kept_text(kept: Kept) -> str:
    paused = {str(peer): asdict(session) for peer, session in kept.paused.items()}
    never = {"next_tx": None, "deadline": None}  # infinity is no JSON
    value = {
        "sessions": _orders(kept.orders.values()),
        "paused": {peer: {**each, **never} for peer, each in paused.items()},
        "good_until": kept.good_until,
    }
    return json.dumps(value)


def parse_kept(text: bytes) -> Kept:
    """Raises ControlError."""
    orders = parse_orders(text)
    value = _object(text)
    try:
        paused = {ip_address(peer): _session(each) for peer, each in value.get("paused", {}).items()}
        return Kept(orders, paused, float(value.get("good_until", 0.0)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ControlError(f"these are no sessions: {error!r}") from error


def _session(value: Mapping[str, Any]) -> Session:
    remote = dict(value["remote"])
    remote["state"] = State(remote["state"])
    return Session(
        discriminator=int(value["discriminator"]),
        state=State(value["state"]),
        diagnostic=Diagnostic(value["diagnostic"]),
        remote=_made(Remote, remote),
        since=float(value["since"]),
        falls=int(value["falls"]),
        was_up=bool(value["was_up"]),
        reason=str(value["reason"]),
    )


# --- JSON


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ControlError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ControlError("not a JSON object")
    return value


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    return {key: str(each) if key in ("peer", "local") else each for key, each in value.items()}


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "bool": (bool,),
    "str": (str,),
    "float": (int, float),
    "State": (State,),
}


def _made(kind: Any, value: Mapping[str, Any]) -> Any:
    """A dataclass from a JSON object: every field must be there, of its kind; addresses are text."""
    return kind(**{each.name: _value(value[each.name], str(each.type)) for each in fields(kind)})


def _value(value: Any, kind: str) -> Any:
    if kind == "IPAddress":
        return ip_address(value)
    if not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) and kind != "bool"):
        raise TypeError(f"expected {kind}, found {value!r}")
    return value
