"""A plain, synchronous client of any Kubernetes API server, for tests: requests, answers, watches; no retries.

Of a kubeconfig it knows bearer tokens (also in a file) and client certificates.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import yaml

Json = dict[str, Any]
TIMEOUT = 30.0  # seconds
MERGE, JSON_PATCH = "application/merge-patch+json", "application/json-patch+json"
STRATEGIC, APPLY = "application/strategic-merge-patch+json", "application/apply-patch+yaml"


@dataclass(frozen=True)
class Answer:
    code: int
    body: Json
    headers: dict[str, str]

    @property
    def reason(self) -> str:
        return str(self.body.get("reason", ""))

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))

    @property
    def version(self) -> str:
        return str(self.body["metadata"]["resourceVersion"])


class Client:
    """`token` replaces the credentials of the kubeconfig."""

    def __init__(self, kubeconfig: Path, token: str | None = None) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        context = _named(config["contexts"], config["current-context"])["context"]
        self.kubeconfig = kubeconfig
        self._cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"] if token is None else {"token": token}
        if unknown := set(user) & {"exec", "auth-provider", "username", "impersonate", "as"}:
            raise ValueError(f"{kubeconfig}: user {context['user']}: {unknown}: expected a token or a certificate")
        self.bearer = str(user.get("token") or self._data(user, "tokenFile").decode().strip())
        certificate, key = self._data(user, "client-certificate"), self._data(user, "client-key")
        self.credentials = (certificate, key) if certificate and key else None
        self.server = str(self._cluster["server"]).rstrip("/")
        self._address = urlsplit(self.server)

    def without_credentials(self) -> Json:
        """A kubeconfig of the same cluster, with everything in it, for a user without a name for anything."""
        authority = base64.b64encode(self._data(self._cluster, "certificate-authority")).decode()
        cluster = {"server": self.server, **({"certificate-authority-data": authority} if authority else {})}
        if self._cluster.get("insecure-skip-tls-verify"):
            cluster["insecure-skip-tls-verify"] = True
        return {
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": cluster}], "users": [{"name": "user", "user": {}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "user"}}],
        }  # fmt: skip

    def as_bearer(self, token: str) -> Client:
        return Client(self.kubeconfig, token)

    def call(self, method: str, path: str, body: Any = None, media: str = "application/json", **query: Any) -> Answer:
        """One request; whatever the server says is an answer."""
        connection = self._connection()
        try:
            response = self._send(connection, method, path, body, media, query)
            text = response.read()
            return Answer(response.status, _parsed(text), dict(response.getheaders()))
        finally:
            connection.close()

    def get(self, path: str, **query: Any) -> Answer:
        return self.call("GET", path, **query)

    def create(self, path: str, body: Json, **query: Any) -> Answer:
        return self.call("POST", path, body, **query)

    def update(self, path: str, body: Json, **query: Any) -> Answer:
        return self.call("PUT", path, body, **query)

    def patch(self, path: str, body: Any, media: str = MERGE, **query: Any) -> Answer:
        return self.call("PATCH", path, body, media, **query)

    def delete(self, path: str, body: Json | None = None, **query: Any) -> Answer:
        return self.call("DELETE", path, body, **query)

    @contextmanager
    def watch(self, path: str, **query: Any) -> Iterator[Iterator[Json]]:
        """The events until the server ends the watch. A refused one is an AssertionError."""
        connection = self._connection()
        query = {"timeoutSeconds": 10, **query, "watch": "true"}
        try:
            response = self._send(connection, "GET", path, None, "", query)
            assert response.status == 200, response.read()
            yield (json.loads(line) for line in response if line.strip())
        finally:
            connection.close()

    def _send(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any, media: str, query: Json
    ) -> http.client.HTTPResponse:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = media
        if self.bearer:
            headers["Authorization"] = f"Bearer {self.bearer}"
        data = json.dumps(body).encode() if body is not None else None
        text = f"{self._address.path}{path}" + (f"?{urlencode(query)}" if query else "")
        connection.request(method, text, data, headers)
        return connection.getresponse()

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._address.hostname or "", self._address.port
        if self._address.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=TIMEOUT)
        tls = self.tls(self.credentials)
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=tls)

    def tls(self, credentials: tuple[bytes, bytes] | None) -> ssl.SSLContext:
        """`credentials`: a certificate and its key, in PEM."""
        context = ssl.create_default_context()
        if authority := self._data(self._cluster, "certificate-authority"):
            context.load_verify_locations(cadata=authority.decode())
        if self._cluster.get("insecure-skip-tls-verify"):
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if credentials:
            with tempfile.NamedTemporaryFile() as file:
                file.write(b"\n".join(credentials))
                file.flush()
                context.load_cert_chain(file.name)
        return context

    def _data(self, section: Json, key: str) -> bytes:
        """In the kubeconfig itself or in a file that it names, relative to it; b"" = not there."""
        if f"{key}-data" in section:
            return base64.b64decode(section[f"{key}-data"])
        return (self.kubeconfig.parent / section[key]).read_bytes() if key in section else b""


def _named(items: list[Json], name: str) -> Json:
    return next(item for item in items if item["name"] == name)


def _parsed(text: bytes) -> Json:
    try:
        found = json.loads(text)
    except ValueError:
        return {"message": text.decode()}
    return found if isinstance(found, dict) else {"message": str(found)}


def is_over(events: Iterator[Json]) -> bool:
    """Whether the connection broke off; a reader of lines may see that as an end."""
    try:
        return next(events, None) is None
    except (http.client.HTTPException, OSError):
        return True


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def good(answer: Answer) -> Answer:
    assert answer.code < 300, answer
    return answer
