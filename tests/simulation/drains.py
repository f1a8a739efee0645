"""Who may be stopped because a node is to be empty, and what that costs: nothing.

Used by `world`, which shows every stored version of every task and node. The operator decides by what it has read, and that may be
older than what is stored; so a drain counts as wrong only where nobody ever asked for one of that node.
"""

from __future__ import annotations

from typing import Any

from swarmtask.lifecycle.messages import Reason
from swarmtask.resources.task import Phase, SwarmTask


class Drains:
    """See the module."""

    def __init__(self) -> None:
        self._asked: set[str] = set()
        """Nodes that somebody wanted empty at some time."""
        self._before: dict[str, SwarmTask] = {}
        """UID -> the version of the task before this one."""

    def node_seen(self, obj: Any) -> None:
        """A version of a SwarmNode was stored."""
        if (obj.get("spec") or {}).get("drain"):
            self._asked.add(obj["metadata"]["name"])

    def seen(self, task: SwarmTask) -> str | None:
        """A version was stored. What is wrong with the drain that it shows, in words."""
        uid, current, status = task.metadata.uid, task.status.current, task.status
        before = self._before.get(uid)
        self._before[uid] = task
        if status.phase is Phase.FAILED and status.reason == Reason.DRAINED:
            return "a drain made it a dead letter"
        if current is None or Reason.DRAINED not in {current.stop_reason, current.reason}:
            return None
        if current.node not in self._asked:
            return f"attempt {current.number} is stopped because {current.node} is drained, which nobody asked for"
        if current.live or before is None or before.status.current is None or not before.status.current.live:
            return None
        # This version ends the attempt.
        old = before.status
        if current.reason == Reason.DRAINED and (status.failures, status.infrastructure_losses) != (
            old.failures,
            old.infrastructure_losses,
        ):
            return f"attempt {current.number} was drained, and that was paid for"
        if current.reason == Reason.DRAINED and status.phase is Phase.QUEUED and _later(task, before):
            return f"attempt {current.number} was drained, and the task lost its place: {old.queued_time} -> {status.queued_time}"
        return None


def _later(task: SwarmTask, before: SwarmTask) -> bool:
    now, then = task.status.queued_time, before.status.queued_time
    return now is not None and then is not None and now > then
