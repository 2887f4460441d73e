"""Whoever reaches a daemon's sockets neither ends nor stops it, and learns no secret.

What the servers do with each kind of client is in `tests/unit/serve`; here are agent and operator at work meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from routerd.serve.api import agent_socket
from tests.netns.lab.daemons import Daemon
from tests.netns.lab.hosts import Host
from tests.netns.lab.lab import FW_ADDRESS
from tests.netns.lab.netns import entered
from tests.netns.stories.story import EGRESS_IP, Story, write_manifests

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all")
MANY, ROOM = 200, 100  # clients, and descriptors that a daemon may open beside those that it has
TALK = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
HTTP = (
    b"GET /../../etc/passwd HTTP/1.0\r\n\r\n", b"GET //metrics HTTP/1.0\r\n\r\n", b"POST /metrics HTTP/1.0\r\n\r\n",
    b"GET " + b"/a" * 40000 + b" HTTP/1.0\r\n\r\n", b"\xff\xfe\r\n\r\n", b"GET /metrics HTTP/9.9\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 20000 + b"\r\n", b"TRACE / HTTP/1.0\r\n\r\n", b"\0\r\n\r\n",
)  # fmt: skip
REQUESTS = (
    b"[]\n", b"{}\n", b"null\n", b"[" * 60000 + b"\n", b'{"a":' * 10000 + b"\n", b"\xff\xfe\n", b"\0\n",
    b"x" * 200000 + b"\n", b'{"get":1}\n', b'{"get":["status"]}\n', b'{"get":"show"}\n', b'{"get":NaN}\n',
    b'{"get":"show","kind":{"a":1}}\n', b'{"get":"why","object":"pod/../../etc/passwd"}\n',
    b'{"get":"why","object":5}\n', b'{"get":"why","object":"\\ud800"}\n', b'{"get":' + b"9" * 5000 + b"}\n",
    b'{"do":"release","name":{}}\n',
)  # fmt: skip


@dataclass(frozen=True)
class Server:
    """A daemon with a port for metrics and probes."""

    daemon: Daemon
    host: Host
    port: int

    def answer(self, request: bytes = b"GET /healthz HTTP/1.0\r\n\r\n") -> bytes:
        """The first line of what it says; b"" if it says nothing, or ends the connection before all was sent."""
        with self.client() as client:
            with contextlib.suppress(ConnectionError):
                client.sendall(request)
            with contextlib.suppress(ConnectionError):
                return client.makefile("rb").readline()
        return b""

    def limit(self) -> None:
        pid = self.daemon.process.pid
        limit = len([*Path(f"/proc/{pid}/fd").iterdir()]) + ROOM
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))

    def many(self) -> list[socket.socket]:
        with entered(self.host.name):
            return [socket.create_connection(("127.0.0.1", self.port), timeout=30) for _ in range(MANY)]

    def client(self) -> socket.socket:
        return self.host.connect("127.0.0.1", self.port, timeout=30)


@pytest.fixture
def servers(story: Story) -> tuple[Server, Server]:
    operator = story.daemons.operator
    assert operator is not None
    return (
        Server(story.daemons.agents["worker"], story.lab.node("worker"), 9793),
        Server(operator, operator.host, 9794),
    )


def goes_on(story: Story) -> None:
    """All is up, and none of the daemons has ended."""
    assert story.daemons.dead() == []
    assert set(story.lab.tor.sessions().values()) == {"Established"}
    assert story.lab.pod("snat-pod").ask(FW_ADDRESS).source == EGRESS_IP
    assert story.lab.client.get(story.vip).text


def test_slow_clients_stop_neither_agent_nor_operator(story: Story, servers: tuple[Server, Server]) -> None:
    """More of them than a daemon may have descriptors."""
    with contextlib.ExitStack() as held:
        for server in servers:
            server.limit()
            for client in server.many():
                held.enter_context(client)
                with contextlib.suppress(ConnectionError):
                    client.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        for server in servers:
            assert server.answer() == b"HTTP/1.1 200 OK\r\n"
        late = story.lab.add_pod("late", "worker", {"app": "snat-pod"})
        write_manifests(story)
        story.lab.wait(lambda: late.ask(FW_ADDRESS, timeout=0.3).source == EGRESS_IP, "the agent takes a new pod")
        service = "apiVersion: v1\nkind: Service\nmetadata: {name: fresh, namespace: default}\n"
        service += "spec: {type: LoadBalancer, clusterIP: 10.96.0.99, ports: [{port: 80}], selector: {app: web}}\n"
        story.manifests.put("fresh.yaml", service)
        allocations = story.lab.manifests / "allocations.yaml"
        story.lab.wait(lambda: "default/fresh" in allocations.read_text(), "the operator gives an address")
        assert story.daemons.is_ready("worker")
        goes_on(story)
    (story.lab.manifests / "fresh.yaml").unlink()


def test_what_is_no_request_is_answered_and_leaves_no_trace(story: Story, servers: tuple[Server, Server]) -> None:
    for server in servers:
        for request in HTTP:
            said = server.answer(request)
            assert not said or said.split()[1] in (b"400", b"404", b"405", b"414", b"431", b"501", b"505"), request
        path = str(agent_socket(server.host.directory / "run")).replace("agent.sock", f"{server.daemon.role}.sock")
        for request in REQUESTS:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(30)
                client.connect(path)
                with contextlib.suppress(ConnectionError):
                    client.sendall(request)
                with contextlib.suppress(ConnectionError):
                    answer = client.makefile("rb").readline()
                    assert not answer or "error" in json.loads(answer), request
        assert "Traceback" not in server.daemon.log.read_text()
    goes_on(story)


@pytest.mark.parametrize("name", ["agent.sock", "relay.sock", "exabgp.conf"])
def test_who_is_not_root_reaches_no_socket_and_reads_no_password(story: Story, name: str) -> None:
    node = story.lab.node("worker")
    path = node.directory / "run" / name
    assert path.exists()
    read = ["cat", str(path)] if path.suffix == ".conf" else [sys.executable, "-S", "-E", "-c", TALK, str(path)]
    assert "Permission denied" in node.run([*NOBODY, *read], check=False)
    assert Path("/run").stat().st_mode & 0o001  # it is not the way there that keeps them out
