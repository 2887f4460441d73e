"""The state of the fake cloud, and what is so of every call: permissions, throttling, late looks, faults.

A call takes and gives mappings with the cloud's own names. It raises `Refusal`, or `Dropped` for no answer.
"""

from __future__ import annotations

import itertools
import threading
from bisect import insort
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Any, Literal

from tests.models.cloud.ec2_front import EC2_FRONT
from tests.models.cloud.front import Front
from tests.models.cloud.state import (
    Attachment,
    Dropped,
    Eni,
    FakeGroup,
    FakeInstance,
    FakeSubnet,
    Refusal,
    TypeOfInstance,
)

Data = Mapping[str, Any]
TYPES = {"t3.small": TypeOfInstance(3, 4), "m5.large": TypeOfInstance(3, 10), "t2.small": TypeOfInstance(3, 4, "xen")}


@dataclass(slots=True)
class Fault:
    """What becomes of the next calls of an action: nothing, or all of it without an answer."""

    action: str
    when: Literal["before", "after", "throttled", "internal", "internal-done"]
    times: int = 1


@dataclass(slots=True)
class Cloud:
    front: Front = EC2_FRONT
    now: float = 1_000_000.0  # seconds of the Unix epoch
    types: dict[str, TypeOfInstance] = field(default_factory=lambda: dict(TYPES))
    subnets: dict[str, FakeSubnet] = field(default_factory=dict)
    groups: dict[str, FakeGroup] = field(default_factory=dict)
    instances: dict[str, FakeInstance] = field(default_factory=dict)
    enis: dict[str, Eni] = field(default_factory=dict)
    quota: int = 5000  # interfaces of the account
    attaching: float = 2.0  # seconds
    lag: Callable[[], float] = lambda: 0.0  # seconds by which the next look is late
    permissions: Collection[str] | None = None  # None = all
    buckets: Mapping[str, tuple[int, float]] = field(default_factory=dict)  # by action: burst, calls a second
    per_minute: Mapping[str, int] = field(default_factory=dict)  # by action: calls, counted anew with each minute
    retry_after: float = 0.0  # seconds; 0 = who is throttled is not told for how long
    faults: list[Fault] = field(default_factory=list)
    log: list[tuple[float, str, Data, str]] = field(default_factory=list)  # time, action, parameters, code or ""
    taken: dict[str, set[int]] = field(default_factory=dict)  # by subnet: addresses
    taken6: dict[str, set[IPv6Network]] = field(default_factory=dict)
    _later: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _history: list[tuple[float, dict[str, Eni]]] = field(default_factory=list)
    tokens: dict[str, tuple[str, str]] = field(default_factory=dict)
    _tokens_left: dict[str, tuple[float, float]] = field(default_factory=dict)
    _in_minute: Counter[tuple[str, int]] = field(default_factory=Counter)
    numbers: Any = field(default_factory=lambda: itertools.count(1))
    versions: Any = field(default_factory=lambda: itertools.count(1))
    _lock: Any = field(default_factory=threading.RLock)

    # --- what a test does ---

    def add_subnet(
        self, name: str, cidr: str, zone: str = "a", cidr6: str = "", vpc: str = "vpc-1", **tags: str
    ) -> None:
        network6 = IPv6Network(cidr6) if cidr6 else None
        self.subnets[name] = FakeSubnet(name, vpc, zone, IPv4Network(cidr), network6, tags)
        self.taken[name], self.taken6[name] = set(), set()

    def add_group(self, name: str, **tags: str) -> None:
        self.groups[name] = FakeGroup(name, "vpc-1", tags)

    def add_instance(self, name: str, subnet: str, type_: str = "m5.large", group: str = "sg-1") -> None:
        """With its primary interface, and those for pods where the cloud makes none of its own."""
        place = self.subnets[subnet]
        self.instances[name] = FakeInstance(name, type_, place.zone, place.vpc, subnet, (group,))
        for index in range(self.front.interfaces):
            eni = self.new(subnet, (group,), {}, "")
            self.put(replace(eni, attachment=Attachment(f"attach-{eni.id}", name, index, "attached", True)))

    def terminate(self, name: str) -> None:
        """What goes with it is deleted, the rest is loose."""
        self.instances[name] = replace(self.instances[name], state="terminated")
        for eni in [each for each in self.enis.values() if each.attachment and each.attachment.instance == name]:
            assert eni.attachment is not None
            if eni.attachment.delete_on_termination:
                self.remove(eni)
            else:
                self.put(replace(eni, attachment=None))

    def unassign(self, eni: Eni, addresses: Collection[IPv4Address], prefixes: Collection[IPv4Network] = ()) -> None:
        """They are free at once."""
        self.taken[eni.subnet] -= {*map(int, addresses), *(int(each) for prefix in prefixes for each in prefix)}
        left = tuple(each for each in eni.addresses if each not in addresses)
        self.put(replace(eni, addresses=left, prefixes=tuple(each for each in eni.prefixes if each not in prefixes)))

    def set_state(self, name: str, state: str) -> None:
        self.instances[name] = replace(self.instances[name], state=state)

    def advance(self, seconds: float) -> None:
        with self._lock:
            end = self.now + seconds
            while self._later and self._later[0][0] <= end:
                due, _, then = self._later.pop(0)
                self.now = max(self.now, due)
                then()
            self.now = end
            while len(self._history) > 1 and self._history[1][0] < self.now - 120:
                self._history.pop(0)

    def of(self, instance: str) -> list[Eni]:
        found = (each for each in self.enis.values() if each.attachment and each.attachment.instance == instance)
        return sorted(found, key=lambda each: each.attachment.index if each.attachment else 0)

    def mutations(self) -> Counter[str]:
        return Counter(
            action for _, action, _, code in self.log if self.front.calls[action].mode != "read" and not code
        )

    # --- a call ---

    def call(self, action: str, parameters: Data) -> Data:
        with self._lock:
            code = "(a bug)"
            try:
                answer = self._call(action, parameters)
                code = ""
                return answer
            except Refusal as refusal:
                code = refusal.code
                raise
            except Dropped:
                code = "(no answer)"
                raise
            finally:
                self.log.append((self.now, action, parameters, code))

    def _call(self, action: str, parameters: Data) -> Data:
        known = self.front.calls.get(action)
        if known is None:
            raise self.front.refusal("no-call", action)
        fault = self._fault(action)
        self._throttle(action, fault)
        self.permit(known.permission, *(known.also[each] for each in known.also if each in parameters))
        if unknown := set(parameters) - set(known.parameters):
            raise self.front.refusal("unknown-parameter", ", ".join(sorted(unknown)))
        if fault in ("before", "internal"):
            raise Dropped if fault == "before" else self.front.refusal("internal")
        if known.mode == "read":
            answer = self.front.looks[action](self, self._seen(), parameters)
        else:
            answer = self.front.does[action](self, parameters)
        if fault in ("after", "internal-done"):
            raise Dropped if fault == "after" else self.front.refusal("internal")
        return answer

    def _fault(self, action: str) -> str:
        for fault in self.faults:
            if fault.action == action and fault.times:
                fault.times -= 1
                return fault.when
        return ""

    def permit(self, *permissions: str) -> None:
        for each in permissions:
            if self.permissions is not None and each not in self.permissions:
                raise self.front.refusal("denied", f"not allowed: {each}")

    def _throttle(self, action: str, fault: str) -> None:
        burst, rate = self.buckets.get(action, (0, 0.0))
        tokens, at = self._tokens_left.get(action, (float(burst), self.now))
        tokens = min(burst, tokens + (self.now - at) * rate)
        minute = action, int(self.now // 60)
        self._in_minute[minute] += 1
        is_over = action in self.per_minute and self._in_minute[minute] > self.per_minute[action]
        if fault == "throttled" or (burst and tokens < 1) or is_over:
            self._tokens_left[action] = tokens, self.now
            raise self.front.refusal("throttled", action)
        self._tokens_left[action] = tokens - 1, self.now

    def _seen(self) -> Mapping[str, Eni]:
        """The interfaces as a look shows them, which may be late."""
        when = self.now - self.lag()
        for since, enis in reversed(self._history):
            if since <= when:
                return enis
        return self._history[0][1] if self._history else {}

    # --- the state ---

    def note(self) -> None:
        if self._history and self._history[-1][0] == self.now:
            self._history.pop()
        self._history.append((self.now, dict(self.enis)))

    def put(self, eni: Eni) -> None:
        self.enis[eni.id] = replace(eni, version=next(self.versions))
        self.note()

    def remove(self, eni: Eni) -> None:
        taken = self.taken[eni.subnet]
        taken -= {int(eni.primary), *map(int, eni.addresses)}
        for prefix in eni.prefixes:
            taken -= set(range(int(prefix[0]), int(prefix[0]) + 16))
        self.taken6[eni.subnet] -= set(eni.prefixes6)
        del self.enis[eni.id]
        self.note()

    def later(self, seconds: float, then: Callable[[], None]) -> None:
        insort(self._later, (self.now + seconds, next(self.numbers), then))

    def eni(self, parameters: Data) -> Eni:
        name = parameters["NetworkInterfaceId"]
        if name not in self.enis:
            raise self.front.refusal("gone", f"The networkInterface ID '{name}' does not exist")
        return self.enis[name]

    def new(self, subnet: str, groups: tuple[str, ...], tags: Mapping[str, str], description: str) -> Eni:
        number = next(self.numbers)
        (primary,) = self.take(subnet, 1)
        mac = f"02:00:{number >> 24 & 255:02x}:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
        return Eni(
            f"eni-{number:017x}", mac, subnet, primary, groups=groups, tags=tags, description=description,
            created=self.now,
        )  # fmt: skip

    def take(self, subnet: str, count: int) -> tuple[IPv4Address, ...]:
        """The lowest free ones, so that what is freed is somebody else's at once."""
        cidr, taken = self.subnets[subnet].cidr, self.taken[subnet]
        first, last = int(cidr[0]) + self.front.reserved[0], int(cidr[-1]) - self.front.reserved[1]
        found = list(itertools.islice((each for each in range(first, last + 1) if each not in taken), count))
        if len(found) < count:
            raise self.front.refusal("no-addresses", f"{subnet} has not enough free addresses")
        taken |= set(found)
        return tuple(map(IPv4Address, found))

    def take_prefixes(self, subnet: str, count: int) -> tuple[IPv4Network, ...]:
        cidr, taken = self.subnets[subnet].cidr, self.taken[subnet]
        first, last = self.front.reserved
        reserved = {*range(int(cidr[0]), int(cidr[0]) + first), *range(int(cidr[-1]) - last + 1, int(cidr[-1]) + 1)}
        starts = range(int(cidr[0]), int(cidr[-1]) + 1, 16)
        free = (each for each in starts if not any(n in taken or n in reserved for n in range(each, each + 16)))
        found = list(itertools.islice(free, count))
        if len(found) < count:
            raise self.front.refusal("no-prefixes", f"{subnet} has not enough free /28 prefixes")
        taken |= {number for first in found for number in range(first, first + 16)}
        return tuple(IPv4Network((each, 28)) for each in found)

    def take_prefixes6(self, subnet: str, count: int) -> tuple[IPv6Network, ...]:
        cidr6, taken = self.subnets[subnet].cidr6, self.taken6[subnet]
        if cidr6 is None:
            raise self.front.refusal("no-ipv6", f"{subnet} has no IPv6 CIDR block")
        found = tuple(itertools.islice((each for each in cidr6.subnets(new_prefix=80) if each not in taken), count))
        taken |= set(found)
        return found

    def limit(self, eni: Eni, more: int) -> None:
        instance = self.instances.get(eni.attachment.instance) if eni.attachment else None
        most = self.types[instance.type].ipv4 if instance else self.front.loose
        if eni.slots + more > most:
            raise self.front.refusal("limit", f"Number of private addresses will exceed limit of {most}")

    def prefixes_allowed(self, eni: Eni) -> None:
        instance = self.instances.get(eni.attachment.instance) if eni.attachment else None
        if instance and self.types[instance.type].hypervisor != "nitro":
            raise Refusal("InvalidParameterValue", f"{instance.type} takes no prefixes")
