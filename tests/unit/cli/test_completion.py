"""The shells themselves say what the scripts complete."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import pytest

from routerd.cli.completion import places, script
from routerd.cli.main import COMMANDS
from routerd.cli.main import parser as routerd_parser


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="fly", add_help=False)
    top.add_argument("--map", type=Path, help="a file")
    top.add_argument("--loud", action="store_true", help="it's noisy: very")
    commands = top.add_subparsers()
    land = commands.add_parser("land", help="come down", add_help=False)
    land.add_argument("--gear", choices=("up", "down"), help="wheels")
    land.add_argument("place", choices=("sea", "strip"), help="where")
    log = commands.add_parser("log", help="the book", add_help=False)
    log.add_argument("files", nargs="*", type=Path, help="pages")
    log.add_argument("--hidden", help=argparse.SUPPRESS)
    pages = log.add_subparsers()
    pages.add_parser("tear", help="a page out", add_help=False)
    return top


CASES = [
    ("", {"--map", "--loud", "land", "log"}),
    ("l", {"land", "log"}),
    ("--loud land ", {"--gear", "sea", "strip"}),
    ("--map land l", {"land", "log"}),  # the value of an option is no command
    ("land --gear ", {"up", "down"}),
    ("land --gear up s", {"sea", "strip"}),
    ("log te", {"tear", "test.txt"}),
    ("--map t", {"test.txt"}),
    ("log tear ", set()),
]


@pytest.mark.parametrize(("line", "expected"), CASES)
def test_bash(parser: argparse.ArgumentParser, tmp_path: Path, line: str, expected: set[str]) -> None:
    (tmp_path / "test.txt").touch()
    words = ["fly", *line.split(" ")]
    ask = f"""{script("bash", parser)}
    COMP_WORDS=({" ".join(f"'{word}'" for word in words)}); COMP_CWORD={len(words) - 1}
    _fly; printf '%s\\n' "${{COMPREPLY[@]}}" """
    assert set(shell("bash", ask, tmp_path)) == expected


ZSH = """
compdef() { : }
compadd() { shift; offered+=("$@") }
_files() { offered+=(*(N)) }
_describe() { for row in ${(P)2}; do offered+=(${row%%:*}); done }
typeset -a offered
"""


@pytest.mark.parametrize(("line", "expected"), CASES)
def test_zsh(parser: argparse.ArgumentParser, tmp_path: Path, line: str, expected: set[str]) -> None:
    """zsh itself chooses from what is offered those words that begin as the one under the cursor."""
    (tmp_path / "test.txt").touch()
    words = ["fly", *line.split(" ")]
    ask = f"""{ZSH}{script("zsh", parser)}
    words=({" ".join(f"'{word}'" for word in words)}); CURRENT={len(words)}
    _fly; printf '%s\\n' $offered"""
    offered = {word for word in shell("zsh", ask, tmp_path, "-f") if word.startswith(words[-1])}
    assert offered == expected


def shell(name: str, text: str, directory: Path, *options: str) -> list[str]:
    done = subprocess.run(
        [name, *options, "-c", text], cwd=directory, capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_help_that_is_suppressed_is_not_offered(parser: argparse.ArgumentParser) -> None:
    assert "--hidden" not in {choice.word for place in places(parser) for choice in place.choices}


@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_every_command_of_routerd_is_there(name: str) -> None:
    text = script(name, routerd_parser())
    assert all(command.name in text for command in COMMANDS)
    assert subprocess.run([name, "-n"], input=text, text=True, capture_output=True, check=True).stderr == ""
