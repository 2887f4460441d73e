"""A configuration of our own is there as soon as a pod would get an address, and not before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cni import install as module
from cni.conflist import NotChainable
from cni.install import WHOLE, install_whole

ENTRY = {"type": "routerd-cni"}
SHIPPED = Path(__file__).parents[3] / "configs" / "cni" / WHOLE
NOT_YET = """#!/bin/sh
test "$CNI_COMMAND" = STATUS && echo '{"cniVersion": "1.1.0", "code": 50, "msg": "no address of the cloud yet"}'
exit 1
"""
READY = '#!/bin/sh\ntest "$CNI_COMMAND" = STATUS\n'


class Host:
    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.conf, self.bin, self.program = directory / "net.d", directory / "bin", directory / "program"
        self.conf.mkdir()
        monkeypatch.setattr(module, "PROGRAM", self.program)

    def install(self, program: str = READY) -> list[str]:
        self.program.write_text(program)
        return install_whole({}, ENTRY, self.conf, self.bin)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_it_waits_for_the_first_fill(host: Host) -> None:
    with pytest.raises(NotChainable, match="no address of the cloud yet"):
        host.install(NOT_YET)
    assert [*host.conf.iterdir()] == []
    host.install()
    assert json.loads((host.conf / WHOLE).read_text()) == json.loads(SHIPPED.read_text())


def test_once_it_is_there_it_stays_while_there_is_no_address(host: Host) -> None:
    host.install()
    before = (host.conf / WHOLE).stat().st_ino
    host.install(NOT_YET)
    assert (host.conf / WHOLE).stat().st_ino == before
    (host.conf / WHOLE).write_text("{}")
    assert host.install(NOT_YET)[-1] == f"wrote {host.conf / WHOLE}"


def test_what_comes_behind_stops_nothing(host: Host) -> None:
    (host.conf / "99-loopback.conflist").write_text("{}")
    assert host.install()[-1] == f"wrote {host.conf / WHOLE}"


def test_where_another_comes_first_nothing_is_written(host: Host) -> None:
    (host.conf / "05-cilium.conflist").write_text("{}")
    with pytest.raises(NotChainable, match=r"05-cilium\.conflist comes first"):
        host.install()
    assert not (host.conf / WHOLE).exists()
