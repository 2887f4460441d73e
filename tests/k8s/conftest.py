"""An API server for the tests: the double, or the one that KUBECONFIG names. What a test makes, it removes."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from tests.k8s import target
from tests.k8s.client import Client


def pytest_report_header() -> str:
    return f"API server of tests/k8s: {os.environ.get(target.SWITCH) or 'the double'}"


@pytest.fixture(scope="session", autouse=True)
def left_as_found() -> Iterator[None]:
    """A server that is not for tests is not written to at all."""
    try:
        if target.named():
            with target.a_server():
                pass
    except target.NotForTests as error:
        pytest.fail(str(error), pytrace=False)
    yield
    if target.named():
        with target.a_server() as client:
            target.leave(client)


@pytest.fixture(scope="session")
def api() -> Iterator[Client]:
    """An administrator's client."""
    with target.a_server() as client:
        yield client


@pytest.fixture
def place(api: Client) -> Iterator[str]:
    """The name of a fresh namespace."""
    name = f"routerd-test-{uuid.uuid4().hex[:8]}"
    target.make_namespace(api, name)
    yield name
    target.remove_namespace(api, name)
