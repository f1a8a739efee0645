"""The values that a scheduling cycle takes and returns.

Called by `controllers.scheduling`, which fills a Snapshot from its cache and acts on a CycleResult. Quantities are integers:
thousandths of a core, bytes, whole GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from swarmtask.resources.fields import OptionalStrategy, Strategy

TaskKey = tuple[str, str]
"""(namespace, name)."""
QueueKey = tuple[str, str]
"""(namespace, name)."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """Resources of a node or wishes of a task."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    gpus: int = 0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(self.cpu_milli + other.cpu_milli, self.memory_bytes + other.memory_bytes, self.gpus + other.gpus)

    def __sub__(self, other: Amounts) -> Amounts:
        return Amounts(self.cpu_milli - other.cpu_milli, self.memory_bytes - other.memory_bytes, self.gpus - other.gpus)

    def fits_in(self, other: Amounts) -> bool:
        return self.cpu_milli <= other.cpu_milli and self.memory_bytes <= other.memory_bytes and self.gpus <= other.gpus


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node as one cycle sees it.

    Attributes:
        ready: an engine says it takes work.
        unschedulable: cordoned, or paused or drained by its engine.
        engines: names of engines that reach it, preferred first.
        requested, tasks: what bound and assumed attempts hold, and how many they are.
        max_tasks: None means not limited.
        turn: when the node was last given a task, compared to other nodes: later is larger, 0 is never.
        queue_tasks: how many of `tasks` belong to each queue; queues without any may be left out.
    """

    name: str
    ready: bool
    unschedulable: bool
    engines: tuple[str, ...]
    allocatable: Amounts
    requested: Amounts = Amounts()
    tasks: int = 0
    max_tasks: int | None = None
    queue_tasks: Mapping[QueueKey, int] = field(default_factory=dict)
    turn: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    capabilities: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class TaskShape:
    """Everything about a task that decides where it fits and what it takes. Tasks of one shape are interchangeable for placement:
    a cycle evaluates filters and scores once per shape, not once per task.

    Attributes:
        engine: empty means any.
        node_name: empty means any.
        node_selector: sorted pairs.
        limits: sorted pairs of a limit's name and the slots of it that the task takes.
        strategy: empty means the queue's.
        avoid: nodes where it starts only when it fits nowhere else, because an attempt failed there for a reason that lies with
            the node.
    """

    request: Amounts
    engine: str = ""
    node_name: str = ""
    node_selector: tuple[tuple[str, str], ...] = ()
    capabilities: frozenset[str] = frozenset()
    limits: tuple[tuple[str, int], ...] = ()
    strategy: OptionalStrategy = ""
    avoid: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PendingTask:
    """A task that waits.

    Attributes:
        queue: (namespace, queue name).
        queued_at: seconds since the epoch; older first among equal priorities, then `uid`.
    """

    key: TaskKey
    uid: str
    queue: QueueKey
    priority: int
    queued_at: float
    shape: TaskShape


@dataclass(frozen=True, slots=True)
class LimitInfo:
    """One cluster-wide limit of a queue.

    Attributes:
        most: slots that tasks of the queue may hold together.
        holders: name of each bound or assumed task of the queue that holds some -> how many.
    """

    most: int
    holders: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """A queue as one cycle sees it. `running` counts bound and assumed tasks. A bound that is None does not exist.

    Attributes:
        limits: by name; a name that is not here is not limited.
        cohort: empty means none. Queues of one cohort share by weight; `weight` is at least 1.
        requested: what its bound and assumed tasks hold.
    """

    key: QueueKey
    stopped: bool = False
    max_running: int | None = None
    max_running_per_node: int | None = None
    running: int = 0
    limits: Mapping[str, LimitInfo] = field(default_factory=dict)
    strategy: Strategy = "balanced"
    cohort: str = ""
    weight: int = 1
    requested: Amounts = Amounts()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything one cycle sees, frozen. `now` is in seconds since the epoch."""

    now: float
    nodes: Sequence[NodeInfo]
    pending: Sequence[PendingTask]
    queues: Mapping[QueueKey, QueueInfo]


@dataclass(frozen=True, slots=True)
class Binding:
    """A task and the node chosen for it. `score` is between 0 and 1."""

    task: PendingTask
    node: str
    engine: str
    score: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """A task that stays in its queue, and why.

    Attributes:
        position: 1-based place in its queue, in the order in which tasks would start.
        reason: CamelCase for the condition: NoNodeFits, QueueStopped, QueueFull, LimitReached.
        message: counts per filter for a person: "0/5 nodes fit: 2 too little memory (needs 16Gi, largest free 7.4Gi), 2 lack
            capability gpu, 1 cordoned".
        counts: filter name -> nodes that it refused (each node is counted at the first filter that refuses it).
    """

    task: PendingTask
    position: int
    reason: str
    message: str
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CycleResult:
    """What one cycle decided. Every pending task is in exactly one of the two."""

    bindings: Sequence[Binding]
    refusals: Sequence[Refusal]
