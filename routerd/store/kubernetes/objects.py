"""What the API server said of one resource, as objects of the model: parsed once per uid and resourceVersion. Pure.

An object that is wrong keeps what it last said, with the error beside it. A new list is compared with what was there:
only what it really lacks is gone. It makes no request.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Generic, TypeVar

from routerd.errors import InputError
from routerd.formats.compose import value_of
from routerd.formats.document import Source
from routerd.formats.kinds import Kind
from routerd.formats.objects import Loaded, read_object
from routerd.memo import Derived, Renewed, differing
from routerd.model import Refusal
from routerd.refs import Ref
from routerd.store.closed import settled
from routerd.store.kubernetes.resources import ALLOCATIONS, CONFIG_MAPS, LEASES, NODES, PART_LABEL, REPORTS, Resource
from routerd.store.mistakes import reason_of

Raw = Mapping[str, Any]
T = TypeVar("T")

NOTHING = Loaded()
RENEWED = "renewTime"  # of a Lease's spec
NOT_READY_TAINT = "routerd.io/agent-not-ready"
SUFFICIENT_IP = "SufficientIP"  # condition of a Node, as Alibaba's plugin (Terway) has it


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as it was last read. `status` and `annotations` are kept for those who write them."""

    name: str
    namespace: str
    uid: str
    version: str  # resourceVersion, opaque
    created: str
    generation: int = 0
    loaded: Loaded = NOTHING
    error: InputError | None = None
    status: Raw = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)  # of a document of ours
    taints: tuple[Raw, ...] = ()  # of a Node that has NOT_READY_TAINT, for who takes it away

    @property
    def is_mute(self) -> bool:
        """Wrong, and it never said anything good."""
        return self.error is not None and self.loaded == NOTHING


Key = tuple[str, str]  # namespace and name


class Collection:
    """The objects of one resource.

    `synced` once a list was complete; it never ends being so. A start must not take a configuration that cannot be read
    for an empty one: of kinds on each of which parts rest, every object must also have said something.
    """

    def __init__(self, resource: Resource, *, keep_status: bool = False) -> None:
        self.resource = resource
        self.keep_status = keep_status
        self.listed = False
        self.synced = False
        self.objects: dict[Key, StoredObject] = {}
        self._touched: set[Key] = set()  # that changed since somebody looked
        self._view: Renewed[Key, StoredObject] = Renewed()
        self._told: Derived[StoredObject, Key, tuple[Refusal, ...]] = Derived(self._tell)
        self._told_synced = False
        self.deleted = ""  # uid of the published allocations that were deleted last

    def read(self, raw: Raw) -> StoredObject:
        """What was read already is not parsed again."""
        meta = raw.get("metadata") or {}
        before = self.objects.get(key_of(raw))
        if before is not None and (before.uid, before.version) == (meta.get("uid"), meta.get("resourceVersion")):
            return before
        return stored_object(self.resource.kind, raw, before, keep_status=self.keep_status)

    def replace(self, listing: Iterable[StoredObject]) -> bool:
        """A complete list; True if anything is another than before."""
        objects = {(each.namespace, each.name): each for each in listing}
        is_same = len(objects) == len(self.objects) and all(
            self.objects.get(key) is each for key, each in objects.items()
        )
        for key in self.objects.keys() - objects:
            self._note_deleted(self.objects[key])
        put, gone = differing(self.objects, objects)
        self._touched.update(put, gone)
        is_first, self.objects, self.listed = not self.listed, objects, True
        self._settle()
        return is_first or not is_same

    def put(self, raw: Raw) -> bool:
        """ADDED or MODIFIED."""
        key, stored = key_of(raw), self.read(raw)
        if self.objects.get(key) is stored:
            return False
        self.objects[key] = stored
        self._touched.add(key)
        self._settle()
        return True

    def put_answer(self, raw: Raw) -> bool:
        """An object as a request of our own was answered: the watch may have said more, or that it is gone."""
        before, meta = self.objects.get(key_of(raw)), raw.get("metadata") or {}
        if before is None or before.uid != meta.get("uid"):
            return False
        versions = before.version, str(meta.get("resourceVersion") or "")
        is_older = all(each.isdecimal() for each in versions) and int(versions[1]) <= int(versions[0])
        return not is_older and self.put(raw)

    def remove(self, raw: Raw) -> bool:
        """DELETED. An object made anew under the same name is another one."""
        stored = self.objects.get(key_of(raw))
        uid = (raw.get("metadata") or {}).get("uid")
        if stored is None or (uid and stored.uid and uid != stored.uid):
            return False
        del self.objects[key_of(raw)]
        self._touched.add(key_of(raw))
        self._note_deleted(stored)
        self._settle()
        return True

    def _note_deleted(self, stored: StoredObject) -> None:
        if stored.name == ALLOCATIONS:
            self.deleted = stored.uid

    def _settle(self) -> None:
        if self.listed and not self.synced:
            is_strict = bool(self.resource.kind.rests_on_each)
            self.synced = not is_strict or not any(each.is_mute for each in self.objects.values())

    def view(self) -> Renewed[Key, StoredObject]:
        """The objects as they are now: a value of its own, and the same one again while nothing changes."""
        if self._touched:
            self._view, self._touched = Renewed(self.objects, self._view, self._touched), set()
        return self._view

    def loaded(self) -> list[tuple[tuple[str, str, str, str], Loaded]]:
        """What the objects say with an order: the older first, then by kind, namespace and name."""
        kind = self.resource.kind.name
        return [((each.created, kind, each.namespace, each.name), self._said(each)) for each in self.objects.values()]

    def _said(self, stored: StoredObject) -> Loaded:
        """One that never said anything good is there all the same. Of policies the operator's document tells."""
        kind = self.resource.kind
        if not stored.is_mute or "policies" in kind.parts:
            return stored.loaded
        return Loaded(unread=(Ref(kind.name, stored.namespace, stored.name),))

    def refusals(self) -> list[Refusal]:
        """Objects that are wrong, and what is told beside those that nobody merges."""
        if self._told_synced != self.synced:  # what is told of those that are wrong is another thing then
            self._told, self._told_synced = Derived(self._tell), self.synced
        return [*chain.from_iterable(self._told(self.view()).values())]

    def _tell(self, stored: StoredObject) -> tuple[Key, tuple[Refusal, ...]] | None:
        found = [self._refusal(stored)] if stored.error is not None else []
        found += () if self.resource.kind.placed else stored.loaded.refusals
        return ((stored.namespace, stored.name), tuple(found)) if found else None

    def _refusal(self, stored: StoredObject) -> Refusal:
        kind = self.resource.kind.name
        if not stored.is_mute:
            consequence = "what it last said stays in force"
        elif self.synced:
            consequence = "nothing of it is in force"
        else:
            consequence = "nothing that depends on its kind is done until it is mended"
        about = Ref(self.resource.kind.word or kind, stored.namespace, stored.name)
        return Refusal(about, reason_of(kind), f"{stored.error} ({consequence})")


class Models(Generic[T]):
    """What the objects of a collection say, sorted by namespace and name, kept from look to look (`routerd.memo`)."""

    def __init__(self, model: type[T], name_of: Callable[[T], str]) -> None:
        """`name_of`: by which a snapshot holds it."""
        self._model, self._name_of = model, name_of
        self._view: Mapping[Key, StoredObject] = {}
        self._keys: list[Key] = []  # sorted, of those that say something
        self._names: list[str] = []  # in that order
        self.by_name: Renewed[str, T] = Renewed()

    def look(self, view: Mapping[Key, StoredObject]) -> Mapping[str, T]:
        """`view`: of the collection. The same value again while nothing that is said changes."""
        put, gone = differing(self._view, view)
        self._view = view
        said: dict[str, T | None] = {}
        moved = False
        for key in (*gone, *put):
            model = self._read(view.get(key))
            place = bisect_left(self._keys, key)
            is_known = place < len(self._keys) and self._keys[place] == key
            if model is not None and not is_known:
                self._keys.insert(place, key)
                self._names.insert(place, self._name_of(model))
            elif model is None and is_known:
                del self._keys[place]
                said[self._names.pop(place)] = None
            moved = moved or is_known != (model is not None)
            if model is not None:
                said[self._names[place]] = model
        self._take({name: model for name, model in said.items() if self.by_name.get(name) != model}, moved)
        return self.by_name

    def _take(self, said: Mapping[str, T | None], moved: bool) -> None:
        """`said`: what is another now; None = nothing any more. `moved`: whether any came or went."""
        if not said:
            return
        models = {name: model for name, model in said.items() if model is not None}
        if moved:
            known = {**self.by_name, **models}
            self.by_name = Renewed(
                zip(self._names, map(known.__getitem__, self._names), strict=True), self.by_name, said
            )
        else:
            self.by_name = self.by_name.but(models)

    def _read(self, stored: StoredObject | None) -> T | None:
        if stored is None:
            return None
        return next((one.object for one in stored.loaded.entries if isinstance(one.object, self._model)), None)


def key_of(raw: Raw) -> Key:
    meta = raw.get("metadata") or {}
    return str(meta.get("namespace") or ""), str(meta.get("name") or "")


def stored_object(kind: Kind, raw: Raw, before: StoredObject | None, *, keep_status: bool = False) -> StoredObject:
    """`before` is what the same name said last: its good content survives a mistake, if it is the same object."""
    meta = raw.get("metadata") or {}
    namespace, name = key_of(raw)
    uid = str(meta.get("uid") or "")
    is_document = kind in (REPORTS, LEASES) or (kind is CONFIG_MAPS and _is_published(name, meta))
    loaded, error = (NOTHING, None) if is_document else _load(kind, raw, namespace, name)
    earlier = before.loaded if before is not None and before.uid == uid else NOTHING
    loaded = settled(earlier, loaded) if error is None else earlier
    return StoredObject(
        name=name,
        namespace=namespace,
        uid=uid,
        version=str(meta.get("resourceVersion") or ""),
        created=str(meta.get("creationTimestamp") or ""),
        generation=int(meta.get("generation") or 0),
        loaded=loaded,
        error=error,
        status=_status(kind, raw) if keep_status else {},
        data=_data(kind, raw) if is_document else {},
        taints=_taints(raw) if keep_status and kind is NODES else (),
    )


def _status(kind: Kind, raw: Raw) -> Raw:
    """Of a Node, whose status is its kubelet's, our condition alone."""
    status = raw.get("status") or {}
    if kind is NODES:
        return {"conditions": [each for each in status.get("conditions") or () if each.get("type") == SUFFICIENT_IP]}
    return status if kind.status_by else {}


def _taints(raw: Raw) -> tuple[Raw, ...]:
    found = tuple((raw.get("spec") or {}).get("taints") or ())
    return found if any(each.get("key") == NOT_READY_TAINT for each in found) else ()


def _data(kind: Kind, raw: Raw) -> Mapping[str, str]:
    """Of a Lease all that counts is its latest word, whatever that says."""
    if kind is LEASES:
        return {RENEWED: str((raw.get("spec") or {}).get(RENEWED) or "")}
    return raw.get("data") or {}


def _is_published(name: str, meta: Raw) -> bool:
    """Whether it is the document of the allocations, or one of its parts."""
    return ALLOCATIONS in (name, (meta.get("labels") or {}).get(PART_LABEL))


def _load(kind: Kind, raw: Raw, namespace: str, name: str) -> tuple[Loaded, InputError | None]:
    source = Source(str(Ref(kind.name, namespace, name)) if kind.placed else "", is_api=True)
    try:
        return read_object(value_of(slim(kind, raw), source)), None
    except ValueError as error:  # a mistake of ours: it costs the object, not the daemon
        return NOTHING, InputError(f"not understood: {error}", file=source.file)
    except InputError as error:
        return NOTHING, error


def slim(kind: Kind, raw: Raw) -> dict[str, Any]:
    """The parts that readers look at."""
    meta = raw.get("metadata") or {}
    names = ("name", "namespace", "uid", "labels", "annotations", "creationTimestamp")
    head = {"apiVersion": kind.api_version, "kind": kind.name}
    body: dict[str, Any] = {**head, "metadata": {name: meta[name] for name in names if name in meta}}
    for path in kind.kept:
        part, _, name = path.partition(".")
        value = raw.get(part)
        if not name or not isinstance(value, dict):
            body |= {part: value} if value is not None else {}
        elif name in value:
            body.setdefault(part, {})[name] = value[name]
    return body
