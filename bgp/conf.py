"""exabgp.conf: the part about peers, rendered from values. Pure; routes are never written into it.

The text is stable (sorted by address) and carries a digest per session in a comment, `# peer PEER,LOCAL DIGEST`, by
which a later agent recognises what ExaBGP has loaded. Passwords are written base64-encoded, which ExaBGP decodes: so
every character is carried and none can end the statement. The text is secret; digests are not to be logged either,
since a weak password could be guessed from one.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping

from bgp.path import FAMILIES, SessionKey, SpeakerPeer
from bgp.rib import PathRefusal

# What a description says, each with a value, for which ExaBGP has no options (`bgp.inside.patches`, `bgp.relay`).
IMPORT, KEEPALIVE, MAX_PREFIXES, RETRY = "import", "keepalive", "max-prefixes", "connect-retry"
RECEIVE = "        receive {\n            parsed;\n            open;\n            update;\n        }\n"
MAX_PASSWORD = 80  # bytes: TCP_MD5SIG_MAXKEYLEN of Linux
TTL = 255  # what a router asks for that has TTL security (GTSM, RFC 5082, section 3), and nobody minds
MAX_RESTART_TIME = 4095  # seconds: 12 bits, RFC 4724, section 3


def peer_refusal(peer: SpeakerPeer) -> PathRefusal | None:
    """Why ExaBGP cannot be given this peer, or None."""

    def refuse(reason: str, message: str) -> PathRefusal:
        return PathRefusal(peer.key, None, reason, message)

    if peer.address.version != peer.local_address.version:
        return refuse("AddressFamily", f"the source address {peer.local_address} is of another family")
    if peer.hold_time != 0 and not 3 <= peer.hold_time <= 65535:
        return refuse("HoldTime", "the hold time must be 0 or 3 to 65535 seconds (RFC 4271, section 4.2)")
    if not 1 <= peer.port <= 65535:
        return refuse("Port", "the port must be 1 to 65535")
    if not int(peer.passive) <= peer.listen_port <= 65535:
        return refuse("Port", "the port where the peer connects to must be 1 to 65535")
    if not (1 <= peer.local_as <= 2**32 - 1 and 1 <= peer.remote_as <= 2**32 - 1):
        return refuse("AsNumber", "AS numbers must be 1 to 4294967295")
    if not 0 <= peer.graceful_restart_time <= MAX_RESTART_TIME:
        return refuse("RestartTime", f"the graceful restart time must be 0 to {MAX_RESTART_TIME} seconds")
    if not 0 <= peer.min_ttl <= TTL:
        return refuse("MinTTL", f"the least TTL of what is taken must be 0 to {TTL}")
    if not peer.families:
        return refuse("NoFamily", "the session has no address family")
    if peer.extended_next_hop and (peer.address.version != 6 or peer.families != FAMILIES):
        return refuse("ExtendedNextHop", "IPv6 next hops of IPv4 prefixes need a session over IPv6 with both families")
    return _password_refusal(peer)


def _password_refusal(peer: SpeakerPeer) -> PathRefusal | None:
    """The message never shows the password."""
    if any(ord(char) < 0x20 or ord(char) == 0x7F or 0xD800 <= ord(char) <= 0xDFFF for char in peer.password):
        message = "the password has a control character (a newline at the end of the file or Secret?): remove it"
        return PathRefusal(peer.key, None, "Password", message)
    if len(peer.password.encode()) > MAX_PASSWORD:
        return PathRefusal(peer.key, None, "Password", f"the password is longer than {MAX_PASSWORD} bytes")
    return None


def peer_section(peer: SpeakerPeer) -> str:
    """The `neighbor` block of a peer for which `peer_refusal` is None."""
    options = [
        f"router-id {peer.router_id}",
        *([f"source-interface {peer.interface}"] if peer.interface else []),
        f"local-address {peer.local_address}",
        f"local-as {peer.local_as}",
        f"peer-as {peer.remote_as}",
        f"hold-time {peer.hold_time}",
        *_description(peer),
        *([f"connect {peer.port}"] if peer.port != 179 else []),
        *(["passive true"] if peer.passive else []),
        *([f"listen {peer.listen_port}"] if peer.listen_port else []),
        f"outgoing-ttl {TTL}",
        *([f"incoming-ttl {peer.min_ttl}"] if peer.min_ttl else []),
        *_password_options(peer.password),
        "manual-eor true",  # End-of-RIB is ours to send, when all is announced
        "adj-rib-in false",
        "adj-rib-out true",
        "group-updates true",
    ]
    capabilities = [
        "asn4 enable",
        "route-refresh enable",
        f"graceful-restart {peer.graceful_restart_time or 'disable'}",
        *(["nexthop enable"] if peer.extended_next_hop else []),
    ]
    blocks = [
        _block("capability", capabilities),
        _block("family", sorted(peer.families)),
        *([_block("nexthop", ["ipv4 unicast ipv6"])] if peer.extended_next_hop else []),
        _block("api", ["processes [ relay ]", "neighbor-changes", "negotiated"], RECEIVE if peer.imports else ""),
    ]
    body = "".join(f"    {option};\n" for option in options) + "".join(blocks)
    return f"neighbor {str(peer.address).partition('%')[0]} {{\n{body}}}\n"


def _description(peer: SpeakerPeer) -> list[str]:
    """For the relay, and for `bgp.inside.patches`. Another one begins a new session, which tells everything again."""
    said = {
        IMPORT: ",".join(map(str, peer.imports)), KEEPALIVE: peer.keepalive_time, MAX_PREFIXES: peer.max_prefixes,
        RETRY: peer.connect_retry,
    }  # fmt: skip
    words = " ".join(f"{word} {value}" for word, value in said.items() if value)
    return [f'description "{words}"'] if words else []


def asked_of(description: str | None) -> dict[str, int]:
    """The numbers in a peer's description; what is none of ours says nothing."""
    words = (description or "").split()
    return {word: int(value) for word, value in zip(words[::2], words[1::2], strict=False) if value.isdigit()}


def _password_options(password: str) -> list[str]:
    if not password:
        return []
    return ["md5-base64 true", f'md5-password "{base64.b64encode(password.encode()).decode()}"']


def _block(name: str, statements: Iterable[str], inner: str = "") -> str:
    return f"    {name} {{\n" + "".join(f"        {statement};\n" for statement in statements) + f"{inner}    }}\n"


def digest(peer: SpeakerPeer) -> str:
    """128 bits of the SHA-256 of the peer's section, in hex."""
    return hashlib.sha256(peer_section(peer).encode()).hexdigest()[:32]


def digests(peers: Mapping[SessionKey, SpeakerPeer]) -> dict[SessionKey, str]:
    """Of the peers that can be configured."""
    return {key: digest(peer) for key, peer in peers.items() if peer_refusal(peer) is None}


def peers_text(peers: Iterable[SpeakerPeer]) -> str:
    """The configuration of the peers that can be configured, sorted by family and address."""
    usable = (peer for peer in peers if peer_refusal(peer) is None)
    ordered = sorted(usable, key=lambda peer: peer.key.order)
    return "".join(f"# peer {peer.key.token} {digest(peer)}\n{peer_section(peer)}" for peer in ordered)


# --- what changed of a peer


_KEYS: Mapping[str, str] = {  # by the word of a statement that `bgp.conf` writes, the key of our document
    "local-as": "my-asn",
    "peer-as": "peer-asn",
    "connect": "peer-port",
    "listen": "listen-port",
    "incoming-ttl": "ttl-security",
    "md5-base64": "password",
    "md5-password": "password",
    "graceful-restart": "graceful-restart-time",
    "source-interface": "interface",
    "nexthop": "extended-next-hop",
    "ipv4 unicast": "families",
    "ipv6 unicast": "families",
    "ipv4 unicast ipv6": "extended-next-hop",
    KEEPALIVE: "keepalive-time",
    IMPORT: "native-routing.learn",
    "parsed": "native-routing.learn",
    "open": "native-routing.learn",
    "update": "native-routing.learn",
}
_AS_WRITTEN = frozenset({"router-id", "hold-time", "passive", MAX_PREFIXES, RETRY})  # the same in both
OTHERWISE = "what this release writes otherwise"


def changed_keys(loaded: str, peer: SpeakerPeer) -> tuple[str, ...]:
    """Keys of the peer that make its session begin anew; of no value is told, as one is the password.

    `loaded`: the configuration that ExaBGP has; () = it has none of the peer, or the same. Sorted.
    """
    section = rf"^# peer {re.escape(peer.key.token)} \S+\n(.*?)(?=^# peer |\Z)"
    found = re.search(section, loaded, re.MULTILINE | re.DOTALL)
    if found is None:
        return ()
    changed = {*_statements(found[1])} ^ {*_statements(peer_section(peer))}
    return tuple(sorted({_key(word) for word, _ in changed}))


def _key(word: str) -> str:
    return _KEYS.get(word, word if word in _AS_WRITTEN else OTHERWISE)


def _statements(section: str) -> Iterator[tuple[str, str]]:
    """Word and value of each, of a description each of its words."""
    for line in (line.strip().rstrip(";") for line in section.splitlines()):
        word, _, value = line.partition(" ")
        if word == "description":
            words = value.strip('"').split()
            yield from zip(words[::2], words[1::2], strict=False)
        elif line in _KEYS:
            yield line, ""
        elif line and line != "}" and not line.endswith("{"):
            yield word, value
