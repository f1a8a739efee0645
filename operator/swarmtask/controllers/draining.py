"""Nodes that are to be empty: whatever is bound there is asked to end, again and again until it has.

One loop, woken by every change of a node and of what is placed. It only offers facts to the executor, which decides and writes;
the node's status tells how far it is (`node_wishes`). Nothing new comes because the scheduler refuses such nodes. Attempts whose
node does not answer are left to `spec.nodeLoss`: nobody could see them stop.
"""

from __future__ import annotations

from swarmtask.controllers.cache import Cache
from swarmtask.controllers.executor import Executor
from swarmtask.controllers.surroundings import Surroundings
from swarmtask.controllers.waiting import Bell
from swarmtask.lifecycle.messages import Drain
from swarmtask.resources.task import AttemptState


class Draining:
    """See the module. `bell`: ring it when something has changed."""

    def __init__(self, around: Surroundings, cache: Cache, executor: Executor) -> None:
        self._clock, self._settings = around.clock, around.settings
        self._cache, self._executor = cache, executor
        self.bell = Bell(around.clock)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            left = self.step()
            await self.bell.wait(self._settings.status_refresh_s if left else None)
            await self._clock.sleep(self._settings.cycle_gap_s)

    def step(self) -> int:
        """Ask once for the end of what is still there. Returns how many attempts nobody is stopping yet."""
        nodes = {name for name, node in self._cache.nodes.items() if node.spec.drain}
        if not nodes:
            return 0
        left = [(key, one) for key, one in self._cache.live() if one.node in nodes and one.state is not AttemptState.STOPPING]
        for key, attempt in left:
            if attempt.state is not AttemptState.UNKNOWN:
                self._executor.offer(key, self._cache.tasks[key].task.metadata.uid, Drain(attempt.number, attempt.node))
        return len(left)
