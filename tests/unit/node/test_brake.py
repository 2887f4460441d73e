"""The brake: what is held, what explains a withdrawal, and what lets it go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

import pytest

from routerd.model import EXCLUDE_LABEL, Allocations, Origin, Peering, Refusal, Snapshot
from routerd.node.brake import Brake, Limits
from routerd.node.desired import FIB_ROOM, LocalFacts, NodeState, Settings, compose
from routerd.refs import service_ref
from tests.models import cluster
from tests.models.cluster import LOCAL, SESSION

LIMITS = Limits(percent=50, paths=4, hold=600.0)
COUNT = 10


def everything() -> Snapshot:
    """Ten services, each in a file of its own with its endpoints, in a directory that a node's file is in as well."""
    snapshot = cluster.snapshot()
    names = [f"s{number}" for number in range(COUNT)]
    services = {}
    slices = []
    for name in names:
        file = Origin(f"/m/{name}.yaml", 1)
        services[f"default/{name}"] = replace(cluster.service(name), origin=file)
        slices.append(replace(cluster.endpoints(name, "a"), origin=file))
    given = tuple(cluster.allocation(name, f"192.0.2.{number}") for number, name in enumerate(names, 1))
    nodes = {name: replace(node, origin=Origin("/m/nodes.yaml", 1)) for name, node in (snapshot.nodes or {}).items()}
    pools = {name: replace(pool, origin=Origin("/m/pools.yaml", 1)) for name, pool in (snapshot.pools or {}).items()}
    peers = tuple(replace(peer, origin=Origin("/m/bgp.yaml", 1)) for peer in snapshot.bgp.peers) if snapshot.bgp else ()
    return replace(
        snapshot, services=services, endpoint_slices=tuple(slices), allocations=Allocations(1, given), nodes=nodes,
        pools=pools, bgp=Peering(peers), policies={},
    )  # fmt: skip


def without(snapshot: Snapshot, *names: str, given: bool = True) -> Snapshot:
    """Services of these names, and their endpoints, are gone; and their addresses unless `given`."""
    assert snapshot.services is not None and snapshot.endpoint_slices is not None and snapshot.allocations is not None
    keys = {f"default/{name}" for name in names}
    kept = tuple(each for each in snapshot.allocations.services if given or each.service not in keys)
    return replace(
        snapshot,
        services={key: each for key, each in snapshot.services.items() if key not in keys},
        endpoint_slices=tuple(each for each in snapshot.endpoint_slices if each.service not in names),
        allocations=replace(snapshot.allocations, services=kept),
    )


def in_one_file(snapshot: Snapshot) -> Snapshot:
    """All services in the file of the nodes."""
    file = Origin("/m/nodes.yaml", 9)
    services = {key: replace(each, origin=file) for key, each in (snapshot.services or {}).items()}
    return replace(snapshot, services=services)


@dataclass
class Story:
    now: float = 0.0
    limits: Limits = LIMITS
    state: NodeState = field(default_factory=lambda: NodeState(None))
    brake: Brake = field(init=False)

    def __post_init__(self) -> None:
        self.brake = Brake(self.limits, lambda: self.now)

    def see(self, snapshot: Snapshot, seconds: float = 60.0) -> int:
        """How many paths the peer has `seconds` later."""
        self.now += seconds
        wanted = compose(snapshot, Settings("a"), LocalFacts(sessions=LOCAL))
        self.state = self.brake.apply(wanted, snapshot)
        return self.count()

    def count(self) -> int:
        announced = self.state.announcements
        return len(announced.desired.ribs.get(SESSION, {})) if announced else 0

    def is_alarmed(self) -> bool:
        return any(each.reason == "WithdrawalHeld" for each in self.state.refusals)


MOST = [f"s{number}" for number in range(6)]


def test_files_that_vanish_at_once_withdraw_nothing_until_the_time_is_over() -> None:
    story = Story()
    assert story.see(everything()) == COUNT
    lost = without(everything(), *MOST, given=False)
    assert story.see(lost) == COUNT
    assert story.is_alarmed()
    assert story.brake.paths == 6
    assert story.see(lost, 599.0) == COUNT
    assert not story.brake.is_due
    story.now += 1.0
    assert story.brake.is_due
    assert story.see(lost, 0.0) == COUNT - 6
    assert not story.is_alarmed()
    assert story.brake.paths == 0


def test_an_operator_releases_it_at_once() -> None:
    story = Story()
    story.see(everything())
    story.see(without(everything(), *MOST))
    assert story.brake.release() == 6
    assert story.brake.is_due
    assert story.see(without(everything(), *MOST), 0.0) == COUNT - 6
    assert story.brake.release() == 0
    assert not story.brake.is_due


def test_what_comes_back_step_by_step_is_never_withdrawn() -> None:
    story = Story()
    story.see(everything())
    for gone in range(9, -1, -1):
        assert story.see(without(everything(), *[f"s{number}" for number in range(gone)]), 1.0) == COUNT
    assert not story.is_alarmed()


def test_files_deleted_one_after_the_other_in_seconds_count_as_one() -> None:
    story = Story()
    story.see(everything())
    for gone in range(COUNT + 1):
        story.see(without(everything(), *[f"s{number}" for number in range(gone)]), 0.1)
    assert story.count() == COUNT
    assert story.is_alarmed()


def test_additions_pass_while_something_is_held() -> None:
    story = Story()
    story.see(without(everything(), "s9"))
    assert story.see(without(everything(), *MOST)) == COUNT
    assert story.is_alarmed()


def excluded(snapshot: Snapshot) -> Snapshot:
    assert snapshot.nodes is not None
    node = replace(snapshot.nodes["a"], labels={EXCLUDE_LABEL: ""})
    return replace(snapshot, nodes={**snapshot.nodes, "a": node})


def unready(snapshot: Snapshot) -> Snapshot:
    assert snapshot.endpoint_slices is not None
    slices = [replace(each, endpoints=tuple(replace(one, ready=False) for one in each.endpoints))
              for each in snapshot.endpoint_slices]  # fmt: skip
    return replace(snapshot, endpoint_slices=tuple(slices))


def no_slices(snapshot: Snapshot) -> Snapshot:
    slices = (replace(cluster.endpoints("other", "a"), origin=Origin("/m/o.yaml", 1)),)
    return replace(snapshot, services=in_one_file(snapshot).services, endpoint_slices=slices)


def told_by_the_operator(snapshot: Snapshot) -> Snapshot:
    refusals = tuple(Refusal(service_ref(f"default/s{number}"), "PoolExhausted", "full") for number in range(COUNT))
    return replace(snapshot, allocations=Allocations(2, (), refusals=refusals))


@pytest.mark.parametrize(
    ("change", "left"),
    [
        pytest.param(lambda s: without(in_one_file(s), *MOST), 4, id="deleted from a file that stays"),
        pytest.param(excluded, 0, id="the node is excluded"),
        pytest.param(unready, 0, id="endpoints are not ready"),
        pytest.param(told_by_the_operator, 0, id="the operator refuses them"),
        pytest.param(lambda s: replace(s, bgp=Peering(), nodes=s.nodes), COUNT, id="the peers' file is gone"),
        pytest.param(no_slices, COUNT, id="the files of the endpoints are gone"),
        pytest.param(
            lambda s: replace(s, allocations=Allocations(2)), COUNT, id="allocations are empty without a word"
        ),
        pytest.param(lambda s: without(s, "s1", "s2", "s3"), COUNT - 3, id="few"),
        pytest.param(lambda s: replace(s, services={}), 0, id="deleted from files that keep their endpoints"),
    ],
)
def test_what_explains_a_withdrawal(change: Callable[[Snapshot], Snapshot], left: int) -> None:
    story = Story()
    before = everything()
    if left == 4:
        before = in_one_file(before)
    story.see(before)
    assert story.see(change(before)) == left
    assert story.is_alarmed() is (left == COUNT)


def test_pools_that_are_gone_withdraw_nothing() -> None:
    story = Story()
    before = everything()
    story.see(before)
    assert story.see(replace(before, pools={})) == COUNT
    assert not story.is_alarmed()


def test_an_api_server_says_itself_what_was_deleted() -> None:
    story = Story()
    services = {
        key: replace(each, origin=Origin(f"Service/{key}", is_api=True))
        for key, each in (everything().services or {}).items()
    }
    before = replace(everything(), services=services)
    story.see(before)
    assert story.see(without(before, *MOST)) == COUNT - 6


def test_after_a_start_what_the_speaker_carries_counts() -> None:
    first, second = Story(), Story()
    first.see(everything())
    assert first.state.announcements is not None
    second.brake.begin(first.state.announcements.desired.ribs)
    assert second.see(without(everything(), *MOST)) == COUNT
    assert second.is_alarmed()
    assert second.state.egress == compose(everything(), Settings("a"), LocalFacts(sessions=LOCAL)).egress
    assert second.state.may_retire  # no held path is an egress address's
    assert second.see(everything()) == COUNT
    assert not second.is_alarmed()
    assert second.see(without(everything(), *MOST)) == COUNT


def test_a_file_is_one_however_its_directory_was_named() -> None:
    story = Story()
    services = {
        key: replace(each, origin=Origin(each.origin.file.removeprefix("/")))
        for key, each in (everything().services or {}).items()
    }
    before = replace(everything(), services=services)
    story.see(before)
    assert story.see(without(before, *MOST)) == COUNT
    assert story.is_alarmed()


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("med", [None, 7])
def test_after_a_start_the_operator_tells_what_is_a_vip_and_no_attribute(med: int | None, given: bool) -> None:
    first, second = Story(), Story()
    first.see(everything())
    assert first.state.announcements is not None
    carried = {
        peer: {prefix: replace(path, med=med) for prefix, path in rib.items()}
        for peer, rib in first.state.announcements.desired.ribs.items()
    }
    second.brake.begin(carried)
    second.see(without(everything(), *MOST, given=given))
    assert second.is_alarmed()
    assert second.state.may_retire is given


def test_switched_off_it_holds_nothing() -> None:
    story = Story(limits=replace(LIMITS, enabled=False))
    story.see(everything())
    assert story.see(without(everything(), *MOST)) == COUNT - 6


def test_nothing_is_kept_for_a_peer_that_was_deleted_on_purpose() -> None:
    story = Story()
    story.see(everything())
    nodes = {name: replace(each, origin=Origin("/m/bgp.yaml", 5)) for name, each in (everything().nodes or {}).items()}
    story.see(replace(everything(), bgp=Peering(), nodes=nodes))
    assert story.state.announcements is not None
    assert ip_address("10.0.0.1") not in story.state.announcements.desired.peers


def steering(snapshot: Snapshot, *pods: str) -> Snapshot:
    """With an egress policy in a file of its own, group 7 behind it, and pods of these addresses."""
    given = snapshot.allocations.services if snapshot.allocations else ()
    rule = replace(cluster.policy(), origin=Origin("/m/egress.yaml", 1))
    return replace(
        snapshot,
        policies={rule.key: rule},
        allocations=Allocations(1, given, (cluster.group(),)),
        pods={f"default/{address}": cluster.pod(address, address) for address in pods},
    )


POD, NEW = "10.1.11.2", "10.1.11.3"
EGRESS = Limits(percent=50, paths=1, hold=600.0)


def test_new_pods_pass_while_services_are_held_and_a_deleted_policy_goes() -> None:
    story = Story()
    story.see(steering(everything(), POD))
    lost = steering(without(everything(), *MOST, given=False), POD, NEW)
    assert story.see(lost) == COUNT + 1
    egress = story.state.egress
    assert egress is not None and {str(each) for each in egress.pods} == {POD, NEW}
    assert all(egress.pods.values())


def test_groups_and_policies_that_vanish_without_a_cause_stay_and_new_pods_pass() -> None:
    story = Story()
    story.see(steering(everything(), POD))
    given = without(everything(), *MOST, given=False)
    lost = replace(given, policies={}, pods=steering(given, POD, NEW).pods)
    assert story.see(lost) == COUNT + 1
    egress = story.state.egress
    assert egress is not None
    assert (set(egress.groups), len(egress.policies), story.state.may_retire) == ({7}, 1, True)
    assert {str(address): bool(names) for address, names in egress.pods.items()} == {POD: True, NEW: False}


def test_after_a_start_held_egress_addresses_keep_the_gateway_state_and_new_pods_pass() -> None:
    first, second = Story(limits=EGRESS), Story(limits=EGRESS)
    first.see(steering(without(everything(), *[f"s{number}" for number in range(COUNT)]), POD))
    assert first.state.announcements is not None and first.count() == 1
    second.brake.begin(first.state.announcements.desired.ribs)
    lost = replace(steering(everything(), POD, NEW), services={}, endpoint_slices=(), allocations=Allocations(2))
    assert second.see(lost) == 1
    assert second.is_alarmed()
    assert not second.state.may_retire
    assert second.state.egress is not None
    assert {str(each) for each in second.state.egress.pods} == {POD, NEW}


def test_an_aggregate_that_is_held_keeps_its_blackhole() -> None:
    story, wide = Story(limits=replace(LIMITS, percent=5, paths=1)), ip_network("192.0.2.0/24")
    pool = cluster.pool(advertisements=(cluster.advertisement(aggregation_length=24),))
    whole = replace(everything(), pools={"default": replace(pool, origin=Origin("/m/pools.yaml", 1))})
    lost = without(whole, *(f"s{number}" for number in range(COUNT)), given=False)
    assert story.see(whole) == 1
    for seconds, aggregates in ((60.0, {wide}), (LIMITS.hold, set())):
        assert story.see(lost, seconds) == len(aggregates)
        assert story.state.rooms[FIB_ROOM].aggregates.keys() == aggregates
        assert story.state.announcements is not None
        assert len(story.state.announcements.owners_in(SESSION, wide)) == COUNT * len(aggregates)
