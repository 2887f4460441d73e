"""`routerd` in a lab that cannot wait for ten minutes: ports of egress IPs rest for as long as `REST` in the
environment says, and a node gives them back sooner, too. In place of `routerd.cli.main`, which has no such setting.
"""

from __future__ import annotations

import os
import runpy

from ipam import port_sets
from routerd.node import port_sets as asked

REST = "LAB_PORT_REST"  # seconds


def main() -> None:
    port_sets.COOLDOWN = float(os.environ[REST])
    asked.LINGER = float(os.environ[REST]) / 5
    runpy.run_module("routerd.cli.main", run_name="__main__")


if __name__ == "__main__":
    main()
