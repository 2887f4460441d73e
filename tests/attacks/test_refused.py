"""A policy in force is edited into what is refused: no packet of its pods leaves with their own address.

What becomes of each mistake is in `tests/stories/test_refused_policies.py`; here are the packets.
"""

from __future__ import annotations

from contextlib import suppress

import pytest

from routerd.errors import RouterdError
from tests.netns.lab.lab import FW_ADDRESS
from tests.netns.stories.story import EGRESS_IP, TWO_GATEWAYS, Story, tor_table

POLICY = "egress-gateway-policy-cilium-v2.yaml"
EXIT = f"    egressIP: {EGRESS_IP}"
EDITS = {
    "an interface": (EXIT, "    interface: eth0"),
    "no egress IP": (EXIT, ""),
    "an egress IP of the other family": (EXIT, "    egressIP: 2001:db8::5"),
    "an egress IP that nobody can have": (EXIT, "    egressIP: 127.0.0.1"),
    "no destinations": ('  - "0.0.0.0/0"', "  []"),
    "a label that is none": ("app: snat-pod", "'a b!': snat-pod"),
    "a misspelt pod selector": ("podSelector", "podSelectr"),
    "misspelt selectors": ("selectors", "selectrs"),
    "a misspelt kind": ("GatewayPolicy", "GatewayPolicies"),
    "no YAML": ("spec:", "spec: ["),
    "a file that was cut": ("egressGateway", "\0"),
    "a comment": ("", "# "),
    "0 bytes": ("", ""),
}


def edited(text: str, what: str) -> str:
    old, new = EDITS[what]
    if not old:
        return f"{new}gone\n" if new else ""
    assert old in text
    return text.partition(old)[0] if new == "\0" else text.replace(old, new)


def told(story: Story) -> set[str]:
    """Reasons that the worker's agent gives; none while it does not answer."""
    with suppress(RouterdError):
        return story.daemons.refusals("worker")
    return set()


@pytest.fixture(scope="module")
def at_first(story: Story) -> set[str]:
    """Reasons that are given while every policy is good."""
    return story.daemons.refusals("worker")


@pytest.fixture
def before(story: Story, at_first: set[str]) -> set[str]:
    """The same, once the mistake of the test before is told no more: the next one may have the same reason, and that
    its pods leave with their egress IP tells nothing, as they did so all the time."""

    def is_forgotten() -> bool:
        with suppress(RouterdError):
            return story.daemons.refusals("worker") == at_first
        return False

    story.lab.wait(is_forgotten, "no mistake is told")
    return at_first


@pytest.mark.parametrize("what", EDITS)
def test_a_refused_policy_lets_no_packet_out(story: Story, before: set[str], what: str) -> None:
    lab, daemons, pod = story.lab, story.daemons, story.lab.pod("snat-pod")
    lab.wait(lambda: pod.ask(FW_ADDRESS, timeout=0.3).source == EGRESS_IP, "the policy is in force")
    good = story.manifests.read(POLICY)
    try:
        story.manifests.put(POLICY, edited(good, what))
        lab.wait(lambda: told(story) - before, "it is told")
        held(story)
        for node in ("worker", "gw1"):
            daemons.agents[node].kill()
            daemons.start_agent(node)
        lab.wait(lambda: told(story) - before, "it is told after the restart")
        held(story)
    finally:
        story.manifests.put(POLICY, good)
    lab.wait(lambda: pod.ask(FW_ADDRESS, timeout=0.3).source == EGRESS_IP, "the policy is in force again")


OURS = {
    "an address that nobody can have": ("pool: egress", "egressIP: 224.0.0.1"),
    "an egress IP of the other family": ("pool: egress", "egressIP: 2001:db8::1"),
    "a VIP in use": ("pool: egress", "egressIP: VIP"),
    "an unknown pool": ("pool: egress", "pool: nope"),
    "a pool that is not for egress": ("pool: egress", "pool: default"),
    "an unknown key": ("pool: egress", "pool: egress\n  egresIP: x"),
}


@pytest.mark.parametrize("what", OURS)
def test_a_refused_policy_of_ours_lets_no_packet_out(story: Story, before: set[str], what: str) -> None:
    lab, pod = story.lab, story.lab.pod("batch")
    good = story.manifests.read(TWO_GATEWAYS)
    assert pod.ask(FW_ADDRESS).source == story.pool_ip
    old, new = OURS[what]
    try:
        story.manifests.put(TWO_GATEWAYS, good.replace(old, new.replace("VIP", story.vip)))
        lab.wait(lambda: told(story) - before, "it is told")
        assert pod.ask(FW_ADDRESS, timeout=0.3).source in (story.pool_ip, "")
        assert pod.get(FW_ADDRESS, timeout=0.3).source in (story.pool_ip, "")
        assert story.watch is not None
        assert dict(story.watch.settle().leaks) == {}
    finally:
        story.manifests.put(TWO_GATEWAYS, good)

    def is_back() -> bool:
        tor_table(story)  # an address that was given back rests: the pool gives another one
        return pod.ask(FW_ADDRESS, timeout=0.3).source == story.pool_ip

    lab.wait(is_back, "the policy is in force again")


def held(story: Story) -> None:
    """The pods ask, by a flow that runs and a new one, and the capture at the ToR has no packet with their address."""
    for name in ("snat-pod", "snat-gw"):
        assert story.lab.pod(name).ask(FW_ADDRESS, timeout=0.3).source in (EGRESS_IP, "")
        assert story.lab.pod(name).get(FW_ADDRESS, timeout=0.3).source in (EGRESS_IP, "")
    assert story.watch is not None
    verdict = story.watch.settle()
    assert (dict(verdict.leaks), verdict.lost) == ({}, 0)
