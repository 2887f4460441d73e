"""Who has which address of a node's blocks, by pure functions."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from ipam.pod_addresses import (
    Attachment,
    Counts,
    Owner,
    PodAddresses,
    Refused,
    Wish,
    counts,
    exhausted,
    free,
    give,
    let_go,
)
from ipam.pool import COOLDOWN

WEB, NOBODY = Owner("default/web-0", "u1"), Owner()


def node(*blocks: str) -> PodAddresses:
    return PodAddresses(tuple(map(ip_network, blocks)))


def attachment(container: str, network: str = "pods", interface: str = "eth0") -> Attachment:
    return Attachment(network, container, interface)


def given(
    held: PodAddresses, container: str, now: float = 0.0, owner: Owner = NOBODY, taken: tuple[str, ...] = ()
) -> tuple[PodAddresses, str]:
    held, found = give(held, attachment(container), owner, {ip_address(each): "default/old" for each in taken}, now)
    return held, found.message if isinstance(found, Refused) else " ".join(map(str, found))


def test_one_of_each_family_behind_the_hosts_own() -> None:
    held, found = given(node("10.1.0.0/24", "fd00:1::/64"), "c1")
    assert found == "10.1.0.2 fd00:1::2"
    assert given(held, "c1", 9.0) == (held, found)  # a runtime that asks again
    assert given(held, "c2")[1] == "10.1.0.3 fd00:1::3"


def test_what_was_freed_comes_last_and_rests_first() -> None:
    held = node("10.1.0.0/29")  # .2 to .6
    for container in ("c1", "c2"):
        held, _ = given(held, container)
    held = free(held, [attachment("c1")], 1.0)
    order = []
    for container in ("c3", "c4", "c5", "c6"):
        held, found = given(held, container, 2.0)
        order.append(found)
    assert order == ["10.1.0.4", "10.1.0.5", "10.1.0.6", "no address of 10.1.0.0/29 is free"]
    assert exhausted(held, {}, 2.0) == order[-1]
    assert given(held, "c6", 1.0 + COOLDOWN)[1] == "10.1.0.2"


def test_a_pod_of_the_same_name_has_its_own_back_while_it_cools_down() -> None:
    held, first = given(node("10.1.0.0/24"), "c1", owner=WEB)
    held = free(held, [attachment("c1")], 1.0)
    assert given(held, "c2", 2.0, Owner("default/web-1", "u2"))[1] != first
    assert given(held, "c2", 2.0, Owner("default/web-0", "u2"))[1] == first


def test_a_sandbox_that_is_made_anew_keeps_the_address_and_its_late_end_frees_nothing() -> None:
    held, first = given(node("10.1.0.0/24"), "c1", owner=WEB)
    held, again = given(held, "c2", 1.0, WEB)
    assert again == first
    assert free(held, [attachment("c1")], 2.0) is held
    assert free(held, [attachment("c2")], 2.0).of(attachment("c2")) == ()


def test_another_interface_of_the_same_pod_is_another_attachment() -> None:
    held, first = given(node("10.1.0.0/24"), "c1", owner=WEB)
    _, second = give(held, attachment("c1", interface="net1"), WEB, {}, 1.0)
    assert second != (ip_address(first),)


def test_an_address_that_somebody_else_gave_is_left_to_its_pod() -> None:
    assert given(node("10.1.0.0/24"), "c1", taken=("10.1.0.2", "10.1.0.4"))[1] == "10.1.0.3"


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("10.1.0.0/30", ""),
        ("10.1.0.0/31", "10.1.0.0/31 has no room for a pod beside the host's own address"),
        ("10.1.0.0/32", "10.1.0.0/32 has no room for a pod beside the host's own address"),
        ("fd00:1::/126", ""),
        ("fd00:1::/127", "fd00:1::/127 has no room for a pod beside the host's own address"),
        ("fd00:1::/128", "fd00:1::/128 has no room for a pod beside the host's own address"),
    ],
)
def test_small_blocks(block: str, message: str) -> None:
    assert exhausted(node(block), {}, 0.0) == message
    assert (given(node(block), "c1")[1] == message) == bool(message)


def test_without_an_address_of_one_family_there_is_none_of_the_other() -> None:
    held, _ = given(node("10.1.0.0/30", "fd00:1::/64"), "c1")
    assert given(held, "c2") == (held, "no address of 10.1.0.0/30 is free")


def test_the_search_goes_over_all_blocks_and_a_block_that_went_gives_nothing() -> None:
    held = node("10.1.0.0/30", "10.1.9.0/30")
    held, first = given(held, "c1")
    held, second = given(held, "c2")
    assert (first, second) == ("10.1.0.2", "10.1.9.2")
    held = PodAddresses((ip_network("10.1.0.0/30"),), held.holds, held.last)
    assert given(free(held, [attachment("c2")], 0.0), "c3")[1] == "no address of 10.1.0.0/30 is free"


def test_a_clock_that_was_put_back_keeps_nobody_waiting_for_ever() -> None:
    held, _ = given(node("10.1.0.0/30"), "c1", now=5000.0)
    held = free(held, [attachment("c1")], 5000.0)
    held, found = given(held, "c2", 10.0)
    assert found == "no address of 10.1.0.0/30 is free"
    assert given(held, "c2", 10.0 + COOLDOWN)[1] == "10.1.0.2"


def test_states_add_up() -> None:
    held, _ = given(node("10.1.0.0/29", "fd00:1::/126"), "c1")
    held = free(given(held, "c2")[0], [attachment("c1")], 0.0)
    others = [ip_address("10.1.0.6"), ip_address("10.1.0.2"), ip_address("192.0.2.1")]
    assert counts(held, 4, others) == Counts(total=8, free=2, used=1, cooling=1, reserved=4)
    assert counts(held, 6, others) == Counts(total=4, free=0, used=1, cooling=1, reserved=2)


@pytest.mark.parametrize(
    ("among", "found"),
    [
        (("10.0.0.0/8",), "10.200.3.2 fd00:1::2"),
        (("10.9.0.0/16", "10.200.3.64/26"), "10.200.3.64 fd00:1::2"),
        (("fd00::/8", "10.0.0.0/8"), "10.200.3.2 fd00:1::2"),
        (("10.9.0.0/16",), "none of 10.9.0.0/16 is free on this node"),
    ],
)
def test_of_a_pool_however_large_a_pod_gets_what_lies_on_its_node(among: tuple[str, ...], found: str) -> None:
    wish = Wish(among=tuple(map(ip_network, among)))
    _, given = give(node("10.200.3.0/24", "fd00:1::/64"), attachment("c1"), WEB, {}, 0.0, wish)
    assert (given.message if isinstance(given, Refused) else " ".join(map(str, given))) == found


def test_to_let_go_what_has_gone_meanwhile_is_nothing() -> None:
    held = node("10.200.3.0/24")
    assert let_go(held, [ip_address("10.200.3.2")], 0.0) is held
