"""Azure to the fake cloud."""

from __future__ import annotations

from tests.models.cloud.azure.calls import BY_NAME
from tests.models.cloud.azure.changes import DOES, MOST
from tests.models.cloud.azure.looks import LOOKS
from tests.models.cloud.front import Front

AZURE_FRONT = Front(
    BY_NAME,
    LOOKS,
    DOES,
    {
        "no-addresses": ("SubnetIsFull", 400),
        "no-prefixes": ("SubnetIsFull", 400),
        "no-ipv6": ("InvalidRequestFormat", 400),
        "limit": ("NetworkInterfaceIPConfigurationLimitReached", 400),
        "gone": ("ResourceNotFound", 404),
        "denied": ("AuthorizationFailed", 403),
        "throttled": ("TooManyRequests", 429),
        "internal": ("InternalServerError", 500),
        "unknown-parameter": ("UnknownParameter", 400),
        "no-call": ("NotFound", 404),
    },
    reserved=(4, 1),
    loose=MOST,
    interfaces=2,
)
