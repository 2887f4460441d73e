"""Watches: which events a watcher gets and in what form. Queues only, no network."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from . import errors
from .call import Call
from .errors import ApiError
from .eventforms import body_of
from .listing import envelope, in_namespace, match_of, version_of
from .resources import Resource
from .selecting import Match
from .storage import Event, Storage, encode


@dataclass(slots=True, eq=False)
class Watcher:
    """One open watch: lines that wait to be sent. `closed` ends it when the lines are out."""

    resource: Resource
    namespace: str
    match: Match | None
    after: int  # events up to this version are not for this watcher
    lines: deque[bytes] = field(default_factory=deque)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False
    since: int = 0  # where it began

    def push(self, line: bytes) -> None:
        if not self.closed:
            self.lines.append(line)
            self.ready.set()

    def close(self) -> None:
        self.closed = True
        self.ready.set()

    def hear(self, event: Event) -> None:
        if event.version <= self.after:
            return
        line = line_for(self, event)
        self.after = event.version
        if line:
            self.push(line)


def line_for(watcher: Watcher, event: Event) -> bytes:
    """An object that comes into the selection is ADDED, one that leaves it DELETED (as it was before)."""
    if watcher.namespace and not event.new.key.startswith(f"{watcher.namespace}/"):
        return b""
    change: str = event.change
    row = event.new
    if watcher.match is not None:
        before = event.old is not None and watcher.match(event.old.object)
        now = change != "DELETED" and watcher.match(event.new.object)
        if not before and not now:
            return b""
        if now:
            change = "MODIFIED" if before else "ADDED"
        elif change != "DELETED" and event.old is not None:
            return _left(watcher, event)
    return _line(change, envelope(watcher.resource) + body_of(watcher.resource, row))


def _left(watcher: Watcher, event: Event) -> bytes:
    assert event.old is not None
    value = event.old.object
    value = {**value, "metadata": {**value["metadata"], "resourceVersion": str(event.version)}}
    return _line("DELETED", encode(value))


def _line(change: str, body: bytes) -> bytes:
    return b'{"type":"' + change.encode() + b'","object":' + body + b"}\n"


def error_line(error: ApiError) -> bytes:
    return _line("ERROR", encode(error.status()))


def bookmark_line(resource: Resource, version: int, *, initial_end: bool = False) -> bytes:
    meta: dict[str, object] = {"resourceVersion": str(version), "creationTimestamp": None}
    if initial_end:
        meta["annotations"] = {"k8s.io/initial-events-end": "true"}
    return _line("BOOKMARK", encode({"kind": resource.kind, "apiVersion": resource.api_version, "metadata": meta}))


class Watches:
    """Every open watch, told by the storage. `watch_list` = whether sendInitialEvents is known."""

    def __init__(self, storage: Storage, *, watch_list: bool) -> None:
        self._storage = storage
        self._watch_list = watch_list
        self.open: set[Watcher] = set()
        storage.listeners.append(self._hear)

    def _hear(self, event: Event) -> None:
        for watcher in self.open:
            if watcher.resource.store_key == event.table:
                watcher.hear(event)

    def start(self, call: Call) -> Watcher:
        """Raises ApiError for options that cannot be; a version that is forgotten is an ERROR event instead."""
        match = match_of(call)
        if call.name:
            match = _named(call.name, match)
        version = version_of(call.query.get("resourceVersion", ""))
        initial = self._initial(call)
        watcher = Watcher(call.resource, call.namespace, match, self._storage.version)
        if initial or (initial is None and not version):
            self._present(watcher)
        else:
            self._past(watcher, self._storage.version if version is None else version)
        watcher.since = version or self._storage.version
        if initial and call.flag("allowWatchBookmarks"):
            watcher.push(bookmark_line(call.resource, self._storage.version, initial_end=True))
        if not watcher.closed:
            self.open.add(watcher)
        return watcher

    def _initial(self, call: Call) -> bool | None:
        """`sendInitialEvents`; None = not given, as to a server that does not know it."""
        if "sendInitialEvents" not in call.query:
            return None
        if not self._watch_list:
            message = "Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
            fault = ("sendInitialEvents", "FieldValueForbidden", message)
            raise errors.Invalid("meta.k8s.io", "ListOptions", "", [fault])
        if call.query.get("resourceVersionMatch") != "NotOlderThan":
            message = "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            fault = ("resourceVersionMatch", "FieldValueForbidden", message)
            raise errors.Invalid("meta.k8s.io", "ListOptions", "", [fault])
        return call.flag("sendInitialEvents")

    def _present(self, watcher: Watcher) -> None:
        for row in in_namespace(self._storage.all(watcher.resource.store_key), watcher.namespace):
            if watcher.match is None or watcher.match(row.object):
                watcher.push(_line("ADDED", envelope(watcher.resource) + body_of(watcher.resource, row)))

    def _past(self, watcher: Watcher, version: int) -> None:
        watcher.after = version
        try:
            for event in self._storage.since(watcher.resource.store_key, version):
                watcher.hear(event)
        except ApiError as error:
            watcher.push(error_line(error))
            watcher.close()

    def bookmark(self, watcher: Watcher) -> None:
        """How far its resource is; nothing if that has not changed since the watch began."""
        version = self._storage.latest(watcher.resource.store_key)
        if version > watcher.since:
            watcher.push(bookmark_line(watcher.resource, version))

    def stop(self, watcher: Watcher) -> None:
        self.open.discard(watcher)


def _named(name: str, match: Match | None) -> Match:
    return lambda item: item["metadata"]["name"] == name and (match is None or match(item))
