"""How many addresses an instance should have: watermarks as Cilium's operator counts them. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Watermarks:
    """Numbers of addresses of one instance."""

    pre_allocate: int = 8
    """So many are free at any time."""
    minimum: int = 0
    """So many are there from the first."""
    maximum: int = 0
    """So many at most; 0 = what the instance type holds."""
    above: int = 0
    """So many more are fetched with each call, and kept: fewer calls for more addresses."""


def needed(marks: Watermarks, available: int, used: int, pending: int) -> int:
    """How many more to fetch now. `available` are those that are there, used ones included; `pending` pods wait.

    Nothing is fetched above the low watermark, and below it what lies above it comes with the same call. Pods that wait
    count as if they had their addresses, so that a burst of them is one call.
    """
    short = max(marks.pre_allocate - (available - used - pending), marks.minimum - available)
    if short <= 0:
        return 0
    wanted = short + marks.above
    return max(min(wanted, marks.maximum - available), 0) if marks.maximum else wanted


def excess(marks: Watermarks, available: int, used: int, pending: int) -> int:
    """How many are too many. What came with the first calls stays."""
    floor = marks.minimum + marks.above
    if used <= floor and available <= floor:
        return 0
    return max(min(available - used - pending - marks.pre_allocate - marks.above, available - floor), 0)
