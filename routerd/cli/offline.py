"""What files would make of a node, without an agent and without touching anything: for `--manifests` and `plan`.

Allocations are those that the operator would publish for these files, so that the answer is whole.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from routerd.agent import local
from routerd.cli.decided import as_decided, likely_sources
from routerd.config import Config
from routerd.errors import InputError
from routerd.model import NodeReport, Snapshot
from routerd.node.desired import LocalFacts, NodeState, Settings, compose
from routerd.node.drain import Orders, drain_of
from routerd.node.sessions import entries_here
from routerd.store.embedded.store import FileStore


def snapshot_of(manifests: Path, config: Config) -> Snapshot:
    """The files of a directory. Allocations: those in it, else those in force, else none; then as decided anew."""
    if not manifests.is_dir():
        raise InputError("is not a directory of manifests", file=str(manifests))
    beside = manifests / config.store.allocations.name
    allocations = beside if beside.exists() else config.store.allocations
    store = FileStore(
        manifests, allocations, node_reports=config.store.node_reports, service_cidrs=config.service_cidrs
    )
    snapshot = store.load()
    if not snapshot.is_synced:
        raise InputError("; ".join(refusal.message for refusal in snapshot.refusals), file=str(manifests))
    if snapshot.unread:
        raise InputError(f"{snapshot.unread.message}: bring it whole, or delete it", file=str(manifests))
    return as_decided(snapshot, config, _reports(store, snapshot), time.time()) or snapshot


def _reports(store: FileStore, snapshot: Snapshot) -> Mapping[str, NodeReport]:
    """What nodes reported, and for the others what their Node objects say."""
    told = {node.name: NodeReport(node.name, node.addresses) for node in (snapshot.nodes or {}).values()}
    return {**told, **store.node_reports()}


def state_of(snapshot: Snapshot, settings: Settings, config: Config) -> NodeState:
    """The desired state of a node. Sources of sessions are the kernel's on this node, else the Node's addresses."""
    node = (snapshot.nodes or {}).get(settings.node)
    peers = tuple(entries_here(snapshot.bgp.peers, node).values()) if snapshot.bgp and node else ()
    if settings.node == config.node_name or node is None:
        sessions = local.session_addresses(peers, {})
        passwords = local.passwords_of(peers, config.bgp.password_dir, None)
    else:
        sessions, passwords = likely_sources(snapshot, node), None
    rules = config.drain
    leaving = drain_of(node, Orders(), cordoned=rules.cordoned, taints=rules.taints) if node is not None else None
    drain = replace(leaving, withdraws=True) if leaving is not None else None
    return compose(snapshot, settings, LocalFacts(sessions, config.egress.uplinks, drain=drain, passwords=passwords))
