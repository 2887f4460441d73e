"""Commands that ExaBGP gets from the launcher: what they answer, and when."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from types import SimpleNamespace

import pytest

from bgp import conf, text
from bgp.inside import commands
from bgp.path import SpeakerPeer

PEER = SpeakerPeer(ip_address("10.9.0.2"), ip_address("10.9.0.1"), 64512, 65000, IPv4Address("10.9.0.1"))


def test_loaded_peers(tmp_path: Path) -> None:
    file = tmp_path / "exabgp.conf"
    file.write_text("process relay {}\n" + conf.peers_text([PEER]))
    assert commands.loaded_peers(file) == {"10.9.0.2,10.9.0.1": conf.digest(PEER)}


class Queue:
    """As much of ExaBGP's reactor and of a session as `routerd flush` asks."""

    def __init__(self, *, established: bool) -> None:
        self._peers = {"neighbor 10.9.0.2 local-ip 10.9.0.1": self}
        self.processes = self.asynchronous = self.neighbor = self.rib = self.outgoing = self
        self.is_established = established
        self.answers: list[str] = []
        self.steps: Iterator[bool] = iter(())

    def peers(self, service: str) -> list[str]:
        return list(self._peers)

    def established(self) -> bool:
        return self.is_established

    def pending(self) -> bool:
        return True

    def schedule(self, service: str, line: str, steps: Iterator[bool]) -> None:
        self.steps = steps

    def answer_done(self, service: str) -> None:
        self.answers.append("done")

    def answer_error(self, service: str) -> None:
        self.answers.append("error")


@pytest.mark.parametrize(("established", "said"), [(True, "error"), (False, "done")])
def test_a_flush_ends_in_the_time_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, established: bool, said: str
) -> None:
    """A session that is down has nothing to wait for."""
    (tmp_path / "exabgp.conf").write_text("")
    queue, added = Queue(established=established), commands.Commands(tmp_path / "exabgp.conf", "5.0.15")
    clock = itertools.count(0, 10)  # milliseconds
    monkeypatch.setattr(commands, "time", SimpleNamespace(monotonic=lambda: next(clock) / 1000))
    added.flush(None, queue, "relay", text.flush([PEER.key], 0.05), False)
    assert len(list(queue.steps)) <= 5  # looks, one in 10 ms
    assert queue.answers == [said]
