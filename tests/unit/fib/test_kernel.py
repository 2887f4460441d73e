"""The table of routes against the kernel, in a network namespace of two links with a neighbour on each."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from fib import kernel
from fib.plan import Desired, Hop, Observed, Put, Remove, plan, states
from netlink.wire import NetlinkSocket
from tests.netns.lab import netns
from tests.netns.lab.netns import Namespace, entered

NEAR, ALSO_NEAR, SIX, ALSO_SIX = map(ip_address, ("10.0.0.12", "10.9.0.12", "fd00::12", "fd09::12"))
BLOCK, BLOCK6 = ip_network("10.244.2.0/24"), ip_network("fd00:244:2::/64")
WISH = Desired({BLOCK: (NEAR, ALSO_NEAR), BLOCK6: (SIX, ALSO_SIX), ip_network("10.244.3.0/24"): (NEAR,)})
SCENE = (
    "link add eth0 type veth peer name far0",
    "link add eth1 type veth peer name far1",
    "link add over type veth peer name far2",
    "link set over arp off",  # nobody can be asked for there
    *(f"link set {name} up" for name in ("eth0", "eth1", "far0", "far1", "far2", "over")),
    "addr add 10.0.0.11/24 dev eth0",
    "addr add 10.9.0.11/24 dev eth1",
    "addr add 10.8.0.11/24 dev over",
    "addr add fd00::11/64 dev eth0 nodad",
    "addr add fd09::11/64 dev eth1 nodad",
    "route add default via 10.0.0.1",
    "route add ::/0 via fd00::1",
)


@pytest.fixture
def node() -> Iterator[Namespace]:
    namespace = Namespace(f"fib{os.getpid()}", "node")
    namespace.create()
    try:
        namespace.ip(*SCENE)
        namespace.sysctl({"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"})
        with entered(namespace.name):
            yield namespace
    finally:
        netns.run(["ip", "netns", "del", namespace.name])


def bring(desired: Desired) -> Observed:
    for action in plan(desired, kernel.observe(desired)):
        kernel.apply(action)
    return kernel.observe(desired)


def test_what_was_put_is_read_back_and_goes_without_a_trace(node: Namespace) -> None:
    before = node.run(["ip", "rule"]), node.run(["ip", "-6", "rule"])
    found = bring(WISH)
    assert plan(WISH, found) == ()
    eth0, eth1 = map(socket.if_nametoindex, ("eth0", "eth1"))
    assert found.routes[BLOCK] == {Hop(NEAR, eth0), Hop(ALSO_NEAR, eth1)}
    assert found.routes[BLOCK6] == {Hop(SIX, eth0), Hop(ALSO_SIX, eth1)}
    assert "over" not in found.links.values()
    assert "via 10.0.0.12 dev eth0" in node.run(["ip", "route", "get", "10.244.3.9"])
    assert "table 203" in node.run(["ip", "-6", "route", "get", "fd00:244:2::9"])
    bring(Desired())
    assert (node.run(["ip", "rule"]), node.run(["ip", "-6", "rule"])) == before
    assert node.run(["ip", "route", "show", "table", "203"], check=False) == ""


def test_next_hops_change_in_place(node: Namespace) -> None:
    bring(WISH)
    one = Desired({BLOCK: (ALSO_NEAR,), BLOCK6: (ALSO_SIX,)})
    found = bring(one)
    assert plan(one, found) == ()
    assert {prefix: {hop.address for hop in hops} for prefix, hops in found.routes.items()} == {
        BLOCK: {ALSO_NEAR},
        BLOCK6: {ALSO_SIX},
    }
    assert plan(WISH, bring(WISH)) == ()


def test_what_others_have_is_neither_shadowed_nor_touched(node: Namespace) -> None:
    node.ip(f"route add {BLOCK} via 10.9.0.7", "route add 10.244.3.128/25 via 10.9.0.7", "rule add pref 31000 table 77")
    node.ip("route add 10.250.0.0/16 via 10.0.0.9 table 203")
    found = bring(WISH)
    assert set(states(WISH, found).values()) == {"taken", "installed"}
    assert set(found.routes) == {BLOCK6}
    assert "via 10.9.0.7" in node.run(["ip", "route", "get", "10.244.2.9"])
    node.ip(f"route del {BLOCK}", "route del 10.244.3.128/25")
    assert set(bring(WISH).routes) == set(WISH.routes)
    node.ip(f"route add {BLOCK} via 10.9.0.7")
    assert BLOCK not in bring(WISH).routes
    bring(Desired())
    assert "31000:" in node.run(["ip", "rule"])
    assert "10.250.0.0/16" in node.run(["ip", "route", "show", "table", "203"])


@pytest.mark.parametrize("when", ["before", "after"])
def test_rules_that_others_write_without_a_number_stay_in_force(node: Namespace, when: str) -> None:
    """As wg-quick, netplan and ifupdown do: what they lead into a tunnel must not leave in plain."""
    rule = "rule add to 10.244.2.0/24 table 77"
    node.ip("route add default via 10.9.0.7 table 77", *([rule] if when == "before" else []))
    assert BLOCK in bring(WISH).routes
    node.ip(*([rule] if when == "after" else []))
    assert "via 10.9.0.7" in node.run(["ip", "route", "get", "10.244.2.9"])
    assert "table 203" in node.run(["ip", "route", "get", "10.244.3.9"])
    assert plan(WISH, kernel.observe(WISH)) == ()


def test_a_link_without_a_carrier_is_left_while_there_is_another(node: Namespace) -> None:
    eth0, eth1 = map(socket.if_nametoindex, ("eth0", "eth1"))
    bring(WISH)
    node.ip("link set far1 down")
    found = bring(WISH)
    assert (found.routes[BLOCK], found.dark) == ({Hop(NEAR, eth0)}, {eth1})
    node.ip("link set far0 down")
    assert found.routes.keys() == bring(WISH).routes.keys(), "they are there when a carrier comes back"
    node.ip("link set far1 up")
    assert bring(WISH).routes[BLOCK] == {Hop(ALSO_NEAR, eth1)}


def test_doing_it_again_does_no_harm_and_a_refusal_names_the_first(node: Namespace) -> None:
    for action in plan(WISH, kernel.observe(WISH)):
        kernel.apply(action)
        kernel.apply(action)
    kernel.apply(Remove((ip_network("10.250.0.0/16"), BLOCK)))
    assert BLOCK not in kernel.observe(WISH).routes
    nobody = frozenset({Hop(ip_address("192.0.2.9"), 1)})
    some = {ip_network(f"10.245.{n}.0/24"): nobody for n in range(3)}
    with pytest.raises(OSError, match=r"3 of 4, 10\.245\.0\.0/24 first: "):
        kernel.apply(Put({**some, BLOCK: frozenset({Hop(NEAR, socket.if_nametoindex("eth0"))})}))
    assert BLOCK in kernel.observe(WISH).routes, "the others are done"


def test_a_namespace_without_a_route_has_an_empty_table() -> None:
    namespace = Namespace(f"fibempty{os.getpid()}", "node")
    namespace.create()
    try:
        with entered(namespace.name):
            assert kernel.observe(WISH) == Observed()
            assert plan(WISH, kernel.observe(WISH)) == ()
    finally:
        netns.run(["ip", "netns", "del", namespace.name])


def test_a_kernel_without_ipv6_has_none_of_it(node: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one with ipv6.disable=1: by a family that no kernel has rules and routes of."""
    monkeypatch.setitem(kernel.FAMILIES, 6, socket.AF_X25)
    found = bring(WISH)
    assert found.routes.keys() == {prefix for prefix in WISH.routes if prefix.version == 4}
    assert {each.version for each in (*found.rules, *found.main)} == {4}
    assert plan(WISH, found) == ()


def test_many_changes_answer_one_by_one_what_is_refused(node: Namespace) -> None:
    """More than go into one packet, the refused ones among them at its ends."""
    eth0 = socket.if_nametoindex("eth0")
    hops = frozenset({Hop(NEAR, eth0)})
    prefixes = [ip_network(f"10.{n >> 8}.{n & 255}.0/24") for n in range(30_000, 30_450)]
    bodies = [kernel._put(prefix, hops) for prefix in prefixes]
    bad = {0, 199, 200, 333, 449}
    for place in bad:
        bodies[place] = kernel._put(prefixes[place], frozenset({Hop(ip_address("192.0.2.9"), eth0)}))
    with NetlinkSocket(socket.NETLINK_ROUTE) as route:
        refused = route.request_all(kernel.RTM_NEWROUTE, kernel.NLM_F_CREATE | kernel.NLM_F_REPLACE, bodies)
    assert refused.keys() == bad
    assert len(kernel.observe(Desired()).routes) == len(prefixes) - len(bad)


AGGREGATES = {whole: (whole,) for whole in map(ip_network, ("192.0.2.0/24", "2001:db8::/64"))}
WHOLE = Desired(aggregates=AGGREGATES)
FROM_TOR = ("from", "10.0.0.12", "iif", "eth0")
FROM_TOR6 = ("from", "fd00::12", "iif", "eth0")


def way(node: Namespace, address: str, *received: str) -> str:
    """What the kernel does with what is for `address`: received from a neighbour, or by the host itself."""
    return node.run(["ip", "route", "get", address, *received], check=False)


def is_dropped(node: Namespace, address: str) -> bool:
    said = way(node, address, *(FROM_TOR6 if ":" in address else FROM_TOR))
    return "Invalid argument" in said


def test_what_is_received_for_an_aggregate_goes_nowhere_else(node: Namespace) -> None:
    """And what the host sends does: kube-proxy makes another address of it after its route was looked up."""
    unused, unused6 = "192.0.2.77", "2001:db8::77"
    assert "via 10.0.0.1" in way(node, unused, *FROM_TOR), "it would go back"
    before = node.run(["ip", "rule"]), node.run(["ip", "-6", "rule"])
    found = bring(WHOLE)
    assert plan(WHOLE, found) == ()
    assert found.verdicts == dict.fromkeys(AGGREGATES, "blackhole")
    assert is_dropped(node, unused)
    assert is_dropped(node, unused6)
    assert "via 10.0.0.1" in way(node, unused)
    assert "via fd00::1" in way(node, unused6)
    assert "via 10.0.0.1" in way(node, "192.0.3.1", *FROM_TOR), "no more than the aggregate"
    bring(Desired())
    assert (node.run(["ip", "rule"]), node.run(["ip", "-6", "rule"])) == before
    for family in ("-4", "-6"):
        assert node.run(["ip", family, "route", "show", "table", "204"], check=False) == ""


def test_what_the_host_and_others_have_in_an_aggregate_is_not_swallowed(node: Namespace) -> None:
    """A VIP that is led to a device, pods of the node, another owner's route to all of it; also later."""
    node.ip("route add local 192.0.2.10/32 dev lo", "route add 192.0.2.11/32 via 10.9.0.7")
    node.ip("route add 192.0.2.128/26 dev eth1", "route add 2001:db8::11/128 via fd09::7")
    for _ in range(2):
        found = bring(WHOLE)
        assert "local" in way(node, "192.0.2.10", *FROM_TOR)
        assert "via 10.9.0.7" in way(node, "192.0.2.11", *FROM_TOR)
        assert "dev eth1" in way(node, "192.0.2.130", *FROM_TOR)
        assert "via fd09::7" in way(node, "2001:db8::11", *FROM_TOR6)
        assert is_dropped(node, "192.0.2.12")
    node.ip("route add 192.0.2.0/24 via 10.9.0.7", "route del 192.0.2.11/32")
    found = bring(WHOLE)
    assert plan(WHOLE, found) == ()
    assert "via 10.9.0.7" in way(node, "192.0.2.12", *FROM_TOR)
    node.ip("route del 192.0.2.0/24")
    found = bring(WHOLE)
    assert found.verdicts[ip_network("192.0.2.0/24")] == "blackhole"
    assert ip_network("192.0.2.11/32") not in found.verdicts
    bring(Desired())
    assert "via 10.9.0.7" not in way(node, "192.0.2.12")


def test_a_neighbour_in_an_aggregate_is_reached(node: Namespace) -> None:
    """The pool is a part of the link's network, or of more that somebody led elsewhere; or it holds a node."""
    near, near6, node_address = "10.0.0.200", "fd00::8000:0:0:1", "192.0.2.66"
    whole, whole6 = ip_network("10.0.0.128/25"), ip_network("fd00::8000:0:0:0/65")
    wish = Desired(
        aggregates={**AGGREGATES, whole: (whole,), whole6: (whole6,)}, spared=frozenset({ip_network(node_address)})
    )
    found = bring(wish)
    assert plan(wish, found) == ()
    assert "dev eth0" in way(node, near, *FROM_TOR)
    assert "dev eth0" in way(node, near6, *FROM_TOR6)
    assert "via 10.0.0.1" in way(node, node_address, *FROM_TOR)
    assert is_dropped(node, "192.0.2.67")
    node.ip("route add 192.0.0.0/16 via 10.9.0.7")
    bring(wish)
    assert "via 10.9.0.7" in way(node, "192.0.2.67", *FROM_TOR)
    node.ip("route del 192.0.0.0/16")
    bring(Desired())


def test_blackholes_that_nobody_knows_of_yet_stay(node: Namespace) -> None:
    bring(replace(WISH, aggregates=AGGREGATES))
    found = bring(Desired(aggregates=None))
    assert (found.routes, found.verdicts) == ({}, dict.fromkeys(AGGREGATES, "blackhole"))
    assert is_dropped(node, "192.0.2.77")
