"""Compiles what is written in C, for the Makefile and for the build of the wheel. Standard library only.

bpf/*.bpf.c      BPF byte code with BTF: the same for every little-endian machine and every kernel
cni/routerd-cni  a static program, for machines like this one: it runs whatever libraries a host has
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "bpf" / "egress.bpf.c"
FLAGS = ("-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3")
PLUGIN = ROOT / "cni" / "routerd-cni.c"
PLUGIN_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s")
PACKAGES = "Debian: apt-get install clang llvm libbpf-dev linux-libc-dev"


class CompileError(Exception):
    """One line that says what is missing or wrong."""


def is_stale(source: Path, target: Path) -> bool:
    if not target.exists():
        return True
    inputs = [source, *source.parent.glob("*.h")]
    return max(path.stat().st_mtime_ns for path in inputs) > target.stat().st_mtime_ns


def compile_object(source: Path = SOURCE) -> Path:
    """`source` -> the object beside it, if that is missing or older than its inputs. Raises CompileError."""
    target = source.with_suffix(".o")
    if is_stale(source, target):
        print(f"bpf: {source.name} -> {target.name}", flush=True)
        partial = target.with_suffix(".tmp")
        includes = (f"-I/usr/include/{platform.machine()}-linux-gnu", f"-I{source.parent}")
        _run(target, "clang", *FLAGS, *includes, "-c", str(source), "-o", str(partial))
        _run(target, "llvm-strip", "-g", str(partial))  # DWARF goes, BTF stays
        partial.replace(target)
    return target


def compile_plugin() -> Path:
    """The program beside its source, as `compile_object`. Raises CompileError."""
    target = PLUGIN.with_suffix("")
    if is_stale(PLUGIN, target):
        print(f"cni: {PLUGIN.name} -> {target.name}", flush=True)
        partial = target.with_suffix(".tmp")
        _run(target, "clang", *PLUGIN_FLAGS, str(PLUGIN), "-o", str(partial))
        partial.replace(target)
    return target


def compile_all() -> None:
    """Raises CompileError."""
    compile_object()
    compile_plugin()


def _run(target: Path, program: str, *arguments: str) -> None:
    if shutil.which(program) is None:
        raise CompileError(f"{program} is missing and {target.relative_to(ROOT)} must be compiled ({PACKAGES})")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    if "file not found" in done.stderr:
        wanted = next(line for line in done.stderr.splitlines() if "file not found" in line)
        raise CompileError(f"a header is missing: {wanted.partition('error: ')[2]} ({PACKAGES})")
    raise CompileError(f"{program} failed:\n{done.stderr.strip()}")


if __name__ == "__main__":
    try:
        compile_all()
    except CompileError as error:
        sys.exit(f"routerd: error: {error}")
