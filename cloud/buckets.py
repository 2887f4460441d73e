"""A token bucket for each action of a cloud, so that its own are never emptied. Pure: the time is given.

Clouds throttle by action, account and region. An action that was throttled all the same rests, each time longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

FIRST_REST, LAST_REST = 1.0, 30.0  # seconds


@dataclass(frozen=True, slots=True)
class Rate:
    """Calls a second, and how many at once after a pause."""

    per_second: float
    burst: int


@dataclass(frozen=True, slots=True)
class Bucket:
    tokens: float
    at: float  # when so many were there, seconds; in the future while it rests
    rest: float = 0.0  # seconds of the last rest; 0 = none since the last success

    def now(self, rate: Rate, now: float) -> float:
        """How many tokens there are."""
        return min(rate.burst, self.tokens + max(now - self.at, 0.0) * rate.per_second) if now >= self.at else 0.0


@dataclass(frozen=True, slots=True)
class Buckets:
    """`rates` by action; one without a rate has the `default`."""

    rates: Mapping[str, Rate] = field(default_factory=dict)
    default: Rate = Rate(5.0, 10)
    buckets: Mapping[str, Bucket] = field(default_factory=dict)

    def _rate(self, action: str) -> Rate:
        return self.rates.get(action, self.default)

    def _bucket(self, action: str, now: float) -> Bucket:
        return self.buckets.get(action) or Bucket(self._rate(action).burst, now)

    def _with(self, action: str, bucket: Bucket) -> Buckets:
        return replace(self, buckets={**self.buckets, action: bucket})

    def take(self, action: str, now: float) -> Buckets | None:
        """With one token less; None if there is none."""
        bucket = self._bucket(action, now)
        tokens = bucket.now(self._rate(action), now)
        return self._with(action, replace(bucket, tokens=tokens - 1, at=now)) if tokens >= 1 else None

    def wait(self, action: str, now: float) -> float:
        """Seconds until there is a token."""
        rate, bucket = self._rate(action), self._bucket(action, now)
        lacking = 1 - bucket.now(rate, max(now, bucket.at))
        return max(bucket.at - now, 0.0) + max(lacking, 0.0) / rate.per_second

    def throttled(self, action: str, now: float, after: float = 0.0) -> Buckets:
        """It rests: the cloud's own bucket is emptier than ours. `after`: as long as the cloud says, if longer."""
        bucket = self._bucket(action, now)
        if bucket.at > now:  # another call of the same moment has said so
            return self._with(action, replace(bucket, at=max(bucket.at, now + after)))
        rest = min(max(2 * bucket.rest, FIRST_REST), LAST_REST)
        return self._with(action, Bucket(0.0, now + max(rest, after), rest))

    def answered(self, action: str, now: float) -> Buckets:
        """A call was not throttled: the next rest is a short one again."""
        bucket = self._bucket(action, now)
        return self if bucket.rest == 0 or bucket.at > now else self._with(action, replace(bucket, rest=0.0))
