"""IPv6 of a policy without an IPv6 egress IP, or without a gateway: what it covers does not leave, all else does."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest

from tests.netns.lab import cluster
from tests.netns.lab.daemons import Daemons
from tests.netns.lab.hosts import Host, PodHost
from tests.netns.lab.lab import CLIENT_ADDRESS, FW_ADDRESS, Lab
from tests.netns.lab.wiring import six

FW6, CLIENT6 = six(FW_ADDRESS), six(CLIENT_ADDRESS)
POLICY = """\
apiVersion: routerd.io/v1alpha1
kind: EgressPolicy
metadata: {name: six}
spec:
  selectors: [{podSelector: {matchLabels: {app: sel}}}]
  destinationCIDRs: [203.0.113.0/24, '::/0']
  excludedCIDRs: ['%s/128']
  egressIP: 10.168.60.100
"""
NATIVE = """\
apiVersion: routerd.io/v1alpha1
kind: EgressPolicy
metadata: {name: six}
spec:
  selectors: [{podSelector: {matchLabels: {app: sel}}}]
  destinationCIDRs: [%s]
  egressIP: '%s'
"""
CILIUM_NAT = """\
apiVersion: cilium.io/v2alpha1
kind: CiliumEgressNATPolicy
metadata: {name: six}
spec:
  egress: [{podSelector: {matchLabels: {app: sel}}}]
  destinationCIDRs: [%s]
  egressSourceIP: '%s'
"""
CILIUM_GATEWAY = """\
apiVersion: cilium.io/v2
kind: CiliumEgressGatewayPolicy
metadata: {name: six}
spec:
  selectors: [{podSelector: {matchLabels: {app: sel}}}]
  destinationCIDRs: [%s]
  egressGateway: {nodeSelector: {matchLabels: {node.kubernetes.io/name: node1}}, egressIP: '%s'}
"""


@dataclass(frozen=True)
class Stage:
    lab: Lab
    daemons: Daemons

    def put(self, policy: str) -> None:
        cluster.put(self.lab.manifests / "policy.yaml", policy)

    def guard(self) -> str:
        return self.lab.node("worker").run(["nft", "list", "table", "inet", "routerd"], check=False)

    def dropped(self) -> dict[str, int]:
        """By the programs and by the guard, without reasons that have counted nothing."""
        status = json.loads(self.daemons.routerd("worker", "status", "-o", "json", check=False))
        return {reason: count for reason, count in status["egress"]["drops"].items() if count}

    def until(self, text: str, what: str) -> None:
        """The worker's guard says `text`."""
        self.lab.wait(lambda: text in self.guard(), what)

    def left(self, pod: PodHost, *sources: str) -> int:
        """Packets at the ToR's links while the pod sends everything to FW6, from its own address and from `sources`."""
        with self.lab.watch() as watch:
            for source in (six(pod.address), *sources):
                send(pod, source)
            verdict = watch.settle()
        assert verdict.lost == 0
        return sum(count for (_, destination), count in verdict.outside.items() if destination == FW6)


def send(pod: PodHost, source: str) -> None:
    """A SYN, a datagram and an echo request to FW6. No answer is expected."""
    with pod.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagram:
        datagram.bind((source, 0))
        datagram.sendto(b"six", (FW6, 53))
    with pod.socket(socket.AF_INET6, socket.SOCK_STREAM) as connection:
        connection.settimeout(0.1)
        connection.bind((source, 0))
        with suppress(OSError):
            connection.connect((FW6, 80))
    pod.run(["ping", "-n", "-c", "1", "-W", "0.2", "-I", source, FW6], check=False)


def reaches(host: Host, address: str, source: str) -> bool:
    """Whether HTTP, UDP and ICMP reach the servers of `address`, which see `source`."""
    answers = [host.get(address), host.ask(address)]
    return [answer.source for answer in answers] == [source, source] and host.ping(address)


@pytest.fixture(scope="module", params=["routed", "bridge"])
def stage(request: pytest.FixtureRequest, clean_labs: list[str]) -> Iterator[Stage]:
    with Lab(f"six{os.getpid()}{request.param[0]}", cni=request.param, ipv6=True) as lab:
        for name in ("sel", "plain"):
            lab.add_pod(name, "worker", {"app": name})
        lab.add_pod("inside", "gw2", {"app": "inside"})
        for host, address in ((lab.fw, FW6), (lab.client, CLIENT6)):
            host.start_server(http=80, udp=53, address=address)
        for name in ("sel", "inside"):
            lab.pod(name).start_server(http=80, udp=53, address=six(lab.pod(name).address))
        cluster.write_cluster(lab)
        built = Stage(lab, Daemons(lab))
        built.put(POLICY % CLIENT6)
        built.daemons.start_operator()
        built.daemons.start_speaker("worker")
        built.daemons.start_agent("worker")
        lab.wait(lambda: f"{lab.pod('sel').address} : jump" in built.guard(), "sel is selected")
        yield built
        built.daemons.stop()


@pytest.fixture(autouse=True)
def restored(stage: Stage) -> Iterator[None]:
    yield
    stage.put(POLICY % CLIENT6)
    stage.until(f"ip6 daddr != {CLIENT6}", "the policy as it was")


def test_what_a_policy_covers_does_not_leave_whatever_the_source(stage: Stage) -> None:
    sel = stage.lab.pod("sel")
    sources = (six("10.244.3.250"), "2001:db8:5::5")  # in the node's pod network, and outside of every network
    sel.ip(*(f"addr add {source}/128 dev eth0 nodad" for source in sources))
    before = sum(stage.dropped().values())
    assert stage.left(sel, *sources) == 0
    # Each of three packets from each of three addresses.
    stage.lab.wait(lambda: sum(stage.dropped().values()) - before >= 9, "all that was sent is counted as dropped")
    sel.ip(*(f"addr del {source}/128 dev eth0" for source in sources))


def test_an_unselected_pod_leaves_with_its_own_address(stage: Stage) -> None:
    plain = stage.lab.pod("plain")
    assert reaches(plain, FW6, six(plain.address))
    assert stage.left(plain) >= 3


def test_what_is_excluded_or_in_the_cluster_is_reached(stage: Stage) -> None:
    sel = stage.lab.pod("sel")
    assert reaches(sel, CLIENT6, six(sel.address))
    assert reaches(sel, six(stage.lab.pod("inside").address), six(sel.address))
    assert sel.ping(six(stage.lab.node("gw2").address))


def test_what_began_outside_is_answered(stage: Stage) -> None:
    assert reaches(stage.lab.fw, six(stage.lab.pod("sel").address), FW6)


def test_it_is_said(stage: Stage) -> None:
    assert "UnsupportedFamily" in stage.daemons.refusals("worker")
    why = stage.daemons.routerd("worker", "why", "pod/default/sel", "-o", "json", check=False)
    assert "no egress IP of its family, but 10.168.60.100: what the selected pods send to ::/0 is dropped" in why
    published = (stage.lab.manifests / "allocations.yaml").read_text()
    assert "UnsupportedFamily" in published


def test_a_pod_that_is_not_known_yet_does_not_leave(stage: Stage) -> None:
    late = stage.lab.add_pod("late", "worker", {"app": "plain"})
    stray = "2001:db8:5::6"
    late.ip(f"addr add {stray}/128 dev eth0 nodad")
    try:
        on = "cni0" if stage.lab.cni == "bridge" else late.device
        before = stage.dropped().get("guard_undecided", 0)
        assert stage.left(late, stray) == 0
        stage.lab.wait(lambda: stage.dropped().get("guard_undecided", 0) - before >= 6, "the guard has held all back")
        cluster.write_cluster(stage.lab)
        stage.until(f'"{on}" . {six(late.address)}', "the new pod is decided")
        assert reaches(late, FW6, six(late.address))
    finally:
        stage.lab.remove_pod("late")
        cluster.write_cluster(stage.lab)


def test_a_node_without_an_address_is_guarded_all_the_same(stage: Stage) -> None:
    """It cannot be a tunnel endpoint. What its pods may reach is as the policies say now."""
    lab, sel, other = stage.lab, stage.lab.pod("sel"), six("203.0.113.77")
    try:
        documents = cluster.documents(lab)
        worker = next(each for each in documents if (each["kind"], each["metadata"]["name"]) == ("Node", "worker"))
        worker["status"]["addresses"] = []
        cluster.put(lab.manifests / "cluster.yaml", cluster.text(documents))
        lab.wait(lambda: "NoTunnelEndpoint" in stage.daemons.refusals("worker"), "the node has no address")
        stage.put(POLICY % other)
        stage.until(f"ip6 daddr != {other}", "the new policy is in force")
        assert stage.left(sel) == 0
        assert not sel.ping(CLIENT6)
    finally:
        cluster.write_cluster(lab)
        lab.wait(lambda: "NoTunnelEndpoint" not in stage.daemons.refusals("worker"), "the node as it was")


KINDS = {"EgressPolicy": NATIVE, "CiliumEgressNATPolicy": CILIUM_NAT, "CiliumEgressGatewayPolicy": CILIUM_GATEWAY}


@pytest.mark.parametrize("address", ["10.168.60.100", "2001:db8:60::1"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_of_which_nothing_is_translated_drops_all_that_it_covers(
    stage: Stage, kind: str, address: str
) -> None:
    """IPv6 destinations alone, or an IPv6 egress IP, in every format."""
    sel, is_six = stage.lab.pod("sel"), ":" in address
    stage.put(KINDS[kind] % ("203.0.113.0/24, '::/0'" if is_six else "'::/0'", address))
    stage.until("ip6 daddr ::/0 counter", "the policy is in force")
    stage.lab.wait(lambda: not stage.daemons.plan("worker"), "nothing is left to do")
    assert stage.left(sel) == 0
    with stage.lab.watch() as watch:
        assert sel.ask(FW_ADDRESS, timeout=0.3).refusal == ("timeout" if is_six else "No route to host")
        assert ((sel.address, FW_ADDRESS) not in watch.settle().outside) == is_six
    status = stage.daemons.routerd("worker", "why", "pod/default/sel", "-o", "json", check=False)
    assert f"does {kind}/six take it" in status
    assert "UnsupportedFamily" in status
