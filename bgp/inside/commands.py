"""API commands that the launcher adds to ExaBGP 5.0.15, by ExaBGP's own registry (`Command.register`).

    routerd hello NONCE       prints who we are and the loaded peers, and the state of every session as events again
    routerd reload            loads the configuration file now, and says whether it could
    [neighbor A] routerd flush [SECONDS]   done when the TCP of these peers has acknowledged all that was queued for
                              them; an error when that has not happened after so long (5 s). A peer that is down has
                              nothing to wait for
    [neighbor A] routerd end SUBCODE   ends the established sessions of these peers with Cease/SUBCODE, and connects
                              again. ExaBGP's own `teardown` says nothing to a peer with graceful restart, who then
                              keeps the paths

Where the Adj-RIB-Out is ours (`bgp.inside.outgoing`), which `hello` says by `"bulk": 1`, also these (`bgp.wire`):

    [neighbor A] routerd announce VERSION NEXT-HOP ATTRIBUTES PREFIXES   the next hop may be "self"; all or nothing
    [neighbor A] routerd withdraw VERSION PREFIXES
    routerd table             prints all that sessions are to have, "PEER,LOCAL VERSION NEXT-HOP ATTRIBUTES PREFIXES"

SIGUSR1 is not used: 5.0.15 drops the signal, unheard, while any peer, even one that is down, has routes queued.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
import termios
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bgp.wire import NLRI_PER_COMMAND

FLUSH_TIMEOUT = 5.0  # seconds
_PEER = re.compile(r"^# peer (\S+,\S+) ([0-9a-f]+)$", re.MULTILINE)


def loaded_peers(configuration: Path) -> dict[str, str]:
    """Session -> digest of every peer in a configuration file, from the comments that `bgp.conf` writes."""
    return dict(_PEER.findall(configuration.read_text(encoding="utf-8")))


def track_sending() -> None:
    """Has every session say whether an UPDATE is half way out (`peer.routerd_sending`), for `routerd flush`."""
    from exabgp.reactor.protocol import Protocol

    stock = Protocol.new_update

    def new_update(protocol: Any, include_withdraw: bool) -> Iterator[Any]:
        protocol.peer.routerd_sending = True
        try:
            yield from stock(protocol, include_withdraw)
        finally:
            protocol.peer.routerd_sending = False

    Protocol.new_update = new_update


Callback = Callable[[Any, Any, str, str, bool], bool]


class Commands:
    """Each has the signature of ExaBGP's own. `configuration`: the file that ExaBGP loads; `bulk`: tables are ours."""

    def __init__(self, configuration: Path, version: str, *, bulk: bool = False) -> None:
        self._configuration = configuration
        self._version = version
        self._bulk = bulk
        self._started = time.monotonic()
        self._peers = loaded_peers(configuration)

    def register(self) -> None:
        from exabgp.reactor.api.command.command import Command

        # `partial`: the registry sets an attribute on what it is given, and a bound method takes none.
        Command.register("routerd hello", False)(partial(self.hello))
        Command.register("routerd reload", False)(partial(self.reload))
        Command.register("routerd flush", True)(partial(self.flush))
        Command.register("routerd end", True)(partial(self.end))
        if self._bulk:
            Command.register("routerd announce", True)(partial(self.change))
            Command.register("routerd withdraw", True)(partial(self.change))
            Command.register("routerd table", False)(partial(self.table))

    def hello(self, api: Any, reactor: Any, service: str, line: str, use_json: bool) -> bool:
        who = {
            "nonce": line.split()[-1],
            "exabgp": self._version,
            "pid": os.getpid(),
            "started": self._started,
            "peers": self._peers,
            "bulk": int(self._bulk),
        }

        def answer() -> Iterator[bool]:
            reactor.processes.write(service, json.dumps({"routerd": who}))
            for peer in list(reactor._peers.values()):
                if peer.established():
                    reactor.processes.negotiated(peer.neighbor, peer.proto.negotiated)
                    reactor.processes.up(peer.neighbor)
            getattr(reactor.listener, "tell_again", lambda: None)()  # of `bgp.inside.listening`, if that is in place
            reactor.processes.answer_done(service)
            yield True

        # Queued behind what an earlier relay asked for, so that the answers to that come before.
        reactor.asynchronous.schedule(service, line, answer())
        return True

    def reload(self, api: Any, reactor: Any, service: str, line: str, use_json: bool) -> bool:
        if not reactor.reload():
            reactor.processes.answer_error(service)
            return False
        reactor.processes.start(reactor.configuration.processes, False)
        self._peers = loaded_peers(self._configuration)
        reactor.processes.write(service, json.dumps({"routerd": {"peers": self._peers}}))
        reactor.processes.answer_done(service)
        return True

    def flush(self, api: Any, reactor: Any, service: str, line: str, use_json: bool) -> bool:
        from exabgp.reactor.api.command.limit import extract_neighbors, match_neighbors

        descriptions, _ = extract_neighbors(line)
        names = match_neighbors(reactor.peers(service), descriptions)

        def answer() -> Iterator[bool]:
            deadline = time.monotonic() + _seconds(line)
            while any(_is_sending(reactor._peers.get(name)) for name in names):
                if time.monotonic() > deadline:
                    reactor.processes.answer_error(service)
                    return
                yield True
            reactor.processes.answer_done(service)

        reactor.asynchronous.schedule(service, line, answer())
        return True

    def end(self, api: Any, reactor: Any, service: str, line: str, use_json: bool) -> bool:
        from exabgp.bgp.message.open.capability.capability import Capability
        from exabgp.reactor.api.command.limit import extract_neighbors, match_neighbors

        descriptions, _ = extract_neighbors(line)
        subcode = int(line.split()[-1])
        for name in match_neighbors(reactor.peers(service), descriptions):
            peer = reactor._peers.get(name)
            if peer is not None and peer.established():
                # What this session's OPEN said; that of the next one is made anew.
                peer.proto.negotiated.sent_open.capabilities.pop(Capability.CODE.GRACEFUL_RESTART, None)
                peer.teardown(subcode)
        reactor.processes.answer_done(service)
        return True

    def change(self, api: Any, reactor: Any, service: str, line: str, use_json: bool) -> bool:
        """Announces or withdraws. Answered at once: what is queued before it was not asked for by who uses it."""
        from exabgp.reactor.api.command.limit import extract_neighbors, match_neighbors

        descriptions, rest = extract_neighbors(line)
        neighbors = [reactor.neighbor(name) for name in match_neighbors(reactor.peers(service), descriptions)]
        try:
            changes = list(_changes(neighbors, rest.split()[1:]))
        except (ValueError, IndexError, KeyError, TypeError):
            changes = []
        for change in changes:
            change()
        if changes:
            reactor.processes.answer_done(service)
        else:
            reactor.processes.answer_error(service)
        return bool(changes)

    def table(self, api: Any, reactor: Any, service: str, line: str, use_json: bool) -> bool:
        def answer() -> Iterator[bool]:
            for name in reactor.peers(service):
                neighbor = reactor.neighbor(name)
                ends = f"{neighbor['peer-address']},{neighbor['local-address']}"
                for row in _rows(ends, neighbor.rib.outgoing):
                    reactor.processes.write(service, row)
                    yield True
            reactor.processes.answer_done(service)

        reactor.asynchronous.schedule(service, line, answer())
        return True


def _changes(neighbors: list[Any], words: list[str]) -> Iterator[Callable[[], None]]:
    """What a command does to each peer's table. Raises if a peer cannot have it, or it is not understood."""
    from bgp.inside import outgoing

    family = outgoing.FAMILIES[int(words[1])]
    nlris = outgoing.prefixes(family, bytes.fromhex(words[-1]))
    for neighbor in neighbors:
        if family not in neighbor.families():
            raise ValueError("a family that the peer has not")
        table = neighbor.rib.outgoing
        if words[0] == "withdraw":
            yield partial(table.withdraw_prefixes, family, nlris)
        else:
            _, _, hop, attributes, _ = words
            next_hop = neighbor.ip_self(family[0]).ton() if hop == "self" else bytes.fromhex(hop)
            wire = b"" if attributes == "-" else bytes.fromhex(attributes)
            yield partial(table.announce, outgoing.way(family, next_hop, wire), nlris)


def _rows(ends: str, table: Any) -> Iterator[str]:
    for way, nlris in table.rows():
        head = f"{ends} {way.version} {way.next_hop.hex()} {way.wire.hex() or '-'}"
        for at in range(0, len(nlris), NLRI_PER_COMMAND):
            yield f"{head} {b''.join(nlris[at : at + NLRI_PER_COMMAND]).hex()}"


def _seconds(line: str) -> float:
    """How long a flush may take."""
    last = line.split()[-1]
    return float(last) if last.replace(".", "", 1).isdigit() else FLUSH_TIMEOUT


def _is_sending(peer: Any) -> bool:
    """Whether an established session has UPDATEs queued, half way out, or not acknowledged by the peer's TCP."""
    if peer is None or not peer.established():
        return False
    if peer.neighbor.rib.outgoing.pending() or getattr(peer, "routerd_sending", False):
        return True
    return _unacknowledged(peer.socket()) > 0


def _unacknowledged(fd: int) -> int:
    """Bytes in a socket's send queue (tcp(7), SIOCOUTQ); none of one that is closed."""
    if fd < 0:
        return 0
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0" * 4))[0])  # the same number
    except OSError:
        return 0
