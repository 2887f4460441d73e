"""What is mended in the installed ExaBGP: that it is the code the changes were written for, and what they change."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from exabgp.bgp import timer
from exabgp.bgp.message import Action, Notification, Notify
from exabgp.bgp.message.open.holdtime import HoldTime
from exabgp.bgp.neighbor import Neighbor
from exabgp.reactor import delay, loop
from exabgp.reactor.api import API, processes
from exabgp.reactor.api.response import json as events
from exabgp.reactor.asynchronous import ASYNC
from exabgp.reactor.delay import Delay
from exabgp.reactor.keepalive import KA
from exabgp.reactor.network.error import NetworkError
from exabgp.rib.outgoing import OutgoingRIB

from bgp import conf, patches, rib, text
from bgp.path import Path as BgpPath
from bgp.path import SpeakerPeer
from tests.models.real_exabgp import loaded

PEER = SpeakerPeer(ip_address("10.9.0.2"), ip_address("10.9.0.1"), 64512, 65000, IPv4Address("10.9.0.1"))


@pytest.fixture
def restored() -> Iterator[None]:
    table = patches.patches(Path("/nowhere"))
    stock = [getattr(patch.owner, patch.name) for patch in table]
    yield
    for patch, function in zip(table, stock, strict=True):
        setattr(patch.owner, patch.name, function)


@pytest.mark.usefixtures("restored")
def test_the_installed_release_is_the_one_that_is_mended() -> None:
    table = patches.patches(Path("/nowhere"))
    assert patches.apply(table) == []
    assert all(getattr(patch.owner, patch.name) is patch.replacement for patch in table)
    assert len(patches.apply(table)) == len(table)  # what is not stock is left alone, and named


def test_a_function_that_differs_is_left_alone() -> None:
    class Other:
        def method(self) -> int:
            return 1

    left = patches.apply([patches.Patch(Other, "method", "0" * 16, lambda self: 2)])
    assert left == ["Other.method"]
    assert Other().method() == 1


def pauses(*ends: tuple[float | None, Any]) -> list[float]:
    """Seconds until the next attempt after each end of a session: how long it was up, None = not, and why it ended."""
    peer, found = SimpleNamespace(_delay=Delay()), []
    reset = patches.back_off(lambda peer, message, error: patches._wait_longer(peer._delay))
    for seconds, error in ends:
        peer.routerd_up = None if seconds is None else time.monotonic() - seconds
        reset(peer, "", error)
        found.append(peer._delay._time - time.monotonic())
        peer._delay.reset()
    return found


@pytest.mark.parametrize(
    ("description", "hold", "seconds"),
    [("keepalive 3", 90, 3), ("keepalive 40", 90, 30), ("", 90, 30), ("keepalive 3", 0, 0), ("keepalive 3", 6, 2)],
)
def test_keepalives_are_sent_as_often_as_asked_and_never_less_often(description: str, hold: int, seconds: int) -> None:
    keepalives, negotiated = KA.__new__(KA), SimpleNamespace(holdtime=HoldTime(hold))
    proto = SimpleNamespace(negotiated=negotiated, neighbor={"description": description})
    patches.asked_keepalives(KA.__init__)(keepalives, lambda: "", proto)
    assert keepalives.send_timer.keepalive == seconds


REFUSED, TEARDOWN, BROKEN = Notification(6, 4), Notify(6, 3), NetworkError("reset by peer")


@pytest.mark.parametrize("end", [(None, REFUSED), (None, Notify(2, 2)), (0.1, REFUSED), (0.1, BROKEN), (29.0, REFUSED)])
def test_a_peer_that_ends_every_session_is_asked_less_and_less(end: tuple[float | None, Any]) -> None:
    most = [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    found = pauses(*[end] * len(most))
    assert all(longest / 2 - 0.1 <= each <= longest for each, longest in zip(found, most, strict=True))


def test_a_session_that_was_up_for_long_ends_the_row() -> None:
    found = pauses(*[(None, REFUSED)] * 6, (31.0, REFUSED), (None, REFUSED))
    assert found[5] > 14 and found[6] <= 0 and found[7] <= 1.0


def test_neither_our_own_end_nor_an_attempt_to_connect_counts() -> None:
    found = pauses((0.1, TEARDOWN), (None, BROKEN), (None, ""), (0.1, REFUSED), (None, BROKEN), (None, REFUSED))
    assert [each <= 0 for each in found] == [True, True, True, False, True, False]
    assert found[3] <= 1.0 < 2.0 >= found[5]


@pytest.mark.parametrize("step", [-300, 300])
def test_a_wall_clock_that_is_set_ends_no_session_and_delays_none(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    for module in (timer, delay, loop, processes, events):  # as they were, after this test
        monkeypatch.setattr(module, "time", time)
    patches.keep_steady_time()
    heard, sent, pause = timer.ReceiveTimer(str, 90, 4, 0), timer.SendTimer(str, HoldTime(90)), Delay()
    sent.last_sent -= 30
    pause.increase()
    monkeypatch.setattr(time, "time", lambda: now + step)
    heard.check_ka_timer()  # raises Notify once the hold time is over
    assert sent.need_ka() and not sent.need_ka(), "one keepalive is due"
    assert not pause.backoff(), "the next attempt to connect need not wait"
    assert loaded_event_time() == pytest.approx(time.monotonic(), abs=5)


def loaded_event_time() -> float:
    """Of an event that ExaBGP would write now."""
    (neighbor,) = loaded(conf.peers_text([PEER])).neighbors.values()
    return float(json.loads(events.JSON("5.0.15").up(neighbor))["time"])


@pytest.mark.parametrize(
    ("established", "generator", "resets"),
    [(False, "an attempt", 1), (False, None, 0), (True, "a session", 0)],  # a session ends itself, and is told so
)
def test_a_peer_that_is_configured_anew_does_not_wait_for_an_attempt(
    established: bool, generator: str | None, resets: int
) -> None:
    ended: list[str] = []
    peer = SimpleNamespace(
        established=lambda: established, generator=generator, _reset=ended.append, _delay=Delay(), routerd_refused=5
    )
    patches._wait_longer(peer._delay)
    patches.begin_anew(lambda peer, neighbor: None)(peer, object())
    assert (len(ended), peer.routerd_refused) == (resets, 0)


def last_word(update: Callable[..., Any]) -> str:
    """What the peer is left with after withdraw Q, announce P (med 1), withdraw P, all before anything is sent."""
    configuration = loaded(conf.peers_text([PEER]))
    (neighbor,) = configuration.neighbors.values()
    table = OutgoingRIB(True, neighbor.families())
    steps = [
        text.withdraw([PEER.address], [ip_network("192.0.2.9/32")]),
        text.announce(
            [PEER.address],
            rib.attributes_of(BgpPath(ip_network("192.0.2.1/32"), med=1), PEER),
            [ip_network("192.0.2.1/32")],
        ),
        text.withdraw([PEER.address], [ip_network("192.0.2.1/32")]),
    ]
    for step in steps:
        command = step.partition("10.9.0.2 ")[2]
        for change in API(None).api_attributes(command, []):
            change.nlri.action = Action.ANNOUNCE if command.startswith("announce") else Action.WITHDRAW
            update(table, neighbor.remove_self(change))
    last = ""
    for message in table.updates(True):
        for nlri in message.nlris:
            if str(nlri.cidr) == "192.0.2.1/32":
                last = "announced" if nlri.action == Action.ANNOUNCE else "withdrawn"
    return last


def test_the_newest_of_several_changes_is_sent() -> None:
    stock = OutgoingRIB._update_rib
    assert last_word(stock) == "announced"  # the fault that is mended: a withdrawn path comes back
    assert last_word(patches.newest_wins(stock)) == "withdrawn"


def test_loaded_peers(tmp_path: Path) -> None:
    file = tmp_path / "exabgp.conf"
    file.write_text("process relay {}\n" + conf.peers_text([PEER]))
    assert patches.loaded_peers(file) == {"10.9.0.2": conf.digest(PEER)}


class Queue:
    """As much of ExaBGP's reactor and of a session as `routerd flush` asks."""

    def __init__(self, *, established: bool) -> None:
        self._peers = {"neighbor 10.9.0.2 local-ip 10.9.0.1": self}
        self.processes = self.asynchronous = self.neighbor = self.rib = self.outgoing = self
        self.is_established = established
        self.answers: list[str] = []
        self.steps: Iterator[bool] = iter(())

    def peers(self, service: str) -> list[str]:
        return list(self._peers)

    def established(self) -> bool:
        return self.is_established

    def pending(self) -> bool:
        return True

    def schedule(self, service: str, line: str, steps: Iterator[bool]) -> None:
        self.steps = steps

    def answer_done(self, service: str) -> None:
        self.answers.append("done")

    def answer_error(self, service: str) -> None:
        self.answers.append("error")


@pytest.mark.parametrize(("established", "said"), [(True, "error"), (False, "done")])
def test_a_flush_ends_in_the_time_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, established: bool, said: str
) -> None:
    """A session that is down has nothing to wait for."""
    (tmp_path / "exabgp.conf").write_text("")
    queue, commands = Queue(established=established), patches.Commands(tmp_path / "exabgp.conf", "5.0.15")
    clock = itertools.count(0, 10)  # milliseconds
    monkeypatch.setattr(patches, "time", SimpleNamespace(monotonic=lambda: next(clock) / 1000))
    commands.flush(None, queue, "relay", text.flush([PEER.address], 0.05), False)
    assert len(list(queue.steps)) <= 5  # looks, one in 10 ms
    assert queue.answers == [said]


def test_an_end_of_rib_of_a_session_that_ended_is_not_sent_in_the_next() -> None:
    """The queue belongs to ExaBGP's neighbor, which outlives its sessions."""
    (neighbor,) = loaded(conf.peers_text([PEER])).neighbors.values()
    neighbor.eor.append("ipv4 unicast")
    neighbor.reset_rib()  # what stock ExaBGP does at a session's end
    assert neighbor.eor

    class Session:
        def __init__(self) -> None:
            self.neighbor = neighbor

    def main(peer: Any) -> Iterator[list[str]]:
        yield list(peer.neighbor.eor)

    assert list(patches.end_of_rib_of_this_session(main)(Session())) == [[]]


# --- what makes it faster


def copies(remove_self: Callable[..., Any], *commands: str) -> list[Any]:
    """What a peer's table is given for the changes of some commands."""
    (neighbor,) = loaded(conf.peers_text([PEER])).neighbors.values()
    found = []
    for command in commands:
        for change in API(None).api_attributes(command, []):
            change.nlri.action = Action.ANNOUNCE if command.startswith("announce") else Action.WITHDRAW
            found.append((change, remove_self(neighbor, change)))
    return found


COMMANDS = [
    "announce attributes next-hop self med 5 nlri 192.0.2.1/32 192.0.2.2/32",
    "announce attributes next-hop 10.9.0.77 community [ 64512:1 ] nlri 192.0.2.3/32 192.0.2.4/32",
    "announce attributes next-hop self as-path [ 64512 64512 ] nlri 192.0.2.5/32",
    "announce attributes next-hop fd09::1 nlri 2001:db8::1/128",
    "withdraw attributes nlri 192.0.2.1/32 192.0.2.2/32",
    "withdraw attributes nlri 2001:db8::1/128",
]


def test_a_cheap_copy_says_what_a_deep_one_does() -> None:
    stock = Neighbor.remove_self

    def said(change: Any) -> tuple[Any, ...]:
        return change.as_dict(), change.nlri.action, change.attributes.index(), change.nlri.pack_nlri()

    cheap = copies(patches.own_next_hop(stock), *COMMANDS)
    assert [said(copy) for _, copy in cheap] == [said(copy) for _, copy in copies(stock, *COMMANDS)]
    for original, copy in cheap:
        assert copy is not original
        assert copy.nlri is not original.nlri  # its action changes later
    assert cheap[0][1].attributes is cheap[1][1].attributes


def test_a_turn_of_the_loop_does_many_steps_and_a_command_that_fails_only_fails_itself() -> None:
    queue, done, told = ASYNC(), list[str](), list[str]()
    queue.set_error_handler(told.append)

    def command(name: str, steps: int) -> Iterator[bool]:
        for _ in range(steps):
            yield True
        if name == "bad":
            raise ValueError(name)
        done.append(name)

    for name, steps in (("first", 300), ("bad", 1), ("last", 300)):
        queue.schedule(name, name, command(name, steps))
    run = patches.many_steps(ASYNC.run)
    turns = 1
    while run(queue):
        turns += 1
    assert (done, told) == (["first", "last"], ["bad"])
    assert turns <= 3


def test_a_long_queue_leaves_the_sessions_their_turn() -> None:
    queue = ASYNC()
    queue.schedule("relay", "endless", (True for _ in itertools.count()))
    assert patches.many_steps(ASYNC.run)(queue)


@pytest.mark.parametrize(("queued", "waits"), [(False, 1000), (True, 0)])
def test_the_loop_does_not_sleep_while_commands_are_queued(queued: bool, waits: int) -> None:
    class Loop:
        def __init__(self) -> None:
            self.asynchronous = ASYNC()

    loop = Loop()
    if queued:
        loop.asynchronous.schedule("relay", "x", iter(()))
    assert list(patches.no_sleep_with_work(lambda _, milliseconds: iter([milliseconds]))(loop, 1000)) == [waits]
