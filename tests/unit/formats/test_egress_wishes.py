"""Annotations of a Service by which its pods leave with its VIPs."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from routerd.formats.convert.whole import convert
from routerd.model import PortRange, Service, Snapshot
from routerd.store.merge import merge
from tests.models.manifests import read_text

SPEC = "type: LoadBalancer, ipFamilies: [IPv4], selector: {app: web}, ports: [{port: 443}]"


def text(annotations: str, spec: str = SPEC) -> str:
    head = (
        f"apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  namespace: shop\n  annotations: {{{annotations}}}\n"
    )
    return f"{head}spec: {{{spec}}}\n"


def read(annotations: str, spec: str = SPEC) -> tuple[Service, list[str]]:
    loaded = read_text(text(annotations, spec), "s.yaml")
    (entry,) = loaded.entries
    assert isinstance(entry.object, Service)
    return entry.object, [f"{each.object} {each.reason}: {each.message}" for each in loaded.refusals]


def merged(*texts: str) -> Snapshot:
    return merge([read_text(each, f"{number}.yaml") for number, each in enumerate(texts)], allocations=None)


@pytest.mark.parametrize("annotation", ['routerd.io/egress: "true"', 'kube-vip.io/egress: "true"'])
def test_it_is_a_policy_of_the_lowest_priority_to_everywhere(annotation: str) -> None:
    (policy,) = (merged(text(annotation)).policies or {}).values()
    assert (policy.key, policy.service, policy.priority) == ("svc/shop/web", "shop/web", -1_000_001)
    assert policy.destinations == (ip_network("0.0.0.0/0"),), "in its own families"
    (selection,) = policy.selections
    assert selection.pods is not None and selection.pods.match_labels == (("app", "web"),)


@pytest.mark.parametrize(
    ("annotation", "spec"),
    [
        ('routerd.io/egress: "false"', SPEC),
        ('kube-vip.io/egress: "no"', SPEC),
        ("kube-vip.io/egress-destination-ports: tcp:443", SPEC),
        ('routerd.io/egress: "true"', "type: ClusterIP"),
        ('kube-vip.io/egress: "true"', f"{SPEC}, loadBalancerClass: kube-vip.io/kube-vip-class"),
    ],
)
def test_it_is_none_where_it_does_not_say_so_or_is_another_load_balancers(annotation: str, spec: str) -> None:
    service, told = read(annotation, spec)
    assert (service.egress, told) == (None, [])


def test_what_kube_vip_limits_it_to() -> None:
    ports, denied = "tcp:443, UDP:53", "10.0.0.0/8,2001:db8::/32"
    service, told = read(
        f'kube-vip.io/egress: "true", kube-vip.io/egress-destination-ports: "{ports}", '
        f'kube-vip.io/egress-denied-networks: "{denied}"'
    )
    assert told == []
    assert service.egress is not None
    assert service.egress.ports == (PortRange("TCP", 443, 443), PortRange("UDP", 53, 53))
    assert service.egress.excluded == (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"))


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ('routerd.io/egress: "yes"', 'found "yes", expected "true" or "false"'),
        ('kube-vip.io/egress: "true", kube-vip.io/egress-source-ports: "tcp:80"', "source-ports is not done: pods are"),
        ('kube-vip.io/egress: "true", kube-vip.io/egress-allowed-networks: 10.0.0.0/8', "would take destinations out"),
        ('kube-vip.io/egress: "true", kube-vip.io/egress-destination-ports: "tcp:0"', 'found "tcp:0", expected PROTO'),
        ('kube-vip.io/egress: "true", kube-vip.io/egress-denied-networks: "here"', 'found "here", expected CIDRs with'),
    ],
)
def test_what_cannot_be_is_refused_and_its_pods_stay_selected(annotation: str, message: str) -> None:
    service, (told,) = read(annotation)
    assert told.startswith("svc/shop/web EgressNotSupported: s.yaml:6:")
    assert message in told and told.endswith("(what its pods send out is dropped)")
    assert service.egress is not None and service.egress.refused
    (policy,) = (merged(text(annotation)).policies or {}).values()
    assert (policy.refused, len(policy.selections), policy.destinations) == (True, 1, (ip_network("0.0.0.0/0"),))


@pytest.mark.parametrize("name", ["Egress", "egres", "egresss", "eggress", "egress-"])
def test_a_misspelt_one_is_told(name: str) -> None:
    _, (told,) = read(f'routerd.io/{name}: "true"')
    assert told.endswith(f'routerd.io/{name} is not read; did you mean "routerd.io/egress"?')


def test_what_kube_vip_has_is_converted_and_what_is_ours_is_not_repeated() -> None:
    found = convert({"s.yaml": text('kube-vip.io/egress: "true", kube-vip.io/egress-destination-ports: "tcp:443"')})
    assert found.errors == ()
    assert (
        found.text.splitlines()[3:]
        == """\
apiVersion: routerd.io/v1alpha1
kind: EgressPolicy
metadata:
  name: shop.web
spec:
  service:
    name: web
    namespace: shop
  destinationCIDRs:
  - 0.0.0.0/0
  - ::/0
  ports:
  - protocol: TCP
    port: 443
  priority: -1000000
""".splitlines()
    )
    assert convert({"s.yaml": text('routerd.io/egress: "true"')}).text == ""
    refused = convert({"s.yaml": text('kube-vip.io/egress: "true", kube-vip.io/egress-source-ports: "tcp:80"')})
    assert (refused.text, len(refused.errors)) == ("", 1)


# --- OVN-Kubernetes' EgressService

OVN = "apiVersion: k8s.ovn.org/v1\nkind: EgressService\nmetadata: {name: web, namespace: shop}\nspec: "


def test_an_egress_service_is_the_policy_of_the_service_of_its_name() -> None:
    found = merged(text(""), OVN + "{sourceIPBy: LoadBalancerIP, nodeSelector: {matchLabels: {edge: a}}}\n")
    (policy,) = (found.policies or {}).values()
    assert (policy.key, policy.service, policy.ref.namespace) == ("EgressService/shop/web", "shop/web", "shop")
    assert policy.gateways is not None and policy.gateways.match_labels == (("edge", "a"),)
    assert (policy.destinations, policy.priority) == ((ip_network("0.0.0.0/0"),), -1_000_001)
    assert found.refusals == ()
    everywhere = merged(text(""), OVN + "{sourceIPBy: LoadBalancerIP, nodeSelector: {}}\n")
    assert [each.gateways for each in (everywhere.policies or {}).values()] == [None]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{sourceIPBy: Network}", "NetworkNotSupported: 1.yaml:4:20: spec.sourceIPBy: a source by network is not"),
        (
            "{sourceIPBy: LoadBalancerIP, network: red}",
            "NetworkNotSupported: 1.yaml:4:45: spec.network: a network (VRF)",
        ),
        ("{sourceIPBy: Host}", "InvalidObject: 1.yaml:4:20: spec.sourceIPBy: found"),
    ],
)
def test_what_it_asks_for_beside_is_refused_by_name_and_keeps_its_pods(spec: str, message: str) -> None:
    found = merged(text(""), f"{OVN}{spec}\n")
    (refusal,) = found.refusals
    assert f"{refusal.object} {refusal.reason}: {refusal.message}".startswith(f"EgressService/shop/web {message}")
    (policy,) = (found.policies or {}).values()
    assert (policy.refused, len(policy.selections), policy.destinations) == (True, 1, (ip_network("0.0.0.0/0"),))


def test_an_egress_service_is_converted() -> None:
    found = convert({"o.yaml": OVN + "{sourceIPBy: LoadBalancerIP}\n"})
    assert found.errors == ()
    assert "  name: shop.web\n" in found.text and "  service:\n    name: web\n    namespace: shop\n" in found.text
