"""What the operator knows and does of its ledger: ledger, release."""

from __future__ import annotations

import argparse
import sys

from routerd import codes
from routerd.cli.command import Command, ask_operator, output, socket
from routerd.cli.table import render

LEDGER_COLUMNS = ("address", "owner", "pool", "state", "since")


def ledger(arguments: argparse.Namespace) -> int:
    found = ask_operator(arguments, {"get": "ledger"})
    wanted = [each for each in found if arguments.state in (None, each["state"])]
    sys.stdout.write(render(arguments.output, LEDGER_COLUMNS, wanted))
    return codes.OK


def release(arguments: argparse.Namespace) -> int:
    from routerd.serve.api import WRITE_TIMEOUT

    released = ask_operator(arguments, {"do": "release", "name": arguments.name}, WRITE_TIMEOUT)
    print("\n".join(f"released {each['address']} {each['owner']}" for each in released))
    return codes.OK


def _ledger_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", choices=("used", "reserved", "cooling"), help="only addresses in this state")
    output(parser)
    socket(parser)


def _release_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="an address, or its owner, such as EgressPolicy/web")
    socket(parser)


LEDGER = Command(
    "ledger",
    "print the addresses that are given, reserved or cooling down, and whose they are",
    ("routerd ledger --state reserved", "routerd ledger -o csv >addresses.csv"),
    ledger,
    detail=(
        "Asks the operator, so run it on the operator's host; on Kubernetes in the pod that holds the Lease: "
        'kubectl -n routerd exec "$(kubectl -n routerd get lease routerd-operator -o '
        "jsonpath='{.spec.holderIdentity}' | cut -d_ -f1)\" -- routerd ledger"
    ),
    arguments=_ledger_arguments,
)
RELEASE = Command(
    "release",
    "end the reservation of an egress address whose policy is gone",
    ("routerd release 192.0.2.7", "routerd release EgressPolicy/web"),
    release,
    detail=(
        "Asks the operator, so run it on the operator's host; on Kubernetes in the pod that holds the Lease. Addresses "
        "in use stay with their owners; a released one cools down before it is given again."
    ),
    arguments=_release_arguments,
)
