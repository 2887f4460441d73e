"""What a collection says is kept from look to look, sorted, and is what a first look finds."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from routerd.formats.kinds import BY_NAME
from routerd.model import Service
from routerd.store.kubernetes.objects import Collection, Models
from routerd.store.kubernetes.resources import Resource

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["put", "remove", "break", "list"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["x", "y", "z"]),
    ),
    max_size=10,
)


def raw(namespace: str, name: str, version: int, kind: str) -> dict[str, Any]:
    meta = {"namespace": namespace, "name": name, "uid": f"{namespace}{name}", "resourceVersion": str(version)}
    return {"metadata": meta, "spec": {"type": "LoadBalancer" if kind == "put" else "nonsense"}}


def models() -> Models[Service]:
    return Models(Service, attrgetter("key"))


@given(EVENTS)
def test_models(events: list[tuple[str, str, str]]) -> None:
    collection, kept = Collection(Resource(BY_NAME["", "Service"])), models()
    last: tuple[Any, Any] = {}, {}
    for version, (what, namespace, name) in enumerate(events):
        found = raw(namespace, name, version, what)
        if what == "list":
            collection.replace(each for each in collection.objects.values() if each.name != name)
        else:
            collection.remove(found) if what == "remove" else collection.put(found)
        before, snapshot = last
        view = collection.view()
        assert view == collection.objects and collection.view() is view
        assert before == snapshot  # what was given out stays as it was
        last = view, dict(view)
        now = kept.look(view)
        assert list(now.items()) == list(models().look(dict(view)).items())
        assert list(now) == sorted(now)
        assert kept.look(view) is now
        told = [each for each in collection.objects.values() if each.error is not None]
        assert {each.object.name for each in collection.refusals()} == {each.name for each in told}
