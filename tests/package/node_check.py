"""Runs as a unit's process would, in a network namespace with an uplink: makes a gateway's datapath, reads it back, and
removes it.

    python node_check.py DIRECTORY          a new directory on a BPF file system
"""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from egress.netdev import Datapath
from egress.plan import plan
from egress.policy import Desired, Gateway, Group, Policy

NODE, EGRESS_IP = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.7")

DESIRED = Desired(
    node="a",
    node_address=NODE,
    pods={},
    policies={"world": Policy("world", 7, (IPv4Network("0.0.0.0/0"),))},
    groups={7: Group(7, EGRESS_IP, (Gateway("a", NODE, 0),), slots=1, node_address=True)},
    nodes=frozenset({NODE}),
    cluster=frozenset({IPv4Network("192.0.2.0/24")}),
    pod_cidrs=frozenset({IPv4Network("10.244.0.0/16")}),
)


def main(directory: Path) -> None:
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
