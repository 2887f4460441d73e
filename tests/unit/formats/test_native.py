"""Our own kinds: what they mean, and one full message per kind of mistake."""

from ipaddress import ip_address, ip_network

import pytest

from routerd.errors import InputError
from routerd.model import AddressPool, Advertisement, EgressPolicy, PodSelection, PortRange
from routerd.selectors import EVERYTHING, LabelSelector, Requirement
from tests.models.manifests import read_text

POOL = "apiVersion: routerd.io/v1alpha1\nkind: AddressPool\nmetadata: {name: p}\nspec:\n"
POLICY = "apiVersion: routerd.io/v1alpha1\nkind: EgressPolicy\nmetadata: {name: e}\nspec:\n"
TO = "  destinationCIDRs: [198.51.100.0/24]\n"
REST = "  selectors: [{podSelector: {}}]\n  destinationCIDRs: [198.51.100.0/24]\n"


def one(text: str) -> object:
    return read_text(text, "f.yaml").entries[0].object


def test_pool_with_defaults() -> None:
    pool = one(POOL + "  blocks: [192.0.2.0/24]\n")
    assert isinstance(pool, AddressPool)
    assert pool == AddressPool("p", (ip_network("192.0.2.0/24"),), origin=pool.origin)
    assert str(pool.origin) == "f.yaml:1"


def test_pool_with_everything() -> None:
    pool = one(
        POOL
        + """\
  blocks: [192.0.2.1, 192.0.2.4-192.0.2.6, {cidr: "2001:db8::/120"}, {start: 192.0.2.9, end: 192.0.2.9}]
  uses: [loadbalancer, egress]
  protocol: bgp
  autoAssign: false
  avoidBuggyIPs: true
  priority: -3
  disabled: true
  advertisements:
  - {aggregationLength: 32, aggregationLengthV6: 120, localPref: 7, communities: [no-export, "064512:01", 1:2:3, 9:9]}
  - {communities: ["link-bandwidth:64512:125000001", "soo:07:1", "9:9", "rt:192.0.2.1:7"], origin: egp}
  - {med: 0, asPathPrepend: 2, peers: [tor-a], nodeSelectors: [{matchLabels: {rack: a}}]}
  - {serviceSelectors: [{matchLabels: {tier: web}}, {}]}
"""
    )
    assert isinstance(pool, AddressPool)
    networks = ("192.0.2.1/32", "192.0.2.4/31", "192.0.2.6/32", "2001:db8::/120", "192.0.2.9/32")
    assert pool == AddressPool(
        "p",
        tuple(ip_network(network) for network in networks),
        uses=frozenset({"loadbalancer", "egress"}),
        auto_assign=False,
        avoid_buggy_ips=True,
        priority=-3,
        disabled=True,
        advertisements=(
            Advertisement(32, 120, 7, ("9:9", "64512:1", "65535:65281", "1:2:3")),
            Advertisement(
                communities=("9:9", "rt:192.0.2.1:7", "soo:7:1", "link-bandwidth:64512:125000000"), origin="egp"
            ),
            Advertisement(med=0, prepend=2, peers=("tor-a",), node_selectors=(LabelSelector((("rack", "a"),)),)),
            Advertisement(services=(LabelSelector((("tier", "web"),)), LabelSelector())),
        ),
        origin=pool.origin,
    )


def test_policy_with_everything() -> None:
    policy = one(
        POLICY
        + """\
  selectors:
  - podSelector: {matchLabels: {app: web}, matchExpressions: [{key: tier, operator: In, values: [a, b]}]}
    namespaceSelector: {}
    nodeSelector: {matchExpressions: [{key: rack, operator: Exists}]}
  destinationCIDRs: [0.0.0.0/0]
  excludedCIDRs: [198.51.100.0/24]
  ports: [{protocol: TCP, port: 80, endPort: 90}, {protocol: UDP, port: 53}, {protocol: ICMP}]
  egressIP: 192.0.2.1
  gateways: {nodeSelector: {}, mode: active-standby}
  priority: 5
  exit: local
"""
    )
    assert isinstance(policy, EgressPolicy)
    pods = LabelSelector((("app", "web"),), (Requirement("tier", "In", ("a", "b")),))
    assert policy == EgressPolicy(
        name="e",
        selections=(PodSelection(pods, EVERYTHING, LabelSelector((), (Requirement("rack", "Exists"),))),),
        destinations=(ip_network("0.0.0.0/0"),),
        excluded=(ip_network("198.51.100.0/24"),),
        ports=(PortRange("TCP", 80, 90), PortRange("UDP", 53, 53), PortRange("ICMP")),
        egress_ip=ip_address("192.0.2.1"),
        gateways=EVERYTHING,
        gateway_mode="active-standby",
        priority=5,
        exit_local=True,
        origin=policy.origin,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # the envelope
        (POOL.replace("v1alpha1", "v1") + "  {}",
         '1:13: apiVersion: found "routerd.io/v1", expected routerd.io/v1alpha1'),
        (POOL.replace("AddressPool", "AdressPool") + "  {}",
         '2:7: kind: unknown kind "AdressPool"; did you mean "AddressPool"?'),
        (POOL.replace("{name: p}", "{}") + "  {}", '3:11: metadata: the key "name" is missing'),
        (POOL.replace("name: p", "name: P_1") + "  {}",
         '3:18: metadata.name: found "P_1", expected a name of lower case letters, digits, \'-\' and \'.\', '
         "at most 253 of them"),
        (POOL.replace("spec:", "specs:") + "  {}", '4:1: specs: unknown key "specs"; did you mean "spec"?'),
        # pools
        (POOL + "  {}", '5:3: spec: the key "blocks" is missing'),
        (POOL + "  blocks: []", "5:11: spec.blocks: found an empty list, expected at least one block"),
        (POOL + "  adresses: [192.0.2.0/24]",
         '5:3: spec.adresses: unknown key "adresses", expected one of: advertisements, autoAssign, avoidBuggyIPs, '
         "blocks, disabled, egressAnnotations, gateways, priority, protocol, services, uses"),
        (POOL + "  blocks: [192.0.2.0/24]\n  egressAnnotations: true",
         "6:22: spec.egressAnnotations: expected uses: [egress] beside it"),
        (POOL + "  blocks: [192.0.2.0/24]\n  autoAsign: true",
         '6:3: spec.autoAsign: unknown key "autoAsign"; did you mean "autoAssign"?'),
        (POOL + "  blocks: [192.0.2.0/33]",
         '5:12: spec.blocks[0]: found "192.0.2.0/33", expected a CIDR, an address, a range START-END, {cidr: …} or '
         "{start: …, end: …}"),
        (POOL + "  blocks: [192.0.2.1/24]",
         '5:12: spec.blocks[0]: found "192.0.2.1/24", expected a CIDR without host bits: 192.0.2.0/24'),
        (POOL + "  blocks: [192.0.2.9-192.0.2.1]",
         "5:12: spec.blocks[0]: the range starts at 192.0.2.9, behind its end 192.0.2.1"),
        (POOL + "  blocks: ['192.0.2.9-2001:db8::1']",
         "5:12: spec.blocks[0]: the range from 192.0.2.9 to 2001:db8::1 goes from one address family to the other"),
        (POOL + "  blocks: [{cidr: 192.0.2.0/24, end: 192.0.2.9}]",
         '5:12: spec.blocks[0]: expected either "cidr", or "start" and "end"'),
        (POOL + "  blocks: [192.0.2.0/24, 192.0.2.128/25]",
         "5:26: spec.blocks[1]: 192.0.2.128/25 overlaps with 192.0.2.0/24 of the same pool"),
        (POOL + "  blocks: [224.0.0.0/24]", "5:12: spec.blocks[0]: 224.0.0.0/24 cannot be in a pool: multicast"),
        (POOL + "  blocks: [192.0.2.0/24]\n  uses: [egres]",
         '6:10: spec.uses[0]: found "egres", expected loadbalancer or egress; did you mean "egress"?'),
        (POOL + "  blocks: [192.0.2.0/24]\n  protocol: BGP",
         '6:13: spec.protocol: found "BGP", expected bgp or layer2; did you mean "bgp"?'),
        (POOL + "  blocks: [192.0.2.0/24]\n  autoAssign: 'false'",
         '6:15: spec.autoAssign: found the string "false", expected true or false'),
        (POOL + "  blocks: [192.0.2.0/24]\n  priority: 1.5",
         '6:13: spec.priority: found "1.5", expected an integer from -1000000 to 1000000'),
        (POOL + "  blocks: [192.0.2.0/24]\n  advertisements: [{aggregationLength: 16}]",
         "6:40: spec.advertisements[0].aggregationLength: /16 would announce more than the block 192.0.2.0/24 of "
         "this pool"),
        (POOL + "  blocks: [192.0.2.0/24]\n  advertisements: [{communities: [65536:1]}]",
         '6:35: spec.advertisements[0].communities[0]: found "65536:1", expected a community such as 64512:1, '
         "64512:1:2 or no-export"),
        (POOL + "  blocks: [192.0.2.0/24]\n  advertisements: [{communities: ['rt:70000:65536']}]",
         "6:35: spec.advertisements[0].communities[0]: extended community 'rt:70000:65536': found '65536', "
         "expected a number of 0 to 65535"),
        (POOL + "  blocks: [192.0.2.0/24]\n  advertisements: [{origin: bgp}]",
         '6:29: spec.advertisements[0].origin: found "bgp", expected igp, egp or incomplete; did you mean "igp"?'),
        (POOL + "  blocks: [192.0.2.0/24]\n  advertisements: [{asPathPrepend: 33}]",
         "6:36: spec.advertisements[0].asPathPrepend: found \"33\", expected an integer from 0 to 32"),
        (POOL + "  blocks: [192.0.2.0/24]\n  advertisements: [{peers: []}]",
         "6:28: spec.advertisements[0].peers: found an empty list, expected at least one peer"),
        (POOL + "  blocks: [192.0.2.0/24]\n  advertisements: [{}, {}]",
         "6:24: spec.advertisements[1]: the same advertisement as number 1"),
        (POOL + "  blocks: [192.0.2.0/24]\n  protocol: layer2\n  advertisements: [{}]",
         "7:19: spec.advertisements: a layer2 pool is not announced by BGP: remove the advertisements"),
        # policies
        (POLICY + "  destinationCIDRs: [198.51.100.0/24]\n  pool: p", '5:3: spec: the key "selectors" is missing'),
        (POLICY + "  selectors: []\n  destinationCIDRs: [198.51.100.0/24]\n  pool: p",
         "5:14: spec.selectors: found an empty list, expected at least one selector"),
        (POLICY + "  selectors: [{}]\n  destinationCIDRs: [198.51.100.0/24]\n  pool: p",
         "5:15: spec.selectors[0]: expected podSelector or namespaceSelector; {} selects all"),
        (POLICY + "  selectors: [{podSelector: }]\n  destinationCIDRs: [198.51.100.0/24]\n  pool: p",
         "5:29: spec.selectors[0].podSelector: found nothing, expected a selector; {} selects everything"),
        (POLICY + "  selectors: [{podSelector: {matchLabel: {}}}]\n  destinationCIDRs: [198.51.100.0/24]\n  pool: p",
         '5:30: spec.selectors[0].podSelector.matchLabel: unknown key "matchLabel"; did you mean "matchLabels"?'),
        (POLICY + "  selectors: [{podSelector: {matchExpressions: [{key: a, operator: in}]}}]\n  pool: p",
         '5:68: spec.selectors[0].podSelector.matchExpressions[0].operator: found "in", expected In, NotIn, Exists or '
         'DoesNotExist; did you mean "In"?'),
        (POLICY + "  selectors: [{podSelector: {matchExpressions: [{key: a, operator: In}]}}]\n  pool: p",
         '5:49: spec.selectors[0].podSelector.matchExpressions[0]: operator In needs "values"'),
        (POLICY + REST, '5:3: spec: expected one of "egressIP", "egressIPs", "pool" and "service"'),
        (POLICY + REST + "  egressIP: 192.0.2.1\n  pool: p",
         '8:9: spec.pool: found "egressIP" and "pool", expected one of "egressIP", "egressIPs", "pool" and "service"'),
        (POLICY + REST + "  egressIPs: [192.0.2.1, 192.0.2.1]",
         "7:26: spec.egressIPs[1]: 192.0.2.1 stands there twice"),
        (POLICY + REST + "  egressIPs: []",
         "7:14: spec.egressIPs: found an empty list, expected at least one egress IP"),
        (POLICY + REST + "  egressIPs: [192.0.2.1]\n  egressIP: 192.0.2.2",
         '7:14: spec.egressIPs: found "egressIP" and "egressIPs", '
         'expected one of "egressIP", "egressIPs", "pool" and "service"'),
        (POLICY + REST + "  egressIP: 192.0.2.1\n  count: 2", '8:10: spec.count: "count" goes with "pool"'),
        (POLICY + REST + "  pool: p\n  count: 17", '8:10: spec.count: found "17", expected an integer from 1 to 16'),
        (POLICY + REST + "  service: {name: web}",
         '5:14: spec.selectors: "service" selects the pods behind it: remove "selectors"'),
        (POLICY + TO + "  service: {name: web}\n  pool: p",
         '6:12: spec.service: found "pool" and "service", '
         'expected one of "egressIP", "egressIPs", "pool" and "service"'),
        (POLICY + TO + "  service: {namespace: shop}", '6:12: spec.service: the key "name" is missing'),
        (POLICY + TO + "  service: {name: web}\n  count: 2", '7:10: spec.count: "count" goes with "pool"'),
        (POLICY + REST + "  egressIP: 127.0.0.1",
         "7:13: spec.egressIP: 127.0.0.1 cannot be an egress IP: loopback"),
        (POLICY + REST + "  pool: p\n  ports: [{protocol: GRE}]",
         '8:22: spec.ports[0].protocol: found "GRE", expected TCP, UDP, SCTP or ICMP'),
        (POLICY + REST + "  pool: p\n  ports: [{protocol: TCP, port: 0}]",
         '8:33: spec.ports[0].port: found "0", expected an integer from 1 to 65535'),
        (POLICY + REST + "  pool: p\n  ports: [{protocol: TCP, port: 9, endPort: 8}]",
         '8:45: spec.ports[0].endPort: found "8", expected an integer from 9 to 65535'),
        (POLICY + REST + "  pool: p\n  ports: [{protocol: ICMP, port: 9}]",
         "8:34: spec.ports[0].port: ICMP has no ports"),
        (POLICY + REST + "  pool: p\n  pool: q", '8:3: spec.pool: repeated key "pool", first on line 7'),
        (POLICY + REST + "  pool: p\n  gateways: {}", '8:13: spec.gateways: the key "nodeSelector" is missing'),
        (POLICY + REST + "  pool: p\n  gateways: {mode: standby}",
         '8:20: spec.gateways.mode: found "standby", expected ecmp or active-standby'),
    ],
)  # fmt: skip
def test_every_mistake_is_named(text: str, message: str) -> None:
    assert mistakes(text) == [f"f.yaml:{message}"]


def mistakes(text: str) -> list[str]:
    """A pool's costs its file, a policy's only the policy."""
    try:
        return [refusal.message for refusal in read_text(text, "f.yaml").refusals]
    except InputError as error:
        return [str(error)]


def test_a_policy_by_reference_to_a_service() -> None:
    policy = one(POLICY + TO + "  service: {name: web, namespace: shop}")
    assert isinstance(policy, EgressPolicy)
    assert (policy.service, policy.selections, policy.egress_ips, policy.pool) == ("shop/web", (), (), "")
    in_default = one(POLICY + TO + "  service: {name: web}")
    assert isinstance(in_default, EgressPolicy)
    assert in_default.service == "default/web"


def test_one_that_names_pods_as_well_is_refused_and_covers_both() -> None:
    policy = one(POLICY + REST + "  service: {name: web}")
    assert isinstance(policy, EgressPolicy)
    assert (policy.refused, policy.service, len(policy.selections)) == (True, "default/web", 1)


@pytest.mark.parametrize("rest", ["  pool: p\n  egressIP: 192.0.2.1", "  pool: p\n  ports: [{protocol: GRE}]"])
def test_a_refused_policy_covers_what_it_says_by_any_port(rest: str) -> None:
    policy = one(POLICY + REST + rest)
    assert isinstance(policy, EgressPolicy)
    assert (policy.refused, policy.ports, policy.egress_ip, policy.pool) == (True, (), None, "")
    assert policy.destinations == (ip_network("198.51.100.0/24"),)


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_both_families_are_read_and_nothing_is_taken_from_them(address: str) -> None:
    text = POLICY + (
        "  selectors: [{podSelector: {}}]\n  destinationCIDRs: [198.51.100.0/24, '2001:db8::/32']\n"
        f"  excludedCIDRs: ['2001:db8:1::/48']\n  egressIP: '{address}'\n"
    )
    (entry,) = read_text(text, "f.yaml").entries
    assert isinstance(entry.object, EgressPolicy)
    assert entry.object.destinations == (ip_network("198.51.100.0/24"), ip_network("2001:db8::/32"))
    assert entry.object.excluded == (ip_network("2001:db8:1::/48"),)
    assert entry.object.egress_ip == ip_address(address)
