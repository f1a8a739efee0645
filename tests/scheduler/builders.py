"""Short ways to write snapshots in tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from swarmtask.scheduler.model import Amounts, LimitInfo, NodeInfo, PendingTask, QueueInfo, QueueKey, Snapshot, TaskShape

GIB = 2**30
DEFAULT = ("home", "default")


def node(name: str = "laptop", cpu: int = 4000, memory: int = 8 * GIB, gpus: int = 0, **facts: Any) -> NodeInfo:
    """`gpus` are how many it offers, `gpus_listed` the single ones."""
    facts = {"ready": True, "unschedulable": False, "engines": ("swarm",), **facts}
    if "gpus_listed" in facts:
        facts["gpus"] = facts.pop("gpus_listed")
    return NodeInfo(name=name, allocatable=Amounts(cpu, memory, gpus), **facts)


def shape(cpu: int = 0, memory: int = 0, gpus: int = 0, **wishes: Any) -> TaskShape:
    return TaskShape(Amounts(cpu, memory, gpus), **wishes)


def task(name: str = "task", wants: TaskShape | None = None, *, priority: int = 0, at: float = 0.0, **facts: Any) -> PendingTask:
    facts = {"uid": f"uid-{name}", "queue": DEFAULT, **facts}
    return PendingTask(key=("home", name), priority=priority, queued_at=at, shape=shape() if wants is None else wants, **facts)


def known(pending: Iterable[PendingTask], *queues: QueueInfo) -> dict[QueueKey, QueueInfo]:
    """The queues, and one without bounds for each other one that a task names."""
    return {task.queue: QueueInfo(task.queue) for task in pending} | {queue.key: queue for queue in queues}


def limited(most: int, queue: QueueKey = DEFAULT, **holders: int) -> LimitInfo:
    """A limit that this queue states; `holders` are tasks of its namespace -> slots."""
    return LimitInfo(most, queue, {(queue[0], name): slots for name, slots in holders.items()})


def snapshot(
    nodes: Iterable[NodeInfo], pending: Iterable[PendingTask], *queues: QueueInfo, limits: Mapping[str, LimitInfo] | None = None
) -> Snapshot:
    tasks = tuple(pending)
    return Snapshot(now=0.0, nodes=tuple(nodes), pending=tasks, queues=known(tasks, *queues), limits=limits or {})
