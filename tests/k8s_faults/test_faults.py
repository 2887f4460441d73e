"""The faults that only the double has: each does what its name says, and ends when it is healed."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.k8s.apiserver import ApiServer
from tests.k8s.client import Client, Json
from tests.k8s.conftest import config_map, good

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


def is_over(events: Iterator[Json]) -> bool:
    """Whether the connection broke off; a reader of lines may see that as an end."""
    try:
        return next(events, None) is None
    except (http.client.HTTPException, OSError):
        return True


def test_too_many_requests(server: ApiServer, api: Client) -> None:
    server.fault(too_many=2, retry_after=7)
    answers = [api.get(MAPS) for _ in range(3)]
    assert [answer.code for answer in answers] == [429, 429, 200]
    assert (answers[0].headers["Retry-After"], answers[0].body["details"]["retryAfterSeconds"]) == ("7", 7)


def test_internal_errors(server: ApiServer, api: Client) -> None:
    server.fault(broken=1, only=lambda call: call.verb == "list")
    assert [api.get(f"{MAPS}/a").code, api.get(MAPS).code, api.get(MAPS).code] == [200, 500, 200]


def test_every_second_write_is_a_conflict(server: ApiServer, api: Client) -> None:
    server.fault(conflict_every=2)
    codes = [api.patch(f"{MAPS}/a", {"data": {"x": str(index)}}).code for index in range(4)]
    assert codes == [200, 409, 200, 409]
    assert good(api.get(f"{MAPS}/a")).body["data"] == {"x": "2"}
    server.heal()
    assert api.patch(f"{MAPS}/a", {"data": {"x": "5"}}).code == 200


def test_latency(server: ApiServer, api: Client) -> None:
    server.fault(latency=0.1)
    began = time.monotonic()
    good(api.get(MAPS))
    assert time.monotonic() - began >= 0.1


@pytest.mark.parametrize("as_answer", [True, False])
def test_gone(server: ApiServer, api: Client, as_answer: bool) -> None:
    version = good(api.get(MAPS)).version
    server.fault(gone=1, gone_as_answer=as_answer)
    if as_answer:
        answer = api.get(MAPS, watch="true", resourceVersion=version)
        assert (answer.code, answer.reason) == (410, "Expired")
    else:
        with api.watch(MAPS, resourceVersion=version) as events:
            assert [event["object"]["code"] for event in events] == [410]
    with api.watch(MAPS, resourceVersion=version, timeoutSeconds=1) as events:
        assert list(events) == []


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


def test_dropped_watches_break_off(server: ApiServer, api: Client) -> None:
    with api.watch(MAPS, resourceVersion=good(api.get(MAPS)).version) as events:
        server.drop_watches()
        assert is_over(events)
    good(api.get(MAPS))


def test_muted_watches_say_nothing(server: ApiServer, api: Client) -> None:
    version = good(api.get(MAPS)).version
    heard: list[object] = []
    with api.watch(MAPS, resourceVersion=version, timeoutSeconds=1) as events:
        server.mute_watches()
        good(api.patch(f"{MAPS}/a", {"data": {"x": "2"}}))
        listener = threading.Thread(target=lambda: heard.extend([each for each in [next(events, None)] if each]))
        listener.start()
        with api.watch(MAPS, resourceVersion=version) as others:
            assert next(others)["type"] == "MODIFIED"  # a new watch is not mute
        listener.join(1.5)  # longer than its timeoutSeconds
        assert listener.is_alive()
        server.drop_watches()
        listener.join(5)
    assert heard == []


def test_silence_and_its_end(server: ApiServer, api: Client) -> None:
    server.fault(silent=True)
    with socket.create_connection(server.address, timeout=0.3) as connection:
        connection.sendall(b"GET /version HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer admin\r\n\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        server.heal()
        connection.settimeout(5)
        assert connection.recv(12) == b"HTTP/1.1 200"


def test_a_watch_that_was_silent_says_it_all_later(server: ApiServer, api: Client) -> None:
    with api.watch(MAPS, resourceVersion=good(api.get(MAPS)).version) as events:
        server.fault(silent=True)
        server.load([{**config_map("b"), "metadata": {"name": "b", "namespace": "default"}}])
        healer = threading.Timer(0.3, server.heal)
        healer.start()
        began = time.monotonic()
        assert next(events)["object"]["metadata"]["name"] == "b"
        assert time.monotonic() - began > 0.2
        healer.join()


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
    """Bounds are generous: the double must not be what a benchmark measures."""
    meta = {"namespace": "default"}
    spec = {"nodeName": "n", "containers": [{"name": "a", "image": "example.com/a"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": spec, "status": {"phase": "Running"}}
    began = time.monotonic()
    server.load({**pod, "metadata": {**meta, "name": f"p{index}"}} for index in range(5000))
    loaded = time.monotonic()
    assert len(good(api.get("/api/v1/pods")).body["items"]) == 5000
    assert loaded - began < 15
    assert time.monotonic() - loaded < 3
