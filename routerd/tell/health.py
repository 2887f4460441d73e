"""How a node is, for its RouterdNode object: an agent's status in the words of the Kubernetes API. Pure.

    StoreSynced        everything was read, is read on, and nothing that drives the whole node was refused
    DatapathAttached   the eBPF programs are where they should be; absent where egress is switched off
    BGPEstablished     every session that this node should have is up; absent where BGP is switched off
    Drained            the node leaves, or has left (then it may be stopped); absent while it serves
    Ready              all but that, and nothing of the node's own is refused

What is wrong with one service, policy, pool or pod is told there, and makes no node unready: a service without an
endpoint on this node is ordinary. Conditions bear no times, which the writer adds.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from bgp.path import session_names
from egress.plan import UNHOOKED
from routerd.model import IPAddress, IPNetwork, Refusal, Snapshot
from routerd.node.announce import Announcements
from routerd.node.sessions import peers_here
from routerd.refs import BGP, NODE, PATH, PEER, POD_ADDRESS, SERVICE, SPEAKER, STORE, Ref
from routerd.tell.status import AgentStatus, PeerStatus

GRACE = 10.0  # seconds after a start in which only good is told: what was said before is most often true again soon
OF_THE_NODE = frozenset({NODE, "uplink", PEER, PATH, SPEAKER, BGP})  # kinds of objects of refusals
OF_THE_STORE = frozenset({STORE, "ConfigMap"})
LONGEST = 1024  # characters of a message


@dataclass(frozen=True, slots=True)
class Enabled:
    """What the configuration has this node do."""

    bgp: bool = True
    egress: bool = True


@dataclass(frozen=True, slots=True)
class Condition:
    """`holds` None = not known yet."""

    type: str
    holds: bool | None
    reason: str
    message: str = ""

    def as_json(self) -> dict[str, str]:
        status = "Unknown" if self.holds is None else str(self.holds)
        return {"type": self.type, "status": status, "reason": self.reason, "message": self.message[:LONGEST]}


def node_health(status: AgentStatus, snapshot: Snapshot, enabled: Enabled, age: float) -> dict[str, Any]:
    """Part of a RouterdNode's status; {} = nothing to say yet.

    `snapshot` is what `status` was made from, `age` is in seconds since the agent started.
    """
    own = _own_refusals(status, snapshot)
    errors = tuple(each for each in own if each.severity == "error")
    peers = _peers(status, snapshot, errors)
    parts = [_store(status, errors)]
    parts += [_datapath(status)] if enabled.egress else []
    parts += [_bgp(status, peers, errors)] if enabled.bgp else []
    parts += _drained(status)
    ready = _ready(status, parts, own)
    if not ready.holds and age < GRACE:
        return {}
    health: dict[str, Any] = {"conditions": [each.as_json() for each in (ready, *parts)]}
    if enabled.bgp:
        health["peers"] = peers
    if status.generation is not None:
        health["generation"] = status.generation
    return health


def _own_refusals(status: AgentStatus, snapshot: Snapshot) -> tuple[Refusal, ...]:
    """What of the node's own is refused, and of the store; not what is wrong with what people wrote."""

    def is_own(refusal: Refusal) -> bool:
        kind = refusal.object.kind
        return kind in OF_THE_STORE or (kind in OF_THE_NODE and refusal not in snapshot.refusals)

    return tuple(filter(is_own, status.refusals))


def _of(refusals: Iterable[Refusal], *kinds: str) -> Refusal | None:
    """The first whose object is of one of the kinds."""
    return next((each for each in refusals if each.object.kind in kinds), None)


def of_pods(status: AgentStatus, snapshot: Snapshot) -> tuple[Refusal, ...]:
    """What is told of pods' devices by address, as it is told of the pods."""
    told = [each for each in status.refusals if each.reason == UNHOOKED]
    if not told:
        return ()
    there = (pod for pod in (snapshot.pods or {}).values() if not pod.finished)
    pods = {Ref(POD_ADDRESS, name=str(address)): pod for pod in there for address in pod.addresses}
    found = ((each, pods[each.object]) for each in told if each.object in pods)
    return tuple(replace(each, object=Ref("Pod", pod.namespace, pod.name)) for each, pod in found)


def announced_services(
    announced: Announcements | None, unannounced: Container[IPNetwork] = ()
) -> dict[str, tuple[str, ...]] | None:
    """By key of each Service of which a prefix is announced, the peers that have it, up or not, as metrics name them.

    None = it is not known. `unannounced`: aggregates that no peer was told of.
    """
    if announced is None:
        return None
    name_of = session_names(announced.desired.peers)
    found: dict[str, set[str]] = {}
    for key, rib in announced.desired.ribs.items():
        label = announced.desired.peers[key].description or name_of[key]
        told = (prefix for prefix in rib if prefix not in unannounced)
        for owner in (owner for prefix in told for owner in announced.owners_in(key, prefix)):
            if owner.kind == SERVICE:
                found.setdefault(owner.key, set()).add(label)
    return {service: tuple(sorted(peers)) for service, peers in found.items()}


# --- conditions


def _failed(kind: str, refusal: Refusal) -> Condition:
    return Condition(kind, False, refusal.reason, f"{refusal.object}: {refusal.message}")


def _store(status: AgentStatus, own: tuple[Refusal, ...]) -> Condition:
    refusal = _of(own, *OF_THE_STORE)
    if refusal is not None:
        return _failed("StoreSynced", refusal)
    if status.missing:
        return Condition("StoreSynced", False, "NotSynced", f"not read yet: {', '.join(status.missing)}")
    return Condition("StoreSynced", True, "Synced")


def _drained(status: AgentStatus) -> list[Condition]:
    drain = status.drain
    if drain.state == "serving":
        return []
    waits = f"{drain.message}; waits for: {'; '.join(drain.waits)}" if drain.waits else drain.message
    return [Condition("Drained", drain.state == "drained", drain.reason, waits)]


def _datapath(status: AgentStatus) -> Condition:
    if status.rounds.last_error:
        return Condition("DatapathAttached", False, "RoundFailed", status.rounds.last_error)
    if not status.egress.datapath:
        return Condition("DatapathAttached", False, "NotAttached", "the datapath is not attached, or cannot be read")
    return Condition("DatapathAttached", True, "Attached")


def _bgp(status: AgentStatus, peers: list[dict[str, Any]], own: tuple[Refusal, ...]) -> Condition:
    kind = "BGPEstablished"
    if status.missing and not peers:
        return Condition(kind, None, "NotSynced", "the peers are not known yet")
    if any(each.reason == "UnknownNode" for each in own):
        return Condition(kind, None, "UnknownNode", "the store has no Node of this name")
    if not peers:
        return Condition(kind, True, "NoPeers", "no peer is configured for this node")
    down = [each for each in peers if each["state"] != "up"]
    if not down:
        return Condition(kind, True, "Established", f"{len(peers)} of {len(peers)} sessions are up")
    refusal = _of(own, SPEAKER) or next((each for each in own if each.object in _objects_of(down[0])), None)
    which = "; ".join(f"{each.get('name') or each['address']}: {each['message']}" for each in down)
    reason = refusal.reason if refusal is not None else "SessionDown"
    return Condition(kind, False, reason, f"{len(peers) - len(down)} of {len(peers)} sessions are up; {which}")


def _objects_of(peer: dict[str, Any]) -> tuple[Ref, ...]:
    names = peer["address"], f"{peer['address']} from {peer['localAddress']}", peer.get("name", "")
    return tuple(Ref(PEER, name=name) for name in names)


def _ready(status: AgentStatus, parts: list[Condition], own: tuple[Refusal, ...]) -> Condition:
    """What keeps the node from being ready, the gravest first: what the rest follows from. A warning does not: it is
    the message of a node that is ready.
    """
    warning = next((each for each in own if each.severity == "warning"), None)
    own = tuple(each for each in own if each.severity == "error")
    by_type = {each.type: each for each in parts}
    store, datapath, bgp = (by_type.get(name) for name in ("StoreSynced", "DatapathAttached", "BGPEstablished"))
    node, other = _of(own, NODE, "uplink"), _of(own, *OF_THE_NODE)
    candidates = (
        store,
        _failed("Ready", node) if node is not None else None,
        Condition("Ready", False, "ConfigurationRefused", status.config.error) if status.config.stale else None,
        datapath,
        bgp,
        _failed("Ready", other) if other is not None else None,
    )
    worst = next((each for each in candidates if each is not None and not each.holds), None)
    if worst is not None:
        return Condition("Ready", False, worst.reason, worst.message)
    if not status.ready:
        return Condition("Ready", False, "NotReady", status.not_ready_because())
    return Condition("Ready", True, "Ready", f"{warning.object}: {warning.message}" if warning is not None else "")


# --- peers


def _peers(status: AgentStatus, snapshot: Snapshot, own: tuple[Refusal, ...]) -> list[dict[str, Any]]:
    """Every session that this node should have, by both addresses, of which the API allows one each; and the peers
    without one.
    """
    messages = {each.object.name: each.message for each in own if each.object.kind == PEER}
    found = {each.view.key: each for each in status.peers}
    name_of = session_names(found)
    sessions = [_session(found[key], messages, name_of[key]) for key in sorted(found, key=lambda key: key.order)]
    opened = {key.peer for key in found}
    refused = {address: peer for address, peer in _refused(status, snapshot, messages) if address not in opened}
    return sessions + [refused[address] for address in sorted(refused, key=lambda each: (each.version, int(each)))]


def _session(status: PeerStatus, messages: dict[str, str], name: str) -> dict[str, Any]:
    view = status.view
    ends = {"address": str(view.key.peer), "localAddress": str(view.key.local)}
    entry: dict[str, Any] = {**ends, "state": view.session.state}
    entry |= {"name": status.name} if status.name else {}
    if view.bfd is not None:  # what is between down and up comes and goes each second with a peer that is half reached
        entry["bfd"] = "up" if view.bfd.state == "up" else "down"
    if view.up:
        return {**entry, "paths": view.session.announced}
    message = messages.get(name) or view.session.last_reason or "no speaker is connected"
    return {**entry, "paths": 0, "message": message[:LONGEST]}


def _refused(
    status: AgentStatus, snapshot: Snapshot, messages: dict[str, str]
) -> Iterator[tuple[IPAddress, dict[str, Any]]]:
    """Peers to which no session is opened."""
    here = (snapshot.nodes or {}).get(status.node)
    for peer in peers_here(snapshot.bgp.peers, here) if snapshot.bgp is not None and here is not None else ():
        if peer.label in messages:
            entry = {"address": str(peer.address), "localAddress": "", "state": "refused", "paths": 0}
            entry |= {"name": peer.name} if peer.name else {}
            yield peer.address, {**entry, "message": messages[peer.label][:LONGEST]}
