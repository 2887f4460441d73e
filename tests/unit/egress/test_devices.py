"""Which devices are the host's, and which of a pod's lead past the hooks."""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from egress import devices
from egress.host.links import (
    Link,
    Namespace,
    PodDevice,
    Unhooked,
    host_devices,
    pod_devices,
    second_devices,
    unhooked,
)
from netlink.wire import NetlinkSocket


def link(
    ifindex: int, name: str, kind: str = "", *, master: int = 0, namespace: int | None = None, peer: int = 0
) -> Link:
    return Link(ifindex, name, kind, bytes(6), 1500, True, master, peer, namespace, 0, False, is_loopback=name == "lo")


LINKS = [
    link(1, "lo"),
    link(2, "eth0"),
    link(3, "eth0.100", "vlan"),
    link(4, "flannel.1", "vxlan"),
    link(5, "cni0", "bridge"),
    link(6, "veth1", "veth", master=5, namespace=1, peer=2),
    link(7, "cali1", "veth", namespace=2, peer=2),
    link(8, "docker0", "bridge"),
    link(9, "veth2", "veth", master=8, namespace=3, peer=2),
    link(10, "virbr0", "bridge"),
    link(11, "vnet0", "tun", master=10),
    link(12, "cilium_host", "veth"),
    link(13, "bond0", "bond"),
    link(14, "eth1", master=13),
    link(15, "wg0", "wireguard"),
    link(16, "tunl0", "ipip"),
    link(17, "lxc1", "netkit", namespace=4, peer=2),
]
HOSTS = {
    "lo", "eth0", "eth0.100", "flannel.1", "docker0", "virbr0", "cilium_host", "bond0", "eth1", "wg0", "tunl0",
}  # fmt: skip
BY_INDEX = {each.ifindex: each for each in LINKS}
POD = IPv4Address("10.1.0.5")
MAC = b"\x02\0\0\0\0\x09"


def space(number: int, *links: Link, **addresses: int) -> Namespace:
    """`addresses`: by name of the device of those behind it."""
    inner = {each.ifindex: each for each in (link(1, "lo"), *links)}
    indices = {each.name: each.ifindex for each in inner.values()}
    found = [(1, ip_address("127.0.0.1")), *((indices[name], POD + last) for name, last in addresses.items())]
    return Namespace(number, inner, tuple(found))


def test_devices_of_the_host_are_those_by_which_no_pod_comes() -> None:
    assert host_devices(BY_INDEX, frozenset({"cni0"})) == HOSTS
    assert host_devices(BY_INDEX, frozenset()) == HOSTS | {"cni0"}


def test_a_pod_sends_by_each_pair_that_leads_to_it_alone() -> None:
    more = [link(20, "side1", "veth", namespace=2, peer=3), link(21, "side2", "veth", master=8, namespace=2, peer=4)]
    links = {**BY_INDEX, **{each.ifindex: each for each in more}}
    assert second_devices(links, [PodDevice(7, "cali1", "cali1", bytes(6), bytes(6))]) == {"cali1", "side1"}
    assert not second_devices(links, [])


def test_pods_are_behind_pairs() -> None:
    spaces = [
        space(1, link(2, "eth0", "veth", namespace=9, peer=6), eth0=0),
        space(
            4, link(2, "eth0", "netkit", namespace=9, peer=17), link(3, "net1", "macvlan", namespace=9), eth0=1, net1=2
        ),
        space(7, link(2, "eth0", "ipvlan", namespace=9), eth0=3),
    ]
    assert pod_devices(BY_INDEX, spaces) == {
        POD: [PodDevice(6, "veth1", "cni0", bytes(6), bytes(6))],
        POD + 1: [PodDevice(17, "lxc1", "lxc1", bytes(6), bytes(6))],
    }


INSIDE = [
    link(1, "lo"),
    link(2, "eth0", "netkit", namespace=9, peer=17),
    link(3, "tunl0", "ipip"),
    link(4, "br0", "bridge"),
    link(5, "veth9", "veth", namespace=12, peer=2),  # into a container in the pod
    link(6, "eth0.5", "vlan", peer=2),
    link(7, "macvlan0", "macvlan", peer=2),
]
OUTSIDE = [
    (link(9, "net1", "macvlan", namespace=9, peer=2), "macvlan"),
    (link(9, "net1", "ipvlan", namespace=9), "ipvlan"),
    (link(9, "net1", "vlan", namespace=9), "vlan"),
    (link(9, "eth1"), "NIC"),
    (Link(9, "ens1f0v0", "", bytes(6), 1500, True, 0, 0, None, 0, False, is_virtual_function=True), "SR-IOV VF"),
]


@pytest.mark.parametrize(("outer", "kind"), OUTSIDE)
def test_what_leads_past_the_hooks_is_told_by_its_kind(outer: Link, kind: str) -> None:
    pods = {POD, POD + 1}
    beside = [space(4, *INSIDE, outer, eth0=0, **{outer.name: 7})]
    below = (2, "eth0") if outer.peer == 2 else (0, "")
    found = Unhooked(outer.name, kind, (POD + 7,), *below)
    chosen = {address: device for address, (device,) in pod_devices(BY_INDEX, beside).items()}
    assert unhooked(BY_INDEX, beside, pods, chosen) == {POD: (found,)}
    alone = [space(7, link(1, "lo"), outer, **{outer.name: 1})]
    assert unhooked(BY_INDEX, alone, pods, {}) == {POD + 1: (replace(found, addresses=(POD + 1,)),)}


@pytest.mark.parametrize(
    ("kind", "mac", "own"),
    [("macvlan", MAC, MAC), ("macvtap", MAC, MAC), ("macvlan", bytes(6), b""), ("ipvlan", MAC, b"")],
    ids=["macvlan", "macvtap", "macvlan of mode passthru", "ipvlan"],
)
def test_a_device_is_known_beneath_by_a_mac_that_it_alone_has(kind: str, mac: bytes, own: bytes) -> None:
    outer = replace(link(9, "net1", kind, namespace=9, peer=2), mac=mac)
    [device] = unhooked(BY_INDEX, [space(7, outer, net1=1)], {POD + 1}, {})[POD + 1]
    assert (device.beneath_name, device.mac, device.is_kept_back) == ("eth0", own, True)


def test_a_pod_on_hooks_alone_has_nothing_that_leads_past_them() -> None:
    spaces = [space(4, *INSIDE, eth0=0)]
    assert unhooked(BY_INDEX, spaces, {POD}, {}) == {}


def test_somebody_with_a_pods_address_on_another_device_is_not_that_pod() -> None:
    spaces = [
        space(1, link(2, "eth0", "veth", namespace=9, peer=6), eth0=0),
        space(7, link(2, "eth0", "macvlan", namespace=9), eth0=0),
    ]
    (device,) = pod_devices(BY_INDEX, spaces)[POD]
    assert unhooked(BY_INDEX, spaces, {POD}, {POD: device}) == {}
    assert unhooked(BY_INDEX, spaces, {POD}, {}).keys() == {POD}


def test_what_keeps_no_namespace_beside_those_that_do_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").touch()  # its namespace was unmounted
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")  # whoever opens it waits
    (tmp_path / "gone").symlink_to("nowhere")
    with NetlinkSocket() as route:
        monkeypatch.setattr(devices, "KEPT_NAMESPACES", ())
        known = devices.other_namespaces(route)
        monkeypatch.setattr(devices, "KEPT_NAMESPACES", (tmp_path, tmp_path / "none"))
        assert devices.other_namespaces(route) == known
