"""Whether this node is being taken out of service, who says so, and how far it is. Pure.

    ShuttingDown   it goes down: its kubelet says so, or RUN_DIR/shutdown is there, or it is tainted as down
    Drained        `routerd drain`
    ToBeDeleted    the cluster autoscaler is about to delete it; kube-proxy answers load balancers likewise (KEP-3836)
    Cordoned       it is unschedulable, where the configuration counts that (drain.cordoned)
    Tainted        it has a taint that the configuration names (drain.taints)

First peers are asked to prefer other nodes (RFC 8326), then the paths are withdrawn. What only this node can carry
stays while it can: an egress IP that no other gateway has, the pod CIDRs of pods that still run. Unless the node goes
down: then all but the pod CIDRs goes at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from bgp.path import WELL_KNOWN_COMMUNITIES, Path, normal_communities
from routerd.model import Node, Pod, Refusal
from routerd.refs import NODE, Ref
from upstream.targets import Upstream

Reason = Literal["ShuttingDown", "Drained", "ToBeDeleted", "Cordoned", "Tainted"]
GRACEFUL_SHUTDOWN = WELL_KNOWN_COMMUNITIES["graceful-shutdown"]
LAST_RESORT = 0  # LOCAL_PREF of a path that others shall be preferred to (RFC 8326, section 4.2)


@dataclass(frozen=True, slots=True)
class Drain:
    """This node leaves. `message` says who or what says so; `withdraws` False = peers are only asked so far."""

    reason: Reason
    message: str
    withdraws: bool = False

    @property
    def goes_down(self) -> bool:
        return self.reason == "ShuttingDown"


@dataclass(frozen=True, slots=True)
class Orders:
    """What this host says beside the Node object. `marker` is the file that says that it goes down, "" = none."""

    drained: bool = False
    marker: str = ""


def drain_of(node: Node, orders: Orders, *, cordoned: bool, taints: Collection[str] = ()) -> Drain | None:
    """Why `node` leaves, the gravest reason first; None = it stays. `cordoned`: whether an unschedulable one leaves;
    `taints`: those for which a node leaves, as `forms_of` has them.

    Whoever asks knows the time, and so whether the paths are to be withdrawn already.
    """
    if orders.marker or node.leaving == "down":
        said = f"{orders.marker} is there" if orders.marker else "its Node says that it is shutting down, or is down"
        return Drain("ShuttingDown", f"node {node.name} goes down: {said}", withdraws=True)
    if orders.drained:
        return Drain("Drained", f"node {node.name} is drained: run `routerd undrain` there to put it back")
    if node.leaving == "to-be-deleted":
        return Drain("ToBeDeleted", f"the cluster autoscaler is about to delete node {node.name} (its taint says so)")
    if cordoned and node.unschedulable:
        return Drain("Cordoned", f"node {node.name} is cordoned, and drain.cordoned is on: run `kubectl uncordon`")
    for taint in node.taints:
        if named := sorted(forms_of(taint) & {*taints}):
            message = f"node {node.name} has the taint {taint}, and drain.taints names {named[0]}: remove the taint"
            return Drain("Tainted", message)
    return None


def forms_of(taint: str) -> frozenset[str]:
    """What a configuration may call a taint "key=value:Effect": the key alone, with its value, with its effect."""
    pair, _, effect = taint.rpartition(":")
    key, _, value = pair.partition("=")
    names = {key, f"{key}={value}"} if value else {key}
    return frozenset(names | {f"{name}:{effect}" for name in names})


def noticed(path: Path) -> Path:
    """`path` as peers shall have it while the node leaves: any other one is better."""
    marked = normal_communities((*path.communities, GRACEFUL_SHUTDOWN))
    return replace(path, local_pref=LAST_RESORT, communities=marked)


def has_pods(node: str, pods: Iterable[Pod]) -> bool:
    """Whether pods with an address of their own run on `node`: its pod CIDRs lead to them."""
    return any(pod.node == node and pod.addresses and not (pod.host_network or pod.finished) for pod in pods)


def upstream_refusals(node: str, upstream: Upstream) -> Iterable[Refusal]:
    """Why this gateway asks to be left alone, as `Hindrance` "no-upstream", and why it cannot tell."""
    if upstream.is_lost:
        what = ", ".join(upstream.failing) or "what was asked before this agent began"
        message = f"no answer from {what}: sources leave this gateway while another one of a group serves"
        yield Refusal(Ref(NODE, name=node), "UpstreamLost", message)
    if upstream.problem:
        message = f"egress.upstream-probe cannot be asked: {upstream.problem}; what was known before stands"
        yield Refusal(Ref(NODE, name=node), "UpstreamUnknown", message)
