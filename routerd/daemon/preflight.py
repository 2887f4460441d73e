"""What the machine must have before a process starts: each check raises `EnvironmentFault` and says what to do.

It changes nothing, save that `bpf_file_system` mounts what it misses. A peer that does not answer is not checked here:
that is a state, shown in status.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from bgp import EXABGP
from routerd.errors import EnvironmentFault

BTF = Path("/sys/kernel/btf/vmlinux")
PROCESS_STATUS = Path("/proc/self/status")
NET_CLASS = Path("/sys/class/net")

# Numbers from linux/capability.h.
CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 12, 21, 38, 39
NAMES = {CAP_NET_ADMIN: "CAP_NET_ADMIN", CAP_PERFMON: "CAP_PERFMON", CAP_BPF: "CAP_BPF"}


def effective_capabilities(status: str) -> frozenset[int]:
    """Numbers of the effective capabilities, from the text of /proc/PID/status."""
    line = next((line for line in status.splitlines() if line.startswith("CapEff:")), "CapEff: 0")
    mask = int(line.split()[1], 16)
    return frozenset(number for number in range(mask.bit_length()) if mask >> number & 1)


def privileges(needed: Iterable[int], status_file: Path = PROCESS_STATUS) -> None:
    """CAP_SYS_ADMIN stands in for CAP_BPF and CAP_PERFMON, as before Linux 5.8."""
    capabilities = effective_capabilities(status_file.read_text())
    stand_in = {CAP_BPF, CAP_PERFMON} if CAP_SYS_ADMIN in capabilities else set()
    missing = [NAMES[number] for number in needed if number not in capabilities | stand_in]
    if missing:
        raise EnvironmentFault(f"no {' and '.join(missing)}: run as root, or give the process these capabilities")


def btf(path: Path = BTF) -> None:
    if not path.exists():
        raise EnvironmentFault(
            f"{path} is absent: the egress datapath needs a kernel built with CONFIG_DEBUG_INFO_BTF, Linux 6.1 or later"
        )


def exabgp(distribution: str = "exabgp") -> None:
    try:
        installed = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise EnvironmentFault(f"ExaBGP is not installed: pip install exabgp=={EXABGP}") from None
    if installed != EXABGP:
        raise EnvironmentFault(
            f"ExaBGP {installed} is installed, and routerd drives {EXABGP}: pip install exabgp=={EXABGP}"
        )


def program(name: str, package: str, path: str | None = None) -> None:
    """`path`: directories to look in, separated by colons; None = $PATH."""
    if shutil.which(name, path=path) is None:
        raise EnvironmentFault(f"{name} is missing: install package {package}")


def devices(names: Iterable[str], net_class: Path = NET_CLASS) -> None:
    missing = [name for name in names if not (net_class / name).exists()]
    if missing:
        raise EnvironmentFault(
            f"no network device {', '.join(missing)} on this host: correct uplinks in the configuration"
        )


def bpf_file_system(pin_dir: Path) -> bool:
    """Whether it had to be mounted for `pin_dir`: at /sys/fs/bpf, and nowhere else."""
    from bpf import bpffs  # here, as who has no datapath needs no ctypes

    try:
        is_new = bpffs.mount_missing(pin_dir)
    except OSError as error:
        message = f"no BPF file system at {error.filename}, and this process may not mount it ({error.strerror}"
        raise EnvironmentFault(f"{message}; it takes CAP_SYS_ADMIN): {bpffs.ADVICE}") from None
    reason = bpffs.lack(pin_dir)
    if reason:
        raise EnvironmentFault(reason)
    return is_new


def for_agent(uplinks: Iterable[str]) -> None:
    """Everything else that the agent's datapath needs, before it touches anything."""
    privileges((CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON))
    btf()
    program("nft", "nftables")
    devices(uplinks)
