"""The best node for each class of tasks, kept current while a cycle places them.

Called by `cycle`. A class is evaluated on all nodes when its first task comes up, and after that only on the nodes that changed
since its last turn: one column per placement. So a task costs one look for the largest of N scores and a few vector operations on
a handful of nodes, however many filters and nodes there are.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from swarmtask.scheduler.columns import Columns, Floats, Ints, Mask, Room, TaskClass
from swarmtask.scheduler.filters import ROOM_FILTERS, STATIC_FILTERS, RoomFilter
from swarmtask.scheduler.scores import LAST_RESORT, TOTALS

INFEASIBLE = np.array(-1.0)
"""Below every score. An array without dimensions: numpy takes it faster than a number."""
KEPT_BYTES = 256 * 2**20
"""Evaluations kept. Beyond it the oldest is dropped and made again when its class comes up."""


@dataclass(slots=True, eq=False)
class _Evaluation:
    """One class on all nodes.

    Attributes:
        allowed: bool[N], what static filters say; None when they let every node pass.
        avoided: bool[N], nodes that are the last resort; None when there are none.
        values: float64[N], total score where the class fits, else INFEASIBLE.
        seen: how many placements are accounted for.
    """

    room_filters: tuple[RoomFilter, ...]
    allowed: Mask | None
    avoided: Mask | None
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

    def best_except(self, task_class: TaskClass, closed: Collection[int]) -> tuple[int, float] | None:
        """The same without some nodes."""
        values = self._current(task_class).copy()
        values[list(closed)] = INFEASIBLE
        node = int(values.argmax())
        value = values.item(node)
        return None if value < 0.0 else (node, min(value, 1.0))

    def place(self, node: int, task_class: TaskClass) -> None:
        """Take the room of one task of the class, which `best` has just chosen the node for."""
        self._columns.place(node, task_class)
        self._changed[self._placed] = node
        self._placed += 1

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
            avoided = None if evaluation.avoided is None else evaluation.avoided.take(changed)
            evaluation.values[changed] = _values(task_class, room, allowed, avoided, evaluation.room_filters)
            evaluation.seen = self._placed
        return evaluation.values

    def _evaluate(self, task_class: TaskClass) -> _Evaluation:
        allowed = self._columns.all_nodes()
        for static_filter in STATIC_FILTERS:
            if static_filter.enabled(task_class):
                allowed &= static_filter.mask(self._columns, task_class)
        room_filters = tuple(room_filter for room_filter in ROOM_FILTERS if room_filter.enabled(task_class))
        avoided = self._columns.last_resort(task_class.shape)
        values = _values(task_class, self._columns.room, allowed, avoided, room_filters)
        evaluation = _Evaluation(room_filters, None if allowed.all() else allowed, avoided, values, self._placed)
        if len(self._evaluations) >= self._keep:
            del self._evaluations[next(iter(self._evaluations))]
        self._evaluations[task_class] = evaluation
        return evaluation


def _values(
    task_class: TaskClass, room: Room, allowed: Mask | None, avoided: Mask | None, room_filters: tuple[RoomFilter, ...]
) -> Floats:
    """float64[n]: total score, or INFEASIBLE, for the n nodes of `room`."""
    values = TOTALS[task_class.strategy].values(room, task_class)
    if avoided is not None:
        np.multiply(values, LAST_RESORT, out=values, where=avoided)
    feasible = allowed
    for room_filter in room_filters:
        mask = room_filter.mask(room, task_class)
        feasible = mask if feasible is None else feasible & mask
    if feasible is not None:
        np.putmask(values, ~feasible, INFEASIBLE)
    return values
