"""The embedded store: a directory of YAML manifests, watched, and `allocations.yaml` beside them."""

from __future__ import annotations

import asyncio
import glob
import logging
import stat
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from watchfiles import awatch
from watchfiles._rust_notify import WatchfilesRustInternalError

from routerd.formats.published.allocations import parse_node_report, write_node_report
from routerd.log import event
from routerd.model import Allocations, Heartbeat, IPNetwork, NodeReport, Refusal, Snapshot
from routerd.refs import FILE, Ref
from routerd.store.embedded.disk import FileState, refresh, stamp, write_atomically
from routerd.store.embedded.manifests import GRACE, Manifests
from routerd.store.embedded.published import PublishedFile
from routerd.store.merge import Merger
from routerd.store.mistakes import refusal_of

DEBOUNCE = 20  # milliseconds that changes are gathered at most
STEP = 5  # milliseconds without a change after which they are passed on
LOOK_AGAIN = 1000  # milliseconds after which the files are compared anyway: not every file system notifies

T = TypeVar("T")
LOGGER = logging.getLogger("routerd.store")
# A directory to watch, its inode (a directory made anew is another), and whether with what is below it.
Watch = tuple[Path, int, bool]


def _nothing() -> None:
    """No one listens."""


class FileStore:
    """See `routerd.store.interface.Store`. Files are read in a thread; the callback runs in the event loop."""

    def __init__(
        self,
        manifests: Path,
        allocations: Path,
        *,
        node_report: Path | None = None,
        node_reports: Iterable[str] = (),
        service_cidrs: tuple[IPNetwork, ...] = (),
        on_change: Callable[[], None] = _nothing,
        node: str = "",
    ) -> None:
        """`node`: whose agent reads, and of what is published only what it needs; "" = everything."""
        self._manifests = Manifests(manifests.absolute())
        self._published = PublishedFile(allocations.absolute(), node=node)
        self._report_file = node_report.absolute() if node_report else None
        self._report_patterns = tuple(node_reports)
        self._service_cidrs = service_cidrs
        self._on_change = on_change
        self._reports: dict[Path, FileState[NodeReport]] = {}
        self._told: FileState[NodeReport] | None = None  # what we have written; None = to be read
        self._merger = Merger()
        self._seen: frozenset[str] = frozenset()  # keys of policies
        self._own = threading.Lock()  # our own files: written in the loop, read in the thread
        self._looking = asyncio.Lock()
        self._snapshot = Snapshot(service_cidrs=service_cidrs)
        self._merged_from: tuple[FileState[Allocations], Mapping[Path, object]] = (FileState(), {})

    # --- what others call ---

    def snapshot(self) -> Snapshot:
        return self._snapshot

    def status(self) -> None:
        """Files are there, or a refusal says that they are not."""

    def node_reports(self) -> Mapping[str, NodeReport]:
        return {state.good.node: state.good for _, state in sorted(self._reports.items()) if state.good is not None}

    def write_allocations(self, allocations: Allocations) -> None:
        """Atomic and durable. Raises StoreError."""
        with self._own:
            if not self._published.write(allocations):
                return
        self._publish(self._snapshot)

    def write_node_report(self, report: NodeReport) -> None:
        """Atomic and durable. Raises StoreError."""
        if self._report_file is not None and self._write_report(self._report_file, report):
            self._on_change()

    def beat(self) -> None:
        """Atomic and durable. Raises StoreError. Nothing before the first report."""
        path = self._report_file
        report = self._own_report(path).good if path else None
        if path and report is not None and report.heartbeat is not None:
            with self._own:
                count = int(report.heartbeat.beat) if report.heartbeat.beat.isdecimal() else 0
                self._put(path, replace(report, heartbeat=replace(report.heartbeat, beat=str(count + 1))))

    def _write_report(self, path: Path, report: NodeReport) -> bool:
        """Whether it says something else. The file is the node's alone, so its beats go on where they were."""
        with self._own:
            state = self._own_report(path)
            said = state.good.heartbeat if state.good else None
            seconds = (report.heartbeat or said or Heartbeat()).seconds
            report = replace(report, heartbeat=Heartbeat(seconds, said.beat if said else ""))
            if state.good == report and state.error is None and state.stamp == stamp(path):
                return False
            self._put(path, report)
        return True

    def _own_report(self, path: Path) -> FileState[NodeReport]:
        if self._told is None:
            self._told = refresh(FileState(), path, parse_node_report)
        return self._told

    def _put(self, path: Path, report: NodeReport) -> None:
        write_atomically(path, write_node_report(report))
        self._told = FileState(stamp(path), report)
        if path in self._reports:
            self._reports = {**self._reports, path: self._told}

    def report_health(self, health: Callable[[], Mapping[str, Any]]) -> None:
        """A file has no place for it: `routerd status` tells."""

    def report_pods(self, told: Callable[[], Iterable[Refusal]]) -> None:
        """The same."""

    def report_services(self, told: Callable[[], Mapping[str, Sequence[str]] | None]) -> None:
        """The same."""

    def load(self) -> Snapshot:
        """Reads everything now, without waiting; `run` does so by itself."""
        self._look(frozenset())
        self._snapshot = self._merged()
        return self._snapshot

    async def run(self) -> None:
        """Watches until it is cancelled; without a working watch it looks every second."""
        logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it tells every change at INFO
        before = ""
        while True:
            await self._look_and_publish(frozenset())
            fault = await self._watch_all(self._watches())
            if fault:
                if fault != before:
                    event(LOGGER, logging.WARNING, "watch-failed", reason=fault)
                await asyncio.sleep(LOOK_AGAIN / 1000)
            before = fault

    # --- watching ---

    async def _watch_all(self, watches: frozenset[Watch]) -> str:
        """Until something else is to be watched, or the fault that ended it."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    self._watch_some([path for path, _, deep in watches if deep is is_deep], watches, stop)
                )
                for is_deep in (True, False)
            ]
        return next((task.result() for task in tasks if task.result()), "")

    async def _watch_some(self, directories: list[Path], watches: frozenset[Watch], stop: asyncio.Event) -> str:
        """Until `stop`, which it sets when it ends; the fault if one ended it."""
        is_deep = self._manifests.directory in directories
        try:
            await self._watch(directories, watches, stop, is_deep=is_deep)
        except (OSError, WatchfilesRustInternalError) as error:
            return str(error)  # a directory vanished at that moment, or the kernel's limit of watches is reached
        finally:
            stop.set()
        return ""

    def _watches(self) -> frozenset[Watch]:
        """What there is to watch now."""
        patterns = [Path(pattern) for pattern in self._report_patterns]
        published = self._published
        beside = {
            published.path.parent,
            published.directory,
            *(path.parent for path in [*patterns, *self._report_files()]),
        }
        root = self._manifests.directory
        directories = {(root, True)} | {(path.absolute(), False) for path in beside if not path.is_relative_to(root)}
        with_inodes = ((path, _inode(path), is_deep) for path, is_deep in directories)
        return frozenset((path, inode, is_deep) for path, inode, is_deep in with_inodes if inode is not None)

    def _report_files(self) -> list[Path]:
        # Path.glob takes no absolute patterns
        files = {Path(name).absolute() for pattern in self._report_patterns for name in glob.iglob(pattern)}  # noqa: PTH207
        return sorted(files)

    async def _watch(
        self, directories: list[Path], watches: frozenset[Watch], stop: asyncio.Event, *, is_deep: bool
    ) -> None:
        """Until something else is to be watched. Without directories it looks from time to time."""
        if not directories:
            await self._poll(watches, stop)
            return
        async for changes in awatch(
            *directories,
            watch_filter=None,
            debounce=DEBOUNCE,
            step=STEP,
            rust_timeout=LOOK_AGAIN,
            yield_on_timeout=True,
            recursive=is_deep,
            ignore_permission_denied=True,
            stop_event=stop,
        ):
            await self._look_and_publish(frozenset(Path(path) for _, path in changes))
            if self._watches() != watches:
                stop.set()

    async def _poll(self, watches: frozenset[Watch], stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await asyncio.wait_for(stop.wait(), LOOK_AGAIN / 1000)
            except TimeoutError:
                if not watches:
                    await self._look_and_publish(frozenset())
                if self._watches() != watches:
                    stop.set()

    async def _look_and_publish(self, touched: frozenset[Path]) -> None:
        """Looks again as long as a loss is to be confirmed."""
        async with self._looking:
            await self._look_once(touched)
            while self._manifests.is_losing:
                await asyncio.sleep(GRACE + 0.005)
                await self._look_once(frozenset())

    async def _look_once(self, touched: frozenset[Path]) -> None:
        reports = self.node_reports()
        snapshot = await asyncio.to_thread(self._look_and_merge, touched)
        if not self._publish(snapshot) and self.node_reports() != reports:
            self._on_change()

    def _publish(self, snapshot: Snapshot) -> bool:
        """Whether it is another one. The allocations may have been written since it was merged."""
        if self._manifests.is_synced:
            snapshot = replace(snapshot, allocations=self._published.state.good, unread=self._published.unread)
        if snapshot is self._snapshot or snapshot == self._snapshot:
            return False
        self._snapshot = snapshot
        self._on_change()
        return True

    # --- reading ---

    def _look_and_merge(self, touched: frozenset[Path]) -> Snapshot:
        """The same snapshot if no file changed."""
        return self._merged() if self._look(touched) else self._snapshot

    def _look(self, touched: frozenset[Path]) -> bool:
        """Reads what changed; True if anything is another than what was merged last, also by our own writing."""
        with self._own:
            report_files = self._report_files()
            self._published.look(touched)
            self._reports = {
                path: refresh(self._reports.get(path, FileState()), path, parse_node_report, again=path in touched)
                for path in report_files
            }
            is_changed = self._merged_from != (self._published.state, self._report_errors())
        own = frozenset({self._published.path, *report_files})
        return self._manifests.look(time.monotonic(), without=own, touched=touched) or is_changed

    def _report_errors(self) -> Mapping[Path, object]:
        """What of the reports a snapshot shows: beats come all the time, and a large store takes long to merge."""
        return {path: state.error for path, state in self._reports.items()}

    def _merged(self) -> Snapshot:
        self._merged_from = self._published.state, self._report_errors()
        refusals = tuple(self._faults())
        if not self._manifests.is_synced:
            return Snapshot(refusals=refusals, service_cidrs=self._service_cidrs)
        merged = self._merger.merge(
            self._manifests.loaded(),
            allocations=self._published.state.good,
            refusals=refusals,
            service_cidrs=self._service_cidrs,
            seen=self._seen,
        )
        self._seen |= (merged.policies or {}).keys()
        unsynced: dict[str, Any] = dict.fromkeys(self._manifests.unsynced)
        return replace(merged, unread=self._published.unread, **unsynced)

    def _faults(self) -> list[Refusal]:
        """Files that are wrong, and what follows from it."""
        manifests = self._manifests
        refusals = [_fault(path, state, manifests.is_synced) for path, state in sorted(manifests.files.items())]
        refusals += [
            refusal_of(mistake, path.name, manifests.unsynced)
            for path, state in sorted(manifests.files.items())
            for mistake in (state.good.mistakes if state.good else ())
        ]
        refusals.append(_fault(self._published.path, self._published.state, True))
        refusals += [_fault(path, state, True) for path, state in sorted(self._reports.items())]
        if manifests.fault:
            refusals.append(Refusal(Ref(FILE, name=str(manifests.directory)), "Unreadable", manifests.fault))
        return [refusal for refusal in refusals if refusal is not None]


def _inode(directory: Path) -> int | None:
    """None if it is no directory, or cannot be looked at: one above it may not be searched, its NFS handle is stale."""
    try:
        status = directory.stat()
    except OSError:
        return None
    return status.st_ino if stat.S_ISDIR(status.st_mode) else None


def _fault(path: Path, state: FileState[T], is_synced: bool) -> Refusal | None:
    if state.error is None:
        return None
    if state.good is not None:
        consequence = "what the file last said stays in force"
    elif is_synced:
        consequence = "nothing of the file is in force"
    else:
        consequence = "nothing at all is done until it is mended"
    return Refusal(Ref(FILE, name=path.name), "InvalidFile", f"{state.error} ({consequence})")
