"""The relay as a process, between a scripted ExaBGP (two pipes) and a scripted agent (a unix socket)."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgp import relay
from tests.waiting import PATIENCE

UP = (
    '{ "exabgp": "5.0.0", "type": "state", "neighbor": { "address": { "peer": "10.0.0.2", "local": "10.0.0.1" }, '
    '"state": "up" }}'
)
DOWN = UP.replace('"up"', '"down"')
NEGOTIATED = UP.replace('"state": "up"', '"negotiated": {}').replace('"type": "state"', '"type": "negotiated"')
# Refuses a configuration with "bad" in it, and says the password, as ExaBGP may.
CHECK = "import sys; t = open(sys.argv[-1]).read(); print(t); sys.exit('bad' in t)"


class Wire:
    """Lines over a file descriptor, with bounded waits."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._rest = read, write, b""

    def send(self, line: str) -> None:
        os.write(self._write, line.encode() + b"\n")

    def take(self, timeout: float = PATIENCE) -> str:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            assert left > 0, f"nothing came within {timeout:g} s"
            if select.select([self._read], [], [], left)[0]:
                data = os.read(self._read, 65536)
                assert data, "closed"
                self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode()

    def is_empty(self) -> bool:
        return not self._rest and not select.select([self._read], [], [], 0)[0]


class Agent:
    def __init__(self, accepted: socket.socket) -> None:
        self._socket = accepted
        self.wire = Wire(accepted.fileno(), accepted.fileno())

    def ask(self, **request: Any) -> None:
        self.wire.send(json.dumps(request))

    def take(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.wire.take())
        return answer

    def close(self) -> None:
        self._socket.close()


class Bench:
    """A relay under test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        environment = {
            **os.environ,
            relay.RUN_VARIABLE: str(directory),
            relay.CHECK_VARIABLE: json.dumps([sys.executable, "-c", CHECK]),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", relay.__file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.exabgp = Wire(self.process.stdout.fileno(), self.process.stdin.fileno())
        self._listener: socket.socket | None = None

    def greet(self, peers: dict[str, str] | None = None) -> None:
        """Answers the relay's own first command."""
        nonce = self.exabgp.take().removeprefix("routerd hello ")
        who = {"nonce": nonce, "exabgp": "5.0.15", "pid": 7, "started": 1.5, "peers": peers or {}}
        self.exabgp.send(json.dumps({"routerd": who}))
        self.exabgp.send("done")

    def agent(self) -> Agent:
        if self._listener is None:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(self.directory / relay.SOCKET))
            self._listener.listen()
            self._listener.settimeout(PATIENCE)
        return Agent(self._listener.accept()[0])

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            if self._listener is not None:
                self._listener.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    built = Bench(tmp_path)
    yield built
    built.close()
    assert built.process.returncode == 0  # it ends when ExaBGP does


def test_hello_then_answers_in_order(bench: Bench) -> None:
    bench.greet({"10.0.0.2": "ab"})
    agent = bench.agent()
    assert agent.take() == {
        "hello": {
            "protocol": 2,
            "exabgp": "5.0.15",
            "pid": 7,
            "started": 1.5,
            "peers": {"10.0.0.2": "ab"},
            "events": [],
        }
    }
    agent.ask(id=1, command="neighbor 10.0.0.2 announce …")  # not ASCII: ExaBGP would take it for a broken helper
    assert agent.take()["ok"] is False
    for number in range(2, 5):
        agent.ask(id=number, command=f"one {number}")
    assert [bench.exabgp.take() for _ in range(3)] == ["one 2", "one 3", "one 4"]
    for line in ("done", "a line of the third", "error", "done"):
        bench.exabgp.send(line)
    assert [agent.take() for _ in range(4)] == [
        {"id": 2, "ok": True},
        {"id": 3, "output": "a line of the third"},
        {"id": 3, "ok": False, "error": "ExaBGP refused the command"},
        {"id": 4, "ok": True},
    ]
    agent.close()


def is_silent(bench: Bench, agent: Agent) -> bool:
    """Whether ExaBGP has got nothing by the time that the relay has been round twice: it has read what was asked."""
    for line in (UP, DOWN):
        bench.exabgp.send(line)
        while "event" not in agent.take():
            pass  # an answer that came before
    return bench.exabgp.is_empty()


def test_a_command_that_goes_alone(bench: Bench) -> None:
    bench.greet()
    agent = bench.agent()
    agent.take()
    agent.ask(id=1, command="first")
    agent.ask(id=2, command="alone", alone=True)
    agent.ask(id=3, command="last")
    assert bench.exabgp.take() == "first"
    assert is_silent(bench, agent)
    bench.exabgp.send("done")
    assert bench.exabgp.take() == "alone"
    assert is_silent(bench, agent)
    bench.exabgp.send("done")
    assert bench.exabgp.take() == "last"
    agent.close()


def test_the_window_is_bounded(bench: Bench) -> None:
    bench.greet()
    agent = bench.agent()
    agent.take()
    for number in range(20):
        agent.ask(id=number, command=f"c{number}")
    assert [bench.exabgp.take() for _ in range(relay.WINDOW)] == [f"c{number}" for number in range(relay.WINDOW)]
    assert is_silent(bench, agent)
    bench.exabgp.send("done")
    assert bench.exabgp.take() == f"c{relay.WINDOW}"
    agent.close()


WHO = '"address": { "local": "10.0.0.1", "peer": "10.0.0.2" }, "asn": { "local": 64512, "peer": 65000 }'
UPDATE = """{ "exabgp": "5.0.15", "type": "update", "neighbor": { %s, "router-id": "10.0.0.1", "message": { "update": {
"attribute": { "origin": "igp", "aggregator": "x" }, "announce": { "ipv4 unicast": { "10.0.0.2": [
{ "nlri": "10.244.1.0/24" }, { "nlri": "10.245.1.0/24" } ] } } } } } }""".replace("\n", " ")
SIDE = {"local_as": 64512, "peer_as": 65000, "own_id": "10.0.0.1"}
TOLD = {"attributes": {"origin": "igp"}, "put": {"10.244.1.0/24": "10.0.0.2"}}


def test_what_peers_announce_is_told_and_told_again(bench: Bench) -> None:
    """Of the networks that the configuration names; to an agent that does not read nothing waits."""
    bench.greet()
    first = bench.agent()
    first.take()
    bench.exabgp.send(UPDATE % WHO)
    first.ask(id=1, reload='neighbor 10.0.0.2 {\n    description "import 10.244.0.0/16";\n}\n')
    assert bench.exabgp.take() == "routerd reload"
    bench.exabgp.send("done")
    assert first.take() == {"update": {"whole": True}}, "the one before was of no network"
    assert first.take()["ok"]
    bench.exabgp.send(UPDATE % WHO)
    assert first.take() == {"update": {"session": "10.0.0.2,10.0.0.1", **TOLD, "gone": [], "side": SIDE}}
    first.close()
    second = bench.agent()
    second.take()
    assert second.take() == {"update": {"session": "10.0.0.2,10.0.0.1", "side": SIDE}}
    assert second.take() == {"update": {"session": "10.0.0.2,10.0.0.1", **TOLD, "old": False}}
    assert second.take() == {"update": {"whole": True}}
    bench.exabgp.send(UPDATE % WHO.replace('"asn"', '"as"').replace('"local"', '"here"'))  # not what ExaBGP says
    bench.exabgp.send(UP)
    assert "event" in second.take()
    second.close()


@pytest.mark.parametrize(
    ("refresh", "families", "told_before"),
    [
        ("normal", ["ipv4", "ipv6"], False),
        ("enhanced", ["ipv6"], False),
        ("enhanced", ["ipv4"], True),
        ("absent", ["ipv4", "ipv6"], False),
    ],
)
def test_a_peer_that_told_another_relay_is_asked_again(
    tmp_path: Path, refresh: str, families: list[str], *, told_before: bool
) -> None:
    """One that was ended; ExaBGP says to the next which sessions are up, maybe after an UPDATE of one of them. Who has
    not offered to be asked is not.
    """
    agreed = json.dumps({"refresh": refresh, "families": [f"{family} unicast" for family in families]})
    (tmp_path / relay.CONFIGURATION).write_text('neighbor 10.0.0.2 {\n    description "import 10.244.0.0/16";\n}\n')
    bench = Bench(tmp_path)
    try:
        nonce = bench.exabgp.take().removeprefix("routerd hello ")
        who = {"nonce": nonce, "exabgp": "5.0.15", "pid": 7, "started": 1.5, "peers": {}}
        if told_before:
            bench.exabgp.send(UPDATE % WHO)
        bench.exabgp.send(json.dumps({"routerd": who}))
        bench.exabgp.send(NEGOTIATED.replace("{}", agreed))
        bench.exabgp.send(UP)
        bench.exabgp.send("done")
        for family in families if refresh != "absent" else ():
            assert bench.exabgp.take() == f"neighbor 10.0.0.2 local-ip 10.0.0.1 announce route-refresh {family} unicast"
            bench.exabgp.send("done")
        bench.exabgp.send(UPDATE % WHO)
        agent = bench.agent()
        agent.take()
        told: dict[str, Any] = {}
        while "put" not in told:  # it may come after what the agent is told at first
            told |= agent.take()["update"]
        assert (told["side"], told["put"]) == (SIDE, TOLD["put"])
        agent.ask(id=1, command="what comes next")
        assert bench.exabgp.take() == "what comes next"
        agent.close()
    finally:
        bench.close()


def test_the_next_agent_is_told_the_latest_events(bench: Bench) -> None:
    bench.greet()
    first = bench.agent()
    first.take()
    for line in (UP.replace('"up"', '"connected"'), NEGOTIATED, UP):
        bench.exabgp.send(line)
    assert [first.take()["event"]["type"] for _ in range(3)] == ["state", "negotiated", "state"]
    first.ask(id=1, command="in flight")
    assert bench.exabgp.take() == "in flight"
    first.close()
    second = bench.agent()
    assert second.take()["hello"]["events"] == [json.loads(NEGOTIATED), json.loads(UP)]
    second.ask(id=1, command="of the second")
    bench.exabgp.send("done")  # the first agent's: nobody is told
    assert bench.exabgp.take() == "of the second"
    bench.exabgp.send("error")
    assert second.take() == {"id": 1, "ok": False, "error": "ExaBGP refused the command"}
    bench.exabgp.send(DOWN)
    second.take()
    second.close()
    third = bench.agent()
    assert third.take()["hello"]["events"] == [json.loads(DOWN)]
    third.close()


def test_the_next_agent_is_told_why_a_session_ended_that_retries_in_vain(bench: Bench) -> None:
    bench.greet()
    first = bench.agent()
    first.take()
    refused = DOWN.replace('"down"', '"down", "reason": "notification received (6,2)"')
    for line in (NEGOTIATED, UP, refused, DOWN.replace('"down"', '"down", "reason": "closing connection"'), DOWN):
        bench.exabgp.send(line)
        first.take()
    first.close()
    second = bench.agent()
    assert second.take()["hello"]["events"] == [json.loads(refused), json.loads(DOWN)]
    second.close()


def test_answers_to_an_earlier_relay_are_dropped(bench: Bench) -> None:
    nonce = bench.exabgp.take().removeprefix("routerd hello ")
    for line in ("done", "error", json.dumps({"routerd": {"nonce": "another", "peers": {}}}), "done"):
        bench.exabgp.send(line)
    who = {"nonce": nonce, "exabgp": "5.0.15", "pid": 7, "started": 1.5, "peers": {}}
    for line in (json.dumps({"routerd": who}), NEGOTIATED, UP, "done"):
        bench.exabgp.send(line)
    agent = bench.agent()
    assert "hello" in agent.take()
    agent.ask(id=1, command="mine")
    assert bench.exabgp.take() == "mine"
    bench.exabgp.send("done")
    while "event" in (answer := agent.take()):
        pass
    assert answer == {"id": 1, "ok": True}
    agent.close()


def test_it_keeps_reading_when_the_agent_does_not(bench: Bench) -> None:
    bench.greet()
    agent = bench.agent()
    for _ in range(20000):  # about 2.5 MB, far more than the socket holds
        bench.exabgp.send(UP)
    agent.take()
    assert all(agent.take()["event"]["type"] == "state" for _ in range(20000))
    agent.close()


def test_reload(bench: Bench) -> None:
    bench.greet()
    agent = bench.agent()
    agent.take()
    file = bench.directory / relay.CONFIGURATION

    agent.ask(id=1, reload="# peer 10.0.0.2,10.0.0.1 ab\nneighbor …")
    assert bench.exabgp.take() == "routerd reload"
    assert file.read_text().endswith("# peer 10.0.0.2,10.0.0.1 ab\nneighbor …")
    assert re.match(r'process relay \{\n    run "/\S+" -I -S "/\S+relay.py";', file.read_text())
    assert file.stat().st_mode & 0o777 == 0o600
    bench.exabgp.send(json.dumps({"routerd": {"peers": {"10.0.0.2": "ab"}}}))
    bench.exabgp.send("done")
    assert agent.take() == {"id": 1, "ok": True, "peers": {"10.0.0.2": "ab"}}
    good = file.read_text()

    agent.ask(id=2, reload='bad; md5-password "c2VjcmV0";')
    answer = agent.take()
    assert (answer["id"], answer["ok"]) == (2, False)
    assert "c2VjcmV0" not in answer["error"]
    assert 'md5-password "***"' in answer["error"]

    agent.ask(id=3, reload="fine to the check, not to ExaBGP")
    assert bench.exabgp.take() == "routerd reload"
    bench.exabgp.send("error")
    assert agent.take()["ok"] is False
    assert file.read_text() == good
    assert sorted(path.name for path in bench.directory.iterdir()) == [relay.CONFIGURATION, relay.SOCKET]
    agent.close()


def test_an_agent_that_asked_for_a_reload_and_went(bench: Bench) -> None:
    """What the next one was greeted with is no longer true: it is made to connect again."""
    bench.greet({"10.0.0.2": "ab"})
    first = bench.agent()
    first.take()
    first.ask(id=1, reload="# peer 10.0.0.3,10.0.0.1 cd\n")
    assert bench.exabgp.take() == "routerd reload"
    first.close()
    second = bench.agent()
    assert second.take()["hello"]["peers"] == {"10.0.0.2": "ab"}
    bench.exabgp.send(json.dumps({"routerd": {"peers": {"10.0.0.3": "cd"}}}))
    bench.exabgp.send("done")
    with pytest.raises(AssertionError, match="closed"):
        second.take()
    second.close()
    third = bench.agent()
    assert third.take()["hello"]["peers"] == {"10.0.0.3": "cd"}
    third.close()


def test_what_does_not_speak_the_protocol_is_disconnected(bench: Bench) -> None:
    bench.greet()
    agent = bench.agent()
    agent.take()
    agent.wire.send("GET / HTTP/1.1")
    with pytest.raises(AssertionError, match="closed"):
        agent.take()
    agent.close()
    again = bench.agent()
    assert "hello" in again.take()
    again.ask(id=1, unknown="thing")
    assert again.take() == {"id": 1, "ok": False, "error": "the relay does not know this request"}
    again.close()


def test_a_write_that_is_cut_leaves_the_last_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A speaker may be ended at any moment, and adopts the last configuration at its next start."""
    file = tmp_path / "exabgp.conf"
    relay.write_private(file, "the last")

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "fdopen", cut)
        relay.write_private(file, "the next")
    assert file.read_text() == "the last"
    relay.write_private(file, "the next")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("the next", 0o600)
    assert list(tmp_path.iterdir()) == [file]
