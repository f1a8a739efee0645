"""Nodes that run out of memory: the wish of their agent becomes the end of one attempt.

One loop, woken by every change of a node. Who goes is decided by `lifecycle.eviction`; this only offers it to the executor, once
for each wish. It is a matter of seconds: an agent that gets no answer acts alone, so a wish that cannot be fulfilled is left to it.
"""

from __future__ import annotations

from collections.abc import Callable

from swarmtask.controllers.cache import Cache
from swarmtask.controllers.executor import Executor
from swarmtask.controllers.surroundings import Surroundings
from swarmtask.controllers.waiting import Bell
from swarmtask.lifecycle.eviction import Occupant, choose
from swarmtask.lifecycle.messages import Evict
from swarmtask.resources.node import NodeEviction


class Evicting:
    """See the module. `bell`: ring it when a node has changed.

    Args:
        heard: is the agent of this SwarmNode heard now? The wish of one that is silent is old.
    """

    def __init__(self, around: Surroundings, cache: Cache, executor: Executor, heard: Callable[[str], bool]) -> None:
        self._cache, self._executor, self._heard = cache, executor, heard
        self.bell = Bell(around.clock)
        self._answered: dict[str, NodeEviction] = {}
        """Node -> its wish that was heard last."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.step()
            await self.bell.wait()

    def step(self) -> None:
        """Answer every wish that was not answered yet."""
        wishes = {name: node.status.eviction for name, node in self._cache.nodes.items() if node.status.eviction is not None}
        for name in self._answered.keys() - wishes.keys():
            del self._answered[name]
        for name, wish in wishes.items():
            if self._answered.get(name) != wish and self._heard(name):
                self._answered[name] = wish
                self._answer(name, wish)

    def _answer(self, name: str, wish: NodeEviction) -> None:
        there = {attempt.id: (key, attempt) for key, attempt in self._cache.live() if attempt.node == name}
        occupants = [Occupant(one, self._cache.tasks[key].task.spec.effective_priority) for key, one in there.values()]
        chosen = choose(wish.id, occupants)
        if chosen is not None:
            key, attempt = there[chosen.attempt.id]
            uid = self._cache.tasks[key].task.metadata.uid
            words = (
                wish.message or "" if attempt.id == wish.id else "a task of lower priority than the one that it named makes room"
            )
            self._executor.offer(key, uid, Evict(attempt.number, name, words, wish))
