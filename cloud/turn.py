"""One turn: from a look at the cloud to the calls to send, and from their outcomes to what is remembered. Pure.

What `decide` returns is recorded before anything is sent. Whoever dies in between leaves an intent whose outcome nobody
knows, which is the same as an answer that did not come.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

from cloud import egress
from cloud.buckets import Buckets
from cloud.calls import Assign, Call, Create, Delete, Done, Outcome, Refused, Unassign, Unknown
from cloud.confirm import confirm
from cloud.demand import Demands, Rules
from cloud.egress import Seats, Unseated, Wanted
from cloud.leaks import leaks, suspects
from cloud.model import Inventory
from cloud.plan import Reason, plan
from cloud.records import Holding, Holdings, Intent, numbered
from cloud.release import going, mark

Key = tuple[str, str]
REST: Mapping[str, float] = {"no-prefixes": 600.0, "no-addresses": 60.0, "limit": 300.0, "denied": 60.0}  # seconds
SHORT_REST = 30.0  # after any other refusal
AT_ONCE = 16  # calls that are under way at the same time


@dataclass(frozen=True, slots=True)
class Rest:
    """What a refusal leaves alone for a while."""

    until: float
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Memory:
    """What the one who calls remembers; lost with it, and nothing depends on it."""

    buckets: Buckets = field(default_factory=Buckets)
    rests: Mapping[Key, Rest] = field(default_factory=dict)
    suspected: Mapping[str, float] = field(default_factory=dict)  # interfaces that look like leaks, since when


@dataclass(frozen=True, slots=True)
class Order:
    """A call to send."""

    call: Call
    instance: str = ""  # "" = for none: a leak
    again: bool = False  # it was sent before, and nobody knows what became of it
    subnet: str = ""  # whose addresses it takes
    addresses: tuple[IPv4Address, ...] = ()  # of egress, that move


@dataclass(frozen=True, slots=True)
class Turn:
    holdings: Holdings
    memory: Memory
    seats: Seats = field(default_factory=dict)
    unseated: tuple[Unseated, ...] = ()
    orders: tuple[Order, ...] = ()
    reasons: tuple[Reason, ...] = ()
    wait: float = 0.0  # seconds until a call that is due may be sent; 0 = none waits


def decide(
    holdings: Holdings, inventory: Inventory, demands: Demands, rules: Rules, memory: Memory, now: float,
    action: Callable[[Call], str], token: Callable[[str], str], seats: Seats | None = None,
    wanted: Collection[Wanted] = (),
) -> Turn:  # fmt: skip
    """`action` names the bucket of a call, `token` makes one for an instance's next interface.

    `wanted` are the egress addresses, `seats` what is on record of them; they move before anything else is fetched.
    """
    rests = {key: rest for key, rest in memory.rests.items() if rest.until > now}
    taken = egress.seen(seats or {}, inventory, wanted, now)
    of_pods = egress.without(inventory, taken.keys() | (seats or {}).keys())
    known, holdings = holdings, confirm(holdings, of_pods, demands, rules, now)
    holdings = {
        name: mark(each, demands[name], rules, now) if name in demands and not each.missing else each
        for name, each in holdings.items()
    }
    planned = plan(holdings, of_pods, demands, rules, rests.keys(), now, token)
    suspected = suspects(inventory, holdings, demands, rules, memory.suspected, now)
    refused = {IPv4Address(name): rest for (kind, name), rest in sorted(rests.items()) if kind == "address"}
    moves, unseated = egress.moves(
        taken, inventory, wanted, refused.keys(),
        releases=rules.releases, reassigns=rules.api.reassigns, at_once=rules.api.at_once,
    )  # fmt: skip
    unseated += tuple(Unseated(address, rest.reason, f"{address}: {rest.message}") for address, rest in refused.items())
    due = [Order(call, addresses=addresses) for call, addresses in _by_call(moves).items()]
    due += [_order(name, call, holdings, inventory) for name, call in planned.calls.items()]
    due += [Order(Delete(name)) for name in leaks(suspected, now)] if rules.releases else []
    due = _soon_done(_one_by_one(due)) if rules.api.whole else due
    buckets, orders, wait = _within(memory.buckets, due, action, now)
    for order in orders:
        if order.instance and not order.again:
            holdings[order.instance] = _intended(order, holdings, demands, now)
    taken = egress.intended(taken, {address: each.call for each in orders for address in each.addresses}, now)
    holdings = {name: numbered(known.get(name), each, now) for name, each in holdings.items()}
    reasons = (*planned.reasons, *_resting(rests, demands))
    return Turn(holdings, Memory(buckets, rests, suspected), taken, unseated, tuple(orders), reasons, wait)


def _by_call(moves: Mapping[IPv4Address, Call]) -> dict[Call, tuple[IPv4Address, ...]]:
    return {call: tuple(each for each, one in moves.items() if one == call) for call in moves.values()}


def _one_by_one(due: list[Order]) -> list[Order]:
    """The first one of each interface; the others come with the next turns."""
    first = {getattr(order.call, "interface", ""): order for order in reversed(due)}
    return [order for order in due if first[getattr(order.call, "interface", "")] is order]


def _soon_done(due: list[Order]) -> list[Order]:
    """The next look waits for all calls, and a write of a whole interface takes up to half a minute: what egress moves
    waits for nobody's pods, and for no more of them than one wave.
    """
    return [order for order in due if order.addresses] or due[:AT_ONCE]


def _intended(order: Order, holdings: Holdings, demands: Demands, now: float) -> Holding:
    """With the call that is about to be sent, on record."""
    holding = holdings.get(order.instance) or Holding(order.instance, demands[order.instance].node)
    if isinstance(order.call, Unassign):
        holding = going(holding, order.call, now)
    return replace(holding, intent=Intent(order.call, now))


def _order(name: str, call: Call, holdings: Holdings, inventory: Inventory) -> Order:
    again = name in holdings and holdings[name].intent is not None
    subnet = ""
    if isinstance(call, Create):
        subnet = call.subnet
    elif isinstance(call, Assign):
        there = inventory.interfaces.get(call.interface)  # one that is sent again: a look may not show it
        subnet = there.subnet if there else ""
    return Order(call, name, again, subnet)


def _within(
    buckets: Buckets, due: list[Order], action: Callable[[Call], str], now: float
) -> tuple[Buckets, list[Order], float]:
    """Those for which there are tokens, in their order, and how long the first of the others waits."""
    orders, wait = [], 0.0
    for order in due:
        name = action(order.call)
        taken = buckets.take(name, now)
        if taken is not None:
            buckets = taken
            orders.append(order)
        elif not wait or buckets.wait(name, now) < wait:
            wait = buckets.wait(name, now)
    return buckets, orders, wait


def _resting(rests: Mapping[Key, Rest], demands: Demands) -> list[Reason]:
    return [
        Reason(name, demands[name].node, rest.reason, rest.message)
        for (kind, name), rest in sorted(rests.items())
        if kind == "instance" and name in demands
    ]


def learn(turn: Turn, outcomes: Mapping[Order, Outcome], now: float, action: Callable[[Call], str]) -> Turn:
    """What the answers say, of the calls of this turn."""
    holdings, rests, buckets = dict(turn.holdings), dict(turn.memory.rests), turn.memory.buckets
    for order, outcome in outcomes.items():
        name = action(order.call)
        if isinstance(outcome, Refused) and outcome.problem == "throttled":
            buckets = buckets.throttled(name, now, outcome.after)
        else:
            buckets = buckets.answered(name, now)
            rests |= _rest(order, outcome, now) if isinstance(outcome, Refused) else {}
        if order.instance in holdings:
            holdings[order.instance] = _after(holdings[order.instance], order, outcome, now)
    moved = {address: outcome for order, outcome in outcomes.items() for address in order.addresses}
    memory = replace(turn.memory, rests=rests, buckets=buckets)
    return replace(turn, holdings=holdings, memory=memory, seats=egress.learned(turn.seats, moved, now))


def _after(holding: Holding, order: Order, outcome: Outcome, now: float) -> Holding:
    intent = holding.intent
    if intent is None:
        return holding
    if isinstance(outcome, Done):
        gave = outcome.blocks
        intent = replace(intent, since=now, answered=True, interface=outcome.interface, gave=gave)
        return replace(holding, intent=intent, served=now)
    if isinstance(outcome, Unknown):
        return replace(holding, intent=replace(intent, since=now), served=now)
    if outcome.problem in ("throttled", "unreachable"):  # it keeps its place in the queue
        return holding if order.again else replace(holding, intent=None)
    return replace(holding, intent=None, served=now)


def _rest(order: Order, outcome: Refused, now: float) -> dict[Key, Rest]:
    until = now + REST.get(outcome.problem, SHORT_REST)
    if outcome.problem == "no-prefixes":
        return {("prefixes", order.subnet): Rest(until)}
    if outcome.problem == "no-addresses":
        return {("prefixes", order.subnet): Rest(until), ("addresses", order.subnet): Rest(until)}
    reason = {"denied": "CloudDenied", "limit": "CloudLimit"}.get(outcome.problem, "CloudRefused")
    rest = Rest(until, reason, outcome.message)
    if order.addresses:
        return {("address", str(each)): rest for each in order.addresses}
    return {("instance", order.instance): rest} if order.instance else {}
