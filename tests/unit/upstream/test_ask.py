"""Real questions to this host, in both families: what answers, and what each kind of silence is called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest

from upstream.ask import ask, checksum, is_answer, request, status_of
from upstream.targets import Target

HOSTS = ["127.0.0.1", "::1"]
PATIENCE = 20.0


@asynccontextmanager
async def server(host: str, said: bytes | None) -> AsyncIterator[int]:
    """A TCP server that says `said` to whoever has asked, None = nothing, and keeps the connection. Its port."""
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if said is not None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(said)
        await done.wait()
        writer.close()

    listening = await asyncio.start_server(serve, host)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        done.set()
        listening.close()


def asked(kind: str, host: str, said: bytes | None = None, timeout: float = PATIENCE) -> str:
    async def question() -> str:
        async with server(host, said) as port:
            return await ask(Target(kind, ip_address(host), port, "/healthz"), timeout)  # type: ignore[arg-type]

    return asyncio.run(question())


@pytest.mark.parametrize("host", HOSTS)
def test_an_echo_is_an_answer(host: str) -> None:
    assert asked("icmp", host) == ""


@pytest.mark.parametrize("host", HOSTS)
def test_a_connection_is_an_answer_and_a_reset_is_none(host: str) -> None:
    assert asked("tcp", host) == ""
    assert asyncio.run(ask(Target("tcp", ip_address(host), 1), PATIENCE)).startswith("Connect call failed")


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 200 OK\r\n", ""),
        (b"HTTP/1.0 302 Found\r\nLocation: /\r\n", ""),
        (b"HTTP/1.1 503 Service Unavailable\r\n", "HTTP status 503"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "what answers speaks no HTTP"),
        (b"x" * 4096, "what answers speaks no HTTP"),
    ],
)
def test_http(host: str, said: bytes, why: str) -> None:
    assert asked("http", host, said) == why


def test_who_says_nothing_has_no_more_than_the_timeout() -> None:
    assert asked("http", HOSTS[0], None, timeout=0.05) == "no answer within 0.05 s"


@pytest.mark.parametrize(("tls", "why"), [(True, "ConnectionResetError"), (False, "what answers speaks no HTTP")])
def test_who_hangs_up_has_not_answered(tls: bool, why: str) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    async def question() -> str:
        async with await asyncio.start_server(hang_up, HOSTS[0]) as listening:
            port = listening.sockets[0].getsockname()[1]
            return await ask(Target("http", ip_address(HOSTS[0]), port, "/", tls), PATIENCE)

    assert asyncio.run(question()) == why


@pytest.mark.parametrize("kind", ["icmp", "tcp", "http"])
def test_no_way_there_is_no_answer(kind: str) -> None:
    """To the broadcast address the kernel lets no such question out."""
    assert asyncio.run(ask(Target(kind, ip_address("255.255.255.255"), 80, "/"), PATIENCE))  # type: ignore[arg-type]


@pytest.mark.parametrize("line", [b"", b"HTTP/1.1\r\n", b"HTTP/1.1 2x0\r\n", b"HTTP/1.1 20", b"\xff\x00"])
def test_what_is_no_status_line(line: bytes) -> None:
    assert status_of(line) == "what answers speaks no HTTP"


def test_an_answer_bears_the_token_and_no_question_is_one() -> None:
    token = bytes(range(16))
    for version, reply in ((4, 0), (6, 129)):
        answer = bytes([reply]) + request(version, token)[1:]
        assert is_answer(version, answer, token)
        assert not is_answer(version, request(version, token), token), "what this host has asked itself"
        assert not is_answer(version, answer, bytes(16))
        assert not any(is_answer(version, answer[:cut], token) for cut in range(24))
    behind = bytes([0x46]) + bytes(23) + b"\x00" + request(4, token)[1:]  # an IP header with an option
    assert is_answer(4, behind, token)
    assert checksum(request(4, token)) == 0
