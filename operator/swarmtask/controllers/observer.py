"""What an engine truly has: one complete list after the other, turned into events for the lifecycle.

One `Observer` per engine. The list is the truth; hints only make the next one come earlier. From it follow: what each live attempt
does (`Observed`), which are no longer there (`Vanished`), which workloads belong to nobody (removed, after asking the API itself),
and which finished ones are old enough to go. It finds workloads again after a restart without knowing that there was one. It never
writes a status, and touches nothing without our label (the engine shows nothing else).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime

from swarmtask.controllers.cache import Cache
from swarmtask.controllers.executor import Executor
from swarmtask.controllers.lane import EngineLane, Listing
from swarmtask.controllers.leases import Leases
from swarmtask.controllers.surroundings import Surroundings
from swarmtask.engines.base import Observation
from swarmtask.errors import NotFound, SwarmTaskError
from swarmtask.lifecycle.deadlines import promised_grace_s
from swarmtask.lifecycle.loss import replace_after_s
from swarmtask.lifecycle.messages import FINAL_WORKLOAD_STATES, MadeWith, NodeSilent, Observed, Vanished, WorkloadState
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.resources.task import Attempt, AttemptState
from swarmtask.scheduler.model import TaskKey

logger = logging.getLogger(__name__)

HINT_GAP_S = 0.1
"""Hints within this time share one poll."""
ORPHAN_GRACE_S = 10
"""What a task has that says nothing else, for engines that do not keep what a workload was made with."""
EXPECTED = {
    AttemptState.STARTING: frozenset({WorkloadState.PENDING, WorkloadState.PREPARING}),
    AttemptState.RUNNING: frozenset({WorkloadState.RUNNING}),
    AttemptState.UNKNOWN: frozenset({WorkloadState.UNKNOWN}),
    AttemptState.STOPPING: frozenset(
        {WorkloadState.PENDING, WorkloadState.PREPARING, WorkloadState.RUNNING, WorkloadState.UNKNOWN}
    ),
}
"""What an engine shows of an attempt about which there is nothing new."""
ACTING = frozenset({WorkloadState.PENDING, WorkloadState.PREPARING, WorkloadState.RUNNING})
"""What ends soon after it was removed. On a node that is lost that may take for ever: nobody waits for it there."""


class Observer:
    """See the module."""

    def __init__(self, lane: EngineLane, around: Surroundings, cache: Cache, executor: Executor, leases: Leases) -> None:
        self._lane, self._cache, self._executor, self._leases = lane, cache, executor, leases
        self._api, self._settings, self._clock = around.api, around.settings, around.clock
        self._told: dict[str, Observation] = {}
        self._missing_since: dict[str, float] = {}
        self._unknown_since: dict[str, float] = {}
        self._orphan_since: dict[str, float] = {}

    async def run(self) -> None:
        """Until cancelled."""
        await self._lane.started()
        while True:
            await self._poll()
            live = any(attempt.engine == self._lane.name for _, attempt in self._cache.live())
            interval_s = self._settings.poll_interval_s if live or self._orphan_since else self._settings.idle_poll_interval_s
            if await self._lane.poll.wait(interval_s):
                await self._clock.sleep(HINT_GAP_S)

    async def _poll(self) -> None:
        taken_at = self._clock.monotonic()
        try:
            workloads = await self._lane.engine.workloads()
        except SwarmTaskError as error:
            if not self._lane.failing:
                logger.warning("engine %s does not list its workloads: %s", self._lane.name, error)
            self._lane.failing = True
            return
        finally:
            self._lane.tried_workloads.set()
        if self._lane.failing:
            logger.info("engine %s lists its workloads again", self._lane.name)
        self._lane.failing = False
        await self.digest(workloads, taken_at)

    async def digest(self, workloads: Iterable[Observation], taken_at: float) -> None:
        """Act on one complete list. `taken_at`: monotonic time at which it was asked for."""
        by_task: dict[str, list[Observation]] = {}
        for seen in workloads:
            by_task.setdefault(seen.task_uid, []).append(seen)
        listing = Listing(
            taken_at,
            {uid: tuple(items) for uid, items in by_task.items()},
            frozenset(seen.name for items in by_task.values() for seen in items),
        )
        before, self._lane.listing = self._lane.listing, listing
        self._tell_live(listing)
        self._tell_missing(listing)
        self._note_orphans(listing)
        self._look_again(listing, before)
        await self._clear_orphans(listing)
        self._prune_finished(listing)
        for name in self._told.keys() - listing.names:
            del self._told[name]
        for memory in (self._orphan_since, self._unknown_since):
            for name in memory.keys() - listing.names:
                del memory[name]

    # --- attempts that live ---

    def _tell_live(self, listing: Listing) -> None:
        for key, attempt in self._live():
            entry = self._cache.tasks[key]
            for seen in listing.by_task.get(entry.task.metadata.uid, ()):
                if seen.name != attempt.id:
                    continue
                self._missing_since.pop(seen.name, None)
                if attempt.fence is None and seen.fence is not None:  # true also where its state is not to be believed
                    self._executor.offer(key, entry.task.metadata.uid, MadeWith(attempt.number, seen.fence))
                self._tell_lost(key, attempt, seen, listing.taken_at)
                believed = self._leases.believe(entry.task, attempt, seen)
                if believed is None:
                    self._told.pop(seen.name, None)
                    continue
                boot_id = self._leases.boot_id(attempt.node)
                agrees = believed.state in EXPECTED[attempt.state] and attempt.observed
                agrees = agrees and (attempt.boot_id is not None or not boot_id)
                if not agrees or self._told.get(seen.name) != believed:
                    self._told[seen.name] = believed
                    self._executor.offer(key, entry.task.metadata.uid, Observed(believed, boot_id))

    def _tell_lost(self, key: TaskKey, attempt: Attempt, seen: Observation, taken_at: float) -> None:
        """The engine itself has lost the node: how long ago, for tasks that are replaced without a fence."""
        if seen.state is not WorkloadState.UNKNOWN:
            self._unknown_since.pop(seen.name, None)
            return
        task, since = self._cache.tasks[key].task, self._unknown_since.setdefault(seen.name, taken_at)
        due_s = replace_after_s(task.spec, attempt, self._executor.policy, fenced=False)
        if due_s is not None and taken_at - since >= due_s:
            self._executor.offer(key, task.metadata.uid, NodeSilent(attempt.number, taken_at - since, fenced=False))

    def _tell_missing(self, listing: Listing) -> None:
        live = set()
        for key, attempt in self._live():
            live.add(attempt.id)
            uid = self._cache.tasks[key].task.metadata.uid
            if self._never_came(uid, attempt, listing):
                self._executor.offer(key, uid, Vanished(attempt.number))
                continue
            hidden = attempt.id in listing.names or self._leases.uncertain(attempt.node)
            if hidden or self._may_come(attempt, listing) or not self._expected(uid, attempt, listing):
                self._missing_since.pop(attempt.id, None)
                continue
            since = self._missing_since.setdefault(attempt.id, listing.taken_at)
            grace_s = promised_grace_s(self._cache.tasks[key].task.spec, attempt)  # who was removed by hand has it still
            if listing.taken_at - since >= self._settings.vanish_grace_s + grace_s:
                self._executor.offer(key, uid, Vanished(attempt.number))
        for name in self._missing_since.keys() - live:
            del self._missing_since[name]

    def _never_came(self, uid: str, attempt: Attempt, listing: Listing) -> bool:
        """It is being stopped, and the list, asked for when no submit of it could arrive any more, proves that none has."""
        submissions = self._lane.submissions
        unshown = attempt.state is AttemptState.STOPPING and not attempt.observed and attempt.id not in listing.names
        sent = submissions.submitted_at(uid, attempt.id) is not None
        return unshown and not sent and not submissions.may_still_land(attempt.id, listing.taken_at)

    def _may_come(self, attempt: Attempt, listing: Listing) -> bool:
        """It is not known to have run, and a submit of it may be on its way. That it was `observed` does not mean that its engine
        had it: that is set as well when its node falls silent."""
        return attempt.started_at is None and self._lane.submissions.may_still_land(attempt.id, listing.taken_at)

    def _expected(self, uid: str, attempt: Attempt, listing: Listing) -> bool:
        """The list must contain it: it was seen before, or was submitted before the list was asked for."""
        submitted = self._lane.submissions.submitted_at(uid, attempt.id)
        return attempt.observed or (submitted is not None and submitted < listing.taken_at)

    def _live(self) -> list[tuple[TaskKey, Attempt]]:
        return [(key, attempt) for key, attempt in self._cache.live() if attempt.engine == self._lane.name]

    def _look_again(self, listing: Listing, before: Listing | None) -> None:
        """Tasks for which something is outstanding that this list decides: what to remove, whether everything is gone."""
        first = before is None
        # Only these can have something outstanding; many thousands may wait or be finished.
        keys = dict.fromkeys(key for key, _ in self._cache.live())
        keys |= dict.fromkeys((seen.namespace, seen.task_name) for items in listing.by_task.values() for seen in items)
        keys |= dict.fromkeys(self._cache.deleting())
        for key in keys:
            entry = self._cache.tasks.get(key)
            if entry is None:
                continue
            task = entry.task
            seen = listing.by_task.get(task.metadata.uid, ())
            live = entry.live
            zombie = any(item.state not in FINAL_WORKLOAD_STATES and (live is None or item.attempt != live.number) for item in seen)
            unfinished = live is not None and (live.state is AttemptState.STOPPING or not live.observed)
            if zombie or unfinished or task.metadata.deletion_timestamp is not None or (first and live is not None):
                self._executor.look(key)

    # --- workloads that nobody needs ---

    def _note_orphans(self, listing: Listing) -> None:
        """Names under which something acts that no task owns: nothing else is begun under them before that has ended."""
        self._lane.orphaned = frozenset(
            (seen.namespace, seen.task_name)
            for items in listing.by_task.values()
            for seen in items
            if seen.state in ACTING and not self._owned(seen)
        )

    async def _clear_orphans(self, listing: Listing) -> None:
        """End and remove what has carried our label without an owner for long enough; the API itself is asked before."""
        for items in listing.by_task.values():
            for seen in items:
                if self._owned(seen):
                    self._orphan_since.pop(seen.name, None)
                    continue
                since = self._orphan_since.setdefault(seen.name, listing.taken_at)
                if listing.taken_at - since >= self._settings.orphan_grace_s and await self._truly_orphan(seen):
                    logger.warning("removing %s from %s: no task owns it", seen.name, self._lane.name)
                    if seen.state in ACTING:  # until it has ended it must stay in sight
                        self._lane.stop(seen.name, ORPHAN_GRACE_S)
                    else:
                        self._lane.remove(seen.name, orphan=True)

    def _owned(self, seen: Observation) -> bool:
        key = (seen.namespace, seen.task_name)
        entry = self._cache.tasks.get(key)
        if entry is not None and entry.task.metadata.uid == seen.task_uid:
            return True
        return self._cache.unreadable.get(key) == seen.task_uid

    async def _truly_orphan(self, seen: Observation) -> bool:
        try:
            obj = await self._api.get(SWARM_TASK, seen.task_name, seen.namespace or "default")
        except NotFound:
            return True
        except SwarmTaskError as error:
            logger.info("cannot tell yet whether %s has an owner: %s", seen.name, error)
            return False
        self._cache.apply(SWARM_TASK, obj)
        return bool(obj["metadata"].get("uid") != seen.task_uid)

    def _prune_finished(self, listing: Listing) -> None:
        """Keep the newest finished workloads for their logs, earlier attempts' included; given up ones go at once."""
        kept: list[tuple[datetime, Observation]] = []
        for items in listing.by_task.values():
            for seen in items:
                entry = self._cache.tasks.get((seen.namespace, seen.task_name))
                if seen.state not in FINAL_WORKLOAD_STATES or entry is None or entry.task.metadata.uid != seen.task_uid:
                    continue
                if entry.live is not None and entry.live.number == seen.attempt:
                    continue  # its end is not stored yet
                status = entry.task.status
                record = next((item for item in status.attempts if item.number == seen.attempt), None)
                if seen.attempt == status.attempt or (record is not None and record.exit_code is not None):
                    kept.append((_ended(seen, record), seen))
                elif seen.attempt < status.attempt:
                    self._lane.remove(seen.name)  # lost, or so old that its record is gone: nobody can ask for its output
        kept.sort(key=lambda pair: (pair[0], pair[1].name), reverse=True)
        for _, seen in kept[self._settings.keep_finished_workloads :]:
            self._lane.remove(seen.name)


def _ended(seen: Observation, record: Attempt | None) -> datetime:
    moment = seen.finished_at or (record.finished_at if record is not None else None)
    return moment or datetime.min.replace(tzinfo=UTC)
