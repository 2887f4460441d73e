"""Which keys of an object a reader does not look at. Pure.

Found by trying: what can be replaced by something that no reader takes, and nobody notices, says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import yaml

from routerd.errors import InputError
from routerd.formats.document import IMPLICIT, Steps, Value, join, rebuilt

Read = Callable[[Value], object]  # raises InputError


def unread_keys(root: Value, read: Read, top: str = "") -> list[Value]:
    """Values that `read` does not look at, in the order of the text; of the items of a list, each key once.

    `top` is the key of `root` below which is looked. Nothing if `read` refuses all.
    """
    usual = _outcome(root, read)
    if isinstance(usual, str):
        return []
    tried: set[str] = set()
    return list(_unread(root, root, (), lambda changed: _outcome(changed, read) == usual, tried, top))


def _outcome(value: Value, read: Read) -> object:
    try:
        return read(value)
    except InputError as error:
        return str(error)


def _unread(
    root: Value, here: Value, steps: Steps, is_usual: Callable[[Value], bool], tried: set[str], top: str = ""
) -> Iterator[Value]:
    for number, (path, node) in enumerate(_children(here)):
        below, value = (*steps, number), Value(node, here.source, path)
        if top and path != top:
            continue
        if here.is_mapping and not top:
            key = re.sub(r"\[\d+\]", "[]", path)
            if key in tried or value.is_null:
                continue
            tried.add(key)
            if is_usual(rebuilt(root, below, _unreadable(value))):
                yield value
                continue
        yield from _unread(root, value, below, is_usual, tried)


def _children(value: Value) -> list[tuple[str, yaml.Node]]:
    if value.is_mapping:
        return [(join(value.path, str(key.value)), item) for key, item in value.node.value]
    return [(f"{value.path}[{number}]", item) for number, item in enumerate(value.node.value if value.is_list else ())]


def _unreadable(value: Value) -> yaml.Node:
    """A list in place of text, text in place of all else."""
    mark = value.node.start_mark
    if value.is_scalar:
        return yaml.SequenceNode(IMPLICIT, [], mark, mark)
    return yaml.ScalarNode(IMPLICIT, "?", mark, mark)
