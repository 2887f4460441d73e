"""A device with a name that means something to nft, or that nft cannot say, takes the guard from nobody."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from egress.plan import problems
from egress.policy import Policy
from tests.netns.lab.datapath import EGRESS_IP, WORLD, Cluster
from tests.netns.lab.hosts import PodHost
from tests.netns.lab.lab import FW_ADDRESS, Lab
from tests.netns.lab.netns import entered

SAID = ["lo;x", "@x", "{", "10", "#"]
UNSAYABLE = ['a"b', "*", "pod-*"]


@pytest.fixture(scope="module")
def cluster(clean_labs: list[str]) -> Iterator[Cluster]:
    with Lab(f"d{os.getpid()}") as lab:
        for name in ("sel", "plain"):
            lab.add_pod(name, "worker")
        lab.tor.ip(f"route add {EGRESS_IP}/32 via {lab.node('gw1').address}")
        lab.fw.allow(str(EGRESS_IP))
        built = Cluster(lab, policies={"world": Policy("world", 7, (WORLD,))}, selected={"sel": ("world",)})
        built.apply()
        yield built
        built.close()


def rename(pod: PodHost, name: str) -> None:
    """The host's side of the pod's veth; its routes go when it is down."""
    pod.node.run(["ip", "link", "set", "dev", pod.device, "down"])
    pod.node.run(["ip", "link", "set", "dev", pod.device, "name", name])
    pod.device = name
    pod.node.run(["ip", "link", "set", "dev", name, "up"])
    pod.node.run(["ip", "route", "replace", pod.address, "dev", name, "scope", "link"])


@pytest.mark.parametrize("name", SAID + UNSAYABLE)
def test_the_guard_is_loaded_and_every_selected_pod_leaves_with_its_egress_ip(cluster: Cluster, name: str) -> None:
    lab, worker = cluster.lab, cluster.lab.node("worker")
    pods = [lab.add_pod(label, "worker") for label in ("odd", "fresh")]
    before, told = pods[0].device, name in UNSAYABLE
    rename(pods[0], name)
    cluster.selected |= {"odd": ("world",), "fresh": ("world",)}
    try:
        cluster.apply()
        for label in ("sel", "odd", "fresh"):
            assert lab.pod(label).ask(FW_ADDRESS).source == str(EGRESS_IP), label
        guard = worker.run(["nft", "list", "map", "inet", "routerd", "selected"])
        assert all(pod.address in guard for pod in (lab.pod("sel"), pods[1]))
        assert (pods[0].address in guard) is not told
        assert lab.pod("plain").get(FW_ADDRESS).refusal == "refused"  # decided, and left alone
        with entered(worker.name):
            found = problems(cluster.desired("worker"), cluster.datapaths["worker"].observe(cluster.desired("worker")))
        assert [p.object for p in found if p.reason == "DeviceName"] == [f"pod-address/{pods[0].address}"] * told
    finally:
        rename(pods[0], before)
        for label in ("odd", "fresh"):
            lab.remove_pod(label)
            del cluster.selected[label]
        cluster.apply()


@pytest.mark.parametrize("name", UNSAYABLE)
def test_what_the_guard_cannot_name_is_a_suspect(cluster: Cluster, name: str) -> None:
    """An unselected pod on such a device is held back from what policies cover, and from nothing else."""
    pod = cluster.lab.pod("plain")
    before = pod.device
    rename(pod, name)
    try:
        cluster.apply()
        with cluster.lab.watch() as watch:
            assert pod.ask(FW_ADDRESS, timeout=0.3).refusal == "timeout"
            assert (pod.address, FW_ADDRESS) not in watch.settle().outside
        assert pod.ping(cluster.lab.node("gw2").address)
        assert ip_address(pod.address) in cluster.desired("worker").pods
    finally:
        rename(pod, before)
        cluster.apply()
