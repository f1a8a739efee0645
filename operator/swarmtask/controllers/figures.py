"""What happened in each queue lately: how many tasks finished, and how long those that started had waited.

Called by the cache for every task that changes, and by `queues` when a status is due. After a restart it is rebuilt from the tasks
that are still there. Memory is bounded: for each queue one number for each second of `FINISHED_WINDOW_S`, and the newest `WAITS`
waits. Writes nothing.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from swarmtask.clock import Clock
from swarmtask.resources.task import TaskStatus
from swarmtask.scheduler.model import QueueKey

if TYPE_CHECKING:
    from swarmtask.controllers.entries import TaskEntry

FINISHED_WINDOW_S = 600
STARTED_WINDOW_S = 3600
WAITS = 4096
"""Of a queue that starts more tasks than that in an hour, the newest are looked at."""


@dataclass(slots=True)
class _Lately:
    """One queue.

    Attributes:
        finished: second -> tasks that finished in it.
        waits: (moment of the start, seconds waited), oldest first.
    """

    finished: dict[int, int] = field(default_factory=dict)
    waits: list[tuple[float, int]] = field(default_factory=list)

    def forget(self, now: float) -> None:
        """What lies further back than the windows."""
        for second in [second for second in self.finished if second <= now - FINISHED_WINDOW_S]:
            del self.finished[second]
        past = next((place for place, wait in enumerate(self.waits) if wait[0] > now - STARTED_WINDOW_S), len(self.waits))
        del self.waits[: max(past, len(self.waits) - WAITS)]


@dataclass(frozen=True, slots=True)
class Reading:
    """Figures of one queue at one moment.

    Attributes:
        throughput_per_minute: tasks that ended after they had run, over the last ten minutes.
        wait_p50_s, wait_p99_s: of tasks that first started in the last hour, from entering the queue; None when none did.
        changes_at: when they change by the passing of time alone, in seconds since the epoch; None: never.
    """

    throughput_per_minute: float = 0.0
    wait_p50_s: int | None = None
    wait_p99_s: int | None = None
    changes_at: float | None = None


class Figures:
    """See the module."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queues: dict[QueueKey, _Lately] = {}

    def note(self, old: TaskEntry | None, new: TaskEntry | None) -> None:
        """A task was `old` and is `new`."""
        if new is None or new.task.is_array:  # its runs are counted
            return
        same = old is not None and old.task.metadata.uid == new.task.metadata.uid
        before, after = old.task.status if old is not None and same else TaskStatus(), new.task.status
        if after.start_time is None:
            return
        now = self._clock.now().timestamp()
        queue = _queue_of(new)
        finished = _seconds(after.completion_time)
        if finished is not None and after.completion_time != before.completion_time and finished > now - FINISHED_WINDOW_S:
            # A clock that was set back must not let one second stay for ever.
            second = int(min(finished, now))
            seconds = self._queues.setdefault(queue, _Lately()).finished
            seconds[second] = seconds.get(second, 0) + 1
        started, queued = min(after.start_time.timestamp(), now), _seconds(after.queued_time)
        queued = None if queued is None else math.floor(queued)  # a start is stored in whole seconds
        if after.start_time == before.start_time or started <= now - STARTED_WINDOW_S or queued is None or queued > started:
            return  # known, long ago, or queued again since: its first wait is no longer to be seen
        lately = self._queues.setdefault(queue, _Lately())
        insort(lately.waits, (started, int(started - queued)))
        if len(lately.waits) > WAITS:
            del lately.waits[0]

    def read(self, queue: QueueKey) -> Reading:
        """The figures of a queue now."""
        lately = self._queues.get(queue)
        if lately is None:
            return Reading()
        now = self._clock.now().timestamp()
        lately.forget(now)
        if not lately.finished and not lately.waits:
            del self._queues[queue]
            return Reading()
        waits = sorted(wait for _, wait in lately.waits)
        moments: list[float] = [min(lately.finished) + FINISHED_WINDOW_S] if lately.finished else []
        moments += [lately.waits[0][0] + STARTED_WINDOW_S] if lately.waits else []
        return Reading(
            round(sum(lately.finished.values()) * 60 / FINISHED_WINDOW_S, 1),
            percentile(waits, 50),
            percentile(waits, 99),
            min(moments),
        )


def percentile(ordered: Sequence[int], percent: int) -> int | None:
    """The nearest rank: the smallest value that at least `percent` of 100 do not exceed. None of nothing."""
    return ordered[max(0, math.ceil(percent * len(ordered) / 100) - 1)] if ordered else None


def _queue_of(entry: TaskEntry) -> QueueKey:
    """The queue that it was started from, where that is recorded."""
    current = entry.task.status.current
    return (entry.queue[0], (current.requested.queue if current is not None else "") or entry.queue[1])


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
