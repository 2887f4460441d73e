"""The process: its sockets, its clock, and the socket of control. It decides nothing (`table.py` and `session.py` do).

One loop and one timer, which is set to the next thing that is due. Files in the run directory: `bfd.sock` (mode 0600)
and `bfd.json`, what is wanted, so that sessions begin before an agent comes.

A pause, as for an upgrade, does not flap a session: before the process ends it asks peers for patience (a poll with an
interval of 10 s), leaves the sessions' discriminators and states in `bfd.json`, and says nothing. The next process goes
on where this one stopped, and a poll brings the intervals back. AdminDown would be the standard's word for a stop, but
peers end BGP for it (BIRD 2.0 does, whatever RFC 5882, 3.2 says), and at SIGTERM nobody knows which it is. A session
that is no longer wanted is ended by AdminDown.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bfd import control
from bfd.control import LINE_LIMIT, SOCKET, ControlError, Kept, Probes, Report, Wanted
from bfd.packet import State
from bfd.probes import Prober
from bfd.sockets import PORT, link, listener, received, sender
from bfd.table import STAY, Clock, Ends, IPAddress, Send, Table
from bfd.wheel import NEVER

FILE = "bfd.json"
PRIORITY = 20  # of SCHED_FIFO: above everything that is ordinary, below what kernels run at 50
PAUSE_TIMEOUT = 0.5  # seconds that peers have for their answer before a pause
RETRY = 1.0  # seconds until a socket that could not be opened is tried again
BATCHES = 16  # of datagrams in one turn: a flood must not keep us from sending
REFUSED_PERIOD = 1.0  # seconds between reports for packets that were refused: whoever sends rubbish sends much
Log = Callable[..., None]
"""Called with level, name of the event, and fields."""


def be_realtime() -> bool:
    """SCHED_FIFO for this process alone; whether that is allowed (CAP_SYS_NICE)."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
    except OSError:
        return False
    return True


class Engine:
    """`run` until cancelled."""

    def __init__(self, run_dir: Path, log: Log, *, realtime: bool) -> None:
        self._socket_path, self._file = run_dir / SOCKET, run_dir / FILE
        self._log = log
        self._realtime = realtime
        self._process = secrets.token_hex(8)
        self._table = Table(Clock(random.random, lambda: secrets.randbits(32)))
        self._listeners: dict[int, socket.socket] = {}  # by IP version
        self._senders: dict[int, tuple[IPAddress, socket.socket]] = {}  # by discriminator, with the local address
        self._silent: dict[int, float] = {}  # by discriminator: until when no sender is tried
        self._clients: set[asyncio.StreamWriter] = set()
        self._told, self._told_at = Report(), 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._retry_at = 0.0
        self._problem = ""
        self._prober = Prober(random.random, lambda: secrets.randbits(64) or 1)
        self._link: tuple[str, socket.socket] | None = None  # the tunnel device, and the way onto it
        self._link_retry = 0.0
        self._probe_problem = ""

    async def run(self) -> None:
        """Serves until cancelled. Raises OSError if the socket of control cannot be made."""
        self._loop = asyncio.get_running_loop()
        self._begin()
        self._socket_path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._accept, self._socket_path, limit=LINE_LIMIT)
        self._socket_path.chmod(0o600)
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            await self._pause()
            self._close()

    # --- the file

    def _begin(self) -> None:
        """With what the process before this one left."""
        try:
            kept = control.parse_kept(self._file.read_bytes())
        except FileNotFoundError:
            return
        except (ControlError, OSError) as error:
            self._log(logging.WARNING, "bfd-file-refused", file=str(self._file), reason=str(error))
            return
        now = time.monotonic()
        if now < kept.good_until:
            for ends, session in kept.paused.items():
                if ends in kept.orders and session.state == State.UP:
                    self._table.resume(kept.orders[ends], session, now)
        wanted = Wanted(kept.orders, kept.probing)
        self._keep(self._kept(wanted))  # what is paused is good for one start
        self._order(wanted)

    def _kept(self, wanted: Wanted) -> Kept:
        """What is wanted from now on."""
        orders = self._table.orders if wanted.sessions is None else wanted.sessions
        return Kept(orders, probing=wanted.probing or self._prober.probing)

    def _keep(self, kept: Kept) -> None:
        beside = self._file.with_suffix(".tmp")
        try:
            beside.write_text(control.kept_text(kept))
            beside.replace(self._file)
        except OSError as error:
            self._log(logging.ERROR, "bfd-file-failed", file=str(self._file), reason=str(error))

    async def _pause(self) -> None:
        """Peers wait for the next process: see the module's text."""
        self._table.prepare_pause(time.monotonic())
        self._turn()
        give_up = time.monotonic() + PAUSE_TIMEOUT
        while not self._table.is_patience_granted and time.monotonic() < give_up:
            await asyncio.sleep(0.005)
        now = time.monotonic()
        up = {
            ends: each for ends, each in self._table.sessions().items() if each.state == State.UP and not each.polling
        }
        good = min((each.timers.multiplier * max(each.timers.min_tx, STAY) for each in up.values()), default=0)
        self._keep(Kept(self._table.orders, up, now + good / 1e6, self._prober.probing))

    # --- the socket of control

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            writer.write(control.report_line(self._report()))
            while line := await reader.readline():
                wanted = control.parse_wanted(line)
                kept = self._kept(wanted)
                if kept != self._kept(Wanted()):
                    self._keep(kept)
                    self._order(wanted)
        except (ControlError, ValueError, OSError) as error:
            self._log(logging.WARNING, "bfd-client-refused", reason=str(error))
        finally:
            self._clients.discard(writer)
            writer.close()

    def _order(self, wanted: Wanted) -> None:
        now = time.monotonic()
        if wanted.sessions is not None:
            self._table.order(wanted.sessions, now)
        if wanted.probing is not None:
            self._prober.order(wanted.probing, now)
        self._turn()

    def _report(self) -> Report:
        """As it is now."""
        orders = self._table.orders
        views = {ends: control.view(orders[ends], each) for ends, each in self._table.sessions().items()}
        return Report(self._process, self._realtime, self._problem, dict(self._table.refused), views, self._probes())

    def _probes(self) -> Probes:
        stall = self._prober.stall
        return Probes(self._prober.probing, self._probe_problem, stall.times, round(stall.seconds, 3))

    def _tell(self) -> None:
        """Everybody, if a session has changed; and each second at most what was refused."""
        report, now = self._report(), time.monotonic()
        is_news = _stripped(report) != _stripped(self._told)
        if not is_news and (report.refused == self._told.refused or now < self._told_at + REFUSED_PERIOD):
            return
        self._log_changes(self._told, report)
        self._told, self._told_at = report, now
        line = control.report_line(report)
        for client in self._clients:
            if client.transport.get_write_buffer_size() > LINE_LIMIT:
                client.transport.abort()  # it does not read
            else:
                client.write(line)

    def _log_changes(self, before: Report, now: Report) -> None:
        """What is between down and up is not told: with a peer that is half reached it comes each second."""
        for ends, each in now.sessions.items():
            old, fields = before.sessions.get(ends), _fields(ends)
            if old is None:
                self._log(logging.INFO, "bfd-added", **fields, state=each.state)
            elif (old.state == "up") != (each.state == "up"):
                level = logging.WARNING if each.failed else logging.INFO
                name = "bfd-up" if each.state == "up" else "bfd-down"
                self._log(level, name, **fields, reason=each.reason or None, falls=each.falls)
        for ends in before.sessions.keys() - now.sessions.keys():
            self._log(logging.INFO, "bfd-removed", **_fields(ends))
        self._log_probes(before.probes or Probes(), now.probes or Probes())

    def _log_probes(self, before: Probes, now: Probes) -> None:
        if now.probing != before.probing and now.probing is not None:
            self._log(logging.INFO, "probing", ways=len(now.probing.ways), device=now.probing.device)
        if now.problem != before.problem:
            self._log(logging.ERROR if now.problem else logging.INFO, "probes", problem=now.problem or None)
        if now.stalls != before.stalls:
            seconds = round(now.stalled - before.stalled, 3)
            self._log(logging.WARNING, "probes-stalled", seconds=seconds, reason="this process did not run")

    # --- packets

    def _turn(self) -> None:
        """Takes what came, sends what is due, tells what has changed, and sets the timer.

        What came goes first: a process that stood still must not take for silence what waits to be read.
        """
        for sock in self._listeners.values():
            self._take(sock)
        self._send(self._table.advance(time.monotonic()))
        self._probe()
        self._tidy()
        self._tell()
        if self._timer is not None:
            self._timer.cancel()
        due = min(self._table.next_due, self._retry_at or NEVER, self._prober.next_due)
        self._timer = self._loop.call_at(due, self._turn) if due != NEVER else None

    def _take(self, sock: socket.socket) -> None:
        try:
            for _ in range(BATCHES):
                found = received(sock)
                if not found:
                    break
                for each in found:
                    ends = each.source, each.local
                    self._send(self._table.receive(each.data, ends, each.ttl, each.device, time.monotonic()))
        except OSError as error:
            self._log(logging.ERROR, "bfd-receive-failed", reason=str(error))

    def _send(self, packets: list[Send]) -> None:
        for each in packets:
            sock = self._sender(each)
            if sock is None:
                continue
            with contextlib.suppress(OSError):  # as a packet that was lost: the peer's detection time tells
                sock.sendto(each.data, (str(each.peer), PORT))

    def _probe(self) -> None:
        """What is due of probes. ENOBUFS says that the program on the device has sent a copy (bpf/probe.h), or it was
        lost; a device that is gone, or is another of the same name, is opened anew.
        """
        now = time.monotonic()
        frames = list(self._prober.advance(now))
        sock = self._onto_link(now) if frames else None
        if sock is None:
            return
        for each in frames:
            try:
                sock.send(each)
            except OSError as error:
                if error.errno not in (errno.ENOBUFS, errno.EAGAIN):
                    self._lose_link(now, error)
                    break

    def _onto_link(self, now: float) -> socket.socket | None:
        probing = self._prober.probing
        assert probing is not None  # whoever asks has a frame to send
        if self._link is not None and self._link[0] == probing.device:
            return self._link[1]
        if now < self._link_retry:
            return None
        self._close_link()
        try:
            self._link = probing.device, link(probing.device)
        except OSError as error:
            self._lose_link(now, error)
            return None
        self._probe_problem = ""
        return self._link[1]

    def _lose_link(self, now: float, error: OSError) -> None:
        self._close_link()
        self._link_retry = now + RETRY
        device = self._prober.probing.device if self._prober.probing is not None else ""
        what_to_do = "give the bfd process CAP_NET_RAW" if error.errno == errno.EPERM else "the agent makes it"
        self._probe_problem = f"no probe can be put on {device} ({error.strerror}): {what_to_do}"

    def _close_link(self) -> None:
        if self._link is not None:
            self._link[1].close()
        self._link = None

    def _sender(self, packet: Send) -> socket.socket | None:
        """The socket of a session. Where none can be had (its address is gone), it is tried again in a while."""
        known = self._senders.get(packet.discriminator)
        if known is not None and known[0] == packet.local:
            return known[1]
        now = time.monotonic()
        if self._silent.get(packet.discriminator, 0.0) > now:
            return None
        try:
            sock = sender(packet.local)
        except OSError as error:
            if packet.discriminator not in self._silent:
                fields = _fields((packet.peer, packet.local))
                self._log(logging.ERROR, "bfd-no-source", **fields, reason=str(error))
            self._silent[packet.discriminator] = now + RETRY
            return None
        self._silent.pop(packet.discriminator, None)
        self._senders[packet.discriminator] = (packet.local, sock)
        return sock

    def _tidy(self) -> None:
        """Sockets for what there is to send, and no others: a host without BFD has its port 3784 free."""
        if self._prober.probing is None or not self._prober.probing.ways:
            self._close_link()
            self._probe_problem = ""
        numbers = self._table.numbers()
        for number in self._senders.keys() - numbers:
            self._senders.pop(number)[1].close()
        for number in self._silent.keys() - numbers:
            del self._silent[number]
        versions: set[int] = {order.peer.version for order in self._table.orders.values()}
        if numbers:
            versions |= self._listeners.keys()
        for version in self._listeners.keys() - versions:
            gone = self._listeners.pop(version)
            self._loop.remove_reader(gone)
            gone.close()
        self._listen(versions - self._listeners.keys())

    def _listen(self, versions: set[int]) -> None:
        now = time.monotonic()
        if not versions:
            self._problem, self._retry_at = "", 0.0
            return
        if now < self._retry_at:
            return
        self._problem, self._retry_at = "", 0.0
        for version in sorted(versions):
            try:
                sock = listener(version)
            except OSError as error:
                self._problem = (
                    f"UDP port {PORT} of IPv{version} cannot be had ({error.strerror}): does another BFD run here?"
                )
                self._retry_at = now + RETRY
                continue
            self._listeners[version] = sock
            self._loop.add_reader(sock, self._turn)

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for sock in self._listeners.values():
            self._loop.remove_reader(sock)
            sock.close()
        for _, sock in self._senders.values():
            sock.close()
        self._close_link()
        for client in self._clients:
            client.close()
        self._socket_path.unlink(missing_ok=True)


def _fields(ends: Ends) -> dict[str, str]:
    return {"peer": str(ends[0]), "local": str(ends[1])}


def _stripped(report: Report) -> Report:
    """Without what changes by itself: counts of what is not ours."""
    return replace(report, refused={})
