"""The command line: help with examples, exit codes, one line per error, and answers from files and from an agent."""

from __future__ import annotations

import argparse
import asyncio
import csv
import errno
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerd import codes
from routerd.agent.settings import settings_of
from routerd.cli.main import COMMANDS, main
from routerd.cli.offline import snapshot_of, state_of
from routerd.cli.table import as_csv, table
from routerd.config import load_config
from routerd.formats.published.allocations import write_allocations
from routerd.model import Allocations, CloudInterface, NodeInterfaces, Refusal
from routerd.refs import Ref
from routerd.serve.api import Noted, agent_socket, answering, operator_socket
from routerd.tell.columns import COLUMNS
from routerd.tell.render import state_lines
from routerd.tell.status import AgentStatus, PeerStatus, Rounds, as_json
from routerd.tell.views import PeerView
from tests.models.cluster import SESSION

ROOT = Path(__file__).resolve().parents[3]

CLUSTER = """\
apiVersion: v1
kind: Node
metadata: {name: a, labels: {routerd.io/egress-gateway: ""}}
spec: {podCIDRs: [10.1.1.0/24]}
status: {addresses: [{type: InternalIP, address: 127.0.0.1}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {kubernetes.io/metadata.name: default}}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: default, labels: {app: web}}
spec: {nodeName: a}
status: {phase: Running, podIP: 10.1.1.2, podIPs: [{ip: 10.1.1.2}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {type: LoadBalancer, clusterIP: 10.96.0.10, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.1.1.2], nodeName: a, conditions: {ready: true}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: bgp-config, namespace: kube-system}
data:
  config.yaml: |
    peers:
    - {peer-address: 127.0.0.9, peer-asn: 64512, my-asn: 64512}
    address-pools:
    - {name: default, protocol: bgp, addresses: [192.0.2.0/30]}
---
apiVersion: cilium.io/v2alpha1
kind: CiliumEgressNATPolicy
metadata: {name: out}
spec:
  egress: [{podSelector: {matchLabels: {app: web}}}]
  destinationCIDRs: [203.0.113.0/24]
  egressSourceIP: 198.51.100.7
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "routerd.yaml"
    path.write_text(
        "apiVersion: routerd.io/v1alpha1\nkind: Config\nnode-name: a\n"
        f"run-dir: {tmp_path}/run\nstate-dir: {tmp_path}/state\nstore: {{manifests: {tmp_path}/manifests}}\n"
        'metrics-listen: ""\n'
    )
    return path


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    directory = tmp_path / "manifests"
    directory.mkdir()
    (directory / "cluster.yaml").write_text(CLUSTER)
    return directory


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


# --- help


@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_every_subcommand_has_help_with_examples_and_exit_codes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert done.value.code == 0
    examples = text.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    assert examples and all(line.strip().startswith("routerd ") for line in examples)
    assert any(f" {name}" in line for line in examples)
    assert "exit codes:\n  0  done" in text


def test_every_example_is_accepted_by_its_command() -> None:
    asked: list[str] = []

    def note(arguments: argparse.Namespace) -> int:
        asked.append(arguments.command.name)
        return 0

    noting = [replace(command, run=note) for command in COMMANDS]
    for command in COMMANDS:
        for example in command.examples:
            assert main(example.split(">")[0].split()[1:], noting) == 0
            assert asked.pop() == command.name


def test_the_documentation_names_every_subcommand_and_exit_code() -> None:
    text = (ROOT / "docs/cli.md").read_text()
    assert [command.name for command in COMMANDS if f"`routerd {command.name}" not in text] == []
    assert [code for code in codes.MEANINGS if f"| {code} |" not in text] == []


def test_a_wrong_command_line_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["show", "moon"])
    assert done.value.code == codes.USAGE
    assert "invalid choice: 'moon'" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("version") == 0
    assert capsys.readouterr().out.startswith("routerd 0.")


def test_version_as_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    run("version")
    said = capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        run("--version")
    assert (done.value.code, capsys.readouterr().out) == (codes.OK, said)


def test_starting_imports_nothing_heavy() -> None:
    code = "import sys, routerd.cli.main; print([m for m in ('pyroute2', 'yaml', 'asyncio') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_note_about_the_ledger_is_told_beside_it(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"address": "192.0.2.1", "owner": "svc/d/web", "pool": "p", "state": "used", "since": "1970-01-01T00:00:01Z"}

    async def story() -> int:
        async with answering(operator_socket(config.parent / "run"), lambda request: Noted([row], "may be old")):
            return await asyncio.to_thread(run, "--config", str(config), "ledger", "-o", "json")

    assert asyncio.run(story()) == codes.OK
    out, err = capsys.readouterr()
    assert json.loads(out) == [row]
    assert err == "routerd: may be old\n"


@pytest.mark.parametrize(
    ("arguments", "request_"),
    [
        (["192.0.2.7:50123"], {"address": "192.0.2.7", "port": 50123, "at": None}),
        (["[2001:db8::7]:1", "--at", "1970-01-01T01:00:00+01:00"], {"address": "2001:db8::7", "port": 1, "at": 0.0}),
    ],
)
def test_who_had_a_port(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], request_: dict[str, Any]
) -> None:
    row = {"egress_ip": "192.0.2.7", "ports": "1-2", "node": "a", "since": "1970-01-01T00:00:01Z", "until": ""}
    asked: list[object] = []

    async def story() -> int:
        def answer(request: dict[str, Any]) -> Noted:
            asked.append(request)
            return Noted([row] if len(asked) == 1 else [])

        async with answering(operator_socket(config.parent / "run"), answer):
            command = ["--config", str(config), "who", *arguments]
            first = await asyncio.to_thread(run, *command, "-o", "json")
            return first + 10 * await asyncio.to_thread(run, *command)

    assert asyncio.run(story()) == codes.OK + 10 * codes.REFUSED
    assert asked == [{"get": "who", **request_}] * 2
    out, err = capsys.readouterr()
    assert json.loads(out) == [row]
    assert "is no node's" in err


@pytest.mark.parametrize(
    "arguments",
    [["192.0.2.7"], ["web:80"], ["192.0.2.7:70000"], ["2001:db8::7:1"], ["192.0.2.7:1", "--at", "now"],
     ["192.0.2.7:1", "--at", "2026-11-29T21:00:00"]],
)  # fmt: skip
def test_what_is_no_port_or_no_time_is_said(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as done:
        run("who", *arguments)
    assert done.value.code == codes.USAGE
    assert "expected" in capsys.readouterr().err


# --- errors are one line


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--config", "/nonexistent/routerd.yaml", "show", "peers"], codes.REFUSED, "/nonexistent/routerd.yaml: "),
        (["show", "peers"], codes.UNREACHABLE, "is `routerd agent` running?"),
        (["status"], codes.UNREACHABLE, "agent.sock"),
        (["show", "peers", "--manifests", "/nonexistent"], codes.REFUSED, "/nonexistent: is not a directory"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(
    arguments: list[str], code: int, words: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments if "--config" in arguments else ["--config", str(config), *arguments]
    assert run(*given) == code
    error = capsys.readouterr().err
    assert error.startswith("routerd: ") and error.count("\n") == 1
    assert words in error


BROKEN = ("colour: red\n", "egress: {enabled: maybe}\n", "log: [}\n")


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_wrong_configuration_is_told_and_the_agent_is_asked_all_the_same(
    mistake: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = config.read_text()
    config.write_text(given + mistake)
    code, output, error = told(config, agent_socket(config.parent / "run"), capsys, "release-brake")
    place = rf"routerd: {re.escape(str(config))}:{len(given.splitlines()) + 1}"
    assert re.match(place, error), error
    assert error.count("\n") == 1
    assert (code, output) == (codes.OK, "released 3 paths\n")


def test_a_socket_that_is_named_is_asked(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text("no configuration\n")
    named = config.parent / "elsewhere.sock"
    assert told(config, named, capsys, "release-brake", "--socket", named) == (codes.OK, "released 3 paths\n", "")


def told(config: Path, socket: Path, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code and both outputs of a command, while on `socket` an agent releases 3 paths."""

    async def play() -> int:
        async with answering(socket, lambda request: 3 if request == {"do": "release-brake"} else 0):
            return await asyncio.to_thread(run, "--config", str(config), *words)

    code = asyncio.run(play())
    return code, *capsys.readouterr()


def test_a_wrong_configuration_stops_a_daemon(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text() + "colour: red\n")
    assert run("--config", config, "operator") == codes.REFUSED
    error = capsys.readouterr().err
    assert f"{config}:" in error and "colour" in error


def test_a_machine_without_privileges_exits_3(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "status").write_text("CapEff:\t0000000000000000\n")
    real = __import__("routerd.daemon.preflight", fromlist=["privileges"]).privileges
    monkeypatch.setattr("routerd.daemon.preflight.privileges", lambda needed: real(needed, tmp_path / "status"))
    assert run("--config", config, "agent") == codes.ENVIRONMENT
    assert "routerd: no CAP_NET_ADMIN and CAP_BPF" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "line", "key"),
    [
        ("agent", "state-dir: {}/x", "state-dir"),
        ("agent", "run-dir: {}/x", "run-dir"),
        ("speaker", "run-dir: {}/x", "run-dir"),
        ("run", "run-dir: {}/x", "run-dir"),
        ("operator", "state-dir: {}/x", "state-dir"),
        ("operator", "operator: {{ledger: {}/x/ledger}}", "operator.ledger"),
    ],
)
def test_a_directory_that_cannot_be_made_is_named_with_its_key(
    command: str, line: str, key: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no directory")
    name = line.partition(":")[0]
    others = [other for other in config.read_text().splitlines() if not other.startswith(name)]
    config.write_text("\n".join([*others, "egress: {enabled: false}", line.format(tmp_path / "file")]) + "\n")
    assert run("--config", config, command) == codes.ENVIRONMENT
    error = capsys.readouterr().err.splitlines()[-1]
    place = f"{config}:{len(others) + 2}: {key}"
    assert error == f"routerd: {place}: cannot make the directory {tmp_path}/file/x: Not a directory"


def test_a_default_directory_that_cannot_be_made_is_named_with_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    file = tmp_path / "routerd.yaml"
    file.write_text("apiVersion: routerd.io/v1alpha1\nkind: Config\n")
    assert run("--config", file, "operator") == codes.ENVIRONMENT
    error = capsys.readouterr().err.splitlines()[-1]
    expected = "state-dir (by default): cannot make the directory /var/lib/routerd: Permission denied"
    assert error == f"routerd: {file}: {expected}"


# --- answers from files


def test_show_from_files(config: Path, manifests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "paths", "-o", "json", "--manifests", manifests, "--config", config) == 0
    paths = json.loads(capsys.readouterr().out)
    assert [(path["prefix"], path["owners"]) for path in paths] == [
        ("192.0.2.0/32", "svc/default/web"),
        ("198.51.100.7/32", "egress/1"),
    ]


def test_the_firewall_administrators_list(config: Path, manifests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "egress-ips", "-o", "csv", "--manifests", manifests, "--config", config) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["egress_ip"], row["policies"], row["active_gateways"]) for row in rows] == [
        ("198.51.100.7", "CiliumEgressNATPolicy/out", "a")
    ]


@pytest.mark.parametrize("kind", COLUMNS)
def test_everything_can_be_shown_from_files(
    kind: str, config: Path, manifests: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("show", kind, "--manifests", manifests, "--config", config) == 0
    heading = capsys.readouterr().out.splitlines()[0].split()
    assert heading == [column.upper().replace("_", "-") for column in COLUMNS[kind]]


def test_why_from_files_and_its_exit_code(config: Path, manifests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("why", "svc/default/web", "--manifests", manifests, "--config", config) == 0
    assert run("why", "pod/default/web-0", "--manifests", manifests, "--config", config) == 0
    assert "as 198.51.100.7 by gateway a" in capsys.readouterr().out
    assert run("why", "pod/default/web-0", "--manifests", manifests, "--node", "b", "--config", config) == codes.REFUSED
    assert "UnknownNode" in capsys.readouterr().out


@pytest.mark.parametrize(("destinations", "code"), [("0.0.0.0/0, '::/0'", codes.OK), ("'::/0'", codes.REFUSED)])
def test_a_policy_that_is_in_effect_in_one_family_is_no_refusal(
    destinations: str, code: int, config: Path, manifests: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other family is told all the same."""
    (manifests / "cluster.yaml").write_text(
        CLUSTER.replace("destinationCIDRs: [203.0.113.0/24]", f"destinationCIDRs: [{destinations}]")
    )
    assert run("why", "pod/default/web-0", "--manifests", manifests, "--config", config) == code
    assert "UnsupportedFamily" in capsys.readouterr().out


def test_plan_from_files_compares_with_nothing_when_no_agent_runs(
    config: Path, manifests: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", "--manifests", manifests, "--config", config) == 0
    said = capsys.readouterr()
    assert "+ path 127.0.0.9 192.0.2.0/32 next-hop self local-pref 0" in said.out.splitlines()
    assert "+ pod 10.1.1.2 CiliumEgressNATPolicy/out" in said.out.splitlines()
    assert "compared with nothing" in said.err


@pytest.mark.parametrize(
    ("old", "new", "lines"), [("s3cret", "s3cret", 0), ("s3cret", "s3crets", 2), ("", "s3cret", 2)]
)
def test_plan_from_files_tells_another_password_without_showing_it(
    old: str, new: str, lines: int, config: Path, manifests: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_password(password: str) -> str:
        return CLUSTER.replace("my-asn: 64512}", f"my-asn: 64512, password: {password}}}") if password else CLUSTER

    (manifests / "cluster.yaml").write_text(with_password(old))
    loaded = load_config(config)
    settings = settings_of(loaded)
    state = state_of(snapshot_of(manifests, loaded), settings, loaded)
    (manifests / "cluster.yaml").write_text(with_password(new))

    async def story() -> int:
        def agent(request: dict[str, Any]) -> list[str]:
            return state_lines(state, request["key"].encode())

        async with answering(agent_socket(config.parent / "run"), agent):
            return await asyncio.to_thread(run, "plan", "--manifests", manifests, "--config", config)

    assert asyncio.run(story()) == codes.OK
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("+", "-"))]
    assert [line.split()[1:3] for line in said] == [["peer", "127.0.0.9"]] * lines
    assert "s3cret" not in "".join(said)


def test_plan_from_files_leaves_the_interfaces_that_a_cloud_gave(config: Path, manifests: Path) -> None:
    config.write_text(config.read_text() + "cloud: {provider: aws, cluster: c}\n")
    loaded = load_config(config)
    one = CloudInterface("02:00:5e:10:00:01", IPv4Interface("10.0.1.5/24"), (IPv4Network("10.0.1.6/32"),))
    gave = Allocations(interfaces=(NodeInterfaces("a", (one,)),))
    (manifests / loaded.store.allocations.name).write_text(write_allocations(gave))
    lines = state_lines(state_of(snapshot_of(manifests, loaded), settings_of(loaded), loaded), b"")
    assert [line for line in lines if one.mac in line] != []


def test_plan_changes_no_file(config: Path, manifests: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    run("plan", "--manifests", manifests, "--config", config)
    assert sorted(tmp_path.rglob("*")) == before


def test_check_says_what_is_wrong(config: Path, manifests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", manifests) == 0
    (manifests / "bad.yaml").write_text("apiVersion: v1\nkind: Node\nmetadata: {name: [1]}\n")
    assert run("check", manifests) == codes.REFUSED
    assert "bad.yaml:3" in capsys.readouterr().out


# --- tables


def test_tables_are_aligned_and_say_when_a_value_is_missing() -> None:
    rows = [{"name": "a", "ready": True, "local_as": None}, {"name": "longer", "ready": False, "local_as": 1}]
    assert table(("name", "ready", "local_as"), rows) == "NAME    READY  LOCAL-AS\na       yes    -\nlonger  no     1\n"


def test_a_node_that_the_files_do_not_have_is_told(
    config: Path, manifests: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("show", "paths", "-o", "csv", "--manifests", manifests, "--node", "nope", "--config", config) == 0
    output, error = capsys.readouterr()
    assert len(output.splitlines()) == 1
    assert error == f"routerd: no Node nope in {manifests}, so nothing is its: --node names another (a)\n"


def test_what_is_only_noted_is_no_no(config: Path, manifests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everywhere = CLUSTER.replace("destinationCIDRs: [203.0.113.0/24]", "destinationCIDRs: [0.0.0.0/0]")
    (manifests / "cluster.yaml").write_text(everywhere)
    assert run("why", "pod/default/web-0", "--manifests", manifests, "--config", config) == 0
    firsts = {line.split()[0] for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")}
    assert firsts == {"YES", "yes", "note"}


MESSAGE = "pool default has no free address: add a block, or release what is reserved (routerd ledger)"


def test_a_line_of_a_table_has_at_most_100_characters_where_words_allow_it() -> None:
    rows = [
        {"severity": "error", "object": "svc/a-namespace/a-service", "reason": "PoolExhausted", "message": MESSAGE},
        {"severity": "info", "object": "svc/d/b", "reason": "NodeExcluded", "message": ""},
    ]
    assert (
        table(("severity", "object", "reason", "message"), rows)
        == """\
SEVERITY  OBJECT                     REASON         MESSAGE
error     svc/a-namespace/a-service  PoolExhausted  pool default has no free address: add a block,
                                                    or release what is reserved (routerd ledger)
info      svc/d/b                    NodeExcluded   -
"""
    )


@given(st.lists(st.tuples(*[st.text(st.sampled_from("ab ,"), max_size=90)] * 3), max_size=4), st.integers(10, 120))
def test_folding_loses_nothing(cells: list[tuple[str, str, str]], width: int) -> None:
    columns = ("one", "two", "three")
    rows = [dict(zip(columns, line, strict=True)) for line in cells]
    text = table(columns, rows, width)
    for letter in "ab,":
        assert text.count(letter) == sum(cell.count(letter) for line in cells for cell in line)
    longest = [
        max([len(name), *(len(p) for c in column for p in re.findall("[^ ,]*,?", c))])
        for name, column in zip(columns, zip(*cells, strict=True) if cells else [()] * 3, strict=True)
    ]
    assert max(map(len, text.splitlines())) <= max(width, sum(longest) + 4)


def test_csv_quotes_what_needs_it() -> None:
    assert as_csv(("a", "b"), [{"a": "x,y", "b": True}]) == 'a,b\n"x,y",true\n'


@pytest.mark.parametrize(
    ("severities", "line"),
    [
        ((), "ready     yes"),
        (("info",), "ready     yes"),
        (("error", "warning", "warning"), "ready     yes, with 1 error and 2 warnings, see below"),
    ],
)
def test_status_counts_what_is_refused_where_people_look_first(
    severities: tuple[str, ...], line: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node that is ready has done what it can: what it cannot is easily overlooked."""
    names = {"error": "UplinkMissing", "warning": "ForwardingOff", "info": "NodeExcluded"}
    refusals = tuple(Refusal(Ref("node", name=str(n)), names[each], "") for n, each in enumerate(severities))
    found = as_json(replace(AgentStatus("a", "0", refusals=refusals), rounds=Rounds(whole=1)))

    async def play() -> int:
        async with answering(agent_socket(config.parent / "run"), lambda request: found):
            return await asyncio.to_thread(run, "--config", str(config), "status")

    assert asyncio.run(play()) == 0
    assert line in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("override", ["", "CiliumBGPNodeConfigOverride/a"])
def test_status_names_a_node_s_override_of_a_peer(
    override: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peers = (PeerStatus("tor", PeerView(SESSION), override=override), PeerStatus("far", PeerView(SESSION)))
    found = as_json(AgentStatus("a", "0", rounds=Rounds(whole=1), peers=peers))

    async def play() -> int:
        async with answering(agent_socket(config.parent / "run"), lambda request: found):
            return await asyncio.to_thread(run, "--config", str(config), "status")

    assert asyncio.run(play()) == 0
    output = capsys.readouterr().out
    assert ("OVERRIDE" in output, override in output) == (bool(override), True)
