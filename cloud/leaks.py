"""Interfaces of ours that nobody needs: made for an instance that is gone, or before a crash. Pure.

Deleted is what bears our cluster's name, is attached to nothing, is older than ten minutes, and was so in two looks a
minute apart: a look may be late, and another operator may be about to attach it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from cloud.calls import Create
from cloud.demand import Demands, Rules
from cloud.model import CREATED_TAG, INSTANCE_TAG, INTENT_TAG, Interface, Inventory
from cloud.records import Holdings

AGE = 600.0  # seconds
APART = 60.0  # seconds between the two looks


def suspects(
    inventory: Inventory, holdings: Holdings, demands: Demands, rules: Rules, before: Mapping[str, float], now: float
) -> Mapping[str, float]:
    """By interface, since when it looks like a leak. `before` is what the last look said."""
    tokens = _tokens(holdings)
    attached = Counter(each.instance for each in inventory.interfaces.values())
    wanted = {name for name in demands if _has_room(name, attached[name], inventory)}
    found = (each for each in inventory.interfaces.values() if _is_loose(each, tokens, wanted, rules, now))
    return {each.id: before.get(each.id, now) for each in found}


def _has_room(name: str, attached: int, inventory: Inventory) -> bool:
    """Whether an interface that was made for the instance may still be attached to it."""
    instance = inventory.instances.get(name)
    limits = inventory.limits.get(instance.type) if instance else None
    return instance is not None and (limits is None or attached < limits.interfaces)


def leaks(suspected: Mapping[str, float], now: float) -> Iterable[str]:
    """Those to delete, the oldest suspects first."""
    ripe = [name for name, since in suspected.items() if now - since >= APART]
    return sorted(ripe, key=lambda name: (suspected[name], name))


def _tokens(holdings: Holdings) -> frozenset[str]:
    intents = (each.intent for each in holdings.values() if each.intent is not None)
    return frozenset(each.call.token for each in intents if isinstance(each.call, Create))


def _is_loose(interface: Interface, tokens: Collection[str], wanted: Collection[str], rules: Rules, now: float) -> bool:
    if not rules.is_ours(interface) or interface.instance or interface.status != "available":
        return False
    if not rules.may_have(interface):
        return False
    created = interface.tags.get(CREATED_TAG, "")
    if not created.isdecimal() or now - int(created) < AGE or interface.tags.get(INTENT_TAG) in tokens:
        return False
    return interface.tags.get(INSTANCE_TAG, "") not in wanted
