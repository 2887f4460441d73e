"""Which blocks an instance gives back: marked first, unassigned once its node has long let go of them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from cloud.calls import Unassign
from cloud.demand import Demand, Rules
from cloud.model import Network, addresses
from cloud.need import excess, needed
from cloud.records import Block, Held, Holding, State

PATIENCE = 180.0  # seconds that a block is marked before it is unassigned: packets to it are on their way


def mark(holding: Holding, demand: Demand, rules: Rules, now: float) -> Holding:
    """With marks of what is too much. Where more is needed again, marks go: what is there need not be fetched."""
    if demand.kept is None:
        return holding
    available, marks = holding.available(), rules.marks
    short = needed(marks, available, demand.used, demand.pending)
    if short:
        return _flipped(holding, _most(_blocks(holding, "leaving"), short), "used", now)
    surplus = excess(marks, available, demand.used, demand.pending) if rules.releases else 0
    free = (block for block in _blocks(holding, "used") if _is_free(block, demand))
    return _flipped(holding, _within(free, surplus), "leaving", now)


def _blocks(holding: Holding, state: State) -> Iterator[Block]:
    """IPv4, the last ones first: a /80 is one for each instance, and stays."""
    found = [block for _, block in holding.blocks() if block.state == state and block.network.version == 4]
    return reversed([block for block in found if not block.missing])


def _is_free(block: Block, demand: Demand) -> bool:
    """A block that the node does not keep yet is one of which it has not even read."""
    return block.network in (demand.kept or ()) and block.network not in demand.busy


def unassign(holding: Holding, demand: Demand, at_once: int, now: float) -> Unassign | None:
    """The blocks of one interface whose node has let go of them. `at_once`: so many at most; 0 = all."""
    has_read = demand.generation >= holding.generation  # else it speaks of an earlier time: it may have a block again
    for held in holding.held:
        gone = tuple(each.network for each in held.blocks if _is_done(each, demand, has_read, now))
        if gone:
            return Unassign(held.id, gone[: at_once or len(gone)])
    return None


def _is_done(block: Block, demand: Demand, has_read: bool, now: float) -> bool:
    if block.missing or block.state != "leaving" or demand.kept is None or not has_read:
        return block.state == "going" and not block.missing
    return block.network not in demand.kept and now - block.since >= PATIENCE


def going(holding: Holding, call: Unassign, now: float) -> Holding:
    """From the moment at which the call is recorded there is no way back."""
    return _flipped(holding, set(call.blocks), "going", now)


def _flipped(holding: Holding, networks: set[Network], state: State, now: float) -> Holding:
    if not networks:
        return holding
    return replace(holding, held=tuple(_flip(held, networks, state, now) for held in holding.held))


def _flip(held: Held, networks: set[Network], state: State, now: float) -> Held:
    blocks = (replace(each, state=state, since=now) if each.network in networks else each for each in held.blocks)
    return replace(held, blocks=tuple(blocks))


def _within(blocks: Iterator[Block], surplus: int) -> set[Network]:
    """Whole blocks that together are no more than `surplus` addresses."""
    found: set[Network] = set()
    for block in blocks:
        if (size := addresses(block.network)) <= surplus:
            surplus -= size
            found.add(block.network)
    return found


def _most(blocks: Iterator[Block], short: int) -> set[Network]:
    """As many as cover `short` addresses, or all."""
    found: set[Network] = set()
    for block in blocks:
        if short <= 0:
            break
        short -= addresses(block.network)
        found.add(block.network)
    return found
