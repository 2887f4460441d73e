"""routerd in the lab: one operator, and a speaker, bfd and an agent per node, each with directories of its own.

Every process of a node sees what a real node shows it: the node's network namespace, a /sys of that namespace, a
bpffs of its own at /sys/fs/bpf (a directory of the lab's bpffs, so pins outlive the process and end with the lab), and
the manifests read-only, save for the operator. The operator runs in the ToR's namespace, where no agent is.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from bpf import syscall
from routerd.errors import RouterdError
from routerd.serve.api import agent_socket, ask
from tests.netns.lab import netns
from tests.netns.lab.hosts import Host, Node
from tests.netns.lab.lab import NODE_NETWORK, SERVICE_NETWORK, Lab
from tests.netns.lab.short_rests import REST

REPOSITORY = Path(__file__).parents[3]
CLOCK = Path(__file__).with_name("clock.py")
ROUTERD = (sys.executable, "-m", "routerd.cli.main")
SHORT_RESTS = (sys.executable, "-m", "tests.netns.lab.short_rests")

# Positional parameters: bpffs directory, manifests directory, its mode, then the command.
_MOUNTS = """
mount -t sysfs sysfs /sys && mount --bind "$1" /sys/fs/bpf &&
mount --bind "$2" "$2" && mount -o "remount,bind,$3" "$2" && shift 3 && exec "$@"
"""


def in_node(command: Sequence[str], bpffs: Path, manifests: Path, *, read_only: bool) -> list[str]:
    """`command` with the mounts of a node around it; to be run in the node's network namespace. Network namespaces that
    are made later are seen, as by a container of `configs/deploy`.
    """
    mode = "ro" if read_only else "rw"
    shell = ["unshare", "--mount", "--propagation", "slave", "sh", "-euc", _MOUNTS, "sh"]
    return [*shell, str(bpffs), str(manifests), mode, *command]


def with_clock(file: Path) -> list[str]:
    """In front of a command in a node, whose processes then have the wall clock that `file` sets, by `clock.py`."""
    place = importlib.util.find_spec("sitecustomize")  # Debian's interpreter has one
    assert place is not None and place.origin is not None
    return ["env", f"LAB_CLOCK={file}", "sh", "-ec", f'mount --bind {CLOCK} {place.origin} && exec "$@"', "sh"]


def config(lab: Lab, node: str, directory: Path) -> dict[str, object]:
    """A node's configuration file as a value."""
    return {
        "apiVersion": "routerd.io/v1alpha1",
        "kind": "Config",
        "node-name": node,
        "state-dir": str(directory / "state"),
        "run-dir": str(directory / "run"),
        "pin-dir": "/sys/fs/bpf/routerd",
        "store": file_store(lab),
        "cluster-cidrs": [NODE_NETWORK],
        "service-cidrs": [SERVICE_NETWORK],
    }


def file_store(lab: Lab) -> dict[str, object]:
    """The section `store` for the lab's manifests."""
    reports = [str(lab.directory / "*" / "state" / "node.yaml")]  # for the operator
    return {"manifests": str(lab.manifests), "node-reports": reports}


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    """To those that are still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@dataclass(slots=True)
class Daemon:
    """One routerd process. `started` is the monotonic time of its start."""

    role: str
    host: Host
    process: subprocess.Popen[bytes]
    log: Path

    def tree(self) -> list[int]:
        """Its process id and those of all descendants."""
        return descendants(self.process.pid)

    def resident(self) -> int:
        """Resident memory of the process alone, in bytes."""
        return resident(self.process.pid)

    def kill(self) -> None:
        """SIGKILL for the process itself, not for what it started, and waits until it is gone."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """It and its descendants do nothing in the block."""
        pids = self.tree()
        try:
            signal_all(pids, signal.SIGSTOP)
            yield
        finally:
            signal_all(pids, signal.SIGCONT)

    def relays(self) -> list[int]:
        """A speaker's helper processes."""
        return self.tree()[1:]


@dataclass(slots=True)
class Daemons:
    """Every routerd process of a lab."""

    lab: Lab
    store: Callable[[str], dict[str, object]] | None = None  # section `store` by role; None = the lab's manifests
    operator: Daemon | None = None
    speakers: dict[str, Daemon] = field(default_factory=dict)
    agents: dict[str, Daemon] = field(default_factory=dict)
    bfds: dict[str, Daemon] = field(default_factory=dict)
    options: dict[str, object] = field(default_factory=dict)  # further sections of every configuration
    clocks: bool = False  # whether `set_clock` can set the wall clock of a host's processes
    port_rest: float = 0.0  # seconds that ports rest, by `short_rests.py`; 0 = as ever

    def start_operator(self) -> Daemon:
        """Starts `routerd operator`, the only one that may write into the manifests."""
        self.operator = self._start("operator", self.lab.tor, read_only=False)
        return self.operator

    def start_speaker(self, node: str) -> Daemon:
        """Starts `routerd speaker` (ExaBGP and its relay) of a node."""
        self.speakers[node] = self._start("speaker", self.lab.node(node))
        return self.speakers[node]

    def start_agent(self, node: str) -> Daemon:
        """Starts `routerd agent` of a node, and `routerd bfd` where it does not run, as its unit does."""
        self.start_bfd(node)
        self.agents[node] = self._start("agent", self.lab.node(node))
        return self.agents[node]

    def start_bfd(self, node: str) -> Daemon:
        """Starts `routerd bfd` of a node, if it does not run."""
        if node not in self.bfds or not netns.is_alive(self.bfds[node].process.pid):
            self.bfds[node] = self._start("bfd", self.lab.node(node))
        return self.bfds[node]

    def start(self) -> None:
        """Everything: the operator, then per node speaker, bfd and agent."""
        self.start_operator()
        for node in self.lab.nodes:
            self.start_speaker(node)
            self.start_agent(node)

    def everyone(self) -> list[Daemon]:
        of_nodes = (self.speakers, self.agents, self.bfds)
        return [*([self.operator] if self.operator else []), *(each for some in of_nodes for each in some.values())]

    def stop(self) -> None:
        """Ends all of them."""
        netns.stop([daemon.process.pid for daemon in self.everyone()])

    def dead(self) -> list[Daemon]:
        """Those that ended by themselves."""
        return [daemon for daemon in self.everyone() if not netns.is_alive(daemon.process.pid)]

    def plan(self, node: str) -> list[str]:
        """What `routerd plan` prints of changes on a node: nothing when all is as it should be."""
        changes: list[str] = ask(agent_socket(self.lab.node(node).directory / "run"), {"get": "plan"})["changes"]
        return changes

    def refusals(self, node: str) -> set[str]:
        """Reasons of what the agent of a node says is not done."""
        status = ask(agent_socket(self.lab.node(node).directory / "run"), {"get": "status"})
        return {str(refusal["reason"]) for refusal in status["refusals"]}

    def is_ready(self, node: str) -> bool:
        """Whether the agent of a node answers, is ready and has no fault to retry."""
        try:
            status = ask(agent_socket(self.lab.node(node).directory / "run"), {"get": "status"})
        except RouterdError:
            return False
        return bool(status["ready"])

    def routerd(self, node: str, *arguments: str, check: bool = True, timeout: float = 20) -> str:
        """Runs a `routerd` command on a node, as an operator would, and returns what it prints."""
        host = self.lab.node(node)
        command = [*ROUTERD, *arguments, "--config", str(host.directory / "routerd.yaml")]
        return host.run(
            in_node(command, host.pin_dir, self.lab.manifests, read_only=True), check=check, timeout=timeout
        )

    def set_clock(self, host: Host, seconds: float) -> None:
        """Ahead by so many seconds, for all routerd processes of `host`."""
        fresh = host.directory / "clock.new"
        fresh.write_text(str(seconds))
        fresh.replace(host.directory / "clock")

    def _start(self, role: str, host: Host, *, read_only: bool = True) -> Daemon:
        for name in ("state", "run"):
            (host.directory / name).mkdir(exist_ok=True)
        path = host.directory / "routerd.yaml"
        value = (
            config(self.lab, host.label, host.directory)
            | ({"store": self.store(role)} if self.store else {})
            | self.options
        )
        path.write_text(yaml.safe_dump(value, sort_keys=False))
        bpffs = host.pin_dir if isinstance(host, Node) else self.lab.bpffs
        clock = with_clock(host.directory / "clock") if self.clocks else []
        command = in_node(
            [*clock, *self._routerd(), role, "--config", str(path)], bpffs, self.lab.manifests, read_only=read_only
        )
        log = host.directory / f"{role}.log"
        return Daemon(role, host, host.popen(command, log), log)

    def _routerd(self) -> list[str]:
        if not self.port_rest:
            return [*ROUTERD]
        return ["env", "-C", str(REPOSITORY), f"{REST}={self.port_rest}", *SHORT_RESTS]


class _Query(ctypes.Structure):
    """`union bpf_attr` for BPF_PROG_QUERY, up to the count."""

    _fields_ = [
        ("target_ifindex", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("program_ids", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
    ]


def _tcx_programs(ifindex: int, attach_type: int) -> int:
    """On a device's hook, whoever put them there; 0 where the kernel has no TCX."""
    query = _Query(ifindex, attach_type)
    try:
        syscall.bpf(syscall.PROG_QUERY, query)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
    return int(query.count)


def attached(node: Node) -> dict[str, int]:
    """Device -> eBPF programs on its TCX hooks in this node, as the kernel tells it."""
    with netns.entered(node.name):
        devices = socket.if_nameindex()
        hooks = (syscall.TCX_INGRESS, syscall.TCX_EGRESS)
        counts = {name: sum(_tcx_programs(index, hook) for hook in hooks) for index, name in devices}
    return {name: count for name, count in counts.items() if count}


def descendants(pid: int) -> list[int]:
    """`pid` and all that it started, directly or not."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                found += [int(word) for word in children.read_text().split()]
    return found


def resident(pid: int) -> int:
    """VmRSS in bytes; 0 for a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


def command_line(pid: int) -> str:
    """What the process was started as, "" for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
