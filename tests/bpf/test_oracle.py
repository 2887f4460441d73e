"""Random policies, flows and packets: the programs do what the model says."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egress.policy import IPAddress, Policy, Transport
from tests.bpf import oracle
from tests.bpf.draws import asked, bodies, packets, policies_of, ranks, seeds, transports, untried
from tests.bpf.wishes import by_forward_hook, desired
from tests.bpf.world import World

EXAMPLES = 160  # 8,000 packets; test_full_tables.py and test_quotas.py have 2,000 each, `make fuzz` a million
policies = st.lists(bodies, min_size=1, max_size=3).map(policies_of)


@settings(max_examples=EXAMPLES, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(policies, st.booleans(), st.booleans(), seeds, ranks, untried, asked, transports, st.booleans())
def test_the_programs_do_what_the_model_says(
    world: World,
    wished: list[Policy],
    both: bool,
    handed: bool,
    seed: int,
    found: dict[int, int],
    lacking: set[tuple[IPAddress, int]],
    told: set[int],
    transport: Transport,
    serves: bool,
) -> None:
    """`serves`: this node is a gateway of the egress IPs."""
    wish = desired(*wished, both=both, transport=transport)
    wish = wish if serves else replace(wish, served={})
    oracle.check(world, by_forward_hook(wish) if handed else wish, packets(seed), found, lacking, told)
