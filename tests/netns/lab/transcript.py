"""How the demo tells what it does: numbered scenes with evidence, then a table. Output at most 100 columns wide."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TextIO

from tests.netns.lab.daemons import Daemons
from tests.netns.lab.netns import CommandError
from tests.waiting import WaitTimeout

WIDTH = 100


class Row(NamedTuple):
    """One figure of the summary. What a missed bar means: "claim" always fails, "figure" fails unless bars are notes
    (a busy machine is slow, not wrong), "note" never does. A missed bar is marked in any case."""

    what: str
    measured: str
    bar: str = ""  # "" = none
    weight: Literal["claim", "figure", "note"] = "figure"


class StoryFailed(Exception):
    """A claim did not hold; `str()` is the evidence. `vital`: nothing after it can hold."""

    def __init__(self, evidence: str, *, vital: bool = False) -> None:
        super().__init__(evidence)
        self.vital = vital


class Transcript:
    """Writes as things happen, so that a reader sees progress."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._number = 0
        self.failed: list[str] = []

    def say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def scene(self, title: str, act: Callable[[], Sequence[str]]) -> bool:
        """Plays one scene; returns False when the story cannot go on."""
        self._number += 1
        begin = time.monotonic()
        vital = False
        try:
            evidence, mark = list(act()), "✓"
        except (StoryFailed, CommandError, WaitTimeout) as error:
            evidence, mark = str(error).splitlines(), "✗"
            vital = isinstance(error, WaitTimeout) or getattr(error, "vital", False)
            self.failed.append(title)
        spent = f"{time.monotonic() - begin:.1f} s"
        self.say(f"{mark} {self._number:2} {title:<{WIDTH - 12}.{WIDTH - 12}}{spent:>6}")
        for line in evidence:
            self.say(
                textwrap.fill(line, WIDTH, initial_indent="     ", subsequent_indent="       ", break_on_hyphens=False)
            )
        return not vital

    def table(self, rows: Sequence[Row], *, bars_are_notes: bool = False) -> None:
        """The summary: a missed bar is marked ✗ when it counts as a failure, ! when it does not."""
        self.say(f"\n  {'':56}{'measured':>16}{'bar':>14}")
        noted: list[str] = []
        for row in rows:
            mark = " "
            if row.bar and not meets(row.measured, row.bar):
                fails = row.weight == "claim" or (row.weight == "figure" and not bars_are_notes)
                (self.failed if fails else noted).append(row.what)
                mark = "✗" if fails else "!"
            self.say(f"{mark} {row.what:<56.56}{row.measured:>16}{row.bar:>14}")
        verdict = f"FAILED: {'; '.join(self.failed)}" if self.failed else "Everything held."
        self.say(
            f"\n{verdict}"
            + (f"\nMissed, and not counted, as it says how busy this machine is: {'; '.join(noted)}" if noted else "")
        )

    def logs(self, daemons: Daemons, lines: int = 6) -> None:
        """The last words of every daemon, for whoever has to find out why."""
        for daemon in daemons.everyone():
            said = daemon.log.read_text(errors="replace").splitlines() if daemon.log.exists() else []
            self.say(f"--- {daemon.host.label} {daemon.role}, last of {len(said)} lines")
            for line in said[-lines:]:
                self.say(f"    {line[: WIDTH * 2]}")


def _wrapped(line: str) -> str:
    return textwrap.fill(line, WIDTH, initial_indent=" " * 5, subsequent_indent=" " * 7, break_on_hyphens=False)


def meets(measured: str, bar: str) -> bool:
    """Whether "1.2 s" meets "< 3 s", or "0 packets" meets "= 0 packets"; both in the same unit."""
    sign, limit = bar.split()[:2]
    value = float(measured.split()[0])
    return value < float(limit) if sign == "<" else value == float(limit)
