"""What the kernel lacks, and what follows; the table names every helper that the object calls."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from bpf.features import FEATURES, Requirement, decide, describe_kernel, missing

OBJECT = Path(__file__).resolve().parents[3] / "bpf" / "egress.bpf.o"
# Numbers of the helpers that Linux 4.10 has, older than anything that the table names.
ANCIENT = range(1, 45)
LATER = {50: "skb_adjust_room, 4.13", 51: "redirect_map, 4.14"}


@pytest.mark.parametrize(
    ("present", "fallback", "outcome", "stops"),
    [
        (True, "", "counts", False),
        (True, "fingers", "counts", False),
        (False, "", "missing (Linux 7.1 has it): the datapath does not load: nothing else counts", True),
        (False, "fingers", "missing (Linux 7.1 has it): fingers", False),
        (None, "", "unknown: the kernel did not let us ask", False),
    ],
)
def test_decide(present: bool | None, fallback: str, outcome: str, stops: bool) -> None:
    feature = decide(Requirement("abacus", "helper", "7.1", "counts", fallback), present)
    assert feature.outcome == outcome
    assert bool(missing([feature])) is stops


def test_every_helper_of_the_object_is_in_the_table() -> None:
    text = subprocess.run(["llvm-objdump", "-d", OBJECT], capture_output=True, text=True, check=True).stdout
    called = {int(number, 0) for number in re.findall(r"\bcall (0x[0-9a-f]+|\d+)$", text, re.MULTILINE)}  # LLVM 19: hex
    known = {requirement.helper for requirement in FEATURES} | set(ANCIENT) | set(LATER)
    assert called
    assert called <= known, f"add to bpf/features.py: {sorted(called - known)}"


def test_this_kernel_has_what_is_needed() -> None:
    features = describe_kernel()
    assert not missing(features)
    assert {feature.name: feature.present for feature in features}["bpf_loop"] is True
