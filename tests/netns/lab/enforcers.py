"""Stand-ins for what CNIs and kube-proxy have in a node's netfilter, as they name and order it. Pure: it yields text.

Each CNI masquerades what leaves its pods' network, and enforces one policy: `shut` pods may send nothing out of it, all
others anything. `{iptables}` texts are for iptables-restore of either backend, the other ones for `nft -f`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.netns.lab.wiring import Cni

Backend = Literal["iptables-legacy", "iptables-nft", "nft"]


@dataclass(frozen=True, slots=True)
class Workload:
    """A pod as rules know it. `device`: by which its packets come into the forward hook."""

    device: str
    address: str
    shut: bool


@dataclass(frozen=True, slots=True)
class Network:
    """The pods' network, and its pods of one node."""

    pods: str
    workloads: Sequence[Workload]


def _joined(lines: Sequence[str]) -> str:
    return "\n".join(lines)


def calico(network: Network) -> str:
    """Felix with iptables: a raw reverse-path filter, dispatch by device, a mark that says that a policy accepted."""
    chains = [f":cali-fw-{each.device} - [0:0]" for each in network.workloads]
    dispatch = [f"-A cali-from-wl-dispatch -i {each.device} -g cali-fw-{each.device}" for each in network.workloads]
    inside = f"-d {network.pods}"
    return f"""\
*raw
:cali-PREROUTING - [0:0]
-A PREROUTING -j cali-PREROUTING
-A cali-PREROUTING -j MARK --set-xmark 0x0/0xf0000
-A cali-PREROUTING -i pod-+ -j MARK --set-xmark 0x40000/0x40000
-A cali-PREROUTING -m mark --mark 0x40000/0x40000 -m rpfilter --validmark --invert -j DROP
COMMIT
*nat
:cali-POSTROUTING - [0:0]
-A POSTROUTING -j cali-POSTROUTING
-A cali-POSTROUTING -s {network.pods} ! -d {network.pods} -j MASQUERADE --random-fully
COMMIT
*filter
:FORWARD DROP [0:0]
:cali-FORWARD - [0:0]
:cali-from-wl-dispatch - [0:0]
{_joined(chains)}
-A FORWARD -j cali-FORWARD
-A FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT
-A FORWARD -j MARK --set-xmark 0x10000/0x10000
-A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000
-A cali-FORWARD -i pod-+ -j cali-from-wl-dispatch
-A cali-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-FORWARD {inside} -j ACCEPT
{_joined(dispatch)}
-A cali-from-wl-dispatch -j DROP
{_joined([_calico_workload(each, inside) for each in network.workloads])}
COMMIT
"""


def _calico_workload(workload: Workload, inside: str) -> str:
    chain = f"-A cali-fw-{workload.device}"
    return f"""\
{chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
{chain} -m conntrack --ctstate INVALID -j DROP
{chain} -j MARK --set-xmark 0x0/0x10000
{chain} -p udp -m udp --dport 4789 -j DROP
{chain} {inside if workload.shut else ""} -j MARK --set-xmark 0x10000/0x10000
{chain} -m mark --mark 0x10000/0x10000 -j RETURN
{chain} -j DROP"""


def calico_nftables(network: Network) -> str:
    """Felix with nftables: a table for each family, dispatch by a verdict map."""
    family = _family(network.pods)
    chains = [
        f"""    chain fw-{each.device} {{
        ct state established,related accept
        ct state invalid drop
        {f"{family} daddr {network.pods}" if each.shut else ""} meta mark set mark or 0x10000 return
        drop
    }}"""
        for each in network.workloads
    ]
    dispatch = ", ".join(f'"{each.device}" : goto fw-{each.device}' for each in network.workloads)
    return f"""\
table {family} calico {{
{_joined(chains)}
    chain raw-PREROUTING {{
        type filter hook prerouting priority raw; policy accept;
        meta mark set meta mark & 0xfff0ffff
        iifname "pod-*" fib saddr . mark . iif oif 0 counter drop
    }}
    chain dispatch {{ iifname vmap {{ {dispatch} }}
        drop
    }}
    chain filter-FORWARD {{
        type filter hook forward priority filter; policy accept;
        meta mark set meta mark & 0xfff1ffff
        iifname "pod-*" jump dispatch
        ct state established,related accept
        {family} daddr {network.pods} accept
        meta mark & 0x10000 == 0x10000 accept
        drop
    }}
    chain nat-POSTROUTING {{
        type nat hook postrouting priority srcnat; policy accept;
        {family} saddr {network.pods} {family} daddr != {network.pods} masquerade fully-random
    }}
}}
"""


def kube_router(network: Network) -> str:
    """kube-router's firewall: pods by address, a refusal by ICMP, two marks."""
    number = {each.address: f"KUBE-POD-FW-{n}" for n, each in enumerate(network.workloads)}
    firewalls = [_kube_router_pod(each, number[each.address], network.pods) for each in network.workloads]
    return f"""\
*nat
-A POSTROUTING -s {network.pods} ! -d {network.pods} -j MASQUERADE
COMMIT
*filter
:KUBE-ROUTER-FORWARD - [0:0]
{_joined([f":{chain} - [0:0]" for chain in number.values()])}
-A FORWARD -j KUBE-ROUTER-FORWARD
{_joined([f"-A KUBE-ROUTER-FORWARD -s {address} -j {chain}" for address, chain in number.items()])}
-A KUBE-ROUTER-FORWARD -m mark --mark 0x20000/0x20000 -j ACCEPT
{_joined(firewalls)}
COMMIT
"""


def _kube_router_pod(workload: Workload, name: str, pods: str) -> str:
    chain = f"-A {name}"
    return f"""\
{chain} -m conntrack --ctstate INVALID -j DROP
{chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
{chain} {f"-d {pods}" if workload.shut else ""} -j MARK --set-xmark 0x10000/0x10000
{chain} -m mark ! --mark 0x10000/0x10000 -j REJECT
{chain} -j MARK --set-xmark 0x0/0x10000
{chain} -j MARK --set-xmark 0x20000/0x20000"""


def flannel(network: Network) -> str:
    """flannel enforces nothing, and masquerades."""
    return f"""\
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -s {network.pods} ! -d {network.pods} -j MASQUERADE --random-fully
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -j FLANNEL-FWD
-A FLANNEL-FWD -s {network.pods} -j ACCEPT
-A FLANNEL-FWD -d {network.pods} -j ACCEPT
COMMIT
"""


def kube_proxy(_: Network) -> str:
    """kube-proxy with iptables: what its chains do to packets of no service."""
    return """\
*nat
:KUBE-POSTROUTING - [0:0]
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A FORWARD -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"""


def kube_proxy_nftables(network: Network) -> str:
    """kube-proxy with nftables."""
    family = _family(network.pods)
    return f"""\
table {family} kube-proxy {{
    chain mark-for-masquerade {{ meta mark set mark or 0x4000
    }}
    chain masquerading {{
        meta mark & 0x4000 == 0 return
        meta mark set mark xor 0x4000
        masquerade fully-random
    }}
    chain nat-postrouting {{ type nat hook postrouting priority srcnat; policy accept; jump masquerading
    }}
    chain filter-forward {{
        type filter hook forward priority -110; policy accept;
        ct state new accept
        ct state invalid drop
    }}
}}
"""


def _family(network: str) -> str:
    return "ip6" if ":" in network else "ip"


@dataclass(frozen=True, slots=True)
class Make:
    """A CNI's rules and kube-proxy's, each loaded by its own means."""

    name: str
    rules: Callable[[Network], str]
    loaded_by: Backend
    proxy: Callable[[Network], str]
    proxy_by: Backend
    cni: Cni = "routed"


MAKES: Mapping[str, Make] = {
    "calico": Make("Calico", calico, "iptables-legacy", kube_proxy, "iptables-legacy"),
    "calico with iptables-nft": Make("Calico", calico, "iptables-nft", kube_proxy_nftables, "nft"),
    "calico with nftables": Make("Calico", calico_nftables, "nft", kube_proxy_nftables, "nft"),
    "kube-router": Make("kube-router", kube_router, "iptables-nft", kube_proxy, "iptables-nft", "bridge"),
}
FLANNEL = Make("flannel", flannel, "iptables-nft", kube_proxy, "iptables-legacy", "bridge")
