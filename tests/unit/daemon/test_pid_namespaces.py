"""Containers of a pod: agent and speaker share directories and no PID namespace, and each is process 1 of its own.

Process 1 of a namespace has no default actions: a signal without a handler is lost.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

SPEAKER = "import signal, sys; from pathlib import Path; from bgp import launcher\n" + (
    "held = launcher.lock(Path(sys.argv[1])); print('locked', flush=True); signal.pause()"
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """The run directory of a speaker in a PID namespace of its own."""
    command = [*NAMESPACE, sys.executable, "-c", SPEAKER, str(tmp_path)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE) as speaker:
        assert speaker.stdout is not None
        assert speaker.stdout.readline() == b"locked\n"
        try:
            yield tmp_path
            assert speaker.poll() is None
        finally:
            speaker.kill()


def beside(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`script` in another PID namespace, and in a session of its own: what signals its own group hits no test."""
    command = [*NAMESPACE, "setsid", "--wait", sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=30, check=False)


def test_a_speaker_in_another_namespace_has_no_number(run_dir: Path) -> None:
    script = "import sys; from pathlib import Path; from bgp.service import running_speaker\n"
    script += "found = running_speaker(Path(sys.argv[1])); print(found, found.pid)"
    assert beside(script, run_dir).stdout == "in another PID namespace None\n"


def test_it_is_adopted(run_dir: Path) -> None:
    script = "import sys; from pathlib import Path; from bgp.service import start_speaker\n"
    script += "print(start_speaker(Path(sys.argv[1])))"
    assert beside(script, run_dir).stdout == "in another PID namespace\n"


def test_nothing_is_signalled_in_its_place(run_dir: Path) -> None:
    """Process 0 of kill(2) is the caller's own process group, and -1 is everybody."""
    script = "import sys; from pathlib import Path; from bgp.service import SpeakerStopError, stop_speaker\n"
    script += "try:\n    stop_speaker(Path(sys.argv[1]))\nexcept SpeakerStopError as error:\n    print(error)"
    done = beside(script, run_dir)
    assert done.returncode == 0, done
    assert "in another PID namespace" in done.stdout
    assert "where it was started" in done.stdout


def test_the_first_process_of_our_namespace_is_not_signalled(run_dir: Path) -> None:
    """As seen by `kubectl exec` into the speaker's container."""
    script = "import os, sys; from pathlib import Path; from bgp import launcher, service\n"
    script += "held = launcher.lock(Path(sys.argv[1])); child = os.fork()\n"
    script += "if child: sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    script += "try:\n    service.stop_speaker(Path(sys.argv[1]))\nexcept service.SpeakerStopError as error:\n"
    script += "    print(error)"
    command = [*NAMESPACE, sys.executable, "-c", script, str(run_dir / "own")]
    (run_dir / "own").mkdir()
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done
    assert "process 1" in done.stdout


def test_run_leaves_a_speaker_that_it_cannot_signal_and_says_so(run_dir: Path) -> None:
    script = "import asyncio, os, signal, sys; from pathlib import Path\n"
    script += "from routerd import log; from routerd.daemon import supervise\n"
    script += "log.configure(20, as_json=False)\n"
    script += "async def main() -> None:\n"
    script += "    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)\n"
    script += "    await supervise.run([], Path(sys.argv[1]))\n"
    script += "asyncio.run(main()); print('ended')"
    done = beside(script, run_dir)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done
    assert "event=speaker-left" in done.stderr


def test_cleanup_names_no_process(run_dir: Path) -> None:
    config = run_dir / "routerd.yaml"
    config.write_text(f"apiVersion: routerd.io/v1alpha1\nkind: Config\nrun-dir: {run_dir}\npin-dir: {run_dir}/pins\n")
    script = "import sys; from routerd.cli.main import main; sys.exit(main(['--config', sys.argv[1], 'cleanup']))"
    done = beside(script, config)
    assert done.returncode == 3
    assert "the speaker (in another PID namespace) still announces" in done.stderr


# --- signals while a process starts

PROMPT = 60.0  # seconds, of the 600 that the import would take
# Ends the process if an import takes place of which the test wants to be in the middle: it tells, and waits there, in
# small parts: a signal between the last look for one and the system call would not end a long one.
STOPPED_AT = """
import sys, time
module = sys.argv[1]
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            print("there", flush=True)
            for _ in range(6000):
                time.sleep(0.1)
sys.meta_path.insert(0, Stop())
"""
MAIN = STOPPED_AT + "from routerd.cli.main import main; sys.exit(main(sys.argv[2:]))"
LAUNCHER = STOPPED_AT + "import runpy; del sys.argv[1:2]; runpy.run_module('bgp.launcher', run_name='__main__')"


def code_when_ended(command: list[str]) -> int:
    """The exit code of process 1 of a new namespace, which gets SIGTERM in the middle of its import.

    TimeoutExpired if it is not at its end PROMPT seconds later.
    """
    with subprocess.Popen([*NAMESPACE, *command], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as shim:
        try:
            assert shim.stdout is not None
            assert shim.stdout.readline() == "there\n"
            (first,) = Path(f"/proc/{shim.pid}/task/{shim.pid}/children").read_text().split()
            os.kill(int(first), signal.SIGTERM)
            return shim.wait(PROMPT)
        finally:
            shim.kill()


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("agent", "routerd.daemon.processes"),
        ("agent", "asyncio"),
        ("operator", "routerd.daemon.processes"),
        ("speaker", "routerd.daemon.preflight"),
        ("run", "routerd.daemon.supervise"),
    ],
)
def test_a_signal_in_the_middle_of_the_start_ends_the_process(command: str, module: str, tmp_path: Path) -> None:
    config = tmp_path / "routerd.yaml"
    config.write_text(f"apiVersion: routerd.io/v1alpha1\nkind: Config\nrun-dir: {tmp_path}/run\n")
    assert code_when_ended([sys.executable, "-c", MAIN, module, "--config", str(config), command]) == 0


@pytest.mark.parametrize("module", ["exabgp.util", "exabgp.reactor", "exabgp.reactor.loop"])
def test_a_signal_while_exabgp_is_imported_ends_the_speaker(module: str, tmp_path: Path) -> None:
    assert code_when_ended([sys.executable, "-c", LAUNCHER, module, str(tmp_path / "run")]) == 0


def test_a_signal_while_the_speaker_becomes_the_launcher_is_not_lost(tmp_path: Path) -> None:
    """It is held back from before exec to where the launcher can do something about it."""
    config = tmp_path / "routerd.yaml"
    config.write_text(f"apiVersion: routerd.io/v1alpha1\nkind: Config\nrun-dir: {tmp_path}/run\n")
    script = "import os, signal, sys; from routerd.cli.main import main\n"
    script += "become = os.execve\n"
    script += "def signalled(*arguments):\n"
    script += "    os.kill(1, signal.SIGTERM); print('there', flush=True); become(*arguments)\n"
    script += "os.execve = signalled; sys.exit(main(sys.argv[1:]))"
    command = [*NAMESPACE, sys.executable, "-c", script, "--config", str(config), "speaker"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "there\n")
    assert not (tmp_path / "run" / "speaker.pid").exists()  # nothing was begun
