"""Ports of an egress IP change hands while a gateway is cut from the store for longer than they rest.

What the gateway read last stays in force there, and leads the ports to the node that had them. So nobody else may get
them before the gateway has said that it dropped them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress

from routerd.config import DEFAULT
from routerd.serve.api import agent_socket, ask
from tests.netns.lab.hosts import PodHost
from tests.netns.lab.lab import FW_ADDRESS
from tests.netns.lab.site import EGRESS_IP, SELECTED, Site
from tests.netns.lab.traffic import Echo
from tests.waiting import wait

PORT_REST = 10.0  # seconds, in place of ten minutes
CUT, NEAR = "gw1", "gw3"  # the gateway that is cut off, and one that is not
GUESTS = {"guest2": "gw2", "guest3": NEAR}  # pods that are selected now and then, each the only one of its node
PATIENCE = 120.0  # seconds
Owners = Mapping[int, str]  # granule of the egress IP -> node, "" = it rests


@contextmanager
def ports_move(
    cuts: Sequence[Callable[[Site], AbstractContextManager[None]]], guests: Sequence[str], site: Site
) -> Iterator[None]:
    """The first guest leaves, and its ports come back and would have rested; then comes the second one."""
    leaving, coming = map(site.lab.pod, guests)
    with Echo(admitted(site, leaving)):
        ports = of(owners(site, CUT), leaving)
    assert ports
    with ExitStack() as healed:
        for cut in cuts:
            healed.enter_context(cut(site))
        since = time.monotonic()
        site.select(leaving, {})
        wait(lambda: not of(owners(site, NEAR), leaving), "the ports come back", timeout=PATIENCE)
        time.sleep(max(2 * PORT_REST, since + DEFAULT.operator.gateway_patience - time.monotonic()))
        with Echo(admitted(site, coming)) as echo:
            yield
            assert of(owners(site, CUT), leaving) == ports, f"{CUT} is not cut off"
            assert not (wrong := two_users([owners(site, name) for name in site.gateways])), f"two users: {wrong}"
            healed.close()
            wait(lambda: not ports & owners(site, CUT).keys(), "what has rested is free", timeout=PATIENCE)
            assert echo.end() == ""
    site.select(coming, {})


def admitted(site: Site, guest: PodHost) -> PodHost:
    """Once it leaves with the egress IP."""
    site.select(guest, SELECTED)
    wait(lambda: greeted(guest) == EGRESS_IP, f"{guest.label} leaves with the egress IP", timeout=PATIENCE)
    return guest


def greeted(guest: PodHost) -> str:
    """The source that the far end sees. The pod ends the connection, so that its port rests for a short time."""
    with suppress(OSError), guest.connect(FW_ADDRESS, 7, 1.0) as connection:
        return connection.recv(128).decode().strip().partition(" saw ")[2]
    return ""


def owners(site: Site, gateway: str) -> Owners:
    """As the gateway's agent has read them last."""
    rows = ask(agent_socket(site.lab.node(gateway).directory / "run"), {"get": "show", "kind": "port-sets"})
    blocks = ((row["node"], *map(int, row["ports"].split("-"))) for row in rows if row["egress_ip"] == EGRESS_IP)
    return {granule: node for node, first, last in blocks for granule in range(first >> 6, (last >> 6) + 1)}


def of(table: Owners, guest: PodHost) -> frozenset[int]:
    return frozenset(granule for granule, node in table.items() if node == guest.node.label)


def two_users(tables: Collection[Owners]) -> set[int]:
    """Granules that gateways lead to more than one node."""
    pairs = {(granule, node) for table in tables for granule, node in table.items() if node}
    return {granule for granule, users in Counter(granule for granule, _ in pairs).items() if users > 1}
