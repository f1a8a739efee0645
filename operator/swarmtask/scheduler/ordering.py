"""Who comes next: priority, then fair share, then age, then uid, within the limits of queues.

Called by `cycle`. Tasks of one (queue, priority, shape) wait in one line, first in, first out; a heap holds the head of each line.
A line leaves the heap when it is empty, when its class of tasks fits nowhere, or when its queue starts nothing more; so the cost of
a cycle does not depend on how many tasks wait behind a head that cannot start. Never looks at nodes.

The oldest task of the highest priority comes next. If its queue is in a cohort, it is the cohort's turn, and `cohorts` says which
of its queues gives a task. Nothing is held back: a task that does not fit lets smaller ones behind it start.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from swarmtask.resources.fields import Strategy
from swarmtask.scheduler.cohorts import Claim, Cohort
from swarmtask.scheduler.columns import BALANCED_WEIGHTS, NodeShare, TaskClass
from swarmtask.scheduler.model import Amounts, LimitInfo, PendingTask, QueueInfo, QueueKey, TaskShape, Weights

NO_NODE_FITS = "NoNodeFits"
QUEUE_STOPPED = "QueueStopped"
QUEUE_FULL = "QueueFull"
LIMIT_REACHED = "LimitReached"
"""Reasons of a Refusal."""

HOLDERS_NAMED = 3
"""So many of the tasks that hold a limit are named in a message."""


def order_key(task: PendingTask) -> tuple[int, float, str]:
    """Sorts tasks in the order in which they start."""
    return (-task.priority, task.queued_at, task.uid)


@dataclass(frozen=True, slots=True)
class Standstill:
    """Why no further task of a line starts: the fields of a Refusal that they share."""

    reason: str
    message: str
    counts: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


class Slots:
    """The slots of one limit of a queue, as tasks take them."""

    def __init__(self, limit: LimitInfo) -> None:
        self._most = limit.most
        self._holders = dict(limit.holders)
        self._held = sum(self._holders.values())

    def has(self, slots: int) -> bool:
        return self._held + slots <= self._most

    def take(self, task: str, slots: int) -> None:
        self._held += slots
        self._holders[task] = self._holders.get(task, 0) + slots

    def explain(self, slots: int) -> str:
        """Why a task that takes so many does not start."""
        words = f"{self._held} of {self._most} held, needs {slots}"
        if slots > self._most:
            words += f"; never starts: the limit is {self._most}"
        if self._holders:
            names = sorted(self._holders)
            rest = len(names) - HOLDERS_NAMED
            words += f"; held by {', '.join(names[:HOLDERS_NAMED])}" + (f" and {rest} more" if rest > 0 else "")
        return words


@dataclass(slots=True, eq=False)
class Gate:
    """What a queue lets through.

    Attributes:
        left: how many more of its tasks may start; None means not limited.
        share: what it may run on one node; None means not limited.
        slots: of its limits, by name.
        cohort, claim: who it shares with, and what it holds; both are None for a queue that is in no cohort.
        numbers: the classes of its tasks, by the identity of their shapes.
        lines: by priority and number of the class.
    """

    queue: QueueInfo
    left: int | None
    share: NodeShare | None = None
    slots: dict[str, Slots] = field(default_factory=dict)
    cohort: Cohort | None = None
    claim: Claim | None = None
    numbers: dict[int, int] = field(default_factory=dict)
    lines: dict[tuple[int, int], Line] = field(default_factory=dict)

    @property
    def closed(self) -> bool:
        return self.queue.stopped or self.left == 0

    def enter(self, task: PendingTask) -> None:
        if self.left is not None:
            self.left -= 1
        for name, slots in task.shape.limits:
            if name in self.slots:
                self.slots[name].take(task.key[1], slots)
        if self.claim is not None:
            self.claim.take(task.shape.request)

    def spent(self, shape: TaskShape) -> Standstill | None:
        """Why no task of the shape starts now although the queue is open: a limit has too few slots left. Slots only get fewer
        during a cycle."""
        for name, slots in shape.limits:
            limit = self.slots.get(name)
            if limit is not None and not limit.has(slots):
                words = f"limit {name} of queue {'/'.join(self.queue.key)} is reached ({limit.explain(slots)})"
                return Standstill(LIMIT_REACHED, words)
        return None

    def standstill(self) -> Standstill:
        """Why it is closed."""
        name = "/".join(self.queue.key)
        if self.queue.stopped:
            return Standstill(QUEUE_STOPPED, f"queue {name} is stopped; set its spec.stopped to false to start its tasks")
        most = self.queue.max_running
        return Standstill(QUEUE_FULL, f"queue {name} runs as many tasks as it may (maxRunning {most})")


@dataclass(slots=True, eq=False)
class Line:
    """Tasks of one queue, priority and class, first in, first out.

    Attributes:
        ranks: places in the order of the whole cycle, rising.
        next: index into `ranks` of the head.
        standstill: why the line has left the heap with tasks in it.
    """

    task_class: TaskClass
    gate: Gate
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
    """

    def __init__(
        self,
        pending: Iterable[PendingTask],
        queues: Mapping[QueueKey, QueueInfo],
        offered: Amounts = Amounts(),  # noqa: B008 - frozen
    ) -> None:
        self.tasks = sorted(pending, key=order_key)
        self.classes: list[TaskClass] = []
        self.lines: list[Line] = []
        self.shares: list[NodeShare] = []
        self._offered = offered
        self._cohorts: dict[str, Cohort] = {}
        self._head: tuple[int, Line] | None = None
        classes = _Interner(self.classes)
        gates: dict[QueueKey, Gate] = {}
        for rank, task in enumerate(self.tasks):
            gate = gates.get(task.queue)
            if gate is None:
                # A queue that the snapshot does not know has no limits: its object may be on its way.
                gate = gates[task.queue] = self._gate(queues.get(task.queue) or QueueInfo(task.queue))
            number = classes.number(task.shape, gate)
            line = gate.lines.get((task.priority, number))
            if line is None:
                line = gate.lines[task.priority, number] = Line(self.classes[number], gate)
            line.ranks.append(rank)
            self.lines.append(line)
        self._heap = [(line.ranks[0], line) for gate in gates.values() for line in gate.lines.values()]
        heapq.heapify(self._heap)
        for gate in gates.values():
            if gate.cohort is not None and gate.claim is not None:
                for priority in {priority for priority, _ in gate.lines}:
                    lines = [line for (level, _), line in gate.lines.items() if level == priority]
                    gate.cohort.join(priority, gate.claim, lines)

    def _gate(self, queue: QueueInfo) -> Gate:
        share = None
        if queue.max_running_per_node is not None:
            share = NodeShare(queue.key, queue.max_running_per_node, row=len(self.shares))
            self.shares.append(share)
        left = None if queue.max_running is None else max(0, queue.max_running - queue.running)
        gate = Gate(queue, left, share, {name: Slots(limit) for name, limit in queue.limits.items()})
        if queue.cohort:
            gate.cohort = self._cohorts.setdefault(queue.cohort, Cohort())
            gate.claim = Claim(queue, self._offered)
        return gate

    def head(self) -> tuple[int, Line] | None:
        """The rank and the line of the task that comes next; None when no line is left."""
        self._head = self._oldest()
        if self._head is not None:
            rank, line = self._head
            if line.gate.cohort is not None:
                self._head = line.gate.cohort.next(self.tasks[rank].priority)
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
        self._by_value: dict[tuple[TaskShape, Strategy, NodeShare | None, Weights], int] = {}

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
