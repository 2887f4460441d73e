"""Whatever pods come while a node's agent is away, killed or on its way back: none leaves with its own address.

What the guard drops then, device by device, is in `test_undecided_pods.py`; here is the whole product, and pods that
send all the time.
"""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.netns.lab.hosts import PodHost
from tests.netns.lab.lab import FW_ADDRESS
from tests.netns.stories.story import EGRESS_IP, TWO_GATEWAYS, Story, write_manifests

LABELS = {"app": "snat-pod"}
OUTSIDE = "10.250.0.5"  # of the node's pod CIDRs


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
    again = lab.add_pod("snat-pod", "worker", LABELS, address=address)
    pods = (again, lab.add_pod("new", "worker", LABELS), lab.add_pod("far", "worker", LABELS, address=OUTSIDE))
    write_manifests(story)
    with sending(*pods):
        assert {pod.ask(FW_ADDRESS, timeout=0.3).refusal for pod in pods} == {"timeout"}
        daemons.start_agent("worker")
        leave_as_the_egress_ip(story, *pods)
    assert leaked(story, *pods) == 0


def test_a_pod_whose_manifest_comes_late_leaks_nothing(story: Story) -> None:
    lab = story.lab
    pods = (lab.add_pod("late", "worker", LABELS), lab.add_pod("late-far", "worker", LABELS, address="10.250.0.9"))
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
