"""Which type a scalar has for yaml.v2, the library of both legacy parsers. Pure.

Unquoted `0xFC00`, `64_512`, `0100` and even `1.10` are numbers there; anything quoted is a string.
"""

from __future__ import annotations

import math
import re

from routerd.formats.document import IMPLICIT, MAX_DIGITS, NULLS, Value

Resolved = str | int | float | bool | None
TAGS = "tag:yaml.org,2002:"

_TRUE = frozenset({"y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"})
_FALSE = frozenset({"n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"})
_SPECIAL = {".nan": math.nan, ".NaN": math.nan, ".NAN": math.nan}
_SPECIAL |= {sign + name: math.inf for sign in ("", "+") for name in (".inf", ".Inf", ".INF")}
_SPECIAL |= {"-" + name: -math.inf for name in (".inf", ".Inf", ".INF")}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INTEGER = re.compile(r"([-+]?)(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]+|0|[1-9][0-9]*)")
_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ][0-9]{1,2}:[0-9]{1,2}:[0-9]{1,2}.*)?")


def resolve(value: Value) -> tuple[str, Resolved]:
    """The short tag ("!!int") and the value of a scalar."""
    if value.is_quoted and value.node.tag == IMPLICIT:
        return "!!str", value.text
    if value.node.tag not in (IMPLICIT, TAGS + "int", TAGS + "float", TAGS + "bool", TAGS + "null"):
        return "!!" + value.node.tag.removeprefix(TAGS), value.text
    return _resolve_plain(value.text)


def _resolve_plain(text: str) -> tuple[str, Resolved]:
    if text in NULLS:
        return "!!null", None
    if text in _TRUE or text in _FALSE:
        return "!!bool", text in _TRUE
    if text in _SPECIAL:
        return "!!float", _SPECIAL[text]
    if text[0] in "+-.0123456789":
        return _resolve_number(text)
    return "!!str", text


def _resolve_number(text: str) -> tuple[str, Resolved]:
    if _TIMESTAMP.fullmatch(text):
        return "!!timestamp", text
    plain = text.replace("_", "") if text[0] != "." else text
    if text[0] != "." and (number := _parse_integer(plain)) is not None:
        return "!!int", number
    if _FLOAT.fullmatch(plain):
        return "!!float", float(plain)
    return "!!str", text


def _parse_integer(text: str) -> int | None:
    """strconv.ParseInt and ParseUint in base 0 with 64 bits: a leading zero means octal."""
    match = _INTEGER.fullmatch(text)
    if match is None or len(text) > MAX_DIGITS:
        return None
    digits = match[2].lower()
    is_old_octal = len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
    number = int(digits, 8) if is_old_octal else int(digits, 0)
    if number >= 1 << 64 or (match[1] and number > 1 << 63):
        return None
    return -number if match[1] == "-" else number


def as_integer(resolved: Resolved, low: int, high: int) -> int | None:
    """What yaml.v2 stores into an integer of that range: floats are cut. None = it refuses."""
    if isinstance(resolved, bool) or not isinstance(resolved, int | float) or resolved != resolved:
        return None
    if isinstance(resolved, float) and math.isinf(resolved):
        return None
    number = int(resolved)
    return number if low <= number <= high and not (low == 0 and resolved < 0) else None
