"""A gateway dies, leaves or comes under traffic: for how long no packet leaves, none comes back, and what is lost.

    make bench-failover        or: python -m tests.bench.failover [--runs N] [--kinds K …] [--gateways N …]

Real ExaBGP, BFD and datapath in a lab; the ToR is BIRD with BFD, 50 ms x 3. Kinds take turns: a gateway's link and
processes go at once (gone), it is silent with its carrier up (silent), it is drained until it is safe to stop
(draining), and one that was drained serves again (adding). Flows are spread over all gateways; what is measured is the
longest time without a packet of any flow, at the server (out) and back at the pod (round), and how many datagrams got
no answer. Of 1,000 connections, idle, busy and some that were made a moment before, each must still echo.

Rows go to `build/bench/failover.json`: `run, kind, gateways, out_ms, round_ms, tcp_lost, unanswered`.
"""

from __future__ import annotations

import argparse
import os
import selectors
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

from routerd.serve.api import agent_socket, ask
from tests.bench import report
from tests.netns.lab import netns
from tests.netns.lab.hosts import PodHost
from tests.netns.lab.lab import FW_ADDRESS, Lab
from tests.netns.lab.site import SILENT, Site, nodes
from tests.waiting import WaitTimeout, wait

FLOWS, EVERY = 16, 0.004  # datagrams of each flow, seconds apart
PORT, ECHO = 9, 7  # UDP, TCP
CONNECTIONS, BUSY, FRESH = 1000, 50, 20  # FRESH are made just before the gateway dies
BEFORE, AFTER = 1.0, 2.0  # seconds of traffic around it
PATIENCE = 15.0  # seconds in which a connection must echo
STAMP = struct.Struct("!HI")  # flow, number
LATE = 5.0  # seconds in which the last answers come
BUFFER = 1 << 22  # bytes of a socket, so that a busy machine loses nothing there
DRAINING = 120.0  # seconds, at most
DEATHS, WISHES = ("gone", "silent"), ("draining", "adding")
KINDS = (*DEATHS, *WISHES)
BARS = {"out_ms": 200.0, "round_ms": 300.0}  # of the 99th percentile of deaths


# --- traffic


@dataclass(slots=True)
class Gaps:
    """When packets of each flow came, by the monotonic clock."""

    last: dict[int, float] = field(default_factory=dict)
    longest: dict[int, float] = field(default_factory=dict)

    def came(self, flow: int, at: float) -> None:
        if flow in self.last:
            self.longest[flow] = max(self.longest.get(flow, 0.0), at - self.last[flow])
        self.last[flow] = at

    def end(self, at: float) -> float:
        """The longest time without a packet of any flow, in seconds; what never came again lasts until now."""
        for flow in [*self.last]:
            self.came(flow, at)
        return max(self.longest.values(), default=float("inf"))


class Datagrams:
    """FLOWS flows of UDP to a server that sends each back, in threads, inside the block."""

    def __init__(self, pod: PodHost, fw: Any) -> None:
        self.out, self.back = Gaps(), Gaps()
        self._server = fw.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._server.bind((FW_ADDRESS, PORT))
        self._flows = [pod.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(FLOWS)]
        for flow in self._flows:
            flow.connect((FW_ADDRESS, PORT))
        for each in (self._server, *self._flows):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._sent, self._answered = set[bytes](), set[bytes]()
        self._quiet, self._ending = threading.Event(), threading.Event()
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._serve, self._receive)]

    def __enter__(self) -> Datagrams:
        for thread in (*self._threads, self._sender):
            thread.start()
        return self

    def stop(self) -> None:
        """No more are sent; returns when all are answered, or the last answers would have come."""
        self._quiet.set()
        self._sender.join(5)
        with suppress(WaitTimeout):
            wait(lambda: not self.unanswered, "answers", timeout=LATE)

    @property
    def unanswered(self) -> int:
        return len(self._sent - self._answered)

    def __exit__(self, *_: object) -> None:
        self._quiet.set()
        self._ending.set()
        for thread in (self._sender, *self._threads):
            thread.join(5)
        for each in (self._server, *self._flows):
            each.close()

    def _serve(self) -> None:
        self._server.settimeout(0.1)
        while not self._ending.is_set():
            with suppress(OSError):
                data, sender = self._server.recvfrom(64)
                self.out.came(STAMP.unpack(data)[0], time.monotonic())
                self._server.sendto(data, sender)

    def _send(self) -> None:
        number, due = 0, time.monotonic()
        while not self._quiet.wait(max(0.0, due - time.monotonic())):
            for index, flow in enumerate(self._flows):
                with suppress(OSError):
                    flow.send(STAMP.pack(index, number))
                    self._sent.add(STAMP.pack(index, number))
            number, due = number + 1, due + EVERY

    def _receive(self) -> None:
        with selectors.DefaultSelector() as ready:
            for flow in self._flows:
                flow.setblocking(False)
                ready.register(flow, selectors.EVENT_READ)
            while not self._ending.is_set():
                for key, _ in ready.select(0.1):
                    with suppress(OSError):
                        data = key.fileobj.recv(64)  # type: ignore[union-attr]
                        self.back.came(STAMP.unpack(data)[0], time.monotonic())
                        self._answered.add(data)


class Connections:
    """TCP connections of a pod to an echo server."""

    def __init__(self, pod: PodHost) -> None:
        self._pod = pod
        self._open: list[socket.socket] = []

    def more(self, count: int) -> list[socket.socket]:
        with netns.entered(self._pod.name):  # once: to enter costs as much as a hundred connections
            made = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
        self._open += made
        for each in made:
            each.settimeout(PATIENCE)
            each.connect((FW_ADDRESS, ECHO))
            greeting = b""
            while not greeting.endswith(b"\n"):
                greeting += each.recv(64)
            each.setblocking(False)
        return made

    def close(self) -> None:
        """By RST: the ports are the same pod's again at once, and the next run needs as many."""
        for each in self._open:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.close()
        self._open.clear()

    def lost(self) -> int:
        """How many do not echo within PATIENCE."""
        return echoed(self._open, PATIENCE)

    @contextmanager
    def busy(self, some: Sequence[socket.socket]) -> Iterator[None]:
        """These exchange all the time inside the block."""
        ending = threading.Event()

        def exchange() -> None:
            while not ending.is_set():
                echoed(some, PATIENCE)

        thread = threading.Thread(target=exchange, daemon=True)
        thread.start()
        yield
        ending.set()
        thread.join(2 * PATIENCE)


def echoed(connections: Sequence[socket.socket], patience: float) -> int:
    """Sends 8 bytes by each, and reads them back; how many of the connections did not."""
    waiting = dict.fromkeys(connections, 8)
    deadline = time.monotonic() + patience
    with selectors.DefaultSelector() as ready:
        for each in connections:
            ready.register(each, selectors.EVENT_READ)
            with suppress(OSError):
                each.send(bytes(8))
        while waiting and time.monotonic() < deadline:
            for key, _ in ready.select(0.1):
                each = key.fileobj
                assert isinstance(each, socket.socket)
                try:
                    got = len(each.recv(8))
                except OSError:
                    got = 0
                if not got:
                    ready.unregister(each)  # it has ended, and stays among those that wait
                    continue
                waiting[each] = waiting.get(each, 0) - got
                if waiting[each] <= 0:
                    waiting.pop(each)
                    ready.unregister(each)
            if not ready.get_map():
                break
    return len(waiting)


# --- the lab


class Mortal(Site):
    """Its gateways die, leave and come back."""

    def take(self, kind: str, name: str) -> None:
        """What befalls the gateway."""
        if kind == "silent":
            self.lab.tor.nft(SILENT.format(name))
            return
        if kind == "draining":
            self._order(name, {"do": "drain"}, "drained")
            return
        if kind == "adding":
            self.give_back("draining", name)
            return
        self.lab.tor.ip(f"link set {name} down")
        for daemon in (self.daemons.agents[name], self.daemons.speakers[name], self.daemons.bfds[name]):
            for pid in daemon.tree():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def give_back(self, kind: str, name: str) -> None:
        if kind == "silent":
            self.lab.tor.run(["nft", "delete", "table", "netdev", "silent"])
        elif kind == "draining":
            self._order(name, {"do": "undrain"}, "serving")
        else:
            self.lab.tor.ip(f"link set {name} up")
            self.begin(name)
        self.settle()

    def _order(self, name: str, order: dict[str, str], state: str) -> None:
        """Returns once it is carried out."""
        path = agent_socket(self.lab.node(name).directory / "run")
        ask(path, order, timeout=DRAINING)
        wait(lambda: ask(path, {"get": "drain"})["state"] == state, f"{name} is {state}", timeout=DRAINING)

    def run(self, number: int, kind: str) -> report.Row:
        victim = self.gateways[number // len(KINDS) % len(self.gateways)]
        if kind == "adding":
            self.take("draining", victim)
        connections = Connections(self.pod)
        busy = connections.more(CONNECTIONS - FRESH)[:BUSY]
        try:
            with connections.busy(busy), Datagrams(self.pod, self.lab.fw) as datagrams:
                time.sleep(BEFORE)
                connections.more(FRESH)
                self.take(kind, victim)
                time.sleep(AFTER)
                ended = time.monotonic()
                out, back = datagrams.out.end(ended), datagrams.back.end(ended)
                datagrams.stop()
            lost = connections.lost()
        finally:
            connections.close()
        if kind != "adding":
            self.give_back(kind, victim)
        return {"run": number, "kind": kind, "gateways": len(self.gateways), "out_ms": round(1000 * out, 1),
                "round_ms": round(1000 * back, 1), "tcp_lost": lost, "unanswered": datagrams.unanswered}  # fmt: skip


# --- what it says


def percentile(values: Sequence[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


def summary(rows: Sequence[report.Row]) -> list[str]:
    lines = []
    for kinds in (DEATHS, WISHES):
        of_them = [row for row in rows if row["kind"] in kinds]
        if not of_them:
            continue
        for metric, bar in BARS.items():
            values = [row[metric] for row in of_them]
            at = {percent: percentile(values, percent) for percent in (50, 90, 99)}
            shown = ", ".join(f"p{percent} {value:.0f}" for percent, value in at.items())
            said = f"; p99 {report.at_most(at[99], bar)}" if kinds == DEATHS else ""
            lines.append(f"{', '.join(kinds)}: {metric}: {shown}, max {max(values):.0f}{said}")
        lost, unanswered = (sum(row[metric] for row in of_them) for metric in ("tcp_lost", "unanswered"))
        lines.append(f"tcp_lost: {lost} of {CONNECTIONS * len(of_them)}; {report.at_most(lost, 0)}")
        lines.append(f"unanswered: {unanswered}" + (f"; {report.at_most(unanswered, 0)}" if kinds == WISHES else ""))
    return lines


def main(read: Callable[[], Sequence[str]] = lambda: sys.argv[1:]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, metavar="N", help="in all")
    parser.add_argument("--gateways", type=int, nargs="+", default=[2, 3], metavar="N", help="of which one dies")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="K", help="they take turns")
    options = parser.parse_args(read())
    report.forget("failover")
    rows: list[report.Row] = []
    for gateways in options.gateways:
        with Lab(f"fo{gateways}", nodes=nodes(gateways)) as lab:
            site = Mortal(lab, gateways)
            for number in range(options.runs // len(options.gateways)):
                row = site.run(number, options.kinds[number % len(options.kinds)])
                rows.append(row)
                print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
                report.write("failover", rows)
    print(*summary(rows), sep="\n")


if __name__ == "__main__":
    main()
