"""What a node's interfaces of a cloud are to be, from what the operator published of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, collapse_addresses

from cloud.model import Vpc, block_order
from eni.plan import Desired, Interface
from routerd.model import CloudInterface, IPNetwork, Node


@dataclass(frozen=True, slots=True)
class PodsOfCloud:
    """By which rules pods have addresses of a cloud."""

    vpc: Vpc
    metadata: bool = False  # whether they may ask its metadata service
    snat_exempt: tuple[IPNetwork, ...] | None = None  # who sees their addresses beside the VPC; None = everybody


def wiring(here: Node, pods: PodsOfCloud, forward_mark: int, cluster_cidrs: Iterable[IPNetwork]) -> Desired:
    """What is taken to a gateway begins by its natural route, to the device where it is taken up: the primary one."""
    wires = tuple(_wire(each, pods.vpc) for each in here.interfaces)
    closed = () if pods.metadata else pods.vpc.metadata
    return Desired(wires, closed, forward_mark, _untranslated(here, pods, cluster_cidrs))


def _wire(each: CloudInterface, vpc: Vpc) -> Interface:
    """Of blocks that leave, too, as pods may still have addresses of them."""
    blocks = (*each.blocks, *each.leaving)
    return Interface(each.mac, vpc.routers(each.own.network, blocks), tuple(sorted(blocks, key=block_order)))


def _untranslated(here: Node, pods: PodsOfCloud, cluster_cidrs: Iterable[IPNetwork]) -> tuple[IPNetwork, ...]:
    """Where pods' packets are not translated to; () = anywhere, also while the operator has not told the VPC's."""
    vpc = {network for each in here.interfaces for network in each.vpc}
    if pods.snat_exempt is None or not vpc:
        return ()
    networks = (*vpc, *pods.snat_exempt, *cluster_cidrs)
    return tuple(sorted(collapse_addresses(each for each in networks if isinstance(each, IPv4Network))))
