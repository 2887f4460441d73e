"""What the launcher changes in ExaBGP 5.0.15 at start: functions and a class that are mended in place.

Each is replaced only if its source is the one the change was written for (checked by hash); otherwise the stock
one stays and one warning is printed. Runs inside ExaBGP's process; it imports ExaBGP, and nothing of the agent.

Its commands are in `bgp.inside.commands`.
"""

from __future__ import annotations

import hashlib
import inspect
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from bgp.conf import KEEPALIVE, MAX_PREFIXES, RETRY, asked_of
from bgp.inside.commands import Commands, track_sending
from bgp.inside.leaving import CEASE, TOO_MANY_PREFIXES, farewell
from bgp.inside.listening import Listener, take_anew

TABLE = "OutgoingRIB"  # the class that holds a session's Adj-RIB-Out
IDLE = 100  # milliseconds between two looks of the loop at sessions that are up, when nothing comes
HOLD_OFF = 600.0  # seconds after a peer announced more prefixes than it may; an edit of the peer ends it
CONNECT_RETRY = 5  # seconds, where the peer says nothing; a ToR that comes back must not wait for us
REFUSED_RETRY = 30.0  # seconds, the longest pause after a ToR ended a session, and for how long one must be up to count


@dataclass(frozen=True, slots=True)
class Patch:
    """`owner.name` is replaced by `replacement` if the SHA-256 of its source begins with `source`."""

    owner: type | ModuleType
    name: str
    source: str
    replacement: Callable[..., Any]


def fingerprint(function: Callable[..., Any]) -> str:
    """First 16 hex digits of the SHA-256 of the source of a function or class."""
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
    from exabgp.bgp.neighbor import Neighbor
    from exabgp.configuration.neighbor import ParseNeighbor

    return apply(
        [
            Patch(ParseNeighbor, "_post_neighbor", "6569408e868bbb3a", with_zone(ParseNeighbor._post_neighbor)),
            Patch(Neighbor, "index", "a96b8dced6cd7a91", _by_both_ends),
        ]
    )


def patches(run_dir: Path) -> list[Patch]:
    """Every change, in one table. `run_dir` is the speaker's."""
    import exabgp.reactor.loop
    import exabgp.rib
    from exabgp.bgp.neighbor import Neighbor
    from exabgp.reactor.api.processes import Processes
    from exabgp.reactor.daemon import Daemon
    from exabgp.reactor.delay import Delay
    from exabgp.reactor.keepalive import KA
    from exabgp.reactor.loop import Reactor
    from exabgp.reactor.network.outgoing import Outgoing
    from exabgp.reactor.peer import Peer

    from bgp.inside.outgoing import Table

    return [
        Patch(exabgp.rib, TABLE, "73e00146b7d49804", Table),
        Patch(Neighbor, "__eq__", "8b075c7c16254784", equal_in_all(Neighbor.__eq__)),
        Patch(exabgp.reactor.loop, "Listener", "aa660caf65af7327", Listener),
        Patch(Peer, "handle_connection", "ecb82811d4b5461a", take_anew(Peer.handle_connection)),
        Patch(Reactor, "_wait_for_io", "abe9694fbe6f8686", long_wait(Reactor._wait_for_io)),
        Patch(Processes, "broken", "6c7c73a211315eed", _never_broken),
        Patch(Delay, "increase", "9e348b6f1e113f0e", _wait_longer),
        Patch(Daemon, "drop_privileges", "a6091f186864fb54", _keep_privileges),
        Patch(Peer, "_main", "e5ea2fecea84afed", end_of_rib_of_this_session(Peer._main)),
        Patch(Peer, "_connect", "d68e56f559cb3969", try_for_so_long(Peer._connect)),
        Patch(Peer, "_reset", "4f709dbfce076cda", back_off(Peer._reset)),
        Patch(Peer, "reestablish", "dfb1ac36c5615d53", begin_anew(Peer.reestablish)),
        Patch(Outgoing, "_setup", "52b32df410800231", no_minimum_yet(Outgoing._setup)),
        Patch(Outgoing, "success", "18004bba76b58bcd", minimum_from_now(Outgoing.success)),
        Patch(KA, "__init__", "b46e3ff6a74ba814", asked_keepalives(KA.__init__)),
        Patch(Reactor, "neighbor_ip", "4c2cfcc23e88520a", _both_ends),
        Patch(Reactor, "shutdown", "b6636731b873b730", farewell(Reactor.shutdown, run_dir)),
    ]


def long_wait(stock: Callable[..., Any]) -> Callable[..., Any]:
    """While every session is up, or waits for its router, and nothing is to be done the loop waits for input, and looks
    ten times a second.

    Stock ExaBGP looks a hundred times a second, which is some percent of a core.
    """

    def is_idle(peer: Any) -> bool:
        neighbor = peer.neighbor
        if neighbor["passive"] and not peer.proto:
            return not peer.stopping()
        return peer.established() and not (neighbor.rib.outgoing.pending() or neighbor.eor or peer.stopping())

    def wait_for_io(reactor: Any, milliseconds: int) -> Iterator[int]:
        idle = milliseconds and reactor.asynchronous.ready() and all(map(is_idle, reactor._peers.values()))
        yield from stock(reactor, IDLE if idle else milliseconds)

    return wait_for_io


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


def end_of_rib_of_this_session(stock: Callable[..., Any]) -> Callable[..., Any]:
    """An End-of-RIB that was queued and not sent when its session ended is forgotten.

    Stock ExaBGP sends it in the next one, where it may come before the paths: the peer then drops those that it kept
    (RFC 4724, section 4.2), and they come back later. Nobody knows of the new session before this runs.
    """

    def main(peer: Any) -> Iterator[Any]:
        peer.neighbor.eor.clear()
        peer.routerd_up = time.monotonic()
        count_prefixes(peer)
        yield from stock(peer)

    return main


def count_prefixes(peer: Any) -> None:
    """Where its configuration has a limit, a session ends when the peer announces more prefixes than that."""
    from bgp.inside.counted import Counted

    limit, connection = asked_of(peer.neighbor["description"]).get(MAX_PREFIXES), peer.proto.connection
    if limit:
        counted, read = Counted(limit, peer.proto.negotiated), connection.reader
        connection.reader = lambda: counted.watch(read())


def asked_keepalives(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Keepalives as often as the peer's configuration asks for, in its description; never less often than stock.

    Stock ExaBGP sends one in a third of the hold time, whatever that is.
    """

    def begin(keepalives: Any, session: Any, proto: Any) -> None:
        stock(keepalives, session, proto)
        usual = keepalives.send_timer.keepalive
        keepalives.send_timer.keepalive = min(asked_of(proto.neighbor["description"]).get(KEEPALIVE, usual), usual)

    return begin


def back_off(stock: Callable[..., Any]) -> Callable[..., Any]:
    """After a session that the peer ended, or that was wrong, the pause doubles, up to REFUSED_RETRY.

    Stock ExaBGP begins again with no pause whenever a session came up, so a ToR that ends each with a NOTIFICATION is
    connected to dozens of times a second. A session that was up for REFUSED_RETRY ends the row; our own Cease is none.
    After a peer announced too much it is left alone for HOLD_OFF: what it does next may be the same.
    """
    from exabgp.bgp.message import Notification, Notify

    def reset(peer: Any, message: str = "", error: Any = "") -> None:
        up, peer.routerd_up = getattr(peer, "routerd_up", None), None
        stock(peer, message, error)
        if isinstance(error, Notify) and error.code == CEASE:
            if error.subcode == TOO_MANY_PREFIXES:
                peer._delay._time = peer.routerd_left_alone = time.monotonic() + HOLD_OFF
            return
        if up is not None and time.monotonic() - up >= REFUSED_RETRY:
            peer.routerd_refused = 0
        elif up is not None or isinstance(error, Notification):
            peer.routerd_refused = getattr(peer, "routerd_refused", 0) + 1
        else:
            return  # it could not connect, which has a pause of its own
        peer._delay._time = time.monotonic() + pause(peer.routerd_refused)

    return reset


def try_for_so_long(stock: Callable[..., Any]) -> Callable[..., Any]:
    """An attempt to connect ends after the time that the peer's configuration asks for (ConnectRetryTime, RFC 4271,
    section 8), if it asks: else it waits for the kernel's answer, two minutes where none comes.
    """
    from exabgp.reactor.network.error import NotConnected

    def connect(peer: Any) -> Iterator[Any]:
        asked, begun = asked_of(peer.neighbor["description"]).get(RETRY), time.monotonic()
        peer._delay.routerd_longest = asked or CONNECT_RETRY
        attempt = stock(peer)
        for action in attempt:
            if asked and time.monotonic() - begun >= asked:
                attempt.close()
                raise NotConnected(f"no answer within {asked} s")
            yield action

    return connect


def begin_anew(stock: Callable[..., Any]) -> Callable[..., Any]:
    """A peer that is configured anew while its session is being opened begins at once, without a pause of before.

    Stock ExaBGP first sees the attempt through: for a minute where a router says nothing, or for the hold time where it
    takes nothing, as with TTL security; of a router that is to connect itself, until it does.
    """

    def reestablish(peer: Any, restart_neighbor: Any = None) -> None:
        stock(peer, restart_neighbor)
        peer.routerd_refused, peer.routerd_left_alone = 0, 0.0
        if not peer.established() and (peer.generator or peer.neighbor["passive"]):
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


def _by_both_ends(neighbor: Any) -> str:
    """Two peers of a configuration are one if both their addresses are; stock ExaBGP compares the router's and the port
    where it listens, though a router may have sessions with several addresses of ours.
    """
    return str(neighbor.name())


def _never_broken(processes: Any, neighbor: Any) -> bool:
    """A relay that died is started again; stock ExaBGP would never bring the peer up again."""
    return False


def _both_ends(reactor: Any, name: str) -> str:
    """A path in a table is of a session, "PEER,LOCAL"; stock ExaBGP says the peer alone, who may have several."""
    neighbor = reactor.neighbor(name)
    return f"{neighbor['peer-address']},{neighbor['local-address']}" if neighbor is not None else ""


def _wait_longer(delay: Any) -> None:
    """Waits 0, 1, 2 … seconds between attempts to connect, up to what is asked for, or CONNECT_RETRY; stock ExaBGP
    up to a minute.
    """
    delay._time = time.monotonic() + delay._next
    delay._next = min(delay._next + 1, getattr(delay, "routerd_longest", CONNECT_RETRY))


def _keep_privileges(daemon: Any) -> bool:
    """Whoever starts routerd decides whose rights it has; stock ExaBGP refuses some of them."""
    return True


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


def install(configuration: Path, version: str) -> None:
    """All of the above; one warning for what could not be mended."""
    from exabgp.rib import RIB

    RIB._cache.clear()  # tables of the configuration that was tried: they would be taken again by peers of these names
    left = mend_parser() + apply(patches(configuration.parent))
    if left:
        print(
            f"speaker: warning: this ExaBGP {version} is not the released one; not mended: {', '.join(left)}",
            file=sys.stderr,
            flush=True,
        )
    keep_steady_time()
    track_sending()
    Commands(configuration, version, bulk=f"exabgp.rib.{TABLE}" not in left).register()
