"""The brake: withdrawals that nothing explains are held for a while, shown and alarmed, when they are many at once.

A store that has just come back, a directory half copied or emptied by mistake look like the wish to withdraw. So each
desired state is compared with what stood before, and what would be withdrawn is sorted:

- Explained. An object's own change is its cause: the object is still there and says no, or it was deleted, by an API
  server (which forgets nothing by accident) or from a file that still says something. Owners are asked by their `Ref`,
  where an object was by its `Origin`; neither a path's attributes nor a file's name tell.
- Unexplained, but little: below the limits it passes too. One service that is lost harms less than a daemon that
  second-guesses everything.
- Unexplained and much: held. The state goes on with the lost paths in it, and with the groups, policies and pods that
  they lead to; a refusal says so, and the count of held paths is an alarm.

What stood before is not the last round's state, or files that are deleted one by one would each be little: losses
within WINDOW count together, against the state at the window's begin. While something is held, that state stays the
measure. After a start it is what the speaker carries from the agent before us: paths without owners, so that nothing
in it is explained, save a peer that is not configured any more.

Holding ends when the lost comes back, when the rest is explained, when `hold` seconds have passed, or when a person
releases it (`release-brake`, or having the configuration read again). Additions and changes of paths always pass, and
so do new pods: a brake must not keep anything from working. It writes nothing and asks nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from bgp.path import AdjRibOut, Desired, SessionKey
from egress.policy import Desired as EgressDesired
from egress.policy import Group, Policy, Served
from fib.plan import Desired as Routes
from routerd.model import IPAddress, IPNetwork, Origin, Refusal, Snapshot
from routerd.node.announce import Announcements
from routerd.node.desired import EGRESS_ROOM, FIB_ROOM, NodeState
from routerd.refs import BGP, EGRESS, NODE, SERVICE, Ref

WINDOW = 10.0  # seconds within which losses count as one: files that are deleted one after the other
OF_THE_NODE = frozenset({"NodeExcluded", "NetworkUnavailable"})  # explain everything that this node withdraws
Ribs = Mapping[SessionKey, AdjRibOut]


@dataclass(frozen=True, slots=True)
class Limits:
    """Held is what takes more than `percent` of a peer's paths, and at least `paths`; for `hold` seconds at most."""

    enabled: bool = True
    percent: int = 50
    paths: int = 20
    hold: float = 600.0


@dataclass(frozen=True, slots=True)
class Before:
    """What the present state is compared with. After a start only what the speaker carries is known of it."""

    ribs: Ribs
    at: float
    state: NodeState | None = None
    snapshot: Snapshot = field(default_factory=Snapshot)

    @property
    def announced(self) -> Announcements | None:
        return self.state.announcements if self.state is not None else None


# --- what explains a withdrawal


def _files(snapshot: Snapshot) -> frozenset[str]:
    """Files that still say something."""
    peers = snapshot.bgp.peers if snapshot.bgp else ()
    maps = (snapshot.nodes, snapshot.namespaces, snapshot.pods, snapshot.services, snapshot.pools, snapshot.policies)
    objects = [each for mapping in maps for each in (mapping or {}).values()]
    return frozenset(each.origin.file for each in (*objects, *(snapshot.endpoint_slices or ()), *peers))


@dataclass(frozen=True, slots=True)
class _Causes:
    before: Snapshot
    now: Snapshot
    refused: Mapping[Ref, Refusal]
    files: frozenset[str]

    def was_deleted(self, origin: Origin) -> bool:
        """Whether an object that is gone was taken out of something that is still there; an API server always is."""
        return origin.is_api or origin.file in self.files

    def explain(self, owner: Ref) -> bool:
        if owner.kind == SERVICE:
            return self._service(owner)
        return self._group(owner) if owner.kind == EGRESS else owner.kind == NODE

    def _service(self, owner: Ref) -> bool:
        key = owner.key
        if key not in (self.now.services or {}):
            former = (self.before.services or {}).get(key)
            return former is not None and self.was_deleted(former.origin)
        refusal = self.refused.get(owner)
        if refusal is None:
            return True  # it is announced: with another address
        if refusal.reason == "NoAddress":
            refusals = self.now.allocations.refusals if self.now.allocations else ()
            return any(each.object == owner for each in refusals)
        if refusal.reason in ("NoEndpoints", "NoLocalEndpoints"):
            return self._endpoints(key)
        return True

    def _endpoints(self, key: str) -> bool:
        def slices(snapshot: Snapshot) -> list[Origin]:
            every_slice = snapshot.endpoint_slices or ()
            return [each.origin for each in every_slice if f"{each.namespace}/{each.service}" == key]

        return bool(slices(self.now)) or all(map(self.was_deleted, slices(self.before)))

    def _group(self, owner: Ref) -> bool:
        if any(each.ref == owner for each in (self.now.allocations.groups if self.now.allocations else ())):
            return True  # other gateways
        earlier = self.before.allocations.groups if self.before.allocations else ()
        policies = next((each.policies for each in earlier if each.ref == owner), ())
        return bool(policies) and all(map(self.explain_policy, policies))

    def explain_policy(self, key: str) -> bool:
        former = (self.before.policies or {}).get(key)
        return key in (self.now.policies or {}) or (former is not None and self.was_deleted(former.origin))

    def explain_peer(self, address: IPAddress) -> bool:
        if any(address in each.addresses for each in (self.now.bgp.peers if self.now.bgp else ())):
            return True  # not from this node any more
        former = self.before.bgp.peers if self.before.bgp else ()
        return any(self.was_deleted(each.origin) for each in former if address in each.addresses)


# --- the decision


def withdrawn(before: Before, announced: Announcements) -> dict[SessionKey, AdjRibOut]:
    """By session, the paths that it had and shall not have."""
    differences: dict[tuple[int, int], AdjRibOut] = {}  # peers of a family share one table
    withdrawals = {}
    for key, old in before.ribs.items():
        new = announced.desired.ribs.get(key, {})
        if (id(old), id(new)) not in differences:
            # A set of a dict's keys takes their hashes with it: hashing a network is dear.
            differences[id(old), id(new)] = {prefix: old[prefix] for prefix in set(old).difference(new)}
        withdrawals[key] = differences[id(old), id(new)]
    return {key: rib for key, rib in withdrawals.items() if rib}


def unexplained(before: Before, announced: Announcements, now: Snapshot) -> dict[SessionKey, AdjRibOut]:
    """By session, the paths that would be withdrawn without a cause that shows."""
    withdrawals = withdrawn(before, announced)
    is_leaving = announced.drain is not None and announced.drain.withdraws
    if is_leaving or any(each.reason in OF_THE_NODE for each in announced.refusals):
        return {}
    refused = {each.object: each for each in announced.refusals}
    causes = _Causes(before.snapshot, now, refused, _files(now))
    owners = before.announced.owners if before.announced is not None else {}
    verdicts: dict[IPNetwork, bool] = {}

    def is_explained(prefix: IPNetwork) -> bool:
        if prefix not in verdicts:
            verdicts[prefix] = any(map(causes.explain, owners.get(prefix, ())))
        return verdicts[prefix]

    def lost(key: SessionKey, rib: AdjRibOut) -> AdjRibOut:
        if key not in announced.desired.peers and (before.announced is None or causes.explain_peer(key.peer)):
            return {}
        if key not in announced.desired.peers:
            return rib
        return {prefix: path for prefix, path in rib.items() if not is_explained(prefix)}

    losses = {key: lost(key, rib) for key, rib in withdrawals.items()}
    return {key: rib for key, rib in losses.items() if rib}


def is_too_much(lost: Ribs, before: Before, limits: Limits) -> bool:
    """Whether any peer would lose more than the limits let pass at once."""
    return any(
        len(rib) >= limits.paths and 100 * len(rib) > limits.percent * len(before.ribs[key])
        for key, rib in lost.items()
    )


def with_lost_paths(state: NodeState, lost: Ribs, before: Before, limits: Limits, now: Snapshot) -> NodeState:
    """`state` with the lost paths kept, and what the kept egress addresses lead to."""
    announced, former = state.announcements, before.announced
    assert announced is not None
    peers = dict(announced.desired.peers)
    if former is not None:
        peers |= {key: former.desired.peers[key] for key in lost if key not in peers}
    ribs = {key: {**announced.desired.ribs.get(key, {}), **lost.get(key, {})} for key in peers}
    prefixes = {prefix for rib in lost.values() for prefix in rib}
    former_owners = former.owners if former is not None else {}
    owners = {**{prefix: former_owners.get(prefix, ()) for prefix in prefixes}, **announced.owners}
    held = {key: {**_shares(former, key, rib), **announced.shares.get(key, {})} for key, rib in lost.items()}
    message = (
        f"{len(prefixes)} paths would be withdrawn at once, and no change explains it: they are held for "
        f"{limits.hold:g} s; look at the store, then let it come back or run `routerd release-brake`"
    )
    refusal = Refusal(Ref(BGP), "WithdrawalHeld", message)
    announcements = replace(announced, desired=Desired(peers, ribs), owners=owners, shares={**announced.shares, **held})
    refusals = tuple(sorted({*state.refusals, refusal}, key=lambda each: each.order))
    egress = _kept_egress(state, before, now, prefixes)
    rooms = {**state.rooms, EGRESS_ROOM: egress, FIB_ROOM: _kept_blackholes(state, before, prefixes)}
    may_retire = _may_retire(prefixes, before, now)
    return NodeState(announcements, rooms, refusals, may_retire=may_retire, selecting=state.selecting)


def _shares(
    former: Announcements | None, session: SessionKey, prefixes: Iterable[IPNetwork]
) -> dict[IPNetwork, tuple[Ref, ...]]:
    """The owners that held `prefixes` had in the session; () = nobody tells."""
    return {prefix: former.owners_in(session, prefix) if former is not None else () for prefix in prefixes}


# --- egress: what is added passes always, and what held paths lead to stays


def _may_retire(prefixes: Iterable[IPNetwork], before: Before, now: Snapshot) -> bool:
    """Whether gateway state may go. After a start nobody tells the owners of what the speaker carries: all but the
    addresses of services, which the operator knows, may lead to some of it.
    """
    allocated = now.allocations.services if now.allocations else ()
    vips = {address for each in allocated for address in each.addresses}
    return before.state is not None or all(each.num_addresses == 1 and each[0] in vips for each in prefixes)


def _kept_blackholes(state: NodeState, before: Before, prefixes: Collection[IPNetwork]) -> Routes | None:
    """As it shall be, with those of aggregates among held `prefixes`; after a start nothing of it is taken away."""
    new: Routes | None = state.rooms.get(FIB_ROOM)
    old: Routes | None = before.state.rooms.get(FIB_ROOM) if before.state is not None else None
    if old is None or new is None or not old.aggregates or new.aggregates is None:
        return new
    held = {prefix: parts for prefix, parts in old.aggregates.items() if prefix in prefixes}
    return replace(new, aggregates={**held, **new.aggregates}, spared=new.spared | old.spared)


def _kept_egress(
    state: NodeState, before: Before, now: Snapshot, prefixes: Collection[IPNetwork]
) -> EgressDesired | None:
    """As it shall be, with the groups and policies that it would lose for held `prefixes`, or without a cause."""
    old, new = before.state.egress if before.state is not None else None, state.egress
    if old is None or new is None:
        return new
    causes = _Causes(before.snapshot, now, {}, _files(now))
    groups = {
        number: group
        for number, group in old.groups.items()
        if number not in new.groups
        and (
            any(address in each for each in prefixes for address in group.egress_ips)
            or not causes.explain(Ref(EGRESS, name=str(number)))
        )
    }
    policies = {
        name: policy
        for name, policy in old.policies.items()
        if name not in new.policies and (policy.group in groups or not causes.explain_policy(name))
    }
    return _with(new, old, groups, policies)


def _with(
    new: EgressDesired, old: EgressDesired, groups: Mapping[int, Group], policies: Mapping[str, Policy]
) -> EgressDesired:
    """`new` with these of `old`, the pods that they steer and the nodes that they leave through."""
    if not groups and not policies:
        return new
    back = {
        name: replace(policy, group=old.policies[name].group)
        for name, policy in new.policies.items()
        if policy.group == 0 and name in old.policies and old.policies[name].group in groups
    }
    return replace(
        new,
        groups={**groups, **new.groups},
        policies={**policies, **new.policies, **back},
        pods=_steered(new.pods, old.pods, policies),
        served={**_of(old.served, groups), **new.served},
        nodes={**old.nodes, **new.nodes},
    )


def _of(served: Mapping[IPAddress, Served], groups: Mapping[int, Group]) -> dict[IPAddress, Served]:
    addresses = {address for group in groups.values() for address in group.egress_ips}
    return {address: each for address, each in served.items() if address in addresses}


def _steered(
    new: Mapping[IPAddress, tuple[str, ...]], old: Mapping[IPAddress, tuple[str, ...]], policies: Mapping[str, Policy]
) -> dict[IPAddress, tuple[str, ...]]:
    steered = dict(new)
    for address, names in old.items():
        if common := policies.keys() & names:
            steered[address] = tuple(sorted({*new.get(address, ()), *common}))
    return steered


class Brake:
    """The decision over time. `clock` in seconds, never backwards."""

    def __init__(self, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits or Limits(enabled=False)
        self._clock = clock
        self._before: Before | None = None
        self._last: Before | None = None
        self._since: float | None = None  # when holding began
        self._is_released = False
        self.paths = 0  # held now, of all peers

    def begin(self, carried: Ribs) -> None:
        """What the speaker has from the agent before us."""
        if self._before is None and any(carried.values()):
            self._before = Before(carried, self._clock())

    def release(self) -> int:
        """Lets everything go that is held, at the next `apply`; how many paths that is."""
        self._is_released = self._since is not None
        return self.paths

    @property
    def is_due(self) -> bool:
        """Whether what is held is to be decided anew although nothing changed."""
        return self._since is not None and (self._is_released or self._clock() - self._since >= self._limits.hold)

    def apply(self, state: NodeState, snapshot: Snapshot) -> NodeState:
        """`state`, or with what must not be withdrawn yet."""
        if not self._limits.enabled or state.announcements is None:
            return state
        now = self._clock()
        if self._since is None and self._last is not None and self._before is not None:
            self._before = replace(self._last, at=now) if now - self._before.at >= WINDOW else self._before
        before = self._before
        if before is not None and not self.is_due:
            is_holding = self._since is not None
            is_suspect = is_holding or is_too_much(withdrawn(before, state.announcements), before, self._limits)
            lost = unexplained(before, state.announcements, snapshot) if is_suspect else {}
            if is_too_much(lost, before, self._limits) or (lost and is_holding):
                self._since = now if self._since is None else self._since
                self.paths = sum(map(len, lost.values()))
                return with_lost_paths(state, lost, before, self._limits, snapshot)
        self._last = Before(state.announcements.desired.ribs, now, state, snapshot)
        if before is None or self._since is not None or before.state is None:
            self._before = self._last
        self._since, self._is_released, self.paths = None, False, 0
        return state
