"""How far a node is out of service, and what it waits for. Pure: status, metrics and people get the same words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from bgp.path import SessionKey, session_names
from routerd.model import Allocations, IPAddress
from routerd.node.announce import Announcements
from routerd.node.drain import Drain
from routerd.refs import NODE
from routerd.tell.views import PeerView

State = Literal["serving", "draining", "drained"]


@dataclass(frozen=True, slots=True)
class Departure:
    """ "drained": the node may be stopped, no new connection is lost by it. `waits`: what has to come before that.

    `notes`: what ends with the node, whoever waits.
    """

    state: State = "serving"
    reason: str = ""
    message: str = ""
    waits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


NODE_UNKNOWN = Departure(
    "draining", "Drained", "the node is drained by order", ("the store, which has not told of this node yet",)
)


@dataclass(frozen=True, slots=True)
class Progress:
    """What is known of a node that leaves. Times in seconds."""

    node: str
    drain: Drain
    left: float = 0.0  # until the paths are withdrawn
    announced: Announcements | None = None  # what a round has told the speaker; None = not this state yet
    allocations: Allocations | None = None
    peers: Mapping[SessionKey, PeerView] | None = None  # None = there is no BGP here
    is_sent: bool = False  # the peers have all of it
    known: float = 0.0  # for how long the sessions are known: no longer than the agent runs
    arrivals: frozenset[IPAddress] = frozenset()  # VIPs that new connections have come to just now


def departure(progress: Progress) -> Departure:
    """What `progress` comes to."""
    waits = tuple(_waits(progress))
    drain = progress.drain
    return Departure("draining" if waits else "drained", drain.reason, drain.message, waits, tuple(_notes(progress)))


def _waits(progress: Progress) -> Iterator[str]:
    if not progress.drain.withdraws:
        yield f"peers are asked to prefer other nodes; the paths are withdrawn in {progress.left:.0f} s"
        return
    if progress.announced is None or progress.allocations is None:
        yield "the agent has not withdrawn the paths yet"
        return
    yield from _gateway_waits(progress, progress.allocations)
    for address in sorted(progress.arrivals, key=str):
        yield f"new connections to {address} still come here: a router has not moved them, or leads here without BGP"
    if progress.peers is None:
        return
    if not progress.is_sent:
        yield "the peers have not taken all withdrawals yet"
    name_of = session_names(progress.announced.desired.peers)
    for key, session in progress.announced.desired.peers.items():
        view = progress.peers.get(key) or PeerView(key)
        down = min(view.since if view.since is not None else progress.known, progress.known)
        if not view.up and down < session.graceful_restart_time:
            rest = session.graceful_restart_time - down
            name = name_of[key]
            yield f"the session with {name} is down: it may keep the paths by graceful restart for {rest:.0f} s more"


def _gateway_waits(progress: Progress, allocations: Allocations) -> Iterator[str]:
    if progress.drain.goes_down:
        return
    for group in allocations.groups:
        if group.policies and not group.node_address and progress.node in group.gateways:
            yield (
                f"egress IP {group.egress_ip} has no other gateway: the operator moves it when another node that may "
                f"be its gateway is ready; its policies are {', '.join(group.policies)}"
            )


def _notes(progress: Progress) -> Iterator[str]:
    for group in progress.allocations.groups if progress.allocations is not None else ():
        if group.node_address and progress.node in group.gateways:
            yield f"egress IP {group.egress_ip} is an address of this node: it ends with it"
    owners = progress.announced.owners if progress.announced is not None else {}
    for prefix in (prefix for prefix, refs in owners.items() if any(ref.kind == NODE for ref in refs)):
        yield f"pod CIDR {prefix} stays announced while pods run here: they end with the node"
