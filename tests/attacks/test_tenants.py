"""What users write moves nobody else's traffic: egress IPs that are somebody's, external IPs of services."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_network

import pytest

from routerd.agent.local import own_networks
from routerd.serve.api import agent_socket, ask
from tests.netns.lab import netns
from tests.netns.lab.daemons import Daemons
from tests.netns.lab.lab import TOR_ADDRESS, Lab
from tests.netns.stories.story import EGRESS_IP, Story

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
    lab.tor.ip(f"route del {storage}/32")
    worker.ip("link del stor0")
