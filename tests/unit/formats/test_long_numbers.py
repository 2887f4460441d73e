"""Numbers with more digits than Python reads, and mistakes of ours in reading: they cost the object, not the daemon."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from routerd.config import parse_config
from routerd.errors import InputError
from routerd.formats import kinds
from routerd.formats.legacy_bgp import Dialect, as_json
from routerd.formats.legacy_bgp.golang import parse_duration, parse_uint
from routerd.store.kubernetes.objects import Collection
from routerd.store.kubernetes.resources import CONFIG_MAPS, POOLS, Resource
from tests.models.manifests import pool, read_text, reasons, store_of

LONG = "9" * 5000
LEGACY = "address-pools:\n- {{name: a, protocol: bgp, addresses: [192.0.2.0/24], bgp-advertisements: [{{{0}}}]}}\n"


@pytest.mark.parametrize("number", [LONG, "0" * 5000 + "1"])
@pytest.mark.parametrize("field", ["localPref: {0}", 'communities: ["64512:{0}"]', "aggregationLength: {0}"])
def test_a_number_of_thousands_of_digits_is_an_input_error(field: str, number: str) -> None:
    text = pool("a").replace("]}", "], advertisements: [{" + field.format(number) + "}]}")
    with pytest.raises(InputError, match="expected"):
        read_text(text, "a.yaml")


def test_configuration() -> None:
    with pytest.raises(InputError, match=r"a\.yaml"):
        parse_config(f"apiVersion: routerd.io/v1alpha1\nkind: Config\nmetrics-listen: 127.0.0.1:{LONG}\n", "a.yaml")


@pytest.mark.parametrize("dialect", ["cilium-1.10", "metallb-0.12", "native"])
@pytest.mark.parametrize("field", ["localpref: {0}", "communities: ['1:{0}']", "aggregation-length: {0}"])
def test_legacy_configuration(field: str, dialect: Dialect) -> None:
    assert "error" in as_json(LEGACY.format(field.format(LONG)), dialect)


def test_numbers_as_go_reads_them() -> None:
    with pytest.raises(ValueError, match="value out of range"):
        parse_uint(LONG, 32)
    assert parse_uint("0" * 5000 + "7", 32) == 7
    with pytest.raises(ValueError, match="time: invalid duration"):
        parse_duration(f"{LONG}s")
    assert parse_duration(f"{'0' * 5000}1.5{'0' * 5000}s") == 1_500_000_000


def test_a_file_with_it_keeps_what_it_said(tmp_path: Path) -> None:
    directory = tmp_path / "manifests"
    directory.mkdir()
    (directory / "a.yaml").write_text(pool("a"))
    store = store_of(directory)
    store.load()
    (directory / "a.yaml").write_text(pool("a").replace("]}", f"], advertisements: [{{localPref: {LONG}}}]}}"))
    assert set(store.load().pools or {}) == {"a"}
    assert reasons(store.snapshot()) == ["AddressPool/a InvalidObject"]


def broken(*_: object) -> Any:
    raise ValueError("a mistake of ours")


def test_a_mistake_of_ours_costs_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "manifests"
    directory.mkdir()
    store = store_of(directory)
    store.load()
    monkeypatch.setattr("routerd.formats.core.expand_lists", broken)
    (directory / "a.yaml").write_text(pool("a"))
    (refusal,) = store.load().refusals
    assert "not understood: a mistake of ours" in refusal.message


def test_a_mistake_of_ours_costs_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = {"apiVersion": "routerd.io/v1alpha1", "kind": "AddressPool", "metadata": {"name": "a", "uid": "u"}}
    collection = Collection(Resource(POOLS))
    monkeypatch.setitem(kinds.BY_NAME, ("routerd.io", "AddressPool"), replace(POOLS, reader=broken))
    assert collection.put(raw)
    (refusal,) = collection.refusals()
    assert (str(refusal.object), refusal.reason) == ("AddressPool/a", "InvalidObject")
    assert "a mistake of ours" in refusal.message


def test_a_config_map_with_it_is_refused() -> None:
    text = f"peers: [{{peer-address: 10.0.0.1, peer-asn: {LONG}, my-asn: 2}}]\n"
    meta = {"name": "bgp-config", "namespace": "kube-system"}
    collection = Collection(Resource(CONFIG_MAPS))
    assert collection.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"config.yaml": text}})
    (refusal,) = collection.refusals()
    assert refusal.reason == "ConfigRefused"
