"""Takes this node out of service and back: drain, undrain."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from typing import Any

from routerd import codes
from routerd.cli.command import Command, ask_agent, socket

LOOK = 0.5  # seconds between two questions to the agent
TIMEOUT = 300  # seconds


def drain(arguments: argparse.Namespace) -> int:
    found = ask_agent(arguments, {"do": "drain"})
    if not arguments.wait:
        print(_draining(found))
        return codes.OK
    return _wait(arguments, found)


def _draining(found: Mapping[str, Any]) -> str:
    if found["state"] == "drained":
        return "safe to stop: the node is drained"
    return "the node drains; `routerd drain --wait` returns when it may be stopped"


def _wait(arguments: argparse.Namespace, found: Mapping[str, Any]) -> int:
    """Until it is safe. What is waited for is told on stderr when it is something else than before."""
    deadline = time.monotonic() + arguments.timeout
    told: list[str] = []
    while found["state"] != "drained":
        waits = [wait.partition(" in ")[0].partition(" for ")[0] for wait in found["waits"]]  # without the seconds
        if waits != told:
            told = waits
            print(*(f"waits: {wait}" for wait in found["waits"]), sep="\n", file=sys.stderr, flush=True)
        if found["state"] == "serving":
            print("routerd: it was undrained meanwhile", file=sys.stderr)
            return codes.REFUSED
        if time.monotonic() >= deadline:
            print(f"routerd: not safe to stop after {arguments.timeout} s, see above; it goes on", file=sys.stderr)
            return codes.REFUSED
        time.sleep(LOOK)
        found = ask_agent(arguments, {"get": "drain"})
    for note in found["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print("safe to stop: the node is drained")
    return codes.OK


def undrain(arguments: argparse.Namespace) -> int:
    found = ask_agent(arguments, {"do": "undrain"})
    if found["state"] == "serving":
        print("the node serves")
        return codes.OK
    print(f"routerd: it leaves all the same: {found['message']}", file=sys.stderr)
    return codes.REFUSED


def _drain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="return when the node may be stopped, and say so")
    parser.add_argument(
        "--timeout", type=int, default=TIMEOUT, metavar="SECONDS", help=f"with --wait: at most (default: {TIMEOUT})"
    )
    socket(parser)


DRAIN = Command(
    "drain",
    "take this node out of service, without losing a connection",
    ("routerd drain --wait", "routerd drain --wait --timeout 60"),
    drain,
    detail=(
        "Peers are asked to prefer other nodes (drain.notice), then VIPs are withdrawn, and other gateways get the "
        "egress IPs. Pods here go on, with their policies. It lasts, over reboots too, until `routerd undrain`. "
        "Exit code 1 if it is not safe to stop the node when the time is over; what is missing is told."
    ),
    arguments=_drain_arguments,
)
UNDRAIN = Command(
    "undrain",
    "put this node back into service",
    ("routerd undrain",),
    undrain,
    detail="Exit code 1 if it leaves for another reason: it shuts down, or is cordoned and drain.cordoned is on.",
    arguments=socket,
)
