"""The schemas of our CRDs and the readers of the same kinds agree.

What the reader takes, the schema takes. What the schema takes and the reader refuses is listed here: no schema can say
it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from routerd.errors import InputError
from routerd.formats.compose import value_of
from routerd.formats.document import NOWHERE
from routerd.formats.native import read_address_pool, read_egress_policy
from tests.k8s.client import Answer, Client, Json
from tests.k8s.deployment import defined
from tests.models import cel
from tests.models.apiserver import schema
from tests.models.apiserver.cel import RULES
from tests.models.apiserver.definitions import with_defaults

CONFIGS = Path(__file__).parents[2] / "configs"
CRDS: dict[str, Json] = {
    each["spec"]["names"]["kind"]: each for each in yaml.safe_load_all((CONFIGS / "deploy" / "crds.yaml").read_text())
}
READERS: dict[str, Callable[[Any], object]] = {"AddressPool": read_address_pool, "EgressPolicy": read_egress_policy}
# Beginnings or parts of what only the reader says.
BEYOND_SCHEMAS = (
    "without host bits", "cannot be in a pool", "overlaps with", "cannot be an egress IP", "found the label key",
    "would announce more", "behind its end", "from one address family to the other", "the same advertisement",
    "stands there twice", "expected a community",
    "expected a CIDR", "expected an IP address", "expected a CIDR, an address",
)  # fmt: skip


def rules(kind: str) -> Json:
    found: Json = CRDS[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def schema_says(kind: str, value: Json) -> list[object]:
    """Faults and unknown fields."""
    value, lost = schema.prune(copy.deepcopy(value), rules(kind), root=True)
    value = schema.with_defaults(value, rules(kind))
    return [*lost, *schema.validate(value, rules(kind))]


def reader_says(kind: str, value: Json) -> str:
    """The mistake, "" = none."""
    try:
        READERS[kind](value_of(value, NOWHERE))
    except InputError as error:
        return str(error)
    return ""


def one(kind: str, spec: Json) -> Json:
    return {"apiVersion": "routerd.io/v1alpha1", "kind": kind, "metadata": {"name": "a"}, "spec": spec}


def check_both(kind: str, spec: Json) -> None:
    by_schema, by_reader = schema_says(kind, one(kind, spec)), reader_says(kind, one(kind, spec))
    if not by_reader:
        assert by_schema == []
    elif not by_schema:
        assert any(part in by_reader for part in BEYOND_SCHEMAS), by_reader


# --- documents, right and wrong

_labels = st.dictionaries(
    st.sampled_from(["a", "example.com/a", "a b", "A.b_c"]),
    st.sampled_from(["", "x", "x y", "-x", "y" * 64]),
    max_size=2,
)
_expression = st.fixed_dictionaries(
    {},
    optional={
        "key": st.sampled_from(["a", "example.com/a", "a b", ""]),
        "operator": st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist", "Gt"]),
        "values": st.lists(st.sampled_from(["x", "", "x y"]), max_size=2),
        "extra": st.just(1),
    },
)
_selector = st.fixed_dictionaries(
    {}, optional={"matchLabels": _labels, "matchExpressions": st.lists(_expression, max_size=1), "extra": st.just(1)}
)
_selection = st.fixed_dictionaries(
    {}, optional={"podSelector": _selector, "namespaceSelector": _selector, "nodeSelector": _selector}
)
_cidr = st.sampled_from(
    ["192.0.2.0/24", "192.0.2.1/24", "2001:db8::/32", "0.0.0.0/0", "192.0.2.0", "x", "192.0.2.0/33", 5]
)
_number = st.sampled_from(
    [-1000001, -1, 0, 1, 32, 33, 80, 128, 129, 443, 65535, 65536, 1000000, 4294967296, "80", True]
)
_port = st.fixed_dictionaries(
    {},
    optional={
        "protocol": st.sampled_from(["TCP", "UDP", "ICMP", "SCTP", "GRE", "tcp"]), "port": _number, "endPort": _number,
        "extra": st.just(1),
    },
)  # fmt: skip
_policy: dict[str, st.SearchStrategy[Any]] = {
    "selectors": st.lists(_selection, max_size=2),
    "destinationCIDRs": st.lists(_cidr, max_size=2),
    "excludedCIDRs": st.lists(_cidr, max_size=2),
    "ports": st.lists(_port, max_size=2),
    "egressIP": st.sampled_from(["192.0.2.1", "2001:db8::1", "224.0.0.1", "x", "192.0.2.0/24", "fe80::1%eth0"]),
    "egressIPs": st.lists(st.sampled_from(["192.0.2.1", "2001:db8::1", "x", "127.0.0.1"]), max_size=3),
    "count": st.sampled_from([0, 1, 16, 17, "2"]),
    "pool": st.sampled_from(["a", ""]),
    "gateways": st.fixed_dictionaries(
        {}, optional={"nodeSelector": _selector, "mode": st.sampled_from(["ecmp", "active-standby", "active"])}
    ),
    "priority": _number,
    "exit": st.sampled_from(["gateway", "local", "node", ""]),
    "service": st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["web", ""]),
            "namespace": st.sampled_from(["shop", ""]),
            "extra": st.just(1),
        },
    ),
    "extra": st.just(1),
}
_block = st.one_of(
    st.sampled_from(["192.0.2.0/24", "192.0.2.7", "192.0.2.9-192.0.2.3", "198.51.100.1 - 198.51.100.9",
                     "2001:db8::/112", "10.0.0.1-2001:db8::1", "x", "224.0.0.0/8", "", "192.0.2.1/24"]),
    st.fixed_dictionaries({}, optional={"cidr": st.just("203.0.113.0/28"), "start": st.just("203.0.113.40"),
                                        "end": st.just("203.0.113.44"), "extra": st.just(1)}),
)  # fmt: skip
_advertisement = st.fixed_dictionaries(
    {},
    optional={
        "aggregationLength": _number, "aggregationLengthV6": _number, "localPref": _number, "extra": st.just(1),
        "communities": st.lists(st.sampled_from(["64512:1", "0123:65535", "65536:1", "64512:1:2", "no-export", "none",
                                                 "1:4294967296:1", "1:2:3:4", "rt:64512:7", "soo:192.0.2.1:7", "rt:1",
                                                 "link-bandwidth:1:7"]), max_size=2),
        "origin": st.sampled_from(["igp", "egp", "incomplete", "bgp"]),
    },
)  # fmt: skip
_pool: dict[str, st.SearchStrategy[Any]] = {
    "blocks": st.lists(_block, max_size=2),
    "uses": st.lists(st.sampled_from(["loadbalancer", "egress", "other"]), max_size=2),
    "protocol": st.sampled_from(["bgp", "layer2", "other"]),
    "autoAssign": st.sampled_from([True, False, "true"]),
    "avoidBuggyIPs": st.booleans(),
    "priority": _number,
    "disabled": st.booleans(),
    "egressAnnotations": st.booleans(),
    "advertisements": st.lists(_advertisement, max_size=2),
    "extra": st.just(1),
}

GOOD_POLICY: Json = {"selectors": [{"podSelector": {}}], "destinationCIDRs": ["192.0.2.0/24"], "pool": "a"}
GOOD_POOL: Json = {"blocks": ["192.0.2.0/24"]}
GOOD = {"EgressPolicy": GOOD_POLICY, "AddressPool": GOOD_POOL}


def changed(good: Json, fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Json]:
    """A good document with a field or two replaced, and perhaps one left out."""
    names = st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=2, unique=True)
    changes = names.flatmap(lambda found: st.fixed_dictionaries({name: fields[name] for name in found}))
    dropped = st.sampled_from([None, None, None, *good])
    both = st.tuples(changes, dropped)
    return both.map(lambda pair: {key: item for key, item in {**good, **pair[0]}.items() if key != pair[1]})


@settings(max_examples=500)
@given(changed(GOOD_POLICY, _policy))
def test_egress_policies(spec: Json) -> None:
    check_both("EgressPolicy", spec)


@settings(max_examples=500)
@given(changed(GOOD_POOL, _pool))
def test_address_pools(spec: Json) -> None:
    check_both("AddressPool", spec)


# Wrong values of every field, each put into a good document: both refuse them.
WRONG = [
    ("EgressPolicy", {"selectors": []}), ("EgressPolicy", {"selectors": [{}]}), ("EgressPolicy", {"pool": ""}),
    ("EgressPolicy", {"selectors": [{"nodeSelector": {}}]}), ("EgressPolicy", {"destinationCIDRs": []}),
    ("EgressPolicy", {"destinationCIDRs": ["192.0.2.0"]}), ("EgressPolicy", {"egressIP": "192.0.2.1"}),
    ("EgressPolicy", {"ports": [{"port": 1}]}), ("EgressPolicy", {"ports": [{"protocol": "ICMP", "port": 1}]}),
    ("EgressPolicy", {"ports": [{"protocol": "TCP", "endPort": 1}]}), ("EgressPolicy", {"gateways": {}}),
    ("EgressPolicy", {"ports": [{"protocol": "TCP", "port": 9, "endPort": 1}]}), ("EgressPolicy", {"extra": 1}),
    ("EgressPolicy", {"priority": 1_000_001}), ("EgressPolicy", {"priority": "1"}),
    ("EgressPolicy", {"exit": "node"}), ("EgressPolicy", {"gateways": {"mode": "active"}}),
    ("EgressPolicy", {"selectors": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}]}),
    ("EgressPolicy", {"selectors": [{"podSelector": {"matchLabels": {"a": "x y"}}}]}),
    ("AddressPool", {"blocks": []}), ("AddressPool", {"blocks": ["x"]}), ("AddressPool", {"blocks": [{}]}),
    ("AddressPool", {"blocks": [{"start": "192.0.2.1"}]}), ("AddressPool", {"uses": []}),
    ("AddressPool", {"blocks": [{"cidr": "192.0.2.0/24", "start": "192.0.2.1"}]}), ("AddressPool", {"uses": ["x"]}),
    ("AddressPool", {"protocol": "ospf"}), ("AddressPool", {"protocol": "layer2", "advertisements": [{}]}),
    ("AddressPool", {"advertisements": []}), ("AddressPool", {"advertisements": [{"aggregationLength": 33}]}),
    ("AddressPool", {"advertisements": [{"communities": ["65536:1"]}]}), ("AddressPool", {"autoAssign": "yes"}),
    ("AddressPool", {"advertisements": [{"localPref": -1}]}), ("AddressPool", {"extra": 1}),
    ("AddressPool", {"egressAnnotations": True}),
]  # fmt: skip


@pytest.mark.parametrize("kind, change", WRONG, ids=lambda value: str(value))
def test_both_refuse(kind: str, change: Json) -> None:
    good = GOOD[kind]
    assert (schema_says(kind, one(kind, good)), reader_says(kind, one(kind, good))) == ([], "")
    wrong = one(kind, {**good, **change})
    assert schema_says(kind, wrong) != []
    assert reader_says(kind, wrong) != ""


@pytest.fixture(scope="module")
def collections(api: Client) -> Iterator[dict[str, str]]:
    """kind -> the path of a copy of it at the API server."""
    with defined(api, "EgressPolicy") as policies, defined(api, "AddressPool") as pools:
        yield {"EgressPolicy": policies, "AddressPool": pools}


def server_says(api: Client, path: str, kind: str, spec: Json) -> Answer:
    """To a dry run, strictly."""
    body = {"apiVersion": "/".join(path.split("/")[2:4]), "kind": kind, "metadata": {"name": "a"}, "spec": spec}
    return api.create(path, body, dryRun="All", fieldValidation="Strict")


def test_an_api_server_refuses_them_as_well(api: Client, collections: dict[str, str]) -> None:
    taken = [
        (kind, change) for kind, change in WRONG
        if server_says(api, collections[kind], kind, {**GOOD[kind], **change}).code not in (400, 422)
    ]  # fmt: skip
    assert taken == []
    for kind, spec in GOOD.items():
        assert server_says(api, collections[kind], kind, spec).code == 201


@pytest.mark.parametrize("file", ["address-pool.yaml", "egress-policy.yaml"])
def test_the_examples_are_taken(file: str) -> None:
    for value in yaml.safe_load_all((CONFIGS / "examples" / file).read_text()):
        assert schema_says(value["kind"], value) == []


@pytest.mark.parametrize("kind", CRDS)
def test_the_definitions_are_right(kind: str) -> None:
    """Structural, with rules that are known; short names that no other egress or pool kind has."""
    with_defaults(copy.deepcopy(CRDS[kind]))
    taken = {"eg", "eip", "ippool", "cegp", "cenp", "veg", "eps", "ep", "ap"}
    assert not taken & set(CRDS[kind]["spec"]["names"]["shortNames"])
    assert CRDS[kind]["spec"]["versions"][0]["subresources"] == {"status": {}}


def rule_texts(value: Any) -> set[str]:
    if isinstance(value, dict):
        here = {each["rule"] for each in value.get("x-kubernetes-validations", ())}
        return here.union(*(rule_texts(item) for item in value.values()))
    return set().union(*(rule_texts(item) for item in value)) if isinstance(value, list) else set()


def test_the_double_knows_the_rules_of_our_definitions_and_no_others() -> None:
    assert rule_texts(list(CRDS.values())) == set(RULES)


# What rules speak of, as the rest of the schema lets it through: required is what they read without asking for it.
_spoken_of = st.fixed_dictionaries(
    {"operator": st.sampled_from(["In", "NotIn", "Exists"]), "protocol": st.sampled_from(["TCP", "ICMP", "layer2"])},
    optional={
        "port": st.integers(0, 3), "endPort": st.integers(0, 3), "values": st.lists(st.just("x"), max_size=1),
        **dict.fromkeys(("egressIP", "pool"), st.just("x")), "egressIPs": st.just(["x"]), "count": st.just(1),
        "selectors": st.just([{"podSelector": {}}]), "service": st.just({"name": "x"}),
        **dict.fromkeys(("podSelector", "namespaceSelector"), st.just({})), "advertisements": st.just([{}]),
    },
)  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
@given(_spoken_of)
def test_the_double_says_what_cel_does(rule: str, value: Json) -> None:
    assert RULES[rule](value) == cel.evaluated(rule, self=value)
