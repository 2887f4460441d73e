"""What an agent remembers of its pods' addresses, as text: JSON, read back by the agent of that node alone. Pure.

A damaged file is an error and never an empty one: an address that was forgotten could be given twice.
"""

from __future__ import annotations

import json
from dataclasses import astuple
from ipaddress import IPv4Interface, ip_address, ip_network
from typing import Any, get_args

from ipam.pod_addresses import Attachment, Hold, Interface, Owner, PodAddresses, State
from routerd.errors import InputError
from routerd.formats.jsontext import parse_json

FORMAT = 1  # of a later one nothing is read


def write_pod_addresses(held: PodAddresses) -> str:
    holds = sorted(held.holds.values(), key=lambda each: (each.address.version, each.address))
    whole = {
        "format": FORMAT,
        "blocks": [str(block) for block in held.blocks],
        "leaving": [str(block) for block in held.leaving],
        "generation": held.generation,
        "interfaces": [[each.mac, str(each.own), [str(one) for one in each.blocks]] for each in held.interfaces],
        "last": [str(address) for address in held.last],
        "holds": [
            [str(each.address), each.state, each.since, *astuple(each.attachment), *astuple(each.owner), each.keeps]
            for each in holds
        ],
    }
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":")) + "\n"


def parse_pod_addresses(text: str, file: str) -> PodAddresses:
    """Raises InputError."""
    try:
        whole = parse_json(text)
        if whole["format"] != FORMAT:
            raise InputError(
                f"it is of format {whole['format']}, this routerd knows {FORMAT}: run the newer one", file=file
            )
        holds = [_hold(*row) for row in whole["holds"]]
        return PodAddresses(
            tuple(map(ip_network, whole["blocks"])),
            {each.address: each for each in holds},
            tuple(map(ip_address, whole["last"])),
            interfaces=tuple(_interface(*row) for row in whole.get("interfaces", ())),
            leaving=tuple(map(ip_network, whole.get("leaving", ()))),
            generation=int(whole.get("generation", 0)),
        )
    except (ValueError, TypeError, KeyError) as error:
        message = f"it is damaged ({error}): drain the node, remove the file and start the agent"
        raise InputError(message, file=file) from error


def _interface(mac: str, own: str, blocks: list[str]) -> Interface:
    return Interface(mac, IPv4Interface(own), tuple(map(ip_network, blocks)))


def _hold(
    address: str,
    state: Any,
    since: float,
    network: str,
    container: str,
    interface: str,
    pod: str,
    uid: str,
    keeps: bool,
) -> Hold:
    if state not in get_args(State):
        raise ValueError(f"an address is {state}")
    attachment = Attachment(network, container, interface)
    return Hold(ip_address(address), attachment, Owner(pod, uid), state, float(since), bool(keeps))
