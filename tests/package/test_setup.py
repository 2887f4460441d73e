"""tools/setup installs what is missing, says so in numbered steps, and is silent where everything is there.

apt-get, dpkg-query, id, pip and the compiler are stand-ins: small scripts over a few files in a directory.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools.compile_c import PACKAGES

ROOT = Path(__file__).parents[2]
DEMO, TESTS = (
    set(words.split())
    for words in re.findall(r"^(?:DEMO|TESTS)=\((.+)\)$", (ROOT / "tools" / "setup").read_text(), re.MULTILINE)
)
INPUTS = ("requirements/runtime.txt", "requirements/dev.txt", "pyproject.toml", "setup.py")
PYTHON = """#!/bin/sh
[ "$2" = pip ] || exit 0
for lock; do [ -f "$lock" ] && sed -n 's/==.*//p' "$lock" >>pip.log; done
[ ! -e pip.fails ] || { echo "ERROR: no matching distribution"; exit 1; }
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """A checkout in a directory of its own, and the programs that set-up calls."""

    root: Path

    def program(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def packages(self, names: Iterable[str]) -> None:
        """Debian packages that are there."""
        (self.root / "installed").write_text("".join(f"ii  {name}\n" for name in sorted(names)))

    def setup(self, *arguments: str, status: int = 0, **environment: str) -> list[str]:
        """What it says, line by line."""
        found = {"PATH": f"{self.root}/bin:{os.environ['PATH']}", "TMPDIR": str(self.root / "tmp"), **environment}
        command = [str(self.root / "tools" / "setup"), *arguments]
        done = subprocess.run(
            command, env=found, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False
        )
        assert done.returncode == status, done.stdout
        return done.stdout.splitlines()

    def from_pip(self) -> set[str]:
        """Names of the Python packages that pip was asked for since the last look."""
        log = self.root / "pip.log"
        names = set(log.read_text().split()) if log.exists() else set()
        log.unlink(missing_ok=True)
        return names


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One on which nothing of Python's is there yet, and every Debian package is."""
    made = Machine(tmp_path)
    for name in ("tools/setup", *INPUTS):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "tmp").mkdir()
    made.program(".venv/bin/python", PYTHON)
    made.program(".venv/bin/pip", "#!/bin/sh\n")
    made.program("bin/dpkg-query", f"#!/bin/sh\ncat {tmp_path}/installed\n")
    made.program("bin/id", "#!/bin/sh\necho 0\n")
    made.program("bin/apt-get", "#!/bin/sh\necho 'E: no network'; exit 100\n")
    made.packages(DEMO | TESTS)
    return made


def test_steps_are_numbered_and_say_what_is_installed(machine: Machine) -> None:
    first, done, second, *_, last = machine.setup()
    assert re.fullmatch(r"setup: \[1/2\] \d+ Python packages, as locked", first)
    assert re.fullmatch(r"setup: \[1/2\] done in \d+ s", done)
    assert second == "setup: [2/2] routerd in .venv, and its eBPF object"
    assert re.fullmatch(r"setup: everything is there, after \d+ s", last)


def test_nothing_is_said_where_everything_is_there_though_files_are_newer(machine: Machine) -> None:
    machine.setup()
    for name in INPUTS:
        (machine.root / name).touch()
    assert machine.setup() == machine.setup("demo") == []


@pytest.mark.parametrize("name", INPUTS)
def test_another_content_is_installed(machine: Machine, name: str) -> None:
    machine.setup()
    machine.from_pip()
    with (machine.root / name).open("a") as file:
        file.write("# new\n")
    assert machine.setup() and machine.from_pip()


def test_the_demo_comes_without_what_only_tests_need(machine: Machine) -> None:
    machine.setup("demo")
    for_demo = machine.from_pip()
    assert {"exabgp", "setuptools"} <= for_demo and not {"mypy", "pytest"} & for_demo
    assert machine.setup("demo") == []
    assert machine.setup() and machine.from_pip() > for_demo


def test_debian_packages_are_those_that_the_target_needs(machine: Machine) -> None:
    machine.program("bin/id", "#!/bin/sh\necho 1000\n")
    machine.packages(DEMO)
    (said,) = machine.setup(status=1)
    missing = re.search(r"not root, .* missing: (.*) \(", said)
    assert missing and missing[1].split() == sorted(TESTS)
    assert "not root" not in " ".join(machine.setup("demo"))
    for setting, package in {"TOR=frr": "frr", "STORE=kubernetes": "openssl"}.items():
        name, _, value = setting.partition("=")
        (said,) = machine.setup("demo", status=1, **{name: value})
        assert f"missing: {package} (" in said


def test_the_compiler_comes_with_the_demo() -> None:
    assert set(PACKAGES.partition("install ")[2].split()) <= DEMO


def test_a_step_that_fails_says_what_its_program_said(machine: Machine) -> None:
    (machine.root / "pip.fails").touch()
    first, *_, said, last = machine.setup(status=1)
    assert first.startswith("setup: [1/2]") and said == "ERROR: no matching distribution"
    log = re.search(r"^setup: error: failed: pip .*\(log: (.+)\)$", last)
    assert log and said in Path(log[1]).read_text()
    (machine.root / "pip.fails").unlink()
    assert machine.setup()[0].startswith("setup: [1/2]")


def test_packages_that_apt_cannot_fetch_end_it(machine: Machine) -> None:
    machine.packages(DEMO - {"bird2"})
    assert machine.setup("demo", status=1)[0] == "setup: [1/4] lists of Debian packages"
    assert not machine.from_pip()
