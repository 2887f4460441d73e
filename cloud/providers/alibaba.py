"""Alibaba Cloud by the generic client of its SDK, which nothing else imports: credentials as that finds them."""

from __future__ import annotations

import logging
import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloud.backend import CloudFault, Data, Send, Unanswered
from cloud.providers import ecs

CONNECT_TIMEOUT, READ_TIMEOUT = 5_000, 20_000  # milliseconds
CONNECTIONS = 32  # at once
METADATA = "http://100.100.100.200/latest"  # of the instance that asks
METADATA_TIMEOUT = 3.0  # seconds


def connect(region: str, endpoint: str = "") -> Send:
    """Raises CloudFault, also where the SDK is not installed. In `endpoint` {product} stands for ecs or vpc."""
    try:
        from alibabacloud_credentials.client import Client as Credentials
        from alibabacloud_tea_openapi.client import Client as OpenApi
        from alibabacloud_tea_openapi.utils_models import Config
    except ImportError as error:
        message = "alibabacloud-tea-openapi is not installed: pip install 'routerd[alibaba]'"
        raise CloudFault("unreachable", "", message) from error
    region = region or os.environ.get("ALIBABA_CLOUD_REGION_ID", "") or _region_here()
    logging.getLogger("apscheduler").setLevel(logging.WARNING)  # renews a role's credentials, and tells it each minute
    credentials, clients = Credentials(), dict[str, Any]()
    for product in ecs.VERSIONS:
        url = (endpoint or f"https://{{product}}.{region}.aliyuncs.com").replace("{product}", product)
        protocol, _, host = url.partition("://")
        clients[product] = OpenApi(
            Config(
                credential=credentials,
                region_id=region,
                protocol=protocol,
                endpoint=host.rstrip("/"),
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=READ_TIMEOUT,
                max_idle_conns=CONNECTIONS,
            )
        )
    return Client(region, clients).send


def _region_here() -> str:
    """As the metadata service tells it, which asks for a token first."""
    try:
        ask = urllib.request.Request(
            f"{METADATA}/api/token", method="PUT", headers={"X-aliyun-ecs-metadata-token-ttl-seconds": "60"}
        )
        token = _text(ask)
        ask = urllib.request.Request(f"{METADATA}/meta-data/region-id", headers={"X-aliyun-ecs-metadata-token": token})
        return _text(ask)
    except OSError as error:
        message = f"no region is known: set cloud.region or ALIBABA_CLOUD_REGION_ID ({error})"
        raise CloudFault("unreachable", "", message) from error


def _text(ask: urllib.request.Request) -> str:
    """The answer of the host's own service, which no proxy reaches."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(ask, timeout=METADATA_TIMEOUT) as answer:
        return str(answer.read().decode())


@dataclass(frozen=True, slots=True)
class Client:
    """The SDK's clients by product. Their errors become ours."""

    region: str
    clients: Mapping[str, Any]

    def send(self, action: str, parameters: Data) -> Data:
        from alibabacloud_credentials.exceptions import CredentialException
        from alibabacloud_tea_openapi.exceptions import AlibabaCloudException
        from alibabacloud_tea_openapi.utils import Utils
        from alibabacloud_tea_openapi.utils_models import OpenApiRequest, Params
        from darabonba.exceptions import UnretryableException
        from darabonba.runtime import RuntimeOptions

        product = ecs.product(action)
        params = Params(
            action=action, version=ecs.VERSIONS[product], protocol="HTTPS", pathname="/", method="POST", auth_type="AK",
            style="RPC", req_body_type="formData", body_type="json",
        )  # fmt: skip
        query = Utils.query(ecs.in_region(action, parameters, self.region))
        try:
            answer = self.clients[product].call_api(params, OpenApiRequest(query=query), RuntimeOptions())
        except AlibabaCloudException as error:
            raise _refusal(error.code or "", error.message or "", error.status_code or 0, parameters) from error
        except UnretryableException as error:
            if isinstance(error.inner_exception, CredentialException):
                raise CloudFault("denied", "", str(error)) from error
            raise Unanswered("other", "", str(error)) from error  # no answer came in time, or none to be read
        body: Data = answer["body"]
        return body


def _refusal(code: str, message: str, status: int, parameters: Data) -> CloudFault:
    """A 5xx that is no throttling may have been done."""
    if status >= 500 and ecs.problem(code, parameters) != "throttled":
        return Unanswered("other", code, message)
    return ecs.fault(code, message, parameters)
