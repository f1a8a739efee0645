"""How fast one client may ask: so that no script keeps the others from being served.

Called by the application for each request, once it is known who sent it. Whoever may do everything (`system:masters`) and the
operator are not held up: they keep the cluster going, and find out what is wrong with it. Strangers count by their address.
"""

from __future__ import annotations

import math

from swarmtask.apiserver.access.users import OPERATORS, User
from swarmtask.apiserver.rate_limits import Rate, TokenBuckets
from swarmtask.clock import Clock
from swarmtask.errors import TooManyRequests

BURST_S = 5
"""A client that has been quiet may ask at once for as much as in so many seconds."""


class RequestPace:
    """One per server. `per_second` 0: nobody is held up."""

    def __init__(self, clock: Clock, per_second: int) -> None:
        self._buckets = TokenBuckets(clock.monotonic)
        self._rate = Rate(60 * per_second, BURST_S * per_second) if per_second else None

    def admit(self, user: User | None, address: str) -> None:
        """Count a request. `user` None: it has no valid token.

        Raises:
            TooManyRequests: with the seconds after which the next one is let in.
        """
        if self._rate is None or is_exempt(user):
            return
        key = ("user", user.name) if user is not None else ("address", address)
        wait_s = self._buckets.wait_s(key, self._rate)
        if wait_s > 0:
            who = user.name if user is not None else address
            raise TooManyRequests(
                f"{who} sends more than {self._rate.per_minute // 60} requests per second: wait as Retry-After says",
                retry_after_s=max(1, math.ceil(wait_s)),
            )
        self._buckets.take(key, self._rate)


def is_exempt(user: User | None) -> bool:
    """Bounds per client do not hold for this one."""
    return user is not None and (user.is_master or OPERATORS in user.groups)
