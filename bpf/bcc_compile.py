"""Compiles the C sources through bcc and prints the result as JSON. A process of its own (`python -m bpf.bcc_compile`):
bcc brings LLVM along, some 100 MB that the agent need not keep, and clang writes its diagnostics to standard error.

`bcc` is Debian's python3-bpfcc, taken from the system's packages by its path and nothing else with it; the package of
that name on PyPI is something else. Loads nothing and makes no map that outlives the process.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

SYSTEM_PACKAGES = Path("/usr/lib/python3/dist-packages")
SOURCES = Path(__file__).parent
SHIM = SOURCES / "bcc"
MAIN = "egress.bpf.c"
MAP = re.compile(r"^PINNED_MAP\((\w+),", re.MULTILINE)
CALLBACK_USE = re.compile(r"\bbpf_(?:loop|for_each_map_elem)\([^,]+,\s*(\w+),")
FUNCTION = re.compile(r"^static long (\w+)\(([^)]*)\)\n\{", re.MULTILINE)
KERNEL_HEADER = re.compile(r"#include <linux/(\w+\.h)>")
HEAD, TAIL = "head_", "tail_"
INSTRUCTION = 8
EXIT = 0x95
LONGEST_CALLBACK = 1 << 16


class CompileError(Exception):
    """What is missing or wrong; clang's own words are on standard error before it."""


def import_bcc(packages: Path = SYSTEM_PACKAGES) -> ModuleType:
    """The module `bcc.libbcc` of the distribution's package. CompileError when it is not installed."""
    package = packages / "bcc"
    spec = importlib.util.spec_from_file_location(
        "bcc", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    if spec is None or spec.loader is None or not (package / "libbcc.py").exists():
        raise CompileError(f"{package} is missing: install it (Debian: apt-get install python3-bpfcc)")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bcc"] = module
    spec.loader.exec_module(module)
    return importlib.import_module("bcc.libbcc")


def callbacks(sources: Iterable[str]) -> dict[str, str]:
    """Functions that helpers call -> their parameters as the source writes them."""
    text = "\n".join(sources)
    used = dict.fromkeys(CALLBACK_USE.findall(text))
    found = {name: " ".join(parameters.split()) for name, parameters in FUNCTION.findall(text) if name in used}
    if missing := used.keys() - found.keys():
        raise CompileError(f"no `static long` function: {', '.join(sorted(missing))}")
    return found


def program_text(main: str, maps: Iterable[str], functions: dict[str, str]) -> str:
    """The one text that bcc compiles.

    bcc shows functions with external linkage in this text alone, and a callback must be static: it is put into a
    section of its own between two functions that bcc shows.
    """
    numbers = [f"MAP_{name} = {number}" for number, name in enumerate(maps)]
    numbers += [f"CALLBACK_{name} = {number}" for number, name in enumerate(functions)]
    before, after = [f"enum {{ {', '.join(numbers)} }};", "struct bpf_map;"], []
    for name, parameters in functions.items():
        section = f'__attribute__((section(".bpf.fn.{name}"), used))'
        before.append(f"{section} __attribute__((__noinline__)) static long {name}({parameters});")
        before.append(f"{section} int {HEAD}{name}(struct __sk_buff *skb) {{ return 0; }}")
        after.append(f"{section} int {TAIL}{name}(struct __sk_buff *skb) {{ return 0; }}")
    return "\n".join([*before, '#line 1 "egress.bpf.c"', main, *after, ""])


def write_uapi(sources: Iterable[str], directory: Path) -> None:
    """A kernel has headers twice: for itself, which bcc would find, and for user space, which are meant here."""
    target = directory / "linux"
    target.mkdir()
    for name in {name for text in sources for name in KERNEL_HEADER.findall(text)} - {"types.h"}:
        (target / name).write_text(f"#include <uapi/linux/{name}>\n", encoding="ascii")


def compile_sources() -> dict[str, Any]:
    """maps: number, name and what bcc says of each; programs and callbacks: their code as hexadecimal digits."""
    lib = import_bcc().lib
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*.[hc]"))}
    functions = callbacks(texts.values())
    names = [name for text in texts.values() for name in MAP.findall(text)]
    with tempfile.TemporaryDirectory(prefix="routerd-bcc-") as directory:
        write_uapi(texts.values(), Path(directory))
        flags = [f"-I{SHIM}", f"-I{directory}", f"-I{SOURCES}", "-Wno-unused-function"]
        words = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        text = program_text(texts[MAIN], names, functions).encode()
        module = lib.bpf_module_create_c_from_string(text, 0, words, len(flags), True, None)
    if not module:
        raise CompileError("bcc could not compile the sources")
    return {"maps": [_map(lib, module, name) for name in names], **_code(lib, module, functions)}


def _map(lib: Any, module: int, name: str) -> dict[str, Any]:
    table = f"table_{name}".encode()
    number = lib.bpf_table_id(module, table)
    return {
        "name": name,
        "type": lib.bpf_table_type_id(module, number),
        "key_size": lib.bpf_table_key_size_id(module, number),
        "value_size": lib.bpf_table_leaf_size_id(module, number),
        "max_entries": lib.bpf_table_max_entries_id(module, number),
        "flags": lib.bpf_table_flags_id(module, number),
    }


def _code(lib: Any, module: int, functions: dict[str, str]) -> dict[str, Any]:
    places = {}
    for number in range(lib.bpf_num_functions(module)):
        name = lib.bpf_function_name(module, number)
        places[name.decode()] = (lib.bpf_function_start(module, name), lib.bpf_function_size(module, name))
    bodies = [(name, _between(places[HEAD + name], places[TAIL + name])) for name in functions]
    programs = {
        name: ctypes.string_at(*place).hex() for name, place in places.items() if not name.startswith((HEAD, TAIL))
    }
    return {"programs": programs, "callbacks": bodies}


def _between(head: tuple[int, int], tail: tuple[int, int]) -> str:
    """The code after one function and before another, which is a function itself."""
    start, size = sum(head), tail[0] - sum(head)
    code = ctypes.string_at(start, size) if 0 < size < LONGEST_CALLBACK and size % INSTRUCTION == 0 else b""
    if not any(code[offset] == EXIT for offset in range(0, size, INSTRUCTION)):
        raise CompileError("this bcc lays functions out in an order that is not known: use the prebuilt object")
    return code.hex()


if __name__ == "__main__":
    try:
        json.dump(compile_sources(), sys.stdout)
    except CompileError as error:
        sys.exit(str(error))
