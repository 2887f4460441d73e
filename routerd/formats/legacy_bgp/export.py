"""`export` of a peer of ours: rules by which paths go to it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from bgp.path import normal_communities
from routerd.formats.legacy_bgp.communities import Communities, resolve
from routerd.formats.legacy_bgp.decode import Struct
from routerd.formats.legacy_bgp.golang import quote
from routerd.model import ExportAction, ExportRule, Gets, IPNetwork, PrefixMatch

MATCHES: tuple[PrefixMatch, ...] = get_args(PrefixMatch)
ACTIONS: tuple[ExportAction, ...] = get_args(ExportAction)
_KINDS: tuple[Gets, ...] = get_args(Gets)


def read_export(struct: Struct, communities: Communities) -> tuple[ExportRule, ...]:
    """Raises InputError."""
    return tuple(_rule(entry, communities) for entry in struct.structs("export"))


def _rule(entry: Struct, communities: Communities) -> ExportRule:
    _check_words(entry)
    rule = ExportRule(
        action=_action(entry),
        prefixes=tuple(_prefixes(entry)),
        match=next(word for word in MATCHES if word == (entry.text("match") or "in")),
        min_length=entry.number("min-length"),
        max_length=entry.number("max-length", 128),
        of=tuple(kind for kind in _KINDS if kind in [text for text, _ in entry.texts("of")]),
        communities=normal_communities(
            resolve(text, place, communities, "native") for text, place in entry.texts("communities")
        ),
    )
    if rule.min_length > rule.max_length:
        raise entry.at("min-length").error(f"min-length {rule.min_length} is more than max-length {rule.max_length}")
    if fault := unreachable(rule):
        raise entry.at(f"{fault[0]}-length").error(fault[1])
    if not rule.action and not rule.communities:
        raise entry.place.error("a rule without effect: expected an action, communities, or both")
    if rule.action == "reject" and rule.communities:
        raise entry.at("communities").error("what is rejected gets no communities")
    return rule


def unreachable(rule: ExportRule) -> tuple[Literal["min", "max"], str] | None:
    """Which bound leaves nothing of one of its prefixes, and why: such a rule does not do what it says."""
    for each in rule.prefixes:
        if rule.min_length > each.max_prefixlen:
            return (
                "min",
                f"found {rule.min_length}, expected at most {each.max_prefixlen}, as {each} is IPv{each.version}",
            )
        if rule.max_length < each.prefixlen:
            return "max", f"found {rule.max_length}, expected at least {each.prefixlen}: nothing in {each} is shorter"
    return None


def _action(entry: Struct) -> ExportAction:
    return next(word for word in ACTIONS if word == entry.text("action"))


def _check_words(entry: Struct) -> None:
    """What is there is one of ours, and not an empty list: that would be about everything."""
    for key, known in (("action", ACTIONS), ("match", MATCHES)):
        text = entry.text(key)
        if key in entry.plain and (not text or text not in known):
            raise entry.at(key).error(f"unknown {key} {quote(text)}, expected {', '.join(filter(None, known))}")
    for text, place in entry.texts("of"):
        if text not in _KINDS:
            raise place.error(f"unknown {quote(text)}, expected {', '.join(_KINDS)}")
    for key in ("prefixes", "of", "communities"):
        if key in entry.places and not entry.lists.get(key):
            raise entry.at(key).error(f"a rule for no {key}: leave the key out for all")
    for key in ("match", "min-length", "max-length"):
        if key in entry.plain and not entry.lists.get("prefixes"):
            raise entry.at(key).error(f"{key} is about prefixes, and the rule has none")
    for key in ("min-length", "max-length"):
        if key in entry.plain and entry.text("match") in ("equal", "not-equal"):
            raise entry.at(key).error(f"{key} goes with in and not-in: a prefix that is equal has its length")


def _prefixes(entry: Struct) -> Iterator[IPNetwork]:
    for _, place in entry.texts("prefixes"):
        yield place.network()
