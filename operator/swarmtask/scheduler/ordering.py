"""Who comes next: priority, then fair share, then age, then uid, within the limits of queues.

Called by `cycle`. Tasks of one (queue, level of priority, shape, expected duration) wait in one line, first in, first out; a heap
holds the head of each line. The level is the priority, and what waiting or being moved to the front has added to it (`standing`).
A line leaves the heap when it is empty, when its class of tasks fits nowhere, or when its queue starts nothing more; so the cost of
a cycle does not depend on how many tasks wait behind a head that cannot start. Never looks at nodes.

The oldest task of the highest level comes next. If its queue is in a cohort, it is the cohort's turn, and `cohorts` says which of
its queues gives a task. A task that does not fit lets others behind it start, except for what is kept for it (`headroom`).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from swarmtask.scheduler.cohorts import Claim, Cohort
from swarmtask.scheduler.columns import BALANCED_WEIGHTS, NodeShare, TaskClass
from swarmtask.scheduler.model import Amounts, Choice, LimitInfo, PendingTask, QueueInfo, QueueKey, TaskKey, TaskShape, Weights
from swarmtask.scheduler.standing import standing

NO_NODE_FITS = "NoNodeFits"
QUEUE_UNKNOWN = "QueueUnknown"
QUEUE_STOPPED = "QueueStopped"
QUEUE_FULL = "QueueFull"
LIMIT_REACHED = "LimitReached"
RESERVED = "Reserved"
PREEMPTING = "Preempting"
"""Reasons of a Refusal."""

NO_OBJECT = "has no SwarmQueue any more, and nothing of it starts: create it, with its bounds"
"""What is not known of a queue whose object is not there."""
HOLDERS_NAMED = 3
"""So many of the tasks that hold a limit are named in a message."""


def rounded_duration_s(duration_s: float | None) -> float | None:
    """An expected duration as lines tell them apart: up to an eighth more. So there are few of them, however many were learned."""
    if duration_s is None or not math.isfinite(duration_s):
        return None
    mantissa, exponent = math.frexp(max(0.0, duration_s))
    return math.ldexp(math.ceil(mantissa * 16) / 16, exponent)


@dataclass(frozen=True, slots=True)
class Standstill:
    """Why no further task of a line starts: the fields of a Refusal that they share."""

    reason: str
    message: str
    counts: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


class Slots:
    """The slots of one limit, as tasks of all queues take them.

    Attributes:
        most, held: slots that there are, and that are taken.
        queue: the queue that says how many there are.
        kept: slots for tasks that come first and cannot start yet.
        keeper: the first of those tasks.
    """

    def __init__(self, limit: LimitInfo) -> None:
        self.most, self.queue = limit.most, limit.queue
        self.kept = 0
        self.keeper: TaskKey | None = None
        self._holders = dict(limit.holders)
        self._named: list[TaskKey] | None = None
        self.held = sum(self._holders.values())

    def has(self, slots: int) -> bool:
        return self.held + self.kept + slots <= self.most

    def take(self, task: TaskKey, slots: int) -> None:
        self.held += slots
        self._holders[task] = self._holders.get(task, 0) + slots
        self._named = None

    def keep(self, task: TaskKey, slots: int) -> None:
        self.kept += slots
        self.keeper = self.keeper or task

    def explain(self, slots: int, namespace: str) -> str:
        """Why a task of this namespace that takes so many does not start."""
        words = f"{self.held} of {self.most} held, needs {slots}"
        if slots > self.most:
            words += f"; never starts: the limit is {self.most}"
        if self._holders:
            if self._named is None:
                self._named = heapq.nsmallest(HOLDERS_NAMED, self._holders)
            names = [name if where == namespace else f"{where}/{name}" for where, name in self._named]
            rest = len(self._holders) - len(names)
            words += f"; held by {', '.join(names)}" + (f" and {rest} more" if rest > 0 else "")
        return words


@dataclass(slots=True, eq=False)
class Gate:
    """What a queue lets through.

    Attributes:
        left: how many more of its tasks may start; None means not limited.
        share: what it may run on one node; None means not limited.
        slots: of limits, by name; all queues have the same.
        kept: how many of `left` are for tasks that come first and cannot start yet.
        keeper: the first of those tasks.
        cohort, claim: who it shares with, and what it holds; both are None for a queue that is in no cohort.
        numbers: the classes of its tasks, by the identity of their shapes.
        lines: by level of priority, number of the class and rounded expected duration.
    """

    queue: QueueInfo
    left: int | None
    share: NodeShare | None = None
    slots: dict[str, Slots] = field(default_factory=dict)
    kept: int = 0
    keeper: TaskKey | None = None
    cohort: Cohort | None = None
    claim: Claim | None = None
    numbers: dict[int, int] = field(default_factory=dict)
    lines: dict[tuple[int, int, float | None], Line] = field(default_factory=dict)

    @property
    def closed(self) -> bool:
        return bool(self.queue.unknown) or self.queue.stopped or (self.left is not None and self.left <= self.kept)

    def enter(self, task: PendingTask) -> None:
        if self.left is not None:
            self.left -= 1
        for name, slots in task.shape.limits:
            if name in self.slots:
                self.slots[name].take(task.key, slots)
        if self.claim is not None:
            self.claim.take(task.shape.request)

    def keep(self, task: PendingTask) -> None:
        """No task behind this one, of any queue, takes what it needs of limits."""
        for name, slots in task.shape.limits:
            if name in self.slots:
                self.slots[name].keep(task.key, slots)

    def keep_place(self, task: PendingTask) -> None:
        """The same for one of the places that `left` counts."""
        self.kept += 1
        self.keeper = self.keeper or task.key

    def spent(self, shape: TaskShape) -> Standstill | None:
        """Why no task of the shape starts now although the queue is open: a limit has too few slots left. Slots only get fewer
        during a cycle."""
        for name, slots in shape.limits:
            limit = self.slots.get(name)
            if limit is not None and not limit.has(slots):
                which, why = f"limit {name} of queue {'/'.join(limit.queue)}", limit.explain(slots, self.queue.key[0])
                if limit.keeper is not None and limit.held + slots <= limit.most:
                    return Standstill(RESERVED, f"{which} is kept for {'/'.join(limit.keeper)}, which comes first ({why})")
                outdated = self._outdated() if limit.queue == self.queue.key else ""
                return Standstill(LIMIT_REACHED, f"{which} is reached ({why}){outdated}")
        return None

    def standstill(self) -> Standstill:
        """Why it is closed."""
        name = "/".join(self.queue.key)
        if self.queue.unknown:
            return Standstill(QUEUE_UNKNOWN, f"queue {name} {self.queue.unknown}")
        if self.queue.stopped:
            words = f"queue {name} is stopped; set its spec.stopped to false to start its tasks{self._outdated()}"
            return Standstill(QUEUE_STOPPED, words)
        most = self.queue.max_running
        if self.left and self.keeper is not None:
            words = f"the last places of queue {name} (maxRunning {most}) are kept for {'/'.join(self.keeper)}, which comes first"
            return Standstill(RESERVED, words)
        return Standstill(QUEUE_FULL, f"queue {name} runs as many tasks as it may (maxRunning {most}){self._outdated()}")

    def _outdated(self) -> str:
        return f"; {self.queue.outdated}" if self.queue.outdated else ""


@dataclass(slots=True, eq=False)
class Line:
    """Tasks of one queue, level of priority, class and rounded expected duration, first in, first out.

    Attributes:
        duration_s: how long each of them runs, rounded up; None while that is not known.
        ranks: places in the order of the whole cycle, rising.
        next: index into `ranks` of the head.
        standstill: why the line has left the heap with tasks in it.
    """

    task_class: TaskClass
    gate: Gate
    level: int = 0
    duration_s: float | None = None
    ranks: list[int] = field(default_factory=list)
    next: int = 0
    standstill: Standstill | None = None

    @property
    def head(self) -> int | None:
        """The rank of its first task; None when the line is empty or has left the heap."""
        return None if self.standstill is not None or self.next >= len(self.ranks) else self.ranks[self.next]


class Order:
    """The waiting tasks of one cycle.

    Attributes:
        tasks: in the order in which they would start; a task's index is its rank.
        lines: the line of each task, by rank.
        classes: one per shape and strategy (with the queue's weights), and per queue where the queue has a share.
        shares: of the queues that bound what one node runs of them, by row.

    Args:
        offered: what all nodes offer together; only queues in cohorts ask.
        now: seconds since the epoch; only queues whose tasks age ask.
        limits: by name.
    """

    def __init__(
        self,
        pending: Iterable[PendingTask],
        queues: Mapping[QueueKey, QueueInfo],
        offered: Amounts = Amounts(),  # noqa: B008 - frozen
        now: float = 0.0,
        limits: Mapping[str, LimitInfo] = MappingProxyType({}),
    ) -> None:
        self.tasks, levels = standing(pending, queues, now)
        self.classes: list[TaskClass] = []
        self.lines: list[Line] = []
        self.shares: list[NodeShare] = []
        self._offered = offered
        self._cohorts: dict[str, Cohort] = {}
        self._slots = {name: Slots(limit) for name, limit in limits.items()}
        self._head: tuple[int, Line] | None = None
        classes = _Interner(self.classes)
        gates: dict[QueueKey, Gate] = {}
        for rank, task in enumerate(self.tasks):
            gate = gates.get(task.queue)
            if gate is None:
                # A queue without an object may be on its way, with bounds that nobody knows yet.
                gate = gates[task.queue] = self._gate(queues.get(task.queue) or QueueInfo(task.queue, unknown=NO_OBJECT))
            number = classes.number(task.shape, gate)
            level = task.priority if levels is None else levels[rank]
            duration_s = None if task.duration_s is None else rounded_duration_s(task.duration_s)
            line = gate.lines.get((level, number, duration_s))
            if line is None:
                line = gate.lines[level, number, duration_s] = Line(self.classes[number], gate, level, duration_s)
            line.ranks.append(rank)
            self.lines.append(line)
        self._heap = [(line.ranks[0], line) for gate in gates.values() for line in gate.lines.values()]
        heapq.heapify(self._heap)
        for gate in gates.values():
            if gate.cohort is not None and gate.claim is not None:
                by_level: dict[int, list[Line]] = {}
                for line in gate.lines.values():
                    by_level.setdefault(line.level, []).append(line)
                for level, lines in by_level.items():
                    gate.cohort.join(level, gate.claim, lines)

    def _gate(self, queue: QueueInfo) -> Gate:
        share = None
        if queue.max_running_per_node is not None:
            share = NodeShare(queue.key, queue.max_running_per_node, row=len(self.shares))
            self.shares.append(share)
        left = None if queue.max_running is None else max(0, queue.max_running - queue.running)
        gate = Gate(queue, left, share, self._slots)
        if queue.cohort:
            gate.cohort = self._cohorts.setdefault(queue.cohort, Cohort())
            gate.claim = Claim(queue, self._offered)
        return gate

    def head(self) -> tuple[int, Line] | None:
        """The rank and the line of the task that comes next; None when no line is left."""
        self._head = self._oldest()
        if self._head is not None:
            _, line = self._head
            if line.gate.cohort is not None:
                self._head = line.gate.cohort.next(line.level)
        return self._head

    def _oldest(self) -> tuple[int, Line] | None:
        while self._heap:
            rank, line = self._heap[0]
            # Lines of cohorts move while they are not the first of the heap.
            if line.gate.cohort is None or line.head == rank:
                return rank, line
            self._renew(line)
        return None

    def _renew(self, line: Line) -> None:
        """The first of the heap is this line, and it has moved or left."""
        head = line.head
        if head is None:
            heapq.heappop(self._heap)
        else:
            heapq.heapreplace(self._heap, (head, line))

    def advance(self) -> None:
        """What `head` has just returned starts: the next of its line takes its place."""
        assert self._head is not None  # noqa: S101 - somebody starts
        rank, line = self._head
        line.gate.enter(self.tasks[rank])
        line.next += 1
        if line is self._heap[0][1]:
            self._renew(line)

    def drop(self, standstill: Standstill) -> None:
        """The line of what `head` has just returned leaves for the rest of the cycle."""
        assert self._head is not None  # noqa: S101 - somebody stands still
        _, line = self._head
        line.standstill = standstill
        if line is self._heap[0][1]:
            self._renew(line)


class _Interner:
    """Equal shapes -> one class, except where their queues' strategies, weights or shares tell them apart.

    Caches usually share shape objects, so identity is asked before equality.
    """

    def __init__(self, classes: list[TaskClass]) -> None:
        self._classes = classes
        self._by_value: dict[tuple[TaskShape, Choice, NodeShare | None, Weights], int] = {}

    def number(self, shape: TaskShape, gate: Gate) -> int:
        number = gate.numbers.get(id(shape))
        if number is None:
            strategy = shape.strategy or gate.queue.strategy
            weights = gate.queue.weights if strategy == "balanced" else BALANCED_WEIGHTS
            number = self._by_value.setdefault((shape, strategy, gate.share, weights), len(self._classes))
            if number == len(self._classes):
                self._classes.append(TaskClass.of(shape, strategy, gate.share, weights))
            gate.numbers[id(shape)] = number
        return number
