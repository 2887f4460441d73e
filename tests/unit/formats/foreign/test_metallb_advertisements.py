"""MetalLB's BGPAdvertisement and Community: pools are announced as they say, or it is told why not."""

from __future__ import annotations

import pytest

from routerd.errors import InputError
from routerd.formats.convert.whole import convert
from routerd.formats.objects import Loaded, read_file
from routerd.model import AddressPool, Advertisement, Snapshot
from routerd.refs import Ref
from routerd.selectors import LabelSelector
from routerd.store.merge import merge
from tests.models.manifests import read_text

HEAD = "apiVersion: metallb.io/v1beta1\nkind: {}\nmetadata: {{name: {}, namespace: metallb-system, labels: {{{}}}}}\n"


def pool(name: str, addresses: str = "192.0.2.0/24", labels: str = "") -> str:
    return HEAD.format("IPAddressPool", name, labels) + f"spec: {{addresses: [{addresses}]}}\n"


def advertisement(name: str, spec: str = "") -> str:
    return HEAD.format("BGPAdvertisement", name, "") + (f"spec: {{{spec}}}\n" if spec else "")


def community(name: str, *entries: str) -> str:
    listed = ", ".join(f"{{{entry}}}" for entry in entries)
    return HEAD.format("Community", name, "") + f"spec: {{communities: [{listed}]}}\n"


def merged(*texts: str) -> Snapshot:
    return merge([read_text(text, f"{number}.yaml") for number, text in enumerate(texts)], allocations=None)


def ways(name: str, *texts: str) -> tuple[Advertisement, ...]:
    """How the pool is announced; nothing else is told."""
    found = merged(*texts)
    assert found.refusals == () and found.pools is not None
    assert all(each.labels is None for each in found.pools.values())
    return found.pools[name].advertisements


def told(*texts: str) -> list[str]:
    return [f"{each.object} {each.reason}: {each.message}" for each in merged(*texts).refusals]


def test_without_any_advertisement_a_pool_is_announced_as_one_that_says_nothing_of_it() -> None:
    assert ways("p", pool("p")) == (Advertisement(),)


def test_all_that_an_advertisement_says() -> None:
    said = (
        "aggregationLength: 30, aggregationLengthV6: 126, localPref: 7, peers: [tor-a], "
        "communities: ['64512:01', 'large:64512:1:2', quiet], nodeSelectors: [{matchLabels: {rack: a}}], "
        "serviceSelectors: [{matchLabels: {tier: web}}]"
    )
    quiet = community("c", "name: quiet, value: '65535:65281'", "name: other, value: 'large:1:2:3'")
    (way,) = ways("p", pool("p"), advertisement("a", said), quiet)
    assert way == Advertisement(
        30, 126, 7, ("64512:1", "65535:65281", "64512:1:2"), peers=("tor-a",),
        node_selectors=(LabelSelector((("rack", "a"),)),), services=(LabelSelector((("tier", "web"),)),),
    )  # fmt: skip


TWO = (pool("p", labels="zone: a"), pool("q", "198.51.100.0/24"))


@pytest.mark.parametrize(
    ("spec", "p", "q"),
    [
        ("", True, True),
        ("ipAddressPools: [q]", False, True),
        ("ipAddressPoolSelectors: [{matchLabels: {zone: a}}]", True, False),
        ("ipAddressPools: [q], ipAddressPoolSelectors: [{matchLabels: {zone: a}}]", True, True),
        ("ipAddressPoolSelectors: [{matchLabels: {zone: b}}]", False, False),
    ],
)
def test_an_advertisement_takes_pools_by_name_or_label(spec: str, p: bool, q: bool) -> None:
    texts = (*TWO, advertisement("a", spec))
    assert [bool(ways(name, *texts)) for name in "pq"] == [p, q]


def test_what_no_advertisement_takes_is_not_announced_and_ours_is_left_alone() -> None:
    ours = "apiVersion: routerd.io/v1alpha1\nkind: AddressPool\nmetadata: {name: o}\nspec: {blocks: [203.0.113.0/24]}\n"
    texts = (*TWO, ours, advertisement("a", "ipAddressPools: [q]"))
    assert [ways(name, *texts) for name in "pqo"] == [(), (Advertisement(),), (Advertisement(),)]


def test_several_advertisements_stand_together_each_once() -> None:
    texts = (
        pool("p"),
        advertisement("a", "peers: [x]"),
        advertisement("b", "peers: [y]"),
        advertisement("c", "peers: [x]"),
    )
    assert ways("p", *texts) == (Advertisement(peers=("x",)), Advertisement(peers=("y",)))


def test_a_community_that_nobody_knows_costs_the_advertisement() -> None:
    texts = (pool("p"), advertisement("a", "communities: [quiet]"), advertisement("b", "peers: [x]"))
    assert told(*texts) == [
        "BGPAdvertisement/metallb-system/a UnknownCommunity: 1.yaml:1: no Community has the name 'quiet'; "
        "the advertisement is not used"
    ]
    assert (merged(*texts).pools or {})["p"].advertisements == (Advertisement(peers=("x",)),)


def test_an_advertisement_that_cannot_be_read_does_not_open_its_pool() -> None:
    """Else one that was for a peer, or bore no-export, would go to everybody."""
    file = read_file(advertisement("a", "communities: ['1:2:3:4']"), "1.yaml")
    assert len(file.mistakes) == 1
    found = merge([read_text(pool("p"), "0.yaml"), file], allocations=None)
    assert (found.pools or {})["p"].advertisements == ()


def test_nor_does_one_of_an_api_server_that_never_said_anything_good() -> None:
    unread = Loaded(unread=(Ref("BGPAdvertisement", "metallb-system", "a"),))
    found = merge([read_text(pool("p"), "0.yaml"), unread], allocations=None)
    assert (found.pools or {})["p"].advertisements == ()


def test_names_that_are_nobodys_are_told() -> None:
    assert told(pool("p"), advertisement("a", "ipAddressPools: [p, nix]")) == [
        "BGPAdvertisement/metallb-system/a UnknownPool: 1.yaml:1: there is no IPAddressPool 'nix'"
    ]
    two = (community("c", "name: n, value: '1:1'"), community("d", "name: n, value: '1:2'"))
    assert told(pool("p"), *two, advertisement("a")) == [
        "Community/metallb-system/d Duplicate: 2.yaml:1: n is 1:1 already, and not 1:2"
    ]


@pytest.mark.parametrize(
    ("addresses", "spec", "fault"),
    [
        ("192.0.2.0/28", "aggregationLength: 27", "/27 would announce more than 192.0.2.0-192.0.2.15"),
        ("192.0.2.0/28", "aggregationLength: 28", ""),
        ("192.0.2.4-192.0.2.11", "aggregationLength: 30", ""),
        ("192.0.2.4-192.0.2.11", "aggregationLength: 29", "/29 would announce more than 192.0.2.4-192.0.2.11"),
        (
            "2001:db8::/64",
            "aggregationLengthV6: 63",
            "/63 would announce more than 2001:db8::-2001:db8::ffff:ffff:ffff:ffff",
        ),
        ("2001:db8::/64", "aggregationLength: 8", ""),
        ("192.0.2.128/26, 192.0.2.0/25", "aggregationLength: 26", ""),
        (
            "192.0.2.0/25, 192.0.2.128/26",
            "aggregationLength: 25",
            "/25 would announce more than 192.0.2.128-192.0.2.191",
        ),
    ],
)
def test_an_aggregate_is_not_wider_than_the_pool(addresses: str, spec: str, fault: str) -> None:
    texts = (pool("p", addresses), advertisement("a", spec))
    said = "BGPAdvertisement/metallb-system/a InvalidAggregation: 1.yaml:1: {}; it is not used for pool p"
    assert told(*texts) == ([said.format(fault)] if fault else [])
    assert bool((merged(*texts).pools or {})["p"].advertisements) != bool(fault)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("aggregationLength: 33", "spec.aggregationLength"),
        ("localPref: -1", "spec.localPref"),
        ("communities: ['64512:65536']", "a community such as 64512:1"),
        ("communities: ['large:1:2']", "spec.communities[0]"),
        ("communities: ['']", "spec.communities[0]"),
    ],
)
def test_a_mistake_is_named(spec: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_text(advertisement("a", spec), "f.yaml")
    assert message in str(error.value)


def test_a_community_has_a_value() -> None:
    with pytest.raises(InputError, match="a community such as"):
        read_text(community("c", "name: n, value: other"))


def test_converted_pools_say_themselves_how_they_are_announced() -> None:
    texts = (*TWO, advertisement("a", "ipAddressPools: [q], communities: [quiet], serviceSelectors: [{}]"))
    found = convert({"f.yaml": "---\n".join((*texts, community("c", "name: quiet, value: '65535:65281'")))})
    assert (found.errors, found.notes) == ((), ())
    pools = {
        each.object.name: each.object for each in read_text(found.text).entries if isinstance(each.object, AddressPool)
    }
    assert pools["q"].advertisements == (Advertisement(communities=("65535:65281",), services=(LabelSelector(),)),)
    assert (pools["p"].protocol, pools["p"].advertisements) == ("layer2", ())
