"""What a node that leaves waits for, in words; and what ends with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from bgp.session import PeerStatus as Session
from routerd.model import EgressGroup
from routerd.node.announce import announcements
from routerd.node.checks import Rules
from routerd.node.drain import Drain
from routerd.tell.drain import Progress, departure
from routerd.tell.views import PeerView
from tests.models import cluster
from tests.models.cluster import LOCAL, SESSION

OTHERS = ("b",)
DRAIN = Drain("Drained", "node a is drained", withdraws=True)


def progress(groups: Iterable[EgressGroup] = (), *, drain: Drain = DRAIN, state: str = "up") -> Progress:
    snapshot = cluster.snapshot()
    assert snapshot.allocations is not None
    allocations = replace(snapshot.allocations, groups=tuple(groups))
    snapshot = replace(snapshot, allocations=allocations)
    announced = announcements(snapshot, "a", Rules(pod_cidrs=True), LOCAL, drain)
    views = {SESSION: PeerView(SESSION, Session(state), 20.0)}  # type: ignore[arg-type]
    return Progress("a", drain, 0.0, announced, allocations, views, is_sent=True, known=1e6)


def waits(found: Progress) -> tuple[str, ...]:
    return departure(found).waits


def test_a_node_that_nothing_leads_to_any_more() -> None:
    found = departure(progress([cluster.group(gateways=OTHERS)]))
    assert (found.state, found.reason, found.message, found.waits) == ("drained", "Drained", "node a is drained", ())


def test_first_the_notice_and_nothing_else() -> None:
    asking = replace(progress([cluster.group()], drain=replace(DRAIN, withdraws=False)), left=3.2, is_sent=False)
    assert waits(asking) == ("peers are asked to prefer other nodes; the paths are withdrawn in 3 s",)


def test_an_egress_ip_that_is_not_moved() -> None:
    (wait,) = waits(progress([cluster.group()]))
    assert wait.startswith("egress IP 198.51.100.7 has no other gateway: the operator moves it when")
    assert wait.endswith("EgressPolicy/web")
    goes_down = replace(DRAIN, reason="ShuttingDown")
    assert waits(progress([cluster.group()], drain=goes_down)) == ()


def test_what_the_peers_have_not_taken() -> None:
    assert waits(replace(progress(), is_sent=False)) == ("the peers have not taken all withdrawals yet",)
    assert waits(replace(progress(), announced=None)) == ("the agent has not withdrawn the paths yet",)


def test_a_session_that_is_down_may_keep_paths_for_a_while() -> None:
    """Graceful restart of 120 s; nobody who has begun just now knows for how long it has been down."""
    (wait,) = waits(progress(state="down"))
    assert wait == "the session with 10.0.0.1 is down: it may keep the paths by graceful restart for 100 s more"
    assert "for 115 s more" in waits(replace(progress(state="connecting"), known=5.0))[0]
    long_ago = progress(state="down")
    assert waits(replace(long_ago, peers={SESSION: PeerView(SESSION, Session("down"), 121.0)})) == ()


def test_without_bgp_nobody_is_waited_for() -> None:
    assert waits(replace(progress(state="down"), peers=None, is_sent=False)) == ()


def test_what_ends_with_the_node_is_a_note() -> None:
    own = cluster.group(gateways=("a",), node_address=True)
    found = departure(progress([own]))
    assert found.state == "drained"
    assert found.notes == (
        "egress IP 198.51.100.7 is an address of this node: it ends with it",
        "pod CIDR 10.1.11.0/24 stays announced while pods run here: they end with the node",
    )
