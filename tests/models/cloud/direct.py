"""The fake cloud without HTTP: what an SDK would do of errors, for many calls in virtual time."""

from __future__ import annotations

from typing import Any

from cloud.backend import CloudFault, Data, Send, Unanswered
from cloud.demand import Rules
from cloud.providers import ec2, ecs
from cloud.providers.account import Account
from tests.models.cloud.alibaba.front import ALIBABA_FRONT
from tests.models.cloud.core import Cloud
from tests.models.cloud.state import Dropped, Refusal

REGION = "cn-hangzhou"


def account(cloud: Cloud, rules: Rules) -> Account:
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


def _fault(cloud: Cloud, refusal: Refusal, parameters: Data) -> CloudFault:
    if cloud.front is ALIBABA_FRONT:
        return ecs.fault(refusal.code, refusal.message, parameters)
    return ec2.fault(refusal.code, refusal.message)
