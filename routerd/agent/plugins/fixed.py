"""Which address a pod asks for, by the annotations of Calico, Cilium, Kube-OVN and Antrea. Pure; what is wrong is one
line.

    cni.projectcalico.org/ipAddrs      a JSON list of addresses, one of a family
    ovn.kubernetes.io/ip_address       an address, or one of each family with a comma between
    ovn.kubernetes.io/ip_pool          addresses with commas between, of both families "V4,V6;V4,V6": a pod of a
                                       StatefulSet takes the one of its ordinal, any other pod a free one; or names of
                                       pools, of which any pod takes a free one
    ipam.antrea.io/pod-ips             addresses with commas between, one of a family
    ipam.antrea.io/ippools             names of pools, one of a family, of which the pod takes a free address
    ipam.cilium.io/ip-pool             the name of a pool, likewise; ipv4-pool and ipv6-pool name one for a family
    cni.projectcalico.org/ipv4pools    a JSON list of names of pools or of CIDRs, likewise; or ipv6pools

Those that name pools count on the pod's namespace as well, where the pod itself has none of any maker. A pod without
any has an address of the pools that select it.
A pod of a StatefulSet keeps what it has without any of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_network

from ipam.pod_addresses import IPAddress, IPNetwork, Wish
from routerd.formats.document import parse_address, parse_network
from routerd.formats.jsontext import parse_json
from routerd.model import NAMESPACE_LABEL, NAMESPACE_NAME_LABEL, AddressPool, Labels, Namespace, Pod, PodPool

STATEFUL_LABEL = "statefulset.kubernetes.io/pod-name"  # on each pod of a StatefulSet
CALICO = "cni.projectcalico.org/ipAddrs"
KUBE_OVN, KUBE_OVN_POOL = "ovn.kubernetes.io/ip_address", "ovn.kubernetes.io/ip_pool"
ANTREA, ANTREA_POOLS = "ipam.antrea.io/pod-ips", "ipam.antrea.io/ippools"
CILIUM = "ipam.cilium.io/ip-pool"
CILIUM_OF = {4: "ipam.cilium.io/ipv4-pool", 6: "ipam.cilium.io/ipv6-pool"}
CALICO_POOLS = {4: "cni.projectcalico.org/ipv4pools", 6: "cni.projectcalico.org/ipv6pools"}
OF_NAMESPACES = frozenset({CILIUM, *CILIUM_OF.values(), *CALICO_POOLS.values(), ANTREA_POOLS})
SHARED = OF_NAMESPACES | {KUBE_OVN_POOL}  # of a namespace's annotations, those that count for its pods
_ORDINAL = re.compile(r"-(0|[1-9][0-9]{0,8})$")

Pools = Mapping[str, AddressPool | PodPool]


def wish_of(
    pod: Pod, pools: Pools, namespace: Namespace | None = None, selecting: Iterable[PodPool] = ()
) -> Wish | str:
    """`selecting`: pools that may select it. What is wrong with an annotation is told with its name."""
    if not asks(pod):
        of_namespace: Labels = namespace.annotations if namespace is not None else {}
        pod = replace(pod, annotations={key: text for key, text in of_namespace.items() if key in SHARED})
    given = [key for key in _READERS if key in pod.annotations]
    exact = [key for key in given if key not in OF_NAMESPACES]
    if len(exact) > 1:
        return f"annotations {' and '.join(exact)} ask for addresses: leave one of them"
    key = (*exact, *given, "")[0]
    try:
        wish = _READERS[key](pod, pools) if key else Wish(among=_selected(pod, namespace, selecting))
    except ValueError as error:
        return f"annotation {key}: {error}"
    return Wish(wish.exact, wish.among, keeps=bool(wish.exact) or is_stateful(pod))  # others of a list have other names


def _selected(pod: Pod, namespace: Namespace | None, pools: Iterable[PodPool]) -> tuple[IPNetwork, ...]:
    """Networks of the pools that select a pod."""
    labels: Labels = namespace.labels if namespace is not None else {NAMESPACE_NAME_LABEL: pod.namespace}
    return tuple(each for pool in pools if _selects(pool, pod, labels) for each in pool.networks)


def _selects(pool: PodPool, pod: Pod, of_namespace: Labels) -> bool:
    if pool.disabled or (pool.for_pods is None and pool.for_namespaces is None):
        return False
    labels = {**pod.labels, NAMESPACE_LABEL: pod.namespace}
    is_pod = pool.for_pods is None or pool.for_pods.matches(labels)
    return is_pod and (pool.for_namespaces is None or pool.for_namespaces.matches(of_namespace))


def asked_for(wish: Wish | str) -> Iterable[IPAddress]:
    """Addresses that nobody else should be given by chance: those that it names."""
    if isinstance(wish, str):
        return ()
    return (*wish.exact, *(block[0] for block in wish.among if block.num_addresses == 1))


def asks(pod: Pod) -> bool:
    return any(key in pod.annotations for key in _READERS)


def closed(blocks: Collection[IPNetwork], pools: Iterable[PodPool]) -> frozenset[IPNetwork]:
    """Blocks of which a pod gets nothing that names no pool: those that are drained, and those of a pool that must be
    named, where the node has others of the family.
    """
    drained: list[IPNetwork] = []
    apart: list[IPNetwork] = []
    for pool in pools:
        networks = [each.network for each in pool.cidrs]
        drained += networks if pool.disabled else pool.reserved
        apart += networks if pool.asked_only else []
    shut = frozenset(_within(blocks, drained))
    named = frozenset(_within(blocks, apart))
    others = {block.version for block in blocks if block not in shut | named}
    return shut | {block for block in named if block.version in others}


def _within(blocks: Iterable[IPNetwork], networks: Iterable[IPNetwork]) -> Iterator[IPNetwork]:
    return (block for block in blocks for each in networks if block.version == each.version and block.overlaps(each))


def is_stateful(pod: Pod) -> bool:
    return pod.labels.get(STATEFUL_LABEL) == pod.name


def _calico(pod: Pod, pools: Pools) -> Wish:
    return Wish(_one_of_each(_json_list(pod.annotations[CALICO], 'addresses, ["192.0.2.1"]')))


def _json_list(text: str, what: str) -> list[str]:
    try:
        found = parse_json(text)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(f"expected a JSON list of {what}")
    return found


def _calico_pools(pod: Pod, pools: Pools) -> Wish:
    found: list[IPNetwork] = []
    for version, key in CALICO_POOLS.items():
        names = _json_list(pod.annotations[key], 'pools, ["web"]') if key in pod.annotations else []
        found += [each for name in names for each in _named(name, pools) if each.version == version]
    return Wish(among=tuple(found))


def _cilium(pod: Pod, pools: Pools) -> Wish:
    found: list[IPNetwork] = []
    for version, key in CILIUM_OF.items():
        name = pod.annotations.get(key) or pod.annotations.get(CILIUM)
        found += [each for each in (_named(name, pools) if name else ()) if each.version == version]
    return Wish(among=tuple(found))


def _named(name: str, pools: Pools) -> tuple[IPNetwork, ...]:
    """What the pool of that name has for pods, or of that CIDR. Raises ValueError."""
    network = parse_network(name) if "/" in name else None
    pool = next((each for each in pools.values() if network in _networks(each)), None) if network else pools.get(name)
    if pool is None:
        raise ValueError(f"no pool {name} is known")
    if pool.disabled:
        raise ValueError(f"pool {name} is disabled: nobody gets an address of it")
    return _networks(pool)


def _networks(pool: AddressPool | PodPool) -> tuple[IPNetwork, ...]:
    return pool.networks if isinstance(pool, PodPool) else pool.blocks


def _kube_ovn(pod: Pod, pools: Pools) -> Wish:
    return Wish(_one_of_each(_words(pod.annotations[KUBE_OVN])))


def _kube_ovn_pool(pod: Pod, pools: Pools) -> Wish:
    text = pod.annotations[KUBE_OVN_POOL]
    if not any(parse_address(word.strip()) for word in re.split("[,;]", text)):
        return Wish(among=tuple(each for name in _words(text) for each in _named(name, pools)))
    choices = [_one_of_each(_words(part)) for part in text.split(";")] if ";" in text else []
    choices = choices or [(_address(word),) for word in _words(text)]
    if not is_stateful(pod):
        return Wish(among=tuple(ip_network(address) for each in choices for address in each))
    match = _ORDINAL.search(pod.name)
    ordinal = int(match[1]) if match else 0
    if ordinal >= len(choices):
        raise ValueError(f"it has {len(choices)} for a StatefulSet, and {pod.name} is number {ordinal + 1}: add one")
    return Wish(choices[ordinal])


def _antrea(pod: Pod, pools: Pools) -> Wish:
    wish = Wish(_one_of_each(_words(pod.annotations[ANTREA])))
    within = _blocks(pod, pools) if ANTREA_POOLS in pod.annotations else ()
    outside = [str(each) for each in wish.exact if within and not any(each in block for block in within)]
    if outside:
        raise ValueError(f"{', '.join(outside)} is not in {pod.annotations[ANTREA_POOLS]}")
    return wish


def _antrea_pools(pod: Pod, pools: Pools) -> Wish:
    within = _blocks(pod, pools)
    if not within:
        raise ValueError(f"no pool {pod.annotations[ANTREA_POOLS]} is known")
    return Wish(among=within)


def _blocks(pod: Pod, pools: Pools) -> tuple[IPNetwork, ...]:
    names = _words(pod.annotations[ANTREA_POOLS])
    return tuple(block for name in names if name in pools for block in _networks(pools[name]))


def _words(text: str) -> list[str]:
    found = [word.strip() for word in text.split(",")]
    if not all(found):
        raise ValueError(f"found {text!r}, expected words with commas between")
    return found


def _address(text: str) -> IPAddress:
    if (address := parse_address(text)) is None:
        raise ValueError(f"found {text!r}, expected an address")
    return address


def _one_of_each(words: Iterable[str]) -> tuple[IPAddress, ...]:
    found = tuple(map(_address, words))
    if not found or len({each.version for each in found}) < len(found):
        raise ValueError("expected one address of a family")
    return found


_READERS: Mapping[str, Callable[[Pod, Pools], Wish]] = {
    CALICO: _calico,
    KUBE_OVN: _kube_ovn,
    KUBE_OVN_POOL: _kube_ovn_pool,
    ANTREA: _antrea,
    ANTREA_POOLS: _antrea_pools,
    **dict.fromkeys(CALICO_POOLS.values(), _calico_pools),
    **dict.fromkeys((CILIUM, *CILIUM_OF.values()), _cilium),
}
