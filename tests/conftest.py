"""What all tests share: a BPF file system, no old labs, no skips, no deadlines for properties."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.netns.lab.lab import STANDING, remove_orphans
from tests.netns.lab.mounts import own_bpffs

WITH_LABS = ("tests/attacks/", "tests/netns/")
BY_THEMSELVES = tuple(f"tests/netns/stories/test_{name}.py" for name in ("chaos", "demo", "partitions"))

# Properties are about values: on a busy machine an example may take its time, and so may drawing it.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture
def bpffs() -> Iterator[None]:
    """A BPF file system at /sys/fs/bpf, for this test and its processes alone."""
    with own_bpffs():
        yield


@pytest.fixture(scope="session")
def clean_labs() -> list[str]:
    """Names of the labs that killed runs had left."""
    return remove_orphans()


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Whatever a test was about: nothing has left a lab with a source that must not show."""
    yield
    for lab in STANDING:
        lab.tap.check()


class FewLabs(LoadScopeScheduling):
    """Workers share the files. The labs of a directory are one worker's, one after the other, as BGP and BFD must
    answer in time: so there are two at a time, attacks beside stories, and a third worker has what needs none. A few
    stories, which bring long labs of their own, go to whoever is free at the end: else all would wait for the stories.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return path if path in BY_THEMSELVES else next((labs for labs in WITH_LABS if path.startswith(labs)), path)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FewLabs:
    return FewLabs(config, log)


def _skipped(config: pytest.Config) -> int:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return len(reporter.stats.get("skipped", ())) if reporter is not None else 0


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A test that was skipped has proved nothing: the run has failed."""
    if _skipped(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> Generator[None, None, None]:
    """Says how many they were, directly above pytest's own last line."""
    yield
    terminalreporter.write_line(f"{_skipped(config)} skipped")
