"""Adj-RIB-Out of a session, in ExaBGP's process and in place of ExaBGP's own: packed prefixes, and what they share.

Stock ExaBGP has some objects for every path of every peer, copies them one by one, and sends an UPDATE for each IPv6
prefix, and for every prefix when a peer asks for its routes again. Here a prefix is its bytes in an UPDATE (RFC 4271,
section 4.3), one object for all peers; attributes and next hop are one `Way` for all paths and sessions that have the
same; and UPDATEs are as full as they can be. ExaBGP's own commands fill the same table. Unicast families alone.

It imports ExaBGP, and nothing of the agent. It knows no commands: `bgp.inside.commands` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from struct import pack
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from exabgp.bgp.message import Action
from exabgp.bgp.message.direction import Direction
from exabgp.bgp.message.notification import Notify
from exabgp.bgp.message.open.asn import ASN
from exabgp.bgp.message.refresh import RouteRefresh
from exabgp.bgp.message.update.attribute import Attribute, Attributes, NextHop
from exabgp.bgp.message.update.nlri.cidr import CIDR
from exabgp.bgp.message.update.nlri.inet import INET
from exabgp.protocol.family import AFI, SAFI
from exabgp.protocol.ip import IP
from exabgp.rib.change import Change
from exabgp.rib.outgoing import OutgoingRIB

IPV4, IPV6 = (AFI.ipv4, SAFI.unicast), (AFI.ipv6, SAFI.unicast)
FAMILIES = {4: IPV4, 6: IPV6}
_LENGTH = {IPV4: 32, IPV6: 128}  # bits of an address
_HEADER, _FIELDS = 19, 4  # bytes of an UPDATE: its header, and the lengths of withdrawn routes and attributes
_MARKER = b"\xff" * 16
_UPDATE = 2  # type of message
_NO_PATH_ID = b"\0" * 4  # RFC 7911, section 3

Family = tuple[Any, Any]


class _Complete:
    """A session in which attributes are written as they are kept: AS numbers of four bytes."""

    asn4, aigp, local_as, peer_as, neighbor = True, True, ASN(0), ASN(0), None


class Way:
    """What paths of one UPDATE share. `wire`: the attributes as in an UPDATE, without next hop and defaults."""

    __slots__ = ("__weakref__", "_packed", "attributes", "family", "next_hop", "wire")

    def __init__(self, family: Family, next_hop: bytes, wire: bytes, attributes: Any) -> None:
        self.family, self.next_hop, self.wire, self.attributes = family, next_hop, wire, attributes
        self._packed: dict[tuple[int, int, bool], bytes] = {}

    def packed(self, negotiated: Any) -> bytes:
        """All attributes as a session has them; made once for sessions that are alike."""
        key = int(negotiated.local_as), int(negotiated.peer_as), bool(negotiated.asn4)
        if key not in self._packed:
            self._packed[key] = self.attributes.pack(negotiated)
        return self._packed[key]

    @property
    def version(self) -> int:
        """Of IP."""
        return 4 if self.family == IPV4 else 6

    @property
    def is_native(self) -> bool:
        """Whether its prefixes stand in the UPDATE itself (RFC 4271), not in an attribute (RFC 4760)."""
        return self.family == IPV4 and len(self.next_hop) == 4


WayOrNone = TypeVar("WayOrNone", Way, Way | None)
_ways: WeakValueDictionary[tuple[Family, bytes, bytes], Way] = WeakValueDictionary()


def way(family: Family, next_hop: bytes, wire: bytes) -> Way:
    """The one with these attributes. Raises ValueError if they are none."""
    found = _ways.get((family, next_hop, wire))
    if found is None:
        found = way_of(family, next_hop, _parsed(wire))
    return found


def way_of(family: Family, next_hop: bytes, attributes: Any) -> Way:
    """The one with attributes of ExaBGP's, whose next hop does not count."""
    own = Attributes()
    for code, attribute in attributes.items():
        if code not in Attributes.NO_GENERATION:
            own[code] = attribute
    wire = b"".join(own[code].pack(_Complete) for code in sorted(own))
    if family == IPV4 and len(next_hop) == 4:
        own[Attribute.CODE.NEXT_HOP] = NextHop(IP.ntop(next_hop), next_hop)
    return _ways.setdefault((family, next_hop, wire), Way(family, next_hop, wire, own))


def _parsed(wire: bytes) -> Any:
    try:
        attributes = Attributes().parse(wire, Direction.IN, _Complete)
    except (Notify, IndexError) as error:
        raise ValueError(str(error)) from error
    unfit = {Attribute.CODE.NEXT_HOP, Attribute.CODE.MP_REACH_NLRI, Attribute.CODE.MP_UNREACH_NLRI}
    if any(code in unfit or not 0 < code < 256 for code in attributes):
        raise ValueError("no path attributes")
    return attributes


def prefixes(family: Family, data: bytes) -> list[bytes]:
    """Packed prefixes, one after the other, as a list. Raises ValueError if they are none."""
    found, at, longest = [], 0, _LENGTH[family]
    while at < len(data):
        end = at + 1 + (data[at] + 7) // 8
        if data[at] > longest or end > len(data):
            raise ValueError("no prefixes")
        found.append(data[at:end])
        at = end
    return found


class Batch:
    """Prefixes that go out together, in place of ExaBGP's `Update`; `way` None withdraws them."""

    def __init__(self, family: Family, way: Way | None, nlris: Sequence[bytes]) -> None:
        self._family, self._way, self._nlris = family, way, nlris

    def messages(self, negotiated: Any, include_withdraw: bool = True) -> Iterator[bytes]:
        """The UPDATEs, as full as the session allows; none for what it has not negotiated."""
        if self._family not in negotiated.families:
            return
        nlris, room = self._nlris, negotiated.msg_size - _HEADER - _FIELDS
        if negotiated.addpath.send(*self._family):
            nlris = [_NO_PATH_ID + nlri for nlri in nlris]
        if self._way is not None:
            yield from self._announcements(self._way, nlris, room, negotiated)
        elif include_withdraw:
            yield from self._withdrawals(nlris, room)

    def _announcements(self, way: Way, nlris: Sequence[bytes], room: int, negotiated: Any) -> Iterator[bytes]:
        attributes = way.packed(negotiated)
        room -= len(attributes)
        if way.is_native:
            for packed in _filled(nlris, room):
                yield _update(b"", attributes, packed)
            return
        if self._family == IPV4 and (*IPV4, AFI.ipv6) not in negotiated.nexthop:
            return  # RFC 8950, section 4: not to who has not agreed to it
        head = _family_bytes(self._family) + bytes([len(way.next_hop)]) + way.next_hop + b"\0"
        for packed in _filled(nlris, room - len(head), attribute=len(head)):
            yield _update(b"", attributes + _attribute(0x80, Attribute.CODE.MP_REACH_NLRI, head + packed), b"")

    def _withdrawals(self, nlris: Sequence[bytes], room: int) -> Iterator[bytes]:
        if self._family == IPV4:
            for packed in _filled(nlris, room):
                yield _update(packed, b"", b"")
            return
        head = _family_bytes(self._family)
        for packed in _filled(nlris, room - len(head), attribute=len(head)):
            yield _update(b"", _attribute(0x80, Attribute.CODE.MP_UNREACH_NLRI, head + packed), b"")


def _family_bytes(family: Family) -> bytes:
    return bytes(family[0].pack() + family[1].pack())


def _filled(nlris: Sequence[bytes], room: int, attribute: int | None = None) -> Iterator[bytes]:
    """Prefixes joined, as many at a time as `room` bytes take.

    `attribute`: they stand in one, behind so many bytes; its header is 3 bytes, or 4 if what it has is longer than 255.
    """
    begin = size = 0
    for at, nlri in enumerate(nlris):
        size += len(nlri)
        if size + _overhead(size, attribute) > room:
            if at == begin:
                return  # attributes leave no room for one prefix: as stock, it is not announced
            yield b"".join(nlris[begin:at])
            begin, size = at, len(nlri)
    if begin < len(nlris) and size + _overhead(size, attribute) <= room:
        yield b"".join(nlris[begin:])


def _overhead(size: int, attribute: int | None) -> int:
    return 0 if attribute is None else 3 if size + attribute <= 255 else 4


def _attribute(flags: int, code: int, value: bytes) -> bytes:
    if len(value) > 255:
        return pack("!BBH", flags | 0x10, code, len(value)) + value
    return bytes([flags, code, len(value)]) + value


def _update(withdrawn: bytes, attributes: bytes, announced: bytes) -> bytes:
    body = b"".join((pack("!H", len(withdrawn)), withdrawn, pack("!H", len(attributes)), attributes, announced))
    return _MARKER + pack("!HB", _HEADER + len(body), _UPDATE) + body


class Table(OutgoingRIB):  # type: ignore[misc]  # ExaBGP has no types
    """What a session is to have, and of it what is to be sent; of several changes of a prefix only the last is sent."""

    def __init__(self, cache: bool, families: Iterable[Family]) -> None:
        self._paths: dict[Family, dict[bytes, Way]] = {}
        self._queued: dict[Family, dict[bytes, Way | None]] = {}
        self._asked: dict[Family, bool] = {}  # families that the peer wants again: whether it is told where that ends
        super().__init__(cache, families)

    # --- commands

    def announce(self, way: Way, nlris: Iterable[bytes], *, again: bool = False) -> None:
        """Replaces what there is for these prefixes; what is there already is not sent `again`."""
        paths = self._paths.setdefault(way.family, {})
        new = dict.fromkeys([nlri for nlri in nlris if again or paths.get(nlri) is not way], way)
        paths.update(new)
        self._queue(way.family, new)

    def withdraw_prefixes(self, family: Family, nlris: Iterable[bytes]) -> None:
        """Also what is not there: that is no error."""
        paths, changes = self._paths.get(family, {}), dict[bytes, Way | None].fromkeys(nlris)
        for nlri in changes:
            paths.pop(nlri, None)
        self._queue(family, changes)

    def rows(self) -> Iterator[tuple[Way, list[bytes]]]:
        """All paths, by what they share."""
        for family in self.families:
            yield from _by_way(self._paths.get(family, {})).items()

    def _queue(self, family: Family, changes: Mapping[bytes, Way | None]) -> None:
        if changes:
            self._queued.setdefault(family, {}).update(changes)

    # --- sessions

    def pending(self) -> bool:
        return bool(self._queued or self._asked)

    def updates(self, grouped: bool) -> Iterator[Any]:
        """What is queued now: announcements before withdrawals. A family that was asked for goes out whole."""
        queued, self._queued = self._queued, {}
        asked, self._asked = self._asked, {}
        for family in asked:
            withdrawn = {nlri: None for nlri, way in queued.get(family, {}).items() if way is None}
            queued[family] = {**self._paths.get(family, {}), **withdrawn}
        for family, changes in queued.items():
            if asked.get(family):
                yield RouteRefresh(*family, RouteRefresh.start)
            batches = _by_way(changes)
            gone = batches.pop(None, [])
            yield from (Batch(family, way, nlris) for way, nlris in batches.items())
            yield Batch(family, None, gone)
            if asked.get(family):
                yield RouteRefresh(*family, RouteRefresh.end)

    def reset(self) -> None:
        """The session is down: the next one begins with `replace_restart`."""
        self._queued, self._asked = {}, {}

    def clear(self) -> None:
        self._paths = {}
        self.reset()

    def resend(self, enhanced_refresh: bool, family: Family | None = None) -> None:
        for each in self.families:
            if family is None or each == family:
                self._asked[each] = enhanced_refresh

    def replace_restart(self, previous: Any, new: Any) -> None:
        for family in self.families:
            self._queue(family, self._paths.get(family, {}))

    def delete_cached_family(self, families: Iterable[Family]) -> None:
        self._paths = {family: paths for family, paths in self._paths.items() if family in families}

    # --- ExaBGP's own commands

    def add_to_rib(self, change: Any, force: bool = False) -> None:
        family = change.nlri.family().afi_safi()
        if family not in _LENGTH:
            return
        nlris = [change.nlri.cidr.pack_nlri()]
        if change.nlri.action == Action.WITHDRAW:
            self.withdraw_prefixes(family, nlris)
        else:
            self.announce(way_of(family, bytes(change.nlri.nexthop.ton()), change.attributes), nlris, again=force)

    def del_from_rib(self, change: Any) -> None:
        self.withdraw_prefixes(change.nlri.family().afi_safi(), [change.nlri.cidr.pack_nlri()])

    def withdraw(self, families: Iterable[Family] | None = None) -> None:
        for family in families or self.families:
            self.withdraw_prefixes(family, list(self._paths.get(family, {})))

    def cached_changes(self, families: Any = None, actions: Any = (Action.ANNOUNCE,)) -> Iterator[Any]:
        """Its paths as ExaBGP's objects, made one by one."""
        for family in self.families if families is None else [each for each in families if each in self.families]:
            for nlri, way in list(self._paths.get(family, {}).items()):
                yield _change(family, nlri, way)

    def queued_changes(self) -> Iterator[Any]:
        for family, changes in self._queued.items():
            yield from (_change(family, nlri, way) for nlri, way in changes.items() if way is not None)


def _by_way(paths: Mapping[bytes, WayOrNone]) -> dict[WayOrNone, list[bytes]]:
    found: dict[WayOrNone, list[bytes]] = {}
    for nlri, way in paths.items():
        found.setdefault(way, []).append(nlri)
    return found


def _change(family: Family, nlri: bytes, way: Way) -> Any:
    inet = INET(*family, Action.ANNOUNCE)
    inet.cidr = CIDR(nlri[1:].ljust(_LENGTH[family] // 8, b"\0"), nlri[0])
    inet.nexthop = NextHop(IP.ntop(way.next_hop), way.next_hop)
    return Change(inet, way.attributes)
