"""Routers of a link: what counts as an advertisement, and who is kept."""

from __future__ import annotations

import asyncio
import os
import socket
from ipaddress import IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.routers import ADVERTISE, MOST, SILENCE, SOLICIT, Heard, Routers, advertiser
from tests.netns.lab.netns import Namespace, entered, run
from tests.waiting import PATIENCE

ROUTER = IPv6Address("fe80::1")


def test_who_advertises() -> None:
    assert advertiser(ADVERTISE, ROUTER, 255) == ROUTER


@pytest.mark.parametrize(
    ("packet", "source", "hops"),
    [
        (ADVERTISE, ROUTER, 64),  # it has crossed a router, or nobody knows
        (ADVERTISE, IPv6Address("2001:db8::1"), 255),
        (ADVERTISE[:15], ROUTER, 255),
        (SOLICIT + bytes(8), ROUTER, 255),
        (b"\x86\x01" + ADVERTISE[2:], ROUTER, 255),
        (b"", ROUTER, 255),
    ],
)
def test_what_is_no_advertisement(packet: bytes, source: IPv6Address, hops: int) -> None:
    assert advertiser(packet, source, hops) is None


def test_what_we_say_makes_the_node_nobodys_default_router() -> None:
    assert ADVERTISE[6:8] == bytes(2)  # the lifetime, RFC 4861, section 4.2


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, SILENCE / 10)), max_size=60))
def test_whoever_makes_up_routers_takes_nobodys_place(said: list[tuple[int, float]]) -> None:
    """The router says something at least every half hour; others may say what they want."""
    heard, now, spoke = Heard().after(ROUTER, 0.0), 0.0, 0.0
    for number, pause in said:
        now += pause
        if now - spoke > SILENCE / 2:
            heard, spoke = heard.after(ROUTER, now), now
        heard = heard.after(IPv6Address(f"fe80::f:{number}"), now)
        assert ROUTER in heard.last
        assert len(heard.routers("eth1")) <= MOST


def test_a_router_is_kept_until_another_one_is_heard_long_after() -> None:
    heard, new = Heard().after(ROUTER, 0.0), IPv6Address("fe80::2")
    assert heard.after(new, SILENCE).routers("eth1") == (ip_address("fe80::1%eth1"), ip_address("fe80::2%eth1"))
    assert heard.after(new, SILENCE + 1).routers("eth1") == (ip_address("fe80::2%eth1"),)


def test_what_comes_by_another_link_before_the_socket_is_bound_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def say(device: str) -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as router:
            router.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            router.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(device))
            router.sendto(ADVERTISE, ("ff02::1", 0))

    class Interrupted(socket.socket):
        def setsockopt(self, *options: Any) -> None:
            if options[:2] == (socket.SOL_SOCKET, socket.SO_BINDTODEVICE):
                say("b1")
            super().setsockopt(*options)

    async def listen() -> None:
        routers, changed = Routers(), asyncio.Event()
        routers.on_change = changed.set
        routers.want(frozenset({"a0"}))
        with monkeypatch.context() as patched:
            patched.setattr("bgp.routers.socket.socket", Interrupted)
            routers._speak()
        say("a1")
        await asyncio.wait_for(changed.wait(), PATIENCE)
        assert [str(each) for each in routers.found["a0"]] == ["fe80::a1%a0"]
        routers._close("a0")

    space = Namespace(f"source-{os.getpid()}", "routers")
    space.create()
    try:
        for link in "ab":  # without nodad an address cannot be sent from until a worker of the kernel has run
            space.ip(
                f"link add {link}0 type veth peer name {link}1", f"link set {link}0 addrgenmode none up",
                f"link set {link}1 addrgenmode none up", f"addr add fe80::{link}0/64 dev {link}0 nodad",
                f"addr add fe80::{link}1/64 dev {link}1 nodad",
            )  # fmt: skip
        with entered(space.name):
            asyncio.run(listen())
    finally:
        run(["ip", "netns", "del", space.name])
