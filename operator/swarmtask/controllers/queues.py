"""SwarmQueues: the counts in their status, and the queue `default` where there are tasks.

Called by the operator as two loops. `run` counts from the cache's sums and from `figures`, writes a status only when it has
changed, and at most once per `status_refresh_s`; where only time has passed, once in `FIGURES_S`, until nothing changes by time.
`run_defaults` creates `default` where a task comes to a namespace that never had one; what a person has deleted only a person
creates again. Neither ever starts or stops a task.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from swarmtask.controllers.cache import Cache
from swarmtask.controllers.crashpoints import write_point
from swarmtask.controllers.figures import Figures, Reading
from swarmtask.controllers.known_queues import DEFAULT_QUEUE
from swarmtask.controllers.reading import difference
from swarmtask.controllers.surroundings import Surroundings
from swarmtask.controllers.waiting import Bell
from swarmtask.errors import Conflict, Forbidden, Invalid, NotFound
from swarmtask.resources.kinds import SWARM_QUEUE
from swarmtask.resources.meta import set_condition
from swarmtask.resources.queue import QueueStatus, SwarmQueue
from swarmtask.resources.task import Phase
from swarmtask.scheduler.model import QueueKey

logger = logging.getLogger(__name__)

FIGURES_S = 30.0
"""Throughput and waits that change by the passing of time alone are written at most once in so many seconds."""


class Queues:
    """See the module. `bell`: ring it when tasks or queues have changed; `newcomers`: when a namespace lacks `default`."""

    def __init__(self, around: Surroundings, cache: Cache) -> None:
        self._api, self._cache, self._settings, self._clock = around.api, cache, around.settings, around.clock
        self.bell, self.newcomers = Bell(around.clock), Bell(around.clock)
        self._figures = Figures(around.clock)
        cache.witnesses.append(self._figures.note)
        self._written: dict[QueueKey, float] = {}
        """When the status of each queue was written last, in monotonic seconds."""
        self._due: float | None = None
        """When figures have to be looked at again, in monotonic seconds."""

    async def run(self) -> None:
        """Until cancelled. `bell` must be rung once to begin."""
        timeout_s: float | None = self._settings.status_refresh_s
        while True:
            # The first time, and when this loop has failed, it does not wait for a ring: the one that it was woken by is used up.
            await self.bell.wait(timeout_s)
            timeout_s = self._settings.status_refresh_s
            if not await self.refresh():
                timeout_s = None if self._due is None else max(0.0, self._due - self._clock.monotonic())
            await self._clock.sleep(self._settings.status_refresh_s)

    async def run_defaults(self) -> None:
        """Until cancelled. At once: nothing of a queue starts before its object is there."""
        while True:
            made = [await self._create_default(name) for name in list(self._cache.namespaces) if self._cache.lacks_default(name)]
            await self.newcomers.wait(None if all(made) else self._settings.status_refresh_s)

    async def refresh(self) -> bool:
        """Bring every queue up to date once. True when something has to be tried again."""
        again = False
        oldest = self._cache.backlog.oldest()
        self._due = None
        self._written = {key: written for key, written in self._written.items() if key in self._cache.queues}
        for key, queue in list(self._cache.queues.items()):
            if key in self._cache.known_queues.mute:
                continue
            reading = self._figures.read(key)
            counted = self._counted(key, queue, oldest.get(key))
            status = counted.model_copy(update=_as_status(reading))
            urgent = counted != queue.status and key not in self._cache.known_queues.unreadable
            if status != queue.status and (urgent or self._may_age(key)):
                again |= not await self._write(key, queue, status)
            elif status != queue.status:
                self._look_again(self._written[key] + FIGURES_S)
            if reading.changes_at is not None:
                ahead_s = reading.changes_at - self._clock.now().timestamp()
                self._look_again(self._clock.monotonic() + max(FIGURES_S, ahead_s))
        return again

    def _may_age(self, key: QueueKey) -> bool:
        """Only the figures have changed, or its object may refuse every write: is it time to write them?"""
        return self._clock.monotonic() >= self._written.get(key, float("-inf")) + FIGURES_S

    def _look_again(self, moment: float) -> None:
        self._due = moment if self._due is None else min(self._due, moment)

    def _counted(self, key: QueueKey, queue: SwarmQueue, oldest: float | None) -> QueueStatus:
        """The status with what can be counted now; the figures are as they were."""
        phases = self._cache.phases
        stopped, known = queue.spec.stopped, self._cache.known_queues
        reason = "Stopped" if stopped else "Open"
        message = "spec.stopped is set: nothing of this queue starts" if stopped else "tasks of this queue start"
        if key in known.unreadable:
            reason, message = "Unreadable", known.unknown(key) or f"{message}; {known.outdated(key)}"
        return queue.status.model_copy(
            update={
                "queued": phases[(key, Phase.QUEUED)],
                "running": self._cache.bound[key],  # as bounds count: by the queue that let it start
                "dead_letters": phases[(key, Phase.FAILED)],
                "oldest_queued_time": None if oldest is None else datetime.fromtimestamp(int(oldest), UTC),
                "limits_held": {name: self._cache.limit_held(name) for name in queue.spec.limits},
                "observed_generation": queue.metadata.generation or None,
                "conditions": set_condition(
                    queue.status.conditions,
                    "Active",
                    not stopped,
                    reason=reason,
                    message=message,
                    now=self._clock.now().replace(microsecond=0),
                    observed_generation=queue.metadata.generation or None,
                ),
            }
        )

    async def _create_default(self, namespace: str) -> bool:
        """By server-side apply and without a spec, so that its defaults are nobody's; as `Nodes._create`. False when it has to be
        tried again."""
        if self._cache.had_default(namespace):
            self._cache.lose_default(namespace)
            return True
        body = {
            "apiVersion": SWARM_QUEUE.api_version, "kind": SWARM_QUEUE.kind,
            "metadata": {"name": DEFAULT_QUEUE, "namespace": namespace},
        }  # fmt: skip
        try:
            with write_point("create-queue"):
                obj = await self._api.patch(SWARM_QUEUE, DEFAULT_QUEUE, body, namespace, type_="apply")
            self._cache.apply(SWARM_QUEUE, obj)
        except (Forbidden, NotFound) as error:
            logger.info("namespace %s gets no queue default; perhaps it is going away: %s", namespace, error)
            return False
        return True

    async def _write(self, key: QueueKey, queue: SwarmQueue, status: QueueStatus) -> bool:
        patch = {"metadata": {"resourceVersion": queue.metadata.resource_version}, "status": difference(queue.status, status)}
        try:
            with write_point("write-queue"):
                obj = await self._api.patch(SWARM_QUEUE, key[1], patch, key[0], subresource="status")
        except Conflict:
            self._cache.apply(SWARM_QUEUE, await self._api.get(SWARM_QUEUE, key[1], key[0]))
            return False
        except NotFound:
            self._cache.remove(SWARM_QUEUE, key)
            return True
        except Invalid as error:
            if key not in self._cache.known_queues.unreadable:
                raise
            logger.info("the status of SwarmQueue %s/%s cannot be written until it is corrected: %s", *key, error)
            self._written[key] = self._clock.monotonic()
            return True
        self._cache.apply(SWARM_QUEUE, obj)
        self._written[key] = self._clock.monotonic()
        return True


def _as_status(reading: Reading) -> dict[str, float | int | None]:
    return {
        "throughput_per_minute": reading.throughput_per_minute,
        "wait_seconds_p50": reading.wait_p50_s,
        "wait_seconds_p99": reading.wait_p99_s,
    }
