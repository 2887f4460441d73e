"""BFD of a peer: `bfd-profiles`, whose ranges are checked in the order of MetalLB 0.12, and our own key `bfd`. Pure.

Intervals of profiles are milliseconds, ours are durations; both come out in microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from routerd.formats.document import Value
from routerd.formats.legacy_bgp.decode import Struct
from routerd.formats.legacy_bgp.golang import parse_duration, quote
from routerd.model import Bfd

_RANGES = (
    ("detect-multiplier", "invalid detect multiplier value", 2, 255),
    ("receive-interval", "invalid receive interval value", 10, 60000),
    ("transmit-interval", "invalid transmit interval value", 10, 60000),
    ("minimum-ttl", "invalid minimum ttl value", 1, 254),
    ("echo-interval", "invalid minimum ttl value", 10, 60000),  # the original's own mistake, kept: same text
)
PROFILE_INTERVAL = 300  # milliseconds; what MetalLB and FRR take where a profile says nothing
_LEAST, _MOST = 10_000, 60_000_000  # microseconds, the same range as that of profiles


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile as we can do it, and what of it we do not do, "" = nothing."""

    bfd: Bfd
    not_done: str = ""


def read_profiles(structs: list[Struct]) -> dict[str, Profile]:
    """Profiles by name. Raises InputError with the original's message."""
    profiles: dict[str, Profile] = {}
    for index, struct in enumerate(structs, 1):
        fault = _fault(struct)
        if fault:
            raise struct.at(fault[0]).error(f"parsing bfd profile #{index}: {fault[1]}")
        name = struct.text("name")
        if name in profiles:
            raise struct.at("name").error(f"found duplicate bfd profile name {name}")
        profiles[name] = _profile(struct)
    return profiles


def _fault(struct: Struct) -> tuple[str, str] | None:
    if not struct.text("name"):
        return "name", "missing bfd profile name"
    for key, message, low, high in _RANGES:
        if key in struct.plain and not low <= struct.number(key) <= high:
            return key, f"{message}: invalid value {struct.number(key)}, must be in {low}-{high} range"
    return None


def _profile(struct: Struct) -> Profile:
    bfd = Bfd(
        interval=struct.number("transmit-interval", PROFILE_INTERVAL) * 1000,
        min_rx=struct.number("receive-interval", PROFILE_INTERVAL) * 1000,
        multiplier=struct.number("detect-multiplier", 3),
        passive=struct.flag("passive-mode"),
    )
    echo = "echo-mode is not done, asynchronous mode alone sees the peer" if struct.flag("echo-mode") else ""
    return Profile(bfd, echo)


def read_bfd(struct: Struct) -> Bfd | None:
    """`bfd` of a peer, None where it is not given. Raises InputError."""
    found = struct.structs("bfd")
    if not found:
        return None
    if struct.text("bfd-profile"):
        raise struct.at("bfd").error("expected either bfd or bfd-profile, found both")
    bfd, default = found[0], Bfd()
    multiplier = bfd.number("multiplier", default.multiplier)
    if not 2 <= multiplier <= 255:
        raise bfd.at("multiplier").error(f"invalid bfd multiplier {multiplier}: must be in 2-255 range")
    interval = _interval(bfd, "interval", default.interval)
    return Bfd(interval, _interval(bfd, "min-rx", interval), multiplier)


def _interval(struct: Struct, key: str, default: int) -> int:
    text = struct.text(key)
    return _microseconds(struct.at(key), key, text) if text else default


def _microseconds(place: Value, key: str, text: str) -> int:
    try:
        found = parse_duration(text) // 1000
    except ValueError as error:
        raise place.error(f"invalid bfd {key} {quote(text)}: {error}") from error
    if not _LEAST <= found <= _MOST:
        raise place.error(f"invalid bfd {key} {quote(text)}: must be from 10ms to 1m")
    return found
