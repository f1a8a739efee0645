"""The order in which waiting tasks stand: priority, what waiting has added to it, age, and who was moved to the front.

Called by `ordering`, once per cycle. Knows nothing of what fits.

A task's *level* is what orders it before its age: its priority, plus one point for every `aging_s` seconds of waiting where its
queue ages. A task that a person moved to the front stands just before the best of its own queue, at that one's level, so that it is
before all of its queue and overtakes nobody else than the queue's best would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from swarmtask.scheduler.model import PendingTask, QueueInfo, QueueKey

AHEAD_S = 300.0
"""Clocks differ. A move to the front that lies further ahead does not count before its time has come."""

_Place = tuple[int, float, str]


def order_key(task: PendingTask) -> _Place:
    """Sorts tasks in the order in which they start, where nobody ages and nobody was moved to the front."""
    return (-task.priority, task.queued_at, task.uid)


def level_of(priority: int, queued_at: float, queue: QueueInfo | None, now: float) -> int:
    """A priority and what waiting since `queued_at` has added to it. Times are seconds since the epoch."""
    if queue is None or queue.aging_s is None:
        return priority
    return priority + int(max(0.0, now - queued_at) // queue.aging_s)


def place_of(queues: Mapping[QueueKey, QueueInfo], now: float) -> Callable[[PendingTask], _Place]:
    """Sorts tasks in the order in which they start, where nobody was moved to the front; `order_key` where nobody ages either."""
    aging = {key: queue for key, queue in queues.items() if queue.aging_s is not None}
    if not aging:
        return order_key

    def place(task: PendingTask) -> _Place:
        return (-level_of(task.priority, task.queued_at, aging.get(task.queue), now), task.queued_at, task.uid)

    return place


def standing(
    pending: Iterable[PendingTask], queues: Mapping[QueueKey, QueueInfo], now: float
) -> tuple[list[PendingTask], list[int] | None]:
    """The tasks in their order, and the level of each; None instead of levels where every level is the task's priority."""
    tasks = list(pending)
    moved = [task for task in tasks if task.front_at is not None and task.front_at <= now + AHEAD_S]
    if not moved and not any(queue.aging_s is not None for queue in queues.values()):
        tasks.sort(key=order_key)
        return tasks, None
    place = place_of(queues, now)
    places = {id(task): place(task) for task in tasks}
    best: dict[QueueKey, _Place] = {task.queue: places[id(task)] for task in moved}
    for task in tasks:
        if task.queue in best:
            best[task.queue] = min(best[task.queue], places[id(task)])

    ahead = {id(task) for task in moved}

    def key(task: PendingTask) -> tuple[int, float, str, bool, float, str]:
        if task.front_at is None or id(task) not in ahead:
            return (*places[id(task)], True, 0.0, task.uid)
        return (*best[task.queue], False, -task.front_at, task.uid)

    keyed = sorted(((key(task), task) for task in tasks), key=lambda pair: pair[0])
    return [task for _, task in keyed], [-place[0] for place, _ in keyed]
