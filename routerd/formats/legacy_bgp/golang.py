"""Go's ideas of durations, numbers, addresses and quoted strings (Go 1.19), with the wording of its errors. Pure."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address

from ipam.ranges import networks_between
from routerd.errors import InputError
from routerd.formats.document import MAX_DIGITS, parse_address, parse_network
from routerd.model import IPAddress, IPNetwork

_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}
_ESCAPES |= {'"': '\\"', "\\": "\\\\"}
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_AMOUNT = re.compile(r"([0-9]*)(?:(\.)([0-9]*))?")
_UNIT = re.compile(r"[^.0-9]*")
MAX_INT64 = 2**63 - 1
MIXED_FAMILIES: tuple[IPNetwork, ...] = ()  # what a range from one family to the other comes to


def quote(text: str) -> str:
    """Go's %q."""
    return '"' + "".join(_quote_rune(rune) for rune in text) + '"'


def _quote_rune(rune: str) -> str:
    if rune in _ESCAPES:
        return _ESCAPES[rune]
    if rune.isprintable():
        return rune
    code = ord(rune)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def parse_duration(text: str) -> int:
    """time.ParseDuration, in nanoseconds. Raises ValueError with Go's message."""
    sign = -1 if text.startswith("-") else 1
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0
    if not rest:
        raise ValueError(f"time: invalid duration {quote(text)}")
    total = 0
    while rest:
        nanoseconds, rest = _duration_part(rest, text)
        total += nanoseconds
        if total > MAX_INT64 + (sign < 0):
            raise ValueError(f"time: invalid duration {quote(text)}")
    return sign * total


def _duration_part(rest: str, whole: str) -> tuple[int, str]:
    """The first number with its unit, in nanoseconds, and what is left."""
    amount = _AMOUNT.match(rest)
    integer, _, fraction = amount.groups() if amount else ("", None, None)
    if not integer and not fraction:
        raise ValueError(f"time: invalid duration {quote(whole)}")
    rest = rest[amount.end() if amount else 0 :]
    match = _UNIT.match(rest)
    unit = match.group() if match else ""
    if not unit:
        raise ValueError(f"time: missing unit in duration {quote(whole)}")
    if unit not in _UNITS:
        raise ValueError(f"time: unknown unit {quote(unit)} in duration {quote(whole)}")
    scale = _UNITS[unit]
    integer, fraction = integer.lstrip("0") or "0", (fraction or "")[:MAX_DIGITS]  # what is behind is no nanosecond
    if len(integer) > MAX_DIGITS:
        raise ValueError(f"time: invalid duration {quote(whole)}")
    part = int(fraction or "0") * scale // 10 ** len(fraction)
    return int(integer) * scale + part, rest[len(unit) :]


def whole_seconds(nanoseconds: int) -> int:
    """Cut to whole seconds, towards zero."""
    return -(-nanoseconds // 10**9) if nanoseconds < 0 else nanoseconds // 10**9


def parse_uint(text: str, bits: int) -> int:
    """strconv.ParseUint in base 10. Raises ValueError with Go's message."""
    if not re.fullmatch(r"[0-9]+", text, re.ASCII):
        raise ValueError(f"strconv.ParseUint: parsing {quote(text)}: invalid syntax")
    digits = text.lstrip("0") or "0"  # Python refuses to read thousands of digits, and says so in its own words
    if len(digits) > MAX_DIGITS or int(digits) >= 1 << bits:
        raise ValueError(f"strconv.ParseUint: parsing {quote(text)}: value out of range")
    return int(digits)


def parse_ip(text: str) -> IPAddress | None:
    """net.ParseIP."""
    return parse_address(text)


def parse_addresses(text: str, *, refuse_backwards: bool) -> tuple[IPNetwork, ...]:
    """A CIDR, or a range "start-end" as its minimal list of CIDRs. Raises ValueError with MetalLB's message."""
    if "-" not in text:
        network = parse_network(text)
        if network is None:
            raise ValueError(f"invalid CIDR {quote(text)}")
        return (network,)
    first, _, last = text.partition("-")
    start, end = parse_ip(first.strip()), parse_ip(last.strip())
    if start is None:
        raise ValueError(f"invalid IP range {quote(text)}: invalid start IP {quote(first)}")
    if end is None:
        raise ValueError(f"invalid IP range {quote(text)}: invalid end IP {quote(last)}")
    if refuse_backwards and _sixteen_bytes(start) > _sixteen_bytes(end):
        raise ValueError(f'invalid IP range {quote(text)}: start IP "{start}" is after the end IP "{end}"')
    return _summarize(start, end)


def _summarize(start: IPAddress, end: IPAddress) -> tuple[IPNetwork, ...]:
    if start.version != end.version or int(start) > int(end):
        return MIXED_FAMILIES
    return networks_between(start, end)


def _sixteen_bytes(address: IPAddress) -> int:
    """Go compares addresses in their IPv4-mapped form."""
    return int(address) if isinstance(address, IPv6Address) else int(ip_address(f"::ffff:{address}"))


def prefixed(prefix: str, error: InputError) -> InputError:
    """With a word before it, as Go wraps an error (`%w`)."""
    return InputError(prefix + error.message, file=error.file, line=error.line, column=error.column, key=error.key)
