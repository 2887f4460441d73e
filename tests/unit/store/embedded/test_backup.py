"""Copies of the ledger: whole, checked before they are used, and never under an operator that runs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from ipam.round import Record
from routerd.cli.main import main
from routerd.cluster.ledger import Ledger, difference
from routerd.errors import EnvironmentFault, StoreError
from routerd.store.embedded.backup import back_up, restore
from routerd.store.embedded.ledger import MIGRATIONS, SqliteLedger

FIRST = Ledger(3, "d", 9, (Record(ip_address("192.0.2.1"), "svc/default/web", "p", "used", 1.0),))
SECOND = replace(FIRST, generation=4, addresses=())


def write(path: Path, content: Ledger) -> SqliteLedger:
    ledger = SqliteLedger(path)
    ledger.record(difference(ledger.read(), content, 0.0))
    return ledger


def content(path: Path) -> Ledger:
    with closing(SqliteLedger(path)) as ledger:
        return ledger.read()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def test_a_copy_is_made_while_the_operator_writes_and_comes_back(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copies" / "copy"
    copy.parent.mkdir()
    with closing(write(path, FIRST)) as operator:
        assert back_up(path, copy) == 3
        operator.record(difference(operator.read(), SECOND, 0.0))
    assert [each.name for each in copy.parent.iterdir()] == ["copy"]
    assert copy.stat().st_mode & 0o777 == 0o600
    assert restore(copy, path) == 3
    assert (content(path), content(tmp_path / "ledger.sqlite.before")) == (FIRST, SECOND)


def test_a_later_operator_outdates_every_record_of_a_restored_ledger(path: Path, tmp_path: Path) -> None:
    with closing(write(path, FIRST)) as operator:
        back_up(path, tmp_path / "copy")
        lease = operator.lease
    restore(tmp_path / "copy", path)
    with closing(SqliteLedger(path)) as operator:
        assert operator.lease > lease


def test_no_operator_loses_its_ledger_under_its_feet(path: Path, tmp_path: Path) -> None:
    with closing(write(path, FIRST)) as operator:
        back_up(path, tmp_path / "copy")
        with pytest.raises(StoreError, match="another operator"):
            restore(tmp_path / "copy", path)
        assert operator.read() == FIRST


def damaged(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[4096:8192] = b"x" * 4096
    file.write_bytes(data)


def newer(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")


def with_a_cell_that_is_none(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("UPDATE addresses SET address = 'no address'")


@pytest.mark.parametrize(
    "spoil", [damaged, newer, with_a_cell_that_is_none, Path.unlink, lambda file: file.write_text("no database")]
)
def test_what_is_no_good_copy_replaces_nothing(path: Path, tmp_path: Path, spoil: object) -> None:
    copy = tmp_path / "copy"
    write(path, FIRST).close()
    back_up(path, copy)
    spoil(copy)  # type: ignore[operator]
    before = sorted(each.name for each in tmp_path.iterdir())
    with pytest.raises(StoreError, match=str(copy)):
        restore(copy, path)
    assert sorted(each.name for each in tmp_path.iterdir()) == before
    assert content(path) == FIRST


def test_a_damaged_ledger_is_not_copied_but_can_be_replaced(path: Path, tmp_path: Path) -> None:
    write(path, FIRST).close()
    back_up(path, tmp_path / "copy")
    damaged(path)
    with pytest.raises(StoreError, match="damaged"):
        back_up(path, tmp_path / "copy")
    assert content(tmp_path / "copy") == FIRST
    restore(tmp_path / "copy", path)
    assert content(path) == FIRST


def with_a_log_beside_it(path: Path) -> None:
    """As an operator leaves it that was killed: what was recorded last is in the log alone."""
    with closing(write(path, SECOND)):
        files = {each: each.read_bytes() for each in (path, *path.parent.glob(f"{path.name}-*"))}
    for each, data in files.items():
        each.write_bytes(data)


def test_a_log_that_a_removed_ledger_left_does_not_meet_the_restored_one(path: Path, tmp_path: Path) -> None:
    write(path, FIRST).close()
    back_up(path, tmp_path / "copy")
    with_a_log_beside_it(path)
    path.unlink()
    assert restore(tmp_path / "copy", path) == 3
    assert not [*tmp_path.glob("ledger.sqlite-*")]
    assert content(path) == FIRST


def test_a_log_of_what_was_replaced_earlier_does_not_meet_what_is_kept_now(path: Path, tmp_path: Path) -> None:
    write(path, FIRST).close()
    back_up(path, tmp_path / "copy")
    with_a_log_beside_it(path)
    path.unlink()
    restore(tmp_path / "copy", path)
    assert [*tmp_path.glob("ledger.sqlite.before-wal")]
    restore(tmp_path / "copy", path)
    assert not [*tmp_path.glob("ledger.sqlite.before-*")]
    assert content(tmp_path / "ledger.sqlite.before") == FIRST


def test_where_nothing_can_be_written_the_directory_is_named(path: Path, tmp_path: Path) -> None:
    write(path, FIRST).close()
    with pytest.raises(EnvironmentFault, match="none"):
        back_up(path, tmp_path / "none" / "copy")
    with pytest.raises(EnvironmentFault, match="Not a directory"):
        back_up(path, path / "copy")
    with pytest.raises(StoreError, match="the ledger itself"):
        back_up(path, path)


def test_the_commands(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(path, FIRST).close()
    config = tmp_path / "routerd.yaml"
    config.write_text(f"apiVersion: routerd.io/v1alpha1\nkind: Config\nstate-dir: {tmp_path}\n")
    copy = tmp_path / "copy"
    assert main(["--config", str(config), "backup", str(copy)]) == 0
    assert main(["--config", str(config), "restore", str(copy)]) == 0
    assert capsys.readouterr().out == (
        f"wrote {copy}, of generation 3\n{path} is of generation 3 now; what it was is {path}.before\n"
    )
    path.unlink()
    assert main(["--config", str(config), "restore", str(copy)]) == 0
    assert capsys.readouterr().out == f"{path} is of generation 3 now\n"
    config.write_text(config.read_text() + "store: {kind: kubernetes}\n")
    assert main(["--config", str(config), "backup", str(copy)]) == 3
    assert "back up those, or etcd" in capsys.readouterr().err
