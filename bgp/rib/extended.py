"""Extended communities (RFC 4360) as text and as the eight bytes of an UPDATE. Pure.

    rt:64512:7, rt:4200000000:7, rt:192.0.2.1:7     route target (RFC 4360, section 4)
    soo:64512:7, …                                  route origin, the site of origin (section 5)
    link-bandwidth:64512:125000000                  bytes per second (draft-ietf-idr-link-bandwidth)

An AS number of more than two bytes leaves two for the number behind it (RFC 5668), and so does an IPv4 address. Texts
are in one form: numbers without leading zeros, a bandwidth as the 32-bit float has it that goes out. What has no such
text is the hexadecimal number of its bytes.
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Address
from struct import error, pack, unpack

FORM = "rt:64512:7, soo:64512:7 or link-bandwidth:64512:125000000"
_SUBTYPES = {"rt": 0x02, "soo": 0x03}
_AS2, _IPV4, _AS4, _BANDWIDTH = 0x00, 0x01, 0x02, 0x4004  # types; the last with its subtype: not transitive
MAX_BANDWIDTH = 10**18  # bytes per second


def is_named(text: str) -> bool:
    """Whether it is meant as one."""
    return text.partition(":")[0] in (*_SUBTYPES, "link-bandwidth")


@lru_cache(maxsize=4096)
def is_extended(text: str) -> bool:
    """Whether it is one, in normal form."""
    with suppress(ValueError):
        return is_named(text) and normal(text) == text
    return False


def normal(text: str) -> str:
    """Raises ValueError that says what was expected."""
    return text_of(packed(text))


def packed(text: str) -> bytes:
    """The eight bytes. Raises ValueError that says what was expected."""
    if text.startswith("0x"):
        return bytes.fromhex(text[2:])
    kind, _, rest = text.partition(":")
    admin, _, number = rest.rpartition(":")
    if kind == "link-bandwidth":
        return pack("!HHf", _BANDWIDTH, _number(admin, 0xFFFF), float(_number(number, MAX_BANDWIDTH)))
    if kind not in _SUBTYPES:
        raise ValueError(f"expected {FORM}")
    if "." in admin:
        return pack("!BB4sH", _IPV4, _SUBTYPES[kind], IPv4Address(admin).packed, _number(number, 0xFFFF))
    asn = _number(admin, 0xFFFFFFFF)
    if asn > 0xFFFF:
        return pack("!BBIH", _AS4, _SUBTYPES[kind], asn, _number(number, 0xFFFF))
    return pack("!BBHI", _AS2, _SUBTYPES[kind], asn, _number(number, 0xFFFFFFFF))


def _number(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= most):
        raise ValueError(f"found {text!r}, expected a number of 0 to {most}")
    return int(text)


def text_of(wire: bytes) -> str:
    """Of eight bytes."""
    found = ""
    with suppress(error):
        found = _named(wire)
    return found if found and packed(found) == wire else f"0x{wire.hex()}"


def _named(wire: bytes) -> str:
    """ "" = it has no name here."""
    kind = next((name for name, subtype in _SUBTYPES.items() if subtype == wire[1]), "")
    match wire[0]:
        case 0x40 if wire[1] == 0x04:
            asn, speed = unpack("!Hf", wire[2:])
            whole = math.isfinite(speed) and 0 <= speed <= MAX_BANDWIDTH and speed == int(speed)
            return f"link-bandwidth:{asn}:{int(speed)}" if whole else ""
        case 0x00 if kind:
            return "{}:{}:{}".format(kind, *unpack("!HI", wire[2:]))
        case 0x01 if kind:
            return f"{kind}:{IPv4Address(wire[2:6])}:{int.from_bytes(wire[6:])}"
        case 0x02 if kind:
            asn, number = unpack("!IH", wire[2:])
            return f"{kind}:{asn}:{number}"
    return ""
