"""The BPF file system that pins live on: whether it is there, and mounting it at its usual place."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

MOUNT_POINT = Path("/sys/fs/bpf")
BPFFS_MAGIC, SYSFS_MAGIC = 0xCAFE4A11, 0x62656572  # <linux/magic.h>
NOSUID_NODEV_NOEXEC = 2 | 4 | 8  # <linux/mount.h>; systemd mounts it with these and this mode
MODE = b"mode=0700"
ADVICE = (
    f"as root on the host, run mount -t bpf bpf {MOUNT_POINT} (for good: systemd's sys-fs-bpf.mount, by a line in "
    "/etc/fstab; in Kubernetes: the privileged init container of configs/deploy/agent.yaml), or set pin-dir to a "
    "directory on another one"
)


class _StatFs(ctypes.Structure):
    _fields_ = [("type", ctypes.c_long), ("rest", ctypes.c_char * 256)]


def lack(directory: Path) -> str:
    """Why nothing can be pinned at `directory`, and who must act; "" = it can. Its last parts need not exist yet."""
    existing = next(parent for parent in (directory, *directory.parents) if parent.exists())
    return "" if _magic(existing) == BPFFS_MAGIC else f"{directory}: not on a BPF file system: {ADVICE}"


def mount_missing(directory: Path) -> bool:
    """Mounts one at /sys/fs/bpf if `directory` lies below it and nothing but sysfs itself is there; whether it did.

    PermissionError without CAP_SYS_ADMIN, or where seccomp or AppArmor forbid it.
    """
    if not directory.is_relative_to(MOUNT_POINT) or not MOUNT_POINT.exists() or _magic(MOUNT_POINT) != SYSFS_MAGIC:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(MOUNT_POINT), b"bpf", ctypes.c_ulong(NOSUID_NODEV_NOEXEC), MODE):
        raise _error(MOUNT_POINT)
    return True


def _magic(path: Path) -> int:
    result = _StatFs()
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), ctypes.byref(result)):
        raise _error(path)
    return int(result.type) & 0xFFFFFFFF


def _error(path: Path) -> OSError:
    return OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
