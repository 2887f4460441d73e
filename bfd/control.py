"""What is said on the socket of control, as values and as lines of JSON. Pure. The protocol, version 1:

    to the process     {"sessions": [ORDER, …],   the whole of what is wanted; replaces what was wanted before
                        "probing": PROBING}       each may be left out: that part stays as it is
    from the process   {"bfd": 1, "process": TEXT, "realtime": BOOL, "problem": TEXT, "refused": {REASON: COUNT},
                        "probes": PROBES,
                        "sessions": [VIEW, …]}    at once when somebody connects, and after every change

An ORDER has peer, local, min_tx, min_rx (microseconds), multiplier, passive; PROBING the fields of `Probing`; a VIEW
and PROBES those of `View` and `Probes`. Unknown keys are ignored. What the process wants is kept in a file by its side,
so that it needs nobody to begin again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from ipaddress import ip_address
from typing import Any

from bfd.packet import MAX_INTERVAL, Diagnostic, State
from bfd.probes import Probing
from bfd.session import Remote, Session, Timers
from bfd.table import Ends, IPAddress, Order

SOCKET = "bfd.sock"  # in the run directory
PROTOCOL = 1
LINE_LIMIT = 1 << 20  # bytes, of either end
WORDS = {State.ADMIN_DOWN: "admin-down", State.DOWN: "down", State.INIT: "init", State.UP: "up"}


class ControlError(ValueError):
    """What came is not of this protocol."""


@dataclass(frozen=True, slots=True)
class View:
    """One session as others see it. `since` is of the monotonic clock; intervals are microseconds."""

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
class Probes:
    """How it goes with probes of gateways."""

    probing: Probing | None = None  # what it was told last, by whomever
    problem: str = ""  # why none is sent, "" = they are
    stalls: int = 0  # how often the process stood still, and found nobody dead meanwhile
    stalled: float = 0.0  # seconds in all


MISFITS = (KeyError, TypeError, ValueError, AttributeError, OverflowError)  # what JSON of another shape leads to


@dataclass(frozen=True, slots=True)
class Wanted:
    """None of a part = nothing is said of it: it stays as it is."""

    sessions: Mapping[Ends, Order] | None = None
    probing: Probing | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All that the process tells. `process` names this run of it: counts of another begin anew.

    `probes` None = it is of a release that sends none.
    """

    process: str = ""
    realtime: bool = False
    problem: str = ""
    refused: Mapping[str, int] = field(default_factory=dict)
    sessions: Mapping[Ends, View] = field(default_factory=dict)
    probes: Probes | None = None


def view(order: Order, session: Session) -> View:
    return View(
        order.peer,
        order.local,
        WORDS[session.state],
        round(session.since, 3),
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
        **({"probes": _probes_told(report.probes)} if report.probes is not None else {}),
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
        probes = _probes(value["probes"]) if "probes" in value else None
        return Report(*told, refused, {(each.peer, each.local): each for each in views}, probes)
    except MISFITS as error:
        raise ControlError(f"what the bfd process says is not understood: {error!r}") from error


def wanted_line(wanted: Wanted) -> bytes:
    """One line with its end."""
    return json.dumps(_wanted(wanted), separators=(",", ":")).encode() + b"\n"


def _wanted(wanted: Wanted) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if wanted.sessions is not None:
        found["sessions"] = _orders(wanted.sessions.values())
    if wanted.probing is not None:
        found["probing"] = _probing_told(wanted.probing)
    return found


def _probing_told(probing: Probing) -> dict[str, Any]:
    return {**_plain(asdict(probing)), "gateways": sorted(probing.gateways), "direct": sorted(probing.direct)}


def _probes_told(probes: Probes) -> dict[str, Any]:
    return {**asdict(probes), "probing": _probing_told(probes.probing) if probes.probing is not None else None}


def _probes(value: Mapping[str, Any]) -> Probes:
    probing = _probing(value["probing"]) if value["probing"] is not None else None
    return Probes(
        probing, _value(value["problem"], "str"), _value(value["stalls"], "int"), _value(value["stalled"], "float")
    )


def _orders(orders: Iterable[Order]) -> list[dict[str, Any]]:
    return [_plain({"peer": each.peer, "local": each.local, **asdict(each.timers)}) for each in orders]


def parse_wanted(line: bytes) -> Wanted:
    """Raises ControlError."""
    value = _object(line)
    if not {"sessions", "probing"} & value.keys():
        raise ControlError("nothing is wanted: neither sessions nor probing")
    try:
        orders = [_order(each) for each in value["sessions"]] if "sessions" in value else None
        probing = _probing(value["probing"]) if "probing" in value else None
    except MISFITS as error:
        raise ControlError(f"these are no sessions: {error!r}") from error
    return Wanted({order.ends: order for order in orders} if orders is not None else None, probing)


def _probing(value: Mapping[str, Any]) -> Probing:
    device, interval = _value(value["device"], "str"), _value(value["interval"], "int")
    gateways, direct = (frozenset(_value(each, "int") for each in value.get(key, ())) for key in ("gateways", "direct"))
    are_nodes = all(0 < each < 1 << 16 for each in gateways | direct)
    if not (0 < interval <= MAX_INTERVAL and 0 < len(device) < 16 and are_nodes):
        raise ValueError(f"probing out of range: {value}")
    return Probing(device, ip_address(value["local"]), interval, gateways, direct)


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

    orders: Mapping[Ends, Order] = field(default_factory=dict)
    paused: Mapping[Ends, Session] = field(default_factory=dict)
    good_until: float = 0.0
    probing: Probing | None = None


def kept_text(kept: Kept) -> str:
    never = {"next_tx": None, "deadline": None}  # infinity is no JSON
    paused = [
        {"peer": str(peer), "local": str(local), **asdict(session), **never}
        for (peer, local), session in kept.paused.items()
    ]
    value = {
        **_wanted(Wanted(kept.orders, kept.probing)),
        "paused": paused,
        "good_until": kept.good_until,
    }
    return json.dumps(value)


def parse_kept(text: bytes) -> Kept:
    """Raises ControlError."""
    wanted = parse_wanted(text)
    value = _object(text)
    try:
        paused = {
            (ip_address(each["peer"]), ip_address(each["local"])): _session(each) for each in value.get("paused", [])
        }
        return Kept(wanted.sessions or {}, paused, float(value.get("good_until", 0.0)), wanted.probing)
    except MISFITS as error:
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
    except (ValueError, RecursionError) as error:
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
