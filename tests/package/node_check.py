"""Runs as a unit's process would, in a network namespace with an uplink: asks by ICMP, makes a gateway's datapath,
reads it back, and removes it.

    python node_check.py DIRECTORY          a new directory on a BPF file system
"""

from __future__ import annotations

import asyncio
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from egress.netdev import Datapath
from egress.plan import plan
from egress.policy import Block, Desired, Gateway, Group, Policy, Served
from upstream.ask import ask
from upstream.targets import Target

NODE, EGRESS_IP = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.7")
OWNERS = bytes(2 * 960) + b"\0\1" * 16 + bytes(2 * 48)  # ports 61440 to 62463 are node 1's

DESIRED = Desired(
    node="a",
    node_address=NODE,
    pods={},
    policies={"world": Policy("world", 7, (IPv4Network("0.0.0.0/0"),))},
    groups={7: Group(7, (EGRESS_IP,), (Gateway("a", 1),), (Block(EGRESS_IP, 61440, 1024),), node_address=True)},
    served={EGRESS_IP: Served(OWNERS, node_address=True)},
    nodes={1: NODE},
    icmp_sources=(NODE,),
    cluster=frozenset({IPv4Network("192.0.2.0/24")}),
    pod_cidrs=frozenset({IPv4Network("10.244.0.0/16")}),
)


def main(directory: Path) -> None:
    asyncio.run(ask(Target("icmp", NODE), timeout=0.1))  # whatever answers: raises CannotAsk if it may not
    datapath = Datapath(directory)
    try:
        for _ in range(4):
            for action in plan(DESIRED, datapath.observe(DESIRED)):
                datapath.apply(action)
        print("left to do:", *plan(DESIRED, datapath.observe(DESIRED)))
    finally:
        print("removed:", *datapath.remove())
        datapath.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
