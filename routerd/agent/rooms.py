"""What an agent asks its node (`loop.Host`): store, speaker and datapath. It translates values and decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING

from bgp import relay
from bgp.path import AdjRibOut, SessionKey, session_names
from bgp.speaker import PeerStatus, Speaker, SpeakerUnavailable
from egress.status import EgressStatus
from fib.plan import Status as RouteStatus
from routerd.agent.arrivals import Arrivals, Expected
from routerd.agent.local import default_gateways, interface_addresses, own_networks, passwords_of, session_addresses
from routerd.memo import Last
from routerd.model import IPAddress, Node, Peer, Refusal, Snapshot, with_blocks
from routerd.node.desired import LocalFacts
from routerd.node.sessions import Found, sought, with_found
from routerd.refs import PATH, PEER, SPEAKER, Ref
from routerd.store.interface import Store, StoreStatus
from routerd.tell.hints import session_refusal
from routerd.tell.views import PeerView, Row
from upstream.targets import Upstream

if TYPE_CHECKING:
    from bfd.control import View
    from bgp.routers import Routers
    from routerd.agent.egress import EgressRoom  # a node without egress needs neither eBPF nor its memory
    from routerd.agent.seats.bfd import BfdRoom
    from routerd.agent.seats.routes import RouteRoom
    from upstream.watch import Watcher


def relay_socket(run_dir: Path) -> Path:
    return run_dir / relay.SOCKET


class WithBlocks:
    """A store's snapshots, with the pod CIDRs and interfaces that the operator gave; of the same one the same value."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot
        self._nodes: Last[Mapping[str, Node]] = Last()
        self._last = (Snapshot(), Snapshot())

    def __call__(self) -> Snapshot:
        found = self._snapshot()
        given = found.allocations
        if found.nodes is None or given is None or not (given.pod_cidrs or given.interfaces):
            return found
        if self._last[0] is not found:
            nodes = self._nodes(with_blocks, found.nodes, given.pod_cidrs, given.interfaces)
            self._last = found, replace(found, nodes=nodes)
        return self._last[1]


class WithRouters:
    """Snapshots with the addresses of this node's peers that are found; of the same one the same value.

    What a snapshot asks for is looked for from then on. While there is no default route, the last ones stay. Before
    `routers` has begun, peers are not known if some are to be found by it: their sessions would be ended.
    """

    def __init__(self, node: str, routers: Routers, gateways: Callable[[], Found] = default_gateways) -> None:
        self._node = node
        self.routers = routers
        self._by_link = False
        self._read = gateways
        self._asked = False
        self._gateways: Found = {}
        self._last: tuple[Snapshot, Found, Snapshot] | None = None

    @property
    def _awaits(self) -> bool:
        return self._by_link and not self.routers.has_begun

    def look(self) -> None:
        """Reads default routes, if somebody asks for them."""
        if self._asked:
            self._gateways = {**self._gateways, **self._read()}

    def __call__(self, snapshot: Snapshot) -> Snapshot:
        here = (snapshot.nodes or {}).get(self._node)
        if here is None or snapshot.bgp is None:
            return snapshot
        if self._last is None or self._last[0] is not snapshot:
            self._seek(sought(snapshot.bgp.peers, here))
        if self._awaits:
            return replace(snapshot, bgp=None)
        found = self._found()
        if self._last is None or self._last[0] is not snapshot or self._last[1] != found:
            self._last = snapshot, found, with_found(snapshot, here, found)
        return self._last[2]

    def _seek(self, peers: tuple[Peer, ...]) -> None:
        links = frozenset(peer.interface for peer in peers if peer.found == "router")
        self._by_link = bool(links)
        self.routers.want(links)
        was_asked, self._asked = self._asked, any(peer.found == "default-gateway" for peer in peers)
        if not was_asked:
            self.look()

    def _found(self) -> Found:
        by_link: Found = {(IPv6Address(f"::%{name}"), name): routers for name, routers in self.routers.found.items()}
        return {**self._gateways, **by_link}


class Rooms:
    """What the agent asks its node. `speaker` and `egress` are None where the configuration switches them off."""

    def __init__(
        self,
        store: Store,
        speaker: Speaker | None,
        egress: EgressRoom | None,
        uplinks: tuple[str, ...],
        bfd: BfdRoom | None = None,
        upstream: Watcher | None = None,
        password_dir: Path | None = None,
        with_routers: WithRouters | None = None,
        routes: RouteRoom | None = None,
    ) -> None:
        self._store = store
        self._view = WithBlocks(lambda: store.snapshot())
        self._speaker = speaker
        self._egress = egress
        self._bfd = bfd
        self._upstream = upstream
        self._uplinks = uplinks
        self._password_dir = password_dir
        self._with_routers = with_routers
        self._routes = routes
        self._arrivals = Arrivals()

    def snapshot(self) -> Snapshot:
        return self._view() if self._with_routers is None else self._with_routers(self._view())

    def store_status(self) -> StoreStatus | None:
        return self._store.status()

    def surroundings(self, before: LocalFacts) -> LocalFacts:
        if self._with_routers is not None:
            self._with_routers.look()
        if self._egress is None:
            return before
        try:
            return replace(before, addresses=interface_addresses(), networks=own_networks())
        except OSError:  # the tables change while they are read: those of before will do
            return before

    def facts(self, peers: tuple[Peer, ...], before: LocalFacts) -> LocalFacts:
        return replace(
            before,
            sessions=session_addresses(peers, before.sessions),
            passwords=passwords_of(peers, self._password_dir, before.passwords) if self._password_dir else None,
            uplinks=self._uplinks,
            upstream_lost=self.upstream().is_lost,
            learnt=self._speaker.learnt() if self._speaker is not None else {},
        )

    def upstream(self) -> Upstream:
        return self._upstream.state if self._upstream is not None else Upstream()

    async def carried(self) -> Mapping[SessionKey, AdjRibOut]:
        """What the speaker announces now; nothing if none is connected within a second."""
        for _ in range(20 if self._speaker is not None else 0):
            with contextlib.suppress(SpeakerUnavailable):
                assert self._speaker is not None
                return await self._speaker.observe()
            await asyncio.sleep(0.05)
        return {}

    async def find_routers(self) -> None:
        """Until cancelled; from those on that the speaker has from an agent before us (none if it comes too late)."""
        assert self._with_routers is not None and self._speaker is not None
        for _ in range(20):
            if self._speaker.connected:
                break
            await asyncio.sleep(0.05)
        self._with_routers.routers.begin(key.peer for key in self._speaker.loaded)
        await self._with_routers.routers.run()

    def peers(self) -> Mapping[SessionKey, PeerView]:
        now = time.monotonic()  # one for all processes of a host
        statuses = self._speaker.peers if self._speaker is not None else {}
        watched = self._bfd.views() if self._bfd is not None else {}
        return {key: _peer_view(key, status, now, watched.get(key)) for key, status in statuses.items()}

    def is_settled(self) -> bool:
        return self._speaker is None or self._speaker.is_settled

    async def is_sent(self) -> bool:
        return self._speaker is None or await self._speaker.sent(0.0)

    def arrivals(self, expected: Expected | None) -> frozenset[IPAddress]:
        if expected is not None:
            return self._arrivals.take(expected)
        self._arrivals.stop()
        return frozenset()

    def refusals(self) -> tuple[Refusal, ...]:
        """What the speaker cannot do, sessions that are not up included: nobody else would tell (TCP MD5 is silent)."""
        watched = self._bfd.refusals() if self._bfd is not None else ()
        if self._speaker is None:
            return watched
        if not self._speaker.connected:
            return (Refusal(Ref(SPEAKER), "NoSpeaker", "no speaker is connected: start `routerd speaker`"), *watched)
        name_of = session_names(self._speaker.peers)
        views = self.peers()
        down = (session_refusal(name_of[key], view.session, view.since) for key, view in views.items())
        paths = (
            Refusal(
                Ref(PEER, name=name_of.get(refusal.peer, str(refusal.peer)))
                if refusal.prefix is None
                else Ref(PATH, name=str(refusal.prefix)),
                refusal.reason,
                refusal.message
                if refusal.prefix is None
                else f"to peer {name_of.get(refusal.peer, refusal.peer)}: {refusal.message}",
            )
            for refusal in self._speaker.refusals
        )
        return (*(refusal for refusal in down if refusal is not None), *watched, *paths)

    def bfd_refused(self) -> Mapping[str, int]:
        report = self._bfd.report if self._bfd is not None else None
        return report.refused if report is not None else {}

    def egress(self) -> EgressStatus:
        return self._egress.status() if self._egress is not None else EgressStatus()

    def routes(self) -> RouteStatus:
        return self._routes.status if self._routes is not None else RouteStatus()

    def nat(self) -> tuple[Row, ...]:
        return self._egress.nat() if self._egress is not None else ()


def _peer_view(key: SessionKey, status: PeerStatus, now: float, watched: View | None) -> PeerView:
    return PeerView(key, status, max(now - status.since, 0.0) if status.since else None, watched)
