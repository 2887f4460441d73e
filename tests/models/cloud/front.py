"""What the fake cloud needs to know of one cloud's API: its calls, what they do and show, and how it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tests.models.cloud.calls import ApiCall
from tests.models.cloud.state import Eni, Refusal

Data = Mapping[str, Any]
Seen = Mapping[str, Eni]
Kind = Literal[
    "no-addresses", "no-prefixes", "no-ipv6", "limit", "gone", "denied", "throttled", "internal", "unknown-parameter",
    "no-call",
]  # fmt: skip


@dataclass(frozen=True)
class Front:
    calls: Mapping[str, ApiCall]
    looks: Mapping[str, Callable[[Any, Seen, Data], Data]]
    does: Mapping[str, Callable[[Any, Data], Data]]
    codes: Mapping[Kind, tuple[str, int]]  # with the status of HTTP
    reserved: tuple[int, int]  # addresses of a subnet that nobody gets, at its beginning and its end
    loose: int  # addresses and prefixes of an interface that is attached to nothing, its primary one included

    interfaces: int = 1  # that an instance has from the first

    def refusal(self, kind: Kind, message: str = "") -> Refusal:
        code, status = self.codes[kind]
        return Refusal(code, message, status)
