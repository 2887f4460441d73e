"""Signals, configuration anew, systemd, and what `routerd run` keeps running: with real processes where it matters."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from routerd.agent.loop import TaskReturned
from routerd.config import Config
from routerd.daemon.lifetime import ConfigSource, until_signal
from routerd.daemon.supervise import Child, run
from routerd.errors import EnvironmentFault
from routerd.serve.notify import notify
from routerd.tell.status import ConfigStatus
from tests.waiting import PATIENCE, eventually

HEAD = "apiVersion: routerd.io/v1alpha1\nkind: Config\n"


def tell(number: signal.Signals) -> None:
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)


def test_the_command_lines_loader_goes_before_the_files(tmp_path: Path) -> None:
    file = tmp_path / "routerd.yaml"
    file.write_text(f"{HEAD}egress: {{loader: bcc}}\n")
    assert ConfigSource(file).load().egress.loader == "bcc"
    assert ConfigSource(file, "libbpf").load().egress.loader == "libbpf"
    assert ConfigSource(None, "bcc").load().egress.loader == "bcc"


def test_a_signal_ends_the_work() -> None:
    ended: list[str] = []

    async def work(config: Config, source: ConfigSource) -> None:
        tell(signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(config.node_name)

    asyncio.run(until_signal(ConfigSource(), work))
    assert ended == [Config().node_name]


def test_work_that_returns_is_a_fault() -> None:
    async def work(config: Config, source: ConfigSource) -> None:
        """Nothing to do."""

    with pytest.raises(TaskReturned):
        asyncio.run(until_signal(ConfigSource(), work))


def test_a_fault_of_the_work_comes_out() -> None:
    async def work(config: Config, source: ConfigSource) -> None:
        raise EnvironmentFault("no kernel")

    with pytest.raises(EnvironmentFault, match="no kernel"):
        asyncio.run(until_signal(ConfigSource(), work))


def test_a_hang_up_starts_the_work_anew_with_the_new_configuration(tmp_path: Path) -> None:
    path = tmp_path / "routerd.yaml"
    path.write_text(f"{HEAD}node-name: one\n")
    seen: list[str] = []

    async def work(config: Config, source: ConfigSource) -> None:
        seen.append(config.node_name)
        if config.node_name == "one":
            path.write_text(f"{HEAD}node-name: two\n")
            tell(signal.SIGHUP)
        else:
            tell(signal.SIGTERM)
        await asyncio.Event().wait()

    asyncio.run(until_signal(ConfigSource(path), work))
    assert seen == ["one", "two"]


def test_a_refused_configuration_leaves_the_work_going_on_and_is_told(tmp_path: Path) -> None:
    path = tmp_path / "routerd.yaml"
    path.write_text(f"{HEAD}node-name: one\n")
    told: list[ConfigStatus] = []
    starts: list[str] = []

    def tell_of(state: ConfigStatus) -> None:
        told.append(state)
        if state.stale:  # the mistake is mended
            path.write_text(f"{HEAD}node-name: one\n")
            tell(signal.SIGHUP)
        else:
            tell(signal.SIGTERM)

    async def work(config: Config, source: ConfigSource) -> None:
        starts.append(config.node_name)
        source.on_status = tell_of
        path.write_text(f"{HEAD}colour: red\n")
        tell(signal.SIGHUP)
        await asyncio.Event().wait()

    asyncio.run(until_signal(ConfigSource(path), work))
    assert starts == ["one"]
    assert [state.stale for state in told] == [True, False]
    assert "colour" in told[0].error


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, abstract: bool) -> None:
    address = f"@routerd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(PATIENCE)
        manager.bind(f"\0{address[1:]}" if abstract else address)
        notify("READY=1", address)
        assert manager.recv(100) == b"READY=1"


def test_a_service_manager_that_has_gone_does_not_matter(tmp_path: Path) -> None:
    notify("READY=1", str(tmp_path / "nobody"))


# --- run

SLEEPER = "import signal, sys; open(sys.argv[1], 'a').write('x'); signal.pause()"


def sleeper(log: Path, name: str = "agent") -> Child:
    return Child(name, [sys.executable, "-c", SLEEPER, str(log)])


def starts(log: Path) -> int:
    return len(log.read_text()) if log.exists() else 0


def supervised(children: list[Child], test: Callable[[], asyncio.Future[None]]) -> None:
    async def main() -> None:
        task = asyncio.create_task(run(children, None))
        try:
            await test()
        finally:
            tell(signal.SIGTERM)
            await task

    asyncio.run(main())


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_children_run_in_sessions_of_their_own_and_end_with_the_supervisor(tmp_path: Path) -> None:
    one, two = sleeper(tmp_path / "one"), sleeper(tmp_path / "two", "operator")
    pids: list[int] = []

    async def test() -> None:
        await eventually(lambda: starts(tmp_path / "one") == starts(tmp_path / "two") == 1)
        pids.extend(child.process.pid for child in (one, two) if child.process is not None)
        assert all(os.getsid(pid) == pid for pid in pids)

    supervised([one, two], test)  # type: ignore[arg-type]
    assert len(pids) == 2 and not any(map(is_alive, pids))


def test_a_child_that_dies_is_started_again(tmp_path: Path) -> None:
    child = sleeper(tmp_path / "log")

    async def test() -> None:
        await eventually(lambda: starts(tmp_path / "log") == 1)
        assert child.process is not None
        first = child.process.pid
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: starts(tmp_path / "log") == 2)
        assert child.process.pid != first

    supervised([child], test)  # type: ignore[arg-type]


def test_a_child_that_lacks_something_ends_the_supervisor_and_the_others(tmp_path: Path) -> None:
    other = sleeper(tmp_path / "log")
    lacking = Child("operator", [sys.executable, "-c", "import sys; sys.exit(3)"])
    with pytest.raises(EnvironmentFault, match="operator cannot run"):
        asyncio.run(asyncio.wait_for(run([other, lacking], None), PATIENCE))
    assert other.process is None or not is_alive(other.process.pid)
