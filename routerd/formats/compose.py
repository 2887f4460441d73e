"""Text to documents, data to documents, and strings back to text. I/O-free; the only file that runs the YAML parser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from routerd.errors import InputError
from routerd.formats.document import IMPLICIT, NOWHERE, Source, Value

MAX_NODES = 2_000_000  # of a document with its aliases written out

_CParser: Any = getattr(yaml, "CBaseLoader", None) or yaml.BaseLoader


class _Loader(_CParser):  # type: ignore[misc]
    """Composes nodes and resolves no tags."""

    def resolve(self, kind: type[yaml.Node], value: object, implicit: object) -> str:
        return IMPLICIT

    def descend_resolver(self, current: object, index: object) -> None:
        pass

    def ascend_resolver(self) -> None:
        pass


def first_document(text: str, source: Source = NOWHERE) -> Value | None:
    """The first document alone, as the legacy parsers read; None if there is none. Errors behind it stay unseen."""
    return next(_compose(text, source), None)


def documents(text: str, source: Source = NOWHERE) -> list[Value]:
    """Every document that holds something. Raises InputError with line and column at a YAML error."""
    return [value for value in _compose(text, source) if not value.is_null]


def _compose(text: str, source: Source) -> Iterator[Value]:
    loader = None
    try:
        loader = _Loader(text)
        while loader.check_node():
            yield _bounded(Value(loader.get_node(), source), text)
    except yaml.YAMLError as error:
        raise syntax_error(error, source) from error
    except RecursionError as error:
        raise InputError("nested too deeply", file=source.file, line=source.line + 1) from error
    finally:
        if loader is not None:
            loader.dispose()


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


def _bounded(value: Value, text: str) -> Value:
    """Refuses an alias that holds itself, and aliases that multiply beyond all use."""
    if "*" in text and "&" in text and _weight(value.node, {}, value) > MAX_NODES:
        raise value.error(f"aliases make this document larger than {MAX_NODES} values")
    return value


def _weight(node: Any, known: dict[int, int], value: Value) -> int:
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        if known[id(node)] < 0:
            raise value.error("an alias refers to a value that holds it")
        return known[id(node)]
    known[id(node)] = -1
    is_mapping = isinstance(node, yaml.MappingNode)
    children = [child for pair in node.value for child in pair] if is_mapping else list(node.value)
    known[id(node)] = 1 + sum(_weight(child, known, value) for child in children)
    return known[id(node)]


def inner_source(value: Value, lines: list[str]) -> Source:
    """Where the text of a block scalar (`|`) begins in the file of these `lines`; else the scalar's own place."""
    first = value.node.start_mark.line + 1
    if value.node.style != "|" or value.source.fixed or first >= len(lines):
        return Source(value.source.file, value.line - 1, value.column - 1, fixed=True)
    indent = next((len(line) - len(line.lstrip(" ")) for line in lines[first:] if line.strip()), 0)
    return Source(value.source.file, first + value.source.line, indent + value.source.column)


def value_of(data: object, source: Source = NOWHERE) -> Value:
    """Data as a client of the Kubernetes API gives it (dict, list, str, int, bool, None) as a `Value`."""
    return Value(_node_of(data), source)


def _node_of(data: object) -> yaml.Node:
    mark = yaml.Mark("", 0, 0, 0, None, 0)
    if isinstance(data, dict):
        return yaml.MappingNode(IMPLICIT, [(_node_of(key), _node_of(item)) for key, item in data.items()], mark, mark)
    if isinstance(data, list):
        return yaml.SequenceNode(IMPLICIT, [_node_of(item) for item in data], mark, mark)
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
