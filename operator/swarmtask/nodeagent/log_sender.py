"""The way of output to the API: what all attempts have to send at a moment is one request, made only while the fence allows it.

Called by all `log_follower`s. A request costs as much as some hundred lines, so those that come within a moment share one. An API
that is away or whose disk is full holds all of them up: nothing is read from Docker meanwhile, which keeps it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
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
from swarmtask.resources.log_records import MOST_BODY_BYTES, MOST_PARTS, Part

logger = logging.getLogger(__name__)

FENCED_PAUSE_S = 0.2
GATHER_S = 0.02
"""Whoever has something to send within this time comes along. Followers send at the same moments, so that it may be short."""
_PASSING = (ServiceUnavailable, Timeout, TooManyRequests, InsufficientStorage, Unauthorized)
"""What is tried again here: it says nothing about the attempt."""


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

    async def append_logs(self, node: str, parts: Sequence[Part]) -> list[Taken | SwarmTaskError]: ...


@dataclass(slots=True, eq=False)
class _Waiting:
    """A part that was not answered yet, or its answer."""

    part: Part
    answer: Taken | SwarmTaskError | None = None


class LogSender:
    """See the module.

    Args:
        permit: boot time, or None while the fence forbids every call.
        node: the SwarmNode that this machine is; empty while nobody knows.
        longest_pause_s: after a failure.
    """

    def __init__(
        self,
        api: LogApi,
        permit: Callable[[], float | None],
        *,
        node: Callable[[], str],
        clock: Clock,
        rng: random.Random,
        longest_pause_s: float = 5.0,
    ) -> None:
        self._api, self._node, self._permit, self._clock, self._rng = api, node, permit, clock, rng
        self._longest_pause_s = longest_pause_s
        self._turn = asyncio.Lock()
        self._waiting: list[_Waiting] = []
        self._failures = 0
        self.at_once = 0
        """How many attempts had something in the last request."""

    async def send(self, owner: Owner, position: int, body: bytes) -> Taken:
        """Append, however long it takes.

        Raises:
            Refused: another position is expected. SwarmTaskError: this attempt's output is not wanted, or cannot be stored.
        """
        mine = _Waiting(Part(owner.namespace, owner.task, owner.uid, owner.number, position, body))
        self._waiting.append(mine)
        try:
            async with self._turn:  # whose turn it is sends for all; those whose part was sent meanwhile find the answer
                while mine.answer is None:
                    await self._send_some()
        finally:
            if mine.answer is None:  # cancelled
                self._waiting.remove(mine)
        if isinstance(mine.answer, SwarmTaskError):
            raise mine.answer
        return mine.answer

    async def _send_some(self) -> None:
        """One request, of what waits longest; then a pause if it failed."""
        await self._clock.sleep(GATHER_S)
        while self._permit() is None or not self._node():
            await self._clock.sleep(FENCED_PAUSE_S)
        sent = self._next()
        self.at_once = len(sent)
        failure: SwarmTaskError | None = None
        answers: Sequence[Taken | SwarmTaskError]
        try:
            answers = await self._api.append_logs(self._node(), [one.part for one in sent])
        except SwarmTaskError as error:
            answers = [error] * len(sent)
        for one, answer in zip(sent, answers, strict=True):
            if isinstance(answer, _PASSING):
                failure = answer
            elif one in self._waiting:
                self._waiting.remove(one)
                one.answer = answer
        if failure is None:
            if self._failures:
                logger.info("output is sent again")
            self._failures = 0
            return
        self._failures += 1
        (logger.warning if self._failures == 1 else logger.debug)("cannot send output: %s; it is tried again", failure)
        await self._clock.sleep(self._rng.uniform(0.1, min(self._longest_pause_s, 0.5 * 2 ** min(self._failures, 10))))

    def _next(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        size = 0
        for one in self._waiting[:MOST_PARTS]:
            size += len(one.part.body)
            if taken and size > MOST_BODY_BYTES:
                break
            taken.append(one)
        return taken
