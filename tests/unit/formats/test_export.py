"""`export` of a peer: rules by which paths go to it."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from bgp.path import Path
from routerd.errors import InputError
from routerd.formats.legacy_bgp import parse
from routerd.model import ExportRule, Gets
from routerd.node.table import Audience, Wanted, heard
from routerd.refs import EGRESS, NODE, SERVICE, Ref

HEAD = 'apiVersion: routerd.io/v1alpha1\nbgp-communities: {upper: "64513:7"}\npeers:\n- peer-address: 10.0.0.1\n'
HEAD += "  peer-asn: 64512\n  my-asn: 64513\n  export:\n"
NET = ip_network("192.0.2.0/24")


def read(*rules: str) -> tuple[ExportRule, ...]:
    return parse(HEAD + "".join(f"  - {rule}\n" for rule in rules), "native").peers[0].export


def test_all_that_a_rule_has() -> None:
    assert read(
        "{action: reject, of: [egress, services], "
        "prefixes: [192.0.2.0/24], match: not-in, min-length: 25, max-length: 30}",
        "{communities: [upper, no-export]}",
        "{action: accept}",
    ) == (
        ExportRule("reject", (NET,), "not-in", 25, 30, of=("services", "egress")),
        ExportRule(communities=("64513:7", "65535:65281")),
        ExportRule("accept"),
    )


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{action: allow}", 'unknown action "allow", expected accept, reject'),
        ('{action: ""}', 'unknown action "", expected accept, reject'),
        ("{action: reject, match: within, prefixes: [192.0.2.0/24]}", "expected in, not-in, equal, not-equal"),
        ("{action: reject, of: [vips]}", 'unknown "vips", expected services, pod-cidrs, egress'),
        ("{action: reject, prefixes: []}", "a rule for no prefixes: leave the key out for all"),
        ("{action: reject, prefixes: [192.0.2.1/24]}", "expected a CIDR without host bits"),
        ("{action: reject, match: not-in}", "match is about prefixes, and the rule has none"),
        ("{action: reject, prefixes: [192.0.2.0/24], min-length: 30, max-length: 25}", "is more than max-length 25"),
        (
            "{action: reject, prefixes: [192.0.2.0/24], match: equal, min-length: 25}",
            "min-length goes with in and not-in",
        ),
        (
            "{action: reject, prefixes: [10.1.0.0/16], min-length: 33}",
            "export[0].min-length: parsing peer #1: found 33, expected at most 32, as 10.1.0.0/16 is IPv4",
        ),
        (
            "{action: reject, prefixes: [10.0.0.0/8, 10.1.0.0/16], max-length: 8}",
            "max-length: parsing peer #1: found 8, expected at least 16: nothing in 10.1.0.0/16 is shorter",
        ),
        ("{action: reject, match: not-in, prefixes: [10.1.0.0/16], max-length: 15}", "expected at least 16"),
        ("{of: [egress]}", "a rule without effect: expected an action, communities, or both"),
        ("{action: reject, communities: [no-export]}", "what is rejected gets no communities"),
        ("{action: accept, communities: [lower]}", 'invalid community "lower"'),
    ],
)
def test_a_mistake_is_named(rule: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read(rule)
    assert "parsing peer #1: " in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  export: {action: reject}\n", "peers[0].export: found a mapping, expected a list of mappings"),
        ("  export: [reject]\n", 'peers[0].export[0]: found "reject", expected a mapping'),
        ("  export: [{prefixes: 10.0.0.0/8}]\n", 'prefixes: found "10.0.0.0/8", expected a list of strings'),
        ("  export: [{action: []}]\n", "action: found a list, expected a string"),
        ("  export: [{min-length: {}}]\n", "min-length: found a mapping, expected a number"),
        ("  passive: []\n", "passive: found a list, expected true or false"),
        ("bgp-communities: [upper]\n", "bgp-communities: found a list, expected a mapping"),
    ],
)
def test_what_has_another_shape_is_told_in_our_words(text: str, message: str) -> None:
    head = HEAD.removesuffix("  export:\n").replace('bgp-communities: {upper: "64513:7"}\n', "")
    with pytest.raises(InputError) as error:
        parse(head + text, "native")
    assert message in str(error.value) and "unmarshal" not in str(error.value)


def test_another_dialect_has_no_such_key() -> None:
    with pytest.raises(InputError, match="field export not found"):
        parse(HEAD.split("\n", 1)[1] + "  - {action: accept}\n", "metallb-0.12")


@pytest.mark.parametrize(
    ("rule", "prefix", "what", "taken"),
    [
        (ExportRule(), "192.0.2.1/32", "egress", True),
        (ExportRule(of=("services",)), "192.0.2.1/32", "egress", False),
        (ExportRule(prefixes=(NET,)), "192.0.2.0/24", "egress", True),
        (ExportRule(prefixes=(NET,)), "192.0.0.0/16", "egress", False),
        (ExportRule(prefixes=(NET,)), "2001:db8::1/128", "egress", False),
        (ExportRule(prefixes=(NET,), match="not-in"), "198.51.100.1/32", "egress", True),
        (ExportRule(prefixes=(NET,), match="not-in"), "2001:db8::1/128", "egress", False),
        (ExportRule(prefixes=(NET,), match="equal"), "192.0.2.0/24", "egress", True),
        (ExportRule(prefixes=(NET,), match="equal"), "192.0.2.1/32", "egress", False),
        (ExportRule(prefixes=(NET,), match="not-equal"), "192.0.2.1/32", "egress", True),
        (ExportRule(prefixes=(NET,), min_length=25, max_length=30), "192.0.2.1/32", "egress", False),
        (ExportRule(prefixes=(NET,), match="not-in", min_length=25, max_length=30), "192.0.2.1/32", "egress", True),
    ],
)
def test_what_a_rule_takes(rule: ExportRule, prefix: str, what: Gets, taken: bool) -> None:
    assert rule.takes(ip_network(prefix), what) is taken


def test_the_first_rule_with_an_action_decides_and_others_add() -> None:
    owners = (Ref(SERVICE, "d", "web"), Ref(NODE, name="a"), Ref(EGRESS, name="1"))
    wanted = [Wanted(Path(ip_network(f"192.0.2.{number}/32")), owner) for number, owner in enumerate(owners)]
    rules = (
        ExportRule(communities=("64513:1",)),
        ExportRule("reject", of=("pod-cidrs",)),
        ExportRule("accept", of=("egress",), communities=("64513:2",)),
        ExportRule(communities=("64513:3",)),
    )
    assert [(str(each.path.prefix), each.path.communities) for each in heard(Audience(export=rules), wanted)] == [
        ("192.0.2.0/32", ("64513:1", "64513:3")),
        ("192.0.2.2/32", ("64513:1", "64513:2")),
    ]


def test_what_names_the_peer_goes_by_its_rules_too() -> None:
    wanted = [Wanted(Path(NET), Ref(SERVICE, "d", "web"), ("tor",))]
    assert heard(Audience("tor", (), (ExportRule("reject"),)), wanted) == []
    assert heard(Audience("tor", (), (ExportRule("reject", (ip_network("::/0"),)),)), wanted) == wanted
