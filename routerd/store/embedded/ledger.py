"""The operator's ledger in SQLite: WAL, `synchronous=FULL`, one transaction for each decision.

A decision is recorded here before it is published, so whatever an agent ever read can be read here again after a crash.
One operator at a time: it holds a lock file for its life, and every record bears the generation of its lease, which a
later operator's lease outdates. It must not decide anything, and agents never open the file.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from routerd.cluster.ledger import TABLES, Changes, Ledger, LedgerTable, TableChanges
from routerd.errors import EnvironmentFault, StoreError
from routerd.formats.jsontext import parse_json
from routerd.formats.published.records import no_record

BUSY_TIMEOUT = 1.0  # seconds to wait for another process that has the file open, such as a backup

R = TypeVar("R")
Cells = list[Any]
TYPES: dict[type, str] = {str: "TEXT", int: "INTEGER", float: "REAL", bool: "INTEGER", list: "TEXT"}


def create(table: LedgerTable[Any]) -> str:
    """The statement that makes a table. Each record also bears the lease under which it was written."""
    columns = "".join(f"{name} {TYPES[kind]} NOT NULL, " for name, kind in table.columns.items())
    key = ", ".join(list(table.columns)[: table.keys])
    return f"CREATE TABLE {table.name} ({columns}lease INTEGER NOT NULL, PRIMARY KEY ({key})) WITHOUT ROWID"


# One tuple of statements for each schema version; PRAGMA user_version says how many have been applied. Tables that came
# after the first two were made from their columns, a version for each: a further table is a version at the end. To
# change one that is in use, write its version out here, so that it stays as it was, and the change at the end.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        "INSERT INTO meta VALUES ('lease', '0'), ('generation', '0'), ('digest', ''), ('next_group', '1')",
        """CREATE TABLE addresses (
            address TEXT NOT NULL, owner TEXT NOT NULL, pool TEXT NOT NULL, family INTEGER NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('used', 'reserved', 'cooling')), since REAL NOT NULL,
            bound INTEGER NOT NULL, lease INTEGER NOT NULL, PRIMARY KEY (address, owner)) WITHOUT ROWID""",
        """CREATE TABLE groups (
            id INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 16777215), egress_ip TEXT NOT NULL UNIQUE,
            state TEXT NOT NULL CHECK (state IN ('active', 'retired')), since REAL NOT NULL,
            gateways TEXT NOT NULL, slots INTEGER NOT NULL, epoch INTEGER NOT NULL, lease INTEGER NOT NULL)""",
        """CREATE TABLE audit (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, what TEXT NOT NULL, owner TEXT NOT NULL,
            address TEXT NOT NULL, lease INTEGER NOT NULL)""",
        "CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'append-only'); END",
        "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'append-only'); END",
    ),
    (
        "INSERT INTO meta VALUES ('id', lower(hex(randomblob(8)))), ('audit_from', '0')",
        "DROP TRIGGER audit_no_delete",
        """CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
            WHEN old.time >= (SELECT CAST(value AS REAL) FROM meta WHERE key = 'audit_from')
            BEGIN SELECT RAISE(ABORT, 'append-only'); END""",
        "CREATE INDEX audit_time ON audit (time)",
    ),
    (  # without the family, which the address itself says; as SQLite before 3.35 drops a column
        "ALTER TABLE addresses RENAME TO old_addresses",
        """CREATE TABLE addresses (
            address TEXT NOT NULL, owner TEXT NOT NULL, pool TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('used', 'reserved', 'cooling')), since REAL NOT NULL,
            bound INTEGER NOT NULL, lease INTEGER NOT NULL, PRIMARY KEY (address, owner)) WITHOUT ROWID""",
        "INSERT INTO addresses SELECT address, owner, pool, state, since, bound, lease FROM old_addresses",
        "DROP TABLE old_addresses",
    ),
    (
        "ALTER TABLE addresses ADD COLUMN sharing TEXT NOT NULL DEFAULT '[]'",
    ),  # how who shares an address was granted it
    *((create(table),) for table in TABLES[2:5]),
    (  # without what told ports and paths apart while gateways translated; `from_row` reads the gateways as they are
        "ALTER TABLE groups RENAME TO old_groups",
        """CREATE TABLE groups (
            id INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 16777215), egress_ip TEXT NOT NULL UNIQUE,
            state TEXT NOT NULL CHECK (state IN ('active', 'retired')), since REAL NOT NULL,
            gateways TEXT NOT NULL, lease INTEGER NOT NULL)""",
        "INSERT INTO groups SELECT id, egress_ip, state, since, gateways, lease FROM old_groups",
        "DROP TABLE old_groups",
    ),
    (
        """CREATE TABLE cloud_instances (
            instance TEXT NOT NULL, node TEXT NOT NULL, held TEXT NOT NULL, intent TEXT NOT NULL,
            served REAL NOT NULL, missing REAL NOT NULL, lease INTEGER NOT NULL,
            PRIMARY KEY (instance)) WITHOUT ROWID""",
    ),
    *((create(table),) for table in TABLES[6:8]),
    (  # a node holds to no generation 0, so what it has by the records of before is the first one
        "ALTER TABLE cloud_instances ADD COLUMN generation INTEGER NOT NULL DEFAULT 1",
    ),
)
PRUNE_PERIOD = 86400.0  # seconds between looks for audit entries that are too old


class SqliteLedger:
    """The open ledger. Opening takes the lock, migrates the schema and takes a new lease; `close` lets go."""

    writes = 0  # see `routerd.operator.loop.LedgerFile`: a write is no request

    def __init__(self, path: Path, retention: float | None = None, clock: Callable[[], float] = time.time) -> None:
        """Errors: `EnvironmentFault` if the file cannot be written, `StoreError` if it is locked or damaged.

        `retention`: seconds that audit entries are kept, None = for ever. `id` names the ledger, also in its copies.
        """
        self.path = path
        self._retention = retention
        self._clock = clock
        self._pruned: float | None = None  # when
        self._lock = lock(path.with_name(f"{path.name}.lock"))
        try:
            with faults(self.path):
                self._db = _connect(path)
            try:
                with faults(self.path):
                    self._migrate()
                    self.lease = self._take_lease()
                    ((self.id,),) = self._db.execute("SELECT value FROM meta WHERE key = 'id'").fetchall()
            except BaseException:
                self._db.close()
                raise
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """May be called again."""
        self._db.close()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def read(self) -> Ledger:
        """The whole content."""
        try:
            with faults(self.path):
                return _read(self._db)
        except (ValueError, KeyError) as error:  # a cell that is none of ours, or one that is missing
            raise StoreError(_damaged(self.path, str(error))) from error

    def record(self, changes: Changes) -> None:
        """Writes one decision in one transaction; after a fault nothing of it is there. Empty changes cost nothing."""
        if changes.before == changes.after:
            return
        with faults(self.path), self._transaction():
            self._check_lease()
            for table in TABLES:
                self._write(table, changes.tables[table.name])
            self._db.executemany(
                "INSERT INTO audit (time, what, owner, address, lease) VALUES (?, ?, ?, ?, ?)",
                [(entry.time, entry.what, entry.owner, entry.address, self.lease) for entry in changes.audit],
            )
            self._prune()
            after = changes.after
            self._db.executemany(
                "UPDATE meta SET value = ? WHERE key = ?",
                [
                    (str(after.generation), "generation"),
                    (after.digest, "digest"),
                    (str(after.next_group), "next_group"),
                ],
            )

    def _prune(self) -> None:
        """Inside a transaction: removes audit entries past their retention, once a day. None younger can go."""
        now = self._clock()
        if self._retention is None or (self._pruned is not None and now - self._pruned < PRUNE_PERIOD):
            return
        oldest = now - self._retention
        self._db.execute("UPDATE meta SET value = ? WHERE key = 'audit_from'", (str(oldest),))
        self._db.execute("DELETE FROM audit WHERE time < ?", (oldest,))
        self._pruned = now

    def _write(self, table: LedgerTable[R], changes: TableChanges[R]) -> None:
        # All out first: two groups may exchange their addresses, of which there must not be two.
        names = list(table.columns)
        key = " AND ".join(f"{name} = ?" for name in names[: table.keys])
        outdated = [_cells(table, record)[: table.keys] for record in (*changes.deleted, *changes.put)]
        self._db.executemany(f"DELETE FROM {table.name} WHERE {key}", outdated)
        self._db.executemany(
            f"INSERT INTO {table.name} ({', '.join(names)}, lease) VALUES ({'?, ' * len(names)}?)",
            [[*_cells(table, record), self.lease] for record in changes.put],
        )

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{self.path}: the ledger has schema {version}, this routerd knows {len(MIGRATIONS)}: run the newer one"
            )
        for number, statements in enumerate(MIGRATIONS[version:], version + 1):
            with self._transaction():
                for statement in statements:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {number}")
        ((health,),) = self._db.execute("PRAGMA quick_check(1)").fetchall()
        if health != "ok":
            raise StoreError(_damaged(self.path, " ".join(str(health).split())))

    def _take_lease(self) -> int:
        with self._transaction():
            self._db.execute("UPDATE meta SET value = value + 1 WHERE key = 'lease'")
            return self._stored_lease()

    def _stored_lease(self) -> int:
        (value,) = self._db.execute("SELECT value FROM meta WHERE key = 'lease'").fetchone()
        return int(value)

    def _check_lease(self) -> None:
        stored = self._stored_lease()
        if stored != self.lease:
            raise StoreError(
                f"{self.path}: lease {self.lease} is outdated by {stored}: another operator took over, stop this one"
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")


def _read(db: sqlite3.Connection) -> Ledger:
    meta = dict(db.execute("SELECT key, value FROM meta"))
    tables: dict[str, Any] = {table.name: _records(db, table) for table in TABLES}
    return Ledger(int(meta["generation"]), meta["digest"], int(meta["next_group"]), **tables)


def _records(db: sqlite3.Connection, table: LedgerTable[R]) -> tuple[R, ...]:
    rows = db.execute(f"SELECT {', '.join(table.columns)} FROM {table.name}")
    return tuple(sorted((_record(table, row) for row in rows), key=table.key))


def _cells(table: LedgerTable[R], record: R) -> Cells:
    return [json.dumps(cell) if isinstance(cell, list) else cell for cell in table.to_row(record)]


def _record(table: LedgerTable[R], row: tuple[Any, ...]) -> R:
    kinds = table.columns.values()
    try:
        cells = [parse_json(cell) if kind is list else cell for kind, cell in zip(kinds, row, strict=True)]
    except (ValueError, TypeError) as error:
        raise no_record(table.name, [*row], repr(error)) from error
    return table.read(cells)


@contextmanager
def faults(path: Path) -> Iterator[None]:
    """SQLite's errors as ours, with who must act."""
    try:
        yield
    except sqlite3.Error as error:
        raise _fault(path, error) from error
    except OverflowError as error:
        raise StoreError(f"{path} does not hold such a number: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    # The operator may write from a worker thread, one at a time.
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error:
        db.close()
        raise
    return db


def lock(path: Path) -> int:
    """An exclusive lock for the life of the process; the kernel frees it when the process dies."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"{path}: {error.strerror}: give the operator a state directory that it can write"
        raise EnvironmentFault(message) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
        os.close(descriptor)
        message = (
            f"another operator (pid {holder or 'unknown'}) has the ledger: stop it, or use another state directory"
        )
        raise StoreError(f"{path}: {message}") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _fault(path: Path, error: sqlite3.Error) -> StoreError | EnvironmentFault:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code; the extended one is above
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreError(f"{path}: locked by another process for {BUSY_TIMEOUT:g} s: stop what has the ledger open")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return EnvironmentFault(f"{path}: {error}: let the operator write the file and its directory")
    if code == sqlite3.SQLITE_FULL:
        return EnvironmentFault(f"{path}: {error}: make room on the file system of the state directory")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreError(_damaged(path, str(error)))
    return StoreError(f"{path}: {error}")


def _damaged(path: Path, detail: str) -> str:
    return (
        f"{path}: the ledger is damaged ({detail}): restore a backup, or, if the published allocations are "
        "there with all parts that they name, move the file away and start the operator: it takes over what they say"
    )
