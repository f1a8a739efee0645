"""Filters: which nodes can take a task, and the words for those that cannot.

Called by `cycle` and `explain`. A filter is a value without state. To add one: docs/scheduler.md.

Two kinds. A *static* filter reads facts that no placement changes; it is evaluated once per class of tasks. A *room* filter reads
what placements change; it is evaluated again for the nodes that changed. Both orders below are the order in which refusals are
counted: each node is counted once, at the first filter that refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from swarmtask.resources.units import format_cpu, format_memory, humanize_memory
from swarmtask.scheduler.columns import CPU, GPUS, MEMORY, SLOTS, Columns, Mask, NodeClass, Room, TaskClass
from swarmtask.scheduler.model import TaskShape


class Filter(Protocol):
    """What both kinds share."""

    @property
    def name(self) -> str:
        """Key of the counts in a Refusal."""
        ...

    def enabled(self, task_class: TaskClass) -> bool:
        """Whether the filter can refuse a node for this class at all."""
        ...

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        """A phrase that starts with the number of nodes in `refused` (bool[N], at least one is set)."""
        ...


class StaticFilter(Filter, Protocol):
    """Reads what stays the same during a cycle."""

    def mask(self, columns: Columns, task_class: TaskClass) -> Mask:
        """bool[N]: True where a node passes."""
        ...


class RoomFilter(Filter, Protocol):
    """Reads what placements change."""

    def mask(self, room: Room, task_class: TaskClass) -> Mask:
        """bool[n], for the n nodes of `room`: True where a node passes."""
        ...


@dataclass(frozen=True, slots=True)
class Ready:
    """The node is up and its engine takes work."""

    name: str = "ready"

    def enabled(self, task_class: TaskClass) -> bool:
        return True

    def mask(self, columns: Columns, task_class: TaskClass) -> Mask:
        return columns.ready

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        return f"{_count(refused)} not ready"


@dataclass(frozen=True, slots=True)
class Cordoned:
    """Nobody said that the node takes no new tasks."""

    name: str = "cordoned"

    def enabled(self, task_class: TaskClass) -> bool:
        return True

    def mask(self, columns: Columns, task_class: TaskClass) -> Mask:
        return ~columns.cordoned

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        return f"{_count(refused)} cordoned"


@dataclass(frozen=True, slots=True)
class Engine:
    """The engine that the task names reaches the node; any engine does when it names none."""

    name: str = "engine"

    def enabled(self, task_class: TaskClass) -> bool:
        return True

    def mask(self, columns: Columns, task_class: TaskClass) -> Mask:
        engine = task_class.shape.engine
        if engine:
            return per_node_class(columns, lambda node_class: engine in node_class.engines)
        return per_node_class(columns, lambda node_class: bool(node_class.engines))

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        engine = f"engine {task_class.shape.engine}" if task_class.shape.engine else "any engine"
        return f"{_count(refused)} not reached by {engine}"


@dataclass(frozen=True, slots=True)
class NodeName:
    """The task names this node, or none."""

    name: str = "nodeName"

    def enabled(self, task_class: TaskClass) -> bool:
        return bool(task_class.shape.node_name)

    def mask(self, columns: Columns, task_class: TaskClass) -> Mask:
        mask = ~columns.all_nodes()
        node = columns.index.get(task_class.shape.node_name)
        if node is not None:
            mask[node] = True
        return mask

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        name = task_class.shape.node_name
        unknown = "" if name in columns.index else ", which has not joined"
        return f"{_count(refused)} {_verb(refused, 'is', 'are')} not node {name}{unknown}"


@dataclass(frozen=True, slots=True)
class NodeSelector:
    """The node has every label that the task selects on."""

    name: str = "nodeSelector"

    def enabled(self, task_class: TaskClass) -> bool:
        return bool(task_class.shape.node_selector)

    def mask(self, columns: Columns, task_class: TaskClass) -> Mask:
        wanted = task_class.shape.node_selector
        return per_node_class(
            columns, lambda node_class: all(key in node_class.labels and node_class.labels[key] == value for key, value in wanted)
        )

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        labels = ",".join(f"{key}={value}" for key, value in task_class.shape.node_selector)
        return f"{_count(refused)} without {_plural(len(task_class.shape.node_selector), 'label')} {labels}"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The node offers every capability that the task asks for."""

    name: str = "capabilities"

    def enabled(self, task_class: TaskClass) -> bool:
        return bool(task_class.shape.capabilities)

    def mask(self, columns: Columns, task_class: TaskClass) -> Mask:
        wanted = task_class.shape.capabilities
        return per_node_class(columns, lambda node_class: wanted <= node_class.capabilities)

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        wanted = sorted(task_class.shape.capabilities)
        missing = f"capability {wanted[0]}" if len(wanted) == 1 else f"one of the capabilities {', '.join(wanted)}"
        return f"{_count(refused)} {_verb(refused, 'lacks', 'lack')} {missing}"


@dataclass(frozen=True, slots=True)
class MaxTasks:
    """The node runs fewer tasks than it may."""

    name: str = "maxTasks"

    def enabled(self, task_class: TaskClass) -> bool:
        return True

    def mask(self, room: Room, task_class: TaskClass) -> Mask:
        mask: Mask = room.free[SLOTS] >= task_class.need[SLOTS]
        return mask

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        limits = int(columns.allocatable[SLOTS][refused].sum())
        tasks = f"{limits} {_plural(limits, 'task')}"
        return f"{_count(refused)} at {_verb(refused, f'its limit of {tasks}', f'their limits of {tasks} together')}"


@dataclass(frozen=True, slots=True)
class QueueShare:
    """The node runs fewer tasks of the queue than the queue lets one node run."""

    name: str = "maxRunningPerNode"

    def enabled(self, task_class: TaskClass) -> bool:
        return task_class.share is not None

    def mask(self, room: Room, task_class: TaskClass) -> Mask:
        share = task_class.share
        assert share is not None  # noqa: S101 - enabled
        mask: Mask = room.share_left[share.row] >= task_class.need[SLOTS]
        return mask

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        share = task_class.share
        assert share is not None  # noqa: S101 - enabled
        verb = _verb(refused, "runs", "run")
        return (
            f"{_count(refused)} {verb} as many tasks of queue {'/'.join(share.queue)} as one may (maxRunningPerNode {share.most})"
        )


@dataclass(frozen=True, slots=True)
class Fits:
    """Enough of one resource is free.

    Attributes:
        dimension: a row of Room.free.
        too_little: "too little memory".
        most: "largest" or "most", before "free".
        words: an amount for a person; exact: the same without rounding, for amounts that look alike rounded.
    """

    name: str
    dimension: int
    too_little: str
    most: str
    words: Callable[[int], str]
    exact: Callable[[int], str]

    def enabled(self, task_class: TaskClass) -> bool:
        # A node that is over-committed (it shrank, or its engine holds more than it offers) still takes a task that asks for
        # none of the resource.
        return bool(task_class.need[self.dimension] > 0)

    def mask(self, room: Room, task_class: TaskClass) -> Mask:
        mask: Mask = room.free[self.dimension] >= task_class.need[self.dimension]
        return mask

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        """Says what is free now and, where waiting cannot help, what the largest of these nodes offers at all."""
        need = int(task_class.need[self.dimension])
        free = max(0, int(columns.room.free[self.dimension][refused].max()))
        offered = int(columns.allocatable[self.dimension][refused].max())
        never = offered < need
        close = self.words(need) in {self.words(free), self.words(offered) if never else ""}
        words = self.exact if close else self.words
        facts = f"needs {words(need)}, {self.most} free {words(free)}"
        if never:
            facts += f"; never fits: {_verb(refused, 'it', 'largest of them')} offers {words(offered)}"
        return f"{_count(refused)} {self.too_little} ({facts})"


FITS_GPUS = Fits("gpu", GPUS, "too few GPUs", "most", str, str)
FITS_MEMORY = Fits("memory", MEMORY, "too little memory", "largest", humanize_memory, format_memory)
FITS_CPU = Fits("cpu", CPU, "too little CPU", "most", format_cpu, format_cpu)

STATIC_FILTERS: tuple[StaticFilter, ...] = (Ready(), Cordoned(), Engine(), NodeName(), NodeSelector(), Capabilities())
MAX_TASKS = MaxTasks()
ROOM_FILTERS: tuple[RoomFilter, ...] = (FITS_GPUS, MAX_TASKS, QueueShare(), FITS_MEMORY, FITS_CPU)
AMOUNT_FILTERS: frozenset[RoomFilter] = frozenset({FITS_GPUS, MAX_TASKS, FITS_MEMORY, FITS_CPU})
"""Those that only compare amounts; `Columns.holds` answers for all of them about one node."""


def per_node_class(columns: Columns, accepts: Callable[[NodeClass], bool]) -> Mask:
    """bool[N] from a rule about classes of nodes, asked once per class."""
    verdicts = np.fromiter((accepts(node_class) for node_class in columns.node_classes), np.bool_, len(columns.node_classes))
    return verdicts[columns.class_of]


def label_keys(shapes: list[TaskShape]) -> set[str]:
    """Labels that decide where these shapes fit: the only ones that tell classes of nodes apart."""
    return {key for shape in shapes for key, _ in shape.node_selector}


def _count(refused: Mask) -> int:
    return int(np.count_nonzero(refused))


def _verb(refused: Mask, singular: str, plural: str) -> str:
    return singular if _count(refused) == 1 else plural


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
