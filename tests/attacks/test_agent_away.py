"""Whatever pods come before a node's agent knows them, or while it is away: none leaves with its own address.

What the guard drops then, device by device, is in `test_undecided_pods.py`; here is the whole product. First come pods
behind real CNI plugins with ours at the end of the chain: their manifests have no address, as when a sandbox is made,
and nobody but the plugin tells the agent. Then pods without it, that send all the time.
"""

from __future__ import annotations

import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import pytest

from routerd.serve.api import agent_socket, ask
from tests.netns.lab import cluster
from tests.netns.lab.cni import PluginError, Runtime, main_plugin, own
from tests.netns.lab.frames import mac_of
from tests.netns.lab.hosts import PodHost
from tests.netns.lab.lab import FW_ADDRESS
from tests.netns.lab.netns import run
from tests.netns.stories.story import EGRESS_IP, TWO_GATEWAYS, Story, write_manifests

SUBNETS = {"macvlan": "10.244.3.64/26", "bridge": "10.244.3.128/26", "ptp": "10.244.3.192/26"}
SELECTED, PLAIN = {"app": "snat-pod"}, {"app": "plain"}
OUTSIDE = "10.250.0.5"  # of the node's pod CIDRs


class Pods:
    """Of the worker, made by a runtime."""

    def __init__(self, story: Story, kind: str, **ours: object) -> None:
        node = story.lab.node("worker")
        self.story, self.kind = story, kind
        self.runtime = Runtime(
            node, main_plugin(kind, SUBNETS[kind], node.directory), own(node.directory / "run", **ours)
        )
        self.made: list[PodHost] = []
        self.before: dict[str, Counter[tuple[str, str]]] = {}  # what was seen when a pod began

    def scheduled(self, name: str, labels: Mapping[str, str], addresses: Mapping[str, str] = {}) -> PodHost:
        """A pod with a namespace and no network; the store says of pods that they have `addresses`."""
        lab = self.story.lab
        pod = PodHost(lab.directory, f"{self.kind}-{name}", "", lab.node("worker"), labels, "default")
        pod.directory.mkdir()
        pod.create()
        self.made.append(pod)
        self.write(addresses)
        return pod

    def start(self, pod: PodHost, arguments: str = "") -> None:
        """As far as the kernel: it sends nothing by a new veth before its link is known to be up, a moment later."""
        self.before[pod.label] = self.seen()
        self.runtime.add(pod, arguments=arguments)
        tap = self.story.lab.tap
        tap.settle()  # what was another pod's
        (tap.pods["worker"].add if pod.labels == PLAIN else tap.pods["worker"].discard)(pod.address)
        links = ["ip", "-j", "link", "show", "dev", "eth0"]
        self.story.lab.wait(lambda: '"operstate":"UP"' in pod.run(links), f"the link of {pod.label} is up")

    def write(self, addresses: Mapping[str, str]) -> None:
        documents = []
        for pod in self.made:
            address = addresses.get(pod.label)
            status = {"phase": "Running", "podIP": address} if address else {"phase": "Pending"}
            documents.append({**cluster.pod(pod), "status": status})
        self.story.manifests.put(f"{self.kind}.yaml", cluster.text(documents))

    def seen(self) -> Counter[tuple[str, str]]:
        """Packets at the ToR's links by source and destination."""
        assert self.story.watch is not None
        verdict = self.story.watch.settle()
        assert verdict.lost == 0
        return Counter(verdict.outside)

    def leaks(self) -> int:
        """Packets of selected pods to fw with their own addresses."""
        seen, selected = self.seen(), [pod for pod in self.made if pod.labels == SELECTED]
        pairs = ((pod.label, (pod.address, FW_ADDRESS)) for pod in selected)
        return sum(seen[pair] - self.before[label][pair] for label, pair in pairs)


@pytest.fixture(params=("bridge", "ptp"))
def pods(request: pytest.FixtureRequest, story: Story) -> Iterator[Pods]:
    made = Pods(story, request.param)
    yield made
    for pod in made.made:
        made.runtime.delete(pod)
    made.made.clear()
    made.write({})


def test_the_first_packet_of_a_selected_pod_leaves_with_the_egress_ip(pods: Pods) -> None:
    selected, plain = pods.scheduled("selected", SELECTED), pods.scheduled("plain", PLAIN)
    for pod in (selected, plain):
        pods.start(pod)
    assert selected.ask(FW_ADDRESS, timeout=2).source == EGRESS_IP  # one datagram, and no second one
    assert plain.get(FW_ADDRESS, timeout=5).refusal == "refused"  # by fw
    ours = pods.runtime.ours
    assert ours is not None
    assert pods.runtime.call("CHECK", selected, ours, pods.runtime.results[selected.name]) == {}
    assert pods.runtime.call("STATUS", selected, ours, {}) == {}
    assert pods.leaks() == 0


def test_an_address_that_goes_to_another_pod_at_once_is_no_longer_the_first_ones(pods: Pods) -> None:
    """The store says for a while that the pod which has ended has it."""
    ended = pods.scheduled("ended", SELECTED)
    pods.start(ended)
    address, said = ended.address, {ended.label: ended.address}
    pods.write(said)
    assert ended.ask(FW_ADDRESS, timeout=2).source == EGRESS_IP
    pods.runtime.delete(ended)
    assert pods.leaks() == 0
    heir = pods.scheduled("heir", PLAIN, said)
    pods.start(heir, f"IP={address}")
    assert heir.address == address
    assert heir.get(FW_ADDRESS, timeout=5).refusal == "refused"


def test_a_pod_that_took_an_address_before_its_owner_came_keeps_nobody_from_starting(story: Story) -> None:
    """On a bridge the kernel does not tell whose it is; the CNI does."""
    pods = Pods(story, "bridge")
    squatter = pods.scheduled("squatter", PLAIN)
    pods.start(squatter)
    taken = "10.244.3.185"
    squatter.ip(f"addr add {taken}/32 dev eth0")
    owner = pods.scheduled("owner", SELECTED)
    pods.start(owner, f"IP={taken}")
    assert owner.address == taken
    assert owner.ask(FW_ADDRESS, timeout=2).source == EGRESS_IP
    for pod in (owner, squatter):
        pods.runtime.delete(pod)
    assert pods.leaks() == 0


def test_a_selected_pod_on_macvlan_starts_once_it_is_kept_back_beneath(story: Story) -> None:
    """With its own address and with one that it takes, from its first packet on."""
    pods = Pods(story, "macvlan")
    pod = pods.scheduled("past", SELECTED)
    pods.start(pod)
    hop = mac_of(story.lab.tor, "worker").hex(":")
    pod.ip(f"neigh replace 10.244.3.65 lladdr {hop} dev eth0", f"addr add {OUTSIDE}/32 dev eth0")
    for source in (pod.address, OUTSIDE):
        with pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind((source, 0))
            sender.sendto(b"mine", (FW_ADDRESS, 53))
    run_dir = story.lab.node("worker").directory / "run"
    drops = lambda: ask(agent_socket(run_dir), {"get": "status"})["egress"]["drops"]  # noqa: E731
    story.lab.wait(lambda: drops().get("unhooked") == 2, "both are dropped")
    assert not {source for source, _ in pods.seen()} & {pod.address, OUTSIDE}
    pods.runtime.delete(pod)


def test_no_pod_starts_while_the_agent_is_away(story: Story) -> None:
    pods, lax = Pods(story, "bridge", timeout=1), Pods(story, "ptp", timeout=1, onAgentAbsent="allow")
    late = pods.scheduled("late", SELECTED)
    early = lax.scheduled("early", SELECTED)
    story.daemons.agents["worker"].kill()
    with pytest.raises(PluginError) as refused:
        pods.runtime.add(late)
    assert refused.value.code == 11
    pods.runtime.delete(late)  # as runtimes do after a refusal; it needs no agent
    lax.start(early)  # it may start, and the guard holds back what it sends
    assert early.ask(FW_ADDRESS, timeout=0.3).refusal == "timeout"
    story.daemons.start_agent("worker")
    story.lab.wait(lambda: story.daemons.is_ready("worker"), "the agent is back")
    pods.start(late)
    assert late.ask(FW_ADDRESS, timeout=2).source == EGRESS_IP
    lax.write({early.label: early.address})
    story.lab.wait(lambda: early.ask(FW_ADDRESS, timeout=0.3).source == EGRESS_IP, "the store says its address")
    assert pods.leaks() == lax.leaks() == 0


@contextmanager
def sending(*pods: PodHost) -> Iterator[None]:
    """Each sends a datagram to fw whenever a few milliseconds have passed."""
    done = threading.Event()

    def send(pod: PodHost) -> None:
        with pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not done.wait(0.005):
                with suppress(OSError):
                    sender.sendto(b"stream", (FW_ADDRESS, 7777))

    threads = [threading.Thread(target=send, args=(pod,)) for pod in pods]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def leaked(story: Story, *pods: PodHost) -> int:
    """Packets with the pods' own addresses that the ToR has seen on their way to fw."""
    assert story.watch is not None
    verdict = story.watch.settle()
    assert verdict.lost == 0
    return sum(verdict.outside[pod.address, FW_ADDRESS] for pod in pods)


def leave_as_the_egress_ip(story: Story, *pods: PodHost) -> None:
    for pod in pods:
        story.lab.wait(lambda pod=pod: pod.ask(FW_ADDRESS, timeout=0.3).source == EGRESS_IP, f"{pod.label} leaves")  # type: ignore[misc]


def test_pods_that_come_while_the_agent_is_away_leak_nothing_until_it_is_back(story: Story) -> None:
    lab, daemons = story.lab, story.daemons
    lab.tor.ip("route add 10.250.0.0/24 via 10.0.0.21 metric 1024 onlink dev br0")
    daemons.agents["worker"].kill()
    address = lab.pod("snat-pod").address
    lab.remove_pod("snat-pod")
    again = lab.add_pod("snat-pod", "worker", SELECTED, address=address)
    pods = (again, lab.add_pod("new", "worker", SELECTED), lab.add_pod("far", "worker", SELECTED, address=OUTSIDE))
    write_manifests(story)
    with sending(*pods):
        assert {pod.ask(FW_ADDRESS, timeout=0.3).refusal for pod in pods} == {"timeout"}
        daemons.start_agent("worker")
        leave_as_the_egress_ip(story, *pods)
    assert leaked(story, *pods) == 0


def test_after_a_reboot_nothing_leaks_before_the_agent_is_back(story: Story) -> None:
    """What the kernel held is gone, and the pods are there first; routerd-guard.service has loaded the kept guard."""
    lab, worker = story.lab, story.lab.node("worker")
    kept = worker.directory / "state" / "guard.nft"
    lab.wait(kept.exists, "the guard is kept for the next boot")
    story.daemons.agents["worker"].kill()
    run(["find", str(worker.pin_dir / "routerd"), "-type", "f", "-delete"])
    worker.run(["nft", "delete", "table", "inet", "routerd"])
    pods = (lab.add_pod("boots", "worker", SELECTED), lab.add_pod("boots-plain", "worker", PLAIN))
    are_refused = lambda: {pod.get(FW_ADDRESS, timeout=0.9).refusal for pod in pods} == {"refused"}  # noqa: E731 - by fw
    lab.wait(are_refused, "nothing holds them")
    begun = leaked(story, pods[0])
    worker.run(["nft", "-f", str(kept)])
    with sending(pods[0]):
        assert {pod.get(FW_ADDRESS, timeout=0.3).refusal for pod in pods} == {"timeout"}
        write_manifests(story)
        story.daemons.start_agent("worker")
        leave_as_the_egress_ip(story, pods[0])
    lab.wait(lambda: pods[1].get(FW_ADDRESS, timeout=0.9).refusal == "refused", "a plain pod is free")
    assert leaked(story, pods[0]) == begun > 0


def test_a_pod_whose_manifest_comes_late_leaks_nothing(story: Story) -> None:
    lab = story.lab
    pods = (lab.add_pod("late", "worker", SELECTED), lab.add_pod("late-far", "worker", SELECTED, address="10.250.0.9"))
    with sending(*pods):
        assert {pod.ask(FW_ADDRESS, timeout=0.3).refusal for pod in pods} == {"timeout"}
        write_manifests(story)
        leave_as_the_egress_ip(story, *pods)
    assert leaked(story, *pods) == 0


def lines(story: Story) -> int:
    """That the worker's agent has logged."""
    return len(story.daemons.agents["worker"].log.read_text().splitlines())


def test_an_agent_that_is_killed_while_policies_change_leaks_nothing(story: Story) -> None:
    lab, daemons, pod = story.lab, story.daemons, story.lab.pod("snat-pod")
    good, chance = story.manifests.read(TWO_GATEWAYS), random.Random(7)
    more = good.replace("  destinationCIDRs:", "  - podSelector: {matchLabels: {app: snat-pod}}\n  destinationCIDRs:")
    daemons.agents["worker"].kill()
    with sending(pod):
        for turn in range(4):
            story.manifests.put(TWO_GATEWAYS, more if turn % 2 == 0 else good)
            before, steps = lines(story), chance.randint(1, 8)
            daemons.start_agent("worker")
            lab.wait(lambda since=before + steps: lines(story) >= since or daemons.is_ready("worker"), "it is at work")  # type: ignore[misc]
            daemons.agents["worker"].kill()
        daemons.start_agent("worker")
        lab.wait(lambda: pod.ask(FW_ADDRESS, timeout=0.3).source == EGRESS_IP, "the policy is in force")
    assert leaked(story, pod) == 0
