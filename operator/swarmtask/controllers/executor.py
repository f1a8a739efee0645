"""The one place where a task's status is decided and written, and where what it asks for is begun.

Every controller offers its facts about a task here; events of one task are handled one after another. For each: ask the lifecycle,
write the status with the resourceVersion that was decided on (somebody else was faster: read again, decide again), tell it, then
begin what the stored object asks for. Engines are only reached through their lanes, which never make this wait. A crash at any
point loses nothing: what is outstanding is computed again from the stored object.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from swarmtask.controllers.cache import Cache
from swarmtask.controllers.crashpoints import write_point
from swarmtask.controllers.entries import TaskEntry
from swarmtask.controllers.keyed_queue import KeyedQueue
from swarmtask.controllers.lane import EngineLane
from swarmtask.controllers.reading import difference
from swarmtask.controllers.sight import Sight
from swarmtask.controllers.submission import Submission
from swarmtask.controllers.surroundings import Surroundings
from swarmtask.controllers.waiting import backoff_s
from swarmtask.errors import Conflict, NotFound, SwarmTaskError, Transient
from swarmtask.lifecycle.commands import in_doubt
from swarmtask.lifecycle.messages import (
    Bound,
    DeleteTask,
    Drain,
    Evict,
    InvalidObject,
    Observed,
    Preempt,
    Reconcile,
    ReleaseFinalizer,
    Remove,
    Stop,
    Submit,
    TaskEvent,
    Transition,
    Unplaced,
    WakeAt,
)
from swarmtask.lifecycle.task import Policy, handle, outstanding
from swarmtask.lifecycle.twins import standing
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.resources.meta import FINALIZER
from swarmtask.resources.task import Phase, SwarmTask
from swarmtask.scheduler.model import TaskKey

logger = logging.getLogger(__name__)

WORKERS = 16
TELLERS = 4
"""At most so many of them tell tasks why they wait; the others are there for what moves a task on."""
MAX_CONFLICTS = 8
CLOCK_SET_S = 0.5
"""A wall clock that has lost less than this against the monotonic one is only being corrected."""
LOWEST_RANK = 1_000_000_001
"""Less the priority, which is at most 1,000,000,000: above 0."""
Slot = tuple[str, int]


class Executor:
    """See the module.

    Args:
        lanes: engine name -> its lane, all of them.
        unbound: called when a placement or a preemption could not be stored, so that it is decided again.

    Attributes:
        held: whether nothing may be decided about a task yet; set by the operator.
        node_takes: whether the node of an assumed task still lets it start there by way of this engine; set by the operator.
    """

    def __init__(
        self,
        around: Surroundings,
        cache: Cache,
        lanes: Mapping[str, EngineLane],
        unbound: Callable[[], None],
    ) -> None:
        self._api, self._clock, self._announcer, self._deadlines = around.api, around.clock, around.announcer, around.deadlines
        self._cache, self._lanes, self._unbound = cache, lanes, unbound
        settings = around.settings
        self._policy = Policy(
            infrastructure_loss_limit=settings.infrastructure_loss_limit,
            unreachable_s=settings.unreachable_s,
            fence_s=settings.fence_s,
            fence_margin_s=settings.fence_margin_s,
            clock_from=around.clock.now(),
            engines=frozenset(lanes),
        )
        self._sight = Sight(around, lanes, self.look)
        self._wall_ahead_s = self._clock_stand_s()
        self._delays, self._rng = around.delays, around.rng
        self._unstored: dict[TaskKey, int] = {}
        """How many placements in a row were given up."""
        self._given_up: set[TaskKey] = set()
        """Tasks whose placement has just been given up."""
        self._queue: KeyedQueue[TaskKey, Slot, tuple[str, TaskEvent | None]] = KeyedQueue(
            around.delays, around.rng, patient_at_once=TELLERS
        )
        self.held: Callable[[TaskKey], bool] = lambda key: False
        self.node_takes: Callable[[TaskKey, str], bool] = lambda key, engine: True
        self._aside: dict[TaskKey, dict[Slot, tuple[str, TaskEvent | None]]] = {}
        """What was said of tasks about which nothing may be decided yet."""
        cache.twins.stir = self.look

    @property
    def policy(self) -> Policy:
        """What the settings say about all tasks."""
        return self._policy

    @property
    def backlog(self) -> int:
        """Tasks with events that wait."""
        return len(self._queue)

    def offer(self, key: TaskKey, uid: str, event: TaskEvent) -> None:
        """A fact about the task with this UID; at once, never waits. A newer fact of the same kind replaces one that waits. Why a
        task is not placed is told when nothing else is to be done, or every now and then."""
        attempt = event.observation.attempt if isinstance(event, Observed) else getattr(event, "attempt", 0)
        self._queue.put(key, (type(event).__name__, attempt), (uid, event), can_wait=isinstance(event, Unplaced))

    def look(self, key: TaskKey) -> None:
        """The task, a deadline or the world around it has changed: decide again, and begin what is outstanding.

        Who holds room comes first, then by priority: an urgent task must not wait until ten thousand others have been let in.
        """
        entry = self._cache.tasks.get(key)
        rank = 0 if entry is None or entry.live is not None else LOWEST_RANK - entry.task.spec.effective_priority
        self._queue.put(key, ("Reconcile", 0), ("", None), rank=rank)

    def forget(self, key: TaskKey) -> None:
        """The task is gone."""
        self._queue.forget(key)
        self._aside.pop(key, None)
        self._deadlines.cancel(("wake", key))
        self._sight.forget(key)
        self._unstored.pop(key, None)
        self._given_up.discard(key)
        self._delays.cancel(("unstored", key))
        self._cache.take_back(key)

    def release(self, key: TaskKey) -> None:
        """A restored task has caught up with the engines (or is gone): what was put aside counts now."""
        for slot, item in self._aside.pop(key, {}).items():
            self._queue.put(key, slot, item)
        if key in self._cache.tasks:
            self.look(key)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key, items = await self._queue.take()
            if self.held(key):
                self._aside.setdefault(key, {}).update(items)
                self._queue.done(key)
                continue
            finished = False
            try:
                well = await self._decide_all(key, items)
                await self._perform(key)
                finished = well
            except SwarmTaskError as error:
                logger.warning("SwarmTask %s/%s: %s; it is tried again", *key, error)
            except Exception:  # a bug that one task meets must not end the work for all others, and must not go unseen
                logger.exception("SwarmTask %s/%s: an unexpected error; it is tried again", *key)
            finally:
                if finished:
                    self._queue.done(key)
                else:
                    pause_s = self._queue.retry(key, items or {("Reconcile", 0): ("", None)})
                    self._rest(key, pause_s)

    # --- decide and write ---

    async def _decide_all(self, key: TaskKey, items: dict[Slot, tuple[str, TaskEvent | None]]) -> bool:
        """One event after another; those that are done are taken out, because a failure further on repeats only what is left.

        What another try cannot mend (a bug, a write that the API refuses) holds up no other event of the task; what it can (the API
        does not answer) is tried first next time, and the others after it.

        Returns:
            False: one has met such an error. It stays to be tried again, except a placement, which is given up.
        """
        well = True
        for slot in list(items):
            uid, event = items[slot]
            try:
                await self._decide(key, uid, event)
            except Transient:
                raise
            except SwarmTaskError as error:
                logger.warning("SwarmTask %s/%s: %s is refused: %s; it is tried again", *key, slot[0], error)
                well = False
            except Exception:  # see `_work`
                logger.exception("SwarmTask %s/%s: %s meets an unexpected error; it is tried again", *key, slot[0])
                well = False
            else:
                if isinstance(event, Bound):
                    self._unstored.pop(key, None)
                if slot[0] != "Reconcile":
                    del items[slot]
                continue
            if isinstance(event, Bound):
                self._give_up_placement(key)
                del items[slot]
        return well

    def _give_up_placement(self, key: TaskKey) -> None:
        """It cannot be stored: others may have the room, and a cycle looks at the task again after a pause that grows."""
        self._unstored[key] = self._unstored.get(key, 0) + 1
        self._given_up.add(key)
        self._cache.set_aside(key)
        self._unbound()

    def _rest(self, key: TaskKey, pause_s: float) -> None:
        """Not before the next placement of a task that had to be given up would be looked at: it would hold room until then."""
        if key in self._given_up:
            self._given_up.discard(key)
            rest_s = max(pause_s, backoff_s(self._unstored.get(key, 1), self._rng))
            self._delays.after(("unstored", key), rest_s, lambda: self._take_back(key))

    def _take_back(self, key: TaskKey) -> None:
        if key not in self._cache.tasks:  # it went while its placement was being written
            self._unstored.pop(key, None)
        self._cache.take_back(key)
        self._unbound()

    async def _decide(self, key: TaskKey, uid: str, event: TaskEvent | None) -> None:
        if isinstance(event, Bound):
            await self._look_for_twin(key, uid)
        for _ in range(MAX_CONFLICTS):
            entry = self._cache.tasks.get(key)
            if entry is None or (uid and entry.task.metadata.uid != uid) or entry.task.is_array:
                return
            if isinstance(event, Bound) and self._cache.assumption(key) != (event.node, event.gpus):
                return self._unbound()  # the task has changed since the cycle chose
            if isinstance(event, Bound) and not self._may_start(key, event.engine):
                self._cache.drop_assumption(key)  # its queue or its node was closed, or bounded more tightly, since
                return self._unbound()
            if isinstance(event, Preempt) and not self._needs_room(event.by, entry):
                if self._cache.settle_preemption(key):
                    self._unbound()
                return
            if isinstance(event, Drain) and not self._cache.drains(event.node):
                return  # somebody has thought better of it meanwhile
            if isinstance(event, Evict) and self._cache.eviction(event.node) != event.wish:
                return  # its agent has what it asked for, or has acted alone
            self._look_at_the_clock()
            transition = handle(entry.task, self._actual(entry, event), self._clock.now(), self._policy)
            try:
                if transition.changed or transition.labels:
                    await self._write_assumed(key, entry, transition)
                if isinstance(event, Bound):
                    self._note_birth(transition)
                break
            except Conflict:
                logger.debug("SwarmTask %s/%s changed before its status was written", *key)
                await self.refresh(key)
                if isinstance(event, Bound):
                    break  # chosen for an object that is no more: let the next cycle look at the new one
            except NotFound:
                await self.refresh(key)
                return
        else:
            raise Conflict(f"it changed {MAX_CONFLICTS} times while its status was being written")
        if isinstance(event, Bound) and self._cache.drop_assumption(key):
            self._unbound()
        if isinstance(event, Preempt) and self._cache.settle_preemption(key):
            self._unbound()
        if event is not None and self._queues_for_nothing(key):
            self.look(key)

    def _clock_stand_s(self) -> float:
        return self._clock.now().timestamp() - self._clock.monotonic()

    def _look_at_the_clock(self) -> None:
        """Was the wall clock set back? Then who waits in a queue must not come after those that are new."""
        stand_s = self._clock_stand_s()
        if stand_s < self._wall_ahead_s - CLOCK_SET_S:
            now = self._clock.now()
            self._policy = replace(self._policy, clock_from=now)
            self._wall_ahead_s = stand_s
            for pending in self._cache.waiting():
                if pending.queued_at > now.timestamp():
                    self.look(pending.key)
        self._wall_ahead_s = max(self._wall_ahead_s, stand_s)

    def _may_start(self, key: TaskKey, engine: str) -> bool:
        """A decision may have waited long for a write that failed: what it was based on is asked once more."""
        return self._cache.has_room(key) and self.node_takes(key, engine)

    def _needs_room(self, by: TaskKey, victim: TaskEntry) -> bool:
        """The same of the end of an attempt for another task's sake: that one still waits, and is still the more important one."""
        entry = self._cache.tasks.get(by)
        if entry is None or entry.pending is None or self._cache.assumption(by) is not None:
            return False
        return entry.task.spec.effective_priority > victim.task.spec.effective_priority

    def _queues_for_nothing(self, key: TaskKey) -> bool:
        """A fact has sent it back to its queue, which was deleted meanwhile: facts do not know that, only a look does."""
        entry = self._cache.tasks.get(key)
        return entry is not None and entry.task.status.phase is Phase.QUEUED and not self._cache.queue_exists(entry.queue)

    async def _look_for_twin(self, key: TaskKey, uid: str) -> None:
        """Just before a task starts: another one of its dedupeKey may have gone ahead since it was let into the queue."""
        entry = self._cache.tasks.get(key)
        if entry is not None and entry.task.spec.dedupe_key:
            await self._decide(key, uid, None)

    def _note_birth(self, transition: Transition) -> None:
        current = transition.status.current
        if transition.changed and current is not None and current.live and current.engine in self._lanes:
            self._lanes[current.engine].submissions.born(current.id)

    def _actual(self, entry: TaskEntry, event: TaskEvent | None) -> TaskEvent:
        if event is not None:
            return event
        if entry.invalid is not None:
            return InvalidObject(entry.invalid)
        twin = self._cache.twins.of(entry.task, self._clock.now())
        return Reconcile(queue_exists=self._cache.queue_exists(entry.queue), twin=twin)

    async def _write_assumed(self, key: TaskKey, entry: TaskEntry, transition: Transition) -> None:
        """Others of its dedupeKey see a task that goes ahead as if that were stored already. That it steps back or ends they see
        when it is stored: a write that fails leaves it at work, and one of them would have begun beside it."""
        ahead = entry.task.model_copy(update={"status": transition.status})
        if standing(ahead) <= standing(entry.task):
            self._cache.twins.assume(key, ahead)
        try:
            await self.write(key, entry, transition)
        finally:
            self._cache.twins.drop_assumption(key)

    async def write(self, key: TaskKey, entry: TaskEntry, transition: Transition) -> None:
        """Metadata first, then the status: if only the first is done, the same event comes to the same answer again.

        Raises:
            Conflict, NotFound: the task is not `entry` any more; and whatever else the API says.
        """
        task, version = entry.task, entry.task.metadata.resource_version
        metadata = self._metadata_patch(task, transition)
        if metadata:
            with write_point("add-finalizer"):
                obj = await self._api.patch(
                    SWARM_TASK, key[1], {"metadata": metadata | {"uid": task.metadata.uid, "resourceVersion": version}}, key[0]
                )
            self._cache.apply(SWARM_TASK, obj, own=True)
            version = obj["metadata"]["resourceVersion"]
            if transition.status.attempt != task.status.attempt and not self._may_start(key, transition.status.engine or ""):
                raise Conflict("its queue or its node has changed since the cycle chose")
        if transition.changed:
            # The phase is always named: one that equals the model's default may never have been written.
            status = difference(task.status, transition.status) | {"phase": transition.status.phase.value}
            patch = {"metadata": {"uid": task.metadata.uid, "resourceVersion": version}, "status": status}
            with write_point("write-status"):
                obj = await self._api.patch(SWARM_TASK, key[1], patch, key[0], subresource="status")
            self._cache.apply(SWARM_TASK, obj, own=True)
        for announcement in transition.announcements:
            self._announcer.tell(SWARM_TASK, task.metadata, announcement)

    def _metadata_patch(self, task: SwarmTask, transition: Transition) -> dict[str, Any]:
        patch: dict[str, Any] = {}
        labels = {name: value for name, value in transition.labels.items() if task.metadata.labels.get(name) != value}
        if labels:
            patch["labels"] = labels
        current = transition.status.current
        binds = current is not None and current.live and task.metadata.deletion_timestamp is None
        if binds and FINALIZER not in task.metadata.finalizers:
            # Before an attempt is recorded, and so before anything can run: nobody can delete the task from under its workload.
            patch["finalizers"] = [*task.metadata.finalizers, FINALIZER]
        return patch

    async def refresh(self, key: TaskKey) -> None:
        """Read the task anew."""
        try:
            self._cache.apply(SWARM_TASK, await self._api.get(SWARM_TASK, key[1], key[0]))
        except NotFound:
            self._cache.remove(SWARM_TASK, key)

    # --- begin what is outstanding ---

    async def _perform(self, key: TaskKey) -> None:
        entry = self._cache.tasks.get(key)
        if entry is None or entry.task.is_array:
            return
        task, now = entry.task, self._clock.now()
        wake: WakeAt | None = None
        awaited = self._cache.twins.awaited(key)  # looked at again when the last one has taken its outcome
        seen = self._sight.of(task)
        undriven = {attempt.engine for attempt in task.status.attempts} - self._lanes.keys()
        for engine in undriven if task.metadata.deletion_timestamp is not None else ():
            self._sight.missing(task, engine)
        for command in outstanding(task, now, self._policy, seen.listed, seen.silent):
            match command:
                case Submit(attempt=attempt):
                    self._sight.not_looked_for(task, undriven & in_doubt(task))
                    lane = self._lane(entry, attempt.engine)
                    if lane is not None and entry.invalid is None:
                        lane.submit(Submission(key, task.metadata.uid, attempt, self._cache.nodes.get(attempt.node)))
                case Stop(attempt=attempt, grace_s=grace_s):
                    lane = self._lane(entry, attempt.engine)
                    if lane is not None:
                        lane.stop(attempt.id, grace_s)
                case Remove(attempt=attempt):
                    lane = self._lane(entry, attempt.engine)
                    if lane is not None:
                        lane.remove(attempt.id)
                case ReleaseFinalizer() if not awaited:
                    await self._release(key, task)
                case DeleteTask() if not awaited:
                    await self._delete(key, task)
                case WakeAt():
                    wake = command
        self._sight.tell_waits(key, task)
        if wake is None:
            self._deadlines.cancel(("wake", key))
        else:
            self._deadlines.set(("wake", key), wake.when.timestamp(), lambda: self.look(key))

    def _lane(self, entry: TaskEntry, engine: str) -> EngineLane | None:
        lane = self._lanes.get(engine)
        if lane is None:
            self._sight.missing(entry.task, engine)
        return lane

    async def _release(self, key: TaskKey, task: SwarmTask) -> None:
        left = [name for name in task.metadata.finalizers if name != FINALIZER]
        metadata = {"finalizers": left or None, "uid": task.metadata.uid, "resourceVersion": task.metadata.resource_version}
        try:
            with write_point("release-finalizer"):
                obj = await self._api.patch(SWARM_TASK, key[1], {"metadata": metadata}, key[0])
        except (Conflict, NotFound):
            await self.refresh(key)
            self.look(key)
            return
        if left:
            self._cache.apply(SWARM_TASK, obj)
        else:
            self._cache.remove(SWARM_TASK, key, int(obj["metadata"]["resourceVersion"]))

    async def _delete(self, key: TaskKey, task: SwarmTask) -> None:
        """Only as it was decided on: a request that arrives late must not delete a task that a person has retried meanwhile."""
        meta = task.metadata
        try:
            with write_point("delete-task"):
                await self._api.delete(
                    SWARM_TASK, key[1], key[0], uid=meta.uid, resource_version=meta.resource_version, propagation="Background"
                )
        except (Conflict, NotFound):
            self.look(key)  # somebody else was faster: decide again
        await self.refresh(key)
