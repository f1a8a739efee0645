"""The rules of placement, written down once more without columns, classes, lines or heaps: slow, and easy to check by reading.

The scheduler's tests hold it against `run_cycle`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from swarmtask.resources.fields import Strategy
from swarmtask.scheduler.model import Amounts, NodeInfo, PendingTask, QueueInfo, QueueKey, Snapshot, TaskShape


@dataclass
class Load:
    """What a node holds so far."""

    requested: Amounts
    tasks: int
    queue_tasks: dict[QueueKey, int] = field(default_factory=dict)
    turn: int = 0


def refusing_filter(node: NodeInfo, load: Load, wants: TaskShape, queue: QueueInfo) -> str | None:
    """The first filter that refuses, in the documented order; None when the task fits."""
    offered, held, asked = node.allocatable, load.requested, wants.request
    rules = [
        ("ready", node.ready),
        ("cordoned", not node.unschedulable),
        ("engine", wants.engine in node.engines if wants.engine else bool(node.engines)),
        ("nodeName", wants.node_name in {"", node.name}),
        ("nodeSelector", all(node.labels.get(key) == value for key, value in wants.node_selector)),
        ("capabilities", wants.capabilities <= node.capabilities),
        ("gpu", asked.gpus == 0 or held.gpus + asked.gpus <= offered.gpus),
        ("maxTasks", node.max_tasks is None or load.tasks + 1 <= node.max_tasks),
        (
            "maxRunningPerNode",
            queue.max_running_per_node is None or load.queue_tasks.get(queue.key, 0) + 1 <= queue.max_running_per_node,
        ),
        ("memory", asked.memory_bytes == 0 or held.memory_bytes + asked.memory_bytes <= offered.memory_bytes),
        ("cpu", asked.cpu_milli == 0 or held.cpu_milli + asked.cpu_milli <= offered.cpu_milli),
    ]
    return next((name for name, passes in rules if not passes), None)


def score(node: NodeInfo, load: Load, wants: TaskShape, strategy: Strategy) -> float:
    """The total of a strategy; next to nothing on a node to avoid."""
    total = _total(node, load, wants, strategy)
    return total * 1e-9 if node.name in wants.avoid else total


def _total(node: NodeInfo, load: Load, wants: TaskShape, strategy: Strategy) -> float:
    pairs = [(node.allocatable.cpu_milli, load.requested.cpu_milli + wants.request.cpu_milli)]
    pairs.append((node.allocatable.memory_bytes, load.requested.memory_bytes + wants.request.memory_bytes))
    if wants.request.gpus:
        pairs.append((node.allocatable.gpus, load.requested.gpus + wants.request.gpus))
    balance = min(max(0.0, 1 - after / offered) if offered else 0.0 for offered, after in pairs)
    few, many = 1 / (1 + load.tasks), (1 + load.tasks) / (2 + load.tasks)
    match strategy:
        case "balanced":
            return (balance + 0.001 * few) / 1.001
        case "pack":
            return (1 - balance + 0.001 * many) / 1.001
        case "spread":
            return (few + 0.000001 * balance) / 1.000001
        case "least-busy":
            offered, after = pairs[0]
            return ((max(0.0, 1 - after / offered) if offered else 0.0) + 0.001 * few) / 1.001
        case "round-robin":
            return 1 / (1 + load.turn)


@dataclass
class Oracle:
    """Decides one task at a time, in order, looking at every node."""

    nodes: list[NodeInfo]
    loads: dict[str, Load]
    queues: dict[QueueKey, QueueInfo]
    running: dict[QueueKey, int]
    slots: dict[tuple[QueueKey, str], int]
    held: dict[QueueKey, Amounts]

    @classmethod
    def of(cls, snapshot: Snapshot) -> Oracle:
        turns = sorted({0, *(node.turn for node in snapshot.nodes)})
        return cls(
            nodes=sorted(snapshot.nodes, key=lambda node: node.name),
            loads={
                node.name: Load(node.requested, node.tasks, dict(node.queue_tasks), turns.index(node.turn))
                for node in snapshot.nodes
            },
            queues=dict(snapshot.queues),
            slots={
                (key, name): sum(limit.holders.values())
                for key, queue in snapshot.queues.items()
                for name, limit in queue.limits.items()
            },
            held={key: queue.requested for key, queue in snapshot.queues.items()},
            running={key: queue.running for key, queue in snapshot.queues.items()},
        )

    @staticmethod
    def order(snapshot: Snapshot) -> list[PendingTask]:
        return sorted(snapshot.pending, key=lambda task: (-task.priority, task.queued_at, task.uid))

    def share(self, key: QueueKey) -> float:
        """The dominant share of a queue, for its weight."""
        shares = [0.0]
        for name in ("cpu_milli", "memory_bytes", "gpus"):
            whole = sum(getattr(node.allocatable, name) for node in self.nodes)
            if whole:
                shares.append(getattr(self.held[key], name) / whole)
        return max(shares) / self.queues[key].weight

    def next(self, waiting: list[PendingTask]) -> PendingTask:
        """Who comes next of those that are left, given in their order."""
        first = waiting[0]

        def cohort(task: PendingTask) -> str:
            return self.queues[task.queue].cohort if task.queue in self.queues else ""

        if not cohort(first):
            return first
        rivals = [task for task in waiting if task.priority == first.priority and cohort(task) == cohort(first)]
        return min(rivals, key=lambda task: self.share(task.queue))

    def closed(self, task: PendingTask) -> str | None:
        queue = self.queues.get(task.queue)
        if queue is None:
            return None
        if queue.stopped:
            return "QueueStopped"
        if queue.max_running is not None and self.running[task.queue] >= queue.max_running:
            return "QueueFull"
        for name, slots in task.shape.limits:
            if name in queue.limits and self.slots[task.queue, name] + slots > queue.limits[name].most:
                return "LimitReached"
        return None

    def refused_by(self, node: NodeInfo, task: PendingTask) -> str | None:
        queue = self.queues.get(task.queue) or QueueInfo(task.queue)
        return refusing_filter(node, self.loads[node.name], task.shape, queue)

    def refusals(self, task: PendingTask) -> dict[str, int]:
        """Counts per first refusing filter."""
        counts: dict[str, int] = {}
        for node in self.nodes:
            name = self.refused_by(node, task)
            if name is not None:
                counts[name] = counts.get(name, 0) + 1
        return counts

    def scores(self, task: PendingTask) -> dict[str, float]:
        """Scores of the nodes where the task fits."""
        queue = self.queues.get(task.queue) or QueueInfo(task.queue)
        strategy = task.shape.strategy or queue.strategy
        return {
            node.name: score(node, self.loads[node.name], task.shape, strategy)
            for node in self.nodes
            if self.refused_by(node, task) is None
        }

    def place(self, task: PendingTask, node: str) -> None:
        load = self.loads[node]
        load.requested += task.shape.request
        load.tasks += 1
        load.turn = 1 + max(load.turn for load in self.loads.values())
        load.queue_tasks[task.queue] = load.queue_tasks.get(task.queue, 0) + 1
        if task.queue in self.running:
            self.running[task.queue] += 1
            self.held[task.queue] += task.shape.request
        for name, slots in task.shape.limits:
            if (task.queue, name) in self.slots:
                self.slots[task.queue, name] += slots
