"""What services ask for by annotations, whatever make names it."""

from __future__ import annotations

import json
import re

import pytest

from routerd.model import Service
from tests.models.manifests import read_text


def read_named(spec: str, annotations: dict[str, str]) -> tuple[Service, list[str]]:
    text = f"""\
apiVersion: v1
kind: Service
metadata:
  name: web
  annotations: {json.dumps(annotations)}
spec: {{type: LoadBalancer, {spec}}}
"""
    loaded = read_text(text, "f.yaml")
    service = loaded.entries[0].object
    assert isinstance(service, Service)
    return service, [f"{each.object} {each.reason}: {each.message}" for each in loaded.refusals]


@pytest.mark.parametrize(
    "name",
    [
        "metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs", "lbipam.cilium.io/ips",
        "io.cilium/lb-ipam-ips", "kube-vip.io/loadbalancerIPs", "projectcalico.org/loadBalancerIPs",
    ],
)  # fmt: skip
def test_every_make_asks_for_addresses(name: str) -> None:
    for text in ("192.0.2.77, 2001:db8::1", '["192.0.2.77","2001:db8::1"]'):
        service, told = read_named("", {name: text})
        assert [str(address) for address in service.requested_ips] == ["192.0.2.77", "2001:db8::1"]
        assert told == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope", 'found "nope", expected IP addresses with commas between them'),
        ("0.0.0.0", 'found "0.0.0.0", expected an address: routerd asks no DHCP server'),
        ('["192.0.2.1"', 'found "["192.0.2.1"", expected a list of IP addresses in JSON'),
        ("[1]", 'found "[1]", expected a list of IP addresses in JSON'),
        ("[" * 9999, "expected a list of IP addresses in JSON"),
    ],
)
def test_what_is_no_address_is_refused_at_its_place_and_costs_the_address_alone(text: str, message: str) -> None:
    """Policies select pods by the rest: an agent that starts meanwhile would let them leave with any address."""
    written = {"kube-vip.io/loadbalancerIPs": text, "metallb.io/allow-shared-ip": "k", "metallb.io/address-pool": "p"}
    service, (told,) = read_named("selector: {app: web}", written)
    assert re.match(r"svc/default/web InvalidObject: f\.yaml:5:\d+: metadata\.annotations\.", told)
    assert message in told and told.endswith(" (it keeps the addresses that it has, and gets no other)")
    assert (service.selector, service.requested_ips, service.unread_wishes) == ({"app": "web"}, (), True)
    assert (service.sharing_key, service.requested_pool) == ("k", "p")


def test_so_does_a_mistake_in_the_old_field() -> None:
    service, (told,) = read_named("loadBalancerIP: nope", {})
    assert "spec.loadBalancerIP" in told and service.unread_wishes


def test_old_and_new_names_are_one_key() -> None:
    old, _ = read_named("", {"metallb.universe.tf/allow-shared-ip": "k", "metallb.universe.tf/address-pool": "p"})
    new, _ = read_named("", {"metallb.io/allow-shared-ip": "k", "metallb.io/address-pool": "p"})
    assert old.sharing_key == new.sharing_key == "k"
    assert old.requested_pool == new.requested_pool == "p"
    assert old.sharing_namespaces is new.sharing_namespaces is None

    cross = {"lbipam.cilium.io/sharing-key": "k", "lbipam.cilium.io/sharing-cross-namespace": "a, b"}
    newer, _ = read_named("", cross)
    older, _ = read_named(
        "", {key.replace("lbipam.cilium.io/", "io.cilium/lb-ipam-"): text for key, text in cross.items()}
    )
    assert (newer.sharing_key, newer.sharing_namespaces) == ("k", frozenset({"a", "b"}))
    assert (older.sharing_key, older.sharing_namespaces) == ("k", frozenset({"a", "b"}))
    alone, _ = read_named("", {"io.cilium/lb-ipam-sharing-key": "k"})
    assert alone.sharing_namespaces == frozenset()


def test_names_that_say_different_things_are_told() -> None:
    service, told = read_named(
        "loadBalancerIP: 192.0.2.3",
        {
            "metallb.universe.tf/loadBalancerIPs": "192.0.2.2",
            "metallb.io/loadBalancerIPs": "192.0.2.1",
            "metallb.io/address-pool": "p",
            "metallb.universe.tf/address-pool": "q",
        },
    )
    assert (str(service.requested_ips[0]), service.requested_pool) == ("192.0.2.1", "p")
    assert told == [
        f"svc/default/web ConflictingAnnotations: f.yaml:{place}: {other} says otherwise than {first}, which counts: "
        "remove one"
        for place, other, first in (
            (5, "metallb.universe.tf/loadBalancerIPs", "metallb.io/loadBalancerIPs"),
            (1, "spec.loadBalancerIP", "metallb.io/loadBalancerIPs"),
            (5, "metallb.universe.tf/address-pool", "metallb.io/address-pool"),
        )
    ]
    _, told = read_named("loadBalancerIP: 192.0.2.1", {"metallb.io/loadBalancerIPs": "192.0.2.1"})
    assert told == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("metallb.universe.tf/loadBalancerIP", "metallb.universe.tf/loadBalancerIPs"),
        ("kube-vip.io/loadBalancerIPs", "kube-vip.io/loadbalancerIPs"),
        ("lbipam.cilium.io/sharing_key", "lbipam.cilium.io/sharing-key"),
        ("routerd.io/address-pool", "metallb.io/address-pool"),
        ("routerd.io/loadbalancerips", "metallb.io/loadBalancerIPs"),
        ("routerd.io/adress-pool", "metallb.io/address-pool"),
    ],
)
def test_what_is_nearly_an_annotation_is_told(name: str, meant: str) -> None:
    service, told = read_named("", {name: "192.0.2.1"})
    assert service.requested_ips == ()
    assert told == [f'svc/default/web UnknownAnnotation: f.yaml:5: {name} is not read; did you mean "{meant}"?']


@pytest.mark.parametrize(
    "name", ["metallb.universe.tf/ip-allocated-from-pool", "kube-vip.io/loadbalancerHostname", "example.com/x", "x"]
)
def test_what_others_write_is_none_of_our_business(name: str) -> None:
    assert read_named("", {name: "192.0.2.1"})[1] == []
