"""What can be given of each egress IP: all its ports but those that Services use on it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ipam.port_sets import OF_VIP, RANGE, RESERVED, Mask, without_ports
from routerd.model import EgressGroup, IPAddress, Refusal, Service

TRANSLATED = ("TCP", "UDP")  # protocols with ports
MOST = 16  # granules of an address that Services take: any user may write one with all the ports of the address
NOT_LEFT_OUT = "PortsNotLeftOut"  # reason of refusals


@dataclass(frozen=True, slots=True)
class Rooms:
    """By egress IP: the granules that nodes may have, and the Services whose ports are among those nevertheless."""

    masks: Mapping[IPAddress, Mask]
    refusals: Collection[Refusal] = field(default=(), compare=False)


def rooms_of(groups: Iterable[EgressGroup], services: Iterable[Service]) -> Rooms:
    """`services`: all that have `externalIPs`. Those that take least of an address come first, so that one with a
    thousand ports costs no other its own.
    """
    masks = {address: _whole(group) for group in groups for address in group.egress_ips}
    refusals = []
    for address, on_it in _by_address(masks, services).items():
        whole = masks[address]
        for less, service in sorted(
            ((without_ports(whole, _ports(service)), service) for service in on_it),
            key=lambda each: (-each[0].bit_count(), each[1].key),
        ):
            if (whole & ~(masks[address] & less)).bit_count() <= MOST:
                masks[address] &= less
            else:
                refusals.append(_refusal(address, service))
    return Rooms(masks, tuple(refusals))


def _whole(group: EgressGroup) -> Mask:
    if group.node_address:
        return RESERVED
    return OF_VIP if group.service else RANGE


def _by_address(addresses: Collection[IPAddress], services: Iterable[Service]) -> dict[IPAddress, list[Service]]:
    found: dict[IPAddress, list[Service]] = {}
    for service in services:
        for address in {*service.external_ips}.intersection(addresses):
            found.setdefault(address, []).append(service)
    return found


def _ports(service: Service) -> list[int]:
    return [each.port for each in service.ports if each.protocol in TRANSLATED]


def _refusal(address: IPAddress, service: Service) -> Refusal:
    return Refusal(
        service.ref,
        NOT_LEFT_OUT,
        f"its ports on {address}, which is an egress IP, are given to nodes all the same, and those that a node has do "
        f"not reach the service: ports of services may take {MOST} blocks of 64 ports of an egress IP, and those that "
        "take least come first; give the service an address of its own",
    )
