"""What routerd keeps in a node's kernel, with the kernel's own numbers: the same numbers mean the same objects."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bpf import syscall
from egress import devices
from netlink.wire import NetlinkSocket
from tests.netns.lab import netns
from tests.netns.lab.hosts import Node

T = TypeVar("T")
OF_PACKETS = frozenset(
    {
        "flows", "reverse", "fragments", "sequences", "counters", "collected", "scratch", "granules", "pressures",
        "uses", "liveness", "probes",
    }
)  # fmt: skip


def footprint(node: Node) -> dict[str, object]:
    """Programs, maps, links, tunnel device, routes and reserved ports of routerd on `node`, by name."""
    found: dict[str, object] = {}
    pins = node.pin_dir / "routerd"
    found |= {f"program {path.name}": _opened(path, syscall.program_id) for path in _pinned(pins / "programs")}
    found |= {f"map {path.name}": _opened(path, syscall.map_identity)[0] for path in _pinned(pins / "maps")}
    for path in _pinned(pins / "links"):
        link = _opened(path, syscall.link_info)
        found[f"link {path.name}"] = (link.id, link.program_id, link.ifindex)
    with netns.entered(node.name), NetlinkSocket() as route:
        links = devices.read_links(route).values()
        found |= {f"device {link.name}": link.ifindex for link in links if link.name.startswith("routerd.")}
        routes = devices.read_routes(route)
        found |= {f"blackhole {address}": True for address in routes.blackholes}
        found |= {"reserved ports": len(devices.reserved_ports())}
    tables = node.run(["nft", "list", "tables"]).splitlines()
    found |= {line: True for line in tables if "routerd" in line}
    return found


def contents(node: Node) -> dict[str, object]:
    """What the maps hold that the agent writes; counters, flows and NAT state are the packets' own."""
    found: dict[str, object] = {}
    for path in _pinned(node.pin_dir / "routerd" / "maps"):
        if path.name in OF_PACKETS:
            continue
        table = syscall.BpfMap(syscall.open_pinned(path))
        try:
            found |= {f"{path.name}[{key.hex()}]": value.hex() for key, value in table.items().items()}
        finally:
            table.close()
    return found


def _pinned(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _opened(path: Path, read: Callable[[int], T]) -> T:
    fd = syscall.open_pinned(path)
    try:
        return read(fd)
    finally:
        os.close(fd)


def difference(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """What is not the same, one line each."""
    keys = sorted({*before, *after})
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys if before.get(key) != after.get(key)]
