"""What a cloud tells: instances with their interfaces, subnets, security groups, limits. Values, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Tags = Mapping[str, str]

AWS_ROUTER = IPv6Address("fe80:ec2::1")
AWS_METADATA = (IPv4Address("169.254.169.254"), IPv6Address("fd00:ec2::254"))
CLUSTER_TAG = "routerd.io/cluster"  # whose an interface is: nothing without our cluster's name is ever deleted
INSTANCE_TAG = "routerd.io/instance"  # for which it was made
CREATED_TAG = "routerd.io/created"  # when, seconds of the Unix epoch: EC2 does not tell
INTENT_TAG = "routerd.io/intent"  # the token of the call that made it: found again though no answer came


@dataclass(frozen=True, slots=True)
class Api:
    """In what the calls of clouds differ; as EC2 has them, unless said."""

    at_once: int = 0
    """So many addresses, or prefixes, a call gives at most; 0 = as many as an interface holds."""
    tokens: bool = False
    """An assignment takes a token: sent again with the same one it gives no more."""
    mixes: bool = True
    """An interface takes single addresses beside prefixes."""
    reassigns: bool = True
    """An address is taken away from whichever interface has it by the call that gives it to another."""
    prefix6_each: bool = False
    """Each interface has a /80 prefix, not each instance."""
    makes: bool = True
    """Interfaces are made for pods; else those that an instance has are for them."""
    whole: bool = False
    """A call writes its whole interface, and while that is under way another one is refused."""


@dataclass(frozen=True, slots=True)
class Vpc:
    """What nodes in it must know; as Amazon's are, unless said."""

    router: int = 1
    """Which address of a subnet its router has, counted from its end if below zero."""
    router6: IPv6Address | None = AWS_ROUTER
    """Of all its subnets; None = as `router` says, of the /64 that a subnet has."""
    metadata: tuple[Address, ...] = AWS_METADATA
    """Addresses of its metadata service: who reads it has the node's credentials."""

    def routers(self, subnet: IPv4Network, blocks: Iterable[Network]) -> tuple[Address, ...]:
        """Of an interface with these blocks: one of each family that it has."""
        prefix = next((each for each in blocks if isinstance(each, IPv6Network)), None)
        if prefix is None:
            return (subnet[self.router],)
        return subnet[self.router], self.router6 or prefix.supernet(new_prefix=64)[self.router]


@dataclass(frozen=True, slots=True)
class Limits:
    """What an instance type holds."""

    interfaces: int
    ipv4: int  # addresses of an interface, its primary one included
    ipv6: int
    prefixes: bool  # whether an interface takes prefixes in place of addresses: Nitro and bare metal do
    named: bool = True  # whether its primary interface takes an address that is asked for by name


@dataclass(frozen=True, slots=True)
class Instance:
    id: str
    type: str
    zone: str
    vpc: str
    subnet: str  # of its primary interface, as are the groups
    groups: tuple[str, ...] = ()
    running: bool = True


@dataclass(frozen=True, slots=True)
class Subnet:
    id: str
    vpc: str
    zone: str
    cidr: IPv4Network
    free: int  # IPv4 addresses; EC2's count lags
    cidr6: IPv6Network | None = None
    tags: Tags = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """A security group."""

    id: str
    vpc: str
    tags: Tags = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Interface:
    id: str
    mac: str
    subnet: str
    primary: IPv4Address
    status: str  # "available", "attaching", "in-use", "detaching", "pending"
    instance: str = ""  # "" = attached to none
    index: int = -1  # of the device; 0 = the instance's primary interface
    attachment: str = ""
    goes_with_instance: bool = False  # deleted with it
    blocks: tuple[Network, ...] = ()  # secondary addresses as /32, delegated prefixes as /28 and /80; sorted
    plain: bool = True  # neither a trunk nor for RDMA: those are never for pods, whatever their tags say
    others: int = 0  # addresses besides that take of its room: of whoever else, or on the instance's other interfaces
    groups: tuple[str, ...] = ()
    tags: Tags = field(default_factory=dict)

    @property
    def is_attached(self) -> bool:
        return self.status == "in-use" and bool(self.instance)


@dataclass(frozen=True, slots=True)
class Inventory:
    """One observation of everything that counts; by id. `limits` by instance type, those that the cloud knows."""

    instances: Mapping[str, Instance] = field(default_factory=dict)
    interfaces: Mapping[str, Interface] = field(default_factory=dict)
    subnets: Mapping[str, Subnet] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    limits: Mapping[str, Limits] = field(default_factory=dict)

    def networks_of(self, vpc: str) -> tuple[IPv4Network, ...]:
        """In which somebody can be: those of its subnets, as few as they can be."""
        return tuple(collapse_addresses(each.cidr for each in self.subnets.values() if each.vpc == vpc))


def addresses(block: Network) -> int:
    """How many pods a block serves; of an IPv6 prefix more than anybody has."""
    return min(block.num_addresses, 1 << 16)


def block_order(block: Network) -> tuple[int, int, int]:
    return block.version, int(block.network_address), block.prefixlen
