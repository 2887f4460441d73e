"""routerd.yaml: defaults that follow from others, and one message per kind of mistake."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

import pytest

from routerd.config import (
    AnnounceConfig,
    BrakeConfig,
    Config,
    DrainConfig,
    LivenessConfig,
    NativeRoutingConfig,
    load_config,
    parse_config,
)
from routerd.errors import InputError
from upstream.targets import Rules, Target

HEAD = "apiVersion: routerd.io/v1alpha1\nkind: Config\n"


def test_two_lines_are_a_whole_file() -> None:
    assert parse_config(HEAD) == Config()


def test_paths_follow_the_directories_that_hold_them() -> None:
    config = parse_config(HEAD + "state-dir: /s\nstore: {manifests: /m}\n")
    assert config.operator.ledger == Path("/s/ledger.sqlite")
    assert config.store.allocations == Path("/m/allocations.yaml")
    assert (config.store.node_report, config.store.node_reports) == (Path("/s/node.yaml"), ("/s/node.yaml",))


def test_everything_can_be_set() -> None:
    config = parse_config(
        HEAD
        + """\
node-name: n1
metrics-listen: "[::1]:9000"
log: {format: json, level: debug}
service-cidrs: [10.96.0.0/12]
cluster-cidrs: ["fd00::/8"]
egress: {enabled: false, uplinks: [eth0], host-devices: [ve-web], tunnel-port: 9999, attach: tcx, loader: bcc,
  network-policy: forward, forward-mark-bit: 3, nat-entries: 2048, flows-per-pod: 100, ports-per-pod: 200,
  in-cluster: [203.0.113.0/24],
  allowed-addresses: [198.51.100.0/24], liveness: {enabled: false, interval: 1s, multiplier: 7},
  upstream-probe: {icmp: [203.0.113.1], tcp: ["[2001:db8::1]:443"], http: ["http://203.0.113.1", "https://[2001:db8::1]:8443/a?b"],
    require: all, interval: 5s, timeout: 500ms, failure-threshold: 4, success-threshold: 5}}
bgp: {enabled: false, router-id: 192.0.2.1, password-dir: /p,
  announce: {loadbalancer: false, pod-cidrs: true, egress: false,
  external-ips: [203.0.113.0/24], cluster-ips: ["fd00:96::/112"]}}
drain: {notice: 1m, cordoned: true, taints: [maintenance, "example.com/drain=yes:NoExecute"]}
operator: {ledger: /l, retention: 1d, flow-deadline: 2h, egress-retention: "0", cooldown: 5m,
           gateway-mode: active-standby, metrics-listen: "0.0.0.0:9001"}
native-routing: {auto-direct-node-routes: true, learn: ["fd00::/48", 10.244.0.0/16, 10.244.0.0/16]}
"""
    )
    assert config.node_name == "n1"
    assert config.metrics_listen == (IPv6Address("::1"), 9000)
    assert (config.service_cidrs, config.cluster_cidrs) == ((ip_network("10.96.0.0/12"),), (ip_network("fd00::/8"),))
    assert config.egress == replace(
        config.egress,
        enabled=False,
        uplinks=("eth0",),
        host_devices=("ve-web",),
        tunnel_port=9999,
        attach="tcx",
        loader="bcc",
        network_policy="forward",
        forward_mark_bit=3,
        nat_entries=2048,
        flows_per_pod=100,
        ports_per_pod=200,
        in_cluster=(ip_network("203.0.113.0/24"),),
        allowed_addresses=(ip_network("198.51.100.0/24"),),
        liveness=LivenessConfig(enabled=False, interval=1_000_000, multiplier=7),
        upstream_probe=Rules(
            (
                Target("icmp", IPv4Address("203.0.113.1")),
                Target("tcp", IPv6Address("2001:db8::1"), 443),
                Target("http", IPv4Address("203.0.113.1"), 80, "/"),
                Target("http", IPv6Address("2001:db8::1"), 8443, "/a?b", tls=True),
            ),
            "all",
            5.0,
            0.5,
            4,
            5,
        ),
    )
    assert not config.bgp.enabled
    assert config.bgp.password_dir == Path("/p")
    assert config.bgp.announce == AnnounceConfig(
        False, True, False, (ip_network("203.0.113.0/24"),), (ip_network("fd00:96::/112"),)
    )
    learn = (ip_network("10.244.0.0/16"), ip_network("fd00::/48"))
    assert config.native_routing == NativeRoutingConfig(auto_direct_node_routes=True, learn=learn)
    assert config.drain == DrainConfig(60, cordoned=True, taints=("maintenance", "example.com/drain=yes:NoExecute"))
    assert (config.operator.flow_deadline, config.operator.gateway_mode) == (7200, "active-standby")
    assert (config.operator.retention, config.operator.egress_retention, config.operator.cooldown) == (86400, 0, 300)
    assert config.operator.metrics_listen == (IPv4Address("0.0.0.0"), 9001)
    assert parse_config(HEAD + 'metrics-listen: ""\n').metrics_listen is None
    off = parse_config(HEAD + "store: {metallb-status: false}\n").store
    assert (off.metallb_status, Config().store.metallb_status) == (False, True)
    assert parse_config(HEAD + 'operator: {metrics-listen: ""}\n').operator.metrics_listen is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f: found 0 documents, expected one of kind Config"),
        ("kind: Config\n", 'f:1:1: the key "apiVersion" is missing'),
        (HEAD + "state_dir: /x\n", 'f:3:1: state_dir: unknown key "state_dir"; did you mean "state-dir"?'),
        (HEAD + "state-dir: x\n", 'f:3:12: state-dir: found "x", expected an absolute path'),
        (HEAD + "egress: {tunnel-port: 99999}\n",
         'f:3:23: egress.tunnel-port: found "99999", expected an integer from 1 to 65535'),
        (HEAD + "egress: {uplinks: [averyveryverylongname]}\n",
         'f:3:20: egress.uplinks[0]: found "averyveryverylongname", expected the name of a network device'),
        (HEAD + "egress: {host-devices: [br*]}\n",
         'f:3:25: egress.host-devices[0]: found "br*", expected the name of a network device that nft can say: '
         "no quotation mark, no \\, no * at its end"),
        (HEAD + "operator: {metrics-listen: 0.0.0.0}\n",
         'f:3:28: operator.metrics-listen: found "0.0.0.0", expected ADDRESS:PORT such as 127.0.0.1:9794 or '
         '[::1]:9794, or "" for none'),
        (HEAD + "metrics-listen: 9793\n",
         'f:3:17: metrics-listen: found "9793", expected ADDRESS:PORT such as 127.0.0.1:9793 or [::1]:9793, or "" '
         "for none"),
        (HEAD + "metrics-listen: '::1:9793'\n",
         'f:3:17: metrics-listen: found the string "::1:9793", expected ADDRESS:PORT such as 127.0.0.1:9793 or '
         '[::1]:9793, or "" for none'),
        (HEAD + "bgp: {announce: {pod-cidr: true}}\n",
         'f:3:18: bgp.announce.pod-cidr: unknown key "pod-cidr"; did you mean "pod-cidrs"?'),
        (HEAD + "bgp: {router-id: '2001:db8::1'}\n",
         'f:3:18: bgp.router-id: found the string "2001:db8::1", expected an IPv4 address'),
        (HEAD + "operator: {cooldown: 30}\n",
         'f:3:22: operator.cooldown: found "30", expected a duration such as 30s, 5m, 12h or 400d'),
        (HEAD + "log: {level: warn}\n",
         'f:3:14: log.level: found "warn", expected info, debug, warning or error; did you mean "warning"?'),
        (HEAD + "egress: {liveness: {interval: 5ms}}\n",
         'f:3:31: egress.liveness.interval: found "5ms", expected an interval from 10ms to 60s'),
        (HEAD + "egress: {liveness: {interval: 0.1s}}\n",
         'f:3:31: egress.liveness.interval: found "0.1s", expected an interval from 10ms to 60s'),
        (HEAD + "egress: {liveness: {multiplier: 8}}\n",
         'f:3:33: egress.liveness.multiplier: found "8", expected an integer from 1 to 7'),
        *(
            (HEAD + f"egress: {{upstream-probe: {text}}}\n", f"f:3:{place}: egress.upstream-probe{message}")
            for text, place, message in (
                ("{require: all}", 26, ": found 0 targets, expected 1 to 16 under icmp, tcp and http"),
                ("{icmp: [gateway]}", 34, '.icmp[0]: found "gateway", expected an IP address'),
                ("{icmp: [192.0.2.1], http: 7}", 52, '.http: found "7", expected a list'),
                ("{tcp: ['2001:db8::1:443']}", 33,
                 '.tcp[0]: found the string "2001:db8::1:443", expected ADDRESS:PORT such as 203.0.113.1:443 or '
                 "[2001:db8::1]:443"),
                ("{tcp: ['[2001:db8::1:443']}", 33,
                 '.tcp[0]: found the string "[2001:db8::1:443", expected ADDRESS:PORT such as 203.0.113.1:443 or '
                 "[2001:db8::1]:443"),
                ("{tcp: ['192.0.2.1:0']}", 33,
                 '.tcp[0]: found the string "192.0.2.1:0", expected ADDRESS:PORT such as 203.0.113.1:443 or '
                 "[2001:db8::1]:443"),
                ("{http: ['http://example.com/']}", 34,
                 '.http[0]: found the string "http://example.com/", expected a URL with an address such as '
                 "http://203.0.113.1:8080/healthz or https://[2001:db8::1]/"),
                ("{icmp: [192.0.2.1], timeout: 3s}", 55,
                 ".timeout: the timeout, 3 s, is longer than the interval, 2 s"),
                ("{icmp: [192.0.2.1], require: some}", 55, '.require: found "some", expected any or all'),
                ("{icmp: [192.0.2.1], failure-threshold: 0}", 65,
                 '.failure-threshold: found "0", expected an integer from 1 to 100'),
                ("{ping: [192.0.2.1]}", 27,
                 '.ping: unknown key "ping", expected one of: failure-threshold, http, icmp, interval, require, '
                 "success-threshold, tcp, timeout"),
            )
        ),
        (HEAD + "store: {kind: etcd}\n", 'f:3:15: store.kind: found "etcd", expected files or kubernetes'),
    ],
)  # fmt: skip
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_config(text, "f")
    assert str(caught.value) == message


def test_a_file_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file or directory"):
        load_config(tmp_path / "none.yaml")


def test_the_brake_is_set_and_switched_off() -> None:
    head = "apiVersion: routerd.io/v1alpha1\nkind: Config\nbgp: {brake: "
    found = parse_config(head + "{percent: 30, paths: 100, hold: 1h, enabled: false}}\n")
    assert found.bgp.brake == BrakeConfig(enabled=False, percent=30, paths=100, hold=3600)
    with pytest.raises(InputError, match=r"bgp\.brake\.percent"):
        parse_config(head + "{percent: 100}}\n")
