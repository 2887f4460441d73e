"""The legacy BGP ConfigMap against recorded results of the two original parsers, and our superset of it."""

import json
import re
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerd.errors import InputError
from routerd.formats.compose import documents
from routerd.formats.legacy_bgp import Dialect, as_json, parse
from routerd.formats.legacy_bgp.golang import MAX_INT64, parse_duration
from routerd.formats.legacy_bgp.scalars import resolve
from routerd.model import Bfd, Origin, Peer

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "legacy-bgp-config.json").read_text())
RECORDED: dict[Dialect, str] = {"metallb-0.12": "metallb_0_12_1", "cilium-1.10": "cilium_1_10__metallb_0_9_6"}
PLACE = re.compile(r" \(line \d+, column \d+\)$")


def meant(error: str) -> str:
    """The original prints some prefix lengths as characters ('!' for 33); what it meant is the number."""
    return re.sub(
        r"'((?:\\.[0-9a-f]*)|.)'(?= for IPv| in this pool|$)",
        lambda match: str(ord(match[1].encode().decode("unicode_escape"))),
        error,
    )


@pytest.mark.parametrize("dialect", RECORDED)
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_agrees_with_the_original_parser(vector: dict[str, Any], dialect: Dialect) -> None:
    expected = vector[RECORDED[dialect]]
    found = as_json(vector["yaml"], dialect)
    if "error" in expected:
        assert PLACE.search(str(found.get("error"))), found
        assert PLACE.sub("", str(found["error"])) == meant(expected["error"])
    else:
        assert found == expected


# --- what the recorded documents do not reach --------------------------------------------------------------------


def peer(lines: str) -> str:
    return "peers:\n- peer-address: 10.0.0.1\n  peer-asn: 64512\n  my-asn: 64513\n" + lines


def pool(addresses: str, rest: str = "") -> str:
    return f"address-pools:\n- name: default\n  protocol: bgp\n  addresses: {addresses}\n{rest}"


@pytest.mark.parametrize(
    ("text", "dialect", "error"),
    [
        (peer("  hold-time: 90\n"), "cilium-1.10",
         'parsing peer #1: invalid hold time "90": time: missing unit in duration "90" (line 5, column 14)'),
        (peer("  hold-time: 2999ms\n"), "cilium-1.10",
         'parsing peer #1: invalid hold time "2999ms": must be 0 or >=3s (line 5, column 14)'),
        (peer("  keepalive-time: 91s\n"), "metallb-0.12",
         'parsing peer #1: invalid keepaliveTime "91s" (line 5, column 19)'),
        (peer("  source-address: x\n"), "metallb-0.12",
         'parsing peer #1: invalid source IP "x" (line 5, column 19)'),
        (peer("  bfd-profile: x\n"), "metallb-0.12",
         "peer #1 referencing non existing bfd profile x (line 5, column 16)"),
        (peer("  node-selectors: [{match-expressions: [{key: a, operator: In}]}]\n"), "cilium-1.10",
         "parsing peer #1: parsing node selector: for 'in', 'notin' operators, values set can't be empty "
         "(line 5, column 41)"),
        (peer("  peer-port: 65536\n  foo: 1\n"), "cilium-1.10",
         "could not parse config: yaml: unmarshal errors:\n  line 5: cannot unmarshal !!int `65536` into uint16\n"
         "  line 6: field foo not found in type config.peer (line 5, column 14)"),
        (peer("  my-asn: 1\n"), "cilium-1.10",
         "could not parse config: yaml: unmarshal errors:\n  line 5: field my-asn already set in type config.peer "
         "(line 5, column 3)"),
        ("bfd-profiles: [{name: x}, {name: x}]\n", "metallb-0.12",
         "found duplicate bfd profile name x (line 1, column 34)"),
        ("bgp-communities: {a: '65536:1'}\n", "cilium-1.10",
         'parsing community "a": invalid first section of community "65536": strconv.ParseUint: parsing "65536": '
         "value out of range (line 1, column 22)"),
        (pool("[192.0.2.20-192.0.2.10]"), "metallb-0.12",
         'parsing address pool #1: invalid CIDR "192.0.2.20-192.0.2.10" in pool "default": invalid IP range '
         '"192.0.2.20-192.0.2.10": start IP "192.0.2.20" is after the end IP "192.0.2.10" (line 4, column 15)'),
        (pool("[192.0.2.0/24, 192.0.2.128/25]"), "cilium-1.10",
         'CIDR "192.0.2.128/25" in pool "default" overlaps with already defined CIDR "192.0.2.0/24" '
         "(line 4, column 29)"),
        ("foo\n", "cilium-1.10",
         "could not parse config: yaml: unmarshal errors:\n  line 1: cannot unmarshal !!str `foo` into "
         "config.configFile (line 1, column 1)"),
        ("peers: [*a]\n", "cilium-1.10",
         "could not parse config: yaml: unknown anchor 'a' referenced (line 1, column 9)"),
        # ours
        ("apiVersion: routerd.io/v1alpha1\npeer: []\n", "native",
         'unknown key "peer"; did you mean "peers"? (line 2, column 1)'),
        (peer("  graceful-restart-time: 2h\n"), "native",
         'parsing peer #1: invalid graceful restart time "2h": must be from 0s to 4095s (line 5, column 26)'),
        (peer("  families: [ipv4, vpn]\n"), "native",
         'parsing peer #1: unknown family "vpn", expected ipv4 or ipv6 (line 5, column 20)'),
        (peer("  families: []\n"), "native",
         "parsing peer #1: a session without a family announces nothing: leave the key out for both "
         "(line 5, column 13)"),
        (peer("  password-file: ../x\n"), "native",
         'parsing peer #1: "../x" is not the name of a file in bgp.password-dir (line 5, column 18)'),
        (peer("  password-file: x\n  password: y\n"), "native",
         "parsing peer #1: a peer has either password or password-file (line 5, column 18)"),
        (peer("  ttl-security: 3\n"), "native",
         "parsing peer #1: 3 hops, but without ebgp-multihop the peer is one hop away (line 5, column 17)"),
        (peer("  interface: 'eth1; passive true'\n"), "native",
         'parsing peer #1: "eth1; passive true" is no name of an interface (line 5, column 14)'),
        (peer("  source-interface: lo\n  source-address: 10.0.0.9\n"), "native",
         "parsing peer #1: a peer has either source-address or source-interface (line 5, column 21)"),
        (peer("  node-overrides: [{my-asn: 3}]\n"), "native",
         "parsing peer #1: an override of all nodes: name `nodes`, or select them by node-selectors "
         "(line 5, column 20)"),
        (peer("  node-overrides: [{nodes: [a], source-address: ''}]\n"), "native",
         'parsing peer #1: invalid source IP "" (line 5, column 49)'),
        (peer("  ebgp-multihop: true\n  node-overrides: [{nodes: [a], my-asn: 64512}]\n"), "native",
         "parsing peer #1: on the nodes of this override: invalid ebgp-multihop parameter set for an ibgp peer "
         "(line 6, column 20)"),
        (peer("  ttl-security: 2\n  node-overrides: [{nodes: [a], my-asn: 3}]\n").replace("64513", "64512"), "native",
         "parsing peer #1: on the nodes of this override: 2 hops, but without ebgp-multihop the peer is one hop away "
         "(line 6, column 20)"),
        (peer("  extended-next-hop: true\n  node-overrides: [{nodes: [a], peer-address: 10.0.0.2}]\n").replace(
            "10.0.0.1", "fd00::1"), "native",
         "parsing peer #1: on the nodes of this override: next hops of IPv6 need a session over IPv6: without "
         "extended-next-hop, or another address (line 6, column 20)"),
        (peer("  node-overrides: [{nodes: [a], my-asn: null}]\n"), "native",
         "parsing peer #1: an override that says nothing (line 5, column 20)"),
        (peer("  node-overrides: [{nodes: [a]}]\n"), "native",
         "parsing peer #1: an override that says nothing (line 5, column 20)"),
        (peer("  node-overrides: [{nodes: [a], router-id: '::1'}]\n"), "native",
         'parsing peer #1: invalid router ID "::1": expected IPv4 (line 5, column 44)'),
        (peer("  connect-retry: 0s\n"), "native",
         'parsing peer #1: invalid connect retry time "0s": must be from 1s to 65535s (line 5, column 18)'),
        (peer("  connect-retry: 9s\n  passive: true\n"), "native",
         "parsing peer #1: a passive peer connects itself: without connect-retry (line 5, column 18)"),
        (peer("  passive: true\n  peer-port: 1790\n"), "native",
         "parsing peer #1: a passive peer connects from any port; listen-port says where to (line 6, column 14)"),
        ("apiVersion: routerd.io/v1alpha1\n"
         "peers: [{name: x, interface: eth1, my-asn: 1, peer-asn: 2, passive: true}]\n", "native",
         "parsing peer #1: a router that is found on a link knows no address of the node: without it "
         "(line 2, column 69)"),
        (peer("  role: {name: customer}\n"), "native", "BGP roles (RFC 9234) are not done (line 5, column 3)"),
        (peer("  template: rack\n"), "native",
         'parsing peer #1: there is no peer template "rack" (line 5, column 13)'),
        (peer("") + "peer-templates: [{hold-time: 9s}]\n", "native",
         "a peer template needs a name (line 5, column 18)"),
        (peer("") + "peer-templates: [{name: a}, {name: a}]\n", "native",
         'a second template of the name "a" (line 5, column 36)'),
        (peer("  announce: [vips]\n"), "native",
         'parsing peer #1: unknown "vips", expected services, pod-cidrs, egress (line 5, column 14)'),
        ("apiVersion: routerd.io/v1alpha1\npeers: [{interface: eth1, my-asn: 1, peer-asn: 2}]\n", "native",
         "parsing peer #1: a peer that is found on the node needs a name (line 2, column 9)"),
        ("apiVersion: routerd.io/v1alpha1\npeers: [{name: x, peer-address: default-gateway, my-asn: 1, peer-asn: 2, "
         "bfd: {}}]\n", "native",
         "parsing peer #1: BFD with a peer that is found is not done: without bfd, or with a peer-address "
         "(line 2, column 79)"),
        ("peers:\n- {my-asn: 1, peer-asn: 2, peer-address: default-gateway}\n", "metallb-0.12",
         'parsing peer #1: invalid peer IP "default-gateway" (line 2, column 42)'),
        (peer("  extended-next-hop: true\n"), "native",
         "parsing peer #1: next hops of IPv6 need a session over IPv6: without extended-next-hop, or another address "
         "(line 5, column 22)"),
        (pool("[192.0.2.0/24]", "  bgp-advertisements: [{peers: []}]\n"), "native",
         "parsing address pool #1: parsing BGP communities: an advertisement to no peers: "
         "leave the key out for all (line 5, column 32)"),
        (pool("[192.0.2.0/24]", "  bgp-advertisements: [{peers: ['']}]\n"), "native",
         "parsing address pool #1: parsing BGP communities: a peer without a name (line 5, column 33)"),
        (pool("[192.0.2.0/24]", "  bgp-advertisements: [{node-selectors: []}]\n"), "native",
         "parsing address pool #1: parsing BGP communities: an advertisement to no node-selectors: "
         "leave the key out for all (line 5, column 41)"),
        (pool("[192.0.2.0/24]", "  bgp-advertisements: [{origin: bgp}]\n"), "native",
         "parsing address pool #1: parsing BGP communities: found \"bgp\", expected one of igp, egp, incomplete "
         "(line 5, column 33)"),
        (pool("[192.0.2.0/24]", "  bgp-advertisements: [{communities: ['rt:1:x']}]\n"), "native",
         "parsing address pool #1: parsing BGP communities: invalid community \"rt:1:x\" in BGP advertisement: "
         "found 'x', expected a number of 0 to 4294967295 (line 5, column 39)"),
        (pool("[192.0.2.0/24]", "  bgp-advertisements: [{communities: ['rt:1:1']}]\n"), "metallb-0.12",
         "parsing address pool #1: parsing BGP communities: invalid community \"rt:1:1\" in BGP advertisement: "
         "invalid community string \"rt:1:1\" (line 5, column 39)"),
        (peer("  hold-time: 20h\n"), "native",
         'parsing peer #1: invalid hold time "20h": must be at most 65535s (line 5, column 14)'),
        (pool("[192.0.2.0/24]", "  uses: [egres]\n"), "native",
         'parsing address pool #1: unknown use "egres", expected loadbalancer or egress (line 5, column 10)'),
    ],
)  # fmt: skip
def test_mistakes_are_named(text: str, dialect: Dialect, error: str) -> None:
    assert as_json(text, dialect) == {"error": error}


TEMPLATES = """\
apiVersion: routerd.io/v1alpha1
peer-templates:
- {name: rack, my-asn: 64513, peer-asn: 64512, hold-time: 9s, families: [ipv4], bfd: {interval: 100ms}}
peers:
- {name: a, template: rack, peer-address: 10.0.0.1}
- {template: rack, peer-address: 10.0.0.2, peer-asn: 64999, families: [ipv6], bfd: null}
"""


def test_a_peer_has_what_its_template_says_and_it_does_not() -> None:
    first, second = (replace(peer, origin=Origin()) for peer in parse(TEMPLATES, "native").peers)
    assert first == Peer(
        ip_address("10.0.0.1"), 64512, 64513, hold_time=9, families=("IPv4",), bfd=Bfd(100_000, 100_000), name="a"
    )
    assert second == Peer(ip_address("10.0.0.2"), 64999, 64513, hold_time=9, families=("IPv6",))
    with pytest.raises(InputError):
        parse(TEMPLATES, "metallb-0.12")


def test_a_backward_or_mixed_range_is_an_empty_pool_for_the_old_parser() -> None:
    assert parse(pool("[192.0.2.20-192.0.2.10]"), "cilium-1.10").pools[0].blocks == ()
    assert parse(pool("['192.0.2.20-2001:db8::1']"), "metallb-0.12").pools[0].blocks == ()


def test_the_model_of_a_peer() -> None:
    (found,) = parse(peer("  hold-time: 3500ms\n  keepalive-time: 1s\n  router-id: 1.2.3.4\n"), "metallb-0.12").peers
    assert (found.hold_time, found.keepalive_time, str(found.router_id), found.graceful_restart_time) == (
        3, 1, "1.2.3.4", 120,
    )  # fmt: skip
    (found,) = parse(peer("  hold-time: 500ms\n  name: tor\n  graceful-restart-time: 30s\n"), "native").peers
    assert (found.hold_time, found.label, found.graceful_restart_time, found.keepalive_time) == (0, "tor", 30, None)


def test_what_of_a_peer_is_not_done_is_said() -> None:
    text = "bfd-profiles: [{name: fast, echo-mode: true}]\n" + peer(
        "  bfd-profile: fast\n  router-id: '::1'\n  hold-time: 20h\n"
    )
    config = parse(text, "metallb-0.12")
    assert [refusal.reason for refusal in config.refusals] == ["BFDNotSupported", "InvalidRouterID", "HoldTimeTooLong"]
    assert (config.peers[0].router_id, config.peers[0].hold_time) == (None, 65535)


def test_merge_keys_give_what_is_not_given() -> None:
    text = "peers:\n- &a {peer-address: 10.0.0.1, peer-asn: 1, my-asn: 2}\n- {<<: *a, peer-address: 10.0.0.2}\n"
    assert [str(found.address) for found in parse(text, "cilium-1.10").peers] == ["10.0.0.1", "10.0.0.2"]


@given(st.integers(0, 10**13), st.sampled_from(["ns", "us", "µs", "ms", "s", "m", "h"]))
def test_durations_are_exact(amount: int, unit: str) -> None:
    scale = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}[unit]
    if amount * scale <= MAX_INT64:
        assert parse_duration(f"{amount}{unit}") == amount * scale
        assert parse_duration(f"-{amount}{unit}") == -amount * scale
    else:
        with pytest.raises(ValueError, match="time: invalid duration"):
            parse_duration(f"{amount}{unit}")


@given(st.text(st.sampled_from("0123456789.hmsnuµ+- x"), max_size=8))
def test_any_duration_is_a_number_or_a_message_of_go(text: str) -> None:
    try:
        parse_duration(text)
    except ValueError as error:
        assert str(error).startswith("time: ")


@given(st.integers(-(2**63), 2**64 - 1), st.sampled_from(["d", "#x", "#o", "#b"]))
def test_integers_of_every_base(number: int, base: str) -> None:
    assert resolve(documents(f"{number:{base}}\n")[0]) == ("!!int", number)


@given(st.text(st.sampled_from("peers:-[]{}adx \n\t0123.&*<'\"|#"), max_size=60), st.sampled_from(list(RECORDED)))
def test_any_text_has_a_verdict(text: str, dialect: Dialect) -> None:
    verdict = as_json(text, dialect)
    assert set(verdict) in ({"ok"}, {"error"})


def bfd_of(text: str, dialect: Dialect = "native", before: str = "") -> Bfd | None:
    (found,) = parse(before + peer(text), dialect).peers
    return found.bfd


def test_bfd_of_a_peer_has_defaults_and_is_off_where_it_is_not_given() -> None:
    assert bfd_of("") is None
    assert bfd_of("  bfd: {}\n") == Bfd(50_000, 50_000, 3)
    assert bfd_of("  bfd: {interval: 20ms}\n") == Bfd(20_000, 20_000, 3)
    assert bfd_of("  bfd: {interval: 0.1s, min-rx: 300ms, multiplier: 5}\n") == Bfd(100_000, 300_000, 5)


def test_a_bfd_profile_is_used_with_the_defaults_of_the_original() -> None:
    profiles = "bfd-profiles:\n- {name: slow}\n- {name: own, transmit-interval: 50, receive-interval: 60, "
    profiles += "detect-multiplier: 4, passive-mode: true}\n"
    for dialect in ("metallb-0.12", "native"):
        assert bfd_of("  bfd-profile: slow\n", dialect, profiles) == Bfd(300_000, 300_000, 3)
        assert bfd_of("  bfd-profile: own\n", dialect, profiles) == Bfd(50_000, 60_000, 4, passive=True)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{interval: 5ms}", 'parsing peer #1: invalid bfd interval "5ms": must be from 10ms to 1m (line 5, column 19)'),
        ("{min-rx: 2m}", 'parsing peer #1: invalid bfd min-rx "2m": must be from 10ms to 1m (line 5, column 17)'),
        ("{interval: 50}",
         'parsing peer #1: invalid bfd interval "50": time: missing unit in duration "50" (line 5, column 19)'),
        ("{multiplier: 1}", "parsing peer #1: invalid bfd multiplier 1: must be in 2-255 range (line 5, column 21)"),
        ("{}\n  bfd-profile: x",
         "parsing peer #1: expected either bfd or bfd-profile, found both (line 5, column 8)"),
    ],
)  # fmt: skip
def test_mistakes_in_bfd_are_named(text: str, error: str) -> None:
    assert as_json(peer(f"  bfd: {text}\n"), "native") == {"error": error}


def test_bfd_has_no_keys_but_its_own_and_is_no_key_of_the_old_dialects() -> None:
    assert "multiplyer" in str(as_json(peer("  bfd: {multiplyer: 3}\n"), "native")["error"])
    assert "field bfd not found" in str(as_json(peer("  bfd: {}\n"), "metallb-0.12")["error"])


def test_bfd_over_several_hops_is_refused() -> None:
    for text in ("  bfd: {}\n  ebgp-multihop: true\n",):
        config = parse(peer(text), "native")
        assert (config.peers[0].bfd, [each.reason for each in config.refusals]) == (None, ["BFDNotSupported"])
