"""What may still be done of a plan after some of its actions failed or were left out. Pure.

A plan's order is safe when it is cut anywhere; this says what else is safe when a hole is left in it:

    what failed                               what must not follow
    the first guard, the programs, what       anything
      says which traffic is ours
      (settings, nodes and their numbers,
      cluster, uplinks),
      the programs on tunnel and uplinks
    a policy set, or a group that it uses     moving pods to that set
    anything of one pod or its device         what comes later for this pod; the guard counts it as it did before
    a blackhole, the reserved ports           the ports of that address, of node addresses
    the last guard                            taking anything away
    moving a pod, deleting its entry          taking away policy sets and groups: the pod may still use them
    deleting the ports of an address          taking away its blackhole

The tunnel device holds up nothing: without it a plan goes on too, and what would need it is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from bpf import layout
from egress import plan
from egress.nftables import guard
from egress.nftables.frame import DECIDED, SELECTED
from egress.nftables.guard import KEPT
from egress.policy import Desired, IPAddress

FOUNDATIONS = frozenset({"settings", "nodes", "node_numbers", "cluster", "uplinks"})
POD_PROGRAMS = frozenset({"to_pod", "from_pod", "to_beneath"})
SERVED_MAPS = frozenset({"egress_ips"})
POD_MAPS = frozenset(
    {"own_egress_ips", "groups", "epoch", "policies", "pod_devices", "pods", "pod_macs", "strict_devices"}
)
TAKES_AWAY = (plan.Detach, plan.DeleteEntry, plan.PurgeFlows, plan.DeleteBlackhole)
DELETE_AFTER = {  # entries of a map -> maps whose entries lead to them
    "policies": frozenset({"pods", "pod_macs"}),
    "groups": frozenset({"pods", "pod_macs", "policies"}),
    **dict.fromkeys(FOUNDATIONS, POD_MAPS | SERVED_MAPS),
}


class Undone:
    """`add` what failed and what was left out, in the order of the plan; `after` says what may still be done."""

    def __init__(self, desired: Desired, observed: plan.Observed) -> None:
        self._desired = desired
        self._observed = observed
        self._stops = False  # nothing may follow
        self._keeps = False  # nothing may be taken away
        self._maps: set[str] = set()  # that an entry was not put into, or taken from
        self._sets: set[int] = set()  # of policies, incomplete
        self._groups: set[int] = set()  # that are not in place
        self._pods: set[layout.Address] = set()
        self._devices: set[int] = set()
        self._addresses: set[layout.Address] = set()  # whose blackhole is not in place
        self._serves = True  # what this node needs to be a gateway of any address is in place
        self._unserved: set[layout.Address] = set()  # egress addresses whose own ports are not

    def carries(self, group: int) -> bool:
        """Whether all that this node needs to be a gateway of `group` is in place."""
        facts = self._observed.facts
        if self._desired.node_address is None or (facts.headerless and not facts.uplinks):
            return False
        wanted = self._desired.groups.get(group)
        return self._serves and (wanted is None or self._unserved.isdisjoint(wanted.egress_ips))

    def decides(self, address: IPAddress) -> bool:
        """Whether all that the pod with this address needs is in place: programs, its policies, its entry; of a device
        that leads past the programs, what keeps it back beneath. On a node that translates nothing it is the guard.
        """
        facts = self._observed.facts
        device, past = facts.devices.get(address), facts.unhooked.get(address, ())
        on = [device.ifindex] if device else [each.beneath for each in past if address in each.addresses]
        if not all(on) or not on or self._stops:
            return False
        if self._desired.node_address is None:
            return device is not None and not self._keeps
        return address not in self._pods and self._devices.isdisjoint((*on, *(each.beneath for each in past)))

    def add(self, action: plan.Action) -> None:
        self._lack_service(action)
        match action:
            case plan.LoadGuard():
                self._stops |= action.guard == self._first_guard(action)
                self._keeps = True
            case plan.ForgetPrograms() | plan.LoadPrograms() | plan.TakeOver():
                self._stops = True
            case plan.Attach():
                self._stops |= action.program not in POD_PROGRAMS
                self._lack_device(action.ifindex)
            case plan.Detach():
                self._devices.add(action.ifindex)
            case plan.AddBlackhole():
                self._addresses.add(action.address)
            case plan.ReservePorts():
                self._addresses |= self._node_addresses()
            case plan.SeedFlows():
                self._pods.update(address for address, _ in action.pods)
            case plan.PurgeFlows():
                self._pods.update(action.pods)
            case plan.PutEntry():
                self._stops |= action.map in FOUNDATIONS
                self._lack_entry(action)
            case plan.DeleteEntry():
                self._lack_entry(action)

    def after(self, action: plan.Action) -> plan.Action | None:
        """What of `action` may be done; None = nothing."""
        if self._stops or (self._keeps and isinstance(action, TAKES_AWAY)):
            return None
        match action:
            case plan.LoadGuard():
                return self._without_undone_pods(action)
            case plan.Attach() if action.program in POD_PROGRAMS and action.ifindex in self._devices:
                return None
            case plan.PutEntry() if self._is_blocked_put(action):
                return None
            case plan.DeleteEntry() if self._is_blocked_delete(action):
                return None
            case plan.DeleteBlackhole() if self._maps & SERVED_MAPS:
                return None
        return action

    @staticmethod
    def _first_guard(action: plan.LoadGuard) -> object:
        """What the guard of a plan's beginning would be: it decides and selects no pod that is not so already."""
        return guard.early(action.guard, action.present)

    def _lack_service(self, action: plan.Action) -> None:
        match action:
            case plan.AddBlackhole():
                self._unserved.add(action.address)
            case plan.ReservePorts():
                self._unserved |= self._node_addresses()
            case plan.PutEntry() if action.map in SERVED_MAPS:
                self._unserved.add(layout.ip_of(action.key))
            case _:
                self._serves &= _is_of_pods(action)

    def _node_addresses(self) -> set[layout.Address]:
        return {address for address, served in self._desired.served.items() if served.node_address}

    def _lack_device(self, ifindex: int) -> None:
        self._devices.add(ifindex)
        self._pods |= {a for a, device in self._observed.facts.devices.items() if device.ifindex == ifindex}

    def _lack_entry(self, action: plan.PutEntry | plan.DeleteEntry) -> None:
        self._maps.add(action.map)
        match action.map:
            case "policies":
                self._sets.add(layout.policy_set_of(layout.decode(layout.PolicyKey, action.key)))
            case "groups":
                self._groups.add(layout.number(action.key))
            case "pod_devices":
                self._pods.add(layout.ip_of(action.key))
            case "pods":
                key = layout.decode(layout.PodKey, action.key)
                self._pods.add(layout.ip_of(key.address))
                self._devices.add(key.ifindex)
            case "pod_macs":
                self._devices.add(layout.decode(layout.PodMacKey, action.key).ifindex)
            case "strict_devices":
                self._lack_device(layout.number(action.key))

    def _is_blocked_put(self, action: plan.PutEntry) -> bool:
        match action.map:
            case "egress_ips":
                return layout.ip_of(action.key) in self._addresses
            case "policies":
                return not self._groups.isdisjoint(_groups_of(action.value))
            case "pods":
                pod = layout.ip_of(layout.decode(layout.PodKey, action.key).address)
                policy_set = layout.decode(layout.PodValue, action.value).policy_set
                return pod in self._pods or self._is_incomplete(policy_set)
            case "pod_macs":
                return self._is_incomplete(layout.number(action.value))
            case "strict_devices":
                return layout.number(action.key) in self._devices
        return False

    def _is_incomplete(self, policy_set: int) -> bool:
        if policy_set in self._sets:
            return True
        if not self._groups:
            return False
        entries = self._observed.maps.get("policies", {}).items()
        values = (v for k, v in entries if layout.policy_set_of(layout.decode(layout.PolicyKey, k)) == policy_set)
        return any(not self._groups.isdisjoint(_groups_of(value)) for value in values)

    def _is_blocked_delete(self, action: plan.DeleteEntry) -> bool:
        if self._maps & DELETE_AFTER.get(action.map, frozenset()):
            return True
        match action.map:
            case "pods":
                key = layout.decode(layout.PodKey, action.key)
                return layout.ip_of(key.address) in self._pods or key.ifindex in self._devices
            case "strict_devices":
                return layout.number(action.key) in self._devices
        return False

    def _without_undone_pods(self, action: plan.LoadGuard) -> plan.LoadGuard:
        """The guard with the pods that lack something as they were before."""
        if not self._pods:
            return action
        present = action.present
        if present is not None and present.frame != action.guard.frame:
            present = None  # made anew: nothing of it is there to keep
        before = present.sets if present else {}
        lacking = {str(pod) for pod in self._pods}

        def as_before(name: str) -> frozenset[str]:
            others = (e for e in action.guard.sets.get(name, ()) if _address(e) not in lacking)
            theirs = (e for e in before.get(name, ()) if _address(e) in lacking)
            return frozenset((*others, *theirs))

        sets = {**action.guard.sets, **{name: as_before(name) for name in (*DECIDED, *SELECTED)}}
        used = {element.rpartition(" : jump ")[2] for name in SELECTED for element in sets[name]}
        there = present.chains if present else {}
        old = {name: tuple(KEPT + rule for rule in there[name]) for name in used - action.guard.chains.keys()}
        return replace(action, guard=replace(action.guard, sets=sets, chains={**action.guard.chains, **old}))


def _is_of_pods(action: plan.Action) -> bool:
    """Whether only pods of this node miss something when the action is not done."""
    match action:
        case plan.SeedFlows() | plan.LoadGuard() | plan.Detach() | plan.PurgeFlows() | plan.DeleteBlackhole():
            return True
        case plan.DropBefore():  # nobody does
            return True
        case plan.Attach():
            return action.program in POD_PROGRAMS | {"to_uplink"}
        case plan.PutEntry():
            return action.map in POD_MAPS
        case plan.DeleteEntry():
            return True
    return False


def _address(element: str) -> str:
    """The pod's address in an element of the guard's sets: "DEVICE . ADDRESS" or "DEVICE . ADDRESS : jump CHAIN"."""
    return element.partition(" : ")[0].rpartition(" . ")[2]


def _groups_of(value: bytes) -> Iterable[int]:
    rules = layout.decode(layout.PolicyValue, value)
    return (rule.group for rule in rules.rules[: rules.count])
