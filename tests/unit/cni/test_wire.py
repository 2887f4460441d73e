"""What the agent makes of a plugin's request."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.wire import NOT_DECODED, WRONG_CONFIGURATION, WRONG_ENVIRONMENT, Refused, Request, answer, parse, refusal

HEAD = b"CNI_COMMAND=ADD\0CNI_CONTAINERID=c1\0CNI_IFNAME=eth0"


def with_result(**result: object) -> Request:
    return Request("ADD", network={"prevResult": result})


def test_a_request_is_variables_and_a_network() -> None:
    found = parse(HEAD + b'\0CNI_ARGS=K8S_POD_UID=u;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b\0\0{"onAgentAbsent": "allow"}')
    assert (found.command, found.container, found.interface) == ("ADD", "c1", "eth0")
    assert (found.pod, found.uid, found.allows) == (("a", "b"), "u", True)


@pytest.mark.parametrize("arguments", [{}, {"K8S_POD_NAME": "a"}, {"K8S_POD_NAMESPACE": "a"}])
def test_a_container_of_another_runtime_is_no_pod(arguments: Mapping[str, str]) -> None:
    assert Request("ADD", arguments=arguments).pod is None


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", NOT_DECODED),
        (HEAD + b"\0", NOT_DECODED),
        (HEAD + b"\0\0", NOT_DECODED),
        (HEAD + b"\0\0[]", NOT_DECODED),
        (HEAD + b"\0\0" + b"[" * 100_000, NOT_DECODED),
        (HEAD + b"\0\0\xff", NOT_DECODED),
        (b"CNI_COMMAND=DEL\0CNI_IFNAME=eth0\0\0{}", WRONG_ENVIRONMENT),
    ],
)
def test_what_is_no_request_is_refused(data: bytes, code: int) -> None:
    with pytest.raises(Refused) as refused:
        parse(data)
    assert refused.value.code == code


@given(st.binary())
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    for text in (data, HEAD + b"\0\0" + data):
        try:
            assert isinstance(parse(text), Request)
        except Refused:
            continue


def test_the_pods_addresses_are_those_of_interfaces_in_its_namespace() -> None:
    interfaces = [{"name": "cni0"}, {"name": "eth0", "sandbox": "/run/netns/c1"}]
    ips = [
        {"address": "10.1.0.1/24", "interface": 0},
        {"address": "10.1.0.5/24", "interface": 1},
        {"address": "2001:db8::5/64"},
    ]
    found = with_result(interfaces=interfaces, ips=ips).addresses
    assert found == (ip_address("10.1.0.5"), ip_address("2001:db8::5"))
    assert with_result().addresses == ()
    assert with_result(interfaces=interfaces).devices == ("cni0",)


WRONG: tuple[dict[str, Any], ...] = (
    {"ips": [{}]}, {"ips": [{"address": "x"}]}, {"ips": [{"address": "10.1.0.5/24", "interface": 3}]}, {"ips": 3},
    {"ips": ["a"]}, {"ips": [{"address": "10.1.0.5/24", "interface": "0"}], "interfaces": [{}]},
    {"ips": [{"address": "10.1.0.5/24", "interface": 0}], "interfaces": ["eth0"]},
    {"ips": [{"address": []}]}, {"ips": [{"address": {}}]}, {"interfaces": [{}]}, {"interfaces": [1]},
)  # fmt: skip


@pytest.mark.parametrize("result", WRONG)
def test_a_result_that_is_not_as_specified_is_refused(result: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        _ = with_result(**result).addresses, with_result(**result).devices
    assert refused.value.code == WRONG_CONFIGURATION


def test_what_stays_after_a_collection() -> None:
    valid = [{"containerID": "c1", "ifname": "eth0"}]
    assert Request("GC", network={"cni.dev/valid-attachments": valid}).valid == {("c1", "eth0")}
    for wrong in ({}, {"cni.dev/valid-attachments": [1]}, {"cni.dev/valid-attachments": [{"ifname": "a"}]}):
        with pytest.raises(Refused):
            _ = Request("GC", network=wrong).valid


def test_answers_say_how_long_they_are() -> None:
    assert answer({"cniVersion": "1.0.0"}) == b'0 22\n{"cniVersion":"1.0.0"}'
    assert answer(None) == b"0 0\n"
    assert refusal(Refused(11, "no"), "0.4.0") == b'1 56\n{"cniVersion":"0.4.0","code":11,"msg":"routerd-cni: no"}'
