"""Calico's selectors of nodes, as label selectors. Pure.

Source: https://docs.tigera.io/calico/latest/reference/resources/ippool#node-selector
"""

from __future__ import annotations

import re

from routerd.errors import InputError
from routerd.formats.document import Value
from routerd.formats.legacy_bgp.labels import key_faults, value_faults
from routerd.selectors import LabelSelector, Requirement

ALL = "all()"
_KEY = r"(?P<key>[^\s()!='\"{}&|,]+)"
_QUOTED = r"(?:'[^']*'|\"[^\"]*\")"
_WORDS = rf"\s*{_QUOTED}(?:\s*,\s*{_QUOTED})*\s*"
_TERMS = (
    re.compile(rf"has\(\s*{_KEY}\s*\)"),
    re.compile(rf"!\s*has\(\s*{_KEY}\s*\)"),
    re.compile(rf"{_KEY}\s*(?:==|=)\s*(?P<value>{_QUOTED})"),
    re.compile(rf"{_KEY}\s*!=\s*(?P<value>{_QUOTED})"),
    re.compile(rf"{_KEY}\s+in\s*\{{(?P<value>{_WORDS})\}}"),
    re.compile(rf"{_KEY}\s+not\s+in\s*\{{(?P<value>{_WORDS})\}}"),
)
_OPERATORS = ("Exists", "DoesNotExist", "In", "NotIn", "In", "NotIn")


def selector(place: Value | None) -> LabelSelector | None:
    """Terms with && between; None = everything. What else Calico's language has cannot be said by a label selector.

    Raises InputError.
    """
    text = place.string("a selector").strip() if place is not None else ""
    return None if place is None or text in ("", ALL) else _terms(place, text)


def alternatives(place: Value | None) -> tuple[LabelSelector, ...]:
    """Of which one must match, as || between has it; () = everything. Raises InputError."""
    text = place.string("a selector").strip() if place is not None else ""
    parts = [part.strip() for part in text.split("||")]
    return () if place is None or text == "" or ALL in parts else tuple(_terms(place, part) for part in parts)


def _terms(place: Value, text: str) -> LabelSelector:
    return LabelSelector((), tuple(_term(place, term.strip()) for term in text.split("&&") if term.strip() != ALL))


def _term(place: Value, text: str) -> Requirement:
    for term, operator in zip(_TERMS, _OPERATORS, strict=True):
        if match := term.fullmatch(text):
            found = match.groupdict()
            values = tuple(word[1:-1] for word in re.findall(_QUOTED, found.get("value") or ""))
            faults = [*key_faults(found["key"]), *(fault for word in values for fault in value_faults(word))]
            if not faults and (values or "value" not in found):
                return Requirement(found["key"], operator, values)  # type: ignore[arg-type]
    raise _not_read(place, text)


def _not_read(place: Value, text: str) -> InputError:
    known = 'all(), has(KEY), !has(KEY), KEY == "VALUE", !=, in {…} and not in {…}, with && between'
    return place.error(f'"{text}" of the selector is not read; these are: {known}')
