"""Ports of a busy pod: a set that is full grows, and thousands of connections a second to one remote are not refused.

    make bench-ports        or: python -m tests.bench.rush [--seconds N] [--rate N]

The demo's cluster, once with files in one directory and once with the API server (the double of tests/k8s). `full`:
more connections at once than the node has ports towards one remote, held open, and then more of them, until one gets
through. `95 %`: 10,000 connections, 16 at a time, beside as many as hold 95 of 100 ports. `rush`: connections at a
steady rate from one pod to one port of one remote, a third of the time closed by the remote first, so that ports rest
for 60 s.

Rows go to `build/bench/rush.json`: `store, phase, ports_before, ports_after, made, refused, late, lost, grown_ms`.
`refused`: packets that found no port; `late`: connections that took longer than half a second; `lost`: that ended
before their time; `grown_ms`: from the first packet that was refused until the node has more ports
and a connection is made. Bars are printed beside; it judges nothing.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from bpf import layout, loader
from egress import status
from tests.bench import report
from tests.netns.lab import netns
from tests.netns.lab.daemons import Daemons
from tests.netns.lab.hosts import Host
from tests.netns.lab.lab import FW_ADDRESS, Lab
from tests.netns.lab.stores import STORES
from tests.netns.stories.story import EGRESS_IP, started
from tests.waiting import wait

WAITS, CLOSES = 5011, 5012  # the server's ports: the pod closes first, the server does
RST_COMES = 0.5  # seconds
LATE = 0.5  # seconds: a SYN that is lost is sent again after one
SURPLUS = 256  # connections beyond the ports of a set
COMING, AT_ONCE = 10_000, 16  # connections beside those that fill a set
GROWN_BAR = 1000  # milliseconds
REFUSALS = ("no_free_port", "port_quota", "flow_quota", "reverse_table_full", "flow_table_full")
OPEN_FILES = 1 << 15
QUIET = {"net.ipv4.ip_local_port_range": "1024 65535", "net.ipv4.tcp_tw_reuse": 1}


def serve() -> None:
    """Accepts everything, in a process of its own, until it is killed."""
    listeners = {port: socket.create_server((FW_ADDRESS, port), backlog=4096) for port in (WAITS, CLOSES)}
    known: dict[int, socket.socket] = {}
    with select.epoll() as ready:
        for listener in listeners.values():
            ready.register(listener, select.EPOLLIN)
        while True:
            for fd, _ in ready.poll():
                if fd in known:
                    if not known[fd].recv(16):
                        known.pop(fd).close()
                    continue
                port = next(port for port, listener in listeners.items() if listener.fileno() == fd)
                made, _ = listeners[port].accept()
                if port == CLOSES:
                    made.close()
                    continue
                known[made.fileno()] = made
                ready.register(made, select.EPOLLIN)


@contextmanager
def server(host: Host) -> Iterator[None]:
    child = os.fork()
    if not child:
        try:
            with netns.entered(host.name):
                serve()
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@dataclass(slots=True)
class Node:
    """What the pod's node has, read from its maps."""

    maps: loader.PinnedMaps
    reasons: Mapping[int, layout.Reason]

    def ports(self) -> int:
        """Of its sets of the egress IP, towards one remote."""
        groups = (layout.decode(layout.GroupValue, value) for value in self.maps["groups"].items().values())
        blocks = (block for group in groups for block in group.blocks[: group.block_count])
        return sum(1 << block.shift for block in blocks if str(layout.ip_of(block.egress_ip)) == EGRESS_IP)

    def refused(self) -> int:
        totals = status.totals(self.maps["counters"].items(), self.reasons)
        return sum(totals[name][0] for name in REFUSALS)


@dataclass(slots=True)
class Client:
    """Connections of the calling thread's namespace."""

    made: int = 0
    late: int = 0
    lost: int = 0

    def begin(self, port: int) -> socket.socket:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.setblocking(False)
        connection.connect_ex((FW_ADDRESS, port))
        return connection

    def established(self, connection: socket.socket, timeout: float) -> bool:
        poll = select.poll()
        poll.register(connection, select.POLLOUT)
        return bool(poll.poll(timeout * 1000)) and not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def are_established(self, connections: list[socket.socket]) -> bool:
        return all(self.established(each, 0) for each in connections)

    def rush(self, port: int, seconds: float, rate: float) -> None:
        """Each is closed as soon as it is made, or as the server has closed it."""
        wanted = select.EPOLLIN if port == CLOSES else select.EPOLLOUT
        begun: dict[int, tuple[socket.socket, float]] = {}
        start, count = time.monotonic(), 0
        with select.epoll() as ready:
            while (now := time.monotonic()) < start + seconds or (begun and now < start + seconds + 5):
                while now < start + seconds and count < (now - start) * rate:
                    connection = self.begin(port)
                    begun[connection.fileno()] = connection, now
                    ready.register(connection, wanted)
                    count += 1
                for fd, event in ready.poll(0.001):
                    connection, at = begun.pop(fd)
                    self.made += not event & select.EPOLLERR
                    self.lost += bool(event & select.EPOLLERR)
                    self.late += time.monotonic() - at > LATE
                    connection.close()
        self.lost += len(begun)
        for connection, _ in begun.values():
            connection.close()


def full(node: Node) -> report.Row:
    """More connections at once than there are ports; then it is the agent's, the operator's and the store's turn."""
    before, refused, client = node.ports(), node.refused(), Client()
    held = [client.begin(WAITS) for _ in range(before + SURPLUS)]
    wait(lambda: node.refused() > refused or client.are_established(held), "the set is full, or has grown before")
    first, new = time.monotonic(), client.begin(WAITS)
    while not (node.ports() > before and client.established(new, 0.01)):
        new.close()
        new = client.begin(WAITS)
    grown = time.monotonic() - first if node.refused() > refused else 0.0
    lost = _ended(client, held)
    new.close()
    return row("full", before, node, len(held), node.refused() - refused, 0, lost, grown)


def nearly_full(node: Node) -> report.Row:
    """Connections come and go where others hold 95 of 100 ports."""
    before, refused, client = node.ports(), node.refused(), Client()
    held = [client.begin(WAITS) for _ in range(before * 95 // 100)]
    while client.made < COMING:
        batch = [client.begin(WAITS) for _ in range(AT_ONCE)]
        wait(partial(client.are_established, batch), f"{AT_ONCE} more", 10)
        client.made += len(batch)
        for each in batch:
            each.close()
    return row("95 %", before, node, client.made, node.refused() - refused, 0, _ended(client, held), 0)


def _ended(client: Client, held: list[socket.socket]) -> int:
    """How many of these are made and do not live. It closes them."""
    wait(partial(client.are_established, held), "all are made", 10)
    lost = sum(not each.send(b"still there") for each in held)
    ended = select.poll()
    for each in held:
        ended.register(each, select.POLLIN)
    lost += len(ended.poll(RST_COMES * 1000))
    for each in held:
        each.close()
    return lost


def rush(node: Node, seconds: float, rate: float) -> report.Row:
    before, refused, client = node.ports(), node.refused(), Client()
    for port in (WAITS, CLOSES, WAITS):
        client.rush(port, seconds / 3, rate)
    return row("rush", before, node, client.made, node.refused() - refused, client.late, client.lost, 0)


def row(phase: str, before: int, node: Node, made: int, refused: int, late: int, lost: int, grown: float) -> report.Row:
    return {
        "phase": phase, "ports_before": before, "ports_after": node.ports(), "made": made, "refused": refused,
        "late": late, "lost": lost, "grown_ms": round(1000 * grown, 1),
    }  # fmt: skip


def measure(store: str, phases: list[Callable[[Node], report.Row]]) -> list[report.Row]:
    rows = []
    with Lab(f"rush{os.getpid()}{store[0]}") as lab:
        manifests = STORES[store](lab)
        started(lab, Daemons(lab, manifests.store), manifests)
        pod, worker = lab.pod("snat-pod"), lab.node("worker")
        pod.sysctl(QUIET)
        lab.fw.sysctl({"net.core.somaxconn": 8192, "net.ipv4.tcp_max_syn_backlog": 8192})
        node = Node(loader.PinnedMaps(worker.pin_dir / "routerd"), layout.read_reasons())
        with server(lab.fw), netns.entered(pod.name):
            for phase in phases:
                rows.append({"store": store, **phase(node)})
                shown = " ".join(f"{key}={value}" for key, value in rows[-1].items())
                print(f"{shown}: {verdict(rows[-1])}", flush=True)
    return rows


def verdict(found: report.Row) -> str:
    """A full set refuses until it has grown, and then only."""
    lost = f"lost {report.at_most(found['lost'], 0)}"
    if found["phase"] == "full":
        return f"grown_ms {report.at_most(found['grown_ms'], GROWN_BAR)}, {lost}"
    return f"refused {report.at_most(found['refused'], 0)}, {lost}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=2000.0)
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, most), most))
    print(report.machine())
    report.forget("rush")
    rows = measure("files", [full, nearly_full, partial(rush, seconds=options.seconds, rate=options.rate)])
    report.write("rush", [*rows, *measure("kubernetes", [full, nearly_full])])


if __name__ == "__main__":
    main()
