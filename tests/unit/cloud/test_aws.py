"""boto3 itself against the fake EC2, over HTTP: signatures, errors, one try for each call, credentials."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError, SSLError

from cloud.backend import CloudFault
from cloud.calls import Assign, Create, Delete, Done, Refused, Unassign, Unknown
from cloud.demand import Rules
from cloud.need import Watermarks
from cloud.providers import ec2
from cloud.providers.account import Account
from cloud.providers.aws import Client, connect
from tests.models.cloud import ec2_wire
from tests.models.cloud.calls import BY_NAME
from tests.models.cloud.core import Cloud, Fault
from tests.models.cloud.server import ACCESS, SECRET, served
from tests.models.cloud.world import World

REGION = "eu-central-1"
RULES = Rules("test")


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.fixture
def world() -> Iterator[World]:
    world = World.of(marks=Watermarks(pre_allocate=3), prefixes=False, ipv6=True)
    with served(world.cloud) as endpoint:
        world.backend = Account(ec2, connect(REGION, endpoint), world.rules)
        yield world


def creation(cloud: Cloud, token: str = "t") -> Create:
    return Create(token, "subnet-1", ("sg-1",), 2, tags=(("routerd.io/cluster", "test"),))


def test_an_instance_grows_and_shrinks_by_the_real_sdk(world: World) -> None:
    world.want(6)
    world.run(40)
    world.want(0)
    world.run(250, step=25)
    assert world.holdings["i-1"].available() == 3
    assert world.holdings["i-1"].available(6)
    used = {action for action, count in world.cloud.mutations().items() if count}
    assert {"CreateNetworkInterface", "AttachNetworkInterface", "UnassignPrivateIpAddresses"} <= used


def test_a_token_makes_two_creations_one(world: World) -> None:
    first, second = (world.backend.send(creation(world.cloud)) for _ in range(2))
    assert isinstance(first, Done) and first == second
    other = world.backend.send(replace(creation(world.cloud), count=3))
    assert isinstance(other, Refused) and other.code == "IdempotentParameterMismatch"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_broken_connection_is_an_unknown_outcome_and_nothing_is_sent_again(world: World, when: str) -> None:
    done = world.backend.send(creation(world.cloud))
    assert isinstance(done, Done)
    world.cloud.faults = [Fault("AssignPrivateIpAddresses", when)]  # type: ignore[arg-type]
    assert isinstance(world.backend.send(Assign(done.interface, 1)), Unknown)
    sent = [each for each in world.cloud.log if each[1] == "AssignPrivateIpAddresses"]
    assert len(sent) == 1


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("throttled", Refused("throttled", "RequestLimitExceeded", "")), ("internal", Unknown(""))],
)
def test_errors_of_the_server_say_whether_it_may_have_been_done(
    world: World, fault: str, expected: Refused | Unknown
) -> None:  # fmt: skip
    world.cloud.faults = [Fault("CreateNetworkInterface", fault)]  # type: ignore[arg-type]
    found = world.backend.send(creation(world.cloud))
    assert replace(found, message="") == expected
    assert len(world.cloud.log) == 1


def test_a_server_that_is_not_there_was_sent_nothing() -> None:
    with served(Cloud()) as endpoint:
        pass
    found = Account(ec2, connect(REGION, endpoint), RULES).send(Delete("eni-1"))
    assert isinstance(found, Refused) and found.problem == "unreachable"


def test_an_answer_that_cannot_be_read_is_an_unknown_outcome(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a proxy that answers itself."""
    monkeypatch.setattr(ec2_wire, "answer", lambda *_: "<html><p>")
    assert isinstance(world.backend.send(creation(world.cloud)), Unknown)
    with pytest.raises(CloudFault, match="Unable to parse"):
        world.backend.describe(["i-1"])


def test_tls_that_breaks_may_have_broken_after_the_call() -> None:
    class Broken:
        def assign_private_ip_addresses(self, **parameters: object) -> None:
            raise SSLError(endpoint_url="https://ec2", error="bad record")

    assert isinstance(Account(ec2, Client(Broken()).send, RULES).send(Assign("eni-1", 1)), Unknown)


def test_a_token_file_that_is_not_there_is_no_crash(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/routerd")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/nonexistent/token")
    with served(world.cloud) as endpoint, pytest.raises(CloudFault, match="/nonexistent/token") as caught:
        Account(ec2, connect(REGION, endpoint), RULES).describe(["i-1"])
    assert caught.value.problem == "denied"


def test_an_endpoint_that_is_none_is_told() -> None:
    with pytest.raises(CloudFault, match="Invalid endpoint"):
        connect(REGION, "https://")


def test_a_wrong_secret_is_denied(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with served(world.cloud) as endpoint, pytest.raises(CloudFault, match="SignatureDoesNotMatch") as caught:
        Account(ec2, connect(REGION, endpoint), RULES).describe(["i-1"])
    assert caught.value.problem == "denied"


def test_without_credentials_it_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with served(world.cloud) as endpoint, pytest.raises(CloudFault, match="NoCredentials"):
        Account(ec2, connect(REGION, endpoint), RULES).describe(["i-1"])


def test_credentials_come_from_the_metadata_service(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """IMDSv2 alone: the fake answers nothing without a token."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.delenv(name)
    with served(world.cloud) as endpoint:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint)
        inventory = Account(ec2, connect(REGION, endpoint), RULES).describe(["i-1"])
    assert list(inventory.instances) == ["i-1"]


def test_a_region_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    with pytest.raises(CloudFault, match=r"cloud\.region"):
        connect("")


def test_many_interfaces_come_in_pages(world: World) -> None:
    world.cloud.add_subnet("subnet-2", "10.8.0.0/16")
    first = world.cloud.new("subnet-2", (), {}, "")
    copies = (replace(first, id=f"eni-{number}") for number in range(2100))
    world.cloud.enis |= {each.id: each for each in copies}
    world.cloud.advance(1)
    world.cloud.note()
    inventory = world.backend.describe(["i-1"])
    assert len(inventory.interfaces) == 2101
    looks = [given["MaxResults"] for _, action, given, _ in world.cloud.log if action == "DescribeNetworkInterfaces"]
    assert looks == [1000, 1000, 1000]


def test_the_fake_refuses_what_the_service_would(world: World) -> None:
    """What is no parameter of the table, or of the service's model, is an error."""
    with served(world.cloud) as endpoint:
        client = boto3.session.Session().client("ec2", region_name=REGION, endpoint_url=endpoint)
        with pytest.raises(ClientError, match="UnknownParameter"):
            client.describe_subnets(DryRun=True)
        with pytest.raises(ClientError, match="InvalidAction"):
            client.describe_vpcs()


def test_ids_that_are_not_there_are_gone_or_absent(world: World) -> None:
    assert list(world.backend.describe(["i-1", "i-2"]).instances) == ["i-1"]
    found = world.backend.send(Unassign("eni-0", (ip_network("10.0.0.9/32"),)))
    assert isinstance(found, Refused) and found.problem == "gone"


def test_every_call_of_the_table_is_made() -> None:
    """By name, in the sources: a call that nothing makes needs no permission."""
    sources = "".join(path.read_text() for path in sorted(Path(__file__).parents[3].glob("cloud/providers/*.py")))
    assert [name for name in BY_NAME if f'"{name}"' not in sources] == []


def test_boto3_is_imported_only_where_it_is_used() -> None:
    code = "import cloud.providers.aws, cloud.turn, sys; sys.exit('botocore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "answer", [{"Reservations": [{"Instances": [{}]}]}, {"Reservations": 7}, {"Reservations": [{}]}]
)
def test_an_answer_that_is_not_understood_is_no_crash(answer: object) -> None:
    backend = Account(ec2, lambda action, parameters: answer, RULES)  # type: ignore[arg-type, return-value]
    with pytest.raises(CloudFault, match="not understood"):
        backend.describe(["i-1"])
    assert isinstance(backend.send(Create("t", "s", (), 0)), Unknown)
