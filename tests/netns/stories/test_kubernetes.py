"""The Kubernetes store in the lab: from objects at the API server to the ToR's table and a packet's source address."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.k8s.client import MERGE, Client
from tests.netns.lab import netns
from tests.netns.lab.api_restart import on_api_server, restarted
from tests.netns.lab.kubernetes import Story, on_kubernetes
from tests.netns.lab.lab import Lab

EGRESS_IP = "10.168.60.100"


@pytest.fixture(scope="module")
def story(lab: Lab) -> Iterator[Story]:
    lab.add_pod("snat-pod", "worker", {"app": "snat-pod"})
    lab.add_pod("web", "worker", {"app": "web"}).start_server(http=8080)
    lab.fw.allow(EGRESS_IP)
    with on_kubernetes(lab) as running:
        yield running


def test_a_service_reaches_the_tor(story: Story) -> None:
    story.serve("web", "web")
    story.lab.wait(lambda: story.vip("web"), "a VIP in the status")
    story.lab.wait(lambda: f"{story.vip('web')}/32" in story.lab.tor.routes(), "the VIP at the ToR")
    reports = [row.object for row in story.server.storage.all("routerd.io/routerdnodes")]
    assert {report["metadata"]["name"] for report in reports} == set(story.lab.nodes)


def test_a_policy_gives_its_pods_the_egress_ip_and_takes_it_away_again(story: Story) -> None:
    pod, fw = story.lab.pod("snat-pod"), story.lab.fw
    spec = {
        "selectors": [{"podSelector": {"matchLabels": {"app": "snat-pod"}}}],
        "destinationCIDRs": ["203.0.113.0/24"],
        "egressIP": EGRESS_IP,
        "gateways": {"nodeSelector": {"matchLabels": {"routerd.io/egress-gateway": ""}}},
    }
    meta = {"name": "team"}
    story.server.load([{"apiVersion": "routerd.io/v1alpha1", "kind": "EgressPolicy", "metadata": meta, "spec": spec}])
    story.lab.wait(lambda: f"{EGRESS_IP}/32" in story.lab.tor.routes(), "the egress IP at the ToR")
    story.lab.wait(lambda: pod.ping(fw.address), "the firewall takes the pod")
    row = story.server.storage.get("routerd.io/egresspolicies", "team")
    assert row is not None and row.object["status"]["egressIP"] == EGRESS_IP


def test_without_the_api_server_forwarding_and_routes_stay(story: Story) -> None:
    pod, before = story.lab.pod("snat-pod"), set(story.lab.tor.routes())
    story.server.refuse()
    try:
        worker = story.daemons.routerd

        def is_told() -> bool:
            return "Stale" in worker("worker", "status", check=False)

        story.lab.wait(is_told, "status says that the state is stale")
        assert set(story.lab.tor.routes()) == before
        assert pod.ping(story.lab.fw.address)
    finally:
        story.server.accept()


def says(story: Story, node: str, *, ready: bool, message: str = "") -> None:
    """A kubelet's word on its node."""
    condition = {"type": "Ready", "status": str(ready), "reason": "KubeletReady", "message": message}
    with netns.entered(story.lab.tor.name):
        api = Client(Path(story.server.kubeconfig))
        answer = api.patch(f"/api/v1/nodes/{node}/status", {"status": {"conditions": [condition]}}, MERGE)
    assert answer.code == 200, answer


def test_a_node_whose_kubelet_sees_its_shutdown_leads_nowhere_any_more(story: Story) -> None:
    """And its RouterdNode says when it may go; called off, all comes back."""
    vip, gw1 = f"{story.vip('web')}/32", story.lab.node("gw1").address

    def hops(prefix: str) -> list[str]:
        return story.lab.tor.kernel_routes().get(prefix, [])

    def told() -> tuple[bool, str]:
        row = story.server.storage.get("routerd.io/routerdnodes", "gw1")
        status = row.object["status"] if row else {}
        drained = [each["status"] for each in status.get("conditions", ()) if each["type"] == "Drained"]
        return status.get("draining", False), "".join(drained)

    assert gw1 in hops(vip)
    says(story, "gw1", ready=False, message="node is shutting down")
    story.lab.wait(lambda: hops(vip) and gw1 not in hops(vip), "the VIP by other nodes alone")
    story.lab.wait(lambda: hops(f"{EGRESS_IP}/32") == [story.lab.node("gw2").address], "the egress IP by gw2 alone")
    story.lab.wait(lambda: told() == (True, "True"), "its RouterdNode says that it is drained")
    says(story, "gw1", ready=True)
    story.lab.wait(lambda: gw1 in hops(vip), "the VIP by gw1, too")
    story.lab.wait(lambda: told() == (False, ""), "its RouterdNode says that it serves")


def test_a_restart_of_the_api_server_changes_nothing(clean_labs: list[str]) -> None:
    with Lab(f"ar{os.getpid()}") as lab, on_api_server(lab) as (story, server):
        seen = restarted(story, server, 0.3, 3)
    assert seen.problems() == []
    assert all(seen.lists)
