"""This machine: what is left of us in its kernel, and what that kernel offers: cleanup, version."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

import routerd
from routerd import codes
from routerd.cli import chain
from routerd.cli.command import Command, configuration
from routerd.cli.table import table
from routerd.errors import EnvironmentFault

if TYPE_CHECKING:
    from routerd.config import Config
    from routerd.tell.views import Row


def cleanup(arguments: argparse.Namespace) -> int:
    from bgp.service import running_speaker
    from routerd.daemon import preflight
    from routerd.serve.api import agent_socket, is_answering

    config = configuration(arguments)
    if is_answering(agent_socket(config.run_dir)):
        raise EnvironmentFault("the agent is running and would put everything back: stop it first")
    speaker = running_speaker(config.run_dir)
    if speaker is not None:
        raise EnvironmentFault(f"the speaker ({speaker}) still announces paths that lead here: stop it first")
    preflight.privileges((preflight.CAP_NET_ADMIN, preflight.CAP_BPF))
    try:
        done = chain.uninstall(arguments)  # first: it would let no pod start
        done += [*_datapath_removed(config), *_wiring_removed(), *_routes_removed()]
    except OSError as error:
        raise EnvironmentFault(f"not everything could be removed: {error}; run cleanup again") from error
    print("\n".join(done) or "nothing to remove")
    return codes.OK


def _datapath_removed(config: Config) -> list[str]:
    from routerd.agent.egress import open_datapath
    from routerd.config import boot_guard

    file = boot_guard(config)
    kept = [f"removed {file}"] if file.exists() else []
    file.unlink(missing_ok=True)
    datapath = open_datapath(config)
    try:
        return [*kept, *(f"removed {what}" for what in datapath.remove())]
    finally:
        datapath.close()


def _wiring_removed() -> list[str]:
    from eni import kernel
    from eni.plan import Desired, plan

    actions = plan(Desired(), kernel.observe(Desired()))
    for action in actions:
        kernel.apply(action)
    return list(map(str, actions))


def _routes_removed() -> list[str]:
    from fib import kernel
    from fib.plan import Desired, plan

    actions = plan(Desired(), kernel.observe(Desired()))
    for action in actions:
        kernel.apply(action)
    return list(map(str, actions))


def version(arguments: argparse.Namespace) -> int:
    print(f"routerd {routerd.__version__}")
    return _kernel() if arguments.kernel else codes.OK


def _kernel() -> int:
    from bpf.features import describe_kernel, missing

    features = describe_kernel()
    rows: list[Row] = [
        {"feature": f.name, "since": f.since, "present": f.present, "outcome": f.outcome} for f in features
    ]
    print(f"Linux {os.uname().release}")
    sys.stdout.write(table(("feature", "since", "present", "outcome"), rows))
    return codes.ENVIRONMENT if missing(features) else codes.OK


def _version_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kernel", action="store_true", help="ask the running kernel, and say what is done without a feature"
    )


CLEANUP = Command(
    "cleanup",
    "remove everything that routerd has put into this node's kernel, and the CNI plugin",
    ("routerd cleanup", "routerd --config /etc/routerd/node-a.yaml cleanup"),
    cleanup,
    detail=(
        "Programs, maps, the tunnel device, the nft table, routes and reserved ports. Stop agent and speaker first: it "
        "refuses otherwise."
    ),
    arguments=chain.directories,
)
VERSION = Command(
    "version",
    "print the version, and what the kernel offers",
    ("routerd version", "routerd version --kernel"),
    version,
    detail="With --kernel, exit code 3 if the kernel lacks something without which the datapath does not load.",
    arguments=_version_arguments,
)
