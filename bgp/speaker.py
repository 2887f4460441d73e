"""The agent's side of the speaker: one setter for the whole desired state, and tasks that make ExaBGP hold it.

It serves the socket that the relay connects to, reads back what ExaBGP holds whenever a relay (re)appears, and plans
from there (`bgp.plan`). After every session up it sends End-of-RIB per family, once the peer has everything. What
ExaBGP rejects becomes a refusal, and the rest goes on. It never starts or stops ExaBGP (`bgp.service` does), and it
decides nothing about what is announced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from bgp import conf, plan, relay, rib, text, wire
from bgp.link import LINE_LIMIT, Answer, Hello, Link, LinkLost, NoAnswer
from bgp.path import AdjRibOut, Desired, IPNetwork, SessionKey, SpeakerPeer, session_key
from bgp.path import Path as BgpPath
from bgp.pieces import Answers, Part, command, halves, parts
from bgp.rib import PathRefusal, Settled
from bgp.rib.received import NextHops, Received
from bgp.session import PeerStatus, Sessions

log = logging.getLogger(__name__)

RETRY = 10.0  # seconds until a configuration that ExaBGP refused is tried again
FLUSH = 0.3  # seconds in which a peer must take what is queued for it; nothing else is done meanwhile
SILENCE = 2.0  # seconds that a reader of the table waits for its next line
FLUSH_RETRY = 2.0  # seconds
FLUSH_PATIENCE = 30.0  # seconds; a peer that takes nothing for longer is removed all the same


class SpeakerUnavailable(Exception):
    """No speaker is connected, or it does not answer."""


Loading = Literal["new", "changed", "gone"]


class Speaker:
    """`run` in a task; `set` whenever the desired state changes. Not thread-safe: one event loop."""

    def __init__(self, socket_path: Path, *, on_change: Callable[[], None] | None = None) -> None:
        self._socket_path = socket_path
        self._on_change = on_change
        self._desired: Desired | None = None
        self._complete = True
        self._link: Link | None = None
        self._hello: Hello | None = None
        self._digests: dict[SessionKey, str] = {}  # loaded by ExaBGP
        self._held: dict[SessionKey, dict[IPNetwork, BgpPath]] | None = None  # None = to be read back
        self._sessions = Sessions()
        self._started = time.monotonic()
        self.received = Received()  # of all sessions
        self.on_received: Callable[[], None] = lambda: None  # called when a peer has announced something
        self._forms: dict[SessionKey, Settled] = {}  # of what each peer is to have, as far as it is held
        self._rejected: dict[tuple[SessionKey, IPNetwork], BgpPath] = {}
        self._refused_configuration: dict[SessionKey, str] | None = None
        self._configuration_error = ""
        self._refusals: tuple[PathRefusal, ...] = ()
        self._pending: Mapping[SessionKey, int] = {}
        self._unsent: set[SessionKey] = set()  # peers that may have something queued
        self._leaving: tuple[SessionKey, ...] = ()  # to be removed, and their withdrawals are still queued
        self._leaving_since: float | None = None  # of the loop's clock
        self._ending: dict[SessionKey, asyncio.Future[Answer]] = {}  # the last word to each peer that was to end
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._stopping = False

    # --- for the daemon ---

    async def run(self) -> None:
        """Serves until cancelled."""
        self._socket_path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._accept, self._socket_path, limit=LINE_LIMIT)
        self._socket_path.chmod(0o600)
        try:
            await self._reconcile()
        finally:
            self._stopping = True
            server.close()
            if self._link is not None:
                self._link.close()
                self._forget_link()

    def set(self, desired: Desired | None, *, complete: bool = True) -> None:
        """The whole desired state; None = unknown: ExaBGP is left as it is.

        Without `complete` more is about to follow: End-of-RIB waits for it, as a peer that keeps the paths of an ended
        session drops those that it has not been told again by then (RFC 4724, 4.2).
        """
        if desired is self._desired and complete == self._complete:
            return
        self._desired, self._complete = desired, complete
        self._settled.clear()
        self._wake.set()

    async def settled(self, timeout: float) -> bool:
        """Whether within `timeout` seconds ExaBGP has acknowledged everything of the last `set`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), timeout)
        return self._settled.is_set()

    @property
    def is_settled(self) -> bool:
        """Whether ExaBGP has acknowledged everything of the last `set`."""
        return self._settled.is_set()

    async def sent(self, timeout: float) -> bool:
        """Whether, moreover, the peers' TCP has acknowledged it: `settled` things may still be queued in ExaBGP.

        A peer that is down is not waited for. May take twice FLUSH longer than `timeout`.
        """
        if not await self.settled(timeout) or self._link is None:
            return False
        link, desired = self._link, self._desired
        peers = plan.in_order(self._unsent & self._digests.keys())
        with contextlib.suppress(LinkLost, NoAnswer):
            sent = not peers or (await link.heard_out(link.command(text.flush(peers, FLUSH), alone=True), 2 * FLUSH)).ok
            if sent and self._settled.is_set() and (self._link, self._desired) == (link, desired):
                self._unsent.clear()
                return True
        return False

    async def end(self, peer: SessionKey, subcode: int) -> bool:
        """Ends the session with a Cease, and connects again; whether the speaker did so, or there was none to end.

        It is said even while the speaker is silent, and then not again before that is answered.
        """
        if self._link is None:
            return False
        try:
            async with asyncio.timeout(SILENCE):
                asked = self._ending.get(peer)
                if asked is None or asked.done():
                    command = text.end_session(peer, subcode)
                    asked = self._ending[peer] = await self._link.submit(command, alone=True)
                return (await asyncio.shield(asked)).ok
        except (LinkLost, TimeoutError):
            return False

    def learnt(self) -> NextHops | None:
        """Next hops of what the peers announce, for those that are to be taken from; None = not known yet."""
        if self._desired is None:
            return None
        taken = {key.token for key, peer in self._desired.peers.items() if peer.imports}
        loaded = (key.token for key in self._digests)
        return self.received.best(time.monotonic(), self._started, taken, loaded)

    async def observe(self) -> dict[SessionKey, dict[IPNetwork, BgpPath]]:
        """Adj-RIB-Out as ExaBGP holds it, read now: peer -> prefix -> path. Raises SpeakerUnavailable."""
        if self._link is None:
            raise SpeakerUnavailable("no speaker is connected: is `routerd speaker` running?")
        try:
            return await self._link.heard_out(self._read_table(self._link), SILENCE)
        except (LinkLost, NoAnswer) as error:
            raise SpeakerUnavailable(str(error)) from error

    def unloaded(self, desired: Desired) -> dict[SessionKey, Loading]:
        """Sessions that ExaBGP does not have as `desired` says. What changed or goes is reset by the next reload."""
        wanted = conf.digests(desired.peers)
        found: dict[SessionKey, Loading] = dict.fromkeys(self._digests.keys() - wanted, "gone")
        for key, digest in wanted.items():
            if self._digests.get(key) != digest:
                found[key] = "changed" if key in self._digests else "new"
        return found

    def reset_by(self, desired: Desired) -> dict[SessionKey, tuple[str, ...]]:
        """Of sessions that the next reload resets, the keys that changed. Nothing of those whose file is not there."""
        changed = [key for key, how in self.unloaded(desired).items() if how == "changed"]
        loaded = ""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            loaded = self._socket_path.with_name(relay.CONFIGURATION).read_text(encoding="utf-8") if changed else ""
        return {key: conf.changed_keys(loaded, desired.peers[key]) for key in changed}

    @property
    def _bulk(self) -> bool:
        return self._hello is not None and self._hello.bulk

    @property
    def connected(self) -> bool:
        return self._link is not None

    @property
    def loaded(self) -> frozenset[SessionKey]:
        """Peers that ExaBGP has, from whomever."""
        return self._sessions.up.union(self._digests)

    @property
    def exabgp_version(self) -> str:
        """ "" when no speaker is connected."""
        return self._hello.exabgp if self._hello is not None else ""

    @property
    def refusals(self) -> tuple[PathRefusal, ...]:
        """What of the desired state is not done, and why."""
        return (*self._refusals, *self._not_negotiated())

    def _not_negotiated(self) -> Iterator[PathRefusal]:
        """Families that a peer does not take, and in which there are paths for it."""
        for key, peer in self._desired.peers.items() if self._desired is not None else ():
            untaken = self._sessions.untaken(peer) if self.connected else ()
            for family, count in Counter(map(rib.family_of, self._table(key) if untaken else ())).items():
                if family in untaken:
                    by_hop = peer.extended_next_hop and family == "ipv4 unicast"
                    what, remedy = (
                        (
                            f"IPv6 next hops for {family} (RFC 8950)",
                            "say `capability extended-nexthop` (FRR) or `extended next hop on` (BIRD) there",
                        )
                        if by_hop
                        else (family, "activate that address family for the session")
                    )
                    message = (
                        f"the router has not negotiated {what} in this session: its paths ({count}) are not "
                        f"announced there; {remedy}"
                    )
                    yield PathRefusal(key, None, "FamilyNotNegotiated", message)

    def _table(self, peer: SessionKey) -> Mapping[IPNetwork, BgpPath]:
        return (self._held or {}).get(peer, {})

    def _announced(self, peer: SpeakerPeer) -> int:
        """Paths of the families that the session carries."""
        untaken = self._sessions.untaken(peer)
        table = self._table(peer.key)
        return sum(rib.family_of(prefix) not in untaken for prefix in table) if untaken else len(table)

    @property
    def peers(self) -> Mapping[SessionKey, PeerStatus]:
        """One entry per desired peer."""
        desired = self._desired.peers if self._desired is not None else {}
        return {
            key: self._sessions.status(
                peer, self.connected, announced=self._announced(peer), pending=self._pending.get(key, 0)
            )
            for key, peer in desired.items()
        }

    # --- the relay ---

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(reader, writer)
        try:
            hello = await link.open()
            self._adopt(link, hello)
            await link.serve(self._take_event, self._take_update)
        except LinkLost as error:
            if not self._stopping:
                log.warning("lost the speaker: %s", error, extra={"event": "speaker_lost", "reason": str(error)})
        finally:
            link.close()
            if self._link is link:
                self._forget_link()

    def _adopt(self, link: Link, hello: Hello) -> None:
        """A relay has come: what it says replaces what was known."""
        if self._link is not None:
            self._link.close()
            self.received.lose(time.monotonic())
        self._link, self._hello = link, hello
        self._digests = {session_key(token): digest for token, digest in hello.peers.items()}
        self._held = None
        self._unsent = set(self._digests)
        self._rejected.clear()
        self._refused_configuration = None
        self._sessions.restart(speaker=(hello.pid, hello.started))
        self.received.restart((hello.pid, hello.started))
        for event in hello.events:
            self._take_event(event)
        self._settled.clear()
        self._wake.set()
        self._changed()

    def _forget_link(self) -> None:
        self._link = self._hello = None
        self.received.lose(time.monotonic())
        self._held = None
        self._settled.clear()
        self._changed()

    def _take_event(self, event: dict[str, Any]) -> None:
        try:
            self.received.take_event(event)
            parsed = text.parse_event(event)
        except (KeyError, TypeError, ValueError) as error:
            log.error(
                "ExaBGP said what is not understood: %r", error, extra={"event": "exabgp_event", "reason": repr(error)}
            )
            return
        if parsed is None:
            return
        self._sessions.take(parsed)
        if parsed.kind == "up":
            self._wake.set()
        self._changed()

    def _take_update(self, update: dict[str, Any]) -> None:
        try:
            self.received.take(update)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.error(
                "the relay said what is not understood: %r", error, extra={"event": "update", "reason": repr(error)}
            )
        self.on_received()

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()

    # --- reconciling ---

    async def _reconcile(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            link, desired = self._link, self._desired
            if link is None or desired is None:
                continue
            try:
                converged = await self._converge(link, desired)
            except LinkLost:
                continue  # the next relay's arrival wakes us
            if converged and self._link is link and self._desired is desired:
                self._settled.set()
                self._changed()
            elif self._link is not None:
                self._wake.set()

    async def _converge(self, link: Link, desired: Desired) -> bool:
        """Plans and carries out until nothing is left to do; False when the desired state changed meanwhile."""
        while self._desired is desired:
            if self._held is None:
                self._held = await self._read_table(link)
            self._forget_rejected(desired)
            planned = plan.plan(
                desired,
                plan.Observed(self._digests, self._held),
                self._rejected,
                reload=self._may_reload(desired),
                settled=self._forms,
            )
            self._pending = planned.pending
            self._refusals = (*planned.refusals, *self._own_refusals(desired))
            if not planned.actions:
                if not self._leaving:
                    self._leaving_since = None
                await self._end_of_ribs(link, desired)
                return True
            await self._carry_out(link, planned.actions)
        return False

    def _forget_rejected(self, desired: Desired) -> None:
        """What is no longer wanted as it was rejected is no refusal any more."""
        for (key, prefix), rejected in list(self._rejected.items()):
            peer, path = desired.peers.get(key), desired.ribs.get(key, {}).get(prefix)
            if peer is None or path is None or rib.normal(path, peer) != rejected:
                del self._rejected[key, prefix]

    def _own_refusals(self, desired: Desired) -> list[PathRefusal]:
        refusals = [
            PathRefusal(peer, prefix, "RejectedByExaBGP", "ExaBGP does not take this path: please report it")
            for peer, prefix in self._rejected
        ]
        if not self._may_reload(desired):
            changed = [
                peer for peer, digest in conf.digests(desired.peers).items() if self._digests.get(peer) != digest
            ]
            reason, message = "ConfigurationRefused", self._configuration_error
            if self._leaving:
                reason = "WithdrawalsQueued"
                message = (
                    f"{', '.join(map(str, self._leaving))} does not take its withdrawals: its removal waits for that"
                )
            refusals += [PathRefusal(peer, None, reason, message) for peer in (*self._leaving, *changed)]
        return refusals

    def _may_reload(self, desired: Desired) -> bool:
        if self._leaving:
            return False
        return self._refused_configuration is None or self._refused_configuration != conf.digests(desired.peers)

    async def _carry_out(self, link: Link, actions: Sequence[plan.Action]) -> None:
        """Stops early after a reload, or when the desired state changed: the rest is planned again."""
        desired, waiting = self._desired, Answers()
        for action in actions:
            match action:
                case plan.Announce() | plan.Withdraw():
                    for part in parts(action):
                        waiting.add(part, await link.submit(command(part, self._bulk)))
                        if self._desired is not desired:
                            break
                case plan.Flush():
                    await self._settle_parts(link, waiting)
                    if action.moved:
                        await link.command(text.flush(action.moved, FLUSH), alone=True)
                    if action.peers and not await self._has_left(link, action.peers):
                        return
                case plan.Reload():
                    await self._settle_parts(link, waiting)
                    await self._reload(link, action)
                    return
            if self._desired is not desired:
                break
        await self._settle_parts(link, waiting)

    async def _has_left(self, link: Link, peers: tuple[SessionKey, ...]) -> bool:
        """Whether peers that are to be removed have got their withdrawals; if not, it is tried again later."""
        loop = asyncio.get_running_loop()
        if (await link.command(text.flush(peers, FLUSH), alone=True)).ok:
            self._leaving_since = None
            return True
        if self._leaving_since is None:
            self._leaving_since = loop.time()
        names = ", ".join(map(str, peers))
        if loop.time() - self._leaving_since >= FLUSH_PATIENCE:
            fields = {"event": "withdrawals_lost", "peers": names}
            log.error("removed without having taken its withdrawals: %s", names, extra=fields)
            self._leaving_since = None
            return True
        self._leaving = peers
        loop.call_later(FLUSH_RETRY, self._retry_leaving)
        return False

    def _retry_leaving(self) -> None:
        self._leaving = ()
        self._settled.clear()
        self._wake.set()

    async def _settle_parts(self, link: Link, waiting: Answers) -> None:
        """Books what was acknowledged and looks for what was rejected."""
        for part, future in waiting.take():
            answer = await future
            if answer.ok:
                self._book(part)
            else:
                await self._find_bad(link, part)

    def _book(self, part: Part) -> None:
        self._unsent.update(part.peers)
        if self._held is None:
            return
        for peer in part.peers:
            table = self._held.setdefault(peer, {})
            if isinstance(part, plan.Announce):
                table.update((path.prefix, path) for path in part.paths)
            else:
                for prefix in part.prefixes:
                    table.pop(prefix, None)

    async def _find_bad(self, link: Link, part: Part) -> None:
        """A rejected command is halved until the path that ExaBGP does not take stands alone."""
        smaller = halves(part)
        if not smaller:
            if isinstance(part, plan.Announce):
                self._rejected[part.peers[0], part.paths[0].prefix] = part.paths[0]
            else:
                self._book(part)  # not tried for ever; the next reading of the table tells
            log.error("ExaBGP rejected: %s", part, extra={"event": "exabgp_rejected", "reason": str(part)})
        for half in smaller:
            answer = await link.command(command(half, self._bulk))
            if answer.ok:
                self._book(half)
            else:
                await self._find_bad(link, half)

    async def _reload(self, link: Link, action: plan.Reload) -> None:
        # Now: their first events may come before the answer is looked at. What is up has the name of a release before
        # in the file, and is the same to ExaBGP: no event comes.
        self._sessions.forget({*action.added} - self._sessions.up)
        answer = await link.reload(conf.peers_text(action.peers))
        self._held = None  # new sessions start empty, and some of the reset ones
        if answer.ok and answer.peers is not None:
            self._digests = {session_key(token): digest for token, digest in answer.peers.items()}
            self._sessions.forget(action.removed)
            self._refused_configuration = None
            return
        self._configuration_error = answer.error
        self._refused_configuration = conf.digests({peer.key: peer for peer in action.peers})
        log.error(
            "ExaBGP refused the configuration: %s",
            answer.error,
            extra={"event": "exabgp_config", "reason": answer.error},
        )
        asyncio.get_running_loop().call_later(RETRY, self._retry_reload)

    def _retry_reload(self) -> None:
        if self._refused_configuration is not None:
            self._refused_configuration = None
            self._settled.clear()
            self._wake.set()

    async def _end_of_ribs(self, link: Link, desired: Desired) -> None:
        if not self._complete:
            return
        for peer, families in self._sessions.take_due(desired.peers.keys()):
            for family in families:
                await link.command(text.end_of_rib(peer, family), alone=True)

    async def _read_table(self, link: Link) -> dict[SessionKey, dict[IPNetwork, BgpPath]]:
        peers: Mapping[SessionKey, SpeakerPeer] = self._desired.peers if self._desired is not None else {}
        answer = await link.command(wire.SHOW_TABLE if self._bulk else text.SHOW_TABLE, alone=True)
        try:
            return wire.parse_table(answer.output, peers) if self._bulk else text.parse_table(answer.output, peers)
        except (KeyError, TypeError, ValueError) as error:
            raise LinkLost(f"ExaBGP's table is not understood: {error!r}") from error


__all__ = ["AdjRibOut", "PeerStatus", "Speaker", "SpeakerUnavailable"]
