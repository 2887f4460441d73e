"""`make demo`: routerd's main job on real parts, in network namespaces, told as a short transcript.

KEEP=1 leaves the lab up; `--down` removes it. Exit status: 0 everything held, 1 something did not, 2 it could not run.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
import time

from tests.netns import netns
from tests.netns.daemons import Daemons
from tests.netns.lab import Lab, LabError, check_environment, directory_of, is_owned, remove
from tests.netns.story import STORY, Story
from tests.netns.transcript import Transcript

PREFIX = "demo"


def look_around(lab: Lab) -> str:
    """How to use a lab that was left up."""
    gw1, pod, directory = lab.node("gw1"), lab.pod("snat-pod"), lab.directory
    return f"""
The lab is still up; `make demo-down` removes it. Look around:
  a node's network     ip netns exec {gw1.name} ip route
  a pod asks fw        ip netns exec {pod.name} ping -c 1 {lab.fw.address}
  whom fw has served   tail -f {lab.fw.log}
  the ToR's BGP table  birdc -s {directory}/tor/bird.ctl show route
  its sessions         birdc -s {directory}/tor/bird.ctl show protocols
  edit a policy        $EDITOR {lab.manifests}/egress-two-gateways.yaml
  a node's files       ls {gw1.directory}    pins: {gw1.pin_dir}
  the capture          tcpdump -nr {directory}/tor-0.pcap"""


def demo(keep: bool) -> bool:
    """Plays the story; returns whether everything held."""
    begin = time.monotonic()
    told = Transcript(sys.stdout)
    with Lab(PREFIX) as lab:
        story = Story(lab, Daemons(lab), begin)
        for title, scene in STORY:
            if not told.scene(title, functools.partial(scene, story)):
                break
        told.table([*story.summary(), ("whole demo", f"{time.monotonic() - begin:.1f} s", "< 90 s")])
        if told.failed:
            told.logs(story.daemons)
        lab.keep = keep
        if keep:
            told.say(look_around(lab))
    return not told.failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--down", action="store_true", help="remove a lab that KEEP=1 left up")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: sys.exit(128 + got))
    try:
        check_environment()
        if options.down:
            return down()
        return 0 if demo(os.environ.get("KEEP", "") not in {"", "0"}) else 1
    except (LabError, netns.CommandError, netns.WaitTimeout) as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads; the flush at exit goes there
        return 141
    except KeyboardInterrupt:
        print("demo: interrupted; the lab is removed", file=sys.stderr)
        return 130


def down() -> int:
    """Removes the lab, and says whether there was one."""
    if is_owned(directory_of(PREFIX)):
        raise LabError("the demo is running: let it end, or interrupt it, and it removes its lab itself")
    there = netns.names(f"{PREFIX}-")
    remove(PREFIX)
    print("demo: the lab is removed" if there else "demo: there is no lab")
    return 0


if __name__ == "__main__":
    sys.exit(main())
