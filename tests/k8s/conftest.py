"""An API server for the tests: the double, or the one that the file ROUTERD_TEST_KUBECONFIG names.

KUBECONFIG alone is not heeded: nobody's cluster shall be written to by accident. What a test makes, it removes.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.apiserver import ApiServer
from tests.k8s.client import Answer, Client

PATIENCE = 30.0  # seconds
SWITCH = "ROUTERD_TEST_KUBECONFIG"


@pytest.fixture(scope="session")
def api() -> Iterator[Client]:
    """An administrator's client."""
    if named := os.environ.get(SWITCH):
        if not Path(named).is_file():
            pytest.fail(f"{SWITCH}={named}: no such file: it names the kubeconfig of a cluster that is for tests")
        yield Client(Path(named))
        return
    with ApiServer(bookmarks=0.3) as server:
        yield Client(Path(server.kubeconfig))


@pytest.fixture
def place(api: Client) -> Iterator[str]:
    """The name of a fresh namespace."""
    name = f"routerd-test-{uuid.uuid4().hex[:8]}"
    answer = api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    assert answer.code == 201, answer
    yield name
    api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Any]:
    return wait_until


def wait_until(ask: Callable[[], Any]) -> Any:
    """The first true answer."""
    end = time.monotonic() + PATIENCE
    while not (found := ask()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def good(answer: Answer) -> Answer:
    assert answer.code < 300, answer
    return answer
