"""One scheduling cycle: a frozen snapshot in, bindings and explained refusals out.

Called by `controllers.scheduling` (`run_cycle`) and by whoever shows a person why (`explain_task`). Performs nothing: the caller
assumes the bindings, writes them, and takes a new snapshot. How a cycle works and what it costs: docs/scheduler.md.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import inf

from swarmtask.scheduler.cohorts import offered
from swarmtask.scheduler.columns import Columns, TaskClass
from swarmtask.scheduler.explain import no_node_fits, verdicts
from swarmtask.scheduler.filters import label_keys
from swarmtask.scheduler.headroom import Headroom
from swarmtask.scheduler.model import Amounts, Binding, CycleResult, PendingTask, QueueKey, Refusal, Snapshot, TaskKey
from swarmtask.scheduler.ordering import NO_NODE_FITS, RESERVED, Line, Order, Standstill
from swarmtask.scheduler.placement import Placement
from swarmtask.scheduler.preferences import broken, factors
from swarmtask.scheduler.scores import total_of


def run_cycle(snapshot: Snapshot) -> CycleResult:
    """Decide every pending task. The order of the snapshot's sequences does not matter.

    No binding breaks a filter, an allocatable amount, `max_tasks` or a bound of a queue, also taken together with all earlier
    bindings of the cycle. Where a line of a backlog that was cut has run out, the cycle ends: nothing that it said of the others
    would stand (`backlog.Cut.settle`).
    """
    cycle = Cycle(snapshot)
    run_out: Collection[TaskKey] = () if snapshot.cut is None else snapshot.cut.run_out
    while (decision := cycle.decide()) is not None:
        cycle.apply(decision)
        if run_out and isinstance(decision, Place) and cycle.order.tasks[decision.rank].key in run_out:
            return CycleResult(cycle.bindings(), (), complete=False)
    return cycle.result()


@dataclass(slots=True)
class Place:
    """The head of a line starts on a node (its index in the columns). `gpus` are chosen when the decision is applied."""

    rank: int
    task_class: TaskClass
    node: int
    score: float
    gpus: tuple[int, ...] = ()


@dataclass(slots=True)
class Park:
    """The head's line stands still for the rest of the cycle."""

    line: Line
    standstill: Standstill


class Cycle:
    """The state of one cycle between its steps."""

    def __init__(self, snapshot: Snapshot) -> None:
        # 1. Order: one class per shape, one line per queue, priority and class, a heap of heads.
        shared = any(queue.cohort for queue in snapshot.queues.values())
        in_all = offered(snapshot.nodes) if shared else Amounts()
        self.order = Order(snapshot.pending, snapshot.queues, in_all, snapshot.now, snapshot.limits)
        # 2. Columns: nodes as arrays, nodes that look alike to every waiting task as one class.
        classes = self.order.classes
        self.columns = Columns.of(
            snapshot.nodes,
            label_keys([task_class.shape for task_class in classes]),
            self.order.shares,
            turns=any(task_class.strategy == "round-robin" for task_class in classes),
            gpu_wishes={task_class.shape.gpu for task_class in classes if task_class.shape.request.gpus > 0},
        )
        self._placement = Placement(self.columns, len(self.order.tasks))
        self.headroom = Headroom(snapshot, self.order, self.columns)
        self._unfit: dict[TaskClass, Standstill] = {}
        self._placed: list[Place] = []

    def decide(self) -> Place | Park | None:
        """What happens to the task that comes next; None when nothing more can start. Changes nothing about it."""
        # 3. Pick the task that comes next, unless its queue or the nodes have nothing for its line.
        head = self.order.head()
        self.headroom.catch_up(inf if head is None else head[0])
        if head is None:
            return None
        rank, line = head
        if line.gate.closed:
            return Park(line, line.gate.standstill())
        task_class = line.task_class
        unfit = self._unfit.get(task_class)
        spent = line.gate.spent(task_class.shape) if task_class.shape.limits else None
        if spent is not None:
            # Slots that a task could not use on any node are not kept for it, and are not what it waits for.
            hopeless = self.headroom.hopeless(task_class)
            return Park(line, (unfit or no_node_fits(self.columns, task_class)) if hopeless else spent)
        if unfit is not None:
            return Park(line, unfit)
        # 4. Find the best feasible node. Room only shrinks during a cycle: what does not fit now is not looked at again.
        best = self._placement.best(task_class)
        if best is None:
            return Park(line, no_node_fits(self.columns, task_class))
        if self.headroom.keeps and best[0] in (closed := self.headroom.closed_to(line)):
            best = self._placement.best_except(task_class, closed)
            if best is None:
                return Park(line, self.headroom.blocked(line))
        return Place(rank, task_class, *best)

    def apply(self, decision: Place | Park) -> None:
        """Carry out what `decide` has just returned."""
        # 5. Take the room, or park the line and with it its class.
        if isinstance(decision, Place):
            decision.gpus = self._placement.place(decision.node, decision.task_class)
            if self.headroom.keeps:
                self.headroom.note(decision.node, self.order.lines[decision.rank])
            self.order.advance()
            self._placed.append(decision)
        else:
            self.order.drop(decision.standstill)
            if decision.standstill.reason == NO_NODE_FITS:
                self._unfit[decision.line.task_class] = decision.standstill
                self._placement.forget(decision.line.task_class)
            self.headroom.refused(decision.line, decision.standstill)

    def binding(self, place: Place) -> Binding:
        engine = place.task_class.shape.engine or self.columns.engines(place.node)[0]
        return Binding(self.order.tasks[place.rank], self.columns.names[place.node], engine, place.score, place.gpus)

    def bindings(self) -> tuple[Binding, ...]:
        """What has been placed so far, in the order of decision."""
        return tuple(map(self.binding, self._placed))

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
                standstill, own = line.standstill, self.headroom.words.get(rank)
                assert standstill is not None  # noqa: S101 - a cycle ends when every line is empty or parked
                behind = None if own is None else (standstill.reason, standstill.message, standstill.counts)
                told = own or standstill
                refusals.append(Refusal(task, position, told.reason, told.message, told.counts, behind))
        return CycleResult(self.bindings(), tuple(refusals), tuple(self.headroom.preemptions))


@dataclass(frozen=True, slots=True)
class NodeVerdict:
    """How one node looks to one task.

    Attributes:
        filters: name -> passed, for every filter that applies to the task, in the order in which refusals are counted.
        refused_by: the first filter that refused; None where the task fits.
        scores: name -> what the score adds to the total.
        score: the total, 0..1, almost nothing on a node that is a last resort; also given where the task does not fit, though
            nothing compares it there.
        last_resort: names of the preferences that keep the task away as long as it fits elsewhere, the strongest first.
    """

    node: str
    filters: Mapping[str, bool]
    refused_by: str | None
    scores: Mapping[str, float]
    score: float
    last_resort: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a cycle does with a task, and every node's verdict, by node name, at the moment when it decides.

    Attributes:
        level: what orders the task before its age: its priority, raised by waiting or by being moved to the front.
    """

    outcome: Binding | Refusal
    nodes: tuple[NodeVerdict, ...]
    level: int


def explain_task(snapshot: Snapshot, task: PendingTask) -> Explanation:
    """Explain the decision about one task, by running the cycle that decides it. A task that is not among the pending ones is
    treated as if it had been queued too."""
    if task not in snapshot.pending:
        snapshot = replace(snapshot, pending=(*snapshot.pending, task))
    cycle = Cycle(snapshot)
    rank = cycle.order.tasks.index(task)
    line = cycle.order.lines[rank]
    nodes: tuple[NodeVerdict, ...] = ()
    started = parked = False
    while (decision := cycle.decide()) is not None:
        if isinstance(decision, Place):
            decides = started = decision.rank == rank
        elif decision.standstill.reason == NO_NODE_FITS:
            # The first line that is parked for its class decides for all lines of the class.
            decides = not parked and decision.line.task_class is line.task_class
            parked |= decides
        else:
            decides = decision.line is line
        if decides:
            nodes = _node_verdicts(cycle.columns, line.task_class, cycle.headroom.closed_to(line) if cycle.headroom.keeps else None)
        cycle.apply(decision)
        if started:
            break  # what happens to the rest of its line is not about this task
    while (decision := cycle.decide()) is not None:
        cycle.apply(decision)
    result = cycle.result()
    decided: tuple[Binding | Refusal, ...] = (*result.bindings, *result.refusals)
    outcome = next(one for one in decided if one.task == task)
    return Explanation(outcome, nodes, line.level)


def _node_verdicts(columns: Columns, task_class: TaskClass, closed: Collection[int] | None) -> tuple[NodeVerdict, ...]:
    total = total_of(task_class.strategy, task_class.weights)
    masks = {filter_.name: mask.tolist() for filter_, mask in verdicts(columns, task_class)}
    if closed is not None:
        masks[RESERVED.lower()] = [number not in closed for number in range(len(columns))]
    factor = factors(columns, task_class)
    weight = 1.0 if factor is None else factor
    parts = {name: (part * weight).tolist() for name, part in total.parts(columns, task_class)}
    totals = (total.values(columns.room, task_class, total.fixed(columns, task_class)) * weight).tolist()
    preferences = [(preference.name, mask.tolist()) for _, preference, mask in broken(columns, task_class)]
    found = []
    for number, name in enumerate(columns.names):
        filters = {filter_name: mask[number] for filter_name, mask in masks.items()}
        refused_by = next((filter_name for filter_name, passed in filters.items() if not passed), None)
        scores = {score_name: part[number] for score_name, part in parts.items()}
        last_resort = tuple(preference for preference, mask in preferences if mask[number])
        found.append(NodeVerdict(name, filters, refused_by, scores, min(totals[number], 1.0), last_resort))
    return tuple(found)
