"""What users of egress gateways do: the whole product, from operator to ToR, judged by what pods, clients and fw see.

fw answers everybody here and says whom it saw.
"""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Any

import pytest
import yaml

from routerd.serve.api import agent_socket, ask
from tests.netns.lab import cluster
from tests.netns.lab.daemons import Daemons
from tests.netns.lab.hosts import Answer, Host, PodHost
from tests.netns.lab.kubeproxy import Backend, ServiceEntry, ruleset
from tests.netns.lab.lab import CLIENT_ADDRESS, FW_ADDRESS, FW_NETWORK, GATEWAY, POD_NETWORK, Lab
from tests.netns.stories.story import hooked

Document = dict[str, Any]
IPS = {name: f"10.168.60.{n}" for n, name in enumerate(("blue", "green", "snmp", "partner", "sts", "expr", "late"), 1)}
OTHER_VIP, OUTSIDE = "203.0.114.80", "10.96.0.40"
API_SERVER = "203.0.113.20"  # outside, on fw
MOVED = "10.168.60.9"


def policy(name: str, labels: Document, namespace: str = "", **spec: Any) -> Document:
    """Cilium's, for pods of a namespace with these labels."""
    chosen = {**labels, "io.kubernetes.pod.namespace": namespace} if namespace else labels
    where = {"nodeSelector": {"matchLabels": {GATEWAY: ""}}, "egressIP": spec.pop("ip", IPS.get(name, ""))}
    return {
        "apiVersion": "cilium.io/v2", "kind": "CiliumEgressGatewayPolicy", "metadata": {"name": name},
        "spec": {"selectors": [{"podSelector": {"matchLabels": chosen}}], "destinationCIDRs": ["0.0.0.0/0"],
                 "egressGateway": where, **spec},
    }  # fmt: skip


def service(name: str, address: str, status: Document | None = None, **spec: Any) -> Document:
    whole = {"clusterIP": address, "clusterIPs": [address], "ports": [{"port": 80}], "type": "ClusterIP", **spec}
    made = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": whole}
    return {**made, "status": status} if status else made


def endpoints(name: str, address: str) -> Document:
    """Outside the cluster, so of no pod."""
    made = cluster.endpoint_slice(name, "default", 80, [])
    return {**made, "endpoints": [{"addresses": [address], "conditions": {"ready": True}}]}


@dataclass
class Site:
    lab: Lab
    daemons: Daemons
    policies: dict[str, Document] = field(default_factory=dict)
    services: list[Document] = field(default_factory=list)
    pods: list[Document] = field(default_factory=list)  # beside those of the lab

    def put(self) -> None:
        bgp = yaml.safe_load((cluster.MANIFESTS / "bgp-config-cilium-1.10.yaml").read_text())
        named = {(each["metadata"].get("namespace", "default"), each["metadata"]["name"]) for each in self.pods}
        known = [
            each for each in cluster.documents(self.lab)
            if each["kind"] != "Pod" or (each["metadata"]["namespace"], each["metadata"]["name"]) not in named  # type: ignore[index]
        ]  # fmt: skip
        cluster.write(
            self.lab.manifests / "cluster.yaml", [*known, *self.pods, *self.services, *self.policies.values(), bgp]
        )

    def pod(self, name: str) -> PodHost:
        return self.lab.pod(name)

    def leaves_as(self, name: str, address: str) -> None:
        """Within a moment."""
        pod = self.pod(name)
        self.lab.wait(lambda: pod.get(FW_ADDRESS, timeout=0.5).source == address, f"{name} leaves as {address}")

    def why(self, name: str) -> str:
        """What the agent of the pod's node says."""
        pod = self.pod(name)
        question = {"get": "why", "object": f"pod/{pod.namespace}/{name}"}
        return str(ask(agent_socket(pod.node.directory / "run"), question))

    def proxy(self, *entries: ServiceEntry, node: str = "") -> None:
        """kube-proxy's stand-in, on every node or one."""
        for each in self.lab.nodes.values():
            if not node or each.label == node:
                each.nft(ruleset(entries, each.label, POD_NETWORK))


def entries(site: Site) -> list[ServiceEntry]:
    web, app = (Backend(site.pod(name).address, 8080, site.pod(name).node.label) for name in ("web", "app"))
    api, outside = Backend(API_SERVER, 80, ""), Backend(CLIENT_ADDRESS, 80, "")
    return [
        ServiceEntry("web", "tcp", 80, (web,), "10.96.0.20", OTHER_VIP),
        ServiceEntry("kubernetes", "tcp", 443, (api,), "10.96.0.1"),
        ServiceEntry("outside", "tcp", 80, (outside,), OUTSIDE),
        ServiceEntry("app", "tcp", 80, (app,), "10.96.0.50"),
    ]


@pytest.fixture(scope="module")
def site(clean_labs: list[str]) -> Iterator[Site]:
    with Lab(f"w{os.getpid()}") as lab:
        for name, node, app, namespace in (
            ("app", "worker", "x", "blue"), ("app2", "worker", "x", "green"), ("mon", "worker", "snmp", "mon"),
            ("gwpod", "gw1", "x", "blue"), ("plain", "worker", "none", "default"), ("web", "gw2", "web", "default"),
            ("sts-0", "worker", "sts", "default"), ("tier", "gw2", "t", "default"), ("left", "gw2", "n", "default"),
        ):  # fmt: skip
            lab.add_pod(name, node, {"app": app, **({"tier": "web"} if name == "tier" else {})}, namespace=namespace)
        lab.fw.nft("flush chain ip fw input\n")
        lab.fw.ip(f"addr add {API_SERVER}/32 dev eth0")
        for name in ("app", "web"):
            lab.pod(name).start_server(http=8080, udp=5353, tcp=7)
        lab.client.start_server(http=80, udp=53)
        made = Site(lab, Daemons(lab))
        tiers = policy("expr", {})
        tiers["spec"]["selectors"] = [{
            "podSelector": {"matchExpressions": [
                {"key": "app", "operator": "NotIn", "values": ["x", "sts", "n"]}, {"key": "tier", "operator": "Exists"},
            ]},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}},
        }]  # fmt: skip
        made.policies = {each["metadata"]["name"]: each for each in (
            policy("blue", {"app": "x"}, "blue"), policy("green", {"app": "x"}, "green"),
            policy("partner", {"app": "x"}, "green", destinationCIDRs=["198.51.100.0/24"]),
            policy("snmp", {"app": "snmp"}), policy("sts", {"app": "sts"}),
            tiers, policy("late", {"app": "late"}),
            policy("left", {"app": "n"}, ip="10.168.60.20", excludedCIDRs=["0.0.0.0/0"]),
        )}  # fmt: skip
        ingress = {"loadBalancer": {"ingress": [{"ip": OTHER_VIP}]}}
        made.services = [
            service("web", "10.96.0.20"), cluster.endpoint_slice("web", "default", 8080, [lab.pod("web")]),
            service("kubernetes", "10.96.0.1"), endpoints("kubernetes", API_SERVER),
            service("outside", OUTSIDE), endpoints("outside", CLIENT_ADDRESS),
            service("cloud", "10.96.0.30", ingress, type="LoadBalancer", loadBalancerClass="example.com/cloud"),
            service("app", "10.96.0.50", type="LoadBalancer"),
            cluster.endpoint_slice("app", "default", 8080, [lab.pod("app")]),
        ]  # fmt: skip
        made.put()
        made.daemons.start()
        lab.wait(lambda: all(made.daemons.is_ready(node) and hooked(lab, node) for node in lab.nodes), "all are ready")
        lab.wait(lambda: {f"{ip}/32" for ip in IPS.values()} <= lab.tor.kernel_routes().keys(), "egress IPs at the ToR")
        made.proxy(*entries(made))
        yield made


# --- who leaves as whom


@pytest.mark.parametrize(
    ("name", "owner"),
    [("app", "blue"), ("app2", "green"), ("mon", "snmp"), ("gwpod", "blue"), ("sts-0", "sts"), ("tier", "expr")],
)
def test_a_pod_leaves_as_its_own_policy_says(site: Site, name: str, owner: str) -> None:
    assert site.pod(name).get(FW_ADDRESS).source == IPS[owner]


def test_one_pod_has_two_policies_for_two_destinations(site: Site) -> None:
    pod = site.pod("app2")
    assert (pod.get(FW_ADDRESS).source, pod.get(CLIENT_ADDRESS).source) == (IPS["green"], IPS["partner"])


@pytest.mark.parametrize("name", ["plain", "left"])
def test_an_unselected_pod_and_one_of_which_all_is_excluded_leave_as_they_are(site: Site, name: str) -> None:
    assert site.pod(name).get(FW_ADDRESS).source == site.pod(name).address


# --- services


def test_a_client_reaches_a_selected_pod_by_a_node_port_and_a_host_port(site: Site) -> None:
    worker, app = site.lab.node("worker"), site.pod("app")
    rules = "".join(f"ip daddr 10.0.0.21 tcp dport {port} dnat to {app.address}:8080\n" for port in (31512, 60000))
    worker.nft(f"table ip ports {{ chain pre {{ type nat hook prerouting priority -100;\n{rules}}}\n}}\n")
    assert [site.lab.client.get("10.0.0.21", port).text for port in (31512, 60000)] == [
        f"app saw {CLIENT_ADDRESS}\n"
    ] * 2
    worker.run(["nft", "delete", "table", "ip", "ports"])


def test_a_selected_pod_reaches_a_node_port_of_the_gateway(site: Site) -> None:
    gateway, web = site.lab.node("gw1"), site.pod("web")
    gateway.nft(
        f"table ip ports {{ chain pre {{ type nat hook prerouting priority -100; ip daddr 10.0.0.11 tcp dport 31936"
        f" meta mark set meta mark or 0x4000 dnat to {web.address}:8080; }}; }}\n"
    )
    assert site.pod("app").get("10.0.0.11", 31936).text
    gateway.run(["nft", "delete", "table", "ip", "ports"])


def test_a_selected_pod_reaches_services_as_it_is(site: Site) -> None:
    app = site.pod("app")
    assert app.get("10.96.0.20").source == app.address
    assert app.get(OTHER_VIP).text  # of another controller, by its word in the status
    assert app.get("10.96.0.1", 443).source == app.address  # the API servers of a managed control plane


def test_a_service_that_leads_outside_is_covered_and_an_operator_may_say_otherwise(site: Site) -> None:
    app, plain = site.pod("app"), site.pod("plain")
    assert plain.get(OUTSIDE).source == plain.address
    assert app.get(OUTSIDE, timeout=0.5).refusal == "timeout"
    assert f"{CLIENT_ADDRESS} (svc/default/outside)" in site.why("app")
    assert "cluster-cidrs says which networks are in the cluster" in site.why("app")
    path = site.lab.node("worker").directory / "routerd.yaml"
    before = path.read_text()
    config = yaml.safe_load(before)
    path.write_text(yaml.safe_dump({**config, "cluster-cidrs": [*config["cluster-cidrs"], f"{CLIENT_ADDRESS}/32"]}))
    agent = site.daemons.agents["worker"].process.pid
    os.kill(agent, signal.SIGHUP)
    site.lab.wait(lambda: app.get(OUTSIDE, timeout=0.5).source == app.address, "it is in the cluster now")
    assert "svc/default/outside" not in site.why("app")
    path.write_text(before)
    os.kill(agent, signal.SIGHUP)
    site.lab.wait(lambda: not app.get(OUTSIDE, timeout=0.5).text, "and no more")


@pytest.mark.parametrize("mode", ["Cluster", "Local"])
def test_clients_and_pods_reach_the_vip_of_a_selected_pod(site: Site, mode: str) -> None:
    lab, app = site.lab, site.pod("app")
    vip = next(p for p in lab.tor.kernel_routes() if p.startswith("192.0.2.")).removesuffix("/32")
    entry = ServiceEntry("app", "tcp", 80, (Backend(app.address, 8080, "worker"),), "10.96.0.50", vip, mode)  # type: ignore[arg-type]
    site.proxy(*entries(site), entry)
    if mode == "Local":
        lab.tor.ip(f"route add {vip}/32 via {lab.node('worker').address} metric 1")
    assert all(lab.client.get(vip).text for _ in range(6))
    assert site.pod("tier").get(vip).text or mode == "Local"
    if mode == "Local":
        lab.tor.ip(f"route del {vip}/32 via {lab.node('worker').address} metric 1")
    site.proxy(*entries(site))


def test_the_pods_behind_a_service_leave_with_the_vip_at_which_clients_reach_them(site: Site) -> None:
    """All nodes announce it, and answers come by whichever the ToR takes: three nodes, of which one sends."""
    lab, plain = site.lab, site.pod("plain")
    plain.start_server(http=8080)
    before, vips = [*site.services], {path for path in lab.tor.kernel_routes() if path.startswith("192.0.2.")}
    shop = service("shop", "10.96.0.60", type="LoadBalancer", selector={"app": "none"})
    site.services = [*before, shop, cluster.endpoint_slice("shop", "default", 8080, [plain])]
    site.policies["shop"] = {
        "apiVersion": "routerd.io/v1alpha1", "kind": "EgressPolicy", "metadata": {"name": "shop"},
        "spec": {"service": {"name": "shop"}, "destinationCIDRs": ["0.0.0.0/0"]},
    }  # fmt: skip
    site.put()
    lab.wait(lambda: {p for p in lab.tor.kernel_routes() if p.startswith("192.0.2.")} > vips, "the VIP at the ToR")
    (path,) = {p for p in lab.tor.kernel_routes() if p.startswith("192.0.2.")} - vips
    vip = path.removesuffix("/32")
    backend = Backend(plain.address, 8080, "worker")
    site.proxy(*entries(site), ServiceEntry("shop", "tcp", 80, (backend,), "10.96.0.60", vip))
    site.leaves_as("plain", vip)
    lab.wait(lambda: len(lab.tor.kernel_routes()[path]) == len(lab.nodes), "every node announces it")
    assert f"as {vip} by gateway" in site.why("plain")
    with lab.client.connect(vip, 80):
        for node in lab.nodes.values():
            lab.tor.ip(f"route add {path} via {node.address} metric 1")
            assert [plain.get(FW_ADDRESS).source, plain.get(CLIENT_ADDRESS).source] == [vip, vip], node.label
            assert lab.client.get(vip).text.startswith("plain saw "), node.label
            lab.tor.ip(f"route del {path} via {node.address} metric 1")
    assert all(lab.client.get(vip).text for _ in range(6))
    assert lab.node("gw1").get(vip).text, "no blackhole keeps the node's own from it"
    del site.policies["shop"]
    site.services = before
    site.put()
    site.leaves_as("plain", plain.address)
    site.proxy(*entries(site))


# --- the node's own


def test_a_dns_cache_of_the_node_and_the_node_itself_see_the_pod(site: Site) -> None:
    worker, app = site.lab.node("worker"), site.pod("app")
    worker.ip(
        "link add nodelocaldns type bridge", "addr add 169.254.20.10/32 dev nodelocaldns", "link set nodelocaldns up"
    )
    worker.start_server(udp=53, address="169.254.20.10")
    worker.start_server(http=9100, address=worker.address)
    assert app.ask("169.254.20.10").source == app.address
    assert app.get(worker.address, 9100).source == app.address


# --- how packets fare


def test_a_router_behind_the_gateway_tells_the_pod_its_mtu(site: Site) -> None:
    app, tor = site.pod("app"), site.lab.tor
    tor.ip("link set fw mtu 1300")
    said = app.run(["ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", "1372", FW_ADDRESS], check=False)
    tor.ip("link set fw mtu 1500")
    app.run(["ip", "route", "flush", "cache"])
    assert "mtu = 1300" in said


def test_one_udp_socket_without_checksums_asks_several_resolvers(site: Site) -> None:
    app = site.pod("app")
    with app.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
        asking.bind((app.address, 5300))
        asking.settimeout(10)
        for resolver in (FW_ADDRESS, CLIENT_ADDRESS, FW_ADDRESS):
            asking.sendto(b"question", (resolver, 53))
            assert asking.recvfrom(200)[1][0] == resolver


def test_two_pods_with_one_port_to_one_server_do_not_meet(site: Site) -> None:
    connections = []
    for name in ("app", "gwpod"):
        made = site.pod(name).socket(socket.AF_INET, socket.SOCK_STREAM)
        made.bind((site.pod(name).address, 33333))
        made.settimeout(10)
        made.connect((FW_ADDRESS, 7))
        assert made.recv(100)
        connections.append((name.encode(), made))
    for name_sent, connection in connections:
        connection.sendall(name_sent)
    for name_sent, connection in connections:
        assert connection.recv(100) == name_sent
        connection.close()


def test_what_is_half_closed_goes_on(site: Site) -> None:
    with site.pod("app").connect(FW_ADDRESS, 80) as connection:
        connection.sendall(b"GET /bytes/3000000 HTTP/1.0\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert sum(len(chunk) for chunk in iter(lambda: connection.recv(1 << 16), b"")) > 3_000_000


# --- pods come, go and end


def made_of(site: Site, of: str, **metadata: Any) -> Document:
    document: Any = cluster.pod(site.pod(of))
    document["metadata"].update(metadata)
    return document


def test_a_finished_pod_selects_nobody_who_has_its_address_now(site: Site) -> None:
    job = made_of(site, "plain", name="job", namespace="blue", labels={"app": "x"})
    job["status"]["phase"] = "Succeeded"
    changes(site, job)
    assert site.pod("plain").get(FW_ADDRESS).source == site.pod("plain").address
    site.pods = []


def changes(site: Site, *pods: Document) -> None:
    """Puts them, and something that shows when the worker's agent has seen it."""
    number = len(site.services)
    marker = f"198.18.0.{number % 250 + 1}"
    site.pods = [*pods]
    site.services = [each for each in site.services if each["metadata"]["name"] != "marker"]
    for seen in (True, False):
        if seen:
            site.services.append(service("marker", "10.96.0.99", externalIPs=[marker]))
        site.put()
        site.lab.wait(lambda: (marker in site.why("app")) is seen, "the agent has seen it")  # noqa: B023
        site.services = [each for each in site.services if each["metadata"]["name"] != "marker"]


def test_a_terminating_pod_still_leaves_with_the_egress_ip(site: Site) -> None:
    changes(site, made_of(site, "app", deletionTimestamp="2026-11-29T16:00:00Z", deletionGracePeriodSeconds=30))
    assert site.pod("app").get(FW_ADDRESS).source == IPS["blue"]
    site.pods = []


def test_a_pod_of_the_nodes_network_is_not_selected_and_why_says_so(site: Site) -> None:
    worker = site.lab.node("worker")
    pod = made_of(site, "app", name="hostnet", namespace="blue")
    pod["spec"]["hostNetwork"] = True
    pod["status"].update(podIP=worker.address, podIPs=[{"ip": worker.address}])
    changes(site, pod)
    assert worker.get(FW_ADDRESS).source == worker.address
    assert "HostNetwork" in site.daemons.routerd("worker", "why", "pod/blue/hostnet", check=False)
    site.pods = []


def sources_of(answers: list[Answer]) -> set[str]:
    return {answer.source for answer in answers} - {""}


def test_a_pod_that_comes_back_on_another_node_never_leaves_as_another(site: Site) -> None:
    lab, answers = site.lab, []
    lab.remove_pod("sts-0")
    again = lab.add_pod("sts-0", "gw2", {"app": "sts"})
    site.put()

    def is_back() -> bool:
        answers.append(again.get(FW_ADDRESS, timeout=0.3))
        return answers[-1].source == IPS["sts"]

    lab.wait(is_back, "sts-0 leaves as before")
    assert sources_of(answers) == {IPS["sts"]}


def test_a_new_pod_leaves_with_its_egress_ip_or_not_at_all_from_its_first_moment(site: Site) -> None:
    lab, answers = site.lab, []
    late = lab.add_pod("late", "worker", {"app": "late"})
    answers += [late.get(FW_ADDRESS, timeout=0.1) for _ in range(5)]
    site.put()

    def is_taken() -> bool:
        answers.append(late.get(FW_ADDRESS, timeout=0.1))
        return answers[-1].source == IPS["late"]

    lab.wait(is_taken, "late leaves with its egress IP")
    assert sources_of(answers) == {IPS["late"]}


# --- policies and gateways change


def hops(site: Site) -> list[str]:
    """Gateways by which the ToR sends what is for the egress IP of policy blue."""
    return site.lab.tor.kernel_routes().get(f"{IPS['blue']}/32", [])


def test_a_gateway_loses_its_label_and_gets_it_again(site: Site) -> None:
    lab = site.lab

    def label(name: str, on: bool) -> None:
        labels = dict(lab.node(name).spec.labels) | {GATEWAY: ""}
        if not on:
            del labels[GATEWAY]
        lab.node(name).spec = replace(lab.node(name).spec, labels=labels)  # as its manifest says it
        site.put()

    lab.wait(lambda: hops(site) == [lab.node("gw1").address, lab.node("gw2").address], "both announce it alike")
    label("gw1", False)
    lab.wait(lambda: hops(site) == [lab.node("gw2").address], "the other gateway alone announces it")
    site.leaves_as("app", IPS["blue"])
    label("gw1", True)
    lab.wait(lambda: len(hops(site)) == 2, "both announce it again")
    site.leaves_as("app", IPS["blue"])


def test_a_new_egress_ip_is_in_force_and_a_connection_by_the_old_one_goes_on(site: Site) -> None:
    lab = site.lab
    lab.wait(lambda: len(hops(site)) == 2, "both gateways announce it")
    with site.pod("app").connect(FW_ADDRESS, 7) as connection:
        assert connection.recv(100)
        site.policies["blue"] = policy("blue", {"app": "x"}, "blue", ip=MOVED)
        site.put()
        site.leaves_as("app", MOVED)
        lab.wait(lambda: f"{MOVED}/32" in lab.tor.kernel_routes(), "the new one is announced")
        connection.sendall(b"still there")
        assert connection.recv(100) == b"still there"
        assert hops(site) == [lab.node("gw1").address, lab.node("gw2").address], "for its answers"


def test_a_destination_inside_an_excluded_range_stays_excluded(site: Site) -> None:
    """An exclusion of a policy counts for all of its destinations, however long their prefixes are."""
    named = {"destinationCIDRs": ["0.0.0.0/0", f"{FW_ADDRESS}/32"], "excludedCIDRs": ["203.0.113.0/24"]}
    site.policies["blue"] = policy("blue", {"app": "x"}, "blue", ip=MOVED, **named)
    site.put()
    site.leaves_as("app", site.pod("app").address)
    assert site.pod("app").get(CLIENT_ADDRESS).source == MOVED
    site.policies["blue"] = policy("blue", {"app": "x"}, "blue", ip=MOVED)
    site.put()
    site.leaves_as("app", MOVED)


# --- operators change nodes; last, as they leave another lab behind


def test_pods_are_told_a_new_mtu_of_the_way_to_other_nodes(site: Site) -> None:
    lab, app = site.lab, site.pod("app")
    others = map(str, ip_network(FW_NETWORK).hosts())  # the pod keeps an MTU that it has learnt

    def is_told() -> bool:
        command = ["ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", "1422", next(others)]
        # By the link, or by the tunnel while that is not tried yet.
        return bool(re.search("mtu = 1(40|35)0", app.run(command, check=False)))

    for mtu in (1400, 1500):
        for node in lab.nodes.values():
            node.ip(f"link set eth0 mtu {mtu}")
        lab.tor.ip(*(f"link set {name} mtu {mtu}" for name in lab.nodes))
        if mtu == 1400:
            lab.wait(is_told, "the pod is told what the way carries")


def routes_to(lab: Lab, host: Host) -> list[str]:
    others = (node for node in lab.nodes.values() if node is not host)
    return ["route replace default via 10.0.0.1", *(f"route replace {n.spec.pod_cidr} via {n.address}" for n in others)]


def test_the_uplink_of_a_gateway_gets_another_name(site: Site) -> None:
    gateway = site.lab.node("gw1")
    gateway.ip("link set eth0 down", "link set eth0 name ens9", "link set ens9 up", *routes_to(site.lab, gateway))
    site.leaves_as("app", MOVED)
    site.leaves_as("gwpod", MOVED)


def test_a_node_gets_another_address(site: Site) -> None:
    lab, worker, address = site.lab, site.lab.node("worker"), "10.0.0.77"
    old = worker.address
    worker.ip(f"addr add {address}/24 dev eth0", f"addr del {old}/24 dev eth0", f"addr replace {address}/24 dev eth0")
    worker.ip(*routes_to(lab, worker))
    lab.tor.ip(f"route replace {worker.spec.pod_cidr} via {address} metric 1024 onlink dev br0")
    for name in ("gw1", "gw2"):
        lab.node(name).ip(f"route replace {worker.spec.pod_cidr} via {address}")
    worker.spec, worker.address = replace(worker.spec, address=address), address
    site.put()
    site.leaves_as("app", MOVED)
