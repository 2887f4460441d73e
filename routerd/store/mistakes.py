"""What becomes of an object whose document is wrong: it keeps what it last said, and the rest goes on. Pure.

What one source (a file, an object of an API server) says is compared with what it said before. Of policies there is
more to say: `closed.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from routerd.formats.kinds import BY_NAME, NAMES, POLICY_KINDS
from routerd.formats.legacy_bgp import LegacyConfig
from routerd.formats.objects import Entry, Loaded, Mistake
from routerd.model import PARTS, Refusal
from routerd.refs import FILE, Ref

_RESTS = {kind.name: kind.rests_on_each for kind in BY_NAME.values() if kind.rests_on_each}
_WORDS = {kind.name: kind.word for kind in BY_NAME.values() if kind.word}


def spared(before: Loaded | None, now: Loaded) -> Loaded:
    """`now` with the objects of `before` that a mistake may be the document of. What no document may be is gone."""
    if not now.mistakes or before is None:
        return now
    there = {entry.ref for entry in now.entries}
    kept = [
        entry
        for entry in before.entries
        if entry.ref not in there and any(mistake.may_be(entry.ref) for mistake in now.mistakes)
    ]
    return replace(
        now,
        entries=(*now.entries, *kept),
        refusals=(*now.refusals, *(one for entry in kept for one in _own_refusals(entry))),
        mistakes=tuple(
            replace(mistake, is_kept=any(mistake.may_be(entry.ref) for entry in kept)) for mistake in now.mistakes
        ),
    )


def _own_refusals(entry: Entry) -> tuple[Refusal, ...]:
    return entry.object.refusals if isinstance(entry.object, LegacyConfig) else ()


def unknown_parts(files: Iterable[Loaded]) -> frozenset[str]:
    """Parts of the snapshot of which documents that never said anything good may say what matters."""
    mute = [mistake for each in files for mistake in each.mistakes if not mistake.is_kept]
    return frozenset().union(*(_unknown(mistake) for mistake in mute))


def _unknown(mistake: Mistake) -> frozenset[str]:
    if not mistake.ref.kind:
        return frozenset(PARTS)  # it may be anything
    if mistake.ref.kind in POLICY_KINDS:
        return frozenset({"policies"})  # whom it covers is not known, and must not leave as if nothing did
    return _RESTS.get(mistake.ref.kind, frozenset())


def refusal_of(mistake: Mistake, file: str, unsynced: frozenset[str]) -> Refusal:
    """`file` names what no object can be named for; `unsynced`: parts that are not known because of mistakes."""
    if mistake.is_kept:
        consequence = "what it last said stays in force"
    elif unsynced.issuperset(PARTS):
        consequence = "nothing at all is done until it is mended"
    elif _unknown(mistake) & unsynced:
        consequence = "nothing that depends on its kind is done until it is mended"
    else:
        consequence = "nothing of it is in force"
    return Refusal(*_named(mistake.ref, file), f"{mistake.text} ({consequence})")


def _named(ref: Ref, file: str) -> tuple[Ref, str]:
    """Whom a refusal is about, and its reason."""
    if not ref.name or ref.kind not in NAMES:
        return Ref(FILE, name=file), "InvalidFile"
    return replace(ref, kind=_WORDS.get(ref.kind, ref.kind)), reason_of(ref.kind)


def reason_of(kind: str) -> str:
    """Of the refusal of an object that is wrong."""
    return "ConfigRefused" if kind == "ConfigMap" else "InvalidObject"
