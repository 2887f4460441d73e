"""List and watch of one resource, for ever: what was read stays in force while the API server is away.

A watch is resumed at the last resourceVersion. When that is too old (410 Gone, as an answer or inside the stream) or
refused, when a watch failed `TRIES` times in a row, or when the server's own version is older after `Timings.resume`
without contact, the resource is listed again and compared; what the new list lacks is gone, nothing else is. A watch
that says nothing, not even a bookmark, for `Timings.silence` is taken for dead. What the server refuses is tried again
after pauses of the resource's own; that it cannot be reached is a matter of the whole client (`contact.py`). It
changes nothing on the server.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from routerd.log import event
from routerd.model import Refusal
from routerd.refs import STORE, Ref
from routerd.store.interface import ResourceStatus
from routerd.store.kubernetes.client import ApiError, Client, Json
from routerd.store.kubernetes.contact import Pace
from routerd.store.kubernetes.objects import Collection, StoredObject

LOGGER = logging.getLogger("routerd.store")
PAGE = 500  # objects per page of a list: bounds the memory that a list takes here and there
TRIES = 3  # attempts to resume a watch without one event, after which the resource is listed again


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds."""

    silence: float = 90.0
    """Without an event or bookmark; the API server sends a bookmark about every minute."""
    watch: float = 300.0
    """Life of a watch, up to twice as long at random: the servers of a cluster share the load again after a restart."""
    first_pause: float = 0.5
    """After the first failure, doubled each time, with jitter."""
    last_pause: float = 30.0
    """Longest pause between attempts, after answers that refuse."""
    away: float = 5.0
    """Longest pause between attempts of a client while the API server cannot be reached."""
    spread: float = 2.0
    """Within which a client's resources are read again once the API server is back."""
    resume: float = 60.0
    """Without contact, after which the server is asked for its version: it may be back from a backup, with versions
    that begin earlier, and a watch at ours would wait for ever."""
    absent: float = 30.0
    """Between looks for a kind whose CRD is absent."""
    unserved: float = 300.0
    """The same for one that is only written, as status of another maker's: 1,000 nodes look three times a second."""
    confirm: float = 5.0
    """After which a second look is made when a kind that had objects seems to be absent, or is refused."""
    stale: float = 10.0
    """Without contact, after which status says that the state may be stale."""
    heartbeat: float = 300.0
    """Between reports of a node that has nothing new to report, up to a quarter longer at random."""
    gather: float = 0.005
    """Changes within this time are one change."""

    @property
    def pace(self) -> Pace:
        return Pace(self.first_pause, min(self.away, self.last_pause), min(self.spread, self.last_pause))


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a resource cannot be read now."""

    error: ApiError
    verb: str  # "list" or "watch"
    since: float

    @property
    def is_denied(self) -> bool:
        """To this client: who it is, or what it may do."""
        return self.error.status in (401, 403)


@dataclass(slots=True)
class Reflector:
    """Keeps `collection` as the API server says. `on_change` is called in the loop."""

    client: Client
    collection: Collection
    on_change: Callable[[], None]
    timings: Timings = field(default_factory=Timings)
    clock: Callable[[], float] = time.monotonic
    fault: Fault | None = None
    lists: int = 0  # for tests and metrics
    watches: int = 0  # that were opened
    _version: str = ""  # "" = list first
    _is_doubtful: bool = False  # whether the server still knows `_version`
    _failures: int = 0  # since the last event or outage
    _absent: float | None = None  # since when the kind seems to be absent: nothing but 404 was heard since
    _shown_fault: tuple[int, str] | None = None  # HTTP status and reason of the fault that status shows
    _alarm: asyncio.TimerHandle | None = None  # tells of a fault that lasts, also between attempts

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await self._read_once()
        finally:
            self._silence()

    async def _read_once(self) -> None:
        """One list, or a watch until it ends, with the pause that a failure calls for."""
        verb = "watch" if self._version and not self._is_doubtful else "list"
        try:
            if self._version and self._is_doubtful:
                await self._compare()
            else:
                await (self._watch() if self._version else self._list())
        except ApiError as error:
            await self.client.rest(error, self._after(error, verb), self.timings.pace)
            if error.is_unreachable and self._lasts(self.timings.resume):
                self._is_doubtful = True

    # --- list

    async def _compare(self) -> None:
        """One object instead of all, for the version of the list: after a long outage every node asks."""
        page = await self.client.get(self.collection.resource.path, **self._selection(), limit="1")
        if _is_before(str((page.get("metadata") or {}).get("resourceVersion") or ""), self._version):
            self._version = ""
        self._is_doubtful = False

    def _selection(self) -> dict[str, str]:
        resource = self.collection.resource
        selectors = {"fieldSelector": resource.field_selector, "labelSelector": resource.label_selector}
        return {name: selector for name, selector in selectors.items() if selector}

    async def _list(self) -> None:
        resource, objects = self.collection.resource, []
        query = {"limit": str(PAGE), **self._selection()}
        while True:
            page = await self.client.get(resource.path, **query)
            objects += self._read(page)
            meta = page.get("metadata") or {}
            if not meta.get("continue"):
                break
            query["continue"] = str(meta["continue"])
        self.lists += 1
        self._absent, self._is_doubtful = None, False
        self._version = str(meta.get("resourceVersion") or "")
        if not self._version:
            raise ApiError(0, "InvalidAnswer", "a list without resourceVersion")
        is_changed = self.collection.replace(objects)
        if self.fault is None or not (self.fault.is_denied and self.fault.verb == "watch"):
            self._well(is_changed)
        elif is_changed:
            self.on_change()

    def _read(self, page: Json) -> list[StoredObject]:
        return [self.collection.read(raw) for raw in page.get("items") or ()]

    # --- watch

    async def _watch(self) -> None:
        """Until the server ends it. Raises ApiError."""
        resource, began = self.collection.resource, self.clock()
        query = {"resourceVersion": self._version, "allowWatchBookmarks": "true"}
        query["timeoutSeconds"] = str(max(1, round(self.timings.watch * random.uniform(1, 2))))
        query |= self._selection()
        heard = is_open = False
        try:
            async with self.client.watch(resource.path, silence=self.timings.silence, **query) as events:
                is_open = True
                self.watches += 1
                self._well(False)
                heard = await self._hear(events)
        except ApiError as error:
            # Silence is no failure: it may be that nothing happened and the server sends no bookmarks.
            if error.status or not is_open or self.clock() - began < self.timings.silence:
                raise
            self._failures = 0
        if not heard and self.clock() - began < self.timings.first_pause:
            raise ApiError(0, "Ended", "the watch ended at once")

    async def _hear(self, events: AsyncIterator[Json]) -> bool:
        """Whether there was any event."""
        heard = False
        async for each in events:
            self._take(str(each.get("type")), each.get("object") or {})
            heard, self._failures = True, 0
        return heard

    def _take(self, change: str, raw: Json) -> None:
        if change == "ERROR":
            raise ApiError(int(raw.get("code") or 500), str(raw.get("reason") or ""), str(raw.get("message") or ""))
        version = str((raw.get("metadata") or {}).get("resourceVersion") or "")
        if change in ("ADDED", "MODIFIED"):
            is_changed = self.collection.put(raw)
        else:
            is_changed = change == "DELETED" and self.collection.remove(raw)
        self._version = version or self._version
        if is_changed:
            self.on_change()

    # --- how it goes

    def _well(self, is_changed: bool) -> None:
        if self.fault is not None:
            if self._shown_fault is not None:
                event(LOGGER, logging.INFO, "read-again", resource=self.collection.resource.label)
                is_changed = True
            self.fault = self._shown_fault = None
            self._silence()
        if is_changed:
            self.on_change()

    def _after(self, error: ApiError, verb: str) -> float:
        """Takes note of a failure; seconds until the next attempt, unless the server is away."""
        seems_absent = error.status == 404 and self.collection.resource.kind.custom and verb == "list"
        if not seems_absent:
            self._absent = None
        if error.is_unreachable and self.client.contact.is_lost:
            return self._is_away(error, verb)
        self._failures += 1
        if seems_absent:
            self._version = ""
            return self._is_absent()
        if verb == "watch" and (error.is_gone or _is_refused(error) or self._failures >= TRIES):
            self._version = ""
        if error.is_gone and self._failures == 1:
            return 0.0  # ordinary after a long silence
        self._fail(error, verb)
        pause: float = min(self.timings.last_pause, self.timings.first_pause * 2 ** min(self._failures - 1, 16))
        return max(pause * random.uniform(0.5, 1.0), error.retry_after)

    def _is_away(self, error: ApiError, verb: str) -> float:
        """An outage is no failure of the resource's: what was seen last is where the watch goes on."""
        self._failures = 0
        self._fail(error, verb)
        return self.timings.first_pause

    def _fail(self, error: ApiError, verb: str) -> None:
        before, now = self.fault, self.clock()
        self.fault = Fault(error, verb, before.since if before else now)
        if before is None:
            self._alarm = asyncio.get_running_loop().call_later(self.timings.stale, self._tell)
        if self._is_worth_telling(self.fault):
            self._tell()

    def _tell(self) -> None:
        fault = self.fault
        if fault is None or self._shown_fault == (fault.error.status, fault.error.reason):
            return
        self._shown_fault = (fault.error.status, fault.error.reason)
        about = {"resource": self.collection.resource.label, "verb": fault.verb, "reason": str(fault.error)}
        event(LOGGER, logging.WARNING, "read-failed", **about)
        self.on_change()

    def _silence(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _is_worth_telling(self, fault: Fault) -> bool:
        """What resolves by itself within seconds is not worth telling: an API server that has just started refuses
        with 401 and 403 until it has read accounts and roles.
        """
        denied = fault.is_denied and self._lasts(self.timings.confirm)
        return denied or not self.collection.listed or self._lasts(self.timings.stale)

    def _lasts(self, seconds: float) -> bool:
        return self.fault is not None and self.clock() - self.fault.since >= seconds

    def _is_absent(self) -> float:
        """A kind without CRD has no objects; one that had some is believed gone when that lasts: an API server
        that starts answers 404 until it has read the CRDs.
        """
        now = self.clock()
        self._absent = now if self._absent is None else self._absent
        missing = self._absent + self.timings.confirm - now
        if self.collection.objects and missing > 0:
            return max(missing, self.timings.first_pause)
        self._failures = 0
        self._well(self.collection.replace(()))
        return self.timings.absent * random.uniform(0.75, 1.25)

    @property
    def absent(self) -> bool:
        """There seems to be no such kind."""
        return self._absent is not None

    def status(self) -> ResourceStatus:
        stale = self.clock() - self.fault.since if self.fault is not None else 0.0
        return ResourceStatus(
            self.collection.resource.label, self.collection.synced, max(stale, 0.0), self.lists, self.watches
        )

    def refusal(self) -> Refusal | None:
        """What status says of it."""
        if self.fault is None or self._shown_fault is None:
            return None
        return refusal_of(self.collection, self.fault)


def _is_before(there: str, ours: str) -> bool:
    """Whether the server's version is older, or cannot be compared. Versions of one server are increasing numbers."""
    are_numbers = all(each.isascii() and each.isdigit() for each in (there, ours))
    return not are_numbers or int(there) < int(ours)


def _is_refused(error: ApiError) -> bool:
    """An answer that will be the same for the same resourceVersion."""
    return 400 <= error.status < 500 and error.status not in (401, 403, 429)


def refusal_of(collection: Collection, fault: Fault) -> Refusal:
    resource, error = collection.resource, fault.error
    consequence = "what was last read stays in force" if collection.listed else "nothing that depends on it is done"
    if error.status == 403:
        group = resource.kind.group or "core"
        message = f'verb "{fault.verb}" on {resource.kind.plural} (group {group}) is missing in RBAC: {error.message}'
        return Refusal(Ref(STORE, name=resource.label), "Forbidden", f"{message} ({consequence})")
    reason = "Unauthorized" if error.status == 401 else "Stale" if collection.listed else "Unreadable"
    return Refusal(Ref(STORE, name=resource.label), reason, f"{resource.label} cannot be read: {error} ({consequence})")
