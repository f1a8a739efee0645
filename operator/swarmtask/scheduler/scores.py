"""Scores: which of the feasible nodes is best. Each is 0..1, 1 is best; the total is their weighted mean.

Called by `cycle`. A score reads the room on nodes and a class of tasks, and is a pure function of them; ties go to the node whose
name sorts first. To add one: docs/scheduler.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from swarmtask.scheduler.columns import CPU, GPUS, MEMORY, Floats, Room, TaskClass

LAST_RESORT = np.array(1e-9)
"""What is left of the total on a node that the task avoids: less than on any other, and in the same order among themselves."""
ZERO, ONE = np.array(0.0), np.array(1.0)
"""Without dimensions, for the reason given at TaskClass.need."""


class Score(Protocol):
    """How well a node suits a task."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float:
        """Above zero. Relative to the other scores' weights."""
        ...

    def values(self, room: Room, task_class: TaskClass) -> Floats:
        """A new float64[n] between 0 and 1 for the n nodes of `room`, feasible or not."""
        ...


@dataclass(frozen=True, slots=True)
class Balance:
    """The share that would be left of the scarcest resource after placing the task: work spreads to where most is left.

    CPU and memory always count, GPUs only for tasks that ask for one. A resource of which a node offers nothing leaves nothing.
    """

    name: str = "balance"
    weight: float = 1.0

    def values(self, room: Room, task_class: TaskClass) -> Floats:
        share = self._left(room, task_class, CPU)
        np.minimum(share, self._left(room, task_class, MEMORY), out=share)
        if task_class.shape.request.gpus > 0:
            np.minimum(share, self._left(room, task_class, GPUS), out=share)
        np.maximum(share, ZERO, out=share)
        return share

    @staticmethod
    def _left(room: Room, task_class: TaskClass, dimension: int) -> Floats:
        left: Floats = (room.free[dimension] - task_class.need[dimension]) * room.per_unit[dimension]
        return left


@dataclass(frozen=True, slots=True)
class FewTasks:
    """Fewer tasks first. Weighs so little that it only decides between nodes that are about equally loaded."""

    name: str = "fewTasks"
    weight: float = 0.001

    def values(self, room: Room, task_class: TaskClass) -> Floats:
        values: Floats = np.reciprocal(room.tasks + ONE)
        return values


SCORES: tuple[Score, ...] = (Balance(), FewTasks())


class Total:
    """The weighted mean of scores, 0..1."""

    def __init__(self, scores: Sequence[Score] = SCORES) -> None:
        whole = sum(score.weight for score in scores)
        self._weighted = tuple((score, np.array(score.weight / whole)) for score in scores)

    def parts(self, room: Room, task_class: TaskClass) -> list[tuple[str, Floats]]:
        """The name of each score with what it adds to the total, float64[n]."""
        return [(score.name, score.values(room, task_class) * share) for score, share in self._weighted]

    def values(self, room: Room, task_class: TaskClass) -> Floats:
        """float64[n]: the sum of the parts. Rounding can put a sum of perfect scores a hair above 1."""
        result: Floats | None = None
        for score, share in self._weighted:
            part = score.values(room, task_class)
            part *= share
            if result is None:
                result = part
            else:
                result += part
        assert result is not None  # noqa: S101 - there is at least one score
        return result
