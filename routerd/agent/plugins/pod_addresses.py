"""The agent's answers to the IPAM plugin: it alone gives addresses within its node's blocks, and notes them first.

What is given is on disk before anybody is told, so an agent that is killed in between gives the same at the next try.
Requests that come while the disk is written to share the next write. Nobody else is asked: neither an API server nor
a cloud. What the store says is what the agent has read of it; that of the blocks is noted, too, so that an agent that
starts while the API server is away goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cni.wire import (
    IPAM,
    NOT_AVAILABLE,
    PATIENCE,
    TRY_AGAIN,
    UNKNOWN_CONTAINER,
    WRONG_ENVIRONMENT,
    Given,
    Refused,
    Request,
    addresses_result,
    timeout_of,
)
from ipam import pod_addresses as plan
from ipam.pod_addresses import ANY, Attachment, Hold, Interface, Owner, PodAddresses, Wish
from routerd.agent.plugins.answered import answered
from routerd.agent.plugins.fixed import Pools, asked_for, asks, closed, wish_of
from routerd.agent.plugins.pod_memory import parse_pod_addresses, write_pod_addresses
from routerd.blocking import in_thread
from routerd.clock import Clock, jumps
from routerd.errors import InputError, StoreError
from routerd.log import event
from routerd.memo import Derived, Last
from routerd.model import AddressPool, BlockReport, IPAddress, IPNetwork, Node, Pod, PodPool, Snapshot
from routerd.node.attached import is_of
from routerd.store.embedded.disk import read_text, write_atomically

LOGGER = logging.getLogger("routerd.ipam")
LOOK = 10.0  # seconds between looks for pods that are gone
NO_PODS = "the agent has not read pods yet"
GONE = 60.0  # seconds that a pod must be gone from the store before its addresses are freed without its runtime's word

Change = Callable[[PodAddresses], tuple[PodAddresses, Any]]


@dataclass(slots=True, eq=False)
class Asked:
    """A change that waits for its write; `outcome` is told when it is on disk."""

    change: Change
    outcome: Any = None
    done: bool = False
    fault: StoreError | None = None


@dataclass(slots=True)
class PodAddressDesk:
    """Lives in the agent's loop. `changed` is to be called when the store says something else."""

    node: str
    path: Path
    snapshot: Callable[[], Snapshot] = Snapshot
    retention: float = 86400.0  # seconds that an address is kept for the name of a pod that is gone
    of_pools: bool = False  # nodes have blocks of pools of pods: who gets what of them is for these to say
    of_cloud: Callable[[Node], bool] = lambda node: False  # whether its pods have addresses of a cloud, and no others
    wired: Callable[[], Collection[str] | None] = lambda: None  # MACs of interfaces that lead to pods; None = all do
    dual: bool = False  # a pod has addresses of a cloud of both families, or none
    hindrance: Callable[[], str] = str  # why no interface can be wired here, one line; "" = it can
    clock: Callable[[], float] = field(default_factory=Clock)
    fault: str = ""  # why nothing is given
    _held: PodAddresses = field(init=False, default_factory=PodAddresses)
    _is_new: bool = field(init=False, default=True)  # nothing was noted on this node before
    _asked: list[Asked] = field(init=False, default_factory=list)
    _writing: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)
    _news: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _jumps: int = field(init=False, default=0)  # of the clock, for which what rests has begun anew
    _gone: dict[Attachment, float] = field(init=False, default_factory=dict)  # since when, by the loop's clock
    _here: Derived[Pod, str, Pod] = field(init=False)  # pods of this node that have their addresses
    _asking: Derived[Pod, str, Pod] = field(init=False)  # pods that ask for some, wherever they are
    _have: Last[dict[IPAddress, str]] = field(init=False, default_factory=Last)
    _ask: Last[frozenset[IPAddress]] = field(init=False, default_factory=Last)

    def __post_init__(self) -> None:
        self._here = Derived(lambda pod: (pod.key, pod) if _is_live(pod, self.node) else None)
        self._asking = Derived(lambda pod: (pod.key, pod) if asks(pod) else None)
        try:
            if self.path.exists():
                self._held, self._is_new = parse_pod_addresses(read_text(self.path), str(self.path)), False
        except InputError as error:
            self.fault = str(error)
            event(LOGGER, logging.ERROR, "pod-addresses-unread", reason=self.fault)

    @property
    def held(self) -> PodAddresses:
        """What is on disk."""
        return self._held

    def changed(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Frees what pods have that ended without a word, as their runtime spoke while no agent listened; lets go what
        is kept for pods that do not come back; and notes what is published, so that nothing older is believed.
        """
        while True:
            await asyncio.sleep(LOOK)
            try:
                await self.look()
            except Refused as refused:
                event(LOGGER, logging.ERROR, "pod-addresses-kept", reason=str(refused), retry=LOOK)

    async def look(self) -> None:
        """Raises Refused."""
        if self._anew(self._held) is not self._held:
            await self._written(lambda held: (held, None))
        gone, left = self._overdue(asyncio.get_running_loop().time()), self._kept_for_nobody()
        if gone or left:
            await self._free(gone)
            await self._let_go(left)
        if self._published(self._held, self.snapshot()).generation > self._held.generation:
            await self._written(lambda held: (self._published(held, self.snapshot()), None))

    def _overdue(self, now: float) -> list[Attachment]:
        pods = self.snapshot().pods
        if pods is None:
            return []
        holds = [each for each in self._held.holds.values() if each.state == "used" and each.owner.pod]
        gone = {each.attachment for each in holds if not self._is_there(each.owner, pods)}
        self._gone = {each: self._gone.get(each, now) for each in gone}
        return [each for each, since in self._gone.items() if now - since >= GONE]

    def _kept_for_nobody(self) -> list[IPAddress]:
        pods = self.snapshot().pods
        kept = [each for each in self._held.holds.values() if each.state == "reserved"]
        return [each.address for each in kept if pods is not None and self._is_over(each, pods.get(each.owner.pod))]

    def _is_over(self, kept: Hold, pod: Pod | None) -> bool:
        """A pod that is on another node now has an address of that one's blocks."""
        if pod is not None:
            return pod.node not in ("", self.node)
        return self.clock() - kept.since >= self.retention

    def _is_there(self, owner: Owner, pods: Mapping[str, Pod]) -> bool:
        pod = pods.get(owner.pod)
        return pod is not None and is_of(owner.uid, pod)

    # --- the plugin's side

    async def answer(self, data: bytes) -> bytes:
        """One request as the plugin sent it; the whole answer."""
        return await answered(data, self._answer, LOGGER, IPAM)

    async def _answer(self, request: Request) -> Mapping[str, Any] | None:
        if self.fault and request.command in ("DEL", "GC"):
            return None  # a node that cannot give addresses must still be able to end its pods
        if self.fault:
            raise Refused(NOT_AVAILABLE if request.command == "STATUS" else TRY_AGAIN, self.fault)
        match request.command:
            case "ADD":
                return await self._add(request)
            case "CHECK":
                self._check(request)
            case "DEL":
                await self._free([_attachment(request)])
            case "GC":
                await self._collect(request)
            case "STATUS":
                if reason := self._unavailable():
                    raise Refused(NOT_AVAILABLE, reason)
            case command:
                raise Refused(WRONG_ENVIRONMENT, f"CNI_COMMAND {command!r} is not known")
        return None

    async def _add(self, request: Request) -> Mapping[str, Any]:
        attachment, owner = _attachment(request), Owner("/".join(request.pod or ()), request.uid)
        if not self._knows(attachment, owner):
            await self._until(lambda: self._lacking(owner), PATIENCE * timeout_of(request.section))
        wish, gateways = self._wish(owner), request.gateways
        found = await self._written(lambda held: self._give(replace(held, gateways=gateways), attachment, owner, wish))
        if isinstance(found, plan.Refused):
            raise Refused(TRY_AGAIN, found.message)
        return addresses_result(request, self._given(found))

    def _knows(self, attachment: Attachment, owner: Owner) -> bool:
        """Whether it was here before: then nothing is asked of the store."""
        return any(
            each.attachment == attachment or (owner.uid and each.owner == owner)
            for each in self._held.holds.values()
            if each.state == "used"
        )

    def _lacking(self, owner: Owner) -> str:
        """What must be known first, one line; "" = nothing."""
        snapshot = self.snapshot()
        if not self._usable(self._held, snapshot).blocks:
            return self._unavailable()
        if snapshot.pods is None and (self._is_new or owner.pod):
            return NO_PODS
        if owner.pod and not self._is_there(owner, snapshot.pods or {}):
            return f"the store has no Pod {owner.pod}" + (f" with uid {owner.uid}" if owner.uid else "") + " yet"
        if snapshot.pools is None and (self.of_pools or (owner.pod and asks((snapshot.pods or {})[owner.pod]))):
            return "the agent has not read address pools yet"
        if owner.pod and snapshot.pod_pools and snapshot.namespaces is None:
            return "the agent has not read namespaces yet"
        return ""

    def _wish(self, owner: Owner) -> Wish:
        """Raises Refused."""
        snapshot = self.snapshot()
        pod = (snapshot.pods or {}).get(owner.pod)
        if pod is None:
            return ANY
        namespace = (snapshot.namespaces or {}).get(pod.namespace)
        selecting = snapshot.pod_pools.values() if self.of_pools else ()
        wish = wish_of(pod, _pools(snapshot), namespace, selecting)
        if isinstance(wish, str):
            raise Refused(TRY_AGAIN, wish)
        return wish

    def _give(self, held: PodAddresses, attachment: Attachment, owner: Owner, wish: Wish) -> tuple[PodAddresses, Any]:
        have, asked = self._others()
        others = {address: key for address, key in have.items() if key != owner.pod}
        snapshot = self.snapshot()
        mine = self._usable(held, snapshot)
        here = (snapshot.nodes or {}).get(self.node)
        if not mine.blocks and here is not None and not self._is_of_cloud(here):
            mine = held  # who was here before needs nobody's word for it: pod CIDRs are not taken away from a node
        return plan.give(mine, attachment, owner, others, self.clock(), wish, asked, self._shut(mine, snapshot))

    def _shut(self, held: PodAddresses, snapshot: Snapshot) -> frozenset[IPNetwork]:
        return closed(held.blocks, snapshot.pod_pools.values()) if self.of_pools else frozenset()

    def _given(self, addresses: tuple[IPAddress, ...]) -> list[Given]:
        return [Given(*found) for address in addresses if (found := plan.configured(self._held, address))]

    def _check(self, request: Request) -> None:
        held = self._held.of(_attachment(request))
        if not held:
            raise Refused(UNKNOWN_CONTAINER, f"container {request.container} has no address here")
        if request.network.get("prevResult") is not None:
            lacking = [str(address) for address in held if address not in request.addresses]
            if lacking:
                raise Refused(UNKNOWN_CONTAINER, f"container {request.container} has {', '.join(lacking)} no more")

    async def _collect(self, request: Request) -> None:
        valid, network = request.valid, _network(request)
        there = {each.attachment for each in self._held.holds.values() if each.attachment.network == network}
        await self._free([each for each in there if (each.container, each.interface) not in valid])

    async def _free(self, attachments: list[Attachment]) -> None:
        await self._written(lambda held: (plan.free(held, attachments, self.clock()), None))

    async def _let_go(self, addresses: list[IPAddress]) -> None:
        await self._written(lambda held: (plan.let_go(held, addresses, self.clock()), None))

    def _unavailable(self) -> str:
        """Why no pod can get an address, one line; "" = the next one can."""
        snapshot = self.snapshot()
        held = self._usable(self._anew(self._held), snapshot)
        if not held.blocks and (snapshot.nodes is None or self.node not in snapshot.nodes):
            return (
                "the agent has not read nodes yet"
                if snapshot.nodes is None
                else f"the store has no Node {self.node} yet"
            )
        if not held.blocks and self._is_of_cloud((snapshot.nodes or {})[self.node]):
            return self._no_address_of_cloud((snapshot.nodes or {})[self.node])
        if not held.blocks:
            return f"Node {self.node} has no pod CIDRs: let its controller manager or the operator give it some"
        if self._is_new and snapshot.pods is None:
            return NO_PODS
        have, asked = self._others()
        return plan.exhausted(held, have, self.clock(), asked, self._shut(held, snapshot))

    def _no_address_of_cloud(self, here: Node) -> str:
        if hindrance := self.hindrance():
            return hindrance
        versions = {block.version for each in here.interfaces for block in each.blocks}
        if self._families - versions == {6}:
            return f"Node {self.node} has no IPv6 prefix of the cloud yet: the operator's `routerd show cloud` says why"
        if self._families <= versions:
            return f"Node {self.node} has interfaces of the cloud, and none is wired yet: `routerd status` says why"
        return f"Node {self.node} has no address of the cloud yet: the operator's `routerd show cloud` says why"

    def _published(self, held: PodAddresses, snapshot: Snapshot) -> PodAddresses:
        """With the node's blocks as the store has them; as they were while it is not read, or says what it said before
        what was noted: an API server may do so after a restart.
        """
        here = (snapshot.nodes or {}).get(self.node)
        if here is None or 0 < here.interfaces_generation < held.generation:
            return held
        if not self._is_of_cloud(here):
            return plan.with_blocks(held, here.pod_cidrs)
        interfaces = tuple(Interface(each.mac, each.own, each.blocks) for each in here.interfaces)
        now = plan.with_blocks(held, tuple(block for each in interfaces for block in each.blocks), interfaces)
        return replace(now, generation=max(held.generation, here.interfaces_generation))

    def _usable(self, held: PodAddresses, snapshot: Snapshot) -> PodAddresses:
        """With those of its blocks whose addresses lead to pods: an interface is wired first."""
        published, wired = self._published(held, snapshot), self.wired()
        if not published.interfaces:
            return published
        there = tuple(each for each in published.interfaces if wired is None or each.mac in wired)
        blocks = tuple(block for each in there for block in each.blocks)
        if not self._families <= {block.version for block in blocks}:
            return plan.with_blocks(published, ())
        return plan.with_blocks(published, blocks, there)

    @property
    def _families(self) -> set[int]:
        """Of which a node must have blocks of a cloud before any pod gets an address."""
        return {4, 6} if self.dual else {4}

    def _is_of_cloud(self, here: Node) -> bool:
        return bool(here.interfaces) or self.of_cloud(here)

    def block_report(self) -> BlockReport | None:
        """Which blocks of a cloud it keeps, so that the others are given back; None = nothing may be. Its generation
        is the noted one, to which the node holds also after it was killed.
        """
        snapshot = self.snapshot()
        here = (snapshot.nodes or {}).get(self.node)
        if self.fault or here is None or snapshot.pods is None or not self._is_of_cloud(here):
            return None
        held = self._published(plan.settled(self._anew(self._held), self.clock()), snapshot)
        kept = sorted((*held.blocks, *held.leaving), key=plan.block_order)
        busy = plan.busy(held, self._others()[0])
        return BlockReport(tuple(kept), tuple(each for each in kept if each in busy), self._held.generation)

    def _others(self) -> tuple[Mapping[IPAddress, str], Collection[IPAddress]]:
        """What pods have that were here before us, from somebody else, and whose it is; and what any pod asks for."""
        snapshot = self.snapshot()
        pods = snapshot.pods or {}
        have = self._have(_addresses, self._here(pods))
        return have, self._ask(_asked, self._asking(pods), snapshot.pools or {}, snapshot.pod_pools)

    async def _until(self, lacking: Callable[[], str], timeout: float) -> None:
        """Until nothing is lacking. Raises Refused with what was."""
        reason = ""
        try:
            async with asyncio.timeout(timeout):
                while reason := lacking():
                    await self._news.wait()
        except TimeoutError:
            raise Refused(TRY_AGAIN, reason) from None

    # --- the disk

    def _anew(self, held: PodAddresses) -> PodAddresses:
        """What rests begins anew when the clock was found to have been wrong."""
        now = self.clock()
        return held if jumps(self.clock) == self._jumps else plan.rest_anew(held, now)

    async def _written(self, change: Change) -> Any:
        """What a change comes to, once it is on disk. Raises Refused: it is not, and nothing has changed."""
        mine = Asked(change)
        self._asked.append(mine)
        async with self._writing:
            if not mine.done:
                await self._write()
        if mine.fault is not None:
            raise Refused(TRY_AGAIN, str(mine.fault))
        return mine.outcome

    async def _write(self) -> None:
        """All that was asked for by now, in this order, by one write."""
        asked, self._asked = self._asked, []
        jumped, held = jumps(self.clock), self._anew(self._held)
        for each in asked:
            held, each.outcome = each.change(held)
        try:
            if held is not self._held:
                await in_thread(write_atomically, self.path, write_pod_addresses(held))
                self._held, self._is_new = held, False
            self._jumps = jumped
        except StoreError as error:
            for each in asked:
                each.fault = error
        except asyncio.CancelledError:
            self._asked = [*asked, *self._asked]  # whoever waits beside writes them
            raise
        for each in asked:
            each.done = True


def _attachment(request: Request) -> Attachment:
    return Attachment(_network(request), request.container, request.interface)


def _network(request: Request) -> str:
    return str(request.network.get("name", ""))


def _is_live(pod: Pod, node: str) -> bool:
    """Whether its sandbox is there."""
    return pod.node == node and not pod.host_network and not pod.finished


def _addresses(pods: Mapping[str, Pod]) -> dict[IPAddress, str]:
    """Whose they are: the pod's key."""
    return {address: key for key, pod in pods.items() for address in pod.addresses}


def _asked(
    pods: Mapping[str, Pod], pools: Mapping[str, AddressPool], of_pods: Mapping[str, PodPool]
) -> frozenset[IPAddress]:
    known: Pools = {**pools, **of_pods}
    return frozenset(address for pod in pods.values() for address in asked_for(wish_of(pod, known)))


def _pools(snapshot: Snapshot) -> Pools:
    return {**(snapshot.pools or {}), **snapshot.pod_pools}
