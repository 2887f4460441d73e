"""What benches of the datapath have in common: the machine's name, rows as a file, and the words of a verdict."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "build" / "bench"

Row = dict[str, Any]


def machine() -> str:
    """Processor, number of CPUs and kernel: figures of two machines are not compared."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part"))]
    return (
        f"{names[0] if names else os.uname().machine}, {len(os.sched_getaffinity(0))} CPUs, Linux {os.uname().release}"
    )


def write(name: str, rows: Sequence[Row]) -> Path:
    """One JSON object a line in `build/bench/NAME.json`, each with the machine's name."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path, where = RESULTS / f"{name}.json", machine()
    path.write_text("".join(f"{json.dumps({**row, 'machine': where})}\n" for row in rows))
    return path


def forget(name: str) -> None:
    """Rows of an earlier run are no result of this one, also if it fails."""
    (RESULTS / f"{name}.json").unlink(missing_ok=True)


@contextmanager
def compiled(source: str, *options: str) -> Iterator[Path]:
    """A C file of this directory, compiled for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="routerd-bench-") as directory:
        output = Path(directory) / Path(source).stem
        subprocess.run(["clang", "-O2", "-Wall", "-Werror", *options, "-o", output, HERE / source], check=True)
        yield output


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, first, third quartile)."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    first, _, third = quantiles(values, n=4, method="inclusive")
    return median(values), first, third


def ratios(
    rows: Iterable[Mapping[str, Any]], metric: str, mode: str, other: str, policies: int
) -> tuple[float, float, float]:
    """`mode`'s `metric` divided by `other`'s of the same round: median and quartiles over the rounds. Rows of a mode
    that knows no policies have 0.
    """
    by_mode: dict[str, dict[int, float]] = {mode: {}, other: {}}
    for row in rows:
        if row["policies"] in (policies, 0) and row["mode"] in by_mode:
            by_mode[row["mode"]][row["round"]] = row[metric]
    return spread([value / by_mode[other][number] for number, value in sorted(by_mode[mode].items())])


def verdict(held: bool) -> str:
    return "held" if held else "MISSED"


def at_most(value: float, bar: float) -> str:
    return _beside(value, bar, value <= bar)


def at_least(value: float, bar: float) -> str:
    return _beside(value, bar, value >= bar)


def _beside(value: float, bar: float, held: bool) -> str:
    by = f" by {abs(value / bar - 1):.1%}" if bar and not held else ""
    return f"bar {bar:g} {verdict(held)}{by}"
