"""A gateway falls silent: its network, which probes tell; or its agent for good, on plain hosts, where nobody would."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from bpf import layout
from bpf.loader import PinnedMaps
from routerd.model import EgressGroup
from tests.models.many import parse_allocations
from tests.netns.lab import netns
from tests.netns.lab.daemons import Daemons
from tests.netns.lab.lab import CLIENT_ADDRESS, Lab
from tests.netns.lab.traffic import Echo
from tests.netns.lab.wiring import six
from tests.netns.stories.story import started

PATIENCE = 20  # seconds; the shortest that can be set
# A gateway is left 175 ms after its last answer; what was sent meanwhile TCP sends again after 200 ms, and again after
# 400 ms more where that was too early.
STOOD_STILL = 1.5  # seconds
TARGETS = (CLIENT_ADDRESS, six(CLIENT_ADDRESS))
PROBE = {"icmp": [*TARGETS], "require": "all", "interval": "200ms", "timeout": "200ms"}
CUT = """table netdev cut {
    chain in { type filter hook ingress device "eth0" priority -500; udp dport 8473 drop; }
}
"""


def test_the_group_of_a_gateway_whose_agent_is_killed_moves_and_its_pods_leave(clean_labs: list[str]) -> None:
    """The agent ends by SIGKILL and is not started again; the speaker of the node lives, and its Node is ready."""
    with Lab(f"q{os.getpid()}", ipv6=True) as lab:
        options = {"operator": {"gateway-patience": f"{PATIENCE}s"}, "egress": {"upstream-probe": PROBE}}
        daemons = Daemons(lab, options=options)
        story = started(lab, daemons)

        def group() -> EgressGroup:
            path = lab.manifests / "allocations.yaml"
            groups = parse_allocations(path.read_text(), path.name).groups
            return next(each for each in groups if str(each.egress_ip) == story.pool_ip)

        def gateways() -> list[str]:
            return [*group().gateways]

        silent, other = lab.wait(lambda: gateways() if len(gateways()) == 2 else [], "both are gateways")
        assert lab.pod("batch").get(lab.fw.address).source == story.pool_ip
        lab.wait(lambda: "beat: " in (lab.node(silent).directory / "state" / "node.yaml").read_text(), "it beats")
        a_gateway_that_is_cut_off_is_left(lab, daemons)
        gateways_that_lead_nowhere_are_left_while_another_one_does(lab, daemons)
        daemons.agents[silent].kill()
        lab.wait(lambda: gateways() == [other], f"{other} takes the group", timeout=4 * PATIENCE)
        lab.wait(lambda: reached(lab) == story.pool_ip, "the pod leaves by the other gateway")
        rows = {each["name"]: each for each in json.loads(daemons.routerd(other, "show", "nodes", "-o", "json"))}
        assert rows[silent]["ready"] and rows[silent]["agent_silent_seconds"] >= PATIENCE
        assert rows[other]["agent_silent_seconds"] is None
        told = daemons.routerd(other, "why", f"egress/{story.pool_ip}", "-o", "json", check=False)
        assert [each["reason"] for each in json.loads(told) if not each["yes"]] == ["AgentAbsent"]
        assert daemons.operator is not None
        assert f"object=node/{silent} reason=AgentAbsent" in daemons.operator.log.read_text()

        daemons.start_agent(silent)
        lab.wait(lambda: set(gateways()) == {silent, other}, "it is a gateway again", timeout=6 * PATIENCE)
        lab.wait(lambda: reached(lab) == story.pool_ip, "the pod leaves as before")


def a_gateway_that_is_cut_off_is_left(lab: Lab, daemons: Daemons) -> None:
    """Carrier up, all processes alive, and no packet comes in through the tunnel any more, without a word to anybody.

    Several connections, so that each gateway has some. None is lost, and each goes on by the other gateway.
    """
    pod = lab.pod("batch")
    echoes: list[Echo] = []
    lab.wait(lambda: reasons(daemons) == {"gw1": "", "gw2": ""}, "both serve")

    def are_spread() -> bool:
        """A hash of its ports tells each its gateway."""
        echoes.append(running.enter_context(Echo(pod, pause=0.002)))
        used = {row["gateway"] for row in json.loads(daemons.routerd("worker", "show", "nat", "-o", "json"))}
        return len(echoes) >= 6 and len(used) == 2

    with ExitStack() as running:
        lab.wait(are_spread, "flows spread over both gateways")
        lab.wait(lambda: all(each.rounds > 10 for each in echoes), "all connections carry data")
        for gateway in ("gw1", "gw2"):
            for each in echoes:
                each.longest = 0.0
            goals = [each.rounds + 50 for each in echoes]
            lab.node(gateway).nft(CUT)
            lab.wait(partial(have_reached, echoes, goals), "they go on")
            slowest = max(each.longest for each in echoes)
            print(
                f"{gateway} cut off silently: the longest of {len(echoes)} connections stood still for {slowest:.3f} s"
            )
            assert slowest < STOOD_STILL
            lab.node(gateway).run(["nft", "delete", "table", "netdev", "cut"])
            lab.wait(lambda: len(heard(lab)) == 2, f"{gateway} answers probes again")
    assert [each.fault for each in echoes] == [""] * len(echoes)


def gateways_that_lead_nowhere_are_left_while_another_one_does(lab: Lab, daemons: Daemons) -> None:
    """Sessions, routes and uplinks are well, and what is behind the router does not answer, in either family."""

    def leave(*gateways: str) -> bool:
        return reasons(daemons) == {name: "no-upstream" if name in gateways else "" for name in ("gw1", "gw2")}

    def sources_use() -> set[str]:
        with Echo(lab.pod("batch")) as echo:
            lab.wait(lambda: echo.rounds > 2, "it carries data")
            rows = json.loads(daemons.routerd("worker", "show", "nat", "-o", "json"))
        assert not echo.fault
        return {row["gateway"] for row in rows if row["idle_seconds"] < 1}

    lab.wait(leave, "both serve")
    for target in TARGETS:
        lab.node("gw1").ip(f"route add blackhole {target}")
        lab.wait(lambda: leave("gw1"), f"gw1 says that {target} does not answer")
        assert {each for _ in range(3) for each in sources_use()} == {"gw2"}
        if target == TARGETS[0]:
            assert "UpstreamLost" in daemons.refusals("gw1")
            lab.node("gw2").ip(f"route add blackhole {target}")
            lab.wait(lambda: leave("gw1", "gw2"), "both say so")
            assert lab.pod("batch").get(lab.fw.address).source, "a probe that is wrong everywhere stops nothing"
            lab.node("gw2").ip(f"route del blackhole {target}")
        lab.node("gw1").ip(f"route del blackhole {target}")
        lab.wait(leave, "both serve again")


def reasons(daemons: Daemons) -> dict[str, str]:
    """Why each gateway asks the worker to leave it, "" = it serves."""
    rows = json.loads(daemons.routerd("worker", "show", "gateways", "-o", "json"))
    return {row["gateway"]: row["reason"] for row in rows}


def have_reached(echoes: Sequence[Echo], goals: Sequence[int]) -> bool:
    return all(each.rounds > goal for each, goal in zip(echoes, goals, strict=True))


def heard(lab: Lab) -> list[int]:
    """Gateways that have answered the worker's last probe but one, or a later one."""
    with netns.entered(lab.node("worker").name):
        maps = PinnedMaps(lab.node("worker").pin_dir / "routerd")
        rows = {layout.number(k): layout.decode(layout.Liveness, v) for k, v in maps["liveness"].items().items()}
        maps.close()
    return [number for number, row in rows.items() if row.sent and row.sent - row.heard <= 1]


def reached(lab: Lab) -> str:
    """The source that the destination sees, "" = it does not answer."""
    return lab.pod("batch").get(lab.fw.address).source
