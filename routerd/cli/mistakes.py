"""Every mistake of an object, not the first alone. Pure.

Readers stop at the first mistake, as a daemon needs no second one. So the object is read again with that mistake
mended: what is wrong is left out, or something that fits stands in its place. It knows no kind of object.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from routerd.errors import InputError
from routerd.formats.compose import first_document
from routerd.formats.document import MissingKey, Steps, Value, join, rebuilt

MOST = 20  # mistakes of one object: nobody mends more at a time
Read = Callable[[Value], object]  # raises InputError

_MEANT = re.compile(r'did you mean "(.+)"\?')
_EXPECTED = re.compile(r"expected ([A-Za-z0-9./-]+)")
_FITTING = (  # what may stand in place of something wrong: one for each type that readers ask for
    "x", "1", "true", "192.0.2.1", "192.0.2.0/24", "64512:1", "30s", "/x", "TCP", "In", "bgp", "{}", "[]", "[x]",
    "[192.0.2.0/24]", "{podSelector: {}}", "[{podSelector: {}}]",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Spot:
    """A value in the tree, or the key of an entry."""

    steps: Steps
    value: Value
    is_key: bool = False

    @property
    def place(self) -> tuple[str, int, int]:
        return self.value.path, self.value.line, self.value.column


def mistakes(value: Value, read: Read) -> list[InputError]:
    """In the order of the text; empty if the reader takes the object as it is."""
    original = value
    found: list[InputError] = []
    error = _failure(value, read)
    while error is not None and len(found) < MOST:
        told = _told(error, original)
        if str(told) in map(str, found):
            break
        found.append(told)
        value, error = _mended(value, error, read)
    return sorted(found, key=lambda each: (each.line, each.column))


def _failure(value: Value, read: Read) -> InputError | None:
    try:
        read(value)
    except InputError as error:
        return error
    return None


def _told(error: InputError, original: Value) -> InputError:
    """With the key that it has in the text: an item before it may have been left out."""
    paths = [spot.value.path for spot in _spots(original) if spot.place[1:] == (error.line, error.column)]
    alike = [path for path in paths if _unnumbered(path) == _unnumbered(error.key)]
    key = alike[0] if alike and error.key not in alike else error.key
    return InputError(error.message, file=error.file, line=error.line, column=error.column, key=key)


def _unnumbered(path: str) -> str:
    return re.sub(r"\[\d+\]", "[]", path)


# --- mending -----------------------------------------------------------------------------------------------------


def _mended(value: Value, error: InputError, read: Read) -> tuple[Value, InputError | None]:
    """The object without the mistake and its next one; None also if nobody can tell how to go on behind it."""
    for changed, is_consequence in _attempts(value, error):
        following = _failure(changed, read)
        if following is None or not is_consequence(following):
            return changed, following
    return value, None


Attempt = tuple[Value, Callable[[InputError], bool]]  # what to try, and whether a mistake comes from that alone


def _attempts(value: Value, error: InputError) -> Iterator[Attempt]:
    spots = [spot for spot in _spots(value) if spot.place == (error.key, error.line, error.column)]
    if isinstance(error, MissingKey):
        for spot in (each for each in spots if each.value.is_mapping and not each.is_key):
            for node in _fitting(spot.value, error):
                added = _with_entry(spot.value.node, error.name, node)
                yield rebuilt(value, spot.steps, added), _below(join(error.key, error.name), error)
        return
    for spot in spots:
        around = [each for each in _spots(value) if each.steps == spot.steps[: len(each.steps)] and not each.is_key]
        if spot.is_key:
            around.pop()
            yield from _without_key(value, spot, error, around)
        for depth in range(len(around) - 1, 0, -1):  # if nothing fits here, what is around it
            here = around[depth]
            for node in _fitting(here.value, error):
                yield rebuilt(value, here.steps, node), _below(here.value.path, error)
            yield rebuilt(value, here.steps, None), _at(around[:depth])


def _without_key(value: Value, spot: _Spot, error: InputError, around: list[_Spot]) -> Iterator[Attempt]:
    if (meant := _MEANT.search(error.message)) is not None:
        yield _renamed(value, spot.steps, meant[1]), lambda following: "repeated key" in following.message
    lacks = _at(around)
    yield (
        rebuilt(value, spot.steps, None),
        lambda following: str(following) == str(error) or (lacks(following) and not isinstance(following, MissingKey)),
    )


def _at(spots: list[_Spot]) -> Callable[[InputError], bool]:
    places = {spot.place for spot in spots}
    return lambda following: (following.key, following.line, following.column) in places


def _below(path: str, error: InputError) -> Callable[[InputError], bool]:
    """At what was put there, or the mistake itself."""

    def is_consequence(following: InputError) -> bool:
        return (
            following.key == path or following.key.startswith((f"{path}.", f"{path}[")) or str(following) == str(error)
        )

    return is_consequence


# --- the tree ----------------------------------------------------------------------------------------------------


def _spots(value: Value, steps: Steps = ()) -> Iterator[_Spot]:
    yield _Spot(steps, value)
    if value.is_mapping:
        for number, (key, item) in enumerate(value.node.value):
            if not isinstance(key, yaml.ScalarNode):
                continue
            yield _Spot((*steps, number), Value(key, value.source, join(value.path, key.value)), is_key=True)
            yield from _spots(Value(item, value.source, join(value.path, key.value)), (*steps, number))
    elif value.is_list:
        for number, item in enumerate(value.node.value):
            yield from _spots(Value(item, value.source, f"{value.path}[{number}]"), (*steps, number))


def _fitting(place: Value, error: InputError) -> Iterator[Any]:
    """Nodes to put there: what the message of the mistake names, then one of each type."""
    mark = place.node.start_mark
    for text in (*_EXPECTED.findall(error.message), *_FITTING):
        document = first_document(text)
        if document is not None:
            yield _moved(document.node, mark)


def _moved(node: Any, mark: Any) -> Any:
    """The same at another place of the text."""
    if isinstance(node, yaml.MappingNode):
        pairs = [(_moved(key, mark), _moved(item, mark)) for key, item in node.value]
        return yaml.MappingNode(node.tag, pairs, mark, mark)
    if isinstance(node, yaml.SequenceNode):
        return yaml.SequenceNode(node.tag, [_moved(item, mark) for item in node.value], mark, mark)
    return yaml.ScalarNode(node.tag, node.value, mark, mark, node.style)


def _with_entry(mapping: Any, key: str, node: Any) -> Any:
    mark = mapping.start_mark
    return _like(mapping, [*mapping.value, (yaml.ScalarNode("implicit", key, mark, mark), node)])


def _renamed(root: Value, steps: Steps, key: str) -> Value:
    """The tree with another key for the entry at the end of `steps`."""
    mapping = root.node
    for number in steps[:-1]:
        child = mapping.value[number]
        mapping = child[1] if isinstance(mapping, yaml.MappingNode) else child
    old, item = mapping.value[steps[-1]]
    entries = list(mapping.value)
    entries[steps[-1]] = (yaml.ScalarNode(old.tag, key, old.start_mark, old.end_mark), item)
    return rebuilt(root, steps[:-1], _like(mapping, entries))


def _like(node: Any, children: list[Any]) -> Any:
    return type(node)(node.tag, children, node.start_mark, node.end_mark)
