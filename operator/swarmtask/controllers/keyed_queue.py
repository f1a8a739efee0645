"""Work by key: items of one key are handled one after another, items of different keys at the same time.

Called by the executor (key: task) and the engine lanes (key: workload). An item has a slot within its key; a newer item of the same
slot replaces the older one that still waits, so that a queue stays bounded however long its consumer is held up. Holds no opinion
about what the items mean.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

from swarmtask.controllers.waiting import Timers, backoff_s

Key = TypeVar("Key", bound=Hashable)
Slot = TypeVar("Slot", bound=Hashable)
Item = TypeVar("Item")


class KeyedQueue(Generic[Key, Slot, Item]):
    """See the module.

    Args:
        delays: timers on monotonic time, for the pause before a retry.
        cap_s: longest pause before a retry.
    """

    def __init__(self, delays: Timers, rng: random.Random, *, cap_s: float = 30.0) -> None:
        self._delays, self._rng, self._cap_s = delays, rng, cap_s
        self._waiting: dict[Key, dict[Slot, Item]] = {}
        self._ready: deque[Key] = deque()
        self._queued: set[Key] = set()
        self._busy: set[Key] = set()
        self._paused: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._idle: deque[asyncio.Future[None]] = deque()
        """Takers that wait, the longest first. An arrival wakes one of them, not all."""

    def __len__(self) -> int:
        """Keys that wait or are being handled."""
        return len(self._waiting.keys() | self._busy)

    @property
    def ready(self) -> bool:
        """`take` would return at once."""
        return any(key in self._waiting for key in self._ready)

    def put(self, key: Key, slot: Slot, item: Item) -> None:
        slots = self._waiting.setdefault(key, {})
        slots.pop(slot, None)  # the newest comes last
        slots[slot] = item
        self._line_up(key)

    async def take(self) -> tuple[Key, dict[Slot, Item]]:
        """The next key with everything that waits for it. The taker must call `done` or `retry`."""
        while True:
            while self._ready:
                key = self._ready.popleft()
                self._queued.discard(key)
                slots = self._waiting.pop(key, None)
                if slots:
                    self._busy.add(key)
                    return key, slots
            await self._arrival()

    async def _arrival(self) -> None:
        call: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(call)
        try:
            await call
        except asyncio.CancelledError:
            if not call.cancelled():
                self._wake()  # it was called already and will not answer any more: let the next one
            elif call in self._idle:
                self._idle.remove(call)
            raise

    def _wake(self) -> None:
        while self._idle:
            call = self._idle.popleft()
            if not call.done():  # or its taker is being cancelled
                call.set_result(None)
                return

    def done(self, key: Key) -> None:
        self._busy.discard(key)
        self._failures.pop(key, None)
        self._line_up(key)

    def retry(self, key: Key, items: Mapping[Slot, Item]) -> float:
        """Put items back, unless newer ones have come, and take them up again after a pause; returns its length in seconds."""
        self._busy.discard(key)
        self._waiting[key] = {**items, **self._waiting.get(key, {})}
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        pause_s = backoff_s(failures, self._rng, cap_s=self._cap_s)
        self._paused.add(key)
        self._delays.after((id(self), key), pause_s, self._resume(key))
        return pause_s

    def forget(self, key: Key) -> None:
        """Drop what waits for a key that is no more."""
        self._waiting.pop(key, None)
        self._failures.pop(key, None)

    def _resume(self, key: Key) -> Callable[[], None]:
        def resume() -> None:
            self._paused.discard(key)
            self._line_up(key)

        return resume

    def _line_up(self, key: Key) -> None:
        if key in self._waiting and key not in self._queued and key not in self._busy and key not in self._paused:
            self._queued.add(key)
            self._ready.append(key)
            self._wake()
