"""Which address a pod asks for, by the annotations of Calico, Kube-OVN and Antrea. Pure; what is wrong is one line.

    cni.projectcalico.org/ipAddrs      a JSON list of addresses, one of a family
    ovn.kubernetes.io/ip_address       an address, or one of each family with a comma between
    ovn.kubernetes.io/ip_pool          addresses with commas between, of both families "V4,V6;V4,V6": a pod of a
                                       StatefulSet takes the one of its ordinal, any other pod a free one
    ipam.antrea.io/pod-ips             addresses with commas between, one of a family
    ipam.antrea.io/ippools             names of pools, one of a family, of which the pod takes a free address

A pod of a StatefulSet keeps what it has without any of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address, ip_network

from ipam.pod_addresses import IPAddress, IPNetwork, Wish
from routerd.formats.jsontext import parse_json
from routerd.model import AddressPool, Pod

STATEFUL_LABEL = "statefulset.kubernetes.io/pod-name"  # on each pod of a StatefulSet
CALICO = "cni.projectcalico.org/ipAddrs"
KUBE_OVN, KUBE_OVN_POOL = "ovn.kubernetes.io/ip_address", "ovn.kubernetes.io/ip_pool"
ANTREA, ANTREA_POOLS = "ipam.antrea.io/pod-ips", "ipam.antrea.io/ippools"
_ORDINAL = re.compile(r"-(0|[1-9][0-9]{0,8})$")

Pools = Mapping[str, AddressPool]


def wish_of(pod: Pod, pools: Pools) -> Wish | str:
    """What is wrong with an annotation is told with its name."""
    given = [key for key in _READERS if key in pod.annotations]
    exact = [key for key in given if key != ANTREA_POOLS]
    if len(exact) > 1:
        return f"annotations {' and '.join(exact)} ask for addresses: leave one of them"
    key = (*exact, *given, "")[0]
    try:
        wish = _READERS[key](pod, pools) if key else Wish()
    except ValueError as error:
        return f"annotation {key}: {error}"
    return Wish(wish.exact, wish.among, keeps=bool(key) or is_stateful(pod))


def asked_for(wish: Wish | str) -> Iterable[IPAddress]:
    """Addresses that nobody else should be given by chance: those that it names."""
    if isinstance(wish, str):
        return ()
    return (*wish.exact, *(block[0] for block in wish.among if block.num_addresses == 1))


def asks(pod: Pod) -> bool:
    return any(key in pod.annotations for key in _READERS)


def is_stateful(pod: Pod) -> bool:
    return pod.labels.get(STATEFUL_LABEL) == pod.name


def _calico(pod: Pod, pools: Pools) -> Wish:
    try:
        found = parse_json(pod.annotations[CALICO])
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError('expected a JSON list of addresses, ["192.0.2.1"]')
    return Wish(_one_of_each(found))


def _kube_ovn(pod: Pod, pools: Pools) -> Wish:
    return Wish(_one_of_each(_words(pod.annotations[KUBE_OVN])))


def _kube_ovn_pool(pod: Pod, pools: Pools) -> Wish:
    text = pod.annotations[KUBE_OVN_POOL]
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
        raise ValueError(f"no pool {pod.annotations[ANTREA_POOLS]} is known: write it as an AddressPool of that name")
    return Wish(among=within)


def _blocks(pod: Pod, pools: Pools) -> tuple[IPNetwork, ...]:
    names = _words(pod.annotations[ANTREA_POOLS])
    return tuple(block for name in names if name in pools for block in pools[name].blocks)


def _words(text: str) -> list[str]:
    found = [word.strip() for word in text.split(",")]
    if not all(found):
        raise ValueError(f"found {text!r}, expected words with commas between")
    return found


def _address(text: str) -> IPAddress:
    try:
        return ip_address(text)
    except ValueError:
        raise ValueError(f"found {text!r}, expected an address") from None


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
}
