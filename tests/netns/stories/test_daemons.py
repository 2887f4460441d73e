"""What surrounds routerd's processes in the lab, and how the demo judges, before routerd runs."""

from __future__ import annotations

import io
import os
from fnmatch import fnmatch

import pytest
import yaml

from routerd.config import parse_config
from tests.models.manifests import read_text
from tests.netns.lab import cluster
from tests.netns.lab.daemons import attached, config, descendants, in_node, resident
from tests.netns.lab.lab import Lab
from tests.netns.lab.transcript import Row, StoryFailed, Transcript, meets


def test_a_process_of_a_node_has_the_mounts_of_a_node(lab: Lab) -> None:
    node = lab.node("gw1")
    script = 'ls /sys/class/net; stat -f -c %T /sys/fs/bpf; mkdir /sys/fs/bpf/pins; touch "$0/x" 2>&1 || true'

    command = ["sh", "-c", script, str(lab.manifests)]
    said = node.run(in_node(command, node.pin_dir, lab.manifests, read_only=True)).split("\n")
    assert said[:2] == ["eth0", "lo"]
    assert said[2] == "bpf_fs"
    assert "Read-only file system" in said[3]
    assert (node.pin_dir / "pins").is_dir()
    assert not (lab.node("gw2").pin_dir / "pins").exists()

    node.run(in_node(["touch", str(lab.manifests / "x")], node.pin_dir, lab.manifests, read_only=False))
    assert (lab.manifests / "x").exists()


def test_routerd_takes_the_configuration_and_the_manifests(lab: Lab) -> None:
    node = lab.node("gw1")
    parsed = parse_config(yaml.safe_dump(config(lab, "gw1", node.directory)))
    assert (parsed.node_name, parsed.store.node_report) == ("gw1", node.directory / "state" / "node.yaml")
    assert fnmatch(str(parsed.store.node_report), parsed.store.node_reports[0])

    lab.add_pod("listed", "worker", {"app": "x"})
    cluster.write_cluster(lab, [cluster.endpoint_slice("web", "default", 8080, [lab.pod("listed")])])
    files = [lab.manifests / "cluster.yaml", *cluster.MANIFESTS.glob("*.yaml")]
    loaded = [read_text(path.read_text(), path.name) for path in files]
    assert [refusal for part in loaded for refusal in part.refusals] == []
    lab.remove_pod("listed")


def test_nothing_is_attached_to_begin_with(lab: Lab) -> None:
    assert attached(lab.node("gw1")) == {}


def test_descendants_and_their_memory(lab: Lab) -> None:
    child = lab.node("gw1").popen(["sh", "-c", "sleep 600 & wait"], lab.directory / "sleep.log")
    pids = lab.wait(lambda: found if len(found := descendants(child.pid)) == 2 else None, "the grandchild")
    assert pids is not None
    assert all(resident(pid) > 0 for pid in pids)
    assert os.getpid() not in pids


@pytest.mark.parametrize(
    ("measured", "bar", "met"),
    [("2.9 s", "< 3 s", True), ("3.0 s", "< 3 s", False), ("0 packets", "= 0 packets", True),
     ("1 packets", "= 0 packets", False)],
)  # fmt: skip
def test_bars(measured: str, bar: str, met: bool) -> None:
    assert meets(measured, bar) is met


def test_a_transcript_remembers_what_failed() -> None:
    def fails() -> list[str]:
        raise StoryFailed("seen: nothing", vital=True)

    out = io.StringIO()
    told = Transcript(out)
    assert told.scene("Holds", lambda: ["as seen"])
    assert not told.scene("Breaks", fails)
    told.table([Row("too slow", "4 s", "< 3 s"), Row("fine", "1 s"), Row("busy", "4 s", "< 3 s", "note")])
    assert told.failed == ["Breaks", "too slow"]
    assert "✓  1 Holds" in out.getvalue()
    assert "✗  2 Breaks" in out.getvalue()
    assert "seen: nothing" in out.getvalue()
    assert "FAILED: Breaks; too slow\n" in out.getvalue()
    assert "Missed, and not counted, as it says how busy this machine is: busy\n" in out.getvalue()


def test_a_leak_counts_where_bars_are_notes() -> None:
    out = io.StringIO()
    told = Transcript(out)
    told.table([Row("too slow", "4 s", "< 3 s")], bars_are_notes=True)
    assert told.failed == []
    told.table([Row("leaked", "1 packets", "= 0 packets", "claim")], bars_are_notes=True)
    assert told.failed == ["leaked"]
