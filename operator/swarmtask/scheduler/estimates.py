"""When waiting tasks may start: a small simulation of what comes after a cycle.

Called by `controllers.scheduling` with the snapshot and the result of a cycle. Returns moments; decides nothing, and no cycle looks
at them. The model, and what it leaves out, is in docs/scheduler.md:

- What runs ends when its template says so; what is not known to end never does. So a start that depends on it stays unknown.
- What ends gives back what it held, its place in its queue and its slots; the nodes' borders do not matter after that.
- After each end, tasks start in the order of the cycle where their queue and the limits let them and the room is enough. The first
  one that waits for room is not passed by any that takes what it is short of, unless that one has ended by the time it can start.
"""

from __future__ import annotations

import heapq
import math
from bisect import insort
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice

from swarmtask.scheduler.filters import STATIC_FILTERS
from swarmtask.scheduler.model import (
    Amounts,
    Binding,
    CycleResult,
    NodeInfo,
    QueueInfo,
    QueueKey,
    Refusal,
    RunningTask,
    Snapshot,
    TaskKey,
)

ESTIMATED = 1000
"""So many of the tasks that wait are looked at: who stands further back is told nothing anyway."""
ENDS = 256
"""So many ends are looked at to say when there will be room for one task."""
STEPS = 50_000
"""The simulation gives up after so many looks at a line's head: it runs beside every cycle. What has no start by then has none."""

_STATIC = frozenset(filter_.name for filter_ in STATIC_FILTERS)
_PER_NODE = "maxRunningPerNode"

Room = tuple[float, float, float, float]
"""CPU in thousandths, bytes, GPUs, tasks."""


@dataclass(frozen=True, slots=True)
class Estimates:
    """What is known of the tasks that a cycle refused.

    Attributes:
        starts: when they may start, in seconds since the epoch, never before the snapshot's `now`. Only those that are known.
        looked_at: all that the simulation was told of.
        hopeless: those that do not start by waiting: somebody has to change a node, a queue or the task. Their refusal says so.
    """

    starts: Mapping[TaskKey, float] = field(default_factory=dict)
    hopeless: Set[TaskKey] = frozenset()
    looked_at: Set[TaskKey] = frozenset()

    def why_unknown(self, refusal: Refusal) -> str:
        """For a person: why there is no estimate. Empty where there is one, and where waiting does not help."""
        key = refusal.task.key
        if key in self.starts or key in self.hopeless:
            return ""
        if refusal.task.duration_s is None:
            return "estimated start unknown: no task like this has finished yet"
        if key not in self.looked_at:
            return "estimated start unknown: too many tasks wait before it"
        return "estimated start unknown: it is not known how long the tasks before it take"


def estimate_starts(snapshot: Snapshot, result: CycleResult, most: int = ESTIMATED) -> Estimates:
    """When tasks that the cycle refused may start.

    Costs O((R + M) C log C) for R running and M waiting tasks of C kinds (queue and shape), and never more than STEPS steps.
    """
    if not result.refusals:
        return Estimates()
    return _Future(snapshot, result).play(result.refusals[:most])


@dataclass(frozen=True, slots=True)
class _Hold:
    """What a task that starts takes, and gives back."""

    queue: QueueKey
    amounts: Amounts
    limits: tuple[tuple[str, int], ...]


_End = tuple[float, _Hold | RunningTask]
"""When it ends, and what comes back then."""


@dataclass(slots=True, eq=False)
class _Line:
    """Waiting tasks of one queue and shape, in their order; (rank, key, duration)."""

    hold: _Hold
    room: Room
    tasks: list[tuple[int, TaskKey, float | None]] = field(default_factory=list)
    next: int = 0


class _Future:
    """The state of the simulation."""

    def __init__(self, snapshot: Snapshot, result: CycleResult) -> None:
        self._now = snapshot.now
        self._hopeless: set[TaskKey] = set()
        self._nodes = [node for node in snapshot.nodes if node.ready and not node.unschedulable]
        self._usable = {node.name for node in self._nodes}
        self._queues = snapshot.queues
        self._limits = snapshot.limits
        self._left = {key: _places(queue) for key, queue in snapshot.queues.items()}
        """Tasks that each queue still lets through."""
        self._slots = {name: limit.most - sum(limit.holders.values()) for name, limit in snapshot.limits.items()}
        self._ends: list[_End] = []
        ready = {node.name for node in snapshot.nodes if node.ready}
        victims = {preemption.victim.key for preemption in result.preemptions}
        for running in snapshot.running:
            if running.node not in ready:
                continue  # nobody knows when a node that does not answer lets go of what it holds
            ends_at = self._now if running.stopping or running.key in victims else running.ends_at
            if ends_at is not None:
                self._end_at(ends_at, running)
        for binding in result.bindings:
            task = binding.task
            hold = _Hold(task.queue, task.shape.request, task.shape.limits)
            self._change_bounds(hold, -1)
            if task.duration_s is not None:
                self._end_at(self._now + task.duration_s, hold)
        self._ends.sort(key=_moment)
        self._past = 0
        self._room = _largest_rest(self._nodes, result.bindings)

    def play(self, refusals: Sequence[Refusal]) -> Estimates:
        starts: dict[TaskKey, float] = {}
        heads = self._lines(refusals)
        steps = 0
        while heads and self._past < len(self._ends) and steps < STEPS:
            now = self._ends[self._past][0]
            while self._past < len(self._ends) and self._ends[self._past][0] <= now:
                self._give_back(self._ends[self._past][1])
                self._past += 1
            steps += self._start_what_may(now, heads, starts)
        return Estimates(starts, self._hopeless, {refusal.task.key for refusal in refusals})

    def _start_what_may(self, now: float, heads: list[tuple[int, _Line]], starts: dict[TaskKey, float]) -> int:
        """At one moment, in the order of ranks. Returns how many heads were looked at."""
        stay: list[tuple[int, _Line]] = []
        first: Room | None = None  # what the first one needs that waits for room
        shadow = now  # and when it gets that
        looked = 0
        while heads:
            rank, line = heapq.heappop(heads)
            looked += 1
            if not self._lets(line.hold):
                stay.append((rank, line))
                continue
            _, key, duration_s = line.tasks[line.next]
            if not _fits(line.room, self._room, first):
                passes = first is not None and duration_s is not None and now + duration_s <= shadow
                if not (passes and _fits(line.room, self._room, None)):
                    if first is None:
                        first, (shadow, seen) = line.room, self._enough(line.room)
                        looked += seen
                    stay.append((rank, line))
                    continue
            starts[key] = now
            self._room = _add(self._room, line.room, -1)
            self._change_bounds(line.hold, -1)
            if duration_s is not None:
                insort(self._ends, (now + duration_s, line.hold), lo=self._past, key=_moment)
            line.next += 1
            if line.next < len(line.tasks):
                heapq.heappush(heads, (line.tasks[line.next][0], line))
        heads.extend(stay)
        heapq.heapify(heads)
        return looked

    def _enough(self, need: Room) -> tuple[float, int]:
        """When there is room for that, if nothing else starts, and how many ends were looked at. Never, where what is known to end
        does not give enough."""
        room = self._room
        for seen, (moment, hold) in enumerate(islice(self._ends, self._past, self._past + ENDS), 1):
            room = self._with_back(room, hold)
            if _fits(need, room, None):
                return moment, seen
        left = len(self._ends) - self._past - ENDS
        return (math.inf if left <= 0 else self._ends[self._past + ENDS][0]), ENDS

    def _lines(self, refusals: Sequence[Refusal]) -> list[tuple[int, _Line]]:
        """A heap of (rank of the head, line). Tasks that can never start as things are have no line, and hold nobody back."""
        lines: dict[object, _Line | None] = {}
        for rank, refusal in enumerate(refusals):
            task = refusal.task
            identity = (task.queue, task.shape)
            if identity not in lines:
                hold = _Hold(task.queue, task.shape.request, task.shape.limits)
                lines[identity] = _Line(hold, _room(hold.amounts)) if self._hopeful(refusal) else None
            line = lines[identity]
            if line is None:
                self._hopeless.add(task.key)
                continue
            line.tasks.append((rank, task.key, task.duration_s))
            if _PER_NODE in refusal.counts:
                # The queue may run no more on some node: it takes an end of its own, wherever there is room.
                self._left[task.queue] = min(0, self._left.get(task.queue, math.inf))
        heads = [(line.tasks[0][0], line) for line in lines.values() if line is not None]
        heapq.heapify(heads)
        return heads

    def _hopeful(self, refusal: Refusal) -> bool:
        """It may start once others have ended."""
        shape, queue = refusal.task.shape, self._queues.get(refusal.task.queue)
        if queue is not None and (
            queue.stopped
            or queue.unknown
            or queue.max_running == 0
            or any(name in self._limits and slots > self._limits[name].most for name, slots in shape.limits)
        ):
            return False
        if refusal.counts and _STATIC.issuperset(refusal.counts):
            return False
        return any(shape.request.fits_in(node.allocatable) for node in self._nodes)

    def _lets(self, hold: _Hold) -> bool:
        one_more = self._left.get(hold.queue, math.inf) >= 1
        return one_more and all(self._slots.get(name, slots) >= slots for name, slots in hold.limits)

    def _change_bounds(self, hold: _Hold | RunningTask, sign: int) -> None:
        self._left[hold.queue] = self._left.get(hold.queue, math.inf) + sign
        for name, slots in hold.limits:
            if name in self._slots:
                self._slots[name] += sign * slots

    def _give_back(self, hold: _Hold | RunningTask) -> None:
        self._room = self._with_back(self._room, hold)
        self._change_bounds(hold, 1)

    def _with_back(self, room: Room, hold: _Hold | RunningTask) -> Room:
        """The room when that has ended; what ends on a node that takes no more tasks gives nothing of it."""
        useless = isinstance(hold, RunningTask) and hold.node not in self._usable
        return room if useless else _add(room, _room(hold.amounts), 1)

    def _end_at(self, moment: float, hold: _Hold | RunningTask) -> None:
        self._ends.append((max(moment, self._now), hold))


def _moment(end: _End) -> float:
    return end[0]


def _places(queue: QueueInfo) -> float:
    return math.inf if queue.max_running is None else queue.max_running - queue.running


def _room(amounts: Amounts) -> Room:
    return (amounts.cpu_milli, amounts.memory_bytes, amounts.gpus, 1)


def _add(room: Room, other: Room, sign: int) -> Room:
    return (
        room[0] + sign * other[0], room[1] + sign * other[1], room[2] + sign * other[2], room[3] + sign * other[3],
    )  # fmt: skip


def _fits(need: Room, room: Room, first: Room | None) -> bool:
    """Whether there is room, and what `first` is short of is not taken, nor what it will need."""
    for wanted, there, before in zip(need, room, first or (0, 0, 0, 0), strict=True):
        if wanted and wanted > (there - before if before <= there else 0):
            return False
    return True


def _largest_rest(nodes: Iterable[NodeInfo], bindings: Iterable[Binding]) -> Room:
    """What is left now, for the first one that needs more than one end gives: the most of each that a single node has. What is
    spread over nodes is of no use to a task that was just refused everywhere."""
    taken: dict[str, Room] = {}
    for binding in bindings:
        taken[binding.node] = _add(taken.get(binding.node, (0, 0, 0, 0)), _room(binding.task.shape.request), 1)
    most: Room = (0, 0, 0, 0)
    for node in nodes:
        free = node.free
        tasks = math.inf if node.max_tasks is None else node.max_tasks - node.tasks
        rest = _add((free.cpu_milli, free.memory_bytes, free.gpus, tasks), taken.get(node.name, (0, 0, 0, 0)), -1)
        most = (max(most[0], rest[0]), max(most[1], rest[1]), max(most[2], rest[2]), max(most[3], rest[3]))
    return most


__all__ = ["ESTIMATED", "STEPS", "Estimates", "estimate_starts"]
