"""Every lack of the machine is told with what to do about it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bgp import EXABGP
from routerd.daemon import preflight
from routerd.daemon.preflight import CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON
from routerd.errors import EnvironmentFault

ALL = (CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON)


def status_file(tmp_path: Path, *capabilities: int) -> Path:
    mask = sum(1 << number for number in capabilities)
    path = tmp_path / "status"
    path.write_text(f"Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t{mask:016x}\n")
    return path


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        ((), "no CAP_NET_ADMIN and CAP_BPF and CAP_PERFMON: run as root"),
        ((CAP_NET_ADMIN,), "no CAP_BPF and CAP_PERFMON"),
        ((CAP_NET_ADMIN, CAP_PERFMON), "no CAP_BPF:"),
        ((preflight.CAP_SYS_ADMIN,), "no CAP_NET_ADMIN:"),
    ],
)
def test_missing_privileges_are_named(tmp_path: Path, held: tuple[int, ...], missing: str) -> None:
    with pytest.raises(EnvironmentFault, match=missing):
        preflight.privileges(ALL, status_file(tmp_path, *held))


@pytest.mark.parametrize("held", [ALL, (CAP_NET_ADMIN, preflight.CAP_SYS_ADMIN)])
def test_enough_privileges(tmp_path: Path, held: tuple[int, ...]) -> None:
    preflight.privileges(ALL, status_file(tmp_path, *held))


def test_a_kernel_without_btf(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="CONFIG_DEBUG_INFO_BTF"):
        preflight.btf(tmp_path / "vmlinux")
    (tmp_path / "vmlinux").touch()
    preflight.btf(tmp_path / "vmlinux")


def test_no_exabgp() -> None:
    with pytest.raises(EnvironmentFault, match="ExaBGP is not installed: pip install exabgp==5"):
        preflight.exabgp("exabgp-that-nobody-has")


def test_another_exabgp() -> None:
    with pytest.raises(EnvironmentFault, match=re.escape(f"routerd drives {EXABGP}")):
        preflight.exabgp("pytest")  # installed, and surely of another version


def test_the_locked_exabgp_is_the_right_one() -> None:
    preflight.exabgp()


def test_a_program_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="nft is missing: install package nftables"):
        preflight.program("nft", "nftables", str(tmp_path))


def test_an_uplink_that_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "eth0").mkdir()
    preflight.devices(["eth0"], tmp_path)
    with pytest.raises(EnvironmentFault, match="no network device eth9 on this host: correct uplinks"):
        preflight.devices(["eth0", "eth9"], tmp_path)
