"""What live and assumed attempts hold together: by node, by queue, by limit, by GPU.

Kept by the cache, which tells of every holding that begins, ends or changes; read through it. Sums are carried along as changes
arrive, because a cycle must not add up ten thousand tasks. Decides nothing.
"""

from __future__ import annotations

from collections import Counter

from swarmtask.controllers.entries import HeldGpu, Holding
from swarmtask.scheduler.model import Amounts, QueueKey, TaskKey


class Sums:
    """See the module. A node or queue that nobody has held anything of counts as holding nothing."""

    def __init__(self) -> None:
        self.requested: dict[str, Amounts] = {}
        """By node; one that nothing is left on may stay, with nothing."""
        self.tasks_on: Counter[str] = Counter()
        self.running: Counter[QueueKey] = Counter()
        self.queue_requested: dict[QueueKey, Amounts] = {}
        self.queue_tasks: dict[str, Counter[QueueKey]] = {}
        self.gpus_held: dict[str, Counter[HeldGpu]] = {}
        self.limit_holders: dict[str, dict[TaskKey, int]] = {}
        self.limit_held: Counter[str] = Counter()

    def move(self, key: TaskKey, before: Holding | None, after: Holding | None) -> None:
        """The task held `before` and holds `after`; None: nothing."""
        if before == after:
            return
        for holding, sign in ((before, -1), (after, 1)):
            if holding is not None:
                self._count(holding, sign)
        if before is not None:
            for name, _ in before.limits:
                holders = self.limit_holders[name]
                self.limit_held[name] -= holders.pop(key)
                if not holders:
                    del self.limit_holders[name], self.limit_held[name]
        if after is not None:
            for name, slots in after.limits:
                self.limit_holders.setdefault(name, {})[key] = slots
                self.limit_held[name] += slots

    def _count(self, holding: Holding, sign: int) -> None:
        sums = self.requested.get(holding.node, Amounts())
        self.requested[holding.node] = sums + holding.amounts if sign > 0 else sums - holding.amounts
        self.tasks_on[holding.node] += sign
        self.running[holding.queue] += sign
        held = self.queue_requested.get(holding.queue, Amounts())
        self.queue_requested[holding.queue] = held + holding.amounts if sign > 0 else held - holding.amounts
        here = self.queue_tasks.setdefault(holding.node, Counter())
        here[holding.queue] += sign
        if not here[holding.queue]:
            del here[holding.queue]
        if not here:
            del self.queue_tasks[holding.node]
        if holding.gpus:
            self._count_gpus(holding, sign)

    def _count_gpus(self, holding: Holding, sign: int) -> None:
        here = self.gpus_held.setdefault(holding.node, Counter())
        for gpu in holding.held_gpus:
            here[gpu] += sign
            if not here[gpu]:
                del here[gpu]
        if not here:
            del self.gpus_held[holding.node]
