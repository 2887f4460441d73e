"""What the lab and the stories ask of a ToR's BGP daemon, whatever its make: values and an interface, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Route:
    """One path in the ToR's table. `protocol` is the peer's name: nodes are named as in the lab.

    Attributes read the same for every make: "origin" is "IGP", "as_path" is AS numbers between spaces, communities
    are "64512:1" and "64512:7:8" between spaces; what a path does not have is missing.
    """

    prefix: str
    protocol: str
    next_hop: str
    best: bool
    attributes: Mapping[str, str] = field(default_factory=dict)  # "local_pref", "med", "as_path", "community", …

    @property
    def local_pref(self) -> int:
        return int(self.attributes.get("local_pref", "100"))


@dataclass(frozen=True, slots=True)
class TorPeer:
    """A node as the ToR sees it. `local` is the ToR's address of the session, "" = the ToR's own.

    `address` may be link-local, with its interface as zone; FRR also takes the interface alone.
    """

    name: str
    address: str
    asn: int
    password: str = field(default="", repr=False)
    local: str = ""
    ipv6: bool = True  # False: IPv6 unicast is not negotiated
    extended: bool = False  # True: IPv4 prefixes may have a next hop of IPv6 (RFC 8950)
    guarded: bool = False  # True: only what was sent with a TTL of 255 is taken (RFC 5082)
    bfd: bool = False  # True: watched by BFD, 50 ms x 3; paths go when it is down
    active: bool = False  # True: the ToR opens the session; False: it waits for the node to do so
    accepts: bool = True  # False: the session stays up, all of the peer's paths are refused


class TorDaemon(Protocol):
    """A BGP daemon in the ToR's namespace. Nothing is announced to them, restarts are graceful."""

    @property
    def kernel_protocol(self) -> str:
        """Name of its routes in the kernel, for `ip route show proto`."""

    @property
    def log(self) -> Path:
        """Where it logs."""

    def config_text(
        self, peers: Sequence[TorPeer], *, address: str, local_as: int, hold_time: int = 90, trace: bool = False,
        extra: str = "",
    ) -> str:  # fmt: skip
        """The whole configuration. `hold_time` in seconds; `trace` logs what `ends_of_rib` needs; `extra` is added."""

    def start(self, config: str) -> None:
        """Starts it and waits until it answers."""

    def configure(self, config: str) -> None:
        """Puts what is new or changed in `config` into the running daemon; no session flaps for it."""

    def kill(self) -> None:
        """As a crash: nothing is said to the peers."""

    def version(self) -> str:
        """Its name and release."""

    def routes(self) -> dict[str, list[Route]]:
        """Its table, both families: prefix -> paths, the best first."""

    def sessions(self) -> dict[str, str]:
        """Peer -> state of its session; "Established" is up."""

    def bfd(self) -> dict[str, str]:
        """Address of each peer that is watched -> "up" or what else its session is."""

    def established(self, peer: str) -> int:
        """How often the session has come up, of all starts of the daemon."""

    def ends_of_rib(self, peer: str) -> int:
        """How many End-of-RIB markers came, of all families and sessions; needs `trace`."""

    def look_around(self) -> Mapping[str, str]:
        """What a person would like to see -> the command that shows it."""
