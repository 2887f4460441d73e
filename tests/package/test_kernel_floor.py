"""The compiled object loads and carries packets on the oldest kernel that is supported, Debian's 6.1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bpf.features import FEATURES, decide, missing
from tests.package import machine

CHECK = Path(__file__).with_name("packet_check.py")
SECONDS = 120  # it takes 8 on a quiet machine


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the script printed inside the virtual machine."""
    console = machine.run(CHECK, "/sys/fs/bpf/floor", tmp_path_factory.mktemp("machine"), SECONDS)
    lines = [line for line in console.splitlines() if line.startswith("{")]
    assert len(lines) == 1, console[-3000:]
    result: dict[str, object] = json.loads(lines[0])
    return result


def test_the_kernel_is_the_floor(found: dict[str, object]) -> None:
    assert str(found["release"]).startswith("6.1.")


def test_the_object_carries_packets(found: dict[str, object]) -> None:
    assert (found["loaded"], found["adopted"]) == (True, True)
    assert found["verdicts"] == [-1, 7, 7, 2]
    assert (found["sources"], found["checksums"]) == (["198.51.100.7", "2001:db8:e::7"], [0, 0])
    assert found["ports"] == [40000 % 1024] * 2  # the pod's own, in the node's block
    assert found["flows_live"] == 3
    assert found["counters"] == {"encapsulated": 2, "no_route": 1}


def test_what_the_kernel_lacks_is_said(found: dict[str, object]) -> None:
    answers = found["features"]
    assert isinstance(answers, dict)
    features = [decide(requirement, answers[requirement.name]) for requirement in FEATURES]
    assert [feature.name for feature in features if not feature.present] == ["tcx"]
    assert not missing(features)
