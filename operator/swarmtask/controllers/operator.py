"""The operator: all control loops around one cache, started, supervised and stopped together.

Built by `wiring` (and by tests and the simulator, with an in-memory API, a fake engine, a manual clock and a seeded random source).
It holds no state that matters: everything is read from the API and the engines' lists, so it may be cancelled at any await and a
fresh one goes on where it was.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from swarmtask.clock import Clock
from swarmtask.controllers import crashpoints
from swarmtask.controllers.announcements import Announcer
from swarmtask.controllers.arrays import Arrays
from swarmtask.controllers.cache import Cache
from swarmtask.controllers.catching_up import CatchingUp
from swarmtask.controllers.draining import Draining
from swarmtask.controllers.entries import Change
from swarmtask.controllers.evicting import Evicting
from swarmtask.controllers.executor import Executor
from swarmtask.controllers.intake import Intake, default_intake
from swarmtask.controllers.lane import EngineLane
from swarmtask.controllers.leases import Leases
from swarmtask.controllers.node_labels import NodeLabels
from swarmtask.controllers.node_rules import NodeRules
from swarmtask.controllers.nodes import Nodes
from swarmtask.controllers.observer import Observer
from swarmtask.controllers.queues import Queues
from swarmtask.controllers.reading import version_of
from swarmtask.controllers.scheduling import Scheduling
from swarmtask.controllers.submission import Submission
from swarmtask.controllers.surroundings import Surroundings
from swarmtask.controllers.tenure import TenureKeeper
from swarmtask.controllers.waiting import Timers, supervise
from swarmtask.engines.base import Engine
from swarmtask.errors import ConfigurationError, Conflict, SwarmTaskError
from swarmtask.kube import Object, ObjectApi, ObjectList
from swarmtask.lifecycle.messages import SubmitRefused
from swarmtask.resources.kinds import NAMESPACE, OWN_KINDS, SWARM_NODE, SWARM_QUEUE, SWARM_TASK, Kind
from swarmtask.resources.task import AttemptState, SwarmTask
from swarmtask.scheduler.model import TaskKey
from swarmtask.settings import OperatorSettings

logger = logging.getLogger(__name__)

CANCEL_AGAIN_S = 20.0
"""Longer than any loop's own cleaning up. A library that swallows a cancellation must not keep the operator from ending."""

Loop = Callable[[], Coroutine[Any, Any, None]]


async def cluster_id(api: ObjectApi) -> str:
    """The ID that marks workloads as this control plane's: the UID of the namespace `kube-system`, which lives as long as it."""
    namespace = await api.get(NAMESPACE, "kube-system")
    return str(namespace["metadata"]["uid"])


class Operator:
    """See the module.

    Args:
        engines: preferred ones first; their names differ. They are started here and closed when `run` ends.
        intake: where news comes from; by default kopf where `api` is a client of a server, else list and watch through `api`.

    Attributes:
        cache: for tests and status commands to read.
        companions: more loops, by name, that live as long as it works; for `wiring` to add before `run`.
    """

    def __init__(
        self,
        api: ObjectApi,
        engines: Sequence[Engine],
        settings: OperatorSettings,
        clock: Clock,
        random: random.Random,
        *,
        intake: Intake | None = None,
    ) -> None:
        names = [engine.name for engine in engines]
        if len(set(names)) != len(names):
            raise ConfigurationError(f"every engine can be driven once only: {', '.join(names)}")
        self._clock, self._rng = clock, random
        self._intake = intake or default_intake(api, clock, random)
        self._around = Surroundings(
            api,
            settings,
            clock,
            random,
            delays=Timers(clock, clock.monotonic),
            deadlines=Timers(clock, lambda: clock.now().timestamp()),
            announcer=Announcer(api, clock),
        )
        self._over = asyncio.Event()
        self._tenure = TenureKeeper(api, clock, superseded=self._over.set)
        self.companions: dict[str, Loop] = {}
        self.cache = Cache()
        self.cache.listeners.append(self._on_change)
        self._lanes = {engine.name: EngineLane(engine, self._around, self._wanted, self._refuse) for engine in engines}
        self.executor = Executor(self._around, self.cache, self._lanes, self._unbound)
        self._catching_up = CatchingUp(self._around, self.cache, self._lanes, self.executor)
        self.executor.held = self._catching_up.holds
        rules = NodeRules.of(settings)
        self._nodes = Nodes(self._around, self.cache, self._lanes, self.executor, rules)
        self._draining = Draining(self._around, self.cache, self.executor)
        self._labels = [NodeLabels(lane, self._around, self.cache) for lane in self._lanes.values()] if settings.label_nodes else []
        self._queues = Queues(self._around, self.cache)
        self._arrays = Arrays(self._around, self.cache)
        self.scheduling = Scheduling(self._around, self.cache, self.executor, self._nodes.engine_ready, rules)
        self.executor.node_takes = self.scheduling.still_takes
        self._leases = Leases(
            self._around, self.cache, self.executor, self._lanes,
            reached=lambda: self._nodes.reached, verdict=self._verdict_on_nodes,
        )  # fmt: skip
        self._evicting = Evicting(self._around, self.cache, self.executor, self._leases.heard)
        self._nodes.offer_changed = self.scheduling.bell.ring
        self._nodes.standing, self._nodes.uncertain = self._leases.standing, self._leases.uncertain
        self.scheduling.boot_id = self._leases.boot_id
        self._engines_known = asyncio.Event()
        self._observers = [Observer(lane, self._around, self.cache, self.executor, self._leases) for lane in self._lanes.values()]
        self._synced: dict[str, asyncio.Event] = {kind.plural: asyncio.Event() for kind in OWN_KINDS}
        if settings.crash_point:
            crashpoints.arm(settings.crash_point)

    async def run(self, *, stop: asyncio.Event, ready: asyncio.Event) -> None:
        """Work until `stop` is set. `ready` is set once the cache is filled, every engine was asked and one cycle has run.

        Raises:
            Conflict: another operator has taken over.
        """
        loops = self._first_loops() | {"readiness": lambda: self._become_ready(ready)}
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._alive(name, loop), name=name) for name, loop in loops.items()]
                tasks += [group.create_task(self._after_sync(name, loop), name=name) for name, loop in self._later_loops().items()]
                await self._told_to_end(stop)
                pending = set(tasks)
                while pending:
                    for task in pending:
                        task.cancel()
                    _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
        finally:
            for lane in self._lanes.values():
                await self._close(lane)
        if self._over.is_set():
            raise Conflict("another operator has taken over; of several on one API only the newest works")

    async def _told_to_end(self, stop: asyncio.Event) -> None:
        reasons = [asyncio.create_task(event.wait()) for event in (stop, self._over)]
        try:
            await asyncio.wait(reasons, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for reason in reasons:
                reason.cancel()

    async def _close(self, lane: EngineLane) -> None:
        try:
            await lane.engine.aclose()
        except SwarmTaskError as error:
            logger.warning("engine %s could not be closed cleanly: %s", lane.name, error)

    # --- loops ---

    def _first_loops(self) -> dict[str, Loop]:
        loops: dict[str, Loop] = {
            "tenure": self._tenure.run,
            "intake": self._take_in,
            "delays": self._around.delays.run,
            "deadlines": self._around.deadlines.run,
            "events": self._around.announcer.run,
        }
        for lane in self._lanes.values():
            loops[f"connection of {lane.name}"] = lane.run_start
            loops[f"hints of {lane.name}"] = lane.run_hints
        return loops

    def _later_loops(self) -> dict[str, Loop]:
        """Loops that must not act on a half-filled cache: it would look as if tasks, nodes and owners were missing."""
        loops: dict[str, Loop] = {
            "executor": self.executor.run,
            "catching up": self._catching_up.run,
            "scheduling": self._schedule,
            "queues": self._queues.run,
            "default queues": self._queues.run_defaults,
            "arrays": self._arrays.run,
            "nodes": self._nodes.run,
            "draining": self._draining.run,
            "evicting": self._evicting.run,
            "leases": self._leases.run,
        }
        for lane, observer in zip(self._lanes.values(), self._observers, strict=True):
            loops[f"observer of {lane.name}"] = observer.run
            loops[f"nodes of {lane.name}"] = lambda lane=lane: self._nodes.poll(lane)  # type: ignore[misc]
            loops[f"commands of {lane.name}"] = lane.run_commands
            loops[f"submissions of {lane.name}"] = lane.run_submissions
        loops |= {f"labels of {labels.engine}": labels.run for labels in self._labels}
        return loops | self.companions

    async def _alive(self, name: str, loop: Loop) -> None:
        await supervise(name, loop, self._clock, self._rng)

    async def _after_sync(self, name: str, loop: Loop) -> None:
        await self._cache_filled()
        for bell in (self._queues.bell, self._nodes.bell):
            bell.ring()
        await self._alive(name, loop)

    async def _cache_filled(self) -> None:
        for event in self._synced.values():
            await event.wait()

    async def _take_in(self) -> None:
        """Not before writes of an operator before can no longer arrive: they would change what was read unseen."""
        await self._tenure.begun.wait()
        await self._intake.run(self)

    async def _become_ready(self, ready: asyncio.Event) -> None:
        await self._cache_filled()
        self._around.announcer.tell_ends_again(entry.task for entry in self.cache.tasks.values())
        for lane in self._lanes.values():
            await lane.tried_workloads.wait()
            await lane.tried_nodes.wait()
        await self._nodes.refresh()
        self._engines_known.set()
        await self.scheduling.first_cycle.wait()
        ready.set()
        await asyncio.Event().wait()

    async def _schedule(self) -> None:
        """Not before the engines were asked which nodes there are: every task would be told that none fits."""
        await self._engines_known.wait()
        self.scheduling.bell.ring()
        await self.scheduling.run()

    # --- news (the Sink of the intake) ---

    def replaced(self, kind: Kind, objects: ObjectList) -> None:
        self.cache.replace(kind, objects.items, int(objects.resource_version))
        self._synced[kind.plural].set()

    def changed(self, kind: Kind, obj: Object, *, gone: bool) -> None:
        metadata = obj["metadata"]
        if gone:
            self.cache.remove(kind, (metadata.get("namespace") or "", metadata["name"]), version_of(obj))
        else:
            self.cache.apply(kind, obj)

    def _on_change(self, change: Change) -> None:
        """Wake whoever looks at what has changed."""
        if change.kind is SWARM_TASK:
            self._queues.bell.ring()
            self._arrays.note(change)
            self._catching_up.note(change)
            if self.cache.lacks_default(change.key[0]):
                self._queues.newcomers.ring()
            if change.gone:
                self._task_gone(change)
            elif not change.own:
                self.executor.look(change.key)
        elif change.kind is SWARM_QUEUE:
            self._queues.bell.ring()
            for key, entry in self.cache.tasks.items() if change.placement else ():
                if entry.queue == change.key and entry.live is None and not entry.task.finished:
                    (self._arrays if entry.task.is_array else self.executor).look(key)
        elif change.kind is SWARM_NODE:
            self._nodes.bell.ring()
            self._draining.bell.ring()
            self._evicting.bell.ring()
            for labels in self._labels:
                labels.bell.ring()
        if change.placement:
            self.scheduling.bell.ring()
            self._nodes.bell.ring()
            self._draining.bell.ring()

    def _task_gone(self, change: Change) -> None:
        self.executor.forget(change.key)
        for lane in self._lanes.values():
            lane.forget(change.uid)

    # --- what lanes ask and tell ---

    def _wanted(self, submission: Submission) -> SwarmTask | None:
        entry = self.cache.tasks.get(submission.key)
        if entry is None or entry.invalid is not None or entry.task.metadata.uid != submission.uid:
            return None
        live = entry.live
        if live is None or live.number != submission.attempt.number or live.state is not AttemptState.STARTING or live.observed:
            return None
        if any(submission.key in lane.orphaned for lane in self._lanes.values()):
            return None  # what a task of this name began that no backup knows still acts: the next list brings this up again
        if self._leases.uncertain(live.node):
            return None  # it would start there whenever the node is back, when another one may be at work
        return entry.task if entry.task.metadata.deletion_timestamp is None else None

    def _refuse(self, key: TaskKey, uid: str, refused: SubmitRefused) -> None:
        self.executor.offer(key, uid, refused)

    def _verdict_on_nodes(self) -> None:
        """A node was lost, or is heard again: that must show at once."""
        self._nodes.bell.ring()
        self._nodes.urgent.ring()

    def _unbound(self) -> None:
        """A decision was taken back: the next cycle decides again, and a node's status may have counted what was assumed."""
        self.scheduling.bell.ring()
        self._nodes.bell.ring()


__all__ = ["Operator", "cluster_id"]
