"""The egress room in its seat (`room.py`): the datapath of the node, for the threads of one agent.

It translates values and decides nothing: what to do is in `egress.plan`, what may follow a failure in `egress.undone`.
The datapath is not thread-safe, so each call waits for the one before.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

from egress import plan as plans
from egress.entries import Facts
from egress.kept import Kept
from egress.netdev import Datapath
from egress.nftables.guard import render
from egress.nftables.nft import boot_text
from egress.plan import Action, CreateTunnel, LoadPrograms, Observed, Problem, PutEntry
from egress.policy import Desired, Quotas
from egress.status import EgressStatus, NatEntry, PortUse
from egress.trials import Lacking
from egress.undone import Undone
from routerd.config import Config
from routerd.node.desired import EGRESS_ROOM
from routerd.refs import EGRESS, Ref
from routerd.tell.views import Row

PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 132: "SCTP"}


def open_datapath(config: Config) -> Datapath:
    return Datapath(
        config.pin_dir,
        config.egress.attach,
        config.egress.nat_entries,
        config.egress.loader,
        config.egress.host_devices,
        Quotas(config.egress.flows_per_pod, config.egress.ports_per_pod),
    )


@dataclass(slots=True)
class BootGuard:
    """The guard for the next boot: a file that routerd-guard.service loads before there is an agent, or a pod.

    After a boot no pod is known, and none may send to where policies lead until it is. The file is written some seconds
    after what it says, never in a round: a disk may be slow, and a pod may wait for the round.
    """

    file: Path
    _latest: tuple[Desired, Facts] | None = field(init=False, default=None)
    _kept: tuple[Desired, Facts] | None = field(init=False, default=None)

    def note(self, desired: Desired, facts: Facts) -> None:
        """What a round goes by."""
        self._latest = desired, facts

    def keep(self) -> None:
        """Writes the file if it says something else. OSError."""
        latest = self._latest
        if latest is None or latest == self._kept:
            return
        text = boot_text(render(*latest)).encode()
        if not self.file.exists() or self.file.read_bytes() != text:
            _replace(self.file, text)
        self._kept = latest


class EgressRoom:
    name = EGRESS_ROOM

    def __init__(self, datapath: Datapath, boot: BootGuard | None = None) -> None:
        """`boot`: is kept for the next boot; None = it is not."""
        self._datapath = datapath
        self._boot = boot
        self._lock = threading.Lock()
        self._kept = Kept()  # asked by one thread at a time
        self._port_use: PortUse | None = None
        # Port sets, gateways or ways to them may be new. Called in any thread.
        self.on_groups: Callable[[], None] = lambda: None

    # --- its turn in a round

    def observe(self, desired: Desired) -> Observed:
        with self._lock:
            return self._datapath.observe(desired)

    def plan(self, desired: Desired, observed: Observed) -> tuple[Action, ...]:
        if self._boot is not None:
            self._boot.note(desired, observed.facts)
        return plans.plan(desired, observed, self._kept)

    def apply(self, action: Action) -> None:
        with self._lock:
            self._datapath.apply(action)
        if isinstance(action, PutEntry) and action.map in ("groups", "node_numbers"):
            self.on_groups()

    def problems(self, desired: Desired, observed: Observed) -> Sequence[Problem]:
        return plans.problems(desired, observed, self._kept)

    def undone(self, desired: Desired, observed: Observed) -> Undone:
        return Undone(desired, observed)

    def carries(self, owner: Ref, undone: Undone | None) -> bool:
        """The path of an egress address leads to a node that is in service as a gateway of its group."""
        return owner.kind != EGRESS or (undone is not None and undone.carries(int(owner.name)))

    def makes_new(self, action: Action) -> bool:
        return isinstance(action, CreateTunnel | LoadPrograms)

    # --- beside the rounds

    def collect(self) -> None:
        """Takes idle flows out of the datapath, and keeps the guard for the next boot. OSError."""
        with self._lock:
            self._datapath.collect()
            self._port_use = self._datapath.port_use()
        if self._boot is not None:
            self._boot.keep()  # last: a full disk must not fill the tables

    def survey(self) -> bool:
        """Reads anew what others have on the node; whether it is something else now. OSError. No round waits for it."""
        return self._datapath.survey()

    def try_port_sets(self) -> Lacking:
        """Sends trials of port sets that gateways have not echoed, and says how many that are."""
        with self._lock:
            return self._datapath.try_port_sets()

    def is_pressed(self) -> bool:
        """Whether a pod has come near its share of the tables, or a group near the end of its ports, since the last
        collection; `port_use` names the group then.
        """
        with contextlib.suppress(OSError), self._lock:  # the collection says why
            if self._port_use is not None:
                self._port_use = replace(self._port_use, pressed=self._datapath.long_searches())
            return self._datapath.is_pressed()
        return False

    def port_use(self) -> PortUse | None:
        """As it was counted at the last collection, with the long searches since."""
        return self._port_use

    def status(self) -> EgressStatus:
        """Not attached where reading is refused (the round says why)."""
        with contextlib.suppress(OSError), self._lock:
            return self._datapath.status()
        return EgressStatus()

    def nat(self) -> tuple[Row, ...]:
        with contextlib.suppress(OSError), self._lock:  # as for the status
            return tuple(map(_nat_row, self._datapath.nat()))
        return ()


def _nat_row(entry: NatEntry) -> Row:
    return {
        "protocol": PROTOCOLS.get(entry.protocol, str(entry.protocol)),
        "pod": _endpoint(str(entry.pod), entry.pod_port),
        "remote": _endpoint(str(entry.remote), entry.remote_port),
        "egress_ip": str(entry.egress_ip),
        "port": entry.egress_port,
        "group": entry.group,
        "gateway": entry.gateway,
        "idle_seconds": round(entry.idle, 1),
    }


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ip_address(address).version == 6 else f"{address}:{port}"


def _replace(path: Path, text: bytes) -> None:
    """Whole also after the power has failed: half a guard is none."""
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
