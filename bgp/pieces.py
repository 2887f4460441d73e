"""A plan's announcements and withdrawals in pieces of one API command each, and their halves. No I/O."""

from __future__ import annotations

import asyncio

from bgp import plan, text, wire
from bgp.link import Answer

Part = plan.Announce | plan.Withdraw


class Answers:
    """Commands sent and not yet settled, in order."""

    def __init__(self) -> None:
        self._open: list[tuple[Part, asyncio.Future[Answer]]] = []

    def add(self, part: Part, answer: asyncio.Future[Answer]) -> None:
        self._open.append((part, answer))

    def take(self) -> list[tuple[Part, asyncio.Future[Answer]]]:
        taken, self._open = self._open, []
        return taken


def parts(action: Part) -> list[Part]:
    """`action` in pieces of one command each."""
    size = wire.NLRI_PER_COMMAND
    if isinstance(action, plan.Announce):
        paths = action.paths
        return [
            plan.Announce(action.peers, action.attributes, paths[at : at + size]) for at in range(0, len(paths), size)
        ]
    prefixes = action.prefixes
    return [plan.Withdraw(action.peers, prefixes[at : at + size]) for at in range(0, len(prefixes), size)]


def halves(part: Part) -> list[Part]:
    """Two smaller commands, first by prefix, then by peer; none when there is one of each."""
    if isinstance(part, plan.Announce):
        middle = len(part.paths) // 2
        if middle:
            return [
                plan.Announce(part.peers, part.attributes, some) for some in (part.paths[:middle], part.paths[middle:])
            ]
        return [plan.Announce((peer,), part.attributes, part.paths) for peer in part.peers if len(part.peers) > 1]
    middle = len(part.prefixes) // 2
    if middle:
        return [plan.Withdraw(part.peers, some) for some in (part.prefixes[:middle], part.prefixes[middle:])]
    return [plan.Withdraw((peer,), part.prefixes) for peer in part.peers if len(part.peers) > 1]


def command(part: Part, bulk: bool) -> str:
    """Its text: as numbers, or in ExaBGP's own words where the speaker knows no others."""
    if isinstance(part, plan.Announce):
        announce, prefixes = wire.announce if bulk else text.announce, (path.prefix for path in part.paths)
        return announce(part.peers, part.attributes, prefixes)
    withdraw = wire.withdraw if bulk else text.withdraw
    return withdraw(part.peers, part.prefixes)
