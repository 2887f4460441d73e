"""Objects have bounds: one with too much of anything is refused by name, with what was found and what is taken."""

from __future__ import annotations

import json
from collections.abc import Iterable
from ipaddress import IPv4Network, collapse_addresses
from typing import Any

import pytest

from routerd.formats.closed import bounded
from routerd.formats.document import MOST, MOST_ADDRESSES, TEXTS_SIZE
from routerd.formats.kinds import BY_NAME, KINDS
from routerd.formats.objects import read_file
from routerd.model import EgressPolicy, PodSelection, Service
from routerd.selectors import EVERYTHING
from routerd.store.kubernetes.objects import Collection, stored_object
from routerd.store.kubernetes.resources import Resource

Json = dict[str, Any]
FEW, MANY = MOST_ADDRESSES + 1, MOST + 1


def addresses(count: int) -> list[str]:
    return [f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(count)]


def cidrs(count: int) -> list[str]:
    return [f"{address}/32" for address in addresses(count)]


def labels(count: int) -> dict[str, str]:
    return {f"label-{number}": "x" for number in range(count)}


def made(group: str, kind: str, **body: Any) -> Json:
    found = BY_NAME[group, kind]
    return {"apiVersion": found.api_version, "kind": kind, "metadata": {"name": "big"}, **body}


def service(**spec: Any) -> Json:
    return made("", "Service", spec={"type": "LoadBalancer", **spec})


def endpoint_slice(endpoints: list[Json]) -> Json:
    return made("discovery.k8s.io", "EndpointSlice", addressType="IPv4", endpoints=endpoints)


def annotated(**annotations: str) -> Json:
    return {**service(), "metadata": {"name": "big", "annotations": annotations}}


def pool(**spec: Any) -> Json:
    return made("routerd.io", "AddressPool", spec={"blocks": ["192.0.2.0/24"], **spec})


def config_map(text: Json) -> Json:
    meta = {"name": "bgp-config", "namespace": "kube-system"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"config.yaml": json.dumps(text)}}


PEER = {"peer-address": "10.0.0.1", "peer-asn": 64512, "my-asn": 64512}
SELECTOR = {"podSelector": {}}


def own_policy(**spec: Any) -> Json:
    whole = {"selectors": [SELECTOR], "destinationCIDRs": ["203.0.113.0/24"], "egressIP": "198.51.100.1", **spec}
    return made("routerd.io", "EgressPolicy", spec=whole)


def gateway_policy(**spec: Any) -> Json:
    gateway = {"nodeSelector": {}, "egressIP": "198.51.100.1"}
    whole = {"selectors": [SELECTOR], "destinationCIDRs": ["203.0.113.0/24"], "egressGateway": gateway, **spec}
    return made("cilium.io", "CiliumEgressGatewayPolicy", spec=whole)


def nat_policy(**spec: Any) -> Json:
    whole = {"egress": [SELECTOR], "destinationCIDRs": ["203.0.113.0/24"], "egressSourceIP": "198.51.100.1", **spec}
    return made("cilium.io", "CiliumEgressNATPolicy", spec=whole)


def antrea_egress(**spec: Any) -> Json:
    return made("crd.antrea.io", "Egress", spec={"egressIP": "198.51.100.1", **spec})


def ovn_egress_ip(**spec: Any) -> Json:
    return made("k8s.ovn.org", "EgressIP", spec={"egressIPs": ["198.51.100.1"], "namespaceSelector": {}, **spec})


def egress_gateway(**spec: Any) -> Json:
    return made("kubeovn.io", "VpcEgressGateway", spec={"externalIPs": ["198.51.100.1"], **spec})


def values(count: int) -> Json:
    expression = {"key": "app", "operator": "In", "values": [f"v{number}" for number in range(count)]}
    return {"podSelector": {"matchExpressions": [expression]}}


OBJECTS: dict[str, tuple[Json, int, int, str]] = {
    "externalIPs": (service(externalIPs=addresses(5000)), 5000, MOST_ADDRESSES, "externalIPs"),
    "clusterIPs": (service(clusterIPs=addresses(FEW)), FEW, MOST_ADDRESSES, "clusterIPs"),
    "ports": (service(ports=[{"port": 80}] * MANY), MANY, MOST, "ports"),
    "ipFamilies": (service(ipFamilies=["IPv4"] * MANY), MANY, MOST, "ipFamilies"),
    "service selector": (service(selector=labels(MANY)), MANY, MOST, "selector"),
    "ingress": (
        {**service(), "status": {"loadBalancer": {"ingress": [{"ip": each} for each in addresses(FEW)]}}},
        FEW, MOST_ADDRESSES, "status.loadBalancer.ingress",
    ),
    "annotations": (annotated(note="x" * (TEXTS_SIZE + 1 - len("note"))), TEXTS_SIZE + 1, TEXTS_SIZE, "annotations"),
    "labels": ({**service(), "metadata": {"name": "big", "labels": labels(MANY)}}, MANY, MOST, "metadata.labels"),
    "endpoints": (endpoint_slice([{"addresses": ["10.0.0.1"]}] * MANY), MANY, MOST, "endpoints"),
    "endpoint addresses": (
        endpoint_slice([{"addresses": addresses(FEW)}]), FEW, MOST_ADDRESSES, "endpoints[0].addresses",
    ),
    "pod addresses": (
        made("", "Pod", status={"podIPs": [{"ip": each} for each in addresses(FEW)]}),
        FEW, MOST_ADDRESSES, "status.podIPs",
    ),
    "node addresses": (
        made("", "Node", status={"addresses": [{"type": "InternalIP", "address": each} for each in addresses(FEW)]}),
        FEW, MOST_ADDRESSES, "status.addresses",
    ),
    "pod CIDRs": (made("", "Node", spec={"podCIDRs": cidrs(FEW)}), FEW, MOST_ADDRESSES, "spec.podCIDRs"),
    "namespace labels": (
        {**made("", "Namespace"), "metadata": {"name": "big", "labels": labels(MANY)}}, MANY, MOST, "metadata.labels",
    ),
    "blocks": (pool(blocks=cidrs(MANY)), MANY, MOST, "spec.blocks"),
    "advertisements": (pool(advertisements=[{}] * MANY), MANY, MOST, "spec.advertisements"),
    "communities": (
        pool(advertisements=[{"communities": ["64512:1"] * MANY}]), MANY, MOST, "spec.advertisements[0].communities",
    ),
    "IPAddressPool": (
        {**made("metallb.io", "IPAddressPool", spec={"addresses": cidrs(MANY)})}, MANY, MOST, "spec.addresses",
    ),
    "CiliumLoadBalancerIPPool": (
        made("cilium.io", "CiliumLoadBalancerIPPool", spec={"blocks": [{"cidr": each} for each in cidrs(MANY)]}),
        MANY, MOST, "spec.blocks",
    ),
    "ExternalIPPool": (
        made("crd.antrea.io", "ExternalIPPool", spec={"ipRanges": [{"cidr": each} for each in cidrs(MANY)]}),
        MANY, MOST, "spec.ipRanges",
    ),
    "CiliumPodIPPool": (
        made("cilium.io", "CiliumPodIPPool", spec={"ipv4": {"cidrs": cidrs(MANY), "maskSize": 32}}),
        MANY, MOST, "spec.ipv4.cidrs",
    ),
    "IPPool of Antrea": (
        made("crd.antrea.io", "IPPool", spec={"ipRanges": [{"cidr": each} for each in cidrs(MANY)]}),
        MANY, MOST, "spec.ipRanges",
    ),
    "IPPool": (
        made("projectcalico.org", "IPPool", spec={"cidr": "192.0.2.0/24", "allowedUses": ["Workload"] * MANY}),
        MANY, MOST, "spec.allowedUses",
    ),
    "service selectors": (pool(services=[{"serviceSelector": {}}] * MANY), MANY, MOST, "spec.services"),
    "peers": (config_map({"peers": [PEER] * MANY}), MANY, MOST, "peers"),
    "node selectors": (
        config_map({"peers": [{**PEER, "node-selectors": [{"match-labels": {"a": "b"}}] * MANY}]}),
        MANY, MOST, "node-selectors",
    ),
    "BGPPeer": (
        made(
            "metallb.io", "BGPPeer",
            spec={"peerAddress": "10.0.0.1", "peerASN": 1, "myASN": 2, "nodeSelectors": [{}] * MANY},
        ),
        MANY, MOST, "spec.nodeSelectors",
    ),
    "CiliumBGPClusterConfig": (
        made("cilium.io", "CiliumBGPClusterConfig", spec={"bgpInstances": [{}] * MANY}),
        MANY, MOST, "spec.bgpInstances",
    ),
    "CiliumBGPNodeConfigOverride": (
        made("cilium.io", "CiliumBGPNodeConfigOverride", spec={"bgpInstances": [{}] * MANY}),
        MANY, MOST, "spec.bgpInstances",
    ),
    "CiliumBGPPeeringPolicy": (
        made("cilium.io", "CiliumBGPPeeringPolicy", spec={"virtualRouters": [{}] * MANY}),
        MANY, MOST, "spec.virtualRouters",
    ),
    "CiliumBGPPeerConfig": (
        made("cilium.io", "CiliumBGPPeerConfig", spec={"families": [{}] * MANY}), MANY, MOST, "spec.families",
    ),
    "CiliumBGPAdvertisement": (
        made("cilium.io", "CiliumBGPAdvertisement", spec={"advertisements": [{}] * MANY}),
        MANY, MOST, "spec.advertisements",
    ),
    "BGPAdvertisement": (
        made("metallb.io", "BGPAdvertisement", spec={"ipAddressPoolSelectors": [{}] * MANY}),
        MANY, MOST, "spec.ipAddressPoolSelectors",
    ),
    "Community": (
        made("metallb.io", "Community", spec={"communities": [{"name": "a", "value": "1:1"}] * MANY}),
        MANY, MOST, "spec.communities",
    ),
    "Subnet": (
        made("kubeovn.io", "Subnet", spec={"cidrBlock": "10.16.0.0/16", "namespaces": ["a"] * MANY}),
        MANY, MOST, "spec.namespaces",
    ),
    "Subnet's selectors": (
        made("kubeovn.io", "Subnet", spec={"cidrBlock": "10.16.0.0/16", "namespaceSelectors": [{}] * MANY}),
        MANY, MOST, "spec.namespaceSelectors",
    ),
    "pools": (config_map({"address-pools": [{}] * MANY}), MANY, MOST, "address-pools"),
}  # fmt: skip
POLICIES: dict[str, tuple[Json, int, str]] = {
    f"{maker.__name__} {key}": (maker(**{key: entries}), MANY, f"spec.{key}")
    for maker, selectors in ((own_policy, "selectors"), (gateway_policy, "selectors"), (nat_policy, "egress"))
    for key, entries in (
        (selectors, [SELECTOR] * MANY), ("destinationCIDRs", cidrs(MANY)), ("excludedCIDRs", cidrs(MANY)),
    )
    if (maker, key) != (nat_policy, "excludedCIDRs")
}  # fmt: skip
POLICIES |= {
    "values": (own_policy(selectors=[values(MANY)]), MANY, "spec.selectors[0].podSelector.matchExpressions[0].values"),
    "policy ports": (own_policy(ports=[{"protocol": "TCP", "port": 80}] * MANY), MANY, "spec.ports"),
    "Egress": (
        antrea_egress(appliedTo=values(MANY)),
        MANY,
        "spec.appliedTo.podSelector.matchExpressions[0].values",
    ),
    "EgressIP": (ovn_egress_ip(egressIPs=addresses(MANY)), MANY, "spec.egressIPs"),
    "VpcEgressGateway": (egress_gateway(selectors=[{"namespaceSelector": {}}] * MANY), MANY, "spec.selectors"),
    "policy labels": ({**own_policy(), "metadata": {"name": "big", "labels": labels(MANY)}}, MANY, "metadata.labels"),
}


def in_store(each: Json) -> tuple[str, Any]:
    """What a Kubernetes store says of an object: its error, and what it loaded."""
    group = each["apiVersion"].rpartition("/")[0]
    raw = {**each, "metadata": {"uid": "u", "resourceVersion": "1", **each["metadata"]}}
    stored = stored_object(BY_NAME[group, each["kind"]], raw, None)
    return str(stored.error), stored.loaded


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_with_too_much_is_refused_by_name(name: str) -> None:
    each, found, most, key = OBJECTS[name]
    loaded = read_file("\n---\n".join(map(json.dumps, (service(), each, service()))), "big.yaml")
    (mistake,) = loaded.mistakes
    assert mistake.ref.name == each["metadata"]["name"] and len(loaded.entries) == 2
    for said in (mistake.text, in_store(each)[0]):
        assert key in said and f"found {found} " in said and f"at most {most} are taken" in said


def test_a_service_that_asks_for_too_much_gets_no_address_and_stays() -> None:
    asks = annotated(**{"metallb.io/loadBalancerIPs": ",".join(addresses(FEW))})
    for loaded in (read_file(json.dumps(asks), "big.yaml"), in_store(asks)[1]):
        (refusal,), (entry,) = loaded.refusals, loaded.entries
        assert f"found {FEW} addresses, at most {MOST_ADDRESSES} are taken" in refusal.message
        assert isinstance(entry.object, Service) and entry.object.unread_wishes


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_with_too_much_is_refused_and_covers_no_less(name: str) -> None:
    each, found, key = POLICIES[name]
    for loaded in (read_file(json.dumps(each), "big.yaml"), in_store(each)[1]):
        (refusal,) = loaded.refusals
        assert f"found {found} entries, at most {MOST} are taken" in refusal.message and key in refusal.message
        assert refusal.object.name == "big"
        (policy,) = (entry.object for entry in loaded.entries)
        assert isinstance(policy, EgressPolicy) and policy.refused
        assert policy == bounded(policy)
        wanted = cidrs(MANY) if "destinationCIDRs" in name else ["203.0.113.0/24"]
        assert collapsed(policy.destinations) == collapsed((*policy.destinations, *map(IPv4Network, wanted)))
        assert policy.selections


def collapsed(networks: Iterable[Any]) -> list[Any]:
    found = list(networks)
    return [list(collapse_addresses(each for each in found if each.version == version)) for version in (4, 6)]


def test_selectors_that_are_too_many_take_all_pods_of_their_namespaces() -> None:
    loaded = read_file(json.dumps(own_policy(selectors=[values(2), {"namespaceSelector": {}}] * MOST)), "big.yaml")
    (entry,) = loaded.entries
    assert isinstance(entry.object, EgressPolicy)
    assert set(entry.object.selections) == {PodSelection(EVERYTHING), PodSelection(EVERYTHING, EVERYTHING)}


def test_as_much_as_may_be_is_taken() -> None:
    full = service(externalIPs=addresses(MOST_ADDRESSES), ports=[{"port": 80}] * MOST, selector=labels(MOST))
    assert read_file(json.dumps(full)).entries
    assert not read_file(json.dumps(own_policy(destinationCIDRs=cidrs(MOST), excludedCIDRs=cidrs(MOST)))).refusals


def test_an_object_that_grew_too_large_keeps_what_it_last_said() -> None:
    collection = Collection(Resource(BY_NAME["", "Service"]))
    for version, count in (("1", 1), ("2", FEW)):
        meta = {"name": "big", "namespace": "d", "uid": "u", "resourceVersion": version}
        collection.put({**service(externalIPs=addresses(count)), "metadata": meta})
    (refusal,) = collection.refusals()
    assert "at most" in refusal.message and "what it last said stays in force" in refusal.message
    (stored,) = collection.objects.values()
    assert [len(entry.object.external_ips) for entry in stored.loaded.entries] == [1]  # type: ignore[union-attr]


def test_every_kind_that_is_read_has_a_list_that_is_tried_here() -> None:
    tried = {each["kind"] for each, *_ in (*OBJECTS.values(), *POLICIES.values())}
    written = {each.name for each in KINDS if each.read_by} - {"RouterdNode", "Lease"}  # which agents write
    written -= {"BFDProfile", "EgressService"}  # which have no list, or whose Service says whom they cover
    written -= {"IptablesEIP", "IptablesSnatRule", "OvnEip", "OvnSnatRule", "VpcNatGateway"}  # which have none either
    assert written == tried
