"""`Allocations` and `NodeReport`: what is written reads back, and the same value gives the same text."""

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgp.path import MAX_PREPEND, ORIGINS
from routerd.errors import InputError
from routerd.formats.published.allocations import (
    parse_node_report,
    sealed,
    write_allocations,
    write_node_report,
)
from routerd.formats.published.bindings import MAX_GROUP, binding_table
from routerd.model import (
    Advertisement,
    Allocations,
    AppliedTable,
    BindingTable,
    BlockReport,
    CloudInterface,
    CoolingPorts,
    EgressGroup,
    Heartbeat,
    NodeAddresses,
    NodeBlocks,
    NodeInterfaces,
    NodeLink,
    NodeNumber,
    NodeReport,
    PodCount,
    PoolWays,
    PortAsk,
    PortBlock,
    PortReport,
    Refusal,
    ServiceAllocation,
    UnusedBlock,
    Writer,
)
from routerd.refs import Ref
from routerd.selectors import LabelSelector, Requirement
from tests.models.many import parse_allocations

text = st.text(st.characters(codec="utf-8"), max_size=20)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
# An IPv4-mapped IPv6 address reads back as the IPv4 address that it is.
v6 = st.integers(2**64, 2**128 - 1).map(IPv6Address)
addresses = st.one_of(st.integers(0, 2**32 - 1).map(IPv4Address), v6)
macs = st.binary(min_size=6, max_size=6).map(lambda each: each.hex(":"))
groups = st.builds(
    EgressGroup,
    id=st.integers(1, MAX_GROUP),
    egress_ip=addresses,
    policies=st.lists(names, max_size=3).map(tuple),
    gateways=st.lists(names, max_size=3).map(tuple),
    node_address=st.booleans(),
    pool=text,
    further_ips=st.lists(addresses, max_size=2).map(tuple),
    gateway_mode=st.sampled_from(["ecmp", "active-standby"]),
    service=text,
)
services = st.builds(ServiceAllocation, names, text, st.lists(addresses, max_size=2).map(tuple))
numbers = st.integers(0, 2**32 - 1)
texts = st.lists(text, max_size=2).map(tuple)
labels = st.sampled_from(["rack", "example.com/zone"])
wanted = st.one_of(
    st.builds(Requirement, labels, st.sampled_from(["In", "NotIn"]), st.just(("a", "b"))),
    st.builds(Requirement, labels, st.sampled_from(["Exists", "DoesNotExist"])),
)
selectors = st.builds(LabelSelector, st.sampled_from([(), (("rack", "a"),)]), st.lists(wanted, max_size=2).map(tuple))
ways = st.builds(
    Advertisement, st.integers(0, 32), st.integers(0, 128), numbers, texts, st.none() | numbers,
    st.integers(0, MAX_PREPEND), texts, st.lists(selectors, max_size=2).map(tuple),
    st.lists(selectors, max_size=2).map(tuple), st.sampled_from(ORIGINS),
)  # fmt: skip
pools = st.builds(PoolWays, names, st.sampled_from(["bgp", "layer2"]), st.lists(ways, max_size=2).map(tuple))


def _table(
    address: IPv4Address | IPv6Address, version: int, owners: dict[int, tuple[int, bool]], ranges: list[int], told: int
) -> BindingTable:
    blocks = (PortBlock(first * 64, 64, number, asked) for first, (number, asked) in sorted(owners.items()))
    cooling = (CoolingPorts(version, version, tuple((first * 64, 64) for first in ranges)),) if ranges else ()
    return binding_table(address, version, blocks, told=(told,), awaited=version, cooling=cooling)


node_numbers = st.integers(1, 65535)
granules = st.integers(0, 1023)
tables = st.builds(
    _table, addresses, st.integers(0, 2**63 - 1), st.dictionaries(granules, st.tuples(node_numbers, st.booleans())),
    st.lists(granules, max_size=3), node_numbers,
)  # fmt: skip
links = st.builds(NodeLink, addresses, macs, st.none() | st.ip_addresses(v=6, network="fe80::/10"))
nodes = st.builds(NodeAddresses, names, st.lists(addresses).map(tuple), link=st.none() | links)
blocks = st.lists(addresses.map(ip_network), max_size=3).map(tuple)
own = st.builds(lambda address: IPv4Interface((address, 24)), st.ip_addresses(v=4))
interfaces = st.lists(st.builds(CloudInterface, macs, own, blocks, blocks, blocks), max_size=2).map(tuple)
allocations = st.builds(
    Allocations,
    generation=st.integers(0, 2**62),
    services=st.lists(services, max_size=3).map(tuple),
    groups=st.lists(groups, max_size=3).map(tuple),
    refusals=st.lists(st.builds(Refusal, text.map(Ref.parse), text, text), max_size=3).map(tuple),
    nodes=st.lists(
        st.builds(NodeAddresses, names, st.lists(addresses).map(tuple), link=st.none() | links), max_size=2
    ).map(tuple),
    pools=st.lists(pools, max_size=2).map(tuple),
    numbers=st.lists(st.builds(NodeNumber, names, node_numbers), max_size=3).map(tuple),
    bindings=st.lists(tables, max_size=2).map(tuple),
    pod_cidrs=st.lists(st.builds(NodeBlocks, names, blocks), max_size=2).map(tuple),
    interfaces=st.lists(st.builds(NodeInterfaces, names, interfaces), max_size=2).map(tuple),
)


@given(allocations)
@settings(max_examples=60)
def test_allocations_read_back(value: Allocations) -> None:
    assert parse_allocations(write_allocations(value), "f") == value


versions = st.integers(0, 2**63 - 1)
asks = st.builds(PortAsk, st.integers(1, MAX_GROUP), st.integers(0, 1 << 20), st.integers(0, 1 << 20))
unused = st.builds(UnusedBlock, addresses, granules.map(lambda each: each * 64), st.sampled_from([64, 1024]), versions)
port_reports = st.builds(
    PortReport,
    st.lists(asks, max_size=3).map(tuple),
    st.lists(unused, max_size=3).map(tuple),
    st.lists(st.builds(AppliedTable, addresses, versions), max_size=3).map(tuple),
)


@given(
    names, st.lists(addresses, max_size=3), st.booleans(), st.none() | st.integers(1, 86400), st.none() | port_reports,
    st.none() | st.builds(PodCount, st.integers(0, 100_000), st.integers(0, 100_000)),
    st.lists(links, max_size=3).map(tuple), st.none() | st.builds(BlockReport, blocks, blocks),
)  # fmt: skip
@settings(max_examples=60)
def test_node_reports_read_back(
    node: str, found: list[IPv4Address | IPv6Address], draining: bool, seconds: int | None, ports: PortReport | None,
    pods: PodCount | None, told: tuple[NodeLink, ...], kept: BlockReport | None,
) -> None:  # fmt: skip
    heartbeat = None if seconds is None else Heartbeat(seconds, str(seconds))
    networks = tuple(ip_network(address) for address in found)
    report = NodeReport(node, tuple(found), networks, draining, heartbeat, ports, pods, told, kept)
    back = parse_node_report(write_node_report(report), "f")
    assert (back, back.heartbeat and back.heartbeat.beat) == (report, heartbeat and heartbeat.beat)
    assert [each.used for each in (back.ports or PortReport()).asks] == [
        each.used for each in (ports or PortReport()).asks
    ]


def test_the_text_is_one_line_per_record() -> None:
    value = Allocations(
        7,
        (ServiceAllocation("shop/web", "public", (IPv4Address("192.0.2.1"),)),),
        (EgressGroup(5, IPv4Address("192.0.2.9"), ("EgressPolicy/a",), ("n1",), pool="egress"),),
        (Refusal(Ref.parse("svc/shop/x"), "PoolExhausted", 'pool "public" is full'),),
    )
    assert write_allocations(value) == sealed(
        "apiVersion: routerd.io/v1alpha1\nkind: Allocations\ngeneration: 7\n"
        'services:\n- {service: "shop/web", pool: "public", addresses: ["192.0.2.1"]}\n'
        'groups:\n- {id: 5, egressIP: "192.0.2.9", pool: "egress", policies: ["EgressPolicy/a"], '
        'gateways: ["n1"], nodeAddress: false}\n'
        'refusals:\n- {object: "svc/shop/x", reason: "PoolExhausted", message: "pool \\"public\\" is full"}\n'
    )


HEAD = "apiVersion: routerd.io/v1alpha1\nkind: Allocations\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "f: found 0 documents, expected one of kind Allocations"),
        (HEAD + "---\n" + HEAD, "f: found 2 documents, expected one of kind Allocations"),
        (HEAD, 'f:1:1: the key "generation" is missing'),
        (HEAD + "generation: 1\ngroup: []\n", 'f:4:1: group: unknown key "group"; did you mean "groups"?'),
        (
            HEAD + "generation: 1\nservices: [{service: a, pool: p, addresses: [x]}]\n",
            'f:4:46: services[0].addresses[0]: found "x", expected an IP address',
        ),
        (HEAD.replace("Allocations", "NodeReport"), 'f:2:7: kind: found "NodeReport", expected Allocations'),
    ],
)
def test_mistakes_are_named(content: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_allocations(content, "f")
    assert str(caught.value) == message


def test_the_writer_is_told_and_is_not_content() -> None:
    writer = Writer("node: a", "0123abcd", 7)
    document = Allocations(3, writer=writer)
    written = write_allocations(document)
    assert 'writer: {node: "node: a", ledger: "0123abcd", lease: 7}\n' in written
    assert parse_allocations(written, "x").writer == writer
    assert parse_allocations(write_allocations(Allocations(3)), "x").writer is None
    assert document == Allocations(3)


CUT = "cut or edited: it is not what routerd wrote; an edit stands without this line"


def test_what_was_cut_or_edited_is_refused_and_stands_without_the_first_line() -> None:
    value = Allocations(7, (ServiceAllocation("a/b", "p", (IPv4Address("192.0.2.1"),)),))
    document, report = write_allocations(value), write_node_report(NodeReport("n", (IPv4Address("192.0.2.1"),)))
    for text, parse in ((document, parse_allocations), (report, parse_node_report)):
        parse(text, "f")
        for end in range(len(text)):
            with pytest.raises(InputError):
                parse(text[:end], "f")
        with pytest.raises(InputError, match=f"f:1: {CUT}"):
            parse(text.replace("192.0.2.1", "192.0.2.2"), "f")
    head, _, edited = document.replace("192.0.2.1", "192.0.2.2").partition("\n")
    assert head.startswith("# Written by routerd; edits are lost. sha256:")
    assert str(parse_allocations(edited, "f").services[0].addresses[0]) == "192.0.2.2"
    assert parse_allocations(f"# Written by routerd; edits are lost.\n{edited}", "f").generation == 7


PART = "0" * 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f'parts: ["{PART}"]\nservices: []\n', "f:5:11: services: found records beside parts, expected one of the two"),
        ("parts: [../../etc/passwd]\n",
         'f:4:9: parts[0]: found "../../etc/passwd", expected the name of a part: 64 digits of SHA-256'),
        (f'parts: ["{PART}"]\n', f"f: part {PART} is missing or cut"),
    ],
)  # fmt: skip
def test_mistakes_in_an_index_are_named(content: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_allocations(HEAD + "generation: 1\n" + content, "f")
    assert str(caught.value) == message
