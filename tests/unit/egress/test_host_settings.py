"""Records of what the host's own settings were; any directory serves."""

from __future__ import annotations

from pathlib import Path

from egress import host_settings


def test_ports_are_recorded_once(tmp_path: Path) -> None:
    pins = tmp_path / "routerd"
    assert host_settings.recorded_ports(pins) is None
    host_settings.record_ports(pins, [61000, 61001])
    host_settings.record_ports(pins, range(61000, 61500))  # by now they are ours too
    assert host_settings.recorded_ports(pins) == {61000, 61001}


def test_nothing_held_is_a_record_too(tmp_path: Path) -> None:
    host_settings.record_ports(tmp_path, [])
    assert host_settings.recorded_ports(tmp_path) == set()


def test_forgetting_leaves_nothing(tmp_path: Path) -> None:
    host_settings.record_ports(tmp_path, [61000])
    host_settings.record_qdisc(tmp_path, 7)
    assert host_settings.recorded_qdiscs(tmp_path) == {7}
    host_settings.forget_qdiscs(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [host_settings.PORTS]
    assert host_settings.release_ports(tmp_path, range(61000, 61001))  # the host's own: nothing is written
    assert not host_settings.release_ports(tmp_path, range(61000, 61001))
    assert list(tmp_path.iterdir()) == []
    assert host_settings.recorded_qdiscs(tmp_path) == set()
