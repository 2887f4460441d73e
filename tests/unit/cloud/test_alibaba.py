"""The real SDK against the fake ECS and VPC, over HTTP: signatures, errors, one try for each call, credentials."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

import pytest
from alibabacloud_credentials.provider import oidc
from alibabacloud_credentials.utils import auth_util
from alibabacloud_tea_openapi.client import Client as OpenApi
from alibabacloud_tea_openapi.exceptions import ClientException
from alibabacloud_tea_openapi.utils_models import Config, OpenApiRequest, Params
from darabonba.runtime import RuntimeOptions

from cloud.backend import CloudFault, Unanswered
from cloud.calls import Assign, AssignPrefix6, Create, Delete, Done, Refused, Take, Unassign, Unknown
from cloud.demand import Choice, Rules
from cloud.need import Watermarks
from cloud.providers import ecs
from cloud.providers.account import Account
from cloud.providers.alibaba import connect
from tests.models.cloud.alibaba import wire
from tests.models.cloud.alibaba.calls import BY_NAME, ECS
from tests.models.cloud.alibaba.front import ALIBABA_FRONT
from tests.models.cloud.alibaba.server import ACCESS, OIDC_TOKEN, REGION, ROLE_ARN, SECRET, served
from tests.models.cloud.core import Cloud, Fault
from tests.models.cloud.world import World

RULES = Rules("test", api=ecs.API)
NO_KEYS = ("access_key_id", "access_key_secret", "security_token")


def tell(monkeypatch: pytest.MonkeyPatch, **variables: str | None) -> None:
    """Variables of the environment, which the SDK has read at its import."""
    for name, value in variables.items():
        monkeypatch.setattr(auth_util, f"environment_{name}", value)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(
        monkeypatch, access_key_id=ACCESS, access_key_secret=SECRET, security_token=None,
        ecs_metadata_disabled="true", cli_profile_disabled="true", credentials_file="/nonexistent",
    )  # fmt: skip
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALIBABA_CLOUD_REGION_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def world() -> Iterator[World]:
    world = World.of(front=ALIBABA_FRONT, marks=Watermarks(pre_allocate=3), ipv6=True, groups=Choice(tags={"a": "b"}))
    world.cloud.add_group("sg-2", a="b")
    with served(world.cloud) as endpoint:
        world.backend = Account(ecs, connect(REGION, endpoint), world.rules)
        yield world


def creation(token: str = "t") -> Create:
    return Create(token, "subnet-1", ("sg-1",), 2, tags=(("routerd.io/cluster", "test"), ("a", "b c+d*~é")))


def test_an_instance_grows_and_shrinks_by_the_real_sdk(world: World) -> None:
    """Every message is one of Alibaba's own models."""
    world.want(13)
    world.run(60)
    assert len(world.nodes["i-1"].pods) == 13
    world.want(0)
    world.run(250, step=25)
    assert world.holdings["i-1"].available() == 3
    assert [one.blocks[-1].network.prefixlen for one in world.holdings["i-1"].held] == [80, 80]
    world.cloud.terminate("i-1")
    del world.nodes["i-1"]
    world.run(10)
    assert world.cloud.mutations().keys() == {
        "CreateNetworkInterface",
        "AttachNetworkInterface",
        "UnassignPrivateIpAddresses",
    }
    assert {code for _, _, _, code in world.cloud.log} == {""}


@pytest.mark.parametrize("prefixes", [False, True])
def test_each_assignment_by_the_real_sdk(world: World, prefixes: bool) -> None:
    made = world.backend.send(replace(creation(), count=0))
    assert isinstance(made, Done)
    world.cloud.advance(5)
    given = world.backend.send(Assign(made.interface, 2, prefixes, token="x"))
    assert isinstance(given, Done) and {each.prefixlen for each in given.blocks} == {28 if prefixes else 32}
    assert world.backend.send(Assign(made.interface, 2, prefixes, token="x")) == given, "the same token gives no more"
    other = world.backend.send(Assign(made.interface, 1, prefixes, token="x"))
    assert isinstance(other, Refused) and other.code == "IdempotentFailed"
    six = world.backend.send(AssignPrefix6(made.interface, token="y"))
    assert isinstance(six, Done) and [each.prefixlen for each in six.blocks] == [80]
    shown = world.backend.describe(["i-1"]).interfaces[made.interface]
    assert set(shown.blocks) == {*given.blocks, *six.blocks}
    assert shown.tags["a"] == "b c+d*~é"
    assert isinstance(world.backend.send(Unassign(made.interface, given.blocks)), Done)
    assert isinstance(world.backend.send(Delete(made.interface)), Done)
    assert world.backend.describe(["i-1"]).interfaces[made.interface].status == "deleting"
    world.cloud.advance(5)
    assert made.interface not in world.backend.describe(["i-1"]).interfaces


def test_an_address_that_is_named_is_given_by_the_real_sdk_and_taken_from_nobody(world: World) -> None:
    world.cloud.add_instance("i-2", "subnet-1")
    one, two = (world.cloud.of(name)[0].id for name in ("i-1", "i-2"))
    address = IPv4Address("10.0.0.200")
    assert world.backend.send(Take(one, (address,))) == Done()
    assert world.backend.describe(["i-1"]).interfaces[one].blocks == (ip_network("10.0.0.200/32"),)
    refused = world.backend.send(Take(two, (address,)))
    assert isinstance(refused, Refused) and refused.code == "InvalidIPAddress.AlreadyUsed"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_broken_connection_is_an_unknown_outcome_and_nothing_is_sent_again(world: World, when: str) -> None:
    world.cloud.faults = [Fault("CreateNetworkInterface", when)]  # type: ignore[arg-type]
    assert isinstance(world.backend.send(creation()), Unknown)
    assert [action for _, action, _, _ in world.cloud.log] == ["CreateNetworkInterface"]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("throttled", Refused("throttled", "Throttling", "")), ("internal", Unknown(""))],
)
def test_errors_of_the_server_say_whether_it_may_have_been_done(
    world: World, fault: str, expected: Refused | Unknown
) -> None:  # fmt: skip
    world.cloud.faults = [Fault("CreateNetworkInterface", fault)]  # type: ignore[arg-type]
    assert replace(world.backend.send(creation()), message="") == expected
    assert len(world.cloud.log) == 1


def test_a_server_that_is_not_there_is_told() -> None:
    with served(Cloud(ALIBABA_FRONT)) as endpoint:
        pass
    with pytest.raises(Unanswered, match="refused"):
        Account(ecs, connect(REGION, endpoint), RULES).describe(["i-1"])


def test_an_answer_that_cannot_be_read_is_an_unknown_outcome(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a proxy that answers itself."""
    monkeypatch.setattr(wire, "answer", lambda *_: "<html>")
    assert isinstance(world.backend.send(creation()), Unknown)
    with pytest.raises(CloudFault):
        world.backend.describe(["i-1"])


@pytest.mark.parametrize(
    "answer", [{"Instances": {"Instance": [{}]}}, {"Instances": 7}, {"Instances": {"Instance": 7}}]
)
def test_an_answer_that_is_not_understood_is_no_crash(answer: object) -> None:
    backend = Account(ecs, lambda action, parameters: answer, RULES)  # type: ignore[arg-type, return-value]
    with pytest.raises(CloudFault, match="not understood"):
        backend.describe(["i-1"])
    assert isinstance(backend.send(Create("t", "s", (), 0)), Unknown)


# --- credentials


def look(cloud: Cloud) -> list[str]:
    with served(cloud) as endpoint:
        return list(Account(ecs, connect(REGION, endpoint), RULES).describe(["i-1"]).instances)


def test_a_wrong_secret_is_denied(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch, access_key_secret="another")
    with pytest.raises(CloudFault, match="SignatureDoesNotMatch") as caught:
        look(world.cloud)
    assert caught.value.problem == "denied"


def test_without_credentials_it_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch, **dict.fromkeys(NO_KEYS))
    with pytest.raises(CloudFault, match="credentials") as caught:
        look(world.cloud)
    assert caught.value.problem == "denied"


def test_the_role_of_an_instance_and_its_region_come_from_the_metadata_service(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Which answers nothing without a token. The fake is the proxy by which the SDK asks its address."""
    tell(monkeypatch, **dict.fromkeys(NO_KEYS), ecs_metadata_disabled="false")
    with served(world.cloud) as endpoint:
        monkeypatch.setattr("cloud.providers.alibaba.METADATA", f"{endpoint}/latest")
        monkeypatch.setenv("HTTP_PROXY", endpoint)
        monkeypatch.setenv("http_proxy", endpoint)
        backend = Account(ecs, connect("", endpoint), RULES)
        assert list(backend.describe(["i-1"]).instances) == ["i-1"]
    assert not logging.getLogger("apscheduler.executors.default").isEnabledFor(logging.INFO), "a line each minute"
    assert {given.get("RegionId", REGION) for _, _, given, _ in world.cloud.log} == {REGION}


def test_a_token_of_a_service_account_becomes_a_role(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:  # fmt: skip
    """RRSA: what STS is asked goes to the fake, which has no TLS."""
    token = tmp_path / "token"
    token.write_text(OIDC_TOKEN)
    tell(
        monkeypatch, **dict.fromkeys(NO_KEYS), role_arn=ROLE_ARN, oidc_provider_arn="acs:ram::1:oidc-provider/ack",
        oidc_token_file=str(token),
    )  # fmt: skip
    monkeypatch.setattr(auth_util, "enable_oidc_credential", True)
    do_action = oidc.TeaCore.do_action
    with served(world.cloud) as endpoint:

        def redirected(request: Any, options: Any) -> Any:
            request.protocol, request.headers["host"] = "http", endpoint.removeprefix("http://")
            return do_action(request, options)

        monkeypatch.setattr(oidc.TeaCore, "do_action", redirected)
        assert look(world.cloud) == ["i-1"]
        token.unlink()
        with pytest.raises(CloudFault, match=r"No such file.*token") as caught:
            look(world.cloud)
    assert caught.value.problem == "denied"


def test_a_region_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud.providers.alibaba.METADATA", "http://127.0.0.1:1/latest")
    with pytest.raises(CloudFault, match=r"cloud\.region"):
        connect("")


def test_an_endpoint_may_differ_by_product(monkeypatch: pytest.MonkeyPatch) -> None:
    send: Any = connect(REGION, "https://{product}-vpc.cn-hangzhou.aliyuncs.com/").__self__  # type: ignore[attr-defined]
    assert {name: client._endpoint for name, client in send.clients.items()} == {
        "ecs": "ecs-vpc.cn-hangzhou.aliyuncs.com",
        "vpc": "vpc-vpc.cn-hangzhou.aliyuncs.com",
    }


# --- the fake


def asked(endpoint: str, action: str, version: str = "2014-05-26", algorithm: str = "", **query: str) -> Any:
    client = OpenApi(
        Config(
            access_key_id=ACCESS,
            access_key_secret=SECRET,
            endpoint=endpoint.removeprefix("http://"),
            protocol="http",
            signature_algorithm=algorithm or None,
        )
    )
    params = Params(
        action=action, version=version, protocol="HTTP", pathname="/", method="POST", auth_type="AK", style="RPC",
        req_body_type="formData", body_type="json",
    )  # fmt: skip
    return client.call_api(params, OpenApiRequest(query={"RegionId": REGION, **query}), RuntimeOptions())["body"]


@pytest.mark.parametrize("algorithm", ["", "v2"])
def test_the_fake_verifies_both_signatures(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "v2" of the SDK is version 1.0 of the signature."""
    cloud = World.of(front=ALIBABA_FRONT).cloud
    with served(cloud) as endpoint:
        found = asked(endpoint, "DescribeInstances", algorithm=algorithm, InstanceIds='["i-1"]', MaxResults="10")
        assert [each["InstanceId"] for each in found["Instances"]["Instance"]] == ["i-1"]
        monkeypatch.setattr(sys.modules[__name__], "SECRET", "another")
        with pytest.raises(ClientException, match="SignatureDoesNotMatch"):
            asked(endpoint, "DescribeInstances", algorithm=algorithm, InstanceIds='["i-1"]')


@pytest.mark.parametrize("algorithm", ["", "v2"])
def test_the_fake_takes_a_request_once_and_no_old_one(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = World.of(front=ALIBABA_FRONT).cloud
    utils = "alibabacloud_tea_openapi.client.Utils"
    monkeypatch.setattr(f"{utils}.get_nonce", lambda: "always")
    with served(cloud) as endpoint:
        asked(endpoint, "DescribeInstances", algorithm=algorithm, InstanceIds="[]")
        with pytest.raises(ClientException, match="SignatureNonceUsed"):
            asked(endpoint, "DescribeInstances", algorithm=algorithm, InstanceIds="[]")
        monkeypatch.setattr(f"{utils}.get_timestamp", lambda: "2026-01-01T00:00:00Z")
        with pytest.raises(ClientException, match=r"InvalidTimeStamp\.Expired"):
            asked(endpoint, "DescribeInstances", algorithm=algorithm, InstanceIds="[]")


@pytest.mark.parametrize(
    ("action", "version", "query", "code"),
    [
        ("DescribeInstances", "2014-05-26", {"InstanceIds": "[]", "Zone": "a"}, "UnknownParameter"),  # of no model
        ("DescribeInstances", "2014-05-26", {"InstanceIds": "[]", "DryRun": "true"}, "UnknownParameter"),  # of no table
        ("DescribeInstances", "2016-04-28", {"InstanceIds": "[]"}, "InvalidAction.NotFound"),
        ("DescribeVpcs", "2016-04-28", {}, "InvalidAction.NotFound"),
        ("DescribeNetworkInterfaces", "2014-05-26", {"MaxResults": "501"}, "InvalidParameter"),
    ],
)
def test_the_fake_refuses_what_the_service_would(action: str, version: str, query: dict[str, str], code: str) -> None:
    with served(World.of(front=ALIBABA_FRONT).cloud) as endpoint, pytest.raises(ClientException) as caught:
        asked(endpoint, action, version, **query)
    assert caught.value.code == code


def test_many_of_all_come_in_pages(world: World) -> None:
    for number in range(2, 121):
        world.cloud.add_subnet(f"subnet-{number}", f"10.{number}.0.0/24")
        world.cloud.add_group(f"sg-{number + 1}", a="b")
        world.cloud.add_instance(f"i-{number}", "subnet-1")
        world.cloud.types[f"type-{number}"] = world.cloud.types["m5.large"]
    first = world.cloud.new("subnet-2", (), {}, "")
    world.cloud.enis |= {f"eni-{number}": replace(first, id=f"eni-{number}") for number in range(900)}
    world.cloud.note()
    inventory = world.backend.describe([f"i-{number}" for number in range(1, 121)])
    counts = [len(each) for each in (inventory.instances, inventory.interfaces, inventory.subnets, inventory.groups)]
    assert counts == [120, 1020, 120, 121]
    assert isinstance(world.backend, Account)
    assert len(ecs.look_at_limits(world.backend.call, [f"type-{number}" for number in range(2, 40)])) == 38


def test_every_call_of_the_table_is_made() -> None:
    """By name, in the sources: a call that nothing makes needs no permission."""
    sources = "".join(path.read_text() for path in sorted(Path(__file__).parents[3].glob("cloud/providers/*.py")))
    assert [name for name in BY_NAME if f'"{name}"' not in sources] == []


def test_every_refusal_of_the_table_is_understood() -> None:
    """But for what only a mistake of ours would bring."""
    ours = {
        "IdempotentFailed",
        "InvalidParameter",
        "InvalidSecurityGroupId.NotFound",
        "InvalidOperation.AvailabilityZoneMismatch",
    }
    assert {code for each in ECS for code in each.errors} - ecs.PROBLEMS.keys() <= ours


def test_the_sdk_is_imported_only_where_it_is_used() -> None:
    code = "import cloud.providers.alibaba, cloud.turn, sys; sys.exit('alibabacloud_tea_openapi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_blocks_are_what_is_no_primary_address() -> None:
    shown = {
        "NetworkInterfaceId": "eni-1", "VSwitchId": "s", "PrivateIpAddress": "10.0.0.4", "Status": "InUse",
        "Type": "Secondary", "PrivateIpSets": {"PrivateIpSet": [{"PrivateIpAddress": "10.0.0.4", "Primary": True},
                                                                {"PrivateIpAddress": "10.0.0.5", "Primary": False}]},
    }  # fmt: skip
    assert ecs.interface(shown, 1).blocks == (ip_network("10.0.0.5/32"),)
