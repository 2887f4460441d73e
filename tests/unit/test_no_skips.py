"""A skipped test fails the run, and the lines above pytest's last one say how many there were."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("def test_x(): pass", 0, ["0 skipped", "1 passed"]),
        ("import pytest\ndef test_x(): pytest.skip('no reason')", 1, ["1 skipped", "1 skipped"]),
        ("import pytest\npytest.skip('no reason', allow_module_level=True)", 5, ["1 skipped", "1 skipped"]),
        ("def test_x(): assert False", 1, ["0 skipped", "1 failed"]),
    ],
)
def test_the_last_lines(body: str, code: int, said: list[str], tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(body)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "."]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    last = done.stdout.splitlines()[-2:]
    assert last[0] == said[0]
    assert last[1].startswith(said[1]), last
