"""Egress policies that are refused: what they cover is dropped, as far as that can be read. Pure.

A policy that vanished for a mistake in it would let its pods out with their own address.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from routerd.errors import InputError
from routerd.formats.document import Value
from routerd.formats.meta import read_meta
from routerd.model import EgressPolicy, Refusal
from routerd.refs import Ref

Read = tuple[EgressPolicy | None, tuple[Refusal, ...]]


class Refused(InputError):
    """What a policy asks for was understood and cannot be done."""

    def __init__(self, place: Value, reason: str, message: str) -> None:
        at = place.error(message)
        super().__init__(message, file=at.file, line=at.line, column=at.column, key=at.key)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class FailClosed:
    """`read`, but a mistake costs the policy and not its file: what `covered` reads of it, without its exit, is taken.

    None if not even that can be read. Raises InputError where there is no name.
    """

    read: Callable[[Value], Read]  # raises InputError
    covered: Callable[[Value], EgressPolicy]

    def __call__(self, value: Value) -> Read:
        meta = read_meta(value)
        try:
            return self.read(value)
        except InputError as error:
            reason = error.reason if isinstance(error, Refused) else "InvalidObject"
            return _covered(value, self.covered), (Refusal(Ref(meta.kind, name=meta.name), reason, str(error)),)


def _covered(value: Value, covered: Callable[[Value], EgressPolicy]) -> EgressPolicy | None:
    try:
        return replace(covered(value), refused=True)
    except InputError:
        return None
