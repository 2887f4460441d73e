"""What the datapath does with the packets of a lab, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from bpf import bcc_loader, loader
from egress import devices
from egress.netdev import Datapath
from egress.plan import problems, wanted_attachments
from egress.policy import TUNNEL_DEVICE, Policy, Ports
from netlink.wire import NetlinkSocket
from routerd.model import severity_of
from tests.bpf.packets import build
from tests.models.next_release import next_release
from tests.models.tables import TCP, UDP, Packet
from tests.netns.lab import netns
from tests.netns.lab.datapath import EGRESS_IP, WORLD, Cluster, reconcile
from tests.netns.lab.frames import inject, mac_of
from tests.netns.lab.hosts import PodHost
from tests.netns.lab.lab import FW_ADDRESS, Lab
from tests.netns.lab.netns import Namespace
from tests.netns.lab.traffic import Download, Echo, NewConnections
from tests.waiting import eventually, turns

CLSACT = ("bridge", "clsact", "bcc")
VARIANTS = (("routed", "tcx", "libbpf"), CLSACT)
HEADERS = Path(__file__).resolve().parents[3] / ".lab" / "cache" / "kernel" / "headers"


@pytest.fixture(scope="module")
def kernel_headers() -> Iterator[None]:
    """Headers for bcc where the running kernel has none installed."""
    with pytest.MonkeyPatch.context() as patch:
        if not Path(f"/lib/modules/{os.uname().release}/build").exists():
            patch.setenv("BCC_KERNEL_SOURCE", str(HEADERS))
        yield


@pytest.fixture(scope="module", params=VARIANTS, ids=["-".join(variant) for variant in VARIANTS])
def cluster(request: pytest.FixtureRequest, clean_labs: list[str], kernel_headers: None) -> Iterator[Cluster]:
    cni, attach, backend = request.param
    with Lab(f"e{os.getpid()}{cni[0]}", cni=cni, pod_mtu=1500) as lab:
        for name, node in (("sel", "worker"), ("plain", "worker"), ("selgw", "gw1"), ("selgw2", "gw2"), ("dns", "gw2")):
            lab.add_pod(name, node)
        lab.pod("dns").start_server(udp=53, http=80)
        lab.tor.ip(f"route add {EGRESS_IP}/32 via {lab.node('gw1').address}")
        lab.fw.allow(str(EGRESS_IP))
        policy = Policy("world", 7, (WORLD,))
        built = Cluster(lab, attach, backend, {"world": policy}, dict.fromkeys(("sel", "selgw", "selgw2"), ("world",)))
        built.apply()
        yield built
        built.close()


@pytest.fixture(autouse=True)
def restored(cluster: Cluster) -> Iterator[None]:
    """What a test changed in the cluster's wishes is taken back, also when it failed."""
    wishes = dict(cluster.policies), dict(cluster.selected), cluster.gateways, cluster.node_address
    yield
    cluster.policies, cluster.selected, cluster.gateways, cluster.node_address = wishes
    cluster.apply()


def test_pod_devices_are_found_also_after_pyroute2_was_used_elsewhere(cluster: Cluster) -> None:
    worker = cluster.lab.node("worker")
    with netns.entered(worker.name):
        with IPRoute() as route:
            assert list(route.get_addr())
        observed = cluster.datapaths["worker"].observe(cluster.desired("worker"))
    assert IPv4Address(cluster.lab.pod("sel").address) in observed.facts.devices


BY_STACK = {  # what makes the host's stack do more than send tunnel packets, and what takes it away
    "IPsec": ("xfrm policy add dst 10.99.0.9 dir out action block", "xfrm policy delete dst 10.99.0.9 dir out"),
    "a narrow route": ("route add 10.99.0.0/24 via 10.0.0.1 mtu 1400", "route delete 10.99.0.0/24"),
}


@pytest.mark.parametrize("what", BY_STACK)
def test_the_programs_make_tunnel_packets_unless_the_hosts_stack_has_to(cluster: Cluster, what: str) -> None:
    worker, pod, (begins, ends) = cluster.lab.node("worker"), cluster.lab.pod("sel"), BY_STACK[what]

    def makes() -> tuple[str | None, bool]:
        """Who says that it makes them, and whether the tunnel device has sent what a pod's question made."""
        before = sent_by_tunnel_device(worker)
        assert pod.get(FW_ADDRESS).source == str(EGRESS_IP)
        with netns.entered(worker.name):
            return cluster.datapaths["worker"].status().tunnel_packets, sent_by_tunnel_device(worker) > before

    assert makes() == ("programs", False)
    worker.ip(begins)
    try:
        cluster.apply()
        assert makes() == ("device", True)
    finally:
        worker.ip(ends)
        cluster.apply()
    assert makes() == ("programs", False)


def sent_by_tunnel_device(node: Namespace) -> int:
    (shown,) = json.loads(node.run(["ip", "-s", "-j", "link", "show", "dev", TUNNEL_DEVICE]))
    return int(shown["stats64"]["tx"]["packets"])


@pytest.fixture
def macvlan_pod(cluster: Cluster) -> Iterator[tuple[Namespace, IPv4Address]]:
    """On a device upon the worker's uplink, in a namespace that has no id there: its file alone tells of it."""
    worker = cluster.lab.node("worker")
    pod, address = Namespace(f"{worker.name}m", "onmacvlan"), IPv4Address(worker.next_pod_address())
    pod.create()
    try:
        worker.ip(f"link add link eth0 name inner netns {pod.name} type macvlan mode bridge")
        pod.ip("link set inner name eth0", f"address add {address}/24 dev eth0", "link set eth0 up")
        yield pod, address
    finally:
        netns.run(["ip", "netns", "delete", pod.name])


def test_what_leaves_by_a_device_past_the_programs_is_kept_back_beneath(
    cluster: Cluster, macvlan_pod: tuple[Namespace, IPv4Address]
) -> None:
    lab, worker, (pod, address) = cluster.lab, cluster.lab.node("worker"), macvlan_pod
    desired = cluster.desired("worker")
    reconcile(worker, cluster.datapaths["worker"], replace(desired, pods={**desired.pods, address: ("world",)}))
    question = Packet(address, IPv4Address(FW_ADDRESS), UDP, 4000, 53)
    inside = replace(question, destination=IPv4Address(lab.node("gw1").address))
    forged = replace(question, source=IPv4Address("10.99.9.9"))
    hop, own = mac_of(lab.tor, "worker"), mac_of(pod, "eth0")
    with lab.watch() as watch:
        before = cluster.dropped("worker").get("unhooked", 0)
        frames = [build(packet)[6:] for packet in (inside, question, replace(question, protocol=TCP, flags="A"))]
        for frame in (*frames, own + build(forged)[12:]):
            with suppress(OSError):  # ENOBUFS: the pod's socket is told what the device beneath did
                inject(pod, "eth0", hop + frame)
        lab.wait(lambda: cluster.dropped("worker").get("unhooked", 0) == before + 3, "all three are dropped")
        seen = watch.settle().outside
    assert not [ends for ends in seen if {str(address), str(forged.source)} & {*ends}]


def test_a_pod_on_a_device_that_leads_past_the_programs_is_told(
    cluster: Cluster, macvlan_pod: tuple[Namespace, IPv4Address]
) -> None:
    worker, besides, (_, alone) = cluster.lab.node("worker"), cluster.lab.pod("sel"), macvlan_pod
    desired = cluster.desired("worker")
    desired = replace(desired, pods={**desired.pods, alone: ("world",)})
    datapath = cluster.datapaths["worker"]
    worker.ip(f"link add link eth0 name net1 netns {besides.name} type macvlan mode bridge")
    try:
        with netns.entered(worker.name):
            told = problems(desired, datapath.observe(desired))
            status = datapath.status().beside(desired)
    finally:
        besides.ip("link delete net1")
    assert [(each.object, each.reason) for each in told] == [
        (f"pod-address/{each}", "DeviceUnhooked") for each in (besides.address, alone)
    ]
    assert "besides" in told[0].message and f"{alone} is on macvlan device eth0" in told[1].message
    assert (status.pods, len(status.unhooked)) == (0, 2)


ADDRESSES = {"an IPv4 address": "192.0.2.250/32", "an IPv6 address": "2001:db8:99::1/128"}


@pytest.mark.parametrize("what", ["a new device", "the guard deleted", *ADDRESSES])
def test_a_change_beneath_is_told(cluster: Cluster, what: str) -> None:
    told = threading.Event()
    worker = cluster.lab.node("worker")

    def change() -> None:
        if what == "a new device":
            cluster.lab.add_pod("fresh", "worker")
            cluster.lab.remove_pod("fresh")
        elif what in ADDRESSES:
            for change in ("add", "del"):
                worker.run(["ip", "address", change, ADDRESSES[what], "dev", "lo"])
        else:
            worker.run(["nft", "delete", "table", "inet", "routerd"])

    async def listen() -> None:
        task = asyncio.create_task(devices.watch(told.set))
        await turns()  # both sockets are open now
        await asyncio.to_thread(change)
        await eventually(told.is_set)
        task.cancel()

    with netns.entered(worker.name):
        asyncio.run(listen())


def test_the_programs_come_from_the_loader_that_was_asked_for(cluster: Cluster) -> None:
    wanted = {"libbpf": loader, "bcc": bcc_loader}[cluster.loader]
    for name in cluster.lab.nodes:
        assert loader.pinned_digest(cluster.lab.node(name).pin_dir / "routerd") == wanted.digest()


def test_a_second_round_has_nothing_to_do(cluster: Cluster) -> None:
    assert cluster.apply() == {"gw1": [], "gw2": [], "worker": []}


@pytest.mark.parametrize("pod", ["sel", "selgw", "selgw2"])
def test_selected_pods_leave_with_the_egress_ip(cluster: Cluster, pod: str) -> None:
    host = cluster.lab.pod(pod)
    with cluster.lab.watch() as watch:
        watch.forbid(host.address)
        watch.allow(str(EGRESS_IP))
        assert host.get(FW_ADDRESS).source == str(EGRESS_IP)
        assert host.ask(FW_ADDRESS).source == str(EGRESS_IP)
        assert host.ping(FW_ADDRESS)
        verdict = watch.settle()
    assert not verdict.leaks
    assert verdict.outside[str(EGRESS_IP), FW_ADDRESS] > 3


def test_a_policy_lets_packets_out_by_the_pods_own_node(cluster: Cluster) -> None:
    """Only answers come by the gateway, through the tunnel."""
    cluster.policies["world"] = Policy("world", 7, (WORLD,), exit_local=True)
    cluster.apply()
    pod, before = cluster.lab.pod("sel"), cluster.counters("gw1")
    with cluster.lab.watch() as watch:
        watch.forbid(pod.address)
        watch.allow(str(EGRESS_IP))
        assert pod.ask(FW_ADDRESS).source == str(EGRESS_IP)
        assert _download(pod, 1 << 20, cluster) == 1 << 20
        assert pod.ping(FW_ADDRESS)
        assert not watch.settle().leaks
    after = cluster.counters("gw1")
    assert after.get("translated", 0) == before.get("translated", 0)
    assert after["reversed"] > before["reversed"]


def test_a_gateway_that_forwards_nothing_for_others_translates(cluster: Cluster) -> None:
    gateway, pod = cluster.lab.node("gw1"), cluster.lab.pod("sel")
    gateway.sysctl({"net.ipv4.ip_forward": 0})  # the tunnel's own switch goes off with it
    try:
        assert cluster.apply()["gw1"] == ["set tunnel device up, forwarding, MTU 1450"]
        with netns.entered(gateway.name):
            observed = cluster.datapaths["gw1"].observe(cluster.desired("gw1"))
        (problem,) = problems(cluster.desired("gw1"), observed)
        assert (problem.reason, severity_of(problem.reason)) == ("ForwardingOff", "warning")
        assert pod.get(FW_ADDRESS).source == str(EGRESS_IP)
    finally:
        gateway.sysctl({"net.ipv4.ip_forward": 1})
    assert problem.message.endswith("sysctl -w net.ipv4.ip_forward=1")


def test_an_uplink_without_an_ethernet_header_is_told_and_gets_no_program(cluster: Cluster) -> None:
    gateway = cluster.lab.node("gw1")
    gateway.ip("tuntap add dev vpn0 mode tun", "link set vpn0 up")
    try:
        for names in (("eth0", "vpn0"), ("vpn0",)):
            desired = replace(cluster.desired("gw1"), uplinks=names)
            with netns.entered(gateway.name):
                observed = cluster.datapaths["gw1"].observe(desired)
            (problem,) = problems(desired, observed)
            assert (problem.object, problem.reason) == ("uplink/vpn0", "UplinkWithoutEthernet")
            assert "vpn0" not in wanted_attachments(desired, observed).values()
            assert observed.facts.cut_off == ("eth0" not in names)
    finally:
        gateway.ip("link del vpn0")


def test_an_unselected_pod_keeps_its_source_and_is_refused(cluster: Cluster) -> None:
    plain = cluster.lab.pod("plain")
    assert plain.get(FW_ADDRESS).refusal == "refused"
    assert cluster.lab.fw.refused()[plain.address] > 0


def test_traffic_inside_the_cluster_is_left_alone(cluster: Cluster) -> None:
    pod, dns = cluster.lab.pod("sel"), cluster.lab.pod("dns")
    assert pod.ask(dns.address).source == pod.address
    assert pod.ping(dns.address)
    assert pod.ping(cluster.lab.node("gw2").address)


def test_flows_begun_from_outside_are_answered_directly(cluster: Cluster) -> None:
    pod = cluster.lab.pod("sel")
    pod.start_server(http=8080, udp=5353)
    with cluster.lab.tap.excused(pod.address, cluster.lab.client.address):
        assert cluster.lab.client.get(pod.address, 8080).text
        assert cluster.lab.client.ask(pod.address, 5353).text
        assert cluster.lab.client.ping(pod.address)


def test_a_connection_from_outside_survives_the_selection_of_its_pod(cluster: Cluster) -> None:
    pod, client = cluster.lab.pod("sel"), cluster.lab.client
    pod.start_server(tcp=7)
    cluster.selected["sel"] = ()
    cluster.apply()
    with cluster.lab.tap.excused(pod.address, client.address), client.connect(pod.address, 7) as connection:
        assert connection.recv(100)
        cluster.selected["sel"] = ("world",)
        done = cluster.apply()["worker"]
        assert f"look at connections that run: {pod.address}" in done
        connection.sendall(b"still there")
        assert connection.recv(100) == b"still there"
        connection.shutdown(socket.SHUT_WR)
        assert not connection.recv(100)  # the pod's last word
    assert pod.get(FW_ADDRESS).source == str(EGRESS_IP)


def test_a_conversation_that_runs_goes_on_with_the_egress_ip_once_its_pod_is_selected(cluster: Cluster) -> None:
    """The remote speaks first then; that makes the conversation no other's."""
    pod, client = cluster.lab.pod("sel"), cluster.lab.client
    cluster.selected["sel"] = ()
    cluster.apply()
    kind = socket.AF_INET, socket.SOCK_DGRAM
    with client.socket(*kind) as remote, pod.socket(*kind) as own, cluster.lab.tap.excused(pod.address, client.address):
        for end in (remote, own):
            end.bind(("0.0.0.0", 4500))
            end.settimeout(5)
        own.connect((client.address, 4500))
        own.send(b"before")
        assert remote.recvfrom(100) == (b"before", (pod.address, 4500))
        cluster.selected["sel"] = ("world",)
        cluster.apply()
        remote.sendto(b"push", (pod.address, 4500))
        assert own.recv(100) == b"push"
        own.send(b"after")
        said, source = remote.recvfrom(100)
        assert (said, source[0]) == (b"after", str(EGRESS_IP))
        remote.sendto(b"late", (pod.address, 4500))
        remote.sendto(b"push", source)
        assert {own.recv(100), own.recv(100)} == {b"late", b"push"}


def test_the_next_pod_with_an_address_gets_and_leaves_nothing_of_the_last_ones(cluster: Cluster) -> None:
    """No policy selects it. Whom the last one spoke to does not know that it has gone."""
    lab, kind = cluster.lab, (socket.AF_INET, socket.SOCK_DGRAM)
    old = lab.add_pod("old", "worker")
    cluster.selected["old"] = ("world",)
    cluster.apply()
    with lab.client.socket(*kind) as remote:
        remote.bind(("0.0.0.0", 5060))
        remote.settimeout(5)
        with old.socket(*kind) as first:
            first.bind((old.address, 5060))
            first.sendto(b"REGISTER", (lab.client.address, 5060))
            _, egress = remote.recvfrom(100)
        assert egress[0] == str(EGRESS_IP)
        lab.remove_pod("old")
        del cluster.selected["old"]
        new = lab.add_pod("new", "worker", address=old.address)
        try:
            cluster.apply()
            with new.socket(*kind) as own:
                own.bind((new.address, 5060))
                own.settimeout(5)
                remote.sendto(b"for the last one", egress)
                own.sendto(b"mine", (lab.client.address, 5060))
                assert remote.recvfrom(100) == (b"mine", (new.address, 5060))
                remote.sendto(b"yours", (new.address, 5060))
                assert own.recv(100) == b"yours"
        finally:
            lab.remove_pod("new")


def test_a_large_download_keeps_to_the_tunnel_mtu(cluster: Cluster) -> None:
    pod, fw = cluster.lab.pod("sel"), cluster.lab.fw
    size = 8 << 20
    received = _download(pod, size, cluster)
    assert received == size
    tunnel = cluster.lab.node("worker").run(["ip", "-s", "-d", "link", "show", "routerd.vxlan"])
    assert " mtu 1450 " in tunnel
    assert fw.address


def _download(pod: PodHost, size: int, cluster: Cluster) -> int:
    """Bytes of one HTTP download through the gateway; the SYN's MSS must have been clamped for it to be fast."""
    with pod.connect(FW_ADDRESS, 80, 5) as connection:
        mss = connection.getsockopt(6, 2)
        assert mss <= 1450 - 40
        connection.sendall(f"GET /bytes/{size} HTTP/1.0\r\n\r\n".encode())
        data = bytearray()
        while chunk := connection.recv(1 << 16):
            data += chunk
    return len(data) - data.index(b"\r\n\r\n") - 4


def test_too_big_packets_are_answered(cluster: Cluster) -> None:
    pod = cluster.lab.pod("sel")
    said = pod.run(["ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", "1472", FW_ADDRESS], check=False)
    assert re.search(r"Frag needed and DF set \(mtu = 1450\)", said)
    assert "1 received" in pod.run(["ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", "1400", FW_ADDRESS])


def test_icmp_errors_come_back_to_the_pod(cluster: Cluster) -> None:
    """A closed UDP port beyond the gateway: the error quotes the translated packet and must reach the pod's socket."""
    assert cluster.lab.pod("sel").ask(FW_ADDRESS, 9).refusal == "refused"


def test_a_spoofed_source_is_dropped(cluster: Cluster) -> None:
    pod = cluster.lab.pod("sel")
    before = cluster.counters("worker")["spoofed_source"]
    pod.ip("addr add 10.244.3.250/32 dev eth0")
    pod.run(["ping", "-n", "-c", "1", "-W", "1", "-I", "10.244.3.250", FW_ADDRESS], check=False)
    pod.ip("addr del 10.244.3.250/32 dev eth0")
    assert cluster.counters("worker")["spoofed_source"] > before


def test_a_pod_cannot_forge_tunnel_packets(cluster: Cluster) -> None:
    before = cluster.counters("worker")["tunnel_port"]
    cluster.lab.pod("plain").ask(cluster.lab.node("gw1").address, 8473, timeout=0.2)
    assert cluster.counters("worker")["tunnel_port"] > before


def test_what_is_for_nobodys_port_is_dropped_at_the_second_gateway(cluster: Cluster) -> None:
    """The first one cannot know that nobody has the port."""
    relayed, dropped = cluster.counters("gw1")["relayed"], cluster.counters("gw2")["no_mapping"]
    cluster.lab.fw.ask(str(EGRESS_IP), 4444, timeout=0.2)
    assert cluster.counters("gw1")["relayed"] > relayed
    assert cluster.counters("gw2")["no_mapping"] > dropped


def test_no_gateway_means_drop(cluster: Cluster) -> None:
    pod = cluster.lab.pod("sel")
    cluster.gateways = ()
    cluster.apply()
    with cluster.lab.watch() as watch:
        watch.forbid(pod.address)
        assert pod.ask(FW_ADDRESS, timeout=0.3).refusal == "timeout"
        assert not watch.settle().leaks
    assert cluster.counters("worker")["no_gateway"] > 0
    cluster.gateways = ("gw2", "gw1")
    cluster.apply()
    cluster.lab.tor.ip(f"route replace {EGRESS_IP}/32 via {cluster.lab.node('gw2').address}")
    assert pod.get(FW_ADDRESS).source == str(EGRESS_IP)
    cluster.lab.tor.ip(f"route replace {EGRESS_IP}/32 via {cluster.lab.node('gw1').address}")
    cluster.gateways = ("gw1", "gw2")
    cluster.apply()
    assert pod.get(FW_ADDRESS).source == str(EGRESS_IP)


def test_exclusions_and_ports(cluster: Cluster) -> None:
    pod, plain = cluster.lab.pod("sel"), cluster.policies["world"]
    fw = IPv4Network(f"{FW_ADDRESS}/32")
    cluster.policies = {"world": replace(plain, excluded=(fw,))}
    cluster.apply()
    assert pod.get(FW_ADDRESS).refusal == "refused"  # its own source, as if it were not selected
    cluster.policies = {"world": replace(plain, ports=(Ports("TCP", 80, 80),))}
    cluster.apply()
    assert pod.get(FW_ADDRESS).source == str(EGRESS_IP)
    assert pod.ask(FW_ADDRESS, timeout=0.5).refusal


def test_a_running_flow_survives_a_changed_policy(cluster: Cluster) -> None:
    pod, before = cluster.lab.pod("sel"), cluster.policies["world"]
    with pod.connect(FW_ADDRESS, 80, 5) as connection:
        cluster.policies = {"world": replace(before, excluded=(IPv4Network(f"{FW_ADDRESS}/32"),))}
        cluster.apply()
        assert pod.get(FW_ADDRESS).refusal == "refused"
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert f"saw {EGRESS_IP}".encode() in answer


def test_the_guard_stops_an_undecided_pod(cluster: Cluster) -> None:
    with cluster.lab.watch() as watch:
        pod = cluster.lab.add_pod("late", "worker")
        watch.allow(str(EGRESS_IP))
        watch.forbid(pod.address)
        cluster.selected["late"] = ("world",)
        before = cluster.counters("worker")["guard_undecided"]

        def stopped() -> bool:  # a new bridge port may take a moment before it passes anything
            assert pod.ask(FW_ADDRESS, timeout=0.3).refusal
            return cluster.counters("worker")["guard_undecided"] > before

        cluster.lab.wait(stopped, "the guard counts an undecided pod's packet")
        cluster.apply()
        assert pod.get(FW_ADDRESS).source == str(EGRESS_IP)
        assert not watch.settle().leaks
    cluster.lab.remove_pod("late")


def test_the_guard_stops_a_selected_pod_past_its_hook(cluster: Cluster) -> None:
    pod, worker = cluster.lab.pod("sel"), cluster.lab.node("worker")
    with cluster.lab.watch() as watch:
        watch.forbid(pod.address)
        with netns.entered(worker.name):
            observed = cluster.datapaths["worker"].observe(cluster.desired("worker"))
            device = observed.facts.devices[IPv4Address(pod.address)]
            cluster.datapaths["worker"]._attacher.detach("from_pod", device.ifindex)
        assert pod.ask(FW_ADDRESS, timeout=0.3).refusal
        assert not watch.settle().leaks
    assert cluster.counters("worker")["guard_selected"] > 0
    assert cluster.apply()["worker"] == [f"attach from_pod to {device.name}"]
    assert pod.get(FW_ADDRESS).source == str(EGRESS_IP)


NAT = f"""\
table ip hosts
delete table ip hosts
table ip hosts {{{{
    chain leaving {{{{
        type nat hook postrouting priority 100
        ip saddr {{source}} ip daddr {FW_ADDRESS} meta l4proto tcp snat to {EGRESS_IP}:{{port}} random
    }}}}
}}}}
"""


def test_a_node_address_as_egress_ip_leaves_the_host_its_own_ports(cluster: Cluster) -> None:
    gw1 = cluster.lab.node("gw1")
    gw1.ip(f"addr add {EGRESS_IP}/32 dev lo")
    cluster.gateways, cluster.node_address = ("gw1",), True
    try:
        cluster.apply()
        assert cluster.lab.pod("sel").get(FW_ADDRESS).source == str(EGRESS_IP)
        assert gw1.run(["ping", "-n", "-c", "1", "-W", "1", "-I", str(EGRESS_IP), FW_ADDRESS]).count("1 received")
        assert "61440-65535" in gw1.run(["sysctl", "-n", "net.ipv4.ip_local_reserved_ports"])
        (given, *_), free = cluster.ports("gw1"), 61440  # the first ports that a node has, and that are reserved
        before = cluster.counters("gw1")["guard_taken_port"]
        for port, source in ((free, str(EGRESS_IP)), (given, "")):
            gw1.nft(NAT.format(source=gw1.address, port=f"{port}-{port + 9}"))
            assert gw1.get(FW_ADDRESS, timeout=0.5).source == source
        assert cluster.counters("gw1")["guard_taken_port"] > before
        gw1.nft(NAT.format(source=gw1.address, port=f"{given - 9}-{given}"))  # most are free, and it finds one
        cluster.lab.wait(lambda: gw1.get(FW_ADDRESS, timeout=3).source == str(EGRESS_IP), "the host gets out")
    finally:
        gw1.run(["nft", "delete", "table", "ip", "hosts"], check=False)
        gw1.ip(f"addr del {EGRESS_IP}/32 dev lo")


def test_collection_leaves_live_mappings_alone(cluster: Cluster) -> None:
    worker = cluster.datapaths["worker"]

    def ports() -> set[tuple[int, int]]:
        return {(entry.egress_port, entry.remote_port) for entry in worker.nat()}

    with netns.entered(cluster.lab.node("worker").name):
        worker.collect()  # what has ended before
        others = ports()
    cluster.lab.pod("sel").get(FW_ADDRESS)
    with netns.entered(cluster.lab.node("worker").name):
        before = ports()
        result = worker.collect()
        after = ports()
    assert result is not None
    assert before == after
    assert result.flows_live >= len(after) > len(others)
    assert {port for port, _ in after - others} <= set(cluster.ports("worker"))


LIBBPF = VARIANTS[0]


@pytest.mark.parametrize("cluster", [LIBBPF], ids=["-".join(LIBBPF)], indirect=True)
def test_a_release_with_another_layout_takes_over_what_runs(cluster: Cluster, tmp_path: Path) -> None:
    """Under traffic of pods on a worker and on a gateway: no connection ends, none bears another source or port. This
    release cannot take over from that one: it says so, and begins anew.
    """
    sel, selgw, sources = cluster.lab.pod("sel"), cluster.lab.pod("selgw"), {str(EGRESS_IP)}
    with ExitStack() as stack:
        watch = stack.enter_context(cluster.lab.watch())
        watch.allow(str(EGRESS_IP))
        watch.forbid(sel.address)
        watch.forbid(selgw.address)
        echoes = [stack.enter_context(Echo(pod)) for pod in (sel, sel, selgw)]
        download = stack.enter_context(Download(sel))
        new = [stack.enter_context(NewConnections(pod, sources, pause=0)) for pod in (sel, selgw)]
        cluster.lab.wait(lambda: all(echo.rounds for echo in echoes), "the echoes run")
        cluster.lab.wait(lambda: download.received > 1 << 20 and min(n.made for n in new) > 5, "connections are made")
        before = {name: _flows(cluster, name) for name in ("worker", "gw1")}
        with next_release(tmp_path):
            done = _reopened(cluster)
            at = [echo.rounds for echo in echoes], [each.made for each in new]
            cluster.lab.wait(lambda: all(e.rounds > r + 20 for e, r in zip(echoes, at[0], strict=True)), "echoes go on")
            cluster.lab.wait(lambda: all(n.made > m + 20 for n, m in zip(new, at[1], strict=True)), "new ones are made")
            assert {name: before[name] & _flows(cluster, name) for name in before} == before
            assert [echo.end() for echo in echoes] == [""] * 3
            assert [each.end() for each in new] == [""] * 2
            assert download.end() == ""
            assert not watch.settle().leaks
            assert cluster.apply() == {"gw1": [], "gw2": [], "worker": []}
    for lines in done.values():
        assert "load eBPF programs and maps beside those of another layout" in lines
        assert lines[-1] == "remove eBPF maps of another layout, whose flows were taken over"
    begun = "remove eBPF programs and maps of another layout: connections through them end"
    assert all(begun in lines for lines in _reopened(cluster).values())
    assert sel.get(FW_ADDRESS).source == str(EGRESS_IP)


def _reopened(cluster: Cluster) -> dict[str, list[str]]:
    """An agent of another release starts on every node."""
    for datapath in cluster.datapaths.values():
        datapath.close()
    cluster.datapaths.clear()
    return cluster.apply()


def _flows(cluster: Cluster, name: str) -> set[tuple[str, int, int, int]]:
    """Those that live long."""
    with netns.entered(cluster.lab.node(name).name):
        entries = cluster.datapaths[name].nat()
    long = (entry for entry in entries if entry.remote_port == 7 and entry.protocol == 6)
    return {(str(entry.pod), entry.pod_port, entry.egress_port, entry.group) for entry in long}


def test_removal_leaves_nothing(cluster: Cluster) -> None:
    pod, worker = cluster.lab.pod("sel"), cluster.lab.node("worker")
    with netns.entered(worker.name):
        removed = cluster.datapaths["worker"].remove()
    assert "device routerd.vxlan" in removed
    assert not (worker.pin_dir / "routerd").exists()
    assert "routerd" not in worker.run(["nft", "list", "ruleset"])
    assert "routerd" not in worker.run(["ip", "link"])
    assert "clsact" not in worker.run(["tc", "qdisc", "show"])
    with cluster.lab.tap.excused(pod.address, FW_ADDRESS):  # nobody stops it
        assert pod.get(FW_ADDRESS).refusal == "refused"
    cluster.apply()
    assert pod.get(FW_ADDRESS).source == str(EGRESS_IP)


@pytest.mark.parametrize("cluster", [CLSACT], ids=["-".join(CLSACT)], indirect=True)
def test_an_ingress_qdisc_in_the_way_of_clsact_is_said(cluster: Cluster) -> None:
    """Its one block would take the filters of both hooks as one, and they would replace each other."""
    pod, worker = cluster.lab.add_pod("shaped", "worker"), cluster.lab.node("worker")
    worker.run(["tc", "qdisc", "add", "dev", pod.device, "ingress"])
    try:
        with pytest.raises(OSError, match="ingress qdisc"):
            cluster.apply()
    finally:
        cluster.lab.remove_pod("shaped")


@pytest.mark.parametrize("cluster", [CLSACT], ids=["-".join(CLSACT)], indirect=True)
def test_filters_of_a_former_mode_go_when_links_come(cluster: Cluster) -> None:
    worker, datapath = cluster.lab.node("worker"), cluster.datapaths["worker"]
    datapath.close()
    cluster.datapaths["worker"] = Datapath(worker.pin_dir / "routerd", "tcx", loader_name=cluster.loader)  # type: ignore[arg-type]
    try:
        cluster.apply()
        device = cluster.lab.pod("sel").device
        shown = "".join(worker.run(["tc", "filter", "show", "dev", device, hook]) for hook in ("ingress", "egress"))
        assert "routerd." not in shown
        assert cluster.lab.pod("sel").get(FW_ADDRESS).source == str(EGRESS_IP)
    finally:
        with netns.entered(worker.name):
            cluster.datapaths["worker"].remove()
        cluster.datapaths["worker"].close()
        del cluster.datapaths["worker"]


def test_a_namespace_without_any_route_is_read() -> None:
    empty = Namespace(f"noroute{os.getpid()}", "empty")
    empty.create()
    try:
        with netns.entered(empty.name), NetlinkSocket() as route:
            assert devices.read_routes(route) == devices.Routes(frozenset(), {}, frozenset(), frozenset(), {})
    finally:
        netns.run(["ip", "netns", "del", empty.name])
