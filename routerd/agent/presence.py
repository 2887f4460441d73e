"""What a node tells the operator: its addresses, and by heartbeats that it serves. Decides nothing about others.

A beat says that a gateway here would do its work: everything was read, the datapath is programmed, the last round went
well, and rounds are still made. An agent that has merely started, or crashes before it gets so far, says nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from routerd.agent.drain import Drains
from routerd.blocking import in_thread
from routerd.errors import StoreError
from routerd.log import event
from routerd.memo import Tally
from routerd.model import (
    GATEWAY_HEARTBEAT,
    NODE_HEARTBEAT,
    BlockReport,
    EgressAsk,
    Heartbeat,
    IPAddress,
    NodeReport,
    Pod,
    PodCount,
    PortReport,
    Snapshot,
)
from routerd.node.groups import may_be_gateway
from routerd.store.interface import Store
from routerd.tell.status import AgentStatus

LOGGER = logging.getLogger("routerd.process")
LOOK = 1.0  # seconds between looks at whether there is something to tell
REPORT_PERIOD = 30.0  # seconds between looks at the node's addresses
STUCK = 30.0  # seconds without a round, of which there is one every 5 s


class PodCounter:
    """Counts those with a network of their own that have not ended; of a snapshot it looks at what has changed."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._with_address: Tally[Pod, bool] = Tally(self._counted)

    def _counted(self, pod: Pod) -> tuple[bool, ...]:
        is_mine = pod.node == self._node and not (pod.host_network or pod.finished)
        return (bool(pod.addresses),) if is_mine else ()

    def count(self, snapshot: Snapshot) -> PodCount | None:
        """None while pods have not been read."""
        if snapshot.pods is None:
            return None
        self._with_address.update(snapshot.pods)
        found = self._with_address.values
        return PodCount(found.get(True, 0), found.get(False, 0))


@dataclass(slots=True)
class Presence:
    """`run` beside the agent. Times are of the loop's clock."""

    store: Store
    measure: Callable[[], NodeReport]  # reads the kernel, which blocks
    status: Callable[[], AgentStatus]
    snapshot: Callable[[], Snapshot]
    drains: Drains = field(default_factory=Drains)
    egress: bool = True  # whether this node has a datapath at all
    ports: Callable[[], PortReport | None] = lambda: None
    pods: Callable[[Snapshot], PodCount | None] = lambda snapshot: None
    blocks: Callable[[], BlockReport | None] = lambda: None
    asks: Callable[[Snapshot], tuple[EgressAsk, ...] | None] = lambda snapshot: None
    _report: NodeReport | None = None  # as measured last
    _measured: float = float("-inf")
    _told: NodeReport | None = None  # None = to be told, also if it is the same
    _beaten: float = float("-inf")
    _rounds: tuple[int, float] = (0, float("-inf"))  # how many there were, and since when

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.drains.changed.clear()
            await self._look(asyncio.get_running_loop().time())
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self.drains.changed.wait()

    def say_goodbye(self) -> None:
        """The last word of a node that goes down: its groups move while it still forwards. Raises StoreError."""
        if self._report is not None:
            self.store.write_node_report(replace(self._told or self._report, draining=True))

    async def _look(self, now: float) -> None:
        try:
            if now - self._measured >= REPORT_PERIOD:
                self._measured = now
                self._report, self._told = await in_thread(self.measure), None
            if self._report is not None:
                self._tell(self._report, now)
        except (StoreError, OSError) as error:
            event(LOGGER, logging.ERROR, "report-failed", reason=str(error), retry=REPORT_PERIOD)

    def _tell(self, measured: NodeReport, now: float) -> None:
        heartbeat = self._heartbeat(measured.addresses)
        report = replace(
            measured, draining=self.drains.is_leaving, heartbeat=heartbeat, ports=self.ports(),
            pods=self.pods(self.snapshot()), blocks=self.blocks(), egress_asks=self.asks(self.snapshot()),
        )  # fmt: skip
        if report != self._told:
            self._told = report
            self.store.write_node_report(report)
        if self._serves(now) and heartbeat is not None and now - self._beaten >= heartbeat.seconds:
            self._beaten = now
            self.store.beat()

    def _heartbeat(self, addresses: tuple[IPAddress, ...]) -> Heartbeat | None:
        """How often it beats; None = not known yet."""
        if not self.egress:
            return Heartbeat(NODE_HEARTBEAT)
        status = self.status()
        may_be = may_be_gateway(self.snapshot(), status.node, addresses)
        return None if may_be is None else Heartbeat(GATEWAY_HEARTBEAT if may_be else NODE_HEARTBEAT)

    def _serves(self, now: float) -> bool:
        status = self.status()
        if status.rounds.done != self._rounds[0]:
            self._rounds = status.rounds.done, now
        is_moving = now - self._rounds[1] < STUCK
        return is_moving and status.ready and (status.egress.datapath or not self.egress)
