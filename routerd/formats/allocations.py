"""`Allocations` and `NodeReport`, which routerd itself writes and reads: one line per record, sorted. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from routerd.errors import InputError
from routerd.formats.compose import documents, quoted
from routerd.formats.document import Section, Source, Value
from routerd.formats.meta import ROUTERD
from routerd.model import (
    Allocations,
    EgressGroup,
    GatewaySlot,
    IPAddress,
    NodeReport,
    Refusal,
    ServiceAllocation,
    Writer,
)
from routerd.refs import Ref

MAX_GROUP = 2**24 - 1  # a VNI (RFC 7348)
MAX_SLOTS = 4096
_WRITTEN_BY = "# Written by routerd; edits are lost.\n"


def write_allocations(allocations: Allocations) -> str:
    """The document; the same value gives the same text."""
    return "".join(
        (
            f"{_WRITTEN_BY}apiVersion: {ROUTERD}\nkind: Allocations\ngeneration: {allocations.generation}\n",
            _writer(allocations.writer),
            _records("services", (_service(one) for one in allocations.services)),
            _records("groups", (_group(one) for one in allocations.groups)),
            _records("refusals", (_refusal(one) for one in allocations.refusals)),
        )
    )


def _writer(one: Writer | None) -> str:
    if one is None:
        return ""
    return f"writer: {{node: {quoted(one.node)}, ledger: {quoted(one.ledger)}, lease: {one.lease}}}\n"


def _records(key: str, lines: Iterable[str]) -> str:
    shown = "".join(f"- {line}\n" for line in lines)
    return f"{key}:\n{shown}" if shown else f"{key}: []\n"


def _list(addresses: Iterable[IPAddress]) -> str:
    return "[" + ", ".join(f'"{address}"' for address in addresses) + "]"


def _service(one: ServiceAllocation) -> str:
    return f"{{service: {quoted(one.service)}, pool: {quoted(one.pool)}, addresses: {_list(one.addresses)}}}"


def _group(one: EgressGroup) -> str:
    gateways = ", ".join(f"{{node: {quoted(slot.node)}, slot: {slot.slot}}}" for slot in one.gateways)
    return (
        f'{{id: {one.id}, egressIP: "{one.egress_ip}", pool: {quoted(one.pool)}, '
        f"policies: [{', '.join(quoted(policy) for policy in one.policies)}], gateways: [{gateways}], "
        f"slots: {one.slots}, epoch: {one.epoch}, nodeAddress: {str(one.node_address).lower()}}}"
    )


def _refusal(one: Refusal) -> str:
    return f"{{object: {quoted(str(one.object))}, reason: {quoted(one.reason)}, message: {quoted(one.message)}}}"


def read_allocations(value: Value) -> Allocations:
    """Raises InputError."""
    section = value.section.only("apiVersion", "kind", "generation", "writer", "services", "groups", "refusals")
    writer = section.get("writer")
    return Allocations(
        writer=_read_writer(writer.section) if writer is not None else None,
        generation=section.require("generation").integer(0, 2**63 - 1),
        services=tuple(_read_service(item.section) for item in section.items("services")),
        groups=tuple(_read_group(item.section) for item in section.items("groups")),
        refusals=tuple(_read_refusal(item.section) for item in section.items("refusals")),
    )


def _read_writer(section: Section) -> Writer:
    section.only("node", "ledger", "lease")
    lease = section.require("lease").integer(0, 2**63 - 1)
    return Writer(section.require("node").string(), section.require("ledger").string(), lease)


def _read_service(section: Section) -> ServiceAllocation:
    section.only("service", "pool", "addresses")
    addresses = tuple(item.address() for item in section.items("addresses"))
    return ServiceAllocation(section.require("service").name(), section.require("pool").string(), addresses)


def _read_group(section: Section) -> EgressGroup:
    section.only("id", "egressIP", "pool", "policies", "gateways", "slots", "epoch", "nodeAddress")
    return EgressGroup(
        id=section.require("id").integer(1, MAX_GROUP),
        egress_ip=section.require("egressIP").address(),
        policies=tuple(item.name() for item in section.items("policies")),
        gateways=tuple(_read_slot(item.section) for item in section.items("gateways")),
        slots=section.require("slots").integer(1, MAX_SLOTS),
        epoch=section.require("epoch").integer(1, 2**63 - 1),
        node_address=section.require("nodeAddress").boolean(),
        pool=section.require("pool").string(),
    )


def _read_slot(section: Section) -> GatewaySlot:
    section.only("node", "slot")
    return GatewaySlot(section.require("node").name(), section.require("slot").integer(0, MAX_SLOTS - 1))


def _read_refusal(section: Section) -> Refusal:
    section.only("object", "reason", "message")
    about, reason, message = (section.require(key).string() for key in ("object", "reason", "message"))
    return Refusal(Ref.parse(about), reason, message)


def write_node_report(report: NodeReport) -> str:
    return (
        f"{_WRITTEN_BY}apiVersion: {ROUTERD}\nkind: NodeReport\nnode: {quoted(report.node)}\n"
        f"addresses: {_list(report.addresses)}\n"
    )


def read_node_report(value: Value) -> NodeReport:
    """Raises InputError."""
    section = value.section.only("apiVersion", "kind", "node", "addresses")
    return NodeReport(section.require("node").name(), tuple(item.address() for item in section.items("addresses")))


def parse_allocations(text: str, file: str) -> Allocations:
    """Raises InputError unless the file holds exactly one `Allocations`."""
    return read_allocations(_only(text, file, "Allocations"))


def parse_node_report(text: str, file: str) -> NodeReport:
    """Raises InputError unless the file holds exactly one `NodeReport`."""
    return read_node_report(_only(text, file, "NodeReport"))


def _only(text: str, file: str, kind: str) -> Value:
    found = documents(text, Source(file))
    if len(found) != 1:
        raise InputError(f"found {len(found)} documents, expected one of kind {kind}", file=file)
    section = found[0].section
    section.require("apiVersion").choice(ROUTERD)
    section.require("kind").choice(kind)
    return found[0]
