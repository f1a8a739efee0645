"""Token buckets: how fast each client may do something.

Called by the admission of queues. Kept in memory alone: after a restart every bucket is full. Reads time through the function that
it is given.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

BUCKETS_LIMIT = 65_536
"""Buckets kept at the same time, about 20 MB. Beyond it the one that was used longest ago is forgotten, which makes it full."""
_ROUNDING = 1e-9
"""Tokens. Debts are sums of floats: a client that waits as long as it was told must not miss its token by a rounding error."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens per minute in the long run (>= 1), and at most `burst` (>= 1) at once after a pause."""

    per_minute: int
    burst: int

    @property
    def per_second(self) -> float:
        return self.per_minute / 60


@dataclass(slots=True)
class _Bucket:
    """`debt`: tokens missing from a full bucket at the time `at_s`; `per_second`: how fast it was refilled when last used."""

    debt: float
    at_s: float
    per_second: float


class TokenBuckets:
    """One bucket per key. A bucket that is full again is the same as none, and is forgotten as others are used.

    The rate comes with each call, so that an edited limit holds at once, for the time since the last use as well.

    Args:
        now_s: seconds that never go backwards.
        limit: see BUCKETS_LIMIT.
    """

    def __init__(self, now_s: Callable[[], float], *, limit: int = BUCKETS_LIMIT) -> None:
        self._now_s = now_s
        self._limit = limit
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()
        """Longest unused first."""

    def __len__(self) -> int:
        return len(self._buckets)

    def wait_s(self, key: Hashable, rate: Rate) -> float:
        """Seconds until a token is there; 0 when one is. Never more than one token takes, also where the limit was just lowered."""
        missing = self._debt(key, rate) + 1 - rate.burst
        return missing / rate.per_second if missing > _ROUNDING else 0.0

    def take(self, key: Hashable, rate: Rate) -> None:
        """Take a token. The caller has seen that one is there."""
        now = self._now_s()
        self._buckets[key] = _Bucket(self._debt(key, rate) + 1, now, rate.per_second)
        self._buckets.move_to_end(key)
        for _ in range(2):  # more than one bucket comes in at a time never, so two going out keep up
            oldest, bucket = next(iter(self._buckets.items()))
            if bucket.debt - (now - bucket.at_s) * bucket.per_second > 0 and len(self._buckets) <= self._limit:
                break
            del self._buckets[oldest]

    def give_back(self, key: Hashable) -> None:
        """Undo one `take`."""
        bucket = self._buckets.get(key)
        if bucket is not None:
            bucket.debt = max(0.0, bucket.debt - 1)

    def _debt(self, key: Hashable, rate: Rate) -> float:
        bucket = self._buckets.get(key)
        if bucket is None:
            return 0.0
        return min(float(rate.burst), max(0.0, bucket.debt - (self._now_s() - bucket.at_s) * rate.per_second))
