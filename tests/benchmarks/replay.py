"""A cluster without an operator: the real scheduler, an event queue, and tasks whose durations are known.

Used by B3 and B11. Everything happens at once and in order, so a run is a function of its input; no clock is read.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swarmtask.scheduler.backlog import Backlog
from swarmtask.scheduler.cycle import run_cycle
from swarmtask.scheduler.model import Amounts, NodeInfo, PendingTask, QueueInfo, QueueKey, Snapshot, TaskKey

NOTHING = Amounts()


@dataclass(frozen=True)
class Outcome:
    """Attributes:
    makespan_s: from the beginning to the end of the last task.
    cycles: how many there were. placed: how many tasks ran.
    """

    makespan_s: float
    cycles: int
    placed: int


class Replay:
    """The cluster as time goes by.

    Args:
        nodes: empty ones. Their bounds on tasks hold, too.
        pending: all there at the beginning. durations_s: how long each of them runs; the scheduler is not told.
        gap_s: ends within such a time share a cycle, as changes do in the operator.
    """

    def __init__(
        self,
        nodes: Sequence[NodeInfo],
        pending: Sequence[PendingTask],
        durations_s: Mapping[TaskKey, float],
        queues: Mapping[QueueKey, QueueInfo] | None = None,
        gap_s: float = 0.0,
    ) -> None:
        self._nodes = list(nodes)
        self._index = {node.name: number for number, node in enumerate(nodes)}
        self._durations, self._gap_s = durations_s, gap_s
        self._queues = {task.queue: QueueInfo(task.queue) for task in pending} | dict(queues or {})
        self._backlog = Backlog(pending)
        self._ends: list[tuple[float, int, int, Amounts]] = []
        self._free = Amounts(
            sum(node.allocatable.cpu_milli for node in nodes),
            sum(node.allocatable.memory_bytes for node in nodes),
            sum(node.allocatable.gpus for node in nodes),
        )
        self._now = 0.0
        self._cycles = self._placed = 0

    def run(self) -> Outcome:
        """Until everything has ended.

        Raises:
            RuntimeError: something waits although nothing runs.
        """
        while len(self._backlog) or self._ends:
            if len(self._backlog):
                self._cycle()
            if self._ends:
                self._pass()
            elif len(self._backlog):
                raise RuntimeError(f"{len(self._backlog)} tasks fit on no node although all are empty")
        return Outcome(self._now, self._cycles, self._placed)

    def _cycle(self) -> None:
        complete = False
        while not complete:
            cut = self._backlog.cut(self._free, None)
            result = cut.settle(run_cycle(Snapshot(self._now, self._nodes, cut.tasks, self._queues, cut=cut)))
            complete = result.complete
            self._cycles += 1
            changes: dict[int, tuple[Amounts, int]] = {}
            for binding in result.bindings:
                task, number, request = binding.task, self._index[binding.node], binding.task.shape.request
                self._backlog.drop(task.key)
                self._placed += 1
                held, count = changes.get(number, (NOTHING, 0))
                changes[number] = (held + request, count + 1)
                heapq.heappush(self._ends, (self._now + self._durations[task.key], self._placed, number, request))
            self._change(changes)

    def _pass(self) -> None:
        """To the next end, and to those within the gap after it."""
        self._now = self._ends[0][0]
        until = self._now + self._gap_s
        changes: dict[int, tuple[Amounts, int]] = {}
        while self._ends and self._ends[0][0] <= until:
            self._now, _, number, request = heapq.heappop(self._ends)
            held, count = changes.get(number, (NOTHING, 0))
            changes[number] = (held - request, count - 1)
        self._change(changes)

    def _change(self, changes: Mapping[int, tuple[Amounts, int]]) -> None:
        for number, (amounts, count) in changes.items():
            node = self._nodes[number]
            self._nodes[number] = NodeInfo(
                node.name, True, False, node.engines, node.allocatable, node.requested + amounts, node.tasks + count, node.max_tasks
            )
            self._free -= amounts
