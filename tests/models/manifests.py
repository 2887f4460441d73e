"""Files of the embedded store for tests: a pool as text, a store over a directory, one that runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from routerd.formats.objects import Loaded, read_file
from routerd.model import Snapshot
from routerd.store.embedded.store import FileStore
from tests.waiting import PATIENCE

POOL = "apiVersion: routerd.io/v1alpha1\nkind: AddressPool\nmetadata: {{name: {0}}}\nspec: {{blocks: [{1}]}}\n"
NOTHING: frozenset[Path] = frozenset()


def pool(name: str, block: str = "192.0.2.0/24") -> str:
    return POOL.format(name, block)


def read_text(text: str, file: str = "") -> Loaded:
    """What a file says. Raises InputError at its first mistake."""
    loaded = read_file(text, file)
    for mistake in loaded.mistakes:
        raise mistake.error
    return loaded


def store_of(directory: Path, on_change: Callable[[], None] = lambda: None) -> FileStore:
    return FileStore(
        directory,
        directory / "allocations.yaml",
        node_report=directory.parent / "node.yaml",
        node_reports=[str(directory.parent / "*.yaml")],
        on_change=on_change,
    )


def reasons(snapshot: Snapshot) -> list[str]:
    return [f"{refusal.object} {refusal.reason}" for refusal in snapshot.refusals]


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[tuple[FileStore, Callable[[Callable[[], bool]], object]]]:
    """A store that runs, and a bounded wait for a condition on it."""
    changed = asyncio.Event()
    store = store_of(directory, changed.set)
    task = asyncio.create_task(store.run())

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await changed.wait()
                changed.clear()

    try:
        yield store, until
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
