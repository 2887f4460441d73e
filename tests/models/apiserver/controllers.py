"""What a control plane does beside its API server, as far as tests need: establishes CRDs, empties namespaces."""

from __future__ import annotations

import asyncio

from . import definitions
from .api import Api
from .caching import Caches
from .errors import Json
from .meta import now_text
from .resources import Resource
from .storage import Storage
from .watching import Watches

CRDS, NAMESPACES, ACCOUNTS = "apiextensions.k8s.io/customresourcedefinitions", "/namespaces", "/serviceaccounts"
DELAY = 0.02  # seconds until something that was written is acted upon: clients must wait for it, as for a real one
SHOWN = 0.05  # seconds from when a kind is served until discovery shows it


class Controllers:
    """Hears every write and acts a moment later."""

    def __init__(self, api: Api, watches: Watches, caches: Caches) -> None:
        self._api, self._watches, self._caches = api, watches, caches
        api.hooks.append(self._hear)

    @property
    def _storage(self) -> Storage:
        return self._api.storage

    def _hear(self, resource: Resource, old: Json | None, new: Json | None) -> None:
        name = (new or old or {})["metadata"]["name"]
        if resource.store_key == CRDS:
            self._later(self._define, name)
            if old and new and old["spec"] != new["spec"]:
                self._later(self._renew, name)
        if resource.store_key == NAMESPACES and new is not None:
            self._later(self._tend, name)
        if new is None and resource.namespaced and old is not None:
            self._later(self._tend, old["metadata"]["namespace"])

    def _later(self, act: object, name: str, delay: float = DELAY) -> None:
        asyncio.get_running_loop().call_later(delay, act, name)  # type: ignore[arg-type]

    # --- CRDs

    def _define(self, name: str) -> None:
        row = self._storage.get(CRDS, name)
        if row is None:
            return
        value = row.object
        if "deletionTimestamp" in value["metadata"]:
            self._undefine(name, value)
            return
        group, plural = value["spec"]["group"], value["spec"]["names"]["plural"]
        self._api.catalogue.replace_custom(group, plural, definitions.resources_of(value))
        if not (value.get("status") or {}).get("conditions"):
            self._api.catalogue.undiscovered.add((group, plural))
            self._later(self._show, name, SHOWN)
            status = definitions.established(value, now_text(self._api.now()))
            meta = {**value["metadata"], "finalizers": [*value["metadata"].get("finalizers", [])]}
            self._storage.put(CRDS, name, {**value, "metadata": meta, "status": status})

    def _show(self, name: str) -> None:
        plural, _, group = name.partition(".")
        self._api.catalogue.undiscovered.discard((group, plural))

    def _renew(self, name: str) -> None:
        """Watches of a definition that was changed end, and its cache is filled again."""
        plural, _, group = name.partition(".")
        self._caches.drop(f"{group}/{plural}")
        for watcher in list(self._watches.open):
            if (watcher.resource.group, watcher.resource.plural) == (group, plural):
                watcher.close()

    def _undefine(self, name: str, value: Json) -> None:
        """Instances go first, then watches of them end, then the definition is gone."""
        group, plural = value["spec"]["group"], value["spec"]["names"]["plural"]
        self._storage.drop_table(f"{group}/{plural}")
        self._api.catalogue.replace_custom(group, plural, [])
        self._renew(name)
        others = [item for item in value["metadata"].get("finalizers", []) if item != definitions.CLEANUP]
        if others:
            self._storage.put(CRDS, name, {**value, "metadata": {**value["metadata"], "finalizers": others}})
        else:
            self._storage.remove(CRDS, name)

    # --- namespaces

    def _tend(self, name: str) -> None:
        row = self._storage.get(NAMESPACES, name)
        if row is None:
            return
        if "deletionTimestamp" in row.object["metadata"]:
            self._empty(name, row.object)
        elif self._storage.get(ACCOUNTS, f"{name}/default") is None:
            self._api.make("v1", "ServiceAccount", name, {"metadata": {"name": "default"}})

    def _empty(self, name: str, value: Json) -> None:
        held = False
        done: set[str] = set()
        for resource in list(self._api.catalogue):
            if resource.namespaced and resource.store_key not in done:
                done.add(resource.store_key)
                held |= self._api.clear(resource, name)
        if not held and self._storage.get(NAMESPACES, name) is not None:
            self._storage.remove(NAMESPACES, name, {**value, "spec": {}})
