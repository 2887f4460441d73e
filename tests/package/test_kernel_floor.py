"""The compiled object loads and carries packets on the oldest kernel that is supported, Debian's 6.1."""

from __future__ import annotations

from typing import Any

import pytest

from bpf.features import FEATURES, decide, missing
from tests.bpf import verified
from tests.package import machine


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return machine.check_packets(tmp_path_factory.mktemp("machine"))


def test_the_kernel_is_the_floor(found: dict[str, Any]) -> None:
    assert str(found["release"]).startswith("6.1.")


def test_the_object_carries_packets(found: dict[str, Any]) -> None:
    assert (found["loaded"], found["adopted"]) == (True, True)
    assert found["verdicts"] == [-1, 7, 7, 2]
    assert (found["sources"], found["checksums"]) == (["198.51.100.7", "2001:db8:e::7"], [0, 0])
    assert found["ports"] == [40000 % 1024] * 2  # the pod's own, in the node's block
    assert found["flows_live"] == 3
    assert found["counters"] == {"encapsulated": 2, "no_route": 1}


def test_what_the_kernel_lacks_is_said(found: dict[str, Any]) -> None:
    answers = found["features"]
    features = [decide(requirement, answers[requirement.name]) for requirement in FEATURES]
    assert [feature.name for feature in features if not feature.present] == ["tcx"]
    assert not missing(features)


def test_the_verifier_has_no_more_to_do_than_before(found: dict[str, Any]) -> None:
    assert verified.complaints(found["verified"], verified.recorded().get(verified.place(found["release"]))) == []
