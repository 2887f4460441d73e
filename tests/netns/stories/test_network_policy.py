"""NetworkPolicies that a CNI enforces in the host's forward hook: they hold for what leaves by a gateway."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from egress.host.survey import survey
from egress.policy import FORWARD_MARK, Policy
from tests.netns.lab.datapath import EGRESS_IP, EGRESS_IP6, WORLD, WORLD6, Cluster
from tests.netns.lab.enforcers import FLANNEL, MAKES, Backend, Make, Network, Workload
from tests.netns.lab.hosts import PodHost
from tests.netns.lab.lab import FW_ADDRESS, POD_NETWORK, Lab
from tests.netns.lab.netns import Namespace, entered
from tests.netns.lab.wiring import Cni, six

BRIEF = 0.3  # seconds that a pod waits for what does not come
FW6 = six(FW_ADDRESS)
NOTHING = "*raw\nCOMMIT\n*nat\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"
IPV6_COMMANDS = {"iptables-legacy": "ip6tables-legacy", "iptables-nft": "ip6tables-nft"}


@dataclass
class Enforced:
    """A node whose CNI and kube-proxy have their rules there."""

    cluster: Cluster
    make: Make
    shut: str = "shut"

    @property
    def worker(self) -> Namespace:
        return self.cluster.lab.node("worker")

    def load(self) -> None:
        """All of it anew, with `shut` the pod that may send nothing out."""
        for address in (str, six):
            network = self._network(address)
            _load(self.worker, self.make.loaded_by, self.make.rules(network), ":" in network.pods)
            _load(self.worker, self.make.proxy_by, self.make.proxy(network), ":" in network.pods, more=True)

    def _network(self, address: Callable[[str], str]) -> Network:
        pods = [pod for pod in self.cluster.lab.pods.values() if pod.node is self.worker]
        workloads = [Workload(pod.device, address(pod.address), pod.label == self.shut) for pod in pods]
        return Network(address(POD_NETWORK), workloads)

    def unload(self) -> None:
        for backend, ipv6 in ((b, v) for b in IPV6_COMMANDS for v in (False, True)):
            _load(self.worker, backend, NOTHING, ipv6)
        for table in ("calico", "kube-proxy"):
            for family in ("ip", "ip6"):
                self.worker.nft(f"table {family} {table}\ndelete table {family} {table}\n")

    def handed_and_out(self) -> tuple[int, int]:
        counters = self.cluster.counters("worker")
        return counters["handed_in"], counters["came_out"]


def _load(node: Namespace, backend: Backend, text: str, ipv6: bool, more: bool = False) -> None:
    if backend == "nft":
        head = " ".join(text.split()[:3])
        node.nft(f"{head}\ndelete {head}\n{text}")
        return
    command = IPV6_COMMANDS[backend] if ipv6 else backend
    node.run([f"{command}-restore", *(["--noflush"] if more else [])], stdin=text)


@pytest.fixture(scope="module")
def clusters(clean_labs: list[str]) -> Iterator[Callable[[Cni], Cluster]]:
    """By the CNI's wiring, built when the first test asks: as a parameter of the fixture it would be built for each."""
    with ExitStack() as stack:
        yield cache(lambda cni: stack.enter_context(_cluster(cni)))


@contextmanager
def _cluster(cni: Cni) -> Iterator[Cluster]:
    with Lab(f"np{os.getpid()}{cni[0]}", cni=cni, ipv6=True) as lab:
        for name in ("open", "shut"):
            lab.add_pod(name, "worker")
        if cni == "bridge":
            lab.node("worker").sysctl({f"net.bridge.bridge-nf-call-{name}": 1 for name in ("iptables", "ip6tables")})
        lab.tor.ip(
            f"route add {EGRESS_IP}/32 via {lab.node('gw1').address}",
            f"route add {EGRESS_IP6}/128 via {six(lab.node('gw1').address)}",
        )
        lab.fw.start_server(udp=53, address=FW6)
        lab.fw.allow(str(EGRESS_IP))
        policies = {"world": Policy("world", 7, (WORLD, WORLD6))}
        selected = {"open": ("world",), "shut": ("world",)}
        built = Cluster(lab, policies=policies, selected=selected, gateways=("gw1",), network_policy="auto")
        built.cni_config = lab.directory / "cni"
        built.cni_config.mkdir()
        built.apply()
        yield built
        built.close()


@pytest.fixture
def enforced(clusters: Callable[[Cni], Cluster], make: Make) -> Iterator[Enforced]:
    there = Enforced(clusters(make.cni), make)
    there.load()
    yield there
    there.unload()


def on(makes: Mapping[str, Make]) -> pytest.MarkDecorator:
    """The test, on the nodes of each of these."""
    return pytest.mark.parametrize("make", makes.values(), ids=list(makes))


@on(MAKES)
def test_a_cni_is_known_by_its_rules_and_its_bits_are_not_ours(enforced: Enforced, tmp_path: Path) -> None:
    with entered(enforced.worker.name):
        there = survey(frozenset({"eth0", "pod-open"}), tmp_path)
    assert [each.name for each in there.enforcers] == [enforced.make.name]
    assert not there.is_plain
    assert {use.bits for use in there.marks} >= {0x4000, 0x10000}
    assert not any(use.bits & FORWARD_MARK for use in there.marks)


def leaves(pod: PodHost) -> bool:
    """Whether it gets answers from the world, all of them to the egress IPs; it may not be half a no."""
    sources = pod.ask(FW_ADDRESS, timeout=BRIEF).source, pod.ask(FW6, timeout=BRIEF).source
    assert sources in (("", ""), (str(EGRESS_IP), str(EGRESS_IP6)))
    return sources[0] != ""


@on(MAKES)
@pytest.mark.parametrize("rp_filter", [0, 1, 2])
def test_a_policy_of_the_cni_holds_for_what_leaves_by_a_gateway(enforced: Enforced, rp_filter: int) -> None:
    """And a change of it for what begins then; no packet bears another source, whatever masquerades."""
    lab, pods = enforced.cluster.lab, {name: enforced.cluster.lab.pod(name) for name in ("open", "shut")}
    enforced.worker.sysctl(
        {
            **{f"net.ipv4.conf.{name}.rp_filter": rp_filter for name in ("all", "eth0", pods["open"].device)},
            "net.ipv4.conf.all.src_valid_mark": int(rp_filter > 0),
        }
    )
    with lab.watch() as watch:
        watch.forbid(*(address for pod in pods.values() for address in (pod.address, six(pod.address))))
        watch.allow(str(EGRESS_IP), str(EGRESS_IP6))
        before = enforced.handed_and_out()
        assert (leaves(pods["open"]), leaves(pods["shut"])) == (True, False)
        handed, out = (now - then for now, then in zip(enforced.handed_and_out(), before, strict=True))
        assert (handed, out) == (4, 2)
        with pods["open"].connect(FW_ADDRESS, 7) as running:
            enforced.shut = "open"
            enforced.load()
            assert (leaves(pods["open"]), leaves(pods["shut"])) == (False, True)
            running.sendall(b"still here")
            assert running.recv(64)
        assert pods["shut"].ping(FW_ADDRESS)
        verdict = watch.settle()
    assert not verdict.leaks
    assert not enforced.cluster.dropped("worker")


@on({"calico": MAKES["calico"], "kube-router": MAKES["kube-router"]})
def test_it_holds_where_nodes_need_no_tunnel(enforced: Enforced) -> None:
    """First packets leave the host's stack by the link to the gateway, as those after them do."""
    cluster, lab = enforced.cluster, enforced.cluster.lab
    cluster.transport = "direct"
    cluster.apply()
    try:
        before = enforced.handed_and_out(), cluster.counters("worker")["sent_direct"]
        with lab.pod("open").connect(FW_ADDRESS, 7) as running:
            assert (leaves(lab.pod("open")), leaves(lab.pod("shut"))) == (True, False)
            enforced.shut = "open"
            enforced.load()
            assert (leaves(lab.pod("open")), leaves(lab.pod("shut"))) == (False, True)
            running.sendall(b"still here")
            assert running.recv(64)
        (handed, out), sent = enforced.handed_and_out(), cluster.counters("worker")["sent_direct"]
        assert (handed - before[0][0], out - before[0][1]) == (9, 5)
        assert sent - before[1] >= 9
        assert not cluster.dropped("worker")
    finally:
        cluster.transport = "vxlan"
        cluster.apply()


@on({"calico": MAKES["calico"], "kube-router": MAKES["kube-router"]})
def test_a_redirect_passes_the_same_rules_by(enforced: Enforced) -> None:
    """So what the other tests see is the forward hook's doing."""
    cluster = enforced.cluster
    cluster.network_policy = "direct"
    cluster.apply()
    try:
        assert leaves(cluster.lab.pod("shut"))
    finally:
        cluster.network_policy = "auto"
        cluster.apply()


@on({"flannel": FLANNEL})
def test_where_nothing_enforces_nothing_takes_the_hosts_way(enforced: Enforced) -> None:
    """It masquerades what its pods send, and what leaves by a gateway has the egress IP all the same."""
    cluster, before = enforced.cluster, enforced.handed_and_out()
    conflist = cluster.cni_config / "10-flannel.conflist"
    conflist.write_text('{"plugins": [{"type": "flannel"}, {"type": "portmap"}]}')
    try:
        cluster.survey("worker")
        with cluster.lab.watch() as watch:
            watch.allow(str(EGRESS_IP), str(EGRESS_IP6))
            assert leaves(cluster.lab.pod("open"))
            verdict = watch.settle()
        assert not verdict.leaks
        assert enforced.handed_and_out() == before
    finally:
        conflist.unlink()
        cluster.survey("worker")
    assert leaves(cluster.lab.pod("shut"))
    assert enforced.handed_and_out() != before
