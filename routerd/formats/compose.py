"""Text to documents, data to documents, and strings back to text. I/O-free; the only file that runs the YAML parser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import yaml

from routerd.errors import InputError
from routerd.formats.document import IMPLICIT, NOWHERE, Source, Value

MAX_NODES = 2_000_000  # that aliases may make of one document
MAX_DEPTH = 100

# Events are composed here: libyaml's own composer recurses on the C stack, and a deep document ends the process.
_Parser: Any = getattr(yaml, "CBaseLoader", None) or yaml.BaseLoader


def first_document(text: str, source: Source = NOWHERE) -> Value | None:
    """The first document alone, as the legacy parsers read; None if there is none. Errors behind it stay unseen."""
    return next(_compose(text, source), None)


def documents(text: str, source: Source = NOWHERE) -> list[Value]:
    """Every document that holds something. Raises InputError with line and column at a YAML error."""
    return [value for value in _compose(text, source) if not value.is_null]


def _compose(text: str, source: Source) -> Iterator[Value]:
    parser = None
    try:
        parser = _Parser(text)
        builder = _Builder()
        while not isinstance(event := parser.get_event(), yaml.StreamEndEvent):
            node = builder.take(event)
            if node is not None:
                yield Value(node, source)
                builder = _Builder()
    except yaml.YAMLError as error:
        raise syntax_error(error, source) from error
    finally:
        if parser is not None:
            parser.dispose()


@dataclass(slots=True)
class _Open:
    """A list or a mapping whose end has not come."""

    node: Any
    anchor: str | None
    children: list[Any]
    weight: int = 1  # values in it, with aliases written out
    height: int = 1  # levels of lists and mappings, with aliases written out


@dataclass(frozen=True, slots=True)
class _Anchored:
    """What an alias stands for."""

    node: Any
    weight: int
    height: int


class _Builder:
    """Events of one document to nodes, without recursion. Tags are not resolved."""

    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._anchors: dict[str, _Anchored] = {}

    def take(self, event: Any) -> Any | None:
        """The root node, when it is complete."""
        if isinstance(event, yaml.ScalarEvent):
            mark: Any = event.start_mark
            node = yaml.ScalarNode(event.tag or IMPLICIT, event.value, mark, None, event.style)
            return self._add(_Anchored(node, 1, 0), event.anchor)
        if isinstance(event, yaml.MappingStartEvent):
            self._begin(yaml.MappingNode, event)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._begin(yaml.SequenceNode, event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            return self._end()
        elif isinstance(event, yaml.AliasEvent):
            return self._add(self._resolve(event), None)
        return None

    def _begin(self, kind: Any, event: Any) -> None:
        if len(self._open) >= MAX_DEPTH:
            _fail(f"nested more than {MAX_DEPTH} levels deep", event)
        children: list[Any] = []
        self._open.append(_Open(kind(event.tag or IMPLICIT, children, event.start_mark), event.anchor, children))

    def _end(self) -> Any | None:
        done = self._open.pop()
        if isinstance(done.node, yaml.MappingNode):
            done.node.value = list(zip(done.children[::2], done.children[1::2], strict=True))
        return self._add(_Anchored(done.node, done.weight, done.height), done.anchor)

    def _add(self, value: _Anchored, anchor: str | None) -> Any | None:
        if anchor:
            self._anchors[anchor] = value
        if not self._open:
            return value.node
        around = self._open[-1]
        around.children.append(value.node)
        around.weight += value.weight
        around.height = max(around.height, value.height + 1)
        return None

    def _resolve(self, event: Any) -> _Anchored:
        if any(one.anchor == event.anchor for one in self._open):
            _fail("an alias refers to a value that holds it", event)
        if event.anchor not in self._anchors:
            _fail(f"unknown anchor '{event.anchor}' referenced", event)
        found = self._anchors[event.anchor]
        if sum(one.weight for one in self._open) + found.weight > MAX_NODES:
            _fail(f"aliases make this document larger than {MAX_NODES} values", event)
        if len(self._open) + found.height > MAX_DEPTH:  # readers recurse, where a merge key has a merge key
            _fail(f"aliases nest this document more than {MAX_DEPTH} levels deep", event)
        return found


def _fail(problem: str, event: Any) -> NoReturn:
    raise yaml.composer.ComposerError(None, None, problem, event.start_mark)


def syntax_error(error: yaml.YAMLError, source: Source) -> InputError:
    """A YAML error as ours. Tabs get a hint: they are what the scanner's sentence is most often about."""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if "cannot start any token" in problem:
        problem += " (a tab? indent with spaces)"
    if mark is None:
        return InputError(f"not YAML: {problem}", file=source.file, line=source.line + 1)
    line, column = (0, 0) if source.fixed else (mark.line, mark.column)
    message = f"not YAML: {problem}"
    return InputError(message, file=source.file, line=source.line + line + 1, column=source.column + column + 1)


def inner_source(value: Value, lines: list[str]) -> Source:
    """Where the text of a block scalar (`|`) begins in the file of these `lines`; else the scalar's own place."""
    first = value.node.start_mark.line + 1
    if value.node.style != "|" or value.source.fixed or first >= len(lines):
        return replace(value.source, line=value.line - 1, column=value.column - 1, fixed=True)
    indent = next((len(line) - len(line.lstrip(" ")) for line in lines[first:] if line.strip()), 0)
    return replace(value.source, line=first + value.source.line, column=indent + value.source.column)


def value_of(data: object, source: Source = NOWHERE) -> Value:
    """Data as a client of the Kubernetes API gives it (dict, list, str, int, bool, None) as a `Value`."""
    return Value(_node_of(data, source), source)


def _node_of(data: object, source: Source, depth: int = 0) -> yaml.Node:
    mark = yaml.Mark("", 0, 0, 0, None, 0)
    if depth > MAX_DEPTH:
        raise InputError(f"nested more than {MAX_DEPTH} levels deep", file=source.file)
    if isinstance(data, dict):
        pairs = [(_node_of(key, source), _node_of(item, source, depth + 1)) for key, item in data.items()]
        return yaml.MappingNode(IMPLICIT, pairs, mark, mark)
    if isinstance(data, list):
        return yaml.SequenceNode(IMPLICIT, [_node_of(item, source, depth + 1) for item in data], mark, mark)
    if isinstance(data, str):
        return yaml.ScalarNode(IMPLICIT, data, mark, mark, style='"')
    shown = "null" if data is None else str(data).lower()
    return yaml.ScalarNode(IMPLICIT, shown, mark, mark)


def quoted(text: str) -> str:
    """A double-quoted YAML scalar that reads back as `text`."""
    return '"' + "".join(_escaped(char) for char in text) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char.isprintable():
        return char
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
