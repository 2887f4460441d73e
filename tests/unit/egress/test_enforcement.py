"""Which way first packets take, by what is found on a node."""

from __future__ import annotations

import json
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from egress.host.enforcement import MarkUse, Surroundings, Traces, first_packets, surroundings
from egress.host.survey import plugins
from egress.policy import Desired

AUTO = Desired("n", IPv4Address("10.0.0.1"), network_policy="auto")
FORWARD, DIRECT = (Desired("n", IPv4Address("10.0.0.1"), network_policy=way) for way in ("forward", "direct"))
FLANNEL = Traces(frozenset({"eth0", "flannel.1", "cni0"}), frozenset({"FLANNEL-FWD"}), frozenset({"flannel"}), True)
NODES = {
    "nothing is known": (Traces(), "forward"),
    "no configuration": (Traces(frozenset({"eth0"}), is_whole=True), "forward"),
    "flannel": (FLANNEL, "direct"),
    "a bridge": (Traces(plugins=frozenset({"bridge", "portmap", "routerd-cni"}), is_whole=True), "direct"),
    "flannel, and rules that cannot be read": (Traces(plugins=frozenset({"flannel"})), "forward"),
    "flannel beside Calico": (Traces(FLANNEL.devices, frozenset({"cali-FORWARD"}), FLANNEL.plugins, True), "forward"),
    "a bridge of kube-router": (
        Traces(frozenset({"kube-bridge"}), frozenset({"KUBE-ROUTER-FORWARD"}), frozenset({"bridge"}), True),
        "forward",
    ),
    "kind": (Traces(chains=frozenset({"kindnet-network-policies"}), plugins=frozenset({"ptp"})), "forward"),
    "a plugin that nobody knows": (Traces(plugins=frozenset({"bridge", "acme"}), is_whole=True), "forward"),
    "Calico": (Traces(frozenset({"cali1234"}), frozenset({"cali-FORWARD"}), frozenset({"calico"}), True), "forward"),
    "Calico's eBPF": (Traces(frozenset({"cali1234", "bpfin.cali"}), plugins=frozenset({"calico"})), "refused"),
    "Cilium": (Traces(frozenset({"cilium_host", "lxc12ab"}), plugins=frozenset({"cilium-cni"})), "refused"),
    "Cilium chained to another": (Traces(plugins=frozenset({"aws-cni", "cilium-cni"}), is_whole=True), "refused"),
    "Antrea": (Traces(frozenset({"antrea-gw0"})), "refused"),
    "OVN-Kubernetes": (Traces(frozenset({"ovn-k8s-mp0"})), "refused"),
    "Kube-OVN": (Traces(frozenset({"ovn0"}), plugins=frozenset({"kube-ovn"})), "refused"),
}  # fmt: skip


@pytest.mark.parametrize("name", NODES)
def test_a_cni_is_told_from_what_it_leaves_on_the_node(name: str) -> None:
    traces, way = NODES[name]
    assert first_packets(AUTO, surroundings(traces)).way == way


@pytest.mark.parametrize("name", [name for name, (_, way) in NODES.items() if way == "refused"])
def test_who_enforces_elsewhere_is_refused_by_name_unless_somebody_says_otherwise(name: str) -> None:
    found = surroundings(NODES[name][0])
    refused = first_packets(AUTO, found)
    assert (refused.reason, refused.mark) == ("NetworkPolicyBypassed", 0)
    assert name.split()[0].removesuffix(",") in refused.message
    assert first_packets(FORWARD, found).way == "forward"
    assert first_packets(DIRECT, found).way == "direct"


def test_a_mark_that_another_rule_uses_is_refused_with_the_rule() -> None:
    uses = [MarkUse(0x4000, "mark 0x4000"), MarkUse(0xF000, "-j MARK --set-xmark 0x0/0xf000")]
    found = surroundings(Traces(), uses)
    for wish in (AUTO, FORWARD):
        refused = first_packets(wish, found)
        assert (refused.way, refused.reason) == ("refused", "MarkTaken")
        assert "bit 12" in refused.message
        assert uses[1].rule in refused.message
    assert first_packets(DIRECT, found).way == "direct"
    assert first_packets(FORWARD, surroundings(Traces(), uses[:1])).mark == 0x1000


def test_rules_that_come_and_go_make_no_other_surroundings() -> None:
    chains = [frozenset({"cali-FORWARD", f"KUBE-SVC-{n}"}) for n in range(2)]
    uses = [[MarkUse(0x4000, "a")], [MarkUse(0x4000, "b"), MarkUse(0x4000, "a")]]
    first, second = (surroundings(Traces(chains=c), u) for c, u in zip(chains, uses, strict=True))
    assert first == second != Surroundings()


CONFIGURATIONS = {
    "10-flannel.conflist": {"plugins": [{"type": "flannel"}, {"type": "portmap"}]},
    "20-old.conf": {"type": "ptp"},
}


def test_the_runtime_takes_the_first_configuration(tmp_path: Path) -> None:
    assert set(plugins(tmp_path / "nowhere")) == set()
    for name, content in CONFIGURATIONS.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert set(plugins(tmp_path)) == {"flannel", "portmap"}
    (tmp_path / "10-flannel.conflist").unlink()
    assert set(plugins(tmp_path)) == {"ptp"}
    texts = ("{", "[" * 100_000, "null", '{"plugins": null}', '{"plugins": {"type": "ptp"}}', '{"plugins": [7]}')
    for broken in (*(text.encode() for text in texts), b"\xff"):
        (tmp_path / "00-broken.conf").write_bytes(broken)
        assert set(plugins(tmp_path)) == set(), broken[:30]
