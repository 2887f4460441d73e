"""Whether the host of a speaker goes down: by a file that its stopper makes, or by what systemd says."""

from __future__ import annotations

from pathlib import Path

import pytest

from bgp.inside.leaving import host_goes_down

SAYS = """#!/bin/sh
test "$*" = is-system-running && echo {word}
exit {code}
"""


def systemctl(directory: Path, monkeypatch: pytest.MonkeyPatch, word: str, code: int = 1) -> None:
    """Makes `directory` the place where programs are found, with a systemctl that says `word`."""
    program = directory / "systemctl"
    program.write_text(SAYS.format(word=word, code=code))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/bin:/usr/bin")


def test_a_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # nor is there a systemd
    assert host_goes_down(tmp_path) == ""
    (tmp_path / "shutdown").touch()
    assert host_goes_down(tmp_path) == f"{tmp_path}/shutdown is there"


@pytest.mark.parametrize("word", ["running", "degraded", "starting", "offline", "unknown", ""])
def test_a_restart_of_the_unit_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    systemctl(tmp_path, monkeypatch, word, 0 if word == "running" else 1)
    assert host_goes_down(tmp_path) == ""


def test_systemd_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemctl(tmp_path, monkeypatch, "stopping")
    assert host_goes_down(tmp_path) == "systemd is stopping the host"


def test_a_systemd_that_does_not_answer_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemctl(tmp_path, monkeypatch, "stopping; exec sleep 60")
    monkeypatch.setattr("bgp.inside.leaving.ASK_TIMEOUT", 0.2)
    assert host_goes_down(tmp_path) == ""
