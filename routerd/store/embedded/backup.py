"""Copies of the ledger: made while an operator writes it, and put in its place when none runs.

A copy is one file, whole and checked before anybody finds it under its name. What is published needs no copy: an
operator whose ledger is older than that takes it over before it gives anything.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from routerd.errors import EnvironmentFault, StoreError
from routerd.store.embedded.ledger import SqliteLedger, faults, lock

BEFORE = ".before"  # behind the name of the ledger that a restored one took the place of
BESIDE = ("-wal", "-shm", "-journal", ".lock")  # files that SQLite and we put beside a database


def back_up(path: Path, target: Path) -> int:
    """Copies the ledger `path` to `target`; its generation. Raises StoreError and EnvironmentFault."""
    if target.exists() and path.exists() and target.samefile(path):
        raise StoreError(f"{target} is the ledger itself: name another file")
    with _made_beside(target) as work:
        _copy(path, work)
        generation = _checked(work, path)
        work.replace(target)
        _sync(target.parent)
    return generation


def restore(source: Path, path: Path) -> int:
    """Puts a copy in the place of the ledger `path`, which stays beside it; its generation.

    Raises StoreError while an operator has the ledger, and where the copy is none or is damaged: then nothing changes.
    """
    descriptor = lock(path.with_name(f"{path.name}.lock"))
    try:
        with _made_beside(path) as work:
            _copy(source, work)
            generation = _checked(work, source)
            _keep(path)
            work.replace(path)
            _sync(path.parent)
    finally:
        os.close(descriptor)
    return generation


@contextmanager
def _made_beside(target: Path) -> Iterator[Path]:
    """A name for what is being made, in the same directory; nothing is left of it. OSError as EnvironmentFault."""
    work = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield work
    except OSError as error:
        raise EnvironmentFault(f"{error.filename or target}: {error.strerror}") from error
    finally:
        for suffix in ("", *BESIDE):
            with suppress(NotADirectoryError):  # then nothing was made
                work.with_name(f"{work.name}{suffix}").unlink(missing_ok=True)


def _copy(source: Path, work: Path) -> None:
    """As one transaction sees it, with what has not come to the file itself yet (SQLite's online backup)."""
    if not source.is_file():
        raise StoreError(f"{source}: there is no such ledger")
    os.close(os.open(work, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with (
        faults(source),
        closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as there,
        closing(sqlite3.connect(work)) as copy,
    ):
        there.backup(copy)


def _checked(work: Path, source: Path) -> int:
    """Reads all of it, brought to this release's schema, and makes one file of it, without a log beside it."""
    try:
        ledger = SqliteLedger(work)
        try:
            generation = ledger.read().generation
        finally:
            ledger.close()
        with faults(work), closing(sqlite3.connect(work)) as db:
            db.execute("PRAGMA journal_mode = DELETE")
    except StoreError as error:
        raise StoreError(str(error).replace(str(work), str(source))) from error
    with work.open("rb") as file:
        os.fsync(file.fileno())
    return generation


def _keep(path: Path) -> None:
    """Under another name, if there is one. What SQLite had beside it must not meet the next one, also where the ledger
    itself was removed by hand; it goes into the ledger where it can.
    """
    if path.exists():
        with suppress(StoreError, EnvironmentFault), faults(path), closing(sqlite3.connect(path)) as former:
            former.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # a damaged one may be why it is replaced
    for suffix in ("", "-wal", "-shm"):
        beside, before = (path.with_name(f"{path.name}{each}{suffix}") for each in ("", BEFORE))
        before.unlink(missing_ok=True)  # of one that was replaced earlier
        if beside.exists():
            before.hardlink_to(beside)
        if suffix:
            beside.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
