"""What egress policies of several makers have in common. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TypeVar

from routerd.claims import is_reserved
from routerd.memo import Tally
from routerd.model import (
    ASKED_LABEL,
    EIP,
    LOWEST,
    NAMESPACE_NAME_LABEL,
    SNAT,
    AddressPool,
    EgressAsk,
    EgressPolicy,
    IPAddress,
    IPNetwork,
    Labels,
    LabelSelector,
    Namespace,
    Origin,
    Pod,
    PodSelection,
    Refusal,
    asked_egress_ip,
)
from routerd.refs import Ref
from routerd.selectors import Requirement

EVERYWHERE: tuple[IPNetwork, ...] = (ip_network("0.0.0.0/0"), ip_network("::/0"))


def everywhere(found: Iterable[IPAddress | IPNetwork]) -> tuple[IPNetwork, ...]:
    """All destinations of the families of these; of both if there are none."""
    versions = {each.version for each in found}
    return tuple(network for network in EVERYWHERE if network.version in versions or not versions)


def with_destinations(policy: EgressPolicy, pools: Mapping[str, AddressPool]) -> EgressPolicy:
    """One that has none is for all that leaves in the families of its pool; of both while the pool is not known."""
    if policy.destinations or policy.service:  # its Service says the families, see `routerd.store.backends`
        return policy
    pool = pools.get(policy.pool)
    return replace(policy, destinations=everywhere(pool.blocks if pool is not None else ()))


def to_everywhere(policy: EgressPolicy) -> EgressPolicy:
    """One that still has none is for all that leaves."""
    return policy if policy.destinations else replace(policy, destinations=EVERYWHERE)


def with_gateways(policy: EgressPolicy, pools: Iterable[AddressPool]) -> EgressPolicy:
    """One that does not say which has those of the pool that it names, or that its address lies in.

    `pools`: those that say which.
    """
    pool = next((pool for pool in pools if _is_of(policy, pool)), None) if policy.gateways is None else None
    return policy if pool is None else replace(policy, gateways=pool.gateways)


def _is_of(policy: EgressPolicy, pool: AddressPool) -> bool:
    if policy.pool:
        return policy.pool == pool.name
    return any(address in block for address in policy.egress_ips[:1] for block in pool.blocks)


# --- egress IPs that pods and namespaces ask for by Kube-OVN's annotations `eip` and `snat`
#
# One policy for each address and namespace. It is a user's word about his own pods: it has the lowest priority and
# leads to everywhere, so that it takes no destination out of a policy of the cluster's; which addresses may be asked
# for, `routerd.cluster.conflicts` decides. A pod without an annotation has its namespace's. While no pool is open to
# them they count for nothing, and are told.

UNUSED, UNREADABLE, IN_PART = "EgressAnnotationUnused", "InvalidEgressIP", "EgressByAnnotation"  # reasons of refusals
KIND = "EgressAnnotation"  # of these policies, in messages and documents
UNREAD = "unreadable"  # in place of the address, of the policy by which pods are dropped whose annotation names none
_Word = tuple[str, str]  # a namespace, and what is written there
_NONE = LabelSelector((), (Requirement(ASKED_LABEL, "DoesNotExist"),))


MOST_ASKS = 10_000  # of a report: `maxItems` in configs/deploy/crds.yaml
_T = TypeVar("_T")


def address_of(text: str) -> IPAddress | None:
    """None if it names none that a packet can leave with: one with a scope, an IPv4 address in IPv6, loopback, … ."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    is_scoped = isinstance(address, IPv6Address) and address.scope_id is not None
    return None if is_scoped or is_reserved(address) else address


def in_turns(ordered: Iterable[_T], whose: Callable[[_T], str]) -> list[_T]:
    """The first of everybody, then the second of everybody: none takes the room of another. What is nobody's ("")
    comes first.
    """
    counts: Counter[str] = Counter()
    turns: list[tuple[int, _T]] = []
    for each in ordered:
        owner = whose(each)
        counts[owner] += 1
        turns.append((counts[owner] if owner else 0, each))
    return [each for _, each in sorted(turns, key=lambda pair: pair[0])]


class Asked:
    """Kept from snapshot to snapshot: what did not change is the same object (see `routerd.memo`)."""

    def __init__(self) -> None:
        self._of_pods: Tally[Pod, _Word] = Tally(_of_pod)
        self._of_namespaces: Tally[Namespace, _Word] = Tally(_of_namespace)
        self._told = {is_open: (_told_by(is_open), _told_by(is_open)) for is_open in (False, True)}
        self._policies: dict[str, EgressPolicy] = {}
        self.refusals: tuple[Refusal, ...] = ()  # of pods and namespaces, as of the last `policies`

    def policies(
        self,
        pods: Mapping[str, Pod] | None,
        namespaces: Mapping[str, Namespace] | None,
        pools: Mapping[str, AddressPool] | None,
    ) -> Mapping[str, EgressPolicy] | None:
        """By key; None = somebody asks, and pools have not been read."""
        self._of_pods.update(pods or {})
        self._of_namespaces.update(namespaces or {})
        if pools is None:
            return None if self._of_pods.values or self._of_namespaces.values else {}
        is_open = open_to_annotations(pools)
        of_pods, of_namespaces = self._told[is_open]
        of_pods.update(pods or {})
        of_namespaces.update(namespaces or {})
        self.refusals = (*of_pods.values, *of_namespaces.values)
        return self._made() if is_open else {}

    def _made(self) -> Mapping[str, EgressPolicy]:
        selected = [(word, LabelSelector(((ASKED_LABEL, word[1]),))) for word in sorted(self._of_pods.values)]
        selected += [(word, _NONE) for word in sorted(self._of_namespaces.values)]
        found: dict[tuple[str, IPAddress | None], list[LabelSelector]] = {}
        for (namespace, text), selector in selected:
            found.setdefault((namespace, address_of(text)), []).append(selector)
        made = (_policy(namespace, address, tuple(by)) for (namespace, address), by in found.items())
        before = self._policies
        self._policies = {new.key: old if (old := before.get(new.key)) == new else new for new in made}
        return self._policies


def open_to_annotations(pools: Mapping[str, AddressPool]) -> bool:
    """Whether any pool is: else nobody is asked for an egress IP, and no pod's traffic is another."""
    return any(pool.egress_annotations for pool in pools.values())


def _told_by(is_open: bool) -> Tally[Pod | Namespace, Refusal]:
    return Tally(_unread if is_open else _unused)


def _asking(one: Pod | Namespace) -> Iterator[_Word]:
    return _of_pod(one) if isinstance(one, Pod) else _of_namespace(one)


def _unread(one: Pod | Namespace) -> Iterator[Refusal]:
    for _, text in _asking(one):
        if address_of(text) is None:
            expected = "expected an address that a host can have, without a scope"
            yield _told(one, UNREADABLE, f'found "{text}", {expected}: what the pod sends out is dropped')


def _unused(one: Pod | Namespace) -> Iterator[Refusal]:
    for _ in _asking(one):
        message = "it counts for nothing while no AddressPool says egressAnnotations: true"
        yield _told(one, UNUSED, message)


def _told(one: Pod | Namespace, reason: str, message: str) -> Refusal:
    return Refusal(_ref(one), reason, f"{one.origin}: {annotation_of(one.annotations)}: {message}")


def _ref(one: Pod | Namespace) -> Ref:
    return Ref("Pod", one.namespace, one.name) if isinstance(one, Pod) else Ref("Namespace", name=one.name)


def annotation_of(annotations: Labels) -> str:
    """The key of the annotation that counts (`routerd.model.asked_egress_ip`)."""
    return EIP if annotations.get(EIP, "").strip() else SNAT


def _of_pod(pod: Pod) -> Iterator[_Word]:
    if not (pod.host_network or pod.finished) and (text := asked_egress_ip(pod.annotations)):
        yield pod.namespace, text


def _of_namespace(namespace: Namespace) -> Iterator[_Word]:
    if text := asked_egress_ip(namespace.annotations):
        yield namespace.name, text


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks for an egress IP, and where that is written."""

    ref: Ref
    annotation: str
    origin: Origin


def askers(pods: Iterable[Pod], namespaces: Iterable[Namespace]) -> dict[Ref, Asking]:
    """By policy, the first pod that asks for its address, or else the first namespace."""
    found: dict[Ref, Asking] = {}
    everyone: tuple[Pod | Namespace, ...] = (*pods, *namespaces)
    for one in everyone:
        for namespace, text in _asking(one):
            asking = Asking(_ref(one), annotation_of(one.annotations), one.origin)
            found.setdefault(_policy(namespace, address_of(text), ()).ref, asking)
    return found


class AskCounter:
    """What a node's pods ask for, for its report; of a snapshot it looks at what has changed."""

    def __init__(self, node: str) -> None:
        self._asks: Tally[Pod, EgressAsk] = Tally(lambda pod: _asks(pod) if pod.node == node else ())

    def asks(
        self, pods: Mapping[str, Pod] | None, pools: Mapping[str, AddressPool] | None
    ) -> tuple[EgressAsk, ...] | None:
        """None while either has not been read. MOST_ASKS at most: the schema refuses a report that has more."""
        if pods is None or pools is None:
            return None
        if not open_to_annotations(pools):
            return ()
        self._asks.update(pods)
        asks = sorted(self._asks.values, key=lambda each: (each.namespace, str(each.egress_ip)))
        if len(asks) <= MOST_ASKS:
            return tuple(asks)
        kept = {*in_turns(asks, lambda each: each.namespace)[:MOST_ASKS]}
        return tuple(each for each in asks if each in kept)


def _asks(pod: Pod) -> Iterator[EgressAsk]:
    for namespace, text in _of_pod(pod):
        if (address := address_of(text)) is not None:
            yield EgressAsk(namespace, address)


def policy_of_ask(ask: EgressAsk) -> EgressPolicy:
    """As the operator knows it, which does not know whom it selects."""
    return _policy(ask.namespace, ask.egress_ip, ())


@lru_cache(maxsize=1 << 12)
def _policy(namespace: str, address: IPAddress | None, by: tuple[LabelSelector, ...]) -> EgressPolicy:
    here = LabelSelector(((NAMESPACE_NAME_LABEL, namespace),))
    return EgressPolicy(
        f"{namespace}/{address or UNREAD}",
        KIND,
        tuple(PodSelection(pods, here) for pods in by),
        everywhere([address]) if address is not None else EVERYWHERE,
        egress_ip=address,
        priority=LOWEST,
        refused=address is None,
    )


def with_asked(
    policies: Mapping[str, EgressPolicy] | None, asked: Mapping[str, EgressPolicy] | None
) -> Mapping[str, EgressPolicy] | None:
    """The same where nobody asks; None while either is not known."""
    return None if asked is None else {**asked, **policies} if asked and policies is not None else policies


def of_kind(policies: Iterable[EgressPolicy]) -> dict[str, EgressPolicy]:
    """Those that are asked for, by key."""
    return {policy.key: policy for policy in policies if policy.kind == KIND}
