"""Attempts that run, as the scheduler sees them: which of them are being stopped to make room, and when each is expected to end.

Kept by the cache, which tells of every change; read through it. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from swarmtask.controllers.entries import Assumption
from swarmtask.resources.task import Attempt
from swarmtask.scheduler.model import RunningTask, TaskKey


class Occupants:
    """See the module."""

    def __init__(self) -> None:
        self._stored: dict[TaskKey, RunningTask] = {}
        self._shown: dict[TaskKey, RunningTask] = {}
        """What `running` has made of live and assumed attempts, as long as nothing about them changes."""
        self._ends: dict[TaskKey, tuple[RunningTask, RunningTask]] = {}
        """What runs as it was last asked for, without and with its expected end."""
        self._preempted: dict[TaskKey, tuple[int, TaskKey]] = {}
        """Attempts that are to make room, and for whom, from the decision to their end."""

    # --- news ---

    def put(self, key: TaskKey, running: RunningTask | None) -> None:
        """How the task's live attempt stands now; None: there is none."""
        self.touch(key)
        preempted = self._preempted.get(key)
        if running is None:
            self._stored.pop(key, None)
        if preempted is not None and (running is None or running.attempt != preempted[0]):
            del self._preempted[key]
            preempted = None
        if running is not None:
            if preempted is not None:
                running = replace(running, stopping=True, makes_room_for=preempted[1])
            self._stored[key] = running

    def touch(self, key: TaskKey) -> None:
        """Something about its place has changed: it is shown anew."""
        self._shown.pop(key, None)

    def preempt(self, key: TaskKey, attempt: int, by: TaskKey) -> bool:
        """Count an attempt as being stopped before that is stored. False when it is no more, or is being stopped already."""
        running = self._stored.get(key)
        if running is None or running.attempt != attempt or running.stopping:
            return False
        self._preempted[key] = (attempt, by)
        self.put(key, running)
        return True

    def settle(self, key: TaskKey, running: RunningTask | None) -> bool:
        """Its stop was stored, or was not: `running` is what is stored. True when it is not being stopped after all."""
        if key not in self._preempted or running is None or running.stopping:
            return False
        del self._preempted[key]
        self.put(key, running)
        return True

    # --- reading ---

    def of(self, key: TaskKey) -> RunningTask | None:
        """The task's live attempt, as it counts."""
        return self._stored.get(key)

    def running(self, live: Mapping[TaskKey, Attempt], assumed: Mapping[TaskKey, Assumption], now: float) -> list[RunningTask]:
        """Every live attempt, and every assumed one as if it had been placed `now` (seconds since the epoch)."""
        known = self._shown
        for key in {**live, **assumed}:
            if key not in known:
                known[key] = self._show(key, live.get(key), assumed, now)
        return list(known.values())

    def _show(self, key: TaskKey, live: Attempt | None, assumed: Mapping[TaskKey, Assumption], now: float) -> RunningTask:
        running = self._stored.get(key)
        if running is not None:
            return running if live is not None and live.bound_at is not None else replace(running, bound_at=now)
        pending, holding = assumed[key].pending, assumed[key].holding
        return RunningTask(
            key, pending.uid, pending.queue, pending.priority, holding.node, 0, holding.amounts, now, gpus=holding.gpus,
            limits=holding.limits, queued_at=pending.queued_at, fronted=pending.front_at is not None,
        )  # fmt: skip

    def with_ends(
        self, running: Iterable[RunningTask], now: float, ends_at: Callable[[RunningTask], float | None]
    ) -> list[RunningTask]:
        """The same, with their expected ends as far as `ends_at` knows them (seconds since the epoch).

        What has not changed is the same object as last time: a cycle must not make ten thousand of them anew. An expected end is
        looked at again once it has passed.
        """
        before, self._ends = self._ends, {}
        for one in running:
            given, known = before.get(one.key, (None, one))
            if given is not one or known.ends_at is None or known.ends_at <= now:
                expected = ends_at(one)
                known = one if expected is None else replace(one, ends_at=expected)
            self._ends[one.key] = (one, known)
        return [known for _, known in self._ends.values()]


def differ(before: RunningTask | None, after: RunningTask | None) -> bool:
    """Whether a cycle would see more than that the attempt was stored."""
    if before is None or after is None:
        return False  # what they hold tells
    return (before.stopping, before.priority) != (after.stopping, after.priority)
