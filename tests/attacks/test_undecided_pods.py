"""A pod that starts while nobody looks sends nothing to what policies cover. What hosts forward for others goes on."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv6Network

import pytest

from egress.policy import Policy
from tests.netns.lab.datapath import EGRESS_IP, WORLD, Cluster
from tests.netns.lab.hosts import Host
from tests.netns.lab.lab import FW_ADDRESS, Lab
from tests.netns.lab.netns import Namespace, run
from tests.netns.lab.wiring import six

OUTSIDE = "10.250.0.5"  # of the node's pod CIDRs
WORLD6 = IPv6Network("::/0")
FW6 = six(FW_ADDRESS)


@pytest.fixture(scope="module", params=["routed", "bridge"])
def cluster(request: pytest.FixtureRequest, clean_labs: list[str]) -> Iterator[Cluster]:
    with Lab(f"u{os.getpid()}{request.param[0]}", cni=request.param, ipv6=True) as lab:
        lab.add_pod("sel", "worker")
        lab.tor.ip(f"route add {EGRESS_IP}/32 via {lab.node('gw1').address}")
        lab.fw.allow(str(EGRESS_IP))
        policy = Policy("world", 7, (WORLD, WORLD6))
        built = Cluster(lab, policies={"world": policy}, selected={"sel": ("world",)})
        built.apply()
        yield built
        built.close()


def send(host: Host, address: str, source: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with host.socket(family, socket.SOCK_DGRAM) as sender, suppress(PermissionError):
        sender.bind((source, 0))
        sender.sendto(b"mine", (address, 53))


def dropped(cluster: Cluster) -> int:
    """By the guard. IPv6 on a bridge falls to the policies of any pod there."""
    now = cluster.counters("worker")
    return now["guard_undecided"] + now["guard_selected"]


def leaves_by_its_own(cluster: Cluster, host: Host, sources: dict[str, str]) -> bool:
    """Whether a packet from any of the sources (source -> destination) shows at the ToR; if not, each was dropped."""
    with cluster.lab.watch() as watch:
        for source, destination in sources.items():
            before = dropped(cluster)

            def is_told(source: str = source, destination: str = destination, before: int = before) -> bool:
                send(host, destination, source)  # again: a bridge's new port takes a moment before it passes it
                return dropped(cluster) > before or bool(watch.settle().outside[source, destination])

            cluster.lab.wait(is_told, f"a packet from {source} is dropped or seen")
        verdict = watch.settle()
    return any(verdict.outside[pair] for pair in sources.items())


def test_new_pods_leak_nothing_whatever_their_source_while_nobody_looks(cluster: Cluster) -> None:
    pod = cluster.lab.add_pod("new", "worker")
    pod.ip(f"addr add {OUTSIDE}/32 dev eth0")
    on = "cni0" if cluster.lab.cni == "bridge" else pod.device
    cluster.lab.node("worker").ip(f"route add {OUTSIDE}/32 dev {on}")
    try:
        sources = {pod.address: FW_ADDRESS, OUTSIDE: FW_ADDRESS, six(pod.address): FW6}
        assert not leaves_by_its_own(cluster, pod, sources)
        cluster.apply()  # known, and selected by nobody
        assert leaves_by_its_own(cluster, pod, {pod.address: FW_ADDRESS})
        assert not leaves_by_its_own(cluster, pod, {OUTSIDE: FW_ADDRESS})
        cluster.selected["new"] = ("world",)
        cluster.apply()
        assert pod.ask(FW_ADDRESS).source == str(EGRESS_IP)
    finally:
        cluster.lab.node("worker").ip(f"route del {OUTSIDE}/32 dev {on}")
        cluster.lab.remove_pod("new")
        cluster.selected.pop("new", None)
        cluster.apply()


def test_a_pod_that_takes_anothers_address_on_a_device_of_its_own_leaks_nothing(cluster: Cluster) -> None:
    address = cluster.lab.pod("sel").address
    cluster.lab.remove_pod("sel")
    try:
        taker = cluster.lab.add_pod("taker", "worker", address=address)
        with cluster.lab.watch() as watch:
            before = dropped(cluster)

            def is_dropped() -> bool:
                send(taker, FW_ADDRESS, address)
                return dropped(cluster) > before

            cluster.lab.wait(is_dropped, "the packet is dropped")
            assert (address, FW_ADDRESS) not in watch.settle().outside
    finally:
        cluster.lab.remove_pod("taker")
        cluster.lab.add_pod("sel", "worker", address=address)
        cluster.apply()


def test_what_the_host_forwards_for_others_goes_on(cluster: Cluster) -> None:
    """A bridge of containers beside the cluster, once somebody has looked; and a host behind the node."""
    worker = cluster.lab.node("worker")
    container = Namespace(f"{worker.name}-box", "box")
    container.create()
    worker.ip(
        "link add docker0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        "addr add 172.17.0.1/16 dev docker0",
        "link set docker0 up",
        f"link add vethbox type veth peer name eth0 netns {container.name}",
        "link set vethbox master docker0 up",
    )
    container.ip("addr add 172.17.0.2/16 dev eth0", "link set eth0 up", "route add default via 172.17.0.1")
    box = Host(cluster.lab.directory, "box", "172.17.0.2")
    box.name = container.name
    try:
        assert not leaves_by_its_own(cluster, box, {"172.17.0.2": FW_ADDRESS})
        cluster.apply()
        with cluster.lab.tap.excused("172.17.0.2", FW_ADDRESS):
            assert leaves_by_its_own(cluster, box, {"172.17.0.2": FW_ADDRESS})
        worker_address = worker.address
        client = cluster.lab.client
        cluster.lab.tor.ip(f"route add 192.0.2.77/32 via {worker_address}")
        worker.ip("route add 192.0.2.77/32 via 10.0.0.12")
        with cluster.lab.watch() as watch:
            send(client, "192.0.2.77", client.address)

            def is_seen_twice() -> bool:
                return watch.settle().outside[client.address, "192.0.2.77"] >= 2

            cluster.lab.wait(is_seen_twice, "what comes by the uplink is forwarded")
    finally:
        worker.ip("link del docker0")
        run(["ip", "netns", "del", container.name])
        cluster.apply()
