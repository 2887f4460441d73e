"""Nothing is lost by a restart, and what somebody breaks is mended: the lab with every process, killed and damaged."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpf import layout, syscall
from routerd.errors import RouterdError
from tests.netns.daemons import Daemons
from tests.netns.footprint import difference, footprint
from tests.netns.hosts import Node
from tests.netns.lab import Lab
from tests.netns.pathwatch import PathWatch
from tests.netns.story import EGRESS_IP, Story, build, fetch_vip, sessions_up, tor_table, write_manifests
from tests.netns.traffic import Download, Echo


@dataclass
class Running:
    """The demo's cluster, running."""

    story: Story
    lab: Lab
    daemons: Daemons

    def settled(self, timeout: float = 15) -> None:
        """Waits until no node has anything left to do."""
        self.lab.wait(lambda: not self.pending(), timeout, "no node has anything to do")

    def pending(self) -> list[str]:
        try:
            return [f"{node}: {line}" for node in self.lab.nodes for line in self.daemons.plan(node)]
        except RouterdError as error:
            return [str(error)]

    def footprints(self) -> dict[str, dict[str, object]]:
        return {name: footprint(node) for name, node in self.lab.nodes.items()}

    def restart_agents(self, *nodes: str) -> None:
        for node in nodes:
            self.daemons.agents[node].kill()
        for node in nodes:
            self.daemons.start_agent(node)
        for node in nodes:
            self.lab.wait(lambda n=node: self.daemons.is_ready(n), 15, f"agent of {node} is ready")  # type: ignore[misc]

    def selected_pods_leave(self) -> None:
        for pod, source in (("snat-pod", EGRESS_IP), ("snat-gw", EGRESS_IP), ("batch", self.story.pool_ip)):
            assert self.lab.pod(pod).get(self.lab.fw.address).source == source

    def no_leak(self) -> None:
        assert self.story.watch is not None
        verdict = self.story.watch.settle()
        assert not verdict.leaks
        assert verdict.lost == 0


@pytest.fixture(scope="module")
def running(clean_labs: list[str]) -> Iterator[Running]:
    with Lab(f"r{os.getpid()}") as lab:
        story = Story(lab, Daemons(lab), time.monotonic())
        for scene in (build, write_manifests, sessions_up, tor_table, fetch_vip):
            scene(story)
        built = Running(story, lab, story.daemons)
        built.settled()
        yield built


@pytest.fixture(autouse=True)
def whole(running: Running) -> Iterator[None]:
    """Every test leaves the cluster as it found it, and nothing has leaked."""
    yield
    running.settled()
    running.selected_pods_leave()
    running.no_leak()


# --- restarts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [("worker",), ("gw1",), ("worker", "gw1")], ids=["source", "gateway", "both"])
def test_a_download_outlives_the_agents(running: Running, nodes: Sequence[str]) -> None:
    before = running.footprints()
    exabgp = {node: running.daemons.speakers[node].tree() for node in nodes}
    wanted = paths_now(running)
    with Download(running.lab.pod("snat-pod")) as download, PathWatch(running.lab.tor.bgp.socket) as watch:
        watch.wanted = wanted
        running.lab.wait(lambda: download.received > 1 << 20, 10, "the download runs")
        running.restart_agents(*nodes)
        at = download.received
        running.lab.wait(lambda: download.received > at + (1 << 20), 10, "the download goes on")
        running.settled()
        assert download.end() == ""
    assert watch.missed == []
    assert {node: difference(before[node], now) for node, now in running.footprints().items()} == {
        node: [] for node in running.lab.nodes
    }
    assert exabgp == {node: running.daemons.speakers[node].tree() for node in nodes}


def test_an_adopting_agent_changes_nothing(running: Running) -> None:
    """Its first round finds all in place: the log has no round with an action."""
    log = running.daemons.agents["gw1"].log
    end = log.stat().st_size
    running.restart_agents("gw1", "worker")
    said = running.lab.wait(lambda: text if "event=ready" in (text := log.read_text()[end:]) else "", 5, "it says so")
    assert "event=round " not in said


def paths_now(running: Running) -> frozenset[tuple[str, str]]:
    found = {(prefix, path.protocol) for prefix, some in running.lab.tor.routes().items() for path in some}
    return frozenset(found)


# --- damage, mended by the next agent -------------------------------------------------------------------------------

Damage = Callable[[Running, Node], None]


def command(*words: str) -> Damage:
    """Runs a command on the node; `{…}` in a word is filled in from the cluster."""
    return lambda running, node: (node.run([word.format(pool_ip=running.story.pool_ip) for word in words]), None)[1]


def nft(line: str) -> Damage:
    return lambda running, node: node.nft(line + "\n")


def unpin(*names: str) -> Damage:
    def damage(running: Running, node: Node) -> None:
        for name in names:
            (node.pin_dir / "routerd" / name).unlink()

    return damage


def unpin_everything(running: Running, node: Node) -> None:
    for path in sorted((node.pin_dir / "routerd").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def opened(path: Path) -> syscall.BpfMap:
    return syscall.BpfMap(syscall.open_pinned(path))


def empty_map(name: str) -> Damage:
    def damage(running: Running, node: Node) -> None:
        entries = opened(node.pin_dir / "routerd" / "maps" / name)
        keys = list(entries.items())
        assert keys
        for key in keys:
            entries.delete(key)
        entries.close()

    return damage


def wrong_value(running: Running, node: Node) -> None:
    """Every pod without policies: as an agent would leave it that was told so."""
    pods = opened(node.pin_dir / "routerd" / "maps" / "pods")
    for key in pods.items():
        pods.put(key, layout.u32(0))
    pods.close()


def detach_links(running: Running, node: Node) -> None:
    links = list((node.pin_dir / "routerd" / "links").iterdir())
    assert links
    for path in links:
        fd = syscall.open_pinned(path)
        syscall.detach_link(fd)
        os.close(fd)


MENDED: dict[str, tuple[str, Damage]] = {
    "map-entries-deleted-at-the-source": ("worker", empty_map("pods")),
    "map-entries-deleted-at-the-gateway": ("gw1", empty_map("groups")),
    "map-value-changed": ("worker", wrong_value),
    "links-detached": ("worker", detach_links),
    "blackhole-route-deleted": ("gw1", command("ip", "route", "del", "blackhole", EGRESS_IP)),
    "guard-deleted": ("worker", nft("delete table inet routerd")),
    "guard-flushed": ("worker", nft("flush table inet routerd")),
    "every-table-flushed": ("gw2", nft("flush ruleset")),
    "guard-chain-flushed": ("worker", nft("flush chain inet routerd forward")),
    "guard-set-flushed": ("worker", nft("flush set inet routerd pod_cidrs")),
    "guard-element-deleted": ("gw1", nft("delete element inet routerd nodes { 10.0.0.21 }")),
    "guard-rule-inserted": ("worker", nft("insert rule inet routerd forward accept")),
    "guard-policy-changed": ("worker", nft("add chain inet routerd prerouting { policy drop; }")),
    "guard-chain-on-no-hook": ("worker", nft("delete chain inet routerd forward; add chain inet routerd forward")),
    "guard-dormant": ("worker", nft("add table inet routerd { flags dormant; }")),
    "guard-with-foreign-objects": (
        "worker",
        nft("add set inet routerd zz { type ipv4_addr; }; add chain inet routerd b; add chain inet routerd a; "
            "add rule inet routerd b jump a; add chain inet routerd d { type filter hook input priority 0; }"),
    ),
    "guard-set-of-another-type": (
        "worker",
        nft("flush table inet routerd; delete set inet routerd nodes; add set inet routerd nodes { type ether_addr; }"),
    ),
    "tunnel-deleted-at-the-source": ("worker", command("ip", "link", "del", "routerd.vxlan")),
    "tunnel-deleted-at-the-gateway": ("gw1", command("ip", "link", "del", "routerd.vxlan")),
    "tunnel-down": ("gw1", command("ip", "link", "set", "routerd.vxlan", "down")),
    "tunnel-mtu": ("worker", command("ip", "link", "set", "routerd.vxlan", "mtu", "1000")),
    "tunnel-forwarding-off": ("gw1", command("sysctl", "-qw", "net.ipv4.conf.routerd/vxlan.forwarding=0")),
    "tunnel-of-another-kind": (
        "worker",
        command("sh", "-c", "ip link del routerd.vxlan; ip link add routerd.vxlan type bridge"),
    ),
    "map-pin-removed": ("worker", unpin("maps/pods")),
    "state-pins-removed": ("gw1", unpin("maps/nat", "maps/reverse", "maps/counters")),
    "settings-pin-removed": ("gw1", unpin("maps/settings")),
    "program-pin-removed": ("gw1", unpin("programs/from_tunnel")),
    "unused-program-pin-removed": ("gw1", unpin("programs/collect")),
    "reserved-ports-reset": ("gw2", command("sysctl", "-qw", "net.ipv4.ip_local_reserved_ports=")),
}  # fmt: skip


@pytest.mark.parametrize("name", MENDED)
def test_damage_is_mended_by_the_next_agent(running: Running, name: str) -> None:
    node, damage = MENDED[name]
    before = footprint(running.lab.node(node))
    with Echo(running.lab.pod("snat-pod")) as echo:
        running.lab.wait(lambda: echo.rounds > 2, 5, "the echo runs")
        running.daemons.agents[node].kill()
        damage(running, running.lab.node(node))
        running.restart_agents(node)
        running.settled()
        at = echo.rounds
        running.lab.wait(lambda: echo.rounds > at + 2, 20, "the echo goes on")
        assert echo.end() == ""
    changed = difference(before, footprint(running.lab.node(node)))
    assert [line for line in changed if not _is_expected(name, line)] == []


def _is_expected(name: str, line: str) -> bool:
    """What was deleted is made anew; all else stays the same object."""
    if name in ("tunnel-deleted-at-the-source", "tunnel-deleted-at-the-gateway", "tunnel-of-another-kind"):
        return line.startswith(("device routerd.vxlan", "link from_tunnel"))
    if name == "links-detached":
        return line.startswith("link ")
    if name == "unused-program-pin-removed":  # nothing else holds it: all programs are loaded again and swapped
        return line.startswith(("program ", "link "))
    return False
