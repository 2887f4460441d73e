"""Whether a pod whose network has just been made may start: whether its first packet is right. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from routerd.model import IPAddress, Pod, Snapshot
from routerd.node.attached import is_of
from routerd.node.desired import NodeState, may_select

NEEDED = ("nodes", "namespaces", "pods", "services", "policies", "allocations")  # parts, for the egress room
TELLING = ("nodes", "namespaces", "policies")  # of these, to tell whether any policy may select a pod


@dataclass(frozen=True, slots=True)
class Applicant:
    """A pod with the addresses that it has got. `uid` "" = not known."""

    pod: str  # namespace/name
    uid: str
    addresses: tuple[IPAddress, ...]


def hindrance(
    applicant: Applicant, snapshot: Snapshot, state: NodeState, node: str, decides: Callable[[IPAddress], bool] | None
) -> str:
    """Why it must wait, one line; "" = nothing holds it.

    A pod that no policy selects is not held up by what this node cannot do: without the rest of the store it starts as
    soon as that is certain, or the operator's own pod, without which there are no allocations, could never start. What
    it sends to where policies lead the guard drops until it is decided. `decides`: of the round; None = the datapath
    was not looked at.
    """
    pod = (snapshot.pods or {}).get(applicant.pod)
    if pod is None or not is_of(applicant.uid, pod):
        return (
            f"the store has no Pod {applicant.pod}" + (f" with uid {applicant.uid}" if applicant.uid else "") + " yet"
        )
    if state.egress is None:
        return _before_the_store_is_read(pod, snapshot, node)
    if decides is None:
        return "the datapath was not looked at yet"
    for address in applicant.addresses:
        policies = state.egress.pods.get(address)
        if policies is None:
            return f"it cannot be told yet which policies select {pod.key} with {address}"
        if policies and not decides(address):
            return f"what {', '.join(policies)} say is not in place for {address} yet: see the agent's log"
    return ""


def _before_the_store_is_read(pod: Pod, snapshot: Snapshot, node: str) -> str:
    here = (snapshot.nodes or {}).get(node)
    if here is not None and not snapshot.missing(TELLING):
        policies, namespaces = snapshot.policies or {}, snapshot.namespaces or {}
        if not any(may_select(policy, pod, namespaces, here.labels) for policy in policies.values()):
            return ""
    return _unread(snapshot, node, NEEDED)


def unavailable(snapshot: Snapshot, node: str) -> str:
    """Why no pod may start yet, one line; "" = some may."""
    return _unread(snapshot, node, TELLING) if snapshot.missing(TELLING) or node not in (snapshot.nodes or {}) else ""


def _unread(snapshot: Snapshot, node: str, parts: Iterable[str]) -> str:
    missing = snapshot.missing(parts)
    return f"the agent has not read {', '.join(missing)} yet" if missing else f"the store has no Node {node} yet"
