"""The operator's loop for a cloud: look, decide, record, send, learn. Decisions are `cloud.turn`'s.

Nothing is sent that is not on record, and while a look fails nothing is changed. Its calls run in threads.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from cloud.aws import Ec2, connect
from cloud.backend import Backend, CloudFault
from cloud.calls import Outcome, Refused, Unknown
from cloud.demand import Demands
from cloud.plan import Reason
from cloud.records import Holding, Holdings
from cloud.turn import Memory, Order, Turn, decide, learn
from routerd.cluster.instances import demands
from routerd.cluster.ledger import Ledger
from routerd.config.cloud import CloudSettings
from routerd.errors import EnvironmentFault, StoreError
from routerd.log import event
from routerd.model import Refusal
from routerd.operator.loop import Operator
from routerd.refs import NODE, Ref
from routerd.serve.api import Noted

LOGGER = logging.getLogger("routerd.clouds")
LOOK = 1.0  # seconds between looks at whether nodes want something else
QUICK = 2.0  # seconds between looks at the cloud while something is on its way
PERIOD = 60.0  # seconds between looks while nothing is: what others change is seen then
RETRY = 15.0  # seconds after a look that failed
AT_ONCE = 16  # calls in threads
CLOUD = "Cloud"  # the kind of what is refused by the whole cloud


def opened(settings: CloudSettings) -> Backend:
    """Raises CloudFault."""
    rules = settings.rules
    return Ec2(connect(settings.region, settings.endpoint), rules.cluster, with_groups=bool(rules.groups.tags))


@dataclass(slots=True)
class Clouds:
    """One operator's cloud. `clock` gives seconds of the Unix epoch."""

    operator: Operator
    settings: CloudSettings
    open: Callable[[CloudSettings], Backend] = opened
    clock: Callable[[], float] = time.time
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # calls by action and what came of them
    fault: CloudFault | None = None  # why the last look failed
    _backend: Backend | None = None
    _memory: Memory = field(default_factory=Memory)
    _reasons: tuple[Reason, ...] = ()
    _demands: Demands = field(default_factory=dict)
    _held: Holdings = field(default_factory=dict)

    async def run(self) -> None:
        """Until cancelled. The operator runs beside it."""
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            if clock() >= due or self._wanted() != self._demands:
                due = clock() + await self._tried()
            await asyncio.sleep(LOOK)

    async def _tried(self) -> float:
        """A turn; seconds until the next one."""
        try:
            return await self.turn()
        except CloudFault as error:
            if self.fault is None or str(self.fault) != str(error):
                event(LOGGER, logging.ERROR, "cloud-unread", reason=error.problem, message=str(error), retry=RETRY)
            self.fault = error
        except (StoreError, EnvironmentFault) as error:
            event(LOGGER, logging.ERROR, "cloud-unrecorded", reason=str(error), retry=RETRY)
        return RETRY

    async def turn(self) -> float:
        """Raises CloudFault, StoreError, EnvironmentFault. Seconds until the next look, if nothing else is wanted."""
        if not self.settings.calls or self.operator.last is None:
            return LOOK
        if self._backend is None:
            self._backend = await asyncio.to_thread(self.open, self.settings)
        backend = self._backend
        wanted = self._demands = self._wanted()
        # Nobody else changes these records, so what they say now is what a decision may rest on.
        held = holdings(await self.operator.change(lambda ledger: ledger))
        inventory = await asyncio.to_thread(backend.describe, wanted.keys() | held.keys())
        self.fault = None
        turn = decide(
            held, inventory, wanted, self.settings.rules, self._memory, self.clock(), backend.action, token
        )  # fmt: skip
        await self._record(turn.holdings)
        self._memory, self._reasons = turn.memory, turn.reasons
        if turn.orders:
            outcomes = await self._sent(backend, turn.orders)
            after, self._memory = learn(turn.holdings, turn.memory, outcomes, self.clock(), backend.action)
            await self._record(after)
        return self._pause(turn)

    async def _record(self, held: Holdings) -> None:
        await self.operator.change(lambda ledger: with_holdings(ledger, held))
        self._held = held

    def _wanted(self) -> Demands:
        nodes, reports = self.operator.store.snapshot().nodes, self.operator.store.node_reports()
        return demands(nodes or {}, reports or {}, self.settings.nodes)

    async def _sent(self, backend: Backend, orders: tuple[Order, ...]) -> dict[Order, Outcome]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def send(order: Order) -> Outcome:
            async with gate:
                return await asyncio.to_thread(backend.send, order.call)

        found = await asyncio.gather(*map(send, orders))
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

    def _pause(self, turn: Turn) -> float:
        if any(each.intent is not None for each in self._held.values()):
            return QUICK
        return min(max(turn.wait, LOOK), PERIOD) if turn.wait else PERIOD

    # --- what is told

    def refusals(self) -> tuple[Refusal, ...]:
        """Who has less than it wants, and why."""
        if not self.settings.calls:
            message = "cloud.calls is off: nothing of the cloud is read or changed"
            return (Refusal(Ref(CLOUD, name=self.settings.provider), "CloudStopped", message),)
        if self.fault is not None:
            reason = "CloudDenied" if self.fault.problem == "denied" else "CloudUnread"
            message = f"{self.fault}: nothing is changed meanwhile"
            return (Refusal(Ref(CLOUD, name=self.settings.provider), reason, message),)
        return tuple(Refusal(Ref(NODE, name=each.node), each.reason, each.message) for each in self._reasons)

    def shown(self) -> Noted:
        """What `routerd show cloud` is told."""
        whole = (each.message for each in self.refusals() if each.object.kind == CLOUD)
        return Noted(self.rows(), "; ".join(whole))

    def rows(self) -> list[dict[str, Any]]:
        why = {each.instance: each.reason for each in self._reasons}
        names = sorted(self._held.keys() | self._demands.keys())
        return [self._row(self._held.get(name) or Holding(name), why.get(name, "")) for name in names]

    def _row(self, each: Holding, reason: str) -> dict[str, Any]:
        demand = self._demands.get(each.instance)
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
    return f"{instance}-{secrets.token_hex(8)}"


def holdings(ledger: Ledger) -> Holdings:
    return {each.instance: each for each in ledger.cloud_instances}


def with_holdings(ledger: Ledger, held: Holdings) -> Ledger:
    """The same ledger where nothing of it changed."""
    records = tuple(held[name] for name in sorted(held))
    return ledger if records == ledger.cloud_instances else replace(ledger, cloud_instances=records)
