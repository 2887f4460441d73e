"""MetalLB's IPAddressPool: what is meant is taken, what we cannot do is refused by name."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerd.cluster.requests import barred_from
from routerd.errors import InputError
from routerd.model import NAMESPACE_NAME_LABEL, AddressPool, Advertisement, Namespace, Service
from tests.models.manifests import read_text

POOL = "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: p, namespace: metallb-system}\nspec:\n"
ADDRESSES = "  addresses: [192.0.2.0/24]\n"


def read(text: str) -> tuple[AddressPool | None, list[str]]:
    loaded = read_text(text, "f.yaml")
    pools = [entry.object for entry in loaded.entries if isinstance(entry.object, AddressPool)]
    refusals = [f"{one.object} {one.reason}: {one.message}" for one in loaded.refusals]
    return (pools[0] if pools else None), refusals


def taken(text: str) -> AddressPool:
    pool, refusals = read(text)
    assert pool is not None and refusals == []
    return pool


def blocks(*addresses: str) -> list[str]:
    return [str(block) for block in taken(POOL + f"  addresses: [{', '.join(addresses)}]\n").blocks]


def priority(value: int) -> int:
    return taken(POOL + ADDRESSES + f"  serviceAllocation: {{priority: {value}}}\n").priority


def test_a_pool_of_addresses_alone_allocates_for_services_and_is_announced() -> None:
    pool = taken(POOL + ADDRESSES)
    assert replace(pool, origin=AddressPool("", ()).origin) == AddressPool(
        "p", (ip_network("192.0.2.0/24"),), protocol="bgp", uses=frozenset({"loadbalancer"}), auto_assign=True,
        avoid_buggy_ips=False, priority=0, disabled=False, advertisements=(Advertisement(),), labels={},
        ranges=((ip_network("192.0.2.0/24"),),),
    )  # fmt: skip
    assert str(pool.origin) == "f.yaml:1"


def test_its_key_bears_its_namespace() -> None:
    assert [str(entry.ref) for entry in read_text(POOL + ADDRESSES).entries] == ["IPAddressPool/metallb-system/p"]


def test_flags() -> None:
    pool = taken(POOL + ADDRESSES + "  autoAssign: false\n  avoidBuggyIPs: true\n")
    assert (pool.auto_assign, pool.avoid_buggy_ips) == (False, True)


def test_addresses_are_read_as_metallb_reads_them() -> None:
    assert blocks("192.0.2.1/32", '"2001:db8::/120"') == ["192.0.2.1/32", "2001:db8::/120"]
    assert blocks("192.0.2.9/24") == ["192.0.2.0/24"]  # host bits are cleared
    assert blocks("192.0.2.4 - 192.0.2.6") == ["192.0.2.4/31", "192.0.2.6/32"]
    assert blocks('"2001:db8::1-2001:db8::1"') == ["2001:db8::1/128"]


def test_unknown_fields_and_its_status_are_passed_over() -> None:
    assert taken(POOL + ADDRESSES + "  later: 1\nstatus: {assignedIPv4: 3}\n").name == "p"


@pytest.mark.parametrize(
    ("addresses", "message"),
    [
        ("[]", "found an empty list, expected at least one address range"),
        ("[192.0.2.1]", 'invalid CIDR "192.0.2.1"'),
        ("[192.0.2.0/33]", 'invalid CIDR "192.0.2.0/33"'),
        ("[192.0.2.9-192.0.2.1]", 'start IP "192.0.2.9" is after the end IP "192.0.2.1"'),
        ("[192.0.2.1-x]", 'invalid end IP "x"'),
        ('["192.0.2.1-2001:db8::1"]', "goes from one address family to the other"),
        ("[192.0.2.0/24, 192.0.2.9/32]", "192.0.2.9/32 overlaps with 192.0.2.0/24 of the same pool"),
    ],
)
def test_what_metallb_refuses_is_a_mistake_with_its_place(addresses: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_text(POOL + f"  addresses: {addresses}\n", "f.yaml")
    assert message in str(error.value) and error.value.line == 5


def test_without_addresses_it_is_wrong() -> None:
    with pytest.raises(InputError, match='the key "addresses" is missing'):
        read_text(POOL + "  autoAssign: true\n", "f.yaml")


@given(st.lists(st.integers(1, 1_000_000), min_size=1))
def test_a_lower_number_comes_first_and_none_comes_last(numbers: list[int]) -> None:
    """MetalLB: lower first, 0 is no priority. Ours: higher first."""
    first = sorted(numbers, key=lambda number: -priority(number))
    assert first == sorted(numbers)
    assert min(map(priority, numbers)) > priority(0) == AddressPool("", ()).priority


def may_have(allocation: str, service: Service, **namespace: str) -> bool:
    pool = taken(POOL + ADDRESSES + f"  serviceAllocation: {{{allocation}}}\n")
    there = Namespace(service.namespace, {NAMESPACE_NAME_LABEL: service.namespace, **namespace})
    return not barred_from(service, (pool,), {there.name: there})


SHOP, WEB = Service("shop", "a", labels={"app": "db"}), Service("web", "a", labels={"app": "web"})


@pytest.mark.parametrize(
    ("allocation", "shop", "web"),
    [
        ("namespaces: [shop]", True, False),
        ("namespaceSelectors: [{matchLabels: {team: a}}]", False, False),
        ("namespaces: [shop], namespaceSelectors: [{matchExpressions: [{key: x, operator: Exists}]}]", True, True),
        ("serviceSelectors: [{matchLabels: {app: web}}]", False, True),
        ("serviceSelectors: [{matchLabels: {app: web}}, {matchLabels: {app: db}}]", True, True),
        ("namespaces: [shop], serviceSelectors: [{matchLabels: {app: web}}]", False, False),
        ("namespaces: [], serviceSelectors: []", True, True),
    ],
)
def test_a_pool_for_some_services_is_for_those(allocation: str, shop: bool, web: bool) -> None:
    """A namespace by any of its names and selectors, and a service by any of its selectors."""
    assert (may_have(allocation, SHOP, x=""), may_have(allocation, WEB, x="")) == (shop, web)


def test_a_namespace_that_is_not_known_has_its_name_alone() -> None:
    pool = taken(POOL + ADDRESSES + "  serviceAllocation: {namespaces: [shop]}\n")
    assert not barred_from(SHOP, (pool,), {}) and barred_from(WEB, (pool,), {}) == {"p"}


def test_empty_limits_are_none() -> None:
    assert taken(POOL + ADDRESSES + "  serviceAllocation: {namespaces: [], serviceSelectors: []}\n").priority == 0


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (ADDRESSES + "  serviceAllocation: {priority: -1}\n", "InvalidPriority"),
        ("  addresses: [224.0.0.0/24]\n", "InvalidAddresses"),
        ("  addresses: [127.0.0.1-127.0.0.9]\n", "InvalidAddresses"),
    ],
)
def test_what_has_no_meaning_here_is_refused_and_the_rest_of_the_file_goes_on(spec: str, reason: str) -> None:
    loaded = read_text(POOL + spec + "---\n" + POOL.replace("name: p", "name: q") + ADDRESSES, "f.yaml")
    assert [one.reason for one in loaded.refusals] == [reason]
    assert [str(entry.ref) for entry in loaded.entries] == ["IPAddressPool/metallb-system/q"]
