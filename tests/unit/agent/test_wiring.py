"""A node that another plugin of a cloud serves gets nothing of us, and is told by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eni.plan import Desired
from routerd.agent.plugins.wiring import WiringRoom


def room(directory: Path, *chains: tuple[str, ...], takes_part: bool = True) -> WiringRoom:
    for number, chain in enumerate(chains):
        plugins = [{"type": each} for each in chain]
        (directory / f"{number}.conflist").write_text(json.dumps({"name": "pods", "plugins": plugins}))
    return WiringRoom(lambda: takes_part, directory)


@pytest.mark.parametrize(
    ("chain", "name"),
    [("aws-cni", "Amazon's VPC CNI"), ("terway", "Terway"), ("azure-vnet", "Azure CNI"), ("cilium-cni", "Cilium")],
)
def test_who_else_serves_the_node_is_named(tmp_path: Path, chain: str, name: str) -> None:
    found = room(tmp_path, ("ptp", "routerd-cni"), (chain, "portmap"))
    assert found.hindrance().startswith(f"{name} makes interfaces and routes for pods of this node")
    observed = found.observe(Desired())
    assert [each.reason for each in found.problems(Desired(), observed)] == ["CloudOtherCni"]


@pytest.mark.parametrize("chains", [(), (("ptp", "portmap", "routerd-cni"),), (("ptp", "cilium-cni"),)])
def test_a_plugin_that_wires_nothing_of_the_cloud_is_no_hindrance(
    tmp_path: Path, chains: tuple[tuple[str, ...], ...]
) -> None:
    found = room(tmp_path, *chains)
    assert (found.hindrance(), found.observe(Desired()).others) == ("", ())


def test_what_is_no_file_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "00-old.conf").mkdir()
    (tmp_path / "01-gone.conf").symlink_to(tmp_path / "01-gone.conf")
    assert room(tmp_path, ("aws-cni",)).hindrance().startswith("Amazon's VPC CNI")


def test_a_node_that_takes_no_part_is_its_own_business(tmp_path: Path) -> None:
    found = room(tmp_path, ("aws-cni",), takes_part=False)
    assert (found.hindrance(), found.observe(Desired()).others) == ("", ())
