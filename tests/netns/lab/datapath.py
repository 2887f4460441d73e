"""The datapath alone, in the lab: each node is given its desired state directly, without store, operator or BGP."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

from bpf import layout, loader
from egress.netdev import Datapath
from egress.plan import plan
from egress.policy import Block, Desired, Detour, Gateway, Group, Neighbour, NetworkPolicy, Policy, Served, Transport
from egress.status import told_apart
from routerd.agent.local import own_links
from tests.models.tables import granules
from tests.netns.lab import netns
from tests.netns.lab.lab import NODE_NETWORK, POD_NETWORK, SERVICE_NETWORK, Lab
from tests.netns.lab.wiring import six
from tests.waiting import WaitTimeout, wait

EGRESS_IP = IPv4Address("10.168.60.100")
EGRESS_IP6 = ip_address(six(str(EGRESS_IP)))
WORLD, WORLD6 = IPv4Network("0.0.0.0/0"), IPv6Network("::/0")
PORTS = 1024  # of each node; on a node's own address it has 64 granules for all of them
TRIALS_TAKE = 0.5  # seconds, where a gateway does not answer
ROUNDS = 4  # the first makes the devices, the second fills in what they are


def reconcile(node: netns.Namespace, datapath: Datapath, desired: Desired) -> list[str]:
    """Rounds until nothing is left to do; what was done, as text."""
    done: list[str] = []
    with netns.entered(node.name):
        for _ in range(ROUNDS):
            actions = plan(desired, datapath.observe(desired))
            if not actions:
                return done
            for action in actions:
                datapath.apply(action)
                done.append(str(action))
    raise AssertionError(f"{node.label} does not come to rest: {done[-3:]}")


def neighbour(node: netns.Namespace, address: IPv4Address) -> Neighbour:
    """As the agent of the node that has the address reports it. The kernel gives a device its link-local address some
    time after it is up; without one nobody sends IPv6 there.
    """
    with netns.entered(node.name):
        link = wait(
            lambda: next((link for link in own_links([address]) if link.link_local), None),
            f"{node.label} has a link-local address", interval=0.01,
        )  # fmt: skip
    return Neighbour(bytes.fromhex(link.mac.replace(":", "")), link.link_local)


@dataclass
class Cluster:
    """The lab's nodes with a datapath each."""

    lab: Lab
    attach: str = "auto"
    loader: str = "libbpf"
    policies: dict[str, Policy] = field(default_factory=dict)
    selected: dict[str, tuple[str, ...]] = field(default_factory=dict)  # pod -> policies
    gateways: tuple[str, ...] = ("gw1", "gw2")
    datapaths: dict[str, Datapath] = field(default_factory=dict)
    node_address: bool = False
    network_policy: NetworkPolicy = "direct"
    cni_config: Path = Path("/nowhere")  # in place of /etc/cni/net.d
    transport: Transport = "vxlan"
    pools: tuple[str, ...] = ()  # IPv4 networks of VIPs
    detours: frozenset[Detour] = frozenset()
    late: frozenset[str] = frozenset()  # gateways that know no ports of the workers, so nothing leaves by them
    _forbidden: frozenset[str] = frozenset()  # told to the tap

    def desired(self, name: str) -> Desired:
        node = self.lab.node(name)
        nodes = {n: IPv4Address(self.lab.node(n).address) for n in self.lab.nodes}
        numbers = {n: number for number, n in enumerate(sorted(nodes), start=1)}
        gateways = tuple(Gateway(n, numbers[n], up=n not in self.late) for n in self.gateways)
        egress_ips = (EGRESS_IP, EGRESS_IP6) if self.lab.ipv6 else (EGRESS_IP,)
        firsts = {n: self._first(number) for n, number in numbers.items()}
        blocks = tuple(Block(address, firsts[name], self._size) for address in egress_ips)
        group = Group(7, egress_ips, gateways, blocks, node_address=self.node_address)
        known = [n for n in nodes if name not in self.late or n in self.gateways]
        table = granules({numbers[n]: [(firsts[n], self._size)] for n in known})
        served = {each: Served(table, self.node_address, group.id) for each in egress_ips if name in self.gateways}
        pods = {a: p.label for p in self.lab.pods.values() if p.node is node for a in self._both(p.address)}
        return Desired(
            node=name,
            node_address=nodes[name],
            pods={ip_address(a): self.selected.get(label, ()) for a, label in pods.items()},
            policies=self.policies,
            groups={7: group},
            served=served,
            nodes={numbers[n]: address for n, address in nodes.items()},
            icmp_sources=tuple(map(ip_address, self._both(node.address))),
            cluster=frozenset(ip_network(n) for n in self._both(NODE_NETWORK, POD_NETWORK, SERVICE_NETWORK)),
            pod_cidrs=frozenset(ip_network(n) for n in self._both(node.spec.pod_cidr)),
            pools=frozenset(ip_network(n) for n in self._both(*self.pools)),
            detours=self.detours,
            node_addresses=frozenset(map(ip_address, self._both(*map(str, nodes.values())))),
            network_policy=self.network_policy,
            transport=self.transport,
            neighbours={
                numbers[n]: neighbour(self.lab.node(n), address)
                for n, address in nodes.items()
                if self.transport != "vxlan"
            },
        )

    @property
    def _size(self) -> int:
        return 256 if self.node_address else PORTS

    def _first(self, number: int) -> int:
        return (61440 if self.node_address else 32768) + number * self._size

    def ports(self, name: str) -> range:
        """Those of a node."""
        first = self.desired(name).groups[7].blocks[0].first
        return range(first, first + self._size)

    def _both(self, *texts: str) -> tuple[str, ...]:
        """Addresses or networks of IPv4, and those of IPv6 in their place where the lab has some."""
        return (*texts, *(map(six, texts) if self.lab.ipv6 else ()))

    def apply(self) -> dict[str, list[str]]:
        done = {}
        wanted = self._whole()
        self._tell_tap(self._forbidden & wanted)
        for name in self.lab.nodes:
            node = self.lab.node(name)
            if name not in self.datapaths:
                options = {"attach": self.attach, "loader_name": self.loader, "cni_config": self.cni_config}
                self.datapaths[name] = Datapath(node.pin_dir / "routerd", **options)  # type: ignore[arg-type]
            done[name] = reconcile(node, self.datapaths[name], self.desired(name))
        for name in self.lab.nodes:
            self.try_port_sets(name)
        self._tell_tap(wanted)
        return done

    def _whole(self) -> frozenset[str]:
        """Addresses of pods that policies select for all that is outside, of the address's family."""
        of_all = {
            name: {each.version for each in policy.destinations if not each.prefixlen}
            for name, policy in self.policies.items()
            if not policy.excluded and not policy.ports
        }
        return frozenset(
            address
            for label, policies in self.selected.items()
            if label in self.lab.pods
            for address in self._both(self.lab.pods[label].address)
            if any(ip_address(address).version in of_all.get(policy, ()) for policy in policies)
        )

    def _tell_tap(self, forbidden: frozenset[str]) -> None:
        self.lab.tap.pardon(*self._forbidden - forbidden)
        self.lab.tap.forbid(*forbidden - self._forbidden)
        self._forbidden = forbidden
        by_all = any(policy.exit_local for policy in self.policies.values())
        links = [*self.lab.nodes] if by_all else self.gateways
        self.lab.tap.lead(dict.fromkeys(self._both(str(EGRESS_IP)), links))

    def forget_echoes(self, name: str) -> None:
        """The node's port sets are new: no gateway has echoed them."""
        maps = loader.PinnedMaps(self.lab.node(name).pin_dir / "routerd")
        for key, value in maps["groups"].items().items():
            group = layout.decode(layout.GroupValue, value)
            for block in group.blocks:
                block.echoed = 0
            maps["groups"].put(key, bytes(group))
        maps.close()

    def try_port_sets(self, name: str) -> None:
        """Until each gateway that answers has echoed the node's port sets, as an agent has it beside its rounds."""
        with netns.entered(self.lab.node(name).name), suppress(WaitTimeout):
            wait(lambda: not self.datapaths[name].try_port_sets().total, "port sets are tried", TRIALS_TAKE, 0.005)

    def survey(self, name: str) -> None:
        """The node's datapath looks again at what others have there, and does what follows."""
        with netns.entered(self.lab.node(name).name):
            self.datapaths[name].survey()
        self.apply()

    def close(self) -> None:
        """Takes the datapath from every node."""
        self._tell_tap(frozenset())
        for name, datapath in self.datapaths.items():
            with netns.entered(self.lab.node(name).name):
                datapath.remove()
            datapath.close()

    def counters(self, name: str) -> dict[str, int]:
        with netns.entered(self.lab.node(name).name):
            return {reason: packets for reason, (packets, _) in self.datapaths[name].counters().items()}

    def dropped(self, name: str) -> dict[str, int]:
        """Reasons that are drops and have counted something."""
        drops = {reason.name for reason in layout.read_reasons().values() if reason.is_drop}
        _, dropped = told_apart(self.counters(name), drops)
        return {reason: n for reason, n in dropped.items() if n}
