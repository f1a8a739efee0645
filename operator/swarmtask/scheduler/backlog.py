"""Everything that waits, kept in order from change to change, and the part of it that a cycle has to look at.

Kept by the controllers' cache, which tells it of every change; `controllers.snapshots` asks it for a `Cut`, and
`controllers.scheduling` has the result of the cycle settled by it. A million waiting tasks must not cost a million steps in every
cycle: tasks that are alike for a cycle stand in one line, first in, first out, so that one starts only after all before it, and a
line that cannot start its first tasks need not be read to its end. Knows nothing of what fits.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from swarmtask.scheduler.headroom import MOST_PREEMPTORS
from swarmtask.scheduler.line import Line, Order, Place
from swarmtask.scheduler.model import Amounts, Binding, CycleResult, PendingTask, QueueKey, Refusal, TaskKey
from swarmtask.scheduler.standing import order_key

WHOLE = 250
"""So many tasks that come first are always looked at, whatever fits; a backlog that is no longer is never cut."""
MOST = 50_000
"""More tasks that come first are not looked at in one cycle: the next one goes on."""
MARGIN = 16
"""Of each line so many more tasks are looked at, and as many again as come first or started the last time: others may turn out not
to fit."""
DEEPER = 4
"""Of a line of which a cycle started half of what it looked at, and did not come to an end, the next one looks at so many times as
many."""
SPARSE = 64
"""Places in a queue are counted one by one where more than so many times as many tasks stand between as places are asked for."""

_Identity = tuple[object, ...]


def _identity(task: PendingTask) -> _Identity:
    """Tasks that share it start in the order of their line: nothing else about them matters to a cycle."""
    return (task.queue, task.priority, task.front_at is None, task.duration_s, task.shape)


class Backlog:
    """See the module. A mapping from the keys of tasks to tasks, as far as its users need one."""

    def __init__(self, tasks: Iterable[PendingTask] = ()) -> None:
        self._tasks: dict[TaskKey, PendingTask] = {}
        self._line_of: dict[TaskKey, tuple[_Identity, Line]] = {}
        self._queues: dict[QueueKey, dict[_Identity, Line]] = {}
        for task in tasks:
            self.put(task)

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, key: object) -> bool:
        return key in self._tasks

    def tasks(self) -> Iterable[PendingTask]:
        """In no order; not to be changed meanwhile."""
        return self._tasks.values()

    def put(self, task: PendingTask) -> None:
        """The task waits, as it is now."""
        known = self._tasks.get(task.key)
        if known is task:
            return
        if known is not None:
            if known == task and known.duration_s == task.duration_s:
                return
            self.drop(task.key)
        identity = _identity(task)
        lines = self._queues.setdefault(task.queue, {})
        line = lines.get(identity)
        if line is None:
            line = lines[identity] = Line(task)
        line.add(task)
        self._tasks[task.key] = task
        self._line_of[task.key] = (identity, line)

    def drop(self, key: TaskKey) -> None:
        """The task does not wait (any more)."""
        task = self._tasks.pop(key, None)
        if task is None:
            return
        identity, line = self._line_of.pop(key)
        line.remove(task)
        if not len(line):
            lines = self._queues[line.queue]
            del lines[identity]
            if not lines:
                del self._queues[line.queue]

    def oldest(self) -> dict[QueueKey, float]:
        """When the task was queued that waits longest, by queue, in seconds since the epoch."""
        return {key: min(next(iter(line)).queued_at for line in lines.values()) for key, lines in self._queues.items()}

    def cut(
        self, free: Amounts, slots: int | None, place: Place = order_key, preempting: Collection[QueueKey] = frozenset()
    ) -> Cut:
        """What one cycle has to look at.

        Args:
            free: what all nodes together have left. slots: how many more tasks they may run together; None: not limited.
            preempting: queues whose tasks may preempt. Of a line of theirs not only the first can get a node that is kept for it.
        """
        if len(self._tasks) <= WHOLE:
            return Cut(tuple(self._tasks.values()))
        lines = [line for queue in self._queues.values() for line in queue.values()]
        tasks: list[PendingTask] = []
        ends: dict[TaskKey, _End] = {}
        run_out: set[TaskKey] = set()
        for line, first in zip(lines, _depths(lines, place, free, slots), strict=True):
            if line.front:
                tasks += line
                continue
            # One more than can start is enough, for then the line has not run out.
            more = min(line.reach or 2 * first + MARGIN, _most(next(iter(line)).shape.request, free, slots) + 1)
            depth = max(first, more)
            found = line.slice(0, depth + MOST_PREEMPTORS if line.queue in preempting else depth)
            tasks += found
            if len(found) < len(line):
                ends[found[-1].key] = _End(line, len(found))
                run_out.add(found[depth - 1].key)
        return Cut(tuple(tasks), ends, self._queues, place, self._line_of, run_out)


def _depths(lines: list[Line], place: Place, free: Amounts, slots: int | None) -> list[int]:
    """How many of the tasks that come first stand in each line: as many as use up what is free if all of them fit, without those of
    lines that did not move the last time; and at least WHOLE. More than WHOLE wait."""
    depths = [0] * len(lines)
    waiting = [iter(line) for line in lines]
    heads = [next(line) for line in waiting]
    heap = [(place(head), number) for number, head in enumerate(heads)]
    heapq.heapify(heap)
    cpu, memory, gpus = max(0, free.cpu_milli), max(0, free.memory_bytes), max(0, free.gpus)
    most = MOST if slots is None else min(MOST, max(0, slots))
    count = 0
    while heap and (count < WHOLE or (count < most and cpu >= 0 and memory >= 0 and gpus >= 0)):
        number = heap[0][1]
        if lines[number].stuck and count >= WHOLE:
            heapq.heappop(heap)
            continue
        request = heads[number].shape.request
        if not lines[number].stuck:
            cpu, memory, gpus = cpu - request.cpu_milli, memory - request.memory_bytes, gpus - request.gpus
        depths[number] += 1
        count += 1
        following = next(waiting[number], None)
        if following is not None:
            heads[number] = following
            heapq.heapreplace(heap, (place(following), number))
        else:
            heapq.heappop(heap)
    return depths


def _most(request: Amounts, free: Amounts, slots: int | None) -> int:
    """More tasks of this size cannot start; of a size that takes nothing, MOST at a time."""
    bounds = [
        max(0, left) // wanted
        for wanted, left in (
            (request.cpu_milli, free.cpu_milli),
            (request.memory_bytes, free.memory_bytes),
            (request.gpus, free.gpus),
            (1, slots),
        )
        if left is not None and wanted > 0
    ]
    return min(bounds, default=MOST)


@dataclass(frozen=True, slots=True)
class _End:
    """Where a line was cut: so many of its tasks are looked at."""

    line: Line
    depth: int


def _hidden_in(end: _End, tasks: list[PendingTask], moments: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many of a line behind its end stand before each of some tasks of its queue and priority, which are in order."""
    line, depth = end.line, end.depth
    start = max(depth, line.before(tasks[0], order_key))
    between = max(0, line.before(tasks[-1], order_key) - start)
    if between > SPARSE * len(tasks):
        return np.array([max(0, line.before(task, order_key) - depth) for task in tasks], dtype=np.int64)
    there = line.moments(start, between)
    found: NDArray[np.int64] = start - depth + np.searchsorted(there, moments)
    for number in np.flatnonzero(there[np.minimum(found - (start - depth), between - 1)] == moments) if between else ():
        found[number] = max(0, line.before(tasks[number], order_key) - depth)  # of one moment: their names decide
    return found


@dataclass(frozen=True, slots=True)
class Cut:
    """What a cycle looks at. To be used as long as the backlog has not changed.

    Attributes:
        tasks: the first ones of every line.
        ends: the last of them, for each line of which more wait.
        run_out: of each such line the task with whose start too few of those that are looked at are left: none, or, where they may
            preempt, fewer than may do so in one cycle.
    """

    tasks: tuple[PendingTask, ...]
    ends: Mapping[TaskKey, _End] = field(default_factory=dict)
    _queues: Mapping[QueueKey, Mapping[_Identity, Line]] = field(default_factory=dict, repr=False)
    _place: Place = order_key
    _line_of: Mapping[TaskKey, tuple[_Identity, Line]] = field(default_factory=dict, repr=False)
    run_out: Set[TaskKey] = frozenset()

    @property
    def hidden(self) -> int:
        """How many more wait."""
        return sum(len(end.line) - end.depth for end in self.ends.values())

    def settle(self, result: CycleResult) -> CycleResult:
        """What a cycle over all that waits would have said, as far as it can be told.

        Decisions are made one after another, so all are the same until a line that was cut has run out: up to there they stand, and
        nothing is said of the rest; `complete` is then False, and another cycle has to go on. Otherwise the places in the queues
        are made right. Either way the next cut looks as deep as this one has shown to be worth it.
        """
        if not self.ends:
            return result
        for number, binding in enumerate(result.bindings):
            if binding.task.key in self.run_out:
                bindings = result.bindings[: number + 1]
                self._learn(bindings, complete=False)
                return CycleResult(bindings, (), (), complete=False)
        self._learn(result.bindings, complete=True)
        ends: dict[QueueKey, list[_End]] = {}
        for end in self.ends.values():
            ends.setdefault(end.line.queue, []).append(end)
        told: dict[QueueKey, list[tuple[Order, int]]] = {}
        for number, refusal in enumerate(result.refusals):
            if refusal.task.front_at is None and refusal.task.queue in ends:
                told.setdefault(refusal.task.queue, []).append((self._place(refusal.task), number))
        refusals = list(result.refusals)
        for queue, places in told.items():
            places.sort()
            tasks = [refusals[number].task for _, number in places]
            for (_, number), hidden in zip(places, self._hidden_before(tasks, ends[queue]), strict=True):
                if hidden:
                    one = refusals[number]
                    refusals[number] = Refusal(one.task, one.position + hidden, one.reason, one.message, one.counts, one.behind)
        return replace(result, refusals=tuple(refusals))

    def _hidden_before(self, tasks: list[PendingTask], ends: list[_End]) -> list[int]:
        """How many tasks that the cycle did not look at stand before each of some tasks of their queue, which are in order and were
        not moved to the front."""
        if self._place is not order_key:
            return [sum(max(0, end.line.before(task, self._place) - end.depth) for end in ends) for task in tasks]
        hidden = np.zeros(len(tasks), dtype=np.int64)
        priorities = np.array([-task.priority for task in tasks], dtype=np.int64)
        moments = np.array([task.queued_at for task in tasks], dtype=np.float64)
        for end in ends:
            first, last = (int(np.searchsorted(priorities, -end.line.priority, side)) for side in ("left", "right"))
            hidden[last:] += len(end.line) - end.depth
            if first < last:
                hidden[first:last] += _hidden_in(end, tasks[first:last], moments[first:last])
        found: list[int] = hidden.tolist()
        return found

    def _learn(self, bindings: Sequence[Binding], *, complete: bool) -> None:
        """How deep the next cut has to look into each line."""
        started = Counter(id(self._line_of[binding.task.key][1]) for binding in bindings)
        for end in self.ends.values():
            count = started[id(end.line)]
            line = end.line
            line.started += count
            if complete:
                line.reach, line.stuck, line.started = line.started + line.started // 2 + MARGIN, not line.started, 0
            elif 2 * count >= end.depth:
                line.reach, line.stuck = DEEPER * end.depth, False

    def beyond(self, settled: CycleResult, start: int, count: int) -> list[Refusal]:
        """Refusals of up to `count` tasks that the cycle did not look at, from place `start` on in an order of their own. They wait
        for what the last task of their line waits for that it did look at."""
        found: list[Refusal] = []
        started: dict[QueueKey, list[Order]] = {}
        for binding in settled.bindings:
            if binding.task.front_at is None:
                insort(started.setdefault(binding.task.queue, []), self._place(binding.task))
        moved = Counter(binding.task.queue for binding in settled.bindings if binding.task.front_at is not None)
        for refusal in settled.refusals:
            end = self.ends.get(refusal.task.key)
            if end is None:
                continue
            there = len(end.line) - end.depth
            if refusal.behind is not None:
                reason, message, counts = refusal.behind
                refusal = replace(refusal, reason=reason, message=message, counts=counts, behind=None)  # noqa: PLW2901 - for the rest
            for task in end.line.slice(end.depth + start, count - len(found)) if start < there else ():
                before = sum(line.before(task, self._place) for line in self._queues[task.queue].values())
                before -= bisect_left(started.get(task.queue, []), self._place(task)) + moved[task.queue]
                found.append(replace(refusal, task=task, position=before + 1))
            start = max(0, start - there)
            if len(found) >= count:
                break
        return found
