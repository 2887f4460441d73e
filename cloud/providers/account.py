"""A cloud by the client of its SDK: looks in their order, calls sent once, and what of an answer is not understood.

What a cloud calls things is its dialect, a module of pure functions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from cloud.backend import Data, Request, Send
from cloud.calls import Call, Done, Outcome
from cloud.demand import Rules
from cloud.model import Group, Instance, Interface, Inventory, Limits, Subnet
from cloud.providers.answers import outcome, understood


class Dialect(Protocol):
    """Looks raise CloudFault. Whatever is not there is absent, and no error."""

    def request(self, call: Call, /) -> Request:
        """The action, and what it is told."""

    def done(self, call: Call, answer: Data, /) -> Done:
        """What an answer says that was given."""

    def look_at_instances(self, send: Send, wanted: Iterable[str], /) -> dict[str, Instance]: ...

    def look_at_interfaces(self, send: Send, vpcs: Collection[str], cluster: str, /) -> dict[str, Interface]:
        """All of these VPCs, as others' take room on instances, too; without VPCs, those of the cluster."""

    def look_at_subnets(self, send: Send, vpcs: Iterable[str], /) -> dict[str, Subnet]: ...

    def look_at_groups(self, send: Send, vpcs: Iterable[str], /) -> dict[str, Group]: ...

    def look_at_limits(self, send: Send, types: Iterable[str], /) -> dict[str, Limits]: ...


@dataclass(slots=True)
class Account:
    """See `cloud.backend.Backend`. What instance types hold is asked once for each type."""

    dialect: Dialect
    call: Send
    rules: Rules
    _limits: dict[str, Limits] = field(default_factory=dict)

    def describe(self, instances: Collection[str]) -> Inventory:
        return understood(lambda: self._inventory(instances))

    def _inventory(self, instances: Collection[str]) -> Inventory:
        found = self.dialect.look_at_instances(self.call, instances) if instances else {}
        vpcs = {each.vpc for each in found.values()}
        # Interfaces after instances: one that is attached is then shown with its instance.
        interfaces = self.dialect.look_at_interfaces(self.call, vpcs, self.rules.cluster)
        if not vpcs:
            return Inventory(interfaces=interfaces)
        subnets = self.dialect.look_at_subnets(self.call, vpcs)
        groups = self.dialect.look_at_groups(self.call, vpcs) if self.rules.groups.tags else {}
        return Inventory(found, interfaces, subnets, groups, self._limits_of({each.type for each in found.values()}))

    def _limits_of(self, types: set[str]) -> dict[str, Limits]:
        if new := types - self._limits.keys():
            self._limits |= self.dialect.look_at_limits(self.call, new)
        return dict(self._limits)

    def action(self, call: Call) -> str:
        return self.dialect.request(call)[0]

    def send(self, call: Call) -> Outcome:
        action, parameters = self.dialect.request(call)
        return outcome(lambda: self.dialect.done(call, self.call(action, parameters)))
