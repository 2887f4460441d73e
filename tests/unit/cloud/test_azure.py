"""Our requests and azure-identity against the fake Azure, over HTTP: tokens, ETags, operations, errors, pages."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ServiceRequestError
from azure.identity import ManagedIdentityCredential

from cloud.backend import Backend, CloudFault, Unanswered
from cloud.calls import Assign, AssignPrefix6, Call, Done, Refused, Take, Unassign, Unknown
from cloud.demand import Rules
from cloud.need import Watermarks
from cloud.providers import arm, azure, ec2, ecs, nic_changes, nics
from cloud.providers.account import Account
from tests.models.cloud.azure import looks, names
from tests.models.cloud.azure.calls import ARM, BY_NAME, JOINS
from tests.models.cloud.azure.front import AZURE_FRONT
from tests.models.cloud.azure.server import OPERATIONS, Desk, served
from tests.models.cloud.core import Cloud, Fault
from tests.models.cloud.direct import Named
from tests.models.cloud.world import World

PUT, VM_PUT = "NetworkInterfaces_CreateOrUpdate", "VirtualMachineScaleSetVMs_Update"
IN_SET = names.IN_SET + "1"  # an instance of a scale set
ROOT = Path(__file__).parents[3]


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def world(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Tokens come from the fake's own metadata service."""
    world = World.of(front=AZURE_FRONT, marks=Watermarks(pre_allocate=3), ipv6=True)
    world.cloud.add_instance(IN_SET, "subnet-1")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(azure, "POLL", 0.01)
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
    with served(world.cloud, desk) as endpoint:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", endpoint)
        world.backend = Named(nic_changes.Subscription(azure.connect(endpoint)))
        yield world


def interface(cloud: Cloud, name: str = "i-1") -> str:
    """Its second one, as our records have it."""
    return names.nic(cloud.of(name)[1].id, name).lower()


def nic(cloud: Cloud, name: str = "i-1") -> dict[str, Any]:
    """As Azure has it now, without what it says of the change alone."""
    shown = looks.nic_data(cloud, cloud.of(name)[1])
    settings = {key: value for key, value in shown["properties"].items() if key != "ipConfigurations"}
    configurations = {each["name"]: each["properties"] for each in shown["properties"]["ipConfigurations"]}
    return {"settings": settings, "configurations": configurations}


def test_an_instance_grows_and_shrinks_over_http(world: World, desk: Desk) -> None:
    world.want(6)
    world.run(40)
    assert len(world.nodes["i-1"].pods) == 6
    world.want(0)
    world.run(250, step=25)
    assert world.holdings["i-1"].available() == 3
    assert world.holdings["i-1"].available(6)
    assert {code for _, _, _, code in world.cloud.log} == {""}
    assert len(desk.tokens) == 1, "a token is kept as long as it is good"
    assert {each.removesuffix("/") for each in desk.audiences} == {world.backend.backend.call.__self__.endpoint}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["i-1", IN_SET])
def test_each_change_over_http_leaves_everything_else_as_it_was(world: World, name: str) -> None:
    """The primary configuration with its public address and pool, and whatever somebody else has added."""
    cloud = world.cloud
    (_, eni) = cloud.of(name)
    stranger = {"name": "theirs", "properties": {**looks.first(cloud, eni)["properties"], "primary": False,
                                                 "privateIPAddress": "10.0.0.77"}}  # fmt: skip
    cloud.taken["subnet-1"].add(int(IPv4Address("10.0.0.77")))
    cloud.put(replace(eni, addresses=(IPv4Address("10.0.0.77"),), configurations=(looks.first(cloud, eni), stranger)))
    before, others = nic(cloud, name), cloud.of(name)[0]
    target = interface(cloud, name)
    calls: list[tuple[Call, int]] = [
        (Assign(target, 2, token="x"), 32),
        (Assign(target, 2, prefixes=True, token="y"), 28),
        (AssignPrefix6(target, token="z"), 80),
    ]
    given = []
    for call, length in calls:
        done = world.backend.send(call)
        assert isinstance(done, Done) and {each.prefixlen for each in done.blocks} == {length}
        assert world.backend.send(call) == done, "the same token gives no more"
        given += done.blocks
    if name == "i-1":
        take = Take(target, (IPv4Address("10.0.0.200"),))
        assert [world.backend.send(take) for _ in range(2)] == [Done(), Done()]
        given.append(ip_network("10.0.0.200/32"))
    assert set(world.backend.describe([name]).interfaces[target].blocks) == set(given)
    assert before["configurations"].items() <= nic(cloud, name)["configurations"].items()
    assert {one["applicationSecurityGroups"][0]["id"] for one in nic(cloud, name)["configurations"].values()} == {
        looks.refers("applicationSecurityGroups", "nodes")["id"]
    }
    for block in (*given, ip_network("10.0.0.77/32")):
        assert isinstance(world.backend.send(Unassign(target, (block,))), Done)
    assert nic(cloud, name) == before, "what is not ours is not taken away, whoever asks for it"
    assert cloud.of(name)[0] == others
    assert cloud.mutations() == ({PUT: 10} if name == "i-1" else {VM_PUT: 8})


def test_who_is_too_late_reads_again_and_loses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one writes between the read and the write: both are there afterwards."""
    cloud, target = world.cloud, interface(world.cloud)
    shown, others = looks.interface, iter(range(2))

    def interrupted(cloud: Cloud, seen: Any, given: Any) -> Any:
        answer = shown(cloud, seen, given)
        if (number := next(others, None)) is not None:
            (_, eni) = cloud.of("i-1")
            cloud.put(replace(eni, settings={**looks.SETTINGS, "tag": number}))
        return answer

    monkeypatch.setitem(AZURE_FRONT.looks, "NetworkInterfaces_Get", interrupted)  # type: ignore[arg-type]
    assert isinstance(world.backend.send(Assign(target, 1, token="x")), Done)
    assert [code for _, action, _, code in cloud.log if action == PUT] == ["PreconditionFailed"] * 2 + [""]
    assert nic(cloud)["settings"]["tag"] == 1


def test_whom_others_always_forestall_says_that_he_does_not_know(world: World) -> None:
    world.cloud.lag = lambda: 1000.0  # reads are late for good
    world.cloud.unassign(world.cloud.of("i-1")[1], [])
    world.cloud.advance(1)
    world.cloud.put(world.cloud.of("i-1")[1])
    assert isinstance(world.backend.send(Assign(interface(world.cloud), 1, token="x")), Unknown)
    assert [code for _, action, _, code in world.cloud.log if action == PUT] == [
        "PreconditionFailed"
    ] * nic_changes.TRIES


# --- the end of a change


@pytest.mark.parametrize("name", ["i-1", IN_SET])
@pytest.mark.parametrize("how", ["operation", "resource", "accepted", "not-allowed"])
def test_a_change_is_waited_for(world: World, desk: Desk, how: str, name: str) -> None:
    """By its operation; by the resource where there is none, or none that may be read."""
    desk.without_operations, desk.says_nothing = how in ("resource", "accepted"), how == "accepted"
    if how == "not-allowed":
        world.cloud.permissions = {each.permission for each in ARM} | set(JOINS.values())
        assert OPERATIONS not in world.cloud.permissions
    done = world.backend.send(Assign(interface(world.cloud, name), 2, token="x"))
    assert isinstance(done, Done) and len(done.blocks) == 2
    assert world.cloud.of(name)[1].changing == ""


def test_a_change_that_fails_in_the_end_is_refused(world: World, desk: Desk) -> None:
    desk.failing = "SubnetIsFull"
    refused = world.backend.send(Assign(interface(world.cloud), 2, token="x"))
    assert isinstance(refused, Refused) and (refused.problem, refused.code) == ("no-addresses", "SubnetIsFull")


def test_a_change_without_an_end_is_unknown_and_the_same_call_finds_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    call = Assign(interface(world.cloud), 2, token="x")
    monkeypatch.setattr(azure, "PATIENCE", 0.0)
    assert isinstance(world.backend.send(call), Unknown)
    assert isinstance(world.backend.send(call), Unknown), "it is still on its way"
    world.cloud.advance(5)
    assert isinstance(world.backend.send(call), Done)
    assert world.cloud.mutations() == {PUT: 1}


def test_an_interface_whose_last_change_failed_is_written_again(world: World) -> None:
    call = Assign(interface(world.cloud), 1, token="x")
    world.backend.send(call)
    world.cloud.put(replace(world.cloud.of("i-1")[1], changing="Failed"))
    shown = world.backend.describe(["i-1"]).interfaces[call.interface]
    assert len(shown.blocks) == 1, "its pods have had this address"
    assert isinstance(world.backend.send(call), Done)
    assert (world.cloud.mutations(), world.cloud.of("i-1")[1].changing) == ({PUT: 2}, "")


# --- faults


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_broken_connection_is_an_unknown_outcome(world: World, when: str) -> None:
    """Though aiohttp sends once more what was written: the ETag is another one then, if it was done."""
    call = Assign(interface(world.cloud), 1, token="x")
    world.cloud.faults = [Fault(PUT, when, 2)]  # type: ignore[arg-type]
    assert isinstance(world.backend.send(call), Unknown)
    world.cloud.faults = []
    world.cloud.advance(5)
    assert isinstance(world.backend.send(call), Done)
    assert len(world.cloud.of("i-1")[1].addresses) == 1


def test_what_was_not_even_read_was_not_changed(world: World) -> None:
    world.cloud.faults = [Fault("NetworkInterfaces_Get", "before", 2)]
    refused = world.backend.send(Assign(interface(world.cloud), 1, token="x"))
    assert isinstance(refused, Refused) and refused.problem == "unreachable"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("throttled", Refused("throttled", "TooManyRequests", "", 17.0)), ("internal", Unknown(""))],
)
def test_errors_of_the_server_say_whether_it_may_have_been_done(
    world: World, fault: str, expected: Refused | Unknown
) -> None:  # fmt: skip
    world.cloud.retry_after = 17.0
    world.cloud.faults = [Fault(PUT, fault)]  # type: ignore[arg-type]
    assert replace(world.backend.send(Assign(interface(world.cloud), 1, token="x")), message="") == expected


def test_a_look_that_is_throttled_says_for_how_long(world: World) -> None:
    world.cloud.retry_after = 42.0
    world.cloud.faults = [Fault("NetworkInterfaces_List", "throttled")]
    with pytest.raises(CloudFault, match="TooManyRequests") as caught:
        world.backend.describe(["i-1"])
    assert (caught.value.problem, caught.value.after) == ("throttled", 42.0)


def test_an_address_that_somebody_has_is_not_taken(world: World) -> None:
    refused = world.backend.send(Take(interface(world.cloud), (world.cloud.of("i-1")[0].primary,)))
    assert isinstance(refused, Refused) and refused.code == "PrivateIPAddressInUse"


def test_an_interface_that_is_gone_is_told(world: World) -> None:
    refused = world.backend.send(Assign(names.nic("nic-9").lower(), 1, token="x"))
    assert isinstance(refused, Refused) and refused.problem == "gone"


def test_a_server_that_is_not_there_is_told(world: World) -> None:
    with served(Cloud(AZURE_FRONT)) as endpoint:
        pass
    send = azure.Client(endpoint, lambda: "token").send
    with pytest.raises(CloudFault) as caught:
        nic_changes.Subscription(send).describe([names.vm("i-1").lower()])
    assert caught.value.problem == "unreachable"


def test_an_answer_that_cannot_be_read_is_an_unknown_outcome(world: World, desk: Desk) -> None:
    """As of a proxy that answers itself."""
    world.backend.describe(["i-1"])
    desk.turned = lambda text: "<html>"
    with pytest.raises(CloudFault, match="cannot be read"):
        world.backend.describe(["i-1"])


@pytest.mark.parametrize(
    "answer", [{"value": [{}]}, {"value": 7}, {}, {"value": [{"properties": {"virtualMachine": 7}}]}]
)
def test_an_answer_that_is_not_understood_is_no_crash(answer: object) -> None:
    backend = nic_changes.Subscription(lambda action, parameters: answer)  # type: ignore[arg-type, return-value]
    with pytest.raises(CloudFault, match="not understood"):
        backend.describe([names.vm("i-1").lower()])
    assert isinstance(backend.send(Assign("i", 1, token="t")), Unknown)


def test_the_token_goes_to_the_endpoint_alone(world: World, desk: Desk) -> None:
    """Wherever an answer says that it goes on."""
    with served(Cloud(AZURE_FRONT), other := Desk()) as elsewhere:
        world.backend.describe(["i-1"])
        desk.turned = lambda text: text.replace('{"value": [', f'{{"nextLink": "{elsewhere}/x", "value": [')
        with pytest.raises(Unanswered, match="is not of"):
            world.backend.describe(["i-1"])
        assert other.tokens == set()


@pytest.mark.parametrize(
    ("url", "is_its_own"),
    [
        ("https://management.azure.com:443/subscriptions/s", True),
        ("https://MANAGEMENT.azure.com/subscriptions/s", True),
        ("https://management.azure.com@elsewhere.example/subscriptions/s", False),
        ("https://management.azure.com.elsewhere.example/subscriptions/s", False),
        ("http://management.azure.com/subscriptions/s", False),
    ],
)
def test_what_is_of_the_endpoint(url: str, is_its_own: bool) -> None:
    assert (azure.origin(url) == azure.origin(azure.ENDPOINT)) is is_its_own


def test_without_an_identity_it_is_denied(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(Cloud(AZURE_FRONT)) as endpoint:
        send = azure.Client(endpoint, lambda: "another").send
        with pytest.raises(CloudFault, match="InvalidAuthenticationToken") as caught:
            send("NetworkInterfaces_List", {"id": names.GROUP})
        assert caught.value.problem == "denied"
        monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
        with pytest.raises(CloudFault, match="EnvironmentCredential") as caught:
            azure.connect(endpoint)("NetworkInterfaces_List", {"id": names.GROUP})
        assert caught.value.problem == "denied"


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (ServiceRequestError("no route to login.microsoftonline.com"), "unreachable"),
        (HttpResponseError("502"), "unreachable"),
        (ClientAuthenticationError("AADSTS700024"), "denied"),
        (FileNotFoundError("/var/run/secrets/azure/tokens/azure-identity-token"), "denied"),
        (ValueError("no JSON"), "denied"),
    ],
)
def test_a_credential_that_fails_after_its_first_token_is_told(
    world: World, desk: Desk, monkeypatch: pytest.MonkeyPatch, error: Exception, problem: str
) -> None:  # fmt: skip
    """The chain wraps what fails at first; later it hands on what its credential raises."""
    given: list[Exception | None] = [None, error]

    def get_token(*_: object, **__: object) -> AccessToken:
        if (failure := given.pop(0)) is not None:
            raise failure
        return AccessToken(next(iter(desk.tokens)), 0)

    world.backend.describe(["i-1"])  # the fake has given a token
    endpoint = world.backend.backend.call.__self__.endpoint  # type: ignore[attr-defined]
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
    monkeypatch.setattr(ManagedIdentityCredential, "get_token", get_token)
    send = azure.connect(endpoint)
    assert send(arm.LIST, {"id": names.GROUP})["value"]
    with pytest.raises(CloudFault, match=re.escape(str(error))) as caught:
        send(arm.LIST, {"id": names.GROUP})
    assert caught.value.problem == problem


def test_a_setting_that_names_no_credential_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "bogus")
    with pytest.raises(CloudFault, match="bogus") as caught:
        azure.connect()
    assert caught.value.problem == "denied"


@pytest.mark.parametrize("error", [OSError("a file"), ValueError("no number"), KeyError("NetworkInterfaces")])
def test_what_an_sdk_lets_out_ends_nobody(error: Exception) -> None:
    def send(operation: str, parameters: Any) -> Any:
        raise error

    others = (Account(ec2, send, Rules("test")), Account(ecs, send, Rules("test")))
    backends: tuple[Backend, ...] = (nic_changes.Subscription(send), *others)
    for backend in backends:
        with pytest.raises(CloudFault):
            backend.describe([names.vm("i-1").lower()])
        assert isinstance(backend.send(Assign(names.nic("nic-1", "i-1").lower(), 1, token="x")), Unknown)


def test_many_of_all_come_in_pages(world: World) -> None:
    for number in range(2, 61):
        world.cloud.add_instance(f"i-{number}", "subnet-1")
        world.cloud.add_instance(f"{names.IN_SET}{number}", "subnet-1")
    inventory = world.backend.describe([f"{of}{number}" for of in ("i-", names.IN_SET) for number in range(1, 61)])
    assert (len(inventory.instances), len(inventory.interfaces)) == (120, 240)


def test_instances_that_are_not_there_and_groups_that_are_not_are_no_error(world: World) -> None:
    missing = names.vm("i-9").lower().replace("group-1", "group-2")
    found = nics.describe(world.backend.backend.call, [names.vm("i-1").lower(), missing, "i-0123"])  # type: ignore[attr-defined]
    assert list(found.instances) == [names.vm("i-1").lower()]
    assert nic_changes.Subscription(world.backend.backend.call).describe([]).interfaces == {}  # type: ignore[attr-defined]


# --- the table


def test_every_call_of_the_table_is_made() -> None:
    assert BY_NAME.keys() == arm.OPERATIONS.keys()


def test_every_refusal_of_the_table_is_understood() -> None:
    """But for what only a mistake of ours would bring."""
    ours = {"InvalidRequestFormat", "PrivateIPAddressNotInSubnet"}
    understood = {code for each in ARM for code in each.errors if arm.problem(code, 400) != "other"}
    assert {code for each in ARM for code in each.errors} - understood - ours == {"PreconditionFailed"}


def test_the_sdk_is_imported_only_where_it_is_used() -> None:
    """Nor does the operator of another cloud bring our client of HTTP."""
    code = (
        "import sys, routerd.operator.clouds\n"
        "brought = 'cloud.providers.azure' in sys.modules\n"
        "import cloud.providers.azure\n"
        "sys.exit(brought or 'azure' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
