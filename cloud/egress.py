"""Egress addresses on a cloud: each on the primary interface of one gateway, which alone gets what is sent to it. Pure.

An address moves by calls that name it, so sending one twice does no harm: by one where the cloud reassigns, else it is
taken away first, and given once a look has shown that it is free. Who holds it is what a look shows; that it is
elsewhere counts once looks have shown it for longer than they lag, or where we have moved it ourselves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from cloud.calls import Call, Done, Outcome, Refused, Row, Take, Unassign
from cloud.confirm import LAG, SOON
from cloud.model import Interface, Inventory
from cloud.records import Intent, intent_row, read_intent


@dataclass(frozen=True, slots=True)
class Wanted:
    """The addresses of one egress group: all on the same gateway. `candidates` are instances, the best first."""

    addresses: tuple[IPv4Address, ...]
    candidates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Seat:
    """Where an address is. `instance` "" = nowhere, as far as is known; with an instance and no interface it was there
    until it was taken away, on its way to another: nodes are told of that one only."""

    address: IPv4Address
    instance: str = ""
    interface: str = ""
    intent: Intent | None = None
    missing: float = 0.0  # since when looks show it elsewhere, or nowhere; 0 = it was there when we looked last


@dataclass(frozen=True, slots=True)
class Unseated:
    """Why an address is not where it should be."""

    address: IPv4Address
    reason: str
    message: str


Seats = dict[IPv4Address, Seat]
Move = Take | Unassign


def seat_row(each: Seat) -> Row:
    return [str(each.address), each.instance, each.interface, intent_row(each.intent), each.missing]


def read_seat(address: str, instance: str, interface: str, intent: Row, missing: float) -> Seat:
    """Raises ValueError or TypeError for what is no row of one."""
    return Seat(IPv4Address(address), instance, interface, read_intent(intent), float(missing))


# --- what a look says


def seen(seats: Seats, inventory: Inventory, wanted: Iterable[Wanted], now: float) -> Seats:
    """The records after this observation. An address that nobody wants is remembered until it is unassigned, and for as
    long as looks lag: one that is late may show it again, and then it is no pod's.
    """
    asked = {address for each in wanted for address in each.addresses}
    holders = _holders(inventory)
    found = {}
    for address in sorted(seats.keys() | asked):
        holder = holders.get(address)
        if holder is not None and (_is_pods(holder) or _is_strangers(holder, seats.get(address), inventory)):
            holder = None
        after = _seen(seats.get(address) or _found(address, holder), holder, address in asked, now)
        if after.instance or after.intent or after.missing or address in asked:
            found[address] = after
    return found


def _found(address: IPv4Address, holder: Interface | None) -> Seat:
    """Of an address that is not on record nobody knows better than the look: it stays where it is."""
    return Seat(address, holder.instance, holder.id) if holder else Seat(address)


def without(inventory: Inventory, addresses: Collection[IPv4Address]) -> Inventory:
    """What is left for pods: on a primary interface these addresses are egress's, also while they are taken away."""
    mine = {IPv4Network(each) for each in addresses}
    left = {
        each.id: replace(each, blocks=tuple(block for block in each.blocks if block not in mine),
                         others=each.others + len(mine.intersection(each.blocks)))
        for each in inventory.interfaces.values()
        if not _is_pods(each) and mine.intersection(each.blocks)
    }  # fmt: skip
    return replace(inventory, interfaces={**inventory.interfaces, **left}) if left else inventory


def _holders(inventory: Inventory) -> dict[IPv4Address, Interface]:
    """Secondary addresses by the interface that has them."""
    return {
        block.network_address: each
        for each in inventory.interfaces.values()
        for block in each.blocks
        if isinstance(block, IPv4Network) and block.prefixlen == 32
    }


def _is_pods(interface: Interface) -> bool:
    """Egress addresses are on primary interfaces alone; one that is detached is nobody's."""
    return interface.index > 0


def _is_strangers(interface: Interface, seat: Seat | None, inventory: Inventory) -> bool:
    """Looks show all interfaces of a VPC, and of instances those of nodes; one that we gave it to is on record."""
    ours = {seat.interface, _target(seat.intent)} if seat is not None else set()
    return interface.instance not in inventory.instances and interface.id not in ours


def _seen(seat: Seat, holder: Interface | None, is_asked: bool, now: float) -> Seat:
    intent, shown = seat.intent, holder.id if holder else ""
    if intent is not None and holder is not None and shown == _target(intent):
        return Seat(seat.address, holder.instance, holder.id)
    if intent is not None and isinstance(intent.call, Unassign) and intent.answered and not shown:
        return Seat(seat.address, seat.instance) if is_asked else Seat(seat.address, missing=now)
    if intent is not None and now - intent.since >= (LAG if intent.answered else SOON):
        intent = None
    if not shown and not seat.interface and not is_asked:
        since = seat.missing or now
        return replace(seat, instance="", intent=intent, missing=since if now - since < LAG else 0.0)
    if shown == seat.interface and (holder is None or holder.instance == seat.instance):
        return replace(seat, intent=intent, missing=0.0)
    if shown and shown == seat.interface and holder is not None and not holder.instance:
        return replace(seat, intent=intent, missing=0.0)  # it is on nobody now, and is looked for by whom it was on
    return _elsewhere(seat, holder, intent, now)


def _target(intent: Intent | None) -> str:
    return intent.call.interface if intent is not None and isinstance(intent.call, Take) else ""


def _elsewhere(seat: Seat, holder: Interface | None, intent: Intent | None, now: float) -> Seat:
    since = seat.missing or now
    if now - since < LAG:
        return replace(seat, intent=intent, missing=since)
    return Seat(seat.address, holder.instance if holder else "", holder.id if holder else "", intent)


# --- what follows


def moves(
    seats: Seats,
    inventory: Inventory,
    wanted: Collection[Wanted],
    resting: Collection[IPv4Address],
    *,
    releases: bool,
    reassigns: bool,
    at_once: int = 0,
) -> tuple[dict[IPv4Address, Call], tuple[Unseated, ...]]:
    """The next call for each address, if any: one for those of a group that go the same way, of at most `at_once`; 0 =
    all of them. `resting`: addresses of which a call was refused a moment ago.
    """
    calls: dict[IPv4Address, Move] = {}
    unseated: list[Unseated] = []
    holders = _holders(inventory)
    for group in wanted:
        target = _gateway(group, seats, inventory)
        if target is None:
            lost = (each for each in group.addresses if seats[each].instance not in group.candidates)
            unseated += [_why_none(each, group) for each in lost]
            continue
        for address in group.addresses:
            holder = holders.get(address)
            if holder is not None and _is_pods(holder):
                unseated.append(_in_use(address, holder, "for pods"))
            elif holder is not None and not reassigns and _is_strangers(holder, seats[address], inventory):
                unseated.append(_in_use(address, holder, "somebody else's"))
            elif seats[address].interface != target.id or seats[address].instance != target.instance:
                calls[address] = _move(address, holder, target, reassigns)
    asked = {address for each in wanted for address in each.addresses}
    for address, seat in seats.items():
        if address not in asked and seat.interface and releases:
            calls[address] = Unassign(seat.interface, (IPv4Network(address),))
    due = {address: call for address, call in calls.items() if _may_send(seats[address], resting)}
    return _together(due, wanted, at_once), tuple(unseated)


def _together(calls: Mapping[IPv4Address, Move], wanted: Iterable[Wanted], at_once: int) -> dict[IPv4Address, Call]:
    """Groups apart, as who refuses one address of a call refuses all."""
    groups = {address: number for number, each in enumerate(wanted) for address in each.addresses}
    alike: dict[tuple[type[Move], str, int], list[IPv4Address]] = {}
    for address, call in calls.items():
        alike.setdefault((type(call), call.interface, groups.get(address, -1)), []).append(address)
    found: dict[IPv4Address, Call] = {}
    for (kind, interface, _), addresses in alike.items():
        size = at_once or len(addresses)
        for part in (addresses[start : start + size] for start in range(0, len(addresses), size)):
            blocks = tuple(map(IPv4Network, part))
            found |= dict.fromkeys(part, Take(interface, tuple(part)) if kind is Take else Unassign(interface, blocks))
    return found


def _move(address: IPv4Address, holder: Interface | None, target: Interface, reassigns: bool) -> Move:
    if holder is None or holder.id == target.id or reassigns:
        return Take(target.id, (address,))
    return Unassign(holder.id, (IPv4Network(address),))


def _may_send(seat: Seat, resting: Collection[IPv4Address]) -> bool:
    return seat.intent is None and seat.address not in resting


def _gateway(group: Wanted, seats: Seats, inventory: Inventory) -> Interface | None:
    """The primary interface of the gateway that has the first address while it may, else of the first that can."""
    able = {each.instance: each for each in _able(group, inventory)}
    holder = seats[group.addresses[0]].instance
    return able.get(holder) or next(iter(able.values()), None)


def _able(group: Wanted, inventory: Inventory) -> Iterator[Interface]:
    """Primary interfaces of running candidates in the addresses' subnet, with room for those that they lack."""
    primaries = {each.instance: each for each in inventory.interfaces.values() if each.index == 0 and each.is_attached}
    for name in group.candidates:
        instance, interface = inventory.instances.get(name), primaries.get(name)
        if instance is None or interface is None or not instance.running or interface.subnet not in inventory.subnets:
            continue
        cidr, limits = inventory.subnets[interface.subnet].cidr, inventory.limits.get(instance.type)
        have = {str(block) for block in interface.blocks}
        lacking = sum(f"{address}/32" not in have for address in group.addresses)
        taken = sum(block.version == 4 for block in interface.blocks)
        has_room = limits is not None and limits.named and 1 + interface.others + taken + lacking <= limits.ipv4
        if has_room and all(address in cidr for address in group.addresses):
            yield interface


def _why_none(address: IPv4Address, group: Wanted) -> Unseated:
    names = ", ".join(group.candidates) or "none"
    message = f"no gateway's primary interface is in the subnet of {address}, with room for it (instances: {names})"
    return Unseated(address, "NoCloudGateway", message)


def _in_use(address: IPv4Address, holder: Interface, whose: str) -> Unseated:
    message = f"{address} is not taken: it is {whose}, on interface {holder.id} of instance {holder.instance}"
    return Unseated(address, "CloudAddressInUse", message)


# --- calls


def intended(seats: Seats, calls: Mapping[IPv4Address, Call], now: float) -> Seats:
    """With the calls that are about to be sent, on record."""
    return {**seats, **{name: replace(seats[name], intent=Intent(call, now)) for name, call in calls.items()}}


def learned(seats: Seats, outcomes: Mapping[IPv4Address, Outcome], now: float) -> Seats:
    """What the answers say; that it is so, only a look does."""
    after = dict(seats)
    for address, outcome in outcomes.items():
        seat = after.get(address)
        if seat is None or seat.intent is None:
            continue
        intent: Intent | None = replace(seat.intent, since=now, answered=isinstance(outcome, Done))
        after[address] = replace(seat, intent=None if isinstance(outcome, Refused) else intent)
    return after
