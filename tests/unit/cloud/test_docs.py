"""What docs/cloud-aws.md says of permissions, calls and reasons is so: each permission is needed, and they suffice."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cloud.demand import Choice
from cloud.need import Watermarks
from tests.models.cloud.calls import EC2, EVERY
from tests.models.cloud.world import World

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "cloud-aws.md").read_text()
POLICY = json.loads(re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)[0])
ACTIONS = [action for statement in POLICY["Statement"] for action in statement["Action"]]


def life(permissions: list[str]) -> World:
    """An instance that grows and shrinks, and one whose interface is left behind."""
    world = World.of(marks=Watermarks(pre_allocate=2), groups=Choice(tags={"pods": "yes"}))
    world.cloud.add_group("sg-pods", pods="yes")
    world.cloud.permissions = permissions
    world.run(40)
    world.replaced(ipv6=True)
    world.run(20)
    world.want(9)
    world.run(60)
    world.want(0)
    world.add("i-2")
    world.run(5)
    world.cloud.terminate("i-2")
    del world.nodes["i-2"]
    world.run(900, step=15)
    return world


def refused(world: World) -> set[str]:
    return {action for _, action, _, code in world.cloud.log if code == "UnauthorizedOperation"}


def test_the_policy_is_enough() -> None:
    world = life(ACTIONS)
    assert refused(world) == set()
    assert world.holdings["i-1"].available() == 2
    assert world.holdings["i-1"].available(6)
    assert {eni.attachment.instance if eni.attachment else "" for eni in world.cloud.enis.values()} == {"i-1"}


@pytest.mark.parametrize("action", ACTIONS)
def test_each_permission_is_needed(action: str) -> None:
    assert refused(life([each for each in ACTIONS if each != action]))


def test_the_policy_is_what_the_calls_need() -> None:
    needed = {each.permission for each in EC2} | {other for each in EC2 for other in each.also.values()}
    assert sorted(needed) == ACTIONS


def test_the_calls_of_the_document_are_those_of_the_fake() -> None:
    section = TEXT.split("## Calls\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ?(.*?) ?\|$", section, re.MULTILINE)
    said = {name: (mode, re.findall(r"`([\w.]+)`", errors)) for name, mode, errors in rows}
    table = {each.name: (each.mode, sorted(each.errors) if each.mode != "read" else []) for each in EC2}
    assert said == table
    assert set(re.findall(r"`(\w+)`", section.split("Any of them:")[1])) <= set(EVERY)


def test_every_reason_is_in_the_document() -> None:
    files = ("cloud/plan.py", "cloud/turn.py", "cloud/egress.py", "routerd/operator/clouds.py", "eni/plan.py")
    sources = "".join((ROOT / name).read_text() for name in files)
    given = set(re.findall(r"\"((?:Cloud|Instance|No|Subnet)[A-Z]\w+)\"", sources))
    section = TEXT.split("## What may go wrong\n")[1]
    told = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", section, re.MULTILINE))))
    assert given == told
