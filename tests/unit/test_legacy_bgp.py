"""The legacy BGP ConfigMap against recorded results of the two original parsers, and our superset of it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from routerd.formats.legacy_bgp import Dialect, as_json, parse

VECTORS = json.loads((Path(__file__).parent / "data" / "legacy-bgp-config.json").read_text())
RECORDED: dict[Dialect, str] = {"metallb-0.12": "metallb_0_12_1", "cilium-1.10": "cilium_1_10__metallb_0_9_6"}
PLACE = re.compile(r" \(line \d+, column \d+\)$")


def meant(error: str) -> str:
    """The original prints some prefix lengths as characters ('!' for 33); what it meant is the number."""
    return re.sub(
        r"'((?:\\.[0-9a-f]*)|.)'(?= for IPv| in this pool|$)",
        lambda match: str(ord(match[1].encode().decode("unicode_escape"))),
        error,
    )


@pytest.mark.parametrize("dialect", RECORDED)
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_agrees_with_the_original_parser(vector: dict[str, Any], dialect: Dialect) -> None:
    expected = vector[RECORDED[dialect]]
    found = as_json(vector["yaml"], dialect)
    if "error" in expected:
        assert PLACE.search(str(found.get("error"))), found
        assert PLACE.sub("", str(found["error"])) == meant(expected["error"])
    else:
        assert found == expected
