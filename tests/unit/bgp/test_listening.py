"""Peers that connect to us, by real sockets on the loopback: whose a connection is, and what listens where."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from types import SimpleNamespace
from typing import Any

import pytest

from bgp import conf
from bgp.inside import listening
from bgp.inside.listening import Listener, take_anew
from bgp.path import SpeakerPeer
from tests.models.real_exabgp import loaded
from tests.waiting import wait

LOCAL = ip_address("127.0.0.1")
FIRST = SpeakerPeer(ip_address("127.0.0.2"), LOCAL, 64512, 65000, IPv4Address("10.9.0.1"), passive=True, listen_port=1)
ELSEWHERE = replace(FIRST, local_address=ip_address("127.0.0.9"))  # with the same router


class Speaker:
    """What the listener sees of ExaBGP."""

    def __init__(self) -> None:
        self.taken: list[str] = []  # ends of the connections of each peer
        self.told: list[str] = []
        self.is_up = False
        self.has_relay = True
        self.open: list[Any] = []
        self.listener = Listener(self)
        self.asynchronous = SimpleNamespace(schedule=lambda *_: None)
        self.processes = SimpleNamespace(down=self._down)
        self._peers: dict[str, Any] = {}

    def load(self, *peers: SpeakerPeer) -> None:
        self.configuration = loaded(conf.peers_text(peers))
        self._peers = {
            name: SimpleNamespace(
                handle_connection=lambda it, n=neighbor: self._take(n, it), established=lambda: self.is_up
            )
            for name, neighbor in self.configuration.neighbors.items()
        }
        self.listener.close_unwanted(set())

    def _down(self, neighbor: Any, why: str) -> None:
        if not self.has_relay:
            raise KeyError("relay")
        self.told.append(why)

    def _take(self, neighbor: Any, connection: Any) -> None:
        self.open.append(connection)
        self.taken.append(f"{neighbor['peer-address']} to {neighbor['local-address']}")

    def turns(self, count: int) -> list[str]:
        """What was taken, once there are so many."""

        def has_all() -> bool:
            assert self.listener.incoming() is False
            return len(self.taken) >= count

        wait(has_all, "connections")
        return self.taken


@pytest.fixture
def speaker() -> Iterator[Speaker]:
    made = Speaker()
    yield made
    made.listener.stop()
    for connection in made.open:
        connection.close()


@pytest.fixture
def port() -> int:
    """That nobody has on any address."""
    with closing(socket.socket()) as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])


def connected(source: str, to: str, port: int, ttl: int = 64) -> socket.socket:
    router = socket.socket()
    router.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
    router.settimeout(5)
    router.bind((source, 0))
    try:
        router.connect((to, port))
    except OSError:
        router.close()
        raise
    return router


def test_a_connection_is_of_the_session_between_its_addresses(speaker: Speaker, port: int) -> None:
    first, elsewhere = (replace(each, listen_port=port) for each in (FIRST, ELSEWHERE))
    speaker.load(first, elsewhere, replace(first, address=ip_address("127.0.0.3")))
    routers = [
        connected(source, to, port)
        for source, to in (("127.0.0.2", "127.0.0.9"), ("127.0.0.3", "127.0.0.1"), ("127.0.0.2", "127.0.0.1"))
    ]
    assert sorted(speaker.turns(3)) == ["127.0.0.2 to 127.0.0.1", "127.0.0.2 to 127.0.0.9", "127.0.0.3 to 127.0.0.1"]
    for router in routers:
        router.close()


def test_a_stranger_is_sent_away_and_costs_nothing(speaker: Speaker, port: int) -> None:
    speaker.load(replace(FIRST, listen_port=port))
    with (
        closing(connected("127.0.0.4", "127.0.0.1", port)) as stranger,
        closing(connected("127.0.0.2", "127.0.0.1", port)),
    ):
        assert speaker.turns(1) == ["127.0.0.2 to 127.0.0.1"]
        with suppress(ConnectionError):
            assert stranger.recv(1) == b""
        with closing(connected("127.0.0.5", "127.0.0.1", port)), closing(connected("127.0.0.2", "127.0.0.1", port)):
            speaker.turns(2)
    assert speaker.told == [f"127.0.0.4 connected to 127.0.0.1 port {port}, and no session there is with it"]


@pytest.mark.parametrize("others", [0, 1], ids=["all-ask", "one-of-two"])
def test_who_is_too_far_is_not_heard(speaker: Speaker, port: int, others: int) -> None:
    """Where all sessions of the place ask for it the kernel drops the SYN, else it is seen by what was kept of it."""
    near = replace(FIRST, listen_port=port, min_ttl=255)
    lax = replace(near, address=ip_address("127.0.0.3"), min_ttl=0)
    speaker.load(near, *[lax] * others)
    if others:
        with closing(connected("127.0.0.2", "127.0.0.1", port)), closing(connected("127.0.0.3", "127.0.0.1", port)):
            assert speaker.turns(1) == ["127.0.0.3 to 127.0.0.1"]
        assert speaker.told == [f"127.0.0.2 connected to 127.0.0.1 port {port} from too far away"]
    with closing(connected("127.0.0.2", "127.0.0.1", port, ttl=255)):
        assert speaker.turns(1 + others)[-1] == "127.0.0.2 to 127.0.0.1"
    (listening_,) = speaker.listener._open.values()
    assert listening_.socket.getsockopt(socket.IPPROTO_IP, listening.IP_MINTTL) == (0 if others else 255)


def test_what_nobody_asks_for_any_more_is_closed(speaker: Speaker, port: int) -> None:
    speaker.load(replace(FIRST, listen_port=port))
    speaker.load(replace(FIRST, passive=False, listen_port=0))
    with pytest.raises(ConnectionRefusedError):
        connected("127.0.0.2", "127.0.0.1", port)


def test_a_port_that_somebody_has_is_told_once_and_had_when_it_is_free(
    speaker: Speaker, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "RETRY", 0.0)
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        speaker.load(replace(FIRST, listen_port=port))
        speaker.listener.incoming()
        assert speaker.told == [f"cannot listen on 127.0.0.1 port {port}: Address already in use"]
    speaker.listener.incoming()
    with closing(connected("127.0.0.2", "127.0.0.1", port)):
        assert speaker.turns(1) == ["127.0.0.2 to 127.0.0.1"]


def test_who_has_not_heard_that_a_port_is_not_had_is_told_later(
    speaker: Speaker, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "RETRY", 0.0)
    first = replace(FIRST, listen_port=port)

    def told_in_two_turns() -> int:
        for _ in range(2):
            speaker.listener.incoming()
        return len(speaker.told)

    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        speaker.has_relay = False  # as at the start, when the configuration is loaded before there is one
        speaker.load(first)
        assert told_in_two_turns() == 0
        speaker.has_relay = True
        assert told_in_two_turns() == 1
        speaker.listener.tell_again()
        assert told_in_two_turns() == 2
        speaker.load(first, replace(first, address=ip_address("127.0.0.3")))
        assert told_in_two_turns() == 4
        speaker.is_up = True
        speaker.load(first)
        assert told_in_two_turns() == 4


def test_an_interface_that_was_made_anew_has_a_new_socket(
    speaker: Speaker, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that is bound to a device is bound to its index, which nobody has any more."""
    monkeypatch.setattr(listening, "RETRY", 0.0)
    speaker.load(replace(FIRST, listen_port=port, interface="lo"))
    (before,) = speaker.listener._open.values()
    speaker.listener.incoming()
    assert [*speaker.listener._open.values()] == [before]
    monkeypatch.setattr(listening, "index_of", lambda interface: 77)
    speaker.listener.incoming()
    (now,) = speaker.listener._open.values()
    assert (before.socket.fileno(), now.index) == (-1, 77)
    with closing(connected("127.0.0.2", "127.0.0.1", port)):
        assert speaker.turns(1) == ["127.0.0.2 to 127.0.0.1"]


def test_a_session_that_is_up_is_not_disturbed_by_who_says_nothing(
    speaker: Speaker, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker.load(replace(FIRST, listen_port=port))
    speaker.is_up = True
    connected("127.0.0.2", "127.0.0.1", port).close()  # a look whether the port is open
    with (
        closing(connected("127.0.0.2", "127.0.0.1", port)) as first,
        closing(connected("127.0.0.2", "127.0.0.1", port)) as second,
    ):
        for _ in range(3):
            speaker.listener.incoming()
        assert first.recv(1) == b"" and speaker.taken == []
        second.send(b"\xff" * 16)
        assert speaker.turns(1) == ["127.0.0.2 to 127.0.0.1"]
    monkeypatch.setattr(listening, "OPEN_WAIT", 0.0)
    with closing(connected("127.0.0.2", "127.0.0.1", port)) as late:
        speaker.listener.incoming()
        assert late.recv(1) == b"" and len(speaker.taken) == 1


def test_one_that_waits_is_taken_once_the_session_is_over(speaker: Speaker, port: int) -> None:
    speaker.load(replace(FIRST, listen_port=port))
    speaker.is_up = True
    with closing(connected("127.0.0.2", "127.0.0.1", port)):
        speaker.listener.incoming()
        assert speaker.taken == []
        speaker.is_up = False
        assert speaker.turns(1) == ["127.0.0.2 to 127.0.0.1"]


@pytest.mark.parametrize(("ttl", "taken"), [(b"", True), (b"\xff", True), (b"\x40", False)])
def test_without_a_saved_header_the_kernel_s_minimum_is_what_counts(ttl: bytes, taken: bool) -> None:
    """As under a flood of SYNs, which the kernel answers with cookies."""
    header = bytes([0x45]) + bytes(7) + ttl + bytes(11) if ttl else b""
    connection: Any = SimpleNamespace(getsockopt=lambda level, option, size: header)
    assert listening.near_enough(connection, {"incoming-ttl": 255}) is taken


def test_an_address_that_the_host_has_not_yet_is_no_fault(speaker: Speaker, port: int) -> None:
    speaker.load(replace(FIRST, local_address=ip_address("192.0.2.77"), listen_port=port))
    assert (speaker.told, len(speaker.listener._open)) == ([], 1)


def test_a_password_counts_from_the_reload_on_and_leaves_with_its_peer(speaker: Speaker, port: int) -> None:
    signed = replace(FIRST, listen_port=port, password="s3cret")
    speaker.load(signed, replace(signed, address=ip_address("127.0.0.3")))
    (place,) = speaker.listener._open.values()
    assert {*map(str, place.keys)} == {"127.0.0.2", "127.0.0.3"}
    speaker.load(replace(signed, password=""))
    assert place.keys == {}
    with closing(connected("127.0.0.2", "127.0.0.1", port)):
        assert speaker.turns(1) == ["127.0.0.2 to 127.0.0.1"]


def test_the_ttl_of_what_began_a_connection() -> None:
    v4 = struct.pack("!BBHHHBB", 0x45, 0, 40, 0, 0, 254, 6) + bytes(10)
    v6 = struct.pack("!IHBB", 6 << 28, 20, 6, 253) + bytes(32)
    assert [listening.ttl_of_syn(each) for each in (v4, v6, b"")] == [254, 253, 0]


@pytest.mark.parametrize(
    ("graceful", "left_alone", "resets", "answer"),
    [(True, 0.0, 1, "stock"), (False, 0.0, 0, "stock"), (True, float("inf"), 0, "(6, 5)")],
    ids=["graceful-restart", "without", "announced-too-much"],
)
def test_a_router_that_connects_though_its_session_seems_up(
    graceful: bool, left_alone: float, resets: int, answer: str
) -> None:
    ended: list[str] = []
    opened = SimpleNamespace(capabilities=SimpleNamespace(announced=lambda code: graceful))
    peer = SimpleNamespace(
        established=lambda: True, _reset=ended.append, routerd_left_alone=left_alone,
        proto=SimpleNamespace(negotiated=SimpleNamespace(sent_open=opened, received_open=opened)),
    )  # fmt: skip
    connection = SimpleNamespace(notification=lambda code, subcode, why: str((code, subcode)))
    assert take_anew(lambda peer, connection: "stock")(peer, connection) == answer
    assert len(ended) == resets
