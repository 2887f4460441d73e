"""Times of a peer, in seconds but where they say otherwise: the checks of the two parsers, and ours. Pure."""

from __future__ import annotations

from routerd.formats.document import Value
from routerd.formats.legacy_bgp.decode import Struct
from routerd.formats.legacy_bgp.golang import parse_duration, quote, whole_seconds
from routerd.formats.legacy_bgp.structure import Dialect

DEFAULT_HOLD_TIME = 90 * 10**9
MAX_HOLD_TIME = 65535  # seconds; 16 bits in the OPEN message (RFC 4271, section 4.2)
MAX_CONNECT_RETRY = 65535  # seconds, as MetalLB has it
MAX_RESTART_TIME = 4095  # seconds; 12 bits in the capability (RFC 4724, section 3)


def _duration(place: Value, text: str, message: str) -> int:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise place.error(f"{message} {quote(text)}: {error}") from error


def hold_time(struct: Struct, dialect: Dialect) -> int:
    """Whole seconds: 500ms is 0, which turns the timers off."""
    text, place = struct.text("hold-time"), struct.at("hold-time")
    seconds = whole_seconds(_duration(place, text, "invalid hold time") if text else DEFAULT_HOLD_TIME)
    if seconds != 0 and seconds < 3:
        raise place.error(f"invalid hold time {quote(text)}: must be 0 or >=3s")
    if dialect == "native" and seconds > MAX_HOLD_TIME:
        raise place.error(f"invalid hold time {quote(text)}: must be at most {MAX_HOLD_TIME}s")
    return seconds


def keepalive_time(struct: Struct, hold_time: int) -> int:
    """Nanoseconds."""
    text, place = struct.text("keepalive-time"), struct.at("keepalive-time")
    if not text:
        return hold_time * 10**9 // 3
    seconds = whole_seconds(_duration(place, text, "invalid keepalive time"))
    if seconds > hold_time:
        raise place.error(f"invalid keepaliveTime {quote(text)}")
    return seconds * 10**9


def restart_time(struct: Struct) -> int:
    text, place = struct.text("graceful-restart-time"), struct.at("graceful-restart-time")
    if not text:
        return 120
    seconds = whole_seconds(_duration(place, text, "invalid graceful restart time"))
    if not 0 <= seconds <= MAX_RESTART_TIME:
        raise place.error(f"invalid graceful restart time {quote(text)}: must be from 0s to {MAX_RESTART_TIME}s")
    return seconds


def connect_retry(struct: Struct) -> int:
    text, place = struct.text("connect-retry"), struct.at("connect-retry")
    if not text:
        return 0
    if struct.flag("passive"):
        raise place.error("a passive peer connects itself: without connect-retry")
    seconds = whole_seconds(_duration(place, text, "invalid connect retry time"))
    if not 1 <= seconds <= MAX_CONNECT_RETRY:
        raise place.error(f"invalid connect retry time {quote(text)}: must be from 1s to {MAX_CONNECT_RETRY}s")
    return seconds
