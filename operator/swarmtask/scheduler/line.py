"""Waiting tasks that are alike, in their order.

Kept by `backlog`, which decides who is alike; knows nothing of queues beside its own and nothing of what fits.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from swarmtask.scheduler.model import PendingTask, TaskKey
from swarmtask.scheduler.standing import order_key

CHUNK = 512

_Entry = tuple[float, str, TaskKey, PendingTask]
"""What a line is sorted by, and the task; two tasks never compare equal before that."""
Order = tuple[float, float, str]
Place = Callable[[PendingTask], Order]
"""The key by which tasks stand, whoever was not moved to the front. It must not fall from a task to a younger one of its line."""


def _entry(task: PendingTask) -> _Entry:
    # Who was moved to the front last comes first; those stand in lines of their own.
    moment = task.queued_at if task.front_at is None else -task.front_at
    return (moment, task.uid, task.key, task)


class Line:
    """Tasks that are alike, in order. Sorted chunks, so that neither the first nor one in the middle costs a move of all others.

    Attributes:
        started: of it, by cycles that did not come to an end.
        reach: how many of it are worth looking at, by what was started of it until a cycle came to an end; 0: not known. Decides
            what a cycle costs, never what it decides.
        stuck: that was nothing.
    """

    __slots__ = ("_chunks", "_length", "_moments", "front", "priority", "queue", "reach", "started", "stuck")

    def __init__(self, like: PendingTask) -> None:
        self.started, self.reach, self.stuck = 0, 0, False
        self.queue, self.priority, self.front = like.queue, like.priority, like.front_at is not None
        self._chunks: list[list[_Entry]] = []
        self._moments: list[NDArray[np.float64] | None] = []
        """What each chunk is sorted by, since the last change of it."""
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[PendingTask]:
        for chunk in self._chunks:
            for entry in chunk:
                yield entry[3]

    def add(self, task: PendingTask) -> None:
        entry = _entry(task)
        self._length += 1
        if not self._chunks:
            self._chunks.append([entry])
            self._moments.append(None)
            return
        number = min(self._chunk_of(entry), len(self._chunks) - 1)
        chunk = self._chunks[number]
        insort(chunk, entry)
        self._moments[number] = None
        if len(chunk) > 2 * CHUNK:
            self._chunks[number : number + 1] = [chunk[:CHUNK], chunk[CHUNK:]]
            self._moments[number : number + 1] = [None, None]

    def remove(self, task: PendingTask) -> None:
        entry = _entry(task)
        number = self._chunk_of(entry)
        chunk = self._chunks[number]
        del chunk[bisect_left(chunk, entry[:3])]
        self._length -= 1
        self._moments[number] = None
        if not chunk:
            del self._chunks[number], self._moments[number]

    def _chunk_of(self, entry: _Entry) -> int:
        """The first chunk that ends at the entry or behind it."""
        return bisect_left(self._chunks, entry[:3], key=lambda chunk: chunk[-1][:3])

    def slice(self, start: int, count: int) -> list[PendingTask]:
        """Up to `count` tasks from place `start` on, counted from 0."""
        found: list[PendingTask] = []
        for chunk in self._chunks:
            if start >= len(chunk):
                start -= len(chunk)
                continue
            found += [entry[3] for entry in chunk[start : start + count - len(found)]]
            start = 0
            if len(found) >= count:
                break
        return found

    def moments(self, start: int, count: int) -> NDArray[np.float64]:
        """When up to `count` tasks were queued, from place `start` on, counted from 0, in seconds since the epoch. Of a line of
        which nobody was moved to the front."""
        found: list[NDArray[np.float64]] = []
        for number, chunk in enumerate(self._chunks):
            if count <= 0:
                break
            if start >= len(chunk):
                start -= len(chunk)
                continue
            known = self._moments[number]
            if known is None:
                known = self._moments[number] = np.fromiter((entry[0] for entry in chunk), np.float64, len(chunk))
            found.append(known[start : start + count])
            count -= len(found[-1])
            start = 0
        return np.concatenate(found) if found else np.empty(0)

    def before(self, task: PendingTask, place: Place) -> int:
        """How many of the line stand before a task of their queue that was not moved to the front."""
        if self.front:
            return self._length
        if place is not order_key:
            wanted = place(task)
            number = bisect_left(self._chunks, wanted, key=lambda chunk: place(chunk[-1][3]))
            inside = (
                bisect_left(self._chunks[number], wanted, key=lambda entry: place(entry[3])) if number < len(self._chunks) else 0
            )
        elif self.priority == task.priority:
            # The same, a good deal faster.
            moment: tuple[float, str] = (task.queued_at, task.uid)
            number = bisect_left(self._chunks, moment, key=lambda chunk: chunk[-1][:2])
            inside = bisect_left(self._chunks[number], moment) if number < len(self._chunks) else 0
        else:
            return self._length if self.priority > task.priority else 0
        return sum(map(len, self._chunks[:number])) + inside
