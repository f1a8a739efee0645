"""Arrays: their members created in waves, recorded when they have ended, and deleted once they are recorded.

Called by the operator as one loop; `note` is told of every change of a task. It keeps at most `parallelism` unfinished members,
which are plain tasks: whatever else happens to them is the executor's business, not its own. What to write and what to do is
decided by `lifecycle.array`. A change wakes the array, changes that come together are looked at together, and its status is
written at most once per `status_refresh_s` unless its phase changes. It reaches no engine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass, field

from swarmtask.controllers.cache import Cache
from swarmtask.controllers.crashpoints import write_point
from swarmtask.controllers.entries import Change, TaskEntry
from swarmtask.controllers.keyed_queue import KeyedQueue
from swarmtask.controllers.reading import difference
from swarmtask.controllers.surroundings import Surroundings
from swarmtask.errors import AlreadyExists, Conflict, NotFound, Permanent, SwarmTaskError
from swarmtask.kube import Object
from swarmtask.lifecycle.array import (
    Around,
    ArrayCommand,
    CancelMember,
    CreateMember,
    DeleteMember,
    SuspendMember,
    advance,
    outstanding,
)
from swarmtask.lifecycle.members import Member, index_of, member_name, member_object, member_of
from swarmtask.lifecycle.messages import Announcement, DeleteTask, Transition, WakeAt
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.resources.task import ANNOTATION_CANCEL, SwarmTask
from swarmtask.scheduler.model import TaskKey

logger = logging.getLogger(__name__)

WORKERS = 4
CALLS = 16
"""Calls of one array that are under way at the same time."""
BATCH = 256
"""Commands that are performed before the array is looked at again."""
GAP_S = 0.1
"""Changes of members within this time share one look."""
BLOCKED_S, GONE_SOON_S = 10.0, 1.0
"""A member that could not be created is tried again after this: because of what stays, and of what is being deleted."""
CHARACTERS_PER_REFRESH = 20_000
"""A status with so many characters of indices is written that much more seldom."""
MAX_CONFLICTS = 8


@dataclass(slots=True)
class _Array:
    """What is remembered of one array; nothing of it is needed after a restart.

    Attributes:
        looked_at, written_at: monotonic times.
        blocked: index -> (monotonic time to try again at, why it could not be created).
        held: the same for all of them.
        doubtful: a write has failed, perhaps only its answer: read the array before the next decision.
    """

    uid: str
    looked_at: float = float("-inf")
    written_at: float = float("-inf")
    blocked: dict[int, tuple[float, str]] = field(default_factory=dict)
    held: tuple[float, str] | None = None
    doubtful: bool = False

    def trouble(self) -> str:
        if self.held is not None:
            return self.held[1]
        return next((why for _, why in self.blocked.values() if why), "")


class Arrays:
    """See the module."""

    def __init__(self, around: Surroundings, cache: Cache) -> None:
        self._api, self._cache, self._settings, self._clock = around.api, cache, around.settings, around.clock
        self._delays, self._deadlines, self._announcer = around.delays, around.deadlines, around.announcer
        self._queue: KeyedQueue[TaskKey, str, None] = KeyedQueue(around.delays, around.rng)
        self._arrays: dict[TaskKey, _Array] = {}
        self._members: dict[str, dict[int, TaskKey]] = {}
        """UID of the array -> index -> its member."""
        self._places: dict[TaskKey, tuple[str, int, TaskKey]] = {}
        """Member -> UID of its array, index, the array."""

    # --- told by the operator; none of these waits ---

    def note(self, change: Change) -> None:
        """A task has changed: look at its array, if it is one or belongs to one."""
        key, entry = change.key, self._cache.tasks.get(change.key)
        place = None if entry is None else _place(entry.task)
        before = self._places.get(key)
        if before is not None and before != place:
            del self._places[key]
            self._members[before[0]].pop(before[1], None)
            if not self._members[before[0]]:
                del self._members[before[0]]
            self.look(before[2])
        if place is not None:
            self._places[key] = place
            self._members.setdefault(place[0], {})[place[1]] = key
            self.look(place[2])
        if entry is not None and entry.task.is_array:
            if not change.own:
                self.look(key)
        elif key in self._arrays:
            self._forget(key)

    def look(self, key: TaskKey) -> None:
        """Something about the array has changed; looks that come close together are one."""
        known = self._arrays.get(key)
        due = GAP_S + known.looked_at if known is not None else float("-inf")
        if due <= self._clock.monotonic():
            self._queue.put(key, "look", None)
        else:
            self._delays.set(("look at array", key), due, lambda: self._queue.put(key, "look", None))

    def _forget(self, key: TaskKey) -> None:
        self._arrays.pop(key, None)
        self._queue.forget(key)
        self._deadlines.cancel(("array", key))
        for token in ("look at array", "write array"):
            self._delays.cancel((token, key))

    # --- loop ---

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key, items = await self._queue.take()
            finished = False
            try:
                await self._tend(key)
                finished = True
            except SwarmTaskError as error:
                logger.warning("array %s/%s: %s; it is tried again", *key, error)
                self._doubt(key)
            except Exception:  # a bug that one array meets must not end the work for all others, and must not go unseen
                logger.exception("array %s/%s: an unexpected error; it is tried again", *key)
                self._doubt(key)
            finally:
                if finished:
                    self._queue.done(key)
                else:
                    self._queue.retry(key, items)

    def _doubt(self, key: TaskKey) -> None:
        if key in self._arrays:
            self._arrays[key].doubtful = True

    async def _tend(self, key: TaskKey) -> None:
        """Record what has ended, then do what the stored array asks for."""
        for _ in range(MAX_CONFLICTS):
            entry = self._cache.tasks.get(key)
            if entry is None or not entry.task.is_array:
                return
            array = self._remember(key, entry.task.metadata.uid)
            if array.doubtful:
                await self._refresh(key)
                array.doubtful = False
                continue
            array.looked_at = self._clock.monotonic()
            try:
                transition = advance(entry.task, self._summaries(array), self._clock.now(), self._around(entry, array))
            except ValueError as error:
                logger.error("array %s/%s is left alone, its status cannot be read: %s", *key, error)
                return
            if not transition.labels and (not transition.changed or self._early(key, array, entry.task, transition)):
                break
            try:
                await self._write(key, array, entry.task, transition)
                break
            except Conflict:
                await self._refresh(key)
            except NotFound:
                return await self._refresh(key)
        else:
            raise Conflict(f"it changed {MAX_CONFLICTS} times while its status was being written")
        await self._perform(key, array)

    def _remember(self, key: TaskKey, uid: str) -> _Array:
        array = self._arrays.get(key)
        if array is None or array.uid != uid:
            array = self._arrays[key] = _Array(uid)
        return array

    def _summaries(self, array: _Array) -> dict[int, Member]:
        keys = self._members.get(array.uid, {})
        return {index: member_of(self._cache.tasks[key].task, index) for index, key in keys.items()}

    def _around(self, entry: TaskEntry, array: _Array) -> Around:
        now = self._clock.monotonic()
        return Around(
            queue_exists=self._cache.queue_exists(entry.queue),
            invalid=entry.invalid,
            trouble=array.trouble(),
            blocked=[index for index, (until, _) in array.blocked.items() if until > now],
            may_create=array.held is None or array.held[0] <= now,
            keep_succeeded=self._settings.keep_array_members,
        )

    # --- write ---

    def _early(self, key: TaskKey, array: _Array, task: SwarmTask, transition: Transition) -> bool:
        """Counts that were written a moment ago; then they are looked at again when it is time."""
        old, new = task.status, transition.status
        if old.phase is not new.phase or old.array is None or new.array is None or old.observed_retry != new.observed_retry:
            return False
        characters = len(new.array.completed_indexes) + len(new.array.failed_indexes)
        due = array.written_at + self._settings.status_refresh_s * (1 + characters / CHARACTERS_PER_REFRESH)
        if due <= self._clock.monotonic():
            return False
        self._delays.set(("write array", key), due, lambda: self._queue.put(key, "look", None))
        return True

    async def _write(self, key: TaskKey, array: _Array, task: SwarmTask, transition: Transition) -> None:
        """The label first, then the status: if only the first is done, the same look comes to the same answer again."""
        expected = {"uid": task.metadata.uid, "resourceVersion": task.metadata.resource_version}
        with write_point("write-array"):
            if transition.labels:
                obj = await self._api.patch(SWARM_TASK, key[1], {"metadata": expected | {"labels": transition.labels}}, key[0])
                self._cache.apply(SWARM_TASK, obj, own=True)
                expected["resourceVersion"] = obj["metadata"]["resourceVersion"]
            if transition.changed:
                patch = {"metadata": expected, "status": difference(task.status, transition.status)}
                obj = await self._api.patch(SWARM_TASK, key[1], patch, key[0], subresource="status")
                self._cache.apply(SWARM_TASK, obj, own=True)
        array.written_at = self._clock.monotonic()
        for announcement in transition.announcements:
            self._announcer.tell(SWARM_TASK, task.metadata, announcement)

    async def _refresh(self, key: TaskKey) -> None:
        try:
            self._cache.apply(SWARM_TASK, await self._api.get(SWARM_TASK, key[1], key[0]))
        except NotFound:
            self._cache.remove(SWARM_TASK, key)

    # --- do what is outstanding ---

    async def _perform(self, key: TaskKey, array: _Array) -> None:
        entry = self._cache.tasks.get(key)
        if entry is None or entry.task.metadata.uid != array.uid:
            return
        task = entry.task
        commands = outstanding(task, self._summaries(array), self._clock.now(), self._around(entry, array))
        wake = next((command.when for command in commands if isinstance(command, WakeAt)), None)
        if wake is None:
            self._deadlines.cancel(("array", key))
        else:
            self._deadlines.set(("array", key), wake.timestamp(), lambda: self.look(key))
        calls = [command for command in commands if not isinstance(command, WakeAt)]
        for begin in range(0, min(len(calls), BATCH), CALLS):
            await self._together(task, array, calls[begin : begin + CALLS])
        if len(calls) > BATCH:
            self._queue.put(key, "look", None)

    async def _together(self, task: SwarmTask, array: _Array, calls: Collection[ArrayCommand]) -> None:
        """All of them at once; a failure is raised when all have ended, what is no ordinary one first."""
        results = await asyncio.gather(*(self._call(task, array, call) for call in calls), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            raise min(failures, key=lambda failure: isinstance(failure, Exception))

    async def _call(self, task: SwarmTask, array: _Array, command: ArrayCommand) -> None:
        match command:
            case CreateMember(index=index):
                await self._create(task, array, index)
            case DeleteMember(member=member):
                await self._delete("delete-member", task, (task.key[0], member.name), member.uid, member.version)
            case CancelMember(member=member, why=why):
                await self._steer(task, member, {"metadata": {"annotations": {ANNOTATION_CANCEL: why}}})
            case SuspendMember(member=member, suspend=suspend):
                await self._steer(task, member, {"spec": {"suspend": suspend}})
            case DeleteTask():
                await self._delete("delete-task", task, task.key, task.metadata.uid, task.metadata.resource_version)

    async def _create(self, task: SwarmTask, array: _Array, index: int) -> None:
        now = self._clock.monotonic()
        if array.held is not None and array.held[0] > now:
            return  # one of the same wave was refused
        name, namespace = member_name(task.metadata.name, index), task.key[0]
        try:
            with write_point("create-member"):
                obj = await self._api.create(SWARM_TASK, member_object(task, index), namespace)
        except AlreadyExists:
            try:
                obj = await self._api.get(SWARM_TASK, name, namespace)
            except NotFound:
                return self.look(task.key)
            self._cache.apply(SWARM_TASK, obj)
            place = self._places.get((namespace, name))
            if place is None or place[0] != array.uid:
                self._block(task, array, index, obj)
            return
        except Permanent as error:
            array.held = (now + BLOCKED_S, f"no run can be created: {error}")
            self._tell_blocked(task, array.held[1])
            return
        array.held = None
        array.blocked.pop(index, None)
        self._cache.apply(SWARM_TASK, obj)

    def _block(self, task: SwarmTask, array: _Array, index: int, other: Object) -> None:
        """Another task has the name: never adopted, never touched."""
        pause_s, why = GONE_SOON_S, ""
        if not other["metadata"].get("deletionTimestamp"):
            pause_s = BLOCKED_S
            why = f"index {index} waits: SwarmTask {other['metadata']['name']} exists and is not part of this array; "
            why += "delete it, or give the array another name"
        array.blocked[index] = (self._clock.monotonic() + pause_s, why)
        self._tell_blocked(task, why, pause_s)

    def _tell_blocked(self, task: SwarmTask, why: str, pause_s: float = BLOCKED_S) -> None:
        key = task.key
        if why and why not in (task.status.message or ""):
            self._announcer.tell(SWARM_TASK, task.metadata, Announcement("Warning", "MemberBlocked", why))
        self._delays.after(("blocked array", key, pause_s), pause_s, lambda: self.look(key))
        self.look(key)  # so that the status says it, too

    async def _delete(self, point: str, array: SwarmTask, key: TaskKey, uid: str, version: str) -> None:
        """The array or one of its members, only as it was decided on: a request that arrives late must not delete an array that a
        person has retried meanwhile, nor a member that has started."""
        try:
            with write_point(point):
                await self._api.delete(SWARM_TASK, key[1], key[0], uid=uid, resource_version=version, propagation="Background")
        except (Conflict, NotFound):
            self.look(array.key)  # somebody else was faster: decide again
        await self._refresh(key)

    async def _steer(self, task: SwarmTask, member: Member, patch: dict[str, dict[str, object]]) -> None:
        metadata = {**patch.get("metadata", {}), "uid": member.uid}
        try:
            with write_point("steer-member"):
                obj = await self._api.patch(SWARM_TASK, member.name, {**patch, "metadata": metadata}, task.key[0])
            self._cache.apply(SWARM_TASK, obj)
        except (Conflict, NotFound):
            self.look(task.key)  # what was to be done is not done, and what is read now may be what was known before
            await self._refresh((task.key[0], member.name))


def _place(task: SwarmTask) -> tuple[str, int, TaskKey] | None:
    """(UID of its array, its index, its array) of a member; None for any other task."""
    owner = task.array_owner
    index = index_of(owner.name, task.metadata.name) if owner is not None else None
    return (owner.uid, index, (task.key[0], owner.name)) if owner is not None and index is not None else None
