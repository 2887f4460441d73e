"""Strict decoding of a document into the structures of the legacy parsers, and of our superset of them. Pure.

Every mismatch is noted, as yaml.v2 does; the caller turns the notes into one error. Decoded values keep their places,
so that later checks can point at the culprit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from routerd.errors import InputError
from routerd.formats.document import DECIMAL, Value, is_merge, merge_sources, pairs, unknown_key
from routerd.formats.legacy_bgp.golang import quote
from routerd.formats.legacy_bgp.scalars import as_integer, resolve

MAX_AS = 2**32 - 1
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class GoInteger:
    name: str
    low: int
    high: int
    is_as_number: bool = False


@dataclass(frozen=True, slots=True)
class GoScalar:
    name: str  # "string" or "bool"


@dataclass(frozen=True, slots=True)
class GoList:
    element: GoType

    @property
    def name(self) -> str:
        return f"[]{self.element.name}"


@dataclass(frozen=True, slots=True)
class GoMap:
    """map[string]string, the only one that occurs."""

    name: str = "map[string]string"


@dataclass(frozen=True, slots=True)
class GoStruct:
    name: str
    fields: Mapping[str, GoType]
    not_done: Mapping[str, str] = field(default_factory=dict)  # keys that others know, and why we do not


GoType = GoInteger | GoScalar | GoList | GoMap | GoStruct
Plain = str | int | bool


@dataclass(slots=True)
class Struct:
    """A decoded structure. Absent and null fields are absent."""

    place: Value
    plain: dict[str, Plain] = field(default_factory=dict)
    lists: dict[str, list[Decoded]] = field(default_factory=dict)
    maps: dict[str, dict[str, tuple[str, Value]]] = field(default_factory=dict)
    places: dict[str, Value] = field(default_factory=dict)

    def text(self, key: str) -> str:
        return str(self.plain.get(key, ""))

    def number(self, key: str, default: int = 0) -> int:
        return int(self.plain.get(key, default))

    def flag(self, key: str, default: bool = False) -> bool:
        return bool(self.plain.get(key, default))

    def texts(self, key: str) -> list[tuple[str, Value]]:
        return [(item.text, item.place) for item in self.lists.get(key, []) if isinstance(item, Text)]

    def structs(self, key: str) -> list[Struct]:
        """Of a list of structures, or of the one structure that stands there."""
        return [item for item in self.lists.get(key, []) if isinstance(item, Struct)]

    def over(self, template: Struct, *own: str) -> Struct:
        """With what `template` says of keys that are not here, not even as null. Those of `own` it keeps to itself."""
        taken = template.places.keys() - self.places.keys() - {*own}

        def merged(mine: dict[str, V], its: dict[str, V]) -> dict[str, V]:
            return {key: value for key, value in its.items() if key in taken} | mine

        return Struct(
            self.place,
            merged(self.plain, template.plain),
            merged(self.lists, template.lists),
            merged(self.maps, template.maps),
            merged(self.places, template.places),
        )

    def at(self, key: str) -> Value:
        """Where the value of `key` stands, else where the structure begins."""
        return self.places.get(key, self.place)


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    place: Value


Decoded = Struct | Text


class Decoder:
    """Decodes one document; `strict` as ours are: in our words, and a number is nothing but what it looks like."""

    def __init__(self, *, strict: bool = False) -> None:
        self.notes: list[tuple[str, Value]] = []
        self.misread: list[tuple[Value, int]] = []  # numbers that yaml.v2 takes for another than one would think
        self._strict = strict

    def struct(self, value: Value, kind: GoStruct) -> Struct:
        result = Struct(value)
        if value.is_null:
            return result
        if not value.is_mapping:
            self._mismatch(value, kind)
            return result
        self._fill(result, value, kind)
        return result

    def _fill(self, result: Struct, value: Value, kind: GoStruct) -> None:
        seen: set[str] = set()
        merges = [entry for key, entry in pairs(value) if is_merge(key)]
        for entry in merges:
            for source in reversed(merge_sources(entry)):
                self._fill(result, source, kind)
        for key, entry in pairs(value):
            if is_merge(key):
                continue
            if key.text not in kind.fields:
                self._unknown(key, kind)
            elif key.text in seen:
                self._note(key, f"field {key.text} already set in type {kind.name}", f'repeated key "{key.text}"')
            else:
                seen.add(key.text)
                self._field(result, key.text, entry, kind.fields[key.text])

    def _field(self, result: Struct, key: str, entry: Value, kind: GoType) -> None:
        result.places[key] = entry
        if entry.is_null:
            for fields in (result.plain, result.lists, result.maps):
                fields.pop(key, None)
        elif isinstance(kind, GoList):
            result.lists[key] = self._list(entry, kind)
        elif isinstance(kind, GoMap):
            result.maps[key] = self._map(entry)
        elif isinstance(kind, GoStruct):
            result.lists[key] = [self.struct(entry, kind)]
        else:
            plain = self._plain(entry, kind)
            if plain is not None:
                result.plain[key] = plain

    def _list(self, entry: Value, kind: GoList) -> list[Decoded]:
        if not entry.is_list:
            self._mismatch(entry, kind)
            return []
        if isinstance(kind.element, GoStruct):
            return [self.struct(item, kind.element) for item in entry.items()]
        return [Text(self._text(item), item) for item in entry.items()]

    def _map(self, entry: Value) -> dict[str, tuple[str, Value]]:
        if not entry.is_mapping:
            self._mismatch(entry, GoMap())
            return {}
        merged: dict[str, tuple[str, Value]] = {}
        own: dict[str, tuple[str, Value]] = {}
        for key, item in pairs(entry):
            if is_merge(key):
                for source in reversed(merge_sources(item)):
                    merged |= self._map(source)
            elif key.text in own:
                self._note(item, f"key {quote(key.text)} already set in map", f'repeated key "{key.text}"')
            else:
                own[key.text] = (self._text(item), item)
        return merged | own

    def _text(self, value: Value) -> str:
        return str(self._plain(value, GoScalar("string")) or "")

    def _plain(self, value: Value, kind: GoInteger | GoScalar) -> Plain | None:
        """The typed scalar; None if it is null or does not fit (then noted)."""
        if value.is_scalar:
            _, resolved = resolve(value)
            if resolved is None:
                return None
            if self._strict and (isinstance(kind, GoInteger) or kind.name == "bool"):
                return self._exactly(value, kind)
            if isinstance(kind, GoInteger):
                number = as_integer(resolved, kind.low, kind.high)
                if number is not None:
                    self.misread += [(value, number)] if value.text.lstrip("+") != str(number) else []
                    return number
            elif kind.name == "string":
                return value.text
            elif isinstance(resolved, bool):
                return resolved
        self._mismatch(value, kind)
        return None

    def _exactly(self, value: Value, kind: GoInteger | GoScalar) -> Plain | None:
        """A decimal number, true or false; whatever else YAML 1.1 takes for one is noted."""
        try:
            if isinstance(kind, GoScalar):
                return value.boolean()
            return as_number(value) if kind.is_as_number else value.integer(kind.low, kind.high)
        except InputError as error:
            self._note(value, error.message, error.message)
            return None

    def _mismatch(self, value: Value, wanted: GoType) -> None:
        ours = f"found {value.found()}, expected {_in_words(wanted)}"
        if value.is_scalar:
            shown = value.text if len(value.text) <= 10 else value.text[:7] + "..."
            self._note(value, f"cannot unmarshal {resolve(value)[0]} `{shown}` into {wanted.name}", ours)
        else:
            found = "!!map" if value.is_mapping else "!!seq"
            self._note(value, f"cannot unmarshal {found} into {wanted.name}", ours)

    def _unknown(self, key: Value, kind: GoStruct) -> None:
        ours = kind.not_done.get(key.text) or unknown_key(key.text, kind.fields)
        self._note(key, f"field {key.text} not found in type {kind.name}", ours)

    def _note(self, place: Value, message: str, ours: str = "") -> None:
        self.notes.append((ours if ours and self._strict else message, place))

    def check(self) -> None:
        """Raises InputError at the first note, with all of them in the wording of yaml.v2."""
        if not self.notes:
            return
        message, place = self.notes[0]
        if self._strict:
            raise place.error(message)
        lines = "".join(f"\n  line {inner_line(note_place)}: {note}" for note, note_place in self.notes)
        raise place.error(f"could not parse config: yaml: unmarshal errors:{lines}")


def _in_words(kind: GoType) -> str:
    if isinstance(kind, GoList):
        return "a list of mappings" if isinstance(kind.element, GoStruct) else "a list of strings"
    if isinstance(kind, GoStruct | GoMap):
        return "a mapping"
    if isinstance(kind, GoInteger):
        return "a number"
    return "a string" if kind.name == "string" else "true or false"


def as_number(value: Value) -> int:
    """An AS number, also as two of 16 bits with a dot (asdot, RFC 5396): the text counts, and 1.10 is not 1.1."""
    what = f"an AS number: an integer from 1 to {MAX_AS}, or two with a dot, as 1.10 for 65546"
    halves = value.text.split(".") if value.is_scalar else []
    limit = MAX_AS if len(halves) == 1 else 2**16 - 1
    if not 1 <= len(halves) <= 2 or not all(_is_number(half, limit) for half in halves):
        value.expected(what)
    number = sum(int(half) << 16 * place for place, half in enumerate(reversed(halves)))
    return number or value.expected(what)


def _is_number(text: str, limit: int) -> bool:
    return text.isdigit() and bool(DECIMAL.fullmatch(text)) and len(text) <= len(str(limit)) and int(text) <= limit


def inner_line(place: Value) -> int:
    """The line inside the document, as the original parsers count."""
    return int(place.node.start_mark.line) + 1


def syntax_error(error: InputError, problem: str, line: int) -> InputError:
    """A YAML error in the wording of yaml.v2; `line` as it counts, 0 = it names none."""
    where = f"line {line}: " if line else ""
    message = f"could not parse config: yaml: {where}{problem}"
    return InputError(message, file=error.file, line=error.line, column=error.column)


__all__ = [
    "Decoder",
    "GoInteger",
    "GoList",
    "GoMap",
    "GoScalar",
    "GoStruct",
    "Struct",
    "Text",
    "syntax_error",
]
