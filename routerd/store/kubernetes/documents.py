"""What routerd itself keeps in the API server, as text and back: allocations, ledger, node reports. Pure.

Allocations and ledger are ConfigMaps of our namespace. Where one grows, it names parts that hold its records.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from ipaddress import ip_address
from operator import attrgetter
from typing import Any

from routerd.cluster.ledger import TABLES, AuditEntry, Ledger
from routerd.errors import InputError, StoreError
from routerd.formats.document import parse_address, parse_network
from routerd.formats.foreign.policies import address_of
from routerd.formats.jsontext import parse_json
from routerd.formats.published import parts
from routerd.formats.published.allocations import parse_index
from routerd.formats.published.interfaces import blocks_status, told_blocks
from routerd.formats.published.links import link_status, told_link
from routerd.formats.published.parts import Assembly, Part, Shards
from routerd.formats.published.records import Table, lines, read_lines
from routerd.formats.published.whole import AllocationsReader, Fetch, Published
from routerd.model import (
    GATEWAY_HEARTBEAT,
    Allocations,
    AppliedTable,
    EgressAsk,
    Heartbeat,
    NodeReport,
    PodCount,
    PortAsk,
    PortReport,
    UnusedBlock,
)
from routerd.store.kubernetes.resources import ALLOCATIONS, LEDGER

LIMIT = 1 << 20  # bytes of all values of a ConfigMap (Kubernetes: MaxSecretSize)
HEARTBEAT = "heartbeatSeconds"
PODS = "pods"
BLOCKS = "blocks"
ASKS = "egressAsks"
FENCE = "routerd.io/lease-generation"  # annotation: the lease under which a document was written
ALLOCATIONS_KEY = "allocations.yaml"
AUDIT_ENTRIES = 200  # the newest; the log has all
AUDIT: Table[AuditEntry] = Table(
    "audit", attrgetter("time"), attrgetter("owner"),
    lambda each: [each.time, each.what, each.owner, each.address], AuditEntry,
)  # fmt: skip
FIRST_TABLES = ("addresses", "groups")  # what a ledger has that does not say

Data = Mapping[str, str]


def allocations_data(published: Published) -> Data:
    """Raises StoreError if it, or a part, is too large."""
    return _checked(ALLOCATIONS, {ALLOCATIONS_KEY: published.text}, published.parts)


def read_allocations(reader: AllocationsReader, data: Data, place: str, fetch: Fetch) -> Allocations:
    """Raises InputError."""
    return reader.read(_document(data, place), place, fetch)


def named_parts(data: Data) -> frozenset[str]:
    """The parts of allocations that are in force; none if they are damaged."""
    with suppress(InputError):
        return frozenset(parse_index(_document(data, ""), "")[1] or ())
    return frozenset()


def _document(data: Data, place: str) -> str:
    if ALLOCATIONS_KEY not in data:
        raise InputError(f'the key "{ALLOCATIONS_KEY}" is missing', file=place)
    return data[ALLOCATIONS_KEY]


def _checked(name: str, data: Data, shards: Iterable[Part]) -> Data:
    sizes = [sum(len(value.encode()) for value in data.values()), *(len(part.text) for part in shards)]
    if max(sizes) > LIMIT:
        raise StoreError(
            f"ConfigMap {name} or a part of it would have {max(sizes)} bytes, and holds {LIMIT}: "
            "what was published last stays; let fewer policies share one egress IP"
        )
    return data


# --- ledger: a line of JSON per record, so that people can read and compare it


class LedgerText:
    """A ledger as text and back. It remembers what it wrote and read, so that what did not change costs little."""

    def __init__(self) -> None:
        self._shards, self._assembly = Shards(TABLES), Assembly(TABLES)

    def written(self, ledger: Ledger, audit: Iterable[AuditEntry]) -> tuple[Data, tuple[Part, ...]]:
        """The ConfigMap, and the parts that must be there before it. Raises StoreError if one is too large."""
        names = [table.name for table in TABLES]
        meta = {
            "generation": ledger.generation, "digest": ledger.digest, "nextGroup": ledger.next_group, "tables": names,
        }  # fmt: skip
        data = {"meta": json.dumps(meta) + "\n", "audit": lines(AUDIT, audit)}
        shards = self._shards.parts({table.name: table.of(ledger) for table in TABLES})
        if sum(len(part.text) for part in shards) <= parts.INLINE_SIZE:
            shards = ()
            data |= {table.name: lines(table, table.of(ledger)) for table in TABLES}
        else:
            data["parts"] = "".join(f"{part.name}\n" for part in shards)
        return _checked(LEDGER, data, shards), shards

    def knows(self, data: Data) -> bool:
        """Whether `read` needs no part."""
        return self._assembly.has(ledger_parts(data))

    def read(self, data: Data, fetch: Fetch) -> tuple[Ledger, tuple[AuditEntry, ...]]:
        """No data is an empty ledger. Raises StoreError if it is damaged, or a later release's."""
        if not data:
            return Ledger(), ()
        try:
            meta = parse_json(data["meta"])
            names = meta.get("tables", FIRST_TABLES)
            _check_known(names)
            records = self._records(data, names, fetch)
            ledger = Ledger(int(meta["generation"]), str(meta["digest"]), int(meta["nextGroup"]), **records)
            return ledger, tuple(read_lines(AUDIT, data.get("audit", "")))
        except (InputError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            detail = error.message if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            raise StoreError(
                f"ConfigMap {LEDGER} is damaged ({detail}): restore it, or, if ConfigMap {ALLOCATIONS} "
                "and all parts that it names are there, delete it and the operator takes over what they say"
            ) from error

    def _records(self, data: Data, names: Collection[str], fetch: Fetch) -> dict[str, Any]:
        if "parts" in data:
            return {**self._assembly.records(ledger_parts(data), fetch)}
        tables = [table for table in TABLES if table.name in names]
        return {table.name: tuple(read_lines(table, data[table.name])) for table in tables}


def ledger_parts(data: Data) -> list[str]:
    """The names of its parts."""
    return data.get("parts", "").split()


def _check_known(names: Iterable[str]) -> None:
    unknown = sorted(set(names) - {table.name for table in TABLES})
    if unknown:
        raise StoreError(
            f"ConfigMap {LEDGER} has {', '.join(unknown)}, which this routerd does not know: run the newer one"
        )


# --- node reports


def report_status(report: NodeReport) -> dict[str, Any]:
    """The status of a RouterdNode. What is not said leaves what was said before."""
    return {
        **(_ports_status(report.ports) if report.ports is not None else {}),
        "addresses": [str(address) for address in report.addresses],
        "networks": [str(network) for network in report.networks],
        "links": [link_status(link) for link in report.links],
        "draining": report.draining,
        **({HEARTBEAT: report.heartbeat.seconds} if report.heartbeat is not None else {}),
        **({PODS: _pods_status(report.pods)} if report.pods is not None else {}),
        **({BLOCKS: blocks_status(report.blocks)} if report.blocks is not None else {}),
        **({ASKS: [_ask_status(each) for each in report.egress_asks]} if report.egress_asks is not None else {}),
    }


def _ask_status(one: EgressAsk) -> dict[str, str]:
    return {"namespace": one.namespace, "egressIP": str(one.egress_ip)}


def _read_asks(status: Mapping[str, Any]) -> tuple[EgressAsk, ...] | None:
    """The schema lets nothing else through; what is none of ours all the same says nothing."""
    if ASKS not in status:
        return None
    try:
        asks = [(str(each["namespace"]), address_of(str(each["egressIP"]))) for each in status[ASKS] or ()]
    except (TypeError, KeyError):
        return None
    return tuple(EgressAsk(namespace, address) for namespace, address in asks if address is not None)


def _pods_status(one: PodCount) -> dict[str, int]:
    return {"withAddress": one.with_address, "waiting": one.waiting}


def _read_pods(status: Mapping[str, Any]) -> PodCount | None:
    found = status.get(PODS)
    if not isinstance(found, Mapping):
        return None
    count, waiting = found.get("withAddress"), found.get("waiting")
    return PodCount(count, waiting) if isinstance(count, int) and isinstance(waiting, int) else None


def _ports_status(one: PortReport) -> dict[str, Any]:
    return {
        "portAsks": [{"group": each.group, "ports": each.ports, "used": each.used} for each in one.asks],
        "portsUnused": [
            {"egressIP": str(each.egress_ip), "first": each.first, "ports": each.size, "version": each.version}
            for each in one.unused
        ],
        "portsApplied": [{"egressIP": str(each.egress_ip), "version": each.version} for each in one.applied],
    }


def _read_ports(status: Mapping[str, Any]) -> PortReport | None:
    """The schema lets nothing else through; what is none of ours all the same says nothing."""
    if "portAsks" not in status:
        return None
    try:
        return PortReport(
            tuple(PortAsk(int(e["group"]), int(e["ports"]), int(e.get("used", 0))) for e in status["portAsks"]),
            tuple(
                UnusedBlock(ip_address(e["egressIP"]), int(e["first"]), int(e["ports"]), int(e["version"]))
                for e in status.get("portsUnused") or ()
            ),
            tuple(AppliedTable(ip_address(e["egressIP"]), int(e["version"])) for e in status.get("portsApplied") or ()),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def is_said(status: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether the status `before` says all of `status`. Times are not compared, nor how many ports are in use: that
    goes with the next heartbeat.
    """
    return all(_lasting(before.get(key)) == _lasting(value) for key, value in status.items())


def _lasting(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [_without(each, "lastTransitionTime", "used") if isinstance(each, dict) else each for each in value]


def _without(mapping: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name not in keys}


def is_urgent(status: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether an address, a condition, a session, that it drains, how many pods wait, or how often it beats is another.

    Other numbers and messages are not urgent.
    """
    urgent = {key: value for key, value in status.items() if isinstance(value, list | bool) or key in (HEARTBEAT, PODS)}
    return any(_states(before.get(key)) != _states(value) for key, value in urgent.items())


def _states(value: Any) -> Any:
    if isinstance(value, dict):
        return value.get("waiting")
    if not isinstance(value, list):
        return value
    names = (
        "address",
        "state",
        "type",
        "status",
        "reason",
        "group",
        "ports",
        "egressIP",
        "first",
        "version",
        "namespace",
    )
    return [{name: each.get(name) for name in names} if isinstance(each, dict) else each for each in value]


def seconds_since(text: Any, now: datetime) -> float:
    """Of a time in RFC 3339; infinite for what is none. A time to come counts as none."""
    try:
        age = (now - datetime.fromisoformat(text)).total_seconds()
    except (TypeError, ValueError):
        return math.inf
    return age if age >= 0 else math.inf


def read_report(name: str, status: Mapping[str, Any]) -> NodeReport | None:
    """None = the node has not reported yet. Addresses that are none are left out: the schema lets none through."""
    if "addresses" not in status:
        return None
    addresses = (parse_address(str(text)) for text in status["addresses"] or ())
    networks = (parse_network(str(text)) for text in status.get("networks") or ())
    known = tuple(each for each in networks if each is not None)
    return NodeReport(
        name, tuple(filter(None, addresses)), known, status.get("draining") is True, _heartbeat(status),
        _read_ports(status), _read_pods(status), tuple(filter(None, map(told_link, status.get("links") or ()))),
        told_blocks(status.get(BLOCKS)), _read_asks(status),
    )  # fmt: skip


def _heartbeat(status: Mapping[str, Any]) -> Heartbeat | None:
    seconds = status.get(HEARTBEAT)
    return Heartbeat(seconds, str(status.get("lastSeen") or "")) if isinstance(seconds, int) else None


def with_lease(report: NodeReport, renewed: str) -> NodeReport:
    """The report of a node that may be a gateway with the latest word of its Lease, which alone counts; "" = none."""
    if report.heartbeat is None or report.heartbeat.seconds > GATEWAY_HEARTBEAT:
        return report
    return replace(report, heartbeat=Heartbeat(report.heartbeat.seconds, renewed))
