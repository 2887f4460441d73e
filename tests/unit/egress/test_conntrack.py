"""Connections of pods, as the kernel of a network namespace tracks them: asked for by address, or all of them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from egress.host import conntrack
from egress.host.conntrack import running
from egress.policy import IPAddress
from tests.netns.lab import netns
from tests.netns.lab.netns import Namespace, run

SERVERS = ("127.0.0.2", "127.0.0.3", "::1")
TRACKED = "table inet t { chain c { type filter hook output priority 0; ct state new accept; }; }"


@pytest.fixture(scope="module")
def tracked() -> Iterator[None]:
    """One connection to each server, from inside a namespace that tracks them."""
    namespace = Namespace(f"ct{os.getpid()}", "tracked")
    namespace.create()
    try:
        with netns.entered(namespace.name), ExitStack() as open_until_then:
            namespace.nft(TRACKED)
            for address in SERVERS:
                server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
                open_until_then.enter_context(server).bind((address, 8000))
                server.listen()
                open_until_then.enter_context(socket.create_connection((address, 8000)))
            yield
    finally:
        run(["ip", "netns", "del", namespace.name])


@pytest.fixture(params=[0, 250], ids=["of each pod", "of all"])
def asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By walks that cost nothing, or as much as 250 connections."""
    monkeypatch.setattr(conntrack, "WALK", request.param)


@pytest.mark.usefixtures("tracked", "asked")
@pytest.mark.parametrize("pods", [SERVERS[:1], SERVERS[:2], SERVERS, SERVERS[2:], ()])
def test_connections_to_pods_are_found_and_no_others(pods: tuple[str, ...]) -> None:
    found = [each for each in running(_addresses(pods)) if not each.by_pod]
    assert sorted(str(each.pod) for each in found) == sorted(pods)
    assert {each.pod_port for each in found} <= {8000}


@pytest.mark.usefixtures("tracked", "asked")
@pytest.mark.parametrize(("pod", "servers"), [("127.0.0.1", SERVERS[:2]), ("::1", SERVERS[2:]), ("127.0.0.2", ())])
def test_what_a_pod_began_is_told_from_the_rest(pod: str, servers: tuple[str, ...]) -> None:
    found = [each for each in running(_addresses((pod,))) if each.by_pod]
    assert sorted((str(each.pod), str(each.remote), each.remote_port) for each in found) == [
        (pod, server, 8000) for server in servers
    ]


def _addresses(pods: tuple[str, ...]) -> list[IPAddress]:
    return [ip_address(pod) for pod in pods]
