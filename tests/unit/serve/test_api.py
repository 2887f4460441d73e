"""The status socket and the pages for Prometheus, over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from routerd.errors import EnvironmentFault, RouterdError
from routerd.serve import api
from routerd.serve.api import MAX_REQUEST, ApiServer, DaemonUnreachable, Noted, RequestRefused, ask
from routerd.serve.web import HttpServer, pages
from routerd.tell.status import AgentStatus, Rounds
from tests.models.web import get
from tests.waiting import PATIENCE, turns

BIG = ["é" * 1000] * 1000


def answer(request: dict[str, Any]) -> Any:
    match request.get("get"):
        case "big":
            return BIG
        case "later":
            return later()
        case "noted":
            return Noted([1], "may be old")
        case "bad":
            raise RequestRefused("no such thing", 2)
        case "fault":
            raise RouterdError("two\nlines")
    return request


async def later() -> str:
    await turns()
    return "came later"


def with_server(path: Path, test: Callable[[], Any]) -> Any:
    """Runs `test` in a thread, as another process would, while the server serves."""

    async def run() -> Any:
        server = ApiServer(path, answer)
        await server.start()
        try:
            return await asyncio.to_thread(test)
        finally:
            await server.close()

    return asyncio.run(run())


def test_a_question_is_answered(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.sock"
    assert with_server(path, lambda: ask(path, {"get": "x", "n": [1]})) == {"get": "x", "n": [1]}
    assert with_server(path, lambda: ask(path, {"get": "later"})) == "came later"


def test_a_large_answer_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    assert with_server(path, lambda: ask(path, {"get": "big"})) == BIG


def test_a_question_that_never_ends_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with pytest.raises(DaemonUnreachable):
        with_server(path, lambda: ask(path, {"get": "x" * MAX_REQUEST}))


@pytest.mark.parametrize(("get", "code"), [("bad", 2), ("fault", 1)])
def test_a_no_comes_with_its_code(tmp_path: Path, get: str, code: int) -> None:
    path = tmp_path / "agent.sock"
    with pytest.raises(RequestRefused) as refused:
        with_server(path, lambda: ask(path, {"get": get}))
    assert refused.value.code == code


def raw(path: Path, data: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        connection.sendall(data)
        found: dict[str, Any] = json.loads(connection.makefile().readline())
        return found


@pytest.mark.parametrize("line", [b"hello\n", b"[1]\n", b"\xff\n"])
def test_what_is_no_request_is_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "agent.sock"
    assert with_server(path, lambda: raw(path, line))["ok"] is False


def test_the_socket_is_for_its_owner_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    assert with_server(path, lambda: path.stat().st_mode & 0o777) == 0o600
    assert not path.exists()


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match="is `routerd agent` running"):
        ask(tmp_path / "agent.sock", {"get": "status"})


def test_one_that_does_not_answer_in_time_is_not_called_absent(tmp_path: Path) -> None:
    path = tmp_path / "operator.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(DaemonUnreachable, match=r"the operator is there but has not answered .* for 0.05 s"):
            ask(path, {"get": "ledger"}, 0.05, "operator")


def test_whoever_may_not_ask_is_told_who_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path, timeout: float) -> socket.socket:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(api, "_connect", forbidden)
    with pytest.raises(DaemonUnreachable, match="run as the user of `routerd operator`, or as root"):
        ask(tmp_path / "operator.sock", {"get": "ledger"}, who="operator")


def test_a_note_comes_beside_the_answer(tmp_path: Path) -> None:
    path, notes = tmp_path / "agent.sock", list[str]()
    assert with_server(path, lambda: ask(path, {"get": "noted"}, on_note=notes.append)) == [1]
    assert with_server(path, lambda: ask(path, {"get": "later"}, on_note=notes.append)) == "came later"
    assert notes == ["may be old"]


def test_a_socket_that_a_dead_agent_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert with_server(path, lambda: ask(path, {"get": "x"})) == {"get": "x"}


def test_a_second_agent_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    before = threading.active_count()
    with pytest.raises(EnvironmentFault, match="another process answers"):
        with_server(path, lambda: asyncio.run(ApiServer(path, answer).start()))
    assert threading.active_count() == before


# --- HTTP

READY = AgentStatus("a", "0.1.0", rounds=Rounds().after(0.1))


def with_pages(status: AgentStatus, alive: bool, path: str) -> tuple[int, str]:
    server = HttpServer(ip_address("127.0.0.1"), 0, pages(lambda: status, lambda: alive))
    try:
        return get(server.port, path)
    finally:
        server.close()


def test_metrics_are_served() -> None:
    code, text = with_pages(READY, True, "/metrics?x=1")
    assert code == 200 and "routerd_ready 1.0" in text.splitlines()


@pytest.mark.parametrize(
    ("status", "alive", "path", "expected"),
    [
        (READY, True, "/readyz", (200, "ready\n")),
        (replace(READY, missing=("pods",)), True, "/readyz", (503, "not read from the store yet: pods\n")),
        (READY, True, "/healthz", (200, "alive\n")),
        (READY, False, "/healthz", (503, "the agent's loop does not run\n")),
        (READY, True, "/", (404, "not found\n")),
    ],
)
def test_probes(status: AgentStatus, alive: bool, path: str, expected: tuple[int, str]) -> None:
    assert with_pages(status, alive, path) == expected


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(EnvironmentFault, match="change metrics-listen"):
            HttpServer(ip_address("127.0.0.1"), taken.getsockname()[1], {})
