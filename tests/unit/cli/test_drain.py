"""`routerd drain --wait`: what it says, and when it returns."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from routerd import codes
from routerd.cli.main import main
from routerd.serve.api import answering

NOTICE = "peers are asked to prefer other nodes; the paths are withdrawn in {} s"


def found(state: str, *waits: str, notes: Iterable[str] = ()) -> dict[str, Any]:
    return {"state": state, "reason": "Drained", "message": "it is drained", "waits": list(waits), "notes": list(notes)}


def said(directory: Path, answers: Iterator[dict[str, Any]], *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and what was asked of an agent that gives these answers."""
    asked: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request)
        return next(answers)

    async def story() -> int:
        socket = directory / "agent.sock"
        async with answering(socket, answer):
            return await asyncio.to_thread(main, [*arguments, "--socket", str(socket)])

    return asyncio.run(story()), asked


def test_it_waits_and_says_for_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([
        found("draining", NOTICE.format(5)), found("draining", NOTICE.format(4)), found("draining", "the routers"),
        found("drained", notes=["a pod CIDR ends"]),
    ])  # fmt: skip
    code, asked = said(tmp_path, answers, "drain", "--wait")
    told = capsys.readouterr()
    assert code == codes.OK
    assert asked == [{"do": "drain"}, *[{"get": "drain"}] * 3]
    assert told.out == "safe to stop: the node is drained\n"
    assert told.err.splitlines() == [f"waits: {NOTICE.format(5)}", "waits: the routers", "note: a pod CIDR ends"]


def test_it_does_not_wait_for_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = said(tmp_path, iter([found("draining", "an egress IP")]), "drain", "--wait", "--timeout", "0")
    told = capsys.readouterr()
    assert (code, told.out) == (codes.REFUSED, "")
    assert told.err.splitlines() == [
        "waits: an egress IP",
        "routerd: not safe to stop after 0 s, see above; it goes on",
    ]


def test_without_waiting_nothing_is_called_safe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(tmp_path, iter([found("draining", "the routers")]), "drain")[0] == codes.OK
    assert "may be stopped" in capsys.readouterr().out


def test_somebody_undrains_meanwhile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([found("draining", "the routers"), found("serving")])
    assert said(tmp_path, answers, "drain", "--wait")[0] == codes.REFUSED
    assert "undrained" in capsys.readouterr().err


def test_undrain_says_whether_the_node_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(tmp_path, iter([found("serving")]), "undrain") == (codes.OK, [{"do": "undrain"}])
    assert said(tmp_path, iter([found("draining")]), "undrain")[0] == codes.REFUSED
    assert "it leaves all the same: it is drained" in capsys.readouterr().err
