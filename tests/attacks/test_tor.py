"""A hostile ToR ends its own session and nothing else: the speaker lives, and the session with another ToR goes on.

One speaker has a session with every kind of them at once. How one that ends every session is asked less and less is in
`tests/netns/stories/test_bgp_tor.py`.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from bgp.path import SpeakerPeer
from tests.netns.lab.netns import run
from tests.netns.lab.stage import NODE_AS, ROUTER_ID, TOR_AS, Stage, agent, desired, paths
from tests.waiting import PATIENCE

OPEN, UPDATE, NOTIFICATION, KEEPALIVE, ROUTE_REFRESH = 1, 2, 3, 4, 5
MARKER = b"\xff" * 16
OURS = ("192.0.2.1/32", "192.0.2.2/32")
INJECTED = "level=error event=injected"
RANDOM = random.Random(1)


def message(kind: int, body: bytes = b"") -> bytes:
    """RFC 4271, section 4.1."""
    return MARKER + struct.pack("!HB", 19 + len(body), kind) + body


def opening(
    asn: int = TOR_AS, hold: int = 90, router: str = "10.9.0.2", parameters: bytes | None = None, more: bytes = b""
) -> bytes:
    """RFC 4271, section 4.2, with IPv4 unicast and four octets of AS number. `more`: further capabilities."""
    capabilities = b"\x01\x04\0\x01\0\x01" + b"\x02\0" + b"\x41\x04" + struct.pack("!I", asn) + more
    options = bytes([2, len(capabilities)]) + capabilities if parameters is None else parameters
    header = struct.pack("!BHH4sB", 4, asn, hold, IPv4Address(router).packed, len(options) & 0xFF)
    return message(OPEN, header + options)


def attribute(code: int, value: bytes, flags: int = 0x40) -> bytes:
    return bytes([flags | 0x10, code]) + struct.pack("!H", len(value)) + value


def update(prefixes: bytes, more: bytes = b"", as_path: bytes = b"\x02\x01" + struct.pack("!I", TOR_AS)) -> bytes:
    """RFC 4271, section 4.3."""
    attributes = attribute(1, b"\0") + attribute(2, as_path) + attribute(3, IPv4Address("10.9.0.2").packed) + more
    return message(UPDATE, struct.pack("!HH", 0, len(attributes)) + attributes + prefixes)


def host(address: str) -> bytes:
    return b"\x20" + IPv4Address(address).packed


def many_routes(count: int) -> bytes:
    """Of 700 prefixes each."""
    base = int(IPv4Address("45.0.0.0"))
    prefixes = [[b"\x20" + struct.pack("!I", base + 700 * n + i) for i in range(700)] for n in range(count)]
    return b"".join(update(b"".join(each)) for each in prefixes)


def text_capability(code: int, value: bytes) -> bytes:
    return bytes([code, len(value)]) + value


# What a relay that takes lines for ExaBGP's would believe: an event of the good ToR's, and an end of a command.
FORGED = (
    b'"}}\n{ "exabgp": "5", "type": "state", "neighbor": {"address": {"peer": "10.9.0.3"}, "state": "down"}}\ndone\n'
)
ROUTE = host("5.5.5.5")
LONG_PATH = b"".join(b"\x02\xff" + struct.pack("!255I", *range(1, 256)) for _ in range(3))
ONCE_UP = {
    "our own prefixes": update(host("192.0.2.1") + b"\x18\x0a\x09\0" + b"\0"),
    "a path of 765 AS": update(ROUTE, as_path=LONG_PATH),
    "a message of 65,535 bytes": MARKER + struct.pack("!HB", 65535, UPDATE) + bytes(65516),
    "attributes longer than the message": message(UPDATE, struct.pack("!HH", 0, 60000) + bytes(20)),
    "withdrawals longer than the message": message(UPDATE, struct.pack("!H", 60000) + bytes(20)),
    "a prefix of 255 bits": update(b"\xff" + b"\1" * 32),
    "an origin of 7": message(UPDATE, struct.pack("!HH", 0, 5) + attribute(1, b"\7") + ROUTE),
    "an unknown well-known attribute": update(ROUTE, attribute(250, b"x")),
    "every attribute": b"".join(update(ROUTE, attribute(n, RANDOM.randbytes(3), 0xC0)) for n in range(4, 256)),
    "a wrong marker": bytes(16) + struct.pack("!HB", 19, KEEPALIVE),
    "a length of 18": MARKER + struct.pack("!HB", 18, KEEPALIVE),
    "an unknown type": message(99, b"abc"),
    "20,000 route refreshes": message(ROUTE_REFRESH, b"\0\x01\0\x01") * 20000,
    "a long notification": message(NOTIFICATION, b"\x06\x02\xff" + f"\x1b[31m\n{INJECTED}\n".encode() * 100),
    "a shutdown communication": message(NOTIFICATION, b"\x06\x02\x40" + f"\n{INJECTED} \x1b[2J".encode().ljust(64)),
    "70,000 routes": many_routes(100),
    "20,000 notifications": message(NOTIFICATION, b"\x06\x04") * 20000,
    "a shutdown communication of JSON": message(NOTIFICATION, b"\x06\x02\x7d" + FORGED.ljust(125)),
}  # fmt: skip
NO_BGP = (
    "a wrong marker",
    "a length of 18",
    "an unknown type",
    "a message of 65,535 bytes",
    "random bytes",
    "another AS",
)
IN_WORDS = {  # what is said of the session that fell
    "a message of 65,535 bytes": "notification sent (1,2): message header error: bad length",
    "a wrong marker": "notification sent (1,1): message header error: wrong marker, what comes is no BGP",
    "a length of 18": "notification sent (1,2): message header error: bad length",
    "an unknown type": "notification sent (1,3): message header error: unknown type of message",
    "a long notification": "notification received (6,2): cease: administrative shutdown",
    "a shutdown communication of JSON": "notification received (6,2): cease: administrative shutdown",
    "20,000 notifications": "notification received (6,4): cease: administrative reset",
    "odd parameters": "notification sent (2,0): OPEN: malformed",
    "a hold time of 1 s": "notification sent (2,6): OPEN: unacceptable hold time",
    "another AS": "notification sent (2,2): OPEN: bad peer AS (one side expects another AS number)",
    "a router id of 0": "notification sent (2,3): OPEN: bad BGP identifier (router id)",
}
INSTEAD_OF_OPEN = {
    "a capability of 200 bytes": opening(parameters=b"\x02\xca\x01\xc8" + b"z" * 200),
    "odd parameters": opening(parameters=b"\x02\x02\x80\0" * 63 + b"\x02\x01\0"),
    "a hold time of 1 s": opening(hold=1),
    "another AS": opening(asn=1),
    "a router id of 0": opening(router="0.0.0.0"),
    "random bytes": RANDOM.randbytes(100_000),
    "silence": b"",
    # RFC 8654, and the drafts of ExaBGP's capabilities for names (73) and versions (75)
    "an AS path of 65,000 bytes": opening(more=b"\x06\0"),
    "a hostname of JSON": opening(more=text_capability(73, bytes([len(FORGED)]) + FORGED + b'\x03"}\n')),
    "a software version of JSON": opening(more=text_capability(75, bytes([len(FORGED)]) + FORGED)),
}
AFTER_OPEN = {"an AS path of 65,000 bytes": update(ROUTE, as_path=b"\x02\xff" + struct.pack("!255I", *range(255)) * 63)}


@dataclass
class Tor:
    """One address of the ToR's. `up`: what it says once the session is up; the good one says nothing then."""

    address: IPv4Address
    open: bytes = opening()
    up: bytes = b""
    counts: Counter[str] = field(default_factory=Counter)
    heard: bytearray = field(default_factory=bytearray)

    @property
    def peer(self) -> SpeakerPeer:
        return SpeakerPeer(self.address, IPv4Address("10.9.0.1"), NODE_AS, TOR_AS, ROUTER_ID)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counts["sessions"] += 1
        with closing(writer.transport), suppress(ConnectionError, asyncio.IncompleteReadError):
            writer.write(self.open + (message(KEEPALIVE) if self.open else b""))
            while True:
                (length, kind) = struct.unpack("!16xHB", await reader.readexactly(19))
                self.heard += await reader.readexactly(length - 19)
                if kind == NOTIFICATION:
                    self.counts["played"] += 1
                if kind == KEEPALIVE:
                    writer.write(message(KEEPALIVE) + (self.up if not self.counts["played"] else b""))
                    self.counts["played"] += 1
        self.counts["ended"] += 1

    async def listen(self, stage: Stage) -> asyncio.Server:
        listener = stage.tor.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(self.address), 179))
        return await asyncio.start_server(self.serve, sock=listener)

    def is_through(self) -> bool:
        """It has said what it had to say, or hears that there is no session with such a one."""
        return bool(self.counts["played"] or self.counts["ended"] or (not self.open and self.counts["sessions"]))


@pytest.fixture
def stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="routerd-bgp-") as directory:
        built = Stage(Path(directory), "bird")
        try:
            built.build()
            built.bgp.kill()
            built.start_speaker()
            yield built
        finally:
            built.remove()


def hostile() -> dict[str, Tor]:
    cases = [(name, {"up": data}) for name, data in ONCE_UP.items()]
    cases += [(name, {"open": data, "up": AFTER_OPEN.get(name, b"")}) for name, data in INSTEAD_OF_OPEN.items()]
    return {name: Tor(IPv4Address("10.9.0.10") + n, **data) for n, (name, data) in enumerate(cases)}


def test_hostile_tors_cost_nobody_else_anything(stage: Stage) -> None:
    asyncio.run(asyncio.wait_for(story(stage), 3 * PATIENCE))


async def story(stage: Stage) -> None:
    good, bad = Tor(IPv4Address("10.9.0.3")), hostile()
    everyone = (good, *bad.values())
    stage.tor.ip(*(f"addr add {tor.address}/24 dev eth0" for tor in everyone))
    pid = stage.speaker_pid()
    async with AsyncExitStack() as servers, agent(stage) as speaker:
        for tor in everyone:
            await servers.enter_async_context(await tor.listen(stage))
        speaker.set(desired(*((tor.peer, paths(OURS[0])) for tor in everyone)))
        await stage.until(lambda: host("192.0.2.1") in good.heard, "the good ToR hears the first path")
        for name, tor in bad.items():
            await stage.until(tor.is_through, name)
        for name in NO_BGP:
            await stage.until(lambda tor=bad[name]: tor.counts["ended"], f"the session ends: {name}")  # type: ignore[misc]
        speaker.set(desired(*((tor.peer, paths(*OURS)) for tor in everyone)))
        await stage.until(lambda: host("192.0.2.2") in good.heard, "the good ToR hears the second path")
        assert good.counts == Counter(sessions=1, played=good.counts["played"])
        assert speaker.peers[good.peer.key].flaps == 0
        for name, words in IN_WORDS.items():
            peer = bad[name].peer.key
            await stage.until(lambda p=peer, w=words: speaker.peers[p].last_reason == w, f"{name}: {words}")  # type: ignore[misc]
        reasons = {name: speaker.peers[tor.peer.key].last_reason for name, tor in bad.items()}
    assert stage.speaker_pid() == pid
    assert [reason for reason in reasons.values() if not reason.isprintable()] == []
    assert not any(line.startswith(INJECTED) for line in (stage.run_dir / "exabgp.log").read_text().splitlines())
    assert "192.0.2.1" not in run(["ip", "-n", stage.node.name, "route"])
