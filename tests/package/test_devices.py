"""Pods on devices that the kernel of the tests' host may lack, on Debian 13's: netkit of both modes, ipvlan, a NIC. And
SCTP by real sockets, which that kernel has as a module.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.package import machine
from tests.package.device_check import EGRESS_IP, EGRESS_IP6, ON_LINK, ON_LINK6, PROTOCOLS

HOOKED, PAST_HOOKS = ("netkit-l3", "netkit-l2"), ("ipvlan-l2", "nic")
EGRESS_IPS = {4: str(EGRESS_IP), 6: str(EGRESS_IP6)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return machine.check_devices(tmp_path_factory.mktemp("machine"), (*HOOKED, *PAST_HOOKS), machine.DEBIAN_13)


@pytest.mark.parametrize("kind", HOOKED)
def test_a_selected_pod_leaves_with_its_egress_ip_and_nothing_leaks(found: dict[str, Any], kind: str) -> None:
    assert not found[kind]["error"]
    assert found[kind]["sources"] == {
        f"{each}{version}": EGRESS_IPS[version] for each in PROTOCOLS for version in (4, 6)
    }
    assert (found[kind]["past"], found[kind]["told"]) == ([], [])


@pytest.mark.parametrize("kind", PAST_HOOKS)
def test_a_device_that_leads_past_the_programs_is_told_and_kept_back_beneath(found: dict[str, Any], kind: str) -> None:
    assert not found[kind]["error"]
    assert found[kind]["told"] == ["DeviceUnhooked"]
    documented = {str(ON_LINK), str(ON_LINK6)} if kind == "nic" else set()  # as not kept back
    assert set(found[kind]["past"]) <= documented
