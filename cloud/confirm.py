"""What an observation says of the records: what is confirmed, what is lost, which calls are settled. Pure.

Looks at a cloud may lag by a minute, so nothing is lost because one does not show it, and what was sent is waited for
that long before it counts as not done.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from cloud.calls import Assign, AssignPrefix6, Attach, Bind, Create, Delete, Detach, Unassign
from cloud.demand import Demands, Rules
from cloud.model import INTENT_TAG, Interface, Inventory, Network, block_order
from cloud.records import Block, Held, Holding, Holdings, Intent

LAG = 60.0  # seconds by which a look at the cloud may be late
SOON = 10.0  # seconds after which a call that nobody answered, and that may be made twice, is made again


def confirm(holdings: Holdings, inventory: Inventory, demands: Demands, rules: Rules, now: float) -> Holdings:
    """The records after this observation. An address that two claim stays with who has it on record."""
    attached: dict[str, list[Interface]] = {}
    for interface in inventory.interfaces.values():
        if interface.is_attached and rules.counts(interface):
            attached.setdefault(interface.instance, []).append(interface)
    holdings = _given_again(holdings, inventory)
    seen = {}
    for name in sorted(holdings.keys() | demands.keys()):
        before = holdings.get(name) or Holding(name)
        after = _seen(before, attached.get(name, ()), inventory, demands, rules, now)
        if after is not None:
            seen[name] = after
    return _without_doubles(seen, holdings)


def _given_again(holdings: Holdings, inventory: Inventory) -> Holdings:
    """Without records of blocks that the cloud was told to take, and that an answer says it gave since."""
    again = {network for each in holdings.values() for network in _answered(each.intent, inventory)}
    if not again:
        return holdings
    return {name: _without_going(holding, again) for name, holding in holdings.items()}


def _answered(intent: Intent | None, inventory: Inventory) -> frozenset[Network]:
    """What a call gave, as its answer and this look say: a look alone may show what was before."""
    if intent is None or not intent.gave:
        return frozenset()
    made = intent.interface if isinstance(intent.call, Create) else intent.call.interface
    there = inventory.interfaces.get(made)
    return frozenset(intent.gave).intersection(there.blocks) if there else frozenset()


def _without_going(holding: Holding, networks: Collection[Network]) -> Holding:
    held = []
    for one in holding.held:
        kept = tuple(each for each in one.blocks if each.state != "going" or each.network not in networks)
        held.append(replace(one, blocks=kept))
    return replace(holding, held=tuple(held))


def _seen(
    holding: Holding, attached: Iterable[Interface], inventory: Inventory, demands: Demands, rules: Rules, now: float
) -> Holding | None:
    """None = the instance is gone, and nothing of it is left to remember."""
    if holding.instance not in inventory.instances:
        since = holding.missing or now
        return replace(holding, missing=since) if now - since < LAG else None
    if holding.instance in demands:
        holding = replace(holding, node=demands[holding.instance].node)
    known = {one.id: one for one in holding.held}
    there = {one.id: one for one in attached if one.subnet in inventory.subnets}
    held = [_held(known.get(name), there.get(name), inventory, now) for name in sorted(known.keys() | there.keys())]
    vpc = inventory.networks_of(inventory.instances[holding.instance].vpc) if rules.tells_vpc else ()
    told = (replace(one, vpc=vpc) for one in held if one is not None)
    kept = sorted(told, key=lambda one: (one.index, one.id))
    intent = holding.intent
    if intent is not None and is_settled(intent, inventory, now):
        intent = None
    after = replace(holding, held=tuple(kept), intent=intent, missing=0.0)
    return after if after.held or after.intent or holding.instance in demands else None


def _held(known: Held | None, there: Interface | None, inventory: Inventory, now: float) -> Held | None:
    """None = neither it nor any block of it is left."""
    blocks = {each.network: each for each in known.blocks} if known else {}
    shown = frozenset(there.blocks) if there else frozenset()
    kept = [each for each in (_block(one, shown, now) for one in blocks.values()) if each is not None]
    kept += [Block(network, since=now) for network in shown - blocks.keys()]
    ordered = tuple(sorted(kept, key=lambda each: block_order(each.network)))
    if there is not None:
        subnet = inventory.subnets[there.subnet].cidr
        return Held(there.id, there.mac, there.index, there.primary, subnet, ordered)
    return replace(known, blocks=ordered) if known and ordered else None


def _block(block: Block, shown: frozenset[Network], now: float) -> Block | None:
    """A block that is not shown stays for the lag: the next look may be an older one, and show it again."""
    if block.network in shown:
        return replace(block, missing=0.0) if block.missing else block
    since = block.missing or now
    return replace(block, missing=since) if now - since < LAG else None


Owner = tuple[str, str]  # instance, interface
Place = tuple[int, int]


def _place(network: Network) -> Place:
    """Blocks of one family can only overlap in the same place: a prefix has 16 addresses, or is a /80."""
    return network.version, int(network.network_address) >> (4 if network.version == 4 else 48)


def _without_doubles(seen: Holdings, before: Holdings) -> Holdings:
    """A block of which another instance has a part on record is nobody else's until that record is gone."""
    owners: dict[Place, list[tuple[Network, Owner]]] = {}
    recorded = {(name, one.id, block.network) for name, each in before.items() for one, block in each.blocks()}
    blocks = [((name, one.id), block.network) for name in sorted(seen) for one, block in seen[name].blocks()]
    blocks.sort(key=lambda each: (*each[0], each[1]) not in recorded)  # records first
    lost: set[tuple[Owner, Network]] = set()
    for owner, network in blocks:
        there = owners.setdefault(_place(network), [])
        if any(other != owner and network.overlaps(one) for one, other in there):
            lost.add((owner, network))
        else:
            there.append((network, owner))
    return {name: _less(holding, lost) for name, holding in seen.items()} if lost else seen


def _less(holding: Holding, lost: set[tuple[Owner, Network]]) -> Holding:
    held = []
    for one in holding.held:
        blocks = tuple(each for each in one.blocks if ((holding.instance, one.id), each.network) not in lost)
        held.append(replace(one, blocks=blocks))
    return replace(holding, held=tuple(held))


def made_by(intent: Intent, inventory: Inventory) -> Interface | None:
    """The interface that a Create made, though perhaps no answer came."""
    assert isinstance(intent.call, Create)
    if intent.interface:
        return inventory.interfaces.get(intent.interface)
    token = intent.call.token
    return next((each for each in inventory.interfaces.values() if each.tags.get(INTENT_TAG) == token), None)


def is_settled(intent: Intent, inventory: Inventory, now: float) -> bool:
    """Its effect shows, or would show by now. A Create that nobody answered is repeated, so it waits for an answer."""
    call, age = intent.call, now - intent.since
    if isinstance(call, Create):
        return made_by(intent, inventory) is not None or (intent.answered and age >= LAG)
    interface = inventory.interfaces.get(call.interface)
    if interface is not None and _shows(intent, interface):
        return True
    if isinstance(call, Delete) and interface is None:
        return True
    if intent.may_repeat:
        return False
    # What may be made twice is, sooner: an Assign that comes twice gives twice, and nothing is to be on what goes.
    return age >= (LAG if intent.answered or isinstance(call, Assign | AssignPrefix6 | Detach) else SOON)


def _shows(intent: Intent, interface: Interface) -> bool:
    call, shown = intent.call, frozenset(interface.blocks)
    if isinstance(call, Attach):
        return interface.is_attached and interface.instance == call.instance
    if isinstance(call, Detach):
        return not interface.instance
    if isinstance(call, Bind):
        return interface.goes_with_instance
    if isinstance(call, Assign | AssignPrefix6):
        return intent.answered and shown.issuperset(intent.gave)
    return isinstance(call, Unassign) and shown.isdisjoint(call.blocks)
