"""`make demo`: routerd's main job on real parts, in network namespaces, told as a short transcript.

Environment: TOR=frr puts FRR in BIRD's place; STORE=kubernetes puts an API server in place of the files: the double of
tests/k8s, or the one that KUBECONFIG names (one for tests only, see CONTRIBUTING.md); KEEP=1 leaves the lab up
(`--down` removes it); DEMO_PREFIX names the lab, so that two may run at once; DEMO_BARS=note makes bars on time and
memory mere notes, for a machine that is busy with other things. Exit status: 0 everything held, 1 something did not, 2
it could not run.

The time from start to readiness is only ever a note: it says more about the machine than about routerd.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from tests.netns.lab import netns
from tests.netns.lab.daemons import Daemons
from tests.netns.lab.lab import TOR_MAKES, Lab, LabError, check_environment, directory_of, is_owned, remove
from tests.netns.lab.stores import STORES
from tests.netns.lab.transcript import Row, Transcript
from tests.netns.stories.story import STORY, TWO_GATEWAYS, Story
from tests.waiting import WaitTimeout


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment asks for."""

    prefix: str
    tor: str
    store: str
    keep: bool
    bars_are_notes: bool


def settings(environment: Mapping[str, str]) -> Settings:
    """Raises LabError for a value that is not known."""
    tor, store = environment.get("TOR") or "bird", environment.get("STORE") or "files"
    bars = environment.get("DEMO_BARS") or "hold"
    for name, value, known in (
        ("TOR", tor, TOR_MAKES),
        ("STORE", store, STORES),
        ("DEMO_BARS", bars, ("hold", "note")),
    ):
        if value not in known:
            raise LabError(f"{name}={value} is not known: use {' or '.join(known)}")
    keep = environment.get("KEEP", "") not in {"", "0"}
    return Settings(environment.get("DEMO_PREFIX") or "demo", tor, store, keep, bars == "note")


def look_around(story: Story) -> str:
    """How to use a lab that was left up."""
    lab = story.lab
    gw1, pod, directory = lab.node("gw1"), lab.pod("snat-pod"), lab.directory
    worker = lab.node("worker")
    ask = f"{sys.prefix}/bin/routerd --config {worker.directory}/routerd.yaml"
    more = {**lab.tor.bgp.look_around(), **story.manifests.look_around(TWO_GATEWAYS)}
    commands = "\n".join(f"  {what:<20} {command}" for what, command in more.items())
    down = "make demo-down" if lab.prefix == "demo" else f"DEMO_PREFIX={lab.prefix} make demo-down"
    return f"""
The lab is still up; `{down}` removes it. Look around:
  a node's network     ip netns exec {gw1.name} ip route
  a pod asks fw        ip netns exec {pod.name} ping -c 1 {lab.fw.address}
  whom fw has served   tail -f {lab.fw.log}
{commands}
  ask routerd          {ask} status
                       {ask} show egress-ips
                       {ask} why pod/default/snat-pod
                       {ask} plan
  kill an agent        pkill -9 -f 'agent --config {worker.directory}/'
  and start it again   nsenter -t $(cat {worker.directory}/run/speaker.pid) -n -m {ask} agent
  a node's files       ls {gw1.directory}    pins: {gw1.pin_dir}
  the capture          tcpdump -nr {directory}/tor-0.pcap"""


def demo(asked: Settings) -> bool:
    """Plays the story; returns whether everything held."""
    begin = time.monotonic()
    told = Transcript(sys.stdout)
    with ExitStack() as after, Lab(asked.prefix, tor=asked.tor) as lab:
        manifests = STORES[asked.store](lab)
        if not asked.keep:
            after.callback(manifests.remove)
        story = Story(lab, Daemons(lab, manifests.store), begin, manifests)
        for title, scene in STORY:
            if not told.scene(title, functools.partial(scene, story)):
                break
        whole = Row("whole demo", f"{time.monotonic() - begin:.1f} s", "< 90 s")
        told.table([*story.summary(), whole], bars_are_notes=asked.bars_are_notes)
        if told.failed:
            told.logs(story.daemons)
        lab.keep = asked.keep
        if asked.keep:
            told.say(look_around(story))
    return not told.failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--down", action="store_true", help="remove a lab that KEEP=1 left up")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: sys.exit(128 + got))
    try:
        asked = settings(os.environ)
        check_environment(asked.tor)
        if options.down:
            return down(asked.prefix)
        return 0 if demo(asked) else 1
    except (LabError, netns.CommandError, WaitTimeout) as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads; the flush at exit goes there
        return 141
    except KeyboardInterrupt:
        print("demo: interrupted; the lab is removed", file=sys.stderr)
        return 130


def down(prefix: str) -> int:
    """Removes the lab, and says whether there was one."""
    if is_owned(directory_of(prefix)):
        raise LabError("the demo is running: let it end, or interrupt it, and it removes its lab itself")
    there = netns.names(f"{prefix}-")
    remove(prefix)
    print("demo: the lab is removed" if there else "demo: there is no lab")
    return 0


if __name__ == "__main__":
    sys.exit(main())
