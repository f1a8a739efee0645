"""From the cache to the frozen snapshot that a scheduling cycle sees.

Called by `scheduling` before every cycle, and by `explaining` for a person. Decides nothing and changes nothing. Also here: what a
cycle has seen of a node, asked once more of a placement that could not be stored at once.
"""

from __future__ import annotations

from collections.abc import Callable

from swarmtask.controllers.cache import Cache
from swarmtask.controllers.node_facts import offered_memory
from swarmtask.controllers.node_rules import NodeRules
from swarmtask.controllers.single_gpus import offered_gpus, single_gpus
from swarmtask.resources import units
from swarmtask.resources.node import NodeEngine, NodePhase, SwarmNode, capabilities_of
from swarmtask.resources.placement import dollars
from swarmtask.scheduler.filters import untolerated
from swarmtask.scheduler.line import Place
from swarmtask.scheduler.model import Amounts, NodeInfo, QueueInfo, QueueKey, Snapshot, Taint, TaskKey
from swarmtask.scheduler.standing import place_of

EngineReady = Callable[[NodeEngine], bool]
"""Does this engine offer this node for work right now?"""


def take_snapshot(
    cache: Cache, engine_ready: EngineReady, now: float, *, rules: NodeRules | None = None, whole: bool = False
) -> Snapshot:
    """What waits, the queues it waits in, every node, and what runs there, if anything waits.

    Args:
        now: seconds since the epoch.
        rules: what the settings say about all nodes; the defaults, with UTC, where none are given.
        whole: everything that waits, without a cut; otherwise of many tasks that are alike only those that may start.
    """
    cache.refresh_durations()
    cache.settle_fronts(now)
    cache.refresh_sizes()
    rules = rules or NodeRules()
    nodes = [_node_info(cache, name, node, engine_ready, rules=rules, now=now) for name, node in cache.nodes.items()]
    cut = None if whole else cache.backlog.cut(*_left(nodes), _place(cache, now), _preempting(cache))
    pending = list(cache.waiting()) if cut is None else cut.tasks
    running = cache.with_ends(cache.running_tasks(now), now) if pending else []
    # The queue of a task that runs says where it would stand if it were queued again.
    keys = {task.queue for task in pending} | {task.queue for task in running}
    return Snapshot(now, nodes, pending, {key: queue_info(cache, key) for key in keys}, running, cache.limits(), cut)


def _place(cache: Cache, now: float) -> Place:
    aging = {key: QueueInfo(key, aging_s=queue.spec.aging_seconds) for key, queue in cache.queues.items()}
    return place_of(aging, now)


def _preempting(cache: Cache) -> frozenset[QueueKey]:
    return frozenset(key for key, queue in cache.queues.items() if queue.spec.preemption == "LowerPriority")


def _left(nodes: list[NodeInfo]) -> tuple[Amounts, int | None]:
    """What all nodes have left together, and how many more tasks they may run; None where one of them has no bound."""
    free = [node.free for node in nodes]
    left = Amounts(
        sum(max(0, amounts.cpu_milli) for amounts in free),
        sum(max(0, amounts.memory_bytes) for amounts in free),
        sum(max(0, amounts.gpus) for amounts in free),
    )
    slots = 0
    for node in nodes:
        if node.max_tasks is None:
            return left, None
        slots += max(0, node.max_tasks - node.tasks)
    return left, slots


def queue_info(cache: Cache, key: QueueKey) -> QueueInfo:
    """A queue as a cycle sees it; where its bounds are not known, for example without an object, nothing of it starts."""
    running, queue, unknown = cache.running(key), cache.queues.get(key), cache.known_queues.unknown(key)
    if queue is None or unknown:
        return QueueInfo(key, running=running, unknown=unknown)
    spec = queue.spec
    return QueueInfo(
        key,
        stopped=spec.stopped,
        max_running=spec.max_running,
        max_running_per_node=spec.max_running_per_node,
        running=running,
        strategy=spec.strategy,
        cohort=spec.cohort,
        weight=spec.weight,
        requested=cache.queue_requested(key),
        weights=(spec.weights.capability, spec.weights.load, spec.weights.latency, spec.weights.cost),
        preempts=spec.preemption == "LowerPriority",
        aging_s=spec.aging_seconds,
        outdated=cache.known_queues.outdated(key),
    )


def _node_info(cache: Cache, name: str, node: SwarmNode, engine_ready: EngineReady, *, rules: NodeRules, now: float) -> NodeInfo:
    capacity, reserved = node.status.capacity, node.spec.reserved
    engines = tuple(engine.name for engine in node.status.engines if engine_ready(engine))
    quiet, power = rules.quiet(node, now), node.status.power
    offered, offers_gpus = offered_memory(node), offered_gpus(node)
    unreadable = name in cache.known_nodes.unreadable  # nobody knows what its owner allows
    pressures = [one.type for one in node.status.conditions if one.status == "True"]
    return NodeInfo(
        name=name,
        ready=node.status.phase in (NodePhase.READY, NodePhase.DRAINING) and bool(engines) and not unreadable,
        unschedulable=node.spec.unschedulable
        or (node.status.phase is NodePhase.DRAINING and not node.spec.drain)
        or node.metadata.deletion_timestamp is not None,
        engines=engines,
        allocatable=Amounts(
            max(0, units.cpu_milli(capacity.cpu) - units.cpu_milli(reserved.cpu)),
            offered,
            offers_gpus,
        ),
        requested=cache.requested(name),
        tasks=cache.tasks_on(name),
        max_tasks=node.spec.max_tasks,
        queue_tasks=cache.queue_tasks_on(name),
        turn=cache.turn(name),
        labels=node.metadata.labels,
        capabilities=capabilities_of(node),
        taints=tuple(Taint(taint.key, taint.value, taint.effect) for taint in node.spec.taints),
        region=node.spec.region,
        cost_per_hour=float(dollars(node.spec.cost_per_hour)),
        latency_ms=node.status.latency_milliseconds,
        on_battery=power.on_battery,
        drained=node.spec.drain,
        quiet=quiet.quiet,
        quiet_until=quiet.until.timestamp() if quiet.quiet and quiet.until is not None else None,
        quiet_words=quiet.words if quiet.quiet else "",
        charge_percent=power.percent if power.on_battery else None,
        min_charge_percent=rules.min_charge_percent(node),
        gpus=single_gpus(node, cache.gpus_held(name)) if offers_gpus else (),
        foreign_bytes=cache.foreign_bytes(name, units.memory_bytes(capacity.memory), offered),
        memory_pressure="MemoryPressure" in pressures,
        disk_pressure="DiskPressure" in pressures,
        gone=node.status.phase is NodePhase.GONE,
    )


def still_takes(
    cache: Cache, key: TaskKey, engine: str, engine_ready: EngineReady, now: float, *, rules: NodeRules | None = None
) -> bool:
    """Whether the node of an assumed task still lets it start there by way of this engine, by what is known of it now and with all
    that is live or assumed counted. True where nothing is assumed. What it asks is what a cycle asks that may change from one
    moment to the next.

    Args:
        now: seconds since the epoch.
    """
    assumed, entry = cache.assumption(key), cache.tasks.get(key)
    if assumed is None or entry is None or entry.pending is None:
        return True
    (name, gpus), shape = assumed, entry.pending.shape
    node = cache.nodes.get(name)
    if node is None:
        return False
    info = _node_info(cache, name, node, engine_ready, rules=rules or NodeRules(), now=now)
    refuses = info.unschedulable or info.drained or info.quiet or info.memory_pressure or info.disk_pressure
    low = info.charge_percent is not None and info.charge_percent < info.min_charge_percent
    unwanted = (info.on_battery and shape.on_battery == "never") or untolerated(shape, info.taints)
    if not info.ready or engine not in info.engines or refuses or low or unwanted:
        return False
    if info.max_tasks is not None and info.tasks > info.max_tasks:
        return False
    if info.gpus and gpus and not {gpu.index for gpu in info.gpus}.issuperset(gpus):
        return False
    asked, free = shape.request, info.free
    return (
        (not asked.cpu_milli or free.cpu_milli >= 0)
        and (not asked.memory_bytes or free.memory_bytes >= 0)
        and (not asked.gpus or bool(info.gpus) or free.gpus >= 0)
    )
