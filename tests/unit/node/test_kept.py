"""A node's state from what was kept of the last one is the state that is computed from nothing, whatever changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from routerd.model import (
    Allocations,
    Endpoint,
    EndpointSlice,
    Namespace,
    Origin,
    PodSelection,
    Refusal,
    Service,
    ServiceAllocation,
    Snapshot,
)
from routerd.node import desired
from routerd.node.announce import Announcements, Kept, announcements
from routerd.node.checks import Rules
from routerd.node.desired import LocalFacts, Settings
from routerd.node.drain import Drain
from routerd.refs import service_ref
from routerd.selectors import LabelSelector
from tests.models import cluster
from tests.models.cluster import LOCAL

NAMES = st.sampled_from(["web", "shop", "mail"])
NODES = st.sampled_from(["a", "b", ""])
VIPS = st.sampled_from(["192.0.2.1", "192.0.2.2", "192.0.2.200", "2001:db8::1"])
PODS = ["10.1.11.2", "10.1.11.3", "172.16.0.9", "fd00:1::5"]
RULES = Rules(pod_cidrs=True, external_ips=(ip_network("192.0.2.0/25"),), cluster_ips=(ip_network("10.96.0.0/12"),))
Change = tuple[str, Any]


def services(name: str, kind: str, policy: str, status: list[str], own: str, external: list[str]) -> Service:
    return cluster.service(
        name,
        type=kind,
        external_traffic_policy=policy,
        status_ips=tuple(map(ip_address, status)),
        cluster_ips=(ip_address(own),),
        external_ips=tuple(map(ip_address, external)),
        origin=Origin("x", is_api=True),
    )


def pools(length: int, protocol: str, peers: tuple[str, ...], only_b: bool) -> dict[str, Any]:
    selectors = (cluster.ONLY_B,) if only_b else ()
    how = cluster.advertisement(aggregation_length=length, local_pref=length, peers=peers, node_selectors=selectors)
    two = (how, cluster.advertisement(communities=("64512:1",)))
    blocks = (ip_network("192.0.2.0/24"), ip_network("2001:db8::/64"))
    return {"default": replace(cluster.pool(), blocks=blocks, advertisements=two, protocol=protocol)}


SERVICES = st.builds(
    services, NAMES, st.sampled_from(["LoadBalancer", "ClusterIP"]), st.sampled_from(["Cluster", "Local"]),
    st.lists(VIPS, max_size=2), st.sampled_from(["10.96.0.1", "10.96.0.2", "172.30.0.1"]), st.lists(VIPS, max_size=1),
)  # fmt: skip
ENDPOINTS = st.builds(
    Endpoint, st.sampled_from([(ip_address(PODS[0]),), (ip_address(PODS[3]),)]), NODES, st.booleans(), st.booleans()
)
SLICES = st.builds(
    lambda service, number, found: EndpointSlice("default", f"{service}-{number}", service, tuple(found)),
    NAMES, st.integers(0, 1), st.lists(ENDPOINTS, max_size=2),
)  # fmt: skip
ALLOCATED = st.builds(
    lambda name, found: ServiceAllocation(f"default/{name}", "default", tuple(map(ip_address, found))),
    NAMES, st.lists(VIPS, min_size=1, max_size=2, unique=True),
)  # fmt: skip
REFUSED = st.builds(lambda name: Refusal(service_ref(f"default/{name}"), "PoolExhausted", "no address"), NAMES)
GROUPS = st.builds(
    lambda number, address, gateways: cluster.group(id=number, egress_ip=ip_address(address), gateways=gateways),
    st.integers(6, 8), st.sampled_from(["198.51.100.7", "192.0.2.2", "10.1.11.2"]),
    st.sampled_from([("b", "a"), ("a",)]),
)  # fmt: skip
TEAMS = st.sampled_from([{}, {"team": "red"}, {"app": "web"}])
POD = st.builds(
    lambda name, address, labels, node, finished: cluster.pod(
        name, address, labels=labels, node=node, finished=finished
    ),
    NAMES, st.sampled_from(PODS), TEAMS, st.sampled_from(["a", "b"]), st.booleans(),
)  # fmt: skip
WEB, RED = LabelSelector((("app", "web"),)), LabelSelector((("team", "red"),))
POLICY = st.builds(
    lambda name, namespaces: cluster.policy(name, selections=(PodSelection(WEB, namespaces),)),
    NAMES, st.sampled_from([None, RED]),
)  # fmt: skip
PARTS = st.sampled_from(["services", "slices", "allocated", "groups", "pods"])
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.tuples(st.just("services"), SERVICES),
    st.tuples(st.just("slices"), SLICES),
    st.tuples(st.just("allocated"), ALLOCATED),
    st.tuples(st.just("refused"), REFUSED),
    st.tuples(st.just("groups"), GROUPS),
    st.tuples(st.just("pods"), POD),
    st.tuples(st.just("policies"), POLICY),
    st.tuples(
        st.just("gone"), st.tuples(st.sampled_from(["services", "slices", "allocated", "groups", "pods"]), NAMES)
    ),
    st.tuples(
        st.just("pools"),
        st.builds(
            pools,
            st.sampled_from([24, 32]),
            st.sampled_from(["bgp", "layer2"]),
            st.sampled_from([(), ("10.0.0.1",), ("nobody",)]),
            st.booleans(),
        ),
    ),
    st.tuples(st.just("namespace"), TEAMS),
    st.tuples(st.just("node"), st.sampled_from([{}, {"network_unavailable": True}, {"addresses": ()}])),
    st.tuples(st.just("drain"), st.booleans()),
)


@dataclass
class World:
    """A snapshot that changes; objects that do not change stay the same ones."""

    snapshot: Snapshot
    drain: Drain | None = None

    def change(self, what: str, value: Any) -> None:
        before, published = self.snapshot, self.snapshot.allocations or Allocations()
        if what == "drain":
            self.drain = Drain("Cordoned", "it leaves", withdraws=True) if value else None
        elif what == "gone":
            self._take_away(*value)
        elif what in ("services", "pods", "policies"):
            self.snapshot = replace(before, **{what: {**getattr(before, what), value.key: value}})
        elif what == "slices":
            others = [each for each in before.endpoint_slices or () if each.name != value.name]
            self.snapshot = replace(before, endpoint_slices=(*others, value))
        elif what in ("allocated", "refused", "groups"):
            self.snapshot = replace(before, allocations=_with(published, what, value))
        elif what == "pools":
            self.snapshot = replace(before, pools=value)
        elif what == "namespace":
            self.snapshot = replace(before, namespaces={"default": Namespace("default", value)})
        elif what == "node":
            self.snapshot = replace(before, nodes={**(before.nodes or {}), "a": cluster.node("a", 11, **value)})

    def _take_away(self, part: str, name: str) -> None:
        before, published = self.snapshot, self.snapshot.allocations or Allocations()
        key = f"default/{name}"
        if part in ("services", "pods"):
            kept = {each: one for each, one in getattr(before, part).items() if each != key}
            self.snapshot = replace(before, **{part: kept})
        elif part == "slices":
            self.snapshot = replace(
                before, endpoint_slices=tuple(each for each in before.endpoint_slices or () if each.service != name)
            )
        elif part == "allocated":
            left = tuple(each for each in published.services if each.service != key)
            self.snapshot = replace(before, allocations=replace(published, services=left, refusals=()))
        else:
            self.snapshot = replace(before, allocations=replace(published, groups=()))


def _with(published: Allocations, what: str, value: Any) -> Allocations:
    if what == "allocated":
        others = (each for each in published.services if each.service != value.service)
        return replace(published, services=tuple(sorted((*others, value), key=lambda each: each.service)))
    if what == "refused":
        return replace(published, refusals=(value,))
    others = (each for each in published.groups if each.id != value.id)
    return replace(published, groups=tuple(sorted((*others, value), key=lambda each: each.id)))


def comparable(found: Announcements | None) -> object:
    return found and (found.desired, found.owners, sorted(found.refusals, key=lambda each: each.order), found.drain)


@given(st.lists(CHANGES, max_size=8))
def test_announcements(changes: list[Change]) -> None:
    world, kept = World(cluster.snapshot()), Kept()
    for what, value in (("", None), *changes):
        world.change(what, value)
        found = announcements(world.snapshot, "a", RULES, LOCAL, world.drain, kept)
        assert comparable(found) == comparable(announcements(world.snapshot, "a", RULES, LOCAL, world.drain))


@given(st.lists(CHANGES, max_size=8))
def test_whole_states(changes: list[Change]) -> None:
    world, kept = World(cluster.snapshot()), desired.Kept()
    settings = Settings("a", RULES, (ip_network("10.1.0.0/16"),), (ip_network("192.0.2.0/25"),))
    for what, value in (("", None), *changes):
        world.change(what, value)
        facts = LocalFacts(LOCAL, addresses=(ip_address("10.9.9.9"),), drain=world.drain)
        found = desired.compose(world.snapshot, settings, facts, kept)
        anew = desired.compose(world.snapshot, settings, facts)
        assert comparable(found.announcements) == comparable(anew.announcements)
        assert (found.rooms, found.refusals) == (anew.rooms, anew.refusals)


def test_what_was_given_out_stays_as_it_was() -> None:
    kept = Kept()
    first = announcements(cluster.snapshot(), "a", RULES, LOCAL, None, kept)
    assert first is not None
    paths = dict(first.desired.ribs[next(iter(first.desired.ribs))])
    announcements(cluster.snapshot(services={}), "a", RULES, LOCAL, None, kept)
    assert first.desired.ribs[next(iter(first.desired.ribs))] == paths != {}
