"""Calico's IPPool (projectcalico.org/v3, kept as crd.projectcalico.org/v1): addresses of pods, or of services. Pure.

What we cannot do is refused by name, as a value. Unknown fields are ignored, as the API server prunes them.
"""

from __future__ import annotations

from routerd.formats.document import Section, Value
from routerd.formats.foreign.calico.selectors import selector
from routerd.formats.foreign.pod_pools import cluster_cidr
from routerd.formats.meta import Meta, read_meta
from routerd.formats.native import check_block
from routerd.model import AddressPool, Advertisement, IPNetwork, PodPool, Refusal
from routerd.refs import Ref

BLOCK_SIZES = {4: (20, 32, 26), 6: (116, 128, 122)}  # of `blockSize`: least, most, and without
USES = ("Workload", "Tunnel", "LoadBalancer", "HostSecondaryInterface")
Found = AddressPool | PodPool


def read_ip_pool(value: Value) -> tuple[Found | None, tuple[Refusal, ...]]:
    """Raises InputError."""
    meta, spec = read_meta(value), value.section.require("spec").section
    cidr = spec.require("cidr")
    network = cidr.network()
    check_block(cidr, network, [])
    uses = {item.choice(*USES) for item in spec.items("allowedUses")} or {"Workload"}
    if "LoadBalancer" in uses and len(uses) > 1:
        raise spec.require("allowedUses").error("LoadBalancer goes with no other use")
    if refused := _refused(meta, spec):
        return None, (refused,)
    if uses == {"LoadBalancer"}:
        return _of_services(meta, spec, network), ()
    return (_of_pods(meta, spec, network), ()) if "Workload" in uses else (None, ())


def _refused(meta: Meta, spec: Section) -> Refusal | None:
    place = spec.get("namespaceSelector")
    if place is None or place.string("a selector").strip() in ("", "all()"):
        return None
    message = str(place.error("pools for some namespaces are not supported; the pool is not used"))
    return Refusal(Ref(meta.kind, name=meta.name), "NamespaceSelectorNotSupported", message)


def _of_services(meta: Meta, spec: Section, network: IPNetwork) -> AddressPool:
    """Announced as one of ours is that says nothing of it, unless Calico would not."""
    is_announced = not spec.boolean("disableBGPExport", False)
    return AddressPool(
        meta.name,
        (network,),
        protocol="bgp" if is_announced else "layer2",
        auto_assign=_is_automatic(spec),
        disabled=spec.boolean("disabled", False),
        advertisements=(Advertisement(),) if is_announced else (),
        origin=meta.origin,
    )


def _of_pods(meta: Meta, spec: Section, network: IPNetwork) -> PodPool:
    return PodPool(
        meta.name,
        (network,),
        (cluster_cidr(network, spec.integer("blockSize", *BLOCK_SIZES[network.version])),),
        disabled=spec.boolean("disabled", False),
        asked_only=not _is_automatic(spec),
        nodes=selector(spec.get("nodeSelector")),
        announced=not spec.boolean("disableBGPExport", False),
        origin=meta.origin,
    )


def _is_automatic(spec: Section) -> bool:
    mode = spec.get("assignmentMode")
    return mode is None or mode.choice("Automatic", "Manual") == "Automatic"
