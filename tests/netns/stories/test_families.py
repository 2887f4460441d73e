"""Both families through the datapath, from a pod to a server beyond the ToR and back. In one of the two labs the nodes'
NICs compute no checksums, so that a wrong one is wrong where it arrives.
"""

from __future__ import annotations

import os
import re
import select
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv6Network, ip_address

import pytest

from egress.policy import Policy
from tests.netns.lab.datapath import EGRESS_IP, EGRESS_IP6, WORLD, Cluster
from tests.netns.lab.hosts import Answer, PodHost
from tests.netns.lab.lab import FW_ADDRESS, TOR_ADDRESS, Lab
from tests.netns.lab.wiring import six

SERVER = {4: FW_ADDRESS, 6: six(FW_ADDRESS)}
EGRESS = {4: str(EGRESS_IP), 6: str(EGRESS_IP6)}
TUNNEL_MTU, POD_MTU = 1450, 1400


@pytest.fixture(scope="module", params=["routed", "bridge"])
def cluster(request: pytest.FixtureRequest, clean_labs: list[str]) -> Iterator[Cluster]:
    with Lab(f"fam{os.getpid()}{request.param[0]}", cni=request.param, pod_mtu=1500, ipv6=True) as lab:
        for name, node in (("sel", "worker"), ("plain", "worker"), ("selgw", "gw1"), ("selgw2", "gw2")):
            lab.add_pod(name, node)
        for name, node in (("narrow", "worker"), ("narrowgw", "gw1")):
            lab.add_pod(name, node, mtu=POD_MTU)
        lab.fw.start_server(http=80, udp=53, address=SERVER[6])
        gateway = lab.node("gw1").address
        lab.tor.ip(f"route add {EGRESS[4]}/32 via {gateway}", f"route add {EGRESS[6]}/128 via {six(gateway)}")
        lab.tor.sysctl({"net.ipv4.icmp_ratelimit": 0})  # all traces come from one address
        lab.fw.allow(EGRESS[4])
        policy = Policy("world", 7, (WORLD, IPv6Network("::/0")))
        selected = dict.fromkeys(("sel", "selgw", "selgw2", "narrow", "narrowgw"), ("world",))
        built = Cluster(lab, policies={"world": policy}, selected=selected)
        built.apply()
        checksums_by_nics(built, of_nics(built))
        yield built
        built.close()


def of_nics(cluster: Cluster) -> bool:
    """Whether the lab's NICs compute checksums where a test does not ask."""
    return cluster.lab.cni == "bridge"


def checksums_by_nics(cluster: Cluster, offloaded: bool) -> None:
    for node in cluster.lab.nodes.values():
        node.compute_checksums("eth0", offloaded=offloaded)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("pod", ["sel", "selgw", "selgw2"])
def test_selected_pods_leave_with_the_egress_ip_of_their_family(cluster: Cluster, pod: str, version: int) -> None:
    """On a worker, and on each of the gateways."""
    host, server = cluster.lab.pod(pod), SERVER[version]
    assert (host.get(server).source, host.ask(server).source) == (EGRESS[version],) * 2
    assert host.ping(server)


@pytest.mark.parametrize("version", [4, 6])
def test_answers_come_by_whichever_gateway(cluster: Cluster, version: int) -> None:
    """The ToR sends them to the other one, which has no state of any flow."""
    before = cluster.counters("gw2")["reversed"]
    with answers_by(cluster, "gw2", version):
        assert cluster.lab.pod("sel").get(SERVER[version]).source == EGRESS[version]
    assert cluster.counters("gw2")["reversed"] > before


@pytest.fixture
def late(cluster: Cluster) -> Iterator[None]:
    """The worker's port sets are new, and gw2 has not read of them."""
    cluster.late = frozenset({"gw2"})
    cluster.forget_echoes("worker")
    cluster.apply()
    yield
    cluster.late = frozenset()
    cluster.apply()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.usefixtures("late")
def test_answers_come_by_a_gateway_that_does_not_know_whose_the_port_is(cluster: Cluster, version: int) -> None:
    """It is cut off from the store, and the set is new. The other one knows, so packets leave by that one alone."""
    before = cluster.counters("gw2")
    pod, server = cluster.lab.pod("sel"), SERVER[version]
    with answers_by(cluster, "gw2", version):
        assert (pod.get(server).source, pod.ask(server).source) == (EGRESS[version],) * 2
        assert pod.ping(server)
        assert hop(pod, server, 3) == (TOR_ADDRESS if version == 4 else six(TOR_ADDRESS))
    after = cluster.counters("gw2")
    assert after["relayed"] - before["relayed"] >= 6
    assert after["reversed"] == before["reversed"]


@contextmanager
def answers_by(cluster: Cluster, gateway: str, version: int) -> Iterator[None]:
    """The ToR's route leads there, and not to gw1."""

    def route(name: str) -> str:
        address = cluster.lab.node(name).address
        return f"{EGRESS[4]}/32 via {address}" if version == 4 else f"{EGRESS[6]}/128 via {six(address)}"

    cluster.lab.tor.ip(f"route replace {route(gateway)}")
    try:
        yield
    finally:
        cluster.lab.tor.ip(f"route replace {route('gw1')}")


@pytest.mark.parametrize("version", [4, 6])
def test_an_unselected_pod_keeps_its_own(cluster: Cluster, version: int) -> None:
    plain = cluster.lab.pod("plain")
    if version == 6:
        assert plain.get(SERVER[6]).source == six(plain.address)
    else:
        assert plain.get(SERVER[4]).refusal == "refused"


@pytest.mark.parametrize("version", [4, 6])
def test_a_packet_too_big_for_the_tunnel_is_answered(cluster: Cluster, version: int) -> None:
    said = cluster.lab.pod("sel").run(
        ["ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", "1440", SERVER[version]], check=False
    )
    assert re.search(rf"mtu ?[=:]? ?{TUNNEL_MTU}", said), said


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("pod", ["sel", "selgw", "selgw2"])
def test_a_datagram_in_fragments_goes_out_and_its_answer_back(cluster: Cluster, pod: str, version: int) -> None:
    """4,000 bytes and more each way; what is too big for the tunnel is answered, and sent again smaller."""
    lab, host, payload = cluster.lab, cluster.lab.pod(pod), bytes(range(33, 113)) * 50
    server, own = SERVER[version], host.address if version == 4 else six(host.address)
    with lab.watch() as watch:
        answer = lab.wait(lambda: answered(host, server, payload), f"an answer to {pod}")
        sources = {source for source, destination in watch.settle().outside if destination == server}
    assert (answer.source, answer.text.endswith(payload.decode())) == (EGRESS[version], True)
    assert EGRESS[version] in sources
    assert own not in sources


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("pod", "node"), [("narrow", "worker"), ("narrowgw", "gw1")])
def test_an_answer_that_the_pods_device_does_not_carry_is_sent_again_smaller(
    cluster: Cluster, pod: str, node: str, version: int
) -> None:
    """The tunnel does. The server is told by the pod's node, whichever gateway the answer came by."""
    lab, host, payload = cluster.lab, cluster.lab.pod(pod), bytes(range(33, 113)) * 17
    before = cluster.counters(node)["too_big_answered"]
    lab.fw.allow(lab.node(node).address)  # it takes the errors of nodes, as one does that knows its connections
    try:
        answer = lab.wait(lambda: answered(host, SERVER[version], payload), f"an answer to {pod}")
        assert answer.text.endswith(payload.decode())
        assert cluster.counters(node)["too_big_answered"] > before
    finally:
        lab.fw.run(["ip", f"-{version}", "route", "flush", "cache"])


SPLIT = f"""\
table inet split {{
    chain arrives {{
        type filter hook prerouting priority -300
        ip daddr {EGRESS[4]} ip frag-off & 0x1fff != 0 meta mark set 1
        ip6 daddr {EGRESS[6]} frag frag-off != 0 meta mark set 1
    }}
}}
"""


@pytest.mark.parametrize("version", [4, 6])
def test_an_answer_whose_fragments_come_by_two_gateways_reaches_the_pod(cluster: Cluster, version: int) -> None:
    """As from a ToR that hashes ports: only the first fragment has them."""
    lab, host, payload = cluster.lab, cluster.lab.pod("sel"), bytes(range(33, 113)) * 50
    other = lab.node("gw2").address
    via = [f"{EGRESS[4]}/32", "via", other] if version == 4 else [f"{EGRESS[6]}/128", "via", six(other)]
    marked = (["rule", "{}", "fwmark", "1", "table", "100"], ["route", "{}", *via, "table", "100"])
    for line in marked:
        lab.tor.run(["ip", f"-{version}", *(word.format("add") for word in line)])
    lab.tor.nft(SPLIT)
    before = cluster.counters("gw2")["relayed"]
    try:
        answer = lab.wait(lambda: answered(host, SERVER[version], payload), "an answer")
        assert answer.text.endswith(payload.decode())
        assert cluster.counters("gw2")["relayed"] > before
    finally:
        lab.tor.nft("delete table inet split\n")
        for line in marked:
            lab.tor.run(["ip", f"-{version}", *(word.format("del") for word in line)])


def answered(host: PodHost, server: str, payload: bytes) -> Answer | None:
    answer = host.ask(server, payload=payload, timeout=0.5)
    return answer if answer.text else None


def hop(pod: PodHost, server: str, ttl: int) -> str:
    """Who answers a packet that may make `ttl` hops; "" = nobody."""
    said = pod.run(["ping", "-n", "-c", "1", "-W", "1", "-t", str(ttl), server], check=False)
    found = re.search(r"From (\S+) icmp_seq=\d+ Time (?:to live )?exceeded", said)
    return found[1].rstrip(":") if found else ""


@pytest.mark.parametrize("version", [4, 6])
def test_each_hop_of_the_way_answers_for_itself(cluster: Cluster, version: int) -> None:
    """The pod's node, either gateway, the ToR; then the server is reached."""
    lab, pod = cluster.lab, cluster.lab.pod("sel")
    node, gateway, tor = (hop(pod, SERVER[version], ttl) for ttl in (1, 2, 3))
    of_family = six if version == 6 else str
    assert (node, tor) == (of_family(lab.node("worker").address), of_family(TOR_ADDRESS))
    assert gateway in [of_family(lab.node(name).address) for name in ("gw1", "gw2")]
    assert pod.ping(SERVER[version])


ERROR, V4, V6 = struct.Struct("=IBBBBII"), struct.Struct("=HH4s"), struct.Struct("=HHI16s")  # <linux/errqueue.h>
RECVERR = {4: (socket.IPPROTO_IP, 11), 6: (socket.IPPROTO_IPV6, 25)}
HOPS = {4: (socket.IPPROTO_IP, socket.IP_TTL), 6: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)}
TRACED = 33434  # UDP; traceroute's, closed


def traced(pod: PodHost, server: str, version: int) -> list[str]:
    """Who answers datagrams that may make more and more hops, up to the server; all are of one flow."""
    told = list[str]()
    with pod.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(*RECVERR[version], 1)
        probe.connect((server, TRACED))
        while server not in told:
            assert len(told) < 5, told
            probe.setsockopt(*HOPS[version], len(told) + 1)
            probe.send(b"where")
            poll = select.poll()
            poll.register(probe, 0)  # POLLERR comes unasked
            assert poll.poll(5000), told
            ((_, _, data),) = probe.recvmsg(0, 256, socket.MSG_ERRQUEUE)[1]
            told.append(str(ip_address((V4 if version == 4 else V6).unpack_from(data, ERROR.size)[-1])))
    return told


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("pod", "node"), [("sel", "worker"), ("selgw", "gw1"), ("selgw2", "gw2")])
def test_a_traceroute_shows_each_hop_once(cluster: Cluster, pod: str, node: str, version: int) -> None:
    """The pod's node, a gateway unless that is the same, the ToR, and the server, whose port is closed."""
    lab, of_family = cluster.lab, six if version == 6 else str
    gateways = {of_family(lab.node(name).address) for name in ("gw1", "gw2") if name != node}
    first, *between, router, _ = traced(lab.pod(pod), SERVER[version], version)
    assert (first, router) == (of_family(lab.node(node).address), of_family(TOR_ADDRESS))
    assert len(between) == 1 if node == "worker" else len(between) <= 1
    assert gateways.issuperset(between)


@pytest.mark.parametrize("version", [4, 6])
def test_a_port_that_is_closed_is_told(cluster: Cluster, version: int) -> None:
    """The server's "port unreachable" comes back to the pod."""
    assert cluster.lab.pod("sel").ask(SERVER[version], port=9).refusal


@pytest.fixture
def by_link(cluster: Cluster) -> Iterator[Cluster]:
    """Nodes send each other packets as they are; their NICs compute no checksums."""
    cluster.transport = "direct"
    cluster.apply()
    checksums_by_nics(cluster, offloaded=False)
    yield cluster
    checksums_by_nics(cluster, of_nics(cluster))
    for node in cluster.lab.nodes.values():
        node.sysctl({"net.ipv4.conf.all.rp_filter": 0})
    cluster.transport = "vxlan"
    cluster.apply()


@pytest.mark.parametrize("rp_filter", [0, 1, 2])
@pytest.mark.parametrize("version", [4, 6])
def test_nodes_on_one_link_need_no_tunnel(by_link: Cluster, version: int, rp_filter: int) -> None:
    """Neither out nor back, whichever gateway the answers come to, and whatever the host thinks of sources."""
    for name in by_link.lab.nodes:
        by_link.lab.node(name).sysctl({"net.ipv4.conf.all.rp_filter": rp_filter})
    pod, server = by_link.lab.pod("sel"), SERVER[version]
    before = {name: by_link.counters(name) for name in by_link.lab.nodes}
    for gateway in ("gw1", "gw2"):
        with answers_by(by_link, gateway, version):
            assert (pod.get(server).source, pod.ask(server).source) == (EGRESS[version],) * 2
            assert pod.ping(server)
            assert hop(pod, server, 3) == (TOR_ADDRESS if version == 4 else six(TOR_ADDRESS))
    pod.run(["ip", f"-{version}", "route", "flush", "cache"])  # it has been told of the tunnel's MTU
    pod.run(["ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", "1440", server])  # more than the tunnel carries
    more = {name: Counter(by_link.counters(name)) - Counter(before[name]) for name in before}
    assert more["worker"]["sent_direct"] >= 10 and not more["worker"]["encapsulated"]
    for gateway in ("gw1", "gw2"):
        assert more[gateway]["reversed_direct"] and not more[gateway]["reversed"]


@pytest.fixture
def by_own_node(cluster: Cluster) -> Iterator[Cluster]:
    """Packets leave by the pod's own node; only answers come by gateways."""
    usual = cluster.policies["world"]
    cluster.policies["world"] = replace(usual, exit_local=True)
    cluster.apply()
    yield cluster
    cluster.policies["world"] = usual
    cluster.apply()


@pytest.mark.parametrize("version", [4, 6])
def test_selected_pods_leave_by_their_own_node_where_the_policy_says_so(by_own_node: Cluster, version: int) -> None:
    before = by_own_node.counters("worker")
    pod, server = by_own_node.lab.pod("sel"), SERVER[version]
    assert (pod.get(server).source, pod.ask(server).source) == (EGRESS[version],) * 2
    assert pod.ping(server)
    more = Counter(by_own_node.counters("worker")) - Counter(before)
    assert more["translated"] >= 3 and not more["encapsulated"]


def test_no_checksum_was_wrong(cluster: Cluster) -> None:
    """Of all that came by any of the ways above."""
    lab = cluster.lab
    for host in (lab.fw, *lab.pods.values(), *lab.nodes.values()):
        said = host.run(["cat", "/proc/net/snmp", "/proc/net/snmp6"])
        wrong = {name: int(count) for name, count in re.findall(r"(\w*InCsumErrors)\s+(\d+)", said) if int(count)}
        assert not wrong, host.label
