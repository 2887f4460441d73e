"""What only the double has: handles, a port that can be closed, old versions, and enough speed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.k8s.client import Client, Json, config_map, good, is_over
from tests.k8s.deployment import established
from tests.k8s.target import until
from tests.models.apiserver import ApiServer

MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer(bookmarks=0.1) as running:
        yield running


@pytest.fixture
def api(server: ApiServer) -> Client:
    client = Client(Path(server.kubeconfig))
    good(client.create(MAPS, config_map("a", x="1")))
    return client


@pytest.mark.parametrize(
    "query, code", [({}, 429), ({"watch": "true"}, 429), ({"limit": 9, "labelSelector": "a"}, 429), ({"limit": 9}, 200)]
)
def test_the_cache_of_a_new_kind_is_not_filled_when_it_is_asked_first(api: Client, query: Json, code: int) -> None:
    with established(api, "EgressPolicy") as path:
        assert api.get(path, **query).code == code


def test_a_young_server_has_forgotten_nothing(api: Client) -> None:
    with api.watch(MAPS, resourceVersion=1) as events:
        assert next(events)["object"]["metadata"]["name"] == "a"


def test_compaction_ends_pages_and_old_watches(server: ApiServer, api: Client) -> None:
    good(api.create(MAPS, config_map("b")))
    first = good(api.get(MAPS, limit=1))
    good(api.create(MAPS, config_map("c")))
    server.compact()
    answer = api.get(MAPS, limit=1, **{"continue": first.body["metadata"]["continue"]})
    assert (answer.code, answer.reason) == (410, "Expired")
    rest = good(api.get(MAPS, **{"continue": answer.body["metadata"]["continue"]})).body["items"]
    assert [item["metadata"]["name"] for item in rest] == ["b", "c"]  # what is there now, behind the last key
    with api.watch(MAPS, resourceVersion=first.version) as events:
        assert next(events)["object"]["reason"] == "Expired"


def test_refused_connections_and_the_same_port_again(server: ApiServer, api: Client) -> None:
    with api.watch(MAPS, resourceVersion=good(api.get(MAPS)).version) as events:
        server.refuse()
        with pytest.raises(OSError):
            api.get(MAPS)
        assert is_over(events)
    server.accept()
    good(api.get(MAPS))


def test_tls(tmp_path: Path) -> None:
    with ApiServer(tls=True) as server:
        assert server.url.startswith("https://")
        good(Client(Path(server.kubeconfig)).get(MAPS))


def test_an_old_server_knows_no_initial_events() -> None:
    query = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    with ApiServer(watch_list=False) as server:
        assert Client(Path(server.kubeconfig)).get(MAPS, watch="true", **query).code == 422
    with ApiServer() as server:
        api = Client(Path(server.kubeconfig))
        good(api.create(MAPS, config_map("a")))
        with api.watch(MAPS, **query) as events:
            added, end = next(events), next(events)
        assert (added["type"], end["type"]) == ("ADDED", "BOOKMARK")
        assert end["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


def test_lists_of_a_large_cluster_are_quick(server: ApiServer, api: Client) -> None:
    """Of processor time; bounds are generous: the double must not be what a benchmark measures."""
    meta = {"namespace": "default"}
    spec = {"nodeName": "n", "containers": [{"name": "a", "image": "example.com/a"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": spec, "status": {"phase": "Running"}}
    began = time.process_time()
    server.load({**pod, "metadata": {**meta, "name": f"p{index}"}} for index in range(5000))
    loaded = time.process_time()
    assert len(good(api.get("/api/v1/pods")).body["items"]) == 5000
    assert loaded - began < 15
    assert time.process_time() - loaded < 3


def test_a_namespace_that_goes_is_emptied_by_its_controller(server: ApiServer, api: Client) -> None:
    good(api.create("/api/v1/namespaces", {"metadata": {"name": "a"}}))
    body = config_map("a")
    body["metadata"]["finalizers"] = ["example.com/hold"]
    good(api.create("/api/v1/namespaces/a/configmaps", body))
    good(api.create("/api/v1/namespaces/a/configmaps", config_map("b")))
    good(api.delete("/api/v1/namespaces/a"))
    until(lambda: api.get("/api/v1/namespaces/a/configmaps/b").code == 404)
    assert api.get("/api/v1/namespaces/a").code == 200
    good(api.patch("/api/v1/namespaces/a/configmaps/a", {"metadata": {"finalizers": None}}))
    until(lambda: api.get("/api/v1/namespaces/a").code == 404)
