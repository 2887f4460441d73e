"""The guard's table without what depends on the cluster: hooks, counters, what sets and maps hold; and each family's
words. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from egress.policy import Version

TABLE = "routerd"
FAMILY = "inet"
COUNTERS = (  # of drops
    "astray", "detour", "foreign_source", "forged", "selected", "source_routed", "spoofed", "taken_port", "undecided",
)  # fmt: skip
HOOKS = {  # chain -> type, hook, priority and policy; -300 is raw, -10 just before the filters of others
    "prerouting": ("filter", "prerouting", -300, "accept"),
    "output": ("filter", "output", -300, "accept"),
    "forward": ("filter", "forward", -10, "accept"),
    "input": ("filter", "input", -10, "accept"),
    "sent": ("filter", "output", -10, "accept"),
}
LEAVING = "leaving"  # only where it has rules: every packet that leaves would ask it; behind all source NAT
MAY_HOOK = {LEAVING: ("filter", "postrouting", 110, "accept")}


@dataclass(frozen=True, slots=True)
class Family:
    """A family's words in nft. `suffix` ends the names of its sets."""

    version: Version
    suffix: str
    header: str
    address: str  # the type of its addresses
    icmp: str


FAMILIES = (Family(4, "", "ip", "ipv4_addr", "icmp"), Family(6, "6", "ip6", "ipv6_addr", "icmpv6"))


def _set_types(family: Family) -> dict[str, str]:
    return {
        f"cluster{family.suffix}": f"type {family.address}; flags interval;",
        f"covered{family.suffix}": f"type {family.address}; flags interval;",
        f"pod_sources{family.suffix}": f"type {family.address}; flags interval;",
        f"egress_ips{family.suffix}": f"type {family.address};",
        f"decided{family.suffix}": f"type ifname . {family.address};",
        f"no_pods{family.suffix}": f"type {family.address};",
        f"pools{family.suffix}": f"type {family.address}; flags interval;",
        f"node_addresses{family.suffix}": f"type {family.address};",
    }


SET_TYPES = {
    **{name: kind for family in FAMILIES for name, kind in _set_types(family).items()},
    **{f"nodes{family.suffix}": f"type {family.address};" for family in FAMILIES},
    "pod_devices": "type ifname;",
    "host_devices": "type ifname;",
    "hooked": "type iface_index;",  # a device that comes in the place of one with a program bears its name
}
MAP_TYPES = {
    f"{name}{family.suffix}": f"type ifname . {family.address} : verdict;"
    for name in ("selected", "detoured")
    for family in FAMILIES
}
# What the maps of the programs must hold before it may say so, by what `early` leaves out.
HOOKED = "hooked"  # devices by which packets leave that were handed to the host: to_uplink is there
DECIDED, SELECTED = (tuple(f"{name}{family.suffix}" for family in FAMILIES) for name in ("decided", "selected"))


def key_type(declaration: str) -> str:
    """The type of the keys in a set's declaration: "type ifname . ipv4_addr : verdict;" -> "ifname . ipv4_addr"."""
    return declaration.partition(";")[0].partition(" : ")[0].removeprefix("type ")


# What does not depend on the cluster: where the chains are hooked in, what the sets hold, and the table's own flags.
FRAME: Mapping[str, object] = {
    **{f"chain {name}": hook for name, hook in HOOKS.items()},
    **{f"set {name}": key_type(kind) for name, kind in {**SET_TYPES, **MAP_TYPES}.items()},
}
