"""The faults that the proxy makes: each does what its name says, and ends when it is healed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.k8s.client import Client, config_map, good, is_over
from tests.k8s.proxy import Proxy, parsed


@pytest.fixture
def proxy(api: Client) -> Iterator[Proxy]:
    with Proxy(api) as running:
        yield running


@pytest.fixture
def there(proxy: Proxy) -> Client:
    """An administrator on the other side of the proxy."""
    return Client(Path(proxy.kubeconfig))


@pytest.fixture
def maps(api: Client, place: str) -> str:
    """A collection with ConfigMap `a`."""
    path = f"/api/v1/namespaces/{place}/configmaps"
    good(api.create(path, config_map("a", x="1")))
    return path


def test_it_passes_on_what_is_said(api: Client, there: Client, maps: str) -> None:
    assert good(there.get(f"{maps}/a")).body == good(api.get(f"{maps}/a")).body
    good(there.patch(f"{maps}/a", {"data": {"y": "é & ?"}}))
    assert good(api.get(f"{maps}/a")).body["data"] == {"x": "1", "y": "é & ?"}
    selected = good(there.get(maps, fieldSelector="metadata.name=a", labelSelector="!b")).body["items"]
    assert [each["metadata"]["name"] for each in selected] == ["a"]
    with there.watch(maps, resourceVersion=good(there.get(maps)).version) as events:
        good(there.delete(f"{maps}/a"))
        assert next(events)["type"] == "DELETED"
    answer = there.get(f"{maps}/a")
    assert (answer.code, answer.reason) == (404, "NotFound")


def test_others_are_not_the_administrator(there: Client, maps: str) -> None:
    assert there.as_bearer("nonsense").get(maps).code == 401


def test_it_remembers_who_asked_for_what(proxy: Proxy, there: Client, maps: str, place: str) -> None:
    good(there.get(maps, fieldSelector="metadata.name=a"))
    there.patch(f"/api/v1/namespaces/{place}/services/none/status", {})
    there.get("/version")
    seen = [(each.user, each.verb, each.resource, each.namespace, each.name, each.code) for each in proxy.audit]
    assert seen == [("", "list", "configmaps", place, "a", 200), ("", "patch", "services/status", place, "none", 404)]


@pytest.mark.parametrize(
    "request_line, found",
    [
        ("GET /api/v1/nodes", ("list", "", "nodes", "", "", "")),
        ("GET /api/v1/nodes/n", ("get", "", "nodes", "", "", "n")),
        ("GET /api/v1/namespaces", ("list", "", "namespaces", "", "", "")),
        ("GET /api/v1/namespaces/a", ("get", "", "namespaces", "", "", "a")),
        ("PUT /api/v1/namespaces/a/finalize", ("update", "", "namespaces", "finalize", "", "a")),
        ("DELETE /api/v1/namespaces/a/pods", ("deletecollection", "", "pods", "", "a", "")),
        ("PATCH /apis/g/v1/namespaces/a/things/b/status", ("patch", "g", "things", "status", "a", "b")),
        ("POST /apis/g/v1/things", ("create", "g", "things", "", "", "")),
        ("GET /apis/g/v1", ("get", "", "", "", "", "")),
    ],
)
def test_paths(request_line: str, found: tuple[str, ...]) -> None:
    method, path = request_line.split(" ")
    asked = parsed(method, path, {})
    assert (asked.verb, asked.group, asked.resource, asked.subresource, asked.namespace, asked.name) == found


# --- faults


def test_too_many_requests(proxy: Proxy, there: Client, maps: str) -> None:
    proxy.fault(too_many=2, retry_after=7)
    answers = [there.get(maps) for _ in range(3)]
    assert [answer.code for answer in answers] == [429, 429, 200]
    assert (answers[0].headers["Retry-After"], answers[0].body["details"]["retryAfterSeconds"]) == ("7", 7)


def test_internal_errors(proxy: Proxy, there: Client, maps: str) -> None:
    proxy.fault(broken=1, only=lambda asked: asked.verb == "list")
    assert [there.get(f"{maps}/a").code, there.get(maps).code, there.get(maps).code] == [200, 500, 200]


def test_a_bad_gateway(proxy: Proxy, there: Client, maps: str) -> None:
    with there.watch(maps, resourceVersion=good(there.get(maps)).version) as events:
        proxy.break_off()
        assert is_over(events)
    answer = there.get(maps)
    assert (answer.code, answer.reason, answer.message) == (502, "", "502 Bad Gateway")
    proxy.heal()
    good(there.get(maps))


def test_what_seems_absent(proxy: Proxy, there: Client, maps: str) -> None:
    proxy.fault(absent=lambda asked: asked.resource == "configmaps")
    assert there.get(maps).code == 404
    proxy.heal()
    good(there.get(maps))


def test_every_second_write_is_a_conflict(proxy: Proxy, there: Client, maps: str) -> None:
    proxy.fault(conflict_every=2)
    codes = [there.patch(f"{maps}/a", {"data": {"x": str(index)}}).code for index in range(4)]
    assert codes == [200, 409, 200, 409]
    assert good(there.get(f"{maps}/a")).body["data"] == {"x": "2"}
    proxy.heal()
    assert there.patch(f"{maps}/a", {"data": {"x": "5"}}).code == 200


@pytest.mark.parametrize("as_answer", [True, False])
def test_gone(proxy: Proxy, there: Client, maps: str, as_answer: bool) -> None:
    version = good(there.get(maps)).version
    proxy.fault(gone=1, gone_as_answer=as_answer)
    if as_answer:
        answer = there.get(maps, watch="true", resourceVersion=version)
        assert (answer.code, answer.reason) == (410, "Expired")
    else:
        with there.watch(maps, resourceVersion=version) as events:
            assert [event["object"]["code"] for event in events] == [410]
    with there.watch(maps, resourceVersion=version, timeoutSeconds=1) as events:
        assert list(events) == []


def test_history_that_seems_compacted(proxy: Proxy, there: Client, maps: str) -> None:
    old = good(there.get(maps)).version
    good(there.create(maps, config_map("b")))
    proxy.compact()
    with there.watch(maps, resourceVersion=old) as events:
        assert [(event["type"], event["object"]["code"]) for event in events] == [("ERROR", 410)]
    with there.watch(maps, resourceVersion=good(there.get(maps)).version, timeoutSeconds=1) as events:
        assert list(events) == []


def test_dropped_watches_break_off(proxy: Proxy, there: Client, maps: str) -> None:
    with there.watch(maps, resourceVersion=good(there.get(maps)).version) as events:
        proxy.drop_watches()
        assert is_over(events)
    good(there.get(maps))


def test_muted_watches_say_nothing(proxy: Proxy, there: Client, maps: str) -> None:
    version = good(there.get(maps)).version
    heard: list[object] = []
    with there.watch(maps, resourceVersion=version, timeoutSeconds=1) as events:
        proxy.mute_watches()
        good(there.patch(f"{maps}/a", {"data": {"x": "2"}}))
        listener = threading.Thread(target=lambda: heard.extend([each for each in [next(events, None)] if each]))
        listener.start()
        with there.watch(maps, resourceVersion=version) as others:
            assert next(others)["type"] == "MODIFIED"  # a new watch is not mute
        listener.join(1.5)  # longer than its timeoutSeconds
        assert listener.is_alive()
        proxy.drop_watches()
        listener.join(5)
    assert heard == []


def test_silence_and_its_end(proxy: Proxy) -> None:
    proxy.fault(silent=True)
    with socket.create_connection(proxy.address, timeout=0.3) as connection:
        connection.sendall(b"GET /version HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\n\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        proxy.heal()
        connection.settimeout(5)
        assert connection.recv(12) == b"HTTP/1.1 200"


def test_a_watch_that_was_silent_says_it_all_later(proxy: Proxy, api: Client, there: Client, maps: str) -> None:
    with there.watch(maps, resourceVersion=good(there.get(maps)).version) as events:
        proxy.fault(silent=True)
        good(api.create(maps, config_map("b")))
        healer = threading.Timer(0.3, proxy.heal)
        healer.start()
        began = time.monotonic()
        assert next(events)["object"]["metadata"]["name"] == "b"
        assert time.monotonic() - began > 0.2
        healer.join()


def test_refused_connections_and_the_same_port_again(proxy: Proxy, there: Client, maps: str) -> None:
    with there.watch(maps, resourceVersion=good(there.get(maps)).version) as events:
        proxy.refuse()
        with pytest.raises(OSError):
            there.get(maps)
        assert is_over(events)
    proxy.accept()
    good(there.get(maps))
