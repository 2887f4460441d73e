"""A policy that is refused keeps its pods selected: its last good version, or what it covers, stays. Pure.

What one source (a file, an object of an API server) says is compared with what it said before. After a start nothing
was before; then the operator's allocations tell which policies there were.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from routerd.formats.kinds import POLICY_KINDS
from routerd.formats.objects import Entry, Loaded
from routerd.model import Allocations, EgressPolicy, Refusal
from routerd.refs import Ref


def settled(before: Loaded | None, now: Loaded) -> Loaded:
    """`now` with the policies of `before` that are not read any more and were not taken out; refusals say so.

    A policy was not taken out if a document of its name is still there: refused, or newly of a kind that is not read.
    """
    before = before or Loaded()
    kept = [entry for entry in before.entries if isinstance(entry.object, EgressPolicy) and _stays(entry, before, now)]
    stay = {entry.ref for entry in kept}
    names = {ref.name for ref in stay}
    told = {refusal.object for refusal in now.refusals}
    return replace(
        now,
        entries=(*(entry for entry in now.entries if entry.ref not in stay), *kept),
        refusals=(
            *(_with_consequence(refusal, kept, now) for refusal in now.refusals),
            *(_of_another_kind(entry.ref) for entry in kept if entry.ref not in told),
        ),
        unread=tuple(ref for ref in now.unread if ref.name not in names or ref in before.unread),
    )


def is_policy(entry: Entry, *, refused: bool = False) -> bool:
    return isinstance(entry.object, EgressPolicy) and entry.object.refused is refused


def _stays(entry: Entry, before: Loaded, now: Loaded) -> bool:
    found = next((each for each in now.entries if each.ref == entry.ref), None)
    if found is not None:
        return is_policy(entry) and is_policy(found, refused=True)
    beside = set(before.unread)  # what has only its name in common with the policy
    return any(ref == entry.ref or (ref.name == entry.ref.name and ref not in beside) for ref in now.unread)


def _with_consequence(refusal: Refusal, kept: Iterable[Entry], now: Loaded) -> Refusal:
    last = next((entry for entry in kept if entry.ref == refusal.object), None)
    if last is not None:
        consequence = "what it last said stays in force" if is_policy(last) else "what it last covered is dropped"
    elif any(entry.ref == refusal.object and is_policy(entry, refused=True) for entry in now.entries):
        consequence = "what it covers is dropped"
    elif refusal.object in now.unread and refusal.object.kind in POLICY_KINDS:
        consequence = "nothing of it is in force"
    else:
        return refusal
    return replace(refusal, message=f"{refusal.message} ({consequence})")


def _of_another_kind(ref: Ref) -> Refusal:
    message = (
        "a document of its name is there, but none of its kind: what it last said stays in force until that is mended, "
        "or gone too"
    )
    return Refusal(ref, "UnknownKind", message)


def unreadable(
    files: Iterable[Loaded],
    policies: Mapping[str, EgressPolicy],
    allocations: Allocations | None,
    seen: Collection[str],
) -> tuple[Refusal, ...]:
    """Policies that the operator knew, and of which nobody can tell what they cover. `seen`: keys of those known here.

    They are published, and all that there is of them is a document that is refused, or perhaps a file without any.
    """
    files = tuple(files)
    missing = _published(allocations or Allocations()) - policies.keys()
    unread = {str(ref) for each in files for ref in each.unread}
    is_silent = any(each.is_silent for each in files)
    return tuple(
        Refusal(Ref.parse(key), "Unreadable", f"{_UNKNOWN}: {_REFUSED if key in unread else _EMPTY}")
        for key in sorted(missing)
        if key in unread or (is_silent and key not in seen)
    )


def _published(allocations: Allocations) -> set[str]:
    """Keys of the policies that have a group, and of those to which the operator gives none."""
    refused = {str(each.object) for each in allocations.refusals if each.object.kind in POLICY_KINDS}
    leaving = {key for group in allocations.groups for key in group.policies}
    return refused | {key for key in leaving if Ref.parse(key).kind in POLICY_KINDS}  # others are words of Services


_UNKNOWN = "the operator knows it, and what it covers cannot be read; nothing of egress is changed meanwhile"
_REFUSED = "mend or delete it"
_EMPTY = "write it anew, or delete the manifests that are empty"
