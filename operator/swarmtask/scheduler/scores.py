"""Scores: which of the feasible nodes is best. Each is 0..1, 1 is best; a strategy is a weighted mean of some of them.

Called by `placement` and `cycle`. Two kinds, as with filters: a *static* score reads facts that no placement changes and is
computed once per class of tasks; a *room* score reads what placements change. Both are pure functions of what they read; ties go to
the node whose name sorts first. To add one: docs/scheduler.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from swarmtask.scheduler.columns import CPU, GPUS, MEMORY, Columns, Floats, Room, TaskClass
from swarmtask.scheduler.model import Choice, Weights

FAR_MS = 500.0
"""A latency from which on a node is as bad as can be, in milliseconds."""
DEAR_PER_HOUR = 10.0
"""A cost from which on a node is as bad as can be, in dollars per hour."""
TIE_BREAK = 0.001
"""Weight of a score that only decides between nodes that are about equal, relative to all others together."""
ZERO, ONE, TWO = np.array(0.0), np.array(1.0), np.array(2.0)
"""Without dimensions, for the reason given at TaskClass.need."""


class Score(Protocol):
    """What both kinds share: how well a node suits a task."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float:
        """Above zero. Relative to the other scores' weights."""
        ...


class StaticScore(Score, Protocol):
    """Reads what stays the same during a cycle."""

    def fixed(self, columns: Columns, task_class: TaskClass) -> Floats:
        """A new float64[N] between 0 and 1 for all nodes, feasible or not."""
        ...


class RoomScore(Score, Protocol):
    """Reads what placements change."""

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
class Capability:
    """How closely what a node offers matches what is asked for, so that special nodes stay free: one more than the capabilities and
    GPUs that the task asks for, divided by one more than those that the node offers."""

    name: str = "capability"
    weight: float = 1.0

    def fixed(self, columns: Columns, task_class: TaskClass) -> Floats:
        asked = 1.0 + len(task_class.shape.capabilities) + max(0, task_class.shape.request.gpus)
        counts = np.fromiter((len(item.capabilities) for item in columns.node_classes), np.float64, len(columns.node_classes))
        offered = 1.0 + counts[columns.class_of] + columns.allocatable[GPUS]
        values: Floats = np.minimum(asked / offered, 1.0)  # above 1 only where the task does not fit
        return values


@dataclass(frozen=True, slots=True)
class Nearness:
    """1 at no latency, 0 from FAR_MS on, 0.5 where it is not known."""

    name: str = "latency"
    weight: float = 1.0

    def fixed(self, columns: Columns, task_class: TaskClass) -> Floats:
        return 1.0 - np.clip(np.nan_to_num(columns.latency_ms, nan=FAR_MS / 2), 0.0, FAR_MS) / FAR_MS


@dataclass(frozen=True, slots=True)
class Cheapness:
    """1 where an hour costs nothing, 0 from DEAR_PER_HOUR on."""

    name: str = "cost"
    weight: float = 1.0

    def fixed(self, columns: Columns, task_class: TaskClass) -> Floats:
        return 1.0 - np.clip(columns.cost_per_hour, 0.0, DEAR_PER_HOUR) / DEAR_PER_HOUR


@dataclass(frozen=True, slots=True)
class Smallness:
    """1 on the node that offers least memory, a step less on each that offers more; free or not does not matter."""

    name: str = "smallness"
    weight: float = 1.0

    def fixed(self, columns: Columns, task_class: TaskClass) -> Floats:
        sizes, places = np.unique(columns.allocatable[MEMORY], return_inverse=True)
        values: Floats = 1.0 - places.reshape(-1) / max(1, len(sizes))
        return values


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
    weight: float = TIE_BREAK

    def values(self, room: Room, task_class: TaskClass) -> Floats:
        values: Floats = np.reciprocal(room.tasks + ONE)
        return values


@dataclass(frozen=True, slots=True)
class ManyTasks:
    """More tasks first, for nodes that are about equally full. Never 0: an empty node is still better than one to avoid."""

    name: str = "manyTasks"
    weight: float = TIE_BREAK

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


def _left(room: Room, task_class: TaskClass, dimension: int) -> Floats:
    """The share of one resource that would be left; negative where too much is held, 0 where nothing is offered."""
    left: Floats = (room.free[dimension] - task_class.need[dimension]) * room.per_unit[dimension]
    return left


class Total:
    """The weighted mean of scores, 0..1.

    Args:
        room_scores: at least one.
    """

    def __init__(self, room_scores: Sequence[RoomScore], static_scores: Sequence[StaticScore] = ()) -> None:
        whole = sum(score.weight for score in (*static_scores, *room_scores))
        self._room = tuple((score, np.array(score.weight / whole)) for score in room_scores)
        self._static = tuple((score, np.array(score.weight / whole)) for score in static_scores)

    @property
    def names(self) -> list[str]:
        """Of its scores, in the order of `parts`."""
        return [score.name for score, _ in self._static] + [score.name for score, _ in self._room]

    def parts(self, columns: Columns, task_class: TaskClass) -> list[tuple[str, Floats]]:
        """The name of each score with what it adds to the total of every node, float64[N]."""
        static = [(score.name, score.fixed(columns, task_class) * share) for score, share in self._static]
        return static + [(score.name, score.values(columns.room, task_class) * share) for score, share in self._room]

    def fixed(self, columns: Columns, task_class: TaskClass) -> Floats | None:
        """float64[N]: the sum of the parts that no placement changes, or one number where all nodes have the same; None where there
        is none."""
        result: Floats | None = None
        for score, share in self._static:
            part = score.fixed(columns, task_class) * share
            result = part if result is None else result + part
        if result is not None and len(result) and (result == result[0]).all():
            return np.array(result[0])
        return result

    def values(self, room: Room, task_class: TaskClass, fixed: Floats | None) -> Floats:
        """float64[n]: the sum of the parts, given those of the same nodes that no placement changes. Rounding can put a sum of
        perfect scores a hair above 1."""
        result = fixed
        for score, share in self._room:
            part = score.values(room, task_class)
            part *= share
            if result is not None:
                part += result
            result = part
        assert result is not None  # noqa: S101 - there is at least one score
        return result


@lru_cache(maxsize=1024)
def balanced(weights: Weights) -> Total:
    """The strategy balanced with a queue's weights. A weight of 0 leaves its score out; with all at 0 the tie-breaker is left."""
    capability, load, latency, cost = weights
    wanted: tuple[StaticScore, ...] = (Capability(weight=capability), Nearness(weight=latency), Cheapness(weight=cost))
    static_scores = [score for score in wanted if score.weight > 0]
    room_scores: list[RoomScore] = [Balance("load", weight=load)] if load > 0 else []
    room_scores.append(FewTasks(weight=TIE_BREAK * (sum(weights) or 1)))
    return Total(room_scores, static_scores)


_OTHERS: Mapping[Choice, Total] = {
    "pack": Total((Fullness(), ManyTasks())),
    # So little that one task less counts for more than all balance, up to a thousand tasks on a node.
    "spread": Total((FewTasks(weight=1.0), Balance(weight=1e-6))),
    "least-busy": Total((IdleCpu(), FewTasks())),
    "round-robin": Total((Turn(),)),
    # So little that it decides between nodes of one size alone.
    "smallest": Total((FewTasks(weight=1e-6),), (Smallness(),)),
}


def total_of(strategy: Choice, weights: Weights) -> Total:
    """The total of a strategy; `weights` matter to balanced alone."""
    return balanced(weights) if strategy == "balanced" else _OTHERS[strategy]
