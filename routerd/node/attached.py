"""What the CNI's runtime said of the networks of pods here, before the store says it, and laid over what that says.

A pod gets its address when its sandbox is made; the API server hears of it a second later, and of an address that went
to another pod later still. The runtime's word holds until the store has another word on that pod than it had when the
runtime spoke. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from routerd.model import IPAddress, Pod

MIRROR = "kubernetes.io/config.mirror"  # a static pod's object has a uid of its own; here is the one that runtimes know


@dataclass(frozen=True, slots=True)
class Interface:
    """Of a pod. `network`: the name of the configuration that made it; `devices`: the node's ends of it, by name."""

    network: str
    addresses: tuple[IPAddress, ...]
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Attached:
    """A pod's network, as the runtime told it last. Without interfaces its sandbox is gone."""

    container: str
    uid: str = ""  # of the pod; "" = the runtime did not say
    interfaces: Mapping[str, Interface] = field(default_factory=dict)
    before: tuple[IPAddress, ...] = ()  # addresses that the pod had in the store at that time

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        return tuple(dict.fromkeys(address for each in self.interfaces.values() for address in each.addresses))

    def holds(self, pod: Pod) -> bool:
        """Whether it is of this very pod, and news."""
        return pod.addresses == self.before and is_of(self.uid, pod)


def is_of(uid: str, pod: Pod) -> bool:
    """Whether the runtime means this object by its name, or an older or younger one."""
    return not uid or not pod.uid or uid in (pod.uid, pod.annotations.get(MIRROR))


class Overlay:
    """Pods with the addresses that they have. One that did not change stays the same object (see `routerd.memo`)."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Pod, Pod]] = {}  # by identity of the store's: it, and what was made of it

    def __call__(self, pods: Sequence[Pod], attached: Mapping[str, Attached]) -> Sequence[Pod]:
        """`attached`: by the pod's key. An address that the runtime gave one pod is no other's any more."""
        news = {pod.key: found for pod in pods if (found := attached.get(pod.key)) is not None and found.holds(pod)}
        if not news:
            self._made = {}
            return pods
        owners = {address: key for key, found in news.items() for address in found.addresses}
        before, self._made = self._made, {}
        return [self._with(pod, _addresses(pod, news, owners), before) for pod in pods]

    def _with(self, pod: Pod, addresses: tuple[IPAddress, ...], before: Mapping[int, tuple[Pod, Pod]]) -> Pod:
        if addresses == pod.addresses:
            return pod
        source, made = before.get(id(pod), (None, pod))
        if source is not pod or made.addresses != addresses:
            made = replace(pod, addresses=addresses)
        self._made[id(pod)] = pod, made
        return made


def told_devices(pods: Sequence[Pod], attached: Mapping[str, Attached]) -> dict[IPAddress, frozenset[str]]:
    """Of the addresses that the runtime gave these pods, and that they have."""
    told = ((pod, attached[pod.key]) for pod in pods if pod.key in attached)
    return {
        address: frozenset(each.devices)
        for pod, found in told
        if is_of(found.uid, pod)
        for each in found.interfaces.values()
        for address in each.addresses
        if address in pod.addresses and each.devices
    }


def _addresses(pod: Pod, news: Mapping[str, Attached], owners: Mapping[IPAddress, str]) -> tuple[IPAddress, ...]:
    if pod.key in news:
        return news[pod.key].addresses
    return tuple(address for address in pod.addresses if owners.get(address, pod.key) == pod.key)
