"""Pools are renamed, split, moved and deleted under thirty VIPs, and a real ToR sees no withdrawal."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from ipaddress import ip_network

import pytest
import yaml

from routerd.serve.api import agent_socket, ask
from tests.netns.lab import cluster
from tests.netns.lab.daemons import Daemons
from tests.netns.lab.lab import NODES, TOR_AS, Lab
from tests.netns.lab.netns import Namespace, run
from tests.netns.lab.pathwatch import PathWatch
from tests.netns.lab.stores import Files

COUNT = 30
VIPS = frozenset(f"192.0.2.{number}/32" for number in range(COUNT))
_WITHDRAWALS = re.compile(r"Import withdraws:\s+(\d+)")


def service(number: int) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"s{number:02}", "namespace": "default"},
        "spec": {"type": "LoadBalancer", "clusterIP": f"10.96.1.{number}", "ports": [{"port": 80}]},
    }


def bgp(*pools: str, aggregate: int = 0) -> str:
    """The ConfigMap with these pools, each "name block community"; of `aggregate` bits, too, if it is not 0."""
    also = [{"aggregation-length": aggregate}] if aggregate else []
    listed = [
        {"name": name, "protocol": "bgp", "addresses": [block], "bgp-advertisements": [{"communities": [said]}, *also]}
        for name, block, said in map(str.split, pools)
    ]
    peer = {"name": "tor", "peer-address": "default-gateway", "peer-asn": TOR_AS, "my-asn": TOR_AS}
    head = {"apiVersion": "routerd.io/v1alpha1", "peers": [peer]}
    text = yaml.safe_dump({**head, **({"address-pools": listed} if listed else {})})
    metadata = {"name": "bgp-config", "namespace": "kube-system"}
    return yaml.safe_dump(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"config.yaml": text}}
    )


def address_pool(name: str, block: str, community: str) -> str:
    spec = {"blocks": [block], "advertisements": [{"communities": [community]}]}
    head = {"apiVersion": "routerd.io/v1alpha1", "kind": "AddressPool", "metadata": {"name": name}}
    return yaml.safe_dump({**head, "spec": spec})


class Site:
    """The lab with thirty services, and how the ToR sees them."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.files, self.daemons = lab, Files(lab), Daemons(lab)

    def start(self) -> None:
        self.files.put("bgp.yaml", bgp("blue 192.0.2.0/24 64512:1"))
        web = self.lab.add_pod("web", "gw1", {"app": "web"})
        slices = [cluster.endpoint_slice(f"s{number:02}", "default", 8080, [web]) for number in range(COUNT)]
        cluster.write_cluster(self.lab, slices)
        self.files.put("services.yaml", yaml.safe_dump_all(map(service, range(COUNT))))
        self.daemons.start()

    def communities(self) -> dict[tuple[str, str], str]:
        """(VIP, node) -> communities in the ToR's table."""
        return {
            (prefix, path.protocol): path.attributes.get("community", "")
            for prefix, paths in self.lab.tor.routes().items()
            for path in paths
            if prefix in VIPS
        }

    def until(self, *wanted: str) -> None:
        """Waits for these communities, and nothing else, on all paths: the ToR has seen the edit."""

        def seen() -> bool:
            found = self.communities()
            return len(found) == COUNT * len(self.lab.nodes) and set(found.values()) == set(wanted)

        self.lab.wait(seen, f"every VIP from every node with {' or '.join(wanted)}")

    def pools(self) -> list[str]:
        """Those that agents know."""
        sockets = (agent_socket(self.lab.node(name).directory / "run") for name in self.lab.nodes)
        return [str(row["pool"]) for each in sockets for row in ask(each, {"get": "show", "kind": "pools"})]

    def until_published(self, community: str) -> None:
        """Agents need no operator to follow an edit, and may be ahead of it."""
        file = self.lab.manifests / "allocations.yaml"
        self.lab.wait(lambda: community in file.read_text(), f"the operator publishes {community}")

    def withdrawals(self) -> int:
        """How many the ToR has ever received, by its own count."""
        said = run(["birdc", "-s", str(self.lab.tor.control), "show", "protocols", "all"])
        return sum(map(int, _WITHDRAWALS.findall(said)))


@pytest.fixture(scope="module")
def site(clean_labs: list[str]) -> Iterator[Site]:
    with Lab(f"p{os.getpid()}", nodes=NODES[:2]) as lab:
        site = Site(lab)
        site.start()
        site.until("64512:1")
        yield site


def test_no_edit_of_pools_withdraws_a_vip(site: Site) -> None:
    before = site.withdrawals()
    with PathWatch(site.lab.tor.control) as watch:
        watch.wanted = frozenset(site.communities())
        edits(site, deleted="64512:6")
        site.until_published("64512:7")
        assert site.daemons.operator is not None
        site.daemons.operator.kill()
        edits(site, deleted="64512:7")  # what is published is older than the pools
        site.daemons.start_operator()
        site.files.put("bgp.yaml", bgp("last 192.0.2.0/24 64512:9"))
        site.until("64512:9")
    assert watch.missed == []
    assert watch.looks > 10
    assert site.withdrawals() == before
    no_loop_in_an_aggregate(site)
    site.files.put("services.yaml", yaml.safe_dump_all(map(service, range(1, COUNT))))
    site.lab.wait(lambda: site.withdrawals() > before, "a service that is deleted is withdrawn, and counted")


def no_loop_in_an_aggregate(site: Site) -> None:
    """What the ToR has for an unused address is dropped by the node, and one in use is reached as before. That nothing
    goes back to the ToR, the lab's tap sees: it would bear the client's source.
    """
    lab, client = site.lab, site.lab.client
    whole = ip_network("192.0.2.0/24")
    for name in lab.nodes:
        lab.node(name).ip("route add local 192.0.2.0/32 dev lo")
    site.files.put("bgp.yaml", bgp("last 192.0.2.0/24 64512:9", aggregate=whole.prefixlen))
    lab.wait(lambda: len(lab.tor.routes().get(str(whole), ())) == len(lab.nodes), "every node announces the aggregate")
    assert "100% packet loss" in (said := ping(client, "192.0.2.200"))
    assert "exceeded" not in said
    lab.wait(lambda: " 0% packet loss" in ping(client, "192.0.2.0"), "a VIP that the host has itself")
    site.files.put("bgp.yaml", bgp("last 192.0.2.0/24 64512:9"))
    lab.wait(lambda: str(whole) not in lab.tor.routes(), "the aggregate is withdrawn")
    for name in lab.nodes:
        table = lab.node(name).run
        lab.wait(lambda run=table: not run(["ip", "route", "show", "table", "204"], check=False), "blackholes are gone")


def ping(namespace: Namespace, address: str) -> str:
    return namespace.run(["ping", "-n", "-c", "1", "-W", "1", address], check=False)


def edits(site: Site, *, deleted: str) -> None:
    """`deleted`: the communities of addresses without a pool, as they were published last."""
    site.files.put("bgp.yaml", bgp("green 192.0.2.0/24 64512:2"))  # renamed
    site.until("64512:2")
    site.files.put("bgp.yaml", bgp("green 192.0.2.0/28 64512:3", "teal 192.0.2.16/28 64512:4"))  # split
    site.until("64512:3", "64512:4")
    site.files.put("bgp.yaml", bgp("teal 192.0.2.0/24 64512:5"))  # merged
    site.until("64512:5")
    site.files.put("pool.yaml", address_pool("moved", "192.0.2.0/27", "64512:6"))
    site.files.put("bgp.yaml", bgp())
    site.until("64512:6")
    site.until_published(deleted)
    site.lab.manifests.joinpath("pool.yaml").unlink()
    site.lab.wait(lambda: not site.pools(), "every agent has seen that there is no pool")
    site.until(deleted)
    site.files.put("bgp.yaml", bgp("blue 192.0.2.0/24 64512:7"))
    site.until("64512:7")
