"""The double as a server on 127.0.0.1, in a thread of its own, with a kubeconfig for its clients."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import yaml
from aiohttp import web

from .api import Api
from .call import Call, User
from .controllers import Controllers
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
    `bookmarks`: seconds between bookmarks. `watch_list`: whether sendInitialEvents is known.
    """

    def __init__(self, *, port: int = 0, bookmarks: float = 60.0, watch_list: bool = True) -> None:
        self._port, self._bookmarks, self._watch_list = port, bookmarks, watch_list
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="apiserver", daemon=True)
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._directory = tempfile.TemporaryDirectory(prefix="apiserver-")
        self.url = ""
        self.storage = Storage()
        self.catalogue = Catalogue()
        self.api = Api(self.storage, self.catalogue)
        self.watches = Watches(self.storage, watch_list=watch_list)
        self.controllers = Controllers(self.api, self.watches)

    def __enter__(self) -> ApiServer:
        self._thread.start()
        if not self._started.wait(PATIENCE):
            raise TimeoutError("the API server double did not start")
        if self._failure:
            raise self._failure
        self.load({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in _NAMESPACES)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._site.stopping.set)
        self._thread.join(PATIENCE)
        self._directory.cleanup()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except OSError as error:
            self._failure = error
            self._started.set()
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._site = Site(self.api, self.watches, bookmarks=self._bookmarks)
        runner = web.AppRunner(self._site.app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self._port)
        try:
            await site.start()
            host, port = runner.addresses[0][:2]
            self.url = f"http://{host}:{port}"
            self._started.set()
            await self._site.stopping.wait()
        finally:
            for watcher in list(self.watches.open):
                watcher.close()
            await runner.cleanup()

    def run(self, work: Callable[[], T]) -> T:
        """Do `work` in the server's thread and give its result."""

        async def call() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(PATIENCE * 6)

    # --- what tests use beside HTTP

    @property
    def kubeconfig(self) -> str:
        return self.kubeconfig_for(ADMIN_TOKEN)

    def kubeconfig_for(self, token: str) -> str:
        """A kubeconfig file for the bearer of `token`."""
        path = Path(self._directory.name) / f"{abs(hash(token))}.kubeconfig"
        path.write_text(yaml.safe_dump(kubeconfig(self.url, token)))
        return str(path)

    def load(self, objects: Iterable[dict[str, Any]]) -> None:
        """Create objects as an administrator would, without HTTP: for thousands of them."""
        items = list(objects)
        self.run(lambda: [self._create(item) for item in items] and None)

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

    def compact(self) -> int:
        """Forget the history: older watches and continue tokens get 410."""
        return self.run(self.storage.compact)


_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")


def kubeconfig(url: str, token: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "double", "cluster": {"server": url}}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "double", "context": {"cluster": "double", "user": "user"}}],
        "current-context": "double",
    }
