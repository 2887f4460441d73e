"""Alibaba Cloud to the fake cloud."""

from __future__ import annotations

from tests.models.cloud.alibaba.calls import BY_NAME
from tests.models.cloud.alibaba.changes import AT_ONCE, DOES
from tests.models.cloud.alibaba.looks import LOOKS
from tests.models.cloud.front import Front

ALIBABA_FRONT = Front(
    BY_NAME,
    LOOKS,
    DOES,
    {
        "no-addresses": ("InvalidVSwitchId.IpNotEnough", 403),
        "no-prefixes": ("InvalidVSwitchId.IpNotEnough", 403),
        "no-ipv6": ("InvalidParameter", 400),
        "limit": ("InvalidOperation.Ipv4CountExceeded", 403),
        "gone": ("InvalidEniId.NotFound", 404),
        "denied": ("Forbidden.RAM", 403),
        "throttled": ("Throttling", 400),
        "internal": ("InternalError", 500),
        "unknown-parameter": ("UnknownParameter", 400),
        "no-call": ("InvalidAction.NotFound", 404),
    },
    reserved=(1, 3),
    loose=1 + AT_ONCE,
)
