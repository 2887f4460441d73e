"""Text that is meant to end whoever reads it costs itself: nested deep, multiplied by aliases, no text, too large."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from cloud.calls import Take
from cloud.egress import Seat
from routerd.cluster.ledger import TABLES, Ledger, LedgerTable
from routerd.config import parse_config
from routerd.errors import InputError, StoreError
from routerd.formats.compose import documents
from routerd.formats.jsontext import parse_json
from routerd.formats.legacy_bgp import Dialect, as_json
from routerd.formats.published.allocations import parse_node_report, write_index
from routerd.formats.published.parts import Part
from routerd.formats.published.whole import AllocationsReader
from routerd.model import Allocations
from routerd.store.embedded.ledger import SqliteLedger
from routerd.store.kubernetes.client import ApiError, _parsed
from routerd.store.kubernetes.documents import LedgerText
from routerd.store.kubernetes.objects import Collection
from routerd.store.kubernetes.resources import POOLS, Resource
from tests.models.manifests import pool, read_text, reasons, store_of
from tests.models.many import parse_allocations

HEAD = "apiVersion: routerd.io/v1alpha1\nkind: {kind}\nmetadata: {{name: a, annotations: {{x: y}}}}\n"


def chain(value: str, length: int = 1000) -> str:
    """`x` holds `length` values in each other, though no line is nested."""
    links = [f"- &l{n} {value.format(n - 1)}" for n in range(1, length)]
    return "\n".join(["x:", "- &l0 {a: b}", *links]) + f"\ny: *l{length - 1}\n"


MERGES = chain("{{<<: *l{0}}}")
YAML = {
    "lists": "x: " + "[" * 100_000,
    "mappings": "x: " + '{"a":' * 100_000,
    "blocks": "x:\n" + "".join(" " * n + "- \n" for n in range(1, 2000)),
    "merges": MERGES + "<<: *l999\n",
    "aliases": chain("[*l{0}]"),
    "laughs": "\n".join(["x0: &x0 [y]", *(f"x{n}: &x{n} [{','.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 12))]),
    "itself": "x: &x [*x]",
    "half a pair": r'x: "\ud800"',
}
READERS: dict[str, Callable[[str], Any]] = {
    "manifest": lambda text: read_text(HEAD.format(kind="AddressPool") + text, "a.yaml"),
    "list": lambda text: read_text("apiVersion: v1\nkind: List\nitems: []\n" + text, "a.yaml"),
    "configuration": lambda text: parse_config(HEAD.format(kind="Config") + text, "a.yaml"),
    "allocations": lambda text: parse_allocations(HEAD.format(kind="Allocations") + text, "a.yaml"),
    "report": lambda text: parse_node_report(HEAD.format(kind="NodeReport") + text, "a.yaml"),
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_yaml_is_refused_with_its_place(read: Callable[[str], Any], text: str) -> None:
    with pytest.raises(InputError, match=r"^a\.yaml:\d+"):
        read(text)


@pytest.mark.parametrize("dialect", ["cilium-1.10", "metallb-0.12", "native"])
@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_a_bgp_configuration_in_a_config_map_is_refused(text: str, dialect: Dialect) -> None:
    assert "error" in as_json(text, dialect)


def test_merge_keys_may_be_nested_as_deep_as_anything() -> None:
    (value,) = documents(chain("{{<<: *l{0}}}", 90))
    assert value.section.require("y").texts() == {"a": "b"}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_a_manifest_with_it_keeps_what_it_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(pool("a"))
    store = store_of(tmp_path)
    store.load()
    (tmp_path / "a.yaml").write_text(pool("a") + text)
    assert set(store.load().pools or {}) == {"a"}
    assert reasons(store.snapshot()) == ["file/a.yaml InvalidFile"]


def nested(depth: int) -> Any:
    found: Any = "x"
    for _ in range(depth):
        found = {"a": [found]}
    return found


def test_an_object_of_an_api_server_that_is_nested_deep_costs_itself() -> None:
    """Kinds of others may allow anything in their schema."""
    collection = Collection(Resource(POOLS))
    meta = {"name": "a", "uid": "u"}
    assert collection.put({"metadata": meta, "spec": {"blocks": [nested(450)]}})
    (refusal,) = collection.refusals()
    assert refusal.reason == "InvalidObject" and "nested more than 100 levels deep" in refusal.message


JSON = {
    "lists": "[" * 100_000,
    "objects": '{"a":' * 100_000,
    "digits": "9" * 5000,
    "half a pair": r'["\ud800"]',
    "nothing": "",
    "nul": "\0",
}


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
    with pytest.raises(ValueError):
        parse_json(text.encode())
    with pytest.raises(ApiError):
        _parsed(text.encode())


def test_a_whole_pair_of_surrogates_is_a_character() -> None:
    assert parse_json(r'"\ud83d\ude00"') == parse_json(rb'"\uD83D\uDE00"') == "\U0001f600"


GROUP = '["groups",{id},"192.0.2.9","p",["a"],[{gateway}],false]\n'
GOOD = {"id": 1, "gateway": '"n"'}
PARTS = {
    **JSON,
    **{f"{key} {value}": GROUP.format(**{**GOOD, key: value})
       for key, values in {"id": (-1, 1 << 70, "1e300", "null", '"1"'), "gateway": (1, "null", "[]", '["n",0]')}.items()
       for value in values},
    "an earlier release": '["groups",1,"192.0.2.9","p",["a"],[["n",0]],4,1,false]\n',
}  # fmt: skip


@pytest.mark.parametrize("text", [text for text in PARTS.values() if text], ids=[key for key in PARTS if PARTS[key]])
def test_a_part_is_refused(text: str) -> None:
    name = sha256(text.encode()).hexdigest()
    with pytest.raises(InputError, match="not understood"):
        AllocationsReader().read(write_index(Allocations(1), [Part(name, text)]), "f", lambda _: text)


def test_a_good_part_is_read() -> None:
    text = GROUP.format(**GOOD)
    name = sha256(text.encode()).hexdigest()
    found = AllocationsReader().read(write_index(Allocations(1), [Part(name, text)]), "f", lambda _: text)
    assert [group.id for group in found.groups] == [1]


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_a_ledger_in_a_config_map_is_damaged(text: str) -> None:
    with pytest.raises(StoreError, match="damaged"):
        LedgerText().read({"meta": text}, lambda _: None)


ROWS = {
    "addresses": ["192.0.2.1", "svc/d/a", "p", "used", 1.5, 0, []],
    "groups": [4, "192.0.2.9", "active", 1.0, ["g1"]],
    "node_numbers": [7, "worker", "used", 1.5],
    "port_tables": ["192.0.2.9", 3, [[7, 1, 0]], [["used", 1.5, 2, 1.5, [[1024, 64, 7]]]]],
    "past_port_sets": ["192.0.2.9", 1024, 1.5, 64, 2.5, "worker"],
    "cloud_addresses": ["10.0.8.5", "i-1", "eni-1", [["take", "eni-2", "10.0.8.5"], 1.5, False, "", []], 0.0],
    "cloud_instances": [
        "i-1",
        "worker",
        [["eni-1", "02:00:00:00:00:01", 1, "10.0.0.5", "10.0.0.0/24", [["10.0.0.6/32", "used", 1, 0]]]],
        [["assign", "eni-1", 3, False], 1.5, True, "eni-1", ["10.0.0.7/32"]],
        1.5,
        0.0,
        7,
    ],
    "pod_cidrs": ["10.244.0.0/24", "worker", "used", 1.5],
}
INFINITE, HUGE = json.loads("1e999"), 10**400


def test_these_rows_are_records() -> None:
    for table in TABLES:
        assert table.read(ROWS[table.name]) is not None


@pytest.mark.parametrize("addresses", ["10.0.8.5", ["10.0.8.5"]], ids=["an earlier release", "this one"])
def test_a_move_of_an_egress_ip_that_is_on_record_is_read(addresses: str | list[str]) -> None:
    (table,) = (each for each in TABLES if each.name == "cloud_addresses")
    seat = table.read(["10.0.8.5", "i-1", "", [["take", "eni-2", addresses], 1.5, True, "", []], 0.0])
    assert isinstance(seat, Seat) and seat.intent is not None
    assert seat.intent.call == Take("eni-2", (IPv4Address("10.0.8.5"),))


def wrong_cells(table: LedgerTable[Any]) -> Iterator[tuple[str, Any]]:
    """Each column, with what it does not hold."""
    others: dict[type, list[Any]] = {
        str: [1, None, ["x"]], int: ["x", None, [], 1.5], float: ["x", None, []], bool: ["x", None],
        list: ["x", None, {}, 1, [None], [[]], ["x", {}], [[INFINITE] * 3], [["x"] * 5]],
    }  # fmt: skip
    for column, kind in table.columns.items():
        yield from ((column, cell) for cell in others[kind])
        if column in ("address", "egress_ip"):
            yield column, "1.2.3"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_line_with_a_wrong_cell_is_damage_that_is_named(table: LedgerTable[Any]) -> None:
    names = [*table.columns]
    for column, cell in wrong_cells(table):
        row = [*ROWS[table.name]]
        row[names.index(column)] = cell
        data = LedgerText().written(Ledger(), ())[0] | {table.name: json.dumps(row) + "\n"}
        with pytest.raises(StoreError, match=rf"routerd-ledger is damaged \(NoRecord: table {table.name}, row \["):
            LedgerText().read(data, lambda _: None)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_cell_that_is_none_of_ours_is_damage_that_is_named(table: LedgerTable[Any], tmp_path: Path) -> None:
    path, names = tmp_path / "ledger", ", ".join([*table.columns, "lease"])
    SqliteLedger(path).close()
    kept = [json.dumps(cell) if isinstance(cell, list) else cell for cell in ROWS[table.name]]
    for number, kind in enumerate(table.columns.values()):
        if (table.name, number) == ("groups", 0):
            continue  # an INTEGER PRIMARY KEY, which SQLite itself keeps from holding anything else
        texts = [*JSON.values(), "{}", "7", "[7]", "[[7]]"] if kind is list else [] if kind is str else ["x"]
        for cell in (b"\xff", *texts):
            row = [*kept, 1]
            row[number] = cell
            with closing(sqlite3.connect(path)) as db, db:
                db.execute("PRAGMA ignore_check_constraints = ON")
                db.execute(f"DELETE FROM {table.name}")
                db.execute(f"INSERT INTO {table.name} ({names}) VALUES ({', '.join('?' * len(row))})", row)
            told = rf"{path}: the ledger is damaged \(.*\b{table.name}\b.*: restore a backup"
            with pytest.raises(StoreError, match=told), closing(SqliteLedger(path)) as ledger:  # or SQLite sees it
                ledger.read()


@pytest.mark.parametrize("key", ["generation", "next_group"])
def test_a_ledger_without_what_it_must_say_of_itself_is_damaged(key: str, tmp_path: Path) -> None:
    for change in (f"DELETE FROM meta WHERE key = '{key}'", f"INSERT INTO meta VALUES ('{key}', 'x')"):
        SqliteLedger(tmp_path / "ledger").close()
        with closing(sqlite3.connect(tmp_path / "ledger")) as db, db:
            db.execute(change)
        with pytest.raises(StoreError, match="is damaged"), closing(SqliteLedger(tmp_path / "ledger")) as ledger:
            ledger.read()
