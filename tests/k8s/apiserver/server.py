"""The double as a server on 127.0.0.1, in a thread of its own, with a kubeconfig for its clients."""

from __future__ import annotations

import asyncio
import base64
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import yaml
from aiohttp import web

from .access import Access, Audit
from .api import Api
from .call import Call, User
from .controllers import Controllers
from .faults import Faults
from .resources import Catalogue
from .storage import Storage
from .watching import Watches
from .web import Site

T = TypeVar("T")
ADMIN_TOKEN = "admin"
PATIENCE = 10.0  # seconds for the thread to start, answer and stop


class ApiServer:
    """`with ApiServer() as server:` serves until the block ends.

    `server.url`, `server.kubeconfig` (a file, as the administrator), `server.kubeconfig_for(token)`.
    `bookmarks`: seconds between bookmarks. `watch_list`: whether sendInitialEvents is known. `tls`: https with a
    certificate of its own (needs openssl). `managed_fields`: whether writes are tracked for server-side apply.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        bookmarks: float = 60.0,
        watch_list: bool = True,
        tls: bool = False,
        managed_fields: bool = True,
    ) -> None:
        self._host = host
        self._port, self._bookmarks = port, bookmarks
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="apiserver", daemon=True)
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._directory = tempfile.TemporaryDirectory(prefix="apiserver-")
        self.url = ""
        self.storage = Storage()
        self.catalogue = Catalogue()
        self._tls = certificate(Path(self._directory.name), host) if tls else None
        self.api = Api(self.storage, self.catalogue, managed_fields=managed_fields)
        self.watches = Watches(self.storage, watch_list=watch_list)
        self.access = Access(self.storage, ADMIN_TOKEN)
        self.faults = Faults()
        self.controllers = Controllers(self.api, self.watches)

    def __enter__(self) -> ApiServer:
        self._thread.start()
        started = self._started.wait(PATIENCE)
        if not started or self._failure:
            self._directory.cleanup()
            raise self._failure or TimeoutError("the API server double did not start")
        self.load({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in _NAMESPACES)
        self.compact()  # as the cache of a server that has just started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(PATIENCE)
        self._directory.cleanup()
        if self._thread.is_alive():
            raise TimeoutError("the API server double did not end")

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except OSError as error:
            self._failure = error
            self._started.set()
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        self._site = Site(self.api, self.watches, self.access, self.faults, bookmarks=self._bookmarks)
        self._runner = web.AppRunner(self._site.app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        try:
            await self._listen()
            self._started.set()
            await self._stopping.wait()
        finally:
            self.faults.clear()
            for watcher in list(self.watches.open):
                watcher.close()
            await self._runner.cleanup()

    async def _listen(self) -> None:
        self._listener = web.TCPSite(self._runner, self._host, self._port, ssl_context=_context(self._tls))
        await self._listener.start()
        host, self._port = self._runner.addresses[0][:2]
        self.url = f"http{'s' if self._tls else ''}://{host}:{self._port}"

    def run(self, work: Callable[[], T]) -> T:
        """Do `work` in the server's thread and give its result."""

        async def call() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(PATIENCE * 6)

    # --- what tests use beside HTTP

    @property
    def address(self) -> tuple[str, int]:
        return self._host, self._port

    @property
    def kubeconfig(self) -> str:
        return self.kubeconfig_for(ADMIN_TOKEN)

    def kubeconfig_for(self, token: str) -> str:
        """A kubeconfig file for the bearer of `token`."""
        path = Path(self._directory.name) / f"{abs(hash(token))}.kubeconfig"
        path.write_text(yaml.safe_dump(kubeconfig(self.url, token, self._tls)))
        return str(path)

    def load(self, objects: Iterable[dict[str, Any]]) -> None:
        """Create objects as an administrator would, without HTTP: for thousands of them."""

        def create() -> None:
            for item in objects:
                self._create(item)

        self.run(create)

    def _create(self, item: dict[str, Any]) -> None:
        resource = self.catalogue.of_kind(item["apiVersion"], item["kind"])
        if resource is None:
            raise LookupError(f"no resource of kind {item['kind']} in {item['apiVersion']}")
        namespace = item["metadata"].get("namespace", "default") if resource.namespaced else ""
        status = item.get("status")
        call = Call("create", resource, namespace, body=item, user=User("loader", ("system:masters",)))
        self.api.create(call)
        if status and resource.has_status and resource.plural != "nodes":
            name = item["metadata"]["name"]
            self.api.update(Call("update", resource, namespace, name, "status", body={**item}, user=call.user))

    @property
    def audit(self) -> list[Audit]:
        """Every request to a resource so far."""
        return self.run(lambda: list(self.access.audit))

    def compact(self) -> int:
        """Forget the history: older watches and continue tokens get 410."""
        return self.run(self.storage.compact)

    # --- faults

    def fault(self, **settings: Any) -> None:
        """Set fields of `Faults`: `server.fault(too_many=3, retry_after=2)`."""

        def put() -> None:
            for name, value in settings.items():
                setattr(self.faults, name, value)

        self.run(put)

    def heal(self) -> None:
        """End every fault; muted watches stay muted until they are dropped."""
        self.run(self.faults.clear)

    def drop_watches(self) -> None:
        """Break the connections of all watches, without an end of the stream."""
        self.run(lambda: self._site.cut(item for item in self._site.connections.values() if "watch" in item.query))

    def mute_watches(self) -> None:
        """Open watches stay open and never say anything again."""

        def mute() -> None:
            for watcher in self.watches.open:
                watcher.dead = True
                watcher.lines.clear()
                watcher.ready.set()

        self.run(mute)

    def refuse(self) -> None:
        """Close the port and every connection: connection refused, until `accept`."""

        async def stop() -> None:
            await self._listener.stop()
            self._site.cut(self._site.connections.values())
            server = self._runner.server
            for connection in list(server.connections) if server is not None else ():
                connection.force_close()  # those that wait for the client's next request, too
                if connection.transport is not None:
                    connection.transport.abort()

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(PATIENCE)

    def accept(self) -> None:
        """Listen again on the same port."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(PATIENCE)


_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")


def certificate(directory: Path, host: str = "127.0.0.1") -> Path:
    """A key and a certificate for `host` (an address), signed by itself, in one file."""
    path = directory / "server.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    options = ["-subj", f"/CN={host}", "-addext", f"subjectAltName=IP:{host}", "-keyout", str(path), "-out", "-"]
    done = subprocess.run([*command.split(), *options], capture_output=True, check=True, timeout=30)
    path.write_bytes(path.read_bytes() + done.stdout)
    return path


def _context(pem: Path | None) -> ssl.SSLContext | None:
    if pem is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    return context


def _authority(pem: Path | None) -> dict[str, str]:
    if pem is None:
        return {}
    text = pem.read_text()
    text = text[text.index("-----BEGIN CERTIFICATE") :]
    return {"certificate-authority-data": base64.b64encode(text.encode()).decode()}


def kubeconfig(url: str, token: str, pem: Path | None = None) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "double", "cluster": {"server": url, **_authority(pem)}}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "double", "context": {"cluster": "double", "user": "user"}}],
        "current-context": "double",
    }
