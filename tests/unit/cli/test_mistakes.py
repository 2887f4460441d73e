"""`routerd check` tells every mistake of an object: the reader's first one, and those that stand behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerd.cli.main import main
from routerd.cli.mistakes import MOST, mistakes
from routerd.config import read_config
from routerd.errors import InputError
from routerd.formats.compose import documents, value_of
from routerd.formats.native import read_address_pool, read_egress_policy

DATA = Path(__file__).parent / "data"
META = {"apiVersion": "routerd.io/v1alpha1", "kind": "AddressPool", "metadata": {"name": "a"}}
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 70000) | st.sampled_from(["", "x", "192.0.2.0/24", "egress", "TCP"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=4,
)
POOL = {
    "blocks": st.just(["192.0.2.0/28", "198.51.100.1"]) | ANY, "uses": st.just(["egress"]) | ANY, "use": ANY,
    "autoAssign": st.just(True) | ANY, "priority": st.just(3) | ANY, "protocol": st.just("bgp") | ANY,
    "advertisements": st.just([{"aggregationLength": 32}]) | ANY,
}  # fmt: skip


def test_every_mistake_of_every_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(DATA)
    assert main(["check", "mistakes.yaml", "routerd.yaml"]) == 1
    assert capsys.readouterr().out == (DATA / "mistakes.txt").read_text()


@given(st.fixed_dictionaries({}, optional=POOL))
def test_the_first_mistake_is_told_and_what_is_right_has_none(spec: dict[str, object]) -> None:
    value = value_of({**META, "spec": spec})
    found = mistakes(value, read_address_pool)
    try:
        read_address_pool(value)
    except InputError as first:
        assert str(first) in map(str, found)
        assert len(set(map(str, found))) == len(found) <= MOST
    else:
        assert found == []


def test_what_follows_from_a_mistake_is_none() -> None:
    (policy,) = documents("""\
apiVersion: routerd.io/v1alpha1
kind: EgressPolicy
metadata: {name: a}
spec: {selectors: [{podSelektor: {}}], destinationCIDRs: [x], pool: [], ports: [{port: 1}]}
""")
    assert [error.key for error in mistakes(policy, read_egress_policy)] == [
        "spec.selectors[0].podSelektor", "spec.destinationCIDRs[0]", "spec.pool", "spec.ports[0]",
    ]  # fmt: skip


def test_a_hundred_mistakes_are_not_all_told() -> None:
    (config,) = documents(
        "apiVersion: routerd.io/v1alpha1\nkind: Config\n" + "".join(f"key{n}: x\n" for n in range(100))
    )
    assert len(mistakes(config, read_config)) == MOST


def test_a_list_that_is_too_long_is_one_mistake_among_others() -> None:
    cidrs = ", ".join(["192.0.2.0/24"] * 2000)
    (policy,) = documents(f"""\
apiVersion: routerd.io/v1alpha1
kind: EgressPolicy
metadata: {{name: a}}
spec: {{pool: p, selectors: [{{podSelektor: {{}}}}], destinationCIDRs: [{cidrs}]}}
""")
    found = mistakes(policy, read_egress_policy)
    assert [error.key for error in found] == ["spec.selectors[0].podSelektor", "spec.destinationCIDRs"]
