"""Allocations in parts on a disk: copied in any order, cut anywhere, written by one that is killed at any step."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routerd.cli.check import check_paths
from routerd.errors import StoreError
from routerd.formats.published.whole import AllocationsWriter
from routerd.model import Allocations
from routerd.store.embedded.published import GRACE, PublishedFile
from routerd.store.embedded.store import FileStore
from tests.models.many import DECISIONS, NODES, allocations_of, seen_by, small_parts
from tests.waiting import eventually

POOL = (
    "apiVersion: routerd.io/v1alpha1\nkind: AddressPool\nmetadata: {name: p}\nspec: {blocks: [{cidr: 192.0.2.0/24}]}\n"
)
NOTHING: frozenset[Path] = frozenset()
FIRST, SECOND = allocations_of(9, 1, generation=1), allocations_of(11, 2, generation=2)


def index(directory: Path) -> Path:
    return directory / "allocations.yaml"


def files(directory: Path) -> list[Path]:
    """All that a copy takes with it, parts included."""
    return sorted(path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("."))


def read(directory: Path, node: str = "") -> Allocations | None:
    """What somebody finds who has just started."""
    found = PublishedFile(index(directory), node=node)
    found.look(NOTHING)
    return found.state.good


# --- copies


@st.composite
def copies(draw: st.DrawFn) -> list[tuple[int, float]]:
    """Which file to copy, by its place among all, and how much of it."""
    share = st.just(1.0) | st.floats(0, 1)
    return draw(st.lists(st.tuples(st.integers(0, 40), share), max_size=8))


def found_by(node: str, decision: Allocations) -> Allocations:
    """As the agent of the node finds what is published; "" = the operator does."""
    return seen_by(node, decision) if node and AllocationsWriter().written(decision).parts else decision


@given(
    st.lists(st.tuples(DECISIONS, copies()), min_size=1, max_size=4), st.randoms(use_true_random=False),
    st.sampled_from(("", *NODES)),
)  # fmt: skip
@settings(max_examples=50)
def test_copied_in_any_order_and_cut_anywhere_one_decision_is_in_force(
    steps: list[tuple[Allocations, list[tuple[int, float]]]], rng: Any, node: str
) -> None:
    with small_parts(), TemporaryDirectory() as root:
        here, there = Path(root, "here"), Path(root, "there")
        for directory in (here, there):
            index(directory).with_suffix(".d").mkdir(parents=True)
        clock = [0.0]
        operator, agent = PublishedFile(index(here), lambda: clock[0]), PublishedFile(index(there), node=node)
        made: list[Allocations] = []
        for generation, (decision, some) in enumerate(steps):
            operator.write(replace(decision, generation=generation))
            made.append(found_by(node, replace(decision, generation=generation)))
            clock[0] += GRACE / 2
            for number, share in some:
                found = files(here)
                agent.look(copy(found[number % len(found)], here, there, share))
                in_force = agent.state.good
                assert in_force is None or in_force in made
                assert read(there, node) is None or read(there, node) in made
            before = agent.state.good
            rest = files(here)
            rng.shuffle(rest)
            for path in rest:
                agent.look(copy(path, here, there, 1.0))
                assert agent.state.good in (before, made[-1])
            assert (agent.state.good, agent.state.error) == (made[-1], None)
            assert read(there, node) == made[-1]


def copy(path: Path, here: Path, there: Path, share: float) -> frozenset[Path]:
    """Over what is there, as `cp` does it; the path that was written."""
    text = path.read_bytes()
    target = there / path.relative_to(here)
    target.write_bytes(text[: round(len(text) * share)])
    return frozenset({target})


# --- the writer


def steps_of(target: Path, decision: Allocations, kill_at: int, clock: float) -> bool:
    """Publishes in a child that is killed before its step `kill_at`: opening, renaming or removing a file below
    `target`. Whether it was killed.
    """
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == signal.SIGKILL
    count = 0

    def step(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(args[0]).startswith(str(target)):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    with suppress(BaseException):
        times = iter([0.0])
        operator = PublishedFile(index(target), lambda: next(times, clock))
        operator.look(NOTHING)
        sys.addaudithook(step)
        operator.write(decision)
        operator.write(replace(decision, generation=decision.generation + 1))
        os._exit(0)
    os._exit(1)


def test_killed_at_every_step_the_old_or_the_new_decision_is_in_force(tmp_path: Path) -> None:
    third = replace(SECOND, generation=3)
    with small_parts():
        for step in range(1, 200):
            directory = tmp_path / str(step)
            directory.mkdir()
            PublishedFile(index(directory)).write(FIRST)
            was_killed = steps_of(directory, SECOND, step, GRACE)
            assert read(directory) in (FIRST, SECOND, third), f"a mix after step {step}"
            clock = [0.0]
            after = PublishedFile(index(directory), lambda found=clock: found[0])  # type: ignore[misc]
            after.look(NOTHING)
            after.write(replace(SECOND, generation=4))
            assert read(directory) == replace(SECOND, generation=4)
            clock[0] = GRACE
            after.write(replace(SECOND, generation=5))
            names = {path.name for path in index(directory).with_suffix(".d").iterdir()}
            # What a killed one left is gone as well.
            assert names == {f"{name}.part" for name in named(directory)}
            if not was_killed:
                assert step > 20, "the child was killed at each step"
                return
    pytest.fail("the child never came to its end")


def named(directory: Path) -> list[str]:
    lines = index(directory).read_text().splitlines()
    return [line.strip('- "').rpartition("/")[2] for line in lines if line.startswith('- "')]


def test_parts_that_are_damaged_or_gone_are_written_again(tmp_path: Path) -> None:
    with small_parts():
        PublishedFile(index(tmp_path)).write(FIRST)
        first, second, third, *_ = sorted(index(tmp_path).with_suffix(".d").iterdir())
        first.unlink()
        second.write_bytes(b"x" * second.stat().st_size)
        third.write_bytes(third.read_bytes()[:-1])
        assert read(tmp_path) is None
        PublishedFile(index(tmp_path)).write(FIRST)
        assert read(tmp_path) == FIRST


def test_an_unchanged_part_is_not_written_again_and_an_old_one_stays_for_a_while(tmp_path: Path) -> None:
    clock = [0.0]
    with small_parts():
        operator = PublishedFile(index(tmp_path), lambda: clock[0])
        operator.write(FIRST)
        before = {path: path.stat().st_ino for path in index(tmp_path).with_suffix(".d").iterdir()}
        operator.write(replace(FIRST, generation=2, services=FIRST.services[1:]))
        after = {path: path.stat().st_ino for path in index(tmp_path).with_suffix(".d").iterdir()}
        assert before.items() <= after.items()
        assert len(after) <= len(before) + 3  # the part that changed, and one more if it was split
        clock[0] = GRACE
        operator.write(replace(FIRST, generation=3, services=FIRST.services[1:]))
        assert {path.stem for path in index(tmp_path).with_suffix(".d").iterdir()} == set(named(tmp_path))


def test_a_directory_for_parts_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    index(tmp_path).with_suffix(".d").write_text("")
    with small_parts(), pytest.raises(StoreError, match=r"allocations\.d cannot be made: File exists"):
        PublishedFile(index(tmp_path)).write(FIRST)
    assert read(tmp_path) is None


# --- the store


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Manifests with published parts among them, as by default."""
    (tmp_path / "pool.yaml").write_text(POOL)
    with small_parts():
        PublishedFile(index(tmp_path)).write(FIRST)
    return tmp_path


def test_parts_are_no_manifests(site: Path) -> None:
    snapshot = FileStore(site, index(site)).load()
    assert snapshot.is_synced and not snapshot.refusals
    assert snapshot.allocations == FIRST
    assert check_paths([site]) == []


def test_a_part_that_is_missing_is_named_and_the_last_decision_stays(site: Path) -> None:
    store = FileStore(site, index(site))
    store.load()
    kept = {path: path.read_bytes() for path in files(site)}
    with small_parts():
        PublishedFile(index(site)).write(SECOND)
    (part, *_) = [path for path in files(site) if path not in kept and path.suffix == ".part"]
    text = part.read_bytes()
    part.unlink()
    assert store.load().allocations == FIRST
    (refusal,) = store.snapshot().refusals
    assert (str(refusal.object), refusal.reason) == ("file/allocations.yaml", "InvalidFile")
    assert f"part {part.stem} is missing or cut (what the file last said stays in force)" in refusal.message
    part.write_bytes(text)  # the index is as it was
    assert store.load().allocations == SECOND
    assert not store.snapshot().refusals


@pytest.mark.parametrize("is_beside", [True, False])
def test_the_watch_sees_the_last_part_come(
    site: Path, tmp_path_factory: pytest.TempPathFactory, is_beside: bool
) -> None:
    manifests = site if is_beside else tmp_path_factory.mktemp("manifests")
    part = next(iter(index(site).with_suffix(".d").iterdir()))
    text = part.read_bytes()
    part.unlink()

    async def story() -> None:
        store = FileStore(manifests, index(site))
        task = asyncio.create_task(store.run())
        try:
            await eventually(lambda: store.snapshot().refusals, "a part is missing")
            part.write_bytes(text)
            await eventually(lambda: store.snapshot().allocations == FIRST, "the decision is in force")
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    asyncio.run(story())


def test_while_parts_are_missing_nothing_is_merged_anew(site: Path) -> None:
    next(iter(index(site).with_suffix(".d").iterdir())).unlink()
    store = FileStore(site, index(site))
    store.load()
    snapshot = store.snapshot()
    assert snapshot.refusals
    assert store._look_and_merge(NOTHING) is snapshot
    assert store._look_and_merge(frozenset({index(site)})) is snapshot
