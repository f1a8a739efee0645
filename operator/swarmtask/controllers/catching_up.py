"""After a restore: what engines run of a task from beyond its backup is taken over before anything is decided about the task.

A backup does not know which attempts were begun after it was made. A restored task carries an annotation (`resources.restored`);
while it does, the executor puts aside whatever it is told about the task, and the scheduler does not see it. As soon as every
engine has listed its workloads, the newest attempt that one of them shows beyond the stored record becomes the task's attempt,
where it is and as it is (one on a node that nobody knows is given up under its number, and ended); older ones are ended by the
rules that hold for every task. Then the annotation goes, and the task is
like any other. So no attempt is begun beside one that nobody remembers, and numbers go on growing (LIFECYCLE I2, I4).

Started by the operator. A crash between the two writes repeats the first, which then changes nothing. A person who knows better
removes the annotation: `kubectl annotate swarmtask NAME swarmtask.io/restored-`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime

from swarmtask.controllers.cache import Cache
from swarmtask.controllers.crashpoints import write_point
from swarmtask.controllers.entries import Change, TaskEntry
from swarmtask.controllers.executor import Executor
from swarmtask.controllers.lane import EngineLane
from swarmtask.controllers.observer import ACTING
from swarmtask.controllers.surroundings import Surroundings
from swarmtask.controllers.waiting import Bell
from swarmtask.errors import Conflict, NotFound, SwarmTaskError
from swarmtask.lifecycle.deadlines import Policy
from swarmtask.lifecycle.draft import Draft
from swarmtask.lifecycle.messages import FINAL_WORKLOAD_STATES, Announcement, Bound, Observation, Reason, Transition
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.resources.restored import ANNOTATION_RESTORED, is_restored
from swarmtask.resources.task import MAX_ATTEMPT_RECORDS, Attempt, AttemptState, SwarmTask, attempt_id
from swarmtask.scheduler.model import TaskKey

logger = logging.getLogger(__name__)


class CatchingUp:
    """See the module.

    Args:
        lanes: engine name -> its lane; all of them are asked.
    """

    def __init__(self, around: Surroundings, cache: Cache, lanes: Mapping[str, EngineLane], executor: Executor) -> None:
        self._api, self._clock, self._settings, self._announcer = around.api, around.clock, around.settings, around.announcer
        self._cache, self._lanes, self._executor = cache, lanes, executor
        self._marked: dict[TaskKey, str] = {}
        self._done: set[str] = set()
        """UIDs of tasks that have caught up in this process. A restore is followed by another process, so a mark that comes later
        is somebody's own, and must not keep the task from being stopped."""
        self._homeless_since: dict[str, float] = {}
        self._told: set[str] = set()
        self.bell = Bell(around.clock)

    def note(self, change: Change) -> None:
        """A task was seen, or is gone."""
        entry = self._cache.tasks.get(change.key)
        if entry is not None and is_restored(entry.task):
            self._marked[change.key] = entry.task.metadata.uid
            self.bell.ring()
        elif change.key in self._marked:
            self._done.add(self._marked.pop(change.key))
            self._executor.release(change.key)
        if change.gone:
            self._done.discard(change.uid)

    def holds(self, key: TaskKey) -> bool:
        """Nothing may be decided about the task yet."""
        return key in self._marked and self._marked[key] not in self._done

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for key in list(self._marked):
                try:
                    await self._catch_up(key)
                except (Conflict, NotFound):
                    await self._executor.refresh(key)
                except SwarmTaskError as error:
                    logger.warning("SwarmTask %s/%s was restored, and waits: %s", *key, error)
            await self.bell.wait(self._settings.poll_interval_s if self._marked else None)

    async def _catch_up(self, key: TaskKey) -> None:
        entry = self._cache.tasks.get(key)
        if entry is None:
            return
        if not self.holds(key):
            return await self._unmark(key, entry)
        silent = [name for name, lane in self._lanes.items() if lane.present(entry.task.metadata.uid) is None]
        if silent:
            self._tell_waiting(entry.task, silent)
            return
        if await self._take_over(key, entry):
            await self._unmark(key, self._cache.tasks[key])

    async def _unmark(self, key: TaskKey, entry: TaskEntry) -> None:
        metadata = {
            "annotations": {ANNOTATION_RESTORED: None}, "uid": entry.task.metadata.uid,
            "resourceVersion": entry.task.metadata.resource_version,
        }  # fmt: skip
        with write_point("add-finalizer"):
            obj = await self._api.patch(SWARM_TASK, key[1], {"metadata": metadata}, key[0])
        self._cache.apply(SWARM_TASK, obj)

    async def _take_over(self, key: TaskKey, entry: TaskEntry) -> bool:
        """Make the newest attempt beyond the record the task's own. False: not yet."""
        task = entry.task
        beyond = sorted(self._beyond(task), key=lambda seen: seen.attempt)
        if not beyond or entry.invalid is not None or task.metadata.deletion_timestamp is not None:
            return True  # a task that goes takes with it whatever engines show of it
        newest = beyond[-1]
        node, take_over = self._home(newest), taken_over
        if task.finished:
            # Somebody had retried it after the backup, which does not know that: it has ended, and nothing of it may go on.
            return self._end(task, beyond)
        if node is None:
            since = self._homeless_since.setdefault(newest.name, self._clock.monotonic())
            if self._clock.monotonic() - since < self._settings.orphan_grace_s:
                return False  # its node may be listed later than it
            node = newest.node_id or "unknown"
            take_over = taken_over if newest.state in FINAL_WORKLOAD_STATES else given_up
        self._homeless_since.pop(newest.name, None)
        transition = take_over(task, newest, node, self._clock.now(), self._executor.policy)
        logger.warning("SwarmTask %s/%s was restored: %s runs it as attempt %d", *key, newest.engine, newest.attempt)
        await self._executor.write(key, entry, transition)
        return True

    def _beyond(self, task: SwarmTask) -> list[Observation]:
        uid, known = task.metadata.uid, task.status.attempt
        listed = (seen for lane in self._lanes.values() for seen in lane.present(uid) or ())
        return [seen for seen in listed if seen.attempt > known and seen.name == attempt_id(uid, seen.attempt)]

    def _home(self, seen: Observation) -> str | None:
        """The SwarmNode that it is on; None where that is not known (yet)."""
        wanted = (seen.engine, seen.node_id)
        homes = (
            name for name, node in self._cache.nodes.items() if any((one.name, one.id) == wanted for one in node.status.engines)
        )
        return next(homes, None) if seen.node_id else None

    def _end(self, task: SwarmTask, unwanted: list[Observation]) -> bool:
        """True when none is left. What acts is stopped first: once removed it is out of sight, with its grace to go."""
        for seen in unwanted:
            lane = self._lanes[seen.engine]
            logger.warning("ending %s on %s: its task was restored as it was before", seen.name, seen.engine)
            if seen.state in ACTING:
                lane.stop(seen.name, task.spec.termination_grace_period_seconds)
            else:
                lane.remove(seen.name, orphan=True)
        return not unwanted

    def _tell_waiting(self, task: SwarmTask, silent: list[str]) -> None:
        """Once per task in this process."""
        if task.metadata.uid not in self._told:
            self._told.add(task.metadata.uid)
            message = f"restored from a backup: waits until {', '.join(silent)} tells what ran since"
            self._announcer.tell(SWARM_TASK, task.metadata, Announcement("Normal", "Restored", message))


def taken_over(task: SwarmTask, seen: Observation, node: str, now: datetime, policy: Policy) -> Transition:
    """The status of a task whose newest attempt is one that its record does not know. What it does is observed next, as of any.

    Args:
        task: waiting or live. seen: of a higher attempt. node: the SwarmNode where it is.
    """
    draft = _without_live(task, seen, now, policy)
    draft.status.attempt = seen.attempt - 1
    draft.bind(Bound(node, seen.engine, seen.node_id))
    if draft.live is not None:
        draft.update(draft.live, observed=True)
    draft.status.queued_time = draft.status.queued_time or draft.at
    draft.announce("Restored", f"attempt {seen.attempt} was begun on {node} after the backup: it goes on")
    return draft.finish()


def given_up(task: SwarmTask, seen: Observation, node: str, now: datetime, policy: Policy) -> Transition:
    """The status of a task whose newest attempt acts where it cannot be taken over, on a node that is not known. Its number counts
    as used, so the rules that hold for every task end it, and begin nothing beside it.

    Args:
        task: waiting or live. seen: of a higher attempt, which acts. node: the engine's own ID of its node.
    """
    draft = _without_live(task, seen, now, policy)
    if task.status.current is not None and task.status.current.live:
        draft.enter_queue(keep_place=True)
    draft.status.attempt = seen.attempt
    message = f"begun on {node} after the backup, a node that is not known here: it is stopped"
    record = Attempt(
        number=seen.attempt, id=seen.name, node=node, engine=seen.engine, engine_node_id=seen.node_id, state=AttemptState.FAILED,
        reason=Reason.WORKLOAD_LOST.value, message=message, observed=True, finished_at=draft.at,
    )  # fmt: skip
    draft.status.attempts = [*draft.status.attempts, record][-MAX_ATTEMPT_RECORDS:]
    draft.announce("Restored", f"attempt {seen.attempt}: {message}", "Warning")
    return draft.finish()


def _without_live(task: SwarmTask, seen: Observation, now: datetime, policy: Policy) -> Draft:
    """The attempt that the backup knows is over: another one has followed it."""
    draft = Draft(task, now, policy)
    if draft.live is not None:
        message = f"attempt {seen.attempt} had been started when the backup was restored; how this one ended is not known"
        draft.update(
            draft.live, state=AttemptState.FAILED, reason=Reason.WORKLOAD_LOST.value, message=message, finished_at=draft.at
        )
    return draft
