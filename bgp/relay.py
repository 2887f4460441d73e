"""The relay: ExaBGP's helper process, between ExaBGP's pipes and the unix socket that the agent serves.

It keeps reading from ExaBGP whatever the agent does (ExaBGP blocks, and drops its peers, on a helper that does not
read), reconnects to the agent for ever, remembers the last events of each session for the next agent, and changes
ExaBGP's configuration safely. It decides nothing. Standard library only, run by path with `python -I -S`, so that it
starts at once and stays small; it must not import the rest of routerd.

The protocol, version 2: one JSON object per line, both ways. Unknown keys are ignored; an unknown request is refused.

    relay -> agent
      {"hello": {"protocol": 2, "exabgp": "5.0.15", "pid": 7, "started": T, "peers": {SESSION: DIGEST}, "events": [E],
                 "bulk": 1}}
                           first line of a connection; `peers` is the configuration that ExaBGP has loaded, by session,
                           "PEER,LOCAL" (`bgp.conf`), `bulk` whether ExaBGP has the bulk commands of
                           `bgp.inside.commands`
      {"event": E}         an ExaBGP JSON event, as it came
      {"update": U}        what peers announce of the networks that the configuration names (`Received`); after the
                           hello, and after a reload, all that there is of it, then {"update": {"whole": true}};
                           nothing where there are no such networks
      {"id": N, "output": TEXT}   a line that command N printed
      {"id": N, "ok": BOOL, "error": TEXT, "peers": {...}}   command N is done; in the order of the commands
    agent -> relay
      {"id": N, "command": TEXT, "alone": BOOL}   an API command. `alone`: nothing else is in flight meanwhile, for
                           commands that ExaBGP may answer out of turn
      {"id": N, "reload": TEXT}   the configuration of all peers; tried by another ExaBGP process first. On failure the
                           old one stays, on disk and in ExaBGP
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

PROTOCOL = 2
CONFIGURATION = "exabgp.conf"
SOCKET = "relay.sock"
RUN_VARIABLE = "ROUTERD_SPEAKER_RUN"  # directory of both
CHECK_VARIABLE = "ROUTERD_SPEAKER_CHECK"  # JSON list: the command that checks the configuration file named last

WINDOW = 8  # commands that ExaBGP has and has not answered
BACKLOG = 64  # requests taken from the agent and not yet answered; then its socket is not read
OUTPUT_LIMIT = 64 << 20  # bytes kept for an agent that does not read; then it is disconnected
RETRY = 0.1  # seconds between attempts to reach the agent
CHECK_TIMEOUT = 20.0  # seconds
MOST_PATHS = 100_000  # that are kept of one session
NOTIFICATION = "notification "  # so begins the reason of a session that ended by one, of either side
VERSIONS = {"ipv4/unicast": 4, "ipv6/unicast": 6}
ATTRIBUTES = frozenset({"origin", "as-path", "local-preference", "med", "originator-id", "cluster-list"})

_PASSWORD = re.compile(r"(md5-password\W+)[^\s;'\"]+")
_IMPORT = re.compile(r'^    description "import (\S+?)[" ]', re.MULTILINE)  # as `bgp.conf` writes it
_PEER = re.compile(r"^# peer (\S+) ", re.MULTILINE)  # likewise
_EVENT = '{ "exabgp"'
_REPLY = '{"routerd"'


def configuration_text(python: str, relay: str, peers: str) -> str:
    """The whole exabgp.conf: this relay as ExaBGP's process, then the text of the peers.

    Raises ValueError if a path has a character that ExaBGP's configuration cannot carry (quotes and backslashes).
    """
    for path in (python, relay):
        if re.search(r"[\"'\\\x00-\x1f]", path):
            raise ValueError(f"ExaBGP cannot run a program whose path has quotes or backslashes: {path}")
    return f'process relay {{\n    run "{python}" -I -S "{relay}";\n    encoder json;\n    respawn true;\n}}\n{peers}'


def without_passwords(text: str) -> str:
    """`text` with what follows each `md5-password` removed."""
    return _PASSWORD.sub(r"\1***", text)


def write_private(path: Path, text: str) -> None:
    """Writes a file that only the owner reads, in place of what is there: the old text or the new one, never half."""
    beside = path.with_name(f"{path.name}~")
    beside.unlink(missing_ok=True)
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
    beside.replace(path)


class Lines:
    """Bytes in, whole lines out."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> list[str]:
        if b"\n" not in data:
            self._parts.append(data)
            return []
        *whole, rest = (b"".join(self._parts) + data).split(b"\n")
        self._parts = [rest] if rest else []
        return [line.decode("utf-8", "replace").rstrip() for line in whole]


class Received:
    """What peers announce of the networks that the configuration names, for the next agent: by session "PEER,LOCAL".

    An update is {"session": S, "side": {...}}, what the OPENs said, or of a session that was up before what its UPDATEs
    say, {"session": S, "down": T}, since when it is, or {"session": S, "attributes": A, "put": {PREFIX: NEXT HOP},
    "old": BOOL, "gone": [PREFIX], "end": VERSION}. "old": from before the session came up; "end": the version of an
    End-of-RIB. When a session ends, what its peer asked to be kept stays (RFC 4724, section 4.2); for how long, the
    agent knows.
    """

    def __init__(self) -> None:
        self.networks: list[Any] = []
        self._sides: dict[str, dict[str, object]] = {}
        self._paths: dict[str, dict[str, list[Any]]] = {}  # session -> prefix -> next hop, attributes, old
        self._ends: dict[str, set[int]] = {}
        self._down: dict[str, float] = {}  # since when, of the monotonic clock
        self._listed: dict[str, dict[int, bool]] = {}  # versions that the OPEN's restart is of: whether they were kept
        self._up: set[str] = set()

    def configure(self, text: str) -> None:
        """Of this configuration: sessions that it does not name are over."""
        self.networks = [_network(each) for found in _IMPORT.findall(text) for each in found.split(",")]
        named = {*_PEER.findall(text)} if self.networks else set()
        for kept in (self._sides, self._paths, self._ends, self._down, self._listed):
            for session in kept.keys() - named:
                del kept[session]
        self._up &= named

    def knows(self, session: str) -> bool:
        """Whether it has heard how the session began, and so all that its peer told."""
        return session in self._listed

    def goes_up(self, session: str) -> dict[str, object] | None:
        """What its peer has not kept while it was away is gone. None also for one that is up: ExaBGP says so again to a
        relay that greets it, and the peer may have told something before that.
        """
        if session in self._up:
            return None
        self._up.add(session)
        self._down.pop(session, None)
        self._ends[session] = set()
        for path in self._paths.get(session, {}).values():
            path[2] = True
        return self._without(session, {version for version, kept in self._asked(session).items() if kept})

    def goes_down(self, session: str, reason: str, when: float) -> dict[str, object] | None:
        """None = nothing is gone, as of a session that was not up. After a NOTIFICATION, either's, nothing is kept."""
        self._up.discard(session)
        if session in self._down or session not in self._ends:
            return None
        self._down[session] = when
        return self._without(session, {} if reason.startswith(NOTIFICATION) else self._asked(session))

    def _asked(self, session: str) -> dict[int, bool]:
        """Of a session that was up before this relay was there, whatever its peer asked for."""
        return self._listed.get(session, dict.fromkeys(VERSIONS.values(), True))

    def _without(self, session: str, versions: Collection[int]) -> dict[str, object] | None:
        paths = self._paths.get(session, {})
        gone = [prefix for prefix in paths if (6 if ":" in prefix else 4) not in versions]
        for prefix in gone:
            del paths[prefix]
        return {"session": session, "gone": gone} if gone else None

    def take(self, event: dict[str, Any]) -> dict[str, object] | None:
        """An event of ExaBGP as an update; None = it has nothing of the networks. KeyError and others: it is none."""
        neighbor = event["neighbor"]
        session = f"{neighbor['address']['peer']},{neighbor['address']['local']}"
        if event["type"] == "open":
            self._up.discard(session)
            offered = [each for each in neighbor["open"]["capabilities"].values() if isinstance(each, dict)]
            restart = next((each for each in offered if each.get("name") == "graceful restart"), {})
            flags = restart.get("address-family-flags", {})
            self._listed[session] = {
                version: "restart" in flags[family] for family, version in VERSIONS.items() if family in flags
            }
            self._sides[session] = {
                "local_as": neighbor["asn"]["local"], "peer_as": neighbor["asn"]["peer"],
                "own_id": neighbor["router-id"], "peer_id": neighbor["open"]["router_id"],
                "restart": restart.get("time", 0),
            }  # fmt: skip
            return {"session": session, "side": self._sides[session]}
        message = neighbor["message"]
        self._up.add(session)
        if "eor" in message:
            return self._end(session, 6 if message["eor"]["afi"] == "ipv6" else 4)
        update = self._update(session, message["update"])
        if update is not None and session not in self._sides:  # its OPEN came before this relay was there
            self._sides[session] = {
                "local_as": neighbor["asn"]["local"], "peer_as": neighbor["asn"]["peer"],
                "own_id": neighbor["router-id"],
            }  # fmt: skip
            update["side"] = self._sides[session]
        return update

    def _end(self, session: str, version: int) -> dict[str, object]:
        self._ends.setdefault(session, set()).add(version)
        paths = self._paths.get(session, {})
        for prefix in [prefix for prefix, path in paths.items() if path[2] and (":" in prefix) == (version == 6)]:
            del paths[prefix]
        return {"session": session, "end": version}

    def _update(self, session: str, update: dict[str, Any]) -> dict[str, object] | None:
        paths, put = self._paths.setdefault(session, {}), self._put(update.get("announce", {}))
        attributes = {key: each for key, each in update.get("attribute", {}).items() if key in ATTRIBUTES}
        withdrawn = [str(_network(each["nlri"])) for found in update.get("withdraw", {}).values() for each in found]
        gone = [prefix for prefix in withdrawn if prefix in paths and prefix not in put]
        for prefix in gone:
            del paths[prefix]
        for prefix in [prefix for prefix in put if prefix not in paths][max(MOST_PATHS - len(paths), 0) :]:
            del put[prefix]
        paths.update((prefix, [next_hop, attributes, False]) for prefix, next_hop in put.items())
        return {"session": session, "attributes": attributes, "put": put, "gone": gone} if put or gone else None

    def _put(self, announced: dict[str, Any]) -> dict[str, str]:
        """Next hops by prefix. Of a global and a link-local one (RFC 2545, section 3), which come as two, the first."""
        pairs = [
            (str(_network(each["nlri"])), hop)
            for found in announced.values()
            for hop, nlri in found.items()
            for each in nlri
        ]
        wanted = {prefix for prefix in {prefix for prefix, _ in pairs} if self._is_wanted(prefix)}
        ordered = sorted(pairs, key=lambda pair: pair[1].startswith("fe80:"), reverse=True)
        return {prefix: hop for prefix, hop in ordered if prefix in wanted}

    def _is_wanted(self, prefix: str) -> bool:
        network = _network(prefix)
        return any(each.version == network.version and network.subnet_of(each) for each in self.networks)

    def replay(self) -> Iterator[dict[str, object]]:
        """Everything, a thousand paths in one update at most."""
        for session, side in self._sides.items():
            yield {"session": session, "side": side}
        for session, when in self._down.items():
            yield {"session": session, "down": when}
        for session, paths in self._paths.items():
            groups: dict[tuple[int, bool], list[str]] = {}
            for prefix, (_, attributes, old) in paths.items():
                groups.setdefault((id(attributes), bool(old)), []).append(prefix)
            for (_, old), prefixes in groups.items():
                for some in (prefixes[start : start + 1000] for start in range(0, len(prefixes), 1000)):
                    put = {prefix: paths[prefix][0] for prefix in some}
                    yield {"session": session, "attributes": paths[some[0]][1], "put": put, "old": old}
            for version in self._ends.get(session, ()):
                yield {"session": session, "end": version}
        if self.networks:
            yield {"whole": True}


def _network(text: str) -> Any:
    import ipaddress  # where nothing is taken, nobody needs it

    return ipaddress.ip_network(text, strict=False)  # what lies behind the prefix does not count (RFC 4271, 4.3)


class Command:
    """A line for ExaBGP. `agent` is the connection that asked for it, 0 = the relay itself."""

    def __init__(self, agent: int, number: int, text: str, alone: bool, staged: bool = False) -> None:
        self.agent, self.number, self.text, self.alone = agent, number, text, alone
        self.staged = staged  # a reload: the new file is in place


class Check:
    """A configuration on trial by another ExaBGP process."""

    def __init__(self, agent: int, number: int, command: list[str], environment: dict[str, str]) -> None:
        import subprocess  # a rare need, and a slow import

        self.agent, self.number = agent, number
        self.deadline = time.monotonic() + CHECK_TIMEOUT
        self.said = b""
        self._child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )
        assert self._child.stdout is not None
        self.fd = self._child.stdout.fileno()

    def read(self) -> bool:
        """Takes what the process says; whether it ended."""
        data = os.read(self.fd, 65536)
        self.said += data
        return not data

    def result(self) -> str:
        """ "" when the configuration is good, else why not. Ends the process."""
        if time.monotonic() > self.deadline:
            self._child.kill()
        status = self._child.wait()
        assert self._child.stdout is not None
        self._child.stdout.close()
        if status == 0:
            return ""
        said = without_passwords(self.said.decode("utf-8", "replace")).strip()
        return said or f"the check ended with status {status}"


class Relay:
    """See the module."""

    def __init__(self, run_dir: Path, check: list[str], speaker_in: int, speaker_out: int) -> None:
        self._path = run_dir / CONFIGURATION
        self._staged = run_dir / f"{CONFIGURATION}.new"
        self._old = run_dir / f"{CONFIGURATION}.old"
        self._socket_path = str(run_dir / SOCKET)
        self._check_command = check
        self._in, self._out = speaker_in, speaker_out
        os.set_blocking(speaker_in, False)
        os.set_blocking(speaker_out, False)
        self._from_speaker = Lines()
        self._to_speaker = bytearray()
        self._nonce = f"{os.getpid()}-{time.time_ns()}"
        self._hello: dict[str, object] | None = None  # None until ExaBGP answered this relay's own first command
        self._events: dict[str, dict[str, str]] = {}  # session -> kind -> line
        self._notified: dict[str, str] = {}  # session -> line of the last end by a NOTIFICATION: the end's real reason
        self._received = Received()
        self._queue: deque[Command] = deque()
        self._in_flight: deque[Command] = deque()
        self._checks: deque[tuple[int, int, str]] = deque()
        self._check: Check | None = None
        self._agent: socket.socket | None = None
        self._serial = 0
        self._from_agent = Lines()
        self._to_agent = bytearray()
        self._retry_at = 0.0

    def run(self) -> None:
        """Until ExaBGP closes its end."""
        self._send(f"routerd hello {self._nonce}")
        with suppress(OSError):
            self._received.configure(self._path.read_text(encoding="utf-8"))
        poll = select.poll()
        watched: dict[int, int] = {}
        while True:
            wanted = self._wanted()
            for fd in watched.keys() - wanted.keys():
                poll.unregister(fd)
            for fd, mask in wanted.items():
                if watched.get(fd) != mask:
                    poll.register(fd, mask)
            watched = wanted
            for fd, _ in poll.poll(self._timeout()):
                if fd == self._in and not self._read_speaker():
                    return
                if fd == self._out:
                    self._write_speaker()
                if self._check is not None and fd == self._check.fd and self._check.read():
                    self._end_check()
                if self._agent is not None and fd == self._agent.fileno():
                    self._serve_agent()
            self._tick()

    def _wanted(self) -> dict[int, int]:
        wanted = {self._in: select.POLLIN}
        if self._to_speaker:
            wanted[self._out] = select.POLLOUT
        if self._check is not None:
            wanted[self._check.fd] = select.POLLIN
        if self._agent is not None:
            busy = len(self._queue) + len(self._in_flight) + len(self._checks) >= BACKLOG
            wanted[self._agent.fileno()] = (0 if busy else select.POLLIN) | (select.POLLOUT if self._to_agent else 0)
        return wanted

    def _timeout(self) -> int | None:
        if self._check is not None:
            return 500
        return int(RETRY * 1000) if self._agent is None and self._hello is not None else None

    def _tick(self) -> None:
        if self._check is not None and time.monotonic() > self._check.deadline:
            self._end_check()
        if self._agent is None and self._hello is not None and time.monotonic() >= self._retry_at:
            self._connect()

    def _send(self, text: str) -> None:
        self._to_speaker += text.encode("ascii") + b"\n"
        self._write_speaker()

    def _write_speaker(self) -> None:
        with suppress(BlockingIOError):
            while self._to_speaker:
                del self._to_speaker[: os.write(self._out, self._to_speaker[:65536])]

    def _read_speaker(self) -> bool:
        try:
            data = os.read(self._in, 262144)
        except BlockingIOError:
            return True
        for line in self._from_speaker.feed(data):
            self._take_line(line)
        return bool(data)

    def _take_line(self, line: str) -> None:
        if line.startswith(_EVENT):
            self._take_event(line)
        elif line.startswith(_REPLY):
            self._take_reply(json.loads(line)["routerd"])
        elif self._hello is None:
            return  # answers to commands of a relay before this one
        elif line in ("done", "error"):
            self._take_answer(line == "done")
        elif line and self._in_flight:
            command = self._in_flight[0]
            self._tell(command.agent, {"id": command.number, "output": line})

    def _take_event(self, line: str) -> None:
        try:
            event = json.loads(line)
            ends = event["neighbor"]["address"]
            session = f"{ends['peer']},{ends['local']}"
        except (ValueError, KeyError, TypeError):
            return
        kind = event.get("type", "")
        if kind in ("open", "update"):
            self._take_update(event)
            return
        if kind == "state" and event["neighbor"].get("state") == "up":
            self._goes_up(session)
        if kind == "state" and event["neighbor"].get("state") != "up":
            reason = str(event["neighbor"].get("reason", ""))
            self._events.pop(session, None)
            if reason.startswith(NOTIFICATION):
                self._notified[session] = line
            if event["neighbor"].get("state") == "down":
                self._update(self._received.goes_down(session, reason, event.get("time", 0.0)))
        if kind in ("state", "negotiated"):
            kinds = self._events.setdefault(session, {})
            kinds.pop(kind, None)  # the latest last: "negotiated" comes before "up"
            kinds[kind] = line
        self._tell(self._serial, {"event": event})

    def _goes_up(self, session: str) -> None:
        """Of a session that was up before this relay was there nothing is known: its peer is asked for everything, if
        it takes that (RFC 2918, section 4).
        """
        self._update(self._received.goes_up(session))
        if self._received.networks and not self._received.knows(session):
            ends = session.replace(",", " local-ip ")
            for family in self._refreshable(session):
                self._queue.append(Command(0, 0, f"neighbor {ends} announce route-refresh {family}", True))
            self._advance()

    def _refreshable(self, session: str) -> list[str]:
        """Families that the peer sends again when it is asked."""
        with suppress(KeyError, TypeError):
            agreed = json.loads(self._events[session]["negotiated"])["neighbor"]["negotiated"]
            if agreed["refresh"] in ("normal", "enhanced"):
                return [family for family in agreed["families"] if family in ("ipv4 unicast", "ipv6 unicast")]
        return []

    def _take_update(self, event: dict[str, Any]) -> None:
        with suppress(KeyError, TypeError, ValueError):
            self._update(self._received.take(event))

    def _update(self, update: dict[str, object] | None) -> None:
        if update is not None and self._received.networks:
            self._tell(self._serial, {"update": update})

    def _take_reply(self, reply: dict[str, object]) -> None:
        """ExaBGP's answer to one of the commands that the launcher added."""
        if reply.get("nonce") == self._nonce:
            keys = ("exabgp", "pid", "started", "peers", "bulk")
            self._hello = {"protocol": PROTOCOL, **{key: reply[key] for key in keys if key in reply}}
            self._in_flight.append(Command(0, 0, "hello", True))  # its "done" follows
        elif self._hello is not None and "peers" in reply:
            self._hello["peers"] = reply["peers"]

    def _take_answer(self, ok: bool) -> None:
        if not self._in_flight:
            return
        command = self._in_flight.popleft()
        if command.staged:
            self._end_reload(ok)
        answer: dict[str, object] = {"id": command.number, "ok": ok}
        if not ok:
            answer["error"] = "ExaBGP refused the command"
        if command.staged and self._hello is not None:
            answer["peers"] = self._hello["peers"]
        self._tell(command.agent, answer)
        if command.staged and command.agent != self._serial:
            self._disconnect()  # this agent was greeted with what is no longer loaded: it shall adopt again
        self._advance()

    def _advance(self) -> None:
        """Gives ExaBGP what may go now."""
        while self._queue and self._hello is not None:
            alone = self._queue[0].alone or any(command.alone for command in self._in_flight)
            if len(self._in_flight) >= (1 if alone else WINDOW):
                return
            command = self._queue.popleft()
            self._in_flight.append(command)
            self._send(command.text)

    def _begin_check(self) -> None:
        if self._check is not None or not self._checks:
            return
        agent, number, text = self._checks.popleft()
        try:
            write_private(self._staged, configuration_text(sys.executable, __file__, text))
            self._check = Check(agent, number, [*self._check_command, str(self._staged)], dict(os.environ))
        except (OSError, ValueError) as error:
            self._tell(agent, {"id": number, "ok": False, "error": str(error)})
            self._begin_check()

    def _end_check(self) -> None:
        check, self._check = self._check, None
        assert check is not None
        error = check.result()
        if check.agent != self._serial or self._agent is None:
            self._staged.unlink()  # nobody wants it any more
        elif not error:
            if self._path.exists():
                self._path.replace(self._old)
            self._staged.replace(self._path)
            self._queue.appendleft(Command(check.agent, check.number, "routerd reload", True, staged=True))
            self._advance()
        else:
            self._staged.unlink()  # it holds passwords
            self._tell(check.agent, {"id": check.number, "ok": False, "error": error})
        self._begin_check()

    def _end_reload(self, ok: bool) -> None:
        if ok:
            self._received.configure(self._path.read_text(encoding="utf-8"))
            self._tell_received()
            self._old.unlink(missing_ok=True)
        elif self._old.exists():
            self._old.replace(self._path)

    def _connect(self) -> None:
        self._retry_at = time.monotonic() + RETRY
        agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        agent.setblocking(False)
        try:
            agent.connect(self._socket_path)
        except OSError:
            agent.close()
            return
        self._agent = agent
        self._serial += 1
        self._from_agent, self._to_agent = Lines(), bytearray()
        latest = [line for kinds in self._events.values() for line in kinds.values()]
        reasons = [line for line in self._notified.values() if line not in latest]
        events = [json.loads(line) for line in (*reasons, *latest)]
        self._tell(self._serial, {"hello": {**(self._hello or {}), "events": events}})
        self._tell_received()

    def _tell_received(self) -> None:
        for update in self._received.replay():
            self._tell(self._serial, {"update": update})

    def _disconnect(self) -> None:
        """Forgets the agent and what it asked for, save what ExaBGP already has."""
        if self._agent is not None:
            self._agent.close()
        self._agent = None
        self._queue = deque(command for command in self._queue if command.staged)
        self._checks.clear()
        self._retry_at = time.monotonic() + RETRY

    def _tell(self, agent: int, message: dict[str, object]) -> None:
        if self._agent is None or agent != self._serial:
            return
        self._to_agent += json.dumps(message, separators=(",", ":")).encode() + b"\n"
        if len(self._to_agent) > OUTPUT_LIMIT:
            self._disconnect()
        elif len(self._to_agent) < 65536:
            self._write_agent()

    def _write_agent(self) -> None:
        try:
            while self._agent is not None and self._to_agent:
                del self._to_agent[: self._agent.send(self._to_agent[:262144])]
        except BlockingIOError:
            pass
        except OSError:
            self._disconnect()

    def _serve_agent(self) -> None:
        self._write_agent()
        if self._agent is None:
            return
        try:
            data = self._agent.recv(262144)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._disconnect()
            return
        for line in self._from_agent.feed(data):
            if line:
                self._take_request(line)
        self._advance()

    def _take_request(self, line: str) -> None:
        try:
            request = json.loads(line)
            number = int(request["id"])
        except (ValueError, KeyError, TypeError):
            self._disconnect()  # not our protocol
            return
        command = request.get("command")
        if isinstance(request.get("reload"), str):
            self._checks.append((self._serial, number, request["reload"]))
            self._begin_check()
        elif isinstance(command, str) and command.isascii() and command.isprintable():
            self._queue.append(Command(self._serial, number, command, bool(request.get("alone"))))
        else:
            self._tell(self._serial, {"id": number, "ok": False, "error": "the relay does not know this request"})


if __name__ == "__main__":
    Relay(Path(os.environ[RUN_VARIABLE]), json.loads(os.environ[CHECK_VARIABLE]), 0, 1).run()
