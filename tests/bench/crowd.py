"""Many pods with a policy of their own each, as map entries: to plan 100,000 policies takes too long."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network

from bpf import layout
from egress.entries import MapEntries
from egress.policy import IPAddress, Version

WORLD = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


def policies(version: Version, group: int, sets: range) -> MapEntries:
    """A policy set for each number: everything of a family leaves through the group."""
    value = layout.PolicyValue(1)
    value.rules[0].group = group
    return {layout.policy_key(number, WORLD[version]): bytes(value) for number in sets}


def pods(ifindex: int, addresses: Sequence[IPAddress], sets: range, macs: tuple[bytes, bytes]) -> MapEntries:
    """The addresses behind one device, each with the policy set of its place; `macs`: of the pod and of the device."""
    pod_mac, device_mac = map(layout.Bytes6.from_buffer_copy, macs)
    return {
        bytes(layout.PodKey(ifindex, layout.ip_field(address))): bytes(layout.PodValue(number, pod_mac, device_mac))
        for address, number in zip(addresses, sets, strict=True)
    }
