"""A store that looks again soon, where no notification comes."""

import pytest


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("routerd.store.embedded.store.LOOK_AGAIN", 50)
