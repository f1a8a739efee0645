"""Scores: which of the feasible nodes is best. Each is 0..1, 1 is best; a strategy is a weighted mean of some of them.

Called by `cycle`. A score reads the room on nodes and a class of tasks, and is a pure function of them; ties go to the node whose
name sorts first. To add one: docs/scheduler.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from swarmtask.resources.fields import Strategy
from swarmtask.scheduler.columns import CPU, GPUS, MEMORY, Floats, Room, TaskClass

LAST_RESORT = np.array(1e-9)
"""What is left of the total on a node that the task avoids: less than on any other, and in the same order among themselves."""
ZERO, ONE, TWO = np.array(0.0), np.array(1.0), np.array(2.0)
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
        share = _left(room, task_class, CPU)
        np.minimum(share, _left(room, task_class, MEMORY), out=share)
        if task_class.shape.request.gpus > 0:
            np.minimum(share, _left(room, task_class, GPUS), out=share)
        np.maximum(share, ZERO, out=share)
        return share


@dataclass(frozen=True, slots=True)
class Fullness:
    """The share that would be held of the scarcest resource after placing the task: the opposite of Balance."""

    name: str = "fullness"
    weight: float = 1.0

    def values(self, room: Room, task_class: TaskClass) -> Floats:
        values = Balance().values(room, task_class)
        np.subtract(ONE, values, out=values)
        return values


@dataclass(frozen=True, slots=True)
class IdleCpu:
    """The share of CPU that would not be held after placing the task. A node that offers none has none."""

    name: str = "idleCpu"
    weight: float = 1.0

    def values(self, room: Room, task_class: TaskClass) -> Floats:
        values = _left(room, task_class, CPU)
        np.maximum(values, ZERO, out=values)
        return values


@dataclass(frozen=True, slots=True)
class FewTasks:
    """Fewer tasks first. Beside another score it weighs so little that it only decides between nodes that are about equal."""

    name: str = "fewTasks"
    weight: float = 0.001

    def values(self, room: Room, task_class: TaskClass) -> Floats:
        values: Floats = np.reciprocal(room.tasks + ONE)
        return values


@dataclass(frozen=True, slots=True)
class ManyTasks:
    """More tasks first, for nodes that are about equally full. Never 0: an empty node is still better than one to avoid."""

    name: str = "manyTasks"
    weight: float = 0.001

    def values(self, room: Room, task_class: TaskClass) -> Floats:
        values: Floats = (room.tasks + ONE) / (room.tasks + TWO)
        return values


@dataclass(frozen=True, slots=True)
class Turn:
    """Those that were given a task longest ago first; those that never were before all others."""

    name: str = "turn"
    weight: float = 1.0

    def values(self, room: Room, task_class: TaskClass) -> Floats:
        assert room.turns is not None  # noqa: S101 - the cycle asks for them when a class goes round
        values: Floats = np.reciprocal(room.turns + ONE)
        return values


STRATEGIES: Mapping[Strategy, tuple[Score, ...]] = {
    "balanced": (Balance(), FewTasks()),
    "pack": (Fullness(), ManyTasks()),
    # So little that one task less counts for more than all balance, up to a thousand tasks on a node.
    "spread": (FewTasks(weight=1.0), Balance(weight=1e-6)),
    "least-busy": (IdleCpu(), FewTasks()),
    "round-robin": (Turn(),),
}
"""The scores of each strategy."""


def _left(room: Room, task_class: TaskClass, dimension: int) -> Floats:
    """The share of one resource that would be left; negative where too much is held, 0 where nothing is offered."""
    left: Floats = (room.free[dimension] - task_class.need[dimension]) * room.per_unit[dimension]
    return left


class Total:
    """The weighted mean of scores, 0..1."""

    def __init__(self, scores: Sequence[Score]) -> None:
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


TOTALS: Mapping[Strategy, Total] = {strategy: Total(scores) for strategy, scores in STRATEGIES.items()}
"""The total of each strategy."""
