"""The command line: what there is to say to routerd, its help, and its exit codes.

It parses, calls one function of `commands.py`, and turns expected errors into one line on stderr; it does no work.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import routerd
from routerd import codes
from routerd.cli.completion import SHELLS
from routerd.errors import EnvironmentFault, RouterdError, StoreError

DEFAULT_CONFIG = Path("/etc/routerd/routerd.yaml")
SHOWN = ("nodes", "peers", "paths", "policies", "pools", "nat", "egress-ips")
OUTPUTS = ("table", "json", "csv")
Arguments = Callable[[argparse.ArgumentParser], None]


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand. `run` names a function of `commands.py`, imported only when it is called."""

    name: str
    summary: str
    examples: tuple[str, ...]
    detail: str = ""
    arguments: Arguments = lambda parser: None
    stays: bool = False
    """Runs until a signal."""


def _manifests(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--manifests", type=Path, metavar="DIR", help="compute from these files instead of asking the agent"
    )
    parser.add_argument("--node", metavar="NAME", help="as seen from this node (with --manifests; default: node-name)")


def _output(parser: argparse.ArgumentParser, choices: Sequence[str] = OUTPUTS) -> None:
    parser.add_argument("-o", "--output", choices=choices, default="table", help="how to print (default: table)")


def _agent_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bpf-loader", choices=("libbpf", "bcc"), help="instead of egress.loader of the configuration")


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    _agent_arguments(parser)
    parser.add_argument("--standalone", action="store_true", help="run the operator here too, on the embedded store")


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="manifest, legacy ConfigMap, or directory of them"
    )
    parser.add_argument(
        "--dialect",
        choices=("cilium-1.10", "metallb-0.12"),
        help="read one bare BGP document, or a ConfigMap with one, exactly as that program does",
    )
    parser.add_argument("--output", choices=("text", "json"), default="text", help="how to print (default: text)")


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    _manifests(parser)


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=SHOWN, help="what to show")
    _output(parser)
    _manifests(parser)


def _why_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("object", metavar="OBJECT", help="svc/NAMESPACE/NAME or pod/NAMESPACE/NAME")
    _output(parser, ("table", "json"))
    _manifests(parser)


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    _output(parser, ("table", "json"))


def _ledger_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", choices=("used", "reserved", "cooling"), help="only addresses in this state")
    _output(parser)


def _release_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="an address, or its owner, such as EgressPolicy/web")


def _version_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kernel", action="store_true", help="ask the running kernel, and say what is done without a feature"
    )


def _completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="for which shell")


COMMANDS = (
    Command(
        "run",
        "start speaker and agent (and operator), and keep them running",
        ("routerd run --standalone", "routerd --config /etc/routerd/node-a.yaml run"),
        "Each runs in its own session. SIGTERM stops them and leaves announcements and datapath in place, as for a "
        "restart; SIGHUP reads the configuration again.",
        _run_arguments,
        stays=True,
    ),
    Command(
        "agent",
        "the process that keeps this node as the store wants it",
        ("routerd --config /etc/routerd/routerd.yaml agent",),
        "SIGTERM stops it and leaves everything in place; SIGHUP reads the configuration again.",
        _agent_arguments,
        stays=True,
    ),
    Command(
        "speaker",
        "ExaBGP and its relay; outlives the agent",
        ("routerd --config /etc/routerd/routerd.yaml speaker",),
        "SIGTERM closes the sessions without a NOTIFICATION: peers with graceful restart keep the paths.",
        stays=True,
    ),
    Command(
        "operator",
        "the process that gives addresses and gateways; one per cluster",
        ("routerd --config /etc/routerd/routerd.yaml operator",),
        stays=True,
    ),
    Command(
        "check",
        "say what is wrong with files before they are applied",
        (
            "routerd check configs/",
            "routerd check bgp-config.yaml policies.yaml",
            "routerd check --dialect cilium-1.10 --output json config.yaml",
        ),
        "Exit code 0: every object is taken. 1: something is refused; each line names file, line, key and reason.",
        _check_arguments,
    ),
    Command(
        "plan",
        "what would change on this node and for each peer, without changing it",
        ("routerd plan", "routerd plan --manifests new/", "routerd plan --manifests new/ --node a"),
        "Asks the running agent. With --manifests it compares those files with what the agent has now, or with nothing "
        "if no agent runs, and touches nothing.",
        _plan_arguments,
    ),
    Command(
        "show",
        "print nodes, peers, paths, policies, pools, NAT entries or egress addresses",
        ("routerd show paths", "routerd show peers -o json", "routerd show egress-ips -o csv >firewall.csv"),
        "`egress-ips -o csv` is the list for a firewall administrator: which source address is whose.",
        _show_arguments,
    ),
    Command(
        "why",
        "why a service is (not) announced from here, or how a pod leaves",
        ("routerd why svc/default/web", "routerd why pod/default/web-0", "routerd why svc/default/web -o json"),
        "Prints each condition and stops at the first no. Exit code 1 if there is a no.",
        _why_arguments,
    ),
    Command(
        "status",
        "whether the agent is ready, and what it refuses and why",
        ("routerd status", "routerd status -o json"),
        "Exit code 1 if the agent is not ready.",
        _status_arguments,
    ),
    Command(
        "ledger",
        "print the addresses that are given, reserved or cooling down, and whose they are",
        ("routerd ledger --state reserved", "routerd ledger -o csv >addresses.csv"),
        "Asks the operator, so run it on the operator's host; on Kubernetes in the pod that holds the Lease: "
        'kubectl -n routerd exec "$(kubectl -n routerd get lease routerd-operator -o '
        "jsonpath='{.spec.holderIdentity}' | cut -d_ -f1)\" -- routerd ledger",
        _ledger_arguments,
    ),
    Command(
        "release",
        "end the reservation of an egress address whose policy is gone",
        ("routerd release 192.0.2.7", "routerd release EgressPolicy/web"),
        "Asks the operator, so run it on the operator's host; on Kubernetes in the pod that holds the Lease. Addresses "
        "in use stay with their owners; a released one cools down before it is given again.",
        _release_arguments,
    ),
    Command(
        "release-brake",
        "withdraw what the brake holds on this node",
        ("routerd release-brake",),
        "`routerd status` shows what is held: many withdrawals at once that no change explains (bgp.brake).",
    ),
    Command(
        "cleanup",
        "remove everything that routerd has put into this node's kernel",
        ("routerd cleanup", "routerd --config /etc/routerd/node-a.yaml cleanup"),
        "Programs, maps, the tunnel device, the nft table, routes and reserved ports. Stop agent and speaker first: it "
        "refuses otherwise.",
    ),
    Command(
        "version",
        "print the version, and what the kernel offers",
        ("routerd version", "routerd version --kernel"),
        "With --kernel, exit code 3 if the kernel lacks something without which the datapath does not load.",
        _version_arguments,
    ),
    Command(
        "completion",
        "print a completion script for a shell",
        ("routerd completion bash >/etc/bash_completion.d/routerd", "routerd completion zsh >~/.zfunc/_routerd"),
        arguments=_completion_arguments,
    ),
)


def _config(parser: argparse.ArgumentParser, default: object) -> None:
    text = f"configuration (default: {DEFAULT_CONFIG})"
    parser.add_argument("--config", type=Path, default=default, metavar="FILE", help=text)


def _exit_codes() -> str:
    return "exit codes:\n" + "\n".join(f"  {code}  {meaning}" for code, meaning in codes.MEANINGS.items())


def _epilog(examples: Sequence[str]) -> str:
    return "examples:\n" + "\n".join(f"  {example}" for example in examples) + "\n\n" + _exit_codes()


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="routerd",
        description="BGP and egress gateway daemon: announces services, pods and egress addresses to routers, and "
        "lets selected pods leave with addresses of their own.",
        epilog=_epilog(("routerd run --standalone", "routerd show peers", "routerd why svc/default/web")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _config(top, DEFAULT_CONFIG)
    top.add_argument(
        "--version", action="version", version=f"routerd {routerd.__version__}", help="as `routerd version`"
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}. {command.detail}".strip(),
            epilog=_epilog(command.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _config(sub, argparse.SUPPRESS)  # so that it may also follow the command
        command.arguments(sub)
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


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `routerd`; returns the exit code."""
    arguments = parser().parse_args(argv)
    stays = arguments.command in {command.name for command in COMMANDS if command.stays}
    with _ending_at_sigterm() if stays else nullcontext():
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from routerd.cli import commands

    try:
        return commands.RUN[arguments.command](arguments)
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
