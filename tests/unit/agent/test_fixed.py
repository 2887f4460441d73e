"""Fixed addresses as users write them: by the annotations of Calico, Kube-OVN and Antrea."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from ipam.pod_addresses import Wish
from ipam.pool import COOLDOWN
from routerd.agent.plugins.fixed import STATEFUL_LABEL, closed, wish_of
from routerd.agent.plugins.pod_addresses import LOOK, PodAddressDesk
from routerd.model import AddressPool, ClusterCIDR, LabelSelector, Namespace, Pod, PodPool
from tests.models import cluster
from tests.models.ipam_runtime import address, ask
from tests.models.virtual_time import elapse, in_virtual_time, now

EXAMPLE = Path(__file__).parents[1] / "data" / "examples" / "fixed-ip-annotations.yaml"
BLOCK = ip_network("192.168.0.0/16")
DAY = 900.0  # seconds that an address is kept: a short one
POOL = "ovn.kubernetes.io/ip_pool"
HOSTS_OWN = {"ipam": {"type": "routerd-ipam", "gateways": ["192.168.255.254"]}}  # as 192.168.0.1 is a pod's
ANTREA_POOL = {
    "pod-ip-pool1": AddressPool("pod-ip-pool1", tuple(map(ip_network, ("192.168.100.6/31", "192.168.100.8/29"))))
}


def pod(
    name: str, annotations: Mapping[str, str] = {}, uid: str = "u1", *, stateful: bool = False, node: str = "a"
) -> Pod:
    labels = {STATEFUL_LABEL: name} if stateful else {}
    return Pod("default", name, node, labels=labels, annotations=annotations, uid=uid)


def of(name: str) -> dict[str, str]:
    """The annotations of the example's object, or of what it makes pods of."""
    documents: list[dict[str, Any]] = list(yaml.safe_load_all(EXAMPLE.read_text()))
    (found,) = (each for each in documents if each["metadata"]["name"] == name)
    template = found["spec"]["template"]["metadata"] if "spec" in found else found["metadata"]
    return dict(template["annotations"])


class World:
    def __init__(self, directory: Path) -> None:
        self.pods: dict[str, Pod] = {}
        self.pools: Mapping[str, AddressPool] | None = ANTREA_POOL
        self.pod_pools: Mapping[str, PodPool] = {}
        self.namespaces: Mapping[str, Namespace] | None = {}
        self.blocks: tuple[IPv4Network | IPv6Network, ...] = (BLOCK,)
        self.of_pools = True
        self.path = directory / "pod-addresses.json"
        self.restart()

    def restart(self) -> None:
        self.desk = PodAddressDesk(
            "a", self.path, self.snapshot, retention=DAY, of_pools=self.of_pools, clock=lambda: 1000.0 + now()
        )

    def snapshot(self) -> Any:
        nodes = {"a": cluster.node("a", 1, pod_cidrs=self.blocks)}
        parts: dict[str, Any] = {"pools": self.pools, "pod_pools": self.pod_pools, "namespaces": self.namespaces}
        return replace(cluster.snapshot(pods=self.pods), nodes=nodes, **parts)

    async def start(self, made: Pod, container: str = "") -> str:
        self.pods = {**self.pods, made.key: made}
        found = await address(self.desk, container or f"{made.name}-{made.uid}", made.key, made.uid, **HOSTS_OWN)
        return found.removesuffix("/16").removeprefix("routerd-ipam: ")

    async def end(self, made: Pod, *, hears: bool = True) -> None:
        self.pods = {key: each for key, each in self.pods.items() if key != made.key}
        if hears:
            await ask(self.desk, "DEL", f"{made.name}-{made.uid}", made.key, made.uid)

    async def pass_time(self, seconds: float) -> None:
        async with asyncio.timeout(seconds + 1):
            task = asyncio.create_task(self.desk.run())
            await elapse(seconds)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def story(test: Any, directory: Path) -> None:
    async def run() -> None:
        await test(World(directory))

    in_virtual_time(run())


def test_the_example_as_it_is(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        replicas = [pod(f"kube-ovn-pool-{name}", of("kube-ovn-pool")) for name in ("x", "y", "z")]
        ordered = [pod(f"kube-ovn-ordered-{n}", of("kube-ovn-ordered"), stateful=True) for n in (1, 0, 2)]
        pods = [pod(name, of(name)) for name in ("calico-fixed", "kube-ovn-fixed", "antrea-fixed")]
        assert [await world.start(each) for each in (*pods, *replicas, *ordered)] == [
            "192.168.0.1",
            "192.168.100.100",
            "192.168.100.7",
            "192.168.100.201",
            "192.168.100.202",
            "none of 192.168.100.201, 192.168.100.202 is free on this node",
            "192.168.100.212",
            "192.168.100.211",
            f"annotation {POOL}: it has 2 for a StatefulSet, and kube-ovn-ordered-2 is number 3: add one",
        ]

    story(test, tmp_path)


def test_a_fixed_address_is_nobody_elses_from_when_it_is_asked_for(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        fixed = pod("web", {"ovn.kubernetes.io/ip_address": "192.168.0.1"})
        world.pods = {fixed.key: fixed}
        assert await world.start(pod("first")) == "192.168.0.2"
        assert await world.start(fixed) == "192.168.0.1"
        other = pod("other", {"cni.projectcalico.org/ipAddrs": '["192.168.0.1"]'})
        assert await world.start(other) == "192.168.0.1 is Pod default/web's"
        await world.end(fixed)
        assert await world.start(other) == "192.168.0.1 is Pod default/web's, which keeps it"
        await world.pass_time(DAY + 2 * LOOK)
        assert await world.start(other) == "192.168.0.1 is Pod default/web's until it has rested"
        await world.pass_time(COOLDOWN)
        assert await world.start(other) == "192.168.0.1"

    story(test, tmp_path)


def test_a_fixed_address_survives_the_pod_and_the_agent(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        web = pod("web", {"ovn.kubernetes.io/ip_address": "192.168.0.9"})
        await world.start(web)
        await world.end(web)
        world.restart()
        await world.pass_time(DAY / 2)
        assert await world.start(replace(web, uid="u2")) == "192.168.0.9"
        again = replace(web, uid="u3")
        world.pods = {}
        assert (
            await world.start(again) == "192.168.0.9 is Pod default/web's"
        )  # of its former sandbox nobody said the end
        await ask(world.desk, "DEL", "web-u2", web.key, "u2")
        assert await world.start(again) == "192.168.0.9"

    story(test, tmp_path)


def test_a_stateful_set_keeps_its_addresses_without_asking(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        sets = [pod(f"db-{number}", stateful=True) for number in range(3)]
        before = [await world.start(each) for each in sets]
        for each in sets:
            await world.end(each)
        await world.pass_time(10 * COOLDOWN)
        assert await world.start(pod("plain")) not in before
        assert [await world.start(replace(each, uid="u2")) for each in sets] == before

    story(test, tmp_path)


def test_an_address_of_a_list_is_the_next_pod_s_as_pods_of_a_deployment_come_with_other_names(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        first, second, third = (pod(f"web-{name}", of("kube-ovn-pool")) for name in ("x", "y", "z"))
        assert [await world.start(each) for each in (first, second)] == ["192.168.100.201", "192.168.100.202"]
        await world.end(first)
        await world.pass_time(COOLDOWN)
        assert await world.start(third) == "192.168.100.201"

    story(test, tmp_path)


def test_a_pod_that_is_on_another_node_now_leaves_its_address(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        db = pod("db-0", stateful=True)
        await world.start(db)
        await world.end(db)
        world.pods = {db.key: replace(db, uid="u2", node="")}  # not scheduled yet
        await world.pass_time(2 * DAY)
        assert {each.state for each in world.desk.held.holds.values()} == {"reserved"}
        world.pods = {db.key: replace(db, uid="u2", node="b")}
        await world.pass_time(2 * LOOK)
        assert {each.state for each in world.desk.held.holds.values()} == {"cooling"}

    story(test, tmp_path)


def test_another_annotation_lets_the_former_address_go(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        web = pod("web", {"ovn.kubernetes.io/ip_address": "192.168.0.9"})
        await world.start(web)
        await world.end(web)
        moved = replace(web, uid="u2", annotations={"ovn.kubernetes.io/ip_address": "192.168.0.10"})
        assert await world.start(moved) == "192.168.0.10"
        states = {str(each.address): each.state for each in world.desk.held.holds.values()}
        assert states == {"192.168.0.9": "cooling", "192.168.0.10": "used"}

    story(test, tmp_path)


def test_pools_are_waited_for(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.pools = None
        web = pod("web", {"ipam.antrea.io/ippools": "pod-ip-pool1"})
        assert await world.start(web) == "the agent has not read address pools yet"
        world.pools = ANTREA_POOL
        assert await world.start(web) == "192.168.100.6"

    story(test, tmp_path)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"cni.projectcalico.org/ipAddrs": "192.0.2.1"}, "expected a JSON list"),
        ({"cni.projectcalico.org/ipAddrs": "[1]"}, "expected a JSON list"),
        ({"cni.projectcalico.org/ipAddrs": "[]"}, "expected one address of a family"),
        ({"cni.projectcalico.org/ipAddrs": "[" * 100_000}, "nested too deep"),
        ({"ovn.kubernetes.io/ip_address": "192.0.2.1,192.0.2.2"}, "expected one address of a family"),
        ({"ovn.kubernetes.io/ip_address": ""}, "expected words with commas between"),
        ({"ovn.kubernetes.io/ip_address": "192.0.2.0/24"}, "found '192.0.2.0/24', expected an address"),
        ({"ovn.kubernetes.io/ip_address": "fd00::1%1"}, "found 'fd00::1%1', expected an address"),
        ({"ovn.kubernetes.io/ip_pool": "pool-1"}, "no pool pool-1 is known"),
        ({"ovn.kubernetes.io/ip_pool": "pool-1,192.0.2.1"}, "found 'pool-1', expected an address"),
        ({"ipam.antrea.io/ippools": "none"}, "no pool none is known"),
        ({"ipam.antrea.io/ippools": "pod-ip-pool1", "ipam.antrea.io/pod-ips": "192.0.2.1"}, "is not in pod-ip-pool1"),
        (
            {"ovn.kubernetes.io/ip_address": "192.0.2.1", "cni.projectcalico.org/ipAddrs": '["192.0.2.1"]'},
            "leave one of them",
        ),
    ],
)
def test_what_is_wrong_is_told_with_the_annotation(annotations: Mapping[str, str], message: str) -> None:
    found = wish_of(pod("web", annotations), ANTREA_POOL)
    assert isinstance(found, str)
    assert message in found
    assert "annotation" in found


def test_both_families() -> None:
    v4, v6 = ip_address("192.168.0.5"), ip_address("fd00:1::5")
    ordered = {"ovn.kubernetes.io/ip_pool": "192.168.0.4,fd00:1::4;192.168.0.5,fd00:1::5"}
    assert wish_of(pod("db-1", ordered, stateful=True), {}) == Wish((v4, v6), keeps=True)
    assert wish_of(pod("web", {"ovn.kubernetes.io/ip_address": "192.168.0.5,fd00:1::5"}), {}) == Wish(
        (v4, v6), keeps=True
    )
    assert wish_of(pod("web", {"ipam.antrea.io/pod-ips": "fd00:1::5"}), {}) == Wish((v6,), keeps=True)


# --- pools that pods name

GOLD, PLAIN = ip_network("10.8.0.0/24"), ip_network("10.9.0.0/24")
POOLS = {
    "gold": PodPool("gold", (GOLD,), (ClusterCIDR(GOLD, 26),), asked_only=True),
    "plain": PodPool("plain", (PLAIN,), (ClusterCIDR(PLAIN, 26),)),
}
HERE = (ip_network("10.8.0.64/26"), ip_network("10.9.0.0/26"))


def test_a_pod_gets_an_address_of_the_pool_that_it_names_and_others_of_pools_that_need_no_name(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.blocks, world.pod_pools = HERE, POOLS
        world.namespaces = {"default": Namespace("default", annotations={"ipam.cilium.io/ip-pool": "gold"})}
        calico = pod("calico", {"cni.projectcalico.org/ipv4pools": '["plain"]'})
        by_cidr = pod("cidr", {"cni.projectcalico.org/ipv4pools": '["10.8.0.0/24"]'})
        cilium = pod("cilium", {"ipam.cilium.io/ip-pool": "gold", "ipam.cilium.io/ipv4-pool": "plain"})
        given = [await world.start(each) for each in (pod("of-namespace"), calico, by_cidr, cilium)]
        assert given == ["10.8.0.66/26", "10.9.0.2/26", "10.8.0.67/26", "10.9.0.3/26"]
        world.namespaces = {}
        assert await world.start(pod("plain")) == "10.9.0.4/26"
        unknown = await world.start(pod("lost", {"ipam.cilium.io/ip-pool": "silver"}))
        assert unknown == "annotation ipam.cilium.io/ip-pool: no pool silver is known"
        world.pod_pools = {**POOLS, "gold": replace(POOLS["gold"], disabled=True)}
        late = await world.start(pod("late", {"ipam.cilium.io/ip-pool": "gold"}))
        assert late == "annotation ipam.cilium.io/ip-pool: pool gold is disabled: nobody gets an address of it"

    story(test, tmp_path)


def test_pools_of_another_cni_shut_no_blocks(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        drained = {key: replace(each, disabled=True) for key, each in POOLS.items()}
        world.blocks, world.pod_pools, world.of_pools = HERE, drained, False
        world.restart()
        assert await world.start(pod("first")) == "10.8.0.66/26"
        world.of_pools = True
        world.restart()
        assert await world.start(pod("second")) == "no address of 10.8.0.64/26, 10.9.0.0/26 is free"

    story(test, tmp_path)


def test_a_pod_that_names_no_pool_gets_an_address_of_those_that_select_it(tmp_path: Path) -> None:
    database, shop = LabelSelector((("app", "db"),)), LabelSelector((("team", "shop"),))
    gold = replace(POOLS["gold"], for_pods=database, for_namespaces=shop)

    async def test(world: World) -> None:
        world.blocks, world.pod_pools = HERE, {**POOLS, "gold": gold}
        world.namespaces = {"default": Namespace("default", {"team": "shop"})}
        db, web = replace(pod("db"), labels={"app": "db"}), replace(pod("web"), labels={"app": "web"})
        named = replace(pod("named", {"ipam.cilium.io/ip-pool": "plain"}), labels={"app": "db"})
        assert await world.start(db) == "10.8.0.66/26"
        assert [await world.start(each) for each in (web, named)] == ["10.9.0.2/26", "10.9.0.3/26"]
        world.namespaces = {"default": Namespace("default")}
        assert await world.start(replace(db, name="db-2")) == "10.9.0.4/26"
        world.blocks, world.namespaces = HERE[1:], {"default": Namespace("default", {"team": "shop"})}
        assert "10.8.0.0/24" in await world.start(replace(db, name="db-3")), "none of another pool"
        world.of_pools = False
        world.restart()
        assert await world.start(replace(db, name="db-4")) == "10.9.0.5/26"

    story(test, tmp_path)


def test_pools_that_select_with_one_part_and_those_that_are_drained() -> None:
    db = replace(pod("db"), labels={"app": "db"})
    here = LabelSelector((("kubernetes.io/metadata.name", "default"),))
    of = replace(POOLS["gold"], for_namespaces=here)
    pseudo = replace(POOLS["plain"], for_pods=LabelSelector((("io.kubernetes.pod.namespace", "default"),)))
    assert wish_of(db, {}, None, [of, pseudo]) == Wish(among=(GOLD, PLAIN)), "of any of them"
    assert wish_of(db, {}, None, [replace(of, disabled=True), POOLS["plain"]]) == Wish()
    assert wish_of(db, {}, Namespace("default", {"team": "x"}), [of]) == Wish()


def test_kube_ovn_s_pools_are_named_by_pods_and_by_their_namespace() -> None:
    named = {"ovn.kubernetes.io/ip_pool": "gold, plain"}
    either = Wish(among=(GOLD, PLAIN))
    assert wish_of(pod("web", named), POOLS) == either
    assert wish_of(pod("web"), POOLS, Namespace("default", annotations=named)) == either
    assert wish_of(pod("db-1", named, stateful=True), POOLS) == replace(either, keeps=True), "a pool has no ordinals"
    own = {"ovn.kubernetes.io/ip_address": "10.8.0.9"}
    assert wish_of(pod("web", own), POOLS, Namespace("default", annotations=named)) == Wish(
        (ip_address("10.8.0.9"),), keeps=True
    )


def test_a_pool_s_address_is_not_kept_for_the_name_of_a_pod(tmp_path: Path) -> None:
    assert not wish_of(pod("web", {"ipam.cilium.io/ip-pool": "gold"}), POOLS).keeps  # type: ignore[union-attr]


def test_where_namespaces_are_not_read_a_pod_waits_if_they_may_name_a_pool(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.namespaces = None
        assert await world.start(pod("first")) == "192.168.0.1"
        world.blocks, world.pod_pools = HERE, POOLS
        assert await world.start(pod("second")) == "the agent has not read namespaces yet"

    story(test, tmp_path)


def test_at_an_agent_s_start_a_pod_waits_for_pools_and_namespaces_where_these_say_what_it_gets(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.blocks, world.pools = HERE, None
        assert await world.start(pod("first")) == "the agent has not read address pools yet"
        world.pools, world.pod_pools, world.namespaces = {}, POOLS, None
        assert await world.start(pod("first")) == "the agent has not read namespaces yet"
        world.namespaces = {"default": Namespace("default", annotations={"ipam.cilium.io/ip-pool": "gold"})}
        assert await world.start(pod("first")) == "10.8.0.66/26"
        world.pools, world.pod_pools, world.namespaces, world.of_pools = None, {}, None, False
        world.restart()
        assert await world.start(pod("second")) == "10.8.0.67/26", "of blocks that pools have no say in"

    story(test, tmp_path)


def test_which_blocks_are_for_pods_that_name_a_pool() -> None:
    gold, plain = HERE
    pools = POOLS.values()
    assert closed(HERE, pools) == {gold}
    assert closed((gold,), pools) == frozenset(), "a node that has no others has them for all its pods"
    assert closed(HERE, [replace(each, disabled=True) for each in pools]) == {gold, plain}
    reserved = replace(POOLS["plain"], reserved=(ip_network("10.9.0.0/28"),))
    assert closed(HERE, [reserved]) == {plain}
    assert closed(HERE, []) == frozenset()
