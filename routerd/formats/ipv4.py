"""What an IPv4 datapath can do of a policy: the rest is refused by name, never dropped silently. Pure."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address

from routerd.model import EgressPolicy, IPNetwork, Refusal

NOT_SUPPORTED = "IPv6NotSupported"


def ipv4_part(policy: EgressPolicy) -> tuple[EgressPolicy | None, tuple[Refusal, ...]]:
    """The policy without its IPv6 destinations and why; None if nothing is left of it."""
    if isinstance(policy.egress_ip, IPv6Address):
        message = f"{policy.origin}: egress IP {policy.egress_ip} is IPv6; the datapath translates IPv4 only"
        return None, (Refusal(policy.ref, NOT_SUPPORTED, message),)
    dropped = [network for network in policy.destinations if network.version == 6]
    if not dropped:
        return replace(policy, excluded=_ipv4(policy.excluded)), ()
    kept = _ipv4(policy.destinations)
    shown = ", ".join(str(network) for network in dropped)
    rest = "the IPv4 destinations are served" if kept else "no destination is left"
    message = f"{policy.origin}: destinations {shown} are IPv6; the datapath translates IPv4 only; {rest}"
    refusals = (Refusal(policy.ref, NOT_SUPPORTED, message),)
    return (replace(policy, destinations=kept, excluded=_ipv4(policy.excluded)) if kept else None), refusals


def _ipv4(networks: tuple[IPNetwork, ...]) -> tuple[IPNetwork, ...]:
    return tuple(network for network in networks if network.version == 4)
