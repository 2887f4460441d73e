"""Random edits, waits, crashes and restarts; after every step the rules that hold for all of IPAM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ipam.pool import Use
from routerd.cluster.assign import assign
from routerd.cluster.ledger import TABLES, Ledger, difference
from routerd.model import (
    Allocations,
    AppliedTable,
    BindingTable,
    IPAddress,
    NodeReport,
    PortAsk,
    PortReport,
    UnusedBlock,
)
from tests.models.operator_world import World

NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
ADDRESSES = st.sampled_from(["", "192.0.2.0", "192.0.2.3", "198.51.100.1", "203.0.113.9"])
POOLS = st.sampled_from(["", "p", "q"])
BLOCKS = st.sampled_from([["192.0.2.0/30"], ["192.0.2.0/29", "2001:db8::/126"], ["198.51.100.0/31"], ["192.0.2.2/31"]])


class OperatorMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.world = World()
        self.world.pool("p", "192.0.2.0/30")
        self.world.node("g")
        self.world.decide()
        self.left: dict[IPAddress, tuple[str, float]] = {}  # freed addresses of services: last owner, when
        self.bound: dict[IPAddress, str] = {}  # egress IPs from a pool, never released
        self.owners: dict[IPAddress, set[str]] = {}

    @rule(name=NAMES, ips=ADDRESSES, pool=POOLS, key=st.sampled_from(["", "k"]), port=st.integers(1, 2),
          policy=st.sampled_from(["SingleStack", "PreferDualStack", "RequireDualStack"]))  # fmt: skip
    def service(self, name: str, ips: str, pool: str, key: str, port: int, policy: str) -> None:
        self.world.service(name, port, ips=ips, requested_pool=pool, sharing_key=key, ip_family_policy=policy)
        before = self.world.allocations
        self.decide()
        self.nobody_moved(before, edited=f"d/{name}")

    @rule(name=NAMES)
    def remove_service(self, name: str) -> None:
        self.world.services.pop(f"d/{name}", None)
        self.decide()

    @rule(name=NAMES, ip=ADDRESSES, pool=POOLS)
    def policy(self, name: str, ip: str, pool: str) -> None:
        self.world.policy(name, ip, pool=pool)
        self.decide()

    @rule(name=NAMES)
    def remove_policy(self, name: str) -> None:
        self.world.policies.pop(f"EgressPolicy/{name}", None)
        self.decide()

    @rule(name=st.sampled_from(["p", "q"]), blocks=BLOCKS, disabled=st.booleans(), buggy=st.booleans())
    def pool(self, name: str, blocks: list[str], disabled: bool, buggy: bool) -> None:
        self.world.pool(name, *blocks, disabled=disabled, avoid_buggy_ips=buggy)
        before = self.world.allocations
        self.decide()
        if not disabled and not any(pool.disabled for pool in self.world.pools.values()):
            self.nobody_moved(before)

    @rule(name=st.sampled_from(["p", "q"]))
    def remove_pool(self, name: str) -> None:
        self.world.pools.pop(name, None)
        self.decide()

    @rule(name=st.sampled_from(["g", "h", "i"]), ready=st.booleans(), reports=ADDRESSES)
    def node(self, name: str, ready: bool, reports: str) -> None:
        self.world.node(name, ready=ready, reports=reports)
        self.decide()

    @rule(name=st.sampled_from(["h", "i", "j"]))
    def remove_node(self, name: str) -> None:
        self.world.nodes.pop(name, None)
        self.world.reports.pop(name, None)
        self.decide()

    @rule(name=st.sampled_from(["g", "h", "i"]), group=st.integers(1, 3), ports=st.sampled_from([None, 0, 2000, 30000]))
    def ask(self, name: str, group: int, ports: int | None) -> None:
        """What it was asked for it gives back, and what waits for its word it confirms."""
        if name not in self.world.reports or name not in self.world.nodes:
            return
        allocations = self.world.allocations
        number = {each.node: each.number for each in allocations.numbers}.get(name, 0)
        unused = tuple(
            UnusedBlock(table.egress_ip, block.first, block.size, table.version)
            for table in allocations.bindings
            for block in table.blocks(number)
            if block.returning
        )
        applied = tuple(AppliedTable(table.egress_ip, table.version) for table in allocations.bindings)
        asks = () if ports is None else (PortAsk(group, ports),)
        report = replace(self.world.reports[name], ports=PortReport(asks, unused, applied))
        self.world.reports[name] = report
        self.decide()

    @rule(seconds=st.sampled_from([1, 29, 30, 101, 600]))
    def wait(self, seconds: int) -> None:
        self.decide(seconds)

    @rule()
    def restart(self) -> None:
        """Recorded, never published, read again: the same document, but for what policies have left."""
        published = self.world.allocations
        self.world.allocations = Allocations()
        self.world.decide()
        if all(group.policies for group in published.groups):
            assert self.world.allocations == published
        self.world.allocations = published
        self.decide()

    @rule(name=NAMES)
    def crash_before_publishing(self, name: str) -> None:
        self.world.service(name)
        published = self.world.allocations
        self.world.decide()
        decided = self.world.allocations
        self.world.allocations = published
        self.decide()
        assert self.world.allocations == decided

    @rule(name=NAMES)
    def release(self, name: str) -> None:
        self.world.release(f"EgressPolicy/{name}")
        self.bound = {key: owner for key, owner in self.bound.items() if owner != f"EgressPolicy/{name}"}
        self.decide()

    def decide(self, seconds: float = 0) -> None:
        world, before = self.world, self.world.ledger
        tables, said = world.allocations.bindings, dict(world.reports)
        world.decide(seconds)
        self.ports_stay(tables, said)
        again = assign(world.snapshot(), world.ledger, world.reports, world.now, world.settings, world.agents)
        assert again.allocations is world.allocations, "a second decision on the same view changes nothing"
        assert again.ledger == world.ledger
        assert apply(before, world.ledger, world.now) == world.ledger
        assert world.last is not None
        if world.last.next_due is not None:
            assert world.last.next_due > world.now

    def ports_stay(self, before: tuple[BindingTable, ...], reports: dict[str, NodeReport]) -> None:
        """A node that lives has the ports that it had, unless it was asked for them and gave them back."""
        world = self.world
        names = {each.number: each.node for each in world.allocations.numbers}
        now = {table.egress_ip: table.numbers() for table in world.allocations.bindings}
        groups = {group.egress_ip for group in world.allocations.groups}
        for table in before:
            for block in table.blocks():
                name = names.get(block.node, "")
                if name not in world.nodes or table.egress_ip not in groups:
                    continue
                report = reports[name].ports if name in reports else None
                said = report is not None and any(
                    (each.egress_ip, each.first) == (table.egress_ip, block.first) for each in report.unused
                )
                owners = now[table.egress_ip][block.first >> 6 : (block.last >> 6) + 1]
                assert set(owners) == {block.node} or (block.returning and said)

    @invariant()
    def no_port_has_two_nodes(self) -> None:
        numbers = [each.number for each in self.world.allocations.numbers]
        assert len(numbers) == len(set(numbers)) == len({each.node for each in self.world.allocations.numbers})
        for table in self.world.allocations.bindings:
            taken: set[int] = set()
            for block in table.blocks():
                ports = set(range(block.first, block.last + 1, 64))
                assert not ports & taken and block.node in numbers and block.first >= 1024
                taken |= ports
            for one in table.cooling:
                for first, size in one.ranges:
                    assert taken.isdisjoint(range(first, first + size, 64)), "it rests"

    def nobody_moved(self, before: Allocations, edited: str = "") -> None:
        now = {each.service: each.addresses for each in self.world.allocations.services}
        waiting = {
            str(refusal.object) for refusal in before.refusals
        }  # these asked for another address before the edit
        for each in before.services:
            is_free = each.service == edited or f"svc/{each.service}" in waiting
            assert is_free or set(each.addresses) <= set(now.get(each.service, ())), "somebody else's edit moved it"

    @invariant()
    def no_address_has_two_owners(self) -> None:
        owners: dict[IPAddress, set[str]] = {}
        for each in self.world.allocations.services:
            for address in each.addresses:
                owners.setdefault(address, set()).add(f"svc/{each.service}")
        for group in self.world.allocations.groups:
            assert group.egress_ip not in owners, "a VIP is an egress IP"
            owners[group.egress_ip] = set(group.policies) or {"a policy that has left it"}
        for names in owners.values():
            services = [self.world.services[name.removeprefix("svc/")] for name in names if name.startswith("svc/")]
            if len(services) > 1:
                assert len({service.ports for service in services}) == len(services)
        self.sharing_was_granted()
        self.no_early_reuse(owners)
        self.owners = owners

    def sharing_was_granted(self) -> None:
        """Who shares was let to by the others, and its ports are those that it has now."""
        uses: dict[IPAddress, list[Use | None]] = {}
        for record in self.world.ledger.addresses:
            if record.state == "used" and record.owner.startswith("svc/"):
                uses.setdefault(record.address, []).append(record.use)
                ports = self.world.services[record.owner.removeprefix("svc/")].ports
                assert record.use is None or record.use.ports == {f"tcp/{port.port}" for port in ports}
        for shared in uses.values():
            assert len(shared) == 1 or {use and use.sharing_key for use in shared} == {"service:k"}

    def no_early_reuse(self, owners: dict[IPAddress, set[str]]) -> None:
        """Another owner waits until an address has cooled down."""
        now = self.world.now
        for address, names in self.owners.items():
            pooled = any(ip_in_pools(self.world, address))
            if address not in owners and pooled and all(name.startswith("svc/") for name in names):
                self.left[address] = (",".join(sorted(names)), now)
        for address, (names_then, when) in list(self.left.items()):
            if not any(ip_in_pools(self.world, address)) or now - when >= 30:
                del self.left[address]  # an address outside every pool is forgotten at once
            elif address in owners:
                assert owners[address] & set(names_then.split(",")), f"{address} was reused after {now - when} s"
                del self.left[address]

    @invariant()
    def recorded_is_published(self) -> None:
        used = {(record.owner, record.address) for record in self.world.ledger.addresses if record.state == "used"}
        published = {
            (f"svc/{each.service}", address) for each in self.world.allocations.services for address in each.addresses
        }
        published |= {(name, group.egress_ip) for group in self.world.allocations.groups for name in group.policies}
        refused = {str(each.object) for each in self.world.allocations.refusals if each.reason == "GatewaysDiffer"}
        assert {pair for pair in used if pair[0] not in refused} == published

    @invariant()
    def states_add_up(self) -> None:
        if self.world.last is not None:
            for counts in self.world.last.counts.values():
                assert counts.free + counts.used + counts.cooling + counts.reserved == counts.total
                assert min(counts.free, counts.used, counts.cooling, counts.reserved) >= 0

    @invariant()
    def egress_ips_stay_bound(self) -> None:
        """An egress IP that came from a pool is never another policy's (unless the owner gives it), nor a service's."""
        given = {(policy.key, policy.egress_ip) for policy in self.world.policies.values()}
        self.bound = {address: owner for address, owner in self.bound.items() if (owner, address) not in given}
        for group in self.world.allocations.groups:
            owner = self.bound.get(group.egress_ip)
            assert owner is None or group.policies in ((owner,), ()), "its policy may have left it"
            if group.pool and len(group.policies) == 1 and self.world.policies[group.policies[0]].egress_ip is None:
                self.bound[group.egress_ip] = group.policies[0]
        for each in self.world.allocations.services:
            assert not self.bound.keys() & set(each.addresses)

    @invariant()
    def group_numbers_are_unique(self) -> None:
        groups = self.world.allocations.groups
        assert len({group.id for group in groups}) == len({group.egress_ip for group in groups}) == len(groups)
        for group in groups:
            assert len({*group.gateways}) == len(group.gateways)


def ip_in_pools(world: World, address: IPAddress) -> list[bool]:
    return [address in block for pool in world.pools.values() for block in pool.blocks]


def apply(before: Ledger, after: Ledger, now: float) -> Ledger:
    """What a store makes of the difference."""
    changes = difference(before, after, now)
    found: dict[str, Any] = {}
    for table in TABLES:
        records = {table.key(record): record for record in table.of(before)}
        for gone in changes.tables[table.name].deleted:
            del records[table.key(gone)]
        records |= {table.key(record): record for record in changes.tables[table.name].put}
        found[table.name] = tuple(records[key] for key in sorted(records))
    return replace(after, **found)


OperatorMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30)
TestOperator = OperatorMachine.TestCase


def test_an_egress_ip_that_became_a_nodes_is_given_up_with_its_policy_at_once() -> None:
    """`decide` of the machine asks for a second decision on the same view, which changes nothing."""
    machine = OperatorMachine()
    machine.start()
    machine.policy(name="a", ip="", pool="")
    machine.node(name="g", ready=False, reports="192.0.2.0")
    machine.remove_policy(name="a")
    assert [each.state for each in machine.world.ledger.groups] == ["retired"]
