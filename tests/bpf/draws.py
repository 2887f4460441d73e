"""Policies and packets that a test of the programs draws at random."""

from __future__ import annotations

from ipaddress import ip_network
from random import Random

from hypothesis import strategies as st

from bpf import layout
from egress.policy import IPAddress, IPNetwork, Policy, Ports, Transport
from tests.bpf.wishes import (
    BOTH,
    HERE,
    IN_ORDER,
    NO_GATEWAY,
    NO_PORTS,
    NODE_OWN,
    OF_VIP,
    THERE,
    UNPUBLISHED,
    WORKER2_NUMBER,
    WORKER_NUMBER,
)
from tests.models.liveness import Rank

PACKETS = 50
EVERYWHERE = [ip_network("0.0.0.0/0"), ip_network("::/0")]
SOME = [
    ip_network(t)
    for t in (
        "198.51.100.0/24", "198.51.100.7/32", "192.0.0.0/8", "203.0.113.0/24", "2001:db8:51::/48", "2001:db8:51::7/128",
    )
]  # fmt: skip
SOME_PORTS = [
    Ports("TCP"),
    Ports("TCP", 80, 80),
    Ports("TCP", 1, 443),
    Ports("SCTP", 80, 80),
    Ports("UDP", 53, 53),
    Ports("UDP"),
    Ports("ICMP"),
]
DESTINATIONS, EXCLUDED, MOST_PORTS = [*EVERYWHERE, *EVERYWHERE, *SOME], SOME, 2
GROUPS = [HERE, HERE, HERE, THERE, THERE, IN_ORDER, NODE_OWN, OF_VIP, NO_GATEWAY, NO_PORTS, UNPUBLISHED]
destinations = st.lists(st.sampled_from(DESTINATIONS), min_size=1, max_size=3)
excluded = st.lists(st.sampled_from(EXCLUDED), max_size=1)
no_ports: list[Ports] = []
ports = st.one_of(st.just(no_ports), st.just(no_ports), st.lists(st.sampled_from(SOME_PORTS), max_size=MOST_PORTS))
groups = st.sampled_from(GROUPS)
bodies = st.tuples(groups, destinations, excluded, ports, st.integers(0, 2), st.booleans())


WORKERS = [WORKER_NUMBER, WORKER2_NUMBER]
WAYS = [*WORKERS, *(number | layout.WAY_DIRECT for number in WORKERS)]
# What the probes of the workers say.
ranks = st.dictionaries(st.sampled_from(WAYS), st.sampled_from([Rank.LEAVES, Rank.SILENT]))
transports: st.SearchStrategy[Transport] = st.sampled_from(["vxlan", "auto", "auto", "direct"])
# Which of them said just now that they get what comes by the link.
asked = st.sets(st.sampled_from(WORKERS))


def policies_of(found: list[tuple[int, list[IPNetwork], list[IPNetwork], list[Ports], int, bool]]) -> list[Policy]:
    return [
        Policy(f"p{n}", group, tuple(inside), tuple(outside), tuple(several), priority, exit_local=here)
        for n, (group, inside, outside, several, priority, here) in enumerate(found)
    ]


# Egress IPs whose port sets a worker has not echoed by a way.
untried = st.one_of(
    st.just(set[tuple[IPAddress, int]]()),
    st.sets(st.tuples(st.sampled_from(BOTH), st.sampled_from(WAYS)), max_size=6),
)

# One draw for all packets of an example: a failure is shown with its packet, which need not shrink.
seeds = st.integers(0, 2**32 - 1)


def packets(seed: int) -> list[int]:
    random = Random(seed)
    return [random.getrandbits(96) for _ in range(PACKETS)]
