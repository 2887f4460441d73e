"""Desired state as sorted lines of text, one fact per line, for stories, `routerd plan` and `routerd show`.

Pure. Two equal states give equal text and a changed state changes at least one line. Passwords never show.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from bgp.path import AdjRibOut, IPAddress, Path, SpeakerPeer
from bgp.path import Desired as BgpDesired
from egress.policy import Desired as EgressDesired
from egress.policy import Group, Policy, Ports
from routerd.model import Refusal
from routerd.node.desired import NodeState


def path_text(path: Path) -> str:
    """`192.0.2.1/32 next-hop self local-pref 100 community 64512:1`: only what is set."""
    parts = [str(path.prefix), f"next-hop {path.next_hop or 'self'}"]
    if path.local_pref is not None:
        parts.append(f"local-pref {path.local_pref}")
    if path.med is not None:
        parts.append(f"med {path.med}")
    if path.prepend:
        parts.append(f"prepend {path.prepend}")
    if path.communities:
        parts.append(f"community {','.join(path.communities)}")
    return " ".join(parts)


def session_text(peer: SpeakerPeer) -> str:
    parts = [f"AS{peer.local_as} {peer.local_address} -> AS{peer.remote_as} {peer.address}"]
    if peer.port != 179:
        parts.append(f"port {peer.port}")
    parts.append(f"router-id {peer.router_id} hold {peer.hold_time}")
    if peer.graceful_restart_time:
        parts.append(f"graceful-restart {peer.graceful_restart_time}")
    if peer.multihop_ttl is not None:
        parts.append(f"multihop {peer.multihop_ttl}")
    if peer.password:
        parts.append("md5")
    return " ".join(parts)


def bgp_lines(desired: BgpDesired) -> list[str]:
    """`peer ADDRESS SESSION`, then `path ADDRESS PATH`, sorted by peer, then prefix."""
    peers = sorted(desired.peers.items(), key=lambda item: (item[0].version, int(item[0])))
    return [f"peer {address} {session_text(peer)}" for address, peer in peers] + path_lines(desired.ribs)


def path_lines(ribs: Mapping[IPAddress, AdjRibOut]) -> list[str]:
    lines: list[str] = []
    for address, rib in sorted(ribs.items(), key=lambda item: (item[0].version, int(item[0]))):
        paths = sorted(
            rib.values(), key=lambda p: (p.prefix.version, int(p.prefix.network_address), p.prefix.prefixlen)
        )
        lines.extend(f"path {address} {path_text(path)}" for path in paths)
    return lines


def _ports_text(ports: Ports) -> str:
    if not ports.first:
        return ports.protocol
    return f"{ports.protocol}/{ports.first}" + (f"-{ports.last}" if ports.last != ports.first else "")


def _policy_text(policy: Policy) -> str:
    parts = [f"policy {policy.name} -> {'group ' + str(policy.group) if policy.group else 'dropped (no group)'}"]
    parts.append(f"to {','.join(map(str, policy.destinations))}")
    if policy.excluded:
        parts.append(f"except {','.join(map(str, policy.excluded))}")
    if policy.ports:
        parts.append(f"ports {','.join(map(_ports_text, policy.ports))}")
    if policy.priority:
        parts.append(f"priority {policy.priority}")
    return " ".join(parts)


def _group_text(group: Group) -> str:
    gateways = [f"{g.node}@{g.address}#{g.slot}{'' if g.up else '(down)'}" for g in group.gateways]
    mark = " node-address" if group.node_address else ""
    return f"group {group.id} {group.egress_ip}{mark} slots {group.slots} via {' '.join(gateways) or 'nothing'}"


def _networks(word: str, networks: Iterable[object]) -> Iterator[str]:
    return (f"{word} {network}" for network in networks)


def egress_lines(desired: EgressDesired) -> list[str]:
    """`node`, `pod`, `policy`, `group`, `cluster`, `tunnel-node`, `uplink` lines, in that order, sorted inside."""
    return [
        f"node {desired.node} {desired.node_address} udp {desired.tunnel_port}",
        *(f"pod {address} {' '.join(names) or '-'}" for address, names in sorted(desired.pods.items())),
        *(_policy_text(policy) for _, policy in sorted(desired.policies.items())),
        *(_group_text(group) for _, group in sorted(desired.groups.items())),
        *_networks("cluster", sorted(desired.cluster)),
        *_networks("pod-cidr", sorted(desired.pod_cidrs)),
        *_networks("tunnel-node", sorted(desired.nodes)),
        *_networks("uplink", desired.uplinks),
    ]


def state_lines(state: NodeState) -> list[str]:
    """Both parts; a part that is not synced has no line."""
    bgp = bgp_lines(state.announcements.desired) if state.announcements else []
    return bgp + (egress_lines(state.egress) if state.egress else [])


def refusal_lines(refusals: Iterable[Refusal]) -> list[str]:
    return [f"no {refusal.object} {refusal.reason}: {refusal.message}" for refusal in refusals]


def changes(before: Iterable[str], after: Iterable[str]) -> list[str]:
    """`- line` for what goes and `+ line` for what comes; order of the inputs, removals of one place first."""
    old, new = list(before), list(after)
    gone, come = set(old) - set(new), set(new) - set(old)
    return [f"- {line}" for line in old if line in gone] + [f"+ {line}" for line in new if line in come]
