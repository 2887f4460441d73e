"""The mirrors in bpf/layout.py against the object's own type information (BTF)."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.resources import as_file, files
from typing import Any

import pytest

from bpf import layout, loader
from ipam import port_sets
from routerd.cluster import gateways
from routerd.formats import native

Types = Mapping[int, Mapping[str, Any]]
PLAIN_KEYS = dict.fromkeys(("egress_ips", "nodes", "own_egress_ips", "pod_devices"), 16)  # struct ip; others are __u32


@cache
def types() -> Types:
    with as_file(files("bpf").joinpath(loader.OBJECT)) as path:
        shown = subprocess.run(
            ["bpftool", "-j", "btf", "dump", "file", str(path)], capture_output=True, text=True, check=True, timeout=20
        )
    return {row["id"]: row for row in json.loads(shown.stdout)["types"]}


def size_of(number: int) -> int:
    """Bytes of a type."""
    row = types()[number]
    match row["kind"]:
        case "TYPEDEF" | "CONST" | "VOLATILE":
            return size_of(row["type_id"])
        case "ARRAY":
            return int(row["nr_elems"]) * size_of(row["type_id"])
        case "PTR":
            return 8
        case _:
            return int(row["size"])


def struct(name: str) -> Mapping[str, Any]:
    return next(row for row in types().values() if row["kind"] == "STRUCT" and row["name"] == name)


def differences(row: Mapping[str, Any], mirror: type[ctypes.Structure]) -> list[str]:
    """What a mirror has otherwise than the C structure: names, offsets, sizes, and padding that C would not compare."""
    said = [(m["name"], m["bits_offset"] // 8, size_of(m["type_id"])) for m in row["members"]]
    fields = [(name, getattr(mirror, name).offset, getattr(mirror, name).size) for name, *_ in mirror._fields_]
    found = [f"{mirror.__name__}: C has {c}, the mirror {m}" for c, m in zip(said, fields, strict=False) if c != m]
    if len(said) != len(fields) or row["size"] != ctypes.sizeof(mirror):
        found.append(f"{mirror.__name__}: C has {row['size']} bytes, the mirror {ctypes.sizeof(mirror)}")
    if sum(size for _, _, size in said) != row["size"]:
        found.append(f"{mirror.__name__}: implicit padding")
    return found


@pytest.mark.parametrize("name", layout.MIRRORS)
def test_a_mirror_is_the_structure(name: str) -> None:
    assert differences(struct(name), layout.MIRRORS[name]) == []


def test_every_structure_of_the_maps_has_a_mirror() -> None:
    used = {mirror for pair in layout.MAPS.values() for mirror in pair if mirror is not None}
    assert used <= set(layout.MIRRORS.values())


class SwappedPorts(ctypes.Structure):
    _fields_ = [*layout.FlowKey._fields_[:2], layout.FlowKey._fields_[3], layout.FlowKey._fields_[2],
                *layout.FlowKey._fields_[4:]]  # fmt: skip


class NarrowPort(ctypes.Structure):
    _fields_ = [*layout.FlowKey._fields_[:2], ("pod_port", ctypes.c_uint8), *layout.FlowKey._fields_[3:]]


class Shorter(ctypes.Structure):
    _fields_ = layout.FlowKey._fields_[:-1]


@pytest.mark.parametrize("planted", [SwappedPorts, NarrowPort, Shorter])
def test_a_wrong_mirror_is_found(planted: type[ctypes.Structure]) -> None:
    assert differences(struct("flow_key"), planted)


def _map_members(name: str) -> dict[str, int]:
    """A map's definition: member -> type of what its pointer points to."""
    variable = next(row for row in types().values() if row["kind"] == "VAR" and row["name"] == name)
    definition = types()[variable["type_id"]]
    return {member["name"]: types()[member["type_id"]]["type_id"] for member in definition["members"]}


def _expected(name: str, part: int) -> int:
    mirror = layout.MAPS[name][part]
    if mirror is not None:
        return ctypes.sizeof(mirror)
    return PLAIN_KEYS.get(name, 4) if part == 0 else 4


@pytest.mark.parametrize("name", layout.MAPS)
def test_keys_and_values_have_the_maps_sizes(name: str) -> None:
    members = _map_members(name)
    assert (size_of(members["key"]), size_of(members["value"])) == (_expected(name, 0), _expected(name, 1))


def test_all_maps_and_programs_are_known() -> None:
    sections = {row["name"]: row for row in types().values() if row["kind"] == "DATASEC"}
    maps = {types()[v["type_id"]]["name"] for v in sections[".maps"]["vars"]}
    functions = {row["name"] for row in types().values() if row["kind"] == "FUNC" and row.get("linkage") == "global"}
    assert maps - {"scratch"} == set(layout.MAPS)  # that one is the programs' own
    assert functions == set(layout.PROGRAMS)


def test_the_table_of_reasons_is_what_the_compiler_sees() -> None:
    with as_file(files("bpf").joinpath("reasons.h")) as path:
        seen = subprocess.run(["clang", "-E", "-P", str(path)], capture_output=True, text=True, check=True, timeout=20)
    compiled = {int(number): name.lower() for name, number in re.findall(r"(\w+) = (\d+)", seen.stdout)}
    assert compiled.pop(0) == "reason_unspecified"
    limit = next(number for number, name in compiled.items() if name == "reason_limit")
    del compiled[limit]
    table = layout.read_reasons()
    assert {number: reason.name for number, reason in table.items()} == compiled
    assert max(table) < limit
    assert all(reason.text for reason in table.values())


NUMBERS = (
    "LAYOUT_VERSION", "MAX_RULES", "MAX_GATEWAYS", "MAX_BLOCKS", "GRANULE_SHIFT", "GRANULES", "NODE_NUMBERS", "NO_NODE",
    "ID_SEQUENCES", "OWNER_ID", "OWNER_CLAIMED", "OWNER_LIVE", "OWNER_RESTING", "OWNER_DYING",
    "PROBES_KEPT", "PROBE_PORT", "PROBE_TTL", "PROBE_REQUEST", "PROBE_REPLY", "PROBE_MAC",
)  # fmt: skip


def test_the_numbers_of_the_headers_are_the_mirrors() -> None:
    text = files("bpf").joinpath("types.h").read_text()
    defined = dict(re.findall(r"#define\s+(\w+)\s+(0x[0-9a-f]+|\d+)", text))
    assert {name: int(defined[name], 0) for name in NUMBERS} == {name: getattr(layout, name) for name in NUMBERS}


def test_a_group_has_room_for_all_its_gateways() -> None:
    assert layout.MAX_GATEWAYS >= gateways.MAX_GATEWAYS


def test_a_group_has_room_for_all_blocks_that_a_node_may_have() -> None:
    assert layout.MAX_BLOCKS >= port_sets.MAX_BLOCKS * native.MOST_EGRESS_IPS
