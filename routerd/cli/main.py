"""The command line: what there is to say to routerd, its help, and its exit codes.

It parses, runs one command, and turns expected errors into one line on stderr; it does no work.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import routerd
from routerd import codes
from routerd.cli import chain, daemons, drain, files, ledger, machine, questions
from routerd.cli.command import DEFAULT_CONFIG, Command
from routerd.cli.completion import SHELLS, script
from routerd.errors import EnvironmentFault, RouterdError, StoreError

WIDTH = 100  # characters of a line of help


def _completion(arguments: argparse.Namespace) -> int:
    sys.stdout.write(script(arguments.shell, parser()))
    return codes.OK


def _completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="for which shell")


COMPLETION = Command(
    "completion",
    "print a completion script for a shell",
    ("routerd completion bash >/etc/bash_completion.d/routerd", "routerd completion zsh >~/.zfunc/_routerd"),
    _completion,
    arguments=_completion_arguments,
)
COMMANDS = (  # in the order of the help
    *daemons.COMMANDS,
    files.CHECK,
    files.CONVERT,
    questions.PLAN,
    questions.SHOW,
    questions.WHY,
    questions.STATUS,
    ledger.LEDGER,
    ledger.WHO,
    ledger.RELEASE,
    ledger.BACKUP,
    ledger.RESTORE,
    questions.RELEASE_BRAKE,
    drain.DRAIN,
    drain.UNDRAIN,
    chain.CNI,
    machine.CLEANUP,
    machine.VERSION,
    COMPLETION,
)


def _config(parser: argparse.ArgumentParser, default: object) -> None:
    text = f"configuration (default: {DEFAULT_CONFIG})"
    parser.add_argument("--config", type=Path, default=default, metavar="FILE", help=text)


def _exit_codes() -> str:
    return "exit codes:\n" + "\n".join(f"  {code}  {meaning}" for code, meaning in codes.MEANINGS.items())


def _epilog(examples: Sequence[str]) -> str:
    return "examples:\n" + "\n".join(f"  {example}" for example in examples) + "\n\n" + _exit_codes()


def parser(commands: Sequence[Command] = COMMANDS) -> argparse.ArgumentParser:
    """The whole command line; `command` of what it parses is the `Command`."""
    top = argparse.ArgumentParser(
        prog="routerd",
        description=textwrap.fill(
            "BGP and egress gateway daemon: announces services, pods and egress addresses to routers, and lets "
            "selected pods leave with addresses of their own.",
            WIDTH,
        ),
        epilog=_epilog(("routerd run --standalone", "routerd show peers", "routerd why svc/default/web")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _config(top, DEFAULT_CONFIG)
    top.add_argument(
        "--version", action="version", version=f"routerd {routerd.__version__}", help="as `routerd version`"
    )
    words = top.add_subparsers(dest="word", required=True, metavar="COMMAND")
    for command in commands:
        sub = words.add_parser(
            command.name,
            help=command.summary,
            description=textwrap.fill(f"{command.summary[0].upper()}{command.summary[1:]}. {command.detail}", WIDTH),
            epilog=_epilog(command.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _config(sub, argparse.SUPPRESS)  # so that it may also follow the command
        command.arguments(sub)
        sub.set_defaults(command=command)
    return top


def _exit_code(error: RouterdError) -> int:
    from routerd.serve.api import DaemonUnreachable, RequestRefused

    if isinstance(error, RequestRefused):
        return error.code
    if isinstance(error, DaemonUnreachable):
        return codes.UNREACHABLE
    return codes.ENVIRONMENT if isinstance(error, EnvironmentFault | StoreError) else codes.REFUSED


@contextmanager
def _ending_at_sigterm() -> Iterator[None]:
    """Until there are handlers that know what to put in order: while a process starts, nothing was begun.

    The first process of a container has no default action: a signal in these tenths of a second would be lost, and
    the container be killed at the end of its grace period.
    """
    before = signal.signal(signal.SIGTERM, lambda number, frame: os._exit(codes.OK))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None, commands: Sequence[Command] = COMMANDS) -> int:
    """Entry point of `routerd`; returns the exit code."""
    arguments = parser(commands).parse_args(argv)
    with _ending_at_sigterm() if arguments.command.stays else nullcontext():
        return _run(arguments.command, arguments)


def _run(command: Command, arguments: argparse.Namespace) -> int:
    try:
        return command.run(arguments)
    except RouterdError as error:
        print(f"routerd: {' '.join(str(error).split())}", file=sys.stderr)
        return _exit_code(error)
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone (`routerd show paths | head`): the interpreter need not complain
        return codes.OK
    except KeyboardInterrupt:
        return codes.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
