"""The kernel's side of the table: reads it back, applies one action. Decides nothing.

All of it belongs to the network namespace of the calling thread. What changes needs CAP_NET_ADMIN. Numbers are those of
<linux/rtnetlink.h>, <linux/fib_rules.h> and <linux/if.h>.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from fib import blackholes
from fib.blackholes import PutVerdicts, RemoveVerdicts, Verdict
from fib.plan import (
    PROTOCOL,
    TABLE,
    Action,
    AddRule,
    DeleteRule,
    Desired,
    Hop,
    Hops,
    IPAddress,
    IPNetwork,
    Observed,
    Put,
    Remove,
    Rule,
)
from netlink.wire import Attributes, NetlinkSocket, attribute, attributes

RTM_GETLINK, RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 18, 24, 25, 26
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
# struct ifinfomsg, rtmsg, rtnexthop, fib_rule_hdr
IFINFO, ROUTE, NEXT_HOP, RULE, U32 = (struct.Struct(form) for form in ("=BxHiII", "=8BI", "=HBBi", "=8BI", "=I"))
IFLA_IFNAME = 3
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_MULTIPATH, RTA_TABLE, RTA_VIA, RTA_NH_ID = 1, 4, 5, 9, 15, 18, 30
FRA_IIFNAME, FRA_PRIORITY, FRA_TABLE, FRA_PROTOCOL = 3, 6, 15, 21
TABLE_MAIN, RT_SCOPE_UNIVERSE, RT_SCOPE_NOWHERE, RTN_UNICAST, FR_ACT_TO_TBL = 254, 0, 255, 1, 1
FIB_RULE_INVERT, LOOPBACK = 0x2, b"lo\0"  # the kernel looks up routes of what the host sends as coming in by it
KINDS: Mapping[Verdict, int] = {"blackhole": 6, "throw": 9}  # RTN_BLACKHOLE, RTN_THROW
VERDICTS = {kind: verdict for verdict, kind in KINDS.items()}
ARPHRD_ETHER, IFF_UP, IFF_LOOPBACK, IFF_NOARP, IFF_LOWER_UP = 1, 0x1, 0x8, 0x80, 0x10000
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
VERSIONS = {family: version for version, family in FAMILIES.items()}
GONE = (errno.ESRCH, errno.ENOENT)
OUR_PROTOCOL = bytes([PROTOCOL])


class Route(NamedTuple):
    prefix: IPNetwork
    protocol: int
    kind: int
    values: Attributes


def observe(desired: Desired) -> Observed:
    """`main` and devices only where they are needed. Raises OSError."""
    with NetlinkSocket() as route:
        ours = (each for each in _routes(route, TABLE) if each.protocol == PROTOCOL)
        routes = {each.prefix: frozenset(_hops(each.values)) for each in ours}
        rules = frozenset(_rules(route))
        verdicts = {
            each.prefix: VERDICTS[each.kind]
            for each in _routes(route, blackholes.TABLE)
            if each.protocol == PROTOCOL and each.kind in VERDICTS
        }
        if desired == Desired():
            return Observed(routes, rules, verdicts=verdicts)
        main: dict[IPNetwork, int] = {}
        for each in _routes(route, TABLE_MAIN):  # of those to one prefix the one that counts comes first
            main.setdefault(each.prefix, _link(each))
        links = [*_links(route)]
        dark = frozenset(ifindex for ifindex, _, has_carrier in links if not has_carrier)
        return Observed(routes, rules, main, {ifindex: name for ifindex, name, _ in links}, dark, verdicts)


def _routes(route: NetlinkSocket, table: int) -> Iterator[Route]:
    for version, family in FAMILIES.items():
        body = ROUTE.pack(family, *bytes(7), 0) + attribute(RTA_TABLE, U32.pack(table))
        try:
            answers = route.dump(RTM_GETROUTE, body)
        except FileNotFoundError:  # a namespace that never had a route has no such table
            continue
        for answer in answers:
            answered, length, _, _, _, protocol, _, kind, _ = ROUTE.unpack_from(answer)
            if answered != family:  # of a family that it does not have, the kernel gives those of all others
                continue
            values = attributes(answer, ROUTE.size)
            yield Route(_network(version, values.get(RTA_DST), length), protocol, kind, values)


def _network(version: int, address: bytes | None, length: int) -> IPNetwork:
    number = int.from_bytes(address or b"")
    return IPv4Network((number, length)) if version == 4 else IPv6Network((number, length))


def _address(packed: bytes) -> IPAddress:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _index(values: Attributes) -> int:
    return int(U32.unpack(values.get(RTA_OIF, bytes(4)))[0])


def _hops(values: Attributes) -> Iterator[Hop]:
    """Also those of a route with several."""
    if RTA_GATEWAY in values:
        yield Hop(_address(values[RTA_GATEWAY]), _index(values))
    data, start = values.get(RTA_MULTIPATH, b""), 0
    while start + NEXT_HOP.size <= len(data):
        length, _, _, ifindex = NEXT_HOP.unpack_from(data, start)
        hop = attributes(data[start : start + length], NEXT_HOP.size)
        if RTA_GATEWAY in hop:
            yield Hop(_address(hop[RTA_GATEWAY]), ifindex)
        start += max((length + 3) & ~3, NEXT_HOP.size)


def _link(each: Route) -> int:
    """The device on whose link the prefix is; 0 = the route leads elsewhere."""
    beyond = {RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA, RTA_NH_ID} & each.values.keys()
    return 0 if beyond or each.kind != RTN_UNICAST else _index(each.values)


def _rules(route: NetlinkSocket) -> Iterator[Rule]:
    for version, family in FAMILIES.items():
        try:
            answers = route.dump(RTM_GETRULE, RULE.pack(family, *bytes(7), 0))
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:  # a kernel without IPv6 (ipv6.disable=1)
                raise
            continue
        for answer in answers:
            values, flags = attributes(answer, RULE.size), RULE.unpack_from(answer)[-1]
            if values.get(FRA_PROTOCOL) == OUR_PROTOCOL:
                priority, table = (U32.unpack(values.get(kind, bytes(4)))[0] for kind in (FRA_PRIORITY, FRA_TABLE))
                yield Rule(version, priority, table, FRA_IIFNAME in values and bool(flags & FIB_RULE_INVERT))


def _links(route: NetlinkSocket) -> Iterator[tuple[int, str, bool]]:
    """Of Ethernet, with neighbours that can be asked for; whether it has a carrier."""
    for answer in route.dump(RTM_GETLINK, IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
        _, kind, ifindex, flags, _ = IFINFO.unpack_from(answer)
        if kind == ARPHRD_ETHER and flags & (IFF_UP | IFF_LOOPBACK | IFF_NOARP) == IFF_UP:
            name = attributes(answer, IFINFO.size).get(IFLA_IFNAME, b"")
            yield ifindex, name.rstrip(b"\0").decode(errors="backslashreplace"), bool(flags & IFF_LOWER_UP)


# --- changes


def apply(action: Action) -> None:
    """Doing it again does no harm. Raises OSError."""
    match action:
        case Put():
            _change(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, {p: _put(p, hops) for p, hops in action.routes.items()})
        case Remove():
            _change(RTM_DELROUTE, 0, {prefix: _removed(prefix, TABLE) for prefix in action.prefixes}, GONE)
        case PutVerdicts():
            ordered = sorted(action.verdicts.items(), key=lambda each: each[1], reverse=True)  # "throw" first
            bodies = {prefix: _about(prefix, RT_SCOPE_UNIVERSE, KINDS[v], blackholes.TABLE) for prefix, v in ordered}
            _change(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, bodies)
        case RemoveVerdicts():
            gone = {prefix: _removed(prefix, blackholes.TABLE) for prefix in action.prefixes}
            _change(RTM_DELROUTE, 0, gone, GONE)
        case AddRule():
            _change(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, {action.rule: _rule(action.rule)}, (errno.EEXIST,))
        case DeleteRule():
            _change(RTM_DELRULE, 0, {action.rule: _rule(action.rule)}, GONE)


def _change(
    kind: int, flags: int, bodies: Mapping[IPNetwork, bytes] | Mapping[Rule, bytes], fine: Sequence[int] = ()
) -> None:
    """OSError names the first that is refused with an errno that is not `fine`; the others are done."""
    with NetlinkSocket() as route:
        refused = route.request_all(kind, flags, list(bodies.values()))
    bad = {place: code for place, code in refused.items() if code not in fine}
    if bad:
        place, code = min(bad.items())
        raise OSError(code, f"{len(bad)} of {len(bodies)}, {list(bodies)[place]} first: {os.strerror(code)}")


def _about(prefix: IPNetwork, scope: int, kind: int, table: int) -> bytes:
    head = ROUTE.pack(FAMILIES[prefix.version], prefix.prefixlen, 0, 0, 0, PROTOCOL, scope, kind, 0)
    return head + attribute(RTA_TABLE, U32.pack(table)) + attribute(RTA_DST, prefix.network_address.packed)


def _put(prefix: IPNetwork, hops: Hops) -> bytes:
    head = _about(prefix, RT_SCOPE_UNIVERSE, RTN_UNICAST, TABLE)
    if len(hops) == 1:
        (hop,) = hops
        return head + attribute(RTA_GATEWAY, hop.address.packed) + attribute(RTA_OIF, U32.pack(hop.ifindex))
    return head + attribute(RTA_MULTIPATH, b"".join(map(_next_hop, sorted(hops))))


def _next_hop(hop: Hop) -> bytes:
    gateway = attribute(RTA_GATEWAY, hop.address.packed)
    return NEXT_HOP.pack(NEXT_HOP.size + len(gateway), 0, 0, hop.ifindex) + gateway


def _removed(prefix: IPNetwork, table: int) -> bytes:
    return _about(prefix, RT_SCOPE_NOWHERE, 0, table)


def _rule(rule: Rule) -> bytes:
    numbers = ((FRA_PRIORITY, rule.priority), (FRA_TABLE, rule.table))
    head = RULE.pack(FAMILIES[rule.version], *bytes(6), FR_ACT_TO_TBL, FIB_RULE_INVERT if rule.received else 0)
    head += attribute(FRA_IIFNAME, LOOPBACK) if rule.received else b""
    return head + b"".join(attribute(kind, U32.pack(n)) for kind, n in numbers) + attribute(FRA_PROTOCOL, OUR_PROTOCOL)
