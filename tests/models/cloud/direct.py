"""The fake cloud without HTTP: what an SDK would do of errors, for many calls in virtual time."""

from __future__ import annotations

from typing import Any

from cloud.backend import Data, Send, Unanswered
from cloud.providers import ec2
from tests.models.cloud.core import Cloud
from tests.models.cloud.state import Dropped, Refusal


def sender(cloud: Cloud) -> Send:
    def send(action: str, parameters: Data) -> Data:
        try:
            answer: Any = cloud.call(action, parameters)
        except Dropped:
            raise Unanswered("other", "", "the connection broke") from None
        except Refusal as refusal:
            if refusal.status == 500:
                raise Unanswered("other", refusal.code, refusal.message) from None
            raise ec2.fault(refusal.code, refusal.message) from None
        return answer

    return send
