"""Work by key: items of one key are handled one after another, items of different keys at the same time.

Called by the executor (key: task) and the engine lanes (key: workload). An item has a slot within its key; a newer item of the same
slot replaces the older one that still waits, so that a queue stays bounded however long its consumer is held up. Items that can
wait let all others pass, and among the others those of the lowest rank are taken first. Holds no opinion about what the items mean.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

from swarmtask.controllers.waiting import Timers, backoff_s

Key = TypeVar("Key", bound=Hashable)
Slot = TypeVar("Slot", bound=Hashable)
Item = TypeVar("Item")

SHARE = 8
"""However many others there are, of so many keys that are taken one may be of those that can wait, so that its turn comes, too; and
one is the one that has waited longest, whatever its rank."""


class Line(Generic[Key]):
    """Keys that wait to be taken: those of the lowest rank first, among equals the one that has waited longest."""

    def __init__(self) -> None:
        self._places: OrderedDict[Key, tuple[int, int]] = OrderedDict()
        """Key -> rank and ticket, the one that has waited longest first."""
        self._heap: list[tuple[int, int, Key]] = []
        self._tickets = itertools.count()
        self._taken = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def add(self, key: Key, rank: int) -> None:
        """It comes last among its equals; one that is here moves forward if the rank is a lower one, and keeps its age."""
        known = self._places.get(key)
        if known is not None and known[0] <= rank:
            return
        place = self._places[key] = (rank, next(self._tickets) if known is None else known[1])
        heapq.heappush(self._heap, (*place, key))
        if len(self._heap) > 2 * len(self._places) + 100:
            self._heap = [(*place, key) for key, place in self._places.items()]
            heapq.heapify(self._heap)

    def take(self) -> Key:
        """Whoever comes first; now and then, whoever has waited longest. There is somebody."""
        self._taken += 1
        if self._taken % SHARE == 0:
            return self._places.popitem(last=False)[0]
        while True:
            rank, ticket, key = heapq.heappop(self._heap)
            if self._places.get(key) == (rank, ticket):
                del self._places[key]
                return key

    def drop(self, key: Key) -> None:
        """It is not here any more, if it was."""
        self._places.pop(key, None)


class KeyedQueue(Generic[Key, Slot, Item]):
    """See the module.

    Args:
        delays: timers on monotonic time, for the pause before a retry.
        cap_s: longest pause before a retry.
        patient_at_once: so many keys of which everything can wait are handled at the same time; None: as many as are taken.
    """

    def __init__(self, delays: Timers, rng: random.Random, *, cap_s: float = 30.0, patient_at_once: int | None = None) -> None:
        self._delays, self._rng, self._cap_s, self._patient_at_once = delays, rng, cap_s, patient_at_once
        self._waiting: dict[Key, dict[Slot, Item]] = {}
        self._patient: set[Key] = set()
        """Keys of which everything that waits can wait."""
        self._ranks: dict[Key, int] = {}
        """Of keys of which something cannot wait, waiting or being handled: the lowest that it came with."""
        self._ready: Line[Key] = Line()
        self._ready_patient: Line[Key] = Line()
        self._passed = 0
        """Keys that were taken since one that can wait was, or since there was none."""
        self._busy: set[Key] = set()
        self._busy_patient: set[Key] = set()
        self._paused: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._idle: deque[asyncio.Future[None]] = deque()
        """Takers that wait, the longest first. An arrival wakes one of them, not all."""

    def __len__(self) -> int:
        """Keys that wait or are being handled."""
        return len(self._waiting.keys() | self._busy)

    @property
    def ready(self) -> bool:
        """`take` would return at once, if nothing of it can wait."""
        return bool(self._ready)

    def put(self, key: Key, slot: Slot, item: Item, *, can_wait: bool = False, rank: int = 0) -> None:
        """`rank`: keys with a lower one are taken before it."""
        slots = self._waiting.get(key)
        if not can_wait:
            self._ranks[key] = min(rank, self._ranks.get(key, rank))
        if slots is None:
            slots = self._waiting[key] = {}
            if can_wait:
                self._patient.add(key)
        if not can_wait:
            self._hurry(key)
        slots.pop(slot, None)  # the newest comes last
        slots[slot] = item
        self._line_up(key)

    def _hurry(self, key: Key) -> None:
        """Something of it cannot wait: it is in its place among those from now on."""
        self._patient.discard(key)
        self._ready_patient.drop(key)

    async def take(self) -> tuple[Key, dict[Slot, Item]]:
        """The next key with everything that waits for it. The taker must call `done` or `retry`."""
        while True:
            lane = self._next_lane()
            if lane is not None:
                key = lane.take()
                self._busy.add(key)
                if lane is self._ready_patient:
                    self._patient.discard(key)
                    self._busy_patient.add(key)
                self._passed = 0 if lane is self._ready_patient or not self._ready_patient else self._passed + 1
                return key, self._waiting.pop(key)
            await self._arrival()

    def _next_lane(self) -> Line[Key] | None:
        """Where the next key is taken from."""
        room = self._patient_at_once is None or len(self._busy_patient) < self._patient_at_once
        if self._ready_patient and room and (not self._ready or self._passed >= SHARE - 1):
            return self._ready_patient
        return self._ready or None

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
        self._failures.pop(key, None)
        self._free(key)
        if key not in self._waiting or key in self._patient:
            self._ranks.pop(key, None)
        self._line_up(key)

    def retry(self, key: Key, items: Mapping[Slot, Item]) -> float:
        """Put items back, unless newer ones have come, and take them up again after a pause; returns its length in seconds."""
        if key in self._busy_patient and key not in self._waiting:
            self._patient.add(key)
        elif key not in self._busy_patient:
            self._patient.discard(key)
        self._free(key)
        self._waiting[key] = {**items, **self._waiting.get(key, {})}
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        pause_s = backoff_s(failures, self._rng, cap_s=self._cap_s)
        self._paused.add(key)
        self._delays.after((id(self), key), pause_s, self._resume(key))
        return pause_s

    def _free(self, key: Key) -> None:
        """Nobody handles it any more."""
        self._busy.discard(key)
        if key in self._busy_patient:
            self._busy_patient.discard(key)
            if self._ready_patient:
                self._wake()  # there was no taker for it before

    def forget(self, key: Key) -> None:
        """Drop what waits for a key that is no more."""
        self._waiting.pop(key, None)
        self._patient.discard(key)
        self._ready.drop(key)
        self._ready_patient.drop(key)
        self._failures.pop(key, None)
        if key not in self._busy:
            self._ranks.pop(key, None)

    def _resume(self, key: Key) -> Callable[[], None]:
        def resume() -> None:
            self._paused.discard(key)
            self._line_up(key)

        return resume

    def _line_up(self, key: Key) -> None:
        lane = self._ready_patient if key in self._patient else self._ready
        if key in self._waiting and key not in self._busy and key not in self._paused:
            known = key in lane
            lane.add(key, 0 if lane is self._ready_patient else self._ranks.get(key, 0))
            if not known:
                self._wake()
