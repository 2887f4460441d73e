"""Objects of many files: what is there twice or overlaps is refused, the rest goes on."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from routerd.formats.objects import Loaded
from routerd.model import Allocations, EgressGroup, EndpointSlice, Snapshot
from routerd.selectors import EVERYTHING
from routerd.store.merge import Merger, merge
from tests.models.manifests import read_text

POOL = "apiVersion: routerd.io/v1alpha1\nkind: AddressPool\nmetadata: {{name: {0}}}\nspec: {{blocks: [{1}]}}\n"


def bgp(
    name: str, *, namespace: str = "kube-system", peers: str = "10.0.0.1", block: str = "", key: str = "config.yaml"
) -> str:
    lines = [f"    - {{peer-address: {peer}, peer-asn: 64512, my-asn: 64513}}" for peer in peers.split()]
    pools = f"\n    address-pools: [{{name: legacy, protocol: bgp, addresses: [{block}]}}]" if block else ""
    head = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: {namespace}}}\ndata:\n  {key}: |\n"
    return head + "    peers:\n" + "\n".join(lines) + pools + "\n"


def merged(*texts: str) -> tuple[Snapshot, list[str]]:
    snapshot = merge([read_text(text, f"{n}.yaml") for n, text in enumerate(texts)], allocations=None)
    return snapshot, [f"{one.object} {one.reason}: {one.message}" for one in snapshot.refusals]


def test_nothing_is_synced_and_empty() -> None:
    snapshot, refusals = merged()
    assert (snapshot.is_synced, snapshot.nodes, snapshot.allocations, refusals) == (True, {}, None, [])


SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {{selector: {0}}}\n"
BY_SERVICE = (
    "apiVersion: routerd.io/v1alpha1\nkind: EgressPolicy\nmetadata: {name: p}\n"
    "spec: {service: {name: web, namespace: shop}, destinationCIDRs: [0.0.0.0/0]}\n"
)


def test_a_policy_by_reference_selects_what_the_service_does() -> None:
    """As the Service says it now, also where only that is another."""
    merger, policy = Merger(), read_text(BY_SERVICE, "p.yaml")

    def selected(*texts: str) -> list[list[tuple[str, str]]]:
        snapshot = merger.merge([policy, *(read_text(text, "s.yaml") for text in texts)], allocations=None)
        (found,) = (snapshot.policies or {}).values()
        return [[*(each.namespaces or EVERYTHING).match_labels, *(each.pods or EVERYTHING).match_labels]
                for each in found.selections]  # fmt: skip

    in_shop = ("kubernetes.io/metadata.name", "shop")
    assert selected(SERVICE.format("{app: web}")) == [[in_shop, ("app", "web")]]
    assert selected(SERVICE.format("{app: web, tier: a}")) == [[in_shop, ("app", "web"), ("tier", "a")]]
    assert selected(SERVICE.format("{}")) == []
    assert selected() == []


def test_a_services_own_word_that_is_gone_is_no_policy_that_cannot_be_read() -> None:
    """Else an emptied file would hold up all of egress for a Service that somebody deleted."""
    group = EgressGroup(1, ip_address("192.0.2.1"), ("svc/shop/web",), service="shop/web")
    found = merge([Loaded(is_silent=True)], allocations=Allocations(1, groups=(group,)))
    assert (found.policies, found.refusals) == ({}, ())


def test_of_two_objects_of_one_name_the_first_file_wins() -> None:
    first = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {from: first}}\n"
    snapshot, refusals = merged(first, "\n" + first.replace("first", "second"))
    assert [pod.labels["from"] for pod in (snapshot.pods or {}).values()] == ["first"]
    assert refusals == [
        "Pod/default/p Duplicate: 1.yaml:2: Pod/default/p is already defined at 0.yaml:1; this one is not used"
    ]


def test_overlapping_pools_the_later_is_conflicting() -> None:
    snapshot, refusals = merged(
        POOL.format("a", "192.0.2.0/24"), POOL.format("b", "192.0.2.7"), POOL.format("c", "198.51.100.1")
    )
    assert sorted(snapshot.pools or {}) == ["a", "c"]
    assert refusals == [
        "AddressPool/b Conflicting: 1.yaml:1: 192.0.2.7/32 overlaps with 192.0.2.0/24 of pool a (0.yaml:1); pool b is "
        "not used"
    ]


def test_pools_of_config_maps_and_of_ours_are_one_set() -> None:
    snapshot, refusals = merged(bgp("bgp-config", block="192.0.2.0/24"), POOL.format("legacy", "198.51.100.0/24"))
    assert (snapshot.pools or {})["legacy"].blocks == (ip_network("192.0.2.0/24"),)
    assert refusals == ["AddressPool/legacy Duplicate: 1.yaml:1: pool legacy is already defined at 0.yaml:8"]


def test_peers_of_all_config_maps_are_merged_unless_equal() -> None:
    other = bgp("config", namespace="metallb-system", peers="10.0.0.1 10.0.0.2", key="config")
    snapshot, refusals = merged(bgp("bgp-config"), other)
    assert snapshot.bgp is not None
    assert [str(peer.address) for peer in snapshot.bgp.peers] == ["10.0.0.1", "10.0.0.2"]
    assert str(snapshot.bgp.peers[0].origin) == "0.yaml:7"
    assert refusals == []


def test_what_only_routerd_writes_is_not_read_from_manifests() -> None:
    _, refusals = merged("apiVersion: routerd.io/v1alpha1\nkind: Allocations\ngeneration: 1\n")
    assert refusals == [
        "Allocations Misplaced: 0.yaml:1: Allocations is not read from manifests; name its file in the configuration "
        "(store)"
    ]


def test_refusals_of_readers_are_kept() -> None:
    policy = """\
apiVersion: cilium.io/v2
kind: CiliumEgressGatewayPolicy
metadata: {name: e}
spec: {selectors: [{podSelector: {}}], destinationCIDRs: [0.0.0.0/0],
  egressGateway: {nodeSelector: {}, interface: eth1}}
"""
    snapshot, refusals = merged(policy)
    assert [each.refused for each in (snapshot.policies or {}).values()] == [True]
    assert [refusal.split(":")[0] for refusal in refusals] == ["CiliumEgressGatewayPolicy/e InterfaceNotSupported"]


def test_pools_of_metallb_and_of_ours_are_one_set_and_refused_by_their_own_names() -> None:
    theirs = "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {{name: {0}, namespace: m}}\n"
    theirs += "spec: {{addresses: [{1}]}}\n"
    ours = POOL.format("a", "192.0.2.0/24")
    snapshot, refusals = merged(ours, theirs.format("a", "198.51.100.0/24"), theirs.format("b", "192.0.2.7/32"))
    assert sorted(snapshot.pools or {}) == ["a"]
    assert refusals == [
        "IPAddressPool/m/a Duplicate: 1.yaml:1: pool a is already defined at 0.yaml:1",
        "IPAddressPool/m/b Conflicting: 2.yaml:1: 192.0.2.7/32 overlaps with 192.0.2.0/24 of pool a (0.yaml:1); pool b "
        "is not used",
    ]


KINDS = {
    "Pod": "apiVersion: v1\nkind: Pod\nmetadata: {{name: {0}, labels: {{l: {1}}}}}\n",
    "Service": "apiVersion: v1\nkind: Service\nmetadata: {{name: {0}, labels: {{l: {1}}}}}\nspec: {{type: {1}}}\n",
    "Node": "apiVersion: v1\nkind: Node\nmetadata: {{name: {0}, labels: {{l: {1}}}}}\n",
    "Namespace": "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {0}, labels: {{l: {1}}}}}\n",
    "EndpointSlice": "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n"
    "metadata: {{name: {0}, labels: {{kubernetes.io/service-name: {1}}}}}\nendpoints: []\n",
    "AddressPool": POOL.replace("{1}", "192.0.2.0/24"),
}
DOCUMENTS = st.builds(
    lambda kind, name, word: KINDS[kind].format(name, word),
    st.sampled_from(sorted(KINDS)), st.sampled_from("abc"), st.sampled_from(["LoadBalancer", "ClusterIP"]),
)  # fmt: skip
WRITES = st.lists(
    st.tuples(st.sampled_from("xyz"), st.one_of(st.none(), st.lists(DOCUMENTS, max_size=3))), min_size=1, max_size=8
)


def in_any_order(snapshot: Snapshot) -> tuple[Snapshot, list[EndpointSlice]]:
    slices = sorted(snapshot.endpoint_slices or (), key=lambda each: (each.namespace, each.name))
    return replace(snapshot, endpoint_slices=()), slices


@given(WRITES)
def test_files_that_are_merged_again_come_to_what_they_are_merged_to_anew(
    writes: list[tuple[str, list[str] | None]],
) -> None:
    merger, files = Merger(), dict[str, Loaded]()
    for name, documents in writes:
        if documents is None:
            files.pop(name, None)
        else:
            files[name] = read_text("---\n".join(documents), f"{name}.yaml")
        loaded = [files[each] for each in sorted(files)]
        found = merger.merge(loaded, allocations=None)
        before = {part: dict(each) for part, each in vars_of(found).items()}
        assert in_any_order(found) == in_any_order(merge(loaded, allocations=None))
        again = merger.merge(loaded, allocations=None)
        assert found.services is again.services or len(found.refusals) > 0
        assert vars_of(found) == before  # what was given out stays as it was


def vars_of(snapshot: Snapshot) -> dict[str, dict[str, object]]:
    return {"pods": {**(snapshot.pods or {})}, "services": {**(snapshot.services or {})}}
