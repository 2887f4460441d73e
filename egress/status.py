"""What the datapath says of itself, as plain values: what programs have counted and noted in maps. Pure.

`moment` is CLOCK_MONOTONIC, ns.

The status API shows every field under its name, so a new one needs its reading (`netdev.py`) and its
metric (`routerd/tell/metrics.py`) and nothing in between.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from bpf import layout
from egress.entries import HINDRANCES, WAYS, MapEntries
from egress.host.enforcement import Way
from egress.policy import Desired, Hindrance, IPAddress

PRESSURE_LASTS = 10.0  # seconds that a long search for a port is remembered


@dataclass(frozen=True, slots=True)
class PortUse:
    """Ports of egress IPs that flows of this node bear, live or resting ones."""

    counted: float = 0.0  # when counting began, of the clock that nobody sets (CLOCK_MONOTONIC), seconds
    used: Mapping[tuple[IPAddress, int], int] = field(default_factory=dict)  # (egress IP, first port of 64) -> flows
    pressed: Mapping[int, float] = field(default_factory=dict)  # group -> when a search for a port was long, same clock


GUARD = "guard_"  # counters of the nft table: drops, all of them


@dataclass(frozen=True, slots=True)
class NatEntry:
    """One translated flow of a pod here. Times in seconds; `gateway` is the number of the node it leaves by."""

    group: int
    protocol: int
    pod: layout.Address
    pod_port: int
    egress_ip: layout.Address
    egress_port: int
    remote: layout.Address
    remote_port: int
    gateway: int
    idle: float


@dataclass(frozen=True, slots=True)
class Probed:
    """What probes of one way to a gateway say. Times in seconds."""

    way: int  # the node's number, and whether it is without the tunnel: layout.WAY_DIRECT
    state: Literal["serves", "leaves", "silent"]
    reasons: tuple[Hindrance, ...]  # why it asks to be left alone
    sent: int
    answered: int
    round_trip: float  # smoothed
    idle: float  # since the last probe was sent
    node: str = ""  # its name
    filtered: bool = False  # of the link: it lets probes through, and a port set not that came back by the tunnel

    @property
    def number(self) -> int:
        return self.way % layout.NODE_NUMBERS

    @property
    def by(self) -> Literal["tunnel", "link"]:
        return "link" if self.way & layout.WAY_DIRECT else "tunnel"


TunnelWay = Literal["programs", "device"]


@dataclass(frozen=True, slots=True)
class EgressStatus:
    """As it was read last; nothing of it where nothing is attached, or reading was refused."""

    datapath: bool = False  # attached and read
    pods: int = 0  # addresses of pods here that a policy selects, without those `unhooked`
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
    first_packets: Way | None = None  # how a flow begins here; None = not told yet
    tunnel_packets: TunnelWay | None = None  # who makes and takes them
    unhooked: tuple[str, ...] = ()  # addresses of selected pods that are not counted there

    @property
    def held_back(self) -> int:
        """First packets that were handed to the host's forward hook and did not come out: a NetworkPolicy or a firewall
        refused them, or they are on their way.
        """
        return max(0, self.passed.get("handed_in", 0) - self.passed.get("came_out", 0))

    def beside(self, desired: Desired | None) -> EgressStatus:
        """With what the desired state says; None = not synced. Gateways that are nobody's any more are left out, and
        ways to them that are none.
        """
        if desired is None:
            return replace(self, pods=0, unhooked=(), probed=())
        names = {gateway.number: gateway.node for group in desired.groups.values() for gateway in group.gateways}
        by_tunnel = names.keys() if desired.transport != "direct" else ()
        on_link = desired.neighbours.keys() if desired.transport != "vxlan" else ()
        probed = tuple(
            replace(each, node=names[each.number])
            for each in self.probed
            if each.number in names and each.number in (on_link if each.by == "link" else by_tunnel)
        )
        selected = {str(address) for address, names in desired.pods.items() if names}
        unhooked = tuple(address for address in self.unhooked if address in selected)
        return replace(self, pods=len(selected) - len(unhooked), unhooked=unhooked, probed=probed)


def told_apart(packets: Mapping[str, int], drops: Collection[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Packets that went on, and those that were dropped: for one of the reasons `drops`, or by the guard."""
    dropped = {name: count for name, count in packets.items() if name in drops or name.startswith(GUARD)}
    return {name: count for name, count in packets.items() if name not in dropped}, dropped


# --- out of maps


def tunnel_packets(settings: layout.Settings) -> TunnelWay:
    return "programs" if settings.underlay_ifindex else "device"


def first_packets(settings: layout.Settings) -> Way | None:
    return next((way for way, number in WAYS.items() if number == settings.network_policy), None)


def totals(counters: MapEntries, reasons: Mapping[int, layout.Reason]) -> dict[str, tuple[int, int]]:
    """(packets, bytes) by reason, of all CPUs."""
    found = {reason.name: (0, 0) for reason in reasons.values()}
    size = len(bytes(layout.Counter()))
    for key, value in counters.items():
        reason = reasons.get(layout.number(key))
        if reason is not None:
            cpus = [layout.decode(layout.Counter, value[i : i + size]) for i in range(0, len(value), size)]
            found[reason.name] = sum(c.packets for c in cpus), sum(c.bytes for c in cpus)
    return found


def nat_entries(flows: MapEntries, moment: int) -> list[NatEntry]:
    """Flows that are translated."""
    found = ((key, layout.decode(layout.FlowValue, value)) for key, value in flows.items())
    return [_nat_entry(key, value, moment) for key, value in found if value.group]


def _nat_entry(key: bytes, v: layout.FlowValue, moment: int) -> NatEntry:
    k = layout.decode(layout.FlowKey, key)
    return NatEntry(
        v.group, k.protocol, layout.ip_of(k.pod), k.pod_port, layout.ip_of(v.egress_ip), v.egress_port,
        layout.ip_of(k.remote), k.remote_port, v.gateway, max(0, moment - v.last_seen) / 1e9,
    )  # fmt: skip


def searches(pressures: MapEntries, moment: int) -> dict[int, tuple[int, bool]]:
    """Group -> (long searches for a port, whether there was one of late)."""
    found = {}
    for key, value in sorted(pressures.items()):
        pressure = layout.decode(layout.Pressure, value)
        is_pressed = moment - pressure.last_seen < PRESSURE_LASTS * 1e9
        found[layout.number(key)] = int(pressure.searches), is_pressed
    return found


def long_searches(pressures: MapEntries) -> dict[int, float]:
    """Group -> when a search for a port was long, or in vain, last: CLOCK_MONOTONIC, seconds."""
    return {layout.number(k): layout.decode(layout.Pressure, v).last_seen / 1e9 for k, v in pressures.items()}


def port_use(collected: layout.Collected, granules: MapEntries, pressed: Mapping[int, float]) -> PortUse | None:
    """As the last round of collection counted it; None before there was one, or if it could not count all ports."""
    last = collected.round
    if not last or collected.ports_uncounted:
        return None
    used: dict[tuple[IPAddress, int], int] = {}
    for key, raw in granules.items():
        granule, use = layout.decode(layout.GranuleKey, key), layout.decode(layout.GranuleUse, raw)
        if use.round == last:
            used[layout.ip_of(granule.egress_ip), granule.granule * layout.GRANULE] = use.ports
    return PortUse(last / 1e9, used, pressed)


def near_share(uses: MapEntries) -> frozenset[int]:
    """Devices whose pods have come near their share of the tables."""
    pressed = {layout.number(key) for key, value in uses.items() if layout.decode(layout.Use, value).pressed}
    return frozenset(pressed - {layout.ALL_PODS})


def addresses(pods: MapEntries, devices: Collection[int]) -> tuple[IPAddress, ...]:
    """Of the pods behind these devices."""
    keys = (layout.decode(layout.PodKey, key) for key in pods)
    return tuple(sorted((layout.ip_of(key.address) for key in keys if key.ifindex in devices), key=layout.ip16))


def probed(
    probes: MapEntries, liveness: MapEntries, multiplier: int, moment: int, filtered: Collection[int] = ()
) -> tuple[Probed, ...]:
    """Gateways to which probes were ever sent. `liveness`: at least of these. `filtered`: see there, ways."""
    known = {key: layout.decode(layout.Liveness, liveness[key]) for key in sorted(probes) if key in liveness}
    past = (layout.decode(layout.Probes, probes[key]) for key in known)
    found = (_probed(*each, multiplier, moment) for each in zip(known, past, known.values(), strict=True))
    return tuple(replace(each, filtered=each.way in filtered) for each in found)


def _probed(key: bytes, past: layout.Probes, known: layout.Liveness, multiplier: int, moment: int) -> Probed:
    """As the programs judge, but for the answer to the last probe that may still come."""
    reasons = tuple(name for name, bit in HINDRANCES.items() if known.service & bit)
    is_silent = multiplier and (known.sent - known.heard) % (1 << 32) > multiplier
    last = past.kept[known.sent % layout.PROBES_KEPT].at
    return Probed(
        layout.number(key), "silent" if is_silent else "leaves" if reasons else "serves", reasons, known.sent,
        past.answered, past.round_trip / 1e9, max(0, moment - last) / 1e9,
    )  # fmt: skip
