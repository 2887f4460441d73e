"""The embedded store: files that change, break and vanish, and what is announced to those who listen."""

import asyncio
import gc
import os
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

from routerd.errors import StoreError
from routerd.formats.objects import read_file
from routerd.formats.published.allocations import write_allocations, write_node_report
from routerd.model import GATEWAY_HEARTBEAT, Allocations, Heartbeat, NodeReport, ServiceAllocation, Writer
from routerd.store.embedded import manifests as manifests_module
from routerd.store.embedded.disk import is_manifest, manifest_files, write_atomically
from routerd.store.embedded.manifests import EMPTIED, GRACE, Manifests
from routerd.store.embedded.store import FileStore
from routerd.store.interface import Store
from tests.models.manifests import NOTHING, pool, reasons, running, store_of
from tests.waiting import PATIENCE, eventually


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "manifests"
    path.mkdir()
    return path


# --- without a watch: one look after the other, on a clock of our own ---


def test_an_empty_directory_is_synced_and_says_that_there_is_nothing(directory: Path) -> None:
    snapshot = store_of(directory).load()
    assert snapshot.is_synced
    assert snapshot.pools == {}
    assert snapshot.allocations is None


def test_no_directory_is_not_synced(tmp_path: Path) -> None:
    snapshot = store_of(tmp_path / "none").load()
    assert not snapshot.is_synced
    assert reasons(snapshot) == [f"file/{tmp_path / 'none'} Unreadable"]


def test_subdirectories_count_and_what_editors_leave_does_not(directory: Path) -> None:
    (directory / "sub").mkdir()
    (directory / ".hidden").mkdir()
    for name in ("a.yaml", "sub/b.yml", "c.json", ".a.yaml.swp", ".#a.yaml", "a.yaml~", ".hidden/d.yaml", "4913"):
        (directory / name).write_text("")
    assert [str(path.relative_to(directory)) for path in manifest_files(directory)] == ["a.yaml", "c.json", "sub/b.yml"]
    assert not is_manifest("#a.yaml")


def test_a_file_broken_at_the_start_keeps_everything_unsynced_until_it_is_mended(directory: Path) -> None:
    (directory / "good.yaml").write_text(pool("good"))
    (directory / "bad.yaml").write_text("a:\n\tb: 1\n")
    store = store_of(directory)
    snapshot = store.load()
    assert (snapshot.pools, snapshot.is_synced) == (None, False)
    (refusal,) = snapshot.refusals
    assert (str(refusal.object), refusal.reason) == ("file/bad.yaml", "InvalidFile")
    assert refusal.message == (
        f"{directory}/bad.yaml:2:1: not YAML: found character that cannot start any token (a tab? indent with spaces) "
        "(nothing at all is done until it is mended)"
    )
    (directory / "bad.yaml").write_text(pool("mended", "198.51.100.0/24"))
    assert set(store.load().pools or {}) == {"good", "mended"}


def test_a_file_that_breaks_later_keeps_what_it_last_said(directory: Path) -> None:
    (directory / "a.yaml").write_text(pool("a"))
    store = store_of(directory)
    store.load()
    (directory / "a.yaml").write_text(pool("a").replace("blocks", "bloks"))
    (directory / "b.yaml").write_text(pool("b", "198.51.100.0/24"))
    snapshot = store.load()
    assert set(snapshot.pools or {}) == {"a", "b"}
    (refusal,) = snapshot.refusals
    assert refusal.message == (
        f'{directory}/a.yaml:4:8: spec.bloks: unknown key "bloks"; did you mean "blocks"? '
        "(what it last said stays in force)"
    )


def test_a_new_file_that_is_broken_takes_nothing_from_the_others(directory: Path) -> None:
    (directory / "a.yaml").write_text(pool("a"))
    store = store_of(directory)
    store.load()
    (directory / "b.yaml").write_text("kind: [")
    snapshot = store.load()
    assert set(snapshot.pools or {}) == {"a"}
    assert reasons(snapshot) == ["file/b.yaml InvalidFile"]


NO_OBJECTS = "{apiVersion: v1, kind: List, items: []}"


@pytest.mark.parametrize(
    "loss", [lambda path: path.unlink(), lambda path: path.write_text(NO_OBJECTS)], ids=["gone", "of nothing"]
)
def test_a_loss_is_believed_at_the_second_look(directory: Path, loss: Callable[[Path], object]) -> None:
    path = directory / "a.yaml"
    path.write_text(pool("a"))
    manifests = Manifests(directory)
    manifests.look(0.0, without=NOTHING, touched=NOTHING)
    loss(path)
    assert not manifests.look(1.0, without=NOTHING, touched=NOTHING)
    assert manifests.is_losing
    assert [str(entry.ref) for loaded in manifests.loaded() for entry in loaded.entries] == ["AddressPool/a"]
    assert not manifests.look(1.0 + GRACE / 2, without=NOTHING, touched=NOTHING)
    assert manifests.look(1.0 + GRACE, without=NOTHING, touched=NOTHING)
    assert not manifests.is_losing
    assert [entry for loaded in manifests.loaded() for entry in loaded.entries] == []


@pytest.mark.parametrize("text", ["", "# pool a\n", "---\n...\n"], ids=["0 bytes", "a comment", "no document"])
def test_a_file_that_was_emptied_keeps_what_it_said_until_it_is_deleted(directory: Path, text: str) -> None:
    path = directory / "a.yaml"
    path.write_text(pool("a"))
    manifests = Manifests(directory)
    manifests.look(0.0, without=NOTHING, touched=NOTHING)
    path.write_text(text)
    assert not manifests.look(1.0, without=NOTHING, touched=NOTHING)
    assert manifests.is_losing
    assert manifests.look(1.0 + GRACE, without=NOTHING, touched=NOTHING)
    assert not manifests.is_losing
    assert [str(entry.ref) for loaded in manifests.loaded() for entry in loaded.entries] == ["AddressPool/a"]
    assert str(manifests.files[path].error) == f"{path}: {EMPTIED}"
    path.unlink()
    manifests.look(2.0, without=NOTHING, touched=NOTHING)
    assert manifests.look(2.0 + 2 * GRACE, without=NOTHING, touched=NOTHING)
    assert manifests.loaded() == []


def test_a_file_that_comes_back_in_time_loses_nothing(directory: Path) -> None:
    path = directory / "a.yaml"
    path.write_text(pool("a"))
    manifests = Manifests(directory)
    manifests.look(0.0, without=NOTHING, touched=NOTHING)
    path.write_text("")
    manifests.look(1.0, without=NOTHING, touched=NOTHING)
    path.write_text(pool("a", "198.51.100.0/24"))
    assert manifests.look(1.0 + GRACE, without=NOTHING, touched=NOTHING)
    assert not manifests.is_losing
    (loaded,) = manifests.loaded()
    assert [str(entry.ref) for entry in loaded.entries] == ["AddressPool/a"]


def test_a_file_is_read_again_only_when_it_changed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "a.yaml").write_text(pool("a"))
    manifests = Manifests(directory)
    manifests.look(0.0, without=NOTHING, touched=NOTHING)
    seen: list[str] = []
    read = read_file
    monkeypatch.setattr(manifests_module, "read_file", lambda text, file: seen.append(file) or read(text, file))
    assert not manifests.look(1.0, without=NOTHING, touched=NOTHING)
    assert seen == []
    assert not manifests.look(2.0, without=NOTHING, touched=frozenset({directory / "a.yaml"}))
    assert len(seen) == 1


# --- what routerd itself writes ---


def allocations(generation: int) -> Allocations:
    return Allocations(generation, (ServiceAllocation("d/web", "p", (ip_address("192.0.2.1"),)),))


def test_allocations_are_published_and_read_back_by_another_store(directory: Path) -> None:
    operator, agent = store_of(directory), store_of(directory)
    operator.load()
    operator.write_allocations(allocations(1))
    assert operator.snapshot().allocations == allocations(1)
    assert agent.load().allocations == allocations(1)
    assert agent.snapshot().pools == {}  # the file is no manifest
    assert {path.name for path in directory.iterdir()} == {"allocations.yaml", ".allocations.yaml.lock"}


def test_allocations_are_written_only_if_they_differ(directory: Path) -> None:
    store = store_of(directory)
    store.load()
    store.write_allocations(allocations(1))
    before = (directory / "allocations.yaml").stat()
    store.write_allocations(allocations(1))
    assert (directory / "allocations.yaml").stat().st_ino == before.st_ino
    (directory / "allocations.yaml").unlink()
    store.write_allocations(allocations(1))
    assert (directory / "allocations.yaml").exists()


def test_broken_or_missing_allocations_leave_the_last_good_ones(directory: Path) -> None:
    path = directory / "allocations.yaml"
    path.write_text(write_allocations(allocations(1)))
    store = store_of(directory)
    store.load()
    path.write_text("kind: Allocations\n")
    assert store.load().allocations == allocations(1)
    assert reasons(store.snapshot()) == ["file/allocations.yaml InvalidFile"]
    path.unlink()
    assert store.load().allocations == allocations(1)


def test_a_directory_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written: Not a directory"):
        write_atomically(tmp_path / "file" / "allocations.yaml", "")


def test_node_reports_are_read_by_pattern_and_a_broken_one_stays_good(directory: Path) -> None:
    store = store_of(directory)
    store.write_node_report(NodeReport("n1", (ip_address("192.0.2.1"),)))
    other = directory.parent / "other.yaml"
    other.write_text(write_node_report(NodeReport("n2")))
    store.load()
    assert sorted(store.node_reports()) == ["n1", "n2"]
    other.write_text("broken: [")
    assert reasons(store.load()) == ["file/other.yaml InvalidFile"]
    assert sorted(store.node_reports()) == ["n1", "n2"]


def test_beats_are_counted_in_the_report_and_go_on_over_a_restart(directory: Path) -> None:
    """Neither a reader's nor the writer's agent or operator is woken by them, and no snapshot is made anew."""
    changes: list[int] = []
    report = NodeReport("n1", (ip_address("192.0.2.1"),), heartbeat=Heartbeat(GATEWAY_HEARTBEAT))
    store = FileStore(
        directory, directory / "allocations.yaml", node_report=directory.parent / "node.yaml",
        node_reports=[str(directory.parent / "*.yaml")], on_change=lambda: changes.append(1),
    )  # fmt: skip
    reader = store_of(directory)
    store.beat()
    assert reader.node_reports() == {}
    store.write_node_report(report)
    snapshot = store.load()
    changes.clear()
    for count in range(1, 4):
        store.beat()
        assert store.load() == snapshot
        reader.load()
        (found,) = reader.node_reports().values()
        assert found.heartbeat is not None
        assert (found, found.heartbeat.beat) == (report, str(count))
    assert changes == []
    again = store_of(directory)
    again.write_node_report(NodeReport("n1", (ip_address("192.0.2.2"),)))
    again.beat()
    reader.load()
    (found,) = reader.node_reports().values()
    assert found.heartbeat is not None
    assert (found.heartbeat.seconds, found.heartbeat.beat) == (GATEWAY_HEARTBEAT, "4"), "it is not known yet: it stays"


# --- with the watch ---


def test_the_watch_sees_files_come_change_and_go(directory: Path) -> None:
    async def story() -> None:
        async with running(directory) as (store, until):
            await until(lambda: store.snapshot().is_synced)
            (directory / "a.yaml").write_text(pool("a"))
            await until(lambda: set(store.snapshot().pools or {}) == {"a"})
            temporary = directory / ".a.yaml.tmp"
            temporary.write_text(pool("b"))
            temporary.rename(directory / "a.yaml")
            await until(lambda: set(store.snapshot().pools or {}) == {"b"})
            (directory / "sub").mkdir()
            (directory / "sub" / "c.yaml").write_text(pool("c", "198.51.100.0/24"))
            await until(lambda: set(store.snapshot().pools or {}) == {"b", "c"})
            (directory / "a.yaml").unlink()
            await until(lambda: set(store.snapshot().pools or {}) == {"c"})
            write_atomically(directory / "allocations.yaml", write_allocations(allocations(3)))
            await until(lambda: store.snapshot().allocations == allocations(3))
            (directory.parent / "n.yaml").write_text(write_node_report(NodeReport("n")))
            await until(lambda: "n" in store.node_reports())

    asyncio.run(story())


def test_the_watch_waits_for_a_directory_to_be_made(tmp_path: Path) -> None:
    async def story() -> None:
        directory = tmp_path / "parent" / "manifests"
        async with running(directory) as (store, until):
            await until(lambda: bool(store.snapshot().refusals))
            assert not store.snapshot().is_synced
            directory.mkdir(parents=True)
            (directory / "a.yaml").write_text(pool("a"))
            await until(lambda: set(store.snapshot().pools or {}) == {"a"})

    asyncio.run(story())


def test_without_a_working_watch_it_looks_from_time_to_time(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("OS file watch limit reached")

    monkeypatch.setattr("routerd.store.embedded.store.awatch", fail)

    async def story() -> None:
        async with running(directory) as (store, until):
            await until(lambda: store.snapshot().is_synced)
            (directory / "a.yaml").write_text(pool("a"))
            await until(lambda: set(store.snapshot().pools or {}) == {"a"})

    asyncio.run(story())
    assert [record.message for record in caplog.records if record.name == "routerd.store"] == [
        'event=watch-failed reason="OS file watch limit reached"'
    ]


def test_rewriting_in_place_never_loses_an_object(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that empties the file before it fills it, as editors and `cp` do: sooner than a loss is believed."""
    monkeypatch.setattr(manifests_module, "GRACE", PATIENCE)
    path = directory / "a.yaml"
    path.write_text(pool("a"))

    async def story() -> None:
        async with running(directory) as (store, until):
            await until(lambda: store.snapshot().is_synced)
            for priority in range(1, 4):
                path.write_text("")
                await eventually(lambda: store._manifests.is_losing, "it is seen empty")
                assert set(store.snapshot().pools or {}) == {"a"}
                path.write_text(pool("a").replace("{blocks", f"{{priority: {priority}, blocks"))
                await until(lambda wanted=priority: store.snapshot().pools["a"].priority == wanted)

    asyncio.run(story())


def test_the_store_is_a_store(directory: Path) -> None:
    store: Store = store_of(directory)
    assert not store.snapshot().is_synced
    assert list(directory.iterdir()) == []


def test_two_operators_on_one_directory_are_told_of_each_other(directory: Path) -> None:
    writer = Writer("host-a", "ours", 1)
    first, second = store_of(directory), store_of(directory)
    first.write_allocations(Allocations(1, writer=writer))
    with pytest.raises(
        StoreError, match=rf"another operator \(node host-a, process {os.getpid()}\) writes it: stop one"
    ):
        second.write_allocations(Allocations(2))
    del first
    gc.collect()
    second.write_allocations(Allocations(2))
