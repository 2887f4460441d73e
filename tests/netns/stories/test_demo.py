"""The demo itself, with every make of ToR and every store: what it claims holds, and it leaves nothing behind.

Bars on time and memory are notes here: the suite shares its machine, and `make demo` holds them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.netns.lab import netns
from tests.netns.lab.daemons import command_line
from tests.netns.lab.lab import TOR_MAKES, directory_of

REPOSITORY = Path(__file__).parents[3]
PREFIX = f"d{os.getpid()}"
CRASH_LOGS = Path("/var/tmp/frr")  # FRR's fixed path; the host's own FRR may have some there
CRASH_LOGS_BEFORE = set(CRASH_LOGS.glob("*"))
STORE_TOLD = {"files": "store: files in /run/", "kubernetes": "store: Kubernetes API at https://10.0.0.1:6443"}
LEAK = """
import sys
from tests.netns.stories import demo, story

def plant(told):
    told.lab.node("gw2").get(story.FW_ADDRESS)  # with the node's own address
    return ["planted"]

*_, last = demo.STORY
demo.STORY = (*demo.STORY[:3], ("A leak is planted", plant), last)
sys.exit(demo.main())
"""


def play(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a demo as a process of its own, as make does."""
    inherited = {name: value for name, value in os.environ.items() if name not in {"TOR", "STORE", "KEEP"}}
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False,
        env={**inherited, "DEMO_PREFIX": PREFIX, "DEMO_BARS": "note", **environment},
    )  # fmt: skip


def left_behind() -> dict[str, object]:
    """Namespaces, directories, mounts and processes of the demo's lab, and what FRR leaves outside its directory."""
    directory = directory_of(PREFIX)
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    found = {
        "namespaces": netns.names(f"{PREFIX}-"),
        "directories": [str(path) for path in directory.parent.glob(f"*{directory.name}*")],
        "mounts": [line for line in Path("/proc/self/mounts").read_text().splitlines() if PREFIX in line],
        "processes": [line for pid in pids if directory.name in (line := command_line(pid))],
        "crash logs": [str(path) for path in CRASH_LOGS.glob("*") if path not in CRASH_LOGS_BEFORE],
    }
    return {what: value for what, value in found.items() if value}


@pytest.mark.parametrize(("tor", "store"), [*((make, "files") for make in TOR_MAKES), ("bird", "kubernetes")])
def test_everything_holds_and_nothing_is_left(tor: str, store: str) -> None:
    done = play("-m", "tests.netns.stories.demo", TOR=tor, STORE=store)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything held." in done.stdout
    assert f"({tor.upper()} " in done.stdout
    assert STORE_TOLD[store] in done.stdout
    assert left_behind() == {}


def test_a_leak_fails_the_demo_and_nothing_is_left() -> None:
    done = play("-c", LEAK, TOR="frr")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "leaked: 10.0.0.12 > 203.0.113.10" in done.stdout
    assert "FAILED: Nothing of a selected pod has left with another source;" in done.stdout
    assert left_behind() == {}


@pytest.mark.parametrize(
    ("name", "value", "known"), [("TOR", "cisco", "bird or frr"), ("STORE", "etcd", "files or kubernetes")]
)
def test_an_unknown_value_is_said_in_one_line(name: str, value: str, known: str) -> None:
    done = play("-m", "tests.netns.stories.demo", **{name: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"demo: error: {name}={value} is not known: use {known}\n"
