"""A small model of ExaBGP behind its relay: what it holds after each action. It is the oracle for plans, and a fake."""

from __future__ import annotations

from bgp import conf, plan
from bgp.path import AdjRibOut, Desired, IPNetwork, Path, SessionKey, SpeakerPeer
from bgp.rib import normal


class SpeakerModel:
    """Peers by digest and tables by peer. A session's table lives and dies with its configuration."""

    def __init__(self) -> None:
        self.peers: dict[SessionKey, SpeakerPeer] = {}
        self.tables: dict[SessionKey, dict[IPNetwork, Path]] = {}
        self.left_behind: dict[SessionKey, AdjRibOut] = {}  # what a removed peer still has: graceful restart keeps it

    def observed(self) -> plan.Observed:
        return plan.Observed(conf.digests(self.peers), {peer: dict(table) for peer, table in self.tables.items()})

    def carry_out(self, action: plan.Action) -> None:
        match action:
            case plan.Announce(peers=peers, paths=paths):
                for peer in peers:
                    assert peer in self.peers, f"announced to {peer}, which is not configured"
                    self.tables[peer].update((path.prefix, path) for path in paths)
            case plan.Withdraw(peers=peers, prefixes=prefixes):
                for peer in peers:
                    for prefix in prefixes:
                        self.tables[peer].pop(prefix, None)
            case plan.Reload(peers=peers):
                self._reload({peer.key: peer for peer in peers})

    def _reload(self, peers: dict[SessionKey, SpeakerPeer]) -> None:
        for key in self.peers.keys() - peers.keys():
            if self.tables[key]:
                self.left_behind[key] = self.tables[key]
        tables = {}
        for key, peer in peers.items():
            old = self.peers.get(key)
            survives = old is not None and _name(old) == _name(peer)
            tables[key] = {
                prefix: path
                for prefix, path in (self.tables[key] if survives else {}).items()
                if path.prefix.version in {int(family[3]) for family in peer.families}
            }
        self.peers, self.tables = dict(peers), tables

    def holds(self, desired: Desired) -> bool:
        """Whether it holds exactly what can be held of `desired`."""
        usable = {key: peer for key, peer in desired.peers.items() if conf.peer_refusal(peer) is None}
        wanted = {
            key: {
                path.prefix: path
                for wanted_path in desired.ribs.get(key, {}).values()
                if isinstance(path := normal(wanted_path, peer), Path)
            }
            for key, peer in usable.items()
        }
        return conf.digests(self.peers) == conf.digests(usable) and self.tables == wanted


def _name(peer: SpeakerPeer) -> tuple[object, ...]:
    """By what ExaBGP knows a session; another name is another session, with an empty table."""
    return peer.address, peer.local_address, peer.local_as, peer.remote_as, peer.router_id
