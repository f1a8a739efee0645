"""What the operator remembers of the API: live objects as models, and placements that are decided but not yet stored.

Written by the intake and by every controller that has just written an object (so a controller always sees its own writes); read by
all. A cache, never the truth: older news never replaces newer, and everything in it can be thrown away and read again. Sums are
kept as changes arrive, because a cycle must not add up ten thousand tasks.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from swarmtask.controllers import task_facts
from swarmtask.controllers.census import Census
from swarmtask.controllers.entries import Assumption, Change, HeldGpu, Holding, TaskEntry
from swarmtask.controllers.fronts import Fronts, check_front
from swarmtask.controllers.known_nodes import KnownNodes
from swarmtask.controllers.known_queues import DEFAULT_QUEUE, KnownQueues
from swarmtask.controllers.learning import Learning, template_of
from swarmtask.controllers.measures import Measures
from swarmtask.controllers.node_facts import offered_memory
from swarmtask.controllers.occupants import Occupants, differ
from swarmtask.controllers.reading import read_task, version_of
from swarmtask.controllers.sizes import Sizes
from swarmtask.controllers.sums import Sums
from swarmtask.controllers.twins import Twins
from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_NODE, SWARM_QUEUE, SWARM_TASK, Kind
from swarmtask.resources.node import NodeEviction, NodePhase, SwarmNode
from swarmtask.resources.queue import SwarmQueue
from swarmtask.resources.task import Attempt, MemoryPlan, SwarmTask
from swarmtask.scheduler.backlog import Backlog
from swarmtask.scheduler.model import Amounts, LimitInfo, PendingTask, QueueKey, RunningTask, TaskKey

logger = logging.getLogger(__name__)

TOMBSTONES = 10_000
DURATIONS_AT_ONCE = 2_000


class Cache:
    """See the module. `listeners` are told of every change, after it is in place; `witnesses` of every task as it was and as it is
    (None: it is not there), before them."""

    def __init__(self) -> None:
        self.tasks: dict[TaskKey, TaskEntry] = {}
        self.known_nodes = KnownNodes()
        self.nodes: Mapping[str, SwarmNode] = self.known_nodes.objects
        self.known_queues = KnownQueues()
        self.queues: Mapping[QueueKey, SwarmQueue] = self.known_queues.objects
        self.unreadable: dict[TaskKey, str] = {}
        """Tasks of which nothing can be decided: key -> UID."""
        self._census = Census()
        self.phases, self.bound, self.namespaces = self._census.phases, self._census.bound, self._census.namespaces
        """How many tasks each queue has in each phase (arrays are not counted, their runs are); how many live attempts it has let
        start; how many readable tasks each namespace has, where it has any."""
        self.listeners: list[Callable[[Change], None]] = []
        self.witnesses: list[Callable[[TaskEntry | None, TaskEntry | None], None]] = []
        self.learning = Learning()
        self.sizes = Sizes()
        self._measures = Measures()
        self._stale: OrderedDict[TaskKey, None] = OrderedDict()
        self._resized: OrderedDict[TaskKey, None] = OrderedDict()
        self._occupants = Occupants()
        self.twins = Twins()
        self._assumed: dict[TaskKey, Assumption] = {}
        self._aside: set[TaskKey] = set()
        self.backlog = Backlog()
        """What waits before the scheduler; to be read only."""
        self._sums = Sums()
        self._fronts = Fronts()
        self._turns: dict[str, int] = {}
        self._turn = 0
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
            placement = self.known_nodes.put(key[1], obj)
            self._note_node(key[1])
        elif kind is SWARM_QUEUE:
            placement = self.known_queues.put(key, obj)
            self.twins.put_queue(key, stopped=self.queues[key].spec.stopped)
        self._tell(Change(kind, key, gone=False, placement=placement, own=own, uid=metadata.get("uid", "")))
        return True

    def remove(self, kind: Kind, key: TaskKey, version: int | None = None) -> bool:
        """An object was deleted, at `version` where that is known. False when something newer is known."""
        slot = (kind.plural, key)
        known = self._versions.get(slot, -1)
        if version is not None and version < known:
            return False
        self._tombstones[slot] = max(known, version or 0, self._tombstones.get(slot, 0))  # "not found" knows no version
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
            self.known_nodes.drop(key[1])
            self._turns.pop(key[1], None)
            self._note_node(key[1])
        elif kind is SWARM_QUEUE:
            self.known_queues.drop(key, named=key[0] in self.namespaces)
            self.twins.put_queue(key, stopped=False)  # without its object it is no queue that is held, but one that is not there
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
            else task_facts.pending_task(task, duration_s=self.learning.typical_s(template), memory=memory),
            holding=task_facts.holding_of(task),
            running=task_facts.running_task(task),
            template=template,
            memory=memory,
        )
        if entry.pending is not None and self._fronts.is_ahead(entry.pending):
            entry = replace(entry, pending=replace(entry.pending, front_at=None))
        check_front(task, self.tasks[key].task if key in self.tasks else None)
        return self._put_task(key, entry)

    def _plan(self, key: TaskKey, task: SwarmTask) -> MemoryPlan | None:
        """What it asks for. What was counted when it was placed holds until that is stored, whatever is learned meanwhile."""
        old = self.tasks.get(key)
        if old is not None and key in self._assumed:
            known = (old.task.metadata.uid, old.task.spec.container, old.task.status.memory)
            if known == (task.metadata.uid, task.spec.container, task.status.memory):
                return old.memory
        return self.sizes.plan(task)

    def _superfluous(self, task: SwarmTask) -> bool:
        owner = task.array_owner
        array = self.tasks.get((task.key[0], owner.name)) if owner is not None else None
        return array is not None and task_facts.is_superfluous(task, array.task)

    def _note_node(self, name: str) -> None:
        """What others than tasks use there, and whether another amount is the most that some node offers."""
        node = self.nodes.get(name)
        self._measures.node(name, node)
        gone = node is None or node.status.phase is NodePhase.GONE
        self._resized.update(dict.fromkeys(self.sizes.offer(name, 0 if node is None or gone else offered_memory(node))))

    # --- tasks and their sums ---

    def _put_task(self, key: TaskKey, entry: TaskEntry | None) -> bool:
        """Replace an entry and carry every sum along. True when a scheduling cycle would see a difference."""
        old, before, waited = self.tasks.get(key), self._holding(key), self._pending(key)
        ran = self._occupants.of(key)
        if entry is None:
            self.tasks.pop(key, None)
        else:
            self.tasks[key] = entry
        self._census.put(key, old, entry)
        if key[0] not in self.namespaces:
            self.known_queues.forget(key[0])
        assumed = self._assumed.get(key)
        if assumed is not None and (entry is None or entry.holding is not None or entry.pending != assumed.pending):
            del self._assumed[key]
        self._account(key, before)
        self._occupants.put(key, None if entry is None else entry.running)
        self.twins.put(key, entry.task if entry is not None and entry.invalid is None else None)
        self._stale.update(dict.fromkeys(self.learning.note(key, old, entry)))
        self._resized.update(dict.fromkeys(self.sizes.note(key, old, entry)))
        was, now = None if old is None else old.live, None if entry is None else entry.live
        if was is not now:
            self._measures.attempt(was, now, first_sight=old is None)
        for witness in self.witnesses:
            witness(old, entry)
        return before != self._holding(key) or waited != self._pending(key) or differ(ran, self._occupants.of(key))

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
        for pending, moment in self._fronts.settle(self.tasks, now):
            self._put_pending(replace(pending, front_at=moment))

    @property
    def next_front_at(self) -> float | None:
        """When the next move to the front begins to count, in seconds since the epoch; None when no such move is known."""
        return self._fronts.next_at

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
            pending = task_facts.pending_task(entry.task, duration_s=entry.pending.duration_s, memory=memory)
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
        return None if entry is None or key in self._assumed or key in self._aside else entry.pending

    def _account(self, key: TaskKey, before: Holding | None) -> None:
        self._occupants.touch(key)
        pending = self._pending(key)
        if pending is not None:
            self.backlog.put(pending)
            self._fronts.note(pending)
        else:
            self.backlog.drop(key)
        self._sums.move(key, before, self._holding(key))

    # --- assumed placements ---

    def assume(self, pending: PendingTask, node: str, gpus: tuple[int, ...] = (), uuids: tuple[str, ...] = ()) -> bool:
        """Count a placement before it is stored, with the indices and UUIDs of its GPUs. False when the task has changed since it
        was decided."""
        entry = self.tasks.get(pending.key)
        if entry is None or entry.pending != pending or pending.key in self._assumed or pending.key in self._aside:
            return False
        before = self._holding(pending.key)
        holding = Holding(node, pending.queue, pending.shape.request, pending.shape.limits, gpus, uuids)
        self._assumed[pending.key] = Assumption(pending, holding)
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

    def set_aside(self, key: TaskKey) -> None:
        """The placement cannot be stored: the task holds nothing, and no cycle looks at it until it is taken back."""
        self._aside.add(key)
        if not self.drop_assumption(key):
            self._account(key, self._holding(key))

    def take_back(self, key: TaskKey) -> None:
        """It waits again, if it still does."""
        if key in self._aside:
            self._aside.discard(key)
            self._account(key, self._holding(key))

    def assume_preempted(self, key: TaskKey, attempt: int, by: TaskKey) -> bool:
        """Count an attempt as being stopped before that is stored. False when it is no more, or is being stopped already."""
        return self._occupants.preempt(key, attempt, by)

    def settle_preemption(self, key: TaskKey) -> bool:
        """Its stop was stored, or was not. True when it is not being stopped after all: it holds its room as before."""
        entry = self.tasks.get(key)
        return self._occupants.settle(key, None if entry is None else entry.running)

    # --- reading ---

    def waiting(self) -> Iterable[PendingTask]:
        """Tasks before the scheduler: Queued, readable, not assumed, not being deleted."""
        return self.backlog.tasks()

    def live(self) -> Iterator[tuple[TaskKey, Attempt]]:
        """Every live attempt."""
        return iter(list(self._census.live.items()))

    def running_tasks(self, now: float) -> list[RunningTask]:
        """Every live attempt, and every assumed one as if it had been placed `now` (seconds since the epoch)."""
        return self._occupants.running(self._census.live, self._assumed, now)

    def with_ends(self, running: Iterable[RunningTask], now: float) -> list[RunningTask]:
        """The same, with their expected ends as far as they are known; what has not changed is the same object as last time."""
        return self._occupants.with_ends(
            running, now, lambda one: self.learning.ends_at(self.tasks[one.key].template, one.bound_at, now)
        )

    def owner_of(self, attempt_id: str) -> TaskKey | None:
        """The task whose attempt has this name, whether it is recorded or not."""
        return self._census.owners.get(attempt_id.rpartition("-")[0])

    def deleting(self) -> list[TaskKey]:
        """Tasks whose deletion somebody has asked for."""
        return list(self._census.deleting)

    def requested(self, node: str) -> Amounts:
        """What live and assumed attempts hold on a node."""
        return self._sums.requested.get(node, Amounts())

    def foreign_bytes(self, name: str, capacity_bytes: int, offered_bytes: int) -> int:
        """How much memory of what a node offers others than tasks use, as measured; 0 where nobody measures."""
        return self._measures.taken(name, capacity_bytes, offered_bytes)

    def gpus_held(self, node: str) -> frozenset[HeldGpu]:
        """The GPUs of a node that live and assumed attempts hold, as far as they are recorded."""
        return frozenset(self._sums.gpus_held.get(node, ()))

    def tasks_on(self, node: str) -> int:
        return self._sums.tasks_on[node]

    def turn(self, node: str) -> int:
        """When a task was last placed on the node, compared to others: later is larger, 0 is never since this process began."""
        return self._turns.get(node, 0)

    def queue_requested(self, queue: QueueKey) -> Amounts:
        """What live and assumed tasks of a queue hold."""
        return self._sums.queue_requested.get(queue, Amounts())

    def queue_tasks_on(self, node: str) -> dict[QueueKey, int]:
        """How many live and assumed tasks of each queue are on a node, for queues that have some there."""
        return dict(self._sums.queue_tasks.get(node, ()))

    def running(self, queue: QueueKey) -> int:
        """Live and assumed tasks of a queue."""
        return self._sums.running[queue]

    def limits(self) -> dict[str, LimitInfo]:
        """The limits that queues name, with all live and assumed tasks that hold some."""
        smallest: dict[str, tuple[int, QueueKey]] = {}
        for key, queue in self.queues.items():
            for name, most in queue.spec.limits.items():
                smallest[name] = min(smallest.get(name, (most, key)), (most, key))
        holders = self._sums.limit_holders
        return {name: LimitInfo(most, key, dict(holders.get(name, ()))) for name, (most, key) in smallest.items()}

    def limit_held(self, name: str) -> int:
        """Slots of this limit that live and assumed tasks hold."""
        return self._sums.limit_held[name]

    def drains(self, node: str) -> bool:
        """A person wants the node empty."""
        known = self.nodes.get(node)
        return known is not None and known.spec.drain

    def eviction(self, node: str) -> NodeEviction | None:
        """Whose end the node's agent asks for, because memory is short there."""
        known = self.nodes.get(node)
        return None if known is None else known.status.eviction

    def queue_exists(self, queue: QueueKey) -> bool:
        """The queue `default` counts as there until it has been deleted: the operator creates it in every namespace that has
        tasks."""
        return self.known_queues.exists(queue)

    def has_room(self, key: TaskKey) -> bool:
        """Whether the queue of an assumed task and the limits still let it start, by what they say now and with all that is live
        or assumed counted. True where nothing is assumed."""
        assumed = self._assumed.get(key)
        if assumed is None:
            return True
        holding = assumed.holding
        queue = self.queues.get(holding.queue)
        if queue is None or queue.spec.stopped:
            return False
        spec = queue.spec
        bounds = [
            (self.running(holding.queue), spec.max_running),
            (self._sums.queue_tasks[holding.node][holding.queue], spec.max_running_per_node),
        ]
        bounds += [
            (self.limit_held(name), other.spec.limits.get(name)) for name, _ in holding.limits for other in self.queues.values()
        ]
        return all(most is None or held <= most for held, most in bounds)

    def lacks_default(self, namespace: str) -> bool:
        """It has tasks, and no queue `default`, and nobody has deleted that."""
        default = (namespace, DEFAULT_QUEUE)
        return namespace in self.namespaces and default not in self.queues and self.known_queues.exists(default)

    def had_default(self, namespace: str) -> bool:
        """Some task of the namespace has been started from its queue `default`: there was one, also before this process began."""
        entries = (entry for key, entry in self.tasks.items() if key[0] == namespace)
        return any(attempt.requested.queue == DEFAULT_QUEUE for entry in entries for attempt in entry.task.status.attempts)

    def lose_default(self, namespace: str) -> None:
        """Its queue `default` was deleted when nobody was looking."""
        self.known_queues.drop((namespace, DEFAULT_QUEUE), named=True)
        self._tell(Change(SWARM_QUEUE, (namespace, DEFAULT_QUEUE), gone=True, placement=True))
