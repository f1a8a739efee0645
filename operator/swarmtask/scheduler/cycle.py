"""One scheduling cycle: a frozen snapshot in, bindings and explained refusals out.

Called by `controllers.scheduling` (`run_cycle`) and by whoever shows a person why (`explain_task`). Performs nothing: the caller
assumes the bindings, writes them, and takes a new snapshot. How a cycle works and what it costs: docs/scheduler.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarmtask.scheduler.columns import Columns, TaskClass
from swarmtask.scheduler.explain import no_node_fits
from swarmtask.scheduler.filters import label_keys
from swarmtask.scheduler.model import Binding, CycleResult, Refusal, Snapshot
from swarmtask.scheduler.ordering import NO_NODE_FITS, Line, Order, QueueKey, Standstill
from swarmtask.scheduler.placement import Placement


def run_cycle(snapshot: Snapshot) -> CycleResult:
    """Decide every pending task. The order of the snapshot's sequences does not matter.

    No binding breaks a filter, an allocatable amount, `max_tasks` or a queue's `max_running`, also taken together with all earlier
    bindings of the cycle.
    """
    cycle = Cycle(snapshot)
    while (decision := cycle.decide()) is not None:
        cycle.apply(decision)
    return cycle.result()


@dataclass(frozen=True, slots=True)
class Place:
    """The head of a line starts on a node (its index in the columns)."""

    rank: int
    task_class: TaskClass
    node: int
    score: float


@dataclass(frozen=True, slots=True)
class Park:
    """The head's line stands still for the rest of the cycle."""

    line: Line
    standstill: Standstill


class Cycle:
    """The state of one cycle between its steps."""

    def __init__(self, snapshot: Snapshot) -> None:
        # 1. Order: one class per shape, one line per queue, priority and class, a heap of heads.
        self.order = Order(snapshot.pending, snapshot.queues)
        # 2. Columns: nodes as arrays, nodes that look alike to every waiting task as one class.
        self.columns = Columns.of(snapshot.nodes, label_keys([task_class.shape for task_class in self.order.classes]))
        self._placement = Placement(self.columns, len(self.order.tasks))
        self._unfit: dict[TaskClass, Standstill] = {}
        self._placed: list[Place] = []

    def decide(self) -> Place | Park | None:
        """What happens to the task that comes next; None when nothing more can start. Changes nothing."""
        # 3. Pick the task that comes next, unless its queue or the nodes have nothing for its line.
        head = self.order.head()
        if head is None:
            return None
        rank, line = head
        if line.gate.closed:
            return Park(line, line.gate.standstill())
        task_class = line.task_class
        unfit = self._unfit.get(task_class)
        if unfit is not None:
            return Park(line, unfit)
        # 4. Find the best feasible node. Room only shrinks during a cycle: what does not fit now is not looked at again.
        best = self._placement.best(task_class)
        if best is None:
            return Park(line, no_node_fits(self.columns, task_class))
        return Place(rank, task_class, *best)

    def apply(self, decision: Place | Park) -> None:
        """Carry out what `decide` has just returned."""
        # 5. Take the room, or park the line and with it its class.
        if isinstance(decision, Place):
            self._placement.place(decision.node, decision.task_class)
            self.order.advance()
            self._placed.append(decision)
        else:
            self.order.drop(decision.standstill)
            if decision.standstill.reason == NO_NODE_FITS:
                self._unfit[decision.line.task_class] = decision.standstill
                self._placement.forget(decision.line.task_class)

    def binding(self, place: Place) -> Binding:
        engine = place.task_class.shape.engine or self.columns.engines(place.node)[0]
        return Binding(self.order.tasks[place.rank], self.columns.names[place.node], engine, place.score)

    def result(self) -> CycleResult:
        # 6. Say what was decided: bindings in the order of decision, and for all others their place in the queue and why.
        started = bytearray(len(self.order.tasks))
        for place in self._placed:
            started[place.rank] = 1
        positions: dict[QueueKey, int] = {}
        refusals: list[Refusal] = []
        for rank, (task, line) in enumerate(zip(self.order.tasks, self.order.lines, strict=True)):
            if not started[rank]:
                position = positions[task.queue] = positions.get(task.queue, 0) + 1
                standstill = line.standstill
                assert standstill is not None  # noqa: S101 - a cycle ends when every line is empty or parked
                refusals.append(Refusal(task, position, standstill.reason, standstill.message, standstill.counts))
        return CycleResult(tuple(map(self.binding, self._placed)), tuple(refusals))
