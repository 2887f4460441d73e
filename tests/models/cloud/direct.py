"""The fake cloud without HTTP: what an SDK would do of errors, for many calls in virtual time."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from cloud.backend import Backend, CloudFault, Data, Send, Unanswered
from cloud.calls import Call, Outcome
from cloud.demand import Rules
from cloud.model import Inventory
from cloud.providers import arm, ec2, ecs, nic_changes
from cloud.providers.account import Account
from tests.models.cloud.alibaba.front import ALIBABA_FRONT
from tests.models.cloud.azure import names
from tests.models.cloud.azure.front import AZURE_FRONT
from tests.models.cloud.core import Cloud
from tests.models.cloud.state import Dropped, Refusal

REGION = "cn-hangzhou"


def account(cloud: Cloud, rules: Rules) -> Backend:
    if cloud.front is AZURE_FRONT:
        return Named(nic_changes.Subscription(sender(cloud)))
    return Account(ecs if cloud.front is ALIBABA_FRONT else ec2, sender(cloud), rules)


def sender(cloud: Cloud) -> Send:
    def send(action: str, parameters: Data) -> Data:
        given = ecs.in_region(action, parameters, REGION) if cloud.front is ALIBABA_FRONT else parameters
        try:
            answer: Any = cloud.call(action, given)
        except Dropped:
            raise Unanswered("other", "", "the connection broke") from None
        except Refusal as refusal:
            if refusal.status == 500:
                raise Unanswered("other", refusal.code, refusal.message) from None
            raise _fault(cloud, refusal, parameters) from None
        return answer

    return send


@dataclass(frozen=True)
class Named:
    """Azure with its VMs called by their names in place of their ids, as instances of the other clouds are."""

    backend: nic_changes.Subscription

    def describe(self, instances: Collection[str]) -> Inventory:
        short = {names.vm(each).lower(): each for each in instances}
        found = self.backend.describe(short.keys())
        there = {short[name]: replace(each, id=short[name]) for name, each in found.instances.items()}
        interfaces = {
            name: replace(each, instance=short.get(each.instance, each.instance))
            for name, each in found.interfaces.items()
        }
        return replace(found, instances=there, interfaces=interfaces)

    def action(self, call: Call) -> str:
        return self.backend.action(call)

    def send(self, call: Call) -> Outcome:
        return self.backend.send(call)


def _fault(cloud: Cloud, refusal: Refusal, parameters: Data) -> CloudFault:
    if cloud.front is AZURE_FRONT:
        error = {"error": {"code": refusal.code, "message": refusal.message}}
        return arm.fault(refusal.status, error, cloud.retry_after if refusal.status == 429 else 0.0)
    if cloud.front is ALIBABA_FRONT:
        return ecs.fault(refusal.code, refusal.message, parameters)
    return ec2.fault(refusal.code, refusal.message)
