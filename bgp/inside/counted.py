"""How many prefixes a peer has announced in a session: counted from its UPDATEs as they come. No more is kept of them.

ExaBGP parses them only where paths are learnt, and it has no limit of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from exabgp.bgp.message.notification import Notify
from exabgp.protocol.family import AFI, SAFI

from bgp.inside.leaving import CEASE, TOO_MANY_PREFIXES

_UPDATE, _MP_REACH, _MP_UNREACH = 2, 14, 15
_IPV4 = b"\0\x01\x01"  # AFI and SAFI of IPv4 unicast
_LONGEST = {1: 32, 2: 128}  # bits of an address, by AFI


class Counted:
    """`limit`: of each family; the session's end is raised with the prefix after it."""

    def __init__(self, limit: int, negotiated: Any) -> None:
        self._limit, self._negotiated = limit, negotiated
        self._prefixes: dict[bytes, set[bytes]] = {}

    def watch(self, messages: Iterator[tuple[int, int, bytes, bytes, Any]]) -> Iterator[Any]:
        """What `Connection.reader` gives, looked at."""
        for message in messages:
            if message[1] == _UPDATE and message[3]:
                self.take(message[3])
            yield message

    def take(self, body: bytes) -> None:
        """An UPDATE without its header (RFC 4271, section 4.3). Raises Notify: that it is none, or one too many."""
        withdrawn, rest = _field(body, 2)
        attributes, announced = _field(rest, 2)
        self._withdraw(_IPV4, withdrawn)
        while attributes:
            flags, code = attributes[0], int.from_bytes(attributes[1:2], "big")
            value, attributes = _field(attributes[2:], 2 if flags & 0x10 else 1)
            if code == _MP_UNREACH:
                self._withdraw(value[:3], value[3:])
            elif code == _MP_REACH:
                _, nlris = _field(value[3:], 1)
                self._announce(value[:3], nlris[1:])
        self._announce(_IPV4, announced)

    def _announce(self, family: bytes, data: bytes) -> None:
        prefixes = self._prefixes.setdefault(family, set())
        for prefix in self._split(family, data):
            prefixes.add(prefix)
            if len(prefixes) > self._limit:
                raise Notify(CEASE, TOO_MANY_PREFIXES, family + self._limit.to_bytes(4, "big"))

    def _withdraw(self, family: bytes, data: bytes) -> None:
        self._prefixes.setdefault(family, set()).difference_update(self._split(family, data))

    def _split(self, family: bytes, data: bytes) -> Iterator[bytes]:
        """Prefixes, each behind its path id where these are sent (RFC 7911)."""
        afi = int.from_bytes(family[:2], "big")
        if afi not in _LONGEST or family[2:] != b"\x01":
            raise _malformed()
        at, skipped = 0, 4 if self._negotiated.addpath.receive(AFI.create(afi), SAFI.unicast) else 0
        while at < len(data):
            length = data[at + skipped] if at + skipped < len(data) else 255
            end = at + skipped + 1 + (length + 7) // 8
            if length > _LONGEST[afi] or end > len(data):
                raise _malformed()
            yield data[at:end]
            at = end


def _field(data: bytes, size: int) -> tuple[bytes, bytes]:
    """What stands behind its length of `size` bytes, and the rest."""
    end = size + int.from_bytes(data[:size], "big")
    if len(data) < max(size, end):
        raise _malformed()
    return data[size:end], data[end:]


def _malformed() -> Notify:
    return Notify(3, 1, "an UPDATE whose lengths are wrong")
