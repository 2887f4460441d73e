"""One function per subcommand: arguments in, exit code out. Imports are inside: `routerd version` needs no eBPF.

It prints results on stdout, and leaves errors to `main`, which makes one line of each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import routerd
from routerd import codes
from routerd.cli.main import DEFAULT_CONFIG
from routerd.cli.table import render, table
from routerd.errors import EnvironmentFault, InputError, RouterdError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from routerd.config import Config
    from routerd.daemon.lifetime import Source
    from routerd.model import Snapshot
    from routerd.node.desired import NodeState, Settings
    from routerd.tell.views import Row

STEP_COLUMNS = ("yes", "question", "reason", "detail")
LEDGER_COLUMNS = ("address", "owner", "pool", "state", "since")


def _path(arguments: argparse.Namespace) -> Path | None:
    """The configuration file; None when none was named and the usual one is absent: the defaults then."""
    named: Path | None = arguments.config
    return named if named not in (None, DEFAULT_CONFIG) or DEFAULT_CONFIG.exists() else None


def _source(arguments: argparse.Namespace) -> Source:
    from routerd.daemon.lifetime import Source

    return Source(_path(arguments), getattr(arguments, "bpf_loader", None))


def _config(arguments: argparse.Namespace) -> Config:
    return _source(arguments).load()


def _log(config: Config) -> None:
    import logging

    from routerd.log import configure

    configure(getattr(logging, config.log.level.upper()), as_json=config.log.format == "json")
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it tells every look at the files


# --- processes


def _until_signal(arguments: argparse.Namespace, work: Callable[[Config, Source], Coroutine[Any, Any, None]]) -> int:
    import asyncio

    from routerd.daemon.lifetime import until_signal

    source = _source(arguments)
    _log(source.load())
    try:
        asyncio.run(until_signal(source, work))
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

    return _until_signal(arguments, agent)


def operator(arguments: argparse.Namespace) -> int:
    from routerd.daemon.processes import operator

    return _until_signal(arguments, operator)


def speaker(arguments: argparse.Namespace) -> int:
    """Becomes ExaBGP's launcher: this process would only keep memory."""
    import signal

    from routerd.daemon import preflight
    from routerd.daemon.directories import made

    config = _config(arguments)
    preflight.exabgp()
    made(config.run_dir, _path(arguments), "run-dir")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # exec drops handlers; the launcher takes it then
    command = [sys.executable, "-m", "bgp.launcher", str(config.run_dir)]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": str(Path(routerd.__file__).parents[1])})


def run(arguments: argparse.Namespace) -> int:
    import asyncio

    from routerd.daemon import preflight, supervise
    from routerd.daemon.directories import made
    from routerd.daemon.processes import check_agent
    from routerd.serve.api import agent_socket, is_answering

    config = _config(arguments)
    _log(config)
    check_agent(config)
    made(config.run_dir, _path(arguments), "run-dir")
    if config.bgp.enabled:
        preflight.exabgp()
    if is_answering(agent_socket(config.run_dir)):
        raise EnvironmentFault(f"an agent answers on {agent_socket(config.run_dir)}: stop it first, or set run-dir")
    roles = ["agent", *(["operator"] if arguments.standalone else [])]
    options = {"agent": ["--bpf-loader", arguments.bpf_loader] if arguments.bpf_loader else []}
    commands = {role: [*supervise.routerd_command(role, _path(arguments)), *options.get(role, [])] for role in roles}
    children = [supervise.Child(role, command) for role, command in commands.items()]
    asyncio.run(supervise.run(children, config.run_dir if config.bgp.enabled else None))
    return codes.OK


# --- questions


def _ask(config: Config, request: Mapping[str, Any]) -> Any:
    from routerd.serve.api import agent_socket, ask

    return ask(agent_socket(config.run_dir), dict(request))


def _offline(arguments: argparse.Namespace, config: Config) -> tuple[Snapshot, NodeState, Settings]:
    from routerd.cli.offline import snapshot_of, state_of
    from routerd.daemon.processes import settings_of

    settings = replace(settings_of(config), node=arguments.node or config.node_name)
    snapshot = snapshot_of(arguments.manifests, config)
    return snapshot, state_of(snapshot, settings, config), settings


def show(arguments: argparse.Namespace) -> int:
    from routerd.tell.views import COLUMNS, View, rows

    config, kind = _config(arguments), arguments.kind
    if arguments.manifests is None:
        found = _ask(config, {"get": "show", "kind": kind})
    else:
        snapshot, state, _ = _offline(arguments, config)
        found = rows(kind, View(snapshot, state, {}))
    sys.stdout.write(render(arguments.output, COLUMNS[kind], found))
    return codes.OK


def why(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    if arguments.manifests is None:
        steps = _ask(config, {"get": "why", "object": arguments.object})
    else:
        from routerd.tell.why import explain

        snapshot, state, settings = _offline(arguments, config)
        steps = [asdict(step) for step in explain(snapshot, state, settings, arguments.object)]
    sys.stdout.write(render(arguments.output, STEP_COLUMNS, steps))
    return codes.OK if all(step["yes"] for step in steps) else codes.REFUSED


def plan(arguments: argparse.Namespace) -> int:
    """What would change: the agent's pending work, or the difference that files would make."""
    from routerd.serve.api import DaemonUnreachable
    from routerd.tell.render import changes, refusal_lines, state_lines

    config = _config(arguments)
    if arguments.manifests is None:
        found = _ask(config, {"get": "plan"})
        lines, refusals = found["changes"], found["refusals"]
    else:
        _, state, settings = _offline(arguments, config)
        before: list[str] = []
        if settings.node == config.node_name:
            try:
                before = _ask(config, {"get": "desired"})
            except DaemonUnreachable as error:
                print(f"routerd: compared with nothing: {error}", file=sys.stderr)
        lines, refusals = changes(before, state_lines(state)), refusal_lines(state.refusals)
    print("\n".join([*(lines or ["nothing would change"]), *refusals]))
    return codes.OK


def status(arguments: argparse.Namespace) -> int:
    found = _ask(_config(arguments), {"get": "status"})
    if arguments.output == "json":
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        sys.stdout.write(_status_text(found))
    return codes.OK if found["ready"] else codes.REFUSED


def _status_text(found: Mapping[str, Any]) -> str:
    egress, rounds = found["egress"], found["rounds"]
    head = [
        f"node      {found['node']}, routerd {found['version']}",
        f"ready     {'yes' if found['ready'] else 'no: ' + found['not_ready_because']}",
        f"datapath  {'attached' if egress['datapath'] else 'not attached'}, {egress['pods']} pods selected, "
        f"{egress['nat_entries']} of {egress['nat_room']} flows",
        f"rounds    {rounds['done']}, of which {rounds['errors']} failed",
    ]
    if found["config"]["stale"]:
        head.append(f"stale     the configuration is refused, the last good one works on: {found['config']['error']}")
    if rounds["held"]:
        head.append(f"held      {rounds['held']}")
    peers = table(("peer", "state", "announced", "desired", "flaps", "last_error"), found["peers"])
    refusals = table(("object", "reason", "message"), found["refusals"])
    return "\n".join([*head, "", peers, *([refusals] if found["refusals"] else [])])


def release_brake(arguments: argparse.Namespace) -> int:
    paths = _ask(_config(arguments), {"get": "release-brake"})
    print(f"released {paths} paths" if paths else "nothing is held")
    return codes.OK


def release(arguments: argparse.Namespace) -> int:
    from routerd.serve.api import WRITE_TIMEOUT

    released = _ask_operator(arguments, {"do": "release", "name": arguments.name}, WRITE_TIMEOUT)
    print("\n".join(f"released {each['address']} {each['owner']}" for each in released))
    return codes.OK


def ledger(arguments: argparse.Namespace) -> int:
    found = _ask_operator(arguments, {"get": "ledger"})
    wanted = [each for each in found if arguments.state in (None, each["state"])]
    sys.stdout.write(render(arguments.output, LEDGER_COLUMNS, wanted))
    return codes.OK


def _ask_operator(arguments: argparse.Namespace, request: dict[str, Any], timeout: float = 10.0) -> Any:
    from routerd.serve.api import ask, operator_socket

    def tell(note: str) -> None:
        print(f"routerd: {note}", file=sys.stderr)

    return ask(operator_socket(_config(arguments).run_dir), request, timeout, "operator", tell)


def check(arguments: argparse.Namespace) -> int:
    from routerd.cli.check import check_paths

    if arguments.dialect:
        return _check_dialect(arguments)
    findings = check_paths(arguments.files)
    errors = sum(finding.severity == "error" for finding in findings)
    if arguments.output == "json":
        print(json.dumps([finding.as_json() for finding in findings], indent=2))
    else:
        for finding in findings:
            print(finding)
        print(f"errors: {errors}, warnings: {len(findings) - errors}")
    return codes.REFUSED if errors else codes.OK


def _check_dialect(arguments: argparse.Namespace) -> int:
    from routerd.cli.check import check_dialect
    from routerd.store.embedded.disk import read_text

    if len(arguments.files) != 1:
        print("routerd: check --dialect takes one file", file=sys.stderr)
        return codes.USAGE
    try:
        result = check_dialect(read_text(arguments.files[0]), arguments.dialect)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=str(arguments.files[0])) from None
    if arguments.output == "json":
        print(json.dumps(result))
    else:
        print(f"{arguments.files[0]}: {result.get('error', 'ok')}")
    return codes.REFUSED if "error" in result else codes.OK


def cleanup(arguments: argparse.Namespace) -> int:
    from bgp.service import running_speaker
    from routerd.daemon import preflight
    from routerd.serve.api import agent_socket, is_answering

    config = _config(arguments)
    if is_answering(agent_socket(config.run_dir)):
        raise EnvironmentFault("the agent is running and would put everything back: stop it first")
    speaker = running_speaker(config.run_dir)
    if speaker is not None:
        raise EnvironmentFault(f"the speaker ({speaker}) still announces paths that lead here: stop it first")
    preflight.privileges((preflight.CAP_NET_ADMIN, preflight.CAP_BPF))
    from routerd.agent.rooms import open_datapath

    datapath = open_datapath(config)
    try:
        removed = datapath.remove()
    except OSError as error:
        raise EnvironmentFault(f"not everything could be removed: {error}; run cleanup again") from error
    finally:
        datapath.close()
    print("\n".join(f"removed {what}" for what in removed) or "nothing to remove")
    return codes.OK


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


def completion(arguments: argparse.Namespace) -> int:
    from routerd.cli.completion import script
    from routerd.cli.main import parser

    sys.stdout.write(script(arguments.shell, parser()))
    return codes.OK


RUN: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "completion": completion,
    "run": run,
    "agent": agent,
    "speaker": speaker,
    "operator": operator,
    "check": check,
    "plan": plan,
    "show": show,
    "why": why,
    "status": status,
    "ledger": ledger,
    "release": release,
    "release-brake": release_brake,
    "cleanup": cleanup,
    "version": version,
}
