"""What routerd itself keeps in the API server, as text and back: allocations, ledger, node reports. Pure.

Allocations and ledger are ConfigMaps of our namespace. A ConfigMap holds 1 MiB: about 13,000 services.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from ipaddress import ip_address
from typing import Any

from ipam.round import Record
from routerd.cluster.ledger import AuditEntry, GroupRecord, Ledger
from routerd.errors import InputError, StoreError
from routerd.formats.allocations import parse_allocations, write_allocations
from routerd.formats.document import parse_address
from routerd.model import Allocations, GatewaySlot, NodeReport
from routerd.store.kubernetes.resources import ALLOCATIONS, LEDGER

LIMIT = 1 << 20  # bytes of all values of a ConfigMap (Kubernetes: MaxSecretSize)
FENCE = "routerd.io/lease-generation"  # annotation: the lease under which a document was written
ALLOCATIONS_KEY = "allocations.yaml"
AUDIT_ENTRIES = 200  # the newest; the log has all

Data = Mapping[str, str]


def allocations_data(allocations: Allocations) -> dict[str, str]:
    """Raises StoreError if it is too large."""
    return checked(ALLOCATIONS, {ALLOCATIONS_KEY: write_allocations(allocations)})


def read_allocations(data: Data, place: str) -> Allocations:
    """Raises InputError."""
    if ALLOCATIONS_KEY not in data:
        raise InputError(f'the key "{ALLOCATIONS_KEY}" is missing', file=place)
    return parse_allocations(data[ALLOCATIONS_KEY], place)


def checked(name: str, data: dict[str, str]) -> dict[str, str]:
    size = sum(len(value.encode()) for value in data.values())
    if size > LIMIT:
        raise StoreError(
            f"ConfigMap {name} would have {size} bytes, and holds {LIMIT}: "
            "what was published last stays; serve fewer services with one operator"
        )
    return data


# --- ledger: a line of JSON per record, so that people can read and compare it


def ledger_data(ledger: Ledger, audit: Iterable[AuditEntry]) -> dict[str, str]:
    """Raises StoreError if it is too large."""
    meta = {"generation": ledger.generation, "digest": ledger.digest, "nextGroup": ledger.next_group}
    data = {
        "meta": json.dumps(meta) + "\n",
        "addresses": _lines(_address(each) for each in ledger.addresses),
        "groups": _lines(_group(each) for each in ledger.groups),
        "audit": _lines([each.time, each.what, each.owner, each.address] for each in audit),
    }
    return checked(LEDGER, data)


def _lines(rows: Iterable[list[Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def _address(each: Record) -> list[Any]:
    return [str(each.address), each.owner, each.pool, each.state, each.since, each.bound]


def _group(each: GroupRecord) -> list[Any]:
    gateways = [[gateway.node, gateway.slot] for gateway in each.gateways]
    return [each.id, str(each.egress_ip), each.state, each.since, gateways, each.slots, each.epoch]


def read_ledger(data: Data) -> tuple[Ledger, tuple[AuditEntry, ...]]:
    """No data is an empty ledger. Raises StoreError if it is damaged."""
    if not data:
        return Ledger(), ()
    try:
        meta = json.loads(data["meta"])
        ledger = Ledger(
            int(meta["generation"]),
            str(meta["digest"]),
            int(meta["nextGroup"]),
            tuple(_read_address(*row) for row in _rows(data["addresses"])),
            tuple(_read_group(*row) for row in _rows(data["groups"])),
        )
        return ledger, tuple(AuditEntry(*row) for row in _rows(data.get("audit", "")))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"ConfigMap {LEDGER} is damaged ({type(error).__name__}: {error}): restore it, or delete it and the "
            "operator takes over what the last published allocations say"
        ) from error


def _rows(text: str) -> Iterable[list[Any]]:
    return (json.loads(line) for line in text.splitlines() if line)


def _read_address(address: str, owner: str, pool: str, state: Any, since: float, bound: bool) -> Record:
    return Record(ip_address(address), owner, pool, state, since, bool(bound))


def _read_group(
    number: int, egress_ip: str, state: Any, since: float, gateways: list[list[Any]], slots: int, epoch: int
) -> GroupRecord:
    taken = tuple(GatewaySlot(str(node), int(slot)) for node, slot in gateways)
    return GroupRecord(number, ip_address(egress_ip), state, since, taken, slots, epoch)


# --- node reports


def report_status(report: NodeReport) -> dict[str, Any]:
    """The status of a RouterdNode."""
    return {"addresses": [str(address) for address in report.addresses]}


def is_said(wanted: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether the status `before` says all that is wanted; times are not compared."""
    return all(_timeless(before.get(key)) == _timeless(value) for key, value in wanted.items())


def _timeless(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [_without(each, "lastTransitionTime") if isinstance(each, dict) else each for each in value]


def _without(found: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != key}


def is_urgent(wanted: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether an address, a condition or a session is another, and not merely a number or a message."""
    return any(_states(before.get(key)) != _states(value) for key, value in wanted.items() if isinstance(value, list))


def _states(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    names = ("address", "state", "type", "status", "reason")
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
    return NodeReport(name, tuple(address for address in addresses if address is not None))
