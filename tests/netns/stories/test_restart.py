"""Nothing is lost by a restart, and what somebody breaks is mended: the lab with every process, killed and damaged."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpf import layout, syscall
from routerd.errors import RouterdError
from tests.netns.lab.bird import Route
from tests.netns.lab.daemons import Daemons, attached
from tests.netns.lab.footprint import difference, footprint
from tests.netns.lab.hosts import Node
from tests.netns.lab.lab import Lab
from tests.netns.lab.netns import run
from tests.netns.lab.pathwatch import PathWatch
from tests.netns.lab.traffic import Download, Echo, NewConnections
from tests.netns.stories.story import EGRESS_IP, Story, started


@dataclass
class Running:
    """The demo's cluster, running."""

    story: Story
    lab: Lab
    daemons: Daemons

    def settled(self) -> None:
        """Waits until no node has anything left to do."""
        self.lab.wait(lambda: not self.pending(), "no node has anything to do")

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
            self.lab.wait(lambda n=node: self.daemons.is_ready(n), f"agent of {node} is ready")  # type: ignore[misc]

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
        story = started(lab)
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
    with Download(running.lab.pod("snat-pod")) as download, PathWatch(running.lab.tor.control) as watch:
        watch.wanted = wanted
        running.lab.wait(lambda: download.received > 1 << 20, "the download runs")
        running.restart_agents(*nodes)
        at = download.received
        running.lab.wait(lambda: download.received > at + (1 << 18), "the download goes on")
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
    said = running.lab.wait(lambda: text if "event=ready" in (text := log.read_text()[end:]) else "", "it says so")
    assert "event=round " not in said


def test_a_running_agent_mends_by_itself(running: Running) -> None:
    """Several things broken at once, and nobody restarts anything: within a period or two all is back."""
    worker, gateway = running.lab.node("worker"), running.lab.node("gw1")
    before = running.footprints()
    pids = {node: daemon.process.pid for node, daemon in running.daemons.agents.items()}
    for name in ("guard-deleted", "map-entries-deleted-at-the-source", "map-pin-removed"):
        MENDED[name][1](running, worker)
    for name in ("blackhole-route-deleted", "tunnel-down", "state-pins-removed", "program-pin-removed"):
        MENDED[name][1](running, gateway)
    running.settled()
    running.selected_pods_leave()
    assert {node: difference(before[node], now) for node, now in running.footprints().items()} == {
        node: [] for node in running.lab.nodes
    }
    assert pids == {node: daemon.process.pid for node, daemon in running.daemons.agents.items()}


def test_foreign_programs_are_left_alone(running: Running) -> None:
    """Somebody else's qdisc and filter on a pod's device and on an uplink, before a restart and behind it."""
    worker, gateway = running.lab.node("worker"), running.lab.node("gw1")
    places = [(worker, running.lab.pod("snat-pod").device), (worker, "eth0"), (gateway, "eth0")]
    for node, device in places:
        node.run(["tc", "qdisc", "add", "dev", device, "clsact"])
        for hook in ("ingress", "egress"):
            add = ["tc", "filter", "add", "dev", device, hook, "prio", "3", "protocol", "all"]
            node.run([*add, "bpf", "bytecode", "1,6 0 0 4294967295", "classid", "1:1"])
    shown = [_filters(node, device) for node, device in places]
    before = running.footprints()
    running.selected_pods_leave()
    running.restart_agents("worker", "gw1")
    running.settled()
    running.selected_pods_leave()
    assert [_filters(node, device) for node, device in places] == shown
    assert all(shown)
    assert running.footprints() == before
    for node, device in places:
        node.run(["tc", "qdisc", "del", "dev", device, "clsact"])


def _filters(node: Node, device: str) -> str:
    return "".join(node.run(["tc", "filter", "show", "dev", device, hook]) for hook in ("ingress", "egress"))


# --- speakers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victims", ["exabgp", "relay", "both", "agent too"])
def test_a_killed_speaker_loses_no_path(running: Running, victims: str) -> None:
    speaker, tor = running.daemons.speakers["gw1"], running.lab.tor
    before, since = tor.routes(), _since(running)
    with (
        PathWatch(tor.control) as watch,
        NewConnections(running.lab.client, nodes_of(running), running.story.vip) as new,
    ):
        watch.wanted = paths_now(running)
        relays = speaker.relays()
        assert relays
        if victims == "agent too":
            running.daemons.agents["gw1"].kill()
        if victims != "exabgp":
            for pid in relays:
                os.kill(pid, signal.SIGKILL)
        if victims == "relay":  # ExaBGP starts another one
            running.lab.wait(lambda: set(speaker.relays()) - set(relays), "another relay")
        else:
            speaker.kill()
            running.daemons.start_speaker("gw1")
        if victims == "agent too":
            running.daemons.start_agent("gw1")
        running.lab.wait(lambda: tor.sessions()["gw1"] == "Established", "the session is up")
        running.settled()
        running.lab.wait(lambda: _stale(running) == 0, "the peer has End-of-RIB: nothing is stale")
        running.lab.wait(lambda: watch.looks > 20, "the ToR was looked at often enough")
        assert new.end() == ""
    assert watch.missed == []
    assert watch.fault == ""
    assert _table(before) == _table(tor.routes())
    changed = {node for node, text in _since(running).items() if text != since[node]}
    assert changed == (set() if victims == "relay" else {"gw1"})


def nodes_of(running: Running) -> set[str]:
    return {node.address for node in running.lab.nodes.values()}


def _table(routes: dict[str, list[Route]]) -> set[tuple[str, str, str, str]]:
    return {
        (prefix, path.protocol, path.next_hop, str(sorted(path.attributes.items())))
        for prefix, some in routes.items()
        for path in some
    }


def _stale(running: Running) -> int:
    """Nodes whose paths the ToR keeps of an ended session: End-of-RIB has not come yet."""
    return birdc(running, "show protocols all").count("Neighbor graceful restart active")


def _since(running: Running) -> dict[str, str]:
    """Node -> since when its session is up."""
    rows = (line.split() for line in birdc(running, "show protocols").splitlines())
    return {row[0]: row[4] for row in rows if len(row) > 5 and row[1] == "BGP"}


def test_the_path_watch_can_fail(running: Running) -> None:
    with PathWatch(running.lab.tor.control) as watch:
        watch.wanted = paths_now(running)
        birdc(running, "disable gw2")
        birdc(running, "enable gw2")
        running.lab.wait(lambda: watch.missed, "the watch notices")
        assert {node for _, _, node in watch.missed} == {"gw2"}
    running.lab.wait(lambda: paths_now(running) == watch.wanted, "the paths are back")


# --- everything -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [("worker",), ("gw1",), ("gw1", "gw2", "worker")], ids=["worker", "gateway", "all"])
def test_a_whole_set_killed_at_once(running: Running, nodes: Sequence[str]) -> None:
    """Agent and speaker of a node; and everything there is, the operator too."""
    daemons, before = running.daemons, running.footprints()
    table = _table(running.lab.tor.routes())
    killed = [daemons.agents[n] for n in nodes] + [daemons.speakers[n] for n in nodes]
    with PathWatch(running.lab.tor.control) as watch, Echo(running.lab.pod("snat-pod")) as echo:
        watch.wanted = paths_now(running)
        running.lab.wait(lambda: echo.rounds > 2, "the echo runs")
        if len(nodes) > 1:
            assert daemons.operator is not None
            killed.append(daemons.operator)
        for daemon in killed:
            daemon.kill()
        at = echo.rounds
        running.lab.wait(lambda: echo.rounds > at + 10, "the echo goes on with nobody there")
        if len(nodes) > 1:
            daemons.start_operator()
        for node in nodes:
            daemons.start_speaker(node)
            daemons.start_agent(node)
        running.settled()
        running.lab.wait(lambda: _stale(running) == 0, "nothing is stale")
        assert echo.end() == ""
    assert watch.missed == []
    assert _table(running.lab.tor.routes()) == table
    assert running.footprints() == before


def paths_now(running: Running) -> frozenset[tuple[str, str]]:
    found = {(prefix, path.protocol) for prefix, some in running.lab.tor.routes().items() for path in some}
    return frozenset(found)


# --- cleanup ----------------------------------------------------------------------------------------------------------


def test_cleanup_leaves_nothing_of_ours_and_all_of_others(running: Running) -> None:
    """Twice, on a gateway that reserves ports, beside what others have put there; then the node starts from nothing,
    and is killed over and over before it has it all.
    """
    node, daemons = running.lab.node("gw2"), running.daemons
    refused = daemons.routerd("gw2", "cleanup", check=False)
    assert "stop it first" in refused
    daemons.agents["gw2"].kill()
    assert "speaker" in daemons.routerd("gw2", "cleanup", check=False)
    daemons.speakers["gw2"].kill()

    node.ip("route add blackhole 192.0.2.200 proto static", "link add foreign0 type bridge")
    node.nft("table inet foreign { chain forward { type filter hook forward priority 0; }; }")
    node.run(["tc", "qdisc", "add", "dev", "eth0", "clsact"])
    node.run(["sysctl", "-qw", "net.ipv4.ip_local_reserved_ports=30000-30010,60990-65535"])  # others' beside ours
    foreign = _foreign(node)
    removed = daemons.routerd("gw2", "cleanup").splitlines()
    assert {"removed device routerd.vxlan", "removed nft table inet routerd"} <= set(removed)
    assert daemons.routerd("gw2", "cleanup") == "nothing to remove\n"

    ports = len(range(30000, 30011)) + len(range(60990, 61440))
    assert footprint(node) == {"reserved ports": ports}
    assert not (node.pin_dir / "routerd").exists()
    assert attached(node) == {}
    assert _foreign(node) == foreign
    assert node.run(["sysctl", "-n", "net.ipv4.ip_local_reserved_ports"]) == "30000-30010,60990-61439\n"
    node.ip("route del blackhole 192.0.2.200", "link del foreign0")
    node.nft("delete table inet foreign")
    node.run(["tc", "qdisc", "del", "dev", "eth0", "clsact"])
    node.run(["sysctl", "-qw", "net.ipv4.ip_local_reserved_ports="])
    daemons.start_speaker("gw2")
    for delay in (0.4, 0.6, 0.8, 1.0):  # killed somewhere in its first round, over nothing or over half of it
        daemons.start_agent("gw2")
        time.sleep(delay)
        daemons.agents["gw2"].kill()
    running.restart_agents("gw2")


def _foreign(node: Node) -> list[str]:
    """What is not ours, as the node's tools show it."""
    commands = ("ip -o link", "ip -4 route", "tc qdisc show", "nft list tables", "nft list table inet foreign")
    lines = [line for command in commands for line in node.run(command.split()).splitlines()]
    return [line for line in lines if "routerd" not in line and " proto 203 " not in line]


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
    for key, raw in pods.items().items():
        value = layout.decode(layout.PodValue, raw)
        value.policy_set = 0
        pods.put(key, bytes(value))
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
    "map-entries-deleted-at-the-gateway": ("gw1", empty_map("egress_ips")),
    "map-value-changed": ("worker", wrong_value),
    "links-detached": ("worker", detach_links),
    "blackhole-route-deleted": ("gw1", command("ip", "route", "del", "blackhole", EGRESS_IP)),
    "guard-deleted": ("worker", nft("delete table inet routerd")),
    "guard-flushed": ("worker", nft("flush table inet routerd")),
    "every-table-flushed": ("gw2", nft("flush ruleset")),
    "guard-chain-flushed": ("worker", nft("flush chain inet routerd forward")),
    "guard-set-flushed": ("worker", nft("flush set inet routerd pod_sources")),
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
    "state-pins-removed": ("gw1", unpin("maps/flows", "maps/reverse", "maps/counters")),
    "settings-pin-removed": ("gw1", unpin("maps/settings")),
    "program-pin-removed": ("gw1", unpin("programs/from_tunnel")),
    "unused-program-pin-removed": ("gw1", unpin("programs/collect")),
    "every-pin-removed": ("worker", unpin_everything),
    "reserved-ports-reset": ("gw2", command("sysctl", "-qw", "net.ipv4.ip_local_reserved_ports=")),
}  # fmt: skip


@pytest.mark.parametrize("name", MENDED)
def test_damage_is_mended_by_the_next_agent(running: Running, name: str) -> None:
    node, damage = MENDED[name]
    before = footprint(running.lab.node(node))
    with Echo(running.lab.pod("snat-pod")) as echo:
        running.lab.wait(lambda: echo.rounds > 2, "the echo runs")
        running.daemons.agents[node].kill()
        damage(running, running.lab.node(node))
        running.restart_agents(node)
        running.settled()
        at = echo.rounds
        running.lab.wait(lambda: echo.rounds > at + 2, "the echo goes on")
        assert echo.end() == ""

    def mended() -> bool:
        changed = difference(before, footprint(running.lab.node(node)))
        return all(_is_expected(name, line) for line in changed)

    running.lab.wait(mended, f"{node} is as it was")


def _is_expected(name: str, line: str) -> bool:
    """What was deleted is made anew; all else stays the same object."""
    if name in ("tunnel-deleted-at-the-source", "tunnel-deleted-at-the-gateway", "tunnel-of-another-kind"):
        return line.startswith(("device routerd.vxlan", "link from_tunnel", "link to_tunnel"))
    if name == "links-detached":
        return line.startswith("link ")
    if name == "every-pin-removed":
        return line.startswith(("program ", "link ", "map "))
    if name == "unused-program-pin-removed":  # nothing else holds it: all programs are loaded again and swapped
        return line.startswith(("program ", "link "))
    return False


def birdc(running: Running, command: str) -> str:
    return run(["birdc", "-s", str(running.lab.tor.control), *command.split()])
