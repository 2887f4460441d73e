"""The ledger's file: what is written is read back, a crash at any point loses nothing, faults say who must act."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields, replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from cloud.records import read_holding
from ipam.pool import Use
from ipam.port_sets import PortSet, PortTable, Told
from ipam.round import Record
from routerd.cluster.ledger import (
    TABLES,
    AuditEntry,
    GroupRecord,
    Ledger,
    LedgerTable,
    NumberRecord,
    PastSet,
    difference,
)
from routerd.errors import EnvironmentFault, StoreError
from routerd.store.embedded import ledger as store
from routerd.store.embedded.ledger import SqliteLedger
from tests.models.operator_world import World, busy_world, without_versions
from tests.waiting import PATIENCE

V4, V6 = ip_address("192.0.2.1"), ip_address("2001:db8::1")
FULL = Ledger(
    3,
    "d",
    9,
    (Record(V4, "svc/d/a", "p", "used", 1.5, use=Use("k", frozenset({"tcp/80"}), "", "d", frozenset({"e", "f"}))),
     Record(V4, "svc/d/b", "p", "used", 2.0),
     Record(V6, "EgressPolicy/e", "", "reserved", 3.0, bound=True)),
    (GroupRecord(4, V6, "active", 1.0, ("g1", "g2")),
     GroupRecord(8, V4, "retired", 2.0)),
    (NumberRecord(1, "g1", "used", 1.0), NumberRecord(7, "g2", "resting", 2.0)),
    (PortTable(V4, 9, (
        PortSet(V4, 1024, 64, 1, "granted", 1.0, 8, 1.0),
        PortSet(V4, 1088, 64, 7, "cooling", 3.0, 9, 1.0),
        PortSet(V4, 2048, 1024, 7, "returning", 2.5, 9, 1.0),
     ), (Told(1, 8), Told(7, 8, 9))),
     PortTable(V6, 3)),
    (PastSet(V4, 4096, 64, 1.25, 2.5, "g2"),),
)  # fmt: skip


def peek(path: Path, entries: int = 1000) -> tuple[Ledger, tuple[AuditEntry, ...]]:
    """Content and newest audit entries (oldest first), without lock and lease."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT time, what, owner, address FROM audit ORDER BY seq DESC LIMIT ?", (entries,))
        return store._read(db), tuple(AuditEntry(*row) for row in reversed(rows.fetchall()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[SqliteLedger]:
    opened = SqliteLedger(path)
    yield opened
    opened.close()


def test_written_is_read_back(ledger: SqliteLedger, path: Path) -> None:
    assert ledger.read() == Ledger()
    ledger.record(difference(Ledger(), FULL, 10.0))
    assert ledger.read() == FULL
    smaller = replace(FULL, generation=4, addresses=FULL.addresses[1:], groups=FULL.groups[:1])
    ledger.record(difference(FULL, smaller, 11.0))
    ledger.close()
    again = SqliteLedger(path)
    try:
        assert again.read() == smaller
        assert again.lease == ledger.lease + 1
    finally:
        again.close()


def test_settings_of_the_file(ledger: SqliteLedger) -> None:
    assert ledger._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert ledger._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_the_audit_log_says_who_had_what_and_cannot_be_changed(ledger: SqliteLedger, path: Path) -> None:
    world = World()
    world.pool("p", "192.0.2.0/24")
    world.node("g")
    world.service("web")
    world.policy("out", pool="p")
    for step in ("start", "remove", "cooled"):
        before = world.ledger
        if step == "remove":
            world.services.clear()
            world.policies.clear()
        world.decide(31)
        if step == "remove":
            world.end_flows()
        ledger.record(difference(before, world.ledger, world.now))
    entries = [(entry.what, entry.owner, entry.address) for entry in peek(path)[1]]
    assert entries == [
        ("assigned", "EgressPolicy/out", "192.0.2.0"),
        ("assigned", "svc/d/web", "192.0.2.1"),
        ("group-created:gateways:g", "group/1", "192.0.2.0"),
        ("reserved", "EgressPolicy/out", "192.0.2.0"),
        ("released", "svc/d/web", "192.0.2.1"),
        ("freed", "svc/d/web", "192.0.2.1"),
        ("group-retired", "group/1", "192.0.2.0"),
    ]
    assert peek(path)[0] == world.ledger
    for statement in ("UPDATE audit SET owner = 'x'", "DELETE FROM audit"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            ledger._db.execute(statement)


def test_a_second_operator_is_refused(ledger: SqliteLedger, path: Path) -> None:
    with pytest.raises(StoreError, match=rf"another operator \(pid {os.getpid()}\)"):
        SqliteLedger(path)


def test_a_paused_former_operator_cannot_write(ledger: SqliteLedger, path: Path) -> None:
    path.with_name("ledger.db.lock").unlink()
    other = SqliteLedger(path)
    try:
        with pytest.raises(StoreError, match="lease 1 is outdated by 2"):
            ledger.record(difference(Ledger(), FULL, 10.0))
        assert other.read() == Ledger()
    finally:
        other.close()


def test_a_locked_file(ledger: SqliteLedger, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger._db.execute("PRAGMA busy_timeout = 10")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked by another process"):
            ledger.record(difference(Ledger(), FULL, 10.0))
        other.execute("ROLLBACK")
    ledger.record(difference(Ledger(), FULL, 10.0))
    assert ledger.read() == FULL


def test_a_file_that_cannot_be_written(ledger: SqliteLedger) -> None:
    ledger._db.execute("PRAGMA query_only = ON")
    with pytest.raises(EnvironmentFault, match="let the operator write the file and its directory"):
        ledger.record(difference(Ledger(), FULL, 10.0))


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="give the operator a state directory that it can write"):
        SqliteLedger(tmp_path / "missing" / "ledger.db")


@pytest.mark.parametrize("damage", ["not-a-database", "torn"])
def test_a_damaged_file(path: Path, damage: str) -> None:
    opened = SqliteLedger(path)
    opened.record(difference(Ledger(), FULL, 10.0))
    opened.close()
    content = bytearray(path.read_bytes())
    if damage == "torn":
        content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(bytes(content) if damage == "torn" else b"hello " * 1000)
    with pytest.raises(StoreError, match=r"the ledger is damaged .*: restore a backup, or, .* all parts "):
        SqliteLedger(path)
    path.unlink()
    SqliteLedger(path).close()


def test_a_newer_schema_is_left_alone(path: Path) -> None:
    SqliteLedger(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match=f"schema 99, this routerd knows {len(store.MIGRATIONS)}"):
        SqliteLedger(path)


def test_migrations_run_once_and_in_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = SqliteLedger(path)
    opened.record(difference(Ledger(), FULL, 10.0))
    opened.close()
    newer = (*store.MIGRATIONS, ("ALTER TABLE addresses ADD COLUMN note TEXT NOT NULL DEFAULT ''",))
    monkeypatch.setattr(store, "MIGRATIONS", newer)
    for _ in range(2):
        opened = SqliteLedger(path)
        assert opened.read() == FULL
        assert opened._db.execute("PRAGMA user_version").fetchone() == (len(newer),)
        opened.close()


# Groups from schema 1 to 7, and what schema 2 was, with the records of FULL, as `sqlite3 ledger.sqlite .dump` said it.
GROUPS_TO_7 = """\
CREATE TABLE groups (
    id INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 16777215), egress_ip TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('active', 'retired')), since REAL NOT NULL,
    gateways TEXT NOT NULL, slots INTEGER NOT NULL, epoch INTEGER NOT NULL, lease INTEGER NOT NULL);
INSERT INTO groups VALUES (4, '2001:db8::1', 'active', 1.0, '[["g1", 0], ["g2", 1]]', 2, 7, 7),
    (8, '192.0.2.1', 'retired', 2.0, '[]', 1, 0, 7);
"""
OF_SCHEMA_2 = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('lease', '7'), ('generation', '3'), ('digest', 'd'), ('next_group', '9'),
    ('id', '0123456789abcdef'), ('audit_from', '0');
CREATE TABLE addresses (
    address TEXT NOT NULL, owner TEXT NOT NULL, pool TEXT NOT NULL, family INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('used', 'reserved', 'cooling')), since REAL NOT NULL,
    bound INTEGER NOT NULL, lease INTEGER NOT NULL, PRIMARY KEY (address, owner)) WITHOUT ROWID;
INSERT INTO addresses VALUES ('192.0.2.1', 'svc/d/a', 'p', 4, 'used', 1.5, 0, 7),
    ('192.0.2.1', 'svc/d/b', 'p', 4, 'used', 2.0, 0, 7),
    ('2001:db8::1', 'EgressPolicy/e', '', 6, 'reserved', 3.0, 1, 6);
{GROUPS_TO_7}CREATE TABLE audit (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, what TEXT NOT NULL, owner TEXT NOT NULL,
    address TEXT NOT NULL, lease INTEGER NOT NULL);
INSERT INTO audit (time, what, owner, address, lease) VALUES (10.0, 'assigned', 'svc/d/a', '192.0.2.1', 7);
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
    WHEN old.time >= (SELECT CAST(value AS REAL) FROM meta WHERE key = 'audit_from')
    BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE INDEX audit_time ON audit (time);
PRAGMA user_version = 2;
"""


def test_a_ledger_of_the_schema_before_opens_with_all_that_it_says(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(OF_SCHEMA_2)
    opened = SqliteLedger(path)
    try:
        addresses = tuple(replace(each, use=None) for each in FULL.addresses)
        of_then = replace(FULL, addresses=addresses, node_numbers=(), port_tables=(), past_port_sets=())
        assert opened.read() == of_then
        assert (opened.id, opened.lease) == ("0123456789abcdef", 8)
        assert [entry.what for entry in peek(path)[1]] == ["assigned"]
        smaller = replace(FULL, generation=4, addresses=FULL.addresses[1:], groups=FULL.groups[:1])
        opened.record(difference(of_then, smaller, 11.0))
        assert opened.read() == smaller
    finally:
        opened.close()


OF_SCHEMA_7 = (
    f"DROP TABLE groups; DROP TABLE cloud_instances; DROP TABLE cloud_addresses; DROP TABLE pod_cidrs; "
    f"{GROUPS_TO_7} PRAGMA user_version = 7;"
)


def test_a_ledger_of_the_time_when_gateways_translated_opens_with_all_that_it_says(path: Path) -> None:
    opened = SqliteLedger(path)
    opened.record(difference(Ledger(), replace(FULL, groups=()), 10.0))
    opened.close()
    with closing(sqlite3.connect(path)) as db:
        db.executescript(OF_SCHEMA_7)
    opened = SqliteLedger(path)
    try:
        assert opened.read() == FULL
        moved = replace(FULL, groups=(replace(FULL.groups[0], gateways=("g2",)), FULL.groups[1]))
        opened.record(difference(FULL, moved, 11.0))
        assert opened.read() == moved
    finally:
        opened.close()


# The instances of a cloud from schema 9 to 11, one with an interface.
OF_SCHEMA_11 = """\
DROP TABLE cloud_instances;
CREATE TABLE cloud_instances (
    instance TEXT NOT NULL, node TEXT NOT NULL, held TEXT NOT NULL, intent TEXT NOT NULL, served REAL NOT NULL,
    missing REAL NOT NULL, lease INTEGER NOT NULL, PRIMARY KEY (instance)) WITHOUT ROWID;
INSERT INTO cloud_instances VALUES ('i-1', 'a',
    '[["eni-1", "02:00:00:00:00:01", 1, "10.0.0.5", "10.0.0.0/24", [["10.0.0.6/32", "used", 1.0, 0.0]]]]', '[]',
    2.0, 0.0, 7), ('i-2', '', '[]', '[]', 0.0, 3.0, 7);
PRAGMA user_version = 11;
"""


def test_a_ledger_of_the_time_before_generations_of_interfaces_opens_with_all_that_it_says(path: Path) -> None:
    opened = SqliteLedger(path)
    opened.record(difference(Ledger(), FULL, 10.0))
    opened.close()
    with closing(sqlite3.connect(path)) as db:
        db.executescript(OF_SCHEMA_11)
    held = ["eni-1", "02:00:00:00:00:01", 1, "10.0.0.5", "10.0.0.0/24", [["10.0.0.6/32", "used", 1.0, 0.0]]]
    instances = (read_holding("i-1", "a", [held], [], 2.0, 0.0), read_holding("i-2", "", [], [], 0.0, 3.0))
    assert {each.generation for each in instances} == {1}
    opened = SqliteLedger(path)
    try:
        assert opened.read() == replace(FULL, cloud_instances=instances)
        after = replace(FULL, cloud_instances=(replace(instances[0], generation=2),))
        opened.record(difference(opened.read(), after, 11.0))
        assert opened.read() == after
    finally:
        opened.close()


def columns(db: sqlite3.Connection, table: str) -> dict[str, tuple[str, int]]:
    """Each column's type, and its place in the key (0 = none)."""
    return {name: (kind, key) for _, name, kind, _, _, key in db.execute(f"PRAGMA table_info({table})")}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_table_of_the_schema_is_as_its_records_are(ledger: SqliteLedger, table: LedgerTable[object]) -> None:
    with closing(sqlite3.connect(":memory:")) as made_anew:
        made_anew.execute(store.create(table))
        assert columns(ledger._db, table.name) == columns(made_anew, table.name)
    assert {each.name for each in fields(Ledger) if str(each.type).startswith("tuple")} == {one.name for one in TABLES}


def test_groups_exchange_their_addresses(ledger: SqliteLedger) -> None:
    ledger.record(difference(Ledger(), FULL, 10.0))
    one, other = FULL.groups
    after = replace(FULL, groups=(replace(one, egress_ip=V4), replace(other, egress_ip=V6)))
    ledger.record(difference(FULL, after, 11.0))
    assert ledger.read() == after


KILLED = """
import os, signal, sys
from pathlib import Path
from routerd.cluster.ledger import difference
from routerd.store.embedded.ledger import SqliteLedger
from tests.models.operator_world import busy_world


def decide(path, step):
    ledger, world, count = SqliteLedger(path / "ledger.db"), busy_world(), 0

    def trace(statement):
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)

    ledger._db.set_trace_callback(trace)
    world.ledger = ledger.read()
    before = world.ledger
    world.decide()
    ledger.record(difference(before, world.ledger, world.now))
    trace("before publishing")


code = -signal.SIGKILL
for step in range(1, 100):
    if code == -signal.SIGKILL:
        path = Path(sys.argv[1]) / str(step)
        path.mkdir()
        if not (pid := os.fork()):
            decide(path, step)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
sys.exit(code)
"""


def test_killed_at_every_step(tmp_path: Path) -> None:
    """SIGKILL before each statement and before publishing: the next operator comes to the same document."""
    expected = busy_world()
    expected.decide()
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    steps = list(tmp_path.iterdir())
    assert len(steps) > 8, "killed before each statement"
    for state in steps:
        opened = SqliteLedger(state / "ledger.db")
        try:
            world = busy_world()
            world.ledger = opened.read()
            assert world.ledger in (Ledger(), expected.ledger), f"half a decision after step {state.name}"
            before = world.ledger
            world.decide(5)
            assert without_versions(world.allocations) == without_versions(expected.allocations)
            opened.record(difference(before, world.ledger, world.now))
            assert opened.read() == world.ledger
        finally:
            opened.close()


def test_an_exception_at_every_step_leaves_nothing_behind(ledger: SqliteLedger) -> None:
    ledger.record(difference(Ledger(), replace(FULL, groups=()), 1.0))
    before = ledger.read()
    audit = ledger._db.execute("SELECT count(*) FROM audit").fetchone()
    for verb in ("INSERT", "UPDATE", "DELETE"):
        for table in ("addresses", "groups", "audit", "meta"):
            ledger._db.execute(
                f"CREATE TEMP TRIGGER broken BEFORE {verb} ON main.{table} BEGIN SELECT RAISE(ABORT, 'broken'); END"
            )
            after = replace(FULL, generation=9, addresses=(replace(FULL.addresses[1], pool="q"),))
            try:
                ledger.record(difference(before, after, 2.0))
            except StoreError as error:
                assert "broken" in str(error)
                assert ledger.read() == before
                assert ledger._db.execute("SELECT count(*) FROM audit").fetchone() == audit
            else:
                ledger._db.execute("DROP TRIGGER broken")
                ledger.record(difference(after, before, 3.0))
                audit = ledger._db.execute("SELECT count(*) FROM audit").fetchone()
                continue
            ledger._db.execute("DROP TRIGGER broken")


def test_the_ledger_has_a_name_that_stays(path: Path) -> None:
    first = SqliteLedger(path)
    first.close()
    second = SqliteLedger(path)
    second.close()
    assert len(first.id) == 16
    assert (second.id, second.lease) == (first.id, first.lease + 1)


def test_audit_entries_go_when_their_retention_is_over(path: Path) -> None:
    first = SqliteLedger(path, retention=500.0, clock=lambda: 400.0)
    first.record(difference(Ledger(), FULL, 400.0))
    first.close()
    assert len(peek(path)[1]) == 5
    later = SqliteLedger(path, retention=500.0, clock=lambda: 1000.0)
    try:
        smaller = replace(FULL, generation=4, addresses=FULL.addresses[1:])
        later.record(difference(FULL, smaller, 1000.0))
        assert [(entry.time, entry.what) for entry in peek(path)[1]] == [(1000.0, "freed")]
        assert peek(path)[0] == smaller
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            later._db.execute("DELETE FROM audit")
    finally:
        later.close()
