"""What to look at where a router takes no session, or nothing by it. Pure.

BGP tells why a session ends, if the router says so (NOTIFICATION, RFC 4271, section 4.5), and which families were
agreed; that a router leaves out what it was told, by a policy or for want of one (RFC 8212), it tells nobody. So what
is known is said, and for the rest where it can be seen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from bgp.path import SpeakerPeer
from bgp.session import PeerStatus as Session
from routerd.model import Refusal
from routerd.refs import PEER, Ref

NOT_UP = "check its address, AS numbers, password, and that no firewall is between"
FRESH = 600.0  # seconds for which a session that its router had ended by a limit of prefixes may well end again
_NOTIFICATION = re.compile(r"notification (?P<way>received|sent)\D*\((?P<code>\d+), ?(?P<subcode>\d+)\)")
_LIMIT = "it takes no more prefixes than a limit of this session: raise that there, or announce fewer"
_RECEIVED: Mapping[tuple[int, int], str] = {
    (2, 2): "compare the AS numbers of both sides",
    (2, 3): "compare the router ids: no two speakers may have the same one, and none 0.0.0.0",
    (2, 6): "compare the hold times of both sides",
    (3, 0): "the router refuses an UPDATE of this node: its log says which attribute",
    (4, 0): "it heard nothing for the hold time: look for lost packets, and for who is overloaded",
    (6, 1): _LIMIT,
    (6, 2): "somebody has shut the session down there",
    (6, 3): "the router has no such peer any more: configure this node there",
    (6, 5): "the router takes no connection from this address: configure this node there",
    (6, 7): "the router opens the session, too: let it be passive",
    (6, 8): "the router is out of memory, or of room for paths",
}
_SENT: Mapping[tuple[int, int], str] = {
    (2, 2): "compare the AS numbers of both sides",
    (4, 0): "nothing came from it for the hold time: look for lost packets, and for who is overloaded",
    (6, 1): "it announces more than max-prefixes of the peer: it is tried again after 10 minutes",
    (6, 10): "BFD has lost it: look for lost packets",
}


def _notification(reason: str) -> tuple[str, int, int] | None:
    """Whether it was received or sent; code and subcode."""
    match = _NOTIFICATION.match(reason)
    return None if match is None else (match["way"], int(match["code"]), int(match["subcode"]))


def to_look_at(reason: str) -> str:
    """What to do about a session that is not up, for the reason that ExaBGP gave last."""
    found = _notification(reason)
    if found is None:
        return NOT_UP
    way, code, subcode = found
    known = _RECEIVED if way == "received" else _SENT
    return known.get((code, subcode)) or known.get((code, 0), NOT_UP)


def session_refusal(name: str, session: Session, up_for: float | None) -> Refusal | None:
    """Of a session that is not up, and of one that its router may end again. `up_for` in seconds."""
    about = Ref(PEER, name=name)
    if session.state != "up":
        reason = session.last_reason or "no answer from the peer"
        return Refusal(about, "SessionDown", f"the session is {session.state}: {reason}: {to_look_at(reason)}")
    if _notification(session.last_reason) != ("received", 6, 1) or up_for is None or up_for >= FRESH:
        return None
    message = f"the router ended the session before ({session.last_reason}), and may again: {_LIMIT}"
    return Refusal(about, "PrefixLimit", f"{message}; {session.announced} are announced")


def untold(session: SpeakerPeer) -> str:
    """Of a session that is up: what nobody tells, and where it can be seen."""
    text = "whether the router uses the paths BGP does not tell: its table says so"
    if session.local_as == session.remote_as:
        return f"{text}, and its import policy"
    return f"{text}; over eBGP FRR takes none without a policy (RFC 8212), `show bgp summary` there says (Policy)"
