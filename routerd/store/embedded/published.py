"""`allocations.yaml` and, beside it, `allocations.d` with its parts. One operator writes them, every agent reads them.

Parts are written first and named by their content; the file that names them, written last, alone puts them in force.
Whatever copies them to other hosts need keep no order: until all that the file names is there and whole, what was read
last stays in force.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from routerd.errors import InputError, StoreError
from routerd.formats.published.parts import Incomplete, Part
from routerd.formats.published.whole import AllocationsReader, AllocationsWriter, unread
from routerd.model import Allocations, Unread
from routerd.store.embedded.disk import FileState, claim, is_hidden, read_text, refresh, stamp, write_atomically

SUFFIX = ".part"  # no manifest's
GRACE = 600.0  # seconds that a part is kept which is in force no more: others may still read, or copy, the file before


class PublishedFile:
    """What is in force, and its one writer. Not thread-safe."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic, node: str = "") -> None:
        """`node`: by which what it needs is read alone; "" = everything is."""
        self.path = path
        self.directory = path.with_suffix(".d")
        self.state: FileState[Allocations] = FileState()
        self._clock = clock
        directory = self.directory  # and not `self`: the lock goes with the last reference
        self._reader = AllocationsReader(lambda name: stamp(_part_file(directory, name)), node)
        self._writer = AllocationsWriter()
        self._written: frozenset[str] = frozenset()  # names of parts that this process wrote, or found whole
        self._unused: dict[Path, float] = {}  # files of the directory that are not in force, since when
        self._lock: int | None = None  # descriptor

    @property
    def unread(self) -> Unread | None:
        return unread(self.state.error)

    def look(self, touched: frozenset[Path]) -> None:
        """Reads if the file or a part of it changed. None before the first ones are published; once known they stay,
        whatever becomes of the file.
        """
        path, state = self.path, self.state
        if state.good is None and stamp(path) is None and not is_hidden(path):
            self.state = FileState()
            return
        is_gone = stamp(path) is None and state.error is None
        changed = self._reader.changed()
        self._written -= changed
        again = path in touched or is_gone or bool(changed) or isinstance(state.error, Incomplete)
        self.state = refresh(state, path, lambda text, file: self._reader.read(text, file, self._part), again=again)

    def _part(self, name: str) -> str | None:
        with suppress(InputError):
            return read_text(self._file(name))
        return None

    def _file(self, name: str) -> Path:
        return _part_file(self.directory, name)

    def write(self, allocations: Allocations) -> bool:
        """Durable; False if it was published already. Raises StoreError."""
        state = self.state
        if state.good == allocations and state.error is None and state.stamp == stamp(self.path):
            return False
        self._claim(allocations)
        published = self._writer.written(allocations)
        self._put(published.parts)
        write_atomically(self.path, published.text)
        self.state = FileState(stamp(self.path), allocations)
        self._reader.is_in_force(part.name for part in published.parts)
        self._prune({self._file(part.name) for part in published.parts})
        return True

    def _claim(self, allocations: Allocations) -> None:
        """The first write takes the lock; it is held as long as this object is there."""
        if self._lock is None:
            node = allocations.writer.node if allocations.writer else ""
            self._lock = claim(self.path, f"node {node}" if node else "on this host")
            if self._lock is not None:
                weakref.finalize(self, os.close, self._lock)

    def _put(self, parts: Iterable[Part]) -> None:
        written = set()
        for part in parts:
            if not self._is_whole(part):
                self._make_directory()
                write_atomically(self._file(part.name), part.text)
            written.add(part.name)
        self._written = frozenset(written)

    def _is_whole(self, part: Part) -> bool:
        """Whether the file holds it. One that this process has seen is looked at from outside only."""
        on_disk = stamp(self._file(part.name))
        if on_disk is None or on_disk[1] != len(part.text):
            return False
        return part.name in self._written or self._part(part.name) == part.text

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.directory} cannot be made: {error.strerror}") from error

    def _prune(self, in_force: set[Path]) -> None:
        """Removes what has not been in force for `GRACE`, also what a killed writer left. A failure costs room only."""
        now = self._clock()
        with suppress(OSError):
            there = [path for path in self.directory.iterdir() if SUFFIX in path.name]
            self._unused = {path: self._unused.get(path, now) for path in there if path not in in_force}
            for path, since in self._unused.items():
                if now - since >= GRACE:
                    path.unlink()


def _part_file(directory: Path, name: str) -> Path:
    return directory / f"{name}{SUFFIX}"
