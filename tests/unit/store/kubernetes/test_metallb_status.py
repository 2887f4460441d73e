"""What MetalLB's status objects say."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from bgp.path import Desired, Path, SessionKey, SpeakerPeer
from routerd.model import Peer, Peering, Refusal, Snapshot
from routerd.node.announce import Announcements
from routerd.node.desired import LocalFacts, Settings, compose
from routerd.node.sessions import Way
from routerd.refs import Ref
from routerd.selectors import LabelSelector
from routerd.store.kubernetes.status.metallb import Shown, configuration_state, owner_of, service_statuses
from routerd.tell.health import announced_services
from routerd.tell.views import View, rows
from tests.models import cluster

ROUTER_ID, LOCAL = ip_address("10.0.0.11"), ip_address("10.0.0.11")
KNOWN = Snapshot(bgp=Peering(), pools={})


def session(last: int, name: str = "") -> SpeakerPeer:
    return SpeakerPeer(ip_address(f"10.0.0.{last}"), LOCAL, 64512, 64512, ROUTER_ID, description=name)  # type: ignore[arg-type]


def test_services_have_the_peers_that_get_a_prefix_of_theirs() -> None:
    one, two = session(1, "tor"), session(2)
    paths = {ip_network(each): Path(ip_network(each)) for each in ("192.0.2.1/32", "192.0.2.2/32", "10.244.0.0/24")}
    web, mail = Ref("svc", "default", "web"), Ref("svc", "default", "mail")
    owners = dict(zip(paths, ((web,), (mail, web), (Ref("node", name="a"),)), strict=True))
    shares = {one.key: owners, two.key: owners}
    ribs = {one.key: paths, two.key: {prefix: path for prefix, path in paths.items() if str(prefix) == "192.0.2.2/32"}}
    announced = Announcements(Desired({each.key: each for each in (one, two)}, ribs), owners, shares=shares)
    assert announced_services(announced) == {"default/web": ("10.0.0.2", "tor"), "default/mail": ("10.0.0.2", "tor")}
    assert announced_services(Announcements(Desired({one.key: one}, {one.key: {}}), owners, shares=shares)) == {}
    assert announced_services(announced, {ip_network("192.0.2.1/32")}) == {
        "default/web": ("10.0.0.2", "tor"), "default/mail": ("10.0.0.2", "tor"),
    }  # fmt: skip
    assert announced_services(announced, {ip_network("192.0.2.2/32")}) == {"default/web": ("tor",)}
    assert announced_services(None) is None
    assert isinstance(one.key, SessionKey)


def test_a_peer_that_gets_an_aggregate_for_another_service_does_not_have_this_one() -> None:
    """Both are announced as one prefix, each to another peer."""
    tors = tuple(Peer(ip_address(f"10.0.0.{n}"), 64512, 64512, name=f"tor-{n}") for n in (1, 2))
    selectors = [(LabelSelector((("app", name),)),) for name in ("one", "two")]
    ways = tuple(
        cluster.advertisement(aggregation_length=26, peers=(tor.name,), services=selector)
        for tor, selector in zip(tors, selectors, strict=True)
    )
    whole = cluster.snapshot(
        bgp=Peering(tors),
        pools={"default": cluster.pool(advertisements=ways)},
        services={f"default/{name}": cluster.service(name, labels={"app": name}) for name in ("one", "two")},
        endpoint_slices=tuple(cluster.endpoints(name, "a") for name in ("one", "two")),
        allocations=cluster.allocations(
            services=(cluster.allocation("one", "192.0.2.1"), cluster.allocation("two", "192.0.2.2"))
        ),
    )
    facts = LocalFacts(sessions={Way(tor.address): LOCAL for tor in tors})
    state = compose(whole, Settings("a"), facts)
    assert announced_services(state.announcements) == {"default/one": ("tor-1",), "default/two": ("tor-2",)}
    shown = rows("paths", View(whole, state, {}))
    assert {(row["peer"], row["owners"]) for row in shown if row["prefix"] == "192.0.2.0/26"} == {
        ("10.0.0.1", "svc/default/one"),
        ("10.0.0.2", "svc/default/two"),
    }


def test_an_object_says_whose_it_is() -> None:
    ((name, found),) = service_statuses("gw1", {"default/web": ("tor-b", "tor")}).items()
    assert found == Shown(
        {
            "metallb.io/node": "gw1",
            "metallb.io/service-name": "web",
            "metallb.io/service-namespace": "default",
        },
        {"node": "gw1", "serviceName": "web", "serviceNamespace": "default", "peers": ["tor", "tor-b"]},
        {"routerd.io/node": "gw1"},
    )
    assert service_statuses("gw2", {"default/web": ()}).keys() != {name}


def test_a_long_name_of_a_node_is_no_label() -> None:
    (found,) = service_statuses("n" * 64, {"default/web": ()}).values()
    assert "metallb.io/node" not in found.labels and found.status["node"] == "n" * 64
    assert len(owner_of("n" * 253)) < 63


def result(snapshot: Snapshot) -> tuple[str, str]:
    (found,) = configuration_state(snapshot).values()
    return found.status["result"], found.status["lastError"]


def test_the_configuration_s_state() -> None:
    wrong = Refusal(Ref("BGPPeer", "metallb-system", "tor"), "PeerNotSupported", "no VRF")
    told = Refusal(Ref("BGPAdvertisement", "metallb-system", "a"), "UnknownPeer", "who?")
    elsewhere = Refusal(Ref("EgressPolicy", name="mail"), "InvalidObject", "x")
    assert result(Snapshot()) == ("Unknown", "")
    assert result(KNOWN) == ("Valid", "")
    assert result(Snapshot(bgp=Peering(), pools={}, refusals=(told, elsewhere))) == ("Valid", "")
    assert result(Snapshot(bgp=Peering(), pools={}, refusals=(told, wrong))) == (
        "Invalid", "BGPPeer/metallb-system/tor: PeerNotSupported: no VRF",
    )  # fmt: skip
    second = Refusal(Ref("peer", name="tor"), "PeerConfigMissing", "y")
    assert result(Snapshot(refusals=(wrong, second)))[1].endswith(" (and 1 more)")
