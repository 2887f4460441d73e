"""The compiled plugin: what it hands on, what it says itself, and input that nobody should have sent."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni import wire
from tests.models.cni_agent import answering

PROGRAM = Path(__file__).parents[3] / "cni" / "routerd-cni"
RESULT = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.5/24"}], "dns": {}}
VARIABLES = {
    "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web",
}  # fmt: skip
COMMANDS = ("ADD", "DEL", "CHECK", "STATUS", "GC")


def run(command: str, stdin: bytes, name: str = wire.CHAINED) -> subprocess.CompletedProcess[bytes]:
    environment = {**VARIABLES, "CNI_COMMAND": command}
    return subprocess.run(
        [f"/opt/cni/bin/{name}"], executable=PROGRAM, input=stdin, env=environment, capture_output=True, timeout=30,
        check=False,
    )  # fmt: skip


def network(path: Path, **more: object) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "pods", "type": "routerd-cni", "socket": str(path), "timeout": 1, **more}


def text(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()


def error_of(done: subprocess.CompletedProcess[bytes]) -> int:
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert {"cniVersion", "code", "msg"} <= found.keys()
    return int(found["code"])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("code", [0, 1])
def test_a_request_is_handed_on_and_its_answer_printed(tmp_path: Path, command: str, code: int) -> None:
    stdin = json.dumps(network(tmp_path / "s", prevResult=RESULT), indent=4).encode()
    with answering(tmp_path / "s", b'%d 7\n{"a":1}' % code) as agent:
        done = run(command, stdin)
    assert (done.returncode, done.stdout, done.stderr) == (code, b'{"a":1}', b"")
    (request,) = agent.requests
    assert request.endswith(b"\0\0" + stdin)
    found = wire.parse(request)
    assert (found.command, found.container, found.interface) == (command, "c1", "eth0")
    assert (found.pod, found.result) == (("default", "web"), RESULT)


def test_version_needs_no_agent_and_no_other_variable(tmp_path: Path) -> None:
    done = run("VERSION", b'{"cniVersion": "0.4.0"}')
    assert json.loads(done.stdout) == {
        "cniVersion": "0.4.0",
        "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


def delegating(path: Path, **more: object) -> bytes:
    """A main plugin's configuration; what it says itself of sockets is not for the plugin that it asks."""
    section = {"type": "routerd-ipam", "socket": str(path), "timeout": 1, **more}
    return text(
        {"cniVersion": "1.0.0", "name": "pods", "type": "ptp", "socket": "/none", "timeout": 0, "ipam": section}
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_by_its_other_name_it_reads_its_own_section(tmp_path: Path, command: str) -> None:
    stdin = delegating(tmp_path / "s")
    with answering(tmp_path / "s", b'0 7\n{"a":1}') as agent:
        done = run(command, stdin, wire.IPAM)
    assert (done.returncode, done.stdout, done.stderr) == (0, b'{"a":1}', b"")
    assert agent.requests[0].endswith(b"\0\0" + stdin)


def test_no_address_is_given_without_an_agent(tmp_path: Path) -> None:
    stdin = delegating(tmp_path / "s", onAgentAbsent="allow")
    assert [error_of(run(command, stdin, wire.IPAM)) for command in ("ADD", "CHECK", "STATUS")] == [11, 11, 50]
    assert [run(command, stdin, wire.IPAM).returncode for command in ("DEL", "GC")] == [0, 0]
    assert json.loads(run("ADD", stdin, wire.IPAM).stdout)["msg"].startswith("routerd-ipam: ")


@pytest.mark.parametrize(
    "section", [None, [], "x", {"socket": "run/ipam.sock"}, {"timeout": 61}, {"socket": ["/" * 20]}]
)
def test_a_section_that_is_wrong_is_refused(section: object) -> None:
    network = {"cniVersion": "1.0.0", "name": "pods", "type": "ptp", "ipam": section}
    assert error_of(run("ADD", text(network), wire.IPAM)) == wire.WRONG_CONFIGURATION


@pytest.mark.parametrize("reply", [None, b"", b"0", b"0 3\n{}", b"0 1\n{}", b"2 2\n{}", b"no", b"0 -1\n"])
def test_an_agent_that_says_nothing_or_half_of_it_has_not_answered(tmp_path: Path, reply: bytes | None) -> None:
    stdin = text(network(tmp_path / "s", prevResult=RESULT))
    with answering(tmp_path / "s", reply):
        assert error_of(run("ADD", stdin)) == wire.TRY_AGAIN


def test_without_an_agent_pods_end_and_none_begins(tmp_path: Path) -> None:
    stdin = text(network(tmp_path / "s", prevResult=RESULT))
    assert [error_of(run(command, stdin)) for command in ("ADD", "CHECK", "STATUS")] == [11, 11, 50]
    for command in ("DEL", "GC"):
        done = run(command, stdin)
        assert (done.returncode, done.stdout) == (0, b"")


def test_without_an_agent_pods_begin_where_the_configuration_says_so(tmp_path: Path) -> None:
    result = b'{ "cniVersion": "1.0.0",\n "ips": [{"address": "10.1.0.5/24"}], "x": [1.50, -0, 1e9, "\\u00e9\\n"] }'
    before = text(network(tmp_path / "s", onAgentAbsent="allow"))[:-1]
    stdin = before + b', "prevResult" : ' + result + b"}"
    done = run("ADD", stdin)
    assert (done.returncode, done.stdout) == (0, result)
    assert [run(command, stdin).returncode for command in COMMANDS] == [0] * 5
    assert error_of(run("ADD", before + b"}")) == wire.WRONG_CONFIGURATION


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"cniVersion": "0.2.0"}, 1),
        ({"cniVersion": "2.0.0"}, 1),
        ({"cniVersion": 1}, 7),
        ({"socket": "run/cni.sock"}, 7),
        ({"socket": "/" + "x" * 200}, 7),
        ({"socket": ""}, 7),
        ({"socket": '/"'}, 7),
        ({"timeout": 0}, 7),
        ({"timeout": 61}, 7),
        ({"timeout": "5"}, 7),
        ({"timeout": {}}, 7),
        ({"onAgentAbsent": "Allow"}, 7),
        ({"onAgentAbsent": True}, 7),
    ],
)
def test_a_configuration_that_is_wrong_is_refused(tmp_path: Path, wrong: Mapping[str, object], code: int) -> None:
    assert error_of(run("ADD", text(network(tmp_path / "s", **wrong)))) == code


def test_a_wrong_environment_is_refused() -> None:
    done = subprocess.run([PROGRAM], input=b"", env={}, capture_output=True, timeout=30, check=False)
    assert error_of(done) == wire.WRONG_ENVIRONMENT


NESTED = 70
MALFORMED = (
    b"", b" ", b"null", b"[]", b'"a"', b"{", b"{}x", b"{}\0", b"{\0}", b'{"a"}', b'{"a":}', b'{"a":1,}', b'{,"a":1}',
    b'{"a":01}', b'{"a":1.}', b'{"a":-}', b'{"a":+1}', b'{"a":1e}', b'{"a":tru}', b'{"a":"\n"}', b'{"a":"\\x"}',
    b'{"a":"\\u00g0"}', b'{"a":"', b'{"a":"\\', b'{"a":"\\u00', b'{"a":[1,]}', b'{"a":[}', b"{'a':1}", b'{"a":1 "b":2}',
    b'{"a":' + b"[" * NESTED + b"]" * NESTED + b"}", b'{"a":' + b"[" * 900_000, b'{"a":' + b'{"a":' * 100_000,
    b" " * ((1 << 20) + 1), b"\xff" * 5000,
)  # fmt: skip


@pytest.mark.parametrize("stdin", MALFORMED, ids=lambda stdin: repr(stdin[:20]))
def test_what_is_no_json_object_is_refused(stdin: bytes) -> None:
    assert error_of(run("ADD", stdin)) == wire.NOT_DECODED


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    result=st.dictionaries(st.text(max_size=5), JSON, max_size=5),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
def test_any_result_is_passed_through_as_it_is(
    tmp_path: Path, result: dict[str, object], indent: int | None, ascii_only: bool
) -> None:
    value = network(tmp_path / "s", onAgentAbsent="allow", prevResult=result, more=result)
    done = run("ADD", json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass"))
    assert done.returncode == 0
    assert json.loads(done.stdout.decode(errors="surrogatepass")) == result


def mutations(stdin: bytes, count: int) -> Iterable[bytes]:
    """Bytes changed, taken out, doubled; the same ones each time."""
    dice = random.Random(1)
    for _ in range(count):
        data = bytearray(stdin)
        for _ in range(dice.randint(1, 4)):
            start = dice.randrange(len(data))
            end = start + dice.choice([0, 1, 1, 20])
            data[start:end] = dice.choice([b"", bytes([dice.randrange(256)]), data[start:end] * 2, b'"', b"{", b"\\"])
        yield bytes(data)


def test_damaged_input_is_refused_or_answered_and_nothing_else(tmp_path: Path) -> None:
    stdin = text(network(tmp_path / "s", prevResult=RESULT, onAgentAbsent="allow"))
    for damaged in mutations(stdin, 300):
        done = run("ADD", damaged)
        assert done.stderr == b""
        json.loads(done.stdout.decode(errors="replace"))  # a result, or an error
        assert done.returncode in (0, 1)


def test_what_python_takes_for_json_the_program_takes_too() -> None:
    """Save NaN and the like, which are none: the agent reads it again, and both must see the same value."""
    for damaged in mutations(b'{"cniVersion": "1.0.0", "a": [1.5, -2e3, "x\\u0041\\n", {"b": null}], "c": true}', 300):
        try:
            is_object = isinstance(json.loads(damaged.decode(), parse_constant=lambda name: 1 / 0), dict)
        except (ValueError, ZeroDivisionError):
            is_object = False
        if damaged.isascii():
            done = run("DEL", damaged)
            is_taken = done.returncode == 0 or json.loads(done.stdout)["code"] != wire.NOT_DECODED
            assert is_taken == is_object, damaged
