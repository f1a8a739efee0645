"""What must hold of tasks with the same dedupeKey: only one of them is at work at a time, and who takes an outcome does not run."""

from __future__ import annotations

from datetime import datetime

from swarmtask.resources.task import SwarmTask
from tests.checker.violation import ViolationLog

Group = tuple[str, str]


class TwinRules:
    """Told of every version of every task, in the order in which they were stored.

    A task is at work from its first attempt in a budget until it has finished, between its attempts too.
    """

    def __init__(self, log: ViolationLog) -> None:
        self._log = log
        self._at_work: dict[Group, dict[str, str]] = {}
        """(namespace, key) -> UID -> who, of tasks that began with this key and still have it."""
        self._group_of: dict[str, Group | None] = {}
        """UID of tasks at work -> their group; None once the key was edited meanwhile: such a task goes on for itself."""

    def task_seen(self, task: SwarmTask, at: datetime) -> None:
        uid, status = task.metadata.uid, task.status
        subject, group = f"{'/'.join(task.key)} ({uid})", (task.key[0], task.spec.dedupe_key)
        live = status.current is not None and status.current.live
        spent = status.start_time is not None or status.failures > 0 or status.infrastructure_losses > 0
        if status.reason == "Deduplicated" and (live or status.outcome_of is None):
            self._log.add("I2", subject, at, f"is Deduplicated, live {live}, outcome of {status.outcome_of}")
        if task.finished or not (live or spent):
            self.task_gone(uid)
        elif uid not in self._group_of:
            self._begin(uid, subject, group if group[1] else None, at)
        elif self._group_of[uid] != group:
            self._leave(uid)

    def task_gone(self, uid: str) -> None:
        self._leave(uid)
        self._group_of.pop(uid, None)

    def _begin(self, uid: str, subject: str, group: Group | None, at: datetime) -> None:
        self._group_of[uid] = group
        if group is None:
            return
        here = self._at_work.setdefault(group, {})
        for other in here.values():
            self._log.add("I2", subject, at, f"began while {other}, which has the same dedupeKey, was at work")
        here[uid] = subject

    def _leave(self, uid: str) -> None:
        group = self._group_of.get(uid)
        if group is not None:
            here = self._at_work[group]
            del here[uid]
            if not here:
                del self._at_work[group]
            self._group_of[uid] = None
