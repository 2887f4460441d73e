"""Amazon EC2 to the fake cloud."""

from __future__ import annotations

from tests.models.cloud.calls import BY_NAME
from tests.models.cloud.changes import DOES
from tests.models.cloud.front import Front
from tests.models.cloud.looks import LOOKS

EC2_FRONT = Front(
    BY_NAME,
    LOOKS,
    DOES,
    {
        "no-addresses": ("InsufficientFreeAddressesInSubnet", 400),
        "no-prefixes": ("InsufficientCidrBlocks", 400),
        "no-ipv6": ("InvalidParameterValue", 400),
        "limit": ("PrivateIpAddressLimitExceeded", 400),
        "gone": ("InvalidNetworkInterfaceID.NotFound", 400),
        "denied": ("UnauthorizedOperation", 403),
        "throttled": ("RequestLimitExceeded", 503),
        "internal": ("InternalError", 500),
        "unknown-parameter": ("UnknownParameter", 400),
        "no-call": ("InvalidAction", 400),
    },
    reserved=(4, 1),
    loose=50,
)
