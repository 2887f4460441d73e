"""A ToR and a node for the speaker's stories. ExaBGP, its launcher, its relay and the ToR's daemon are real.

One ToR address per session: t1 is eBGP over IPv4, t2 iBGP over IPv6, t3 eBGP over IPv4 with MD5.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

from bgp.path import Desired, SpeakerPeer
from bgp.path import Path as BgpPath
from bgp.service import SpeakerProcess, running_speaker, start_speaker, stop_speaker
from bgp.speaker import Speaker
from tests.netns.lab.hosts import kernel_routes
from tests.netns.lab.lab import TOR_MAKES
from tests.netns.lab.netns import Namespace, entered, run, stop
from tests.netns.lab.tor import Route, TorPeer
from tests.waiting import WaitTimeout, eventually

NODE_AS, TOR_AS = 64512, 65000
ROUTER_ID = IPv4Address("10.9.0.1")
T1 = SpeakerPeer(ip_address("10.9.0.2"), ip_address("10.9.0.1"), NODE_AS, TOR_AS, ROUTER_ID)
T2 = SpeakerPeer(ip_address("fd09::2"), ip_address("fd09::1"), TOR_AS, TOR_AS, ROUTER_ID)
T3 = SpeakerPeer(ip_address("10.8.0.2"), ip_address("10.8.0.1"), NODE_AS, TOR_AS, ROUTER_ID)
T4 = replace(T1, local_address=ip_address("10.9.0.4"))  # once more with the router of t1 (`config(twin=True)`)
# Over two links more (`Stage.link`): link-local addresses, the ToR's being the same on both.
L1 = SpeakerPeer(ip_address("fe80::1%eth1"), ip_address("fe80::a1"), NODE_AS, TOR_AS, ROUTER_ID, interface="eth1")
L2 = SpeakerPeer(ip_address("fe80::1%eth2"), ip_address("fe80::a2"), NODE_AS, TOR_AS, ROUTER_ID, interface="eth2")
RADV = 'protocol radv {{ interface "{}" {{ default lifetime 0; min ra interval 3; max ra interval 4; }}; }}\n'
PASSWORDS = {"bird": "s3cret; md5 # {x}", "frr": "s3cret;md5#{x}"}  # FRR knows no blanks in a password


UNIT = Path(__file__).parents[3] / "configs" / "systemd" / "routerd-speaker.service"


def capabilities() -> list[str]:
    """Of the speaker, by its systemd unit; the manifest's are the same. In the form of setpriv(1)."""
    (value,) = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)
    return [word.removeprefix("CAP_").lower() for word in value.split()]


def confined_python(file: Path) -> str:
    """A Python that has the speaker's capabilities alone, though it is root's."""
    bounds = ",".join(["-all", *(f"+{name}" for name in capabilities())])
    confined = f"setpriv --bounding-set={bounds} --inh-caps={bounds} --no-new-privs"
    file.write_text(f'#!/bin/sh\nexec {confined} {sys.executable} "$@"\n')
    file.chmod(0o755)
    return str(file)


class Stage:
    """Two namespaces on one wire: the node with the speaker, and the ToR with a BGP daemon of some make."""

    def __init__(self, directory: Path, make: str) -> None:
        tag = f"bgpt{os.getpid()}"
        self.node, self.tor = Namespace(f"{tag}-node", "node"), Namespace(f"{tag}-tor", "tor")
        self.make, self.run_dir = make, directory / "run"
        self.python = confined_python(directory / "python")
        (directory / "tor").mkdir()
        self.bgp = TOR_MAKES[make](self.tor, directory / "tor")
        self.password = PASSWORDS[make]
        self.t3 = replace(T3, password=self.password)
        self.passive = [
            replace(peer, passive=True, listen_port=179) for peer in (T1, replace(T2, password=self.password), self.t3)
        ]

    def build(self, *, bfd: bool = False) -> None:
        self.node.create()
        self.tor.create()
        run(["ip", "link", "add", "eth0", "netns", self.node.name, "type", "veth", "peer", "eth0",
             "netns", self.tor.name])  # fmt: skip
        for namespace, last in ((self.node, 1), (self.tor, 2)):
            namespace.ip(
                f"addr add 10.9.0.{last}/24 dev eth0",
                f"addr add 10.8.0.{last}/24 dev eth0",
                f"addr add fd09::{last}/64 dev eth0 nodad",
                "link set eth0 up",
            )
        self.bgp.start(self.config(bfd=bfd))

    def link(self, *names: str) -> None:
        """Links more, on which both sides have link-local addresses alone: fe80::a1 and fe80::1 on eth1."""
        for name in names:
            run(["ip", "link", "add", name, "netns", self.node.name, "type", "veth", "peer", name,
                 "netns", self.tor.name])  # fmt: skip
            for namespace, address in ((self.node, f"fe80::a{name[-1]}"), (self.tor, "fe80::1")):
                namespace.ip(
                    f"link set {name} addrgenmode none up", f"addr add {address}/64 dev {name} nodad scope link"
                )

    def config(
        self, *, refused: str = "", guarded: bool = False, ipv6: bool = True, bfd: bool = False,
        links: tuple[str, ...] = (), found: str = "", twin: bool = False, active: bool = False,
    ) -> str:  # fmt: skip
        """The ToR's configuration; all paths of the peer named `refused` are refused.

        `guarded`: TTL security (GTSM); `bfd`: t1 and t2 are watched. Without `ipv6`, t1 has IPv4 unicast only.
        `twin`: t4, which has the router's address of t1. `links`: peers there, named as the links, with MD5.
        `active`: the ToR opens the sessions, that of t2 with MD5, too.
        `found`: a link on which both sides find each other; BIRD only says that it is a router.
        """
        peers = [
            TorPeer("t1", "10.9.0.1", NODE_AS, local="10.9.0.2"),
            TorPeer("t2", "fd09::1", TOR_AS, local="fd09::2"),
            TorPeer("t3", "10.8.0.1", NODE_AS, local="10.8.0.2", password=self.password),
            *(TorPeer(n, f"fe80::a{n[-1]}%{n}", NODE_AS, self.password, local="fe80::1", extended=True) for n in links),
        ]
        if twin:
            peers.append(TorPeer("t4", "10.9.0.4", NODE_AS, local="10.9.0.2"))
        if found:
            address = found if self.make == "frr" else f"fe80::a{found[-1]}%{found}"
            peers.append(TorPeer(found, address, NODE_AS, local="fe80::1", extended=True))
        peers = [replace(peer, accepts=peer.name != refused, guarded=guarded, active=active) for peer in peers]
        peers[0] = replace(peers[0], ipv6=ipv6, bfd=bfd)
        peers[1] = replace(peers[1], bfd=bfd, password=self.password if active else "")
        extra = RADV.format(found) if found and self.make == "bird" else ""
        return self.bgp.config_text(peers, address="10.9.0.2", local_as=TOR_AS, trace=True, extra=extra)

    def start_speaker(self) -> SpeakerProcess:
        with entered(self.node.name):
            return start_speaker(self.run_dir, python=self.python)

    def speaker_pid(self) -> int:
        """Of the running speaker."""
        speaker = running_speaker(self.run_dir)
        assert speaker is not None and speaker.pid is not None
        return speaker.pid

    def remove(self) -> None:
        stop_speaker(self.run_dir)
        for namespace in (self.node, self.tor):
            with contextlib.suppress(Exception):
                stop(namespace.pids())
            run(["ip", "netns", "del", namespace.name], check=False)

    def routes(self, peer: str) -> dict[str, Route]:
        """What the ToR has from one session: prefix -> path."""
        return {prefix: path for prefix, paths in self.bgp.routes().items() for path in paths if path.protocol == peer}

    def next_hops(self, prefix: str) -> list[str]:
        """Where the ToR's kernel sends a prefix of IPv4."""
        return kernel_routes(self.tor, self.bgp).get(prefix, [])

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Waits for a condition; what the daemons said is told if it is in vain."""
        try:
            await eventually(condition, what)
        except WaitTimeout as late:
            logs = "\n".join(path.read_text()[-3000:] for path in (self.bgp.log, self.run_dir / "exabgp.log"))
            raise AssertionError(f"{late}\n{logs}") from None


@contextlib.asynccontextmanager
async def agent(stage: Stage) -> AsyncIterator[Speaker]:
    """A `Speaker` for the time of the block; leaving the block is the agent going away."""
    speaker = Speaker(stage.run_dir / "relay.sock")
    task = asyncio.create_task(speaker.run())
    try:
        yield speaker
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def states(speaker: Speaker) -> set[str]:
    return {status.state for status in speaker.peers.values()}


def paths(*prefixes: str, **attributes: object) -> list[BgpPath]:
    return [BgpPath(ip_network(prefix), **attributes) for prefix in prefixes]  # type: ignore[arg-type]


def desired(*tables: tuple[SpeakerPeer, list[BgpPath]]) -> Desired:
    return Desired(
        {peer.key: peer for peer, _ in tables},
        {peer.key: {path.prefix: path for path in table} for peer, table in tables},
    )
