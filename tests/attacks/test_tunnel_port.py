"""Whoever forges a tunnel packet gets nothing through: no Service, no other address and no neighbour is a way in."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from egress.policy import Policy
from tests.bpf.packets import build, vxlan
from tests.models.tables import UDP, Packet
from tests.netns.lab.datapath import EGRESS_IP, WORLD, Cluster
from tests.netns.lab.frames import inject, mac_of
from tests.netns.lab.hosts import Host
from tests.netns.lab.lab import FW_ADDRESS, Lab
from tests.netns.lab.wiring import six

PORT, GROUP = 8473, 7
SERVICE, NODE_PORT, SECOND = "10.96.0.66", 30053, "10.9.0.11"


def inner(cluster: Cluster, node: str) -> Packet:
    """What gateways let out if the node's tunnel brings it: it bears the egress IP and a port of the node's."""
    return Packet(EGRESS_IP, IPv4Address(FW_ADDRESS), UDP, cluster.ports(node)[-1], 53)


def forged(packet: Packet, padding: int) -> bytes:
    """What a tunnel packet has behind its UDP header."""
    frame = build(replace(packet, length=packet.length + padding))
    return vxlan(frame, GROUP, PORT, Packet(IPv4Address(1), IPv4Address(2)))[14 + 28 :]


def rules(gateway: str) -> str:
    """What kube-proxy and a masquerading CNI make of Services whose endpoint is a node's tunnel port."""
    return f"""\
table ip services {{
    chain to {{
        ip daddr {SERVICE} udp dport 53 dnat to {gateway}:{PORT}
        ip daddr {SERVICE} udp dport 54 dnat to {SECOND}:{PORT}
        ip daddr {SERVICE} udp dport {PORT} dnat to {gateway}:{PORT}
        fib daddr type local udp dport {NODE_PORT} dnat to {gateway}:{PORT}
    }}
    chain prerouting {{ type nat hook prerouting priority dstnat; jump to; }}
    chain output {{ type nat hook output priority -100; jump to; }}
    chain postrouting {{
        type nat hook postrouting priority srcnat
        meta l4proto udp ct original proto-dst {NODE_PORT} masquerade
        ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade
    }}
}}
"""


@pytest.fixture(scope="module", params=["routed", "bridge"])
def cluster(request: pytest.FixtureRequest, clean_labs: list[str]) -> Iterator[Cluster]:
    with Lab(f"f{os.getpid()}{request.param[0]}", cni=request.param, ipv6=True) as lab:
        for name, node in (("sel", "worker"), ("evil", "worker"), ("evilgw", "gw1")):
            lab.add_pod(name, node)
        gateway = lab.node("gw1")
        gateway.ip(f"addr add {SECOND}/32 dev lo")
        lab.tor.ip(f"route add {EGRESS_IP}/32 via {gateway.address}", f"route add {SECOND}/32 via {gateway.address}")
        lab.fw.allow(str(EGRESS_IP))
        built = Cluster(lab, policies={"world": Policy("world", GROUP, (WORLD,))}, selected={"sel": ("world",)})
        built.apply()
        for each in lab.nodes.values():
            each.nft(rules(gateway.address))
        yield built
        built.close()


def send(host: Host, address: str, port: int, data: bytes) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with host.socket(family, socket.SOCK_DGRAM) as sender, suppress(PermissionError):
        sender.sendto(data, (address, port))


def judged(cluster: Cluster) -> int:
    """Packets that guards and programs have dropped, on all nodes."""
    return sum(sum(cluster.dropped(name).values()) for name in cluster.lab.nodes)


def gets_nothing_through(cluster: Cluster, attack: Callable[[], None], packets: int = 1) -> None:
    """What is forged is dropped somewhere, nothing leaves with the egress IP, and what is right goes on."""
    lab = cluster.lab
    with lab.watch() as watch:
        before = judged(cluster)
        attack()
        lab.wait(lambda: judged(cluster) >= before + packets, "what is forged is dropped")
        verdict = watch.settle()
    assert (str(EGRESS_IP), FW_ADDRESS) not in verdict.outside
    assert lab.pod("sel").ask(FW_ADDRESS).source == str(EGRESS_IP)


WAYS = {  # (who, address, port); "sel" is a pod that may send by the group, but not as another
    "straight": ("evil", "10.0.0.11", PORT),
    "a Service": ("evil", SERVICE, 53),
    "a Service, by a selected pod": ("sel", SERVICE, 53),
    "a Service, to the node itself": ("evilgw", SERVICE, 53),
    "a Service of another address of the gateway": ("evil", SERVICE, 54),
    "another address of the gateway": ("evil", SECOND, PORT),
    "a NodePort of the gateway, from outside": ("client", "10.0.0.11", NODE_PORT),
    "a NodePort of another node, from outside": ("client", "10.0.0.21", NODE_PORT),
    "a NodePort of another node, from a pod": ("evil", "10.0.0.12", NODE_PORT),
    "a process of the host": ("worker", "10.0.0.11", PORT),
    "a process of the host, by a Service": ("worker", SERVICE, 53),
    "a process of the host, by a Service on the tunnel's own port": ("worker", SERVICE, PORT),
    "IPv6": ("evil", six("10.0.0.11"), PORT),
    "IPv6, by a process of the host": ("worker", six("10.0.0.11"), PORT),
}


def host(cluster: Cluster, name: str) -> Host:
    lab = cluster.lab
    return lab.client if name == "client" else lab.nodes.get(name) or lab.pod(name)


@pytest.mark.parametrize("padding", [0, 1600], ids=["whole", "in fragments"])
@pytest.mark.parametrize("way", WAYS)
def test_a_forged_tunnel_packet_gets_nothing_through(cluster: Cluster, way: str, padding: int) -> None:
    name, address, port = WAYS[way]
    tries = [forged(inner(cluster, node), padding) for node in cluster.lab.nodes]  # whosever address it gets on its way

    def attack() -> None:
        for data in tries:
            send(host(cluster, name), address, port, data)

    gets_nothing_through(cluster, attack, len(tries))


@pytest.mark.parametrize("node", ["worker", "gw1"])
def test_a_pod_that_nobody_knows_yet_cannot_take_a_nodes_address(cluster: Cluster, node: str) -> None:
    pod = cluster.lab.add_pod("fresh", node)
    home, on = cluster.lab.node(node), "cni0" if cluster.lab.cni == "bridge" else pod.device
    home.sysctl({f"net.ipv4.conf.{on}.rp_filter": 0})
    outer = Packet(IPv4Address("10.0.0.12"), IPv4Address("10.0.0.11"))
    frame = vxlan(build(inner(cluster, "gw2")), GROUP, PORT, outer)
    try:
        before = judged(cluster)

        def is_dropped() -> bool:  # a new port of a bridge takes a moment before it passes anything
            inject(pod, "eth0", mac_of(home, on) + frame[6:])
            return judged(cluster) > before

        gets_nothing_through(cluster, lambda: cluster.lab.wait(is_dropped, "the guard sees the packet"))
    finally:
        cluster.lab.remove_pod("fresh")


def on_the_underlay(cluster: Cluster, target: str, source: str, inner: Packet, group: int) -> None:
    """A neighbour on the nodes' L2 sends a tunnel packet from `source` to node `target`."""
    node = cluster.lab.node(target)
    frame = vxlan(build(inner), group, PORT, Packet(IPv4Address(source), IPv4Address(node.address)))
    inject(cluster.lab.tor, target, mac_of(node, "eth0") + frame[6:])


@pytest.mark.parametrize("group", [GROUP, GROUP + 1])
@pytest.mark.parametrize("source", ["10.0.0.12", "10.0.0.99"], ids=["gateway", "stranger"])
@pytest.mark.parametrize("victim", ["sel", "evil"])
def test_a_forged_answer_reaches_no_pod(cluster: Cluster, victim: str, source: str, group: int) -> None:
    """From a gateway's address, too: neither a packet nor a flow of another group is brought to a pod by it."""
    pod = cluster.lab.pod(victim)
    answer = Packet(IPv4Address(FW_ADDRESS), IPv4Address(pod.address), UDP, 53, 6000)
    with pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as waiting:
        waiting.bind((pod.address, 6000))
        gets_nothing_through(cluster, lambda: on_the_underlay(cluster, "worker", source, answer, group))
        waiting.setblocking(False)
        with pytest.raises(BlockingIOError):
            waiting.recv(100)


def test_a_forged_answer_does_not_bind_the_pods_next_packet(cluster: Cluster) -> None:
    pod = cluster.lab.pod("sel")
    answer = Packet(IPv4Address(FW_ADDRESS), IPv4Address(pod.address), UDP, 53, 6001)
    gets_nothing_through(cluster, lambda: on_the_underlay(cluster, "worker", "10.0.0.12", answer, GROUP + 1))
    with pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(5)
        asking.bind((pod.address, 6001))
        asking.connect((FW_ADDRESS, 53))
        asking.send(b"question")
        assert f"saw {EGRESS_IP}" in asking.recv(1000).decode()
