"""A pod has an address of an interface that the operator made on a fake cloud: by `ptp` and `routerd-ipam`.

What a cloud's VPC is like is tried on each that has it otherwise, the rest on the fake EC2.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv6Address, ip_network

import pytest

from cni.conflist import NotChainable
from cni.install import WHOLE, install_whole
from tests.netns.lab.cloud import CloudLab
from tests.netns.lab.hosts import Answer, Host
from tests.netns.lab.providers import ALIBABA, AWS
from tests.netns.lab.vpc import ABROAD, BEYOND, BEYOND6
from tests.waiting import wait


@pytest.fixture(scope="module")
def stages(clean_labs: list[str]) -> Iterator[dict[str, CloudLab]]:
    """By cloud, started together. Each has one instance, i-1, which is node n. The world but for BEYOND knows no
    address of the VPC's pods.
    """
    section = {
        "addresses": {"pre-allocate": 2, "ipv6": True}, "external-snat": False, "snat-exempt": [f"{BEYOND}/32"],
    }  # fmt: skip
    with ExitStack() as ended:
        built = {
            fake.name: ended.enter_context(CloudLab(f"v{fake.name}{os.getpid()}", {"n": {}}, section, fake=fake))
            for fake in (AWS, ALIBABA)
        }
        for each in built.values():
            each.start()
        yield built


@pytest.fixture
def stage(stages: dict[str, CloudLab]) -> CloudLab:
    return stages["aws"]


def node_of(stage: CloudLab) -> Host:
    return stage.hosts["n"]


def test_a_configuration_is_written_once_there_is_an_address(stage: CloudLab) -> None:
    conf, bin_dir = stage.home / "net.d", stage.home / "bin"
    ipam = {"socket": str(node_of(stage).directory / "run" / "ipam.sock")}
    refused = []

    def written() -> bool:
        stage.vpc.sync()
        try:
            return bool(install_whole(ipam, {"type": "routerd-cni"}, conf, bin_dir))
        except NotChainable as error:
            assert not conf.exists()
            refused.append(str(error))
            return False

    wait(written, "a configuration")
    assert [path.name for path in conf.iterdir()] == [WHOLE]
    assert stage.of_pods() != set()
    assert any("no address of the cloud yet" in each for each in refused), refused


def test_a_pod_has_an_address_of_an_interface_and_is_reached_at_it(stage: CloudLab) -> None:
    one, two = stage.pod("one", "n"), stage.pod("two", "n")
    assert {one.address, two.address} <= stage.of_pods()
    assert one.get(BEYOND).source == one.address  # it leaves by the interface that has it
    one.start_server(http=80)
    assert stage.vpc.host.get(one.address).text.startswith("one")
    assert node_of(stage).get(one.address).text.startswith("one")
    assert two.get(one.address).source == two.address  # beside it on the node, and not by way of the VPC
    assert stage.vpc.dropped() == 0


def asked_from(host: Host, source: str, address: str, port: int) -> bool:
    """Whether a connection with this source is answered."""
    with host.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        connection.bind((source, 0))
        connection.connect((address, port))
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return b" saw " + source.encode() in connection.makefile("rb").read()


def address6(stage: CloudLab, pod: Host) -> str:
    return str(stage.runtimes["n"].results[pod.name]["ips"][1]["address"]).removesuffix("/128")


def test_a_pod_has_an_address_of_ipv6_beside_it(stage: CloudLab) -> None:
    one, two = stage.pods["one"], stage.pods["two"]
    mine = address6(stage, one)
    assert any(IPv6Address(mine) in prefix for eni in stage.cloud.of("i-1") for prefix in eni.prefixes6)
    stage.vpc.host.start_server(http=80, address=BEYOND6)
    assert one.get(BEYOND6).source == mine
    one.start_server(http=80, address=mine)
    assert stage.vpc.host.get(mine).text.startswith("one")
    assert two.get(mine).source == address6(stage, two)
    assert stage.vpc.dropped() == 0


def test_what_leaves_the_vpc_has_the_primary_interfaces_address(stage: CloudLab) -> None:
    pod, node = stage.pods["one"], node_of(stage)
    assert pod.get(ABROAD).source == node.address
    assert asked_from(stage.vpc.host, ABROAD, pod.address, 80), "it answers with its own"
    assert pod.get(node.address, 9).refusal == "refused", "its node is no world"
    assert stage.vpc.dropped() == 0


def test_a_connection_keeps_its_source_when_the_networks_change(stage: CloudLab) -> None:
    pod, node = stage.pods["one"], node_of(stage)
    table = node.run(["nft", "list", "table", "inet", "routerd_eni"])
    begun = {source: pod.connect(to, 80) for source, to in ((pod.address, BEYOND), (node.address, ABROAD))}
    try:
        # With its comments, by which the agent knows that a rule is its own.
        node.nft(f"delete table inet routerd_eni\n{table.replace(BEYOND, ABROAD)}")
        assert pod.get(BEYOND).source == node.address, "what begins now has the other source"
        for source, connection in begun.items():
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b" saw " + source.encode() in connection.makefile("rb").read()
    finally:
        node.nft(f"delete table inet routerd_eni\n{table}")
        for connection in begun.values():
            connection.close()
    assert pod.get(BEYOND).source == pod.address
    assert stage.vpc.dropped() == 0


def test_an_open_connection_keeps_its_source_when_its_mark_is_cleared(stage: CloudLab) -> None:
    """As one has none that began under an earlier agent."""
    pod, node = stage.pods["one"], node_of(stage)
    rule = f"ip saddr {pod.address} ct mark set 0"
    with pod.connect(ABROAD, 80) as connection:
        node.nft(f"table ip clears {{ chain cleared {{ type filter hook prerouting priority -160; {rule}; }}; }}\n")
        try:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b" saw " + node.address.encode() in connection.makefile("rb").read()
        finally:
            node.nft("delete table ip clears\n")
    assert stage.vpc.dropped() == 0


def test_a_node_port_answers_by_the_interface_where_it_was_asked(stage: CloudLab) -> None:
    pod = stage.pod("served", "n")
    pod.start_server(http=80)
    rule = f"fib daddr type local tcp dport 30080 dnat to {pod.address}:80"
    node_of(stage).nft(
        f"table ip nat {{ chain prerouting {{ type nat hook prerouting priority dstnat; {rule}; }}; }}\n"
    )
    assert stage.vpc.host.get(node_of(stage).address, 30080).source == stage.vpc.router
    assert asked_from(stage.vpc.host, ABROAD, node_of(stage).address, 30080)
    assert stage.vpc.dropped() == 0


def test_what_somebody_deletes_is_put_back(stage: CloudLab) -> None:
    pod = stage.pod("kept", "n")
    mine = address6(stage, pod)
    for family in ("-4", "-6"):  # as a systemd-networkd does that restarts
        node_of(stage).run(["ip", family, "rule", "flush"])
        node_of(stage).run(["ip", family, "rule", "add", "from", "all", "lookup", "main", "priority", "32766"])
    node_of(stage).run(["nft", "flush", "chain", "inet", "routerd_eni", "prerouting"])

    def is_back() -> bool:
        found = (json.loads(node_of(stage).run(["ip", family, "-j", "rule"])) for family in ("-4", "-6"))
        sources = {rule.get("src") for rules in found for rule in rules}
        table = node_of(stage).run(["nft", "list", "table", "inet", "routerd_eni"])
        return sources >= {pod.address, str(ip_network(f"{mine}/80", strict=False)[0])} and "ct mark" in table

    wait(is_back, "rules and marks are back")
    assert (pod.get(BEYOND).source, pod.get(BEYOND6).source) == (pod.address, mine)


def test_pods_do_not_read_the_nodes_credentials(stage: CloudLab) -> None:
    pod = stage.pods["kept"]
    stage.vpc.host.ip("addr add 169.254.169.254/32 dev lo", "addr add fd00:ec2::254/128 dev lo")
    stage.vpc.host.start_server(http=80, address="fd00:ec2::254")
    for metadata in ("169.254.169.254", "fd00:ec2::254"):
        assert pod.get(metadata, timeout=1) == Answer(refusal="timeout")


def test_alibabas_pods_have_addresses_and_leave_as_amazons_do(stages: dict[str, CloudLab]) -> None:
    stage = stages["alibaba"]
    one, two = stage.pod("one", "n"), stage.pod("two", "n")
    mine = address6(stage, one)
    assert {one.address, two.address} <= stage.of_pods()
    assert any(IPv6Address(mine) in prefix for eni in stage.cloud.of("i-1")[1:] for prefix in eni.prefixes6)
    stage.vpc.host.start_server(http=80, address=BEYOND6)
    assert (one.get(BEYOND).source, one.get(BEYOND6).source) == (one.address, mine)
    one.start_server(http=80)
    assert stage.vpc.host.get(one.address).text.startswith("one")
    assert two.get(one.address).source == two.address
    assert one.get(ABROAD).source == node_of(stage).address
    stage.vpc.host.ip("addr add 100.100.100.200/32 dev lo")
    assert one.get("100.100.100.200", timeout=1) == Answer(refusal="timeout")
    assert stage.vpc.dropped() == 0
