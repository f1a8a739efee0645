"""Tasks that a person has moved to the front of their queue: which of these moves count yet.

Kept by the cache. A move whose time lies ahead (a clock that runs fast) does not count before that time has come. Decides nothing
else; the rule of how far ahead is `scheduler.standing`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from swarmtask.controllers import task_facts
from swarmtask.controllers.entries import TaskEntry
from swarmtask.resources.task import ANNOTATION_FRONT, SwarmTask
from swarmtask.scheduler.model import PendingTask, TaskKey
from swarmtask.scheduler.standing import AHEAD_S

logger = logging.getLogger(__name__)


class Fronts:
    """See the module."""

    def __init__(self) -> None:
        self._moved: set[TaskKey] = set()
        """Waiting tasks with a move to the front that nobody has compared with the clock."""
        self._ahead: dict[TaskKey, float] = {}
        """Moves to the front whose time has not come, in seconds since the epoch; until then they do not count."""

    def is_ahead(self, pending: PendingTask) -> bool:
        """Whether its move was found to lie ahead."""
        return pending.front_at is not None and pending.front_at == self._ahead.get(pending.key)

    def note(self, pending: PendingTask) -> None:
        """The task waits, as it is now."""
        if pending.front_at is not None:
            self._moved.add(pending.key)

    def settle(self, tasks: Mapping[TaskKey, TaskEntry], now: float) -> Iterator[tuple[PendingTask, float | None]]:
        """Waiting tasks whose move counts from now on, or does not count yet, at `now` (seconds since the epoch): the task, and
        what its `front_at` is to be. The mapping may be changed meanwhile."""
        latest = now + AHEAD_S
        for key in self._moved:
            pending = tasks[key].pending if key in tasks else None
            if pending is not None and pending.front_at is not None and pending.front_at > latest:
                self._ahead[key] = pending.front_at
                yield pending, None
        self._moved.clear()
        for key, moment in list(self._ahead.items()):
            pending = tasks[key].pending if key in tasks else None
            if pending is None or task_facts.front_at(tasks[key].task) != moment:
                del self._ahead[key]  # it was placed, moved again, or is gone
            elif moment <= latest:
                del self._ahead[key]
                yield pending, moment

    @property
    def next_at(self) -> float | None:
        """When the next move begins to count, in seconds since the epoch; None when no such move is known."""
        return min(self._ahead.values()) - AHEAD_S if self._ahead else None


def check_front(task: SwarmTask, old: SwarmTask | None) -> None:
    """Say so, once, when the annotation is no time."""
    text = task.metadata.annotations.get(ANNOTATION_FRONT)
    known = None if old is None else old.metadata.annotations.get(ANNOTATION_FRONT)
    if text is not None and text != known and task_facts.moment_of(text) is None:
        logger.warning("SwarmTask %s/%s is not moved to the front: %s is no RFC 3339 time: %r", *task.key, ANNOTATION_FRONT, text)
