"""Which devices are the host's."""

from __future__ import annotations

from egress.devices import Link, host_devices


def link(ifindex: int, name: str, kind: str = "", *, master: int = 0, namespace: int | None = None) -> Link:
    return Link(ifindex, name, kind, bytes(6), 1500, True, master, 0, namespace, 0, False)


LINKS = [
    link(1, "lo"),
    link(2, "eth0"),
    link(3, "eth0.100", "vlan"),
    link(4, "flannel.1", "vxlan"),
    link(5, "cni0", "bridge"),
    link(6, "veth1", "veth", master=5, namespace=1),
    link(7, "cali1", "veth", namespace=2),
    link(8, "docker0", "bridge"),
    link(9, "veth2", "veth", master=8, namespace=3),
    link(10, "virbr0", "bridge"),
    link(11, "vnet0", "tun", master=10),
    link(12, "cilium_host", "veth"),
    link(13, "bond0", "bond"),
    link(14, "eth1", master=13),
    link(15, "wg0", "wireguard"),
    link(16, "tunl0", "ipip"),
]
HOSTS = {
    "lo", "eth0", "eth0.100", "flannel.1", "docker0", "virbr0", "cilium_host", "bond0", "eth1", "wg0", "tunl0",
}  # fmt: skip


def test_devices_of_the_host_are_those_by_which_no_pod_comes() -> None:
    links = {each.ifindex: each for each in LINKS}
    assert host_devices(links, frozenset({"cni0"})) == HOSTS
    assert host_devices(links, frozenset()) == HOSTS | {"cni0"}
