"""What routerd itself keeps in the API server, as text and back: allocations, ledger, node reports. Pure.

Allocations and ledger are ConfigMaps of our namespace. A ConfigMap holds 1 MiB: about 13,000 services.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from operator import attrgetter
from typing import Any

from routerd.cluster.ledger import TABLES, AuditEntry, Ledger
from routerd.errors import InputError, StoreError
from routerd.formats.allocations import write_allocations
from routerd.formats.document import parse_address
from routerd.formats.published import parse_allocations
from routerd.formats.records import Table, lines, read_lines
from routerd.model import Allocations, NodeReport
from routerd.store.kubernetes.resources import ALLOCATIONS, LEDGER

LIMIT = 1 << 20  # bytes of all values of a ConfigMap (Kubernetes: MaxSecretSize)
FENCE = "routerd.io/lease-generation"  # annotation: the lease under which a document was written
ALLOCATIONS_KEY = "allocations.yaml"
AUDIT_ENTRIES = 200  # the newest; the log has all
AUDIT: Table[AuditEntry] = Table(
    "audit",
    attrgetter("time"),
    attrgetter("owner"),
    lambda each: [each.time, each.what, each.owner, each.address],
    AuditEntry,
)
FIRST_TABLES = ("addresses", "groups")  # what a ledger has that does not say

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
    names = [table.name for table in TABLES]
    meta = {"generation": ledger.generation, "digest": ledger.digest, "nextGroup": ledger.next_group, "tables": names}
    data = {"meta": json.dumps(meta) + "\n"}
    data |= {table.name: lines(table, table.of(ledger)) for table in TABLES}
    return checked(LEDGER, data | {"audit": lines(AUDIT, audit)})


def read_ledger(data: Data) -> tuple[Ledger, tuple[AuditEntry, ...]]:
    """No data is an empty ledger. Raises StoreError if it is damaged, or a later release's."""
    if not data:
        return Ledger(), ()
    try:
        meta = json.loads(data["meta"])
        names = meta.get("tables", FIRST_TABLES)
        _check_known(names)
        tables: dict[str, Any] = {
            table.name: tuple(read_lines(table, data[table.name])) for table in TABLES if table.name in names
        }
        ledger = Ledger(int(meta["generation"]), str(meta["digest"]), int(meta["nextGroup"]), **tables)
        return ledger, tuple(read_lines(AUDIT, data.get("audit", "")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"ConfigMap {LEDGER} is damaged ({type(error).__name__}: {error}): restore it, or delete it and the "
            "operator takes over what the last published allocations say"
        ) from error


def _check_known(names: Iterable[str]) -> None:
    unknown = sorted(set(names) - {table.name for table in TABLES})
    if unknown:
        raise StoreError(
            f"ConfigMap {LEDGER} has {', '.join(unknown)}, which this routerd does not know: run the newer one"
        )


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
