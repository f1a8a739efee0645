"""The snapshot as columns: one array per fact, one entry per node, nodes sorted by name.

Called by `cycle`; filters and scores read it. Columns are the one thing that changes during a cycle, and only through `place`.
Never reads a clock, never decides anything.

Amounts are int64: thousandths of a core, bytes, whole GPUs, task slots. Larger amounts are cut at `LIMIT` so that no sum or
difference overflows; a wish that was cut fits nowhere, because capacities are cut one below it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from swarmtask.scheduler import gpus
from swarmtask.scheduler.gpus import GpuCounts, row_of
from swarmtask.scheduler.model import Amounts, Choice, GpuWish, NodeInfo, QueueKey, Taint, TaskShape, Weights

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

CPU, MEMORY, GPUS, SLOTS = range(4)
"""Rows of the room on nodes. A slot is the right to run one more task (`max_tasks`)."""
DIMENSIONS = 4

LIMIT = 2**62
BALANCED_WEIGHTS: Weights = (40, 30, 20, 10)


def _capped(amount: int, limit: int = LIMIT) -> int:
    return min(max(amount, 0), limit)


@dataclass(frozen=True, slots=True)
class NodeShare:
    """A queue that runs at most so many tasks on one node.

    Attributes:
        row: of `Room.share_left`.
    """

    queue: QueueKey
    most: int
    row: int


@dataclass(frozen=True, slots=True, eq=False)
class TaskClass:
    """All tasks of one shape and strategy; where queues bound what they run on a node, of one queue, too. Compared by identity: a
    cycle makes each class once.

    Attributes:
        strategy: which of the feasible nodes is chosen.
        share: what the queue may run on each node; None means as much as fits.
        amounts: what one task takes, int64[DIMENSIONS]; never above LIMIT.
        need: the same, by dimension, as arrays without dimensions: numpy computes with them in half the time that a Python number
            or a broadcast column takes, and a cycle does little else.
        floors: by dimension, what must be free on a node that takes one; far below zero where nothing is asked for, because a node
            that holds more than it offers still takes a task that asks for none of it.
        weights: of the strategy balanced; what they are for other strategies does not matter.
    """

    shape: TaskShape
    amounts: Ints
    need: tuple[Ints, ...]
    floors: tuple[int, ...]
    strategy: Choice
    share: NodeShare | None
    weights: Weights = BALANCED_WEIGHTS

    @classmethod
    def of(
        cls,
        shape: TaskShape,
        strategy: Choice = "balanced",
        share: NodeShare | None = None,
        weights: Weights = BALANCED_WEIGHTS,
    ) -> TaskClass:
        request = shape.request
        amounts = (*map(_capped, (request.cpu_milli, request.memory_bytes, request.gpus)), 1)
        return cls(
            shape,
            np.array(amounts, dtype=np.int64),
            tuple(np.array(amount, dtype=np.int64) for amount in amounts),
            tuple(amount if amount > 0 else -2 * LIMIT for amount in amounts),
            strategy,
            share,
            weights,
        )


@dataclass(frozen=True, slots=True)
class NodeClass:
    """What all nodes of one class share; filters that read only this are evaluated once per class of nodes.

    Attributes:
        labels: only those that some waiting task selects on, so that a label that every node has a value of its own for (its
            hostname) does not make every node a class of its own.
    """

    labels: Mapping[str, str]
    capabilities: frozenset[str]
    engines: tuple[str, ...]
    taints: tuple[Taint, ...] = ()
    region: str = ""


class Rows(Protocol):
    """One array per dimension. For all nodes that is a table; for some of them, their entries, looked up row by row when asked for:
    few tasks ask for every resource."""

    def __getitem__(self, dimension: int, /) -> NDArray[Any]: ...

    def __len__(self) -> int: ...


class _SomeOf:
    """The entries of some nodes, row by row, copied when asked for. (One-dimensional look-ups: in half the time that it takes to
    take columns from a table.)"""

    __slots__ = ("_nodes", "_table")

    def __init__(self, table: Rows, nodes: Ints) -> None:
        self._table, self._nodes = table, nodes

    def __getitem__(self, dimension: int) -> NDArray[Any]:
        entries: NDArray[Any] = self._table[dimension][self._nodes]
        return entries

    def __len__(self) -> int:
        return len(self._table)


@dataclass(slots=True)
class Room:
    """What placements change, for all nodes or some of them. (Not frozen only because one is made for every placement.)

    Attributes:
        free: int64[DIMENSIONS, n], allocatable minus requested and, of memory, minus what others than tasks use; negative where a
            node shrank under its tasks.
        per_unit: float64[DIMENSIONS, n], 1 / allocatable, and 0 where nothing is offered.
        tasks: float64[n], how many tasks are bound and assumed; float because scores divide by it.
        share_left: int64[number of shares, n], how many more tasks each queue with a share may start there.
        turns: float64[n], the place of each node in the order in which they were last given a task, 0 for those that never were;
            None where no class of tasks asks for it.
        gpu_left: int64[wishes, n], how many GPUs that match a wish can be given away; `gpu_rows` has the row of each wish.
    """

    free: Rows
    per_unit: Rows
    tasks: Floats
    share_left: Rows
    turns: Floats | None
    gpu_left: Rows
    gpu_rows: Mapping[GpuWish, int]

    def take(self, nodes: Ints) -> Room:
        """The same for some nodes; to be read before the next placement."""
        # Most clusters need no shares, turns or wishes for GPUs.
        share_left = _SomeOf(self.share_left, nodes) if self.share_left else self.share_left
        turns = None if self.turns is None else self.turns[nodes]
        gpu_left = _SomeOf(self.gpu_left, nodes) if self.gpu_rows else self.gpu_left
        return Room(
            _SomeOf(self.free, nodes),
            _SomeOf(self.per_unit, nodes),
            self.tasks[nodes],
            share_left,
            turns,
            gpu_left,
            self.gpu_rows,
        )


@dataclass(frozen=True, slots=True)
class Columns:
    """The nodes of one cycle.

    Attributes:
        ready, cordoned, on_battery, drained, quiet, memory_pressure, disk_pressure: bool[N].
        charge_short: bool[N], its battery has less charge than it must have.
        latency_ms: float64[N], NaN where it is not known. cost_per_hour: float64[N].
        node_classes, class_of: the classes, and the index of each node's class, intp[N].
        nodes: as they came, for words.
        allocatable: int64[DIMENSIONS, N].
        foreign: int64[N], bytes of it that others than tasks use; not in the room.
        gpus: single GPUs; changes as the cycle places tasks.
        room: what is left; changes as the cycle places tasks.
        free, share_left: its tables, once more.
    """

    names: tuple[str, ...]
    index: Mapping[str, int]
    ready: Mask
    cordoned: Mask
    on_battery: Mask
    drained: Mask
    quiet: Mask
    charge_short: Mask
    nodes: tuple[NodeInfo, ...] = field(repr=False)
    memory_pressure: Mask
    disk_pressure: Mask
    latency_ms: Floats
    cost_per_hour: Floats
    node_classes: tuple[NodeClass, ...]
    class_of: NDArray[np.intp]
    allocatable: Ints
    foreign: Ints
    gpus: GpuCounts
    room: Room
    free: Ints = field(repr=False)
    share_left: Ints = field(repr=False)
    _all: Mask = field(repr=False)

    @classmethod
    def of(
        cls,
        nodes: Sequence[NodeInfo],
        label_keys: Collection[str] = (),
        shares: Sequence[NodeShare] = (),
        *,
        turns: bool = False,
        gpu_wishes: Collection[GpuWish] = (),
    ) -> Columns:
        """Columns of `nodes`.

        Args:
            label_keys: the labels that waiting tasks select on.
            shares: in the order of their rows.
            turns: whether a score asks who was last given a task.
            gpu_wishes: of the waiting tasks that ask for GPUs; without one no single GPU can be given away.
        """
        ordered = sorted(nodes, key=attrgetter("name"))
        node_classes, class_of = _classes(ordered, sorted(label_keys))
        limits = [node.max_tasks for node in ordered]
        allocatable = _table(
            [node.allocatable for node in ordered],
            [LIMIT if limit is None else limit for limit in limits],
            {number: gpus.offered(node) for number, node in enumerate(ordered) if node.gpus},
            LIMIT - 1,
        )
        requested = _table(
            [node.requested for node in ordered],
            [node.tasks for node in ordered],
            {number: gpus.held(node) for number, node in enumerate(ordered) if node.gpus},
            LIMIT,
        )
        per_unit = np.zeros(allocatable.shape)
        np.divide(1.0, allocatable, out=per_unit, where=allocatable > 0)
        free, share_left = allocatable - requested, _share_left(ordered, shares)
        foreign = np.array([_capped(node.foreign_bytes, LIMIT - 1) for node in ordered], dtype=np.int64)
        free[MEMORY] = np.maximum(free[MEMORY] - foreign, -LIMIT)
        counts = GpuCounts.of(ordered, gpu_wishes)
        names = tuple([node.name for node in ordered])
        return cls(
            names=names,
            index=dict(zip(names, range(len(names)), strict=True)),
            ready=np.array([node.ready for node in ordered], dtype=np.bool_),
            cordoned=np.array([node.unschedulable for node in ordered], dtype=np.bool_),
            on_battery=np.array([node.on_battery for node in ordered], dtype=np.bool_),
            drained=np.array([node.drained for node in ordered], dtype=np.bool_),
            quiet=np.array([node.quiet for node in ordered], dtype=np.bool_),
            charge_short=np.array([_charge_short(node) for node in ordered], dtype=np.bool_),
            nodes=tuple(ordered),
            memory_pressure=np.array([node.memory_pressure for node in ordered], dtype=np.bool_),
            disk_pressure=np.array([node.disk_pressure for node in ordered], dtype=np.bool_),
            latency_ms=np.array([node.latency_ms for node in ordered], dtype=np.float64),
            cost_per_hour=np.array([node.cost_per_hour for node in ordered], dtype=np.float64),
            node_classes=node_classes,
            class_of=class_of,
            allocatable=allocatable,
            foreign=foreign,
            gpus=counts,
            room=Room(
                tuple(free),
                tuple(per_unit),
                requested[SLOTS].astype(np.float64),
                tuple(share_left),
                _turns(ordered) if turns else None,
                tuple(counts.left),
                counts.rows,
            ),
            free=free,
            share_left=share_left,
            _all=np.ones(len(ordered), dtype=np.bool_),
        )

    def __len__(self) -> int:
        return len(self.names)

    def all_nodes(self) -> Mask:
        """A new mask of every node."""
        return self._all.copy()

    def engines(self, node: int) -> tuple[str, ...]:
        """Engines that reach a node, preferred first."""
        return self.node_classes[int(self.class_of[node])].engines

    def holds(self, node: int, task_class: TaskClass) -> bool:
        """Whether one more task of the class finds its amounts on a node: what all of `filters.AMOUNT_FILTERS` say together."""
        cpu, memory, free_gpus, slots = self.free[:, node].tolist()
        floors = task_class.floors
        if cpu < floors[CPU] or memory < floors[MEMORY] or free_gpus < floors[GPUS] or slots < floors[SLOTS]:
            return False
        row = row_of(self.gpus.rows, task_class.shape.gpu) if task_class.shape.request.gpus > 0 else None
        return row is None or bool(self.gpus.left[row, node] >= floors[GPUS])

    def place(self, node: int, task_class: TaskClass) -> tuple[int, ...]:
        """Take one task's room from a node, and return the indices of the GPUs that it gets. The caller has made sure that it
        fits."""
        self.free[:, node] -= task_class.amounts
        self.room.tasks[node] += 1
        if task_class.share is not None:
            self.share_left[task_class.share.row, node] -= 1
        if self.room.turns is not None:
            self.room.turns[node] = self.room.turns.max() + 1
        request = task_class.shape.request
        return self.gpus.take(node, task_class.shape.gpu, request.gpus) if request.gpus > 0 else ()


def _charge_short(node: NodeInfo) -> bool:
    return node.charge_percent is not None and node.charge_percent < node.min_charge_percent


def _share_left(nodes: Sequence[NodeInfo], shares: Sequence[NodeShare]) -> Ints:
    left = np.empty((len(shares), len(nodes)), dtype=np.int64)
    for share in shares:
        left[share.row] = [_capped(share.most) - _capped(node.queue_tasks.get(share.queue, 0)) for node in nodes]
    return left


def _turns(nodes: Sequence[NodeInfo]) -> Floats:
    places = {turn: place for place, turn in enumerate(sorted({0, *(node.turn for node in nodes)}))}
    return np.array([places[node.turn] for node in nodes], dtype=np.float64)


def _classes(nodes: Sequence[NodeInfo], keys: Sequence[str]) -> tuple[tuple[NodeClass, ...], NDArray[np.intp]]:
    """The classes of nodes that differ in what static filters read, and the index of each node's class, intp[N].

    Args:
        keys: the labels that tell nodes apart.
    """
    numbers: dict[object, int] = {}
    found: list[NodeClass] = []
    class_of: list[int] = []
    labels: Mapping[str, str] = {}
    pairs: tuple[tuple[str, str], ...] = ()
    for node in nodes:
        if keys:
            labels = {key: node.labels[key] for key in keys if key in node.labels}
            pairs = tuple(labels.items())
        identity = (pairs, node.capabilities, node.engines, node.taints, node.region)
        number = numbers.get(identity)
        if number is None:
            number = numbers[identity] = len(found)
            found.append(NodeClass(labels, node.capabilities, node.engines, node.taints, node.region))
        class_of.append(number)
    return tuple(found), np.array(class_of, dtype=np.intp)


def _table(amounts: Sequence[Amounts], slots: Sequence[int], single_gpus: Mapping[int, int], limit: int) -> Ints:
    """int64[DIMENSIONS, n] of what n nodes offer or hold.

    Args:
        single_gpus: the GPUs of nodes that list them, by the index of the node, instead of those of `amounts`.
    """
    table = np.empty((DIMENSIONS, len(amounts)), dtype=np.int64)
    counts = [one.gpus for one in amounts]
    for number, count in single_gpus.items():
        counts[number] = count
    rows: tuple[Sequence[int], ...] = ([one.cpu_milli for one in amounts], [one.memory_bytes for one in amounts], counts, slots)
    for dimension, row in enumerate(rows):
        try:
            table[dimension] = row
        except OverflowError:  # some amount is larger than any machine's
            table[dimension] = [_capped(amount, limit) for amount in row]
    clipped: Ints = table.clip(0, limit)
    return clipped
