"""What a subcommand is, and what several share: the configuration, and questions to the daemons of this host."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from routerd.config import Config
    from routerd.daemon.lifetime import ConfigSource

DEFAULT_CONFIG = Path("/etc/routerd/routerd.yaml")
OUTPUTS = ("table", "json", "csv")


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand, whole. `run` gives the exit code, prints results on stdout and leaves errors to `main`; what is
    slow to import it imports when it is called: `routerd version` needs no eBPF.
    """

    name: str
    summary: str
    examples: tuple[str, ...]
    run: Callable[[argparse.Namespace], int]
    detail: str = ""
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    stays: bool = False
    """Runs until a signal."""


# --- arguments


def manifests(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--manifests", type=Path, metavar="DIR", help="compute from these files instead of asking the agent"
    )
    parser.add_argument("--node", metavar="NAME", help="as seen from this node (with --manifests; default: node-name)")


def output(parser: argparse.ArgumentParser, choices: Sequence[str] = OUTPUTS) -> None:
    parser.add_argument("-o", "--output", choices=choices, default="table", help="how to print (default: table)")


# --- configuration


def path(arguments: argparse.Namespace) -> Path | None:
    """The configuration file; None when none was named and the usual one is absent: the defaults then."""
    named: Path | None = arguments.config
    return named if named not in (None, DEFAULT_CONFIG) or DEFAULT_CONFIG.exists() else None


def source(arguments: argparse.Namespace) -> ConfigSource:
    from routerd.daemon.lifetime import ConfigSource

    return ConfigSource(path(arguments), getattr(arguments, "bpf_loader", None))


def configuration(arguments: argparse.Namespace) -> Config:
    return source(arguments).load()


# --- questions


def socket(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help="ask the daemon there, whatever the configuration (default: in run-dir)",
    )


def _run_dir(arguments: argparse.Namespace) -> Path:
    """Of the daemons to ask. A configuration that is wrong is told on stderr and keeps nobody from asking."""
    from routerd.config import DEFAULT, run_dir_of
    from routerd.errors import InputError

    named = path(arguments)
    try:
        return configuration(arguments).run_dir
    except InputError as error:
        if named is None or not named.is_file():
            raise
        _tell_once(f"{error}; what is asked for comes from the running daemon all the same")
        return run_dir_of(named.read_text(encoding="utf-8", errors="replace")) or DEFAULT.run_dir


def tell(note: str) -> None:
    """A line beside the result."""
    print(f"routerd: {' '.join(note.split())}", file=sys.stderr)


@cache
def _tell_once(note: str) -> None:
    """One command may ask many times."""
    tell(note)


def ask_agent(arguments: argparse.Namespace, request: Mapping[str, Any]) -> Any:
    """Of `--socket`, else of the run-dir of the configuration, as far as that can be read."""
    from routerd.serve.api import agent_socket, ask

    return ask(arguments.socket or agent_socket(_run_dir(arguments)), dict(request))


def ask_operator(arguments: argparse.Namespace, request: Mapping[str, Any], timeout: float = 10.0) -> Any:
    """As `ask_agent`. `timeout` in seconds. A note beside the answer goes to stderr."""
    from routerd.serve.api import ask, operator_socket

    return ask(arguments.socket or operator_socket(_run_dir(arguments)), dict(request), timeout, "operator", tell)
