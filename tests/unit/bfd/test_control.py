"""What is said on the socket of control says the same when it is read, and anything else is refused."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bfd.control import (
    ControlError,
    Kept,
    Probes,
    Report,
    Wanted,
    kept_text,
    parse_kept,
    parse_report,
    parse_wanted,
    report_line,
    view,
    wanted_line,
)
from bfd.probes import Probing
from bfd.session import Session, Timers
from bfd.table import Order
from tests.models.bfd_wire import A, B, Wire

ORDER = Order(B, A, Timers(50_000, 60_000, 4, passive=True))
PROBING = Probing("routerd.vxlan", A, 50_000, frozenset({2, 3}))
SIX = Order(ip_address("fd00::2"), ip_address("fd00::1"))


def a_session() -> Session:
    wire = Wire()
    wire.order(A, Timers())
    wire.order(B, Timers())
    wire.run(5)
    return wire.session(A)


def test_reports_orders_and_what_is_kept_say_the_same_when_they_are_read() -> None:
    told = Report(
        "ab",
        True,
        "no port",
        {"ttl": 3},
        {ORDER.ends: view(ORDER, a_session())},
        Probes(PROBING, "no device", 1, 0.5),
    )
    assert parse_report(report_line(told)) == told
    assert told.sessions[ORDER.ends].state == "up"
    for wanted in (
        Wanted({ORDER.ends: ORDER, SIX.ends: SIX}),
        Wanted({}),
        Wanted(probing=PROBING),
        Wanted({ORDER.ends: ORDER}, PROBING),
    ):
        assert parse_wanted(wanted_line(wanted)) == wanted
    read = parse_kept(kept_text(Kept({ORDER.ends: ORDER}, {ORDER.ends: a_session()}, 77.5, PROBING)).encode())
    assert (read.orders, read.good_until, read.probing) == ({ORDER.ends: ORDER}, 77.5, PROBING)
    for name in ("discriminator", "state", "remote", "since", "falls", "was_up"):
        assert getattr(read.paused[ORDER.ends], name) == getattr(a_session(), name), name


@pytest.mark.parametrize(
    "change",
    [
        {"peer": "tor"}, {"peer": None}, {"local": "fd00::1"}, {"min_tx": 0}, {"min_tx": 2**32}, {"min_tx": "50"},
        {"min_tx": True}, {"min_rx": -1}, {"multiplier": 0}, {"multiplier": 256}, {"passive": 1},
    ],
)  # fmt: skip
def test_what_no_session_can_be_is_refused(change: dict[str, object]) -> None:
    value = json.loads(wanted_line(Wanted({ORDER.ends: ORDER})))
    value["sessions"][0].update(change)
    with pytest.raises(ControlError):
        parse_wanted(json.dumps(value).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"device": ""}, {"device": "a" * 16}, {"device": 3}, {"local": "here"}, {"interval": 0}, {"interval": "50"},
        {"interval": 2**32}, {"gateways": [0]}, {"gateways": [1 << 16]}, {"gateways": ["2"]}, {"gateways": None},
    ],
)  # fmt: skip
def test_what_cannot_be_probed_is_refused(change: dict[str, object]) -> None:
    value = json.loads(wanted_line(Wanted(probing=PROBING)))
    value["probing"].update(change)
    with pytest.raises(ControlError):
        parse_wanted(json.dumps(value).encode())


def test_a_process_of_a_release_without_probes_is_understood() -> None:
    value = json.loads(report_line(Report("ab", probes=Probes())))
    del value["probes"]
    assert parse_report(json.dumps(value).encode()).probes is None


@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(json.dumps).map(str.encode)))
def test_rubbish_is_refused(line: bytes) -> None:
    for parse in (parse_wanted, parse_report, parse_kept):
        with pytest.raises(ControlError):
            parse(line)
