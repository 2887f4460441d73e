"""A virtual machine whose only process is one Python script: the kernel from .lab/cache/kernel, and an initial file
system of exactly the files that the script needs. No KVM, no disk, no network.

What the script needs is seen by running it here first: the modules it had imported and the libraries it had mapped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.netns.lab.mounts import own_bpffs

ROOT = Path(__file__).resolve().parents[2]
KERNEL = ROOT / ".lab" / "cache" / "kernel"
CHECK = Path(__file__).with_name("packet_check.py")
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
sys.path.insert(0, {root!r})
libc = ctypes.CDLL(None, use_errno=True)
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


def needed_files(script: Path, argument: str, trace: Path) -> list[Path]:
    """Files that the script opens as modules or libraries. It is run here, with the project's checkout to import."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TRACE_TO": str(trace)}
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


def initial_file_system(script: Path, argument: str, trace: Path) -> bytes:
    """Everything under the path it has here, as Python finds its library by paths; `/init` runs the script."""
    python = Path(sys.executable).resolve()
    needed = [*needed_files(script, argument, trace), script, python]
    needed += (ROOT / "bpf").glob("*.[ho]")
    files = {str(path): (0o100755, path.read_bytes(), int(path.stat().st_mtime)) for path in needed}
    for name in links_to({Path(name) for name in files}):
        files[str(name)] = files[str(name.resolve())]
    init = INIT.format(python=python, root=str(ROOT), argv=[str(script), argument])
    mounts = {f"/{name}/.keep": (0o100644, b"", 0) for name in ("proc", "sys", "dev")}
    return archive({"/init": (0o100755, init.encode(), 0), **mounts, **files})


def links_to(files: set[Path]) -> list[Path]:
    """Other names of libraries, such as libbpf.so.1 for libbpf.so.1.1.2: by these they ask for each other."""
    places = {path.parent for path in files if ".so" in path.name} | {Path("/lib64")}
    return [link for place in places for link in place.glob("*.so*") if link.is_symlink() and link.resolve() in files]


def run(script: Path, argument: str, directory: Path, seconds: float) -> str:
    """What the machine wrote to its console. `directory`: an empty one, for the initial file system."""
    if not (KERNEL / "vmlinuz").exists():
        raise FileNotFoundError(f"{KERNEL}/vmlinuz: make kernel")
    image = directory / "initrd"
    image.write_bytes(initial_file_system(script, argument, directory / "trace"))
    command = [
        "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "512", "-nographic",
        "-no-reboot", "-nodefaults", "-serial", "stdio", "-monitor", "none", "-kernel", str(KERNEL / "vmlinuz"),
        "-initrd", str(image), "-append", "console=ttyS0 quiet panic=-1 mitigations=off",
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
    console = run(CHECK, "/sys/fs/bpf/floor", directory, SECONDS)
    lines = [line for line in console.splitlines() if line.startswith("{")]
    assert len(lines) == 1, console[-3000:]
    found: dict[str, Any] = json.loads(lines[0])
    return found
