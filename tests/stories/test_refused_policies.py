"""A policy in force is edited into what is refused: its pods stay selected, in both stores, over restarts.

Each story edits the policy, restarts the agent, then the operator, and says after each what becomes of the packets of
the pod that it selects. "untouched" is a part that is not known: the datapath stays as it was.
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol, cast

import pytest
import yaml

from routerd.cluster.assign import assign
from routerd.cluster.ledger import Ledger
from routerd.formats.kinds import POLICY_KINDS
from routerd.formats.published.whole import AllocationsWriter
from routerd.model import Allocations, NodeReport, Snapshot
from routerd.node.desired import LocalFacts, NodeState, Settings, compose
from routerd.store.embedded import manifests
from routerd.store.embedded.store import FileStore
from routerd.store.kubernetes.client import Client
from routerd.store.kubernetes.documents import allocations_data
from routerd.store.kubernetes.resources import ALLOCATIONS
from routerd.store.kubernetes.store import KubernetesStore, Scope

CLUSTER = """\
apiVersion: v1
kind: Node
metadata: {name: worker, labels: {routerd.io/egress-gateway: ""}}
spec: {podCIDR: 10.244.1.0/24}
status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: v1
kind: Pod
metadata: {name: shop, namespace: default, labels: {app: shop}}
spec: {nodeName: worker}
status: {podIP: 10.244.1.5}
"""
POD, WORLD = ip_address("10.244.1.5"), ip_address("203.0.113.10")
HEAD = "apiVersion: {}\nkind: {}\nmetadata: {{name: p}}\nspec:\n"
COVERED = "- podSelector: {matchLabels: {app: shop}}\n  destinationCIDRs: [203.0.113.0/24]\n"
POLICIES = {
    "EgressPolicy": HEAD.format("routerd.io/v1alpha1", "EgressPolicy")
    + f"  selectors:\n  {COVERED}  egressIP: 10.168.60.100\n",
    "CiliumEgressNATPolicy": HEAD.format("cilium.io/v2alpha1", "CiliumEgressNATPolicy")
    + f"  egress:\n  {COVERED}  egressSourceIP: 10.168.60.100\n",
    "CiliumEgressGatewayPolicy": HEAD.format("cilium.io/v2", "CiliumEgressGatewayPolicy")
    + f"  selectors:\n  {COVERED}  egressGateway:\n    nodeSelector: {{}}\n    egressIP: 10.168.60.100\n",
}
GOES_ON, DROPPED, UNTOUCHED, GONE = "as 10.168.60.100", "dropped", "untouched", "as 10.244.1.5"

# Who never saw the good version drops what the refused one covers.
EXIT = {
    "an egress IP that nobody can have": ("10.168.60.100", "224.0.0.1"),
    "an egress IP that is none": ("10.168.60.100", "10.168.60.1000"),
    "no egress IP": ("IP: 10.168.60.100", "IP:"),
}
# What it covers cannot be read: who never saw the good version leaves everything as it is.
COVERAGE = {
    "no destinations": ("[203.0.113.0/24]", "[]"),
    "a destination that is none": ("203.0.113.0/24", "203.0.113.0/33"),
    "a label that is none": ("app: shop", "'a b!': shop"),
    "a misspelt pod selector": ("podSelector", "podSelectr"),
    "a misspelt list of destinations": ("destinationCIDRs", "destinationCIDR"),
    "a key twice": ("  destinationCIDRs", "  destinationCIDRs: []\n  destinationCIDRs"),
    "no spec": ("spec:", "later:"),
}
OF_ONE_KIND = {
    ("EgressPolicy", "an unknown key"): (("  egressIP", "  x: y\n  egressIP"), DROPPED),
    ("EgressPolicy", "two exits"): (("  egressIP", "  pool: a\n  egressIP"), DROPPED),
    ("EgressPolicy", "misspelt gateways"): (("  egressIP", "  gateways: {nodeSelectr: {}}\n  egressIP"), DROPPED),
    ("EgressPolicy", "misspelt selectors"): (("selectors", "selectrs"), UNTOUCHED),
    ("CiliumEgressGatewayPolicy", "an interface"): (("egressIP: 10.168.60.100", "interface: eth0"), DROPPED),
    ("CiliumEgressGatewayPolicy", "both"): (("egressIP:", "interface: eth0\n    egressIP:"), DROPPED),
    ("CiliumEgressGatewayPolicy", "no gateway"): (("egressGateway", "egressGatway"), DROPPED),
    ("CiliumEgressGatewayPolicy", "misspelt selectors"): (("selectors", "selectrs"), UNTOUCHED),
    ("CiliumEgressNATPolicy", "misspelt selectors"): (("egress:", "egres:"), UNTOUCHED),
}
EDITS = (
    [(kind, what, edit, DROPPED) for kind in POLICIES for what, edit in EXIT.items()]
    + [(kind, what, edit, UNTOUCHED) for kind in POLICIES for what, edit in COVERAGE.items()]
    + [(kind, what, edit, after) for (kind, what), (edit, after) in OF_ONE_KIND.items()]
)


class Store(Protocol):
    def write(self, text: str | None) -> None: ...

    def publish(self, allocations: Allocations) -> None: ...

    def restart(self) -> None: ...

    def snapshot(self) -> Snapshot: ...


class Files:
    """The cluster in one file, the policy in another."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._allocations = directory, directory / "allocations.yaml"
        (directory / "cluster.yaml").write_text(CLUSTER)
        self._operator = FileStore(directory, self._allocations)
        self.restart()

    def write(self, text: str | None) -> None:
        path = self._directory / "policy.yaml"
        path.unlink() if text is None else path.write_text(text)

    def publish(self, allocations: Allocations) -> None:
        self._operator.write_allocations(allocations)

    def restart(self) -> None:
        self._store = FileStore(self._directory, self._allocations)

    def snapshot(self) -> Snapshot:
        self._store.load()
        return self._store.load()  # a loss is believed at the second look


class Server:
    """What an API server tells, without one."""

    def __init__(self, _directory: Path) -> None:
        self._objects: dict[tuple[str, str], dict[str, Any]] = {}
        self._version = 0
        self._take(CLUSTER)
        self.restart()

    def write(self, text: str | None) -> None:
        before = set(self._objects)
        now = self._take(text or "")
        for key in before - now:
            if key[0] in POLICY_KINDS:
                self._of(key[0]).remove(self._objects.pop(key))
        for key in now:
            self._of(key[0]).put(self._objects[key])

    def publish(self, allocations: Allocations) -> None:
        data = dict(allocations_data(AllocationsWriter().written(allocations)))
        self._take(
            yaml.safe_dump({"kind": "ConfigMap", "metadata": {"name": ALLOCATIONS, "namespace": "r"}, "data": data})
        )
        self._of("ConfigMap").put(self._objects["ConfigMap", ALLOCATIONS])

    def restart(self) -> None:
        self._store = KubernetesStore(cast(Client, None), Scope.of_agent("worker", "r"))
        for each in self._store.reflectors:
            raws = [raw for (kind, _), raw in self._objects.items() if kind == each.collection.resource.kind.name]
            is_ours = each.collection.resource.namespace in ("", "r")
            each.collection.replace([each.collection.read(raw) for raw in raws] if is_ours else [])

    def snapshot(self) -> Snapshot:
        for each in self._store.reflectors:
            each.on_change()
        self._store.merge()
        return self._store.snapshot()

    def _take(self, text: str) -> set[tuple[str, str]]:
        keys = set()
        for raw in filter(None, yaml.load_all(text, _Texts)):
            self._version += 1
            key = raw["kind"], raw["metadata"]["name"]
            raw["metadata"] |= {"uid": key[1], "resourceVersion": str(self._version)}
            self._objects[key] = raw
            keys.add(key)
        return keys

    def _of(self, kind: str) -> Any:
        """The collection, of ConfigMaps that of our namespace."""
        return [each.collection for each in self._store.reflectors if each.collection.resource.kind.name == kind][-1]


class _Texts(yaml.SafeLoader):
    """Of a key that stands twice a server keeps the first here, so that the mistake is not lost."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        node.value = list({key.value: (key, value) for key, value in reversed(node.value)}.values())[::-1]
        return super().construct_mapping(node, deep)


class World:
    def __init__(self, store: Store) -> None:
        self.store, self._ledger = store, Ledger()
        self.refusals: list[str] = []

    def write(self, text: str | None) -> str:
        self.store.write(text)
        return self.told()

    def decide(self) -> str:
        decision = assign(self.store.snapshot(), self._ledger, {"worker": NodeReport("worker")}, 1000.0)
        if decision.synced:
            self._ledger = decision.ledger
            self.store.publish(decision.allocations)
        return self.told()

    def restart(self) -> str:
        self.store.restart()
        return self.told()

    def told(self) -> str:
        """What becomes of the pod's packets."""
        state = compose(self.store.snapshot(), Settings("worker"), LocalFacts())
        self.refusals = [f"{refusal.object} {refusal.message}" for refusal in state.refusals]
        return _fate(state)


def _fate(state: NodeState) -> str:
    egress = state.egress
    if egress is None:
        return UNTOUCHED
    policies = [egress.policies[name] for name in egress.pods[POD]]
    covering = [each for each in policies if any(WORLD in network for network in each.destinations)]
    if not covering:
        return f"as {POD}"
    group = egress.groups.get(covering[0].group)
    own = [address for address in group.egress_ips if address.version == POD.version] if group else []
    return f"as {own[0]}" if own and group is not None and group.gateways else DROPPED


@pytest.fixture(params=[Files, Server], ids=["files", "server"])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(manifests, "GRACE", 0.0)
    return World(request.param(tmp_path))


def in_force(world: World, kind: str) -> str:
    text = POLICIES[kind]
    world.write(text)
    assert world.decide() == GOES_ON
    return text


@pytest.mark.parametrize(("kind", "what", "edit", "after_restart"), EDITS, ids=lambda value: str(value)[:40])
def test_a_refused_policy_lets_nothing_out(
    world: World, kind: str, what: str, edit: tuple[str, str], after_restart: str
) -> None:
    good = in_force(world, kind)
    assert edit[0] in good, what
    assert world.write(good.replace(*edit)) == GOES_ON
    assert any(
        each.startswith(f"{kind}/p ") and each.endswith("(what it last said stays in force)") for each in world.refusals
    )
    assert world.decide() == GOES_ON
    assert world.restart() == after_restart
    assert any(each.startswith(f"{kind}/p ") for each in world.refusals)
    assert world.decide() == after_restart  # the operator was restarted, too
    assert world.write(good) in (GOES_ON, DROPPED)
    assert world.decide() == GOES_ON


@pytest.mark.parametrize("kind", POLICIES)
def test_a_policy_that_is_deleted_goes(world: World, kind: str) -> None:
    in_force(world, kind)
    assert world.write(None) == GONE
    assert world.decide() == GONE
    assert world.refusals == []


@pytest.mark.parametrize("kind", POLICIES)
def test_a_refused_policy_that_is_deleted_goes(world: World, kind: str) -> None:
    good = in_force(world, kind)
    world.write(good.replace("[203.0.113.0/24]", "[]"))
    assert world.restart() == UNTOUCHED
    assert world.write(None) == GONE
    assert world.refusals == []


@pytest.mark.parametrize("kind", POLICIES)
def test_a_second_mistake_lets_nothing_out_either(world: World, kind: str) -> None:
    first = in_force(world, kind).replace("10.168.60.100", "127.0.0.1")
    world.write(first)
    assert world.restart() == DROPPED
    assert world.decide() == DROPPED
    assert world.write(first.replace("[203.0.113.0/24]", "[]")) == DROPPED
    assert world.restart() == UNTOUCHED
    assert world.decide() == UNTOUCHED
    assert world.write(first) == DROPPED


OF_THE_OPERATOR = {
    "an unknown pool": ("EgressPolicy", "egressIP: 10.168.60.100", "pool: nope"),
    "no gateway": ("CiliumEgressGatewayPolicy", "nodeSelector: {}", "nodeSelector: {matchLabels: {a: b}}"),
    **{f"the other family, {kind}": (kind, "10.168.60.100", "'2001:db8::1'") for kind in POLICIES},
}


@pytest.mark.parametrize("what", OF_THE_OPERATOR)
def test_what_the_operator_refuses_is_dropped_and_a_mistake_on_top_lets_nothing_out(world: World, what: str) -> None:
    kind, old, new = OF_THE_OPERATOR[what]
    text = in_force(world, kind).replace(old, new)
    assert world.write(text) in (GOES_ON, DROPPED)
    assert world.decide() == DROPPED
    assert world.restart() == DROPPED
    assert world.write(text.replace("[203.0.113.0/24]", "[]")) == DROPPED
    assert world.restart() == UNTOUCHED
    assert world.write(text) == DROPPED
    assert world.write(None) == GONE


@pytest.mark.parametrize("kind", POLICIES)
def test_a_policy_that_was_never_good_is_dropped_as_far_as_it_can_be_read(world: World, kind: str) -> None:
    good = POLICIES[kind]
    world.write(good.replace("10.168.60.100", "127.0.0.1"))
    assert world.decide() == DROPPED
    assert [each.rpartition(" (")[2] for each in world.refusals] == ["what it covers is dropped)"]
    assert world.write(good.replace("[203.0.113.0/24]", "[]")) == DROPPED
    assert [each.rpartition(" (")[2] for each in world.refusals] == ["what it last covered is dropped)"]


@pytest.mark.parametrize("kind", POLICIES)
def test_a_policy_that_never_said_what_it_covers_covers_nothing(world: World, kind: str) -> None:
    world.write(POLICIES[kind].replace("[203.0.113.0/24]", "[]"))
    assert world.decide() == GONE
    assert [each.rpartition(" (")[2] for each in world.refusals] == ["nothing of it is in force)"]


# --- files alone: an API server knows its kinds, and has no empty objects


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(manifests, "GRACE", 0.0)
    return World(Files(tmp_path))


SERVICE = "---\napiVersion: v1\nkind: Service\nmetadata: {name: p}\nspec: {ports: [{port: 80}]}\n"


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("text", ["", "# p\n", "---\n"], ids=["0 bytes", "a comment", "no document"])
def test_an_emptied_file_lets_nothing_out_until_it_is_deleted(files: World, kind: str, text: str) -> None:
    good = in_force(files, kind)
    assert files.write(text) == GOES_ON
    assert "(what the file last said stays in force)" in str(files.refusals)
    assert files.decide() == GOES_ON
    assert files.restart() == UNTOUCHED
    assert files.decide() == UNTOUCHED
    assert "delete the manifests that are empty" in str(files.refusals)
    assert files.write(good) == GOES_ON
    files.write("")
    files.restart()
    assert files.write(None) == GONE
    assert files.decide() == GONE
    assert files.refusals == []


@pytest.mark.parametrize("kind", POLICIES)
def test_a_file_that_was_always_empty_keeps_nothing(files: World, kind: str, tmp_path: Path) -> None:
    (tmp_path / "notes.yaml").write_text("# nothing yet\n")
    in_force(files, kind)
    assert files.write(None) == GONE
    assert files.decide() == GONE


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("beside", ["", SERVICE], ids=["alone", "beside a service of its name"])
def test_a_policy_that_is_taken_out_of_a_file_with_other_content_goes(files: World, kind: str, beside: str) -> None:
    files.write(POLICIES[kind] + "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: p}\n" + beside)
    assert files.decide() == GOES_ON
    assert files.write("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: p}\n" + beside) == GONE
    assert files.decide() == GONE


@pytest.mark.parametrize("kind", POLICIES)
def test_a_refused_policy_that_is_taken_out_of_a_file_with_another_of_its_name_goes(files: World, kind: str) -> None:
    beside = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: p}\n"
    files.write(POLICIES[kind] + beside)
    assert files.decide() == GOES_ON
    assert files.write(POLICIES[kind].replace("[203.0.113.0/24]", "[]") + beside) == GOES_ON
    assert files.write(beside) == GONE


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize(
    "edit", [("Policy\n", "Polcy\n"), ("kind: ", "kind: x"), (".io/", ".oi/"), ("apiVersion: ", "apiVersion: v1 #")]
)
def test_a_misspelt_kind_lets_nothing_out(files: World, kind: str, edit: tuple[str, str]) -> None:
    good = in_force(files, kind)
    assert files.write(good.replace(*edit)) == GOES_ON
    assert f'did you mean "{POLICY_KINDS[kind].api_version}", "{kind}"?' in str(files.refusals)
    assert files.decide() == GOES_ON
    assert files.restart() == UNTOUCHED
    assert files.decide() == UNTOUCHED
    assert files.write(good) == GOES_ON


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize(
    "other", ["example.com/v1\nkind: Other", "isovalent.com/v1\nkind: IsovalentEgressGatewayPolicy"]
)
def test_a_document_that_becomes_another_kind_lets_nothing_out(files: World, kind: str, other: str) -> None:
    good = in_force(files, kind)
    first, second = good.split("\n")[:2]
    edited = good.replace(f"{first}\n{second}", f"apiVersion: {other}")
    for text in (edited, edited + "\n"):
        assert files.write(text) == GOES_ON
        assert files.decide() == GOES_ON
    assert any(each.startswith(f"{kind}/p ") for each in files.refusals)
    assert files.write(None) == GONE


@pytest.mark.parametrize("kind", POLICIES)
def test_a_mistake_of_one_policy_costs_its_neighbours_nothing(files: World, kind: str) -> None:
    good = POLICIES[kind]
    files.write(good.replace("203.0.113.0/24", "nonsense").replace("name: p", "name: q") + "---\n" + good)
    assert files.decide() == GOES_ON
    assert files.restart() == GOES_ON
