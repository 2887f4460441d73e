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
from tests.netns.lab.lab import Lab
from tests.netns.lab.traffic import Echo
from tests.netns.stories.story import started

PATIENCE = 20  # seconds; the shortest that can be set
# A gateway is left 175 ms after its last answer; what was sent meanwhile TCP sends again after 200 ms, and again after
# 400 ms more where that was too early.
STOOD_STILL = 1.5  # seconds
CUT = """table netdev cut {
    chain in { type filter hook ingress device "eth0" priority -500; udp dport 8473 drop; }
}
"""


def test_the_group_of_a_gateway_whose_agent_is_killed_moves_and_its_pods_leave(clean_labs: list[str]) -> None:
    """The agent ends by SIGKILL and is not started again; the speaker of the node lives, and its Node is ready."""
    with Lab(f"q{os.getpid()}") as lab:
        daemons = Daemons(lab, options={"operator": {"gateway-patience": f"{PATIENCE}s"}})
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
    echoes = [Echo(pod, pause=0.002) for _ in range(6)]
    with ExitStack() as running:
        for each in echoes:
            running.enter_context(each)
        lab.wait(lambda: all(each.rounds > 10 for each in echoes), "all connections carry data")
        used = {row["gateway"] for row in json.loads(daemons.routerd("worker", "show", "nat", "-o", "json"))}
        assert len(used) == 2, "flows spread over both gateways"
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
