"""The second loader: the same C sources, compiled by bcc on the node; the same pins. Attaches nothing.

For nodes where the prebuilt object is of no use. It needs Debian's python3-bpfcc and the headers of a kernel: those in
/lib/modules/RELEASE/build, or those that the environment variable BCC_KERNEL_SOURCE names. bcc compiles and tells the
maps' sizes; loading is bpf(2), as bcc has neither callbacks nor pins for maps that exist already.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any

from bpf import linking, syscall
from bpf.layout import PROGRAMS
from bpf.loader import LoadError, all_programs_pinned, check_bpffs, make_directories, object_digest, pinned_digest

MAP_CREATE, PROG_LOAD, BTF_LOAD = 0, 5, 18
PROGRAM_TYPE_SCHED_CLS = 3
NAME_LENGTH = 15
LOG_SIZE = 1 << 20
COMPILE_SECONDS = 120  # 4 on a quiet machine
SOURCES = Path(__file__).parent
MODULES = Path("/lib/modules")
OWN_HEADERS = Path("/sys/kernel/kheaders.tar.xz")  # CONFIG_IKHEADERS


class _MapCreate(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("type", "key_size", "value_size", "max_entries", "flags")),
        ("inner_map_fd", ctypes.c_uint32), ("numa_node", ctypes.c_uint32), ("name", ctypes.c_char * 16),
    ]  # fmt: skip


class _ProgramLoad(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_uint32), ("count", ctypes.c_uint32), ("code", ctypes.c_uint64), ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32), ("log_size", ctypes.c_uint32), ("log", ctypes.c_uint64),
        ("kernel_version", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("name", ctypes.c_char * 16),
        ("ifindex", ctypes.c_uint32), ("expected_attach_type", ctypes.c_uint32), ("btf_fd", ctypes.c_uint32),
        ("function_size", ctypes.c_uint32), ("functions", ctypes.c_uint64), ("function_count", ctypes.c_uint32),
    ]  # fmt: skip


class _BtfLoad(ctypes.Structure):
    _fields_ = [("btf", ctypes.c_uint64), ("log", ctypes.c_uint64), ("size", ctypes.c_uint32)]


def digest() -> int:
    """64 bits that name what `load` would load: the sources, and the kernel whose headers they meet."""
    sources = sorted([*SOURCES.rglob("*.h"), *SOURCES.glob("*.c")])
    content = b"".join(path.read_bytes() for path in sources)
    headers = os.environ.get("BCC_KERNEL_SOURCE", "")
    return object_digest(b"bcc" + hashlib.sha256(content).digest() + f"{os.uname().release}{headers}".encode())


def load(pin_directory: Path, sizes: Mapping[str, int] | None = None) -> bool:
    """As `bpf.loader.load`, with the same pins. LoadError says what bcc, clang or the kernel said."""
    check_bpffs(pin_directory)
    if pinned_digest(pin_directory) == digest() and all_programs_pinned(pin_directory):
        return False
    compiled = compile_sources()
    make_directories(pin_directory)
    with ExitStack() as stack:
        maps = {}
        for number, row in enumerate(compiled["maps"]):
            maps[number] = _pinned_map(row, pin_directory / "maps" / row["name"], (sizes or {}).get(row["name"], 0))
            stack.callback(os.close, maps[number])
        for name in PROGRAMS:
            _load_program(_link(name, compiled, maps), pin_directory / "programs" / name)
    return True


def check_headers(modules: Path = MODULES, own: Path = OWN_HEADERS) -> None:
    """LoadError unless bcc will find headers. Debian splits a kernel's in two: `build` and `source`."""
    named, installed = os.environ.get("BCC_KERNEL_SOURCE"), modules / os.uname().release
    places = [Path(named)] if named else [installed / "build", installed / "source"]
    if not own.exists() and not any((place / "include" / "linux" / "kconfig.h").exists() for place in places):
        raise LoadError(
            f"no kernel headers in {places[0]}: install them (Debian: apt-get install linux-headers-$(uname -r)), or "
            "name others in the environment variable BCC_KERNEL_SOURCE"
        )


@cache
def compile_sources() -> dict[str, Any]:
    """What bpf/bcc_compile.py prints, compiled once in a process of its own."""
    check_headers()
    command = [sys.executable, "-m", "bpf.bcc_compile"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES.parent)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise LoadError(f"bcc did not compile the sources within {COMPILE_SECONDS} s") from None
    if done.returncode:
        said = [line for line in done.stderr.strip().splitlines() if "error:" in line][:2]
        raise LoadError("; ".join([*said, *done.stderr.strip().splitlines()[-1:]]))
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _link(name: str, compiled: Mapping[str, Any], maps: Mapping[int, int]) -> linking.Linked:
    code = compiled["programs"].get(name)
    if code is None:
        raise LoadError(f"bcc compiled no program {name}")
    callbacks = [(callback, bytes.fromhex(body)) for callback, body in compiled["callbacks"]]
    return linking.link(name, bytes.fromhex(code), callbacks, maps)


def _pinned_map(row: Mapping[str, Any], path: Path, entries: int) -> int:
    """Descriptor of the map pinned at `path`; it is made if there is none."""
    with suppress(FileNotFoundError):
        return _checked(row, path)
    attributes = _MapCreate(
        row["type"], row["key_size"], row["value_size"], entries or row["max_entries"], row["flags"], 0, 0,
        row["name"].encode()[:NAME_LENGTH],
    )  # fmt: skip
    try:
        fd = syscall.bpf(MAP_CREATE, attributes)
    except OSError as error:
        raise LoadError(f"the kernel refused map {row['name']}: {error.strerror}") from error
    syscall.pin(fd, path)
    return fd


def _checked(row: Mapping[str, Any], path: Path) -> int:
    fd = syscall.open_pinned(path)
    found = syscall.BpfMap(fd)
    value_size = row["value_size"]
    if found.type == syscall.MAP_TYPE_PERCPU_ARRAY:
        value_size = (value_size + 7) // 8 * 8 * syscall.possible_cpus()
    if (found.type, found.key_size, found.value_size) != (row["type"], row["key_size"], value_size):
        os.close(fd)
        raise LoadError(f"{path} is a map of another layout: remove it with `routerd cleanup` first")
    return fd


def _load_program(linked: linking.Linked, path: Path) -> None:
    btf = _load_btf(linking.function_types([name for _, name in linked.functions]))
    try:
        fd = _load_code(linked, btf)
    finally:
        os.close(btf)
    try:
        path.unlink(missing_ok=True)
        syscall.pin(fd, path)
    finally:
        os.close(fd)


def _load_btf(content: bytes) -> int:
    data = ctypes.create_string_buffer(content, len(content))
    return syscall.bpf(BTF_LOAD, _BtfLoad(ctypes.addressof(data), 0, len(content)))


def _load_code(linked: linking.Linked, btf: int) -> int:
    rows = linking.function_rows(linked)
    code = ctypes.create_string_buffer(linked.code, len(linked.code))
    info = ctypes.create_string_buffer(rows, len(rows))
    license_text = ctypes.create_string_buffer(b"GPL")
    name = linked.functions[0][1]
    attributes = _ProgramLoad(
        type=PROGRAM_TYPE_SCHED_CLS, count=len(linked.code) // linking.INSTRUCTION, code=ctypes.addressof(code),
        license=ctypes.addressof(license_text), name=name.encode()[:NAME_LENGTH], btf_fd=btf,
        function_size=len(rows) // len(linked.functions), functions=ctypes.addressof(info),
        function_count=len(linked.functions),
    )  # fmt: skip
    try:
        return syscall.bpf(PROG_LOAD, attributes)
    except OSError as error:
        raise LoadError(f"the kernel refused {name} ({error.strerror}): {_verifier_log(attributes)}") from error


def _verifier_log(attributes: _ProgramLoad) -> str:
    """The last lines of what the verifier says when it is asked again."""
    log = ctypes.create_string_buffer(LOG_SIZE)
    attributes.log_level, attributes.log_size, attributes.log = 1, LOG_SIZE, ctypes.addressof(log)
    with suppress(OSError):
        os.close(syscall.bpf(PROG_LOAD, attributes))
    lines = [line for line in log.value.decode(errors="replace").splitlines() if not line.startswith("processed")]
    return "; ".join(lines[-3:])
