"""Kube-OVN's pools of pods (IPPool), and what of its annotations is not done. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from ipam.ranges import networks_between
from routerd.formats.document import Value
from routerd.formats.foreign.kube_ovn.keys import Keys, not_used
from routerd.formats.foreign.kube_ovn.named import of_namespaces
from routerd.formats.foreign.policies import IN_PART
from routerd.formats.meta import read_meta
from routerd.formats.native import blocks_of, range_networks
from routerd.model import EIP, SNAT, IPNetwork, Labels, Namespace, Pod, PodPool, Refusal
from routerd.refs import Ref

INBOUND = "no connection from outside is brought to the pod: give it a Service"
BOTH = "the pod leaves with its eip, as Kube-OVN has it: this one is left out"
# the subnet is the network in which its addresses lie
_IP_POOL = Keys(("ips", "namespaces", "subnet"), {"enableAddressSet": "no address set is made"})


def read_ip_pool(value: Value) -> tuple[PodPool, tuple[Refusal, ...]]:
    """Addresses, ranges START..END and CIDRs of a subnet, for pods of some namespaces. Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    names = tuple(item.name() for item in spec.items("namespaces"))
    pool = PodPool(
        meta.name,
        blocks_of(spec.require("ips").nonempty("address, range or CIDR"), _networks),
        for_namespaces=of_namespaces(names).namespaces if names else None,
        origin=meta.origin,
    )
    return pool, tuple(not_used(value, _IP_POOL))


def _networks(item: Value) -> tuple[IPNetwork, ...]:
    text = item.string("an address, a range START..END or a CIDR")
    if ".." in text:
        first, _, last = text.partition("..")
        return range_networks(item, item.renamed(first.strip()).address(), item.renamed(last.strip()).address())
    if "/" in text:
        return (item.network(host_bits=True),)
    address = item.address()
    return networks_between(address, address)


# --- annotations


def told_of_pod(found: Pod, value: Value) -> Iterator[Refusal]:
    return _told(Ref("Pod", found.namespace, found.name), found.annotations, value)


def told_of_namespace(found: Namespace, value: Value) -> Iterator[Refusal]:
    return _told(Ref("Namespace", name=found.name), found.annotations, value)


def _told(about: Ref, annotations: Labels, value: Value) -> Iterator[Refusal]:
    """What of annotations is not done."""
    given = {key: annotations[key].strip() for key in (EIP, SNAT) if annotations.get(key, "").strip()}
    if EIP in given:
        yield Refusal(about, IN_PART, f"{value.origin}: {EIP}: {INBOUND}")
    if len(set(given.values())) > 1:
        yield Refusal(about, IN_PART, f"{value.origin}: {SNAT}: {BOTH}")
