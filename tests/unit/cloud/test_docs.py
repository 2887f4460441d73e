"""What docs/cloud-*.md say of permissions, calls and reasons is so: each permission is needed, and they suffice."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloud.demand import Choice
from cloud.need import Watermarks
from tests.models.cloud.alibaba.calls import ECS
from tests.models.cloud.alibaba.calls import EVERY as ECS_EVERY
from tests.models.cloud.alibaba.front import ALIBABA_FRONT
from tests.models.cloud.azure import names
from tests.models.cloud.azure.calls import ARM
from tests.models.cloud.azure.calls import EVERY as ARM_EVERY
from tests.models.cloud.azure.front import AZURE_FRONT
from tests.models.cloud.calls import EC2, EVERY, ApiCall
from tests.models.cloud.ec2_front import EC2_FRONT
from tests.models.cloud.front import Front
from tests.models.cloud.world import World

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Page:
    name: str
    front: Front
    calls: tuple[ApiCall, ...]
    every: Mapping[str, str]

    @property
    def text(self) -> str:
        return (ROOT / "docs" / f"cloud-{self.name}.md").read_text()

    @property
    def actions(self) -> list[str]:
        policy = json.loads(re.findall(r"```json\n(.*?)```", self.text, re.DOTALL)[0])
        return policy.get("Actions") or [each for statement in policy["Statement"] for each in statement["Action"]]


PAGES = (
    Page("aws", EC2_FRONT, EC2, EVERY),
    Page("alibaba", ALIBABA_FRONT, ECS, ECS_EVERY),
    Page("azure", AZURE_FRONT, ARM, ARM_EVERY),
)
of_each = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def life(page: Page, permissions: list[str]) -> World:
    """An instance that grows and shrinks, and one whose interface is left behind."""
    world = World.of(front=page.front, marks=Watermarks(pre_allocate=2), groups=Choice(tags={"pods": "yes"}))
    world.cloud.add_group("sg-pods", pods="yes")
    world.cloud.permissions = permissions
    if page.front is AZURE_FRONT:
        world.add(names.IN_SET + "1").used = 3
    world.run(40)
    world.want(12)
    world.run(60)
    world.want(0)
    world.run(400, step=10)
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
    denied, _ = world.cloud.front.codes["denied"]
    return {action for _, action, _, code in world.cloud.log if code == denied}


@of_each
def test_the_policy_is_enough(page: Page) -> None:
    world = life(page, page.actions)
    assert refused(world) == set()
    assert world.holdings["i-1"].available() == 2
    assert world.holdings["i-1"].available(6)
    left = {eni.attachment.instance if eni.attachment else "" for eni in world.cloud.enis.values()}
    assert left == world.nodes.keys()


@pytest.mark.parametrize(("page", "action"), [(page, action) for page in PAGES for action in page.actions])
def test_each_permission_is_needed(page: Page, action: str) -> None:
    assert refused(life(page, [each for each in page.actions if each != action]))


@of_each
def test_the_policy_is_what_the_calls_need(page: Page) -> None:
    needed = {each.permission for each in page.calls} | {other for each in page.calls for other in each.also.values()}
    assert sorted(needed) == page.actions


@of_each
def test_the_calls_of_the_document_are_those_of_the_fake(page: Page) -> None:
    section = page.text.split("## Calls\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ?(.*?) ?\|$", section, re.MULTILINE)
    said = {name: (mode, re.findall(r"`([\w.]+)`", errors)) for name, mode, errors in rows}
    table = {each.name: (each.mode, sorted(each.errors) if each.mode != "read" else []) for each in page.calls}
    assert said == table
    assert set(re.findall(r"`([\w.]+)`", section.split("Any of them:")[1])) <= set(page.every)


def test_every_reason_is_in_the_document() -> None:
    files = ("cloud/plan.py", "cloud/turn.py", "cloud/egress.py", "routerd/operator/clouds.py", "eni/plan.py")
    sources = "".join((ROOT / name).read_text() for name in files)
    given = set(re.findall(r"\"((?:Cloud|Instance|MaxPods|No|PodAddress|Subnet)[A-Z]\w+)\"", sources))
    section = PAGES[0].text.split("## What may go wrong\n")[1]
    told = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", section, re.MULTILINE))))
    assert given == told
