"""From what the speaker should hold and what it holds to ordered actions. Pure.

Order: what is new or changed for sessions that stay, then what they lose; then peers that go lose all they have, which
is waited for; then the configuration is reloaded; then what new and reset sessions get. Every prefix of a plan leaves
a safe state: cut anywhere, observed and planned again, it converges. `str()` of an action is one line for people.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bgp import conf, rib
from bgp.path import AdjRibOut, Desired, IPAddress, IPNetwork, Path, SessionKey, SpeakerPeer
from bgp.rib import Attributes, PathRefusal, Settled

_SHOWN = 3  # prefixes named in a line


@dataclass(frozen=True, slots=True)
class Observed:
    """What ExaBGP has loaded (peer -> `conf.digest`), and the Adj-RIB-Out of each in normal form."""

    digests: Mapping[SessionKey, str]
    ribs: Mapping[SessionKey, AdjRibOut]


@dataclass(frozen=True, slots=True)
class Announce:
    """Prefixes with the same attributes to the same peers; replaces what the peers have for them."""

    peers: tuple[SessionKey, ...]
    attributes: Attributes
    paths: tuple[Path, ...] = field(repr=False)

    def __str__(self) -> str:
        return f"announce {_some(path.prefix for path in self.paths)} to {_list(self.peers)} {_words(self.attributes)}"


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Prefixes of one family that the same peers lose."""

    peers: tuple[SessionKey, ...]
    prefixes: tuple[IPNetwork, ...] = field(repr=False)

    def __str__(self) -> str:
        return f"withdraw {_some(self.prefixes)} from {_list(self.peers)}"


@dataclass(frozen=True, slots=True)
class Flush:
    """Waits until all that is queued for the peers was sent: with graceful restart a closed session keeps its paths.

    `moved`: sessions with a peer that has another one from now on, from an address of ours that may be gone already:
    these are not waited for for long.
    """

    peers: tuple[SessionKey, ...]
    moved: tuple[SessionKey, ...] = ()

    def __str__(self) -> str:
        return f"wait until the withdrawals have left for {_list((*self.peers, *self.moved))}"


@dataclass(frozen=True, slots=True)
class Reload:
    """The configuration of all peers. Only the sessions named are touched."""

    peers: tuple[SpeakerPeer, ...] = field(repr=False)
    added: tuple[SessionKey, ...] = ()
    removed: tuple[SessionKey, ...] = ()
    reset: tuple[SessionKey, ...] = ()

    def __str__(self) -> str:
        named = [("add", self.added), ("remove", self.removed), ("reset", self.reset)]
        return "reload peers: " + "; ".join(f"{verb} {_list(peers)}" for verb, peers in named if peers)


Action = Announce | Withdraw | Flush | Reload


@dataclass(frozen=True, slots=True)
class Plan:
    actions: tuple[Action, ...]
    refusals: tuple[PathRefusal, ...]
    pending: Mapping[SessionKey, int]  # peer -> paths to announce or withdraw


# What ExaBGP itself rejected: not tried again while the path is the same.
Rejected = Mapping[tuple[SessionKey, IPNetwork], Path]


def plan(
    desired: Desired,
    observed: Observed,
    rejected: Rejected | None = None,
    *,
    reload: bool = True,
    settled: dict[SessionKey, Settled] | None = None,
) -> Plan:
    """`settled`: of the last plan, by peer; it is renewed.

    `reload` False leaves the configuration as it is (it was refused); then only loaded sessions get paths."""
    refusals = [refusal for peer in desired.peers.values() if (refusal := conf.peer_refusal(peer)) is not None]
    refused = {refusal.peer for refusal in refusals}
    peers = {key: peer for key, peer in desired.peers.items() if key not in refused}
    wanted = conf.digests(peers)
    changed = {key for key in wanted if observed.digests.get(key) != wanted[key]}
    removed = tuple(key for key in observed.digests if key not in wanted)

    now, later = _Changes(), _Changes()
    before = {} if settled is None else settled
    for key in before.keys() - peers.keys():
        del before[key]
    for key, peer in peers.items():
        held = observed.ribs.get(key, {})
        found = rib.difference(desired.ribs.get(key, {}), held, peer, before.setdefault(key, Settled()))
        refusals += found.refusals
        announced = _without_rejected(found.announced, key, rejected or {})
        (later if key in changed else now).add(peer, announced, found.withdrawn)
    actions = now.actions()
    if reload and (changed or removed):
        actions += _removals(removed, observed, {key.peer for key in changed})
        actions.append(
            Reload(
                tuple(peers.values()),
                tuple(in_order(changed - observed.digests.keys())),
                tuple(in_order(removed)),
                tuple(in_order(changed & observed.digests.keys())),
            )
        )
        actions += later.actions()
    return Plan(tuple(actions), tuple(refusals), {**now.counts, **later.counts})


def _without_rejected(announced: list[Path], peer: SessionKey, rejected: Rejected) -> list[Path]:
    if not rejected:
        return announced
    return [path for path in announced if rejected.get((peer, path.prefix)) != path]


def _removals(removed: Sequence[SessionKey], observed: Observed, anew: Collection[IPAddress]) -> list[Action]:
    """`anew`: peers with which a session is to begin."""
    losing = [key for key in removed if observed.ribs.get(key)]
    changes = _Changes()
    for key in losing:
        changes.lose(key, observed.ribs[key])
    # Waited for even if there is nothing to withdraw any more: a plan before this one may have been cut in between.
    moved = tuple(key for key in removed if key.peer in anew)
    gone = tuple(key for key in removed if key.peer not in anew)
    return [*changes.actions(), *([Flush(gone, moved)] if removed else [])]


class _Changes:
    """Collects the changes of many peers and groups those that one command can carry."""

    def __init__(self) -> None:
        self._sessions: list[SessionKey] = []
        self._announced: dict[Attributes, list[tuple[list[SessionKey], list[Path]]]] = {}
        self._withdrawn: dict[IPNetwork, list[int]] = {}  # numbers of sessions: addresses are dear to hash
        self.counts: dict[SessionKey, int] = {}

    def add(self, peer: SpeakerPeer, announced: list[Path], withdrawn: list[IPNetwork]) -> None:
        alike: dict[rib.Form, list[Path]] = {}
        for path in announced:
            alike.setdefault(rib.form_of(path), []).append(path)
        for paths in alike.values():
            self._announce(peer.key, rib.attributes_of(paths[0], peer), paths)
        self.lose(peer.key, withdrawn)
        self.counts[peer.key] = len(announced) + len(withdrawn)

    def _announce(self, session: SessionKey, attributes: Attributes, paths: list[Path]) -> None:
        """Together with sessions that get the very same. Comparing is quick where paths are the same objects."""
        groups = self._announced.setdefault(attributes, [])
        for sessions, others in groups:
            if others == paths:
                sessions.append(session)
                return
        groups.append(([session], paths))

    def lose(self, session: SessionKey, withdrawn: Iterable[IPNetwork]) -> None:
        number = len(self._sessions)
        self._sessions.append(session)
        for prefix in withdrawn:
            self._withdrawn.setdefault(prefix, []).append(number)

    def _keys(self, numbers: tuple[int, ...]) -> tuple[SessionKey, ...]:
        return tuple(self._sessions[number] for number in numbers)

    def actions(self) -> list[Action]:
        """Adds before removals."""
        withdrawn: dict[tuple[tuple[int, ...], int], list[IPNetwork]] = {}
        for prefix, losing in self._withdrawn.items():
            withdrawn.setdefault((tuple(losing), prefix.version), []).append(prefix)
        announced = [(key, group) for key, groups in self._announced.items() for group in groups]
        return [
            *(Announce(tuple(sessions), attributes, tuple(paths)) for attributes, (sessions, paths) in announced),
            *(Withdraw(self._keys(losing), tuple(prefixes)) for (losing, _), prefixes in withdrawn.items()),
        ]


def in_order(keys: Iterable[SessionKey]) -> list[SessionKey]:
    return sorted(keys, key=lambda key: key.order)


def _list(keys: Iterable[SessionKey]) -> str:
    return ", ".join(map(str, keys))


def _some(prefixes: Iterable[IPNetwork]) -> str:
    every = [str(prefix) for prefix in prefixes]
    more = len(every) - _SHOWN
    return ", ".join(every[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _words(attributes: Attributes) -> str:
    return " ".join(_attribute_words(attributes))


def _attribute_words(attributes: Attributes) -> Iterator[str]:
    yield f"next-hop {attributes.next_hop or 'self'}"
    if attributes.local_pref is not None:
        yield f"local-pref {attributes.local_pref}"
    if attributes.med is not None:
        yield f"med {attributes.med}"
    if attributes.prepend:
        yield f"prepend {attributes.prepend}"
    if attributes.origin != "igp":
        yield f"origin {attributes.origin}"
    if attributes.communities:
        yield f"community {','.join(attributes.communities)}"
