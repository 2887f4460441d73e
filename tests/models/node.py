"""A node's datapath as a small model: does what a plan's actions say, and is observed like the real one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import singledispatchmethod

from bpf import layout
from egress import plan
from egress.entries import Facts, Link, MapEntries
from egress.host.links import PodDevice, Unhooked
from egress.nftables.guard import Guard
from egress.plan import Attachment, Observed, Tunnel
from egress.policy import IPAddress

DIGEST = 0xABCD


@dataclass
class FakeNode:
    devices: Mapping[IPAddress, PodDevice] = field(default_factory=dict)
    uplinks: Mapping[str, int] = field(default_factory=lambda: {"eth0": 2})
    unhooked: Mapping[IPAddress, tuple[Unhooked, ...]] = field(default_factory=dict)
    underlay_mtu: int = 1500
    link: Link | None = None  # of nodes
    by_stack: bool = False
    digest: int = DIGEST  # of the object that this release ships
    tunnel: Tunnel | None = None
    maps: dict[str, MapEntries] = field(default_factory=dict)
    attachments: set[Attachment] = field(default_factory=set)
    guard: Guard | None = None
    blackholes: set[IPAddress] = field(default_factory=set)
    ports_reserved: bool = False
    other_layout: bool = False  # of what is pinned
    can_hand_over: bool = False  # what is pinned
    set_aside: bool = False  # another release's programs and maps
    flows_taken_over: bool = False
    flows_of: set[IPAddress] = field(default_factory=set)  # pods that have live flows
    seeded: list[IPAddress] = field(default_factory=list)
    next_ifindex: int = 100

    def copy(self) -> FakeNode:
        return copy.deepcopy(self)

    def pinned_digest(self) -> int:
        for value in self.maps.get("settings", {}).values():
            return int(layout.decode(layout.Settings, value).object_digest)
        return 0

    def observe(self) -> Observed:
        tunnel = self.tunnel.ifindex if self.tunnel else 0
        mtu = self.underlay_mtu - plan.TUNNEL_OVERHEAD[4] if self.underlay_mtu else 0
        return Observed(
            facts=Facts(
                self.devices,
                self.uplinks,
                tunnel,
                mtu,
                self.digest,
                link=self.link,
                by_stack=self.by_stack,
                unhooked=self.unhooked,
            ),
            pinned_digest=0 if self.other_layout else self.pinned_digest(),
            other_layout=self.other_layout,
            hands_over=self.set_aside or (self.other_layout and self.can_hand_over),
            underlay_mtu=self.underlay_mtu,
            tunnel=self.tunnel,
            maps={} if self.other_layout else {name: dict(entries) for name, entries in self.maps.items()},
            attachments=frozenset(self.attachments),
            guard=self.guard,
            blackholes=frozenset(self.blackholes),
            ports_reserved=self.ports_reserved,
        )

    @singledispatchmethod
    def apply(self, action: object) -> None:
        raise TypeError(f"not an action: {action!r}")

    @apply.register
    def _(self, _action: plan.ForgetPrograms) -> None:
        self.maps, self.attachments, self.other_layout = {}, set(), False

    @apply.register
    def _(self, _action: plan.TakeOver) -> None:
        assert self.set_aside
        assert self.maps["pods"], "what programs need is there before any is on a hook"
        assert not any(attachment.current for attachment in self.attachments), "nobody else writes the maps"
        self.flows_taken_over = True

    @apply.register
    def _(self, _action: plan.DropBefore) -> None:
        assert self.flows_taken_over
        assert all(attachment.current for attachment in self.attachments), "nothing uses the other maps"
        self.set_aside = False

    @apply.register
    def _(self, action: plan.LoadPrograms) -> None:
        if action.beside:
            self.maps, self.other_layout, self.set_aside = {}, False, True
        self.maps = {name: self.maps.get(name, {}) for name in plan.WRITE_ORDER}
        self.attachments = {replace(attachment, current=False) for attachment in self.attachments}

    @apply.register
    def _(self, action: plan.CreateTunnel) -> None:
        gone = self.tunnel.ifindex if self.tunnel else 0
        assert action.replace == bool(gone), "a device of that name is there"
        self.attachments = {attachment for attachment in self.attachments if attachment.ifindex != gone}
        self.next_ifindex += 1
        self.tunnel = Tunnel(self.next_ifindex, action.mtu, action.port, up=True, forwarding=True)

    @apply.register
    def _(self, action: plan.ConfigureTunnel) -> None:
        assert self.tunnel
        self.tunnel = replace(self.tunnel, mtu=action.mtu, up=True, forwarding=True)

    @apply.register
    def _(self, action: plan.AddBlackhole) -> None:
        self.blackholes.add(action.address)

    @apply.register
    def _(self, action: plan.DeleteBlackhole) -> None:
        self.blackholes.remove(action.address)

    @apply.register
    def _(self, _action: plan.ReservePorts) -> None:
        self.ports_reserved = True

    @apply.register
    def _(self, action: plan.PutEntry) -> None:
        self.maps[action.map][action.key] = action.value

    @apply.register
    def _(self, action: plan.DeleteEntry) -> None:
        del self.maps[action.map][action.key]

    @apply.register
    def _(self, action: plan.PurgeFlows) -> None:
        self.flows_of -= set(action.pods)

    @apply.register
    def _(self, action: plan.SeedFlows) -> None:
        assert "flows" not in self.maps
        self.seeded += [address for address, _ in action.pods]

    @apply.register
    def _(self, action: plan.Attach) -> None:
        assert self.maps, "a program is loaded"
        self.attachments = {a for a in self.attachments if (a.program, a.ifindex) != (action.program, action.ifindex)}
        self.attachments.add(Attachment(action.program, action.ifindex))

    @apply.register
    def _(self, action: plan.Detach) -> None:
        self.attachments = {a for a in self.attachments if (a.program, a.ifindex) != (action.program, action.ifindex)}

    @apply.register
    def _(self, action: plan.LoadGuard) -> None:
        assert action.present == self.guard, "the transaction deletes the chains that are there"
        self.guard = action.guard.digests()
