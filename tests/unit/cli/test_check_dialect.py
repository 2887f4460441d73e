"""`routerd check --dialect`: a bare document or a ConfigMap, printed as the original parsers' results were recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from routerd.cli.main import main

DATA = Path(__file__).parents[1] / "data"
VECTORS = json.loads((DATA / "legacy-bgp-config.json").read_text())
RECORDED = {"cilium-1.10": "cilium_1_10__metallb_0_9_6", "metallb-0.12": "metallb_0_12_1"}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["check", *arguments])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("dialect", RECORDED)
def test_every_verdict_and_value_by_the_command(
    dialect: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    for vector in VECTORS:
        file.write_text(vector["yaml"])
        code, out = run(capsys, "--dialect", dialect, "--output", "json", str(file))
        found, recorded = json.loads(out), vector[RECORDED[dialect]]
        assert found.keys() == recorded.keys(), vector["name"]
        assert code == (1 if "error" in recorded else 0)
        if "ok" in recorded:
            assert found == recorded, vector["name"]


def test_a_config_map_is_looked_into(capsys: pytest.CaptureFixture[str]) -> None:
    file = DATA / "examples" / "bgp-config-cilium-1.10.yaml"
    code, out = run(capsys, "--dialect", "cilium-1.10", "--output", "json", str(file))
    assert code == 0
    assert json.loads(out)["ok"]["peers"][0]["peer_address"] == "10.0.0.1"


def test_an_error_in_a_config_map_names_the_line_of_the_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "map.yaml"
    file.write_text(
        "kind: ConfigMap\ndata:\n  config: |\n    peers:\n    - my-asn: 1\n      peer-asn: 2\n      peer-address: x\n"
    )
    code, out = run(capsys, "--dialect", "metallb-0.12", "--output", "json", str(file))
    assert code == 1
    assert json.loads(out) == {"error": 'parsing peer #1: invalid peer IP "x" (line 7, column 21)'}


def test_two_files_are_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--dialect", "cilium-1.10", "a", "b"]) == 2
    assert "takes one file" in capsys.readouterr().err


def test_findings_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "apiVersion: routerd.io/v1alpha1\nkind: AddressPool\nmetadata: {name: p}\nspec: {}\n"
    )
    code, out = run(capsys, "--output", "json", str(tmp_path))
    assert code == 1
    assert [finding["severity"] for finding in json.loads(out)] == ["error"]


def test_what_the_operator_publishes_is_no_manifest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "allocations.yaml").write_text("apiVersion: routerd.io/v1alpha1\nkind: Allocations\ngeneration: 1\n")
    code, out = run(capsys, str(tmp_path))
    empty = f"warning: {tmp_path}: no manifest (*.yaml, *.yml, *.json) is in it\n"
    assert (code, out) == (0, empty + "errors: 0, warnings: 1\n")
