"""Pools of pods: Cilium's CiliumPodIPPool (cilium.io/v2) and Antrea's IPPool (crd.antrea.io/v1beta1). Pure."""

from __future__ import annotations

from collections.abc import Iterator

from ipam.ranges import networks_without
from routerd.formats.document import Section, Value
from routerd.formats.meta import read_meta, selector_at
from routerd.formats.native import blocks_of, check_block, range_networks
from routerd.model import ClusterCIDR, IPNetwork, PodPool

MOST_BLOCK_BITS = 16  # of one CIDR: 65,536 blocks, as Kubernetes has it
DEFAULT = "default"  # Cilium's pool of nodes and pods that name none


def cluster_cidr(network: IPNetwork, prefix: int) -> ClusterCIDR:
    """Blocks of that prefix length, or larger ones where these were too many; all of a network that is smaller."""
    return ClusterCIDR(network, max(network.prefixlen, min(prefix, network.prefixlen + MOST_BLOCK_BITS)))


def read_cilium(value: Value) -> PodPool:
    """Nodes have blocks of `default` and of those that they name. Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    cidrs: list[ClusterCIDR] = []
    reserved: list[IPNetwork] = []
    for version in (4, 6):
        for place, one in _family(spec, version):
            check_block(place, one.network, [each.network for each in cidrs])
            cidrs.append(one)
            if place.is_mapping:
                reserved += _reserved(place.section, one.network)
    if not cidrs:
        raise spec.value.error("expected ipv4 or ipv6 with CIDRs")
    return PodPool(
        meta.name,
        networks_without((each.network for each in cidrs), reserved),
        tuple(cidrs),
        tuple(reserved),
        asked_only=meta.name != DEFAULT,
        for_pods=selector_at(spec, "podSelector", strict=False),
        for_namespaces=selector_at(spec, "namespaceSelector", strict=False),
        origin=meta.origin,
    )


def _family(spec: Section, version: int) -> Iterator[tuple[Value, ClusterCIDR]]:
    """v2alpha1 has plain CIDRs."""
    family = spec.section(f"ipv{version}")
    if family is None:
        return
    size = family.require("maskSize")
    for item in family.require("cidrs").nonempty("CIDR"):
        cidr = item.section.require("cidr") if item.is_mapping else item
        network = cidr.network(host_bits=True)
        if network.version != version:
            raise cidr.error(f"found {network}, expected an IPv{version} CIDR")
        yield item, cluster_cidr(network, size.integer(network.prefixlen, network.max_prefixlen))


def _reserved(item: Section, network: IPNetwork) -> tuple[IPNetwork, ...]:
    """A range START-END of the CIDR."""
    place = item.get("reservedRange")
    if place is None:
        return ()
    first, separator, last = place.string("a range START-END").partition("-")
    if not separator:
        place.expected("a range START-END")
    ends = [place.renamed(word.strip()).address() for word in (first, last)]
    for end in ends:
        if end.version != network.version or end not in network:
            raise place.error(f"{end} is not in {network}")
    return range_networks(place, *ends)


def read_antrea(value: Value) -> PodPool:
    """It says which addresses a pod may have that names it, and gives nodes nothing. Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    return PodPool(meta.name, blocks_of(spec.require("ipRanges").nonempty("range"), _range), origin=meta.origin)


def _range(item: Value) -> tuple[IPNetwork, ...]:
    section = item.section
    cidr, start, end = section.get("cidr"), section.get("start"), section.get("end")
    if cidr is not None and start is None and end is None:
        return (cidr.network(host_bits=True),)
    if cidr is not None or start is None or end is None:
        raise item.error('expected either "cidr", or "start" and "end"')
    return range_networks(item, start.address(), end.address())
