"""What instances want, and by which rules they get it. Values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cloud.model import (
    CLUSTER_TAG,
    Api,
    Instance,
    Interface,
    Inventory,
    Network,
    Subnet,
    Tags,
)
from cloud.need import Watermarks


@dataclass(frozen=True, slots=True)
class Demand:
    """Of one instance, as its node tells it."""

    node: str
    used: int = 0  # pods that have an address
    pending: int = 0  # pods that wait for one
    # Blocks of which the node may give addresses, as it says itself after it has read what is published; and those of
    # them of which an address is in use. None = it does not say: nothing is taken from it.
    kept: frozenset[Network] | None = None
    busy: frozenset[Network] = frozenset()
    generation: int = 0  # of what it had read when it said so, and holds to from then on
    most_pods: int = 0  # that its kubelet takes; 0 = it does not say


@dataclass(frozen=True, slots=True)
class Choice:
    """Objects by id, or by tags that all must be there; neither = as the instance's primary interface has it."""

    ids: frozenset[str] = frozenset()
    tags: Tags = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.ids or self.tags)

    def has(self, id_: str, tags: Tags) -> bool:
        """Ids go before tags."""
        return id_ in self.ids if self.ids else self.tags.items() <= tags.items()


@dataclass(frozen=True, slots=True)
class Rules:
    """Of a cluster."""

    cluster: str
    """Its name in the tag that says whose an interface is."""
    marks: Watermarks = field(default_factory=Watermarks)
    subnets: Choice = field(default_factory=Choice)
    groups: Choice = field(default_factory=Choice)
    first_index: int = 1
    """Devices below are left alone; 0 = the primary interface's secondary addresses are for pods, too."""
    excluded: Tags = field(default_factory=dict)
    """Interfaces that have one of these tags are left alone."""
    prefixes: bool = False
    """/28 prefixes in place of single addresses, where instance type and subnet have them."""
    ipv6: bool = False
    """A /80 prefix for each instance."""
    tags: Tags = field(default_factory=dict)
    """More tags of what is made."""
    releases: bool = True
    """Off: nothing is unassigned or deleted."""
    tells_vpc: bool = False
    """Nodes are told the networks of their VPC."""
    api: Api = field(default_factory=Api)
    """What the calls of its cloud are like."""

    def is_ours(self, interface: Interface) -> bool:
        return interface.tags.get(CLUSTER_TAG) == self.cluster

    def counts(self, interface: Interface) -> bool:
        """Whether its blocks are for pods. What others attached to the instance may be in use by them."""
        if interface.index < self.first_index or not self.may_have(interface):
            return False
        return self.is_ours(interface) or interface.index == 0 or not self.api.makes

    def may_have(self, interface: Interface) -> bool:
        """Whether it may be for pods at all."""
        return interface.plain and not self.excluded.items() & interface.tags.items()

    def subnets_for(self, instance: Instance, inventory: Inventory) -> list[Subnet]:
        """In its zone, those with the most free addresses first."""
        own = self.subnets or Choice(ids=frozenset({instance.subnet}))
        near = (each for each in inventory.subnets.values() if (each.vpc, each.zone) == (instance.vpc, instance.zone))
        return sorted((each for each in near if own.has(each.id, each.tags)), key=lambda each: (-each.free, each.id))

    def groups_for(self, instance: Instance, inventory: Inventory) -> tuple[str, ...]:
        """Sorted; () = none is found. Those that are named need no look: the cloud says whether they are there."""
        if not self.groups.tags:
            return tuple(sorted(self.groups.ids)) or instance.groups
        found = (each for each in inventory.groups.values() if each.vpc == instance.vpc)
        return tuple(sorted(each.id for each in found if self.groups.has(each.id, each.tags)))


Demands = Mapping[str, Demand]  # by instance
