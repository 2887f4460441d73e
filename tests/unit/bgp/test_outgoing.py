"""The Adj-RIB-Out in ExaBGP's process: its UPDATEs, against those of its own encoder, and what comes of changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from exabgp.bgp.message import Action
from exabgp.bgp.message.direction import Direction
from exabgp.bgp.message.open.asn import ASN
from exabgp.bgp.message.refresh import RouteRefresh
from exabgp.bgp.message.update import Update
from exabgp.protocol.family import AFI
from exabgp.reactor.api import API
from exabgp.rib.outgoing import OutgoingRIB
from hypothesis import given
from hypothesis import strategies as st

from bgp import conf, rib, text, wire
from bgp.inside import outgoing
from bgp.inside.commands import Commands
from bgp.path import ORIGINS, IPNetwork, SessionKey, SpeakerPeer, normal_communities
from bgp.path import Path as BgpPath
from tests.models.real_exabgp import loaded

EBGP = SpeakerPeer(ip_address("10.9.0.2"), ip_address("10.9.0.1"), 64512, 65000, IPv4Address("10.9.0.1"))
IBGP = replace(EBGP, address=ip_address("10.8.0.2"), local_address=ip_address("10.8.0.1"), remote_as=64512)
EBGP6 = replace(
    EBGP,
    address=ip_address("fd09::2"),
    local_address=ip_address("fd09::1"),
    local_as=4200000001,
    extended_next_hop=True,
)
PEERS = {peer.key: peer for peer in (EBGP, IBGP, EBGP6)}
A, B, C = (ip_network(f"192.0.2.{n}/32") for n in (1, 2, 3))
V6 = ip_network("2001:db8::1/128")


class Exabgp:
    """As much of its reactor as the bulk commands ask: peers with tables of ours, and what was answered."""

    def __init__(self, file: Path) -> None:
        configuration = loaded(conf.peers_text(PEERS.values()))
        self.neighbors: dict[str, Any] = configuration.neighbors
        for neighbor in self.neighbors.values():
            neighbor.rib = SimpleNamespace(outgoing=outgoing.Table(True, neighbor.families()))
        self.processes = self.asynchronous = self
        self.said: list[str] = []
        file.write_text("")
        self.commands = Commands(file, "5.0.15", bulk=True)

    def peers(self, service: str) -> list[str]:
        return list(self.neighbors)

    def neighbor(self, name: str) -> Any:
        return self.neighbors[name]

    def of(self, peer: SpeakerPeer) -> Any:
        return next(each for each in self.neighbors.values() if str(each["peer-address"]) == str(peer.address))

    def table(self, peer: SpeakerPeer) -> outgoing.Table:
        found: outgoing.Table = self.of(peer).rib.outgoing
        return found

    def schedule(self, service: str, line: str, steps: Iterator[bool]) -> None:
        for _ in steps:
            pass

    def write(self, service: str, line: str) -> None:
        self.said.append(line)

    def answer_done(self, service: str) -> None:
        self.said.append("done")

    def answer_error(self, service: str) -> None:
        self.said.append("error")

    def told(self, command: str) -> list[str]:
        """What it says to a command."""
        self.said.clear()
        run = self.commands.table if command == wire.SHOW_TABLE else self.commands.change
        run(None, self, "relay", command, False)
        return list(self.said)

    def announce(self, path: BgpPath, *peers: SpeakerPeer, prefixes: Iterable[IPNetwork] = ()) -> list[str]:
        attributes = rib.attributes_of(path, peers[0])
        return self.told(wire.announce([peer.key for peer in peers], attributes, list(prefixes) or [path.prefix]))

    def held(self) -> dict[SessionKey, dict[IPNetwork, BgpPath]]:
        *rows, last = self.told(wire.SHOW_TABLE)
        assert last == "done"
        return wire.parse_table(rows, PEERS)


@pytest.fixture
def exabgp(tmp_path: Path) -> Exabgp:
    return Exabgp(tmp_path / "exabgp.conf")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Exabgp:
    return Exabgp(tmp_path_factory.mktemp("exabgp") / "exabgp.conf")


@dataclass(frozen=True)
class Session:
    """What two speakers have agreed to."""

    peer: SpeakerPeer
    asn4: bool = True
    msg_size: int = 4096
    families: tuple[Any, ...] = (outgoing.IPV4, outgoing.IPV6)
    nexthop: tuple[Any, ...] = ((*outgoing.IPV4, AFI.ipv6),)
    with_path_ids: bool = False

    def negotiated(self) -> Any:
        def with_ids(afi: Any, safi: Any) -> bool:
            return self.with_path_ids

        return SimpleNamespace(
            local_as=ASN(self.peer.local_as), peer_as=ASN(self.peer.remote_as), asn4=self.asn4, msg_size=self.msg_size,
            families=self.families, nexthop=self.nexthop, addpath=SimpleNamespace(send=with_ids, receive=with_ids),
            aigp=False, cached_attributes=None,
        )  # fmt: skip

    def read(self, message: bytes) -> Any:
        """An UPDATE as ExaBGP reads it."""
        return Update.unpack_message(message[19:], Direction.IN, self.negotiated())


def sent(table: Any, session: Session, *, first: bool = False) -> list[bytes]:
    """UPDATEs of what is queued; `first`: the session has just come up."""
    agreed = session.negotiated()
    return [message for each in table.updates(True) for message in each.messages(agreed, not first)]


def encoded_by_exabgp(neighbor: Any, command: str, session: Session) -> list[bytes]:
    """UPDATEs of ExaBGP's own encoder, given all prefixes of a command at once."""
    words = command[command.index("announce" if " announce " in command else "withdraw") :]
    changes = [neighbor.remove_self(change) for change in API(None).api_attributes(words, [])]
    for change in changes:
        change.nlri.action = Action.ANNOUNCE if words.startswith("announce") else Action.WITHDRAW
    return list(Update([change.nlri for change in changes], changes[0].attributes).messages(session.negotiated(), True))


def networks(version: int) -> st.SearchStrategy[IPNetwork]:
    bits = 32 if version == 4 else 128
    pairs = st.tuples(st.integers(0, 2**bits - 1), st.integers(1, bits))
    first = 0 if version == 4 else 2**127
    return pairs.map(lambda pair: ip_network(((pair[0] | first) >> (bits - pair[1]) << (bits - pair[1]), pair[1])))


def in_wire_order(prefixes: Iterable[IPNetwork]) -> list[IPNetwork]:
    return sorted(prefixes, key=lambda prefix: wire.nlri_bytes([prefix]))


numbers, communities = st.integers(0, 2**32 - 1), st.sets(st.sampled_from([f"64512:{n}" for n in range(90)]))
large = st.sets(st.sampled_from([f"4200000000:{n}:7" for n in range(30)]))
extended = st.sets(
    st.sampled_from([f"{kind}:{admin}:7" for kind in ("rt", "soo") for admin in (1, 70000, "192.0.2.1")])
)
sessions = st.builds(
    Session, st.sampled_from([EBGP, IBGP, EBGP6]), asn4=st.booleans(), msg_size=st.sampled_from([1000, 4096]),
    with_path_ids=st.booleans(),
)  # fmt: skip


@given(st.data(), sessions, st.sampled_from([4, 6]))
def test_updates_are_those_of_exabgps_own_encoder(
    shared: Exabgp, data: st.DataObject, session: Session, version: int
) -> None:
    peer = session.peer
    prefixes = in_wire_order(data.draw(st.sets(networks(version), min_size=1, max_size=60)))
    path = BgpPath(
        prefixes[0], next_hop=data.draw(st.sampled_from([None, ip_address("10.7.7.7"), ip_address("fd07::7")])),
        med=data.draw(st.none() | numbers), local_pref=data.draw(st.none() | numbers),
        prepend=data.draw(st.integers(0, 32)),
        communities=normal_communities(data.draw(communities) | data.draw(large) | data.draw(extended)),
        origin=data.draw(st.sampled_from(ORIGINS)),
    )  # fmt: skip
    wanted = rib.normal(path, peer)
    if isinstance(wanted, rib.PathRefusal):
        assert wanted.reason == "NextHopFamily"
        return
    attributes, table = rib.attributes_of(wanted, peer), shared.table(peer)
    table.clear()
    assert shared.told(wire.announce([peer.key], attributes, prefixes)) == ["done"]
    own = text.announce([peer.key], attributes, prefixes)
    assert sent(table, session) == encoded_by_exabgp(shared.of(peer), own, session)
    assert shared.told(wire.withdraw([peer.key], prefixes)) == ["done"]
    own = text.withdraw([peer.key], prefixes)
    assert sent(table, session) == encoded_by_exabgp(shared.of(peer), own, session)


def test_ten_thousand_prefixes_go_in_full_updates(exabgp: Exabgp) -> None:
    prefixes = [ip_network((int(IPv4Address("172.16.0.0")) + n, 32)) for n in range(10_000)]
    exabgp.announce(BgpPath(prefixes[0]), EBGP, IBGP, prefixes=prefixes)
    for peer in (EBGP, IBGP):
        updates = sent(exabgp.table(peer), Session(peer))
        assert len(updates) == 13 and all(len(update) > 4090 for update in updates[:-1])


def test_what_a_session_has_not_negotiated_is_not_sent(exabgp: Exabgp) -> None:
    exabgp.announce(BgpPath(A, EBGP6.local_address), EBGP6)
    exabgp.announce(BgpPath(V6), EBGP6)

    def versions(session: Session) -> list[int]:
        exabgp.table(EBGP6).resend(False)
        updates = [session.read(message) for message in sent(exabgp.table(EBGP6), session)]
        return [4 if nlri.afi == AFI.ipv4 else 6 for update in updates for nlri in update.nlris]

    assert versions(Session(EBGP6)) == [4, 6]
    assert versions(Session(EBGP6, families=(outgoing.IPV6,))) == [6]
    assert versions(Session(EBGP6, nexthop=())) == [6]


def test_only_the_last_of_several_changes_is_sent(exabgp: Exabgp) -> None:
    exabgp.told(wire.withdraw([EBGP.key], [C]))
    exabgp.announce(BgpPath(A, med=1), EBGP)
    exabgp.announce(BgpPath(B, med=1), EBGP)
    exabgp.told(wire.withdraw([EBGP.key], [A]))
    exabgp.announce(BgpPath(B, med=2), EBGP)
    assert told_of(exabgp, EBGP) == [("announce", B, 2), ("withdraw", C, None), ("withdraw", A, None)]


def test_what_is_there_already_is_not_sent_again(exabgp: Exabgp) -> None:
    exabgp.announce(BgpPath(A, med=1), EBGP)
    assert told_of(exabgp, EBGP) == [("announce", A, 1)]
    exabgp.announce(BgpPath(A, med=1), EBGP, prefixes=[A, B])
    assert told_of(exabgp, EBGP) == [("announce", B, 1)]


def test_a_new_session_gets_all_and_no_withdrawals(exabgp: Exabgp) -> None:
    exabgp.announce(BgpPath(A), EBGP, prefixes=[A, B])
    table = exabgp.table(EBGP)
    sent(table, Session(EBGP))
    exabgp.told(wire.withdraw([EBGP.key], [A]))
    table.reset()
    assert not table.pending()
    table.replace_restart([], [])
    exabgp.told(wire.withdraw([EBGP.key], [C]))
    (update,) = sent(table, Session(EBGP), first=True)
    assert update.endswith(wire.nlri_bytes([B])) and not table.pending()


@pytest.mark.parametrize("enhanced", [False, True])
def test_a_peer_that_asks_again_gets_one_family_in_full_updates(exabgp: Exabgp, enhanced: bool) -> None:
    """With what is queued meanwhile: the newest of a prefix, and withdrawals."""
    prefixes = [ip_network((int(IPv4Address("172.16.0.0")) + n, 32)) for n in range(2_000)]
    exabgp.announce(BgpPath(prefixes[0]), EBGP, prefixes=prefixes)
    exabgp.announce(BgpPath(V6, ip_address("fd07::7")), EBGP)
    table = exabgp.table(EBGP)
    sent(table, Session(EBGP))
    exabgp.told(wire.withdraw([EBGP.key], prefixes[:1]))
    exabgp.announce(BgpPath(prefixes[1], med=9), EBGP)
    table.resend(enhanced, outgoing.IPV4)
    messages = sent(table, Session(EBGP))
    types = [message[18] for message in messages]
    assert types == ([5, 2, 2, 2, 2, 2, 5] if enhanced else [2, 2, 2, 2, 2])
    withdrawn = messages[-2 if enhanced else -1]
    assert withdrawn[21:].startswith(wire.nlri_bytes(prefixes[:1]))
    assert sum(message.count(wire.nlri_bytes(prefixes[1:2])) for message in messages) == 1
    if enhanced:
        assert [message[21] for message in (messages[0], messages[-1])] == [RouteRefresh.start, RouteRefresh.end]
    assert not table.pending()


@pytest.mark.parametrize(
    "rest",
    [
        "routerd announce 4 self - 21c0000201",  # 33 bits
        "routerd announce 4 self - 20c00002",
        "routerd announce 4 self 4001 20c0000201",
        "routerd announce 4 self 400304c0000201 20c0000201",  # a next hop among the attributes
        "routerd announce 5 self - 20c0000201",
        "routerd announce 6 self - 8020010db8000000000000000000000001",  # `self` of a session over IPv4
        "routerd announce 4 self -",
        "routerd withdraw 4 zz",
    ],
)
def test_a_command_that_is_none_changes_nothing(exabgp: Exabgp, rest: str) -> None:
    before = exabgp.held()
    assert exabgp.told(f"neighbor 10.9.0.2 {rest}") == ["error"]
    assert exabgp.told(f"neighbor 192.0.2.77 {rest}") == ["error"]
    assert exabgp.held() == before


def test_the_table_comes_back_as_it_was_told(exabgp: Exabgp) -> None:
    paths = [
        BgpPath(A, med=7, prepend=3, communities=("64512:9", "65535:0", "64512:1:2")),
        BgpPath(
            B, ip_address("10.7.7.7"), communities=("link-bandwidth:1:125000000", "rt:64512:7"), origin="incomplete"
        ),
        BgpPath(C, communities=normal_communities({f"64512:{n}" for n in range(70)})),
        BgpPath(V6, ip_address("fd07::7")),
    ]
    for path in paths:
        exabgp.announce(path, EBGP)
    exabgp.announce(replace(paths[1], local_pref=300), IBGP)
    held = exabgp.held()
    assert held[EBGP.key] == {path.prefix: path for path in paths}
    assert held[IBGP.key] == {B: replace(paths[1], local_pref=300)} and held[EBGP6.key] == {}


def test_what_equal_peers_have_is_kept_once(exabgp: Exabgp) -> None:
    exabgp.announce(BgpPath(A, ip_address("10.7.7.7")), EBGP, IBGP, prefixes=[A, B])
    (one,), (other,) = (list(exabgp.table(peer).rows()) for peer in (EBGP, IBGP))
    assert one[0] is other[0] and all(first is second for first, second in zip(one[1], other[1], strict=True))
    held = exabgp.held()
    assert held[EBGP.key][A] is held[IBGP.key][A]


def test_exabgps_own_commands_fill_the_same_table(exabgp: Exabgp) -> None:
    """An agent of another release may use them. What they print is as from the stock table."""
    path = BgpPath(A, med=5, communities=("64512:1",))
    stock, neighbor = OutgoingRIB(True, exabgp.of(EBGP).families()), exabgp.of(EBGP)
    words = text.announce([EBGP.key], rib.attributes_of(path, EBGP), [A, B]).partition("local-ip 10.9.0.1 ")[2]
    for change in API(None).api_attributes(words, []):
        change.nlri.action = Action.ANNOUNCE
        for table in (stock, exabgp.table(EBGP)):
            table.add_to_rib(neighbor.remove_self(change))
    assert exabgp.held()[EBGP.key] == {A: path, B: replace(path, prefix=B)}
    ours = [change.as_dict() for change in exabgp.table(EBGP).cached_changes()]
    assert ours == [change.as_dict() for change in stock.cached_changes()]
    assert sent(exabgp.table(EBGP), Session(EBGP)) == sent(stock, Session(EBGP))
    for change in list(stock.cached_changes()):
        exabgp.table(EBGP).del_from_rib(change)
    assert exabgp.held()[EBGP.key] == {}


def told_of(exabgp: Exabgp, peer: SpeakerPeer) -> list[tuple[str, IPNetwork, int | None]]:
    """What the next UPDATEs say: verb, prefix and MED."""
    said: list[tuple[str, IPNetwork, int | None]] = []
    for message in sent(exabgp.table(peer), Session(peer)):
        update = Session(peer).read(message)
        med = update.attributes.get(4)
        for nlri in update.nlris:
            verb = "announce" if nlri.action == Action.ANNOUNCE else "withdraw"
            said.append((verb, ip_network(str(nlri.cidr)), int(str(med)) if med else None))
    return said
