"""Amazon EC2 by boto3: credentials as its SDK finds them, one try for each call. The only module that imports it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from cloud import ec2
from cloud.backend import CloudFault
from cloud.calls import Call, Outcome, Problem, Refused, Unknown
from cloud.demand import Rules
from cloud.model import Inventory, Limits

CONNECT_TIMEOUT, READ_TIMEOUT = 5, 20  # seconds
CONNECTIONS = 32  # at once


class Unanswered(CloudFault):
    """It was sent, and nobody knows what became of it."""


def connect(region: str, endpoint: str = "") -> ec2.Send:
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

    def send(self, action: str, parameters: ec2.Data) -> ec2.Data:
        from botocore import xform_name
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, SSLError
        from botocore.exceptions import ConnectionError as NotConnected
        from botocore.parsers import ResponseParserError

        try:
            answer: ec2.Data = getattr(self.client, xform_name(action))(**parameters)
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


def _refusal(response: ec2.Data) -> CloudFault:
    """A 5xx that is no throttling may have been done."""
    code, message = response["Error"].get("Code", ""), response["Error"].get("Message", "")
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status >= 500 and ec2.problem(code) != "throttled":
        return Unanswered("other", code, message)
    return ec2.fault(code, message)


@dataclass(slots=True)
class Ec2:
    """See `cloud.backend.Backend`. What instance types hold is asked once for each type."""

    call: ec2.Send
    rules: Rules
    _limits: dict[str, Limits] = field(default_factory=dict)

    def describe(self, instances: Collection[str]) -> Inventory:
        try:
            return self._inventory(instances)
        except (LookupError, ValueError, TypeError) as error:
            raise CloudFault("other", "", f"an answer is not understood: {error!r}") from error

    def _inventory(self, instances: Collection[str]) -> Inventory:
        found = ec2.look_at_instances(self.call, instances) if instances else {}
        vpcs = {each.vpc for each in found.values()}
        # Interfaces after instances: one that is attached is then shown with its instance.
        interfaces = ec2.look_at_interfaces(self.call, vpcs, self.rules.cluster)
        if not vpcs:
            return Inventory(interfaces=interfaces)
        subnets = ec2.look_at_subnets(self.call, vpcs)
        groups = ec2.look_at_groups(self.call, vpcs) if self.rules.groups.tags else {}
        return Inventory(found, interfaces, subnets, groups, self._limits_of({each.type for each in found.values()}))

    def _limits_of(self, types: set[str]) -> dict[str, Limits]:
        if new := types - self._limits.keys():
            self._limits |= ec2.look_at_limits(self.call, new)
        return dict(self._limits)

    def action(self, call: Call) -> str:
        return ec2.request(call)[0]

    def send(self, call: Call) -> Outcome:
        action, parameters = ec2.request(call)
        try:
            answer = self.call(action, parameters)
        except Unanswered as error:
            return Unknown(str(error))
        except CloudFault as error:
            return Refused(error.problem, error.code, str(error))
        try:
            return ec2.done(call, answer)
        except (LookupError, ValueError, TypeError) as error:
            return Unknown(f"the answer is not understood: {error!r}")
