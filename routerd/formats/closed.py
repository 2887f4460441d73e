"""Egress policies that are refused: what they cover is dropped, as far as that can be read. Pure.

A policy that vanished for a mistake in it would let its pods out with their own address.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from routerd.errors import InputError
from routerd.formats.document import MOST, Value
from routerd.formats.meta import read_meta
from routerd.formats.native import unusable
from routerd.model import EgressPolicy, IPAddress, IPNetwork, PodSelection, Refusal
from routerd.refs import Ref
from routerd.selectors import EVERYTHING, LabelSelector

Read = tuple[EgressPolicy | None, tuple[Refusal, ...]]


class Refused(InputError):
    """What a policy asks for was understood and cannot be done."""

    def __init__(self, place: Value, reason: str, message: str) -> None:
        at = place.error(message)
        super().__init__(message, file=at.file, line=at.line, column=at.column, key=at.key)
        self.reason = reason


def usable(place: Value, address: IPAddress) -> IPAddress:
    """Raises Refused if it can be no egress IP."""
    if fault := unusable(address):
        raise Refused(place, "InvalidEgressIP", f"{address} cannot be an egress IP: {fault}")
    return address


@dataclass(frozen=True, slots=True)
class FailClosed:
    """`read`, but a mistake costs the policy and not its file: what `covered` reads of it, without its exit, is taken.

    None if not even that can be read. Raises InputError where there is no name.
    """

    read: Callable[[Value], Read]  # raises InputError
    covered: Callable[[Value], EgressPolicy]
    namespaced: bool = False

    def __call__(self, value: Value) -> Read:
        meta = read_meta(value.uncapped())
        try:
            return self.read(value)
        except InputError as error:
            reason = error.reason if isinstance(error, Refused) else "InvalidObject"
            ref = Ref(meta.kind, meta.namespace_or_default if self.namespaced else "", meta.name)
            return _covered(value, self.covered), (Refusal(ref, reason, str(error)),)


def _covered(value: Value, covered: Callable[[Value], EgressPolicy]) -> EgressPolicy | None:
    try:
        return replace(bounded(covered(value.uncapped())), refused=True)
    except InputError:
        return None


# --- one that is too large covers more than it says, never less


def bounded(policy: EgressPolicy) -> EgressPolicy:
    """`policy`, with at most `MOST` of everything: wider networks and selectors stand for those that are too many."""
    excluded = policy.excluded if len(policy.excluded) <= MOST else ()
    destinations, selections = _wider_networks(policy.destinations), _wider_selections(policy.selections)
    return replace(policy, destinations=destinations, excluded=excluded, selections=selections)


def _wider_networks(networks: tuple[IPNetwork, ...]) -> tuple[IPNetwork, ...]:
    length = 128
    while len(networks) > MOST:
        length -= 1
        wider = (net.supernet(new_prefix=length) if net.prefixlen > length else net for net in networks)
        networks = tuple(dict.fromkeys(wider))
    return networks


def _wider_selections(selections: tuple[PodSelection, ...]) -> tuple[PodSelection, ...]:
    found = tuple(
        PodSelection(_bounded(each.pods), _bounded(each.namespaces), _bounded(each.nodes)) for each in selections
    )
    if len(found) > MOST:  # all pods of the same namespaces
        found = tuple(dict.fromkeys(PodSelection(EVERYTHING, each.namespaces) for each in found))
    return found if len(found) <= MOST else (PodSelection(EVERYTHING),)


def _bounded(selector: LabelSelector | None) -> LabelSelector | None:
    if selector is None:
        return None
    parts = len(selector.match_labels) + sum(1 + len(each.values) for each in selector.match_expressions)
    return selector if parts <= MOST else EVERYTHING
