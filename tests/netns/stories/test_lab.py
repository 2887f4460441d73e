"""The lab proves itself, without routerd: what it connects, what it refuses, and that its leak counter can fail."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.lab import netns
from tests.netns.lab.bird import Bird, config_text
from tests.netns.lab.hosts import Node, PodHost
from tests.netns.lab.kubeproxy import Backend, ServiceEntry, ruleset
from tests.netns.lab.lab import FW_ADDRESS, POD_NETWORK, Lab, LabError, directory_of, remove_orphans
from tests.netns.lab.tap import Leaked
from tests.netns.lab.tor import TorPeer
from tests.netns.lab.wiring import Cni
from tests.waiting import PATIENCE

IP_TRANSPARENT = 19
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def pods(lab: Lab) -> Iterator[dict[str, PodHost]]:
    """Two clients on the worker and on a gateway, a web server and a DNS-like server behind services on all nodes."""
    made = {
        "plain": lab.add_pod("plain", "worker"),
        "other": lab.add_pod("other", "gw1"),
        "web": lab.add_pod("web", "worker"),
        "dns": lab.add_pod("dns", "gw2"),
    }
    made["web"].start_server(http=8080)
    made["dns"].start_server(udp=53)
    services = [
        ServiceEntry("web", "tcp", 80, (Backend(made["web"].address, 8080, "worker"),), "10.96.0.20", "192.0.2.1"),
        ServiceEntry("local", "tcp", 80, (Backend(made["web"].address, 8080, "worker"),), "", "192.0.2.2", "Local"),
        ServiceEntry("dns", "udp", 53, (Backend(made["dns"].address, 53, "gw2"),), "10.96.0.10"),
    ]
    for node in lab.nodes.values():
        node.nft(ruleset(services, node.label, POD_NETWORK))
    yield made
    for name in made:
        lab.remove_pod(name)


def test_pods_reach_each_other_with_their_own_source(pods: dict[str, PodHost]) -> None:
    plain, dns = pods["plain"], pods["dns"]
    assert plain.ask(dns.address).source == plain.address
    assert plain.ask("10.96.0.10").source == plain.address
    assert plain.get("10.96.0.20").source == plain.address
    assert plain.ping(pods["other"].address)


def test_fw_answers_allowed_sources_only(lab: Lab, pods: dict[str, PodHost]) -> None:
    pod = pods["other"]
    before = lab.fw.refused().get(pod.address, 0)
    assert pod.get(FW_ADDRESS).refusal == "refused"
    assert pod.ask(FW_ADDRESS, timeout=0.5).refusal
    assert not pod.ping(FW_ADDRESS)
    assert lab.fw.refused()[pod.address] == before + 3
    assert pod.address not in lab.fw.served()

    lab.fw.allow(pod.address)
    assert pod.get(FW_ADDRESS).source == pod.address
    assert pod.ask(FW_ADDRESS).source == pod.address
    assert pod.ping(FW_ADDRESS)
    assert pod.address in lab.fw.served()

    lab.fw.deny(pod.address)
    assert pod.get(FW_ADDRESS).refusal == "refused"


def test_capture_counts_a_planted_leak(lab: Lab, pods: dict[str, PodHost]) -> None:
    plain, other = pods["plain"], pods["other"]
    watch = lab.watch()
    watch.forbid(plain.address)
    watch.allow(other.address)

    other.get(FW_ADDRESS)
    plain.ask("10.96.0.10")
    plain.ask(pods["dns"].address)
    verdict = watch.settle()
    assert verdict.outside[other.address, FW_ADDRESS] > 0
    assert not verdict.leaks

    plain.get(FW_ADDRESS)  # its own address: one SYN, seen at the node's port and at fw's
    lab.node("gw2").get(FW_ADDRESS)  # a node's address at a guarded server: nobody's
    with pytest.raises(Leaked, match=f"^1 packets of {plain.address} to {FW_ADDRESS} by {plain.node.label}$"):
        lab.tap.check()
    leaks = watch.close().leaks
    assert leaks == {(plain.address, FW_ADDRESS): 2, (lab.node("gw2").address, FW_ADDRESS): 2}
    assert watch.verdict.lost == 0
    assert watch.verdict.packets == len(lab.tor.run(["tcpdump", "-nr", str(watch.pcap)]).splitlines())


def test_the_tap_of_every_lab_catches_what_must_not_leave(lab: Lab, pods: dict[str, PodHost]) -> None:
    """Each source of its own, once, with nobody else watching; a node's and an unselected pod's are none of them."""
    pod, gw1, gw2 = pods["plain"], lab.node("gw1"), lab.node("gw2")
    pod.ask(FW_ADDRESS, timeout=0.1)
    gw2.ask(FW_ADDRESS, timeout=0.1)
    lab.tap.lead({"192.0.2.9": ["gw1"]})
    lab.tap.check()
    foreign = {gw1: "192.0.2.10", gw2: "192.0.2.9"}
    for node, source in foreign.items():
        send(node, source, FW_ADDRESS)
    send(gw1, "192.0.2.9", FW_ADDRESS)  # the egress IP by its gateway
    with pytest.raises(Leaked) as caught:
        lab.tap.check()
    assert sorted(str(caught.value).split("; ")) == sorted(
        f"1 packets of {source} to {FW_ADDRESS} by {node.label}" for node, source in foreign.items()
    )
    lab.tap.forbid(pod.address)
    pod.ask(FW_ADDRESS, timeout=0.1)
    lab.tap.pardon(pod.address)
    pod.ask(FW_ADDRESS, timeout=0.1)
    with pytest.raises(Leaked, match=f"^1 packets of {pod.address}"):
        lab.tap.check()


def test_the_tap_knows_routes_that_came_and_went_between_two_looks(lab: Lab) -> None:
    gw1, route = lab.node("gw1"), f"192.0.2.77/32 via {lab.node('gw1').address}"
    lab.tap.check()
    lab.tor.ip(f"route add {route}")
    send(gw1, "192.0.2.77", FW_ADDRESS)
    lab.tor.ip(f"route del {route}")
    lab.wait(lambda: "Deleted 192.0.2.77" in lab.route_log.read_text(), "both are told")
    lab.tap.check()
    lab.node("gw2").ask(FW_ADDRESS, timeout=0.1)  # it looks at routes when it sees somebody
    lab.tap.check()
    send(gw1, "192.0.2.77", FW_ADDRESS)
    with pytest.raises(Leaked, match=r"^1 packets of 192\.0\.2\.77 "):
        lab.tap.check()


def send(node: Node, source: str, destination: str) -> None:
    """One datagram with a source that is not the node's."""
    with node.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        out.bind((source, 0))
        out.sendto(b"x", (destination, 9))


def test_bgp_paths_of_two_nodes_become_ecmp(lab: Lab, pods: dict[str, PodHost]) -> None:
    speakers = {name: Bird(lab.node(name), lab.node(name).directory) for name in ("gw1", "worker")}
    for name, speaker in speakers.items():
        speaker.start(_speaker_config(lab.node(name).address, local_pref=100))
    both = [lab.node(name).address for name in speakers]
    lab.wait(lambda: lab.tor.kernel_routes().get("192.0.2.1/32") == both, "two next hops in the ToR's kernel")
    assert {name: state for name, state in lab.tor.sessions().items() if state == "Established"} == dict.fromkeys(
        speakers, "Established"
    )
    assert lab.client.get("192.0.2.1").source in both

    speakers["gw1"].configure(_speaker_config(lab.node("gw1").address, local_pref=200))
    lab.wait(lambda: lab.tor.kernel_routes().get("192.0.2.1/32") == both[:1], "the better path wins")
    paths = lab.tor.routes()["192.0.2.1/32"]
    assert [(path.protocol, path.next_hop, path.best, path.local_pref) for path in paths] == [
        ("gw1", both[0], True, 200),
        ("worker", both[1], False, 100),
    ]
    lab.tap.settle()
    for name in speakers:
        speakers[name].birdc("down")
    lab.wait(lambda: not lab.tor.kernel_routes(), "withdrawn")


def _speaker_config(address: str, local_pref: int) -> str:
    return f"""\
router id {address};
protocol device {{}}
protocol static {{ ipv4; route 192.0.2.1/32 blackhole; }}
protocol bgp tor {{
    local {address} as 64512; neighbor 10.0.0.1 as 64512; direct; connect delay time 1;
    ipv4 {{ import none; export filter {{ bgp_local_pref = {local_pref}; accept; }}; next hop self; }};
}}
"""


def test_a_local_service_keeps_the_source(lab: Lab, pods: dict[str, PodHost]) -> None:
    lab.tor.ip("route add 192.0.2.2/32 via 10.0.0.21")
    assert lab.client.get("192.0.2.2").source == lab.client.address
    lab.tap.settle()
    lab.tor.ip("route del 192.0.2.2/32")


@pytest.mark.parametrize(("cni", "mtu"), [("routed", 1500), ("bridge", 1450)])
def test_other_wirings(cni: Cni, mtu: int) -> None:
    with Lab(f"w{os.getpid()}", cni=cni, pod_mtu=mtu) as lab:
        first, second, third = lab.add_pod("a", "gw1"), lab.add_pod("b", "gw1"), lab.add_pod("c", "worker")
        assert first.ping(second.address)
        assert first.ping(third.address)
        assert first.get(FW_ADDRESS).refusal == "refused"
        assert f"mtu {mtu}" in first.run(["ip", "link", "show", "eth0"])


def test_a_failure_inside_leaves_nothing_behind() -> None:
    prefix = f"x{os.getpid()}"
    with pytest.raises(ZeroDivisionError), Lab(prefix) as lab:
        sleeper = lab.node("gw1").popen(["sleep", "600"], lab.directory / "sleep.log")
        raise ZeroDivisionError
    assert sleeper.wait(PATIENCE) == -signal.SIGTERM
    assert not netns.names(f"{prefix}-")
    assert not directory_of(prefix).exists()
    assert prefix not in Path("/proc/mounts").read_text()


def test_a_killed_owner_is_cleaned_up_after() -> None:
    prefix = f"k{os.getpid()}"
    script = f"from tests.netns.lab.lab import Lab\nwith Lab('{prefix}'): print('up', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        with pytest.raises(LabError, match=f"is being used by process {owner.pid}"), Lab(prefix):
            pass
        owner.kill()
    assert netns.names(f"{prefix}-")
    assert prefix in remove_orphans()
    assert not netns.names(f"{prefix}-")


def test_a_password_shows_in_the_peer_only() -> None:
    peers = [TorPeer("a", "10.0.0.2", 65001, "x"), TorPeer("b", "10.0.0.3", 65001)]
    text = config_text(peers, address="10.0.0.1", local_as=64512)
    assert 'neighbor 10.0.0.2 as 65001; password "x"; ipv4' in text
    assert "neighbor 10.0.0.3 as 65001; ipv4" in text
