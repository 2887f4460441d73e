"""The API server goes away during traffic and comes back without its history: what that changes, which is nothing.

Looked at: every path of the ToR's table many times a second, the updates that the ToR's BGP has received, the objects
that routerd keeps in the nodes' kernels and what their maps hold, and connections through the gateway.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from routerd.serve.api import agent_socket, ask
from tests.models.apiserver import ApiServer
from tests.netns.lab.daemons import Daemons
from tests.netns.lab.footprint import contents, difference, footprint
from tests.netns.lab.kubernetes import LabApiServer
from tests.netns.lab.lab import Lab
from tests.netns.lab.pathwatch import BirdControl, PathWatch, paths
from tests.netns.lab.stores import ApiObjects
from tests.netns.lab.traffic import Echo, NewConnections
from tests.netns.stories.story import EGRESS_IP, Story, started

Lists = Counter[tuple[str, str]]  # by (account, resource)
ACCOUNTS = "system:serviceaccount:routerd:"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen from before the API server went until everyone had read everything again."""

    reread: tuple[float, ...]  # of each restart, seconds from the server being back until everyone had listed again
    lists: tuple[int, ...]  # of each restart
    looks: int  # at the ToR's table
    longest_gap: float  # seconds between two looks
    table_changes: int  # looks that showed another table than the one before
    updates: int  # BGP UPDATEs, withdrawals included, that the ToR received
    kernel: tuple[str, ...]  # differences in objects and maps of the nodes, at any of the times looked at
    connections: int  # new ones that were made
    echoes: int  # rounds of the long-lived one
    lost: tuple[str, ...]  # what went wrong with any of them
    leaks: int  # packets of selected pods with another source
    missed: int  # packets that the capture lost

    @property
    def table(self) -> int:
        return self.table_changes + self.updates

    def problems(self) -> list[str]:
        found = [*self.kernel, *self.lost]
        counted = {"changes of the ToR's table": self.table_changes, "updates received by the ToR": self.updates,
                   "leaks": self.leaks, "packets not captured": self.missed}  # fmt: skip
        found += [f"{what}: {count}" for what, count in counted.items() if count]
        found += [] if self.looks and self.connections and self.echoes else ["nothing was looked at"]
        return found


@contextmanager
def on_api_server(lab: Lab) -> Iterator[tuple[Story, ApiServer]]:
    """The demo's cluster on an API server of this process, running and settled."""
    with LabApiServer(lab.tor.name) as server:
        manifests = ApiObjects(lab, Path(server.kubeconfig))
        daemons = Daemons(lab, manifests.store)
        try:
            story = started(lab, daemons, manifests)
            lab.wait(lambda: settled(story) and not returning(story), "nobody has anything to do, or to give back")
            yield story, server
        finally:
            daemons.stop()


def restarted(story: Story, server: ApiServer, *pauses: float) -> Outcome:
    """The API server is restarted so many times, and refuses connections for so many seconds each time.

    All watches are resumed and get 410, as the history is gone; then everything is listed.
    """
    lab, pod = story.lab, story.lab.pod("snat-pod")
    control = BirdControl(lab.tor.control)
    watch = PathWatch(lab.tor.control)
    watch.wanted = paths(control)
    new, echo = NewConnections(pod, {EGRESS_IP}), Echo(pod)
    before, received = kernel(lab), updates(control)
    with ExitStack() as stack:
        stack.callback(control.close)
        for each in (watch, new, echo):
            stack.enter_context(each)
        lab.wait(lambda: new.made and echo.rounds, "the traffic runs")
        changed: list[str] = []
        reread, lists = [], []
        for seconds in pauses:
            first = without_history(server, seconds)
            changed += difference(before, kernel(lab))  # before anybody can have read anything
            server.accept()
            reread.append(until_read_again(story, server, first))
            lists.append((lists_of(server) - first).total())
            changed += difference(before, kernel(lab))
        lost = [fault for fault in (new.end(), echo.end(), watch.fault) if fault]
        watch.close()
        got = updates(control) - received
    assert story.watch is not None
    verdict = story.watch.settle()
    return Outcome(
        reread=tuple(reread), lists=tuple(lists), looks=watch.looks,
        longest_gap=watch.longest_gap, table_changes=watch.changes + len(watch.missed), updates=got,
        kernel=tuple(changed), connections=new.made, echoes=echo.rounds, lost=tuple(lost),
        leaks=verdict.leaks.total(), missed=verdict.lost,
    )  # fmt: skip


def until_read_again(story: Story, server: ApiServer, lists: Lists) -> float:
    """Waits until everyone has listed again and has done what follows; the seconds until the last list."""
    lab, began = story.lab, time.monotonic()
    lab.wait(lambda: has_read_again(lists, lists_of(server), len(lab.nodes)), "everyone lists again")
    reread = time.monotonic() - began
    lab.wait(lambda: settled(story), "nobody has anything to do")
    return reread


def settled(story: Story) -> bool:
    """Whether no agent has anything to do, nor says that its state may be stale."""
    return not any(story.daemons.plan(node) or "Stale" in story.daemons.refusals(node) for node in story.lab.nodes)


def returning(story: Story) -> bool:
    """Whether ports are asked back, of an address that a node turned out to have when others had them already."""
    node = story.lab.node("worker")
    shown = ask(agent_socket(node.directory / "run"), {"get": "show", "kind": "port-sets"})
    return any(row["state"] == "returning" for row in shown)


def without_history(server: ApiServer, seconds: float) -> Lists:
    """Refuses for `seconds`, and forgets meanwhile what watches would resume at; returns the lists until then."""
    server.refuse()
    lists = lists_of(server)
    meta = {"name": f"meanwhile-{time.monotonic_ns()}", "namespace": "default"}
    server.load([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta}])  # so that every version is too old
    server.compact()
    time.sleep(seconds)
    return lists


def lists_of(server: ApiServer) -> Lists:
    """(account, resource) -> lists so far."""
    ours = (each for each in server.audit if each.user.startswith(ACCOUNTS) and each.verb == "list")
    return Counter((each.user.removeprefix(ACCOUNTS), each.resource) for each in ours if each.code < 300)


def has_read_again(before: Lists, now: Lists, nodes: int) -> bool:
    """Whether each agent (of `nodes`) and the operator have listed each of their resources again."""
    new = now - before
    return all(new[key] >= (nodes if key[0] == "routerd-agent" else 1) for key in before)


def kernel(lab: Lab) -> dict[str, object]:
    """Objects and maps of every node."""
    return {
        f"{name}: {what}": value
        for name, node in lab.nodes.items()
        for what, value in {**footprint(node), **contents(node)}.items()
    }


_IMPORTS = re.compile(r"Import (?:updates|withdraws):\s+(\d+)")


def updates(control: BirdControl) -> int:
    """Routes that all of the ToR's BGP peers have announced or withdrawn so far, changed or not."""
    blocks = control.ask("show protocols all").split("\n\n")
    return sum(int(found) for block in blocks if " BGP " in block for found in _IMPORTS.findall(block))
