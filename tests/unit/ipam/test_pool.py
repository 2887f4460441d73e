"""A pool against a naive model: plain sets, and a look at every address."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ipam.pool import Pool, PoolSpec, Use, Version, address_of, is_buggy, key_of
from ipam.taken import Taken

PLAIN = Use()
OWNERS = st.sampled_from(["a", "b", "c"])


def allocate(pool: Pool, owner: str, version: Version = 4, use: Use = PLAIN) -> int | None:
    key = pool.find(owner, version, use)
    assert key is None or pool.hold(key, owner, use) is None
    return key


class PoolMachine(RuleBasedStateMachine):
    """Occupy, allocate, release, reserve: after every step, each address is in exactly one state."""

    @initialize(
        buggy=st.booleans(),
        taken=st.lists(st.tuples(st.integers(0, 15), st.integers(1, 5)), max_size=3),
        first=st.sampled_from(["10.0.0.0/29", "10.0.0.248/29", "10.0.0.4/30"]),
    )
    def start(self, buggy: bool, taken: list[tuple[int, int]], first: str) -> None:
        blocks = (ip_network(first), ip_network("10.0.1.0/30"))
        low = key_of(blocks[0].network_address) - 4
        claims = tuple((low + start, low + start + size - 1, "somebody's") for start, size in taken)
        self.pool = Pool(PoolSpec("p", blocks, avoid_buggy_ips=buggy), cooldown=10, taken=Taken(claims))
        self.every = [key_of(address) for block in blocks for address in block]
        self.held: dict[int, str] = {}
        self.reserved: dict[int, str] = {}
        self.cooling: dict[int, tuple[str, float]] = {}
        self.buggy = {key for key in self.every if buggy and is_buggy(key)}
        self.buggy |= {key for key in self.every for first, last, _ in claims if first <= key <= last}
        self.now = 0.0

    def taken(self) -> set[int]:
        return self.held.keys() | self.reserved.keys() | self.cooling.keys()

    @rule(owner=OWNERS)
    def allocate(self, owner: str) -> None:
        expected = next((key for key in self.every if key not in self.taken() | self.buggy), None)
        assert allocate(self.pool, owner) == expected
        if expected is not None:
            self.held[expected] = owner

    @rule(owner=OWNERS, index=st.integers(0, 11))
    def hold(self, owner: str, index: int) -> None:
        key = self.every[index % len(self.every)]
        free = (
            self.held.get(key, owner) == owner
            and self.reserved.get(key, owner) == owner
            and self.cooling.get(key, (owner, 0))[0] == owner
        )
        assert (self.pool.hold(key, owner, Use()) is None) == free
        if free:
            self.held[key] = owner
            self.reserved.pop(key, None)
            self.cooling.pop(key, None)

    @rule(index=st.integers(0, 11), owner=OWNERS)
    def release(self, index: int, owner: str) -> None:
        key = self.every[index % len(self.every)]
        self.pool.release(key, owner, self.now)
        if self.held.get(key) == owner:
            del self.held[key]
            self.cooling[key] = (owner, self.now + 10)

    @rule(index=st.integers(0, 11), owner=OWNERS)
    def reserve(self, index: int, owner: str) -> None:
        key = self.every[index % len(self.every)]
        if key not in self.held and key not in self.reserved:
            self.pool.reserve(key, owner)
            self.reserved[key] = owner
            self.cooling.pop(key, None)

    @invariant()
    def states_add_up(self) -> None:
        counts = self.pool.counts()
        idle = self.buggy - self.taken()
        assert counts.total == len(self.every)
        assert counts.used == len(self.held)
        assert counts.cooling == len(self.cooling)
        assert counts.reserved == len(self.reserved) + len(idle)
        assert counts.free == len(self.every) - len(self.taken()) - len(idle)
        assert {key: set(owners) for key, owners in self.pool.holders.items()} == {
            key: {owner} for key, owner in self.held.items()
        }


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestPool = PoolMachine.TestCase


@given(st.ip_addresses())
def test_keys_are_addresses(address) -> None:  # type: ignore[no-untyped-def]
    assert address_of(key_of(address)) == address


def test_lowest_first_in_the_order_of_blocks() -> None:
    pool = Pool(PoolSpec("p", (ip_network("192.0.2.4/31"), ip_network("192.0.2.0/31"))))
    got = [address_of(allocate(pool, f"o{n}") or 0) for n in range(4)]
    assert list(map(str, got)) == ["192.0.2.4", "192.0.2.5", "192.0.2.0", "192.0.2.1"]
    assert allocate(pool, "late") is None
    assert allocate(pool, "v6", 6, Use()) is None


def test_a_block_inside_another_counts_once() -> None:
    pool = Pool(PoolSpec("p", (ip_network("192.0.2.0/30"), ip_network("192.0.2.0/29"), ip_network("192.0.2.0/29"))))
    assert pool.counts().total == 8


@pytest.mark.parametrize("block", ["2001:db8::/64", "2001:db8::/48", "10.0.0.0/8"])
def test_big_blocks_cost_nothing(block: str) -> None:
    network = ip_network(block)
    pool = Pool(PoolSpec("p", (network,), avoid_buggy_ips=True), cooldown=10)
    key = allocate(pool, "o", network.version, Use())  # type: ignore[arg-type]
    assert key is not None
    assert address_of(key) == (network[1] if network.version == 4 else network[0])
    last = key_of(network[-2])
    assert pool.hold(last, "p", Use()) is None
    counts = pool.counts()
    assert counts.total == network.num_addresses
    assert counts.free + counts.used + counts.cooling + counts.reserved == counts.total
    assert counts.reserved == (131072 if network.version == 4 else 0)


WEB, TLS = Use("k", frozenset({"tcp/80"})), Use("k", frozenset({"tcp/443"}))
KEY = key_of(IPv4Address("192.0.2.1"))


IN_USE = 'can\'t change sharing key for "192.0.2.1", address also in use by a'


@pytest.mark.parametrize(
    ("second", "reason", "message"),
    [
        (TLS, "", ""),
        (WEB, "PortInUse", 'port tcp/80 is already in use on "192.0.2.1"'),
        (
            Use("other", TLS.ports),
            "AddressInUse",
            'can\'t change sharing key for "192.0.2.1", address also in use by a',
        ),
        (Use("", TLS.ports), "AddressInUse", IN_USE),
        (Use("k", TLS.ports, "app=x"), "AddressInUse", IN_USE),
    ],
)
def test_sharing(second: Use, reason: str, message: str) -> None:
    pool = Pool(PoolSpec("p", (ip_network("192.0.2.0/24"),)))
    assert pool.hold(KEY, "a", WEB) is None
    denied = pool.hold(KEY, "b", second)
    assert (denied.reason, denied.message) == (reason, message) if denied else reason == ""


def test_a_shared_address_is_free_after_its_last_holder() -> None:
    pool = Pool(PoolSpec("p", (ip_network("192.0.2.0/30"),)), cooldown=10)
    first = allocate(pool, "a", 4, WEB)
    assert first is not None
    assert allocate(pool, "b", 4, TLS) == first
    assert allocate(pool, "c", 4, WEB) == first + 1
    pool.release(first, "a", 0)
    assert pool.counts().cooling == 0
    pool.release(first, "b", 0)
    assert pool.counts().cooling == 1
    assert allocate(pool, "d", 4, TLS) == first + 1


def test_cooling_and_reserved_addresses_go_back_to_their_owner_only() -> None:
    pool = Pool(PoolSpec("p", (ip_network("192.0.2.0/24"),)))
    pool.hold(KEY, "a", Use())
    pool.release(KEY, "a", 0)
    denied = pool.hold(KEY, "b", Use())
    assert denied and denied.reason == "AddressCooling"
    assert pool.hold(KEY, "a", Use()) is None
    pool.reserve(KEY + 1, "a")
    denied = pool.hold(KEY + 1, "b", Use())
    assert denied and denied.reason == "AddressReserved" and '"routerd release 192.0.2.2"' in denied.message
    assert pool.hold(KEY + 1, "a", Use()) is None
