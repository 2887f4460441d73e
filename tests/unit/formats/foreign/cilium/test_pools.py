"""Cilium's CiliumLoadBalancerIPPool: its blocks, their ends, and whom it is for."""

from __future__ import annotations

import pytest

from routerd.cluster.requests import barred_from
from routerd.errors import InputError
from routerd.model import AddressPool, Service
from tests.models.manifests import read_text

POOL = "apiVersion: cilium.io/v2\nkind: CiliumLoadBalancerIPPool\nmetadata: {name: p}\nspec:\n"


def taken(spec: str) -> AddressPool:
    loaded = read_text(POOL + spec, "f.yaml")
    assert loaded.refusals == () and [str(each.ref) for each in loaded.entries] == ["CiliumLoadBalancerIPPool/p"]
    pool = loaded.entries[0].object
    assert isinstance(pool, AddressPool)
    return pool


def blocks(spec: str) -> list[str]:
    return [str(block) for block in taken(spec).blocks]


@pytest.mark.parametrize(
    ("block", "found"),
    [
        ("cidr: 10.0.10.0/24", ["10.0.10.0/24"]),
        ("cidr: 10.0.10.7/24", ["10.0.10.0/24"]),  # host bits are cleared, as by Cilium
        ('cidr: "2001:db8::/64"', ["2001:db8::/64"]),
        ("start: 20.0.20.100, stop: 20.0.20.102", ["20.0.20.100/31", "20.0.20.102/32"]),
        ("start: 1.2.3.4", ["1.2.3.4/32"]),
    ],
)
def test_a_block_is_a_cidr_a_range_or_one_address(block: str, found: list[str]) -> None:
    assert blocks(f"  blocks: [{{{block}}}]\n") == found


@pytest.mark.parametrize(
    ("cidr", "found"),
    [
        ("192.0.2.0/30", ["192.0.2.1/32", "192.0.2.2/32"]),
        ("192.0.2.0/31", ["192.0.2.0/31"]),
        ("192.0.2.0/32", ["192.0.2.0/32"]),
        ("2001:db8::/126", ["2001:db8::1/128", "2001:db8::2/128"]),
        ("2001:db8::/127", ["2001:db8::/127"]),
        ("2001:db8::/128", ["2001:db8::/128"]),
    ],
)
def test_ends_of_a_cidr_are_left_out_where_something_is_left(cidr: str, found: list[str]) -> None:
    assert blocks(f'  allowFirstLastIPs: "No"\n  blocks: [{{cidr: "{cidr}"}}]\n') == found


def test_ends_of_a_64_are_left_out_and_those_of_a_range_are_not() -> None:
    pool = taken(
        '  allowFirstLastIPs: "No"\n  blocks: [{cidr: "2001:db8::/64"}, {start: 192.0.2.0, stop: 192.0.2.1}]\n'
    )
    assert sum(block.num_addresses for block in pool.blocks if block.version == 6) == 2**64 - 2
    assert [str(block) for block in pool.blocks if block.version == 4] == ["192.0.2.0/31"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("  blocks: []\n", "f.yaml:5:11: spec.blocks: found an empty list, expected at least one block"),
        ("  blocks: [{cidr: 10.0.0.0/33}]\n", 'f.yaml:5:19: spec.blocks[0].cidr: found "10.0.0.0/33", expected a CIDR'),
        (
            "  blocks: [{stop: 10.0.0.1}]\n",
            'f.yaml:5:12: spec.blocks[0]: expected either "cidr", or "start" and "stop"',
        ),
        ("  blocks: [{start: 10.0.0.9, stop: 10.0.0.1}]\n", "starts at 10.0.0.9, behind its end 10.0.0.1"),
        ("  blocks: [{start: 10.0.0.9, stop: '2001:db8::1'}]\n", "from one address family to the other"),
        ("  blocks: [{cidr: 10.0.0.0/24}, {start: 10.0.0.9}]\n", "10.0.0.9/32 overlaps with 10.0.0.0/24"),
        ("  blocks: [{cidr: 224.0.0.0/24}]\n", "224.0.0.0/24 cannot be in a pool: multicast"),
        ('  allowFirstLastIPs: "no"\n  blocks: [{start: 10.0.0.9}]\n', "expected Yes or No"),
    ],
)
def test_a_mistake_is_told_with_its_place(spec: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_text(POOL + spec, "f.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("labels", "is_for"),
    [
        ("app: web", True),
        ("app: db", False),
        ("io.kubernetes.service.namespace: shop", True),
        ("io.kubernetes.service.namespace: other", False),
        ("io.kubernetes.service.name: front", True),
        ("", True),
    ],
)
def test_its_selector_sees_labels_name_and_namespace(labels: str, is_for: bool) -> None:
    pool = taken(f"  blocks: [{{start: 10.0.0.9}}]\n  serviceSelector: {{matchLabels: {{{labels}}}}}\n")
    barred = barred_from(Service("shop", "front", labels={"app": "web"}), (pool,), {})
    assert barred == (frozenset() if is_for else {"p"})


def test_a_pool_that_is_disabled_drains() -> None:
    assert taken("  blocks: [{start: 10.0.0.9}]\n  disabled: true\n").disabled
