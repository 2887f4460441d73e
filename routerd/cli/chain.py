"""The CNI plugin on this host: cni install, cni uninstall."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cni import install as chain
from cni.conflist import NotChainable
from cni.wire import CHAINED, DEFAULT_TIMEOUT, MOST_TIMEOUT
from routerd import codes
from routerd.cli.command import Command, configuration
from routerd.errors import EnvironmentFault

ABSENT = ("refuse", "allow")
WATCH_PERIOD = 2.0  # seconds: pods that start in between are without the plugin, and the guard holds them back


def run(arguments: argparse.Namespace) -> int:
    work = partial(uninstall, arguments) if arguments.action == "uninstall" else _installing(arguments)
    if arguments.action == "install" and arguments.watch:
        return _watch(work)
    try:
        done = work()
    except NotChainable as error:
        raise EnvironmentFault(str(error)) from error
    except OSError as error:
        raise EnvironmentFault(f"{error.filename}: {error.strerror}") from error
    print("\n".join(done) or "nothing to do")
    return codes.OK


def _installing(arguments: argparse.Namespace) -> Callable[[], list[str]]:
    """By the configuration as it is now."""
    from routerd.serve.plugin import ipam_socket, plugin_socket

    run_dir = configuration(arguments).run_dir
    entry = {
        "type": CHAINED,
        "socket": str(plugin_socket(run_dir)),
        "timeout": arguments.timeout,
        "onAgentAbsent": arguments.on_agent_absent,
    }
    if arguments.whole:
        ipam = {"socket": str(ipam_socket(run_dir)), "timeout": arguments.timeout}
        return partial(chain.install_whole, ipam, entry, arguments.conf_dir, arguments.bin_dir)
    return partial(chain.install, entry, arguments.conf_dir, arguments.bin_dir)


def _watch(install: Callable[[], list[str]]) -> int:
    """Until SIGTERM or SIGINT. What cannot be done now is said once, and tried again: a CNI may be on its way."""
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    trouble = ""
    while True:
        before, trouble = trouble, ""
        try:
            for line in install():
                print(line, flush=True)
        except (NotChainable, OSError) as error:
            trouble = str(error)
            if trouble != before:
                print(trouble, file=sys.stderr, flush=True)
        if signal.sigtimedwait(ends, WATCH_PERIOD) is not None:
            return codes.OK


def uninstall(arguments: argparse.Namespace) -> list[str]:
    """What was done. OSError."""
    return chain.uninstall(arguments.conf_dir, arguments.bin_dir)


def directories(parser: argparse.ArgumentParser) -> None:
    for option, directory, what in (
        ("--conf-dir", chain.CONF_DIR, "network configurations of the runtime"),
        ("--bin-dir", chain.BIN_DIR, "CNI plugins"),
    ):
        parser.add_argument(option, type=Path, default=directory, metavar="DIR", help=f"{what} (default: {directory})")


def _seconds(text: str) -> int:
    seconds = int(text)
    if not 1 <= seconds <= MOST_TIMEOUT:
        raise argparse.ArgumentTypeError(f"seconds from 1 to {MOST_TIMEOUT}, not {text}")
    return seconds


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("install", "uninstall"), help="put it there, or take it away")
    directories(parser)
    parser.add_argument(
        "--timeout", type=_seconds, default=DEFAULT_TIMEOUT, metavar="SECONDS",
        help=f"how long a pod waits for the agent (default: {DEFAULT_TIMEOUT})",
    )  # fmt: skip
    parser.add_argument(
        "--on-agent-absent", choices=ABSENT, default=ABSENT[0],
        help="what becomes of a pod when it does not answer in time (default: refuse)",
    )  # fmt: skip
    parser.add_argument(
        "--whole", action="store_true",
        help="where no CNI is: write a whole configuration once the agent has an address for a pod",
    )  # fmt: skip
    parser.add_argument(
        "--watch", action="store_true", help="stay, and put it back whenever a CNI has written its configuration anew"
    )


CNI = Command(
    "cni",
    "put the chained CNI plugin onto this host, so that pods' first packets are right",
    (
        "routerd cni install",
        "routerd cni install --watch",
        "routerd cni install --whole --watch",
        "routerd cni install --on-agent-absent allow",
        "routerd cni uninstall",
    ),
    run,
    detail=(
        "The program goes to --bin-dir, as routerd-cni and as routerd-ipam, and the first name to the end of the first "
        "network configuration in --conf-dir. May be run again, and must be where another installer has written that "
        "file anew: --watch sees to it."
    ),
    arguments=_arguments,
)
