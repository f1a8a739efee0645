"""Preferences: nodes that a task takes only when it fits nowhere else, and which of them it takes last.

Called by `placement` and `cycle`. A filter says no; a preference says "rather not". The preferences stand in an order: a node that
breaks one is taken only when every feasible node breaks that one or one before it. Static: nothing here changes during a cycle. To
add one: docs/scheduler.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from swarmtask.scheduler.columns import Columns, Floats, Mask, TaskClass
from swarmtask.scheduler.filters import per_node_class, tolerates

STEP = 1e-12
"""What a step down leaves of a node's total: less than any node above has, and in the same order among those of one step. No
strategy's total differs as much: its smallest is 0.001 / (1 + tasks on a node) or 1 / (1 + nodes)."""


class Preference(Protocol):
    """Rather not on some nodes."""

    @property
    def name(self) -> str:
        """For explanations."""
        ...

    def broken(self, columns: Columns, task_class: TaskClass) -> Mask | None:
        """bool[N]: True where the task would rather not run. None: nowhere."""
        ...


@dataclass(frozen=True, slots=True)
class FailedThere:
    """An attempt of the task has failed on the node for a reason that lies with the node."""

    name: str = "failedThere"

    def broken(self, columns: Columns, task_class: TaskClass) -> Mask | None:
        nodes = [columns.index[name] for name in task_class.shape.avoid if name in columns.index]
        if not nodes:
            return None
        mask = np.zeros(len(columns), dtype=np.bool_)
        mask[nodes] = True
        return mask


@dataclass(frozen=True, slots=True)
class SoftTaints:
    """The node has a taint PreferNoSchedule that the task does not tolerate."""

    name: str = "taints"

    def broken(self, columns: Columns, task_class: TaskClass) -> Mask | None:
        if not any(node_class.taints for node_class in columns.node_classes):
            return None
        shape = task_class.shape
        return per_node_class(
            columns,
            lambda node_class: any(
                taint.effect == "PreferNoSchedule" and not tolerates(shape, taint) for taint in node_class.taints
            ),
        )


@dataclass(frozen=True, slots=True)
class MainsPower:
    """The node runs on battery."""

    name: str = "battery"

    def broken(self, columns: Columns, task_class: TaskClass) -> Mask | None:
        return columns.on_battery if task_class.shape.on_battery == "avoid" else None


@dataclass(frozen=True, slots=True)
class PreferredRegions:
    """The node is in none of the regions that the task prefers."""

    name: str = "regions"

    def broken(self, columns: Columns, task_class: TaskClass) -> Mask | None:
        preferred = task_class.shape.preferred_regions
        if not preferred:
            return None
        return per_node_class(columns, lambda node_class: node_class.region not in preferred)


PREFERENCES: tuple[Preference, ...] = (FailedThere(), SoftTaints(), MainsPower(), PreferredRegions())
"""The one that is broken last, first."""


def broken(columns: Columns, task_class: TaskClass) -> Iterator[tuple[int, Preference, Mask]]:
    """Every preference that some node breaks, with the steps that it takes a node down, and the nodes. The first of PREFERENCES
    takes it further down than all the others together."""
    for number, preference in enumerate(PREFERENCES):
        mask = preference.broken(columns, task_class)
        if mask is not None and mask.any():
            yield 2 ** (len(PREFERENCES) - 1 - number), preference, mask


def factors(columns: Columns, task_class: TaskClass) -> Floats | None:
    """float64[N] above 0: by what each node's total is multiplied. None: by 1."""
    result: Floats | None = None
    for steps, _, mask in broken(columns, task_class):
        if result is None:
            result = np.ones(len(columns))
        result[mask] *= STEP**steps
    return result
