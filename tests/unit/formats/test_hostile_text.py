"""Text that is meant to end whoever reads it costs itself: nested deep, multiplied by aliases, no text, too large."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from routerd.config import parse_config
from routerd.errors import InputError, StoreError
from routerd.formats.compose import documents
from routerd.formats.jsontext import parse_json
from routerd.formats.legacy_bgp import Dialect, as_json
from routerd.formats.published.allocations import parse_node_report, write_index
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
        AllocationsReader().read(write_index(Allocations(1), [name]), "f", lambda _: text)


def test_a_good_part_is_read() -> None:
    text = GROUP.format(**GOOD)
    name = sha256(text.encode()).hexdigest()
    found = AllocationsReader().read(write_index(Allocations(1), [name]), "f", lambda _: text)
    assert [group.id for group in found.groups] == [1]


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_a_ledger_in_a_config_map_is_damaged(text: str) -> None:
    with pytest.raises(StoreError, match="damaged"):
        LedgerText().read({"meta": text}, lambda _: None)


@pytest.mark.parametrize("cell", [*JSON.values(), "1.2.3"])
@pytest.mark.parametrize("column", ["addresses.address", "groups.egress_ip", "groups.gateways"])
def test_a_ledger_with_a_wrong_cell_is_damaged(tmp_path: Path, column: str, cell: str) -> None:
    table, _, column = column.partition(".")
    SqliteLedger(tmp_path / "ledger").close()
    with sqlite3.connect(tmp_path / "ledger") as db:
        types = {row[1]: row[2] for row in db.execute(f"PRAGMA table_info({table})")}
        row = {name: "[]" if kind == "TEXT" else 1 for name, kind in types.items()}
        row |= {"state": "used" if table == "addresses" else "active", column: cell}
        db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", list(row.values()))
    ledger = SqliteLedger(tmp_path / "ledger")
    try:
        with pytest.raises(StoreError, match="the ledger is damaged"):
            ledger.read()
    finally:
        ledger.close()
