"""desired + observed -> actions in a safe order. Pure.

Actions of phase "prepare" come before this node announces what they carry, those of phase "retire" after it has
withdrawn what leads to them: what a gateway gives up. What a node of pods gives up waits for nobody. Every prefix of a
plan is safe: a new policy set is complete before a pod is moved to it; a pod counts as decided in the guard only when
its entries and programs are in place; nothing is deleted that something live refers to. Cut anywhere, observed and
planned again, it converges. A device that an action makes is known to the next round only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import ClassVar, Literal

from bpf import layout
from egress.entries import (
    FIRST_NODE_PORT,
    LAST_NODE_PORT,
    Facts,
    MapEntries,
    attached,
    describe,
    direct_link,
    is_sayable,
    map_entries,
    overloaded,
    underlay_link,
)
from egress.host.enforcement import first_packets
from egress.host.links import PodDevice, Unhooked
from egress.kept import Difference, Kept
from egress.nftables import guard as guards
from egress.nftables.guard import Guard
from egress.policy import Desired, IPAddress
from egress.trials import with_echoes

Phase = Literal["prepare", "retire"]

# UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348), and the outer header.
TUNNEL_OVERHEAD: Mapping[int, int] = {4: 50, 6: 70}
RESERVED = range(FIRST_NODE_PORT, LAST_NODE_PORT + 1)
UNHOOKED = "DeviceUnhooked"  # reason of a pod with a device that leads past the programs
RESERVED_PORTS = f"{FIRST_NODE_PORT}-{LAST_NODE_PORT}"

# A pod's entry is written last but one, so that all it refers to is there; a device turns strict after its pods are
# known.
WRITE_ORDER = (
    "settings", "nodes", "node_numbers", "neighbours", "cluster", "uplinks", "egress_ips", "own_egress_ips", "groups",
    "epoch", "policies", "pod_devices", "pods", "pod_macs", "strict_devices",
)  # fmt: skip
ARRAYS = frozenset({"settings", "node_numbers", "epoch"})  # their elements are there from the start, all zero
DELETE_ORDER = tuple(reversed(WRITE_ORDER))
# What others may still be led to by what this node announces.
LED_TO_MAPS = frozenset({"egress_ips", "neighbours", "node_numbers", "nodes", "settings", "uplinks"})
LED_TO_PROGRAMS = frozenset({"from_tunnel", "from_uplink"})


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The tunnel device as it is. MTU in bytes of inner IP packet."""

    ifindex: int
    mtu: int
    port: int
    up: bool
    forwarding: bool  # net.ipv4.conf.DEVICE.forwarding: without it the kernel's route look-up refuses


@dataclass(frozen=True, slots=True)
class Attachment:
    """A program of ours on a device. `current` = it is the program that is pinned now."""

    program: str
    ifindex: int
    current: bool = True


@dataclass(frozen=True, slots=True)
class Observed:
    """What is there, read back. `maps` lacks maps that are not pinned."""

    facts: Facts = field(default_factory=Facts)
    pinned_digest: int = 0  # of the object that the programs came from; 0 = a program or map is not pinned
    other_layout: bool = False  # what is pinned is of a release with other maps
    hands_over: bool = False  # a release with other maps is on hooks still, and its flows can be taken over
    underlay_mtu: int = 0  # of the device that holds the node's tunnel address; 0 = no device does
    ip_forward: bool = True
    tunnel: Tunnel | None = None
    maps: Mapping[str, MapEntries] = field(default_factory=dict)
    attachments: frozenset[Attachment] = frozenset()
    guard: Guard | None = None  # rules as digests
    blackholes: frozenset[IPAddress] = frozenset()  # routes of ours
    ports_reserved: bool = False
    ambiguous: frozenset[IPAddress] = frozenset()  # addresses that more than one device's pod has


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wanted that cannot be done here. `object` names it, `message` says who must do what."""

    object: str
    reason: str
    message: str


# --- actions


@dataclass(frozen=True, slots=True)
class Prepare:
    phase: ClassVar[Phase] = "prepare"


@dataclass(frozen=True, slots=True)
class Retire:
    phase: ClassVar[Phase] = "retire"


@dataclass(frozen=True, slots=True)
class ForgetPrograms(Prepare):
    """Unpins what a release with other maps left: its programs go from their hooks, and the guard drops meanwhile what
    policies cover.
    """

    def __str__(self) -> str:
        return "remove eBPF programs and maps of another layout: connections through them end"


@dataclass(frozen=True, slots=True)
class LoadPrograms(Prepare):
    beside: bool = False  # those of a release with other maps, which go on

    def __str__(self) -> str:
        return f"load eBPF programs and maps{' beside those of another layout' if self.beside else ''}"


@dataclass(frozen=True, slots=True)
class TakeOver(Prepare):
    """Copies flows and ports from a release with other maps; none of this release's programs is on a hook yet."""

    def __str__(self) -> str:
        return "take over the flows of eBPF maps of another layout"


@dataclass(frozen=True, slots=True)
class DropBefore(Prepare):
    def __str__(self) -> str:
        return "remove eBPF maps of another layout, whose flows were taken over"


@dataclass(frozen=True, slots=True)
class CreateTunnel(Prepare):
    port: int
    mtu: int
    replace: bool = False

    def __str__(self) -> str:
        return f"{'replace' if self.replace else 'create'} tunnel device, UDP port {self.port}, MTU {self.mtu}"


@dataclass(frozen=True, slots=True)
class ConfigureTunnel(Prepare):
    mtu: int

    def __str__(self) -> str:
        return f"set tunnel device up, forwarding, MTU {self.mtu}"


@dataclass(frozen=True, slots=True)
class AddBlackhole(Prepare):
    address: IPAddress

    def __str__(self) -> str:
        return f"add route blackhole {ip_network(self.address)}"


@dataclass(frozen=True, slots=True)
class ReservePorts(Prepare):
    def __str__(self) -> str:
        return f"reserve local ports {RESERVED_PORTS}"


@dataclass(frozen=True, slots=True)
class PutEntry(Prepare):
    map: str
    key: bytes
    value: bytes

    def __str__(self) -> str:
        return f"map {self.map}: put {describe(self.map, self.key, self.value)}"


@dataclass(frozen=True, slots=True)
class SeedFlows(Prepare):
    """Connections of pods which are selected from now on. Answers to what others began go on as before; what the pods
    began themselves begins anew with their next packet, and nobody's packet before that makes it another's.
    """

    pods: tuple[tuple[IPAddress, int], ...]  # with the device of each

    def __str__(self) -> str:
        return f"look at connections that run: {', '.join(str(address) for address, _ in self.pods)}"


@dataclass(frozen=True, slots=True)
class Attach(Prepare):
    program: str
    ifindex: int
    device: str

    def __str__(self) -> str:
        return f"attach {self.program} to {self.device}"


@dataclass(frozen=True, slots=True)
class LoadGuard(Prepare):
    guard: Guard = field(repr=False)
    present: Guard | None = field(repr=False)

    def __str__(self) -> str:
        decided, selected = (len(self.guard.sets.get(name, ())) for name in ("decided", "selected"))
        return f"load guard (nft table routerd): {decided} pods decided, {selected} selected"


@dataclass(frozen=True, slots=True)
class Detach:
    program: str
    ifindex: int

    @property
    def phase(self) -> Phase:
        return "retire" if self.program in LED_TO_PROGRAMS else "prepare"

    def __str__(self) -> str:
        return f"detach {self.program} from device {self.ifindex}"


@dataclass(frozen=True, slots=True)
class DeleteEntry:
    map: str
    key: bytes
    value: bytes

    @property
    def phase(self) -> Phase:
        return "retire" if self.map in LED_TO_MAPS else "prepare"

    def __str__(self) -> str:
        return f"map {self.map}: delete {describe(self.map, self.key, self.value)}"


@dataclass(frozen=True, slots=True)
class PurgeFlows(Prepare):
    """Flows of addresses whose pods have gone: the next owner's packets are decided anew."""

    pods: tuple[IPAddress, ...]

    def __str__(self) -> str:
        return f"purge flows of {', '.join(map(str, self.pods))}"


@dataclass(frozen=True, slots=True)
class DeleteBlackhole(Retire):
    address: IPAddress

    def __str__(self) -> str:
        return f"delete route blackhole {ip_network(self.address)}"


Action = (
    ForgetPrograms | LoadPrograms | TakeOver | DropBefore | CreateTunnel | ConfigureTunnel | AddBlackhole | ReservePorts
    | PutEntry | SeedFlows | Attach | LoadGuard | Detach | DeleteEntry | PurgeFlows | DeleteBlackhole
)  # fmt: skip


# --- what is wanted


def choose_devices(
    candidates: Mapping[IPAddress, Sequence[PodDevice]],
    routed: Mapping[IPAddress, int],
    pods: MapEntries,
    told: Mapping[IPAddress, frozenset[str]],
) -> dict[IPAddress, PodDevice]:
    """The device of each pod address. A pod may give itself any address, so being there is not enough to be it.

    A host route is the node's own word and decides. Without one (a bridge), an address that two devices have is that of
    the device which the CNI named (`told`), else of the one that it was programmed for (`pods`: the map as it is); if
    it was for none, it belongs to nobody.
    """
    known = {device.ifindex for found in candidates.values() for device in found}
    programmed: set[tuple[IPAddress, int]] = {
        (_pod_address(key), layout.decode(layout.PodKey, key).ifindex) for key in pods
    }
    chosen = {}
    for address, found in candidates.items():
        if routed.get(address) in known:
            matching = [device for device in found if device.ifindex == routed[address]]
        elif len(found) == 1:
            matching = list(found)
        else:
            named = [device for device in found if device.name in told.get(address, ())]
            matching = named or [device for device in found if (address, device.ifindex) in programmed]
        if len(matching) == 1:
            chosen[address] = matching[0]
    return chosen


def wanted_attachments(desired: Desired, observed: Observed) -> dict[tuple[str, int], str]:
    """(program, ifindex) -> device name, in the order of attaching: the way back is open before the way out."""
    facts = observed.facts
    wanted: dict[tuple[str, int], str] = {}
    if observed.tunnel:
        wanted["from_tunnel", observed.tunnel.ifindex] = "the tunnel"
        wanted["to_tunnel", observed.tunnel.ifindex] = "the tunnel"
    link = direct_link(desired, facts) or underlay_link(desired, facts)
    for name, ifindex in sorted({**facts.uplinks, **({link.name: link.ifindex} if link else {})}.items()):
        wanted["from_uplink", ifindex] = name
        if first_packets(desired, facts.surroundings).way == "forward":
            wanted["to_uplink", ifindex] = name
    for device in sorted({each for devices in facts.unhooked.values() for each in devices}, key=lambda it: it.beneath):
        if device.beneath:
            wanted["to_beneath", device.beneath] = device.beneath_name
    devices = sorted({(device.ifindex, device.name) for device in attached(desired, facts).values()})
    for program in ("to_pod", "from_pod"):
        for ifindex, name in devices:
            wanted[program, ifindex] = name
    return wanted


def wanted_entries(desired: Desired, observed: Observed, kept: Kept | None = None) -> dict[str, MapEntries]:
    kept = kept or Kept()
    places = kept.places.update(desired.cluster)
    wanted = map_entries(desired, observed.facts, observed.maps.get("policies", {}), places, kept.sets)
    return {**wanted, "groups": with_echoes(wanted["groups"], observed.maps.get("groups", {}))}


# --- the plan


def plan(desired: Desired | None, observed: Observed, kept: Kept | None = None) -> tuple[Action, ...]:
    """What to do now. None is unknown: nothing. Without a tunnel endpoint nothing is translated, but nothing leaks.

    `kept`: of the last plan; it is renewed.
    """
    if desired is None:
        return ()
    kept = kept or Kept()
    target = guards.render(desired, observed.facts, kept)
    if desired.node_address is None:
        return tuple(_guard_alone(target, observed))
    wanted = wanted_entries(desired, observed, kept)
    differences = {
        name: kept.differences(name, _difference, entries, observed.maps.get(name, {}))
        for name, entries in wanted.items()
    }
    actions = (*_additions(desired, observed, differences, target), *_removals(desired, observed, differences))
    return tuple(sorted(actions, key=lambda action: action.phase == "retire"))


def _guard_alone(target: Guard, observed: Observed) -> Iterator[Action]:
    """The guard waits for no maps: what its pods' policies cover is dropped. What else is there stays as it is."""
    if observed.guard != target.digests():
        yield LoadGuard(target, observed.guard)


def _difference(wanted: MapEntries, present: MapEntries) -> Difference:
    put = sorted((key, value) for key, value in wanted.items() if present.get(key) != value)
    return Difference(wanted, present, put, sorted(present.keys() - wanted.keys()))


def _additions(
    desired: Desired, observed: Observed, differences: Mapping[str, Difference], target: Guard
) -> Iterator[Action]:
    present = observed.guard
    early = guards.early(target, present)
    if present != early.digests():
        yield LoadGuard(early, present)
    if observed.other_layout and not observed.hands_over:
        yield ForgetPrograms()
    if observed.other_layout or observed.pinned_digest != observed.facts.object_digest:
        yield LoadPrograms(beside=observed.other_layout and observed.hands_over)
    yield from _prepare_tunnel(desired, observed)
    if any(served.node_address for served in desired.served.values()) and not observed.ports_reserved:
        yield ReservePorts()
    for address in _sorted(_blackholes(desired) - observed.blackholes):
        yield AddBlackhole(address)
    for name in WRITE_ORDER:
        yield from _put_entries(name, differences[name])
    yield from _attach(desired, observed)
    if early != target:
        yield LoadGuard(target, early.digests())


def _attach(desired: Desired, observed: Observed) -> Iterator[Action]:
    current = {(a.program, a.ifindex) for a in observed.attachments if a.current and not observed.other_layout}
    wanted = wanted_attachments(desired, observed)
    lacking = {hook: device for hook, device in wanted.items() if hook not in current}
    if observed.hands_over and lacking and not current:
        yield TakeOver()
    for (program, ifindex), device in lacking.items():
        yield Attach(program, ifindex, device)
    if observed.hands_over and not lacking:
        yield DropBefore()


def _put_entries(name: str, difference: Difference) -> Iterator[Action]:
    if name == "pods":
        wanted, present = difference.wanted, difference.present
        moved = _moved(wanted, present)
        if moved:  # before its new device is known by this address: the flows there are another pod's
            yield PurgeFlows(tuple(_sorted({_pod_address(key) for key in moved})))
            yield from (DeleteEntry(name, key, present[key]) for key in moved)
        selected = _newly_selected(wanted, present)
        if selected:
            yield SeedFlows(selected)
    for key, value in difference.put:
        yield PutEntry(name, key, value)


def _moved(wanted: MapEntries, present: MapEntries) -> list[bytes]:
    """Entries of addresses that are on another device now."""
    addresses = {_pod_address(key) for key in wanted}
    return sorted(key for key in present if key not in wanted and _pod_address(key) in addresses)


def _newly_selected(wanted: MapEntries, present: MapEntries) -> tuple[tuple[IPAddress, int], ...]:
    """Address and device of pods that had no policy and have one now."""
    keys = (key for key, value in wanted.items() if _policy_set(value) and not _policy_set(present.get(key)))
    pods = {_pod_address(key): layout.decode(layout.PodKey, key).ifindex for key in keys}
    return tuple((address, pods[address]) for address in _sorted(pods))


def _policy_set(value: bytes | None) -> int:
    return layout.decode(layout.PodValue, value).policy_set if value else 0


def _prepare_tunnel(desired: Desired, observed: Observed) -> Iterator[Action]:
    if not observed.underlay_mtu:
        return  # `problems` says why
    assert desired.node_address is not None
    mtu = observed.underlay_mtu - TUNNEL_OVERHEAD[desired.node_address.version]
    tunnel = observed.tunnel
    if tunnel is None or tunnel.port != desired.tunnel_port:
        yield CreateTunnel(desired.tunnel_port, mtu, replace=tunnel is not None)
    elif not (tunnel.up and tunnel.forwarding and tunnel.mtu == mtu):
        yield ConfigureTunnel(mtu)


def _removals(desired: Desired, observed: Observed, differences: Mapping[str, Difference]) -> Iterator[Action]:
    attachments = wanted_attachments(desired, observed)
    for attachment in sorted(observed.attachments, key=lambda a: (a.program, a.ifindex)):
        if (attachment.program, attachment.ifindex) not in attachments:
            yield Detach(attachment.program, attachment.ifindex)
    for name in DELETE_ORDER:
        present, gone = differences[name].present, differences[name].gone
        if name == "pods":
            moved = _moved(differences[name].wanted, present)
            gone = [key for key in gone if key not in moved]
            if gone:  # first, as only the entries say that there is something to purge
                yield PurgeFlows(tuple(_sorted(_pod_address(key) for key in gone)))
        yield from (DeleteEntry(name, key, present[key]) for key in gone)
    for address in _sorted(observed.blackholes - _blackholes(desired)):
        yield DeleteBlackhole(address)


def _blackholes(desired: Desired) -> frozenset[IPAddress]:
    """Egress IPs that no host has: what reaches this gateway for one and is not taken by a program must not go on.

    Of a Service's address that is kube-proxy's to say; the node's own processes would not reach it by a blackhole.
    """
    shared = (address for address, served in desired.served.items() if served.node_address or served.vip)
    return frozenset(desired.served.keys() - {*shared})


def _sorted(addresses: Iterable[IPAddress]) -> list[IPAddress]:
    return sorted(addresses, key=lambda address: (address.version, address))


def _pod_address(key: bytes) -> IPAddress:
    return layout.ip_of(layout.decode(layout.PodKey, key).address)


_FORWARDING_OFF = (
    "net.ipv4.ip_forward is 0: what this gateway translates passes, but it forwards nothing else, neither for "
    "other pods nor for services: sysctl -w net.ipv4.ip_forward=1"
)


def _sends_out(desired: Desired) -> bool:
    """Whether packets leave by an uplink of this node."""
    used = {name for names in desired.pods.values() for name in names}
    return bool(desired.served) or any(desired.policies[name].exit_local for name in used & desired.policies.keys())


def problems(desired: Desired, observed: Observed, kept: Kept | None = None) -> tuple[Problem, ...]:
    """What is wanted and cannot be done on this machine as it is. `kept`: of the last plan; it is renewed."""
    found = []
    node = f"node/{desired.node}"
    if desired.node_address is not None and not observed.underlay_mtu:
        message = f"no device has the node's address {desired.node_address}: set the Node's InternalIP or the device"
        found.append(Problem(node, "TunnelAddressMissing", message))
    if not observed.ip_forward and desired.served:
        found.append(Problem(node, "ForwardingOff", _FORWARDING_OFF))
    found += _of_uplinks(desired, observed.facts)
    first = first_packets(desired, observed.facts.surroundings)
    if first.way == "refused" and any(desired.pods.values()):
        found.append(Problem(node, first.reason, first.message))
    return (
        *found,
        *_of_pods(desired, observed),
        *_unguarded(desired, observed.facts),
        *_unsayable(desired, observed.facts),
        *_overloads(desired, kept or Kept()),
    )


def _of_pods(desired: Desired, observed: Observed) -> Iterator[Problem]:
    """What their devices are, or are not."""
    pods, known, past_hooks = _concerned(desired), observed.facts.devices, observed.facts.unhooked
    for address in _sorted(pods - known.keys() - past_hooks.keys()):
        message = (
            f"no veth or netkit leads to {address}: what it sends to covered destinations is dropped until one does"
        )
        yield Problem(f"pod-address/{address}", "PodDeviceMissing", message)
    for address in _sorted(pods & past_hooks.keys()):
        yield Problem(f"pod-address/{address}", UNHOOKED, _past_hooks(address, past_hooks[address]))
    for address in _sorted(observed.ambiguous & pods):
        kept = known.get(address)
        message = f"more than one pod has {address}; {f'it is that of {kept.name}' if kept else 'it is nobody'}'s"
        yield Problem(f"pod-address/{address}", "PodAddressTwice", message)


def _past_hooks(address: IPAddress, devices: Sequence[Unhooked]) -> str:
    """It is said first whether the pod leaves by such a device alone, or by it beside one that has a hook."""
    own = next((device for device in devices if address in device.addresses), None)
    if own is not None:
        return (
            f"{address} is on {own.kind} device {own.name}, which leads past the translation and the guard of this "
            f"node: it has no egress IP, and {_kept_back([own])}; a pod needs a veth or netkit"
        )
    shown = ", ".join(f"{device.kind} device {device.name}" for device in devices)
    return (
        f"the pod of {address} has {shown} besides: of what it sends by that to where policies lead nothing is "
        f"translated, and {_kept_back(devices)}; take the network from the pod, or its routes to there"
    )


def _kept_back(devices: Sequence[Unhooked]) -> str:
    """Beneath, a pod's packets are known by the MAC and the addresses of its device alone."""
    beneath = sorted({device.beneath_name for device in devices if device.is_kept_back})
    free = [device.name for device in devices if not device.is_kept_back]
    kept = f"what policies cover is dropped at {', '.join(beneath)}, answers among it" if beneath else ""
    left = f"nothing here keeps back what leaves by {', '.join(free)}" if free else ""
    return ", and ".join(filter(None, (kept, left)))


def _concerned(desired: Desired) -> frozenset[IPAddress]:
    """Addresses of pods to which the datapath makes a difference: some policy covers their family."""
    covered = {network.version for policy in desired.policies.values() for network in policy.destinations}
    return frozenset(address for address in desired.pods if address.version in covered)


def _of_uplinks(desired: Desired, facts: Facts) -> Iterator[Problem]:
    for name in desired.uplinks:
        if name not in facts.uplinks.keys() | facts.headerless:
            message = f"uplink {name} does not exist on {desired.node}: correct egress.uplinks, or create the device"
            yield Problem(f"uplink/{name}", "UplinkMissing", message)
    if desired.uplinks or _sends_out(desired):
        for name in sorted(facts.headerless):
            message = (
                f"packets of {name} have no Ethernet header (WireGuard, PPP, tun): what is routed to it is dropped,"
            )
            message += " lead egress traffic by another device and name that in egress.uplinks"
            yield Problem(f"uplink/{name}", "UplinkWithoutEthernet", message)
    if not desired.uplinks and not facts.uplinks and not facts.headerless and _sends_out(desired):
        message = "no default route, so no uplink was found: name the devices in egress.uplinks"
        yield Problem(f"node/{desired.node}", "UplinkMissing", message)


def _unguarded(desired: Desired, facts: Facts) -> Iterator[Problem]:
    """A bridge is known for one of pods by the pods that are on it, or by the node's pod CIDRs before there are any."""
    found = {a: facts.devices[a] for a in _concerned(desired) if a in facts.devices}
    on_bridge = [a for a, device in found.items() if device.forward_name != device.name]
    outside = [a for a in on_bridge if not any(a in network for network in desired.pod_cidrs)]
    if outside:
        which = f"{len(outside)} pods, {_sorted(outside)[0]} among them, have addresses outside the node's pod CIDRs"
        message = f"{which}: the first pod on a new bridge is not guarded before it is in the store; set spec.podCIDRs"
        yield Problem(f"node/{desired.node}", "PodOutsidePodCidrs", message)


def _unsayable(desired: Desired, facts: Facts) -> Iterator[Problem]:
    """Devices that the guard cannot know, as nft cannot say their names."""
    advice = 'rename it, without ", \\ and a * at its end'
    for address in _sorted(_concerned(desired)):
        device = facts.devices.get(address)
        if device is not None and not is_sayable(device.forward_name):
            message = f"nft cannot say the name of device {device.forward_name!a}: what {address} sends to covered"
            message += f" destinations is dropped unless its policies take it; {advice}"
            yield Problem(f"pod-address/{address}", "DeviceName", message)
    for name in sorted({facts.underlay, *facts.uplinks}):
        if desired.policies and not is_sayable(name):
            message = f"nft cannot say the name of device {name!a}: tunnel packets by it are dropped; {advice}"
            yield Problem(f"node/{desired.node}", "DeviceName", message)


def _overloads(desired: Desired, kept: Kept) -> Iterator[Problem]:
    combinations = sorted(set(desired.pods.values()))
    kept.overloaded.drop_but(combinations)
    for names in combinations:
        policies = (desired.policies[name] for name in names if name in desired.policies)
        for prefix in kept.overloaded(names, overloaded, *policies):
            limit = f"{prefix} has more than {layout.MAX_RULES} rules for one pod: the last are dropped"
            yield Problem(names[0], "TooManyRules", f"{limit}; merge {', '.join(names)}")
