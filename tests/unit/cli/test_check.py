"""`routerd check`: findings as a user reads them."""

from pathlib import Path

import pytest

from egress.host.enforcement import Traces, surroundings
from routerd import codes
from routerd.cli.check import Finding, check_dialect, check_paths, check_texts
from routerd.cli.main import main

POOL = """\
apiVersion: routerd.io/v1alpha1
kind: AddressPool
metadata: {name: public}
spec: {blocks: [192.0.2.0/24]}
"""
POLICY = """\
apiVersion: routerd.io/v1alpha1
kind: EgressPolicy
metadata: {name: e}
spec: {selectors: [{podSelector: {}, namespaceSelector: {}}], destinationCIDRs: [198.51.100.0/24], %s}
"""
NODE = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n"
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: web, annotations: {metallb.universe.tf/address-pool: '%s'}}
spec: {type: LoadBalancer, loadBalancerIP: %s, ports: [{port: 80}]}
"""


def found(*texts: str) -> list[str]:
    return [str(finding) for finding in check_texts({f"{n}.yaml": text for n, text in enumerate(texts)})]


def test_nothing_wrong() -> None:
    assert found(POOL, SERVICE % ("public", "192.0.2.1"), NODE) == []


def test_routerd_s_own_configuration_in_a_config_map_is_read_as_one() -> None:
    config = (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: routerd-config}\ndata:\n  routerd.yaml: |\n"
        "    apiVersion: routerd.io/v1alpha1\n    kind: Config\n    service-cidrs: [%s]\n"
    )
    assert found(config % "192.0.2.0/24", POLICY % "egressIP: 192.0.2.1") == [
        "error: 1.yaml:1: EgressPolicy/e: 192.0.2.1 is in the service CIDR 192.0.2.0/24: give the policy "
        "another egress IP"
    ]
    assert found(config % "192.0.2.1/24]\n    metrics-listen: [x") == [
        'error: 0.yaml:8:21: service-cidrs[0]: found "192.0.2.1/24", expected a CIDR without host bits: 192.0.2.0/24',
        "error: 0.yaml:9:21: metrics-listen: found a list, expected a string",
    ]


def test_a_policy_that_takes_pods_of_every_team_is_warned_of() -> None:
    policy = POLICY % "pool: public"
    everybody = policy.replace(", namespaceSelector: {}", "")
    pool = POOL.replace("spec: {", "spec: {uses: [egress], ")
    assert found(pool, policy) == []
    assert found(pool, everybody) == [
        "warning: 1.yaml:1: EgressPolicy/e: takes pods of every namespace: name them in a namespaceSelector; {} says "
        "that all are meant"
    ]


def test_every_object_says_what_is_wrong_with_it() -> None:
    bad_pool = POOL.replace("blocks", "block")
    bad_pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {}\n"
    assert found(bad_pool + bad_pod) == [
        'error: 0.yaml:4:8: spec.block: unknown key "block"; did you mean "blocks"?',
        'error: 0.yaml:8:11: metadata: the key "name" is missing',
    ]


def test_mistakes_in_a_config_map_are_named_at_their_place_in_the_file() -> None:
    text = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: bgp-config, namespace: kube-system}
data:
  config.yaml: |
    peers:
    - peer-address: tor1.example
      peer-asn: 64512
      my-asn: 64512
"""
    assert found(text) == ['error: 0.yaml:7:21: peers[0].peer-address: parsing peer #1: invalid peer IP "tor1.example"']
    assert found(text.replace("peer-asn", "peer-asm").replace("tor1.example", "10.0.0.1")) == [
        "error: 0.yaml:8:7: peers[0].peer-asm: could not parse config: yaml: unmarshal errors:\n"
        "  line 3: field peer-asm not found in type config.peer"
    ]


def test_overlapping_pools_and_duplicates_are_errors() -> None:
    assert found(POOL, POOL.replace("public", "other"), NODE, NODE) == [
        "error: 1.yaml:1: 192.0.2.0/24 overlaps with 192.0.2.0/24 of pool public (0.yaml:1); pool other is not used",
        "error: 3.yaml:1: Node/n1 is already defined at 2.yaml:1; this one is not used",
    ]


def test_a_policy_whose_pool_or_gateway_is_not_there() -> None:
    assert found(POLICY % "pool: none") == ['error: 0.yaml:1: EgressPolicy/e: unknown pool "none"']
    assert found(POOL, POLICY % "pool: public") == [
        'error: 1.yaml:1: EgressPolicy/e: pool "public" does not serve egress: add the use to the pool'
    ]
    selector = "egressIP: 203.0.113.1, gateways: {nodeSelector: {matchLabels: {gateway: ''}}}"
    assert found(POLICY % selector, NODE) == [
        "error: 0.yaml:1: EgressPolicy/e: no node matches its gateways' nodeSelector"
    ]
    assert found(POLICY % "egressIP: 203.0.113.1", NODE) == [
        "warning: 0.yaml:1: EgressPolicy/e: no node is labelled routerd.io/egress-gateway; only a node that holds the "
        "egress IP can be gateway"
    ]
    assert found(POLICY % selector) == []  # no nodes in these files: they are known elsewhere


def test_a_policy_that_takes_an_address_of_services_or_excludes_in_vain() -> None:
    policy = POLICY % "egressIP: 192.0.2.9, excludedCIDRs: [203.0.113.0/24]"
    assert found(POOL, policy) == [
        "warning: 1.yaml:1: EgressPolicy/e: 192.0.2.9 lies in pool public, which may give it to a service",
        "warning: 1.yaml:1: EgressPolicy/e: excluded 203.0.113.0/24 lies outside the destinations: no effect",
    ]


def test_services_that_ask_for_what_is_not_there() -> None:
    assert found(POOL, SERVICE % ("publik", "192.0.2.1")) == ['error: 1.yaml:1: svc/default/web: unknown pool "publik"']
    assert found(POOL, SERVICE % ("", "203.0.113.1")) == [
        'error: 1.yaml:1: svc/default/web: ["203.0.113.1"] is not allowed in config: it lies in no pool'
    ]


def test_what_is_refused_is_an_error_unless_the_rest_is_served() -> None:
    both = (POLICY % "egressIP: 203.0.113.1").replace("[198.51.100.0/24]", "[198.51.100.0/24, '::/0']")
    assert found(both) == [
        "warning: 0.yaml:1: EgressPolicy/e: no egress IP of its family, but 203.0.113.1: what the selected pods send "
        "to ::/0 is dropped"
    ]
    six = (POLICY % "egressIP: 203.0.113.1").replace("198.51.100.0/24", "'::/0'")
    assert found(six) == [
        "error: 0.yaml:1: EgressPolicy/e: no egress IP of its family, but 203.0.113.1: what the selected pods send "
        "to ::/0 is dropped"
    ]
    assert found("apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: t}\n") == [
        "error: 0.yaml:1: L2Advertisement (metallb.io) is not supported: what is announced is announced by BGP"
    ]


def test_the_configuration_file_is_checked_as_such() -> None:
    head = "apiVersion: routerd.io/v1alpha1\nkind: Config\n"
    assert found(head) == []
    assert found(head + "bpg: {}\n") == ['error: 0.yaml:3:1: bpg: unknown key "bpg"; did you mean "bgp"?']


def test_files_and_directories(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(POOL)
    (tmp_path / "b.yaml").write_bytes(b"\xff")
    assert [str(finding) for finding in check_paths([tmp_path / "a.yaml", tmp_path / "none"])] == [
        f"error: {tmp_path}/none: cannot be read: No such file or directory"
    ]
    assert [str(finding) for finding in check_paths([tmp_path])] == [f"error: {tmp_path}/b.yaml: not UTF-8 at byte 0"]


def test_findings_for_machines() -> None:
    (finding,) = check_texts({"a.yaml": POOL.replace("blocks", "block")})
    assert finding.as_json() == {
        "severity": "error",
        "message": 'unknown key "block"; did you mean "blocks"?',
        "file": "a.yaml",
        "line": 4,
        "column": 8,
        "key": "spec.block",
    }
    assert Finding("warning", "x") != Finding("error", "x")


def test_one_document_by_dialect() -> None:
    assert check_dialect("peers:\n", "cilium-1.10") == {"ok": {"peers": [], "pools": {}}}
    assert check_dialect("peer:\n", "metallb-0.12") == {
        "error": "could not parse config: yaml: unmarshal errors:\n"
        "  line 1: field peer not found in type config.configFile (line 1, column 1)"
    }


WORKER = """\
apiVersion: v1
kind: Node
metadata: {name: w}
spec: {podCIDR: 10.244.3.0/24}
status: {addresses: [{type: InternalIP, address: 10.0.0.21}]}
"""
PEERS = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: bgp-config, namespace: kube-system}
data:
  config.yaml: "peers: [{peer-address: 10.0.0.1, peer-asn: 64512, my-asn: 64512}]"
"""
CONFIG = "apiVersion: routerd.io/v1alpha1\nkind: Config\n%s\n"


@pytest.mark.parametrize(
    ("address", "whose"),
    [
        ("10.0.0.1", "the address of peer/10.0.0.1"),
        ("10.0.0.21", "an address of node/w"),
        ("10.244.3.9", "in the pod CIDR 10.244.3.0/24 of node/w"),
        ("10.96.0.1", "in the service CIDR 10.96.0.0/16"),
        ("240.0.0.1", "in a reserved range (240.0.0.0/4)"),
    ],
)
def test_an_egress_ip_that_is_somebodys_is_named_before_it_is_applied(address: str, whose: str) -> None:
    gateway = "---\napiVersion: v1\nkind: Node\nmetadata: {name: g, labels: {routerd.io/egress-gateway: ''}}\n"
    config = CONFIG % "service-cidrs: [10.96.0.0/16]"
    assert found(POLICY % f"egressIP: {address}", WORKER + gateway, PEERS, config) == [
        f"error: 0.yaml:1: EgressPolicy/e: {address} is {whose}: give the policy another egress IP"
    ]


def test_an_egress_ip_outside_of_what_the_configuration_allows() -> None:
    config = CONFIG % "egress: {allowed-addresses: [198.51.100.0/24]}"
    assert found(POLICY % "egressIP: 198.51.100.7", config) == []
    assert found(POLICY % "egressIP: 203.0.113.10", config) == [
        "error: 0.yaml:1: EgressPolicy/e: 203.0.113.10 lies outside egress.allowed-addresses (198.51.100.0/24): "
        "give the policy another egress IP"
    ]


def test_an_egress_ip_that_a_service_asks_for() -> None:
    policy = POLICY % "egressIP: 192.0.2.1"
    assert found(POOL, policy, SERVICE % ("public", "192.0.2.1")) == [
        "warning: 1.yaml:1: EgressPolicy/e: 192.0.2.1 lies in pool public, which may give it to a service",
        'error: 1.yaml:1: EgressPolicy/e: can\'t change sharing key for "192.0.2.1", address also in use by '
        "svc/default/web",
    ]


def test_pods_in_no_known_network() -> None:
    pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {nodeName: w}\nstatus: {podIP: 172.21.0.5}\n"
    gateway = "---\napiVersion: v1\nkind: Node\nmetadata: {name: g, labels: {routerd.io/egress-gateway: ''}}\n"
    policy = POLICY % "egressIP: 198.51.100.7"
    assert found(policy, WORKER + gateway, pod) == [
        "warning: 2.yaml:1: 1 addresses of pods, 172.21.0.5 among them, lie in no pod CIDR of a node: "
        "add their network to cluster-cidrs in the configuration of every node"
    ]
    assert found(policy, WORKER + gateway, pod, CONFIG % "cluster-cidrs: [172.21.0.0/16]") == []


def _with_block(name: str, block: str) -> str:
    return f"apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDR: {block}}}\n"


def test_routes_to_pods_that_nobody_says_or_two_have() -> None:
    wish = CONFIG % "native-routing: {auto-direct-node-routes: true}"
    assert found(WORKER, CONFIG % "") == []
    assert found(NODE, wish) == [
        "warning: 1.yaml: auto-direct-node-routes routes nothing: no Node has spec.podCIDRs, and pod-cidrs gives none"
    ]
    assert found(_with_block("a", "10.1.1.0/24"), _with_block("b", "10.1.2.0/24"), wish) == []
    twice = (_with_block("a", "10.1.1.0/24"), _with_block("b", "10.1.2.0/24"), _with_block("c", "10.1.2.0/24"))
    assert found(*twice, wish) == [
        "warning: 0.yaml:1: node/a: no route to 10.1.2.0/24 of node b: node c has it, too: give one of them another"
    ]


@pytest.mark.parametrize(("pods", "told"), [(42, []), (43, ["warning"])])
def test_a_kubelet_that_takes_more_pods_than_there_may_be_addresses_is_warned_of(pods: int, told: list[str]) -> None:
    config = "apiVersion: routerd.io/v1alpha1\nkind: Config\n"
    config += "cloud: {provider: aws, cluster: c, nodes: {pods: vpc}, addresses: {max: 40}}\n"
    node = "apiVersion: v1\nkind: Node\nmetadata: {{name: {}, labels: {{pods: {}}}}}\n"
    node += f"spec: {{{{providerID: aws:///a/i-1}}}}\nstatus: {{{{allocatable: {{{{pods: {pods}}}}}}}}}\n"
    nodes = {name: node.format(name, pods) for name, pods in (("a", "vpc"), ("b", "own"))}
    found = check_texts({"routerd.yaml": config, **nodes})
    assert [each.severity for each in found if "maxPods" in each.message] == told


CILIUM = surroundings(Traces(devices=frozenset({"cilium_host"})))


@pytest.mark.parametrize(("egress", "told"), [("", 1), ("egress: {network-policy: direct}\n", 0)])
def test_a_cni_of_this_host_whose_policies_would_be_bypassed_is_named(egress: str, told: int) -> None:
    config = f"apiVersion: routerd.io/v1alpha1\nkind: Config\n{egress}"
    found = check_texts({"routerd.yaml": config}, CILIUM)
    assert ["Cilium enforces NetworkPolicies" in each.message for each in found] == [True] * told
    assert all((each.severity, each.file) == ("warning", "routerd.yaml") for each in found)
    assert check_texts({"pool.yaml": POOL}, CILIUM) == []


def test_a_configuration_that_is_named_is_checked_with_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, manifest = tmp_path / "routerd.yaml", tmp_path / "pool.yaml"
    config.write_text("apiVersion: routerd.io/v1alpha1\nkind: Config\nbgp: {announce: {external-ip: []}}\n")
    manifest.write_text(POOL)
    assert main(["--config", str(config), "check", str(manifest)]) == codes.REFUSED
    assert f'error: {config}:3:18: bgp.announce.external-ip: unknown key "external-ip"' in capsys.readouterr().out


POD = """\
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: default, annotations: {%s}}
spec: {nodeName: n1%s}
"""
DEFAULT = '{"name": "kindnet", "interface": "eth0", "ips": ["10.1.0.2"], "default": true}'
VF = (
    '{"name": "default/sriov", "interface": "net1", "device-info": {"type": "pci", "pci": {"pci-address": '
    '"0000:03:02.1"}}}'
)
CLAIM = """\
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: nic-x7, namespace: default}
status:
  reservedFor: [{resource: pods, name: db, uid: u}]
  devices:
  - {driver: dra.net, pool: n1, device: nic0, networkData: {interfaceName: net2}}
  - {driver: gpu, pool: n1, device: g}
"""


@pytest.mark.parametrize(
    ("key", "text", "told"),
    [
        ("k8s.v1.cni.cncf.io/network-status", f"[{DEFAULT}, {VF}]", "net1 (default/sriov, PCI 0000:03:02.1)"),
        ("k8s.v1.cni.cncf.io/network-status", f"[{DEFAULT}]", ""),
        ("k8s.v1.cni.cncf.io/networks", "default/a@net1, b", "net1 (default/a), b"),
        ("k8s.v1.cni.cncf.io/networks", '[{"name": "a", "namespace": "x", "interface": "net9"}]', "net9 (x/a)"),
        *(
            (
                "k8s.v1.cni.cncf.io/network-status",
                broken,
                "what k8s.v1.cni.cncf.io/network-status says, which cannot be read",
            )
            for broken in ("[", "{}", "[1]", '[{"device-info": 1}]')
        ),
    ],
)
def test_other_networks_of_a_selected_pod_are_told(key: str, text: str, told: str) -> None:
    pool, policy = POOL.replace("spec: {", "spec: {uses: [egress], "), POLICY % "pool: public"
    pod = POD % (f"{key}: '{text}'", "")
    begin = f"warning: 2.yaml:1: pod default/db has other networks beside its first: {told}; "
    assert [each.startswith(begin) for each in found(pool, policy, pod)] == ([True] if told else [])
    assert (
        found(pool, POLICY.replace("{podSelector: {}", "{podSelector: {matchLabels: {no: one}}") % "pool: public", pod)
        == []
    )


@pytest.mark.parametrize("key", ["kubernetes.io/egress-bandwidth", "ovn.kubernetes.io/egress_rate"])
def test_a_cap_that_a_selected_pod_passes_by_is_told(key: str) -> None:
    pool, policy = POOL.replace("spec: {", "spec: {uses: [egress], "), POLICY % "pool: public"
    pod = POD % (f"{key}: '10'", "")
    assert found(pool, policy, pod) == [
        f"warning: 2.yaml:1: pod default/db: {key} does not limit what leaves with an egress IP: that is redirected "
        "past the queue of the pod's device"
    ]
    assert found(pool, pod) == []
    assert found(pool, policy, POD % ("kubernetes.io/ingress-bandwidth: 1M", "")) == []
    assert found(pool, policy, POD % (f"{key}: '10'", ", hostNetwork: true")) == []


def test_devices_of_resource_claims_are_other_networks() -> None:
    pool, policy = POOL.replace("spec: {", "spec: {uses: [egress], "), POLICY % "pool: public"
    (told,) = found(pool, policy, POD % ("", ""), CLAIM)
    assert told.startswith(
        "warning: 2.yaml:1: pod default/db has other networks beside its first: net2 (ResourceClaim nic-x7); "
    )
    assert found(pool, policy, POD % ("", ", hostNetwork: true"), CLAIM) == []


def test_a_policy_that_names_what_is_not_there_is_an_error_at_the_key(tmp_path: Path) -> None:
    rule = "apiVersion: kubeovn.io/v1\nkind: OvnSnatRule\nmetadata: {name: r}\nspec: {ovnEip: typo, vpcSubnet: shop}\n"
    subnet = (
        "---\napiVersion: kubeovn.io/v1\nkind: Subnet\nmetadata: {name: shop}\n"
        "spec: {cidrBlock: 10.17.0.0/16, namespaces: [shop]}\n"
    )
    assert found(rule + subnet) == [
        "error: 0.yaml:4:16: spec.ovnEip: there is no OvnEip typo with an address (what it covers is dropped)"
    ]
    (tmp_path / "rule.yaml").write_text(rule + subnet)
    assert main(["check", str(tmp_path)]) == codes.REFUSED
