"""What the launcher changes in ExaBGP 5.0.15 at start: commands of ours, and functions mended in place.

A function is replaced only if its source is the one the change was written for (checked by hash); otherwise the stock
one stays and one warning is printed. Runs inside ExaBGP's process; it imports ExaBGP, and nothing of the agent.

Commands added through ExaBGP's own registry (`Command.register`):

    routerd hello NONCE       prints who we are and the loaded peers, and the state of every session as events again
    routerd reload            loads the configuration file now, and says whether it could
    [neighbor A] routerd flush [SECONDS]   done when the TCP of these peers has acknowledged all that was queued for
                              them; an error when that has not happened after so long (5 s). A peer that is down has
                              nothing to wait for
    [neighbor A] routerd end SUBCODE   ends the established sessions of these peers with Cease/SUBCODE, and connects
                              again. ExaBGP's own `teardown` says nothing to a peer with graceful restart, who then
                              keeps the paths

SIGUSR1 is not used: 5.0.15 drops the signal, unheard, while any peer, even one that is down, has routes queued.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import json
import os
import random
import re
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import cache, partial
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bgp.conf import KEEPALIVE
from bgp.leaving import CEASE, farewell

FLUSH_TIMEOUT = 5.0  # seconds
STEPS, TURN = 1000, 0.05  # of queued commands, and seconds, in one turn of ExaBGP's loop; a step announces one prefix
CONNECT_RETRY = 5  # seconds; a ToR that comes back must not wait for us, who do not listen
REFUSED_RETRY = 30.0  # seconds, the longest pause after a ToR ended a session, and for how long one must be up to count
_PEER = re.compile(r"^# peer (\S+) ([0-9a-f]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Patch:
    """`owner.name` is replaced by `replacement` if the SHA-256 of its source begins with `source`."""

    owner: type
    name: str
    source: str
    replacement: Callable[..., Any]


def fingerprint(function: Callable[..., Any]) -> str:
    """First 16 hex digits of the SHA-256 of a function's source."""
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]


def apply(patches: list[Patch]) -> list[str]:
    """Mends what it can; returns the names of what it left as it is."""
    left = []
    for patch in patches:
        if fingerprint(getattr(patch.owner, patch.name)) == patch.source:
            setattr(patch.owner, patch.name, patch.replacement)
        else:
            left.append(f"{patch.owner.__name__}.{patch.name}")
    return left


@cache
def mend_parser() -> list[str]:
    """What a process needs that only reads a configuration, too; once for a process. The same as `apply`."""
    from exabgp.configuration.neighbor import ParseNeighbor

    return apply([Patch(ParseNeighbor, "_post_neighbor", "6569408e868bbb3a", with_zone(ParseNeighbor._post_neighbor))])


def patches(run_dir: Path) -> list[Patch]:
    """Every change, in one table. `run_dir` is the speaker's."""
    from exabgp.bgp.message.update import Update
    from exabgp.bgp.neighbor import Neighbor
    from exabgp.reactor.api.processes import Processes
    from exabgp.reactor.asynchronous import ASYNC
    from exabgp.reactor.daemon import Daemon
    from exabgp.reactor.delay import Delay
    from exabgp.reactor.keepalive import KA
    from exabgp.reactor.loop import Reactor
    from exabgp.reactor.network.outgoing import Outgoing
    from exabgp.reactor.peer import Peer
    from exabgp.rib.outgoing import OutgoingRIB

    return [
        Patch(OutgoingRIB, "_update_rib", "3c013bdc1a033977", newest_wins(OutgoingRIB._update_rib)),
        Patch(ASYNC, "run", "b19e41c01689bade", many_steps(ASYNC.run)),
        Patch(Reactor, "_wait_for_io", "abe9694fbe6f8686", no_sleep_with_work(Reactor._wait_for_io)),
        Patch(Neighbor, "__eq__", "8b075c7c16254784", equal_in_all(Neighbor.__eq__)),
        Patch(Neighbor, "remove_self", "cbd04747e6f3e834", own_next_hop(Neighbor.remove_self)),
        Patch(Update, "_split_nlris", "9d693e7f9bc15a49", agreed_next_hops(Update._split_nlris)),
        Patch(Processes, "broken", "6c7c73a211315eed", _never_broken),
        Patch(Delay, "increase", "9e348b6f1e113f0e", _wait_longer),
        Patch(Daemon, "drop_privileges", "a6091f186864fb54", _keep_privileges),
        Patch(Peer, "_main", "e5ea2fecea84afed", end_of_rib_of_this_session(Peer._main)),
        Patch(Peer, "_reset", "4f709dbfce076cda", back_off(Peer._reset)),
        Patch(Peer, "reestablish", "dfb1ac36c5615d53", begin_anew(Peer.reestablish)),
        Patch(Outgoing, "_setup", "52b32df410800231", no_minimum_yet(Outgoing._setup)),
        Patch(Outgoing, "success", "18004bba76b58bcd", minimum_from_now(Outgoing.success)),
        Patch(KA, "__init__", "b46e3ff6a74ba814", asked_keepalives(KA.__init__)),
        Patch(Reactor, "shutdown", "b6636731b873b730", farewell(Reactor.shutdown, run_dir)),
    ]


def newest_wins(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Of several changes queued for one prefix only the last is sent.

    Stock ExaBGP keeps them all and sends them in the order in which their *attributes* were first queued, so that a
    peer may be left with a path that was replaced, or withdrawn, after it.
    """

    def update(rib: Any, change: Any) -> Any:
        queued = rib._new_nlri.get(change.index())
        if queued is not None:
            family = queued.nlri.family().afi_safi()
            by_family = rib._new_attr_af_nlri.get(queued.attributes.index(), {})
            by_family.get(family, {}).pop(queued.index(), None)
        return stock(rib, change)

    return update


def many_steps(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Queued commands are carried out in larger turns.

    Stock ExaBGP goes through the whole queue, and makes an asyncio loop, for every 50 steps of a command.
    """

    def run(queued: Any) -> bool:
        if any(not inspect.isgenerator(callback) for _, callback in queued._async):
            return bool(stock(queued))
        deadline = time.monotonic() + TURN
        for _ in range(STEPS):
            if not queued._async:
                return False
            if time.monotonic() > deadline:
                break
            uid, callback = queued._async[0]
            try:
                next(callback)
                continue
            except StopIteration:
                pass
            except Exception as error:  # noqa: BLE001  as stock: one that fails must not end the rest
                print(f"speaker: error: a command failed: {error!r}", file=sys.stderr, flush=True)
                queued._notify_error(uid)
            if queued._async and queued._async[0][1] is callback:
                queued._async.popleft()
        return True

    return run


def no_sleep_with_work(stock: Callable[..., Any]) -> Callable[..., Any]:
    """The loop does not wait for input while commands are queued."""

    def wait_for_io(reactor: Any, milliseconds: int) -> Iterator[int]:
        yield from stock(reactor, milliseconds if reactor.asynchronous.ready() else 0)

    return wait_for_io


def own_next_hop(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Copies of a path for one peer share what is the same in all.

    Stock ExaBGP makes a deep copy of every path for every peer, attributes and all. Here the prefix is copied, and the
    attributes once for a peer and a run of paths that have the same ones.
    """
    from exabgp.bgp.message.update.attribute import Attribute, NextHop
    from exabgp.bgp.message.update.nlri.inet import INET
    from exabgp.rib.change import Change

    def remove_self(neighbor: Any, change: Any) -> Any:
        if type(change.nlri) is not INET:
            return stock(neighbor, change)
        nlri, attributes = copy(change.nlri), change.attributes
        if not nlri.nexthop.SELF:
            return Change(nlri, attributes)
        nlri.nexthop = neighbor.ip_self(nlri.afi)
        if Attribute.CODE.NEXT_HOP in attributes:
            last = getattr(neighbor, "routerd_attributes", None)
            if last is None or last[0] is not attributes or last[1] != nlri.afi:
                own = deepcopy(attributes)
                own[Attribute.CODE.NEXT_HOP] = NextHop(str(nlri.nexthop), nlri.nexthop.pack())
                last = neighbor.routerd_attributes = (attributes, nlri.afi, own)
            attributes = last[2]
        return Change(nlri, attributes)

    return remove_self


def with_zone(stock: Callable[..., Any]) -> Callable[..., Any]:
    """A link-local peer is known by its address and interface, "fe80::1%eth1", to commands and in events and tables.

    To stock ExaBGP it is "fe80::1" on each of several links.
    """
    from exabgp.protocol.ip import IPRange

    class Zoned(IPRange):  # type: ignore[misc]  # ExaBGP has no types
        def __repr__(self) -> str:
            return f"{self.top()}%{self.zone}"

    def post_neighbor(section: Any, local: Any, families: Any) -> Any:
        neighbor = stock(section, local, families)
        peer, interface = neighbor["peer-address"], neighbor["source-interface"]
        if interface and ip_address(peer.top()).is_link_local and peer.ipv6():
            neighbor["peer-address"] = Zoned(peer.top(), str(int(peer.mask)))
            neighbor["peer-address"].zone = interface
        return neighbor

    return post_neighbor


def equal_in_all(stock: Callable[..., Any]) -> Callable[..., Any]:
    """A peer that is configured anew begins a new session whatever of it changed.

    Stock ExaBGP overlooks some options: it goes on with the old session, and has the new ones in the next.
    """
    options = ("source-interface", "manual-eor", "md5-base64", "description")

    def equal(one: Any, other: Any) -> bool:
        return (
            stock(one, other)
            and all(one[option] == other[option] for option in options)
            and (one.nexthops(), one.addpaths()) == (other.nexthops(), other.addpaths())
        )

    return equal


def agreed_next_hops(stock: Callable[..., Any]) -> Callable[..., Any]:
    """An IPv4 prefix with a next hop of IPv6 goes to a peer that has agreed to that alone (RFC 8950, section 4).

    Stock ExaBGP sends it to everybody, and who does not know it may end the session.
    """
    from exabgp.protocol.family import AFI, SAFI

    def split(update: Any, negotiated: Any) -> Any:
        nlris, by_family = stock(update, negotiated)
        if (AFI.ipv4, SAFI.unicast, AFI.ipv6) not in negotiated.nexthop:
            by_family.pop((AFI.ipv4, SAFI.unicast), None)
        return nlris, by_family

    return split


def end_of_rib_of_this_session(stock: Callable[..., Any]) -> Callable[..., Any]:
    """An End-of-RIB that was queued and not sent when its session ended is forgotten.

    Stock ExaBGP sends it in the next one, where it may come before the paths: the peer then drops those that it kept
    (RFC 4724, section 4.2), and they come back later. Nobody knows of the new session before this runs.
    """

    def main(peer: Any) -> Iterator[Any]:
        peer.neighbor.eor.clear()
        peer.routerd_up = time.monotonic()
        yield from stock(peer)

    return main


def asked_keepalives(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Keepalives as often as the peer's configuration asks for, in its description; never less often than stock.

    Stock ExaBGP sends one in a third of the hold time, whatever that is.
    """

    def begin(keepalives: Any, session: Any, proto: Any) -> None:
        stock(keepalives, session, proto)
        word, _, seconds = (proto.neighbor["description"] or "").rpartition(" ")
        if word == KEEPALIVE.strip() and seconds.isdigit():
            keepalives.send_timer.keepalive = min(int(seconds), keepalives.send_timer.keepalive)

    return begin


def back_off(stock: Callable[..., Any]) -> Callable[..., Any]:
    """After a session that the peer ended, or that was wrong, the pause doubles, up to REFUSED_RETRY.

    Stock ExaBGP begins again with no pause whenever a session came up, so a ToR that ends each with a NOTIFICATION is
    connected to dozens of times a second. A session that was up for REFUSED_RETRY ends the row; our own Cease is none.
    """
    from exabgp.bgp.message import Notification, Notify

    def reset(peer: Any, message: str = "", error: Any = "") -> None:
        up, peer.routerd_up = getattr(peer, "routerd_up", None), None
        stock(peer, message, error)
        if isinstance(error, Notify) and error.code == CEASE:
            return
        if up is not None and time.monotonic() - up >= REFUSED_RETRY:
            peer.routerd_refused = 0
        elif up is not None or isinstance(error, Notification):
            peer.routerd_refused = getattr(peer, "routerd_refused", 0) + 1
        else:
            return  # it could not connect, which has a pause of its own
        peer._delay._time = time.monotonic() + pause(peer.routerd_refused)

    return reset


def begin_anew(stock: Callable[..., Any]) -> Callable[..., Any]:
    """A peer that is configured anew while its session is being opened begins at once, without a pause of before.

    Stock ExaBGP first sees the attempt through: for a minute where a router says nothing, or for the hold time where it
    takes nothing, as with TTL security.
    """

    def reestablish(peer: Any, restart_neighbor: Any = None) -> None:
        stock(peer, restart_neighbor)
        peer.routerd_refused = 0
        if not peer.established() and peer.generator:
            peer._reset("the peer was configured anew")
            peer._delay.reset()

    return reestablish


def no_minimum_yet(stock: Callable[..., Any]) -> Callable[..., Any]:
    """A connection is begun without its minimum of the TTL, which `minimum_from_now` sets.

    A router answers a SYN from its listening socket, whose TTL is the host's default whatever the session's will be
    (BIRD, FRR). Stock ExaBGP has the kernel drop that answer, so that no connection comes about.
    """

    def setup(connection: Any) -> Any:
        minimum, connection.incoming_ttl = connection.incoming_ttl, None
        try:
            return stock(connection)
        finally:
            connection.incoming_ttl = minimum

    return setup


def minimum_from_now(stock: Callable[..., Any]) -> Callable[..., Any]:
    """All that comes once the connection stands must have the TTL (GTSM, RFC 5082, section 3)."""
    from exabgp.reactor.network.tcp import set_minimum_ttl

    def success(connection: Any) -> Any:
        set_minimum_ttl(connection.io, connection.afi, connection.peer, connection.incoming_ttl)
        return stock(connection)

    return success


def pause(refused: int) -> float:
    """Seconds after so many sessions in a row that the peer ended; random, so that nodes do not come at once."""
    return min(2.0 ** (refused - 1), REFUSED_RETRY) * random.uniform(0.5, 1.0) if refused else 0.0


def _never_broken(processes: Any, neighbor: Any) -> bool:
    """A relay that died is started again; stock ExaBGP would never bring the peer up again."""
    return False


def _wait_longer(delay: Any) -> None:
    """Waits 0, 1, 2 … up to CONNECT_RETRY seconds between attempts to connect; the stock limit is a minute."""
    delay._time = time.monotonic() + delay._next
    delay._next = min(delay._next + 1, CONNECT_RETRY)


def _keep_privileges(daemon: Any) -> bool:
    """Whoever starts routerd decides whose rights it has; stock ExaBGP refuses some of them."""
    return True


def loaded_peers(configuration: Path) -> dict[str, str]:
    """Address -> digest of every peer in a configuration file, from the comments that `bgp.conf` writes."""
    return dict(_PEER.findall(configuration.read_text(encoding="utf-8")))


def keep_steady_time() -> None:
    """Timers of sessions, and times of events, are of a clock that nobody sets, and that is one for all of a host.

    Stock ExaBGP asks the wall clock: set ahead by the hold time it ends every session, and for as long as it is set
    back nobody gets a keepalive, and no peer is connected to.
    """
    from exabgp.bgp import timer
    from exabgp.reactor import delay, loop
    from exabgp.reactor.api import processes
    from exabgp.reactor.api.response import json as events

    steady = SimpleNamespace(time=time.monotonic, sleep=time.sleep)
    for module in (timer, delay, loop, processes, events):
        vars(module)["time"] = steady


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


class Commands:
    """Our API commands; each has the signature of ExaBGP's own. `configuration` is the file that ExaBGP loads."""

    def __init__(self, configuration: Path, version: str) -> None:
        self._configuration = configuration
        self._version = version
        self._started = time.monotonic()
        self._peers = loaded_peers(configuration)

    def register(self) -> None:
        from exabgp.reactor.api.command.command import Command

        # `partial`: the registry sets an attribute on what it is given, and a bound method takes none.
        Command.register("routerd hello", False)(partial(self.hello))
        Command.register("routerd reload", False)(partial(self.reload))
        Command.register("routerd flush", True)(partial(self.flush))
        Command.register("routerd end", True)(partial(self.end))

    def hello(self, api: Any, reactor: Any, service: str, line: str, use_json: bool) -> bool:
        who = {
            "nonce": line.split()[-1],
            "exabgp": self._version,
            "pid": os.getpid(),
            "started": self._started,
            "peers": self._peers,
        }

        def answer() -> Iterator[bool]:
            reactor.processes.write(service, json.dumps({"routerd": who}))
            for peer in list(reactor._peers.values()):
                if peer.established():
                    reactor.processes.negotiated(peer.neighbor, peer.proto.negotiated)
                    reactor.processes.up(peer.neighbor)
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


def install(configuration: Path, version: str) -> None:
    """All of the above; one warning for what could not be mended."""
    left = mend_parser() + apply(patches(configuration.parent))
    if left:
        print(
            f"speaker: warning: this ExaBGP {version} is not the released one; not mended: {', '.join(left)}",
            file=sys.stderr,
            flush=True,
        )
    keep_steady_time()
    track_sending()
    Commands(configuration, version).register()
