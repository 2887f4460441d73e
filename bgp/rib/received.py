"""What peers announce to this node, as the relay tells it: Adj-RIB-In of each session, and the best paths. Pure.

A session that ends leaves its paths for as long as its peer's OPEN asked for (graceful restart, RFC 4724, section 4.2),
at most `LONGEST`, or for `PATIENCE` where it is our side that was started anew (section 4.1); what it has not told
again by its End-of-RIB goes then. The relay says what does not stay even so long. Time is that of the events, in
seconds of the monotonic clock, which is one for all processes of a host.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, ip_address, ip_network
from itertools import groupby
from typing import Any

from bgp.path import IPAddress, IPNetwork

LONGEST = 360.0  # seconds without End-of-RIB that paths of before a restart are kept, as BIRD and FRR do
PATIENCE = 120.0  # seconds that a start, of the agent or of the speaker, waits for sessions
LOCAL_PREF = 100  # of a path that bears none
COUNTED = ("as-sequence", "as-set")
ORIGINS = {"igp": 0, "egp": 1, "incomplete": 2}
NEXT_HOPS = 16  # of one prefix
MANY, REST = 10_000, 5.0  # seconds that the best paths of more prefixes than that stay: looking for them takes so long
NextHops = Mapping[IPNetwork, tuple[IPAddress, ...]]


@dataclass(frozen=True, slots=True)
class Attributes:
    """Of one path (RFC 4271, section 5; RFC 4456, section 8)."""

    as_path: tuple[int, ...] = ()
    length: int = 0  # of the AS_PATH: a set counts as one, confederations as none
    origin: int = 2
    local_pref: int = LOCAL_PREF
    med: int = 0
    originator: str = ""
    clusters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Path:
    next_hop: IPAddress
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Side:
    """What the OPENs of a session said. `own_id`, `peer_id`: BGP identifiers."""

    local_as: int = 0
    peer_as: int = 0
    own_id: str = ""
    peer_id: str = ""
    restart: float = 0.0  # seconds that the peer asks its paths to be kept for when it ends

    @property
    def is_ibgp(self) -> bool:
        return self.local_as == self.peer_as


@dataclass(slots=True)
class Inbound:
    """Adj-RIB-In of one session."""

    side: Side = field(default_factory=Side)
    paths: dict[IPNetwork, Path] = field(default_factory=dict)
    old: set[IPNetwork] = field(default_factory=set)  # told before the session came up, and not since
    ended: set[int] = field(default_factory=set)  # versions of which End-of-RIB has come since then
    up: float | None = None  # since when
    down: float | None = None  # since when
    ours: bool = False  # it may be down because our side was started anew, of which its peer's OPEN says nothing

    def goes_up(self, when: float) -> None:
        if self.up is None:
            self.old, self.ended = {*self.paths}, set()
            # what is told again after the link to the relay was lost is as old as it was told first
            self.up, self.down = max(when, self.down or when), None

    def goes_down(self, when: float, *, ours: bool = False) -> None:
        if self.up is not None or self.down is None:
            self.up, self.down, self.ours = None, when, ours

    def take(self, update: Mapping[str, Any]) -> None:
        if "down" in update:
            # the latest event may be of an attempt that failed since
            self.up, self.down, self.ours = None, float(update["down"]), False
        attributes = _attributes(update.get("attributes", {}))
        for text, next_hop in update.get("put", {}).items():
            prefix = ip_network(text)
            self.paths[prefix] = Path(ip_address(next_hop), attributes)
            (self.old.add if update.get("old") else self.old.discard)(prefix)
        for text in update.get("gone", ()):
            self._forget(ip_network(text))
        if "end" in update:
            version = int(update["end"])
            self.ended.add(version)
            for prefix in [each for each in self.old if each.version == version]:
                self._forget(prefix)

    def _forget(self, prefix: IPNetwork) -> None:
        self.paths.pop(prefix, None)
        self.old.discard(prefix)

    def expires(self) -> float | None:
        """When what is left from before goes, None = never."""
        if self.down is not None:
            return self.down + (PATIENCE if self.ours else min(self.side.restart, LONGEST))
        return self.up + LONGEST if self.old and self.up is not None else None

    def expire(self, now: float) -> bool:
        """Whether something went."""
        when = self.expires()
        if when is None or now < when or not self.paths:
            return False
        for prefix in [*(self.paths if self.down is not None else self.old)]:
            self._forget(prefix)
        return True


class Received:
    """Of all sessions, by "PEER,LOCAL" as the relay names them."""

    def __init__(self) -> None:
        self._sessions: defaultdict[str, Inbound] = defaultdict(Inbound)
        self._speaker: tuple[int, float] | None = None
        self._is_whole = False  # the relay has told all that it has
        self._is_known = False  # and so have the peers, once: what happens to them later is an event like any other
        self._wanted: frozenset[str] = frozenset()
        self._best: NextHops | None = None  # of these
        self._is_stale = True  # something has changed since
        self._looked = 0.0  # when the best paths were looked for

    def restart(self, speaker: tuple[int, float]) -> None:
        """A relay has connected to `speaker` (pid, start time), and tells what it has. With another ExaBGP than before
        every session has ended.
        """
        if self._speaker is not None and self._speaker != speaker:
            for each in self._sessions.values():
                each.goes_down(speaker[1], ours=True)
        self._speaker, self._is_whole, self._is_stale = speaker, False, True

    def lose(self, when: float) -> None:
        """No relay is connected: sessions may have ended, or not."""
        for each in self._sessions.values():
            each.goes_down(when, ours=True)

    def take_event(self, event: Mapping[str, Any]) -> None:
        """ExaBGP's word that a session came up or ended. Raises KeyError, TypeError or ValueError on what it is not."""
        session = event.get("neighbor")
        if event.get("type") != "state" or not isinstance(session, dict) or session["state"] not in ("up", "down"):
            return
        address, when = session["address"], float(event["time"])
        inbound = self._sessions[f"{address['peer']},{address.get('local', '')}"]
        (inbound.goes_up if session["state"] == "up" else inbound.goes_down)(when)
        self._is_stale = True

    def take(self, update: Mapping[str, Any]) -> None:
        """The relay's. Raises KeyError, TypeError or ValueError on what is none."""
        self._is_whole |= bool(update.get("whole"))
        self._is_stale = True
        if "session" in update:
            inbound = self._sessions[str(update["session"])]
            if "side" in update:
                inbound.side = replace(inbound.side, **update["side"])  # an OPEN's has everything
            inbound.take(update)

    def best(self, now: float, started: float, sessions: Iterable[str], loaded: Iterable[str] = ()) -> NextHops | None:
        """Next hops by prefix, the same value while nothing changes, or many have changed lately (`REST`). `sessions`:
        that there should be; `loaded`: that ExaBGP has, which may be back before it has ended them. Others are gone.

        None = not known yet: nobody has told, or a session of a start at `started` still may. Without sessions there is
        nothing to know.
        """
        wanted = frozenset(sessions)
        for name in self._sessions.keys() - wanted.union(loaded):
            del self._sessions[name]
        if wanted != self._wanted:
            self._wanted, self._is_stale = wanted, True
        expired = [each.expire(now) for each in self._sessions.values()]
        if any(expired):
            self._is_stale = True
        self._is_known |= self._is_whole and (now - started >= PATIENCE or all(map(self._has_ended, wanted)))
        if wanted and not self._is_known:
            return None
        rests = self._best is not None and len(self._best) > MANY and now < self._looked + REST
        if self._best is None or (self._is_stale and not rests):
            here = {name: each for name, each in self._sessions.items() if name in wanted}
            self._best, self._is_stale, self._looked = best_paths(here), False, now
        return self._best

    def _has_ended(self, name: str) -> bool:
        found = self._sessions.get(name)
        return found is not None and bool(found.ended)


def best_paths(sessions: Mapping[str, Inbound]) -> dict[IPNetwork, tuple[IPAddress, ...]]:
    """Next hops of the paths that are equal to the best one but for who told them (RFC 4271, section 9.1.2)."""
    found: defaultdict[IPNetwork, list[tuple[Side, Path]]] = defaultdict(list)
    for _, inbound in sorted(sessions.items()):
        for prefix, path in inbound.paths.items():
            if not is_loop(path.attributes, inbound.side):
                found[prefix].append((inbound.side, path))
    return {prefix: _next_hops(candidates) for prefix, candidates in found.items()}


def is_loop(attributes: Attributes, side: Side) -> bool:
    """Whether it has been here (RFC 4271, section 9.1.2; RFC 4456, section 8)."""
    is_own = side.own_id in (attributes.originator, *attributes.clusters) and side.own_id != ""
    return side.local_as in attributes.as_path or is_own


def _next_hops(candidates: Iterable[tuple[Side, Path]]) -> tuple[IPAddress, ...]:
    ranked = sorted(_without_worse_med(candidates), key=_rank)
    _, equal = next(groupby(ranked, key=lambda each: _rank(each)[:4]))
    return tuple(dict.fromkeys(path.next_hop for _, path in equal))[:NEXT_HOPS]


def _without_worse_med(candidates: Iterable[tuple[Side, Path]]) -> Iterator[tuple[Side, Path]]:
    """Of those by one neighbouring AS that are equal so far, the ones with the least (section 9.1.2.2, c)."""

    def group(each: tuple[Side, Path]) -> tuple[tuple[int, int, int], int]:
        return _preference(each), next(iter(each[1].attributes.as_path), each[0].local_as)

    for _, equal in groupby(sorted(candidates, key=group), key=group):
        there = [*equal]
        least = min(path.attributes.med for _, path in there)
        yield from (each for each in there if each[1].attributes.med == least)


def _preference(each: tuple[Side, Path]) -> tuple[int, int, int]:
    """What is less is better. LOCAL_PREF counts within an AS alone (section 5.1.5)."""
    side, path = each
    local_pref = path.attributes.local_pref if side.is_ibgp else LOCAL_PREF
    return -local_pref, path.attributes.length, path.attributes.origin


def _rank(each: tuple[Side, Path]) -> tuple[int, int, int, bool, int, int]:
    side, path = each
    told_by = path.attributes.originator or side.peer_id or "0.0.0.0"
    return (*_preference(each), side.is_ibgp, int(IPv4Address(told_by)), len(path.attributes.clusters))


def _attributes(told: Mapping[str, Any]) -> Attributes:
    """ExaBGP's attributes of one UPDATE."""
    segments = [(each["element"], tuple(map(int, each["value"]))) for each in (told.get("as-path") or {}).values()]
    return Attributes(
        tuple(number for _, numbers in segments for number in numbers),
        sum(1 if kind == "as-set" else len(numbers) for kind, numbers in segments if kind in COUNTED),
        ORIGINS.get(str(told.get("origin")), 2),
        int(told.get("local-preference", LOCAL_PREF)),
        int(told.get("med", 0)),
        str(told.get("originator-id", "")),
        tuple(map(str, told.get("cluster-list", ()))),
    )
