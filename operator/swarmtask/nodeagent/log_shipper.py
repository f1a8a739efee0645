"""The output of all attempts on this node, on its way to the API: one follower for each container.

Called by `__main__`, which runs it beside the agent; `changed` is called when some attempt has begun or ended. What goes wrong here
costs output, never a Lease: nothing of the agent waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from swarmtask.clock import Clock
from swarmtask.errors import EngineUnavailable
from swarmtask.nodeagent.containers import ALIVE, ENDED, Details, Listed, Owner, details, listed, owner
from swarmtask.nodeagent.daemon import Daemon
from swarmtask.nodeagent.log_follower import Bucket, Follower, Habits, Means
from swarmtask.nodeagent.log_positions import Positions, Sent
from swarmtask.nodeagent.log_sender import LogApi, LogSender
from swarmtask.nodeagent.log_source import LogSource

T = TypeVar("T")
logger = logging.getLogger(__name__)

LIST_S = 30.0
GATHER_S = 0.1
MOST_FOLLOWED = 64
"""Containers that are read at the same time: each holds a batch. The others come when one has ended."""
FAILED_S = 60.0
"""After an error that nobody has thought of, until that container's output is tried again."""
PLACE = "logs"
"""Below the agent's state."""


class LogShipper:
    """See the module.

    Args:
        permit: boot time, or None while the fence forbids every call of the API.
        node: the SwarmNode that this machine is; empty while nobody knows.
    """

    def __init__(
        self,
        docker: Path,
        daemon: Daemon,
        api: LogApi,
        permit: Callable[[], float | None],
        state: Path,
        *,
        node: Callable[[], str],
        clock: Clock,
        rng: random.Random,
        habits: Habits | None = None,
        bucket: Bucket | None = None,
    ) -> None:
        self._daemon, self._positions, self._clock = daemon, Positions(state / PLACE), clock
        self._means = Means(
            LogSource(docker), LogSender(api, permit, node=node, clock=clock, rng=rng), self._positions, self._inspect,
            bucket or Bucket(clock.monotonic), clock.sleep, habits or Habits(),
        )  # fmt: skip
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="output")
        self._followers: dict[str, Follower] = {}
        self._places = asyncio.Semaphore(MOST_FOLLOWED)
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Some container has begun or ended. From the loop's own thread."""
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                await self._look_after(group)
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _look_after(self, group: asyncio.TaskGroup) -> None:
        sent = self._positions.load()
        while True:
            self._changed.clear()
            try:
                new = self._new(_containers(await self._ask_docker(self._daemon.containers)), sent)
            except EngineUnavailable as error:
                logger.debug("containers are not seen: %s", error.message)
            except Exception:  # a bug in one look must not end the output that is on its way, and must not go unseen
                logger.exception("containers cannot be looked at; it is tried again")
            else:
                for follower in new:
                    group.create_task(self._follow(follower), name=f"output of {follower.owner.attempt}")
            await self._until_changed()

    def _new(self, found: Mapping[str, tuple[Listed, Owner]], sent: dict[str, Sent]) -> list[Follower]:
        """Followers that have to begin. `sent`: what an agent before this one has left; empty afterwards."""
        new: list[Follower] = []
        for name, (item, whose) in found.items():
            known = self._followers.get(name)
            if known is None or (known.done and known.container_id != item.id):
                new.append(Follower(whose, item.id, self._means, sent.get(name)))
            elif not item.alive:
                known.container_ended()
        new += [Follower(one.owner, one.container_id, self._means, one) for name, one in sent.items() if name not in found]
        sent.clear()
        self._followers |= {follower.owner.attempt: follower for follower in new}
        for name in [name for name, follower in self._followers.items() if follower.done and name not in found]:
            del self._followers[name]
            self._positions.drop(name)
        return [follower for follower in new if not follower.done]

    async def _follow(self, follower: Follower) -> None:
        while not follower.done:
            async with self._places:
                try:
                    await follower.run()
                except Exception:  # a bug with one container's output must not cost that of all others, and must not go unseen
                    logger.exception("output of %s cannot be sent; it is tried again", follower.owner.attempt)
            if not follower.done:
                await self._clock.sleep(FAILED_S)

    async def _until_changed(self) -> None:
        try:
            async with asyncio.timeout(LIST_S):
                await self._changed.wait()
        except TimeoutError:
            return
        await self._clock.sleep(GATHER_S)

    async def _ask_docker(self, call: Callable[[], T]) -> T:
        """In threads of our own: a Docker that hangs must not take those in which the Lease is renewed."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _inspect(self, container_id: str) -> Details | None:
        answer = await self._ask_docker(lambda: self._daemon.inspect(container_id))
        return None if answer is None else details(answer)


def _containers(items: list[dict[str, object]]) -> dict[str, tuple[Listed, Owner]]:
    """By attempt: of several of one attempt the one that runs, else the youngest, which Docker lists first."""
    found: dict[str, tuple[Listed, Owner]] = {}
    for item in items:
        seen, whose = listed(item), owner(item)
        if seen is None or whose is None or seen.state not in ALIVE | ENDED:
            continue
        if whose.attempt not in found or (seen.alive and not found[whose.attempt][0].alive):
            found[whose.attempt] = (seen, whose)
    return found
