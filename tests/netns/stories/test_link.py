"""Nodes on one link, with their agents: packets need no tunnel, and have it again at once when the link fails them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence

from tests.netns.lab.daemons import Daemons
from tests.netns.lab.lab import Lab
from tests.netns.lab.traffic import Echo
from tests.netns.lab.wiring import six
from tests.netns.stories.story import started

OTHER_MAC = "02:00:00:00:77:01"
FAR_PODS = "10.250.0.0/16"  # of another cluster
STOOD_STILL = 1.5  # seconds: 175 ms until the tunnel is used, and what TCP takes to send again


def test_nodes_need_no_tunnel_until_a_mac_changes(clean_labs: list[str]) -> None:
    """The new MAC is reported and published later; connections outlive both changes."""
    with Lab(f"l{os.getpid()}", ipv6=True) as lab:
        native = {"auto-direct-node-routes": True, "learn": [FAR_PODS, six(FAR_PODS)]}
        options = {"egress": {"transport": "auto"}, "native-routing": native}
        daemons = Daemons(lab, options=options)
        story = started(lab, daemons)

        def passed() -> dict[str, int]:
            packets: dict[str, int] = json.loads(daemons.routerd("worker", "status", "-o", "json"))["egress"]["passed"]
            return packets

        def transports() -> set[str]:
            rows = json.loads(daemons.routerd("worker", "show", "nodes", "-o", "json"))
            return {row["transport"] for row in rows if row["name"].startswith("gw")}

        pod, worker, operator = lab.pod("batch"), lab.node("worker"), daemons.operator
        assert operator is not None
        lab.wait(lambda: transports() == {"direct"}, "the gateways are reached without the tunnel", timeout=90)
        lab.wait(lambda: _sends(lab, passed, "sent_direct"), "packets go so", timeout=90)
        assert pod.get(lab.fw.address).source == story.pool_ip
        worker.sysctl({"net.ipv4.conf.eth0.arp_notify": 1, "net.ipv6.conf.eth0.ndisc_notify": 1})  # as bonds do
        with Echo(pod) as echo:
            lab.wait(lambda: echo.rounds, "the connection is open")
            with operator.standing_still():  # nobody publishes the new MAC
                worker.ip(f"link set eth0 address {OTHER_MAC}")
                lab.wait(lambda: _sends(lab, passed, "encapsulated"), "packets go through the tunnel")
                lab.wait(lambda: transports() == {"vxlan"}, "the tunnel is told")
            lab.wait(lambda: _sends(lab, passed, "sent_direct"), "the new MAC is known", timeout=90)
            lab.wait(lambda: transports() == {"direct"}, "the link is told")
            assert echo.end() == ""
            assert echo.longest < STOOD_STILL
        _routes_of_ours_take_the_place_of_those_that_go(lab, daemons)
        _routes_are_learnt_of_the_tor(lab, daemons)


def _routes_of_ours_take_the_place_of_those_that_go(lab: Lab, daemons: Daemons) -> None:
    """The CNI's to other nodes' pods are not shadowed while they are there."""
    worker, others = lab.node("worker"), [lab.node(name) for name in ("gw1", "gw2")]

    def states() -> dict[str, str]:
        rows = json.loads(daemons.routerd("worker", "show", "routes", "-o", "json"))
        return {row["prefix"]: row["state"] for row in rows}

    blocks = [cidr for node in others for cidr in (node.spec.pod_cidr, six(node.spec.pod_cidr))]
    assert states() == dict.fromkeys(blocks, "taken")
    assert "RouteTaken" in daemons.refusals("worker")
    worker.ip(*(f"route del {block}" for block in blocks))
    lab.wait(lambda: states() == dict.fromkeys(blocks, "installed"), "routes of ours are there")
    for node in others:
        for address in (node.next_pod_address(), six(node.next_pod_address())):
            assert "table 203" in worker.run(["ip", "route", "get", address])
    assert "RouteTaken" not in daemons.refusals("worker")
    assert daemons.plan("worker") == []
    pod, dns = lab.pod("snat-pod"), lab.pod("dns")
    assert pod.ask(dns.address).source == pod.address
    worker.ip(f"route add {blocks[0]} via {others[0].address}")
    lab.wait(lambda: states()[blocks[0]] == "taken", "another's route is not shadowed")


def _sends(lab: Lab, passed: Callable[[], dict[str, int]], outcome: str) -> bool:
    before = passed()
    lab.pod("batch").get(lab.fw.address)
    return passed().get(outcome, 0) > before.get(outcome, 0)


def _routes_are_learnt_of_the_tor(lab: Lab, daemons: Daemons) -> None:
    """They outlive agent and speaker, and go with what tells of them, after the time that it asked for."""
    worker, agent, speaker = lab.node("worker"), daemons.agents["worker"], daemons.speakers["worker"]
    gw1, gw2 = (lab.node(name).address for name in ("gw1", "gw2"))

    def say(*routes: str) -> None:
        """The ToR's static routes: those of IPv6, and the others."""
        lines = [f"protocol static {{ ipv{v}; {_static(routes, v)} }}\n" for v in (4, 6)]
        graceful = lab.tor_config("".join(lines)).replace("graceful restart aware", "graceful restart on")
        lab.tor.bgp.configure(graceful.replace("export none", "export where source = RTS_STATIC"))

    def learnt() -> dict[str, str]:
        rows = json.loads(daemons.routerd("worker", "show", "routes", "-o", "json"))
        return {row["prefix"]: f"{row['state']} {row['next_hops']}" for row in rows if row["by"] == "bgp"}

    def table() -> str:
        return worker.run(["ip", "route", "show", "table", "203", "proto", "204"])

    first, second = f"10.250.1.0/24 via {gw1}", f"{six('10.250.2.0/24')} via {six(gw2)}"
    say(first, second, f"10.251.1.0/24 via {gw1}")
    there = {"10.250.1.0/24": f"installed {gw1}", six("10.250.2.0/24"): f"installed {six(gw2)}"}
    lab.wait(lambda: learnt() == there, "what lies in the networks is learnt", timeout=60)
    assert first in table()
    agent.kill()
    assert first in table()
    daemons.start_agent("worker")
    lab.wait(lambda: daemons.is_ready("worker") and learnt() == there, "the next agent knows them", timeout=60)
    for relay in speaker.relays():
        os.kill(relay, signal.SIGKILL)
    there["10.250.3.0/24"] = f"installed {gw2}"
    say(first, second, f"10.250.3.0/24 via {gw2}")
    lab.wait(lambda: learnt() == there, "the next relay hears of more", timeout=60)
    speaker.kill()
    daemons.start_speaker("worker")
    lab.wait(lambda: not daemons.refusals("worker") & {"NoSpeaker", "SessionDown"}, "the next session", timeout=60)
    assert learnt() == there
    say(second)
    lab.wait(lambda: learnt().keys() == {six("10.250.2.0/24")}, "what the ToR withdraws goes", timeout=60)
    assert first not in table()


def _static(routes: Sequence[str], version: int) -> str:
    return "".join(f"route {each}; " for each in routes if (":" in each) == (version == 6))
