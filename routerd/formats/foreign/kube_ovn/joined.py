"""Policies with the addresses and the namespaces that other objects say. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from routerd.formats.closed import bounded
from routerd.formats.document import MOST
from routerd.formats.foreign.kube_ovn.named import Named, NamedAddress, NatGateway, Subnet
from routerd.formats.foreign.policies import everywhere
from routerd.model import Awaited, EgressPolicy, IPAddress, Refusal

_OF_SUBNETS = ("Subnet", "CIDR")


@dataclass(frozen=True, slots=True)
class Known:
    """What policies name: addresses by Ref, subnets and NAT gateways by name."""

    addresses: Mapping[str, NamedAddress]
    subnets: Mapping[str, Subnet]
    gateways: Mapping[str, NatGateway]


def known(objects: Iterable[object]) -> Known:
    named = [each for each in objects if isinstance(each, Named)]
    return Known(
        {str(each.ref): each for each in named if isinstance(each, NamedAddress)},
        {each.name: each for each in named if isinstance(each, Subnet)},
        {each.name: each for each in named if isinstance(each, NatGateway)},
    )


def completed(policy: EgressPolicy, others: Known) -> tuple[EgressPolicy, tuple[Refusal, ...]]:
    """With what it awaits: where something of that is not there, it covers what it can be told that it covers."""
    if not policy.awaits:
        return policy, ()
    addresses: list[IPAddress] = [*policy.egress_ips]
    selections, faults, vpc = [*policy.selections], [], ""
    for each in (one for one in policy.awaits if one.kind not in _OF_SUBNETS):
        named = others.addresses.get(f"{each.kind}/{each.name}")
        if named is None:
            faults.append(f"{each.at}there is no {each.kind} {each.name} with an address")
        else:
            addresses += named.addresses
            vpc = vpc or _vpc_of(named, others)
    for each in (one for one in policy.awaits if one.kind in _OF_SUBNETS):
        subnets, fault = _subnets(each, each.vpc or vpc, others)
        vpc = vpc or (subnets[0].vpc if subnets and each.kind == "Subnet" else "")
        selections += (selection for subnet in subnets for selection in subnet.selections)
        faults += [f"{each.at}{fault}"] if fault else []
    selections = list(dict.fromkeys(selections))
    if len(selections) > MOST:
        faults.append(f"{policy.origin}: its Subnets have {len(selections)} selectors, at most {MOST} are taken")
    whole = replace(policy, awaits=(), selections=tuple(selections))
    if faults or policy.refused:
        consequence = "what it covers is dropped" if selections else "nothing of it is in force"
        told = (Refusal(policy.ref, "NotFound", f"{each} ({consequence})") for each in faults)
        return replace(bounded(whole), refused=True), tuple(told)
    first, *further = dict.fromkeys(addresses)
    return replace(whole, egress_ip=first, further_ips=tuple(further), destinations=everywhere(addresses)), ()


def _vpc_of(named: NamedAddress, others: Known) -> str:
    gateway = others.gateways.get(named.gateway)
    return gateway.vpc if gateway is not None else ""


def _subnets(each: Awaited, vpc: str, others: Known) -> tuple[list[Subnet], str]:
    """Those that may be meant, and what is wrong with them, or "". Of several all are covered: more, never less."""
    if each.kind == "Subnet":
        named = others.subnets.get(each.name)
        if named is None:
            return [], f"there is no Subnet {each.name}"
        return [named], _wrong_vpc(named, vpc) or _unbound(named)
    having = [one for one in others.subnets.values() if each.name in map(str, one.networks)]
    found = [one for one in having if not _wrong_vpc(one, vpc)]
    if not found:
        where = f" of VPC {vpc}" if having else ""
        return [], f"pods are selected by labels and namespaces, and no Subnet{where} has the CIDR {each.name}"
    bound = [one for one in found if one.selections] or found[:1]
    if len(bound) > 1 or len({one.vpc for one in found}) > 1:
        names = ", ".join(f"{one.name} of VPC {one.vpc}" for one in sorted(found, key=lambda one: one.name))
        return (
            found,
            f"several Subnets have the CIDR {each.name} ({names}): write in an EgressPolicy which pods are meant",
        )
    return bound, _unbound(bound[0])


def _wrong_vpc(subnet: Subnet, vpc: str) -> str:
    return f"Subnet {subnet.name} is of VPC {subnet.vpc}, not of {vpc}" if vpc not in ("", subnet.vpc) else ""


def _unbound(subnet: Subnet) -> str:
    return "" if subnet.selections else f"Subnet {subnet.name} is bound to no namespace"
