"""What can be wrong with the addresses of a pool, tried with every kind of pool."""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from ipam.plan import plan
from ipam.round import Request
from routerd.cluster.requests import pool_spec
from routerd.formats.kinds import BY_NAME, KINDS
from routerd.formats.objects import read_file
from routerd.model import AddressPool, PodPool
from routerd.store.merge import merge

Json = dict[str, Any]
Text = Callable[[str], str]


def made(group: str, kind: str, spec: Json) -> str:
    head = {"apiVersion": BY_NAME[group, kind].api_version, "kind": kind, "metadata": {"name": "p"}}
    return json.dumps({**head, "spec": spec})


def ends(text: str, last: str, cidr: str = "cidr") -> Json:
    """A CIDR or a range, as those have it that tell them apart by key."""
    first, separator, end = text.partition("-")
    return {"start": first, last: end} if separator else {cidr: text}


def config_map(name: str, namespace: str, key: str, head: str = "") -> Text:
    def text(addresses: str) -> str:
        given = [addresses] if addresses else []
        config = f"{head}address-pools: {json.dumps([{'name': 'p', 'protocol': 'bgp', 'addresses': given}])}"
        meta = {"name": name, "namespace": namespace}
        return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {key: config}})

    return text


def listed(group: str, kind: str, key: str, entry: Callable[[str], Any], **spec: Any) -> Text:
    return lambda text: made(group, kind, {key: [entry(text)] if text else [], **spec})


def of_cilium(text: str) -> str:
    """Ranges there are what is reserved; a family is what its CIDR is of."""
    family = "ipv6" if ":" in text else "ipv4"
    cidrs = [{"cidr": text}] if text else []
    return made("cilium.io", "CiliumPodIPPool", {family: {"cidrs": cidrs, "maskSize": 128 if ":" in text else 32}})


SERVICES: dict[str, Text] = {
    "AddressPool": listed("routerd.io", "AddressPool", "blocks", str),
    "ConfigMap of Cilium 1.10": config_map("bgp-config", "kube-system", "config.yaml"),
    "ConfigMap of MetalLB": config_map("config", "metallb-system", "config"),
    "ConfigMap": config_map("mine", "routerd", "config.yaml", "apiVersion: routerd.io/v1alpha1\n"),
    "CiliumLoadBalancerIPPool": listed(
        "cilium.io", "CiliumLoadBalancerIPPool", "blocks", lambda text: ends(text, "stop")
    ),
    "IPAddressPool": listed("metallb.io", "IPAddressPool", "addresses", str),
    "ExternalIPPool": listed(
        "crd.antrea.io", "ExternalIPPool", "ipRanges", lambda text: ends(text, "end"), nodeSelector={}
    ),
    "IPPool of Calico": lambda text: made(
        "crd.projectcalico.org", "IPPool", {"allowedUses": ["LoadBalancer"], **({"cidr": text} if text else {})}
    ),
}
PODS: dict[str, Text] = {
    "IPPool of Calico for pods": lambda text: made("projectcalico.org", "IPPool", {"cidr": text} if text else {}),
    "IPPool of Antrea": listed("crd.antrea.io", "IPPool", "ipRanges", lambda text: ends(text, "end")),
    "CiliumPodIPPool": of_cilium,
}
CIDRS_ALONE = {"IPPool of Calico", "IPPool of Calico for pods", "CiliumPodIPPool"}
WITHOUT_ENDS = {"ExternalIPPool"}  # of a CIDR: the first, and of IPv4 the last


def read(text: str) -> tuple[AddressPool | PodPool | None, str]:
    """The pool that is in force, and why there is none."""
    found = merge([loaded := read_file(text, "f.yaml")], allocations=None)
    pools: list[AddressPool | PodPool] = [*(found.pools or {}).values(), *found.pod_pools.values()]
    wrong = [each.text for each in loaded.mistakes] + [each.message for each in found.refusals]
    return (pools[0] if pools else None), " ".join(wrong)


def size(pool: AddressPool | PodPool) -> int:
    blocks = pool.networks if isinstance(pool, PodPool) else pool.blocks
    return sum(each.num_addresses for each in blocks)


def test_every_kind_of_pool_is_tried_here() -> None:
    kinds = {json.loads(text("192.0.2.0/24"))["kind"] for text in (*SERVICES.values(), *PODS.values())}
    beside = {"BGPAdvertisement", "Community"}  # which say how pools are announced
    beside |= {"CiliumBGPAdvertisement", "CiliumBGPPeeringPolicy"}
    found = {each.name for each in KINDS if "pools" in each.parts and each.reader} | {"ConfigMap"}
    assert found - beside == kinds


SIZES = {
    "192.0.2.9/32": 1, "192.0.2.8/31": 2, "2001:db8::9/128": 1, "2001:db8::8/127": 2,
    "2001:db8::/64": 1 << 64, "10.0.0.0/8": 1 << 24, "2001:db8::/32": 1 << 96,
    "192.0.2.9-192.0.2.9": 1, "192.0.2.1-192.0.2.6": 6, "2001:db8::1-2001:db8::1:0": 1 << 16,
}  # fmt: skip
WRONG = (
    "", "192.0.2.9-192.0.2.1", "2001:db8::9-2001:db8::1", "192.0.2.1-2001:db8::1", "192.0.2.0/33", "2001:db8::/129",
    "0.0.0.0/0", "::/0", "127.0.0.0/8", "224.0.0.0/24", "fe80::/64", "255.255.255.255/32", "nonsense",
)  # fmt: skip
# The old parsers look at syntax alone; what they take is as a file says that has worked for years.
_SYNTAX = {"0.0.0.0/0", "::/0", "127.0.0.0/8", "224.0.0.0/24", "fe80::/64", "255.255.255.255/32"}
AS_THEY_WERE = {
    "ConfigMap of Cilium 1.10": _SYNTAX | {"192.0.2.9-192.0.2.1", "2001:db8::9-2001:db8::1", "192.0.2.1-2001:db8::1"},
    "ConfigMap of MetalLB": _SYNTAX | {"192.0.2.1-2001:db8::1"},
    "ConfigMap": _SYNTAX | {"192.0.2.1-2001:db8::1"},
}
EVERY = {**SERVICES, **PODS}


@pytest.mark.parametrize(
    ("kind", "text"),
    [(kind, text) for kind in EVERY for text in SIZES if "-" not in text or kind not in CIDRS_ALONE],
)
def test_small_and_huge_ones_have_all_their_addresses(kind: str, text: str) -> None:
    pool, wrong = read(EVERY[kind](text))
    ends = (1 if ":" in text else 2) if kind in WITHOUT_ENDS and "/" in text else 0
    count = max(0, SIZES[text] - ends)
    assert (size(pool) if pool is not None else 0) == count, wrong
    assert bool(wrong) == (count == 0)


@pytest.mark.parametrize(
    ("kind", "text"),
    [(kind, text) for kind in EVERY for text in WRONG if text not in AS_THEY_WERE.get(kind, ())],
)
def test_empty_and_reversed_ones_and_what_is_no_address_of_anybody_are_refused_by_name(kind: str, text: str) -> None:
    pool, wrong = read(EVERY[kind](text))
    assert pool is None
    assert "f.yaml" in wrong


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in AS_THEY_WERE.items() for text in sorted(texts)]
)
def test_what_the_old_parsers_took_is_taken(kind: str, text: str) -> None:
    pool, wrong = read(EVERY[kind](text))
    assert pool is not None and wrong == ""


@pytest.mark.parametrize("kind", SERVICES)
def test_a_pool_gives_its_first_address_at_once_however_large_and_an_edit_that_strands_it_is_told(kind: str) -> None:
    pool, _ = read(SERVICES[kind]("2001:db8::/32"))
    assert isinstance(pool, AddressPool)
    wanted = [Request("svc/d/web", "loadbalancer", (6,), pool="p")]
    first = plan([pool_spec(pool)], (), wanted, 0.0)
    (address,) = first.grants["svc/d/web"].addresses
    assert address in (ip_address("2001:db8::"), ip_address("2001:db8::1"))
    narrowed, _ = read(SERVICES[kind]("2001:db8:1::/48"))
    assert isinstance(narrowed, AddressPool)
    after = plan([pool_spec(narrowed)], first.records, wanted, 1.0)
    assert after.grants == first.grants, "nobody moves"
    (denial,) = after.denials
    assert (denial.owner, denial.reason) == ("AddressPool/p", "AddressesStranded")
    assert f'svc/d/web cannot own ["{address}"] under new config' in denial.message
