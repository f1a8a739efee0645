"""What finished tasks teach about those that wait and run.

Called by the cache alone, for every task that changes. What was learned is lost with the process, and learned again from the
finished tasks that are still there (`spec.ttlSecondsAfterFinished`). Decides nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import TYPE_CHECKING

from swarmtask.resources import units
from swarmtask.resources.fields import AUTO
from swarmtask.resources.task import LABEL_TEMPLATE, AttemptState, Phase, SwarmTask
from swarmtask.scheduler.durations import Durations
from swarmtask.scheduler.model import TaskKey

if TYPE_CHECKING:
    from swarmtask.controllers.entries import TaskEntry

_NEWS_S, _NEWS_SHARE = 1.0, 0.1
"""A median that moves by less than a second, or by less than a tenth, is not carried to the tasks that wait."""


def template_of(task: SwarmTask) -> str:
    """What kind of work a task is: tasks of one template are expected to take equally long, in whatever queue they are.

    A person's label `swarmtask.io/template` wins, within the namespace. Otherwise it is what runs and what it may take: image,
    command, working directory and requests. Arguments and environment are the input, which differs from task to task.
    """
    label = task.metadata.labels.get(LABEL_TEMPLATE)
    if label:
        return f"{task.key[0]}/{label}"
    container, requests = task.spec.container, task.spec.container.resources.requests
    identity = (
        container.image, container.command, container.working_dir,
        units.cpu_milli(requests.cpu), AUTO if requests.memory == AUTO else units.memory_bytes(requests.memory), requests.gpu,
    )  # fmt: skip
    return hashlib.blake2b(repr(identity).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


class Learning:
    """Durations by template, and which waiting tasks must hear of it."""

    def __init__(self) -> None:
        self._durations = Durations()
        self._waiting: dict[str, dict[TaskKey, None]] = {}
        self._told: dict[str, float] = {}

    def typical_s(self, template: str) -> float | None:
        """How long such tasks hold their place; None until one has succeeded."""
        return self._durations.typical_s(template)

    def ends_at(self, template: str, bound_at: float, now: float) -> float | None:
        """When such a task that was placed at `bound_at` is expected to end, in seconds since the epoch; None while that is not
        known."""
        return self._durations.ends_at(template, bound_at, now)

    def note(self, key: TaskKey, old: TaskEntry | None, new: TaskEntry | None) -> Collection[TaskKey]:
        """A task was `old` and is `new`. Returns the waiting tasks whose duration is another one now."""
        if old is not None and old.pending is not None and (new is None or new.pending is None or new.template != old.template):
            alike = self._waiting[old.template]
            del alike[key]
            if not alike:
                del self._waiting[old.template]
                self._told.pop(old.template, None)
        if new is None:
            return ()
        if new.pending is not None:
            self._waiting.setdefault(new.template, {})[key] = None
        success = _success(new)
        if success is None or (old is not None and _success(old) == success):
            return ()
        self._durations.learn(new.template, *success)
        return self._hear(new.template)

    def _hear(self, template: str) -> Collection[TaskKey]:
        typical_s, told_s = self._durations.typical_s(template), self._told.get(template)
        if typical_s is None or template not in self._waiting:
            return ()
        if told_s is not None and abs(typical_s - told_s) <= max(_NEWS_S, _NEWS_SHARE * told_s):
            return ()
        self._told[template] = typical_s
        return tuple(self._waiting[template])


def _success(entry: TaskEntry) -> tuple[float, float] | None:
    """When the task succeeded, and how long the attempt held its place."""
    current = entry.task.status.current
    if entry.task.status.phase is not Phase.SUCCEEDED or current is None or current.state is not AttemptState.SUCCEEDED:
        return None
    if current.bound_at is None or current.finished_at is None:
        return None
    finished_at = current.finished_at.timestamp()
    return finished_at, finished_at - current.bound_at.timestamp()
