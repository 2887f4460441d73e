"""What the files of a directory say, and when a loss is believed. Reads files; no clock and no waiting of its own.

A file that is wrong keeps what it last said. An object that vanishes is believed gone only when a second look, `GRACE`
later, finds the file in the same state: editors and `cp` make a file empty or absent for a moment while they write it,
and a withdrawal for that would be an outage.
"""

from __future__ import annotations

from pathlib import Path

from routerd.formats.objects import Loaded, read_text
from routerd.store.disk import Held, Stamp, manifest_files, refresh

GRACE = 0.05  # seconds


class Manifests:
    """The files below one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: dict[Path, Held[Loaded]] = {}
        self.fault = ""  # why the directory cannot be read
        self.is_synced = False  # whether every file has once said something
        self._losing: dict[Path, tuple[float, Stamp | None]] = {}  # since when, in which state

    @property
    def is_losing(self) -> bool:
        """Whether a second look is due."""
        return bool(self._losing)

    def loaded(self) -> list[Loaded]:
        """What the files say, in the order of their paths."""
        return [held.good for _, held in sorted(self.files.items()) if held.good is not None]

    def look(self, now: float, *, without: frozenset[Path], touched: frozenset[Path]) -> bool:
        """Reads what changed, and what is `touched` in any case; True if anything is another than before.

        `now` in seconds on any clock that does not jump; `without` are files that are no manifests.
        """
        before = dict(self.files), self.fault, self.is_synced
        paths = self._paths() - without
        for path in sorted(paths | set(self.files)):
            self._look_at(path, now, is_there=path in paths, is_touched=path in touched)
        self.is_synced = self.is_synced or self._is_complete()
        return before != (self.files, self.fault, self.is_synced)

    def _paths(self) -> set[Path]:
        """The files that are there; if the directory cannot be read, those that were."""
        try:
            paths = set(manifest_files(self.directory))
        except OSError as error:
            self.fault = f"{self.directory} cannot be read: {error.strerror}"
            return set(self.files)
        self.fault = ""
        return paths

    def _is_complete(self) -> bool:
        """A start must not take a file that cannot be read for an empty one."""
        return not self.fault and all(held.good is not None for held in self.files.values())

    def _look_at(self, path: Path, now: float, *, is_there: bool, is_touched: bool) -> None:
        held = self.files.get(path, Held())
        found = refresh(held, path, read_text, again=is_touched) if is_there else Held(None, Loaded())
        if found != held and _keys(held) - _keys(found) and not self._is_confirmed(path, found.stamp, now):
            return
        self._losing.pop(path, None)
        if is_there:
            self.files[path] = found
        else:
            self.files.pop(path, None)

    def _is_confirmed(self, path: Path, state: Stamp | None, now: float) -> bool:
        since, before = self._losing.get(path, (now, (0, 0, 0)))
        if before != state:
            self._losing[path] = (now, state)
            return False
        return now - since >= GRACE


def _keys(held: Held[Loaded]) -> frozenset[str]:
    return frozenset(entry.key for entry in held.good.entries) if held.good is not None else frozenset()
