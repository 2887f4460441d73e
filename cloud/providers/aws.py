"""Amazon EC2 by boto3: credentials as its SDK finds them, one try for each call. The only module that imports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cloud.backend import CloudFault, Data, Send, Unanswered
from cloud.calls import Problem
from cloud.providers import ec2

CONNECT_TIMEOUT, READ_TIMEOUT = 5, 20  # seconds
CONNECTIONS = 32  # at once


def connect(region: str, endpoint: str = "") -> Send:
    """A client of boto3. Raises CloudFault, also where boto3 is not installed.

    `total_max_attempts=1`: the SDK would send an AssignPrivateIpAddresses again after a dropped connection.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, NoRegionError
    except ImportError as error:
        raise CloudFault("unreachable", "", "boto3 is not installed: pip install 'routerd[aws]'") from error
    config = Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"total_max_attempts": 1},
        max_pool_connections=CONNECTIONS,
    )
    try:
        client = boto3.session.Session().client(
            "ec2", region_name=region or None, endpoint_url=endpoint or None, config=config
        )
    except NoRegionError as error:
        raise CloudFault("unreachable", "", "no region is known: set cloud.region or AWS_REGION") from error
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
        raise CloudFault("unreachable", "", str(error)) from error
    return Client(client).send


@dataclass(frozen=True, slots=True)
class Client:
    """boto3's client, whose errors become ours."""

    client: Any

    def send(self, action: str, parameters: Data) -> Data:
        from botocore import xform_name
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, SSLError
        from botocore.exceptions import ConnectionError as NotConnected
        from botocore.parsers import ResponseParserError

        try:
            answer: Data = getattr(self.client, xform_name(action))(**parameters)
        except ClientError as error:
            raise _refusal(error.response) from error
        except (HTTPClientError, SSLError, ResponseParserError) as error:  # no answer came in time, or none to be read
            raise Unanswered("other", "", str(error)) from error
        except NotConnected as error:
            raise CloudFault("unreachable", "", str(error)) from error
        except OSError as error:  # a file of credentials
            raise CloudFault("denied", "", str(error)) from error
        except BotoCoreError as error:  # no credentials, or a parameter that is none
            kind: Problem = "denied" if "credential" in str(error).lower() else "other"
            raise CloudFault(kind, type(error).__name__, str(error)) from error
        return answer


def _refusal(response: Data) -> CloudFault:
    """A 5xx that is no throttling may have been done."""
    code, message = response["Error"].get("Code", ""), response["Error"].get("Message", "")
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status >= 500 and ec2.problem(code) != "throttled":
        return Unanswered("other", code, message)
    return ec2.fault(code, message)
