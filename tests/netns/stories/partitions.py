"""Partitions, failures and stopped processes, one after the other, under traffic: nothing is lost, nothing leaks.

    make partitions        or: python -m tests.netns.stories.partitions [--seed S] [--rounds N] [--only TEXT]

Three gateways, a worker, the store an API server in the ToR's namespace, BFD with the ToR. Every pair of peers is cut
in every manner, by nftables, and a gateway from the store for longer than ports rest, which takes seconds here;
gateways die in every way, also a second one while the first is away and the operator stands still; every process is
stopped for a while. During some of it, drawn at random, the operator or the API server
is away as well. Meanwhile idle and busy connections must live on byte for byte,
new ones must be made, each conversation must keep its port, and no port may have two users. After each fault comes a
quiet period, in which all must become as it was.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

from tests.netns.lab.census import Census
from tests.netns.lab.daemons import signal_all
from tests.netns.lab.lab import TOR_ADDRESS, Lab
from tests.netns.lab.netns import Namespace
from tests.netns.lab.site import EGRESS_IP, SELECTED, SILENT, Site, nodes
from tests.netns.lab.stores import API_PORT, api_objects
from tests.netns.lab.traffic import Echo, NewConnections, Worker
from tests.netns.lab.transcript import Row, Transcript
from tests.netns.stories.cut_off import CUT, GUESTS, PORT_REST, ports_move
from tests.netns.stories.run import arguments, seed_of
from tests.waiting import WaitTimeout, wait

GATEWAYS = 3
HOLD = (3.0, 8.0)  # seconds that a fault lasts
QUIET = 90.0  # seconds in which all must be as it was
MANNERS = {
    "cut": "drop",
    "one-way": "drop",
    "5 % loss": "numgen random mod 100 < 5 drop",
    "a packet a second": "limit rate over 1/second burst 1 packets drop",
}
Holds = Callable[[Site], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """`holds` makes it, lets it last while it is suspended, and takes it back; during it `away` is away."""

    name: str
    holds: Holds
    away: Holds = nullcontext
    by_store: bool = False  # made by an edit in the store


@dataclass(slots=True)
class Outcome:
    """What a run counted."""

    seed: int
    faults: list[str] = field(default_factory=list)
    played: int = 0
    slowest: float = 0.0  # quiet period, in seconds
    new: int = 0
    echoes: int = 0

    def rows(self) -> list[Row]:
        return [
            Row("seed", str(self.seed)),
            Row("faults made and taken back", f"{self.played} faults"),
            Row("the longest until all was as before", f"{self.slowest:.1f} s", f"< {QUIET:g} s"),
            Row("new connections, echoes", f"{self.new}, {self.echoes} echoes"),
            Row("lost, wrong, shared, or not as before", f"{len(self.faults)} complaints", "= 0 complaints", "claim"),
        ]


# --- faults


def between(host: str, device: str, match: Callable[[str], str], manner: str) -> Holds:
    """Packets of one pair of peers, at the device of one: `match` says which, by "s" as they come, "d" as they go."""

    @contextmanager
    def holds(site: Site) -> Iterator[None]:
        there: Namespace = site.lab.tor if host == "tor" else site.lab.node(host)
        chains = ["came ingress s", *(["went egress d"] if manner != "one-way" else [])]
        rules = "".join(
            f'chain {name} {{ type filter hook {hook} device "{device}" priority -500; '
            f"{match(side)} {MANNERS[manner]}; }}\n"
            for name, hook, side in map(str.split, chains)
        )
        there.nft(f"table netdev partition {{\n{rules}}}\n")
        yield
        there.run(["nft", "delete", "table", "netdev", "partition"])

    return holds


def partitions(site: Site, rng: random.Random) -> list[Fault]:
    """Each pair of peers in each manner; which gateway or agent it is, is drawn."""
    found = []
    for manner in MANNERS:
        gateway, other = rng.sample(site.gateways, 2)
        agent = rng.choice([*site.lab.nodes])
        near = {name: site.lab.node(name).address for name in ("worker", other)}
        pairs: dict[str, tuple[str, str, Callable[[str], str]]] = {
            f"{agent} and the API": (agent, "eth0", by_api),
            "the operator and the API": ("tor", "lo", by_api),
            f"{gateway} and the ToR": (
                gateway,
                "eth0",
                lambda side: f"ip {side}addr {TOR_ADDRESS} {NOT_API.format(side)}",
            ),
            f"the worker and {gateway}": (gateway, "eth0", partial("ip {1}addr {0}".format, near["worker"])),
            f"{other} and {gateway}": (gateway, "eth0", partial("ip {1}addr {0}".format, near[other])),
        }
        for pair, (host, device, match) in pairs.items():
            found.append(Fault(f"{pair}: {manner}", between(host, device, match, manner)))
    return found


OTHER_MAC, OTHER_ADDRESS = "02:00:00:00:77:02", "10.0.0.77"
NOT_API = f"meta l4proto {{{{ tcp, udp }}}} th {{0}}port != {API_PORT}"


def by_api(side: str) -> str:
    return f"ip {side}addr {TOR_ADDRESS} tcp {side}port {API_PORT}"


def cuts_for_long(rng: random.Random) -> list[Fault]:
    """A gateway, alone and together with a source node, is cut from the store while ports change hands."""
    found = []
    for names in ((CUT,), (CUT, "worker")):
        cuts = [between(name, "eth0", by_api, "cut") for name in names]
        holds = partial(ports_move, cuts, rng.sample([*GUESTS], 2))
        found.append(Fault(f"{' and '.join(names)} and the store, ports move: cut", holds, by_store=True))
    return found


def failures(site: Site, rng: random.Random) -> list[Fault]:
    """Gateways die in every way, processes stand still, links flap, clocks are set, devices change their name or MAC,
    nodes their address.
    """
    gateway = rng.choice(site.gateways)
    node = rng.choice([*site.lab.nodes])
    stopped = {f"{role} of {node} stopped": partial(standing_still, role, node) for role in ("agent", "speaker", "bfd")}
    return [
        Fault(f"{gateway} killed", partial(killed, gateway)),
        Fault(f"{gateway} unplugged", partial(unplugged, gateway)),
        Fault(f"{gateway} silent with its carrier up", partial(silent, gateway)),
        Fault("a second gateway while the first is away, the operator stopped", partial(two_of, rng)),
        Fault("the operator stopped", partial(standing_still, "operator", "")),
        *(Fault(name, holds) for name, holds in stopped.items()),
        Fault(f"the uplink of {gateway} flaps", partial(flapping, gateway)),
        Fault(f"the uplink of {node} has another name", partial(renamed, node)),
        Fault(f"the MAC of {gateway} is another one", partial(readdressed, gateway)),
        *(
            Fault(f"{name} has another address", partial(renumbered, name), by_store=True)
            for name in (gateway, "worker")
        ),
        *(
            Fault(f"the clock of {name} is set by {step:+} s", partial(clock_set, name, step))
            for name, step in ((gateway, 300), (node, -300), ("the operator", 300), ("the operator", -300))
        ),
    ]


def beside(fault: Fault, rng: random.Random) -> Fault:
    """Two of three faults come when the operator or the API server is away, if they can."""
    who, away = rng.choice((("", nullcontext), ("the operator", operator_stopped), ("the API server", api_away)))
    if not who or who in fault.name or (fault.by_store and away is api_away):
        return fault
    return replace(fault, name=f"{fault.name}, {who} away", away=away)


@contextmanager
def operator_stopped(site: Site) -> Iterator[None]:
    with standing_still("operator", "", site):
        yield


@contextmanager
def api_away(site: Site) -> Iterator[None]:
    """Nobody gets an answer, nor an end of what is connected."""
    site.lab.tor.nft(
        f"table inet away {{ chain asked {{ type filter hook input priority -300; tcp dport {API_PORT} drop; }}\n}}\n"
    )
    yield
    site.lab.tor.run(["nft", "delete", "table", "inet", "away"])


@contextmanager
def killed(gateway: str, site: Site) -> Iterator[None]:
    """Every process of routerd on it, at once; the kernel goes on."""
    daemons = site.daemons
    for daemon in (daemons.agents[gateway], daemons.speakers[gateway], daemons.bfds[gateway]):
        signal_all(daemon.tree(), signal.SIGKILL)
    yield
    site.begin(gateway)


@contextmanager
def unplugged(gateway: str, site: Site) -> Iterator[None]:
    site.lab.tor.ip(f"link set {gateway} down")
    yield
    site.lab.tor.ip(f"link set {gateway} up")


@contextmanager
def silent(gateway: str, site: Site) -> Iterator[None]:
    site.lab.tor.nft(SILENT.format(gateway))
    yield
    site.lab.tor.run(["nft", "delete", "table", "netdev", "silent"])


@contextmanager
def two_of(rng: random.Random, site: Site) -> Iterator[None]:
    first, second = rng.sample(site.gateways, 2)
    with standing_still("operator", "", site), unplugged(first, site):
        time.sleep(rng.uniform(*HOLD))
        with silent(second, site):
            yield


@contextmanager
def standing_still(role: str, node: str, site: Site) -> Iterator[None]:
    """SIGSTOP; "" is where the operator is."""
    daemons = {"agent": site.daemons.agents, "speaker": site.daemons.speakers, "bfd": site.daemons.bfds}
    daemon = daemons[role][node] if node else site.daemons.operator
    assert daemon is not None
    with daemon.standing_still():
        yield


@contextmanager
def flapping(gateway: str, site: Site) -> Iterator[None]:
    for _ in range(5):
        with unplugged(gateway, site):
            time.sleep(0.1)
        time.sleep(0.1)
    yield


@contextmanager
def renamed(node: str, site: Site) -> Iterator[None]:
    site.lab.node(node).ip("link set eth0 name uplink0")
    yield
    site.lab.node(node).ip("link set uplink0 name eth0")


@contextmanager
def readdressed(node: str, site: Site) -> Iterator[None]:
    """By a device that tells its neighbours, as bonds do; the agent reports it later."""
    host = site.lab.node(node)
    host.sysctl({"net.ipv4.conf.eth0.arp_notify": 1})
    site.lab.tap.expect_mac(OTHER_MAC)
    before = json.loads(host.run(["ip", "-j", "link", "show", "eth0"]))[0]["address"]
    host.ip(f"link set eth0 address {OTHER_MAC}")
    yield
    host.ip(f"link set eth0 address {before}")


@contextmanager
def renumbered(node: str, site: Site) -> Iterator[None]:
    """Another address on its interface, then in its Node and at the ToR; then the old one goes. The same way back."""
    host = site.lab.node(node)
    host.sysctl({"net.ipv4.conf.eth0.promote_secondaries": 1})

    def goes(old: str, new: str, others: Mapping[str, str]) -> None:
        host.ip(f"addr add {new}/24 dev eth0")
        site.tell_addresses(others)
        host.ip(f"addr del {old}/24 dev eth0")
        wait(lambda: set(site.lab.tor.sessions().values()) == {"Established"}, "sessions", timeout=QUIET)

    goes(host.address, OTHER_ADDRESS, {node: OTHER_ADDRESS})
    yield
    goes(OTHER_ADDRESS, host.address, {})


@contextmanager
def clock_set(name: str, step: float, site: Site) -> Iterator[None]:
    """The wall clock of everything on a node, or of the operator: no hold time is over for it."""
    host = site.lab.nodes.get(name, site.lab.tor)
    site.daemons.set_clock(host, step)
    yield
    assert not any("hold timer" in why for why in site.ends()), f"by the clock of {name}, set by {step} s"
    site.daemons.set_clock(host, 0.0)


# --- a run


def play(site: Site, told: Transcript, outcome: Outcome, faults: Sequence[Fault], hold: tuple[float, float]) -> None:
    """One fault after the other, under traffic; ends early with the first that leaves something behind."""
    rng, pod = random.Random(outcome.seed), site.pod
    idle, busy = [Echo(pod, pause=2.0) for _ in range(4)], [Echo(pod, pause=0.005) for _ in range(4)]
    new = NewConnections(pod, {EGRESS_IP})
    workers: list[Worker] = [*idle, *busy, new]
    with Census(site.pods, site.lab.fw, EGRESS_IP) as census, ExitStack() as stack:
        for worker in workers:
            stack.enter_context(worker)
        for fault in faults:
            try:
                with ExitStack() as taken_back, fault.away(site):  # who is away returns first
                    taken_back.enter_context(fault.holds(site))
                    time.sleep(rng.uniform(*hold))
            except AssertionError as error:
                outcome.faults.append(f"{fault.name}: {error}")
                break
            outcome.played += 1
            outcome.faults += quiet(site, census, fault, told, outcome) + [
                f"{fault.name}: {each}" for each in (*census.faults, *(w.fault for w in workers if w.fault), *new.lost)
            ]
            outcome.faults += [f"{fault.name}: leaked {seen}" for seen in site.lab.tap.settle()]
            if outcome.faults:
                break
        outcome.faults += [fault for worker in workers if (fault := worker.end()) and not outcome.faults]
    outcome.new, outcome.echoes = new.made, sum(each.rounds for each in (*idle, *busy))


def quiet(site: Site, census: Census, fault: Fault, told: Transcript, outcome: Outcome) -> list[str]:
    """Waits until all is as it was; what is not, in words."""
    began = time.monotonic()
    try:
        site.settle(QUIET)
        wait(lambda: census.are_all_heard(began), "every conversation goes on")
    except WaitTimeout as late:
        return [f"{fault.name}: {late}"]
    took = time.monotonic() - began
    outcome.slowest = max(outcome.slowest, took)
    told.say(f"  {outcome.played:3} {fault.name:<70}{took:6.1f} s")
    return []


@contextmanager
def running(prefix: str) -> Iterator[Site]:
    """The lab, with a store that each node reaches by the network."""
    with Lab(prefix, nodes=nodes(GATEWAYS)) as lab:
        lab.add_pod("near", CUT, SELECTED)
        for guest, node in GUESTS.items():
            lab.add_pod(guest, node)
        store = api_objects(lab)
        try:
            yield Site(lab, GATEWAYS, store, clocks=True, port_rest=PORT_REST)
        finally:
            store.remove()


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="of all faults, each drawn anew")
    parser.add_argument("--only", default="", metavar="TEXT", help="faults whose name has this in it")
    options = parser.parse_args()
    outcome = Outcome(seed_of(options))
    rng = random.Random(outcome.seed)
    told = Transcript(sys.stdout)
    told.say(f"partitions: seed {outcome.seed}; each fault, and how long it was until all was as before")
    with running("partitions") as site:
        once = [failures(site, rng) + partitions(site, rng) for _ in range(options.rounds)]
        faults = [beside(each, rng) for drawn in once for each in drawn]
        faults += [each for _ in range(options.rounds) for each in cuts_for_long(rng)]
        rng.shuffle(faults)
        play(site, told, outcome, [each for each in faults if options.only in each.name], HOLD)
        if outcome.faults:
            told.logs(site.daemons, lines=12)
    told.failed += outcome.faults
    told.table(outcome.rows())
    return 1 if told.failed else 0


if __name__ == "__main__":
    sys.exit(main())
