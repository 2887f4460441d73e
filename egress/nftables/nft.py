"""The guard as text for nft, and read back from nft's JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv6Address
from typing import Any

from egress.nftables.frame import (
    COUNTERS,
    DECIDED,
    FAMILY,
    HOOKED,
    HOOKS,
    MAP_TYPES,
    MAY_HOOK,
    SET_TYPES,
    TABLE,
    key_type,
)
from egress.nftables.guard import Guard, digest

ALL_HOOKS = {**HOOKS, **MAY_HOOK}


def _quoted(name: str, element: str) -> str:
    """The element with its device's name as a string: nft would read some names as keywords or numbers."""
    if not key_type({**SET_TYPES, **MAP_TYPES}[name]).startswith("if"):
        return element
    device, space, rest = element.partition(" ")
    return f'"{device}"{space}{rest}'


def transaction(wanted: Guard, present: Guard | None) -> str:
    """One atomic nft transaction that makes the table `wanted`. Sets and chains that are as they shall be stay.

    Counters keep their values, unless the table's frame is not ours: then it is made anew, in the same transaction.
    """
    table = f"{FAMILY} {TABLE}"
    lines = [f"add table {table}"]
    if present is not None and present.frame != wanted.frame:
        lines += [f"delete table {table}", f"add table {table}"]
        present = None
    lines += [*(f"add counter {table} {name}" for name in COUNTERS)]
    lines += [f"add set {table} {name} {{ {kind} }}" for name, kind in SET_TYPES.items()]
    lines += [f"add map {table} {name} {{ {kind} }}" for name, kind in MAP_TYPES.items()]
    there = present.chains if present else {}
    held = present.sets if present else {}
    changed = {name: rules for name, rules in wanted.chains.items() if there.get(name) != tuple(map(digest, rules))}
    for name in changed:
        hook = f" {{ {_hook_text(name)} }}" if name in ALL_HOOKS else ""
        lines += [f"add chain {table} {name}{hook}", f"flush chain {table} {name}"]
    for name in sorted(name for name in wanted.sets if held.get(name) != wanted.sets[name]):
        kind = "map" if name in MAP_TYPES else "set"
        lines.append(f"flush {kind} {table} {name}")
        if wanted.sets[name]:
            elements = ", ".join(_quoted(name, element) for element in sorted(wanted.sets[name]))
            lines.append(f"add element {table} {name} {{ {elements} }}")
    for name, rules in changed.items():
        lines += [f'add rule {table} {name} {rule} comment "{digest(rule)}"' for rule in rules]
    stale = sorted(set(there) - set(wanted.chains))
    lines += [f"flush chain {table} {name}" for name in stale]  # all first: they may refer to each other
    lines += [f"delete chain {table} {name}" for name in stale]
    return "\n".join(lines) + "\n"


def boot_text(guard: Guard) -> str:
    """A file for `nft -f`: the table for a host that has just started, on which no pod is known yet, none of the
    devices of pods, and no program is attached.
    """
    unknown = dict.fromkeys((*DECIDED, *MAP_TYPES, HOOKED, "pod_devices"), frozenset[str]())
    of_pods = {element.rpartition(" : jump ")[2] for name in MAP_TYPES for element in guard.sets[name]}
    chains = {name: rules for name, rules in guard.chains.items() if name not in of_pods}
    return transaction(replace(guard, sets={**guard.sets, **unknown}, chains=chains), None)


def _hook_text(chain: str) -> str:
    kind, hook, priority, policy = ALL_HOOKS[chain]
    return f"type {kind} hook {hook} priority {priority}; policy {policy};"


# --- read back


def _element_text(element: Any) -> str:
    """One element of nft's JSON, in the form that `render` uses."""
    match element:
        case {"elem": {"val": value}}:
            return _element_text(value)
        case {"prefix": {"addr": address, "len": length}}:
            return f"{_element_text(address)}/{length}"
        case {"concat": parts}:
            return " . ".join(_element_text(part) for part in parts)
        case [key, {"jump": {"target": target}}]:
            return f"{_element_text(key)} : jump {target}"
        case {"range": [first, last]}:
            return f"{first}-{last}"
        case str() if element.startswith("::") and "." in element:
            return str(IPv6Address(element))  # nft writes the IPv4 part of an address in decimal (RFC 5952, section 5)
        case _:
            return str(element)


def parse(document: Mapping[str, Any]) -> Guard | None:
    """The table as `nft -j list table inet routerd` printed it; None if it is not there."""
    sets: dict[str, frozenset[str]] = {}
    chains: dict[str, tuple[str, ...]] = {}
    frame: dict[str, object] = {}
    found = False
    for item in document.get("nftables", []):
        found |= "table" in item
        frame |= _frame_of(item)
        body = item.get("set") or item.get("map")
        if body:
            sets[body["name"]] = frozenset(_element_text(element) for element in body.get("elem", []))
        if "chain" in item:
            chains.setdefault(item["chain"]["name"], ())
        if "rule" in item:
            rule = item["rule"]
            chains[rule["chain"]] = (*chains.get(rule["chain"], ()), rule.get("comment", ""))
    return Guard(sets, chains, frame) if found else None


def _frame_of(item: Mapping[str, Any]) -> dict[str, object]:
    """What one item of nft's JSON says of the table's frame."""
    match item:
        case {"table": {"flags": flags}}:
            return {"table": flags}  # dormant: nothing of it is in effect
        case {"chain": {"name": name, "type": kind, "hook": hook, "prio": priority, "policy": policy}}:
            found = (kind, hook, priority, policy)
            return {} if MAY_HOOK.get(name) == found else {f"chain {name}": found}
        case {"set": {"name": name, "type": kind}} | {"map": {"name": name, "type": kind}}:
            return {f"set {name}": kind if isinstance(kind, str) else " . ".join(kind)}
    return {}


def parse_counters(document: Mapping[str, Any]) -> dict[str, int]:
    """Packets that the guard dropped, by its counters' names."""
    rows = (item["counter"] for item in document.get("nftables", []) if "counter" in item)
    return {row["name"]: int(row["packets"]) for row in rows}
