"""Tests wait for conditions (`tests.waiting`) or live in virtual time; these few pause in real time, for a reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SLEEPS = {"time.sleep", "asyncio.sleep"}
REASONS = {
    "waiting.py": "polls: the one place where others wait",
    "k8s/test_store_ports.py": "operators end at random moments",
    "models/virtual_time.py": "its sleeps take no time, and it sees to that",
    "bench": "measures: what it waits for is part of the figure",
    "netns/lab/api_restart.py": "an API server that is away for so long",
    "netns/lab/capture.py": "packets may be on their way: it counts twice, a moment apart",
    "netns/stories/chaos.py": "kills at random moments",
    "netns/stories/cut_off.py": "a gateway is cut off for so long",
    "netns/stories/partitions.py": "a fault lasts for so long",
    "netns/stories/soak.py": "a gateway leaves and comes back at random moments",
    "netns/stories/test_restart.py": "kills at chosen moments of the first round",
    "netns/lab/traffic.py": "a download at a given rate",
    "stories/test_operator_killed.py": "kills at random moments",
}


def calls(source: str) -> Iterator[tuple[int, str]]:
    """Lines that call a sleep, by whatever name it was imported."""
    nodes, names = [*ast.walk(ast.parse(source))], dict[str, str]()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {each.asname or each.name: each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    for node in nodes:
        match node:
            case ast.Call(func=ast.Name(id=name)) if names.get(name) in SLEEPS:
                yield node.lineno, names[name]
            case ast.Call(func=ast.Attribute(value=ast.Name(id=module), attr=name)):
                if (called := f"{names.get(module, module)}.{name}") in SLEEPS:
                    yield node.lineno, called


def has_reason(path: Path) -> bool:
    return any(str(each) in REASONS for each in (path, *path.parents))


def test_nobody_sleeps_without_a_reason() -> None:
    files = sorted(path for path in TESTS.rglob("*.py") if not has_reason(path.relative_to(TESTS)))
    found = [f"{path}:{line}: {name}" for path in files for line, name in calls(path.read_text())]
    assert not found, "\n".join(found)


def test_every_reason_is_still_needed() -> None:
    for name in REASONS:
        place = TESTS / name
        files = [place] if place.is_file() else [*place.rglob("*.py")]
        assert any(True for path in files for _ in calls(path.read_text())), f"{name} sleeps no more"


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.sleep(1)",
        "import asyncio as a\nasync def f(): await a.sleep(0)",
        "from time import sleep as rest\nrest(x)",
    ],
)
def test_a_sleep_is_found_by_any_name(source: str) -> None:
    assert [line for line, _ in calls(source)] == [2]


def test_what_is_only_called_so_is_no_sleep() -> None:
    assert [*calls("self.sleep(1)\nwaiting.time_sleep(1)\ndef sleep(): ...\nsleep()")] == []
