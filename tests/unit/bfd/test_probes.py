"""Probes of gateways, on virtual time: when they are sent, to whom, and what they look like."""

from __future__ import annotations

import random
import struct
from collections import defaultdict
from dataclasses import replace
from ipaddress import ip_address
from itertools import pairwise

import pytest

from bfd.probes import LATE, SPREAD, IPAddress, Prober, Probing, Stall, frame
from bfd.wheel import NEVER
from bpf import layout
from tests.bpf.packets import Shape, build, parse
from tests.models.tables import UDP, Packet

FOUR, SIX = ip_address("10.0.0.1"), ip_address("fd00::1")
INTERVAL = 0.05
PROBING = Probing("tunnel", FOUR, 50_000, frozenset({2, 3, 500}))


class Line:
    """Where frames go, in a time that goes on at once."""

    def __init__(self, probing: Probing = PROBING, seed: int = 1) -> None:
        chance = random.Random(seed)
        self.prober = Prober(chance.random, lambda: chance.getrandbits(64) | 1)
        self.now = 1000.0
        self.sent: dict[int, list[float]] = defaultdict(list)
        self.tokens: list[int] = []
        self.prober.order(probing, self.now)

    def turn(self) -> None:
        for each in self.prober.advance(self.now):
            mark, number = struct.unpack_from("!IH", each)
            assert mark == layout.PROBE_MAC
            self.sent[number].append(self.now)
            self.tokens.append(layout.decode(layout.Probe, each[-16:]).token)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.prober.next_due <= end:
            self.now = max(self.now, self.prober.next_due)
            self.turn()
        self.now = end


def test_each_gateway_is_probed_each_interval_and_a_bit_earlier() -> None:
    line = Line()
    line.run(10)
    assert line.sent.keys() == PROBING.gateways
    for times in line.sent.values():
        assert times[0] - 1000 <= INTERVAL
        steps = [after - before for before, after in pairwise(times)]
        assert min(steps) >= INTERVAL * (1 - SPREAD) - 1e-9
        assert max(steps) <= INTERVAL + 1e-9
    assert line.prober.stall == Stall()


def test_no_two_probes_have_the_same_token() -> None:
    line = Line()
    line.run(10)
    assert len(set(line.tokens)) == len(line.tokens) > 500
    assert 0 not in line.tokens


def test_nodes_that_begin_together_do_not_probe_together() -> None:
    begun = [Line(seed=seed) for seed in range(50)]
    for line in begun:
        line.run(1)
    first = sorted(line.sent[2][0] for line in begun)
    assert first[-1] - first[0] > INTERVAL / 2


def test_a_process_that_stood_still_sends_one_probe_and_says_so() -> None:
    line = Line()
    line.run(1)
    before = {number: len(times) for number, times in line.sent.items()}
    line.now += 60
    line.turn()
    line.turn()
    assert {number: len(times) for number, times in line.sent.items()} == {n: count + 1 for n, count in before.items()}
    assert line.prober.stall.times == 1
    assert 59.9 < line.prober.stall.seconds < 60
    assert line.prober.next_due > line.now


def test_what_is_a_little_late_is_no_stall() -> None:
    line = Line()
    line.run(1)
    line.now = line.prober.next_due + LATE * INTERVAL * 0.99
    line.turn()
    assert line.prober.stall == Stall()


def test_who_stays_keeps_its_time_and_who_goes_is_left_alone() -> None:
    line = Line()
    line.run(1)
    count = {number: len(times) for number, times in line.sent.items()}
    line.prober.order(replace(PROBING, gateways=frozenset({3, 7})), line.now)
    line.run(1)
    assert len(line.sent[2]) == count[2]
    assert len(line.sent[7]) >= 19
    gap = line.sent[3][count[3]] - line.sent[3][count[3] - 1]
    assert INTERVAL * (1 - SPREAD) - 1e-9 <= gap <= INTERVAL + 1e-9


@pytest.mark.parametrize(("before", "after"), [(60.0, INTERVAL), (INTERVAL, 60.0)])
def test_another_interval_holds_at_once(before: float, after: float) -> None:
    line = Line(replace(PROBING, interval=round(before * 1e6)))
    line.run(60)
    line.sent.clear()
    begun = line.now
    line.prober.order(replace(PROBING, interval=round(after * 1e6)), begun)
    line.run(60)
    for times in line.sent.values():
        assert times[0] - begun <= after
        assert len(times) <= 60 / (after * (1 - SPREAD)) + 1
    assert line.sent.keys() == PROBING.gateways
    assert line.prober.stall == Stall()


def test_without_gateways_nothing_is_due() -> None:
    line = Line(replace(PROBING, gateways=frozenset()))
    assert line.prober.next_due == NEVER
    line.prober.order(PROBING, line.now)
    line.prober.order(replace(PROBING, gateways=frozenset()), line.now)
    line.run(1)
    assert not line.sent


@pytest.mark.parametrize("local", [FOUR, SIX])
def test_a_frame_is_a_packet_from_this_node_to_itself(local: IPAddress) -> None:
    port, length = layout.PROBE_PORT, (28 if local.version == 4 else 48) + 16
    packet = Packet(local, local, UDP, port, port, ttl=layout.PROBE_TTL, length=length)
    payload = bytes(layout.Probe(layout.PROBE_REQUEST, token=77))
    mac = struct.pack("!IH", layout.PROBE_MAC, 500)
    wanted = build(packet, Shape(destination_mac=mac, payload=payload, summed=False))
    found = frame(local, 500, 77)
    assert found[:6] + found[12:14] == wanted[:6] + wanted[12:14]
    if local.version == 4:
        assert parse(found) == packet  # its header's checksum is right
    assert found[22:24] + found[26:] == wanted[22:24] + wanted[26:]
