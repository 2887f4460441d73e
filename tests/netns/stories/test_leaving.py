"""A node leaves under traffic: drained and switched off, or rebooted. No new connection is lost, in or out.

When the number of next hops changes, a ToR spreads running connections anew; one to a VIP that runs at that very moment
may meet a node that does not know it, and is reset. The flow here has one connection at a time, so one for each change.
One of a selected pod meets gateways that need not know it, and none is lost.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.netns.lab.lab import Lab
from tests.netns.lab.netns import is_alive
from tests.netns.lab.traffic import NewConnections
from tests.netns.stories.story import TWO_GATEWAYS, Story, started

MORE = 25  # connections that show that all is well: one in three would take a path that is dead


@pytest.fixture(scope="module")
def story(clean_labs: list[str]) -> Iterator[Story]:
    with Lab(f"l{os.getpid()}") as lab:
        yield started(lab)


def test_every_node_has_ports_of_every_egress_ip_and_says_which_it_needs(story: Story) -> None:
    """With files: at once, as the operator reads the Nodes; an agent says what it needs in its report."""
    shown = story.daemons.routerd("worker", "show", "port-sets", "-o", "csv").splitlines()
    found = sorted(line for line in shown if line.startswith(f"{story.pool_ip},"))
    ports = ("1024-2047", "2048-3071", "3072-4095")
    assert [line.split(",")[1:5] for line in found] == [
        [each, "1024", node, "granted"] for each, node in zip(ports, ("gw1", "gw2", "worker"), strict=True)
    ]
    socket = str(story.lab.tor.directory / "run" / "operator.sock")
    told = story.daemons.routerd("gw1", "who", f"{story.pool_ip}:3072", "--socket", socket, "-o", "csv").splitlines()
    assert told[1].startswith(f"{story.pool_ip},3072-4095,worker,")
    assert "ports to leave with?" in story.daemons.routerd("worker", "why", "pod/default/batch", check=False)
    group = found[0].split(",")[5]
    report = story.lab.node("worker").directory / "state" / "node.yaml"
    story.lab.wait(lambda: f"{{group: {group}, ports: 0, used: 0}}" in report.read_text(), "the worker asks")


def announcing(story: Story) -> list[str]:
    """Nodes whose path of the VIP the ToR uses."""
    hops = story.lab.tor.kernel_routes().get(f"{story.vip}/32", [])
    return [name for name, node in story.lab.nodes.items() if node.address in hops]


@contextmanager
def traffic(story: Story, *, changes: int) -> Iterator[list[NewConnections]]:
    """From the world to the VIP, and from a pod with an egress IP of two gateways to the world, until the block ends.

    `changes`: how often the ToR's next hops of the VIP change meanwhile.
    """
    lab = story.lab
    nodes = {node.address for node in lab.nodes.values()}
    with (
        NewConnections(lab.client, nodes, story.vip) as inbound,
        NewConnections(lab.pod("batch"), {story.pool_ip}) as outbound,
    ):
        flows = [inbound, outbound]
        goes_on(story, flows)
        yield flows
        goes_on(story, flows)
    assert [flow.fault for flow in flows] == ["", ""]
    assert len(inbound.lost) <= changes, inbound.lost
    assert outbound.lost == []


def goes_on(story: Story, flows: list[NewConnections]) -> None:
    wanted = [flow.made + MORE for flow in flows]
    story.lab.wait(
        lambda: all(flow.fault or flow.made >= least for flow, least in zip(flows, wanted, strict=True)),
        "new connections are made",
    )


def switch_off(story: Story, node: str) -> None:
    """Its processes are gone and its cable is out."""
    story.lab.tor.ip(f"link set {node} nomaster")
    for daemon in (story.daemons.agents[node], story.daemons.speakers[node]):
        if is_alive(daemon.process.pid):
            daemon.kill()


def switch_on(story: Story, node: str) -> None:
    story.lab.tor.ip(f"link set {node} master br0")
    story.daemons.start_speaker(node)
    story.daemons.start_agent(node)
    story.lab.wait(lambda: story.daemons.is_ready(node), f"the agent of {node} is ready")


def test_a_drained_node_is_switched_off(story: Story) -> None:
    """Not while a router leads there by a static route. Back, it is drained still; undrained, it serves."""
    assert announcing(story) == ["gw1", "gw2", "worker"]
    with traffic(story, changes=3):
        story.lab.tor.ip(f"route add {story.vip}/32 via {story.lab.node('gw2').address} metric 1")
        story.daemons.routerd("gw2", "drain")
        story.lab.wait(lambda: is_marked(story, "gw2"), "the ToR is asked to prefer others")
        story.lab.wait(lambda: "gw2" not in announcing(story), "the VIP is withdrawn")
        story.lab.wait(lambda: f"new connections to {story.vip} still come" in waits(story, "gw2"), "it says why not")
        story.lab.tor.ip(f"route del {story.vip}/32 via {story.lab.node('gw2').address} metric 1")
        assert story.daemons.routerd("gw2", "drain", "--wait") == "safe to stop: the node is drained\n"
    assert announcing(story) == ["gw1", "worker"]
    with traffic(story, changes=0) as flows:
        switch_off(story, "gw2")
        goes_on(story, flows)
        switch_on(story, "gw2")
        story.lab.wait(lambda: "gw2,true,drained" in shown_nodes(story, "gw2"), "it is drained still")
        assert announcing(story) == ["gw1", "worker"]
    with traffic(story, changes=1):
        assert story.daemons.routerd("gw2", "undrain") == "the node serves\n"
        serves(story)


def is_marked(story: Story, node: str) -> bool:
    """Whether the ToR has its path of the VIP with GRACEFUL_SHUTDOWN."""
    paths = [path for path in story.lab.tor.routes().get(f"{story.vip}/32", []) if path.protocol == node]
    return any("65535:0" in path.attributes.get("community", "") for path in paths)


def waits(story: Story, node: str) -> str:
    return story.daemons.routerd(node, "status")


def shown_nodes(story: Story, node: str) -> str:
    return story.daemons.routerd(node, "show", "nodes", "-o", "csv")


def is_gateway(story: Story, node: str) -> bool:
    """Whether the worker sends pods to it that leave with the pool's egress IP."""
    shown = story.daemons.routerd("worker", "show", "egress-ips", "-o", "csv").splitlines()
    return any(line.startswith(story.pool_ip) and node in line for line in shown)


def serves(story: Story) -> None:
    """All is as at the beginning."""
    tor = story.lab.tor
    story.lab.wait(lambda: announcing(story) == ["gw1", "gw2", "worker"], "gw2 announces again")
    story.lab.wait(lambda: len(tor.kernel_routes().get(f"{story.pool_ip}/32", ())) == 2, "both gateways announce")


def test_gateways_that_share_an_egress_ip_take_turns_and_share_it_again(story: Story) -> None:
    tor, prefix = story.lab.tor, f"{story.pool_ip}/32"
    alike = story.manifests.read(TWO_GATEWAYS)
    in_order = alike.replace("  gateways:\n", "  gateways:\n    mode: active-standby\n")
    with traffic(story, changes=0) as flows:
        for text, hops in ((in_order, 1), (alike, 2)):
            story.manifests.put(TWO_GATEWAYS, text)
            story.lab.wait(lambda hops=hops: len(tor.kernel_routes()[prefix]) == hops, f"the ToR sends by {hops}")
            assert len(tor.routes()[prefix]) == 2, "the standby announces, too"
            goes_on(story, flows)


def test_a_node_is_rebooted(story: Story) -> None:
    """SIGTERM to agent and speaker at once, as at every shutdown, and no drain before it."""
    run_dir = story.lab.node("gw2").directory / "run"
    with traffic(story, changes=2) as flows:
        (run_dir / "shutdown").touch()
        for daemon in (story.daemons.agents["gw2"], story.daemons.speakers["gw2"]):
            os.kill(daemon.process.pid, signal.SIGTERM)
        story.lab.wait(lambda: not is_alive(story.daemons.speakers["gw2"].process.pid), "the speaker's end")
        assert announcing(story) == ["gw1", "worker"]
        story.lab.wait(lambda: not is_gateway(story, "gw2"), "the operator has moved its egress IP")
        switch_off(story, "gw2")
        goes_on(story, flows)
        (run_dir / "shutdown").unlink()  # as a boot does, which finds /run empty
        switch_on(story, "gw2")
        serves(story)
