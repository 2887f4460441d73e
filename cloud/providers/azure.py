"""Azure over its REST API by aiohttp, with credentials as azure-identity finds them: the only module that imports it.

Calls come from threads, and each has its own event loop and connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from cloud.backend import CloudFault, Data, Send, Unanswered
from cloud.providers import arm

ENDPOINT = "https://management.azure.com"
TIMEOUT = aiohttp.ClientTimeout(total=20, connect=5)  # seconds
PATIENCE = 30.0  # seconds for which a change is waited for; after them the same call, sent again, tells
POLL = 1.0  # seconds between two questions, unless Azure says otherwise


def connect(endpoint: str = "") -> Send:
    """Raises CloudFault where azure-identity is not installed, or its settings name no credential."""
    try:
        from azure.core.exceptions import AzureError, ClientAuthenticationError
        from azure.identity import DefaultAzureCredential
    except ImportError as error:
        raise CloudFault("unreachable", "", "azure-identity is not installed: pip install 'routerd[azure]'") from error
    url = (endpoint or ENDPOINT).rstrip("/")
    try:
        credential = DefaultAzureCredential()
    except ValueError as error:  # AZURE_TOKEN_CREDENTIALS, a tenant, or a proxy of tokens
        raise CloudFault("denied", "", str(error)) from error

    def token() -> str:
        """The credential keeps one as long as it is good. What fails once it has given one it raises as it is."""
        try:
            return str(credential.get_token(f"{url}/.default").token)
        except (ClientAuthenticationError, OSError, ValueError) as error:  # a file of tokens, or an answer
            raise CloudFault("denied", "", str(error)) from error
        except AzureError as error:
            raise CloudFault("unreachable", "", str(error)) from error

    return Client(url, token).send


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: Any  # None = it is no JSON

    @property
    def is_good(self) -> bool:
        return 200 <= self.status < 300

    @property
    def after(self) -> float:
        """Seconds; 0 = it does not say, or a date."""
        text = self.headers.get("Retry-After", "")
        return float(text) if text.isdecimal() else 0.0


@dataclass(frozen=True, slots=True)
class Client:
    endpoint: str
    token: Callable[[], str]

    def send(self, operation: str, parameters: Data) -> Data:
        """See `arm.OPERATIONS`; waits for the end of what takes its time. Raises CloudFault."""
        return asyncio.run(self._send(arm.OPERATIONS[operation], parameters, self.token()))

    async def _send(self, operation: arm.Operation, parameters: Data, token: str) -> Data:
        url = parameters.get("url") or arm.url(self.endpoint, operation, parameters["id"])
        headers = {"Authorization": f"Bearer {token}"}
        match = {"If-Match": parameters["etag"]} if "etag" in parameters else {}
        async with aiohttp.ClientSession(timeout=TIMEOUT, trust_env=True, headers=headers) as session:
            asked = Asked(self.endpoint, session)
            reply = await asked.reply(operation.method, url, match, parameters.get("body"))
            if operation.method == "PUT" and arm.is_under_way(reply.status, reply.body, reply.headers):
                reply = await asked.end(reply, url)
        return understood(reply)


@dataclass(frozen=True, slots=True)
class Asked:
    """Requests of one call."""

    endpoint: str
    session: aiohttp.ClientSession

    async def reply(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, body: Data | None = None
    ) -> Reply:  # fmt: skip
        """Nobody but the endpoint gets the token, whatever an answer says where to go on."""
        if origin(url) != origin(self.endpoint):
            raise Unanswered("other", "", f"{url} is not of {self.endpoint}")
        try:
            async with self.session.request(method, url, headers=headers, json=body, allow_redirects=False) as reply:
                return Reply(reply.status, reply.headers, await _json(reply))
        except aiohttp.ClientConnectorError as error:
            raise CloudFault("unreachable", "", str(error)) from error
        except (aiohttp.ClientError, TimeoutError) as error:  # no answer came in time, or none to be read
            raise Unanswered("other", "", f"{method} {url}: {error!r}") from error

    async def end(self, reply: Reply, url: str) -> Reply:
        """The resource as it is after the change. An operation that we may not read shows in the resource itself."""
        where = reply.headers.get("Azure-AsyncOperation") or url
        loop = asyncio.get_running_loop()
        end, pause = loop.time() + PATIENCE, reply.after or POLL
        while loop.time() + pause < end:
            await asyncio.sleep(pause)
            reply = await self._poll(where)
            pause = reply.after or POLL
            if reply.status == 403:
                where = url
            elif reply.is_good and isinstance(reply.body, Mapping):
                if failure := arm.failure(reply.body):
                    raise failure
                if arm.state_of(reply.body) == "Succeeded":
                    if where == url:
                        return reply
                    where, pause = url, 0.0
        raise Unanswered("other", "", f"{url} is being changed for more than {PATIENCE:.0f} s")

    async def _poll(self, url: str) -> Reply:
        """What comes of it does not say that nothing was changed."""
        try:
            return await self.reply("GET", url)
        except CloudFault as error:
            raise Unanswered("other", error.code, str(error)) from error


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: links of some answers name the port."""
    found = urlsplit(url)
    return found.scheme, found.hostname or "", found.port or {"http": 80, "https": 443}.get(found.scheme, 0)


async def _json(reply: aiohttp.ClientResponse) -> Any:
    try:
        return await reply.json(content_type=None)
    except ValueError:
        return None


def understood(reply: Reply) -> Data:
    """Raises CloudFault."""
    if not reply.is_good:
        raise arm.fault(reply.status, reply.body, reply.after)
    if not isinstance(reply.body, Mapping):
        raise Unanswered("other", "", "the answer cannot be read")
    return reply.body
