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


class Score(Protocol):
    """How well a node suits a task."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float:
        """Above zero. Relative to the other scores' weights."""
        ...

    def values(self, room: Room, task_class: TaskClass) -> Floats:
        """float64[n] between 0 and 1 for the n nodes of `room`, feasible or not."""
        ...


@dataclass(frozen=True, slots=True)
class Balance:
    """The share that would be left of the scarcest resource after placing the task: work spreads to where most is left.

    CPU and memory always count, GPUs only for tasks that ask for one. A resource of which a node offers nothing leaves nothing.
    """

    name: str = "balance"
    weight: float = 1.0

    def values(self, room: Room, task_class: TaskClass) -> Floats:
        rows = slice(CPU, GPUS + 1) if task_class.need[GPUS] else slice(CPU, MEMORY + 1)
        left = (room.free[rows] - task_class.need_column[rows]) * room.per_unit[rows]
        share: Floats = np.maximum(left.min(axis=0), 0.0)
        return share


@dataclass(frozen=True, slots=True)
class FewTasks:
    """Fewer tasks first. Weighs so little that it only decides between nodes that are about equally loaded."""

    name: str = "fewTasks"
    weight: float = 0.001

    def values(self, room: Room, task_class: TaskClass) -> Floats:
        values: Floats = np.reciprocal(room.tasks + 1.0)
        return values


SCORES: tuple[Score, ...] = (Balance(), FewTasks())


def total(scores: Sequence[Score], room: Room, task_class: TaskClass) -> Floats:
    """float64[n] between 0 and 1: the weighted mean."""
    whole = sum(score.weight for score in scores)
    result = np.zeros(room.tasks.shape)
    for score in scores:
        result += score.values(room, task_class) * (score.weight / whole)
    return result
