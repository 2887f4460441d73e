"""What the running kernel offers of what the datapath uses, and what is done where it does not.

`FEATURES` is the table; `decide` is pure; `describe_kernel` asks the kernel, never its version, as distributions carry
features back. Nothing here loads the datapath.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bpf import syscall
from bpf.loader import LoadError, open_libbpf

PROGRAM_TYPE_SCHED_CLS = 3
MAP_CREATE = 0
MAP_TYPE_HASH = 1
LOOPBACK_IFINDEX = 1  # in every network namespace
JIT = Path("/proc/sys/net/core/bpf_jit_enable")  # of the initial network namespace only

Kind = Literal["helper", "tcx", "batch", "jit"]


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that the datapath uses. `helper`: its number in <linux/bpf.h>. `fallback` is empty if there is none."""

    name: str
    kind: Kind
    since: str
    use: str
    fallback: str = ""
    helper: int = 0


@dataclass(frozen=True, slots=True)
class Feature:
    """A requirement and the kernel's answer; `present` is None where it could not be asked (`outcome` says why)."""

    name: str
    since: str
    present: bool | None
    needed: bool
    outcome: str


FEATURES = (
    Requirement("fib_lookup", "helper", "4.18", "routes translated packets", helper=69),
    Requirement("redirect_neigh", "helper", "5.10", "hands them to the next hop", helper=152),
    Requirement("ktime_get_coarse_ns", "helper", "5.11", "ages flows", helper=160),
    Requirement("check_mtu", "helper", "5.12", "answers packets that the tunnel cannot carry", helper=163),
    Requirement("for_each_map_elem", "helper", "5.13", "collects idle flows", helper=164),
    Requirement("bpf_loop", "helper", "5.17", "looks for a free source port", helper=181),
    Requirement("jit", "jit", "3.18", "runs loops with callbacks (sysctl net.core.bpf_jit_enable=1)"),
    Requirement("batch", "batch", "5.6", "reads and writes maps in batches", "entries are read and written one by one"),
    Requirement("tcx", "tcx", "6.6", "attaches programs by pinned links", "clsact filters are used"),
)


def decide(requirement: Requirement, present: bool | None) -> Feature:
    """What follows from the kernel's answer."""
    needed = not requirement.fallback
    outcome = requirement.use
    if present is None:
        outcome = "unknown: the kernel did not let us ask"
    elif not present:
        what = requirement.fallback or f"the datapath does not load: nothing else {requirement.use}"
        outcome = f"missing (Linux {requirement.since} has it): {what}"
    return Feature(requirement.name, requirement.since, present, needed, outcome)


def missing(features: list[Feature]) -> list[Feature]:
    """Those without which the datapath cannot work."""
    return [feature for feature in features if feature.needed and feature.present is False]


def describe_kernel() -> list[Feature]:
    """Every feature, as the running kernel has it. Without CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN much is unknown."""
    probes: Mapping[Kind, Callable[[Requirement], bool | None]] = {
        "helper": _has_helper, "tcx": _has_tcx, "batch": _has_batch, "jit": _has_jit,
    }  # fmt: skip
    return [decide(requirement, probes[requirement.kind](requirement)) for requirement in FEATURES]


def _has_helper(requirement: Requirement) -> bool | None:
    """libbpf loads a program of one call and reads what the verifier says of it."""
    try:
        library = open_libbpf()
    except LoadError:
        return None
    answer = library.libbpf_probe_bpf_helper(PROGRAM_TYPE_SCHED_CLS, requirement.helper, None)
    return None if answer < 0 else bool(answer)


def _has_tcx(_requirement: Requirement) -> bool | None:
    class Query(ctypes.Structure):
        _fields_ = [("ifindex", ctypes.c_uint32), ("attach_type", ctypes.c_uint32), ("rest", ctypes.c_uint64 * 4)]

    try:
        syscall.bpf(syscall.PROG_QUERY, Query(LOOPBACK_IFINDEX, syscall.TCX_INGRESS))
    except OSError as error:
        # 6.6 and later look for programs on the hook, older kernels do not know the attach type.
        return {errno.ENOENT: True, errno.EINVAL: False}.get(error.errno or 0)
    return True


def _has_batch(_requirement: Requirement) -> bool | None:
    class Create(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint32) for name in ("type", "key_size", "value_size", "max_entries", "flags")]

    try:
        fd = syscall.bpf(MAP_CREATE, Create(MAP_TYPE_HASH, 4, 4, 1, 0))
    except OSError:
        return None
    try:
        return _looks_up_a_batch(fd)
    finally:
        os.close(fd)


def _looks_up_a_batch(fd: int) -> bool:
    class Batch(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint64) for name in ("start", "end", "keys", "values")] + [
            ("count", ctypes.c_uint32), ("fd", ctypes.c_uint32), ("element_flags", ctypes.c_uint64),
            ("flags", ctypes.c_uint64),
        ]  # fmt: skip

    room = ctypes.create_string_buffer(64)
    address = ctypes.addressof(room)
    try:
        syscall.bpf(syscall.MAP_LOOKUP_BATCH, Batch(0, address, address + 16, address + 32, 1, fd, 0, 0))
    except FileNotFoundError:  # the map is empty
        return True
    except OSError:
        return False
    return True


def _has_jit(_requirement: Requirement) -> bool | None:
    with suppress(OSError):
        return JIT.read_text(encoding="ascii").strip() != "0"
    return None
