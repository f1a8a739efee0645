"""A whole operator on an in-memory API, a fake engine and a clock moved by hand.

`World` starts and crashes operators on what stays behind them: the API and the engine. A test says what must become true
(`until`), and time moves in small steps until it does; nothing sleeps.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from swarmtask.clock import ManualClock
from swarmtask.controllers import crashpoints
from swarmtask.controllers.operator import Operator
from swarmtask.engines.base import Engine
from swarmtask.kube import Object
from swarmtask.resources.kinds import EVENT, NAMESPACE, SWARM_NODE, SWARM_QUEUE, SWARM_TASK, Kind
from swarmtask.resources.task import SwarmTask
from swarmtask.resources.tenure import Tenure
from swarmtask.settings import OperatorSettings
from tests.checker.checker import Checker
from tests.fakes.engine import FakeEngine
from tests.fakes.kube import FakeKube

STEP_S = 0.05
YIELDS_PER_STEP = 40
YIELDS_PER_LOOK = 10


class Crash(BaseException):
    """Stands for kill -9 inside one process: nothing catches it."""


class World:
    """See the module."""

    def __init__(self, *nodes: Any, seed: int = 1, engines: tuple[Engine, ...] | None = None, **settings: Any) -> None:
        self.clock = ManualClock()
        self.kube = FakeKube(self.clock, seed=seed)
        self.checker = Checker()
        self.unreadable: set[str] = set()
        """Names of tasks and queues that a test stores although no model can read them."""
        self.kube.on_commit.append(self._committed)
        self.engine = FakeEngine(self.clock, nodes=nodes or ("n1",))
        self.engine.on_sleep.append(self._slept)
        self.engines: tuple[Engine, ...] = engines if engines is not None else (self.engine,)
        self.settings = OperatorSettings(**settings)
        self.rng = random.Random(seed)
        self.operator: Operator | None = None
        self.operators = 0
        self.crashes: list[str] = []
        self._running: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self.ready = asyncio.Event()

    # --- operators ---

    def client(self) -> FakeKube:
        """The API as the newest operator sees it."""
        return self.kube.under(Tenure(f"operator-{self.operators}"))

    async def start(self, *, wait: bool = True) -> Operator:
        """A fresh operator, as after a restart of its process."""
        assert self._running is None
        self._stop, self.ready = asyncio.Event(), asyncio.Event()
        self.operators += 1
        self.operator = Operator(self.client(), self.engines, self.settings, self.clock, self.rng)
        self._running = asyncio.create_task(self.operator.run(stop=self._stop, ready=self.ready))
        if wait:
            await self.until(self.ready.is_set)
        return self.operator

    async def stop(self) -> None:
        """End the operator as by SIGTERM."""
        if self._running is not None:
            self._stop.set()
            running, self._running = self._running, None
            await running

    async def crash(self) -> None:
        """End the operator at whatever await it is."""
        assert self._running is not None
        running, self._running = self._running, None
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    def arm(self, point: str) -> None:
        """Let the operator die when it reaches this point, once."""

        def die(reached: str) -> None:
            crashpoints.arm("")
            self.crashes.append(reached)
            raise Crash(reached)

        crashpoints.arm(point, die)

    async def _after_crash(self) -> None:
        """An operator that died at an armed point is followed by a fresh one."""
        assert self._running is not None
        running, self._running = self._running, None
        try:
            await running
        except BaseExceptionGroup as group:
            if group.subgroup(Crash) is None:
                raise
        await self.start(wait=False)

    # --- time ---

    async def until(self, condition: Callable[[], object], limit_s: float = 120.0, *, restart: bool = False) -> None:
        """Move time until the condition holds.

        Args:
            restart: start a fresh operator when the running one dies at an armed crash point.

        Raises:
            AssertionError: it did not hold within `limit_s` seconds of the clock; says how things stand.
        """
        end = self.clock.monotonic() + limit_s
        while True:
            for number in range(YIELDS_PER_STEP):
                if number % YIELDS_PER_LOOK == 0 and condition():
                    return
                await asyncio.sleep(0)
            if self._running is not None and self._running.done():
                if restart:
                    await self._after_crash()
                else:
                    self._running.result()
                    raise AssertionError("the operator has ended")
            assert self.clock.monotonic() < end, f"not within {limit_s}s of the clock:\n{self.describe()}"
            self.clock.advance(STEP_S)

    async def pass_time(self, seconds: float) -> None:
        """Let `seconds` of the clock go by."""
        end = self.clock.monotonic() + seconds
        await self.until(lambda: self.clock.monotonic() >= end, seconds + 1)

    # --- looking ---

    def task(self, name: str, namespace: str = "default") -> SwarmTask:
        obj = self.kube.peek(SWARM_TASK, name, namespace)
        assert obj is not None, f"there is no task {name}"
        return SwarmTask.model_validate(obj)

    def phase(self, name: str, namespace: str = "default") -> str:
        return str(self.task(name, namespace).status.phase.value)

    def gone(self, name: str, namespace: str = "default") -> bool:
        return self.kube.peek(SWARM_TASK, name, namespace) is None

    def phases(self) -> dict[str, str]:
        return {obj["metadata"]["name"]: (obj.get("status") or {}).get("phase", "") for obj in self.kube.view(SWARM_TASK)}

    def node(self, name: str) -> Object:
        obj = self.kube.peek(SWARM_NODE, name)
        assert obj is not None, f"there is no node {name}"
        return obj

    def events(self, name: str) -> list[tuple[str, int]]:
        """(reason, count) of the Events of a task, by first time."""
        found = [event for event in self.kube.all(EVENT) if event["involvedObject"]["name"] == name]
        found.sort(key=lambda event: event["firstTimestamp"])
        return [(event["reason"], event["count"]) for event in found]

    def describe(self) -> str:
        lines = [f"at {self.clock.now():%H:%M:%S.%f}"]
        for obj in self.kube.all(SWARM_TASK):
            status = obj.get("status") or {}
            lines.append(f"  {obj['metadata']['name']}: {status.get('phase')} {status.get('reason')} {status.get('message')}")
        lines.append(f"  engine holds {sorted(self.engine.names())}")
        return "\n".join(lines[:60])

    # --- making ---

    def add_task(self, name: str, namespace: str = "default", *, cpu: str = "1", memory: str = "1Gi", **spec: Any) -> Object:
        """Create a task as a user would. Further keyword arguments go into spec as they are."""
        container = {"image": "busybox", "resources": {"requests": {"cpu": cpu, "memory": memory}}} | spec.pop("container", {})
        body = {
            "apiVersion": SWARM_TASK.api_version, "kind": "SwarmTask", "metadata": {"name": name, "namespace": namespace},
            "spec": {"container": container} | spec,
        }  # fmt: skip
        if self.kube.peek(NAMESPACE, namespace) is None:
            self.kube.add(NAMESPACE, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        created = self.kube.add(SWARM_TASK, body)
        self.checker.acknowledged_create(namespace, name, created["metadata"]["uid"], self.clock.now())
        return created

    def add_queue(self, name: str, namespace: str = "default", **spec: Any) -> Object:
        body = {"apiVersion": SWARM_QUEUE.api_version, "kind": "SwarmQueue", "metadata": {"name": name, "namespace": namespace}}
        return self.kube.add(SWARM_QUEUE, body | {"spec": spec})

    # --- what must always hold ---

    def check(self) -> None:
        """The invariants over everything that was stored and everything that truly ran."""
        self.engine.check()
        for run in self.engine.intervals():
            self.checker.container_started(run.node_id, run.name, run.started)
            if run.ended is not None:
                self.checker.container_stopped(run.node_id, run.name, run.ended)
        assert len({run.name for run in self.engine.intervals()}) == len(self.engine.intervals()), "an attempt ran twice"
        self.checker.engine_listed(self.engine.name, self.engine.names(), self.clock.now())
        self.checker.assert_ok()

    def _slept(self, node: str, asleep: bool) -> None:
        (self.checker.node_asleep if asleep else self.checker.node_awake)(node, self.clock.now())

    def _committed(self, kind: Kind, obj: Object, gone: bool) -> None:
        now, metadata = self.clock.now(), obj["metadata"]
        if kind is SWARM_TASK:
            if gone or metadata.get("deletionTimestamp"):
                self.checker.delete_requested(metadata["uid"], now)
            if gone:
                self.checker.task_deleted(metadata["uid"], now)
            elif metadata["name"] not in self.unreadable:
                self.checker.task_seen(obj, now)
        elif kind is SWARM_NODE and not gone and metadata["name"] not in self.unreadable:
            self.checker.node_seen(obj, now)
        elif kind is SWARM_QUEUE and not gone and metadata["name"] not in self.unreadable:
            self.checker.queue_seen(obj, now)


@asynccontextmanager
async def running(world: World, *, start: bool = True) -> AsyncIterator[World]:
    """A world with an operator that is stopped in the end, whatever happens."""
    try:
        if start:
            await world.start()
        yield world
        world.check()
    finally:
        crashpoints.arm("")
        await world.stop()
