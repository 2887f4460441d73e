"""The real rooms of a node, as `loop.py` and `reconcile.py` ask for them. It translates values and decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from bgp import relay
from bgp.path import AdjRibOut
from bgp.speaker import PeerStatus, Speaker, SpeakerUnavailable
from routerd.agent.local import session_addresses
from routerd.agent.loop import EgressCounters
from routerd.agent.reconcile import Egress
from routerd.config import Config
from routerd.model import IPAddress, Peer, Refusal, Snapshot
from routerd.node.desired import LocalFacts
from routerd.refs import PATH, PEER, SPEAKER, Ref
from routerd.store.interface import Store, StoreStatus
from routerd.tell.views import PeerView, Row

if TYPE_CHECKING:
    from egress.netdev import Datapath, NatEntry
    from egress.plan import Action, Observed
    from egress.policy import Desired

PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 132: "SCTP"}
GUARD = "guard_"  # counters of the nft table: drops, all of them
NOT_UP = "check its address, AS numbers, password, and that no firewall is between"


def open_datapath(config: Config) -> Datapath:
    """The egress room. Imported here: a node without egress needs neither eBPF nor its memory."""
    from egress.netdev import Datapath

    return Datapath(config.pin_dir, config.egress.attach, config.egress.nat_entries, config.egress.loader)


class OneAtATime:
    """The datapath for the threads of one agent: it is not thread-safe, so that each call waits for the one before."""

    def __init__(self, datapath: Datapath) -> None:
        self._datapath = datapath
        self._lock = threading.Lock()

    def observe(self, desired: Desired) -> Observed:
        with self._lock:
            return self._datapath.observe(desired)

    def apply(self, action: Action) -> None:
        with self._lock:
            self._datapath.apply(action)

    def collect(self) -> object:
        with self._lock:
            return self._datapath.collect()

    def counters(self) -> dict[str, tuple[int, int]]:
        with self._lock:
            return self._datapath.counters()

    def nat(self) -> Sequence[NatEntry]:
        with self._lock:
            return self._datapath.nat()

    def nat_size(self) -> tuple[int, int]:
        with self._lock:
            return self._datapath.nat_size()


def egress_room(datapath: OneAtATime) -> Egress:
    from egress.plan import CreateTunnel, LoadPrograms, plan, problems
    from egress.undone import Undone

    return Egress(datapath, plan, problems, lambda action: isinstance(action, CreateTunnel | LoadPrograms), Undone)


def relay_socket(run_dir: Path) -> Path:
    return run_dir / relay.SOCKET


class Rooms:
    """What the agent asks its node. `speaker` and `datapath` are None where the configuration switches them off."""

    def __init__(
        self, store: Store, speaker: Speaker | None, datapath: OneAtATime | None, uplinks: tuple[str, ...]
    ) -> None:
        self._store = store
        self._speaker = speaker
        self._datapath = datapath
        self._uplinks = uplinks

    def snapshot(self) -> Snapshot:
        return self._store.snapshot()

    def store_status(self) -> StoreStatus | None:
        return self._store.status()

    def facts(self, peers: tuple[Peer, ...], before: LocalFacts) -> LocalFacts:
        return LocalFacts(session_addresses(peers, before.sessions), self._uplinks)

    async def carried(self) -> Mapping[IPAddress, AdjRibOut]:
        """What the speaker announces now; nothing if none is connected within a second."""
        for _ in range(20 if self._speaker is not None else 0):
            with contextlib.suppress(SpeakerUnavailable):
                assert self._speaker is not None
                return await self._speaker.observe()
            await asyncio.sleep(0.05)
        return {}

    def peers(self) -> Mapping[IPAddress, PeerView]:
        now = time.time()
        found = self._speaker.peers if self._speaker is not None else {}
        return {address: _peer_view(address, status, now) for address, status in found.items()}

    def is_settled(self) -> bool:
        return self._speaker is None or self._speaker.is_settled

    def refusals(self) -> tuple[Refusal, ...]:
        """What the speaker cannot do, sessions that are not up included: nobody else would tell (TCP MD5 is silent)."""
        if self._speaker is None:
            return ()
        if not self._speaker.connected:
            return (Refusal(Ref(SPEAKER), "NoSpeaker", "no speaker is connected: start `routerd speaker`"),)
        down = (_session_refusal(address, status) for address, status in self._speaker.peers.items())
        paths = (
            Refusal(
                Ref(PEER, name=str(refusal.peer)) if refusal.prefix is None else Ref(PATH, name=str(refusal.prefix)),
                refusal.reason,
                refusal.message if refusal.prefix is None else f"to peer {refusal.peer}: {refusal.message}",
            )
            for refusal in self._speaker.refusals
        )
        return (*(refusal for refusal in down if refusal is not None), *paths)

    def counters(self) -> EgressCounters:
        """Not attached where nothing is pinned yet, or reading is refused (the round says why)."""
        if self._datapath is None:
            return EgressCounters()
        try:
            packets = {name: count for name, (count, _) in self._datapath.counters().items()}
            entries, room = self._datapath.nat_size()
        except OSError:
            return EgressCounters()
        drops = {name: count for name, count in packets.items() if name in _drops() or name.startswith(GUARD)}
        passed = {name: count for name, count in packets.items() if name not in drops}
        return EgressCounters(bool(packets), passed, drops, entries, room)

    def nat(self) -> tuple[Row, ...]:
        if self._datapath is None:
            return ()
        with contextlib.suppress(OSError):  # as for counters
            return tuple(_nat_row(entry) for entry in self._datapath.nat())
        return ()


def _drops() -> frozenset[str]:
    from bpf.layout import read_reasons

    return frozenset(reason.name for reason in read_reasons().values() if reason.is_drop)


def _peer_view(address: IPAddress, status: PeerStatus, now: float) -> PeerView:
    return PeerView(
        address,
        up=status.state == "up",
        state=status.state,
        since=max(now - status.since, 0.0) if status.since else None,
        flaps=status.flaps,
        announced=status.announced,
        last_error=status.last_reason,
    )


def _session_refusal(address: IPAddress, status: PeerStatus) -> Refusal | None:
    if status.state == "up":
        return None
    message = f"the session is {status.state}: {status.last_reason or 'no answer from the peer'}: {NOT_UP}"
    return Refusal(Ref(PEER, name=str(address)), "SessionDown", message)


def _nat_row(entry: NatEntry) -> Row:
    return {
        "protocol": PROTOCOLS.get(entry.protocol, str(entry.protocol)),
        "pod": _endpoint(str(entry.pod), entry.pod_port),
        "remote": _endpoint(str(entry.remote), entry.remote_port),
        "egress_ip": str(entry.egress_ip),
        "port": entry.egress_port,
        "group": entry.group,
        "idle": round(entry.idle, 1),
    }


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ip_address(address).version == 6 else f"{address}:{port}"
