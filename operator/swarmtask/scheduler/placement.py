"""The best node for each class of tasks, kept current while a cycle places them.

Called by `cycle`. A class is evaluated on all nodes when its first task comes up, and after that only on the nodes that changed
since its last turn: one column per placement. So a task costs one look for the largest of N scores and a few vector operations on
a handful of nodes, however many filters and nodes there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from swarmtask.scheduler.columns import Columns, Floats, Ints, Mask, Room, TaskClass
from swarmtask.scheduler.filters import ROOM_FILTERS, STATIC_FILTERS, RoomFilter
from swarmtask.scheduler.preferences import factors
from swarmtask.scheduler.scores import Total, total_of

INFEASIBLE = np.array(-1.0)
"""Below every score. An array without dimensions: numpy takes it faster than a number."""
KEPT_BYTES = 256 * 2**20
"""Evaluations kept. Beyond it the oldest is dropped and made again when its class comes up."""


@dataclass(slots=True, eq=False)
class _Evaluation:
    """One class on all nodes.

    Attributes:
        allowed: bool[N], what static filters say; None when they let every node pass.
        fixed: what static scores add to the total, float64[N] or one number; None where nothing.
        factors: float64[N], by what the total is multiplied because of preferences; None where by 1.
        values: float64[N], total score where the class fits, else INFEASIBLE.
        seen: how many placements are accounted for.
    """

    total: Total
    room_filters: tuple[RoomFilter, ...]
    allowed: Mask | None
    fixed: Floats | None
    factors: Floats | None
    values: Floats
    seen: int


class Placement:
    """Chooses nodes and takes room from them.

    Args:
        columns: changed by `place`.
        most: the largest number of placements that can follow.
    """

    def __init__(self, columns: Columns, most: int) -> None:
        self._columns = columns
        self._changed: Ints = np.empty(most, dtype=np.int64)
        self._placed = 0
        self._evaluations: dict[TaskClass, _Evaluation] = {}
        self._keep = max(1, KEPT_BYTES // (16 * max(1, len(columns))))

    def best(self, task_class: TaskClass) -> tuple[int, float] | None:
        """The feasible node with the highest score, and the score; None when no node is feasible."""
        if not len(self._columns):
            return None
        values = self._current(task_class)
        node = int(values.argmax())
        value = values.item(node)
        return None if value < 0.0 else (node, min(value, 1.0))

    def place(self, node: int, task_class: TaskClass) -> tuple[int, ...]:
        """Take the room of one task of the class, which `best` has just chosen the node for, and return the indices of its GPUs."""
        gpus = self._columns.place(node, task_class)
        self._changed[self._placed] = node
        self._placed += 1
        return gpus

    def forget(self, task_class: TaskClass) -> None:
        """No task of the class comes up again."""
        self._evaluations.pop(task_class, None)

    def _current(self, task_class: TaskClass) -> Floats:
        evaluation = self._evaluations.get(task_class)
        if evaluation is None:
            evaluation = self._evaluate(task_class)
        elif evaluation.seen < self._placed:
            changed = self._changed[evaluation.seen : self._placed]
            if len(changed) > len(self._columns):
                changed = np.unique(changed)
            room = self._columns.room.take(changed)
            allowed = None if evaluation.allowed is None else evaluation.allowed.take(changed)
            fixed = evaluation.fixed
            if fixed is not None and fixed.ndim:
                fixed = fixed.take(changed)
            values = evaluation.total.values(room, task_class, fixed)
            if evaluation.factors is not None:
                values *= evaluation.factors.take(changed)
            evaluation.values[changed] = _feasible(values, room, task_class, allowed, evaluation.room_filters)
            evaluation.seen = self._placed
        return evaluation.values

    def _evaluate(self, task_class: TaskClass) -> _Evaluation:
        allowed = self._columns.all_nodes()
        for static_filter in STATIC_FILTERS:
            if static_filter.enabled(task_class):
                allowed &= static_filter.mask(self._columns, task_class)
        room_filters = tuple(room_filter for room_filter in ROOM_FILTERS if room_filter.enabled(task_class))
        total = total_of(task_class.strategy, task_class.weights)
        fixed, factor = total.fixed(self._columns, task_class), factors(self._columns, task_class)
        values = total.values(self._columns.room, task_class, fixed)
        if factor is not None:
            values *= factor
        values = _feasible(values, self._columns.room, task_class, allowed, room_filters)
        kept = None if allowed.all() else allowed
        evaluation = _Evaluation(total, room_filters, kept, fixed, factor, values, self._placed)
        if len(self._evaluations) >= self._keep:
            del self._evaluations[next(iter(self._evaluations))]
        self._evaluations[task_class] = evaluation
        return evaluation


def _feasible(
    values: Floats, room: Room, task_class: TaskClass, allowed: Mask | None, room_filters: tuple[RoomFilter, ...]
) -> Floats:
    """`values`, changed in place: the total scores of the n nodes of `room`, INFEASIBLE where a filter refuses."""
    feasible = allowed
    for room_filter in room_filters:
        mask = room_filter.mask(room, task_class)
        feasible = mask if feasible is None else feasible & mask
    if feasible is not None:
        np.putmask(values, ~feasible, INFEASIBLE)
    return values
