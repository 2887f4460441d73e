"""Commands and tables, checked against the parser and the printer of the installed ExaBGP; events as it wrote them."""

# ruff: noqa: E501 - lines of ExaBGP are kept as they are

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from exabgp.configuration.configuration import Configuration
from hypothesis import given, settings
from hypothesis import strategies as st

from bgp import conf, plan, rib, text
from bgp.path import ORIGINS, WELL_KNOWN_COMMUNITIES, Desired, Path, SessionKey, SpeakerPeer, normal_communities
from routerd.formats.compose import value_of
from routerd.formats.meta import ROUTERD
from routerd.formats.native import read_address_pool
from routerd.node.announce import announcements
from routerd.node.checks import Rules
from tests.models import cluster
from tests.models.real_exabgp import loaded, told

EBGP = SpeakerPeer(ip_address("10.9.0.2"), ip_address("10.9.0.1"), 64512, 4200000000, IPv4Address("10.9.0.1"))
IBGP = SpeakerPeer(ip_address("fd09::2"), ip_address("fd09::1"), 64512, 64512, IPv4Address("10.9.0.1"))
IBGP4 = SpeakerPeer(ip_address("10.9.0.3"), ip_address("10.9.0.1"), 64512, 64512, IPv4Address("10.9.0.1"))
PEERS = {peer.key: peer for peer in (EBGP, IBGP)}

u16, u32 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)
hops4 = st.integers(0x01000000, 0xDFFFFFFF).map(IPv4Address)
communities = st.lists(
    st.one_of(
        st.tuples(u16, u16).map(lambda parts: ":".join(map(str, parts))),
        st.tuples(u32, u32, u32).map(lambda parts: ":".join(map(str, parts))),
        st.sampled_from(["65535:65281", "65535:65282", "65535:65283", "65535:65284", "65535:666"]),
        st.builds("{}:{}:{}".format, st.sampled_from(["rt", "soo"]), u16, u32),
        st.builds("{}:{}:{}".format, st.sampled_from(["rt", "soo"]), st.integers(2**16, 2**32 - 1), u16),
        st.builds("rt:{}:{}".format, hops4, u16),
        st.builds("link-bandwidth:{}:{}".format, u16, st.integers(0, 2**24)),
    ),
    max_size=4,
    unique=True,
).map(normal_communities)
networks4 = st.tuples(u32, st.integers(0, 32)).map(lambda pair: IPv4Network(pair, strict=False))
networks6 = st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(lambda pair: IPv6Network(pair, strict=False))
hops6 = st.integers(2**125, 2**126 - 1).map(IPv6Address)


def path_of(prefix: st.SearchStrategy, hop: st.SearchStrategy) -> st.SearchStrategy[Path]:
    optional = st.none() | u32
    few, origins = st.integers(0, 4), st.sampled_from(ORIGINS)
    return st.builds(Path, prefix, st.none() | hop, optional, optional, few, communities, origins)


any_path = st.one_of(path_of(networks4, hops4), path_of(networks6, hops6))


@pytest.fixture(scope="module")
def exabgp() -> Configuration:
    return loaded(conf.peers_text([*PEERS.values(), IBGP4]))


@settings(max_examples=150)
@given(path=any_path, peer=st.sampled_from([EBGP, IBGP]))
def test_a_command_comes_back_as_the_path(exabgp: Configuration, path: Path, peer: SpeakerPeer) -> None:
    """Render, let ExaBGP parse and print, parse: the same path in normal form."""
    wanted = rib.normal(path, peer)
    if isinstance(wanted, rib.PathRefusal):
        assert wanted.reason == "NextHopFamily"
        return
    command = text.announce([peer.key], rib.attributes_of(wanted, peer), [wanted.prefix])
    assert text.parse_table(told(exabgp, command), PEERS)[peer.key] == {wanted.prefix: wanted}


def test_a_command_for_several_peers_and_prefixes(exabgp: Configuration) -> None:
    path = Path(ip_network("2001:db8::/64"), ip_address("2001:db8::9"), med=7)
    prefixes = [ip_network(f"2001:db8:0:{n:x}::/64") for n in range(300)]
    command = text.announce(PEERS, rib.attributes_of(path, EBGP), prefixes)
    table = text.parse_table(told(exabgp, command), PEERS)
    assert set(table[EBGP.key]) == set(table[IBGP.key]) == set(prefixes)


def test_commands_as_text() -> None:
    path = Path(
        ip_network("192.0.2.0/24"), None, 200, 50, 2, ("64512:1", "64512:1:2"),
    )  # fmt: skip
    attributes = rib.attributes_of(path, EBGP)
    assert text.announce([EBGP.key, IBGP.key], attributes, [path.prefix, ip_network("192.0.2.1/32")]) == (
        "neighbor 10.9.0.2 local-ip 10.9.0.1 , neighbor fd09::2 local-ip fd09::1 announce attributes next-hop self as-path [ 64512 64512 64512 ] med 50 "
        "local-preference 200 community [ 64512:1 ] large-community [ 64512:1:2 ] nlri 192.0.2.0/24 192.0.2.1/32"
    )
    assert (
        text.withdraw([EBGP.key], [path.prefix])
        == "neighbor 10.9.0.2 local-ip 10.9.0.1 withdraw attributes nlri 192.0.2.0/24"
    )
    assert text.end_of_rib(IBGP.key, "ipv6 unicast") == "neighbor fd09::2 local-ip fd09::1 announce eor ipv6 unicast"
    assert text.flush([EBGP.key], 0.3) == "neighbor 10.9.0.2 local-ip 10.9.0.1 routerd flush 0.3"


# As ExaBGP 5.0.15 wrote them (`show adj-rib out json`), for a session over IPv4 and one over IPv6.
TABLE = """\
{"peer": {"address": "10.9.0.2"}, "route": {"nlri": {"prefix": "192.0.2.0/24", "nexthop": "10.9.0.1", "family": {"afi": "ipv4", "safi": "unicast"}}, "attributes": {"as-path": {"0": {"element": "as-sequence", "value": [64512, 64512, 64512]}}, "med": 50, "local-preference": 200, "community": ["64512:1"], "large-community": ["64512:1:2"]}}}
{"peer": {"address": "fd09::2,fd09::1"}, "route": {"nlri": {"prefix": "fd11::5/128", "nexthop": "fd00::1", "family": {"afi": "ipv6", "safi": "unicast"}}, "attributes": {"med": 50, "local-preference": 200, "community": ["64512:1", "no-export"], "large-community": ["64512:1:2"]}}}
{"peer": {"address": "192.0.2.9,192.0.2.8"}, "route": {"nlri": {"prefix": "fd12::/64", "nexthop": "fd00::1", "family": {"afi": "ipv6", "safi": "unicast"}}, "attributes": {"aigp": 5}}}
"""


def test_a_table_as_exabgp_prints_it() -> None:
    unknown = SessionKey(ip_address("192.0.2.9"), ip_address("192.0.2.8"))
    assert text.parse_table(TABLE.splitlines(), PEERS) == {
        EBGP.key: {
            ip_network("192.0.2.0/24"): Path(ip_network("192.0.2.0/24"), None, 200, 50, 2, ("64512:1", "64512:1:2"))
        },
        IBGP.key: {
            ip_network("fd11::5/128"): Path(
                ip_network("fd11::5/128"), ip_address("fd00::1"), 200, 50, 0, ("64512:1", "65535:65281", "64512:1:2")
            )
        },
        # An attribute that is not ours makes a path that nobody wants, so that it is replaced.
        unknown: {ip_network("fd12::/64"): Path(ip_network("fd12::/64"), ip_address("::"))},
    }


@pytest.mark.parametrize(
    "communities",
    [
        ("64512:9", "64512:10"),
        ("64512:10", "64512:2:1"),
        ("65535:0", "65535:666"),
        ("9:1", "10:1"),
        ("9:1", "9:1:1", "rt:192.0.2.1:1", "link-bandwidth:1:125000000", "rt:9:1", "soo:70000:1"),
    ],
)
def test_what_was_announced_with_communities_is_the_same_when_it_is_read_back(
    communities: tuple[str, ...], exabgp: Configuration
) -> None:
    wanted = Path(ip_network("192.0.2.0/24"), communities=normal_communities(reversed(communities)))
    assert wanted.communities == communities
    told_of = text.announce([EBGP.key], rib.attributes_of(wanted, EBGP), [wanted.prefix])
    assert text.parse_table(told(exabgp, told_of), PEERS)[EBGP.key] == {wanted.prefix: wanted}


spellings = st.lists(
    st.one_of(
        st.tuples(u16, u16).map(lambda parts: f"{parts[0]}:{parts[1]:05}"),  # leading zeros
        st.tuples(u32, u32, u32).map(lambda parts: ":".join(map(str, parts))),
        st.sampled_from([*WELL_KNOWN_COMMUNITIES, *WELL_KNOWN_COMMUNITIES.values()]),
        st.sampled_from(["rt:064512:07", "rt:192.0.2.1:7", "soo:70000:7", "link-bandwidth:1:125000001"]),
    ),
    max_size=6,
)


@settings(max_examples=150)
@given(texts=spellings, data=st.data())
def test_an_agent_that_returns_finds_what_it_wants_however_communities_are_written(
    exabgp: Configuration, texts: list[str], data: st.DataObject
) -> None:
    """From the pool as written to ExaBGP's table and back: nothing is left to do, in whatever order they stand."""

    def wanted(communities: list[str]) -> Desired:
        advertisement = {"localPref": 100, "communities": communities}
        spec = {"blocks": ["192.0.2.0/24"], "advertisements": [advertisement]}
        meta = {"name": "default"}
        value = value_of({"apiVersion": ROUTERD, "kind": "AddressPool", "metadata": meta, "spec": spec})
        pools = {"default": read_address_pool(value)}
        found = announcements(cluster.snapshot(pools=pools), "a", Rules(egress_ips=False), cluster.LOCAL)
        assert found is not None
        paths = found.desired.ribs[cluster.SESSION]
        return Desired({IBGP4.key: IBGP4}, {IBGP4.key: paths})

    before = wanted(texts)
    rows = []
    for prefix, path in before.ribs[IBGP4.key].items():
        rows += told(exabgp, text.announce([IBGP4.key], rib.attributes_of(path, IBGP4), [prefix]))
    held = text.parse_table(rows, {IBGP4.key: IBGP4})
    after = wanted(data.draw(st.permutations(texts)))
    assert plan.plan(after, plan.Observed(conf.digests(after.peers), held)).actions == ()


EVENTS = {
    "connected": '{ "exabgp": "5.0.0", "time": 1795217980.14, "host" : "vm", "pid" : 7, "ppid" : 6, "counter": 1, "type": "state", "neighbor": { "address": { "local": "10.9.0.1", "peer": "10.9.0.2" }, "asn": { "local": 64512, "peer": 65000 }, "router-id": "10.9.0.1" , "state": "connected" } }',
    "negotiated": '{ "exabgp": "5.0.0", "time": 1795217980.15, "host" : "vm", "pid" : 7, "ppid" : 6, "counter": 2, "type": "negotiated", "neighbor": { "address": { "local": "10.9.0.1", "peer": "10.9.0.2" }, "asn": { "local": 64512, "peer": 65000 }, "router-id": "10.9.0.1" , "negotiated": { "message_size": 4096, "hold_time": 90, "asn4": true, "multisession": false, "operational": false, "refresh": "enhanced", "families": ["ipv4 unicast", "ipv6 unicast"], "nexthop": [], "add_path": {"send": [], "receive": []} }  } }',
    "up": '{ "exabgp": "5.0.0", "time": 1795217980.16, "host" : "vm", "pid" : 7, "ppid" : 6, "counter": 3, "type": "state", "neighbor": { "address": { "local": "10.9.0.1", "peer": "10.9.0.2" }, "asn": { "local": 64512, "peer": 65000 }, "router-id": "10.9.0.1" , "state": "up" } }',
    "down": '{ "exabgp": "5.0.0", "time": 1795217990.5, "host" : "vm", "pid" : 7, "ppid" : 6, "counter": 4, "type": "state", "neighbor": { "address": { "local": "10.9.0.1", "peer": "10.9.0.2" }, "asn": { "local": 64512, "peer": 65000 }, "router-id": "10.9.0.1" , "state": "down", "reason": "notification received (6,2)" } }',
    "shutdown": '{ "exabgp": "5.0.0", "time": 1795217999.0, "host" : "vm", "pid" : 7, "ppid" : 6, "type": "notification", "notification": "shutdown" }',
}  # fmt: skip


def test_events_as_exabgp_writes_them() -> None:
    parsed = {name: text.parse_event(json.loads(line)) for name, line in EVENTS.items()}
    assert parsed == {
        "connected": text.SessionEvent(EBGP.key, "connected", 1795217980.14),
        "negotiated": text.SessionEvent(
            EBGP.key, "negotiated", 1795217980.15, families=("ipv4 unicast", "ipv6 unicast"), hold_time=90
        ),
        "up": text.SessionEvent(EBGP.key, "up", 1795217980.16),
        "down": text.SessionEvent(
            EBGP.key, "down", 1795217990.5, reason="notification received (6,2): cease: administrative shutdown"
        ),
        "shutdown": None,
    }


@pytest.mark.parametrize(
    ("reason", "readable"),
    [
        ("closing connection",
         "closing connection: no TCP connection could be opened, or the peer closed it without a NOTIFICATION"),
        ("notification sent (4,0)", "notification sent (4,0): hold timer expired"),
        ("notification received (2,2)", "notification received (2,2): OPEN: bad peer AS (one side expects another AS number)"),
        ("notification received (3,99)", "notification received (3,99): UPDATE error"),
        ("notification received (x", "notification received (x"),
        ("notification received (99,1)", "notification received (99,1)"),
    ],
)  # fmt: skip
def test_reasons_are_readable(reason: str, readable: str) -> None:
    assert text.readable_reason(reason) == readable
