"""A packet or a state of IPv4 as the same one of IPv6."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network

from egress.policy import IPAddress
from tests.bpf.world import EGRESS_IP, EGRESS_IP6, POD, POD2, POD6, POD26, REMOTE_POD, SELF, SELF6
from tests.models.tables import ICMP, ICMP6, Packet

NO_ROUTE, NO_ROUTE6 = IPv4Address("198.51.100.200"), IPv6Address("2001:db8:51:ff::1")
SAME = {
    NO_ROUTE: NO_ROUTE6,
    POD: POD6,
    POD2: POD26,
    EGRESS_IP: EGRESS_IP6,
    SELF: SELF6,
    REMOTE_POD: IPv6Address("2001:db8:244:2::20"),
}
NETWORKS = {  # by their hosts' last byte
    ip_network("198.51.100.0/24"): IPv6Address("2001:db8:51::"),
    ip_network("192.0.2.0/24"): IPv6Address("2001:db8:2::"),
    ip_network("203.0.113.0/24"): IPv6Address("2001:db8:113::"),
    ip_network("10.244.0.0/16"): IPv6Address("2001:db8:244::"),
}
MORE = 20  # bytes that an IPv6 header has more


def six_address(address: IPAddress) -> IPv6Address:
    assert isinstance(address, IPv4Address)
    if address in SAME:
        return SAME[address]
    base = next(base for network, base in NETWORKS.items() if address in network)
    return base + (int(address) & 0xFF)


def six(packet: Packet) -> Packet:
    """The packet, as IPv6: as long, but with room for the longer header where it is short."""
    mss = packet.mss
    if mss == 1410:  # clamped to the tunnel
        mss -= MORE
    return replace(
        packet, source=six_address(packet.source), destination=six_address(packet.destination),
        protocol=ICMP6 if packet.protocol == ICMP else packet.protocol,
        length=max(packet.length, 60 + MORE), dont_fragment=False, mss=mss,
        quoted=packet.quoted and six(packet.quoted),
    )  # fmt: skip
