"""The kernel's side of the wiring: reads it back, applies one action. Decides nothing.

All of it belongs to the network namespace of the calling thread. Needs CAP_NET_ADMIN.
"""

from __future__ import annotations

import errno
import json
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from eni.plan import (
    EVERYWHERE,
    MAIN,
    NFT_TABLE,
    PROTOCOL,
    TABLES,
    Action,
    Add,
    Delete,
    Desired,
    IPAddress,
    IPNetwork,
    Link,
    Load,
    Observed,
    Route,
    Rule,
    Set,
    SetLink,
)

SETTINGS = Path("/proc/sys/net")
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
VERSIONS = {family: version for version, family in FAMILIES.items()}
IFF_UP = 0x1
OF_DEVICES = ("ipv4/conf/{}/rp_filter", "ipv4/conf/{}/forwarding", "ipv6/conf/{}/accept_ra")
RTNH_F_ONLINK, RT_SCOPE_LINK = 4, 253
STACKED = ("vlan", "macvlan", "macvtap", "ipvlan")  # devices that have the MAC of the one below them
NFT = ("nft", "-j", "list", "table", "inet", NFT_TABLE)


def observe(desired: Desired) -> Observed:
    """Raises OSError."""
    with IPRoute() as ip:
        try:
            links = {link.ifindex: (mac, link) for mac, link in map(_link, ip.get_links()) if link is not None}
            primary = links.get(_default(ip), ("", None))[1]
            rules = frozenset(_rule(each) for each in _both(ip.get_rules) if _is_ours(each))
            routes = frozenset(_route(each) for each in _both(ip.get_routes) if _is_our_route(each))
            blocks = [block for each in desired.interfaces for block in each.blocks]
            own = within(_addresses(ip), blocks)
        except NetlinkError as error:
            raise OSError(error.code, str(error)) from error
    wanted = {each.mac for each in desired.interfaces}
    mine = {mac: link for mac, link in reversed(links.values()) if mac in wanted}
    settings = _settings(link.name for link in (*mine.values(), primary) if link is not None)
    return Observed(mine, primary, rules, routes, settings, _table(), own=own)


def _both(get: Callable[..., Iterable[Any]]) -> Iterator[Any]:
    return (each for family in FAMILIES.values() for each in get(family=family))


def _addresses(ip: Any) -> Iterator[IPAddress]:
    """Of the host. That of a pointopoint device is IFA_LOCAL; IPv6 has only IFA_ADDRESS."""
    for message in ip.get_addr():
        yield ip_address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))


def within(addresses: Iterable[IPAddress], blocks: Iterable[IPNetwork]) -> frozenset[IPAddress]:
    """Those of any block. With kube-proxy's ipvs mode a host has the address of each Service, and most blocks are one
    address: these are looked up.
    """
    blocks = tuple(blocks)
    single = {block.network_address for block in blocks if block.num_addresses == 1}
    wider = [block for block in blocks if block.num_addresses > 1]
    return frozenset(each for each in addresses if each in single or any(each in block for block in wider))


def _link(message: Any) -> tuple[str, Link | None]:
    info = message.get_attr("IFLA_LINKINFO")
    if info is not None and info.get_attr("IFLA_INFO_KIND") in STACKED:
        return "", None
    name, mtu = message.get_attr("IFLA_IFNAME"), message.get_attr("IFLA_MTU")
    link = Link(message["index"], name, mtu, bool(message["flags"] & IFF_UP))
    return message.get_attr("IFLA_ADDRESS") or "", link


def _default(ip: Any) -> int:
    """The device of the default route with the least metric; 0 = there is none."""
    found = [
        (each.get_attr("RTA_PRIORITY") or 0, each.get_attr("RTA_OIF"))
        for each in ip.get_routes(family=socket.AF_INET, table=MAIN)
        if each["dst_len"] == 0 and each.get_attr("RTA_TABLE") == MAIN and each.get_attr("RTA_OIF")
    ]
    return min(found)[1] if found else 0


def _network(message: Any, name: str, length: str) -> IPNetwork:
    address = message.get_attr(name)
    return ip_network((address, message[length])) if address else EVERYWHERE[VERSIONS[message["family"]]]


def _is_ours(message: Any) -> bool:
    return bool(message.get_attr("FRA_PROTOCOL") == PROTOCOL)


def _rule(message: Any) -> Rule:
    source, destination = _network(message, "FRA_SRC", "src_len"), _network(message, "FRA_DST", "dst_len")
    priority, mark = message.get_attr("FRA_PRIORITY") or 0, message.get_attr("FRA_FWMARK") or 0
    return Rule(priority, message.get_attr("FRA_TABLE"), source, destination, mark)


def _is_our_route(message: Any) -> bool:
    """Those of other rooms are in other tables."""
    return bool(message["proto"] == PROTOCOL and message.get_attr("RTA_TABLE") > TABLES)


def _route(message: Any) -> Route:
    gateway = message.get_attr("RTA_GATEWAY")
    destination = _network(message, "RTA_DST", "dst_len")
    return Route(
        message.get_attr("RTA_TABLE"),
        message.get_attr("RTA_OIF"),
        destination,
        ip_address(gateway) if gateway else None,
    )


def _settings(names: Iterable[str]) -> dict[str, str]:
    keys = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"]
    keys += [key.format(name) for name in names for key in OF_DEVICES]
    found = {}
    for key in keys:
        with suppress(OSError):  # a device that is gone
            found[key] = (SETTINGS / key).read_text().strip()
    return found


def _table() -> tuple[str, ...] | None:
    listed = subprocess.run(NFT, capture_output=True, text=True, check=False)
    if listed.returncode:
        return None
    return tuple(each["rule"].get("comment", "") for each in json.loads(listed.stdout)["nftables"] if "rule" in each)


def apply(action: Action) -> None:
    """Doing it again does no harm. Raises OSError."""
    match action:
        case SetLink():
            _change("link", "set", EEXIST, index=action.ifindex, mtu=action.mtu, state="up")
        case Set():
            (SETTINGS / action.setting).write_text(action.value)
        case Add(Rule() as rule):
            _change("rule", "add", EEXIST, **_rule_words(rule))
        case Add(Route() as route):
            _change("route", "replace", EEXIST, **_route_words(route))
        case Load():
            _nft(action.text)
        case Delete(Rule() as rule):
            _change("rule", "del", GONE, **_rule_words(rule))
        case Delete(Route() as route):
            _change("route", "del", GONE, **_route_words(route))
        case Delete():
            _nft(f"table inet {NFT_TABLE}\ndelete table inet {NFT_TABLE}\n")


EEXIST, GONE = (errno.EEXIST,), (errno.ENOENT, errno.ESRCH, errno.ENODEV)


def _change(kind: str, command: str, fine: tuple[int, ...], **words: Any) -> None:
    with IPRoute() as ip:
        try:
            getattr(ip, kind)(command, **words)
        except NetlinkError as error:
            if error.code not in fine:
                raise OSError(error.code, str(error)) from error


def _rule_words(rule: Rule) -> dict[str, Any]:
    words: dict[str, Any] = {
        "family": FAMILIES[rule.source.version], "priority": rule.priority, "table": rule.table, "protocol": PROTOCOL,
    }  # fmt: skip
    for key, network in (("src", rule.source), ("dst", rule.destination)):
        if network.prefixlen:
            words |= {key: str(network.network_address), f"{key}_len": network.prefixlen}
    return words | ({"fwmark": rule.mark, "fwmask": rule.mark} if rule.mark else {})


def _route_words(route: Route) -> dict[str, Any]:
    words: dict[str, Any] = {
        "family": FAMILIES[route.destination.version], "table": route.table, "oif": route.ifindex,
        "dst": str(route.destination), "proto": PROTOCOL,
    }  # fmt: skip
    if route.gateway is None:
        return words | {"scope": RT_SCOPE_LINK}
    return words | {"gateway": str(route.gateway), "flags": RTNH_F_ONLINK}


def _nft(text: str) -> None:
    done = subprocess.run(["nft", "-f", "-"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(errno.EINVAL, f"nft: {done.stderr.strip()}")
