"""A stored task as the scheduler sees it: how it waits, what it holds, how it runs. Pure.

Called by the cache for every task that changes, and by `explaining`. Takes models and returns values; reads no clock and no API.
"""

from __future__ import annotations

import math
from datetime import datetime

from swarmtask.controllers.entries import Holding
from swarmtask.lifecycle.members import is_recorded
from swarmtask.lifecycle.reasons import RULES
from swarmtask.resources import placement as resources
from swarmtask.resources import units
from swarmtask.resources.placement import dollars
from swarmtask.resources.restored import is_restored
from swarmtask.resources.task import ANNOTATION_FRONT, AttemptState, MemoryPlan, Phase, SwarmTask, attempt_id
from swarmtask.scheduler.model import Amounts, GpuWish, PendingTask, RunningTask, TaskShape, Toleration

_BETTER_ELSEWHERE = frozenset(reason.value for reason, rule in RULES.items() if rule.prefers_another_node)

SHAPES = 4096
_SHAPES: dict[TaskShape, TaskShape] = {}
"""Shapes that tasks had lately: ten thousand tasks of one kind hold one of them. Begun anew when there are too many."""


def name_of_attempts(uid: str) -> str:
    """What the names of all attempts of a task begin with."""
    return attempt_id(uid, 0).rpartition("-")[0]


def is_superfluous(task: SwarmTask, array: SwarmTask) -> bool:
    """A run of an array that has ended, or has recorded it: a create that came late. It must not start before it is deleted.
    `array` has the name of its owner."""
    owner = task.array_owner
    if owner is None or array.metadata.uid != owner.uid or task.status.observed_retry is not None:
        return False
    return array.finished or is_recorded(array, task.metadata.name)


def pending_task(
    task: SwarmTask, queued_at: float | None = None, duration_s: float | None = None, memory: MemoryPlan | None = None
) -> PendingTask | None:
    """How a waiting task stands before the scheduler; None when it does not wait.

    Args:
        queued_at: instead of when it came to the queue, in seconds since the epoch.
        duration_s: how long such tasks run; None while that is not known.
        memory: what it asks for; None: what its spec says, which then is an amount.
    """
    if task.status.phase is not Phase.QUEUED or task.metadata.deletion_timestamp is not None or task.is_array or is_restored(task):
        return None
    spec, requests, placement = task.spec, task.spec.container.resources.requests, task.spec.placement
    since = task.status.queued_time or task.metadata.creation_timestamp
    if queued_at is None:
        queued_at = since.timestamp() if since is not None else 0.0
    return PendingTask(
        key=task.key,
        uid=task.metadata.uid,
        queue=(task.key[0], spec.queue),
        priority=spec.effective_priority,
        queued_at=queued_at,
        shape=_same(
            TaskShape(
                request=Amounts(
                    units.cpu_milli(requests.cpu),
                    units.memory_bytes(requests.memory if memory is None else memory.request),
                    requests.gpu,
                ),
                engine="" if spec.engine == "auto" else spec.engine,
                node_name=placement.node_name,
                node_selector=tuple(sorted(placement.node_selector.items())),
                capabilities=frozenset(placement.capabilities),
                limits=tuple(sorted(spec.limits.items())),
                strategy="smallest" if memory is not None and memory.basis == "Ladder" else placement.strategy,
                avoid=frozenset(attempt.node for attempt in task.status.attempts if attempt.reason in _BETTER_ELSEWHERE),
                gpu=_gpu_wish(placement.gpu) if requests.gpu else GpuWish(),
                tolerations=tuple(map(_toleration, placement.tolerations)),
                regions=frozenset(placement.regions),
                preferred_regions=frozenset(placement.preferred_regions),
                max_latency_ms=placement.max_latency_milliseconds or None,
                max_cost_per_hour=None if placement.max_cost_per_hour is None else float(dollars(placement.max_cost_per_hour)),
                on_battery=placement.on_battery,
            )
        ),
        front_at=front_at(task),
        duration_s=duration_s,
    )


def _same(shape: TaskShape) -> TaskShape:
    """The one object for all tasks of this shape."""
    if len(_SHAPES) >= SHAPES:
        _SHAPES.clear()
    return _SHAPES.setdefault(shape, shape)


def front_at(task: SwarmTask) -> float | None:
    """When a person moved the task to the front of its queue, in seconds since the epoch; None where nobody did, or where it has
    been placed since: a move counts once, so that a task that was preempted does not come before the one that needed its room.
    When it was placed is stored in whole seconds, cut off: a move in that second was before it."""
    text, current = task.metadata.annotations.get(ANNOTATION_FRONT), task.status.current
    moment = None if text is None else moment_of(text)
    placed = None if current is None or current.bound_at is None else current.bound_at.timestamp()
    return None if moment is None or (placed is not None and moment < math.floor(placed) + 1) else moment


def moment_of(text: str) -> float | None:
    """An RFC 3339 time in seconds since the epoch; None where it is none."""
    try:
        moment = datetime.fromisoformat(text)
        return None if moment.tzinfo is None else moment.timestamp()
    except (ValueError, OverflowError):
        return None


def running_task(task: SwarmTask) -> RunningTask | None:
    """How a live attempt stands before the scheduler; None where there is none."""
    current, holding = task.status.current, holding_of(task)
    if current is None or holding is None:
        return None
    queued, bound = task.status.queued_time, current.bound_at
    return RunningTask(
        key=task.key,
        uid=task.metadata.uid,
        queue=holding.queue,
        priority=task.spec.effective_priority,
        node=holding.node,
        attempt=current.number,
        amounts=holding.amounts,
        bound_at=0.0 if bound is None else bound.timestamp(),
        gpus=holding.gpus,
        limits=holding.limits,
        stopping=current.state is AttemptState.STOPPING,
        queued_at=None if queued is None else queued.timestamp(),
        fronted=moment_of(task.metadata.annotations.get(ANNOTATION_FRONT, "")) is not None,
    )


def _gpu_wish(wish: resources.GpuWish) -> GpuWish:
    return GpuWish(wish.vendor, wish.model.lower(), 0 if wish.memory is None else units.memory_bytes(wish.memory))


def _toleration(toleration: resources.Toleration) -> Toleration:
    value = None if toleration.operator == "Exists" else toleration.value
    return Toleration(toleration.key, value, toleration.effect or None)


def holding_of(task: SwarmTask) -> Holding | None:
    """What the live attempt of a task holds, as it was when it was bound."""
    current = task.status.current
    if current is None or not current.live:
        return None
    held = current.requested
    amounts = Amounts(units.cpu_milli(held.cpu), units.memory_bytes(held.memory), held.gpu)
    return Holding(
        current.node,
        (task.key[0], held.queue or task.spec.queue),
        amounts,
        tuple(sorted(held.limits.items())),
        tuple(held.gpu_indices),
        tuple(gpu.uuid for gpu in held.gpu_devices),
    )
