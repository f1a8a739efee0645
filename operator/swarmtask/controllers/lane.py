"""Everything that is asked of one engine, in a lane of its own.

One `EngineLane` per engine, fed by the executor and the observer. Whatever an engine does (hang, fail, refuse) happens in its
lane and holds up no other engine and no write to the API. Commands are idempotent and repeated by their senders as long as the
stored object asks for them; the lane keeps repetitions apart by a few seconds.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from swarmtask.controllers.crashpoints import write_point
from swarmtask.controllers.keyed_queue import KeyedQueue
from swarmtask.controllers.submission import Refuse, Submission, Submissions, Wanted
from swarmtask.controllers.surroundings import Surroundings
from swarmtask.controllers.waiting import Bell
from swarmtask.engines.base import FINAL_WORKLOAD_STATES, Engine, EngineNode, Observation
from swarmtask.errors import SwarmTaskError
from swarmtask.scheduler.model import TaskKey

logger = logging.getLogger(__name__)

COMMAND_WORKERS = 8
REPEAT_S = 5.0
"""A command that had no visible effect is given again after this."""


@dataclass(frozen=True, slots=True)
class _Command:
    """`grace_s` None: remove. Otherwise: stop."""

    grace_s: int | None
    orphan: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """One complete answer of an engine. `taken_at`: monotonic time at which it was asked."""

    taken_at: float
    by_task: dict[str, tuple[Observation, ...]]
    names: frozenset[str]


class EngineLane:
    """See the module.

    Attributes:
        listing: the newest complete list of workloads, None before the first. Set by the observer.
        orphaned: names of tasks under which something acts that no task owns. Set by the observer.
        nodes: the newest node list, None before the first; `nodes_at` is when it was asked. Set by the node controller.
        tried: both lists have been asked for at least once, whatever came of it.
        poll: rung to look at the workloads earlier than planned. node_poll: the same for nodes.
    """

    def __init__(self, engine: Engine, around: Surroundings, wanted: Wanted, refuse: Refuse) -> None:
        self.engine = engine
        self.name = engine.name
        self.listing: Listing | None = None
        self.orphaned: frozenset[TaskKey] = frozenset()
        self.nodes: tuple[EngineNode, ...] | None = None
        self.nodes_at = 0.0
        self.failing = False
        self.tried_workloads, self.tried_nodes = asyncio.Event(), asyncio.Event()
        self.poll, self.node_poll = Bell(around.clock), Bell(around.clock)
        self._clock = around.clock
        self._began = around.clock.monotonic()
        self.submissions = Submissions(engine, around, lambda one: None if self._shows(one.attempt.id) else wanted(one), refuse)
        self._commands: KeyedQueue[str, str, _Command] = KeyedQueue(around.delays, around.rng, cap_s=10.0)
        self._stopped: dict[str, float] = {}
        self._removed: dict[str, float] = {}
        self._started = asyncio.Event()

    # --- asked by others; none of these waits ---

    def submit(self, submission: Submission) -> None:
        """Submit it, unless the engine shows it already.

        What a process before this one may have submitted waits for the first list, after which the observer brings it up again: the
        task may have been edited since, or the attempt may have run and been removed, and then it must not be sent a second time.
        """
        name = submission.attempt.id
        if self._shows(name) or (self.listing is None and not self.submissions.bound_here(name)):
            return
        self.submissions.put(submission)

    def stop(self, name: str, grace_s: int) -> None:
        if not self._recent(self._stopped, name):
            self._stopped[name] = self._clock.monotonic()
            self._commands.put(name, "stop", _Command(grace_s))

    def remove(self, name: str, *, orphan: bool = False) -> None:
        """Remove it, unless a late submit would bring it back to life then; until that is over it is only stopped."""
        if not orphan and self.submissions.may_still_land(name):
            if self._unfinished(name):
                self.stop(name, 0)
            return
        if not self._recent(self._removed, name):
            self._removed[name] = self._clock.monotonic()
            self._commands.put(name, "remove", _Command(None, orphan))

    def forget(self, uid: str) -> None:
        """The task is gone: whatever is left of it has no owner, so look soon."""
        self.submissions.done.pop(uid, None)
        self.poll.ring()

    def present(self, uid: str) -> tuple[Observation, ...] | None:
        """What the engine lists of a task; None while that is not known, or was listed before its newest submit."""
        if self.listing is None or self.failing:
            return None
        return self.listing.by_task.get(uid, ())

    def silence_s(self) -> float:
        """For how many seconds it has not listed its workloads though it was asked; 0 while it answers."""
        if self.listing is not None and not self.failing:
            return 0.0
        return self._clock.monotonic() - (self._began if self.listing is None else self.listing.taken_at)

    def listed_after(self, moment: float) -> bool:
        return self.listing is not None and self.listing.taken_at > moment

    # --- loops ---

    async def started(self) -> None:
        await self._started.wait()

    async def run_start(self) -> None:
        """Connect, again and again until it works; then wait for ever."""
        try:
            await self.engine.start()
            self._started.set()
        finally:
            if not self._started.is_set():  # nobody should wait for its first lists
                self.tried_workloads.set()
                self.tried_nodes.set()
        logger.info("engine %s is connected", self.name)
        await asyncio.Event().wait()

    async def run_commands(self) -> None:
        await self.started()
        async with asyncio.TaskGroup() as group:
            for _ in range(COMMAND_WORKERS):
                group.create_task(self._work())

    async def run_submissions(self) -> None:
        await self.started()
        await self.submissions.run()

    async def run_hints(self) -> None:
        """Hints only make the next poll come earlier."""
        await self.started()
        async for hint in self.engine.watch():
            if hint.subject in ("workload", "resync"):
                self.poll.ring()
            if hint.subject in ("node", "resync"):
                self.node_poll.ring()

    async def _work(self) -> None:
        while True:
            name, slots = await self._commands.take()
            finished = False
            try:
                await self.submissions.landed(name)
                for command in slots.values():
                    await self._perform(name, command)
                finished = True
            except SwarmTaskError as error:
                logger.warning("%s of attempt %s on %s failed and is repeated: %s", "/".join(slots), name, self.name, error)
            except Exception:  # a bug that one attempt meets must not end the work for all others, and must not go unseen
                logger.exception("%s of attempt %s on %s failed unexpectedly and is repeated", "/".join(slots), name, self.name)
            finally:
                if finished:
                    self._commands.done(name)
                else:
                    self._commands.retry(name, slots)
            self.poll.ring()

    async def _perform(self, name: str, command: _Command) -> None:
        if command.grace_s is not None:
            with write_point("stop"):
                await self.engine.stop(name, command.grace_s)
            self._stopped[name] = self._clock.monotonic()
        else:
            with write_point("remove-orphan" if command.orphan else "remove"):
                await self.engine.remove(name)
            self._removed[name] = self._clock.monotonic()

    def _shows(self, name: str) -> bool:
        return self.listing is not None and name in self.listing.names

    def _unfinished(self, name: str) -> bool:
        listed = self.listing.by_task.values() if self.listing is not None else ()
        return any(seen.name == name and seen.state not in FINAL_WORKLOAD_STATES for items in listed for seen in items)

    def _recent(self, times: dict[str, float], name: str) -> bool:
        now = self._clock.monotonic()
        if len(times) > 10_000:
            for old in [known for known, at in times.items() if now - at >= REPEAT_S]:
                del times[old]
        return name in times and now - times[name] < REPEAT_S
