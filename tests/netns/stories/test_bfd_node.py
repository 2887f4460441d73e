"""A whole node with BFD, `routerd run`, and a ToR of each make: what falls when, and what people are told of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from routerd.errors import RouterdError
from routerd.serve.api import agent_socket, ask
from tests.netns.lab.lab import TOR_MAKES
from tests.netns.lab.stage import NODE_AS, TOR_AS, Stage
from tests.waiting import wait

CONFIG = """\
apiVersion: routerd.io/v1alpha1
kind: Config
node-name: node
run-dir: {run}
state-dir: {state}
metrics-listen: ""
store: {{manifests: {manifests}}}
egress: {{enabled: false}}
bgp: {{announce: {{pod-cidrs: true}}}}
operator: {{metrics-listen: ""}}
"""
CLUSTER = """\
apiVersion: v1
kind: Node
metadata: {{name: node}}
spec: {{podCIDRs: [10.244.1.0/24, "fd00:244::/64"]}}
status: {{addresses: [{{type: InternalIP, address: 10.9.0.1}}, {{type: InternalIP, address: "fd09::1"}}]}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: bgp-config, namespace: routerd}}
data:
  config.yaml: |
    apiVersion: routerd.io/v1alpha1
    peers:
    - {{name: t1, peer-address: 10.9.0.2, my-asn: {node}, peer-asn: {tor}, bfd: {{}}}}
    - {{name: t2, peer-address: "fd09::2", my-asn: {tor}, peer-asn: {tor}, bfd: {{interval: 50ms, multiplier: 3}}}}
"""
CUT = """table inet cut {{
  chain in {{ type filter hook input priority -300; {into} }}
  chain out {{ type filter hook output priority -300; {out} }}
}}"""


class WholeNode:
    """`routerd run --standalone` in the node's namespace."""

    def __init__(self, stage: Stage, directory: Path) -> None:
        self.stage = stage
        manifests = directory / "manifests"
        manifests.mkdir()
        (manifests / "cluster.yaml").write_text(CLUSTER.format(node=NODE_AS, tor=TOR_AS))
        self.config, self.log = directory / "routerd.yaml", directory / "routerd.log"
        places = {"run": stage.run_dir, "state": directory / "state", "manifests": manifests}
        self.config.write_text(CONFIG.format(**places))

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "routerd.cli.main", "--config", str(self.config), "run", "--standalone"]
        return self.stage.node.popen(command, self.log)

    def show(self, kind: str) -> dict[str, dict[str, Any]]:
        """Rows by address of the peer; none while no agent answers."""
        try:
            found = ask(agent_socket(self.stage.run_dir), {"get": "show", "kind": kind})
        except RouterdError:
            return {}
        return {row["address" if kind == "peers" else "peer"]: row for row in found}

    def states(self, key: str = "bfd") -> list[str]:
        return [row[key] for _, row in sorted(self.show("peers").items())]

    def reasons(self) -> list[str]:
        status = ask(agent_socket(self.stage.run_dir), {"get": "status"})
        return sorted(each["reason"] for each in status["refusals"])

    def pid(self, role: str) -> int:
        """Of the process that was started last in that role."""
        return int(re.findall(rf"event=started process={role} pid=(\d+)", self.log.read_text())[-1])

    def events(self, name: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if f"event={name} " in line]

    def until(self, condition: Callable[[], object], what: str) -> None:
        try:
            wait(condition, what)
        except AssertionError as late:
            told = [self.stage.bgp.bfd(), self.stage.bgp.sessions(), self.show("peers"), self.log.read_text()[-4000:]]
            raise AssertionError("\n".join([str(late), *map(str, told)])) from None

    def has_paths(self) -> bool:
        return all(self.stage.routes(peer) for peer in ("t1", "t2"))

    def has_no_path(self) -> bool:
        return not any(self.stage.routes(peer) for peer in ("t1", "t2"))

    def is_whole(self) -> bool:
        return self.states() == ["up", "up"] and self.states("state") == ["up", "up"] and self.has_paths()


@pytest.fixture(scope="module", params=TOR_MAKES)
def node(request: pytest.FixtureRequest) -> Iterator[WholeNode]:
    directory = Path(tempfile.mkdtemp(prefix="routerd-bfd-"))
    stage = Stage(directory, request.param)
    try:
        stage.build(bfd=True)
        found = WholeNode(stage, directory)
        found.start()
        yield found
    finally:
        stage.remove()
        wait(lambda: _is_removed(directory), "what processes write at their end is removed, too")


def _is_removed(directory: Path) -> bool:
    shutil.rmtree(directory, ignore_errors=True)
    return not directory.exists()


@pytest.fixture(autouse=True)
def whole(node: WholeNode) -> Iterator[None]:
    """Every story begins and ends with everything up."""
    node.until(node.is_whole, "everything is up")
    yield
    node.stage.node.run(["nft", "flush", "ruleset"])
    node.until(node.is_whole, "everything is up again")


def test_a_peer_that_is_watched_is_shown(node: WholeNode) -> None:
    node.until(lambda: node.show("bfd")["10.9.0.2"]["detection_ms"] == 150, "intervals are agreed")
    row = node.show("bfd")["10.9.0.2"]
    assert (row["local_address"], row["state"], row["peer_state"], row["interval_ms"]) == ("10.9.0.1", "up", "up", 50)
    assert node.reasons() == []
    done = node.stage.node.run(
        [sys.executable, "-m", "routerd.cli.main", "--config", str(node.config), "show", "bfd", "-o", "json"]
    )
    assert {each["peer"] for each in json.loads(done)} == {"10.9.0.2", "fd09::2"}
    assert ask(agent_socket(node.stage.run_dir), {"get": "plan"})["changes"] == []


def test_a_silent_cut_takes_the_paths_within_a_second_and_both_ends_say_why(node: WholeNode) -> None:
    ended = len(node.events("bfd-session-ended"))
    node.stage.node.nft(CUT.format(into="drop;", out="drop;"))
    began = time.monotonic()
    node.until(node.has_no_path, "no path at the ToR")
    assert time.monotonic() - began < 1
    node.until(lambda: "up" not in node.states() and "up" not in node.states("state"), "both sessions are down here")
    assert node.reasons() == ["BFDDown", "BFDDown", "SessionDown", "SessionDown"]
    row = node.show("bfd")["10.9.0.2"]
    assert (row["state"], row["reason"]) == ("down", "nothing was heard for the detection time of 150 ms")
    node.until(lambda: len(node.events("bfd-session-ended")) == ended + 2, "told in the log")
    assert "nothing was heard" in node.events("bfd-session-ended")[-1]


def test_where_bfd_alone_is_lost_the_session_ends_and_comes_back_without_it(node: WholeNode) -> None:
    """Nothing comes from the ToR's BFD, BGP passes: what BGP shows to be there is not held back."""
    times = node.stage.bgp.established("t1")
    node.stage.node.nft(CUT.format(into="udp dport 3784 drop;", out=""))
    node.until(lambda: node.stage.bgp.established("t1") > times, "it ended, and came up again")
    node.until(
        lambda: node.reasons() == ["BFDDown", "BFDDown"] and node.states("state") == ["up", "up"] and node.has_paths(),
        "paths without BFD",
    )


def test_an_agent_that_is_killed_flaps_neither_bfd_nor_bgp(node: WholeNode) -> None:
    before = node.show("bfd")["10.9.0.2"]["flaps"], node.stage.bgp.established("t1"), node.pid("bfd")
    agent = node.pid("agent")
    os.kill(agent, signal.SIGKILL)
    node.until(lambda: node.pid("agent") != agent and node.is_whole(), "the next agent sees it all up")
    assert (node.show("bfd")["10.9.0.2"]["flaps"], node.stage.bgp.established("t1"), node.pid("bfd")) == before


def test_a_fall_that_no_agent_saw_ends_the_session_when_one_comes(node: WholeNode) -> None:
    """The agent stands still while the link is cut, and is killed: the next one knows by the times."""
    ended, falls = len(node.events("bfd-session-ended")), len(node.events("bfd-down"))
    agent = node.pid("agent")
    os.kill(agent, signal.SIGSTOP)
    node.stage.node.nft(CUT.format(into="drop;", out="drop;"))
    node.until(lambda: len(node.events("bfd-down")) >= falls + 2, "BFD fell")
    os.kill(agent, signal.SIGKILL)
    node.until(lambda: len(node.events("bfd-session-ended")) == ended + 2, "the next agent ends the sessions")
    node.until(lambda: "up" not in node.states("state"), "they ended")


def test_a_bfd_process_that_is_killed_is_told_and_comes_back(node: WholeNode) -> None:
    bfd = node.pid("bfd")
    os.kill(bfd, signal.SIGKILL)
    node.until(lambda: node.pid("bfd") != bfd and node.is_whole(), "the next process has everything up")
    assert any("the bfd process is gone" in line for line in node.events("bfd-lost"))


def test_bfd_is_switched_on_and_off_and_made_slower_while_all_runs(node: WholeNode) -> None:
    """Other intervals flap nothing; without `bfd` the ToR is told AdminDown, and the session goes on or comes back."""
    manifest = node.config.parent / "manifests" / "cluster.yaml"
    text, times = manifest.read_text(), node.stage.bgp.established("t2")
    manifest.write_text(text.replace("interval: 50ms, multiplier: 3", "interval: 300ms, min-rx: 100ms, multiplier: 4"))
    node.until(lambda: node.show("bfd")["fd09::2"]["interval_ms"] == 300, "slower")
    node.until(lambda: node.show("bfd")["fd09::2"]["detection_ms"] == 300, "what comes is slower, too")
    assert (node.states()[1], node.stage.bgp.established("t2")) == ("up", times)
    manifest.write_text(text.replace(", bfd: {}", ""))
    node.until(lambda: node.show("bfd").keys() == {"fd09::2"}, "one peer is watched")
    node.until(lambda: node.stage.bgp.bfd().get("10.9.0.1") != "up", "the ToR knows")
    node.until(
        lambda: node.has_paths() and node.states("state") == ["up", "up"] and not node.reasons(), "paths all the same"
    )
    manifest.write_text(text)
