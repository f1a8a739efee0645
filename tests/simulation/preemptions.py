"""Who may be stopped to make room for whom.

Used by `world`, which shows every stored version of every task. The operator decides by what it has read, and that may be older
than what is stored; so a preemption counts as wrong only where no version of the two tasks allows it. That a preempted attempt
does not use the person's budget is told by the checker (I8).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection

from swarmtask.lifecycle.messages import Reason
from swarmtask.resources.task import SwarmTask

_BY = re.compile(r"preempted by (\S+)/(\S+)")


class Preemptions:
    """See the module. `queues`: names of those that may preempt at all."""

    def __init__(self, queues: Collection[str]) -> None:
        self._queues = frozenset(queues)
        self._lowest: dict[str, int] = {}
        """UID -> the lowest priority that the task ever had."""
        self._highest: dict[tuple[str, str], int] = {}
        self._been_in: dict[tuple[str, str], set[str]] = defaultdict(set)
        """(namespace, name) of tasks -> the highest priority, and every queue, that one of this name ever had."""
        self._judged: set[str] = set()

    def seen(self, task: SwarmTask) -> str | None:
        """A version was stored. What is wrong with the preemption that it shows first, in words."""
        uid, priority, current = task.metadata.uid, task.spec.effective_priority, task.status.current
        self._lowest[uid] = min(priority, self._lowest.get(uid, priority))
        self._highest[task.key] = max(priority, self._highest.get(task.key, priority))
        self._been_in[task.key].add(task.spec.queue)
        if current is None or current.stop_reason != Reason.PREEMPTED or current.id in self._judged:
            return None
        self._judged.add(current.id)
        found = _BY.match(current.message or "")
        if found is None:
            return f"attempt {current.number} is preempted, but does not say for whom: {current.message!r}"
        by = (found[1], found[2])
        if by not in self._highest:
            return f"preempted by {'/'.join(by)}, which was never there"
        if self._highest[by] <= self._lowest[uid]:
            return f"preempted by {'/'.join(by)} of priority {self._highest[by]}; its own was never below {self._lowest[uid]}"
        if not self._been_in[by] & self._queues:
            return f"preempted by {'/'.join(by)}, whose queue may not preempt"
        return None
