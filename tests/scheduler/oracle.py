"""The rules of placement, written down once more without columns, classes, lines or heaps: slow, and easy to check by reading.

The scheduler's tests hold it against `run_cycle`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from swarmtask.resources.fields import Strategy
from swarmtask.scheduler.model import (
    Amounts,
    GpuInfo,
    GpuWish,
    NodeInfo,
    PendingTask,
    QueueInfo,
    QueueKey,
    RunningTask,
    Snapshot,
    Taint,
    TaskShape,
    Weights,
)

STEP = 1e-12
"""What is left of a total on a node that breaks the mildest preference."""


@dataclass
class Load:
    """What a node holds so far. `gpus`: indices that are known to be held."""

    requested: Amounts
    tasks: int
    queue_tasks: dict[QueueKey, int] = field(default_factory=dict)
    turn: int = 0
    gpus: set[int] = field(default_factory=set)


def tolerates(wants: TaskShape, taint: Taint) -> bool:
    for toleration in wants.tolerations:
        same_key = not toleration.key or toleration.key == taint.key
        same_value = toleration.value is None or toleration.value == taint.value
        same_effect = toleration.effect is None or toleration.effect == taint.effect
        if same_key and same_value and same_effect:
            return True
    return False


def single_gpus(node: NodeInfo) -> list[GpuInfo]:
    """What the node offers: what it lists, and otherwise as many as its engine says, of which nothing is known."""
    if node.gpus:
        return sorted(node.gpus, key=lambda gpu: gpu.index)[: node.allocatable.gpus]
    return [GpuInfo(index) for index in range(node.allocatable.gpus)]


def held_gpus(node: NodeInfo, load: Load) -> int:
    return max(load.requested.gpus, len(load.gpus & {gpu.index for gpu in single_gpus(node)}))


def suits(gpu: GpuInfo, wish: GpuWish) -> bool:
    if gpu.vendor in {"amd", "intel"} and not gpu.memory_bytes and wish.vendor != gpu.vendor:
        return False  # a part of the processor
    return wish.vendor in {"", gpu.vendor} and wish.model.lower() in gpu.model.lower() and wish.memory_bytes <= gpu.memory_bytes


def free_gpus(node: NodeInfo, load: Load, wish: GpuWish) -> list[GpuInfo]:
    """Those that a task with this wish can get, in the order in which they are given away."""
    offered = single_gpus(node)
    unknown = held_gpus(node, load) - sum(gpu.index in load.gpus for gpu in offered)
    matching = [gpu for gpu in offered if gpu.index not in load.gpus and suits(gpu, wish)]
    return sorted(matching[unknown:], key=lambda gpu: (gpu.memory_bytes, gpu.vendor, gpu.model, gpu.index))


def refusing_filter(node: NodeInfo, load: Load, wants: TaskShape, queue: QueueInfo) -> str | None:
    """The first filter that refuses, in the documented order; None when the task fits."""
    offered, held, asked = node.allocatable, load.requested, wants.request
    rules = [
        ("ready", node.ready),
        ("cordoned", not node.unschedulable),
        ("drained", not node.drained),
        ("quietHours", not node.quiet),
        ("charge", node.charge_percent is None or node.charge_percent >= node.min_charge_percent),
        ("engine", wants.engine in node.engines if wants.engine else bool(node.engines)),
        ("nodeName", wants.node_name in {"", node.name}),
        ("nodeSelector", all(node.labels.get(key) == value for key, value in wants.node_selector)),
        ("regions", not wants.regions or node.region in wants.regions),
        ("taints", all(taint.effect == "PreferNoSchedule" or tolerates(wants, taint) for taint in node.taints)),
        ("capabilities", wants.capabilities <= node.capabilities),
        ("cost", wants.max_cost_per_hour is None or node.cost_per_hour <= wants.max_cost_per_hour),
        (
            "latency",
            wants.max_latency_ms is None or (node.latency_ms is not None and node.latency_ms <= wants.max_latency_ms),
        ),
        ("battery", wants.on_battery != "never" or not node.on_battery),
        ("pressure", not (node.memory_pressure or node.disk_pressure)),
        ("gpu", asked.gpus == 0 or len(free_gpus(node, load, wants.gpu)) >= asked.gpus),
        ("maxTasks", node.max_tasks is None or load.tasks + 1 <= node.max_tasks),
        (
            "maxRunningPerNode",
            queue.max_running_per_node is None or load.queue_tasks.get(queue.key, 0) + 1 <= queue.max_running_per_node,
        ),
        ("memory", asked.memory_bytes == 0 or held.memory_bytes + asked.memory_bytes + node.foreign_bytes <= offered.memory_bytes),
        ("cpu", asked.cpu_milli == 0 or held.cpu_milli + asked.cpu_milli <= offered.cpu_milli),
    ]
    return next((name for name, passes in rules if not passes), None)


def steps_down(node: NodeInfo, wants: TaskShape) -> int:
    """How far the preferences that a node breaks take it down; 0 where it breaks none."""
    return (
        8 * (node.name in wants.avoid)
        + 4 * any(taint.effect == "PreferNoSchedule" and not tolerates(wants, taint) for taint in node.taints)
        + 2 * (node.on_battery and wants.on_battery == "avoid")
        + (bool(wants.preferred_regions) and node.region not in wants.preferred_regions)
    )


def total(node: NodeInfo, load: Load, wants: TaskShape, strategy: Strategy, weights: Weights) -> float:
    """The total of a strategy, before preferences."""
    offered_gpus = len(single_gpus(node))
    pairs = [(node.allocatable.cpu_milli, load.requested.cpu_milli + wants.request.cpu_milli)]
    pairs.append((node.allocatable.memory_bytes, load.requested.memory_bytes + wants.request.memory_bytes + node.foreign_bytes))
    if wants.request.gpus:
        pairs.append((offered_gpus, held_gpus(node, load) + wants.request.gpus))
    balance = min(max(0.0, 1 - after / offered) if offered else 0.0 for offered, after in pairs)
    few, many = 1 / (1 + load.tasks), (1 + load.tasks) / (2 + load.tasks)
    match strategy:
        case "balanced":
            capability = (1 + len(wants.capabilities) + wants.request.gpus) / (1 + len(node.capabilities) + offered_gpus)
            latency = 0.5 if node.latency_ms is None else 1 - min(node.latency_ms, 500) / 500
            cost = 1 - min(node.cost_per_hour, 10) / 10
            mean = sum(weight * value for weight, value in zip(weights, (capability, balance, latency, cost), strict=True))
            return (mean / sum(weights) + 0.001 * few) / 1.001
        case "pack":
            return (1 - balance + 0.001 * many) / 1.001
        case "spread":
            return (few + 0.000001 * balance) / 1.000001
        case "least-busy":
            offered, after = pairs[0]
            return ((max(0.0, 1 - after / offered) if offered else 0.0) + 0.001 * few) / 1.001
        case "round-robin":
            return 1 / (1 + load.turn)


def smallness(node: NodeInfo, load: Load, sizes: list[int]) -> float:
    """For a task that has climbed the memory ladder: the node that offers least first, then the one with fewest tasks."""
    return (1 - sizes.index(node.allocatable.memory_bytes) / len(sizes) + 0.000001 / (1 + load.tasks)) / 1.000001


@dataclass
class Kept:
    """A node that is kept for a task: what will be left at the moment when the task fits, and who needs it."""

    node: str
    task: PendingTask
    moment: float | None
    spare: Load
    """What the node will hold then, the task included; GPUs apart."""
    spare_gpus: int = 0
    """How many will be left of the GPUs that count for the task."""


def level(task: PendingTask, snapshot: Snapshot) -> int:
    """Priority, and a point for every so many seconds of waiting."""
    queue = snapshot.queues.get(task.queue)
    if queue is None or queue.aging_s is None:
        return task.priority
    return task.priority + math.floor(max(0.0, snapshot.now - task.queued_at) / queue.aging_s)


def rounded(duration_s: float | None) -> float | None:
    """Up to the next of the eight steps between two powers of two."""
    if not duration_s:
        return duration_s
    step = 2.0 ** (math.floor(math.log2(duration_s)) - 3)
    return math.ceil(duration_s / step) * step


@dataclass
class Oracle:
    """Decides one task at a time, in order, looking at every node."""

    snapshot: Snapshot
    levels: dict[str, int]
    nodes: list[NodeInfo]
    loads: dict[str, Load]
    queues: dict[QueueKey, QueueInfo]
    running: dict[QueueKey, int]
    slots: dict[str, int]
    held: dict[QueueKey, Amounts]
    kept: list[Kept] = field(default_factory=list)
    kept_places: dict[QueueKey, int] = field(default_factory=dict)
    kept_slots: dict[str, int] = field(default_factory=dict)
    served: set[str | QueueKey] = field(default_factory=set)

    @classmethod
    def of(cls, snapshot: Snapshot) -> Oracle:
        turns = sorted({0, *(node.turn for node in snapshot.nodes)})
        return cls(
            snapshot=snapshot,
            levels=Oracle._levels(snapshot),
            nodes=sorted(snapshot.nodes, key=lambda node: node.name),
            loads={
                node.name: Load(
                    node.requested,
                    node.tasks,
                    dict(node.queue_tasks),
                    turns.index(node.turn),
                    {gpu.index for gpu in node.gpus if gpu.held},
                )
                for node in snapshot.nodes
            },
            queues=dict(snapshot.queues),
            slots={name: sum(limit.holders.values()) for name, limit in snapshot.limits.items()},
            held={key: queue.requested for key, queue in snapshot.queues.items()},
            running={key: queue.running for key, queue in snapshot.queues.items()},
        )

    @staticmethod
    def order(snapshot: Snapshot) -> list[PendingTask]:
        """By level, age and UID; those that were moved to the front, the latest first, just before the best of their queue."""
        order = sorted(snapshot.pending, key=lambda task: (-level(task, snapshot), task.queued_at, task.uid))
        moved = [task for task in order if task.front_at is not None]
        for queue in {task.queue for task in moved}:
            ours = sorted((task for task in moved if task.queue == queue), key=lambda task: (-(task.front_at or 0.0), task.uid))
            place = next(number for number, task in enumerate(order) if task.queue == queue)
            before = [task for task in order[:place] if task not in ours]
            order = [*before, *ours, *[task for task in order[place:] if task not in ours]]
        return order

    @staticmethod
    def _levels(snapshot: Snapshot) -> dict[str, int]:
        """The level of each task by UID; who was moved to the front has that of the best of the queue."""
        best = {queue: max(level(task, snapshot) for task in snapshot.pending if task.queue == queue)
                for queue in {task.queue for task in snapshot.pending}}  # fmt: skip
        return {task.uid: level(task, snapshot) if task.front_at is None else best[task.queue] for task in snapshot.pending}

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
        rivals = [task for task in waiting if self.levels[task.uid] == self.levels[first.uid] and cohort(task) == cohort(first)]
        return min(rivals, key=lambda task: self.share(task.queue))

    def closed(self, task: PendingTask) -> str | None:
        queue = self.queues.get(task.queue)
        if queue is None or queue.unknown:
            return "QueueUnknown"
        if queue.stopped:
            return "QueueStopped"
        if queue.max_running is not None and self.running[task.queue] >= queue.max_running:
            return "QueueFull"
        if queue.max_running is not None and self.running[task.queue] + self.kept_places.get(task.queue, 0) >= queue.max_running:
            return "Reserved"
        spent = self._spent(task)
        return "NoNodeFits" if spent is not None and self.hopeless(task) else spent

    def _spent(self, task: PendingTask) -> str | None:
        """Whether a limit has too few slots left for it, and why."""
        limits = self.snapshot.limits
        for name, slots in task.shape.limits:
            if name in limits and self.slots[name] + slots > limits[name].most:
                return "LimitReached"
            if name in limits and self.slots[name] + self.kept_slots.get(name, 0) + slots > limits[name].most:
                return "Reserved"
        return None

    def hopeless(self, task: PendingTask) -> bool:
        """No node would take it even if nothing ran there."""
        queue = self.queues.get(task.queue) or QueueInfo(task.queue)
        return all(refusing_filter(node, Load(Amounts(), 0), task.shape, queue) is not None for node in self.nodes)

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

    def scores(self, task: PendingTask) -> dict[str, tuple[int, float]]:
        """Of the nodes where the task fits: the steps that preferences take it down, and its total before that. Fewer steps win,
        then the larger total."""
        queue = self.queues.get(task.queue) or QueueInfo(task.queue)
        strategy = task.shape.strategy or queue.strategy
        sizes = sorted({node.allocatable.memory_bytes for node in self.nodes})
        return {
            node.name: (
                steps_down(node, task.shape),
                smallness(node, self.loads[node.name], sizes)
                if strategy == "smallest"
                else total(node, self.loads[node.name], task.shape, strategy, queue.weights),
            )
            for node in self.nodes
            if self.refused_by(node, task) is None
        }

    def gpus(self, task: PendingTask, name: str) -> tuple[int, ...]:
        """The GPUs that the task gets on the node."""
        node = next(node for node in self.nodes if node.name == name)
        if not task.shape.request.gpus:
            return ()
        free = free_gpus(node, self.loads[name], task.shape.gpu)
        return tuple(sorted(gpu.index for gpu in free[: task.shape.request.gpus]))

    def place(self, task: PendingTask, node: str) -> None:
        load = self.loads[node]
        load.gpus |= set(self.gpus(task, node))
        load.requested += task.shape.request
        load.tasks += 1
        load.turn = 1 + max(load.turn for load in self.loads.values())
        load.queue_tasks[task.queue] = load.queue_tasks.get(task.queue, 0) + 1
        if task.queue in self.running:
            self.running[task.queue] += 1
            self.held[task.queue] += task.shape.request
        for name, slots in task.shape.limits:
            if name in self.slots:
                self.slots[name] += slots

    # --- what is kept for tasks that do not fit ---

    def may_take(self, task: PendingTask, node: str) -> bool:
        """It leaves the room of everybody that the node is kept for, or has ended when that one comes."""
        return all(self._outlived(kept, task) or self._fits_beside(kept, task) for kept in self.kept if kept.node == node)

    def take_spare(self, task: PendingTask, node: str) -> None:
        """It has started there."""
        for kept in self.kept:
            if kept.node == node and not self._outlived(kept, task):
                kept.spare = self._with(kept.spare, task)
                kept.spare_gpus -= task.shape.request.gpus

    def refuse(self, task: PendingTask, reason: str) -> None:
        """It cannot start although nobody before it can: what is kept for it from now on."""
        queue = self.queues.get(task.queue) or QueueInfo(task.queue)
        group = queue.cohort or task.queue
        limits = self.snapshot.limits
        if reason == "LimitReached" and all(slots <= limits[name].most for name, slots in task.shape.limits if name in limits):
            self._keep_slots(task)
        if reason != "NoNodeFits" or group in self.served or len(self.served) >= 8:
            return
        prospects = [prospect for node in self.nodes if (prospect := self._prospect(node, task)) is not None]
        if not prospects:
            return
        _, _, _, kept = min(prospects, key=lambda prospect: (*prospect[:3], prospect[3].node))
        self.kept.append(kept)
        self.served.add(group)
        self._keep_slots(task)
        self.kept_places[task.queue] = self.kept_places.get(task.queue, 0) + 1

    def _keep_slots(self, task: PendingTask) -> None:
        for name, slots in task.shape.limits:
            self.kept_slots[name] = self.kept_slots.get(name, 0) + slots

    def _prospect(self, node: NodeInfo, task: PendingTask) -> tuple[bool, float, float, Kept] | None:
        """(last resort, when it fits, what is missing, the reservation); None where it never fits beside what is kept."""
        queue = self.queues.get(task.queue) or QueueInfo(task.queue)
        reserved = [kept.task for kept in self.kept if kept.node == node.name]
        empty, load = Load(Amounts(), 0), self._with(self.loads[node.name], *reserved)
        if refusing_filter(node, self._with(empty, *reserved), task.shape, queue) is not None:
            return None
        here = [running for running in self.snapshot.running if running.node == node.name]
        gone = [running for running in here if running.stopping]
        missing = self._missing(node, self._without(load, *gone), task, queue, self._lacking_gpus(node, task, gone))
        moment, lacks = -math.inf, missing
        known = [one for one in here if one.ends_at is not None and not one.stopping]
        for running in sorted(known, key=lambda one: (one.ends_at or 0.0, one.key, one.uid)):
            if lacks == 0:
                break
            gone, moment = [*gone, running], running.ends_at or 0.0
            lacks = self._missing(node, self._without(load, *gone), task, queue, self._lacking_gpus(node, task, gone))
        if lacks > 0:
            moment, gone = math.inf, [running for running in here if running.stopping]
        load = self._without(load, *gone)
        near = not math.isfinite(moment) or moment <= self.snapshot.now or self.snapshot.now - task.queued_at > 4 * 3600
        kept = Kept(node.name, task, None if near else moment, self._with(load, task))
        kept.spare_gpus = -self._lacking_gpus(node, task, gone)
        return (steps_down(node, task.shape) > 0, moment, missing, kept)

    def _lacking_gpus(self, node: NodeInfo, task: PendingTask, gone: list[RunningTask]) -> int:
        """How many GPUs that count for the task are missing, when these have ended and what is kept is gone; below 0: left over."""
        wish, all_count = task.shape.gpu, not task.shape.request.gpus  # who wants none has no wish: the others count all of them
        load, offered = self.loads[node.name], single_gpus(node)
        unknown = held_gpus(node, load) - sum(gpu.index in load.gpus for gpu in offered)
        matching = [gpu.index for gpu in offered if all_count or suits(gpu, wish)]
        left = sum(index not in load.gpus for index in matching) - unknown
        for running in gone:
            known = [gpu for gpu in node.gpus if gpu.index in running.gpus]
            left += running.amounts.gpus - sum(not all_count and not suits(gpu, wish) for gpu in known)
        kept = sum(one.task.shape.request.gpus for one in self.kept if one.node == node.name)
        return task.shape.request.gpus + kept - left

    def _missing(self, node: NodeInfo, load: Load, task: PendingTask, queue: QueueInfo, gpus: int) -> float:
        """The largest part of what it asks for that is not there. `gpus`: how many of them."""
        parts = [0.0 if not task.shape.request.gpus else max(0, gpus) / task.shape.request.gpus]
        for name in ("cpu_milli", "memory_bytes"):
            asked = getattr(task.shape.request, name)
            if asked:
                lack = getattr(load.requested, name) + asked - getattr(node.allocatable, name)
                lack += node.foreign_bytes if name == "memory_bytes" else 0
                parts.append(max(0, lack) / asked)
        if node.max_tasks is not None:
            parts.append(max(0, load.tasks + 1 - node.max_tasks))
        if queue.max_running_per_node is not None:
            parts.append(max(0, load.queue_tasks.get(queue.key, 0) + 1 - queue.max_running_per_node))
        return max(parts)

    def _fits_beside(self, kept: Kept, task: PendingTask) -> bool:
        """Where nothing is left of a resource, or less than nothing, only a task that asks for none of it fits."""
        node = next(node for node in self.nodes if node.name == kept.node)
        queue = self.queues.get(task.queue) or QueueInfo(task.queue)
        if task.queue != kept.task.queue:
            queue = replace(queue, max_running_per_node=None)
        return self._missing(node, kept.spare, task, queue, task.shape.request.gpus - kept.spare_gpus) == 0

    def _outlived(self, kept: Kept, task: PendingTask) -> bool:
        duration_s = rounded(task.duration_s)
        return kept.moment is not None and duration_s is not None and self.snapshot.now + duration_s <= kept.moment

    @staticmethod
    def _with(load: Load, *tasks: PendingTask) -> Load:
        for task in tasks:
            mine = load.queue_tasks.get(task.queue, 0) + 1
            load = Load(load.requested + task.shape.request, load.tasks + 1, {**load.queue_tasks, task.queue: mine}, load.turn)
        return load

    @staticmethod
    def _without(load: Load, *running: RunningTask) -> Load:
        for one in running:
            mine = load.queue_tasks.get(one.queue, 0) - 1
            load = Load(load.requested - one.amounts, load.tasks - 1, {**load.queue_tasks, one.queue: mine}, load.turn)
        return load
