"""The values that a scheduling cycle takes and returns.

Called by `controllers.scheduling`, which fills a Snapshot from its cache and acts on a CycleResult. Quantities are integers:
thousandths of a core, bytes, whole GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from swarmtask.resources.fields import Strategy
from swarmtask.resources.placement import OnBattery

if TYPE_CHECKING:
    from swarmtask.scheduler.backlog import Cut

TaskKey = tuple[str, str]
"""(namespace, name)."""
QueueKey = tuple[str, str]
"""(namespace, name)."""
Choice = Strategy | Literal["smallest"]
"""Which of the feasible nodes is chosen: a strategy, or, for a task that has climbed the memory ladder, the smallest."""
Weights = tuple[int, int, int, int]
"""Of capability, load, latency and cost; not all 0."""


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


Effect = Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


@dataclass(frozen=True, slots=True)
class Taint:
    """A node keeps tasks away that do not tolerate it."""

    key: str
    value: str
    effect: Effect


@dataclass(frozen=True, slots=True)
class Toleration:
    """Attributes:
    key: empty means every taint.
    value: None means any.
    effect: None means every effect.
    """

    key: str
    value: str | None
    effect: Effect | None


@dataclass(frozen=True, slots=True)
class GpuInfo:
    """One GPU of a node. `vendor` and `model` may be empty, `memory_bytes` 0: not known."""

    index: int
    vendor: str = ""
    model: str = ""
    memory_bytes: int = 0
    held: bool = False


@dataclass(frozen=True, slots=True)
class GpuWish:
    """Which GPUs count for a task: empty means any; `model` is a part of the name, in any case."""

    vendor: str = ""
    model: str = ""
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node as one cycle sees it.

    Attributes:
        region: empty where nobody said.
        cost_per_hour: US dollars.
        latency_ms: to the API; None while not known.
        gpus: single GPUs where the node reports them; `allocatable.gpus` says how many it offers at all.
        ready: an engine says it takes work.
        unschedulable: cordoned, or paused or drained by its engine.
        drained: a person wants it empty.
        quiet: its quiet hours have begun. quiet_until: when they end, in seconds since the epoch; None: not within a week.
            quiet_words: the same as the wall clock there shows it.
        charge_percent: of its battery, where it runs on battery and tells that. min_charge_percent: with less it takes nothing.
        engines: names of engines that reach it, preferred first.
        requested, tasks: what bound and assumed attempts hold, and how many they are.
        max_tasks: None means not limited.
        turn: when the node was last given a task, compared to other nodes: later is larger, 0 is never.
        queue_tasks: how many of `tasks` belong to each queue; queues without any may be left out.
        foreign_bytes: memory of what it offers that others than tasks use, as measured; 0 where nobody measures.
        memory_pressure, disk_pressure: its agent says so: it takes nothing new.
        gone: no engine lists it any more.
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
    taints: tuple[Taint, ...] = ()
    region: str = ""
    cost_per_hour: float = 0.0
    latency_ms: float | None = None
    on_battery: bool = False
    drained: bool = False
    quiet: bool = False
    quiet_until: float | None = None
    quiet_words: str = ""
    charge_percent: int | None = None
    min_charge_percent: int = 0
    gpus: tuple[GpuInfo, ...] = ()
    foreign_bytes: int = 0
    memory_pressure: bool = False
    disk_pressure: bool = False
    gone: bool = False

    @property
    def free(self) -> Amounts:
        """What it can still give away; negative where more is held than is offered."""
        offered, held = self.allocatable, self.requested
        return Amounts(
            offered.cpu_milli - held.cpu_milli,
            offered.memory_bytes - held.memory_bytes - self.foreign_bytes,
            offered.gpus - held.gpus,
        )


@dataclass(frozen=True, slots=True)
class TaskShape:
    """Everything about a task that decides where it fits and what it takes. Tasks of one shape are interchangeable for placement:
    a cycle evaluates filters and scores once per shape, not once per task.

    Attributes:
        engine: empty means any.
        node_name: empty means any.
        node_selector: sorted pairs.
        limits: sorted pairs of a limit's name and the slots of it that the task takes.
        strategy: which node is chosen; empty means the queue's.
        avoid: nodes where it starts only when it fits nowhere else, because an attempt failed there for a reason that lies with
            the node.
        regions: where it may run; empty means anywhere. preferred_regions: where it runs if it fits there.
        max_latency_ms, max_cost_per_hour: None means any.
    """

    request: Amounts
    engine: str = ""
    node_name: str = ""
    node_selector: tuple[tuple[str, str], ...] = ()
    capabilities: frozenset[str] = frozenset()
    limits: tuple[tuple[str, int], ...] = ()
    strategy: Choice | Literal[""] = ""
    avoid: frozenset[str] = frozenset()
    gpu: GpuWish = GpuWish()
    tolerations: tuple[Toleration, ...] = ()
    regions: frozenset[str] = frozenset()
    preferred_regions: frozenset[str] = frozenset()
    max_latency_ms: int | None = None
    max_cost_per_hour: float | None = None
    on_battery: OnBattery = "avoid"


@dataclass(frozen=True, slots=True)
class PendingTask:
    """A task that waits.

    Attributes:
        queue: (namespace, queue name).
        queued_at: seconds since the epoch; older first among equal priorities, then `uid`.
        front_at: when a person moved it to the front of its queue, in seconds since the epoch; None: nobody did.
        duration_s: how long such tasks run, as far as that has been learned; None while it is not known. Learning more does not
            make it another task.
    """

    key: TaskKey
    uid: str
    queue: QueueKey
    priority: int
    queued_at: float
    shape: TaskShape
    front_at: float | None = None
    duration_s: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class RunningTask:
    """A task whose attempt is live or assumed: what ends sooner or later, or may be preempted.

    Attributes:
        attempt: number of the live attempt; 0 while it is only assumed.
        amounts: what it holds on its node; `gpus` are the indices of its GPUs.
        limits: slots that it holds of limits, sorted pairs.
        bound_at: when it was placed, in seconds since the epoch.
        ends_at: when it is expected to end; None while that is not known.
        stopping: it is being stopped already: its room will come back by itself.
        makes_room_for: the task that it was preempted for, as far as this process remembers; only while it is being stopped.
        queued_at: since when it would count as waiting if it were queued again now; None: from now on.
        fronted: a person moved it to the front of its queue: no task of that queue preempts it.
    """

    key: TaskKey
    uid: str
    queue: QueueKey
    priority: int
    node: str
    attempt: int
    amounts: Amounts
    bound_at: float
    gpus: tuple[int, ...] = ()
    limits: tuple[tuple[str, int], ...] = ()
    ends_at: float | None = None
    stopping: bool = False
    makes_room_for: TaskKey | None = None
    queued_at: float | None = None
    fronted: bool = False


@dataclass(frozen=True, slots=True)
class LimitInfo:
    """One limit of the cluster, over all nodes, queues and namespaces.

    Attributes:
        most: slots that tasks may hold together; the smallest number that a queue says.
        queue: the queue that says it; of several the first by name.
        holders: each bound or assumed task that holds some -> how many.
    """

    most: int
    queue: QueueKey
    holders: Mapping[TaskKey, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """A queue as one cycle sees it. `running` counts bound and assumed tasks. A bound that is None does not exist.

    Attributes:
        unknown: why nobody knows its bounds, as the words after its name; then nothing of it starts. Empty: they are known.
        outdated: why its bounds are those of an earlier version; empty: they are its own.
        cohort: empty means none. Queues of one cohort share by weight; `weight` is at least 1.
        requested: what its bound and assumed tasks hold.
        preempts: its tasks may stop tasks of lower priority, of any queue.
        aging_s: a waiting task gains one point of priority per so many seconds; None means never.
        weights: of the strategy balanced: capability, load, latency, cost.
    """

    key: QueueKey
    stopped: bool = False
    max_running: int | None = None
    max_running_per_node: int | None = None
    running: int = 0
    strategy: Strategy = "balanced"
    cohort: str = ""
    weight: int = 1
    requested: Amounts = Amounts()
    preempts: bool = False
    aging_s: float | None = None
    weights: Weights = (40, 30, 20, 10)
    unknown: str = ""
    outdated: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything one cycle sees, frozen. `now` is in seconds since the epoch. `running` may be empty where nothing needs it. `cut`
    is given where `pending` is only the part of all that waits that the cycle has to look at. `limits` are by name; a name that is
    not there is not limited."""

    now: float
    nodes: Sequence[NodeInfo]
    pending: Sequence[PendingTask]
    queues: Mapping[QueueKey, QueueInfo]
    running: Sequence[RunningTask] = ()
    limits: Mapping[str, LimitInfo] = field(default_factory=dict)
    cut: Cut | None = None


@dataclass(frozen=True, slots=True)
class Binding:
    """A task and the node chosen for it. `score` is between 0 and 1; `gpus` are the indices of the GPUs that it gets."""

    task: PendingTask
    node: str
    engine: str
    score: float
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A task that stays in its queue, and why.

    Attributes:
        position: 1-based place in its queue, in the order in which tasks would start.
        reason: CamelCase for the condition: NoNodeFits, QueueUnknown, QueueStopped, QueueFull, LimitReached, Reserved,
            Preempting.
        message: counts per filter for a person: "0/5 nodes fit: 2 too little memory (needs 16Gi, largest free 7.4Gi), 2 lack
            capability gpu, 1 cordoned".
        behind: reason, message and counts for the tasks of its line behind it, where this one is told something of its own.
        counts: filter name -> nodes that it refused (each node is counted at the first filter that refuses it).
    """

    task: PendingTask
    position: int
    reason: str
    message: str
    counts: Mapping[str, int] = field(default_factory=dict)
    behind: tuple[str, str, Mapping[str, int]] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Preemption:
    """A running task that is to be stopped and queued again, so that another one of higher priority can start on its node."""

    victim: RunningTask
    by: PendingTask


@dataclass(frozen=True, slots=True)
class CycleResult:
    """What one cycle decided. Every pending task is in exactly one of the first two; who preempts is among the refusals, and starts
    in a later cycle, when its victims have ended.

    Attributes:
        complete: False where only the first bindings are told (`backlog.Cut.settle`), and another cycle has to go on at once.
    """

    bindings: Sequence[Binding]
    refusals: Sequence[Refusal]
    preemptions: Sequence[Preemption] = ()
    complete: bool = True
