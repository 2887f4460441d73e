"""Pods that send from their first moment, all at once, in both families: nothing of theirs leaves with another source
than the egress IP, by the guard alone while nobody has looked at them, and by the programs alone once somebody has.

The lab's tap is told before they come that they may not show.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest

from egress.policy import Policy
from tests.netns.lab.datapath import EGRESS_IP, EGRESS_IP6, WORLD, WORLD6, Cluster
from tests.netns.lab.hosts import PodHost
from tests.netns.lab.lab import FW_ADDRESS, Lab
from tests.netns.lab.netns import Namespace
from tests.netns.lab.wiring import HOST_MAC, six

PODS = 200
ADDRESSES = [f"10.244.3.{n}" for n in range(2, 2 + PODS)]
SERVERS = {socket.AF_INET: FW_ADDRESS, socket.AF_INET6: six(FW_ADDRESS)}
ANSWERS = {f"fw saw {EGRESS_IP}", f"fw saw {EGRESS_IP6}"}


@dataclass
class Talker:
    """A pod's socket of one family."""

    socket: socket.socket
    sent: int = 0
    heard: set[str] = field(default_factory=set)

    def turn(self) -> None:
        """Sends a question and takes what answers have come; a socket without an address sends none."""
        with suppress(OSError):
            self.socket.sendto(b"", (SERVERS[self.socket.family], 53))
            self.sent += 1
        with suppress(OSError):
            self.heard.add(self.socket.recv(100).decode().strip())


class Crowd:
    """Everybody who has joined sends all the time."""

    def __init__(self) -> None:
        self.talkers: list[Talker] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._talk)

    def join(self, pod: Namespace) -> list[Talker]:
        """The pod may have no device yet."""
        found = [Talker(pod.socket(family, socket.SOCK_DGRAM)) for family in SERVERS]
        for talker in found:
            talker.socket.setblocking(False)
        self.talkers += found
        return found

    def _talk(self) -> None:
        while not self._done.wait(0.05):
            for talker in list(self.talkers):
                talker.turn()

    @contextmanager
    def talking(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._done.set()
            self._thread.join()
            for talker in self.talkers:
                talker.socket.close()


@pytest.fixture(scope="module")
def cluster(clean_labs: list[str]) -> Iterator[Cluster]:
    with Lab(f"c{os.getpid()}", ipv6=True, rp_filter=0) as lab:
        gateway = lab.node("gw1").address
        lab.tor.ip(f"route add {EGRESS_IP}/32 via {gateway}", f"route add {EGRESS_IP6}/128 via {six(gateway)}")
        lab.fw.allow(str(EGRESS_IP))
        lab.fw.start_server(udp=53, address=six(FW_ADDRESS))
        built = Cluster(lab, policies={"world": Policy("world", 7, (WORLD, WORLD6))})
        built.apply()
        lab.tap.forbid(*ADDRESSES, *map(six, ADDRESSES))
        yield built
        for datapath in built.datapaths.values():
            datapath.close()  # its hooks go with their devices


def all_leave(cluster: Cluster, talkers: list[Talker]) -> None:
    """As the egress IPs; they may have been refused before, and heard nothing else."""
    for talker in talkers:
        talker.heard.clear()
    cluster.lab.wait(lambda: all(talker.heard for talker in talkers), "all of them are answered")
    assert {each for talker in talkers for each in talker.heard} == ANSWERS
    assert not cluster.lab.tap.settle()


def is_sent(talkers: list[Talker], more: int) -> bool:
    return all(talker.sent >= more for talker in talkers)


def test_two_hundred_pods_that_send_at_once_leak_nothing(cluster: Cluster) -> None:
    lab, crowd = cluster.lab, Crowd()
    with crowd.talking():
        for number, address in enumerate(ADDRESSES):
            crowd.join(lab.add_pod(f"c{number}", "worker", address=address))
        lab.wait(lambda: is_sent(crowd.talkers, 3), "all of them have sent")
        assert not lab.tap.settle()
        assert not any(talker.heard for talker in crowd.talkers)
        assert set(cluster.dropped("worker")) == {"guard_undecided"}
        cluster.selected |= {f"c{number}": ("world",) for number in range(PODS)}
        cluster.apply()
        all_leave(cluster, crowd.talkers)


def test_a_device_in_the_place_of_another_leaks_nothing(cluster: Cluster) -> None:
    """It has the name, the number and the address of a decided pod's, and no program; then the number alone."""
    lab, crowd, worker = cluster.lab, Crowd(), cluster.lab.node("worker")
    with crowd.talking():
        for name, address in (("c0", ADDRESSES[0]), ("c1", "10.244.3.250")):
            old = lab.pod(name)
            [link] = json.loads(worker.run(["ip", "-j", "link", "show", old.device]))
            lab.remove_pod(name)
            lab.tap.forbid(address, six(address))
            new = PodHost(lab.directory, f"{name}x", address, worker, {}, "default")
            new.directory.mkdir()
            new.create()
            talkers = crowd.join(new)
            device = old.device if address == old.address else new.device
            worker.ip(
                f"link add {device} index {link['ifindex']} type veth peer name eth0 netns {new.name}",
                f"link set {device} address {HOST_MAC} up",
                f"route add {address} dev {device}",
                f"route add {six(address)}/128 dev {device}",
            )
            new.ip(
                f"addr add {address}/32 dev eth0", f"addr add {six(address)}/128 dev eth0", "link set eth0 up",
                "route add 169.254.1.1 dev eth0 scope link", "route add default via 169.254.1.1",
                f"neigh replace 169.254.1.1 lladdr {HOST_MAC} dev eth0 nud permanent",
                f"neigh replace fe80::1 lladdr {HOST_MAC} dev eth0 nud permanent",
                "route add ::/0 via fe80::1 dev eth0",
            )  # fmt: skip
            before = cluster.dropped("worker")
            lab.wait(lambda talkers=talkers: is_sent(talkers, 3), "it has sent")
            lab.wait(lambda before=before: cluster.dropped("worker") != before, "it is dropped")
            assert not lab.tap.settle()
            lab.pods[new.label] = new
            cluster.selected[new.label] = ("world",)
            cluster.apply()
            all_leave(cluster, talkers)


def test_without_the_guard_the_programs_alone_let_nothing_out(cluster: Cluster) -> None:
    """As when the CNI plugin has a pod programmed before it starts, and somebody takes the guard away."""
    lab, crowd = cluster.lab, Crowd()
    pods = [lab.pod(f"c{number}") for number in range(20, 30)]
    lab.node("worker").run(["nft", "delete", "table", "inet", "routerd"])
    try:
        with crowd.talking():
            talkers = [talker for pod in pods for talker in crowd.join(pod)]
            all_leave(cluster, talkers)
            changed, away = pods[0], "10.244.3.251"
            lab.tap.forbid(away, six(away))
            changed.ip(
                f"addr add {away}/32 dev eth0", f"addr del {changed.address}/32 dev eth0",
                f"addr add {six(away)}/128 dev eth0", f"addr del {six(changed.address)}/128 dev eth0",
                "route replace 169.254.1.1 dev eth0 scope link", "route replace default via 169.254.1.1",
            )  # fmt: skip
            before = cluster.dropped("worker").get("spoofed_source", 0)
            lab.wait(lambda: cluster.dropped("worker").get("spoofed_source", 0) >= before + 10, "its own are dropped")
            assert not lab.tap.settle()
    finally:
        cluster.apply()
