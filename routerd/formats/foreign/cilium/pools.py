"""Cilium's CiliumLoadBalancerIPPool (cilium.io/v2). Pure.

Unknown fields are ignored, as the API server prunes them.
"""

from __future__ import annotations

from functools import partial

from ipam.ranges import networks_between
from routerd.formats.document import Section, Value
from routerd.formats.meta import label_selector, read_meta
from routerd.formats.native import blocks_of, range_networks
from routerd.model import AddressPool, IPNetwork, ServiceSelection


def read_load_balancer_pool(value: Value) -> AddressPool:
    """CiliumLoadBalancerIPPool. Other kinds announce it in Cilium; here each address is announced, as /32 or /128."""
    meta, spec = read_meta(value), value.section.require("spec").section
    return AddressPool(
        name=meta.name,
        blocks=_blocks(spec),
        disabled=spec.boolean("disabled", False),
        services=_services(spec),
        origin=meta.origin,
    )


def _services(spec: Section) -> tuple[ServiceSelection, ...] | None:
    selector = spec.get("serviceSelector")
    return None if selector is None else (ServiceSelection(label_selector(selector, strict=False)),)


def _blocks(spec: Section) -> tuple[IPNetwork, ...]:
    ends = spec.get("allowFirstLastIPs")
    with_ends = ends is None or ends.choice("Yes", "No") == "Yes"
    return blocks_of(spec.require("blocks").nonempty("block"), partial(_block, with_ends=with_ends))


def _block(item: Value, with_ends: bool) -> tuple[IPNetwork, ...]:
    """`cidr`, or `start` and `stop`; `start` alone is one address."""
    section = item.section
    cidr, start, stop = section.get("cidr"), section.get("start"), section.get("stop")
    if cidr is not None and start is None and stop is None:
        return _cidr(cidr.network(host_bits=True), with_ends)
    if cidr is not None or start is None:
        raise item.error('expected either "cidr", or "start" and "stop"')
    first = start.address()
    return range_networks(item, first, stop.address() if stop is not None else first)


def _cidr(network: IPNetwork, with_ends: bool) -> tuple[IPNetwork, ...]:
    """One of two addresses or less keeps its ends: nothing would be left."""
    if with_ends or network.num_addresses <= 2:
        return (network,)
    return networks_between(network[1], network[-2])
