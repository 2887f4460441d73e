"""`make demo-cloud`: addresses of clouds for pods, and egress IPs that move, on fakes of EC2, ECS and Azure's Resource
Manager side by side, each with a cluster of its own, told with every call.

The real SDKs speak to the fakes over HTTP; each lab's VPC forwards as its fake's state says, and drops foreign sources.
A block is marked for 5 s before the cloud has it back, where routerd waits for 180, and an address rests for 2, not 30.

Exit status: 0 everything held, 1 something did not, 2 it could not run.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import ip_network

from routerd.errors import RouterdError
from routerd.model import GATEWAY_LABEL
from routerd.serve.api import ask, operator_socket
from tests.netns.lab.cloud import CloudLab, Json
from tests.netns.lab.lab import LabError, check_environment
from tests.netns.lab.netns import CommandError
from tests.netns.lab.providers import FAKES
from tests.netns.lab.transcript import StoryFailed, Transcript
from tests.netns.lab.vpc import BEYOND
from tests.waiting import WaitTimeout, wait

EGRESS_IP = "10.0.0.200"
SECTION = {
    "nodes": {"pods": "vpc"}, "addresses": {"pre-allocate": 3}, "egress-networks": ["10.0.0.192/26"],
}  # fmt: skip
NODES = {"worker": {"pods": "vpc"}, "gw1": {GATEWAY_LABEL: ""}, "gw2": {GATEWAY_LABEL: ""}}
POLICY = {
    "apiVersion": "routerd.io/v1alpha1", "kind": "EgressPolicy", "metadata": {"name": "out"},
    "spec": {
        "selectors": [{"podSelector": {"matchLabels": {"app": "out"}}, "namespaceSelector": {}}],
        "destinationCIDRs": [f"{BEYOND}/32"], "egressIP": EGRESS_IP,
    },
}  # fmt: skip


@dataclass(slots=True)
class Story:
    lab: CloudLab
    told: int = 0  # calls of the cloud's log
    talk: socket.socket | None = field(default=None, repr=False)

    def calls(self) -> list[str]:
        """Those that came since, each that changes something on a line."""
        log = self.lab.cloud.log
        new, self.told = log[self.told :], len(log)
        looks = Counter(action for _, action, _, _ in new if self.is_look(action))
        lines = [_line(action, parameters, code) for _, action, parameters, code in new if action not in looks]
        seen = ", ".join(f"{count} {action}" for action, count in sorted(looks.items()))
        return [*lines, *([f"and looks: {seen}"] if seen else [])]

    def is_look(self, action: str) -> bool:
        return self.lab.cloud.front.calls[action].mode == "read"

    def until(self, condition: Callable[[], object], what: str, timeout: float = 120.0) -> None:
        """The cloud's time goes on meanwhile."""

        def holds() -> object:
            self.lab.vpc.sync()
            return condition()

        wait(holds, what, timeout, 0.1)

    def row(self) -> Json:
        """What the operator shows of the worker's instance."""
        try:
            rows = ask(operator_socket(self.lab.home / "operator" / "run"), {"get": "cloud"})
        except RouterdError:
            return {}
        return next((row for row in rows if row["instance"] == self.lab.fake.instance("i-1")), {})

    def holder(self) -> str:
        """The instance that has the egress IP, as the cloud has it."""
        cloud = self.lab.cloud
        having = (each for each in cloud.enis.values() if EGRESS_IP in map(str, each.addresses))
        return next((each.attachment.instance for each in having if each.attachment), "")


FAILURES = (StoryFailed, WaitTimeout, CommandError)
UNTOLD = ("TagSpecifications", "Tag", "RegionId", "etag")


def _line(action: str, parameters: Json, code: str) -> str:
    words = (f"{key}={_word(value)}" for key, value in parameters.items() if key not in UNTOLD)
    return f"{action} {' '.join(words)}" + (f": {code}" if code else "")


def _word(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(_word, value))
    if isinstance(value, Mapping) and "properties" in value:  # an interface of Azure is written whole
        given = (each["properties"] for each in value["properties"]["ipConfigurations"])
        return ",".join(each.get("privateIPAddress", "new") for each in given)
    text = str(value)
    return text.rpartition("/")[2] if text.startswith("/subscriptions/") else text


def expect(held: object, evidence: str) -> None:
    if not held:
        raise StoryFailed(evidence)


# --- scenes


def fills(story: Story) -> Sequence[str]:
    lab = story.lab
    lab.start()
    story.until(lambda: len(lab.of_pods()) >= 3, "the worker's first addresses")
    return [*story.calls(), f"i-1 has {', '.join(sorted(lab.of_pods()))} for pods, before any has asked"]


def pod(story: Story) -> Sequence[str]:
    lab = story.lab
    one = lab.pod("one", "worker")
    one.start_server(http=80)
    seen = one.get(BEYOND).source
    expect(seen == one.address, f"{BEYOND} saw {seen}, the pod has {one.address}")
    answer = lab.vpc.host.get(one.address)
    expect(answer.text.startswith("one"), f"from the VPC: {answer}")
    expect(lab.vpc.dropped() == 0, "the VPC dropped what another interface sent")
    return [f"by ptp and routerd-ipam it has {one.address}; {BEYOND} sees that, and reaches it there", *story.calls()]


def grows(story: Story) -> Sequence[str]:
    lab, before = story.lab, len(story.lab.of_pods())
    for number in range(12):
        lab.pod(f"p{number}", "worker")
    given = {each.address for each in lab.pods.values()}
    expect(len(given) == 13 and given <= lab.of_pods(), f"13 pods have {sorted(given)}")
    story.until(lambda: len(lab.of_pods()) >= 16, "three to spare")
    return [*story.calls(), f"13 pods have an address each; i-1 had {before} addresses, and has {len(lab.of_pods())}"]


def shrinks(story: Story) -> Sequence[str]:
    lab, before = story.lab, len(story.lab.of_pods())
    for number in range(12):
        lab.end(f"p{number}")
    story.until(lambda: len(lab.of_pods()) <= 5, "what is too much is given back")
    expect(lab.pods["one"].address in lab.of_pods(), f"{lab.pods['one'].address} was taken from a pod that runs")
    return [*story.calls(), f"12 pods have ended; i-1 had {before} addresses, and has {len(lab.of_pods())}"]


def egress(story: Story) -> Sequence[str]:
    lab = story.lab
    lab.objects = [POLICY]
    out = lab.pod("out", "worker", {"app": "out"})
    lab.vpc.host.start_server(tcp=7)
    story.until(lambda: out.get(BEYOND, timeout=1).source == EGRESS_IP, "the pod leaves with the egress IP")
    story.talk = out.connect(BEYOND, 7)
    _echo(story.talk)
    return [*story.calls(), f"{out.address} leaves with {EGRESS_IP}, which {story.holder()} holds"]


def moves(story: Story) -> Sequence[str]:
    lab, before, talk = story.lab, story.holder(), story.talk
    assert talk is not None
    host = list(lab.nodes)[int(before.removeprefix("i-")) - 1]
    lab.not_ready.add(host)
    lab.write()
    story.until(lambda: story.holder() not in ("", before), "the cloud has moved it")
    began = time.monotonic()
    story.until(lambda: _echoes(talk), "the connection goes on")
    again = f"{time.monotonic() - began:.1f} s"
    expect(lab.pods["out"].get(BEYOND).source == EGRESS_IP, "a new connection has another source")
    return [
        *story.calls(),
        f"{host} is not ready any more: {story.holder()} holds {EGRESS_IP}, {before} held it; the connection that was "
        f"open goes on {again} after the cloud had moved it",
    ]


def _echo(talk: socket.socket) -> None:
    talk.sendall(b"still here\n")
    expect(talk.recv(256), "the connection was closed")


def _echoes(talk: socket.socket) -> bool:
    talk.settimeout(3)
    try:
        _echo(talk)
    except TimeoutError:
        return False
    return True


def agree(story: Story) -> Sequence[str]:
    lab = story.lab
    story.until(lambda: story.row().get("addresses") == len(lab.of_pods()), "record and cloud agree")
    shown = story.row()
    ours = [eni.id for eni in lab.cloud.of("i-1")[1:]]
    there = sorted(map(lab.fake.interface, ours))
    expect(sorted(shown["interfaces"].split()) == there, f"on record {shown['interfaces']}, in the cloud {there}")
    expect(all(eni.attachment for eni in lab.cloud.enis.values()), "an interface is attached to nothing")
    made = {eni.id for eni in lab.cloud.enis.values() if eni.tags}
    expect(made <= set(ours), f"for pods there are {ours}, and {made} were made")
    having = Counter(address for eni in lab.cloud.enis.values() for address in eni.addresses)
    expect(max(having.values()) == 1, f"an address is on two interfaces: {having}")
    pods = {ip_network(each.address) for each in lab.pods.values()}
    expect(len(pods) == len(lab.pods) and pods <= set(map(ip_network, lab.of_pods())), f"pods have {pods}")
    codes = Counter(code or "accepted" for _, action, _, code in lab.cloud.log if not story.is_look(action))
    return [
        *story.calls(),
        f"on record: {' '.join(ours)} with {shown['addresses']} addresses; in the cloud: the same, and nothing else is "
        "left",
        f"calls that change something: {', '.join(f'{count} {what}' for what, count in sorted(codes.items()))}",
        f"packets that the VPC dropped for a foreign source: {lab.vpc.dropped()}",
    ]


STORY: Sequence[tuple[str, Callable[[Story], Sequence[str]]]] = (
    ("An instance gets an interface with addresses for pods", fills),
    ("A pod has one of them, and is reached at it", pod),
    ("Twelve more pods: the instance gets more", grows),
    ("They end: what is too much goes back", shrinks),
    ("A selected pod leaves with an egress IP of the VPC", egress),
    ("Its gateway fails: the egress IP moves, and a connection goes on", moves),
    ("Nothing is left over", agree),
)


def demo(clouds: Sequence[str] = tuple(FAKES), prefix: str = "cloud") -> bool:
    """Whether everything held."""
    told = Transcript(sys.stdout)
    begin = time.monotonic()
    with ExitStack() as ended:
        stories = [_begun(name, prefix, ended) for name in clouds]
        for title, scene in STORY:
            if not told.scene(title, lambda scene=scene: list(side_by_side(scene, stories))):  # type: ignore[misc]
                break
        if told.failed:
            for story in stories:
                _tell_logs(story, told)
    told.say(f"\n{time.monotonic() - begin:.0f} s. {'FAILED' if told.failed else 'Everything held.'}")
    return not told.failed


def _begun(name: str, prefix: str, ended: ExitStack) -> Story:
    lab = CloudLab(f"{prefix}{name}", NODES, SECTION, egress=True, hurry=True, fake=FAKES[name])
    story = Story(ended.enter_context(lab))
    ended.callback(lambda: story.talk and story.talk.close())
    return story


def side_by_side(scene: Callable[[Story], Sequence[str]], stories: Sequence[Story]) -> Iterator[str]:
    """What is told of each cloud. Raises StoryFailed, with what failed of any."""
    with ThreadPoolExecutor(len(stories)) as threads:
        played = [(story.lab.fake.name, threads.submit(scene, story)) for story in stories]
    errors = ((name, each.exception()) for name, each in played)
    if failed := [f"{name}: {error}" for name, error in errors if isinstance(error, FAILURES)]:
        raise StoryFailed("\n".join(failed), vital=True)
    for name, each in played:
        yield from (f"{name}: {line}" for line in each.result())


def _tell_logs(story: Story, told: Transcript) -> None:
    told.say("\n".join(story.calls()))
    for log in sorted(story.lab.home.glob("*/*.log")):
        told.say(f"--- {story.lab.fake.name}, {log.parent.name}: {log.name}")
        told.say("\n".join(log.read_text(errors="replace").splitlines()[-8:]))


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: sys.exit(128 + got))
    arguments = argparse.ArgumentParser(description="addresses of clouds for pods, and egress IPs that move")
    arguments.add_argument("--cloud", choices=FAKES, action="append", help="default: each")
    given = arguments.parse_args()
    try:
        check_environment()
        return 0 if demo(given.cloud or tuple(FAKES)) else 1
    except (LabError, CommandError, WaitTimeout) as error:
        print(f"demo-cloud: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("demo-cloud: interrupted; the lab is removed", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
