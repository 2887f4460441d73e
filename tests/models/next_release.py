"""The release after this one, as it may be: flows, ports and groups have a field more, in the midst of the others.

Its object is compiled from these sources, and its Python is this one with other mirrors of the maps.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import Structure, c_uint64
from pathlib import Path
from typing import Any

import pytest

from bpf import handover, layout, loader
from tools.compile_c import SOURCE, compile_object

VERSION = layout.LAYOUT_VERSION + 1
# C structure -> its mirror, and the field before which there is another one
CHANGED = {
    "flow_value": ("FlowValue", "egress_ip"),
    "reverse_value": ("ReverseValue", "pod"),
    "block": ("Block", "echoed"),
}
TABLES = ("flows", "reverse", "groups")


@contextmanager
def next_release(directory: Path) -> Iterator[None]:
    """Within, everything that loads or reads the datapath is of that release. `directory` is empty."""
    sources = shutil.copytree(SOURCE.parent, directory / "bpf", ignore=shutil.ignore_patterns("*.o"))
    types = sources / "types.h"
    types.write_text(_changed(types.read_text()))
    mirrors = {name: _mirror(getattr(layout, name), before) for name, before in CHANGED.values()}
    mirrors["GroupValue"] = _structure(
        "GroupValue", [(name, kind if name != "blocks" else mirrors["Block"] * layout.MAX_BLOCKS)
                       for name, kind in layout.GroupValue._fields_]
    )  # fmt: skip
    maps = {name: (key, _newest(value, mirrors)) for name, (key, value) in layout.MAPS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handover, "EARLIER", {layout.LAYOUT_VERSION: {name: layout.MAPS[name] for name in TABLES}})
        patch.setattr(loader, "OBJECT", str(compile_object(sources / SOURCE.name)))
        patch.setattr(layout, "LAYOUT_VERSION", VERSION)
        patch.setattr(layout, "MAPS", maps)
        for name, mirror in mirrors.items():
            patch.setattr(layout, name, mirror)
        yield


def _changed(types: str) -> str:
    for structure, (_, field) in CHANGED.items():
        pattern = rf"(struct {structure} \{{.*?)(\n\t[^\n]*\b{field};)"
        types, count = re.subn(pattern, r"\1\n\t__u64 novelty;\2", types, count=1, flags=re.DOTALL)
        assert count == 1, structure
    return types.replace(f"#define LAYOUT_VERSION {VERSION - 1}", f"#define LAYOUT_VERSION {VERSION}")


def _mirror(mirror: type[Structure], before: str) -> type[Structure]:
    rows: list[Any] = []
    for row in mirror._fields_:
        rows += [("novelty", c_uint64), row] if row[0] == before else [row]
    return _structure(mirror.__name__, rows)


def _structure(name: str, rows: list[Any]) -> type[Structure]:
    return type(name, (Structure,), {"_fields_": rows})


def _newest(value: type[Structure] | None, mirrors: dict[str, type[Structure]]) -> type[Structure] | None:
    return mirrors.get(value.__name__, value) if value is not None else None
