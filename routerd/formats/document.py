"""YAML and JSON text to places: scalars stay text, and every value knows its file, line, column and key path.

PyYAML's own typing is left out on purpose: it reads the community `64512:1` as 3870721 and the password `0123` as 83,
and lets a repeated key win silently. Readers ask a `Value` for the type that they expect; what does not fit raises
`InputError` with the place, what was found and what was expected. This module knows no kind of object.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any, NoReturn

import yaml

from routerd.errors import InputError
from routerd.model import IPAddress, IPNetwork, Origin

NULLS = frozenset({"", "~", "null", "Null", "NULL"})
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
IMPLICIT = "implicit"  # tag of a scalar without an explicit one
MAX_DIGITS = 100  # of a number, leading zeros included: Python refuses to read thousands of them
MOST = 1000  # entries of a list or a mapping of texts that does not say otherwise; Kubernetes' own of an EndpointSlice
MOST_ADDRESSES = 100  # of one object, in one list; Kubernetes' own of an endpoint
UNLIMITED = 1 << 62  # entries of what is a container of objects, or written by routerd itself
TEXTS_SIZE = 256 << 10  # bytes of a mapping of texts, keys included: Kubernetes' own of annotations
DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)")  # without leading zeros: YAML 1.1 reads octal there, YAML 1.2 not
_NETWORK = re.compile(r"[^/%]+/[0-9]{1,3}")
Steps = tuple[int, ...]  # from the root of a tree: the number of an entry or item at each level


@dataclass(frozen=True, slots=True)
class Source:
    """Where a text begins: a document inside a ConfigMap begins at a line and a column of the file around it."""

    file: str = ""
    line: int = 0  # added to every line
    column: int = 0  # added to every column
    fixed: bool = False  # the text is not the file's own (escaped, folded): every place is the start of the text
    is_api: bool = False  # an API server gave the object; `file` is its kind and name then
    is_capped: bool = True  # a list or mapping with more than there may be is a mistake


NOWHERE = Source()


class MissingKey(InputError):
    """A mapping lacks the key `name`; the place is the mapping's."""

    def __init__(self, place: Value, name: str, message: str) -> None:
        super().__init__(message, file=place.source.file, line=place.line, column=place.column, key=place.path)
        self.name = name


class Value:
    """One node of a document and the key path to it."""

    __slots__ = ("__dict__", "node", "path", "source")

    def __init__(self, node: Any, source: Source, path: str = "") -> None:
        self.node = node
        self.source = source
        self.path = path

    def uncapped(self) -> Value:
        """The same, with lists as long as they are."""
        same = Value(self.node, replace(self.source, is_capped=False), self.path)
        if self.is_mapping:  # an item of a list may have been given its kind
            same.section.entries = {**self.section.entries, **same.section.entries}
        return same

    @property
    def line(self) -> int:
        """1-based, in the file."""
        own = 0 if self.source.fixed else self.node.start_mark.line
        return int(self.source.line + own + 1)

    @property
    def column(self) -> int:
        """1-based, in the file."""
        own = 0 if self.source.fixed else self.node.start_mark.column
        return int(self.source.column + own + 1)

    @property
    def origin(self) -> Origin:
        return Origin(self.source.file, self.line, self.source.is_api)

    @property
    def is_scalar(self) -> bool:
        return isinstance(self.node, yaml.ScalarNode)

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.node, yaml.MappingNode)

    @property
    def is_list(self) -> bool:
        return isinstance(self.node, yaml.SequenceNode)

    @property
    def is_quoted(self) -> bool:
        """Quoted or a block scalar: a string whatever it looks like."""
        return bool(self.node.style) if self.is_scalar else False

    @property
    def is_null(self) -> bool:
        return self.is_scalar and not self.is_quoted and self.node.value in NULLS

    @property
    def text(self) -> str:
        """The text of a scalar as written."""
        return str(self.node.value)

    def renamed(self, text: str) -> Value:
        """A scalar at the same place with another text."""
        mark = self.node.start_mark
        return Value(yaml.ScalarNode(IMPLICIT, text, mark, mark), self.source, self.path)

    def error(self, message: str) -> InputError:
        return InputError(message, file=self.source.file, line=self.line, column=self.column, key=self.path)

    def found(self) -> str:
        """What stands here, in words."""
        if self.is_mapping:
            return "a mapping"
        if self.is_list:
            return "a list"
        if self.is_null:
            return "nothing"
        shown = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        return f'the string "{shown}"' if self.is_quoted else f'"{shown}"'

    def expected(self, what: str) -> NoReturn:
        raise self.error(f"found {self.found()}, expected {what}")

    def string(self, what: str = "a string") -> str:
        """The text of a scalar; numbers and booleans are taken as they are written."""
        if not self.is_scalar or self.is_null:
            self.expected(what)
        return self.text

    def name(self, what: str = "a name") -> str:
        text = self.string(what)
        if not text:
            self.expected(what)
        return text

    def integer(self, low: int, high: int) -> int:
        """A plain decimal integer, both ends included."""
        what = f"an integer from {low} to {high}"
        if not self.is_scalar or self.is_quoted or not DECIMAL.fullmatch(self.text):
            self.expected(what)
        number = int(self.text) if len(self.text) <= MAX_DIGITS else high + 1
        if not low <= number <= high:
            self.expected(what)
        return number

    def boolean(self) -> bool:
        if not self.is_scalar or self.is_quoted or self.text not in BOOLEANS:
            self.expected("true or false")
        return BOOLEANS[self.text]

    def choice(self, *options: str) -> str:
        """One of `options`, as written there."""
        what = " or ".join([", ".join(options[:-1]), options[-1]]) if len(options) > 1 else options[0]
        text = self.string(what)
        if text not in options:
            self.expected(what + suggestion(text, options))
        return text

    def address(self, what: str = "an IP address") -> IPAddress:
        """IPv4 or IPv6, no zone, no prefix length."""
        address = parse_address(self.string(what))
        if address is None:
            self.expected(what)
        return address

    def ipv4(self, what: str = "an IPv4 address") -> IPv4Address:
        address = self.address(what)
        if not isinstance(address, IPv4Address):
            self.expected(what)
        return address

    def network(self, *, host_bits: bool = False) -> IPNetwork:
        """A CIDR of either family. Bits behind the prefix length are an error unless `host_bits` (then cleared)."""
        text = self.string("a CIDR such as 192.0.2.0/24")
        network = parse_network(text)
        if network is None:
            self.expected("a CIDR such as 192.0.2.0/24")
        if not host_bits and str(network.network_address) != str(parse_address(text.split("/")[0])):
            self.expected(f"a CIDR without host bits: {network}")
        return network

    def items(self, most: int = MOST) -> list[Value]:
        if not self.is_list:
            self.expected("a list")
        self._cap(len(self.node.value), most, "entries")
        return [Value(node, self.source, f"{self.path}[{index}]") for index, node in enumerate(self.node.value)]

    def _cap(self, found: int, most: int, unit: str) -> None:
        if found > most and self.source.is_capped:
            raise self.error(f"found {found} {unit}, at most {most} are taken")

    def nonempty(self, what: str, most: int = MOST) -> list[Value]:
        items = self.items(most)
        if not items:
            raise self.error(f"found an empty list, expected at least one {what}")
        return items

    @cached_property
    def section(self) -> Section:
        """This value as a mapping."""
        if not self.is_mapping:
            self.expected("a mapping")
        return Section(self)

    def texts(self) -> dict[str, str]:
        """A mapping of strings (labels, annotations); null is the empty string, as for the API server."""
        texts = {key: "" if value.is_null else value.string() for key, value in self.section.entries.items()}
        self._cap(len(texts), MOST, "entries")
        self._cap(sum(map(len, texts)) + sum(map(len, texts.values())), TEXTS_SIZE, "bytes")
        return texts


class Section:
    """A mapping. A key that is absent or null counts as not given; a repeated key is an error."""

    def __init__(self, value: Value) -> None:
        self.value = value
        self.keys: dict[str, Value] = {}  # where each key itself stands
        self.entries: dict[str, Value] = {}
        merged: dict[str, Value] = {}
        for key, entry in pairs(value):
            if is_merge(key):
                for section in merge_sources(entry):
                    merged = {**section.section.entries, **merged}
                continue
            if key.text in self.keys:
                raise key.error(f'repeated key "{key.text}", first on line {self.keys[key.text].line}')
            self.keys[key.text] = key
            self.entries[key.text] = entry
        self.entries = {**merged, **self.entries}

    @staticmethod
    def empty(place: Value) -> Section:
        """Where nothing is given."""
        mark = place.node.start_mark
        return Section(Value(yaml.MappingNode(IMPLICIT, [], mark, mark), place.source, place.path))

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def get(self, key: str) -> Value | None:
        entry = self.entries.get(key)
        return None if entry is None or entry.is_null else entry

    def require(self, key: str) -> Value:
        entry = self.get(key)
        if entry is None:
            raise MissingKey(self.value, key, f'the key "{key}" is missing')
        return entry

    def only(self, *known: str) -> Section:
        """Strictness: any other key is an error."""
        for key in self.entries:
            if key not in known:
                raise self.keys.get(key, self.entries[key]).error(unknown_key(key, known))
        return self

    def string(self, key: str, default: str = "") -> str:
        entry = self.get(key)
        return default if entry is None else entry.string()

    def integer(self, key: str, low: int, high: int, default: int) -> int:
        entry = self.get(key)
        return default if entry is None else entry.integer(low, high)

    def boolean(self, key: str, default: bool) -> bool:
        entry = self.get(key)
        return default if entry is None else entry.boolean()

    def texts(self, key: str) -> dict[str, str]:
        entry = self.get(key)
        return {} if entry is None else entry.texts()

    def items(self, key: str, most: int = MOST) -> list[Value]:
        entry = self.get(key)
        return [] if entry is None else entry.items(most)

    def section(self, key: str) -> Section | None:
        entry = self.get(key)
        return None if entry is None else entry.section

    def at(self, *path: str) -> Value | None:
        """The value at the end of `path`, or None where it breaks off."""
        here: Value | None = self.value
        for key in path:
            here = None if here is None else here.section.get(key)
        return here


def pairs(value: Value) -> Iterator[tuple[Value, Value]]:
    """Keys and values of a mapping as they stand, repeated and merge keys included. Keys have the value's path."""
    for key_node, value_node in value.node.value:
        key = Value(key_node, value.source, value.path)
        if not key.is_scalar:
            raise key.error("found a key that is a list or a mapping, expected a string")
        yield (
            Value(key_node, value.source, join(value.path, key.text)),
            Value(value_node, value.source, join(value.path, key.text)),
        )


def is_merge(key: Value) -> bool:
    return not key.is_quoted and key.text == "<<"


def merge_sources(entry: Value) -> list[Value]:
    """The mappings behind a merge key, the strongest first."""
    sources = entry.items() if entry.is_list else [entry]
    for source in sources:
        if not source.is_mapping:
            source.expected("a mapping to merge")
    return sources


def rebuilt(root: Value, steps: Steps, node: Any) -> Value:
    """The tree with another node at the end of `steps`; without one if `node` is None."""
    return Value(_replaced(root.node, steps, node), root.source, root.path)


def _replaced(here: Any, steps: Steps, node: Any) -> Any:
    if not steps:
        return node
    number, rest = steps[0], steps[1:]
    children = list(here.value)
    if node is None and not rest:
        del children[number]
    elif isinstance(here, yaml.MappingNode):
        key, item = children[number]
        children[number] = (key, _replaced(item, rest, node))
    else:
        children[number] = _replaced(children[number], rest, node)
    return type(here)(here.tag, children, here.start_mark, here.end_mark)


def join(path: str, key: str) -> str:
    shown = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else f'"{key}"'
    return f"{path}.{shown}" if path else shown


def unknown_key(key: str, known: Iterable[str]) -> str:
    hint = suggestion(key, known)
    return f'unknown key "{key}"{hint}' if hint else f'unknown key "{key}", expected one of: {", ".join(sorted(known))}'


def suggestion(text: str, known: Iterable[str]) -> str:
    """`; did you mean "…"?`, or nothing where nothing is near."""
    folded = {option.lower(): option for option in known}
    cutoff = 0.66 if len(text) <= 4 else 0.7  # two letters swapped in a short word are far apart by this measure
    near = difflib.get_close_matches(text.lower(), folded, n=1, cutoff=cutoff)
    return f'; did you mean "{folded[near[0]]}"?' if near else ""


def parse_address(text: str) -> IPAddress | None:
    """IPv4 or IPv6 without a zone; an IPv4-mapped IPv6 address is the IPv4 address."""
    if "%" in text or "/" in text:
        return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if address.version == 6 and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def parse_network(text: str) -> IPNetwork | None:
    """A CIDR with a decimal prefix length; host bits are cleared."""
    if not _NETWORK.fullmatch(text):
        return None
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None
