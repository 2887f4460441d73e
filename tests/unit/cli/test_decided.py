"""`routerd check` says whatever operator and agents would refuse, as they say it."""

from __future__ import annotations

import pytest

from routerd.cli.check import check_texts
from routerd.cli.decided import decided
from routerd.config import DEFAULT
from routerd.model import Snapshot

NODE = """\
apiVersion: v1
kind: Node
metadata: {name: %s}
spec: {podCIDR: 10.244.%d.0/24}
status: {addresses: [{type: InternalIP, address: 10.0.0.%d}]}
---
"""
NODES = NODE % ("n1", 1, 11) + NODE % ("n2", 2, 12)
BGP = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: bgp-config, namespace: kube-system}
data:
  config.yaml: |
    peers:
    - {peer-address: 10.0.0.1, peer-asn: 64512, my-asn: 64513}
%s    address-pools:
%s---
"""


def service(name: str, spec: str = "", annotations: str = "") -> str:
    return f"""\
apiVersion: v1
kind: Service
metadata: {{name: {name}, annotations: {{{annotations}}}}}
spec: {{type: LoadBalancer, ports: [{{port: 80}}], {spec}}}
---
"""


def found(
    *services: str, pools: str = "{name: p, protocol: bgp, addresses: [192.0.2.0/28]}", peer: str = ""
) -> list[str]:
    listed = "".join(f"    - {pool}\n" for pool in pools.split("; "))
    more = f"    - {peer}\n" if peer else ""
    files = {"a.yaml": NODES + BGP % (more, listed), "b.yaml": "".join(services)}
    return [str(each) for each in check_texts(files)]


def test_nothing_to_refuse() -> None:
    assert found(service("web"), service("blue", annotations='lbipam.cilium.io/ips: "192.0.2.1,192.0.2.9"')) == []


def test_an_address_that_is_a_nodes() -> None:
    lan = "{name: lan, protocol: bgp, addresses: [10.0.0.8/29]}"
    assert found(service("a", "loadBalancerIP: 10.0.0.12"), pools=lan) == [
        'error: b.yaml:1: svc/default/a: "10.0.0.12" is an address of node/n2: request another address'
    ]


def test_a_pool_in_the_pod_cidr_of_a_node() -> None:
    assert found(service("a"), pools="{name: p, protocol: bgp, addresses: [10.244.2.0/28]}") == [
        "warning: a.yaml:21: AddressPool/p: 10.244.2.0/28 is in the pod CIDR 10.244.2.0/24 of node/n2: it is not "
        "given; take it out of the pool",
        "error: b.yaml:1: svc/default/a: no available IPs for IPv4 IPFamily: add a block, or release addresses; 16 of "
        "its addresses are not given, as 10.244.2.0 is in the pod CIDR 10.244.2.0/24 of node/n2",
    ]


def test_a_pool_in_the_nodes_network_gives_no_address_of_the_network_itself() -> None:
    lan = "{name: lan, protocol: bgp, addresses: [10.0.0.0/28]}"
    assert found(service("a", "loadBalancerIP: 10.0.0.0"), pools=lan) == [
        'error: b.yaml:1: svc/default/a: "10.0.0.0" is perhaps the first address of the network 10.0.0.0/24 of '
        "node/n1: request another address"
    ]
    assert found(*(service(f"s{number}") for number in range(12)), pools=lan) == []
    (told,) = found(*(service(f"s{number}") for number in range(13)), pools=lan)
    assert "no available IPs" in told


def test_a_pool_that_holds_a_cluster_ip() -> None:
    assert found(service("a", "clusterIP: 10.96.0.1"), pools="{name: p, protocol: bgp, addresses: [10.96.0.0/28]}") == [
        "warning: a.yaml:21: AddressPool/p: 10.96.0.1, the ClusterIP of svc/default/a, lies in the pool, and any of "
        "its other addresses may become one: take the service CIDR out of the pool, and name it in service-cidrs"
    ]


def test_the_same_peer_with_two_as_numbers() -> None:
    assert found(peer="{peer-address: 10.0.0.1, peer-asn: 64999, my-asn: 64513}") == [
        "error: a.yaml:20: peer/10.0.0.1: 10.0.0.1 is a peer of n1 twice and the first is used: remove one of them"
    ]


def test_both_families_from_two_pools() -> None:
    four, six = "{name: four, protocol: bgp, addresses: [%s]}", "{name: six, protocol: bgp, addresses: ['%s']}"
    two = f"{four % '192.0.2.0/28'}; {six % '2001:db8::/120'}"
    (told,) = found(service("web", "ipFamilyPolicy: RequireDualStack"), pools=two)
    assert told.startswith(
        "error: b.yaml:1: svc/default/web: no pool has free addresses of both families, and both must"
    )


def test_an_address_of_another_family_than_the_service() -> None:
    both = "{name: p, protocol: bgp, addresses: [192.0.2.0/28, '2001:db8:f::/120']}"
    asks = service("web", "ipFamilies: [IPv4]", "metallb.universe.tf/loadBalancerIPs: '2001:db8:f::5'")
    assert found(asks, pools=both) == [
        'error: b.yaml:1: svc/default/web: ["2001:db8:f::5"] does not match the IP families of the service: request '
        "addresses of IPv4"
    ]


def test_the_same_address_twice() -> None:
    wish = "loadBalancerIP: 192.0.2.5"
    assert found(service("a", wish), service("b", wish)) == [
        'error: b.yaml:6: svc/default/b: can\'t change sharing key for "192.0.2.5", address also in use by '
        "svc/default/a"
    ]


def test_a_pool_that_is_too_small() -> None:
    one = "{name: p, protocol: bgp, addresses: [192.0.2.5/32]}"
    (told,) = found(service("a"), service("b"), pools=one)
    assert told.startswith("error: b.yaml:6: svc/default/b: no available IPs for IPv4 IPFamily")


ASKING = """\
apiVersion: v1
kind: Pod
metadata: {name: pod-gw, annotations: {ovn.kubernetes.io/snat: 172.10.0.1}}
---
"""
FOR_EGRESS = """\
apiVersion: routerd.io/v1alpha1
kind: AddressPool
metadata: {name: e}
spec: {blocks: [172.10.%d.0/28], uses: [egress], egressAnnotations: true}
---
"""


def test_pools_of_annotations_are_other_files_matter_until_there_is_one() -> None:
    of_namespace = ASKING.replace("Pod", "Namespace").replace("pod-gw", "shop")
    assert check_texts({"a.yaml": ASKING, "b.yaml": of_namespace}) == []
    assert check_texts({"a.yaml": FOR_EGRESS % 0 + ASKING, "b.yaml": of_namespace}) == []
    closed = FOR_EGRESS.replace(", egressAnnotations: true", "") % 0
    assert [str(each) for each in check_texts({"a.yaml": closed + ASKING})] == [
        "warning: a.yaml:6: Pod/default/pod-gw: ovn.kubernetes.io/snat: it counts for nothing while no AddressPool "
        "says egressAnnotations: true"
    ]
    no_pool = "no AddressPool with egressAnnotations: true has 172.10.0.1: ask for an address of one"
    assert [str(each) for each in check_texts({"a.yaml": FOR_EGRESS % 9 + ASKING + ASKING.replace("gw", "b")})] == [
        f"error: a.yaml:6: Pod/default/pod-gw: ovn.kubernetes.io/snat: {no_pool}"
    ]
    assert [str(each) for each in check_texts({"a.yaml": FOR_EGRESS % 9 + of_namespace})] == [
        f"error: a.yaml:6: Namespace/shop: ovn.kubernetes.io/snat: {no_pool}"
    ]
    typo = ASKING.replace("172.10.0.1", "x")
    assert [str(each) for each in check_texts({"a.yaml": FOR_EGRESS % 9 + typo})] == [
        'error: a.yaml:6: Pod/default/pod-gw: ovn.kubernetes.io/snat: found "x", expected an address that a host can '
        "have, without a scope: what the pod sends out is dropped"
    ]


FIXED = """\
apiVersion: v1
kind: Pod
metadata: {name: %s, annotations: {%s}}
---
"""
POD_POOL = """\
apiVersion: kubeovn.io/v1
kind: IPPool
metadata: {name: gold}
spec: {subnet: s, ips: [192.0.2.0/28]}
---
"""


def test_fixed_addresses_that_no_pod_would_get() -> None:
    calico, kube_ovn = "cni.projectcalico.org/ipAddrs: %s", "ovn.kubernetes.io/ip_address: 192.0.2.1"
    wrong = FIXED % ("a", calico % "192.0.2.1")
    same = FIXED % ("b", calico % "'[\"192.0.2.1\"]'") + FIXED % ("c", kube_ovn)
    assert [str(each) for each in check_texts({"a.yaml": wrong + same})] == [
        "warning: a.yaml:1: pod/default/a: annotation cni.projectcalico.org/ipAddrs: expected a JSON list of "
        'addresses, ["192.0.2.1"]',
        "warning: a.yaml:9: pod/default/c: 192.0.2.1 is asked for by Pod default/b, too: whichever starts first has it",
    ]


def test_pools_that_pods_name_are_other_files_matter_until_there_is_one() -> None:
    named, lost = (FIXED % ("a", f"ovn.kubernetes.io/ip_pool: {name}") for name in ("gold", "silver"))
    assert check_texts({"a.yaml": named}) == check_texts({"a.yaml": named + POD_POOL}) == []
    assert [str(each) for each in check_texts({"a.yaml": lost + POD_POOL})] == [
        "warning: a.yaml:1: pod/default/a: annotation ovn.kubernetes.io/ip_pool: no pool silver is known"
    ]


def test_a_peer_of_a_family_that_nodes_do_not_have() -> None:
    (told,) = found(peer="{peer-address: '2001:db8::1', peer-asn: 64999, my-asn: 64513}")
    assert told.startswith("warning: a.yaml:20: peer/2001:db8::1: n1 has no route to 2001:db8::1")


@pytest.mark.parametrize("ready", ["true", "false"])
def test_endpoints_are_asked_for_where_files_have_them(ready: str) -> None:
    endpoints = f"""\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-x, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
endpoints: [{{addresses: [10.244.1.5], nodeName: n1, conditions: {{ready: {ready}}}}}]
"""
    no = ["warning: b.yaml:1: svc/default/web: the service has no ready endpoint on any node"]
    assert found(service("web"), endpoints) == ([] if ready == "true" else no)


def test_what_is_not_known_is_not_decided() -> None:
    assert decided(Snapshot(), DEFAULT) == []


def found_of(peer: str) -> list[str]:
    """Of a document of ours with this peer."""
    document = BGP.replace("    peers:", "    apiVersion: routerd.io/v1alpha1\n    peers:") % (f"    - {peer}\n", "")
    return [str(each) for each in check_texts({"a.yaml": NODES + document.replace("    address-pools:\n", "")})]


def test_overrides_that_count_nowhere_are_told() -> None:
    peer = "{name: tor, peer-address: 10.0.0.9, peer-asn: 1, my-asn: 2, node-overrides: [%s]}"
    shadowed = "{nodes: [n1], my-asn: 3}, {nodes: [n1], my-asn: 4}"
    for overrides, why in (
        (shadowed, "each node that it takes is one of an override before it, which counts there"),
        ("{nodes: [n3], my-asn: 3}", "no node is called 'n3'"),
        ('{nodes: [""], my-asn: 3}', "no node is called ''"),
        ("{node-selectors: [{match-labels: {a: b}}], my-asn: 3}", "it takes none of the peer's nodes"),
    ):
        (line,) = found_of(peer % overrides)
        assert line.startswith("warning: a.yaml:21: peer/tor: node-overrides of tor at a.yaml:") and line.endswith(why)
    assert found_of(peer % "{nodes: [n1], my-asn: 3}") == []


def test_a_fault_of_an_overridden_address_has_its_place() -> None:
    peer = "{peer-address: 10.0.0.9, peer-asn: 1, my-asn: 2, node-overrides: [{nodes: [n1], peer-address: 10.0.0.11}]}"
    (line,) = found_of(peer)
    assert line.startswith("error: a.yaml:21: peer/10.0.0.9: by node-overrides of 10.0.0.9 at a.yaml:21: 10.0.0.11 is")
