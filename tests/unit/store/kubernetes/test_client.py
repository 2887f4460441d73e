"""Requests to the API server: what an answer, or none, says of whether it can be reached, and how long one waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from kubernetes.aio.config import ConfigException

from routerd.errors import EnvironmentFault
from routerd.store.kubernetes import client as k8s_client
from routerd.store.kubernetes.client import LONGEST_RETRY_AFTER, ApiError, Client
from tests.k8s.listener import Listener
from tests.models.virtual_time import ForwardLoop
from tests.waiting import turns

Answer = Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]


class Server(Listener):
    def __init__(self, answer: Answer) -> None:
        super().__init__(name="server")
        self._answer = answer

    async def answer(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request)


def kubeconfig(directory: Path, url: str, **cluster: str) -> Path:
    value = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": url, **cluster}}], "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    }  # fmt: skip
    path = directory / "kubeconfig"
    path.write_text(yaml.safe_dump(value))
    return path


@asynccontextmanager
async def client_of(directory: Path, url: str) -> AsyncIterator[Client]:
    client = Client(kubeconfig(directory, url))
    await client.open()
    try:
        yield client
    finally:
        await client.close()


def status(code: int, reason: str = "", **headers: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"reason": reason, "message": "no"}, status=code, headers=headers)

    return answer


async def hangs(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def begins_an_error(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(status=500)
    await response.prepare(request)
    await asyncio.Event().wait()
    raise AssertionError


def failure(directory: Path, answer: Answer, *, was_lost: bool = False) -> tuple[ApiError, bool]:
    """What a request fails with, and whether the API server is taken for away then."""

    async def story() -> tuple[ApiError, bool]:
        async with client_of(directory, server.url) as client:
            if was_lost:
                client.contact.failed(client.contact.clock())
            with pytest.raises(ApiError) as caught:
                await client.get("/api/v1/nodes")
            return caught.value, client.contact.is_lost

    with Server(answer) as server:
        return asyncio.run(story())


@pytest.mark.parametrize(
    ("code", "reason", "is_lost"),
    [
        (429, "TooManyRequests", True), (500, "InternalError", True), (503, "ServiceUnavailable", True),
        (502, "", True), (401, "Unauthorized", False), (403, "Forbidden", False), (404, "NotFound", False),
    ],
)  # fmt: skip
def test_what_an_overloaded_or_starting_server_says_does_not_end_an_outage(
    tmp_path: Path, code: int, reason: str, is_lost: bool
) -> None:
    assert failure(tmp_path, status(code, reason), was_lost=True)[1] is is_lost


@pytest.mark.parametrize(("code", "reason"), [(429, "TooManyRequests"), (500, "InternalError")])
def test_what_the_server_itself_refuses_begins_no_outage(tmp_path: Path, code: int, reason: str) -> None:
    assert not failure(tmp_path, status(code, reason))[1]


@pytest.mark.parametrize(
    ("said", "seconds"), [("7", 7.0), ("3600", LONGEST_RETRY_AFTER), ("9" * 400, LONGEST_RETRY_AFTER), ("soon", 0.0)]
)
@pytest.mark.parametrize("code", [429, 503])
def test_nobody_is_made_to_wait_for_longer_than_a_minute(tmp_path: Path, code: int, said: str, seconds: float) -> None:
    assert failure(tmp_path, status(code, **{"Retry-After": said}))[0].retry_after == seconds


@pytest.mark.parametrize("answer", [hangs, begins_an_error], ids=["no headers", "half an error"])
def test_a_watch_that_is_not_answered_is_given_up_long_before_its_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    monkeypatch.setattr(k8s_client, "REQUEST_TIMEOUT", 0.2)

    async def story() -> None:
        async with client_of(tmp_path, server.url) as client, asyncio.timeout(30):
            with pytest.raises(ApiError) as caught:
                async with client.watch("/api/v1/nodes", silence=60):
                    raise AssertionError("it was opened")
            assert caught.value.is_unreachable and client.contact.is_lost

    with Server(answer) as server:
        asyncio.run(story())


def test_a_watch_that_was_answered_may_be_quiet_for_longer(tmp_path: Path) -> None:
    goes = asyncio.Event()

    async def late(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await goes.wait()
        await response.write(b'{"type": "BOOKMARK"}\n')
        return response

    async def story() -> None:
        loop, silence = asyncio.get_running_loop(), 9 * k8s_client.REQUEST_TIMEOUT
        assert isinstance(loop, ForwardLoop)
        async with client_of(tmp_path, server.url) as client, client.watch("/api/v1/nodes", silence=silence) as events:
            loop.ahead += 3 * k8s_client.REQUEST_TIMEOUT
            await turns()
            server.run(goes.set)
            assert [each async for each in events] == [{"type": "BOOKMARK"}]

    with Server(late) as server, asyncio.Runner(loop_factory=ForwardLoop) as runner:
        runner.run(story())


# --- what a client needs beside a server


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "/var/run/token"), ConfigException("Token file is empty.")]
)
def test_a_token_that_cannot_be_read_is_no_outage(tmp_path: Path, error: Exception) -> None:
    async def story() -> None:
        async with client_of(tmp_path, server.url) as client:

            def refresh(configuration: Any) -> None:
                raise error

            client._configuration.refresh_api_key_hook = refresh
            with pytest.raises(ApiError) as caught:
                await client.get("/api/v1/nodes")
            found = caught.value
            assert (found.status, found.reason, found.is_unreachable) == (0, "Credentials", False)
            assert str(error) in found.message
            assert not client.contact.is_lost
            assert not client.requests and not client.responses

    with Server(status(200)) as server:
        asyncio.run(story())


def test_a_ca_file_that_cannot_be_read_is_named_with_the_kubeconfig(tmp_path: Path) -> None:
    absent = tmp_path / "ca.crt"
    path = kubeconfig(tmp_path, "https://127.0.0.1:1", **{"certificate-authority": str(absent)})
    with pytest.raises(EnvironmentFault) as caught:
        asyncio.run(Client(path).open())
    assert str(path) in str(caught.value) and str(absent) in str(caught.value)
