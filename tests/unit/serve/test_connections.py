"""Clients that are slow, many, or hostile cost themselves their connection, and nobody else anything."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from routerd.serve import api, web
from routerd.serve.api import ApiServer, ask
from routerd.serve.connections import Connections, Limits, Serve, read_until
from routerd.serve.web import HttpServer
from tests.models.virtual_time import elapse, in_virtual_time, now
from tests.models.web import get
from tests.waiting import PATIENCE, eventually, turns, wait

LIMITS = Limits(most=3, seconds=10.0, request=100)
HOSTILE = 3 * web.LIMITS.most
Test = Callable[[Path], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await read_until(reader, b"\n"))


def serving(path: Path, test: Test, serve: Serve = echo) -> None:
    """Runs `test` beside `serve` on a socket at `path`, in virtual time."""

    async def main() -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        connections = Connections(listener, serve, LIMITS)
        try:
            await test(path)
        finally:
            await connections.close()

    in_virtual_time(main())


async def said(path: Path, line: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(line)
    answer = await reader.read()
    writer.close()
    return answer


async def one_that_trickles(path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    began = now()
    while not (reader.at_eof() or writer.is_closing()):
        writer.write(b"x")
        await elapse(1.0)
    writer.close()
    assert now() - began == pytest.approx(LIMITS.seconds, abs=1.5)


async def many_that_say_nothing(path: Path) -> None:
    with ExitStack() as stack:
        silent = [await asyncio.open_unix_connection(path) for _ in range(20)]
        for _, writer in silent:
            stack.callback(writer.close)
        assert await said(path, b"me\n") == b"me\n"
        await turns()
        assert [reader.at_eof() for reader, _ in silent[:-2]] == [True] * 18


async def one_that_says_too_much(path: Path) -> None:
    assert await said(path, b"x" * 300) == b""


async def no_descriptor_left(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        with none_left():
            client.connect(str(path))
            await elapse(30.0)
        await asyncio.get_running_loop().sock_sendall(client, b"me\n")
        assert await asyncio.get_running_loop().sock_recv(client, 100) == b"me\n"


@contextmanager
def none_left() -> Iterator[None]:
    """This process can open nothing."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize(
    "test",
    [
        one_that_trickles,
        many_that_say_nothing,
        one_that_says_too_much,
        no_descriptor_left,
    ],
)
def test_it_serves_on(tmp_path: Path, test: Test) -> None:
    serving(tmp_path / "socket", test)


def test_a_fault_of_accept_is_told_once_a_second_at_most(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    serving(tmp_path / "socket", no_descriptor_left)
    told = [record for record in caplog.records if "accept-failed" in record.getMessage()]
    assert 1 <= len(told) <= 31 and "Too many open files" in told[0].getMessage()


def test_one_that_does_not_read_its_answer_is_cut_off(tmp_path: Path) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(10 << 20))

    async def test(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            await elapse(LIMITS.seconds + 1)
            client.setblocking(False)
            while received := client.recv(1 << 20):
                assert len(received) < 10 << 20

    serving(tmp_path / "socket", test, flood)


def is_ended(client: socket.socket) -> bool:
    try:
        return client.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_a_probe_is_answered_however_many_hold_connections() -> None:
    """None of them holds a thread, and they hold no more descriptors than the server has places."""
    server = HttpServer(ip_address("127.0.0.1"), 0, {"/healthz": lambda: (200, web.TEXT, b"alive\n")})
    with ExitStack() as stack:
        stack.callback(server.close)
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(HOSTILE)]
        for client in clients:
            client.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        assert get(server.port, "/healthz") == (200, "alive\n")
        wait(lambda: sum(map(is_ended, clients)) >= HOSTILE - web.LIMITS.most, "the oldest ones are closed")


@pytest.mark.parametrize(
    ("listen", "asked"), [("::", "127.0.0.1"), ("::", "::1"), ("::1", "::1"), ("0.0.0.0", "127.0.0.1")]
)
def test_an_unspecified_address_is_all_of_the_host_s(listen: str, asked: str) -> None:
    server = HttpServer(ip_address(listen), 0, {})
    try:
        socket.create_connection((asked, server.port), PATIENCE).close()
    finally:
        server.close()


def test_the_command_line_is_answered_however_many_hold_connections(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"

    async def main() -> None:
        server = ApiServer(path, lambda request: request)
        await server.start()
        with ExitStack() as stack:
            for _ in range(3 * api.LIMITS.most):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                await asyncio.get_running_loop().sock_connect(client, str(path))
            assert await asyncio.to_thread(ask, path, {"get": "x"}) == {"get": "x"}
        await server.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /../../etc/passwd HTTP/1.0", 404),
        (b"GET //healthz HTTP/1.0", 404),
        (b"GET /healthz HTTP/1.1", 200),
        (b"GET /healthz?x HTTP/1.0", 200),
        (b"GET /healthz HTTP/9.9", 400),
        (b"GET /healthz", 400),
        (b"POST /healthz HTTP/1.0", 501),
        (b"\xff\xfe", 400),
        (b"", 400),
    ],
)
def test_what_is_no_request_is_told_so(request_line: bytes, status: int) -> None:
    server = HttpServer(ip_address("127.0.0.1"), 0, {"/healthz": lambda: (200, web.TEXT, b"alive\n")})
    try:
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as client:
            client.sendall(request_line + b"\r\n\r\n")
            assert client.makefile("rb").readline().split()[1] == b"%d" % status
    finally:
        server.close()


def test_a_client_that_is_gone_leaves_no_trace(tmp_path: Path) -> None:
    async def test(path: Path) -> None:
        for _ in range(10):
            _, writer = await asyncio.open_unix_connection(path)
            writer.transport.abort()
        assert await eventually(lambda: said(path, b"me\n")) == b"me\n"

    serving(tmp_path / "socket", test)
