"""The devices of this node and of its pods' network namespaces, as values: which of a pod's lead by a hook of ours, and
which past all of them. Pure.

A veth or netkit has its other end here, where the programs are. What a macvlan, an ipvlan or a VLAN device sends goes
out by the device beneath, and what a NIC or a virtual function sends, by itself: the node's stack sees none of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Network

from egress.policy import IPAddress

HOOKED = frozenset({"veth", "netkit"})
OF_OWN_MAC = frozenset({"macvlan", "macvtap"})
LINK_LOCAL = IPv6Network("fe80::/10")  # of every device: it tells nobody whose it is


@dataclass(frozen=True, slots=True)
class PodDevice:
    """Where a local pod is attached to its node. MAC addresses are 6 bytes; all 0 on a netkit of mode L3."""

    ifindex: int  # the hook's device: the host-side end of the pod's veth or netkit, also where that is a bridge port
    name: str
    forward_name: str  # the device that the forward hook sees: the bridge, if the veth is a port of one
    pod_mac: bytes
    device_mac: bytes


@dataclass(frozen=True, slots=True)
class Unhooked:
    """A device of a pod's whose packets pass no hook of this node's."""

    name: str  # in the pod's network namespace
    kind: str  # as people call it: "macvlan", "ipvlan", "SR-IOV VF", "NIC"
    addresses: tuple[IPAddress, ...] = ()
    beneath: int = 0  # ifindex of the node's device by which its packets leave, 0 = they leave by itself
    beneath_name: str = ""
    mac: bytes = b""  # 6 bytes, by which frames at the device beneath are its own; b"" = by none

    @property
    def is_kept_back(self) -> bool:
        """Whether what it sends can be told from others' at the device beneath."""
        return bool(self.beneath and (self.mac or self.addresses))


@dataclass(frozen=True, slots=True)
class Link:
    """A device. `peer` is its other end or the device beneath it, and `namespace` where that is, if not where it is
    itself.
    """

    ifindex: int
    name: str
    kind: str  # as `ip link` says it; "" = hardware, or the loopback
    mac: bytes
    mtu: int
    up: bool
    master: int
    peer: int
    namespace: int | None
    vxlan_port: int
    vxlan_external: bool
    carrier: bool = True
    is_ethernet: bool = True
    is_loopback: bool = False
    is_virtual_function: bool = False

    @property
    def leads_out(self) -> bool:
        """Whether it is one end of a pair whose other end is in another namespace."""
        return self.kind in HOOKED and self.namespace is not None


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace beside this one: its devices by ifindex, and its addresses, each with its device's."""

    id: int
    links: Mapping[int, Link]
    addresses: tuple[tuple[int, IPAddress], ...]


def host_devices(links: Mapping[int, Link], pod_bridges: frozenset[str]) -> frozenset[str]:
    """Devices by which no pod's packets come into the forward hook. A pair that leads into another network namespace is
    a pod's, and so are bridges that are known for theirs; a bridge's packets come by the bridge, not by its ports.
    """
    bridges = {link.ifindex for link in links.values() if link.kind == "bridge"}
    to_pods = {link.name for link in links.values() if link.leads_out}
    inner = {link.name for link in links.values() if link.master in bridges}
    return frozenset(link.name for link in links.values()) - to_pods - inner - pod_bridges


def second_devices(links: Mapping[int, Link], pods: Iterable[PodDevice]) -> frozenset[str]:
    """All devices here that lead to these pods by themselves, not by a bridge, which others may be on: also those of
    networks that a Pod does not tell of.
    """
    bridges = {link.ifindex for link in links.values() if link.kind == "bridge"}
    theirs = {links[pod.ifindex].namespace for pod in pods}
    apart = (link for link in links.values() if link.leads_out and link.master not in bridges)
    return frozenset(link.name for link in apart if link.namespace in theirs)


def inner_namespaces(links: Mapping[int, Link]) -> frozenset[int]:
    """Ids of those to which pairs lead."""
    return frozenset(link.namespace for link in links.values() if link.leads_out and link.namespace is not None)


def _other_ends(links: Mapping[int, Link]) -> dict[tuple[int, int], Link]:
    """By namespace and ifindex there, this node's end of the pair."""
    return {
        (link.namespace, link.peer): link for link in links.values() if link.leads_out and link.namespace is not None
    }


def pod_devices(links: Mapping[int, Link], namespaces: Iterable[Namespace]) -> dict[IPAddress, list[PodDevice]]:
    """Addresses behind this node's pairs, with their devices: more than one where an address is there twice."""
    ends = _other_ends(links)
    found: dict[IPAddress, list[PodDevice]] = defaultdict(list)
    for space in namespaces:
        for index, address in space.addresses:
            end, inner = ends.get((space.id, index)), space.links.get(index)
            if end and inner and _tells_a_pod(address):
                master = links.get(end.master)
                seen_as = master.name if master and master.kind == "bridge" else end.name
                found[address].append(PodDevice(end.ifindex, end.name, seen_as, inner.mac, end.mac))
    return found


def _tells_a_pod(address: IPAddress) -> bool:
    return not address.is_loopback and address not in LINK_LOCAL


def unhooked(
    links: Mapping[int, Link],
    namespaces: Iterable[Namespace],
    pods: Collection[IPAddress],
    chosen: Mapping[IPAddress, PodDevice],
) -> dict[IPAddress, tuple[Unhooked, ...]]:
    """Of these addresses of pods, the devices in the same namespace that lead past the hooks. `chosen`: the device of
    those that have one, by which whoever has the address as well is somebody else.
    """
    found: dict[IPAddress, tuple[Unhooked, ...]] = {}
    for space in namespaces:
        past = tuple(_past_hooks(space, links))
        for address in {address for _, address in space.addresses if address in pods} if past else ():
            device = chosen.get(address)
            if device is None or links[device.ifindex].namespace == space.id:
                found[address] = (*found.get(address, ()), *past)
    return found


def _past_hooks(space: Namespace, links: Mapping[int, Link]) -> Iterator[Unhooked]:
    """A pair's other end is a hook if it is here, and else leads to what is behind the pod itself."""
    for link in space.links.values():
        kind = "" if link.kind in HOOKED or link.is_loopback else _kind_past_hooks(link)
        if kind:
            beneath = links.get(link.peer) if link.kind else None
            below = (beneath.ifindex, beneath.name, _own_mac(link, beneath)) if beneath else (0, "")
            addresses = (each for index, each in space.addresses if index == link.ifindex)
            yield Unhooked(link.name, kind, tuple(filter(_tells_a_pod, addresses)), *below)


def _own_mac(link: Link, beneath: Link) -> bytes:
    """That nothing else at the device beneath has, b"" = it has none: one of mode passthru has that device's."""
    return link.mac if link.kind in OF_OWN_MAC and link.mac != beneath.mac else b""


def _kind_past_hooks(link: Link) -> str:
    """What it is called, "" = it stays in its namespace, as what lies upon a device of that does."""
    if not link.kind:
        return "SR-IOV VF" if link.is_virtual_function else "NIC"
    return link.kind if link.namespace is not None else ""
