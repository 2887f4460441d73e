"""The datapath of one node: reads it back, applies one action at a time, and tells its counters. Decides nothing.

All of it belongs to the network namespace of the calling thread. Needs CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial, singledispatchmethod
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal

from bpf import bcc_loader, handover, layout, loader, pins, syscall
from egress import devices, entries, host_settings, plan, status
from egress.attach import Attacher, Mode
from egress.entries import Facts
from egress.host import conntrack
from egress.host.enforcement import Surroundings
from egress.host.links import Link, host_devices, inner_namespaces, pod_devices, second_devices, unhooked
from egress.host.recent import RecentEntries, RecentTable
from egress.host.survey import CNI_CONFIG, survey
from egress.nftables import guard, nft
from egress.nftables.frame import FAMILY, TABLE
from egress.policy import QUARTERS, TUNNEL_DEVICE, Desired, IPAddress, IPNetwork, Limits, Quotas, limits
from egress.status import GUARD, EgressStatus, NatEntry, PortUse, Probed, told_apart
from egress.trials import Lacking, Trial, filtered, frame, on_link, untried, with_echoes
from netlink.wire import NetlinkSocket

# Map sizes when they are made; memory is taken as they fill (no preallocation), about 250 bytes for each flow.
DEFAULT_NAT_ENTRIES = 262_144
EMPTY_FRAME = bytes(64)
POLICIES = "policies"
TABLES = {"flows": "flows", "ports": "reverse", "granules": "granules"}  # that fill -> their maps
LOADERS = {"libbpf": loader, "bcc": bcc_loader}
LoaderName = Literal["libbpf", "bcc"]


class DatapathError(OSError):
    """Something that the datapath needs refused; the message says what it said."""


class Datapath:
    """What is pinned under `pin_directory`, and the devices, routes and nft table that go with it."""

    def __init__(
        self,
        pin_directory: Path,
        attach: Mode = "auto",
        nat_entries: int = DEFAULT_NAT_ENTRIES,
        loader_name: LoaderName = "libbpf",
        host_devices: tuple[str, ...] = (),
        quotas: Quotas = QUARTERS,
        cni_config: Path = CNI_CONFIG,
    ) -> None:
        self._host_devices = frozenset(host_devices)  # those that only the operator of the node can know
        self._pins = pin_directory
        self._attacher = Attacher(pin_directory, attach)
        self._sizes = {"flows": nat_entries, "reverse": 2 * nat_entries}  # ports at rest have no flow
        self._quotas = quotas
        self._cni_config = cni_config
        self._surroundings: Surroundings | None = None  # as they were surveyed last
        self._has_ipsec = False  # as observed last
        self._unhooked: tuple[str, ...] = ()  # pods with devices that lead past the hooks, as observed last
        self._near_share: tuple[IPAddress, ...] = ()  # pods that came near their share before the last collection
        self._maps = loader.PinnedMaps(pin_directory)
        self._policies = RecentEntries()  # the largest of the maps
        self._guard: RecentTable[guard.Guard | None] = RecentTable()
        self._loader = LOADERS[loader_name]
        self._digest = self._loader.digest()
        self._reasons = layout.read_reasons()

    def close(self) -> None:
        self._maps.close()

    # -- reading

    def observe(self, desired: Desired) -> plan.Observed:
        """Everything that `plan` compares, read from the kernel."""
        self._has_ipsec = devices.has_ipsec()
        with NetlinkSocket() as route:
            links = devices.read_links(route)
            addresses = {address: index for index, address in devices.read_addresses(route)}
            networks = devices.read_networks(route)
            routes = devices.read_routes(route)
            namespaces = devices.read_namespaces(route, inner_namespaces(links))
            candidates = pod_devices(links, namespaces)
            selected = frozenset(address for address, names in desired.pods.items() if names)
            if selected - candidates.keys():
                others = devices.other_namespaces(route) - {space.id for space in namespaces}
                namespaces += devices.read_namespaces(route, others)
        other_layout = loader.has_other_layout(self._pins)
        maps = {} if other_layout else self._read_maps()
        pods = plan.choose_devices(candidates, routes.hosts, maps.get("pods", {}), desired.told_devices)
        by_name = {link.name: link.ifindex for link in links.values()}
        names = desired.uplinks or tuple(links[i].name for i in sorted(routes.defaults) if i in links)
        past_hooks = unhooked(links, namespaces, selected, pods)
        self._unhooked = tuple(map(str, sorted(past_hooks, key=layout.ip16)))
        tunnel = _tunnel(by_name, links)
        underlay = links.get(addresses.get(desired.node_address, 0)) if desired.node_address else None
        ways = {name: by_name[name] for name in names if name in by_name}
        uplinks = {name: ifindex for name, ifindex in ways.items() if links[ifindex].is_ethernet}
        own = {address: links[index].name for address, index in addresses.items() if index in links}
        bridges = guard.pod_bridges(desired, candidates, own)
        ways_out = {
            *([underlay.name] if underlay else []),
            *ways,
            *(links[i].name for i in routes.defaults if i in links),
        }
        underlay_mtu = _underlay_mtu(underlay, [links[ifindex] for ifindex in ways.values()])
        return plan.Observed(
            facts=Facts(
                devices=pods,
                uplinks=uplinks,
                headerless=frozenset(ways.keys() - uplinks.keys()),
                tunnel_ifindex=tunnel.ifindex if tunnel else 0,
                tunnel_mtu=underlay_mtu - _overhead(desired) if underlay_mtu else 0,
                object_digest=self._digest,
                underlay=underlay.name if underlay else "",
                link=_link(underlay, networks),
                by_stack=needs_stack(underlay, links.values(), routes, self._has_ipsec),
                limits=self._limits(),
                host_devices=host_devices(links, bridges) | ways_out | self._host_devices,
                surroundings=self._surroundings_for(desired, frozenset(by_name)),
                cut_off=bool(ways) and not any(links[ifindex].carrier for ifindex in uplinks.values()),
                ways_out=_ways_out(routes.widest, frozenset(uplinks.values())),
                unhooked=past_hooks,
                second_devices=second_devices(links, (pods[each] for each in desired.pods if each in pods)),
            ),
            other_layout=other_layout,
            hands_over=handover.can_take_over(self._pins, other_layout),
            pinned_digest=0 if pins.missing(self._pins) else loader.pinned_digest(self._pins),
            underlay_mtu=underlay_mtu,
            ip_forward=devices.ip_forward(),
            tunnel=tunnel,
            maps=maps,
            attachments=self._attacher.observe({link.ifindex: link.name for link in links.values()}),
            guard=self._guard.get(lambda: nft.parse(_list_guard()), frozenset(uplinks.items())),
            blackholes=routes.blackholes,
            ambiguous=frozenset(address for address, found in candidates.items() if len(found) > 1),
            ports_reserved=devices.are_reserved(plan.RESERVED),
        )

    def _surroundings_for(self, desired: Desired, names: frozenset[str]) -> Surroundings:
        """Read once; `survey` reads them again: of all rules of a large node that takes longer than a pod may wait."""
        if desired.network_policy == "direct":
            return Surroundings()
        if self._surroundings is None:
            self._surroundings = survey(names, self._cni_config)
        return self._surroundings

    def survey(self) -> bool:
        """Reads anew what others have on the node, if anybody asks for that; whether it is something else than before.
        Other calls need not wait for it.
        """
        if devices.has_ipsec() != self._has_ipsec:
            return True
        before = self._surroundings
        if before is None:
            return False
        with NetlinkSocket() as route:
            names = frozenset(link.name for link in devices.read_links(route).values())
        self._surroundings = survey(names, self._cni_config)
        return self._surroundings != before

    def _limits(self) -> Limits:
        """Of the tables that are there, which keep the size that they were made with."""
        return limits(self._room("flows"), self._room("reverse"), self._quotas)

    def _room(self, name: str) -> int:
        try:
            return self._maps[name].max_entries
        except FileNotFoundError:
            return self._sizes[name]

    def _read_maps(self) -> dict[str, dict[bytes, bytes]]:
        found = {}
        for name in plan.WRITE_ORDER:
            try:
                # An array's elements are there from the start: all zero means that nobody has written it.
                read = partial(self._maps[name].items, zeros=name not in plan.ARRAYS)
                found[name] = self._policies.get(read) if name == POLICIES else read()
            except FileNotFoundError:
                continue
        return found

    def counters(self) -> dict[str, tuple[int, int]]:
        """(packets, bytes) by reason since the maps were made; the guard's drops come as `guard_…` with 0 bytes."""
        try:
            totals = status.totals(self._maps["counters"].items(), self._reasons)
        except FileNotFoundError:
            return {}
        dropped = nft.parse_counters(_list_guard())
        return {**totals, **{f"{GUARD}{name}": (packets, 0) for name, packets in dropped.items()}}

    def nat(self) -> Sequence[NatEntry]:
        """Live flows of pods here that are translated."""
        try:
            entries = self._maps["flows"].items()
        except FileNotFoundError:
            return ()
        return status.nat_entries(entries, time.monotonic_ns())

    def port_use(self) -> PortUse | None:
        """As the last round of collection counted it; None before there was one, or if it could not count all ports."""
        try:
            collected, granules = self._collected(), self._maps["granules"].items()
            return status.port_use(collected, granules, self.long_searches())
        except FileNotFoundError:
            return None

    def long_searches(self) -> Mapping[int, float]:
        """Group -> when a search for a port was long, or in vain, last: CLOCK_MONOTONIC, seconds."""
        return status.long_searches(self._maps["pressures"].items())

    def status(self) -> EgressStatus:
        """Not attached where nothing is pinned yet."""
        packets = {name: count for name, (count, _) in self.counters().items()}
        passed, drops = told_apart(packets, {reason.name for reason in self._reasons.values() if reason.is_drop})
        if not packets:
            return EgressStatus()
        searches = self._searches()
        pressed = {f"egress/{group}": 1 for group, (_, is_pressed) in searches.items() if is_pressed}
        settings = self._settings()
        return EgressStatus(
            True,
            entries=self._entries(),
            room={table: self._maps[name].max_entries for table, name in TABLES.items()},
            long_searches={str(group): count for group, (count, _) in searches.items()},
            pressed={**pressed, **{f"pod-address/{address}": 1 for address in self._near_share}},
            probed=self.probed(),
            passed=passed,
            drops=drops,
            first_packets=status.first_packets(settings) if settings else None,
            tunnel_packets=status.tunnel_packets(settings) if settings else None,
            unhooked=self._unhooked,
        )

    def _settings(self) -> layout.Settings | None:
        value = self._maps["settings"].get(layout.u32(0))
        return layout.decode(layout.Settings, value) if value else None

    def _entries(self) -> dict[str, int]:
        """Flows and ports as the programs count them, granules as they were at the last collection."""
        use = self._use_of_all()
        return {"flows": use.flows + use.outside, "ports": use.ports, "granules": self._collected().granules}

    def _use_of_all(self) -> layout.Use:
        value = self._maps["uses"].get(layout.u32(layout.ALL_PODS))
        return layout.decode(layout.Use, value) if value else layout.Use()

    def _collected(self) -> layout.Collected:
        value = self._maps["collected"].get(layout.u32(0))
        return layout.decode(layout.Collected, value) if value else layout.Collected()

    def _searches(self) -> dict[int, tuple[int, bool]]:
        return status.searches(self._maps["pressures"].items(), time.monotonic_ns())

    def is_pressed(self) -> bool:
        """Whether a pod has come near its share of the tables, or a group near the end of its ports, since the last
        collection, which is due then.
        """
        try:
            searched = max(self.long_searches().values(), default=0.0)
            return bool(self._use_of_all().pressed) or searched > self._collected().round / 1e9
        except FileNotFoundError:
            return False

    def probed(self) -> tuple[Probed, ...]:
        """Gateways to which probes were ever sent."""
        value = self._maps["settings"].get(layout.u32(0))
        settings = layout.decode(layout.Settings, value) if value else layout.Settings()
        probes, liveness = self._maps["probes"].items(), self._maps["liveness"]
        known = {key: value for key in probes if (value := liveness.get(key)) is not None}
        kept_back = filtered(self._untried()) if settings.direct_ifindex else frozenset[int]()
        return status.probed(probes, known, settings.probe_multiplier, time.monotonic_ns(), kept_back)

    def try_port_sets(self) -> Lacking:
        """Sends a trial of each port set by each way to a gateway that has not echoed it. How many that are.

        What has come back, the programs have noted by the time of the next call.
        """
        try:
            lacking = self._untried()
            program = syscall.open_pinned(self._pins / "programs" / "send_trial") if lacking else None
        except FileNotFoundError:
            return Lacking(0, 0)
        if program is None:
            return Lacking(0, 0)
        try:
            token = self._trial_token()
            for trial in lacking:
                syscall.run_program(program, frame(trial, token))
        finally:
            os.close(program)
        return Lacking(sum(not trial.spare for trial in lacking), len(lacking))

    def _untried(self) -> list[Trial]:
        groups = self._maps["groups"].items()
        settings = self._maps["settings"].get(layout.u32(0)) if groups else None
        if settings is None:
            return []
        nodes = self._maps["node_numbers"].items(zeros=False)
        return untried(groups, on_link(nodes), tunnels=bool(layout.decode(layout.Settings, settings).tunnels))

    def _trial_token(self) -> int:
        """Drawn once for the maps' life: an agent that returns takes echoes of its predecessor's trials."""
        bpf_map, key = self._maps["trial_token"], layout.u32(0)
        value = bpf_map.get(key)
        if not value or not any(value):
            value = secrets.token_bytes(8)
            bpf_map.put(key, value)
        return int.from_bytes(value, sys.byteorder)

    def collect(self) -> layout.Collected | None:
        """One round of collection of idle flows and ports, in the kernel. None while nothing is loaded."""
        try:
            self._near_share = self._pods_near_share()
            program = syscall.open_pinned(self._pins / "programs" / "collect")
        except FileNotFoundError:
            return None
        try:
            syscall.run_program(program, EMPTY_FRAME)
        finally:
            os.close(program)
        return self._collected()

    def _pods_near_share(self) -> tuple[IPAddress, ...]:
        devices = status.near_share(self._maps["uses"].items())
        return status.addresses(self._maps["pods"].items(), devices) if devices else ()

    # -- changing

    def apply(self, action: plan.Action) -> None:
        """Does one action. Doing it again does no harm. OSError says what was refused."""
        try:
            self._do(action)
        except OSError:
            self._forget()
            raise

    def _forget(self) -> None:
        """What is in the kernel is read anew."""
        self._policies.forget()
        self._guard.forget()

    @singledispatchmethod
    def _do(self, action: Any) -> None:
        raise TypeError(f"not an action: {action!r}")

    @_do.register
    def _(self, _action: plan.ForgetPrograms) -> None:
        self._forget()
        self._maps.close()
        loader.remove_pins(self._pins)

    @_do.register
    def _(self, action: plan.LoadPrograms) -> None:
        self._forget()
        self._maps.close()
        if action.beside:
            handover.set_aside(self._pins)
        elif not handover.is_set_aside(self._pins):
            pins.restore(self._pins)
        before = handover.rooms(self._pins)
        try:
            self._loader.load(self._pins, {name: max(size, before.get(name, 0)) for name, size in self._sizes.items()})
        except loader.LoadError as error:
            if action.beside:
                handover.put_back(self._pins)
            raise DatapathError(errno.EINVAL, str(error)) from error

    @_do.register
    def _(self, _action: plan.TakeOver) -> None:
        copied = handover.carry(self._pins)
        groups = self._maps["groups"]
        for key, value in with_echoes(groups.items(), handover.entries(self._pins, "groups")).items():
            groups.put(key, value)
        handover.hold(self._pins, True)
        try:
            handover.carry(self._pins, copied)
        except OSError:
            handover.hold(self._pins, False)
            raise

    @_do.register
    def _(self, _action: plan.DropBefore) -> None:
        handover.drop_before(self._pins)

    @_do.register
    def _(self, action: plan.CreateTunnel) -> None:
        with NetlinkSocket() as route:
            if action.replace:
                for link in devices.read_links(route).values():
                    if link.name == TUNNEL_DEVICE:
                        devices.delete_link(route, link.ifindex)
            try:
                devices.create_tunnel(route, action.port, action.mtu)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    message = f"UDP port {action.port} is taken: set egress.tunnel-port to a free one on all nodes"
                    raise DatapathError(errno.EADDRINUSE, message) from error
                raise

    @_do.register
    def _(self, action: plan.ConfigureTunnel) -> None:
        with NetlinkSocket() as route:
            for link in devices.read_links(route).values():  # one that has gone meanwhile is made in the next round
                if link.name == TUNNEL_DEVICE:
                    devices.configure_tunnel(route, link.ifindex, action.mtu)

    @_do.register
    def _(self, action: plan.AddBlackhole) -> None:
        with NetlinkSocket() as route:
            devices.add_blackhole(route, action.address)

    @_do.register
    def _(self, action: plan.DeleteBlackhole) -> None:
        with NetlinkSocket() as route:
            devices.delete_blackhole(route, action.address)

    @_do.register
    def _(self, _action: plan.ReservePorts) -> None:
        host_settings.reserve_ports(self._pins, plan.RESERVED)

    @_do.register
    def _(self, action: plan.PutEntry) -> None:
        try:
            self._maps[action.map].put(action.key, action.value)
        except OSError as error:
            if error.errno == errno.E2BIG:
                room = self._maps[action.map].max_entries
                raise DatapathError(errno.E2BIG, f"map {action.map} is full ({room} entries)") from error
            raise
        if action.map == POLICIES:
            self._policies.note({action.key: action.value})

    @_do.register
    def _(self, action: plan.DeleteEntry) -> None:
        entries = self._maps[action.map]
        if action.map in plan.ARRAYS:  # their elements cannot go
            entries.put(action.key, bytes(len(action.value)))
        else:
            entries.delete(action.key)
        if action.map == POLICIES:
            self._policies.note({action.key: None})

    @_do.register
    def _(self, action: plan.PurgeFlows) -> None:
        flows = self._maps["flows"]
        pods = frozenset(layout.ip16(pod) for pod in action.pods)
        for key in flows.items():
            if key[:16] in pods:
                flows.delete(key)

    @_do.register
    def _(self, action: plan.SeedFlows) -> None:
        seen, moment, pods = layout.SEEN_PACKET, time.monotonic_ns(), dict(action.pods)
        from_outside = layout.FlowValue(moment, seen_out=seen, seen_in=seen | layout.SEEN_AGAIN)
        by_pod = layout.FlowValue(moment, seen_out=seen | layout.SEEN_BEFORE, seen_in=seen)
        for flow in conntrack.running(pods):
            if flow.by_pod and flow.protocol == socket.IPPROTO_TCP:
                continue  # what comes to the pod does not open a connection, so it is taken for no other's
            key = layout.FlowKey(
                layout.ip_field(flow.pod), layout.ip_field(flow.remote), pods[flow.pod], flow.pod_port,
                flow.remote_port, flow.protocol,
            )  # fmt: skip
            value = bytes(by_pod if flow.by_pod else from_outside)
            with suppress(FileExistsError):
                self._maps["flows"].put(bytes(key), value, syscall.UPDATE_NOEXIST)

    @_do.register
    def _(self, action: plan.Attach) -> None:
        self._attacher.attach(action.program, action.ifindex)

    @_do.register
    def _(self, action: plan.Detach) -> None:
        self._attacher.detach(action.program, action.ifindex)

    @_do.register
    def _(self, action: plan.LoadGuard) -> None:
        text = nft.transaction(action.guard, action.present)
        self._guard.write(action.present, action.guard.digests(), lambda: _nft(["-f", "-"], text))

    def remove(self) -> list[str]:
        """Takes away everything that bears our mark, and says what it was. Nothing is left, nothing else is touched.

        DatapathError, after all else is gone, if reserved ports cannot be given back; the next time tries again.
        """
        removed = []
        self._forget()
        with NetlinkSocket() as route:
            links = devices.read_links(route)
            names = {link.ifindex: link.name for link in links.values()}
            for program, ifindex in self._attacher.left_filters(names):
                self._attacher.detach_filter(program, ifindex)
                removed.append(f"{program} on {names[ifindex]}")
            for attachment in self._attacher.observe(names):
                self._attacher.detach(attachment.program, attachment.ifindex)
                removed.append(f"{attachment.program} on {links[attachment.ifindex].name}")
            for address in devices.read_routes(route).blackholes:
                devices.delete_blackhole(route, address)
                removed.append(f"route blackhole {ip_network(address)}")
            for link in links.values():
                if link.name == TUNNEL_DEVICE:
                    devices.delete_link(route, link.ifindex)
                    removed.append(f"device {TUNNEL_DEVICE}")
        if nft.parse(_list_guard()) is not None:
            _nft(["delete", "table", FAMILY, TABLE])
            removed.append(f"nft table {FAMILY} {TABLE}")
        removed += [f"qdisc clsact of device {index}" for index in self._attacher.remove_qdiscs()]
        host_settings.forget_qdiscs(self._pins)
        refused = None
        try:
            removed += [f"reserved ports {plan.RESERVED_PORTS}"] if self._release_ports() else []
        except DatapathError as error:
            refused = error
        self._maps.close()
        if self._pins.exists():
            loader.remove_pins(self._pins)
            removed.append(f"pins under {self._pins}")
        if refused is not None:
            raise refused
        return removed

    def _release_ports(self) -> bool:
        try:
            return host_settings.release_ports(self._pins, plan.RESERVED)
        except OSError as error:
            message = f"ports {plan.RESERVED_PORTS} stay in net.ipv4.ip_local_reserved_ports: {error.strerror}"
            raise DatapathError(error.errno, f"{message}, give it a writable /proc/sys") from error


def _overhead(desired: Desired) -> int:
    return plan.TUNNEL_OVERHEAD[desired.node_address.version if desired.node_address else 4]


def needs_stack(underlay: Link | None, links: Iterable[Link], routes: devices.Routes, has_ipsec: bool) -> bool:
    """Whether the host's stack may encrypt what goes to nodes, or cuts it smaller than the device does: the programs
    do neither. A route that leads elsewhere, or whose MTU is locked, they see themselves.
    """
    is_narrow = underlay is not None and underlay.ifindex in routes.with_mtu
    return has_ipsec or is_narrow or any(link.kind == "wireguard" for link in links)


def _link(underlay: Link | None, networks: Mapping[int, frozenset[IPNetwork]]) -> entries.Link | None:
    """What bears no Ethernet frames, or leads to nobody, is no link of nodes."""
    if underlay is None or not underlay.is_ethernet or underlay.name == "lo" or underlay.kind == "dummy":
        return None
    return entries.Link(underlay.ifindex, underlay.name, underlay.mtu, networks.get(underlay.ifindex, frozenset()))


def _underlay_mtu(underlay: Link | None, uplinks: Sequence[Link]) -> int:
    """MTU of the way to other nodes: of the device with the node's address, or of the uplinks where that is no way
    out.
    """
    if underlay is None:
        return 0
    if underlay.name == "lo" or underlay.kind == "dummy":
        return min((link.mtu for link in uplinks), default=0)
    return underlay.mtu


def _ways_out(widest: Mapping[tuple[int, int], IPNetwork], uplinks: frozenset[int]) -> dict[int, IPAddress]:
    """By IP version, an address to which an uplink leads, where no default route does."""
    found: dict[int, IPNetwork] = {}
    for (version, device), network in sorted(widest.items()):
        if device in uplinks and (version not in found or network.prefixlen < found[version].prefixlen):
            found[version] = network
    return {version: network.network_address for version, network in found.items() if network.prefixlen}


def _tunnel(by_name: Mapping[str, int], links: Mapping[int, Link]) -> plan.Tunnel | None:
    """Our device; one of that name and another kind counts as there with a port of its own, so that it is replaced."""
    link = links.get(by_name.get(TUNNEL_DEVICE, 0))
    if link is None:
        return None
    port = link.vxlan_port if link.vxlan_external else 0
    return plan.Tunnel(link.ifindex, link.mtu, port, link.up, devices.is_forwarding(TUNNEL_DEVICE))


def _nft(arguments: list[str], text: str = "") -> str:
    try:
        result = subprocess.run(
            ["nft", *arguments], input=text, capture_output=True, text=True, timeout=30, check=False
        )
    except FileNotFoundError:
        raise DatapathError(errno.ENOENT, "nft is missing: install it (Debian: apt-get install nftables)") from None
    except subprocess.TimeoutExpired as error:
        raise DatapathError(errno.ETIMEDOUT, f"nft did not answer within {error.timeout:g} s") from error
    if result.returncode:
        message = result.stderr.strip().splitlines()[0] if result.stderr.strip() else f"exit {result.returncode}"
        number = errno.ENOENT if "No such file or directory" in result.stderr else errno.EINVAL
        raise DatapathError(number, f"nft: {message}")
    return result.stdout


def _list_guard() -> dict[str, Any]:
    """The table as JSON; empty when it is not there."""
    try:
        document: dict[str, Any] = json.loads(_nft(["-j", "list", "table", FAMILY, TABLE]))
    except DatapathError as error:
        if error.errno == errno.ENOENT and "missing" not in str(error):
            return {}
        raise
    return document
