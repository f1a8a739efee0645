"""What the operator remembers of the API: live objects as models, and placements that are decided but not yet stored.

Written by the intake and by every controller that has just written an object (so a controller always sees its own writes); read by
all. A cache, never the truth: older news never replaces newer, and everything in it can be thrown away and read again. Sums are
kept as changes arrive, because a cycle must not add up ten thousand tasks.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from pydantic import ValidationError

from swarmtask.controllers.learning import Learning, template_of
from swarmtask.controllers.measures import Measures
from swarmtask.controllers.reading import explain, read_task, version_of
from swarmtask.controllers.sizes import Sizes
from swarmtask.controllers.twins import Twins
from swarmtask.kube import Object
from swarmtask.lifecycle.members import is_recorded
from swarmtask.lifecycle.reasons import RULES
from swarmtask.resources import placement as resources
from swarmtask.resources import units
from swarmtask.resources.kinds import SWARM_NODE, SWARM_QUEUE, SWARM_TASK, Kind
from swarmtask.resources.node import NodePhase, SwarmNode
from swarmtask.resources.placement import dollars
from swarmtask.resources.queue import SwarmQueue
from swarmtask.resources.restored import is_restored
from swarmtask.resources.task import ANNOTATION_FRONT, Attempt, AttemptState, MemoryPlan, Phase, SwarmTask, attempt_id
from swarmtask.scheduler.backlog import Backlog
from swarmtask.scheduler.model import Amounts, GpuWish, PendingTask, QueueKey, RunningTask, TaskKey, TaskShape, Toleration
from swarmtask.scheduler.standing import AHEAD_S

logger = logging.getLogger(__name__)

DEFAULT_QUEUE = "default"
TOMBSTONES = 10_000
DURATIONS_AT_ONCE = 2_000
_BETTER_ELSEWHERE = frozenset(reason.value for reason, rule in RULES.items() if rule.prefers_another_node)


@dataclass(frozen=True, slots=True)
class Holding:
    """What one task holds: its place on a node and in its queue, slots of the queue's limits (sorted pairs), and the indices of its
    GPUs (none where they were not recorded: `amounts` has their number)."""

    node: str
    queue: QueueKey
    amounts: Amounts
    limits: tuple[tuple[str, int], ...] = ()
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """One task as it was last seen.

    Attributes:
        invalid: why its spec cannot be read, else None.
        pending: how it stands before the scheduler, where it waits.
        holding: what its live attempt holds.
        running: how its live attempt stands before the scheduler.
        template: what kind of work it is, as far as durations are concerned.
        memory: what its next attempt asks for; None: what its spec says. Kept up while it waits.
    """

    task: SwarmTask
    version: int
    invalid: str | None
    pending: PendingTask | None
    holding: Holding | None
    running: RunningTask | None = None
    template: str = ""
    memory: MemoryPlan | None = None

    @property
    def live(self) -> Attempt | None:
        current = self.task.status.current
        return current if current is not None and current.live else None

    @property
    def queue(self) -> QueueKey:
        return (self.task.key[0], self.task.spec.queue)


@dataclass(frozen=True, slots=True)
class Change:
    """What one piece of news did.

    Attributes:
        key: (namespace, name); the namespace of a node is empty.
        gone: the object was deleted.
        placement: something that a scheduling cycle looks at has changed.
        own: the executor wrote it, and goes on with it by itself.
        uid: of the object, where it is a task.
    """

    kind: Kind
    key: TaskKey
    gone: bool
    placement: bool
    own: bool = False
    uid: str = ""


@dataclass(frozen=True, slots=True)
class _Assumption:
    pending: PendingTask
    holding: Holding


class Cache:
    """See the module. `listeners` are told of every change, after it is in place; `witnesses` of every task as it was and as it is
    (None: it is not there), before them."""

    def __init__(self) -> None:
        self.tasks: dict[TaskKey, TaskEntry] = {}
        self.nodes: dict[str, SwarmNode] = {}
        self.queues: dict[QueueKey, SwarmQueue] = {}
        self._owners: dict[str, TaskKey] = {}
        """What the names of a task's attempts begin with -> the task."""
        self.unreadable: dict[TaskKey, str] = {}
        """Tasks of which nothing can be decided: key -> UID."""
        self.phases: Counter[tuple[QueueKey, Phase]] = Counter()
        self.namespaces: Counter[str] = Counter()
        """How many readable tasks each namespace has; none that has none."""
        self.listeners: list[Callable[[Change], None]] = []
        self.witnesses: list[Callable[[TaskEntry | None, TaskEntry | None], None]] = []
        self.learning = Learning()
        self.sizes = Sizes()
        self._measures = Measures()
        self._stale: OrderedDict[TaskKey, None] = OrderedDict()
        self._resized: OrderedDict[TaskKey, None] = OrderedDict()
        self._running_tasks: dict[TaskKey, RunningTask] = {}
        self._ends: dict[TaskKey, tuple[RunningTask, RunningTask]] = {}
        """What runs as it was last asked for, without and with its expected end."""
        self.twins = Twins()
        self._assumed: dict[TaskKey, _Assumption] = {}
        self.backlog = Backlog()
        """What waits before the scheduler; to be read only."""
        self._live: dict[TaskKey, Attempt] = {}
        self._on_nodes: dict[TaskKey, RunningTask] = {}
        self._preempted: dict[TaskKey, tuple[int, TaskKey]] = {}
        """Attempts that are to make room, and for whom, from the decision to their end."""
        self._deleting: dict[TaskKey, None] = {}
        self._requested: dict[str, Amounts] = {}
        self._tasks_on: Counter[str] = Counter()
        self._running: Counter[QueueKey] = Counter()
        self._queue_requested: dict[QueueKey, Amounts] = {}
        self._queue_tasks: dict[str, Counter[QueueKey]] = {}
        self._gpus_held: dict[str, Counter[int]] = {}
        self._moved: set[TaskKey] = set()
        """Waiting tasks with a move to the front that nobody has compared with the clock."""
        self._ahead: dict[TaskKey, float] = {}
        """Moves to the front whose time has not come, in seconds since the epoch; until then they do not count."""
        self._turns: dict[str, int] = {}
        self._turn = 0
        self._limit_holders: dict[tuple[QueueKey, str], dict[str, int]] = {}
        self._versions: dict[tuple[str, TaskKey], int] = {}
        self._tombstones: OrderedDict[tuple[str, TaskKey], int] = OrderedDict()

    # --- news ---

    def apply(self, kind: Kind, obj: Object, *, own: bool = False) -> bool:
        """An object was read, or written by us. False when something newer is known."""
        metadata = obj["metadata"]
        key: TaskKey = (metadata.get("namespace") or "", metadata["name"])
        version = version_of(obj)
        slot = (kind.plural, key)
        if version <= max(self._versions.get(slot, -1), self._tombstones.get(slot, -1)):
            return False
        self._versions[slot] = version
        placement = False
        if kind is SWARM_TASK:
            placement = self._apply_task(key, obj, version)
        elif kind is SWARM_NODE:
            placement = self._apply_node(key[1], obj)
        elif kind is SWARM_QUEUE:
            placement = self._apply_queue(key, obj)
        self._tell(Change(kind, key, gone=False, placement=placement, own=own, uid=metadata.get("uid", "")))
        return True

    def remove(self, kind: Kind, key: TaskKey, version: int | None = None) -> bool:
        """An object was deleted, at `version` where that is known. False when something newer is known."""
        slot = (kind.plural, key)
        known = self._versions.get(slot, -1)
        if version is not None and version < known:
            return False
        self._tombstones[slot] = max(known, version or 0)
        while len(self._tombstones) > TOMBSTONES:
            self._tombstones.popitem(last=False)
        if self._versions.pop(slot, None) is None:
            return False
        uid = ""
        if kind is SWARM_TASK:
            uid = self.unreadable.pop(key, "")
            if key in self.tasks:
                uid = self.tasks[key].task.metadata.uid
            self._put_task(key, None)
        elif kind is SWARM_NODE:
            self.nodes.pop(key[1], None)
            self._turns.pop(key[1], None)
            self._note_node(key[1])
        elif kind is SWARM_QUEUE:
            self.queues.pop(key, None)
        self._tell(Change(kind, key, gone=True, placement=True, uid=uid))
        return True

    def replace(self, kind: Kind, objects: Sequence[Object], version: int) -> None:
        """A complete list was read at `version`: what is not in it is gone, unless it is newer than the list."""
        present = set()
        for obj in objects:
            metadata = obj["metadata"]
            present.add((metadata.get("namespace") or "", metadata["name"]))
            self.apply(kind, obj)
        known = [key for plural, key in self._versions if plural == kind.plural]
        for key in known:
            if key not in present and self._versions[(kind.plural, key)] <= version:
                self.remove(kind, key, version)

    def _tell(self, change: Change) -> None:
        for listener in self.listeners:
            listener(change)

    def _apply_task(self, key: TaskKey, obj: Object, version: int) -> bool:
        try:
            read = read_task(obj)
        except ValueError as error:
            if key not in self.unreadable:
                logger.error("SwarmTask %s/%s is left alone: %s", *key, error)
            self.unreadable[key] = obj["metadata"].get("uid", "")
            return self._put_task(key, None)
        self.unreadable.pop(key, None)
        task, template = read.task, template_of(read.task)
        memory = None if read.invalid is not None or task.is_array else self._plan(key, task)
        entry = TaskEntry(
            task,
            version,
            read.invalid,
            pending=None
            if read.invalid is not None or self._superfluous(task)
            else pending_task(task, duration_s=self.learning.typical_s(template), memory=memory),
            holding=holding_of(task),
            running=running_task(task),
            template=template,
            memory=memory,
        )
        if entry.pending is not None and entry.pending.front_at is not None and entry.pending.front_at == self._ahead.get(key):
            entry = replace(entry, pending=replace(entry.pending, front_at=None))
        self._check_front(key, task)
        return self._put_task(key, entry)

    def _plan(self, key: TaskKey, task: SwarmTask) -> MemoryPlan | None:
        """What it asks for. What was counted when it was placed holds until that is stored, whatever is learned meanwhile."""
        old = self.tasks.get(key)
        if old is not None and key in self._assumed:
            known = (old.task.metadata.uid, old.task.spec.container, old.task.status.memory)
            if known == (task.metadata.uid, task.spec.container, task.status.memory):
                return old.memory
        return self.sizes.plan(task)

    def _check_front(self, key: TaskKey, task: SwarmTask) -> None:
        text, old = task.metadata.annotations.get(ANNOTATION_FRONT), self.tasks.get(key)
        known = None if old is None else old.task.metadata.annotations.get(ANNOTATION_FRONT)
        if text is not None and text != known and _moment(text) is None:
            logger.warning("SwarmTask %s/%s is not moved to the front: %s is no RFC 3339 time: %r", *key, ANNOTATION_FRONT, text)

    def _superfluous(self, task: SwarmTask) -> bool:
        """A run of an array that has ended, or has recorded it: a create that came late. It must not start before it is deleted."""
        owner = task.array_owner
        array = self.tasks.get((task.key[0], owner.name)) if owner is not None else None
        if owner is None or array is None or array.task.metadata.uid != owner.uid or task.status.observed_retry is not None:
            return False
        return array.task.finished or is_recorded(array.task, task.metadata.name)

    def _apply_node(self, name: str, obj: Object) -> bool:
        old = self.nodes.get(name)
        try:
            new = SwarmNode.model_validate({field: value for field, value in obj.items() if value is not None})
        except ValidationError as error:
            logger.error("SwarmNode %s takes no tasks: %s", name, explain(error))
            known = self.nodes.pop(name, None) is not None
            self._note_node(name)
            return known
        self.nodes[name] = new
        self._note_node(name)
        if old is None:
            return True
        unseen = {"requested": new.status.requested, "tasks": new.status.tasks, "attempts": new.status.attempts}
        same_status = old.status.model_copy(update=unseen)
        return old.spec != new.spec or old.metadata.labels != new.metadata.labels or same_status != new.status

    def _note_node(self, name: str) -> None:
        """What others than tasks use there, and whether another amount is the most that some node offers."""
        node = self.nodes.get(name)
        self._measures.node(name, node)
        gone = node is None or node.status.phase is NodePhase.GONE
        self._resized.update(dict.fromkeys(self.sizes.offer(name, 0 if node is None or gone else offered_memory(node))))

    def _apply_queue(self, key: QueueKey, obj: Object) -> bool:
        old = self.queues.get(key)
        try:
            new = SwarmQueue.model_validate({field: value for field, value in obj.items() if value is not None})
        except ValidationError as error:
            logger.error("SwarmQueue %s/%s is treated as missing: %s", *key, explain(error))
            return self.queues.pop(key, None) is not None
        self.queues[key] = new
        return old is None or old.spec != new.spec

    # --- tasks and their sums ---

    def _put_task(self, key: TaskKey, entry: TaskEntry | None) -> bool:
        """Replace an entry and carry every sum along. True when a scheduling cycle would see a difference."""
        old, before, waited = self.tasks.get(key), self._holding(key), self._pending(key)
        ran = self._on_nodes.get(key)
        self._count_in_namespace(key[0], (entry is not None) - (old is not None))
        if old is not None and not old.task.is_array:
            self.phases[(old.queue, old.task.status.phase)] -= 1
        if old is not None and (entry is None or entry.task.metadata.uid != old.task.metadata.uid):
            self._owners.pop(_name_of_attempts(old.task.metadata.uid), None)
        if entry is not None:
            self._owners[_name_of_attempts(entry.task.metadata.uid)] = key
        if entry is None:
            self.tasks.pop(key, None)
            self._live.pop(key, None)
            self._deleting.pop(key, None)
        else:
            self.tasks[key] = entry
            if entry.task.metadata.deletion_timestamp is not None:
                self._deleting[key] = None
            else:
                self._deleting.pop(key, None)
            if not entry.task.is_array:  # its runs are counted
                self.phases[(entry.queue, entry.task.status.phase)] += 1
            if entry.live is not None:
                self._live[key] = entry.live
            else:
                self._live.pop(key, None)
        assumed = self._assumed.get(key)
        if assumed is not None and (entry is None or entry.holding is not None or entry.pending != assumed.pending):
            del self._assumed[key]
        self._account(key, before)
        self._put_running(key, None if entry is None else entry.running)
        self.twins.put(key, entry.task if entry is not None and entry.invalid is None else None)
        self._stale.update(dict.fromkeys(self.learning.note(key, old, entry)))
        self._resized.update(dict.fromkeys(self.sizes.note(key, old, entry)))
        was, now = None if old is None else old.live, None if entry is None else entry.live
        if was is not now:
            self._measures.attempt(was, now, first_sight=old is None)
        for witness in self.witnesses:
            witness(old, entry)
        return before != self._holding(key) or waited != self._pending(key) or _differ(ran, self._on_nodes.get(key))

    def _count_in_namespace(self, namespace: str, change: int) -> None:
        if change:
            self.namespaces[namespace] += change
            if not self.namespaces[namespace]:
                del self.namespaces[namespace]

    def _put_running(self, key: TaskKey, running: RunningTask | None) -> None:
        self._running_tasks.pop(key, None)
        preempted = self._preempted.get(key)
        if running is None:
            self._on_nodes.pop(key, None)
        if preempted is not None and (running is None or running.attempt != preempted[0]):
            del self._preempted[key]
            preempted = None
        if running is not None:
            if preempted is not None:
                running = replace(running, stopping=True, makes_room_for=preempted[1])
            self._on_nodes[key] = running

    def refresh_durations(self, most: int = DURATIONS_AT_ONCE) -> None:
        """Tell waiting tasks how long their kind is expected to run, where that has changed: the oldest `most` of those that have
        not been told, because a lesson may concern a hundred thousand. Nobody is woken by it."""
        for _ in range(min(most, len(self._stale))):
            key, _ = self._stale.popitem(last=False)
            entry = self.tasks.get(key)
            if entry is None or entry.pending is None:
                continue
            self._put_pending(replace(entry.pending, duration_s=self.learning.typical_s(entry.template)))

    def settle_fronts(self, now: float) -> None:
        """Let only those moves to the front count whose time has come at `now` (seconds since the epoch)."""
        latest = now + AHEAD_S
        for key in self._moved:
            pending = self.tasks[key].pending if key in self.tasks else None
            if pending is not None and pending.front_at is not None and pending.front_at > latest:
                self._ahead[key] = pending.front_at
                self._put_pending(replace(pending, front_at=None))
        self._moved.clear()
        for key, moment in list(self._ahead.items()):
            pending = self.tasks[key].pending if key in self.tasks else None
            if pending is None or front_at(self.tasks[key].task) != moment:
                del self._ahead[key]  # it was placed, moved again, or is gone
            elif moment <= latest:
                del self._ahead[key]
                self._put_pending(replace(pending, front_at=moment))

    @property
    def next_front_at(self) -> float | None:
        """When the next move to the front begins to count, in seconds since the epoch; None when no such move is known."""
        return min(self._ahead.values()) - AHEAD_S if self._ahead else None

    def _put_pending(self, pending: PendingTask) -> None:
        self.tasks[pending.key] = replace(self.tasks[pending.key], pending=pending)
        if pending.key in self.backlog:
            self.backlog.put(pending)

    def refresh_sizes(self, most: int = DURATIONS_AT_ONCE) -> None:
        """The same for tasks with `memory: auto` and how much they ask for."""
        for _ in range(min(most, len(self._resized))):
            key, _ = self._resized.popitem(last=False)
            entry = self.tasks.get(key)
            if entry is None or entry.pending is None:
                continue
            if key in self._assumed:
                self._resized[key] = None  # looked at again if it comes back
                continue
            memory = self.sizes.plan(entry.task)
            if memory == entry.memory:
                continue
            pending = pending_task(entry.task, duration_s=entry.pending.duration_s, memory=memory)
            self.tasks[key] = replace(entry, pending=pending, memory=memory)
            if key in self.backlog and pending is not None:
                self.backlog.put(pending)

    def _holding(self, key: TaskKey) -> Holding | None:
        entry = self.tasks.get(key)
        if entry is not None and entry.holding is not None:
            return entry.holding
        assumed = self._assumed.get(key)
        return None if assumed is None else assumed.holding

    def _pending(self, key: TaskKey) -> PendingTask | None:
        entry = self.tasks.get(key)
        return None if entry is None or key in self._assumed else entry.pending

    def _account(self, key: TaskKey, before: Holding | None) -> None:
        self._running_tasks.pop(key, None)
        pending = self._pending(key)
        if pending is not None:
            self.backlog.put(pending)
            if pending.front_at is not None:
                self._moved.add(key)
        else:
            self.backlog.drop(key)
        after = self._holding(key)
        if before == after:
            return
        for holding, sign in ((before, -1), (after, 1)):
            if holding is None:
                continue
            sums = self._requested.get(holding.node, Amounts())
            self._requested[holding.node] = sums + holding.amounts if sign > 0 else sums - holding.amounts
            self._tasks_on[holding.node] += sign
            self._running[holding.queue] += sign
            held = self._queue_requested.get(holding.queue, Amounts())
            self._queue_requested[holding.queue] = held + holding.amounts if sign > 0 else held - holding.amounts
            self._count_queue_task(holding, sign)
            if holding.gpus:
                self._count_gpus(holding, sign)
        if before is not None:
            for name, _ in before.limits:
                holders = self._limit_holders[before.queue, name]
                del holders[key[1]]
                if not holders:
                    del self._limit_holders[before.queue, name]
        if after is not None:
            for name, slots in after.limits:
                self._limit_holders.setdefault((after.queue, name), {})[key[1]] = slots

    def _count_queue_task(self, holding: Holding, sign: int) -> None:
        here = self._queue_tasks.setdefault(holding.node, Counter())
        here[holding.queue] += sign
        if not here[holding.queue]:
            del here[holding.queue]
        if not here:
            del self._queue_tasks[holding.node]

    def _count_gpus(self, holding: Holding, sign: int) -> None:
        here = self._gpus_held.setdefault(holding.node, Counter())
        for index in holding.gpus:
            here[index] += sign
            if not here[index]:
                del here[index]
        if not here:
            del self._gpus_held[holding.node]

    # --- assumed placements ---

    def assume(self, pending: PendingTask, node: str, gpus: tuple[int, ...] = ()) -> bool:
        """Count a placement before it is stored. False when the task has changed since it was decided."""
        entry = self.tasks.get(pending.key)
        if entry is None or entry.pending != pending or pending.key in self._assumed:
            return False
        before = self._holding(pending.key)
        holding = Holding(node, pending.queue, pending.shape.request, pending.shape.limits, gpus)
        self._assumed[pending.key] = _Assumption(pending, holding)
        self._account(pending.key, before)
        self._turn += 1
        self._turns[node] = self._turn
        return True

    def assumption(self, key: TaskKey) -> tuple[str, tuple[int, ...]] | None:
        """The node that a task is assumed on, and the indices of its GPUs; None when there is no such assumption (any more)."""
        assumed = self._assumed.get(key)
        return None if assumed is None else (assumed.holding.node, assumed.holding.gpus)

    def drop_assumption(self, key: TaskKey) -> bool:
        """The placement was not stored. True when there was one: the task waits again."""
        if key not in self._assumed:
            return False
        before = self._holding(key)
        del self._assumed[key]
        self._account(key, before)
        return True

    def assume_preempted(self, key: TaskKey, attempt: int, by: TaskKey) -> bool:
        """Count an attempt as being stopped before that is stored. False when it is no more, or is being stopped already."""
        running = self._on_nodes.get(key)
        if running is None or running.attempt != attempt or running.stopping:
            return False
        self._preempted[key] = (attempt, by)
        self._put_running(key, running)
        return True

    def settle_preemption(self, key: TaskKey) -> bool:
        """Its stop was stored, or was not. True when it is not being stopped after all: it holds its room as before."""
        entry = self.tasks.get(key)
        running = None if entry is None else entry.running
        if key not in self._preempted or running is None or running.stopping:
            return False
        del self._preempted[key]
        self._put_running(key, running)
        return True

    # --- reading ---

    def waiting(self) -> Iterable[PendingTask]:
        """Tasks before the scheduler: Queued, readable, not assumed, not being deleted."""
        return self.backlog.tasks()

    def live(self) -> Iterator[tuple[TaskKey, Attempt]]:
        """Every live attempt."""
        return iter(list(self._live.items()))

    def running_tasks(self, now: float) -> list[RunningTask]:
        """Every live attempt, and every assumed one as if it had been placed `now` (seconds since the epoch)."""
        known = self._running_tasks
        for key in {**self._live, **self._assumed}:
            if key not in known:
                known[key] = self._running_task(key, now)
        return list(known.values())

    def _running_task(self, key: TaskKey, now: float) -> RunningTask:
        running, live = self._on_nodes.get(key), self._live.get(key)
        if running is not None:
            return running if live is not None and live.bound_at is not None else replace(running, bound_at=now)
        assumed = self._assumed[key]
        pending, holding = assumed.pending, assumed.holding
        return RunningTask(
            key, pending.uid, pending.queue, pending.priority, holding.node, 0, holding.amounts, now, gpus=holding.gpus,
            limits=holding.limits, queued_at=pending.queued_at, fronted=pending.front_at is not None,
        )  # fmt: skip

    def with_ends(self, running: Iterable[RunningTask], now: float) -> list[RunningTask]:
        """The same, with their expected ends as far as they are known.

        What has not changed is the same object as last time: a cycle must not make ten thousand of them anew. An expected end is
        looked at again once it has passed.
        """
        before, self._ends = self._ends, {}
        for one in running:
            given, known = before.get(one.key, (None, one))
            if given is not one or known.ends_at is None or known.ends_at <= now:
                ends_at = self.learning.ends_at(self.tasks[one.key].template, one.bound_at, now)
                known = one if ends_at is None else replace(one, ends_at=ends_at)
            self._ends[one.key] = (one, known)
        return [known for _, known in self._ends.values()]

    def owner_of(self, attempt_id: str) -> TaskKey | None:
        """The task whose attempt has this name, whether it is recorded or not."""
        return self._owners.get(attempt_id.rpartition("-")[0])

    def deleting(self) -> list[TaskKey]:
        """Tasks whose deletion somebody has asked for."""
        return list(self._deleting)

    def requested(self, node: str) -> Amounts:
        """What live and assumed attempts hold on a node."""
        return self._requested.get(node, Amounts())

    def foreign_bytes(self, name: str, capacity_bytes: int, offered_bytes: int) -> int:
        """How much memory of what a node offers others than tasks use, as measured; 0 where nobody measures."""
        return self._measures.taken(name, capacity_bytes, offered_bytes)

    def gpus_held(self, node: str) -> frozenset[int]:
        """Indices of the GPUs of a node that live and assumed attempts hold, as far as they are recorded."""
        return frozenset(self._gpus_held.get(node, ()))

    def tasks_on(self, node: str) -> int:
        return self._tasks_on[node]

    def turn(self, node: str) -> int:
        """When a task was last placed on the node, compared to others: later is larger, 0 is never since this process began."""
        return self._turns.get(node, 0)

    def queue_requested(self, queue: QueueKey) -> Amounts:
        """What live and assumed tasks of a queue hold."""
        return self._queue_requested.get(queue, Amounts())

    def queue_tasks_on(self, node: str) -> dict[QueueKey, int]:
        """How many live and assumed tasks of each queue are on a node, for queues that have some there."""
        return dict(self._queue_tasks.get(node, ()))

    def running(self, queue: QueueKey) -> int:
        """Live and assumed tasks of a queue."""
        return self._running[queue]

    def limit_holders(self, queue: QueueKey, name: str) -> dict[str, int]:
        """The name of each task of the queue that is live or assumed and holds slots of this limit -> how many."""
        return dict(self._limit_holders.get((queue, name), ()))

    def drains(self, node: str) -> bool:
        """A person wants the node empty."""
        known = self.nodes.get(node)
        return known is not None and known.spec.drain

    def queue_exists(self, queue: QueueKey) -> bool:
        """The queue `default` counts as there: the operator creates it in every namespace that has tasks."""
        return queue[1] == DEFAULT_QUEUE or queue in self.queues


def offered_memory(node: SwarmNode) -> int:
    """Bytes that a node offers to tasks: its capacity less what is reserved."""
    return max(0, units.memory_bytes(node.status.capacity.memory) - units.memory_bytes(node.spec.reserved.memory))


def _name_of_attempts(uid: str) -> str:
    return attempt_id(uid, 0).rpartition("-")[0]


def pending_task(
    task: SwarmTask, queued_at: float | None = None, duration_s: float | None = None, memory: MemoryPlan | None = None
) -> PendingTask | None:
    """How a waiting task stands before the scheduler; None when it does not wait.

    Args:
        queued_at: instead of when it came to the queue, in seconds since the epoch.
        duration_s: how long such tasks run; None while that is not known.
        memory: what it asks for; None: what its spec says, which then is an amount.
    """
    if task.status.phase is not Phase.QUEUED or task.metadata.deletion_timestamp is not None or task.is_array or is_restored(task):
        return None
    spec, requests, placement = task.spec, task.spec.container.resources.requests, task.spec.placement
    since = task.status.queued_time or task.metadata.creation_timestamp
    if queued_at is None:
        queued_at = since.timestamp() if since is not None else 0.0
    return PendingTask(
        key=task.key,
        uid=task.metadata.uid,
        queue=(task.key[0], spec.queue),
        priority=spec.effective_priority,
        queued_at=queued_at,
        shape=TaskShape(
            request=Amounts(
                units.cpu_milli(requests.cpu),
                units.memory_bytes(requests.memory if memory is None else memory.request),
                requests.gpu,
            ),
            engine="" if spec.engine == "auto" else spec.engine,
            node_name=placement.node_name,
            node_selector=tuple(sorted(placement.node_selector.items())),
            capabilities=frozenset(placement.capabilities),
            limits=tuple(sorted(spec.limits.items())),
            strategy="smallest" if memory is not None and memory.basis == "Ladder" else placement.strategy,
            avoid=frozenset(attempt.node for attempt in task.status.attempts if attempt.reason in _BETTER_ELSEWHERE),
            gpu=_gpu_wish(placement.gpu) if requests.gpu else GpuWish(),
            tolerations=tuple(map(_toleration, placement.tolerations)),
            regions=frozenset(placement.regions),
            preferred_regions=frozenset(placement.preferred_regions),
            max_latency_ms=placement.max_latency_milliseconds or None,
            max_cost_per_hour=None if placement.max_cost_per_hour is None else float(dollars(placement.max_cost_per_hour)),
            on_battery=placement.on_battery,
        ),
        front_at=front_at(task),
        duration_s=duration_s,
    )


def front_at(task: SwarmTask) -> float | None:
    """When a person moved the task to the front of its queue, in seconds since the epoch; None where nobody did, or where it has
    been placed since: a move counts once, so that a task that was preempted does not come before the one that needed its room.
    When it was placed is stored in whole seconds, cut off: a move in that second was before it."""
    text, current = task.metadata.annotations.get(ANNOTATION_FRONT), task.status.current
    moment = None if text is None else _moment(text)
    placed = None if current is None or current.bound_at is None else current.bound_at.timestamp()
    return None if moment is None or (placed is not None and moment < math.floor(placed) + 1) else moment


def _moment(text: str) -> float | None:
    """An RFC 3339 time in seconds since the epoch; None where it is none."""
    try:
        moment = datetime.fromisoformat(text)
        return None if moment.tzinfo is None else moment.timestamp()
    except (ValueError, OverflowError):
        return None


def running_task(task: SwarmTask) -> RunningTask | None:
    """How a live attempt stands before the scheduler; None where there is none."""
    current, holding = task.status.current, holding_of(task)
    if current is None or holding is None:
        return None
    queued, bound = task.status.queued_time, current.bound_at
    return RunningTask(
        key=task.key,
        uid=task.metadata.uid,
        queue=holding.queue,
        priority=task.spec.effective_priority,
        node=holding.node,
        attempt=current.number,
        amounts=holding.amounts,
        bound_at=0.0 if bound is None else bound.timestamp(),
        gpus=holding.gpus,
        limits=holding.limits,
        stopping=current.state is AttemptState.STOPPING,
        queued_at=None if queued is None else queued.timestamp(),
        fronted=_moment(task.metadata.annotations.get(ANNOTATION_FRONT, "")) is not None,
    )


def _differ(before: RunningTask | None, after: RunningTask | None) -> bool:
    """Whether a cycle would see more than that the attempt was stored."""
    if before is None or after is None:
        return False  # what they hold tells
    return (before.stopping, before.priority) != (after.stopping, after.priority)


def _gpu_wish(wish: resources.GpuWish) -> GpuWish:
    return GpuWish(wish.vendor, wish.model.lower(), 0 if wish.memory is None else units.memory_bytes(wish.memory))


def _toleration(toleration: resources.Toleration) -> Toleration:
    value = None if toleration.operator == "Exists" else toleration.value
    return Toleration(toleration.key, value, toleration.effect or None)


def holding_of(task: SwarmTask) -> Holding | None:
    """What the live attempt of a task holds, as it was when it was bound."""
    current = task.status.current
    if current is None or not current.live:
        return None
    held = current.requested
    amounts = Amounts(units.cpu_milli(held.cpu), units.memory_bytes(held.memory), held.gpu)
    return Holding(
        current.node,
        (task.key[0], held.queue or task.spec.queue),
        amounts,
        tuple(sorted(held.limits.items())),
        tuple(held.gpu_indices),
    )
