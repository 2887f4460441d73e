"""The double as a server on 127.0.0.1, in a thread of its own, with a kubeconfig for its clients."""

from __future__ import annotations

import base64
import ssl
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from aiohttp import web

from tests.k8s.listener import Listener

from .access import Access, Audit
from .api import Api
from .caching import Caches
from .call import Call, User
from .controllers import Controllers
from .resources import Catalogue
from .storage import Storage
from .watching import Watches
from .web import Site

ADMIN_TOKEN = "admin"


class ApiServer(Listener):
    """`with ApiServer() as server:` serves until the block ends.

    `server.url`, `server.kubeconfig` (a file, as the administrator), `server.kubeconfig_for(token)`.
    `bookmarks`: seconds between bookmarks of a watch. `watch_list`: whether sendInitialEvents is known. `tls`: https
    with a certificate of its own (needs openssl). `managed_fields`: whether writes are tracked for server-side apply.
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
        self._directory = tempfile.TemporaryDirectory(prefix="apiserver-")
        self._certificate = certificate(Path(self._directory.name), host) if tls else None
        super().__init__(name="apiserver", host=host, port=port, tls=_context(self._certificate))
        self.storage = Storage()
        self.catalogue = Catalogue()
        self.api = Api(self.storage, self.catalogue, managed_fields=managed_fields)
        self.watches = Watches(self.storage, watch_list=watch_list)
        self.access = Access(self.storage, ADMIN_TOKEN)
        self.caches = Caches(self.storage)
        self.controllers = Controllers(self.api, self.watches, self.caches)
        self.site = Site(self.api, self.watches, self.access, self.caches, bookmarks=bookmarks)

    def __enter__(self) -> Self:
        try:
            super().__enter__()
        except BaseException:
            self._directory.cleanup()
            raise
        self.load({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in _NAMESPACES)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._directory.cleanup()
        super().__exit__(kind, error, trace)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        return await self.site.answer(request)

    async def closing(self) -> None:
        for watcher in list(self.watches.open):
            watcher.close()

    # --- what tests use beside HTTP

    @property
    def kubeconfig(self) -> str:
        return self.kubeconfig_for(ADMIN_TOKEN)

    def kubeconfig_for(self, token: str) -> str:
        """A kubeconfig file for the bearer of `token`."""
        path = Path(self._directory.name) / f"{abs(hash(token))}.kubeconfig"
        path.write_text(yaml.safe_dump(kubeconfig(self.url, token, self._certificate)))
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
