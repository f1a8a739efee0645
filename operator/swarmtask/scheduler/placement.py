"""The best node for each class of tasks, kept current while a cycle places them.

Called by `cycle`. A class is evaluated on all nodes when its first task comes up, and after that only on the nodes that changed
since its last turn: one column per placement. So a task costs one look for the largest of N scores and a few vector operations on
a handful of nodes, however many filters and nodes there are.

Scores follow every change; whether the amounts still fit is looked at later, and mostly for one node only. Room only shrinks, so a
node that was found too small stays so, and a node that has not changed still fits. The node with the highest score is asked alone;
only if it is too small are all nodes looked at that changed since this was last done.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from swarmtask.scheduler.columns import Columns, Floats, Ints, Mask, Room, TaskClass
from swarmtask.scheduler.filters import AMOUNT_FILTERS, ROOM_FILTERS, STATIC_FILTERS, RoomFilter
from swarmtask.scheduler.preferences import factors
from swarmtask.scheduler.scores import Total, total_of

INFEASIBLE = np.array(-1.0)
"""Below every score. An array without dimensions: numpy takes it faster than a number."""
KEPT_BYTES = 256 * 2**20
"""Evaluations kept. Beyond it the oldest is dropped and made again when its class comes up."""
NEVER = -1


@dataclass(slots=True, eq=False)
class _Evaluation:
    """One class on all nodes.

    Attributes:
        total: the scores of its strategy.
        amount_filters: filters that only compare amounts; room_filters: all other room filters that the class enables.
        allowed: bool[N], what static filters say; None when they let every node pass.
        fixed: what static scores add to the total, float64[N] or one number; None where nothing.
        factors: float64[N], by what the total is multiplied because of preferences; None where by 1.
        values: float64[N], total score where the class fits, else INFEASIBLE. Amounts may be too small on nodes that changed
            after `checked`.
        seen, checked: how many placements are accounted for, in the scores and in the amounts.
    """

    total: Total
    amount_filters: tuple[RoomFilter, ...]
    room_filters: tuple[RoomFilter, ...]
    allowed: Mask | None
    fixed: Floats | None
    factors: Floats | None
    values: Floats
    seen: int
    checked: int


class Placement:
    """Chooses nodes and takes room from them.

    Args:
        columns: changed by `place`.
        most: the largest number of placements that can follow.
    """

    def __init__(self, columns: Columns, most: int) -> None:
        self._columns = columns
        self._nodes = len(columns)
        self._changed: Ints = np.empty(most, dtype=np.int64)
        self._changed_at = [NEVER] * self._nodes
        self._placed = 0
        self._evaluations: dict[TaskClass, _Evaluation] = {}
        self._keep = max(1, KEPT_BYTES // (16 * max(1, self._nodes)))

    def best(self, task_class: TaskClass) -> tuple[int, float] | None:
        """The feasible node with the highest score, and the score; None when no node is feasible."""
        if not self._nodes:
            return None
        evaluation = self._evaluations.get(task_class)
        if evaluation is None:
            evaluation = self._evaluate(task_class)
        elif evaluation.seen < self._placed:
            self._follow(task_class, evaluation)
        values = evaluation.values
        while True:
            node = int(values.argmax())
            value = values.item(node)
            if value < 0.0:
                return None
            if self._changed_at[node] < evaluation.checked or self._columns.holds(node, task_class):
                return node, min(value, 1.0)
            self._check(task_class, evaluation)

    def best_except(self, task_class: TaskClass, closed: Collection[int]) -> tuple[int, float] | None:
        """The same without some nodes, for a class that `best` has just found a node for."""
        evaluation = self._evaluations[task_class]
        self._check(task_class, evaluation)
        values = evaluation.values.copy()
        values[list(closed)] = INFEASIBLE
        node = int(values.argmax())
        value = values.item(node)
        return None if value < 0.0 else (node, min(value, 1.0))

    def place(self, node: int, task_class: TaskClass) -> tuple[int, ...]:
        """Take the room of one task of the class, which `best` has just chosen the node for, and return the indices of its GPUs."""
        gpus = self._columns.place(node, task_class)
        self._changed[self._placed] = node
        self._changed_at[node] = self._placed
        self._placed += 1
        return gpus

    def forget(self, task_class: TaskClass) -> None:
        """No task of the class comes up again."""
        self._evaluations.pop(task_class, None)

    def _evaluate(self, task_class: TaskClass) -> _Evaluation:
        """The class on all nodes."""
        allowed = self._columns.all_nodes()
        for static_filter in STATIC_FILTERS:
            if static_filter.enabled(task_class):
                allowed &= static_filter.mask(self._columns, task_class)
        enabled = [room_filter for room_filter in ROOM_FILTERS if room_filter.enabled(task_class)]
        total = total_of(task_class.strategy, task_class.weights)
        evaluation = _Evaluation(
            total,
            tuple(room_filter for room_filter in enabled if room_filter in AMOUNT_FILTERS),
            tuple(room_filter for room_filter in enabled if room_filter not in AMOUNT_FILTERS),
            None if allowed.all() else allowed,
            total.fixed(self._columns, task_class),
            factors(self._columns, task_class),
            np.empty(0),
            self._placed,
            self._placed,
        )
        self._evaluate_all(task_class, evaluation)
        if len(self._evaluations) >= self._keep:
            del self._evaluations[next(iter(self._evaluations))]
        self._evaluations[task_class] = evaluation
        return evaluation

    def _evaluate_all(self, task_class: TaskClass, evaluation: _Evaluation) -> None:
        room = self._columns.room
        values = _values(task_class, evaluation, room)
        np.putmask(values, ~_masks(task_class, evaluation.amount_filters, room), INFEASIBLE)
        evaluation.values = values
        evaluation.seen = evaluation.checked = self._placed

    def _follow(self, task_class: TaskClass, evaluation: _Evaluation) -> None:
        """Bring the scores of the nodes that changed up to date."""
        if self._placed - evaluation.seen > self._nodes:
            self._evaluate_all(task_class, evaluation)
            return
        changed = self._changed[evaluation.seen : self._placed]
        evaluation.values[changed] = _values(task_class, evaluation, self._columns.room.take(changed), changed)
        evaluation.seen = self._placed

    def _check(self, task_class: TaskClass, evaluation: _Evaluation) -> None:
        """Sort out all nodes whose amounts have become too small."""
        room, values = self._columns.room, evaluation.values
        if self._placed - evaluation.checked > self._nodes:
            np.putmask(values, ~_masks(task_class, evaluation.amount_filters, room), INFEASIBLE)
        else:
            changed = self._changed[evaluation.checked : self._placed]
            values[changed[~_masks(task_class, evaluation.amount_filters, room.take(changed))]] = INFEASIBLE
        evaluation.checked = self._placed


def _masks(task_class: TaskClass, room_filters: tuple[RoomFilter, ...], room: Room) -> Mask:
    """bool[n]: where all of these filters pass, for the n nodes of `room`. There is at least one filter."""
    first, *others = room_filters
    mask = first.mask(room, task_class)
    for other in others:
        mask = mask & other.mask(room, task_class)
    return mask


def _values(task_class: TaskClass, evaluation: _Evaluation, room: Room, nodes: Ints | None = None) -> Floats:
    """float64[n]: total score, or INFEASIBLE, for the n nodes of `room`: these, or all. Amounts are not looked at."""
    allowed, fixed, factor = evaluation.allowed, evaluation.fixed, evaluation.factors
    if nodes is not None:
        allowed = None if allowed is None else allowed[nodes]
        fixed = fixed if fixed is None or not fixed.ndim else fixed[nodes]
        factor = None if factor is None else factor[nodes]
    values = evaluation.total.values(room, task_class, fixed)
    if factor is not None:
        values *= factor
    if evaluation.room_filters:
        mask = _masks(task_class, evaluation.room_filters, room)
        allowed = mask if allowed is None else allowed & mask
    if allowed is not None:
        np.putmask(values, ~allowed, INFEASIBLE)
    return values
