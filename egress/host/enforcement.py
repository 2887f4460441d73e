"""Who enforces NetworkPolicies on a node, told from the traces that CNIs leave there, and so which way the first packet
of a flow takes. Pure.

    direct    redirected at once: nothing on the node enforces, or the configuration says so
    forward   through the host's forward hook, where most enforce; also where it cannot be told who does
    refused   none begins: who enforces sees neither way (`docs/network-policy.md`), or the mark is another's
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from egress.policy import Desired

Way = Literal["direct", "forward", "refused"]
BYPASSED, MARK_TAKEN = "NetworkPolicyBypassed", "MarkTaken"  # reasons

# Plugins that wire a pod to its node and nothing else, and those that are chained to any.
PLAIN = frozenset({"flannel", "bridge", "ptp"})
CHAINED = frozenset({"portmap", "bandwidth", "tuning", "firewall", "sbr", "loopback", "routerd-cni"})


@dataclass(frozen=True, slots=True)
class Traces:
    """What is on a node: names of devices and of tables and chains of netfilter, types of CNI plugins."""

    devices: frozenset[str] = frozenset()
    chains: frozenset[str] = frozenset()
    plugins: frozenset[str] = frozenset()
    is_whole: bool = False  # whether all chains could be read


@dataclass(frozen=True, slots=True)
class MarkUse:
    """A rule that looks at or changes bits of a packet's mark."""

    bits: int
    rule: str


@dataclass(frozen=True, slots=True)
class Enforcer:
    """How it is known, by what names begin with, and where it enforces what the forward hook does not show."""

    name: str
    devices: tuple[str, ...] = ()
    chains: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    elsewhere: str = ""

    def is_on(self, traces: Traces) -> bool:
        signs = (self.devices, traces.devices), (self.chains, traces.chains), (self.plugins, traces.plugins)
        return any(name.startswith(begin) for begins, names in signs for begin in begins for name in names)


ENFORCERS = (
    Enforcer(
        "Cilium", ("cilium_", "lxc_health"), ("CILIUM_", "OLD_CILIUM_"), ("cilium-cni",),
        "in programs on the pods' devices",
    ),
    Enforcer("Calico's eBPF dataplane", ("bpfin.cali", "bpfout.cali"), elsewhere="in programs on the pods' devices"),
    Enforcer("Antrea", ("antrea-gw", "antrea-tun"), ("ANTREA-",), ("antrea",), "in its bridge"),
    Enforcer("OVN-Kubernetes", ("ovn-k8s-mp",), (), ("ovn-k8s-cni-overlay",), "in its bridge"),
    Enforcer("Kube-OVN", ("ovn0",), (), ("kube-ovn",), "in its bridge"),
    Enforcer("Calico", ("cali", "vxlan.calico"), ("cali-", "filter-cali-", "calico"), ("calico",)),
    Enforcer("kube-router", ("kube-bridge",), ("KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-")),
    Enforcer("Weave Net", ("weave",), ("WEAVE-",), ("weave-net",)),
    Enforcer("kube-network-policies", (), ("kube-network-policies", "kindnet-network-policies")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What others have on the node, as it was read last. Rules and chains that come and go do not change it."""

    enforcers: tuple[Enforcer, ...] = ()  # of which there are traces
    is_plain: bool = False  # it is certain that nothing enforces: a known plugin wires the pods, and no trace is there
    marks: tuple[MarkUse, ...] = ()  # by their bits


def surroundings(traces: Traces, marks: Iterable[MarkUse] = ()) -> Surroundings:
    found = tuple(each for each in ENFORCERS if each.is_on(traces))
    is_plain = bool(traces.plugins & PLAIN) and traces.plugins <= PLAIN | CHAINED and traces.is_whole
    by_bits = {use.bits: use for use in sorted(marks, key=lambda use: (use.bits, use.rule), reverse=True)}
    return Surroundings(found, is_plain and not found, tuple(by_bits[bits] for bits in sorted(by_bits)))


@dataclass(frozen=True, slots=True)
class FirstPackets:
    """Their way; `mark` is the bit that they bear on it, `reason` and `message` say why there is none."""

    way: Way
    mark: int = 0
    reason: str = ""
    message: str = ""


def first_packets(desired: Desired, there: Surroundings) -> FirstPackets:
    wish = desired.network_policy
    if wish == "direct" or (wish == "auto" and there.is_plain):
        return FirstPackets("direct")
    blind = [each for each in there.enforcers if each.elsewhere]
    if wish == "auto" and blind:
        return FirstPackets("refused", 0, BYPASSED, _bypassed(blind))
    user = next((use for use in there.marks if use.bits & desired.forward_mark), None)
    if user is not None:
        bit = desired.forward_mark.bit_length() - 1
        advice = "set egress.forward-mark-bit to one that nobody uses; until then no flow begins"
        return FirstPackets("refused", 0, MARK_TAKEN, f"bit {bit} of the mark is used by {user.rule}: {advice}")
    return FirstPackets("forward", desired.forward_mark)


def _bypassed(found: Iterable[Enforcer]) -> str:
    said = "; ".join(f"{each.name} enforces NetworkPolicies {each.elsewhere}" for each in found)
    advice = "what leaves by a gateway would pass by them, so no flow begins; where none matters for selected pods"
    return f"{said}: {advice}, set egress.network-policy: direct"
