"""What the datapath says of itself, as plain values. Pure.

The status API shows every field under its name, so a new one needs its reading (`netdev.py`) and its metric
(`routerd/tell/metrics.py`) and nothing in between.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from egress.policy import Desired, Hindrance, IPAddress, selected_pods


@dataclass(frozen=True, slots=True)
class PortUse:
    """Ports of egress IPs that flows of this node bear, live or resting ones."""

    counted: float = 0.0  # when counting began, of the clock that nobody sets (CLOCK_MONOTONIC), seconds
    used: Mapping[tuple[IPAddress, int], int] = field(default_factory=dict)  # (egress IP, first port of 64) -> flows
    pressed: frozenset[int] = frozenset()  # groups in which searches for a port have grown long of late


GUARD = "guard_"  # counters of the nft table: drops, all of them


@dataclass(frozen=True, slots=True)
class Probed:
    """What probes of one gateway say. Times in seconds."""

    number: int  # of the node
    state: Literal["serves", "leaves", "silent"]
    reasons: tuple[Hindrance, ...]  # why it asks to be left alone
    sent: int
    answered: int
    round_trip: float  # smoothed
    idle: float  # since the last probe was sent
    node: str = ""  # its name


@dataclass(frozen=True, slots=True)
class EgressStatus:
    """As it was read last; nothing of it where nothing is attached, or reading was refused."""

    datapath: bool = False  # attached and read
    pods: int = 0  # addresses of pods here that a policy selects
    entries: Mapping[str, int] = field(default_factory=dict)  # of the tables that fill: flows, ports, granules
    room: Mapping[str, int] = field(default_factory=dict)  # for entries, by table
    long_searches: Mapping[str, int] = field(
        default_factory=dict
    )  # for a free port, by group, since the maps were made
    pressed: Mapping[str, int] = field(
        default_factory=dict
    )  # "egress/GROUP" that searches long of late, "pod-address/…"
    # near its share of the tables
    passed: Mapping[str, int] = field(default_factory=dict)  # packets that went on, by outcome
    drops: Mapping[str, int] = field(default_factory=dict)  # packets by reason
    probed: tuple[Probed, ...] = ()  # gateways

    def beside(self, desired: Desired | None) -> EgressStatus:
        """With what the desired state says; None = not synced. Gateways that are nobody's any more are left out."""
        groups = desired.groups.values() if desired is not None else ()
        names = {gateway.number: gateway.node for group in groups for gateway in group.gateways}
        probed = tuple(replace(each, node=names[each.number]) for each in self.probed if each.number in names)
        return replace(self, pods=len(selected_pods(desired)) if desired is not None else 0, probed=probed)


def told_apart(packets: Mapping[str, int], drops: Collection[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Packets that went on, and those that were dropped: for one of the reasons `drops`, or by the guard."""
    dropped = {name: count for name, count in packets.items() if name in drops or name.startswith(GUARD)}
    return {name: count for name, count in packets.items() if name not in dropped}, dropped
