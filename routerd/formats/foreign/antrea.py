"""Antrea's Egress and ExternalIPPool (crd.antrea.io/v1beta1; Egress as v1alpha2 says the same). Pure.

An Egress has no destinations: what leaves the cluster in the family of its address is meant. An ExternalIPPool says
which nodes are gateways for its addresses; it also serves Services that name it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ipam.ranges import networks_between
from routerd.formats.closed import Read, Refused, usable
from routerd.formats.document import Section, Value
from routerd.formats.foreign.policies import EVERYWHERE, everywhere
from routerd.formats.meta import label_selector, read_meta, selector_at
from routerd.formats.native import blocks_of, range_networks
from routerd.model import AddressPool, EgressPolicy, IPAddress, IPNetwork, PodSelection, Refusal
from routerd.refs import Ref


def read_egress(value: Value) -> Read:
    """Which destinations one has whose address comes from a pool, and which gateways, the pool says.

    Raises InputError, `Refused` among them.
    """
    spec = value.section.require("spec").section
    for key in ("egressIPs", "externalIPPools"):
        if (several := spec.get(key)) is not None:
            message = (
                f"{key} is not supported, nor is it by Antrea: write an EgressPolicy with egressIPs, or pool and count"
            )
            raise Refused(several, "SeveralAddresses", message)
    given, pool = spec.get("egressIP"), spec.get("externalIPPool")
    name = pool.string("the name of an ExternalIPPool") if pool is not None else ""
    address = usable(given, given.address()) if given is not None and given.text else None
    if address is None and not name:
        raise Refused(spec.value, "NoEgressIP", "neither egressIP nor externalIPPool")
    return _egress(covered_by_egress(value), address, name), tuple(_not_limited(value, spec))


def _egress(covered: EgressPolicy, address: IPAddress | None, pool: str) -> EgressPolicy:
    if address is None:
        return replace(covered, pool=pool, destinations=())
    return replace(covered, egress_ip=address, destinations=everywhere([address]))


def _not_limited(value: Value, spec: Section) -> Iterator[Refusal]:
    if (bandwidth := spec.get("bandwidth")) is not None:
        message = str(bandwidth.error("traffic is not limited"))
        yield Refusal(Ref("Egress", name=read_meta(value).name), "BandwidthNotLimited", message)


def covered_by_egress(value: Value) -> EgressPolicy:
    """Whom it covers, without its address. Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    applied = spec.require("appliedTo")
    pods, namespaces = (selector_at(applied.section, f"{what}Selector", strict=False) for what in ("pod", "namespace"))
    if pods is None and namespaces is None:
        message = "neither podSelector nor namespaceSelector: the policy selects no pod"
        raise Refused(applied, "NoSelectors", message)
    return EgressPolicy(
        name=meta.name,
        kind=meta.kind,
        selections=(PodSelection(pods, namespaces),),
        destinations=EVERYWHERE,
        created=meta.created,
        origin=meta.origin,
    )


def read_external_ip_pool(value: Value) -> tuple[AddressPool | None, tuple[Refusal, ...]]:
    """Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    ranges = spec.require("ipRanges")
    blocks = blocks_of(ranges.nonempty("range"), _range)
    about = Ref(meta.kind, name=meta.name)
    if not blocks:
        message = "no address is left: of a CIDR the first address is not given, and of IPv4 not the last one"
        return None, (Refusal(about, "InvalidAddresses", str(ranges.error(message))),)
    pool = AddressPool(
        name=meta.name,
        blocks=blocks,
        uses=frozenset({"egress", "loadbalancer"}),
        auto_assign=False,
        gateways=label_selector(spec.require("nodeSelector"), strict=False),
        origin=meta.origin,
    )
    return pool, tuple(_subnet(about, spec))


def _subnet(about: Ref, spec: Section) -> Iterator[Refusal]:
    if (subnet := spec.get("subnetInfo")) is not None:
        message = "what has an address of the pool leaves by the node's own routes, not by this gateway or VLAN"
        yield Refusal(about, "SubnetNotUsed", str(subnet.error(message)))


def _range(item: Value) -> tuple[IPNetwork, ...]:
    section = item.section
    cidr, start, end = section.get("cidr"), section.get("start"), section.get("end")
    if cidr is not None and start is None and end is None:
        return _inner(cidr.network(host_bits=True))
    if cidr is not None or start is None or end is None:
        raise item.error('expected either "cidr", or "start" and "end"')
    return range_networks(item, start.address(), end.address())


def _inner(network: IPNetwork) -> tuple[IPNetwork, ...]:
    """Without its first address, and in IPv4 without its last one."""
    last = network.num_addresses - (2 if network.version == 4 else 1)
    return networks_between(network[1], network[last]) if last >= 1 else ()
