"""What is recorded of each instance: blocks that are its own, and the call that was made for it. Values as rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import Any, Literal, get_args

from cloud.calls import Call, Row, call_row, read_call
from cloud.model import Network, addresses

State = Literal["used", "leaving", "going"]


@dataclass(frozen=True, slots=True)
class Block:
    """`leaving`: its node gives no address of it any more, and may have it back until it has let go of it.

    `going`: the cloud was told to take it. It comes back as another block or not at all: a late look may still show it.
    """

    network: Network
    state: State = "used"
    since: float = 0.0  # when the state began, seconds of the Unix epoch
    missing: float = 0.0  # since when the cloud does not show it; 0 = it did when we looked last


@dataclass(frozen=True, slots=True)
class Held:
    """An interface of an instance, as its node must know it."""

    id: str
    mac: str
    index: int  # of the device, as the cloud counts
    primary: IPv4Address
    subnet: IPv4Network
    blocks: tuple[Block, ...] = ()  # sorted
    vpc: tuple[IPv4Network, ...] = ()  # networks of its VPC, where its node must know them


@dataclass(frozen=True, slots=True)
class Intent:
    """A call that was recorded before it was sent. Nothing else is sent for the instance until it is settled."""

    call: Call
    since: float  # when it was recorded, seconds of the Unix epoch
    answered: bool = False  # the cloud accepted it
    interface: str = ""  # that it made
    gave: tuple[Network, ...] = ()

    @property
    def may_repeat(self) -> bool:
        """Its token makes it one call, however often it is sent."""
        return not self.answered and bool(getattr(self.call, "token", ""))


@dataclass(frozen=True, slots=True)
class Holding:
    """Of one instance, which keeps what is its own under whichever name its node goes."""

    instance: str
    node: str = ""
    held: tuple[Held, ...] = ()  # sorted by index
    intent: Intent | None = None
    served: float = 0.0  # when the last call was made for it: who waits longest is next
    missing: float = 0.0  # since when the cloud does not show the instance; 0 = it did when we looked last
    generation: int = 0  # of what its node is told: another one with each change of it

    def blocks(self) -> Iterator[tuple[Held, Block]]:
        for one in self.held:
            for block in one.blocks:
                yield one, block

    def available(self, version: Literal[4, 6] = 4) -> int:
        """Addresses for pods, used ones included."""
        mine = (block for _, block in self.blocks() if block.state == "used")
        return sum(addresses(block.network) for block in mine if block.network.version == version)


Holdings = dict[str, Holding]  # by instance


def numbered(before: Holding | None, after: Holding, now: float) -> Holding:
    """With the next generation, if its node is told something else. A new instance begins above the one whose node had
    the name before.
    """
    known = before or Holding(after.instance)
    if _told(known) == _told(after):
        return after
    return replace(after, generation=max(known.generation + 1, int(now)))


def _told(each: Holding) -> list[tuple[str, Network]]:
    """Of what pods get addresses."""
    return [(one.mac, block.network) for one, block in each.blocks() if block.state == "used"]


# --- rows


def holding_row(each: Holding) -> Row:
    return [each.instance, each.node, [_held_row(one) for one in each.held], intent_row(each.intent), each.served,
            each.missing, each.generation]  # fmt: skip


def read_holding(
    instance: str, node: str, held: list[Row], intent: Row, served: float, missing: float, generation: int = 1
) -> Holding:  # fmt: skip
    """Raises ValueError or TypeError for what is no row of one. Old ones have no generation: it is the first."""
    return Holding(
        instance, node, tuple(_held(*one) for one in held), read_intent(intent), float(served), float(missing),
        int(generation),
    )  # fmt: skip


def _held_row(each: Held) -> Row:
    blocks = [[str(one.network), one.state, one.since, one.missing] for one in each.blocks]
    vpc = [str(network) for network in each.vpc]
    return [each.id, each.mac, each.index, str(each.primary), str(each.subnet), blocks, *([vpc] if vpc else [])]


def _held(
    id_: str, mac: str, index: int, primary: str, subnet: str, blocks: list[Row], vpc: list[str] | None = None
) -> Held:
    return Held(
        id_, mac, int(index), IPv4Address(primary), IPv4Network(subnet), tuple(_block(*one) for one in blocks),
        tuple(map(IPv4Network, vpc or ())),
    )  # fmt: skip


def _block(network: str, state: Any, since: float, missing: float) -> Block:
    if state not in get_args(State):
        raise ValueError(f"block {network}: state {state!r}")
    return Block(ip_network(network), state, float(since), float(missing))


def intent_row(each: Intent | None) -> Row:
    if each is None:
        return []
    return [call_row(each.call), each.since, each.answered, each.interface, [str(one) for one in each.gave]]


def read_intent(row: Row) -> Intent | None:
    """Raises ValueError or TypeError for what is no row of one."""
    return None if row == [] else _intent(*row)


def _intent(call: Row, since: float, answered: bool, interface: str, gave: list[str]) -> Intent:
    return Intent(read_call(*call), float(since), bool(answered), interface, tuple(map(ip_network, gave)))
