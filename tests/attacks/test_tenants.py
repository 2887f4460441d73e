"""What users write moves nobody else's traffic: egress IPs that are somebody's, external IPs of services. Nor does what
their pods send, or what is sent to them, take the room for it: the node's tables are small here.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_network

import pytest

from routerd.agent.local import own_networks
from routerd.serve.api import agent_socket, ask
from tests.bpf.packets import Shape, build
from tests.models.tables import TCP, UDP, Packet
from tests.netns.lab import netns
from tests.netns.lab.daemons import Daemons
from tests.netns.lab.frames import mac_of
from tests.netns.lab.hosts import Host, PodHost
from tests.netns.lab.lab import FW_ADDRESS, TOR_ADDRESS, Lab
from tests.netns.stories.story import EGRESS_IP, Story, started, write_manifests

POLICY = """\
apiVersion: routerd.io/v1alpha1
kind: EgressPolicy
metadata: {{name: take}}
spec:
  selectors: [{{podSelector: {{matchLabels: {{app: evil}}}}}}]
  destinationCIDRs: [0.0.0.0/0]
  egressIP: {address}
  gateways: {{nodeSelector: {{matchLabels: {{routerd.io/egress-gateway: ""}}}}}}
"""
HOST = "10.0.0.50"  # on the nodes' network, and no node's
ROOM, FEW = 2048, 256  # for flows, and for those of one pod


@dataclass
class Running:
    lab: Lab
    daemons: Daemons
    before: dict[str, list[str]] = field(default_factory=dict)

    def put(self, address: str) -> None:
        (self.lab.manifests / "take.yaml").write_text(POLICY.format(address=address))

    def says(self, node: str, reason: str) -> bool:
        return reason in self.daemons.refusals(node)

    def whole(self) -> None:
        """Sessions are up, and neither gateways nor ToR have another route than before."""
        assert set(self.lab.tor.sessions().values()) == {"Established"}
        assert self.lab.tor.kernel_routes() == self.before
        for name in ("gw1", "gw2"):
            blackholes = re.findall(
                r"blackhole (\S+)", self.lab.node(name).run(["ip", "route", "show", "proto", "203"])
            )
            assert set(blackholes) <= {prefix.removesuffix("/32") for prefix in self.before}
            assert self.lab.node(name).ping(TOR_ADDRESS)
        assert self.lab.pod("snat-pod").get(self.lab.fw.address).source == EGRESS_IP


@pytest.fixture(scope="module")
def story(clean_labs: list[str]) -> Iterator[Story]:
    with Lab(f"a{os.getpid()}") as lab:
        yield started(lab, Daemons(lab, options={"egress": {"nat-entries": ROOM, "flows-per-pod": FEW}}))


@pytest.fixture(scope="module")
def running(story: Story) -> Running:
    return Running(story.lab, story.daemons, story.lab.tor.kernel_routes())


def test_a_node_knows_its_networks_and_next_hops(running: Running) -> None:
    gw1 = running.lab.node("gw1")
    gw1.ip("route add default via 172.31.255.1 dev eth0 onlink metric 7")
    with netns.entered(gw1.name):
        found = own_networks()
    gw1.ip("route del default via 172.31.255.1 dev eth0 metric 7")
    assert {ip_network("10.0.0.0/24"), ip_network(f"{TOR_ADDRESS}/32"), ip_network("172.31.255.1/32")} <= {*found}
    assert not any(each.is_loopback or each.is_link_local for each in found)


@pytest.mark.parametrize("whose", ["the peer", "a host of the nodes' network", "a node", "a pod", "a VIP", "a service"])
def test_it_is_refused_and_sessions_and_routes_stay(running: Running, whose: str) -> None:
    lab = running.lab
    vip = next(prefix for prefix in running.before if prefix.startswith("192.0.2.")).removesuffix("/32")
    running.put(
        {
            "the peer": TOR_ADDRESS,
            "a host of the nodes' network": HOST,
            "a node": lab.node("worker").address,
            "a pod": lab.pod("web").address,
            "a VIP": vip,
            "a service": "10.96.0.10",
        }[whose]
    )
    reason = "AddressInUse" if whose == "a VIP" else "AddressTaken"
    lab.wait(lambda: all(running.says(node, reason) for node in lab.nodes), f"every agent says {reason}")
    running.whole()
    (lab.manifests / "take.yaml").unlink()
    lab.wait(lambda: not any(running.says(node, reason) for node in lab.nodes), "all is as before")


@pytest.mark.parametrize("address", [TOR_ADDRESS, HOST])
def test_a_gateway_does_not_do_what_an_older_operator_published(running: Running, address: str) -> None:
    lab, path = running.lab, running.lab.manifests / "allocations.yaml"
    assert running.daemons.operator is not None
    running.daemons.operator.kill()
    published = path.read_text()
    forged = re.sub(r"^# .*\n", "", published.replace(f'"{running_pool_ip(running)}"', f'"{address}"'))
    assert f'"{address}"' in forged
    path.write_text(forged)
    lab.wait(lambda: all(running.says(node, "AddressTaken") for node in ("gw1", "gw2")), "both gateways say it")
    assert set(lab.tor.sessions().values()) == {"Established"}
    for name in ("gw1", "gw2"):
        assert address not in re.findall(r"blackhole (\S+)", lab.node(name).run(["ip", "route"]))
        assert lab.node(name).ping(TOR_ADDRESS)
    assert f"{address}/32" not in lab.tor.routes()
    path.write_text(published)
    running.daemons.start_operator()
    lab.wait(lambda: lab.tor.kernel_routes() == running.before, "all is as before")


def running_pool_ip(running: Running) -> str:
    """The egress IP that came from the pool."""
    return next(prefix for prefix in running.before if prefix.startswith("10.168.61.")).removesuffix("/32")


SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: innocent, namespace: team-b}
spec: {clusterIP: 10.96.0.77, externalIPs: [203.0.113.10], ports: [{port: 80}]}
"""


def test_a_service_with_external_ips_takes_nothing_out_of_a_policy(running: Running) -> None:
    lab, pod = running.lab, running.lab.pod("snat-pod")
    refused = lab.fw.refused()
    (lab.manifests / "service.yaml").write_text(SERVICE)

    def said() -> str:
        return running.daemons.routerd("worker", "why", "pod/default/snat-pod", "-o", "json", check=False)

    lab.wait(lambda: "svc/team-b/innocent" in said(), "the agent knows the service")
    assert "egress.in-cluster" in said()
    assert pod.get(lab.fw.address).source == EGRESS_IP
    assert lab.fw.refused() == refused
    (lab.manifests / "service.yaml").unlink()
    lab.wait(lambda: "svc/team-b/innocent" not in said(), "it is gone")


STEALING = """\
apiVersion: v1
kind: Service
metadata:
  name: steal
  namespace: team-b
  creationTimestamp: "2020-01-01T00:00:00Z"
  annotations: {{{annotation}}}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.77
  clusterIPs: [10.96.0.77]
  selector: {{app: evil}}
  ports: [{{port: {port}}}]
  {more}
"""
WISHES = {  # annotation, port, more of the spec; VIP and POOLED stand for what is in use
    "the VIP of another team": ("", 80, "loadBalancerIP: VIP"),
    "the VIP of another team, another port of it": ("", 22, "loadBalancerIP: VIP"),
    "the VIP of another team, by a key": ("metallb.universe.tf/allow-shared-ip: x", 22, "loadBalancerIP: VIP"),
    "an egress IP that a policy names": ("", 80, f"loadBalancerIP: {EGRESS_IP}"),
    "an egress IP of a pool": ("", 80, "loadBalancerIP: POOLED"),
    "a pool for egress": ("metallb.universe.tf/address-pool: egress", 80, ""),
    "the peer's address": ("", 80, f"loadBalancerIP: {TOR_ADDRESS}"),
}


@pytest.mark.parametrize("wish", WISHES)
def test_a_service_gets_nothing_that_is_anothers(running: Running, wish: str) -> None:
    lab, path = running.lab, running.lab.manifests / "steal.yaml"
    annotation, port, more = WISHES[wish]
    vip = next(prefix for prefix in running.before if prefix.startswith("192.0.2.")).removesuffix("/32")
    more = more.replace("VIP", vip).replace("POOLED", running_pool_ip(running))
    path.write_text(STEALING.format(annotation=annotation, port=port, more=more))

    def refused() -> bool:
        run_dir = lab.node("worker").directory / "run"
        found = ask(agent_socket(run_dir), {"get": "status"})["refusals"]
        return any(each["object"] == "svc/team-b/steal" for each in found)

    lab.wait(refused, "it is refused by name")
    assert "team-b/steal" not in re.findall(r"service: \"([^\"]+)", (lab.manifests / "allocations.yaml").read_text())
    running.whole()
    path.unlink()
    lab.wait(lambda: not refused(), "all is as before")


def test_another_address_of_a_node_is_in_the_cluster(running: Running) -> None:
    """For pods of every node: what only one node can see, it reports."""
    lab, storage = running.lab, "10.50.0.21"
    worker = lab.node("worker")
    worker.ip("link add stor0 type bridge", f"addr add {storage}/32 dev stor0", "link set stor0 up")
    lab.tor.ip(f"route add {storage}/32 via {worker.address}")
    worker.start_server(http=9100)
    pods = [lab.pod(name) for name in ("snat-pod", "snat-gw")]

    def reached() -> bool:
        return all(pod.get(storage, 9100, timeout=1).source == pod.address for pod in pods)

    running.daemons.agents["worker"].kill()  # a running one looks at its own addresses now and then
    running.daemons.start_agent("worker")
    lab.wait(reached, "selected pods of both nodes reach it as they are")
    lab.tap.settle()  # while it is the node's
    lab.tor.ip(f"route del {storage}/32")
    worker.ip("link del stor0")


def blast(host: Host, device: str, frames: Iterable[bytes]) -> None:
    with host.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        with netns.entered(host.name):
            sender.bind((device, 0))
        for frame in frames:
            sender.send(frame)


def drops(running: Running) -> dict[str, int]:
    """By reason, at the worker."""
    found = ask(agent_socket(running.lab.node("worker").directory / "run"), {"get": "status"})["egress"]["drops"]
    return {str(reason): int(count) for reason, count in found.items() if count}


def lead_to(running: Running, vip: str, ports: dict[int, str]) -> None:
    """The worker leads these ports of the VIP to pods of its own, and keeps the sources, as with the policy Local."""
    rules = "".join(f"ip daddr {vip} tcp dport {port} dnat to {pod}:8080;" for port, pod in ports.items())
    chain = f"chain pre {{ type nat hook prerouting priority -110; {rules} }};"
    running.lab.node("worker").nft(f"table ip local {{ {chain} }}\n")
    running.lab.tor.ip(f"route replace {vip}/32 via {running.lab.node('worker').address}")


@pytest.fixture(scope="module")
def greedy(story: Story, running: Running) -> PodHost:
    """A pod of the policy, in effect, with a server."""
    pod = running.lab.add_pod("greedy", "worker", {"app": "snat-pod"})
    pod.start_server(http=8080)
    write_manifests(story)
    running.lab.wait(lambda: pod.ask(FW_ADDRESS, timeout=0.3).source == EGRESS_IP, "the greedy pod leaves")
    return pod


def echoes(connection: socket.socket) -> bool:
    connection.sendall(b"still")
    return connection.recv(100) == b"still"


def connected(pod: Host) -> socket.socket:
    """To a server that says first whom it sees, and then echoes."""
    connection = pod.connect(FW_ADDRESS, 7)
    assert connection.recv(100)
    assert echoes(connection)
    return connection


def begin(running: Running) -> None:
    """Other pods of the node begin connections: every one is served."""
    pods = {"snat-pod": EGRESS_IP, "batch": running_pool_ip(running)}
    for name, address in pods.items():
        pod = running.lab.pod(name)
        assert {ask_fw(FW_ADDRESS).source for _ in range(15) for ask_fw in (pod.ask, pod.get)} == {address}


def test_a_pod_that_takes_all_flows_and_ports_takes_none_of_anothers(running: Running, greedy: PodHost) -> None:
    lives = [connected(pod) for pod in (greedy, running.lab.pod("batch"))]
    source, nobody = IPv4Address(greedy.address), IPv4Address("198.51.100.77")
    ports = range(1024, 1024 + ROOM // 2)
    questions = (Packet(source, nobody, UDP, port, 9) for port in ports)
    syns = (Packet(source, nobody, TCP, port, 9, flags="S") for port in ports)
    shape = Shape(destination_mac=mac_of(greedy.node, greedy.device))
    blast(greedy, "eth0", (build(packet, shape) for both in zip(questions, syns, strict=True) for packet in both))
    assert drops(running)["flow_quota"] >= ROOM - 2 * FEW + FEW // 2  # a quarter would leave ROOM - 2 * FEW
    assert greedy.ask(FW_ADDRESS, timeout=0.3).refusal == "timeout"
    begin(running)
    assert all(map(echoes, lives))
    running.lab.wait(lambda: running.says("worker", "PodNearShare"), "the agent tells of it")
    running.lab.wait(lambda: greedy.ask(FW_ADDRESS, timeout=0.3).source == EGRESS_IP, "what nobody answered gives way")
    assert all(map(echoes, lives))
    for live in lives:
        live.close()


def test_forged_syns_to_a_vip_keep_nobody_from_another_pod(story: Story, running: Running, greedy: PodHost) -> None:
    lab, decent = running.lab, running.lab.pod("snat-pod")
    decent.start_server(http=8080)
    lead_to(running, story.vip, {8088: greedy.address, 8089: decent.address})
    live = connected(greedy)
    shape, vip = Shape(destination_mac=mac_of(lab.node("worker"), "eth0")), IPv4Address(story.vip)
    sources = (IPv4Address("46.0.0.1") + n * 7919 for n in range(ROOM))
    blast(lab.tor, "worker", (build(Packet(each, vip, TCP, 1024, 8088, flags="S"), shape) for each in sources))
    assert drops(running)["outside_quota"] >= ROOM // 2
    assert {lab.client.get(story.vip, 8089).text.split()[0] for _ in range(15)} == {"snat-pod"}
    assert greedy.get(FW_ADDRESS).source == EGRESS_IP
    begin(running)
    assert echoes(live)
    live.close()
    lab.wait(lambda: lab.client.get(story.vip, 8088, timeout=1).text.startswith("greedy"), "the forged ones give way")
    assert "flow_table_full" not in drops(running)
