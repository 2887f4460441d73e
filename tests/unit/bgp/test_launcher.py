"""The launcher's checks before ExaBGP runs, and the speaker's process seen from outside."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from bgp import conf, launcher, service
from bgp.path import SpeakerPeer
from tests.models import real_exabgp  # noqa: F401 - sets ExaBGP up for a process that is not its own

PEER = SpeakerPeer(
    ip_address("10.9.0.2"), ip_address("10.9.0.1"), 64512, 65000, IPv4Address("10.9.0.1"), password="s3cret"
)  # fmt: skip


def test_another_exabgp_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "5.0.14")
    assert launcher.main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "ExaBGP 5.0.14 is installed" in error
    assert "install exabgp==5.0.15" in error


def test_no_exabgp(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(launcher.LauncherError, match="not installed"):
        launcher.exabgp_version()


def test_the_first_configuration_has_no_peers(tmp_path: Path) -> None:
    file = tmp_path / "exabgp.conf"
    launcher.prepare_configuration(file)
    assert "process relay" in file.read_text()
    assert "neighbor" not in file.read_text()
    assert launcher.configuration_error(file) == ""


def test_the_last_configuration_is_adopted(tmp_path: Path) -> None:
    file = tmp_path / "exabgp.conf"
    file.write_text("process of-another-release {}\n" + conf.peers_text([PEER]))
    launcher.prepare_configuration(file)
    assert file.read_text().endswith(conf.peers_text([PEER]))
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_broken_configuration_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "exabgp.conf"
    file.write_text(conf.peers_text([PEER]).replace("hold-time 90", "hold-time x"))
    launcher.prepare_configuration(file)
    assert "neighbor" not in file.read_text()
    said = capsys.readouterr().err
    assert "starting with no peers" in said
    assert "czNjcmV0" not in said


def test_nothing_runs_here(tmp_path: Path) -> None:
    assert service.running_speaker(tmp_path) is None
    assert service.stop_speaker(tmp_path) is False


def test_a_speaker_that_cannot_start_says_why(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no ExaBGP here; exit 1\n")
    python.chmod(0o755)
    with pytest.raises(service.SpeakerStartError, match="no ExaBGP here"):
        service.start_speaker(tmp_path / "run", python=str(python))


def test_one_speaker_per_directory(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    speaker = service.start_speaker(run_dir)
    try:
        assert service.running_speaker(run_dir) == speaker == service.start_speaker(run_dir)
        assert launcher.main([str(run_dir)]) == 0  # already running
    finally:
        assert service.stop_speaker(run_dir)
    assert service.running_speaker(run_dir) is None


def test_exabgp_does_not_ask_the_resolver_for_the_hosts_name(tmp_path: Path) -> None:
    """It would at import, and wait for 10 s where no resolver answers. In a process of its own, as imports are kept."""
    file = tmp_path / "exabgp.conf"
    file.write_text("")
    script = (
        "import socket, sys; from pathlib import Path; from bgp import launcher\n"
        "def asked(*_): sys.exit('the resolver was asked')\n"
        "socket.getfqdn = socket.gethostbyaddr = asked\n"
        "launcher.set_environment(Path(sys.argv[1]))\n"
        "launcher.configuration_error(Path(sys.argv[1]) / 'exabgp.conf')\n"
        "import exabgp.reactor.loop, exabgp.bgp.message.open.capability.hostname\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
