"""SwarmQueues: the counts in their status, and the queue `default` where there are tasks.

Called by the operator as one loop. It counts from the cache's sums, writes a status only when it has changed, and at most once per
`status_refresh_s`. It never starts or stops a task.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from swarmtask.controllers.cache import DEFAULT_QUEUE, Cache
from swarmtask.controllers.crashpoints import write_point
from swarmtask.controllers.reading import difference
from swarmtask.controllers.surroundings import Surroundings
from swarmtask.controllers.waiting import Bell
from swarmtask.errors import AlreadyExists, Conflict, Forbidden, NotFound
from swarmtask.resources.kinds import SWARM_QUEUE
from swarmtask.resources.meta import set_condition
from swarmtask.resources.queue import QueueStatus, SwarmQueue
from swarmtask.resources.task import BOUND_PHASES, Phase
from swarmtask.scheduler.model import QueueKey

logger = logging.getLogger(__name__)


class Queues:
    """See the module. `bell`: ring it when tasks or queues have changed."""

    def __init__(self, around: Surroundings, cache: Cache) -> None:
        self._api, self._cache, self._settings, self._clock = around.api, cache, around.settings, around.clock
        self.bell = Bell(around.clock)

    async def run(self) -> None:
        """Until cancelled. `bell` must be rung once to begin."""
        again = True  # also when this loop has failed: the ring that it was woken by is used up
        while True:
            await self.bell.wait(self._settings.status_refresh_s if again else None)
            again = await self.refresh()
            await self._clock.sleep(self._settings.status_refresh_s)

    async def refresh(self) -> bool:
        """Bring every queue up to date once. True when something has to be tried again."""
        again = False
        for namespace in {key[0] for key in self._cache.tasks}:
            if (namespace, DEFAULT_QUEUE) not in self._cache.queues:
                again |= not await self._create_default(namespace)
        oldest = self._cache.backlog.oldest()
        for key, queue in list(self._cache.queues.items()):
            status = self._status(key, queue, oldest.get(key))
            if status != queue.status:
                again |= not await self._write(key, queue, status)
        return again

    def _status(self, key: QueueKey, queue: SwarmQueue, oldest: float | None) -> QueueStatus:
        phases = self._cache.phases
        stopped = queue.spec.stopped
        return queue.status.model_copy(
            update={
                "queued": phases[(key, Phase.QUEUED)],
                "running": sum(phases[(key, phase)] for phase in BOUND_PHASES),
                "dead_letters": phases[(key, Phase.FAILED)],
                "oldest_queued_time": None if oldest is None else datetime.fromtimestamp(int(oldest), UTC),
                "limits_held": {name: sum(self._cache.limit_holders(key, name).values()) for name in queue.spec.limits},
                "observed_generation": queue.metadata.generation or None,
                "conditions": set_condition(
                    queue.status.conditions,
                    "Active",
                    not stopped,
                    reason="Stopped" if stopped else "Open",
                    message="spec.stopped is set: nothing of this queue starts" if stopped else "tasks of this queue start",
                    now=self._clock.now().replace(microsecond=0),
                    observed_generation=queue.metadata.generation or None,
                ),
            }
        )

    async def _create_default(self, namespace: str) -> bool:
        body = {
            "apiVersion": SWARM_QUEUE.api_version, "kind": SWARM_QUEUE.kind,
            "metadata": {"name": DEFAULT_QUEUE, "namespace": namespace}, "spec": {},
        }  # fmt: skip
        try:
            with write_point("create-queue"):
                self._cache.apply(SWARM_QUEUE, await self._api.create(SWARM_QUEUE, body, namespace))
        except AlreadyExists:
            self._cache.apply(SWARM_QUEUE, await self._api.get(SWARM_QUEUE, DEFAULT_QUEUE, namespace))
        except (Forbidden, NotFound):
            logger.debug("namespace %s is going away and gets no queue", namespace)
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
        self._cache.apply(SWARM_QUEUE, obj)
        return True
