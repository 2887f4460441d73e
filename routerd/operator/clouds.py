"""The operator's loop for a cloud: look, decide, record, send, learn. Decisions are `cloud.turn`'s.

Nothing is sent that is not on record, and while a look fails nothing is changed. Its calls run in threads of its own.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from cloud.backend import Backend, CloudFault
from cloud.buckets import Buckets, Rate
from cloud.calls import Outcome, Refused, Unknown
from cloud.demand import Demand, Demands
from cloud.egress import Seats, Wanted
from cloud.providers import alibaba, arm, aws, ec2, ecs, nic_changes
from cloud.providers.account import Account
from cloud.records import Holding, Holdings, Intent
from cloud.turn import AT_ONCE, Memory, Order, Turn, decide, learn
from routerd.clock import Clock, jumps
from routerd.cluster.cloud_egress import wanted_seats
from routerd.cluster.instances import demands
from routerd.cluster.ledger import Ledger
from routerd.config.cloud import CloudSettings
from routerd.errors import EnvironmentFault, StoreError
from routerd.log import event
from routerd.model import Refusal, severity_of
from routerd.operator.loop import Operator
from routerd.refs import EGRESS, NODE, Ref
from routerd.serve.api import Noted

LOGGER = logging.getLogger("routerd.clouds")
LOOK = 1.0  # seconds between looks at whether nodes want something else
QUICK = 2.0  # seconds between looks at the cloud while something is on its way
PERIOD = 60.0  # seconds between looks while nothing is: what others change is seen then
RETRY = 15.0  # seconds after a look that failed
T = TypeVar("T")
RATES: Mapping[str, Mapping[str, Rate]] = {"alibaba": ecs.RATES, "azure": arm.RATES}  # of each action, by provider
CLOUD = "Cloud"  # the kind of what is refused by the whole cloud


def opened(settings: CloudSettings) -> Backend:
    """Raises CloudFault."""
    if settings.provider == "alibaba":
        return Account(ecs, alibaba.connect(settings.region, settings.endpoint), settings.rules)
    if settings.provider == "azure":
        from cloud.providers import azure  # brings a client of HTTP, which nobody else of a store of files needs

        return nic_changes.Subscription(azure.connect(settings.endpoint))
    return Account(ec2, aws.connect(settings.region, settings.endpoint), settings.rules)


@dataclass(slots=True)
class Clouds:
    """One operator's cloud. `clock` gives seconds of the Unix epoch."""

    operator: Operator
    settings: CloudSettings
    open: Callable[[CloudSettings], Backend] = opened
    clock: Callable[[], float] = field(default_factory=Clock)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # calls by action and what came of them
    fault: CloudFault | None = None  # why the last look failed
    on_lacking: Callable[[], None] = lambda: None  # called when `lacking` says something else
    _jumps: int | None = None  # of the clock, for which what waits has begun anew; None = nothing was decided yet
    _told_lacking: Mapping[str, str] | None = None
    _backend: Backend | None = None
    _last: Turn = field(default_factory=lambda: Turn({}, Memory()))
    _decided_on: tuple[Demands, tuple[Wanted, ...]] = ({}, ())
    # Its own: calls that hang must not take the few threads of the loop, in which the operator makes its rounds.
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(AT_ONCE, "cloud"))

    async def run(self) -> None:
        """Until cancelled. The operator runs beside it."""
        clock = asyncio.get_running_loop().time
        due = clock()
        try:
            while True:
                if clock() >= due or (self.fault is None and self._wanted() != self._decided_on):
                    due = clock() + await self._tried()
                    self._tell_lacking()
                await asyncio.sleep(LOOK)
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _tell_lacking(self) -> None:
        if (now := self.lacking()) != self._told_lacking:
            self._told_lacking = now
            self.on_lacking()

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def _tried(self) -> float:
        """A turn; seconds until the next one."""
        try:
            return await self.turn()
        except CloudFault as error:
            if self.fault is None or str(self.fault) != str(error):
                event(LOGGER, logging.ERROR, "cloud-unread", reason=error.problem, message=str(error), retry=RETRY)
            self.fault = error
            return max(RETRY, error.after)
        except (StoreError, EnvironmentFault) as error:
            event(LOGGER, logging.ERROR, "cloud-unrecorded", reason=str(error), retry=RETRY)
        return RETRY

    async def turn(self) -> float:
        """Raises CloudFault, StoreError, EnvironmentFault. Seconds until the next look, if nothing else is wanted."""
        if not self.settings.calls or self.operator.last is None:
            return LOOK
        if self._backend is None:
            self._backend = await self._in_thread(self.open, self.settings)
            self._last = replace(self._last, memory=self._nothing())
        backend = self._backend
        demanded, wanted = self._decided_on = self._wanted()
        # Nobody else changes these records, so what they say now is what a decision may rest on.
        ledger = await self.operator.change(lambda ledger: ledger)
        held = {each.instance: each for each in ledger.cloud_instances}
        gateways = {name for each in wanted for name in each.candidates}
        holders = {each.instance for each in ledger.cloud_addresses} - {""}
        inventory = await self._in_thread(backend.describe, demanded.keys() | held.keys() | gateways | holders)
        self.fault = None
        seats, memory = {each.address: each for each in ledger.cloud_addresses}, self._last.memory
        now, jumped = self.clock(), jumps(self.clock)
        if jumped != self._jumps:
            held, seats = begun(held, seats, now, anew=self._jumps is not None)
            memory = self._nothing()
        turn = decide(
            held, inventory, demanded, self.settings.rules, memory, now, backend.action, token, seats, wanted,
        )  # fmt: skip
        await self._record(turn)
        self._jumps = jumped
        if turn.orders:
            outcomes = await self._sent(backend, turn.orders)
            await self._record(learn(turn, outcomes, self.clock(), backend.action))
        return self._pause()

    def _nothing(self) -> Memory:
        """Of who begins."""
        return Memory(Buckets(RATES.get(self.settings.provider, {})))

    async def _record(self, turn: Turn) -> None:
        """An address that has moved, or a block that was added, is published at once."""
        before = self._last
        await self.operator.change(lambda ledger: recorded(ledger, turn))
        self._last = turn
        if _published(before) != _published(turn):
            self.operator.wake()

    def _wanted(self) -> tuple[Demands, tuple[Wanted, ...]]:
        """What pods and egress groups want now."""
        snapshot, reports, last = self.operator.store.snapshot(), self.operator.store.node_reports(), self.operator.last
        nodes, networks = snapshot.nodes or {}, self.settings.egress_networks
        demanded = demands(nodes, reports or {}, self.settings.nodes)
        if last is None or not networks:
            return demanded, ()
        return demanded, wanted_seats(last.allocations.groups, last.ledger.groups, nodes, networks)

    async def _sent(self, backend: Backend, orders: tuple[Order, ...]) -> dict[Order, Outcome]:
        found = await asyncio.gather(*(self._in_thread(backend.send, order.call) for order in orders))
        outcomes = dict(zip(orders, found, strict=True))
        for order, outcome in outcomes.items():
            self._tell(backend.action(order.call), order, outcome)
        return outcomes

    def _tell(self, action: str, order: Order, outcome: Outcome) -> None:
        result = {Refused: "refused", Unknown: "unknown"}.get(type(outcome), "done")
        if isinstance(outcome, Refused):
            result = outcome.problem
        self.counts[action, result] += 1
        about = {"action": action, "instance": order.instance, "result": result}
        interface = getattr(order.call, "interface", "") or getattr(outcome, "interface", "")
        message = getattr(outcome, "message", "")
        level = logging.WARNING if message and result != "throttled" else logging.INFO
        event(LOGGER, level, "cloud-call", **about, interface=interface, message=message)

    def _pause(self) -> float:
        turn = self._last
        intents = [each.intent for each in turn.holdings.values()] + [each.intent for each in turn.seats.values()]
        if turn.orders or any(each is not None for each in intents):
            return QUICK
        return min(max(turn.wait, LOOK), PERIOD) if turn.wait else PERIOD

    # --- what is told

    def lacking(self) -> dict[str, str] | None:
        """By node: why pods that come wait for an address that does not come by itself; "" = none does. None = nothing
        was looked at yet.
        """
        if self._jumps is None:
            return None
        errors = (each for each in self._last.reasons if severity_of(each.reason) == "error")
        why = {each.instance: f"{each.reason}: {each.message}" for each in errors}
        held = self._last.holdings
        return {
            demand.node: self._lacks(held.get(name) or Holding(name), demand, why.get(name, ""))
            for name, demand in self._decided_on[0].items()
        }

    def _lacks(self, each: Holding, demand: Demand, why: str) -> str:
        """Of both families a pod has an address, or it waits."""
        has_6 = not self.settings.rules.ipv6 or each.available(6)
        if has_6 and each.available() - demand.used - demand.pending > 0:
            return ""
        return str(self.fault) if self.fault is not None else why

    def refusals(self) -> tuple[Refusal, ...]:
        """Who has less than it wants, and why."""
        if not self.settings.calls:
            message = "cloud.calls is off: nothing of the cloud is read or changed"
            return (Refusal(Ref(CLOUD, name=self.settings.provider), "CloudStopped", message),)
        if self.fault is not None:
            reason = "CloudDenied" if self.fault.problem == "denied" else "CloudUnread"
            message = f"{self.fault}: nothing is changed meanwhile"
            return (Refusal(Ref(CLOUD, name=self.settings.provider), reason, message),)
        of_nodes = (Refusal(Ref(NODE, name=each.node), each.reason, each.message) for each in self._last.reasons)
        of_egress = (
            Refusal(Ref(EGRESS, name=str(each.address)), each.reason, each.message) for each in self._last.unseated
        )
        return (*of_nodes, *of_egress)

    def shown(self) -> Noted:
        """What `routerd show cloud` is told."""
        others = (each.message for each in self.refusals() if each.object.kind != NODE)  # a node's are in its row
        return Noted(self.rows(), "; ".join(others))

    def rows(self) -> list[dict[str, Any]]:
        why = {each.instance: each.reason for each in self._last.reasons}
        held, demanded = self._last.holdings, self._decided_on[0]
        seats: dict[str, list[str]] = {}
        for seat in self._last.seats.values():
            seats.setdefault(seat.instance, []).append(str(seat.address))
        names = sorted(held.keys() | demanded.keys() | seats.keys() - {""})
        return [
            self._row(held.get(name) or Holding(name), demanded.get(name), seats.get(name, ()), why.get(name, ""))
            for name in names
        ]

    def _row(self, each: Holding, demand: Demand | None, seats: Iterable[str], reason: str) -> dict[str, Any]:
        states = Counter(block.state for _, block in each.blocks())
        return {
            "instance": each.instance,
            "node": demand.node if demand else each.node,
            "interfaces": " ".join(one.id for one in each.held),
            "addresses": each.available(),
            "prefixes6": sum(block.network.version == 6 for _, block in each.blocks()),
            "leaving": states["leaving"] + states["going"],
            "used": demand.used if demand else 0,
            "waiting": demand.pending if demand else 0,
            "egress_ips": " ".join(seats),
            "reason": reason,
        }


def clouds_of(settings: CloudSettings, operator: Operator) -> Clouds | None:
    """None where no cloud is configured. The operator's socket answers with its rows."""
    if settings.provider == "none":
        return None
    clouds = Clouds(operator, settings)
    operator.cloud = clouds.shown
    return clouds


def token(instance: str) -> str:
    """Of one interface, at most 64 characters (EC2)."""
    return f"{instance.rpartition('/')[2][-40:]}-{secrets.token_hex(8)}"


def _published(turn: Turn) -> tuple[Any, Any]:
    """What nodes are told of."""
    holders = {address: seat.instance for address, seat in turn.seats.items()}
    return holders, {name: each.held for name, each in turn.holdings.items()}


def recorded(ledger: Ledger, turn: Turn) -> Ledger:
    """The same ledger where nothing of it changed."""
    instances = tuple(turn.holdings[name] for name in sorted(turn.holdings))
    addresses = tuple(turn.seats[name] for name in sorted(turn.seats))
    if (instances, addresses) == (ledger.cloud_instances, ledger.cloud_addresses):
        return ledger
    return replace(ledger, cloud_instances=instances, cloud_addresses=addresses)


def begun(holdings: Holdings, seats: Seats, now: float, *, anew: bool) -> tuple[Holdings, Seats]:
    """Whatever waits for its time waits no longer than from `now` on, and `anew` all of it: the clock was wrong."""

    def at(since: float) -> float:
        return now if anew and since else min(since, now)

    def of(intent: Intent | None) -> Intent | None:
        return None if intent is None else replace(intent, since=at(intent.since))

    def from_now(each: Holding) -> Holding:
        held = (
            replace(one, blocks=tuple(replace(block, since=at(block.since), missing=at(block.missing))
                                      for block in one.blocks))
            for one in each.held
        )  # fmt: skip
        served, missing = min(each.served, now), at(each.missing)
        return replace(each, held=tuple(held), intent=of(each.intent), served=served, missing=missing)

    return (
        {name: from_now(each) for name, each in holdings.items()},
        {key: replace(each, intent=of(each.intent), missing=at(each.missing)) for key, each in seats.items()},
    )
