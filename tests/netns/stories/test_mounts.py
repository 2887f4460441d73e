"""What a test mounts is its own, and nothing of it stays on the host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.netns.lab.mounts import mounted, own_bpffs, shown

ROOT = Path(__file__).parents[3]


def test_what_a_killed_test_had_mounted_is_gone() -> None:
    script = (
        "import os, signal\nfrom tests.netns.lab.mounts import own_bpffs, shown\n"
        "with own_bpffs():\n"
        "    print(shown(), os.getpid(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    before = mounted()
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    kind, pid = done.stdout.split()
    assert (kind, done.returncode) == ("bpf_fs", -9)
    assert mounted() == before
    assert f"bpf-{pid}" not in Path("/proc/self/mountinfo").read_text()


def test_what_a_test_mounts_is_its_own_and_ends_with_it() -> None:
    before, directory = mounted(), Path.cwd()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other, pytest.raises(ZeroDivisionError), own_bpffs():
        assert shown() == "bpf_fs"
        assert (mounted(), mounted(str(other.pid))) == ([*before, "bpf"], before)
        raise ZeroDivisionError
    assert (mounted(), Path.cwd()) == (before, directory)
