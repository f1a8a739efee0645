"""Which tasks have the same dedupeKey, kept as news comes in, so that nobody searches all tasks for a task's twin.

Fed by the cache with every change of a task and every stop of a queue; asked by the executor before it decides. It decides nothing:
what a twin means is the lifecycle's (`lifecycle.twins`, `lifecycle.task`). `stir` is called with each task that has to be looked at
again because another one of its key has changed: ten thousand tasks that wait for one are looked at once each when that one ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from heapq import heapify, heappop, heappush

from swarmtask.lifecycle.messages import Twin
from swarmtask.lifecycle.twins import (
    Precedence,
    Standing,
    as_twin,
    begun,
    did_the_work,
    following,
    has_outcome,
    precedence,
    standing,
)
from swarmtask.resources.task import SwarmTask
from swarmtask.scheduler.model import QueueKey, TaskKey

Group = tuple[str, str]
"""(namespace, dedupeKey)."""


class _Line:
    """Tasks in order, the first one at hand: a heap from which what is out of date is dropped late."""

    def __init__(self) -> None:
        self._heap: list[tuple[Precedence, TaskKey]] = []
        self._ranks: dict[TaskKey, Precedence] = {}

    def __bool__(self) -> bool:
        return bool(self._ranks)

    def put(self, key: TaskKey, rank: Precedence | None) -> None:
        """None: it does not stand in this line (any more)."""
        if self._ranks.get(key) == rank:
            return
        if rank is None:
            del self._ranks[key]
        else:
            self._ranks[key] = rank
            heappush(self._heap, (rank, key))
        if len(self._heap) > 2 * len(self._ranks) + 16:
            self._heap = [(rank, key) for key, rank in self._ranks.items()]
            heapify(self._heap)

    def first(self) -> TaskKey | None:
        while self._heap:
            rank, key = self._heap[0]
            if self._ranks.get(key) == rank:
                return key
            heappop(self._heap)
        return None


@dataclass(slots=True)
class _Lines:
    """Of one group: who does the work next, and who has done it, newest first; and who can do nothing now, but may wait for another
    one (a task without a queue)."""

    ready: _Line = field(default_factory=_Line)
    done: _Line = field(default_factory=_Line)
    held: set[TaskKey] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Member:
    task: SwarmTask
    group: Group
    standing: Standing
    follows: TaskKey | None
    precedence: Precedence

    @property
    def ready_rank(self) -> Precedence | None:
        return self.precedence if self.standing < Standing.HELD else None

    @property
    def done_rank(self) -> Precedence | None:
        completed = self.task.status.completion_time
        if completed is None or not did_the_work(self.task.status):
            return None
        return (0, -completed.timestamp(), self.task.metadata.uid)


def _ignore(key: TaskKey) -> None:
    """Nobody listens yet."""


class Twins:
    """See the module."""

    def __init__(self) -> None:
        self.stir: Callable[[TaskKey], None] = _ignore
        self._stored: dict[TaskKey, SwarmTask] = {}
        self._assumed: dict[TaskKey, SwarmTask] = {}
        self._members: dict[TaskKey, _Member] = {}
        self._lines: dict[Group, _Lines] = {}
        self._followers: dict[TaskKey, set[TaskKey]] = {}
        self._stopped: set[QueueKey] = set()

    # --- news ---

    def put_queue(self, queue: QueueKey, *, stopped: bool) -> None:
        """Whether a queue starts anything. Costs a look at every task with a key, when that changes."""
        if stopped == (queue in self._stopped):
            return
        (self._stopped.add if stopped else self._stopped.discard)(queue)
        changed: set[Group] = set()
        for key in [key for key, member in self._members.items() if _queue_of(member.task) == queue]:
            changed |= self._take_in(key)
            self._stir(key)
        self._stir_held(changed)

    def put(self, key: TaskKey, task: SwarmTask | None) -> None:
        """A task as it is stored now; None: it is gone, or cannot be read."""
        if task is not None and task.spec.dedupe_key:
            self._stored[key] = task
        elif self._stored.pop(key, None) is None:
            return
        else:
            self._assumed.pop(key, None)
        self._refresh(key)

    def assume(self, key: TaskKey, task: SwarmTask) -> None:
        """A status that is being written counts as stored: two tasks that are decided at the same time do not both go ahead."""
        if key in self._stored:
            self._assumed[key] = task
            self._refresh(key)

    def drop_assumption(self, key: TaskKey) -> None:
        """The write has ended, in whatever way."""
        if self._assumed.pop(key, None) is not None:
            self._refresh(key)

    # --- reading ---

    def of(self, task: SwarmTask, now: datetime) -> Twin | None:
        """The task whose outcome this one should wait for or take; None when it has to do the work itself."""
        group, key = _group_of(task), task.key
        if not group[1] or (begun(task.status) and not task.finished):
            return None
        followed = self._members.get((group[0], following(task.status) or ""))
        if followed is not None and followed.group == group and has_outcome(followed.task.status):
            return as_twin(followed.task)
        lines = self._lines.get(group)
        if lines is None:
            return None
        done = self._member(lines.done.first())
        if done is not None and done.task.key != key and _recent(done.task, task, now):
            return as_twin(done.task)
        first = self._member(lines.ready.first())
        if first is None or first.task.key == key or first.precedence >= precedence(task, stopped=self._is_stopped(task)):
            return None
        return as_twin(first.task)

    def awaited(self, key: TaskKey) -> bool:
        """Whether it has an outcome that others wait for and have not taken yet; until then it must not go away."""
        member = self._members.get(key)
        return member is not None and has_outcome(member.task.status) and bool(self._followers.get(key))

    # --- inside ---

    def _member(self, key: TaskKey | None) -> _Member | None:
        return None if key is None else self._members.get(key)

    def _refresh(self, key: TaskKey) -> None:
        self._stir_held(self._take_in(key))

    def _take_in(self, key: TaskKey) -> set[Group]:
        """What is known of a task has changed; the groups of which somebody else comes first now."""
        old, task = self._members.get(key), self._assumed.get(key, self._stored.get(key))
        new = None if task is None else _member_of(task, stopped=self._is_stopped(task))
        groups = {member.group for member in (old, new) if member is not None}
        first = {group: (self._first(group), self._first_rank(group)) for group in groups}
        if new is None:
            self._members.pop(key, None)
        else:
            self._members[key] = new
        for group in groups:
            self._line_up(key, group, new if new is not None and new.group == group else None)
        self._follow(key, old.follows if old is not None else None, new.follows if new is not None else None)
        if _cannot_be_followed(new) and (old is None or new is None or old.standing is not new.standing or old.group != new.group):
            self._stir_followers(key)
        for group in groups:
            self._first_changed(first[group][0], self._first(group))
        return {group for group in groups if first[group] != (self._first(group), self._first_rank(group))}

    def _stir_held(self, groups: Collection[Group]) -> None:
        for group in sorted(groups):
            for held in sorted(self._lines[group].held) if group in self._lines else ():
                self._stir(held)

    def _is_stopped(self, task: SwarmTask) -> bool:
        return _queue_of(task) in self._stopped

    def _first(self, group: Group) -> TaskKey | None:
        lines = self._lines.get(group)
        return None if lines is None else lines.ready.first()

    def _first_rank(self, group: Group) -> Precedence | None:
        first = self._member(self._first(group))
        return None if first is None else first.precedence

    def _line_up(self, key: TaskKey, group: Group, member: _Member | None) -> None:
        lines = self._lines.setdefault(group, _Lines())
        lines.ready.put(key, member.ready_rank if member is not None else None)
        lines.done.put(key, member.done_rank if member is not None else None)
        (lines.held.add if member is not None and member.standing is Standing.HELD else lines.held.discard)(key)
        if not lines.ready and not lines.done and not lines.held:
            del self._lines[group]

    def _follow(self, key: TaskKey, before: TaskKey | None, after: TaskKey | None) -> None:
        if before == after:
            return
        if before is not None:
            self._followers[before].discard(key)
            if not self._followers[before]:
                del self._followers[before]
                self._stir(before)  # it may be waiting to be let go
        if after is not None:
            self._followers.setdefault(after, set()).add(key)

    def _first_changed(self, before: TaskKey | None, after: TaskKey | None) -> None:
        if before == after:
            return
        for key in (before, after):
            if key is not None:
                self._stir(key)
        if before is not None:
            self._stir_followers(before)

    def _stir_followers(self, key: TaskKey) -> None:
        for follower in sorted(self._followers.get(key, ())):
            self._stir(follower)

    def _stir(self, key: TaskKey) -> None:
        if key in self._members:
            self.stir(key)


def _group_of(task: SwarmTask) -> Group:
    return (task.key[0], task.spec.dedupe_key)


def _queue_of(task: SwarmTask) -> QueueKey:
    return (task.key[0], task.spec.queue)


def _member_of(task: SwarmTask, *, stopped: bool) -> _Member:
    name = following(task.status)
    follows = None if name is None else (task.key[0], name)
    return _Member(task, _group_of(task), standing(task, stopped=stopped), follows, precedence(task, stopped=stopped))


def _cannot_be_followed(member: _Member | None) -> bool:
    return member is None or member.standing in (Standing.HELD, Standing.DONE)


def _recent(done: SwarmTask, task: SwarmTask, now: datetime) -> bool:
    """Whether a success is young enough for this task."""
    window, completed = timedelta(seconds=task.spec.dedupe_window_seconds), done.status.completion_time
    return bool(window) and completed is not None and now - completed < window
