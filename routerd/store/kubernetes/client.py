"""Requests to the API server: configuration, authentication and TLS of `kubernetes.aio`, JSON without its models.

One request, one answer: it retries nothing. It remembers how many requests it made, how they were answered, and whether
the API server can be reached (`contact.py`). The model classes of the package are left out: they cost more memory than
all objects of a large cluster as we keep them.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routerd.errors import EnvironmentFault, StoreError
from routerd.formats.jsontext import parse_json
from routerd.store.kubernetes.contact import Contact, Pace
from routerd.store.kubernetes.resources import MERGE_PATCH

if TYPE_CHECKING:
    from aiohttp import ClientResponse

Json = dict[str, Any]
CONNECT_TIMEOUT = 5.0  # seconds
REQUEST_TIMEOUT = 15.0  # seconds for a whole answer; of a watch, for its headers
LONGEST_RETRY_AFTER = 60.0  # seconds; a server that asks for more is asked again nevertheless
METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"  # of a GET
CONNECTIONS = 64  # one per watch, and those of requests beside them
UNREACHABLE = "Unreachable"  # reasons of an ApiError
CREDENTIALS = "Credentials"


class ApiError(StoreError):
    """The API server said no, or did not answer (`status` 0)."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        self.status = status  # HTTP
        self.reason = reason  # of the Status object: "Conflict", "Expired", "Forbidden"
        self.message = message
        self.retry_after = retry_after  # seconds that the server asks to wait, bounded; 0 = it does not say
        super().__init__(f"API server: {status} {reason}: {message}" if status else f"API server: {message}")

    @property
    def is_unreachable(self) -> bool:
        """There was no answer, or it broke off: refused, reset, timed out; or a proxy says so (RFC 9110, 15.6)."""
        by_proxy = self.status in (502, 503, 504) and not self.reason  # the API server itself gives a reason
        return by_proxy or (self.status == 0 and self.reason == UNREACHABLE)

    @property
    def is_conflict(self) -> bool:
        """Someone else wrote first."""
        return self.status == 409 and self.reason != "AlreadyExists"

    @property
    def is_gone(self) -> bool:
        """The resourceVersion is too old: list again."""
        return self.status == 410 or self.reason in ("Expired", "Gone")


class Client:
    """One connection pool. `open` before use, `close` after it."""

    def __init__(self, kubeconfig: Path | None = None) -> None:
        """`kubeconfig` None = the service account of the pod."""
        self._kubeconfig = kubeconfig
        self._configuration: Any = None
        self._session: Any = None
        self._refresh: asyncio.Task[None] | None = None
        self.contact = Contact()
        self.requests: Counter[str] = Counter()  # by method, for metrics and benchmarks
        self.responses: Counter[tuple[str, int]] = Counter()  # by method and HTTP status, 0 = no answer

    async def open(self) -> None:
        """Errors: `EnvironmentFault` if there is no usable configuration."""
        from aiohttp import ClientError
        from kubernetes.aio import config
        from kubernetes.aio.client import Configuration
        from kubernetes.aio.client.rest import RESTClientObject

        self._unreachable = (ClientError, TimeoutError, OSError)
        self._unreadable = (config.ConfigException, OSError, ValueError)
        configuration = Configuration()
        configuration.retries = False
        configuration.connection_pool_maxsize = CONNECTIONS
        loader = None
        try:
            if self._kubeconfig is None:
                config.load_incluster_config(configuration)
            else:
                file = str(self._kubeconfig)
                loader = await config.load_kube_config(file, client_configuration=configuration, persist_config=False)
            rest = RESTClientObject(configuration)
        except (config.ConfigException, OSError, ValueError, TypeError, AttributeError) as error:
            place = self._kubeconfig or "in-cluster configuration"
            raise EnvironmentFault(f"{place}: {error}: name a kubeconfig (store.kubeconfig) or run in a pod") from error
        self._configuration, self._session = configuration, rest._create_pool_manager()
        if loader is not None:
            refresh = config.refresh_token(loader, configuration)
            self._refresh = asyncio.create_task(refresh, name="kubernetes-token")

    async def close(self) -> None:
        """May be called again."""
        if self._refresh is not None:
            self._refresh.cancel()
            await asyncio.gather(self._refresh, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
        self._session = self._refresh = None

    async def rest(self, error: ApiError, seconds: float, pace: Pace) -> None:
        """Between two attempts: `seconds`; while the API server is away, until it is the caller's turn or is back."""
        if error.is_unreachable and self.contact.is_lost:
            await self.contact.turn(pace, error.retry_after)
        else:
            await asyncio.sleep(seconds)

    # --- requests; all raise ApiError

    async def get(self, path: str, **query: str) -> Json:
        return await self._request("GET", path, query)

    async def get_metadata(self, path: str, **query: str) -> Json:
        """A list whose items bear their metadata alone, if the API server can leave the rest out."""
        return await self._request("GET", path, query, None, METADATA)

    async def create(self, path: str, body: Mapping[str, Any]) -> Json:
        return await self._request("POST", path, {}, body)

    async def replace(self, path: str, body: Mapping[str, Any]) -> Json:
        """`body` bears the resourceVersion that it is based on."""
        return await self._request("PUT", path, {}, body)

    async def patch(self, path: str, body: Mapping[str, Any], media: str = MERGE_PATCH) -> Json:
        """A merge patch, unless `media` says another one; `body` bears the resourceVersion that it is based on."""
        return await self._request("PATCH", path, {}, body, media)

    async def delete(self, path: str, uid: str = "") -> Json:
        """With `uid` that object alone: one that was made anew under its name is a conflict."""
        return await self._request("DELETE", path, {}, {"preconditions": {"uid": uid}} if uid else None)

    @asynccontextmanager
    async def watch(self, path: str, *, silence: float, **query: str) -> AsyncIterator[AsyncIterator[Json]]:
        """The events of a watch. It ends when the server ends it; ApiError after `silence` seconds without a word, and
        after REQUEST_TIMEOUT without an answer at all: the API server sends the headers of a watch at once.
        """
        from aiohttp import ClientTimeout

        limits = ClientTimeout(total=None, connect=CONNECT_TIMEOUT, sock_read=silence)
        async with self._answer("GET", path, {**query, "watch": "true"}, None, "", limits) as response:
            yield _lines(response)

    async def _request(
        self, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None = None, media: str = ""
    ) -> Json:
        from aiohttp import ClientTimeout

        limits = ClientTimeout(total=REQUEST_TIMEOUT, connect=CONNECT_TIMEOUT)
        async with self._answer(method, path, query, body, media, limits) as response:
            return _parsed(await response.read())

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None, media: str, limits: Any
    ) -> AsyncIterator[ClientResponse]:
        """Also what goes wrong while the caller reads is an ApiError."""
        if self._session is None:
            raise ApiError(0, "Closed", "no connection is open")
        configuration, authorization = self._configuration, await self._authorization()
        began, is_answered = self.contact.clock(), False
        accepted = media if media and body is None else "application/json"
        headers = {"Accept": accepted, "User-Agent": "routerd", **authorization}
        headers |= {"Content-Type": media or "application/json"} if body is not None else {}
        try:
            options: dict[str, Any] = {"proxy": configuration.proxy} if configuration.proxy else {}
            if configuration.tls_server_name:
                options["server_hostname"] = configuration.tls_server_name
            self.requests[method] += 1
            async with asyncio.timeout(REQUEST_TIMEOUT):
                response = await self._session.request(
                    method, configuration.host + path, params=query, headers=headers, timeout=limits,
                    data=json.dumps(body, separators=(",", ":")) if body is not None else None, **options,
                )  # fmt: skip
            async with response:
                is_answered = True
                self.responses[method, response.status] += 1
                if response.status < 500 and response.status != 429:
                    self.contact.answered()
                if response.status >= 400:
                    async with asyncio.timeout(REQUEST_TIMEOUT):
                        text = await response.read()
                    error = _error(response.status, text, response.headers.get("Retry-After", ""))
                    if error.is_unreachable:
                        self.contact.failed(began)
                    raise error
                yield response
        except self._unreachable as error:
            self.responses[method, 0] += not is_answered
            self.contact.failed(began)
            raise ApiError(0, UNREACHABLE, f"no answer: {error or type(error).__name__}") from error

    async def _authorization(self) -> dict[str, str]:
        """The header, if there is a token. A token file that cannot be read says nothing about the API server."""
        try:
            token = await self._configuration.get_api_key_with_prefix("BearerToken")
        except self._unreadable as error:
            raise ApiError(0, CREDENTIALS, f"not asked, as the token cannot be read: {error}") from error
        return {"Authorization": token} if token else {}


async def _lines(response: ClientResponse) -> AsyncIterator[Json]:
    """One JSON object per line, of any length; an unfinished last line is dropped."""
    rest = bytearray()
    async for chunk in response.content.iter_any():
        rest += chunk
        if b"\n" not in chunk:
            continue
        *lines, last = bytes(rest).split(b"\n")
        rest = bytearray(last)
        for line in lines:
            if line:
                yield _parsed(line)


def _parsed(text: bytes) -> Json:
    try:
        answer = parse_json(text)
    except ValueError as error:
        raise ApiError(0, "InvalidAnswer", f"not JSON: {text[:60]!r}") from error
    if not isinstance(answer, dict):
        raise ApiError(0, "InvalidAnswer", f"not an object: {text[:60]!r}")
    return answer


def _error(status: int, text: bytes, retry_after: str) -> ApiError:
    """From a Status object, or from whatever a proxy said."""
    try:
        body = _parsed(text)
    except ApiError:
        body = {"reason": "", "message": text[:200].decode("utf-8", "replace").strip()}
    wait = min(float(retry_after), LONGEST_RETRY_AFTER) if retry_after.isascii() and retry_after.isdigit() else 0.0
    return ApiError(status, str(body.get("reason") or ""), str(body.get("message") or ""), wait)
