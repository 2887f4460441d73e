"""A gateway's agent is killed for good, on plain hosts, where nobody else would tell."""

from __future__ import annotations

import json
import os

from routerd.model import EgressGroup
from tests.models.many import parse_allocations
from tests.netns.lab.daemons import Daemons
from tests.netns.lab.lab import Lab
from tests.netns.stories.story import started

PATIENCE = 20  # seconds; the shortest that can be set


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


def reached(lab: Lab) -> str:
    """The source that the destination sees, "" = it does not answer."""
    return lab.pod("batch").get(lab.fw.address).source
