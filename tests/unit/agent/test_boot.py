"""The guard that is kept for the next boot: what it says, and when it is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from egress.entries import Facts
from routerd.agent.egress import BootGuard, EgressRoom
from tests.models.egress_wishes import DEVICES, POD, on_worker

FACTS = Facts(DEVICES, host_devices=frozenset({"eth0"}))


def kept(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_it_knows_what_policies_cover_and_no_pod(tmp_path: Path) -> None:
    guard = BootGuard(tmp_path / "guard.nft")
    guard.keep()
    assert not guard.file.exists()  # nothing is known yet
    guard.note(on_worker(), FACTS)
    guard.keep()
    elements = [line.split()[4] for line in kept(guard.file) if line.startswith("add element")]
    assert {"covered", "host_devices"} <= set(elements)
    assert not {"decided", "decided6", "selected", "selected6", "pod_devices"} & set(elements)
    assert not any("set-" in line or "veth" in line for line in kept(guard.file))
    assert any("@covered" in line and "undecided drop" in line for line in kept(guard.file))


def test_it_is_written_when_it_says_something_else(tmp_path: Path) -> None:
    guard = BootGuard(tmp_path / "guard.nft")
    guard.note(on_worker(), FACTS)
    guard.keep()
    guard.file.unlink()
    guard.note(on_worker(), replace(FACTS, devices={**DEVICES}))
    guard.keep()
    assert not guard.file.exists()  # it says the same
    guard.note(on_worker(pods={POD: ()}), FACTS)
    guard.keep()
    first = guard.file.stat().st_ino
    guard.note(on_worker(), FACTS)
    guard.keep()
    assert guard.file.stat().st_ino == first  # pods come and go, and the text stays
    guard.note(on_worker(), replace(FACTS, host_devices=frozenset({"eth0", "eth1"})))
    guard.keep()
    assert guard.file.stat().st_ino != first
    assert [path.name for path in tmp_path.iterdir()] == ["guard.nft"]


def test_a_disk_that_takes_nothing_is_told_and_tried_again(tmp_path: Path) -> None:
    guard = BootGuard(tmp_path / "absent" / "guard.nft")
    guard.note(on_worker(), FACTS)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            guard.keep()
    guard.file.parent.mkdir()
    guard.keep()
    assert guard.file.exists()


def test_a_damaged_file_is_written_anew(tmp_path: Path) -> None:
    guard = BootGuard(tmp_path / "guard.nft")
    guard.file.write_bytes(b"\xff\xfe\0" * 100)
    guard.note(on_worker(), FACTS)
    guard.keep()
    assert "add table inet routerd" in kept(guard.file)


class Collecting:
    """A datapath that counts how often it is collected."""

    times = 0

    def collect(self) -> None:
        self.times += 1

    def port_use(self) -> None:
        pass


def test_a_disk_that_takes_nothing_keeps_no_flow_from_being_collected(tmp_path: Path) -> None:
    guard, datapath = BootGuard(tmp_path / "absent" / "guard.nft"), Collecting()
    seated: Any = datapath
    room = EgressRoom(seated, guard)
    guard.note(on_worker(), FACTS)
    with pytest.raises(FileNotFoundError):
        room.collect()
    assert datapath.times == 1
