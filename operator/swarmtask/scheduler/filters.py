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
from swarmtask.scheduler.gpus import row_of
from swarmtask.scheduler.model import GpuWish, Taint, TaskShape

TAINTS_NAMED = 3
"""So many different taints are named in a message."""


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
class Drained:
    """Nobody wants the node empty."""

    name: str = "drained"

    def enabled(self, task_class: TaskClass) -> bool:
        return True

    def mask(self, columns: Columns, task_class: TaskClass) -> Mask:
        return ~columns.drained

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        return f"{_count(refused)} drained"


@dataclass(frozen=True, slots=True)
class QuietHours:
    """The node is not in its quiet hours."""

    name: str = "quietHours"

    def enabled(self, task_class: TaskClass) -> bool:
        return True

    def mask(self, columns: Columns, task_class: TaskClass) -> Mask:
        return ~columns.quiet

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        nodes = [columns.nodes[number] for number in np.flatnonzero(refused)]
        ends = sorted((node.quiet_until, node.quiet_words) for node in nodes if node.quiet_until is not None)
        if not ends:
            return f"{len(nodes)} in quiet hours without an end"
        return f"{len(nodes)} in quiet hours until {ends[0][1]}{'' if len(nodes) == 1 else ' or later'}"


@dataclass(frozen=True, slots=True)
class Charge:
    """The node is on mains, or its battery has the charge that it must have to take tasks."""

    name: str = "charge"

    def enabled(self, task_class: TaskClass) -> bool:
        return True

    def mask(self, columns: Columns, task_class: TaskClass) -> Mask:
        return ~columns.charge_short

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        nodes = [columns.nodes[number] for number in np.flatnonzero(refused)]
        fullest = max(nodes, key=lambda node: node.charge_percent or 0)
        facts = f"{fullest.charge_percent}%, needs {fullest.min_charge_percent}%"
        return f"{len(nodes)} on battery with too little charge ({'' if len(nodes) == 1 else 'the fullest '}{facts})"


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
class Regions:
    """The node is in one of the regions that the task names."""

    name: str = "regions"

    def enabled(self, task_class: TaskClass) -> bool:
        return bool(task_class.shape.regions)

    def mask(self, columns: Columns, task_class: TaskClass) -> Mask:
        wanted = task_class.shape.regions
        return per_node_class(columns, lambda node_class: node_class.region in wanted)

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        wanted = sorted(task_class.shape.regions)
        return f"{_count(refused)} not in {_plural(len(wanted), 'region')} {' or '.join(wanted)}"


@dataclass(frozen=True, slots=True)
class Taints:
    """The task tolerates every taint of the node with the effect NoSchedule or NoExecute."""

    name: str = "taints"

    def enabled(self, task_class: TaskClass) -> bool:
        return True

    def mask(self, columns: Columns, task_class: TaskClass) -> Mask:
        shape = task_class.shape
        return per_node_class(columns, lambda node_class: not untolerated(shape, node_class.taints))

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        found = {
            _taint_words(taint)
            for number in np.unique(columns.class_of[refused])
            for taint in untolerated(task_class.shape, columns.node_classes[number].taints)
        }
        named = sorted(found)[:TAINTS_NAMED]
        more = f" and {len(found) - len(named)} more" if len(found) > len(named) else ""
        taints, verb = _plural(len(found), "taint"), "is" if len(found) == 1 else "are"
        return f"{_count(refused)} {_verb(refused, 'has', 'have')} {taints} {', '.join(named)}{more} that {verb} not tolerated"


@dataclass(frozen=True, slots=True)
class Cost:
    """An hour of the node costs no more than the task allows."""

    name: str = "cost"

    def enabled(self, task_class: TaskClass) -> bool:
        return task_class.shape.max_cost_per_hour is not None

    def mask(self, columns: Columns, task_class: TaskClass) -> Mask:
        most = task_class.shape.max_cost_per_hour
        assert most is not None  # noqa: S101 - enabled
        mask: Mask = columns.cost_per_hour <= most
        return mask

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        cheapest = columns.cost_per_hour[refused].min()
        most = task_class.shape.max_cost_per_hour
        return f"{_count(refused)} {_verb(refused, 'costs', 'cost')} more than ${most:.10g} an hour (cheapest ${cheapest:.10g})"


@dataclass(frozen=True, slots=True)
class Latency:
    """The node is known to be as near as the task demands."""

    name: str = "latency"

    def enabled(self, task_class: TaskClass) -> bool:
        return task_class.shape.max_latency_ms is not None

    def mask(self, columns: Columns, task_class: TaskClass) -> Mask:
        most = task_class.shape.max_latency_ms
        assert most is not None  # noqa: S101 - enabled
        mask: Mask = columns.latency_ms <= most  # never true of NaN: a node whose latency is not known does not pass
        return mask

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        found = columns.latency_ms[refused]
        known = found[~np.isnan(found)]
        unknown = len(found) - len(known)
        facts = []
        if len(known):
            facts.append(f"nearest {known.min():.10g} ms")
        if unknown:
            facts.append("unknown" if unknown == len(found) else f"{unknown} unknown")
        return f"{len(found)} not known to be within {task_class.shape.max_latency_ms} ms ({', '.join(facts)})"


@dataclass(frozen=True, slots=True)
class Battery:
    """The node does not run on battery."""

    name: str = "battery"

    def enabled(self, task_class: TaskClass) -> bool:
        return task_class.shape.on_battery == "never"

    def mask(self, columns: Columns, task_class: TaskClass) -> Mask:
        return ~columns.on_battery

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        return f"{_count(refused)} on battery"


@dataclass(frozen=True, slots=True)
class Pressure:
    """The node's agent says neither that memory is short there nor that its disk is nearly full."""

    name: str = "pressure"

    def enabled(self, task_class: TaskClass) -> bool:
        return True

    def mask(self, columns: Columns, task_class: TaskClass) -> Mask:
        return ~(columns.memory_pressure | columns.disk_pressure)

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        memory, disk = _count(refused & columns.memory_pressure), _count(refused & columns.disk_pressure)
        if memory and disk:
            return f"{_count(refused)} under pressure ({memory} memory, {disk} disk)"
        return f"{memory} under memory pressure" if memory else f"{disk} under disk pressure"


@dataclass(frozen=True, slots=True)
class MatchingGpus:
    """Enough GPUs are free, of those that count for the task."""

    name: str = "gpu"

    def enabled(self, task_class: TaskClass) -> bool:
        return bool(task_class.need[GPUS] > 0)

    def mask(self, room: Room, task_class: TaskClass) -> Mask:
        wish = task_class.shape.gpu
        row = row_of(room.gpu_rows, wish)
        left = room.free[GPUS] if row is None else room.gpu_left[row]
        mask: Mask = left >= task_class.need[GPUS]
        return mask

    def explain(self, refused: Mask, columns: Columns, task_class: TaskClass) -> str:
        wish, need = task_class.shape.gpu, int(task_class.need[GPUS])
        row = row_of(columns.gpus.rows, wish)
        free = max(0, int((columns.room.free[GPUS] if row is None else columns.gpus.left[row])[refused].max()))
        offered = int((columns.allocatable[GPUS] if row is None else columns.gpus.offered[row])[refused].max())
        facts = f"needs {need}{_wish_words(wish)}, most free {free}"
        if offered < need:
            facts += f"; never fits: {_verb(refused, 'it', 'largest of them')} offers {offered}"
        return f"{_count(refused)} too few GPUs ({facts})"


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
        elif self.dimension == MEMORY:
            facts += _foreign_words(refused, columns, need)
        return f"{_count(refused)} {self.too_little} ({facts})"


FITS_MEMORY = Fits("memory", MEMORY, "too little memory", "largest", humanize_memory, format_memory)
FITS_CPU = Fits("cpu", CPU, "too little CPU", "most", format_cpu, format_cpu)

STATIC_FILTERS: tuple[StaticFilter, ...] = (
    Ready(), Cordoned(), Drained(), QuietHours(), Charge(), Engine(), NodeName(), NodeSelector(), Regions(), Taints(),
    Capabilities(), Cost(), Latency(), Battery(), Pressure(),
)  # fmt: skip
MATCHING_GPUS, MAX_TASKS = MatchingGpus(), MaxTasks()
ROOM_FILTERS: tuple[RoomFilter, ...] = (MATCHING_GPUS, MAX_TASKS, QueueShare(), FITS_MEMORY, FITS_CPU)
AMOUNT_FILTERS: frozenset[RoomFilter] = frozenset({MATCHING_GPUS, MAX_TASKS, FITS_MEMORY, FITS_CPU})
"""Those that only compare amounts; `Columns.holds` answers for all of them about one node."""


def per_node_class(columns: Columns, accepts: Callable[[NodeClass], bool]) -> Mask:
    """bool[N] from a rule about classes of nodes, asked once per class."""
    verdicts = np.fromiter((accepts(node_class) for node_class in columns.node_classes), np.bool_, len(columns.node_classes))
    return verdicts[columns.class_of]


def tolerates(shape: TaskShape, taint: Taint) -> bool:
    """Does the task say that this taint does not keep it away? As Kubernetes' tolerations do."""
    return any(
        toleration.key in {"", taint.key} and toleration.value in {None, taint.value} and toleration.effect in {None, taint.effect}
        for toleration in shape.tolerations
    )


def untolerated(shape: TaskShape, taints: tuple[Taint, ...]) -> list[Taint]:
    """Those of `taints` that keep the task away."""
    return [taint for taint in taints if taint.effect != "PreferNoSchedule" and not tolerates(shape, taint)]


def label_keys(shapes: list[TaskShape]) -> set[str]:
    """Labels that decide where these shapes fit: the only ones that tell classes of nodes apart."""
    return {key for shape in shapes for key, _ in shape.node_selector}


def _taint_words(taint: Taint) -> str:
    return f"{taint.key}={taint.value}:{taint.effect}" if taint.value else f"{taint.key}:{taint.effect}"


def _foreign_words(refused: Mask, columns: Columns, need: int) -> str:
    """Where it would fit if only tasks used memory."""
    would = refused & (columns.room.free[MEMORY] + columns.foreign >= need)
    if not would.any():
        return ""
    least = int(columns.foreign[would].min())
    return f"; {_count(would)} would fit but for at least {humanize_memory(least)} that others than tasks use"


def _wish_words(wish: GpuWish) -> str:
    words = "".join(f" {word}" for word in (wish.vendor, wish.model) if word)
    return f"{words} with {humanize_memory(wish.memory_bytes)} each" if wish.memory_bytes else words


def _count(refused: Mask) -> int:
    return int(np.count_nonzero(refused))


def _verb(refused: Mask, singular: str, plural: str) -> str:
    return singular if _count(refused) == 1 else plural


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
