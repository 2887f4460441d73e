"""How the command line asks a daemon, agent or operator: one line of JSON each way over a unix socket.

    request   {"get": "status"} | {"get": "show", "kind": "paths"} | {"get": "why", "object": "svc/default/web"} | …
    answer    {"ok": true, "result": …} | {"ok": false, "error": "one line", "code": 1}

With "ok" there may be a "note" about the result, one line. It moves answers and makes none: what to answer comes from
the caller. The socket is for the daemon's own user (mode 0600), and for root.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from routerd.errors import EnvironmentFault, RouterdError
from routerd.formats.jsontext import parse_json
from routerd.log import event
from routerd.serve.connections import Connections, Limits, Serve, read_until

LOGGER = logging.getLogger("routerd.api")
MAX_REQUEST = 65536  # bytes
REQUEST_TIMEOUT = 5.0  # seconds, for a client to send its line
WRITE_TIMEOUT = 60.0  # seconds; a change is made or refused in less: a request to the API server ends after 15 s
LIMITS = Limits(64, REQUEST_TIMEOUT + WRITE_TIMEOUT, MAX_REQUEST)
Answer = Callable[[dict[str, Any]], Any]  # may return an awaitable


@dataclass(frozen=True, slots=True)
class Noted:
    """An answer, and what whoever asked should know about it: one line, "" = nothing."""

    result: Any
    note: str = ""


class RequestRefused(RouterdError):
    """The daemon understood the request and says no; `code` is the exit code for the command line."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class DaemonUnreachable(RouterdError):
    """No daemon answers on the socket, or not in time."""


# --- the daemon's side


def agent_socket(run_dir: Path) -> Path:
    """Where the agent answers the command line."""
    return run_dir / "agent.sock"


def operator_socket(run_dir: Path) -> Path:
    """Where the operator answers the command line."""
    return run_dir / "operator.sock"


@asynccontextmanager
async def answering(path: Path, answer: Answer) -> AsyncIterator[None]:
    """Serves `path` until the block ends. Where that cannot be, it is told in the log, and nobody is answered."""
    server = ApiServer(path, answer)
    try:
        await server.start()
    except EnvironmentFault as error:
        event(LOGGER, logging.WARNING, "no-socket", reason=str(error))
    try:
        yield
    finally:
        await server.close()


class UnixServer:
    """Serves one socket until it is closed, each connection by `serve`."""

    def __init__(self, path: Path, serve: Serve, limits: Limits) -> None:
        self._path = path
        self._served_by = serve
        self._limits = limits
        self._connections: Connections | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """EnvironmentFault if another process answers on the socket, or it cannot be made."""
        if await asyncio.to_thread(is_answering, self._path):
            raise EnvironmentFault(f"another process answers on {self._path}: stop it first, or set run-dir")
        try:
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._connections = Connections(_listener(self._path), self._served_by, self._limits)
        except OSError as error:
            raise EnvironmentFault(f"cannot listen on {self._path}: {error.strerror}") from error

    async def close(self) -> None:
        if self._connections is not None:
            await self._connections.close()
            self._path.unlink(missing_ok=True)


class ApiServer(UnixServer):
    """`answer` runs in the loop: what takes time is an awaitable."""

    def __init__(self, path: Path, answer: Answer) -> None:
        super().__init__(path, self._serve, LIMITS)
        self._answer = answer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                line = await read_until(reader, b"\n")
        except TimeoutError:
            return
        if line:
            writer.write(await self._reply(line))

    async def _reply(self, line: bytes) -> bytes:
        try:
            found = self._answer(_request(line))
            found = await found if inspect.isawaitable(found) else found
            noted = found if isinstance(found, Noted) else Noted(found)
            answer: dict[str, Any] = {"ok": True, "result": noted.result}
            answer |= {"note": noted.note} if noted.note else {}
        except RequestRefused as refused:
            answer = {"ok": False, "error": str(refused), "code": refused.code}
        except RouterdError as error:
            answer = {"ok": False, "error": str(error), "code": 1}
        return json.dumps(answer, separators=(",", ":")).encode() + b"\n"


def _listener(path: Path) -> socket.socket:
    """In place of what a dead process left. Raises OSError."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def _request(line: bytes) -> dict[str, Any]:
    """Raises RequestRefused."""
    try:
        request = parse_json(line)
    except ValueError as error:
        raise RequestRefused(f"not JSON: {error}", 2) from error
    if not isinstance(request, dict):
        raise RequestRefused("a request is a JSON object", 2)
    return request


# --- the command line's side


def _connect(path: Path, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def is_answering(path: Path) -> bool:
    """Whether somebody accepts connections on the socket."""
    try:
        _connect(path, 1.0).close()
    except OSError:
        return False
    return True


def ask(
    path: Path,
    request: dict[str, Any],
    timeout: float = 10.0,
    who: str = "agent",
    on_note: Callable[[str], None] = lambda note: None,
) -> Any:
    """The answer of the agent, or of `who` else serves the socket. A note that comes with it goes to `on_note`.

    DaemonUnreachable if there is none within `timeout` seconds, RequestRefused if it is no.
    """
    try:
        with _connect(path, timeout) as connection, connection.makefile("rwb") as stream:
            stream.write(json.dumps(request).encode() + b"\n")
            stream.flush()
            answer = json.loads(stream.readline() or b"null")
    except PermissionError as error:
        raise DaemonUnreachable(f"no permission for {path}: run as the user of `routerd {who}`, or as root") from error
    except TimeoutError as error:
        raise DaemonUnreachable(
            f"the {who} is there but has not answered on {path} for {timeout:g} s: it waits for its store "
            "(the API server), or was stopped: see its log"
        ) from error
    except (OSError, json.JSONDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DaemonUnreachable(
            f"no {who} answers on {path} ({what}): is `routerd {who}` running? (--socket names another socket)"
        ) from error
    if not isinstance(answer, dict):
        raise DaemonUnreachable(f"the {who} closed {path} without an answer: see its log")
    if not answer["ok"]:
        raise RequestRefused(answer["error"], answer.get("code", 1))
    if note := answer.get("note"):
        on_note(note)
    return answer["result"]
