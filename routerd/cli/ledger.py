"""What the operator knows and does of its ledger: ledger, who, release."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from routerd import codes
from routerd.cli.command import Command, ask_operator, configuration, output, socket
from routerd.cli.table import render
from routerd.errors import EnvironmentFault

LEDGER_COLUMNS = ("address", "owner", "pool", "state", "since")
WHO_COLUMNS = ("egress_ip", "ports", "node", "since", "until")


def ledger(arguments: argparse.Namespace) -> int:
    found = ask_operator(arguments, {"get": "ledger"})
    wanted = [each for each in found if arguments.state in (None, each["state"])]
    sys.stdout.write(render(arguments.output, LEDGER_COLUMNS, wanted))
    return codes.OK


def who(arguments: argparse.Namespace) -> int:
    address, port = arguments.source
    request = {"get": "who", "address": address, "port": port, "at": arguments.at}
    found = ask_operator(arguments, request)
    if not found:
        when = "now" if arguments.at is None else "then"
        print(f"routerd: port {port} of {address} is no node's {when}", file=sys.stderr)
        return codes.REFUSED
    sys.stdout.write(render(arguments.output, WHO_COLUMNS, found))
    return codes.OK


def _source(text: str) -> tuple[str, int]:
    """ADDRESS:PORT; an IPv6 address in brackets, as in a URL (RFC 3986, section 3.2.2)."""
    from ipaddress import ip_address

    host, _, port = text.rpartition(":")
    try:
        address = ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
        number = int(port)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected ADDRESS:PORT or [ADDRESS]:PORT") from None
    if not 0 <= number <= 65535 or (address.version == 6 and not host.startswith("[")):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected ADDRESS:PORT or [ADDRESS]:PORT")
    return str(address), number


def _moment(text: str) -> float:
    """Seconds of the Unix epoch of a time in RFC 3339."""
    from datetime import datetime

    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a time such as 2026-11-29T21:00:00Z")
    return moment.timestamp()


def release(arguments: argparse.Namespace) -> int:
    from routerd.serve.api import WRITE_TIMEOUT

    released = ask_operator(arguments, {"do": "release", "name": arguments.name}, WRITE_TIMEOUT)
    print("\n".join(f"released {each['address']} {each['owner']}" for each in released))
    return codes.OK


def backup(arguments: argparse.Namespace) -> int:
    from routerd.store.embedded.backup import back_up

    generation = back_up(_ledger_of(arguments), arguments.file)
    print(f"wrote {arguments.file}, of generation {generation}")
    return codes.OK


def restore(arguments: argparse.Namespace) -> int:
    from routerd.store.embedded.backup import restore as put_back

    path = _ledger_of(arguments)
    kept = f"; what it was is {path}.before" if path.exists() else ""
    print(f"{path} is of generation {put_back(arguments.file, path)} now{kept}")
    return codes.OK


def _ledger_of(arguments: argparse.Namespace) -> Path:
    config = configuration(arguments)
    if config.store.kind == "kubernetes":
        raise EnvironmentFault(
            "store.kind is kubernetes: the ledger is in ConfigMaps of its namespace, back up those, or etcd"
        )
    return config.operator.ledger


def _file_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="the copy")


def _ledger_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", choices=("used", "reserved", "cooling"), help="only addresses in this state")
    output(parser)
    socket(parser)


def _who_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="ADDRESS:PORT", type=_source, help="an egress IP and a source port")
    parser.add_argument("--at", metavar="TIME", type=_moment, help="when, such as 2026-11-29T21:00:00Z; default: now")
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
WHO = Command(
    "who",
    "print the node that uses, or used, a port of an egress IP",
    ("routerd who 192.0.2.7:50123", "routerd who 192.0.2.7:50123 --at 2026-11-29T21:00:00Z"),
    who,
    detail=(
        "Asks the operator, so run it on the operator's host; on Kubernetes in the pod that holds the Lease. For "
        "complaints that name an address, a port and a time."
    ),
    arguments=_who_arguments,
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
BACKUP = Command(
    "backup",
    "copy the operator's ledger to a file",
    ("routerd backup /backup/ledger.sqlite",),
    backup,
    detail="On the operator's host, also while it runs. The copy is checked before it gets its name.",
    arguments=_file_argument,
)
RESTORE = Command(
    "restore",
    "put a copy in the place of the operator's ledger",
    ("routerd restore /backup/ledger.sqlite",),
    restore,
    detail=(
        "On the operator's host, while no operator runs. The copy is checked first; the ledger stays beside it as "
        "NAME.before. What was published since the copy was made, the operator takes over when it starts."
    ),
    arguments=_file_argument,
)
