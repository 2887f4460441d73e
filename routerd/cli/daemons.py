"""Commands that stay: run, agent, speaker, bfd, operator."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import routerd
from routerd import codes
from routerd.cli.command import Command, configuration, path, source
from routerd.errors import EnvironmentFault, RouterdError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from routerd.config import Config
    from routerd.daemon.lifetime import ConfigSource


def _log(config: Config) -> None:
    import logging

    from routerd.log import configure

    configure(getattr(logging, config.log.level.upper()), as_json=config.log.format == "json")
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it tells every look at the files


def until_stopped(
    arguments: argparse.Namespace, work: Callable[[Config, ConfigSource], Coroutine[Any, Any, None]]
) -> int:
    import asyncio

    from routerd.daemon.lifetime import until_signal

    found = source(arguments)
    _log(found.load())
    try:
        asyncio.run(until_signal(found, work))
    except BaseExceptionGroup as group:
        raise _expected(group) from group
    return codes.OK


def _expected(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that the operator of the machine can mend, if the group holds nothing else; else the group itself."""
    leaves = list(_leaves(group))
    return leaves[0] if all(isinstance(leaf, RouterdError) for leaf in leaves) else group


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterable[BaseException]:
    for error in group.exceptions:
        yield from _leaves(error) if isinstance(error, BaseExceptionGroup) else (error,)


def agent(arguments: argparse.Namespace) -> int:
    from routerd.daemon.processes import agent

    return until_stopped(arguments, agent)


def operator(arguments: argparse.Namespace) -> int:
    from routerd.daemon.processes import operator

    return until_stopped(arguments, operator)


def bfd(arguments: argparse.Namespace) -> int:
    from routerd.daemon.processes import bfd

    return until_stopped(arguments, bfd)


def speaker(arguments: argparse.Namespace) -> int:
    """Becomes ExaBGP's launcher: this process would only keep memory."""
    import signal

    from routerd.daemon import preflight
    from routerd.daemon.directories import made

    config = configuration(arguments)
    preflight.exabgp()
    made(config.run_dir, path(arguments), "run-dir")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # exec drops handlers; the launcher takes it then
    command = [sys.executable, "-m", "bgp.launcher", str(config.run_dir)]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": str(Path(routerd.__file__).parents[1])})


def run(arguments: argparse.Namespace) -> int:
    import asyncio

    from routerd.daemon import preflight, supervise
    from routerd.daemon.directories import made
    from routerd.daemon.processes import check_agent
    from routerd.serve.api import agent_socket, is_answering

    config = configuration(arguments)
    _log(config)
    check_agent(config)
    made(config.run_dir, path(arguments), "run-dir")
    if config.bgp.enabled:
        preflight.exabgp()
    if is_answering(agent_socket(config.run_dir)):
        raise EnvironmentFault(f"an agent answers on {agent_socket(config.run_dir)}: stop it first, or set run-dir")
    watches = config.bgp.enabled or config.egress.enabled
    roles = [*(["bfd"] if watches else []), "agent", *(["operator"] if arguments.standalone else [])]
    options = {"agent": ["--bpf-loader", arguments.bpf_loader] if arguments.bpf_loader else []}
    commands = {role: [*supervise.routerd_command(role, path(arguments)), *options.get(role, [])] for role in roles}
    children = [supervise.Child(role, command) for role, command in commands.items()]
    asyncio.run(supervise.run(children, config.run_dir if config.bgp.enabled else None))
    return codes.OK


def _agent_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bpf-loader", choices=("libbpf", "bcc"), help="instead of egress.loader of the configuration")


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    _agent_arguments(parser)
    parser.add_argument("--standalone", action="store_true", help="run the operator here too, on the embedded store")


RUN = Command(
    "run",
    "start speaker, bfd and agent (and operator), and keep them running",
    ("routerd run --standalone", "routerd --config /etc/routerd/node-a.yaml run"),
    run,
    detail=(
        "Each runs in its own session. SIGTERM stops them and leaves announcements and datapath in place, as for a "
        "restart; SIGHUP reads the configuration again."
    ),
    arguments=_run_arguments,
    stays=True,
)
AGENT = Command(
    "agent",
    "the process that keeps this node as the store wants it",
    ("routerd --config /etc/routerd/routerd.yaml agent",),
    agent,
    detail="SIGTERM stops it and leaves everything in place; SIGHUP reads the configuration again.",
    arguments=_agent_arguments,
    stays=True,
)
SPEAKER = Command(
    "speaker",
    "ExaBGP and its relay; outlives the agent",
    ("routerd --config /etc/routerd/routerd.yaml speaker",),
    speaker,
    detail="SIGTERM closes the sessions without a NOTIFICATION: peers with graceful restart keep the paths. While the "
    "host goes down it sends one, and they withdraw them.",
    stays=True,
)
BFD = Command(
    "bfd",
    "the process that watches BGP peers by BFD; a busy agent does not delay it",
    ("routerd --config /etc/routerd/routerd.yaml bfd",),
    bfd,
    detail="SIGTERM stops it after asking the peers for patience: the next one goes on within 30 seconds, and no "
    "session flaps. It runs with real-time priority where it may.",
    stays=True,
)
OPERATOR = Command(
    "operator",
    "the process that gives addresses and gateways; one per cluster",
    ("routerd --config /etc/routerd/routerd.yaml operator",),
    operator,
    stays=True,
)
COMMANDS = (RUN, AGENT, SPEAKER, BFD, OPERATOR)
