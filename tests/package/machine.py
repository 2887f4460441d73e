"""A virtual machine whose only process is one Python script: a kernel that `tools/kernel` unpacked, and an initial file
system of exactly the files that the script needs. No KVM, no disk, no network.

What the script needs is seen by running it here first: the modules it had imported and the libraries it had mapped.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.netns.lab.mounts import own_bpffs

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".lab" / "cache"
KERNEL = CACHE / "kernel"
DEBIAN_13 = CACHE / "kernels" / "trixie"
PLACES = [str(ROOT), sysconfig.get_path("purelib")]  # of modules
CHECK = Path(__file__).with_name("packet_check.py")
DEVICE_CHECK = CHECK.with_name("device_check.py")
MODULES = (
    "veth", "bridge", "vxlan", "macvlan", "ipvlan", "sctp", "nf_tables", "nft_ct", "nft_objref",
    "nf_conntrack_netlink",
    "sch_ingress", "cls_bpf", "virtio_pci", "virtio_net", "af_packet",
)  # fmt: skip
SECONDS = 120  # that it may take: 8 on a quiet machine
TRACE = """
import atexit, ctypes, json, os, runpy, sys, traceback
def note():
    mapped = {line.split(maxsplit=5)[-1].strip() for line in open("/proc/self/maps") if "/" in line}
    files = [getattr(m, a, None) for m in list(sys.modules.values()) for a in ("__file__", "__cached__")]
    files += sorted(p for p in mapped if p.startswith("/") and os.path.isfile(p))
    json.dump([f for f in files if f and os.path.isfile(f)], open(os.environ["TRACE_TO"], "w"))
atexit.register(note)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
INIT = """#!{python} -S
import ctypes, os, sys, traceback
sys.path[:0] = {places!r}
os.environ["PATH"] = {path!r}
libc = ctypes.CDLL(None, use_errno=True)
for name in sorted(os.listdir("/modules")):
    if not name[0].isdigit():
        continue
    module = os.open("/modules/" + name, os.O_RDONLY)
    if libc.syscall(313, module, b"", 0):  # finit_module(2)
        print("cannot load", name, os.strerror(ctypes.get_errno()), flush=True)
    os.close(module)
for kind, where in ((b"proc", b"/proc"), (b"sysfs", b"/sys"), (b"devtmpfs", b"/dev"), (b"bpf", b"/sys/fs/bpf")):
    if libc.mount(kind, where, kind, 0, None):
        print("cannot mount", where, os.strerror(ctypes.get_errno()), flush=True)
sys.argv = {argv!r}
try:
    import runpy
    print(flush=True)
    runpy.run_path(sys.argv[0], run_name="__main__")
except BaseException:
    traceback.print_exc(file=sys.stdout)
sys.stdout.flush()
libc.reboot(0x01234567)  # LINUX_REBOOT_CMD_RESTART: QEMU ends, as it was told not to reboot
"""
END = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Job:
    """A script for a machine. `rehearsal`: the argument with which it is run here, to see what it opens."""

    script: Path
    argument: str
    rehearsal: str
    programs: tuple[str, ...] = ()  # that it runs
    modules: tuple[str, ...] = ()  # of the kernel, loaded before, with what they depend on


def needed_files(script: Path, argument: str, trace: Path) -> list[Path]:
    """Files that the script opens as modules or libraries. It is run here, with the project's checkout to import."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(PLACES), "TRACE_TO": str(trace)}
    command = [sys.executable, "-S", "-c", TRACE, str(script), argument]
    with own_bpffs():
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=60)
    return [Path(name) for name in sorted(set(json.loads(trace.read_text(encoding="utf-8"))))]


def _entry(name: str, mode: int, data: bytes, mtime: int, inode: int) -> bytes:
    """One file of a cpio archive in the "newc" format: 13 numbers of 8 hex digits, name and data padded to 4 bytes."""
    numbers = (inode, mode, 0, 0, 1, mtime, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def archive(files: dict[str, tuple[int, bytes, int]]) -> bytes:
    """path -> (mode, content, time of change), with every parent directory, as a cpio archive."""
    parents = {str(parent)[1:] for name in files for parent in Path(name).parents if str(parent) != "/"}
    rows = [(name, 0o040755, b"", 0) for name in sorted(parents)]
    rows += [(name.lstrip("/"), mode, data, mtime) for name, (mode, data, mtime) in files.items()]
    entries = [_entry(*row, inode) for inode, row in enumerate(rows, 1)]
    return b"".join(entries) + _entry(END, 0, b"", 0, 0)


def program_files(name: str) -> list[Path]:
    """A program and its libraries, as ldd(1) names them."""
    found = shutil.which(name)
    assert found, f"{name} is missing: tools/setup installs it"
    shown = subprocess.run(["ldd", found], capture_output=True, text=True, check=True, timeout=20).stdout
    return [Path(found), *(Path(path).resolve() for path in re.findall(r"(/\S+) \(", shown))]


def kernel_modules(directory: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Modules under `directory`, what they depend on first; what is built in is left out."""
    places = {_plain(path.name.partition(".")[0]): path for path in directory.rglob("*.ko*")}
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        path = places.get(_plain(name))
        if path is None or path.name in found:
            return
        image = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        depends = re.search(rb"\0depends=([^\0]*)\0", image)
        for other in depends[1].decode().split(",") if depends else ():
            add(other)
        found[path.name] = image

    for name in names:
        add(name)
    return found


def _plain(module: str) -> str:
    return module.replace("-", "_")


def initial_file_system(job: Job, trace: Path, kernel: Path) -> bytes:
    """Everything under the path it has here, as Python finds its library by paths; `/init` runs the script."""
    python = Path(sys.executable).resolve()
    needed = [*needed_files(job.script, job.rehearsal, trace), job.script, python]
    needed += (ROOT / "bpf").glob("*.[ho]")
    needed += [path for name in job.programs for path in program_files(name)]
    files = {str(path): (0o100755, path.read_bytes(), int(path.stat().st_mtime)) for path in needed}
    for name in links_to({Path(name) for name in files}):
        files[str(name)] = files[str(name.resolve())]
    init = INIT.format(
        python=python, places=PLACES, path=os.environ["PATH"], argv=[str(job.script), job.argument]
    )  # fmt: skip
    modules = kernel_modules(kernel / "modules", job.modules)
    numbered = {f"/modules/{i:03}-{name}": (0o100644, image, 0) for i, (name, image) in enumerate(modules.items())}
    mounts = {f"/{name}/.keep": (0o100644, b"", 0) for name in ("proc", "sys", "dev", "run", "tmp", "modules")}
    return archive({"/init": (0o100755, init.encode(), 0), **mounts, **numbered, **files})


def links_to(files: set[Path]) -> list[Path]:
    """Other names of libraries, such as libbpf.so.1 for libbpf.so.1.1.2: by these they ask for each other."""
    places = {path.parent for path in files if ".so" in path.name} | {Path("/lib64")}
    return [link for place in places for link in place.glob("*.so*") if link.is_symlink() and link.resolve() in files]


def run(job: Job, directory: Path, seconds: float, kernel: Path = KERNEL) -> str:
    """What the machine wrote to its console. `directory`: an empty one, for the initial file system."""
    if not (kernel / "vmlinuz").exists():
        raise FileNotFoundError(f"{kernel}/vmlinuz: make kernel")
    image = directory / "initrd"
    image.write_bytes(initial_file_system(job, directory / "trace", kernel))
    command = [
        "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "768", "-nographic",
        "-no-reboot", "-nodefaults", "-serial", "stdio", "-monitor", "none", "-kernel", str(kernel / "vmlinuz"),
        "-initrd", str(image), "-append", "console=ttyS0 quiet panic=-1 mitigations=off",
        "-netdev", "hubport,id=nowhere,hubid=0", "-device", "virtio-net-pci,netdev=nowhere",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )
    return done.stdout + done.stderr


def check_packets(directory: Path) -> dict[str, Any]:
    """What `packet_check.py` found inside. `directory`: an empty one."""
    (found,) = _told(run(Job(CHECK, "/sys/fs/bpf/floor", "/sys/fs/bpf/floor"), directory, SECONDS), 1)
    return found


def check_devices(directory: Path, kinds: Sequence[str], kernel: Path) -> dict[str, dict[str, Any]]:
    """What `device_check.py` found inside, by kind of device. `directory`: an empty one."""
    job = Job(DEVICE_CHECK, ",".join(kinds), "load", ("ip", "nft", "tc"), MODULES)
    console = run(job, directory, SECONDS * (1 + len(kinds)), kernel)
    return {row["kind"]: row for row in _told(console, len(kinds))}


def _told(console: str, count: int) -> list[dict[str, Any]]:
    lines = [line for line in console.splitlines() if line.startswith("{")]
    assert len(lines) == count, console[-3000:]
    return list(map(json.loads, lines))
