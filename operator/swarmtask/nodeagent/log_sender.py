"""The way of output to the API: one append at a time, and only while the fence allows it.

Called by all `log_follower`s. Those that wait take turns. An API that is away or whose disk is full holds all of them up: nothing
is read from Docker meanwhile, which keeps it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from swarmtask.clock import Clock
from swarmtask.errors import (
    InsufficientStorage,
    ServiceUnavailable,
    SwarmTaskError,
    Timeout,
    TooManyRequests,
    Unauthorized,
)
from swarmtask.nodeagent.containers import Owner

logger = logging.getLogger(__name__)

FENCED_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class Taken:
    """What the API has of an attempt's output: the position that it expects, the time of its newest record, its end."""

    position: int
    last: int
    complete: bool


class Refused(SwarmTaskError):
    """The API expects another position, or nothing more."""

    def __init__(self, message: str, taken: Taken) -> None:
        super().__init__(message)
        self.taken = taken


class LogApi(Protocol):
    """What is needed of the link."""

    async def append_log(self, owner: Owner, position: int, body: bytes) -> Taken: ...


class LogSender:
    """See the module.

    Args:
        permit: boot time, or None while the fence forbids every call.
        longest_pause_s: after a failure.
    """

    def __init__(
        self,
        api: LogApi,
        permit: Callable[[], float | None],
        *,
        clock: Clock,
        rng: random.Random,
        longest_pause_s: float = 5.0,
    ) -> None:
        self._api, self._permit, self._clock, self._rng = api, permit, clock, rng
        self._longest_pause_s = longest_pause_s
        self._turn = asyncio.Lock()

    async def send(self, owner: Owner, position: int, body: bytes) -> Taken:
        """Append, however long it takes.

        Raises:
            Refused: another position is expected. SwarmTaskError: this attempt's output is not wanted, or cannot be stored.
        """
        async with self._turn:
            failures = 0
            while True:
                while self._permit() is None:
                    await self._clock.sleep(FENCED_PAUSE_S)
                try:
                    taken = await self._api.append_log(owner, position, body)
                except (ServiceUnavailable, Timeout, TooManyRequests, InsufficientStorage, Unauthorized) as error:
                    failures += 1
                    (logger.warning if failures == 1 else logger.debug)("cannot send output: %s; it is tried again", error)
                    longest_s = min(self._longest_pause_s, 0.5 * 2 ** min(failures, 10))
                    await self._clock.sleep(self._rng.uniform(0.1, longest_s))
                else:
                    if failures:
                        logger.info("output is sent again")
                    return taken
