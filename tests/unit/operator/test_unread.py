"""What is published and cannot be read is never decided over, unless the ledger knows all that it can say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree

import pytest

from routerd.cli.offline import snapshot_of
from routerd.cluster.assign import AssignSettings
from routerd.config import Config, StoreConfig
from routerd.errors import InputError, StoreError
from routerd.model import Allocations, Writer
from routerd.operator.loop import Operator
from routerd.store.embedded.ledger import SqliteLedger
from routerd.store.embedded.store import FileStore
from tests.models.many import small_parts
from tests.waiting import eventually

POOL = (
    "apiVersion: routerd.io/v1alpha1\nkind: AddressPool\nmetadata: {name: p}\nspec: {blocks: [{cidr: 192.0.2.0/24}]}\n"
)
UNREAD = "cannot be read, and may be newer than the ledger: .*bring it whole, with its parts, or delete it"


def services(*names: str) -> str:
    spec = "spec: {type: LoadBalancer, ports: [{port: 80}]}"
    return "".join(
        f"---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: d}}\n{spec}\n" for name in names
    )


class Host:
    """A directory of manifests, and an operator's own one."""

    def __init__(self, root: Path) -> None:
        self.manifests, self.ledger = root / "manifests", root / "ledger.db"
        self.index = self.manifests / "allocations.yaml"
        self.parts = self.manifests / "allocations.d"

    @contextmanager
    def operator(self) -> Iterator[tuple[Operator, FileStore]]:
        """As it is just after its start."""
        wakes: list[Callable[[], None]] = []
        store = FileStore(self.manifests, self.index, on_change=lambda: [wake() for wake in wakes] and None)
        ledger = SqliteLedger(self.ledger)
        writer = Writer(str(self.ledger), ledger.id, ledger.lease)
        store.load()
        view = Seen(store, wakes)
        try:
            yield Operator(view, ledger, AssignSettings(writer=writer)), store
        finally:
            ledger.close()
            wakes.clear()  # nothing holds the store, whose lock goes with it

    def decided(self) -> Allocations:
        with self.operator() as (operator, store):
            operator.round()
            found = store.load().allocations
        assert found is not None
        return found


class Seen:
    """The store as an operator sees it."""

    def __init__(self, store: FileStore, wakes: list[Callable[[], None]]) -> None:
        self.on_change = wakes.append
        self.snapshot, self.node_reports = store.snapshot, store.node_reports
        self.write_allocations = store.write_allocations


@pytest.fixture
def first(tmp_path: Path) -> Iterator[Host]:
    """An operator that gave the same addresses in another order than it would today."""
    host = Host(tmp_path / "first")
    host.manifests.mkdir(parents=True)
    (host.manifests / "pool.yaml").write_text(POOL)
    (host.manifests / "services.yaml").write_text(services(*"mnopqrstu"))
    with small_parts():
        host.decided()
        (host.manifests / "services.yaml").write_text(services(*"abcmnopqrstu"))
        host.decided()
        yield host


def other(host: Host) -> Host:
    """A host that its manifests and what was published were copied to, and not its ledger."""
    copytree(host.manifests, host.manifests.parent.with_name("other") / "manifests")
    return Host(host.manifests.parent.with_name("other"))


def contents(host: Host) -> dict[Path, bytes]:
    found = (path for path in host.manifests.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path: path.read_bytes() for path in found}


def in_force(host: Host) -> list[Path]:
    """The parts that the index names."""
    lines = host.index.read_text().splitlines()
    return [host.parts / f"{line.strip('- ').strip(chr(34))}.part" for line in lines if line.startswith('- "')]


def damage_parts(host: Host) -> None:
    """One is gone that is in force."""
    in_force(host)[0].unlink()


def lose_parts(host: Host) -> None:
    for path in host.parts.iterdir():
        path.unlink()
    host.parts.rmdir()


def edit(host: Host) -> None:
    host.index.write_text(host.index.read_text().replace("generation: 2", "generation: 3"))


@pytest.mark.parametrize("damage", [damage_parts, lose_parts, edit])
def test_an_empty_ledger_gives_nothing_over_what_is_published_and_cannot_be_read(
    first: Host, damage: Callable[[Host], None]
) -> None:
    given = first.decided()
    second = other(first)
    damage(second)
    before = contents(second)
    with second.operator() as (operator, _), pytest.raises(StoreError, match=UNREAD):
        operator.round()
    assert contents(second) == before
    copytree(first.manifests, second.manifests, dirs_exist_ok=True)
    assert second.decided().services == given.services
    assert second.decided().generation >= given.generation


def test_an_older_ledger_gives_nothing_either(first: Host) -> None:
    with_old = other(first)
    copy = first.ledger.read_bytes()
    (first.manifests / "services.yaml").write_text(services(*"0abcmnopqrstu"))
    first.decided()
    copytree(first.manifests, with_old.manifests, dirs_exist_ok=True)
    with_old.ledger.write_bytes(copy)
    damage_parts(with_old)
    with with_old.operator() as (operator, _), pytest.raises(StoreError, match=UNREAD):
        operator.round()


def test_a_document_that_is_deleted_lets_the_operator_begin_anew(first: Host) -> None:
    second = other(first)
    lose_parts(second)
    second.index.unlink()
    assert len(second.decided().services) == 12


@pytest.mark.parametrize("damage", [damage_parts, lose_parts])
def test_an_operator_whose_ledger_knows_all_publishes_it_again(first: Host, damage: Callable[[Host], None]) -> None:
    given = first.decided()
    damage(first)
    found = first.decided()
    assert (found.services, found.generation) == (given.services, given.generation)
    assert FileStore(first.manifests, first.index).load().allocations == found


@pytest.mark.parametrize("damage", [damage_parts, edit])
def test_files_whose_allocations_cannot_be_read_tell_nothing(first: Host, damage: Callable[[Host], None]) -> None:
    damage(first)
    with pytest.raises(InputError, match="bring it whole, or delete it"):
        snapshot_of(first.manifests, Config(store=StoreConfig(manifests=first.manifests, allocations=first.index)))


def damage_a_part(host: Host) -> None:
    """It stays as large as it was."""
    path = in_force(host)[0]
    path.write_bytes(b"x" * path.stat().st_size)


def lose_document(host: Host) -> None:
    host.index.unlink()


def cut_document(host: Host) -> None:
    host.index.write_text(host.index.read_text()[:-1])


@pytest.mark.parametrize("damage", [damage_parts, lose_parts, damage_a_part, edit, lose_document, cut_document])
def test_what_somebody_removes_or_edits_is_written_again_at_once(first: Host, damage: Callable[[Host], None]) -> None:
    before = {path: path.read_bytes() for path in (first.index, *in_force(first))}

    async def story() -> None:
        with first.operator() as (operator, store):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(store.run()), group.create_task(operator.run())]
                await eventually(lambda: operator.last, "it has decided")
                damage(first)
                await eventually(lambda: before.items() <= contents(first).items(), "all is written again")
                await eventually(lambda: not store.snapshot().refusals, "nothing is refused any more")
                for task in tasks:
                    task.cancel()

    asyncio.run(story())
    assert FileStore(first.manifests, first.index).load().allocations is not None
