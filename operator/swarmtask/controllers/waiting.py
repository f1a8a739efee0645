"""Waiting for a change, for a moment, or for whichever comes first; and keeping loops alive.

Called by every control loop. All waiting goes through the injected clock, so that a test moves time by hand. Decides nothing.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
from collections.abc import Callable, Coroutine, Hashable
from contextlib import suppress
from typing import Any

from swarmtask.clock import Clock
from swarmtask.errors import SwarmTaskError

logger = logging.getLogger(__name__)

RESTART_CAP_S = 30.0
LONGEST_SLEEP_S = 30.0
"""A sleeper looks at its clock this often at least: wall time may have been set meanwhile."""
LEAST_S = 1e-6
"""A shorter time may be less than a clock can show: who asks for what is left of it would be called in this moment, for ever."""
STALE_TIMERS = 1000
"""So many moments that nobody waits for any more may be remembered beside as many again as there are timers."""


def backoff_s(failures: int, rng: random.Random, *, first_s: float = 0.1, cap_s: float = RESTART_CAP_S) -> float:
    """Full jitter: a random part of an exponentially growing span. `failures` counts from 1."""
    return rng.uniform(0, min(cap_s, first_s * 2 ** min(failures, 16)))


class Bell:
    """Rings once however often it is rung before somebody listens."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._event = asyncio.Event()

    def ring(self) -> None:
        self._event.set()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Until it rings (True) or the time is over (False); a ring is used up by it."""
        if timeout_s is None:
            await self._event.wait()
        elif not self._event.is_set():
            ring, sleep = asyncio.ensure_future(self._event.wait()), asyncio.ensure_future(self._clock.sleep(timeout_s))
            try:
                await asyncio.wait((ring, sleep), return_when=asyncio.FIRST_COMPLETED)
            finally:
                ring.cancel()
                sleep.cancel()
        rung = self._event.is_set()
        self._event.clear()
        return rung


class Timers:
    """Calls back when moments come; one moment per token, a new one replaces the old.

    Args:
        reading: the clock hand that moments are compared with: `clock.monotonic`, or wall time in seconds for deadlines that are
            stored in objects.
    """

    def __init__(self, clock: Clock, reading: Callable[[], float]) -> None:
        self._reading = reading
        self._bell = Bell(clock)
        self._heap: list[tuple[float, int, Hashable]] = []
        self._current: dict[Hashable, tuple[int, float, Callable[[], None]]] = {}
        self._tickets = itertools.count()
        self._latest = float("-inf")
        """The latest reading that a moment may have been computed from."""

    def __len__(self) -> int:
        return len(self._current)

    def set(self, token: Hashable, moment: float, callback: Callable[[], None]) -> None:
        known = self._current.get(token)
        if known is not None and known[1] == moment:
            self._current[token] = (known[0], moment, callback)
            return
        ticket = next(self._tickets)
        self._current[token] = (ticket, moment, callback)
        heapq.heappush(self._heap, (moment, ticket, token))
        self._drop_stale()
        reading = self._reading()
        self._latest = max(self._latest, reading)
        if self._heap[0][1] == ticket or self._heap[0][0] <= reading:  # overdue: wall time was set forward while this slept
            self._bell.ring()

    def after(self, token: Hashable, delay_s: float, callback: Callable[[], None]) -> None:
        self.set(token, self._reading() + (max(delay_s, LEAST_S) if delay_s > 0 else delay_s), callback)

    def cancel(self, token: Hashable) -> None:
        self._current.pop(token, None)
        self._drop_stale()

    def _drop_stale(self) -> None:
        """What was replaced or cancelled would stay until its moment: the queue's deadline of a finished task for a day."""
        if len(self._heap) > 2 * len(self._current) + STALE_TIMERS:
            self._heap = [(moment, ticket, token) for token, (ticket, moment, _) in self._current.items()]
            heapq.heapify(self._heap)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            now = self._reading()
            latest, self._latest = self._latest, now
            if now < latest:
                # Wall time was set back: moments that were computed from later times may now be far off. Whoever is called looks
                # again at what is stored, and asks for another moment if it is too early.
                now = float("inf")
            while self._heap and self._heap[0][0] <= now:
                _, ticket, token = heapq.heappop(self._heap)
                if token in self._current and self._current[token][0] == ticket:
                    self._current.pop(token)[2]()
            while self._heap and self._current.get(self._heap[0][2], (-1,))[0] != self._heap[0][1]:
                heapq.heappop(self._heap)  # replaced or cancelled
            wait_s = min(LONGEST_SLEEP_S, self._heap[0][0] - self._reading()) if self._heap else None
            await self._bell.wait(wait_s)


async def supervise(name: str, loop: Callable[[], Coroutine[Any, Any, None]], clock: Clock, rng: random.Random) -> None:
    """Run a loop for ever: when it fails or ends, say so and start it again after a growing pause.

    Each run is a task of its own: a TaskGroup whose child fails leaves the task that waits for it marked as being cancelled (Python
    3.11), and nobody could tell that from a cancellation of this one. Who cancels this one cancels the run, and waits for it.
    """
    failures = 0
    while True:
        began = clock.monotonic()
        try:
            await asyncio.create_task(loop(), name=name)
            logger.error("the loop %s ended by itself; it is started again", name)
        except SwarmTaskError as error:
            logger.warning("the loop %s failed and is started again: %s", name, error)
        except asyncio.CancelledError:
            if _being_cancelled():
                raise
            logger.exception("the loop %s was cancelled by something in it and is started again", name)
        except Exception:  # a bug in one loop must not end the others, and must not go unseen
            logger.exception("the loop %s failed unexpectedly and is started again", name)
        if _being_cancelled():
            raise asyncio.CancelledError  # its own cleaning up has failed; it must end all the same
        failures = 1 if clock.monotonic() - began > 2 * RESTART_CAP_S else failures + 1
        await clock.sleep(backoff_s(failures, rng))


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def cancel_and_wait(task: asyncio.Task[None]) -> None:
    """End a task of ours and see it off."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
