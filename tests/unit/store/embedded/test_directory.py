"""What is no manifest, and what happens to the directory: FIFOs, links, mounts that come and go."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
from pathlib import Path

import pytest

from routerd.store.embedded import disk
from routerd.store.embedded import manifests as manifests_module
from routerd.store.embedded.disk import manifest_files
from routerd.store.embedded.manifests import GRACE, Manifests
from tests.models.manifests import NOTHING, pool, reasons, running, store_of


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "manifests"
    path.mkdir()
    return path


@pytest.mark.parametrize("at_start", [True, False])
def test_a_fifo_a_socket_and_a_device_are_refused_one_by_one(directory: Path, at_start: bool) -> None:
    store = store_of(directory)
    if not at_start:
        (directory / "a.yaml").write_text(pool("a"))
        store.load()
    os.mkfifo(directory / "fifo.yaml")
    (directory / "null.yaml").symlink_to("/dev/null")
    (directory / "dir.yaml").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket.yaml"))
        (directory / "b.yaml").write_text(pool("b", "198.51.100.0/24"))
        snapshot = store.load()
    assert set(snapshot.pools or {}) == ({"b"} if at_start else {"a", "b"})
    assert [(str(one.object), one.message.split(": ")[1].split(",")[0]) for one in snapshot.refusals] == [
        ("file/fifo.yaml", "found a FIFO"),
        ("file/null.yaml", "found a device"),
        ("file/socket.yaml", "found a socket"),
    ]


def test_a_file_that_becomes_a_fifo_keeps_what_it_said(directory: Path) -> None:
    (directory / "a.yaml").write_text(pool("a"))
    store = store_of(directory)
    store.load()
    (directory / "a.yaml").unlink()
    os.mkfifo(directory / "a.yaml")
    assert set(store.load().pools or {}) == {"a"}
    assert reasons(store.snapshot()) == ["file/a.yaml InvalidFile"]


def test_a_file_that_is_too_large_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "a.yaml").write_text(pool("a"))
    store = store_of(directory)
    store.load()
    monkeypatch.setattr(disk, "MAX_SIZE", 1 << 20)
    with (directory / "b.yaml").open("wb") as file:
        file.truncate((1 << 20) + 1)
    (refusal,) = store.load().refusals
    assert "1048577 bytes, larger than 1 MiB: split the file (nothing of the file is in force)" in refusal.message


def mount_config_map(directory: Path, version: str, **files: str) -> None:
    """As kubelet does it: a new directory, and one rename of the link to it."""
    fresh = directory / f"..{version}"
    (fresh / "sub").mkdir(parents=True)
    for name, text in files.items():
        (fresh / "sub" / f"{name}.yaml").write_text(text)
        (fresh / f"{name}.yaml").write_text(text.replace("name: ", "name: top-").replace("192", "198"))
    (directory / "..data_tmp").symlink_to(fresh.name)
    old = (directory / "..data").resolve() if (directory / "..data").exists() else None
    (directory / "..data_tmp").replace(directory / "..data")
    for name in [*(f"{each}.yaml" for each in files), "sub"]:
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")
    if old is not None:
        shutil.rmtree(old)


def test_a_config_map_mounted_as_kubernetes_does_is_read_and_followed(directory: Path) -> None:
    async def story() -> None:
        mount_config_map(directory, "2026_01", a=pool("a"))
        async with running(directory) as (store, until):
            await until(lambda: set(store.snapshot().pools or {}) == {"a", "top-a"})
            mount_config_map(directory, "2026_02", a=pool("b"))
            await until(lambda: set(store.snapshot().pools or {}) == {"b", "top-b"})

    asyncio.run(story())


def test_links_in_a_circle_end(directory: Path) -> None:
    (directory / "a.yaml").write_text("")
    (directory / "again").symlink_to(directory)
    assert manifest_files(directory) == [directory / "a.yaml"]


def replaced_by_nothing(directory: Path) -> None:
    directory.rename(directory.with_name("away"))
    directory.mkdir()


def test_an_unmounted_directory_keeps_what_it_said_for_a_time(directory: Path) -> None:
    (directory / "a.yaml").write_text(pool("a"))
    found = Manifests(directory)
    found.look(0.0, without=NOTHING, touched=NOTHING)
    directory.rename(directory.with_name("away"))
    found.look(1.0, without=NOTHING, touched=NOTHING)
    assert "cannot be read" in found.fault  # for as long as it is not there
    directory.mkdir()  # the mount point below
    for now in (2.0, 3.0, 2.0 + manifests_module.EMPTY_AFTER - 0.1):
        found.look(now, without=NOTHING, touched=NOTHING)
        assert len(found.loaded()[0].entries) == 1
        assert "is another directory than before, and empty: is its file system mounted?" in found.fault
    for late in (0.0, 2 * GRACE):
        found.look(2.0 + manifests_module.EMPTY_AFTER + late, without=NOTHING, touched=NOTHING)
    assert (found.loaded(), found.fault) == ([], "")


def test_a_directory_that_is_mounted_again_is_as_before(directory: Path) -> None:
    (directory / "a.yaml").write_text(pool("a"))
    found = Manifests(directory)
    found.look(0.0, without=NOTHING, touched=NOTHING)
    replaced_by_nothing(directory)
    found.look(1.0, without=NOTHING, touched=NOTHING)
    directory.rmdir()
    directory.with_name("away").rename(directory)
    found.look(2.0, without=NOTHING, touched=NOTHING)
    assert (len(found.loaded()), found.fault) == (1, "")


def test_the_last_file_deleted_from_its_directory_is_gone(directory: Path) -> None:
    (directory / "a.yaml").write_text(pool("a"))
    found = Manifests(directory)
    found.look(0.0, without=NOTHING, touched=NOTHING)
    (directory / "a.yaml").unlink()
    for now in (1.0, 1.0 + GRACE):
        found.look(now, without=NOTHING, touched=NOTHING)
    assert (found.loaded(), found.fault) == ([], "")


@pytest.mark.parametrize("code", [errno.EACCES, errno.ESTALE, errno.EIO])
def test_a_directory_that_cannot_be_looked_at_is_a_refusal_and_what_it_said_stays(
    directory: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    look = Path.stat

    def fail(path: Path, **how: bool) -> os.stat_result:
        if path.is_relative_to(directory):
            raise OSError(code, os.strerror(code), str(path))
        return look(path, **how)

    async def story() -> None:
        async with running(directory) as (store, until):
            (directory / "a.yaml").write_text(pool("a"))
            await until(lambda: set(store.snapshot().pools or {}) == {"a"})  # type: ignore[misc]
            monkeypatch.setattr(Path, "stat", fail)
            await until(lambda: f"file/{directory} Unreadable" in reasons(store.snapshot()))  # type: ignore[misc]
            assert set(store.snapshot().pools or {}) == {"a"}
            assert store._watches() == frozenset(each for each in store._watches() if not each[2])
            monkeypatch.setattr(Path, "stat", look)
            (directory / "b.yaml").write_text(pool("b", "198.51.100.0/24"))
            await until(lambda: set(store.snapshot().pools or {}) == {"a", "b"})  # type: ignore[misc]

    asyncio.run(story())


def test_a_directory_below_that_goes_while_it_is_looked_at_keeps_nothing_else_from_being_read(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Path.stat

    def go(path: Path, **how: bool) -> os.stat_result:
        if path.parent == directory:  # the first that is walked ends the others
            for other in {"a", "b", "c"} - {path.name}:
                shutil.rmtree(directory / other, ignore_errors=True)
        return look(path, **how)

    for name in "abc":
        (directory / name).mkdir()
        (directory / name / f"{name}.yaml").write_text(pool(name))
    monkeypatch.setattr(Path, "stat", go)
    found = Manifests(directory)
    found.look(0.0, without=NOTHING, touched=NOTHING)
    assert found.fault == ""
    assert len(found.files) == 1


def test_allocations_that_cannot_be_looked_at_are_a_refusal(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, look = store_of(directory), Path.stat

    def fail(path: Path, **how: bool) -> os.stat_result:
        if path.name == "allocations.yaml":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return look(path, **how)

    monkeypatch.setattr(Path, "stat", fail)
    for _ in range(2):
        assert reasons(store.load()) == ["file/allocations.yaml InvalidFile"]


def test_a_directory_that_was_never_there_is_told_with_what_to_do(tmp_path: Path) -> None:
    (refusal,) = store_of(tmp_path / "manifests").load().refusals
    assert refusal.message == (
        f"{tmp_path}/manifests cannot be read: No such file or directory: make it, or set store.manifests "
        "(nothing is changed until it can)"
    )
