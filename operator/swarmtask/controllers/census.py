"""How many tasks there are in each phase and namespace, which of them are live or going away, and whose an attempt is.

Kept by the cache, which tells of every task that changes; read through it. Decides nothing.
"""

from __future__ import annotations

from collections import Counter

from swarmtask.controllers.entries import TaskEntry
from swarmtask.controllers.task_facts import name_of_attempts
from swarmtask.resources.task import Attempt, Phase
from swarmtask.scheduler.model import QueueKey, TaskKey


class Census:
    """See the module.

    Attributes:
        phases: arrays are not counted, their runs are.
        bound: how many live attempts each queue has let start, whatever the task's queue is now.
        namespaces: how many readable tasks each namespace has; none that has none.
        owners: what the names of a task's attempts begin with -> the task.
    """

    def __init__(self) -> None:
        self.phases: Counter[tuple[QueueKey, Phase]] = Counter()
        self.bound: Counter[QueueKey] = Counter()
        self.namespaces: Counter[str] = Counter()
        self.owners: dict[str, TaskKey] = {}
        self.live: dict[TaskKey, Attempt] = {}
        self.deleting: dict[TaskKey, None] = {}

    def put(self, key: TaskKey, old: TaskEntry | None, new: TaskEntry | None) -> None:
        """A task was `old` and is `new`; None: it is not there."""
        if old is not None:
            self._leave(old, new)
        if new is None:
            self.live.pop(key, None)
            self.deleting.pop(key, None)
        else:
            self._enter(key, new)
        change = (new is not None) - (old is not None)
        if change:
            self.namespaces[key[0]] += change
            if not self.namespaces[key[0]]:
                del self.namespaces[key[0]]

    def _leave(self, old: TaskEntry, new: TaskEntry | None) -> None:
        if not old.task.is_array:
            self.phases[(old.queue, old.task.status.phase)] -= 1
        if old.holding is not None:
            self.bound[old.holding.queue] -= 1
        if new is None or new.task.metadata.uid != old.task.metadata.uid:
            self.owners.pop(name_of_attempts(old.task.metadata.uid), None)

    def _enter(self, key: TaskKey, new: TaskEntry) -> None:
        self.owners[name_of_attempts(new.task.metadata.uid)] = key
        if new.task.metadata.deletion_timestamp is not None:
            self.deleting[key] = None
        else:
            self.deleting.pop(key, None)
        if not new.task.is_array:  # its runs are counted
            self.phases[(new.queue, new.task.status.phase)] += 1
        if new.holding is not None:
            self.bound[new.holding.queue] += 1
        live = new.live
        if live is not None:
            self.live[key] = live
        else:
            self.live.pop(key, None)
