"""Questions about a node, to its agent or about files: plan, show, why, status; and what releases its brake."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from routerd import codes
from routerd.cli.command import Command, ask_agent, ask_operator, configuration, manifests, output, socket, tell
from routerd.cli.table import render, table
from routerd.tell.columns import CLOUD, COLUMNS, STEPS

if TYPE_CHECKING:
    from routerd.config import Config
    from routerd.model import Snapshot
    from routerd.node.desired import NodeState, Settings


def _offline(arguments: argparse.Namespace, config: Config) -> tuple[Snapshot, NodeState, Settings]:
    from routerd.agent.settings import settings_of
    from routerd.cli.offline import snapshot_of, state_of

    settings = replace(settings_of(config), node=arguments.node or config.node_name)
    snapshot = snapshot_of(arguments.manifests, config)
    if settings.node not in (snapshot.nodes or {}):
        known = ", ".join(sorted(snapshot.nodes or {})) or "none"
        tell(f"no Node {settings.node} in {arguments.manifests}, so nothing is its: --node names another ({known})")
    return snapshot, state_of(snapshot, settings, config), settings


def show(arguments: argparse.Namespace) -> int:
    from routerd.tell.views import View, rows

    kind = arguments.kind
    if kind == "cloud":
        sys.stdout.write(render(arguments.output, CLOUD, ask_operator(arguments, {"get": "cloud"})))
        return codes.OK
    if arguments.manifests is None:
        found = ask_agent(arguments, {"get": "show", "kind": kind})
    else:
        snapshot, state, _ = _offline(arguments, configuration(arguments))
        found = rows(kind, View(snapshot, state, {}))
    sys.stdout.write(render(arguments.output, COLUMNS[kind], found))
    return codes.OK


def why(arguments: argparse.Namespace) -> int:
    if arguments.manifests is None:
        steps = ask_agent(arguments, {"get": "why", "object": arguments.object})
    else:
        from routerd.tell.why import explain

        snapshot, state, settings = _offline(arguments, configuration(arguments))
        steps = [asdict(step) for step in explain(snapshot, state, settings, arguments.object)]
    noted = [{**step, "yes": "note"} if step.get("note") and not step["yes"] else step for step in steps]
    sys.stdout.write(render(arguments.output, STEPS, steps if arguments.output == "json" else noted))
    return codes.OK if all(step["yes"] or step.get("note") for step in steps) else codes.REFUSED


def plan(arguments: argparse.Namespace) -> int:
    """What would change: the agent's pending work, or the difference that files would make."""
    from routerd.serve.api import DaemonUnreachable
    from routerd.tell.render import changes, refusal_lines, state_lines

    if arguments.manifests is None:
        found = ask_agent(arguments, {"get": "plan"})
        lines, refusals = found["changes"], found["refusals"]
    else:
        config = configuration(arguments)
        _, state, settings = _offline(arguments, config)
        before: list[str] = []
        key = secrets.token_hex(16)  # of this comparison: nobody can tell a password from its mark
        if settings.node == config.node_name:
            try:
                before = ask_agent(arguments, {"get": "desired", "key": key})
                if ask_agent(arguments, {"get": "drain"})["state"] != "serving":
                    tell("this node is out of service: the files are compared as if it were not")
            except DaemonUnreachable as error:
                tell(f"compared with nothing: {error}")
        lines, refusals = changes(before, state_lines(state, key.encode())), refusal_lines(state.refusals)
    print("\n".join([*(lines or ["nothing would change"]), *refusals]))
    return codes.OK


def status(arguments: argparse.Namespace) -> int:
    found = ask_agent(arguments, {"get": "status"})
    if arguments.output == "json":
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        sys.stdout.write(_status_text(found))
    return codes.OK if found["ready"] else codes.REFUSED


def _fill(egress: Mapping[str, Any], table: str) -> str:
    return f"{egress['entries'].get(table, 0)} of at most {egress['room'].get(table, 0)} {table}"


def _pods(egress: Mapping[str, Any]) -> str:
    past = f" and {len(egress['unhooked'])} on devices that lead past it" if egress["unhooked"] else ""
    return f"{egress['pods']} selected pod{'' if egress['pods'] == 1 else 's'} here{past}"


def _status_text(found: Mapping[str, Any]) -> str:
    egress, rounds = found["egress"], found["rounds"]
    head = [
        f"node      {found['node']}, routerd {found['version']}",
        f"ready     {_readiness(found)}",
        f"datapath  {'attached' if egress['datapath'] else 'not attached'}, {_pods(egress)}, {_fill(egress, 'flows')}, "
        f"{_fill(egress, 'ports')}",
        f"rounds    {rounds['done']}, of which {rounds['errors']} failed",
    ]
    if found["config"]["stale"]:
        head.append(f"stale     the configuration is refused, the last good one works on: {found['config']['error']}")
    if found["drain"]["state"] != "serving":
        head.append(f"state     {found['drain']['state']}: {found['drain']['message']}")
        head += [f"waits     {wait}" for wait in found["drain"]["waits"]]
    if rounds["held"]:
        head.append(f"held      {rounds['held']}")
    counted = [{**peer, "paths_there": peer["announced"], "paths_wanted": peer["desired"]} for peer in found["peers"]]
    overrides = ("override",) if any(peer.get("override") for peer in counted) else ()
    peers = table(("peer", "state", "paths_there", "paths_wanted", "flaps", *overrides, "last_error"), counted)
    refusals = table(("severity", "object", "reason", "message"), found["refusals"])
    return "\n".join([*head, "", peers, *([refusals] if found["refusals"] else [])])


def _readiness(found: Mapping[str, Any]) -> str:
    """Everything was read and done as far as it can be: what cannot is counted, for who looks at this line alone."""
    if not found["ready"]:
        return f"no: {found['not_ready_because']}"
    severities = [each["severity"] for each in found["refusals"]]
    counts = [(severities.count(severity), severity) for severity in ("error", "warning")]
    told = [f"{count} {severity}{'' if count == 1 else 's'}" for count, severity in counts if count]
    return f"yes, with {' and '.join(told)}, see below" if told else "yes"


def release_brake(arguments: argparse.Namespace) -> int:
    paths = ask_agent(arguments, {"do": "release-brake"})
    print(f"released {paths} paths" if paths else "nothing is held")
    return codes.OK


def _asked_or_computed(parser: argparse.ArgumentParser) -> None:
    manifests(parser)
    socket(parser)


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=(*COLUMNS, "cloud"), help="what to show; cloud asks the operator")
    output(parser)
    _asked_or_computed(parser)


def _why_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "object", metavar="OBJECT", help="svc/NAMESPACE/NAME, pod/NAMESPACE/NAME, egress/ADDRESS or node/NAME"
    )
    output(parser, ("table", "json"))
    _asked_or_computed(parser)


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    output(parser, ("table", "json"))
    socket(parser)


PLAN = Command(
    "plan",
    "what would change on this node and for each peer, without changing it",
    ("routerd plan", "routerd plan --manifests new/", "routerd plan --manifests new/ --node a"),
    plan,
    detail=(
        "Asks the running agent. With --manifests it compares those files with what the agent has now, or with nothing "
        "if no agent runs, and touches nothing."
    ),
    arguments=_asked_or_computed,
)
SHOW = Command(
    "show",
    "print nodes, peers, BFD sessions, paths, routes, policies, pools, flows, gateways, port sets, egress addresses or "
    "a cloud",
    ("routerd show paths", "routerd show peers -o json", "routerd show egress-ips -o csv >firewall.csv"),
    show,
    detail="`egress-ips -o csv` is the list for a firewall administrator: which source address is whose.",
    arguments=_show_arguments,
)
WHY = Command(
    "why",
    "why a service is (not) announced from here, how a pod leaves, what the gateways of an egress IP are, or which "
    "blocks a node has for its pods",
    ("routerd why svc/default/web", "routerd why pod/default/web-0", "routerd why egress/192.0.2.7 -o json"),
    why,
    detail="Prints each condition and stops at the first no. Exit code 1 if there is a no, save what is only "
    "noted: the family that a policy does not translate beside one that it does.",
    arguments=_why_arguments,
)
STATUS = Command(
    "status",
    "whether the agent is ready, and what it refuses and why",
    ("routerd status", "routerd status -o json"),
    status,
    detail="Exit code 1 if the agent is not ready. A configuration that is wrong is told beside what the agent says.",
    arguments=_status_arguments,
)
RELEASE_BRAKE = Command(
    "release-brake",
    "withdraw what the brake holds on this node",
    ("routerd release-brake",),
    release_brake,
    detail="`routerd status` shows what is held: many withdrawals at once that no change explains (bgp.brake).",
    arguments=socket,
)
