"""What the files of a directory say, and when a loss is believed. Reads files; no clock and no waiting of its own.

A file that is no YAML, or says nothing any more, keeps what it last said; an object that is wrong does so by itself,
and the rest of its file goes on. An object that vanishes is believed gone only when a second look, `GRACE` later, finds
the file in the same state: editors and `cp` make a file empty or absent for a moment while they write it, and a
withdrawal for that would be an outage. For the same reason a directory that cannot be read, or that is another one and
empty, keeps what it last said.
"""

from __future__ import annotations

from pathlib import Path

from routerd.errors import InputError
from routerd.formats.objects import Loaded, read_file
from routerd.model import PARTS
from routerd.refs import Ref
from routerd.store.closed import settled
from routerd.store.embedded.disk import FileState, NotAFile, Stamp, manifest_files, refresh
from routerd.store.mistakes import spared, unknown_parts

GRACE = 0.05  # seconds
EMPTIED = "empty, and it was not: delete it if nothing of it is wanted any more"
EMPTY_AFTER = 60.0  # seconds after which another directory that holds nothing is believed: an unmounted one looks so


class Manifests:
    """The files below one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: dict[Path, FileState[Loaded]] = {}
        self.fault = ""  # why the directory cannot be read
        self.is_synced = False  # whether every file has once said something
        self.unsynced: frozenset[str] = frozenset(
            PARTS
        )  # parts not known yet: an object that never was right may say it
        self._identity: tuple[int, int] | None = None  # device and inode of the directory that said something last
        self._empty_since: float | None = None
        self._losing: dict[Path, tuple[float, Stamp | None]] = {}  # since when, in which state

    @property
    def is_losing(self) -> bool:
        """Whether a second look is due."""
        return bool(self._losing)

    def loaded(self) -> list[Loaded]:
        """What the files say, in the order of their paths."""
        return [state.good for _, state in sorted(self.files.items()) if state.good is not None]

    def look(self, now: float, *, without: frozenset[Path], touched: frozenset[Path]) -> bool:
        """Reads what changed, and what is `touched` in any case; True if anything is another than before.

        `now` in seconds on any clock that does not jump; `without` are files that are no manifests.
        """
        before = dict(self.files), self.fault, self.is_synced, self.unsynced
        paths = self._paths(now, without)
        for path in sorted(paths | set(self.files)):
            self._look_at(path, now, is_there=path in paths, is_touched=path in touched)
        if self._is_complete():
            self.unsynced &= unknown_parts(self.loaded())
        self.is_synced = self.is_synced or (self._is_complete() and not self.unsynced.issuperset(PARTS))
        return before != (self.files, self.fault, self.is_synced, self.unsynced)

    def _paths(self, now: float, without: frozenset[Path]) -> set[Path]:
        """The files that are there; if the directory cannot be read or believed, those that were."""
        try:
            paths = set(manifest_files(self.directory)) - without
            status = self.directory.stat()
        except OSError as error:
            consequence = "what it last said stays in force" if self.is_synced else "nothing is changed until it can"
            remedy = ": make it, or set store.manifests" if isinstance(error, FileNotFoundError) else ""
            self.fault = f"{self.directory} cannot be read: {error.strerror}{remedy} ({consequence})"
            return set(self.files)
        identity = status.st_dev, status.st_ino
        self.fault = self._disbelief(identity, not paths, now)
        if self.fault:
            return set(self.files)
        self._identity = identity
        return paths

    def _disbelief(self, identity: tuple[int, int], is_empty: bool, now: float) -> str:
        """Why what the directory says now is not believed yet, "" = it is.

        Files that are deleted leave the directory that they were in. Another one in its place that holds nothing is a
        file system that is not mounted, or a copy that has just begun.
        """
        if not is_empty or identity == self._identity or not any(_keys(state) for state in self.files.values()):
            self._empty_since = None
            return ""
        self._empty_since = now if self._empty_since is None else self._empty_since
        if now - self._empty_since >= EMPTY_AFTER:
            self._empty_since = None
            return ""
        return (
            f"{self.directory} is another directory than before, and empty: is its file system mounted? "
            f"(what it last said stays in force for {EMPTY_AFTER:g} s)"
        )

    def _is_complete(self) -> bool:
        """A start must not take a file that cannot be read for an empty one."""
        return not self.fault and all(
            state.good is not None or isinstance(state.error, NotAFile) for state in self.files.values()
        )

    def _look_at(self, path: Path, now: float, *, is_there: bool, is_touched: bool) -> None:
        before = self.files.get(path, FileState())

        def read(text: str, file: str) -> Loaded:
            return settled(before.good, spared(before.good, read_file(text, file)))

        state = refresh(before, path, read, again=is_touched) if is_there else FileState(None, Loaded())
        is_loss = state != before and bool(_keys(before) - _keys(state))
        if is_loss and not self._is_confirmed(path, state.stamp, now):
            return
        self._losing.pop(path, None)
        if is_loss and state.good is not None and state.good.is_silent:
            state = FileState(state.stamp, before.good, InputError(EMPTIED, file=str(path)))
        if is_there:
            self.files[path] = state
        else:
            self.files.pop(path, None)

    def _is_confirmed(self, path: Path, stamp: Stamp | None, now: float) -> bool:
        since, before = self._losing.get(path, (now, (0, 0, 0)))
        if before != stamp:
            self._losing[path] = (now, stamp)
            return False
        return now - since >= GRACE


def _keys(state: FileState[Loaded]) -> frozenset[Ref]:
    return frozenset(entry.ref for entry in state.good.entries) if state.good is not None else frozenset()
