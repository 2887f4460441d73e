"""FRR as the lab drives it: what it answers, what it refuses, and the configuration that the documents show."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.lab.frr import Frr, config_text, parse_routes
from tests.netns.lab.netns import Namespace, run, stop
from tests.netns.lab.tor import TorPeer

DOCUMENT = Path(__file__).parents[3] / "docs" / "configuration.md"
PATH = {
    "aspath": {"string": "Local"}, "origin": "IGP", "locPrf": 300, "bestpath": {"overall": True},
    "community": {"string": "no-export 64512:1"}, "nexthops": [{"ip": "10.0.0.11"}], "peer": {"peerId": "10.0.0.11"},
}  # fmt: skip


@pytest.fixture
def frr(tmp_path: Path) -> Iterator[Frr]:
    """Not started yet."""
    namespace = Namespace(f"frr{os.getpid()}", "tor")
    namespace.create()
    try:
        yield Frr(namespace, tmp_path)
    finally:
        stop(namespace.pids())
        run(["ip", "netns", "del", namespace.name])


@pytest.mark.parametrize("entries", [[{"version": 1}, PATH], {"version": 1, "paths": [PATH]}], ids=["8.4", "later"])
def test_routes_of_both_forms(entries: object) -> None:
    (route,) = parse_routes(json.dumps({"routes": {"192.0.2.1/32": entries}}), {"10.0.0.11": "gw1"})["192.0.2.1/32"]
    assert (route.protocol, route.next_hop, route.best, route.local_pref) == ("gw1", "10.0.0.11", True, 300)
    assert route.attributes == {
        "origin": "IGP", "as_path": "", "next_hop": "10.0.0.11", "local_pref": "300",
        "community": "65535:65281 64512:1",
    }  # fmt: skip


def test_a_line_that_frr_skips_is_an_error(frr: Frr) -> None:
    text = config_text([TorPeer("a", "10.0.0.2", 65001, "two words")], address="10.0.0.1", local_as=64512)
    with pytest.raises(ValueError, match="password two words"):
        frr.start(text)


def test_the_documented_configuration_is_taken(frr: Frr) -> None:
    (block,) = re.findall(r"```frr\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    frr.start(block)
    running = {line.strip() for line in frr.vty("show running-config").splitlines()}
    defaults = {"exit", "exit-address-family"}
    assert {line.strip() for line in block.splitlines()} - running - defaults == set()
