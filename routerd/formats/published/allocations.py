"""`Allocations` and `NodeReport`, which routerd itself writes and reads: one line per record, sorted. Pure.

The first line of what routerd writes bears a digest of the rest: a file that was cut is often good YAML, and says less.
Where the line is missing or bears none, as in files that people bring, nothing is compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from ipaddress import IPv6Address
from typing import Literal, cast, get_args

from bgp.path import MAX_PREPEND, ORIGINS
from routerd.errors import InputError
from routerd.formats.compose import documents, quoted
from routerd.formats.document import UNLIMITED, Section, Source, Value
from routerd.formats.meta import ROUTERD, label_selector
from routerd.formats.published.binding_lines import (
    binding_line,
    number_line,
    port_report_lines,
    read_binding,
    read_number,
    read_port_report,
)
from routerd.formats.published.bindings import MAX_GROUP
from routerd.formats.published.interface_lines import (
    block_report_line,
    interfaces_line,
    read_block_report,
    read_interfaces,
)
from routerd.formats.published.links import MAC
from routerd.formats.published.parts import NAME, Part
from routerd.model import (
    Advertisement,
    Allocations,
    EgressAsk,
    EgressGroup,
    GatewayMode,
    Heartbeat,
    IPAddress,
    IPNetwork,
    NodeAddresses,
    NodeBlocks,
    NodeLink,
    NodeReport,
    PathOrigin,
    PodCount,
    PoolWays,
    Refusal,
    ServiceAllocation,
    Writer,
)
from routerd.refs import Ref
from routerd.selectors import LabelSelector

MOST_REPORTED = 50_000  # addresses of a node: with IPVS every ClusterIP is on an interface
MOST_PODS = 100_000  # of a node
_SEAL = re.compile(r"# Written by routerd; edits are lost\. sha256:([0-9a-f]{64})\n")


def write_allocations(allocations: Allocations) -> str:
    """The document; the same value gives the same text."""
    return sealed(
        _head(allocations)
        + _records("services", (_service(one) for one in allocations.services))
        + _records("groups", (_group(one) for one in allocations.groups))
        + _records("refusals", (_refusal(one) for one in allocations.refusals))
        + (_records("nodes", (_node(one) for one in allocations.nodes)) if allocations.nodes else "")
        + (_records("pools", (_pool(one) for one in allocations.pools)) if allocations.pools else "")
        + (_records("numbers", map(number_line, allocations.numbers)) if allocations.numbers else "")
        + (_records("bindings", map(binding_line, allocations.bindings)) if allocations.bindings else "")
        + (_records("podCIDRs", map(_blocks, allocations.pod_cidrs)) if allocations.pod_cidrs else "")
        + (_records("interfaces", map(interfaces_line, allocations.interfaces)) if allocations.interfaces else "")
    )


def write_index(allocations: Allocations, parts: Iterable[Part]) -> str:
    """The document that puts these parts in force, instead of one with the records in it."""
    return sealed(_head(allocations) + _records("parts", (quoted(_named(one)) for one in parts)))


def _named(one: Part) -> str:
    return f"{one.readers}/{one.name}" if one.readers else one.name


def sealed(text: str) -> str:
    """`text` below the line that says whether it is whole."""
    return f"# Written by routerd; edits are lost. sha256:{sha256(text.encode()).hexdigest()}\n{text}"


def _check_seal(text: str, file: str) -> None:
    """Raises InputError."""
    seal = _SEAL.match(text)
    if seal is not None and sha256(text[seal.end() :].encode()).hexdigest() != seal[1]:
        raise InputError(
            "cut or edited: it is not what routerd wrote; an edit stands without this line", file=file, line=1
        )


def _head(allocations: Allocations) -> str:
    head = f"apiVersion: {ROUTERD}\nkind: Allocations\ngeneration: {allocations.generation}\n"
    return head + _writer(allocations.writer)


def _writer(one: Writer | None) -> str:
    if one is None:
        return ""
    return f"writer: {{node: {quoted(one.node)}, ledger: {quoted(one.ledger)}, lease: {one.lease}}}\n"


def _records(key: str, lines: Iterable[str]) -> str:
    shown = "".join(f"- {line}\n" for line in lines)
    return f"{key}:\n{shown}" if shown else f"{key}: []\n"


def _list(addresses: Iterable[IPAddress | IPNetwork]) -> str:
    return "[" + ", ".join(f'"{address}"' for address in addresses) + "]"


def _service(one: ServiceAllocation) -> str:
    return f"{{service: {quoted(one.service)}, pool: {quoted(one.pool)}, addresses: {_list(one.addresses)}}}"


def _group(one: EgressGroup) -> str:
    further = f", furtherIPs: {_list(one.further_ips)}" if one.further_ips else ""
    mode = f", gatewayMode: {one.gateway_mode}" if one.gateway_mode != "ecmp" else ""
    service = f", service: {quoted(one.service)}" if one.service else ""
    return (
        f'{{id: {one.id}, egressIP: "{one.egress_ip}", pool: {quoted(one.pool)}, '
        f"policies: [{', '.join(map(quoted, one.policies))}], gateways: [{', '.join(map(quoted, one.gateways))}], "
        f"nodeAddress: {str(one.node_address).lower()}{further}{mode}{service}}}"
    )


def _link(one: NodeLink) -> str:
    link_local = f', linkLocal: "{one.link_local}"' if one.link_local is not None else ""
    return f'{{address: "{one.address}", mac: "{one.mac}"{link_local}}}'


def _node(one: NodeAddresses) -> str:
    silent = f", silentSince: {quoted(one.silent_since)}" if one.silent_since else ""
    link = f", link: {_link(one.link)}" if one.link is not None else ""
    return f"{{node: {quoted(one.node)}, addresses: {_list(one.addresses)}{silent}{link}}}"


def _blocks(one: NodeBlocks) -> str:
    return f"{{node: {quoted(one.node)}, blocks: {_list(one.blocks)}}}"


def _pool(one: PoolWays) -> str:
    ways = ", ".join(map(_way, one.advertisements))
    return f"{{pool: {quoted(one.pool)}, protocol: {one.protocol}, advertisements: [{ways}]}}"


def _way(one: Advertisement) -> str:
    said = [
        f"aggregationLength: {one.aggregation_length}, aggregationLengthV6: {one.aggregation_length_v6}",
        f"localPref: {one.local_pref}, communities: {_texts(one.communities)}",
        *([f"med: {one.med}"] if one.med is not None else ()),
        *([f"asPathPrepend: {one.prepend}"] if one.prepend else ()),
        *([f"peers: {_texts(one.peers)}"] if one.peers else ()),
        *([f"nodeSelectors: [{', '.join(map(_selector, one.node_selectors))}]"] if one.node_selectors else ()),
        *([f"serviceSelectors: [{', '.join(map(_selector, one.services))}]"] if one.services else ()),
        *([f"origin: {one.origin}"] if one.origin != "igp" else ()),
    ]
    return f"{{{', '.join(said)}}}"


def _selector(one: LabelSelector) -> str:
    labels = ", ".join(f"{quoted(key)}: {quoted(value)}" for key, value in one.match_labels)
    wanted = ", ".join(
        f"{{key: {quoted(each.key)}, operator: {each.operator}, values: {_texts(each.values)}}}"
        for each in one.match_expressions
    )
    return f"{{matchLabels: {{{labels}}}, matchExpressions: [{wanted}]}}"


def _texts(values: Iterable[str]) -> str:
    return f"[{', '.join(map(quoted, values))}]"


def _refusal(one: Refusal) -> str:
    return f"{{object: {quoted(str(one.object))}, reason: {quoted(one.reason)}, message: {quoted(one.message)}}}"


def read_allocations(value: Value) -> Allocations:
    """What the document itself says, without its parts. Raises InputError."""
    return read_index(value)[0]


def read_index(value: Value) -> tuple[Allocations, Mapping[str, str] | None]:
    """What the document itself says, and its parts: the name, and who needs it; None = there are none to look for.

    Raises InputError.
    """
    records = ("services", "groups", "refusals", "nodes", "pools", "numbers", "bindings", "podCIDRs", "interfaces")
    section = value.section.only("apiVersion", "kind", "generation", "writer", "parts", *records)
    if section.get("parts") is None:
        return _read_whole(section), None
    inline = next((key for key in records if section.get(key) is not None), None)
    if inline is not None:
        raise section.require(inline).error("found records beside parts, expected one of the two")
    names = dict(_read_name(item) for item in section.items("parts", UNLIMITED))
    return _read_whole(section), names


def _read_name(value: Value) -> tuple[str, str]:
    """And who needs the part."""
    readers, _, name = value.name("the name of a part").rpartition("/")
    if not NAME.fullmatch(name):
        value.expected("the name of a part: 64 digits of SHA-256")
    return name, readers


def _read_whole(section: Section) -> Allocations:
    writer = section.get("writer")
    return Allocations(
        writer=_read_writer(writer.section) if writer is not None else None,
        generation=section.require("generation").integer(0, 2**63 - 1),
        services=tuple(_read_service(item.section) for item in section.items("services", UNLIMITED)),
        groups=tuple(_read_group(item.section) for item in section.items("groups", UNLIMITED)),
        refusals=tuple(_read_refusal(item.section) for item in section.items("refusals", UNLIMITED)),
        nodes=tuple(_read_node(item.section) for item in section.items("nodes", UNLIMITED)),
        pools=tuple(_read_pool(item.section) for item in section.items("pools", UNLIMITED)),
        numbers=tuple(read_number(item.section) for item in section.items("numbers", UNLIMITED)),
        bindings=tuple(read_binding(item.section) for item in section.items("bindings", UNLIMITED)),
        pod_cidrs=tuple(_read_blocks(item.section) for item in section.items("podCIDRs", UNLIMITED)),
        interfaces=tuple(read_interfaces(item.section) for item in section.items("interfaces", UNLIMITED)),
    )


def _read_writer(section: Section) -> Writer:
    section.only("node", "ledger", "lease")
    lease = section.require("lease").integer(0, 2**63 - 1)
    return Writer(section.require("node").string(), section.require("ledger").string(), lease)


def _read_service(section: Section) -> ServiceAllocation:
    section.only("service", "pool", "addresses")
    addresses = tuple(item.address() for item in section.items("addresses", UNLIMITED))
    return ServiceAllocation(section.require("service").name(), section.require("pool").string(), addresses)


def _read_link(section: Section) -> NodeLink:
    section.only("address", "mac", "linkLocal")
    link_local, mac = section.get("linkLocal"), section.require("mac")
    if not MAC.fullmatch(mac.string()):
        mac.expected("a MAC address such as 02:00:5e:10:00:01")
    given = link_local.address() if link_local is not None else None
    if link_local is not None and not isinstance(given, IPv6Address):
        link_local.expected("an IPv6 address")
    known = given if isinstance(given, IPv6Address) else None
    return NodeLink(section.require("address").address(), mac.string(), known)


def _read_node(section: Section) -> NodeAddresses:
    section.only("node", "addresses", "silentSince", "link")
    link = section.section("link")
    addresses = tuple(item.address() for item in section.items("addresses", UNLIMITED))
    known = _read_link(link) if link is not None else None
    return NodeAddresses(section.require("node").name(), addresses, section.string("silentSince"), known)


def _read_blocks(section: Section) -> NodeBlocks:
    section.only("node", "blocks")
    return NodeBlocks(
        section.require("node").name(), tuple(each.network() for each in section.items("blocks", UNLIMITED))
    )


def _read_pool(section: Section) -> PoolWays:
    section.only("pool", "protocol", "advertisements")
    protocol = cast(Literal["bgp", "layer2"], section.require("protocol").choice("bgp", "layer2"))
    ways = tuple(_read_way(item.section) for item in section.items("advertisements", UNLIMITED))
    return PoolWays(section.require("pool").name(), protocol, ways)


def _read_way(section: Section) -> Advertisement:
    section.only(
        "aggregationLength", "aggregationLengthV6", "localPref", "communities", "med", "asPathPrepend", "peers",
        "nodeSelectors", "serviceSelectors", "origin",
    )  # fmt: skip
    med, origin = section.get("med"), section.get("origin")
    return Advertisement(
        section.require("aggregationLength").integer(0, 32),
        section.require("aggregationLengthV6").integer(0, 128),
        section.require("localPref").integer(0, 2**32 - 1),
        tuple(item.string() for item in section.items("communities", UNLIMITED)),
        med.integer(0, 2**32 - 1) if med is not None else None,
        section.integer("asPathPrepend", 0, MAX_PREPEND, 0),
        tuple(item.string() for item in section.items("peers", UNLIMITED)),
        tuple(label_selector(item, strict=True) for item in section.items("nodeSelectors", UNLIMITED)),
        tuple(label_selector(item, strict=True) for item in section.items("serviceSelectors", UNLIMITED)),
        cast(PathOrigin, origin.choice(*ORIGINS)) if origin is not None else "igp",
    )


def _read_group(section: Section) -> EgressGroup:
    section.only(
        "id", "egressIP", "pool", "policies", "gateways", "nodeAddress", "furtherIPs", "gatewayMode", "service",
    )  # fmt: skip
    mode = section.get("gatewayMode")
    return EgressGroup(
        id=section.require("id").integer(1, MAX_GROUP),
        egress_ip=section.require("egressIP").address(),
        policies=tuple(item.name() for item in section.items("policies", UNLIMITED)),
        gateways=tuple(item.name() for item in section.items("gateways", UNLIMITED)),
        node_address=section.require("nodeAddress").boolean(),
        pool=section.require("pool").string(),
        further_ips=tuple(item.address() for item in section.items("furtherIPs", UNLIMITED)),
        gateway_mode=cast(GatewayMode, mode.choice(*get_args(GatewayMode))) if mode is not None else "ecmp",
        service=said.string() if (said := section.get("service")) is not None else "",
    )


def _read_refusal(section: Section) -> Refusal:
    section.only("object", "reason", "message")
    about, reason, message = (section.require(key).string() for key in ("object", "reason", "message"))
    return Refusal(Ref.parse(about), reason, message)


def write_node_report(report: NodeReport) -> str:
    return sealed(
        f"apiVersion: {ROUTERD}\nkind: NodeReport\nnode: {quoted(report.node)}\naddresses: {_list(report.addresses)}\n"
        f"networks: {_list(report.networks)}\n"
        + (_records("links", map(_link, report.links)) if report.links else "")
        + ("draining: true\n" if report.draining else "")
        + _heartbeat(report.heartbeat)
        + (port_report_lines(report.ports) if report.ports is not None else "")
        + _pods(report.pods)
        + (block_report_line(report.blocks) if report.blocks is not None else "")
        + (_records("egressAsks", map(_ask, report.egress_asks)) if report.egress_asks is not None else "")
    )


def _ask(one: EgressAsk) -> str:
    return f'{{namespace: {quoted(one.namespace)}, egressIP: "{one.egress_ip}"}}'


def _pods(one: PodCount | None) -> str:
    return f"pods: {{withAddress: {one.with_address}, waiting: {one.waiting}}}\n" if one is not None else ""


def _heartbeat(one: Heartbeat | None) -> str:
    return f"heartbeat: {{seconds: {one.seconds}, beat: {quoted(one.beat)}}}\n" if one is not None else ""


def read_node_report(value: Value) -> NodeReport:
    """Raises InputError."""
    section = value.section.only(
        "apiVersion",
        "kind",
        "node",
        "addresses",
        "networks",
        "draining",
        "heartbeat",
        "ports",
        "pods",
        "links",
        "blocks",
        "egressAsks",
    )
    heartbeat, ports, pods = section.get("heartbeat"), section.section("ports"), section.section("pods")
    blocks = section.section("blocks")
    return NodeReport(
        section.require("node").name(),
        tuple(item.address() for item in section.items("addresses", MOST_REPORTED)),
        tuple(item.network() for item in section.items("networks", MOST_REPORTED)),
        section.boolean("draining", False),
        _read_heartbeat(heartbeat.section) if heartbeat is not None else None,
        read_port_report(ports) if ports is not None else None,
        _read_pods(pods) if pods is not None else None,
        tuple(_read_link(item.section) for item in section.items("links", MOST_REPORTED)),
        read_block_report(blocks) if blocks is not None else None,
        _read_asks(section),
    )


def _read_asks(section: Section) -> tuple[EgressAsk, ...] | None:
    if section.get("egressAsks") is None:
        return None
    return tuple(_read_ask(item.section) for item in section.items("egressAsks", MOST_PODS))


def _read_ask(section: Section) -> EgressAsk:
    section.only("namespace", "egressIP")
    return EgressAsk(section.require("namespace").name(), section.require("egressIP").address())


def _read_pods(section: Section) -> PodCount:
    section.only("withAddress", "waiting")
    return PodCount(section.integer("withAddress", 0, MOST_PODS, 0), section.integer("waiting", 0, MOST_PODS, 0))


def _read_heartbeat(section: Section) -> Heartbeat:
    section.only("seconds", "beat")
    return Heartbeat(section.require("seconds").integer(1, 86400), section.string("beat"))


def parse_index(text: str, file: str) -> tuple[Allocations, Mapping[str, str] | None]:
    """See `read_index`. Raises InputError unless the file holds exactly one whole `Allocations`."""
    return read_index(_only(text, file, "Allocations"))


def parse_node_report(text: str, file: str) -> NodeReport:
    """Raises InputError unless the file holds exactly one `NodeReport`."""
    return read_node_report(_only(text, file, "NodeReport"))


def _only(text: str, file: str, kind: str) -> Value:
    _check_seal(text, file)
    found = documents(text, Source(file))
    if len(found) != 1:
        raise InputError(f"found {len(found)} documents, expected one of kind {kind}", file=file)
    section = found[0].section
    section.require("apiVersion").choice(ROUTERD)
    section.require("kind").choice(kind)
    return found[0]
