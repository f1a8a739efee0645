"""B7: how long a task of high priority waits for its start behind a long queue, and in an empty one.

A whole operator on fakes, on the machine's own clock: the real intake, cache, scheduling and executor, the in-memory API and the
fake engine in the same process. The cluster has room for the urgent task and for none of those that wait: those ask for more than
any node has left. Measured from the moment when the API accepts the task until its status says on which node it runs; what the
engine takes to start it is not the scheduler's. While it is measured, the operator goes on telling waiting tasks why they wait.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from swarmtask.clock import SystemClock
from swarmtask.controllers.operator import Operator
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.settings import OperatorSettings
from tests.benchmarks.measuring import Effort, Figure, Goal, Spread
from tests.fakes.engine import FakeEngine, Outcome
from tests.fakes.kube import FakeKube

NODES = 5
TRIES = 7
"""Urgent tasks in one operator; its median is one measurement."""
PAUSE_S = 0.5
LIMIT_S = 600.0


class Cluster:
    """An operator at work with so many tasks waiting."""

    def __init__(self, waiting: int) -> None:
        self.clock = SystemClock()
        self.kube = FakeKube(self.clock)
        self.engine = FakeEngine(self.clock, nodes=[f"n{number}" for number in range(NODES)], default=Outcome(duration_s=0.1))
        self.waiting = waiting

    def add(self, name: str, cpu: str, priority: int = 0) -> None:
        container = {"image": "busybox", "resources": {"requests": {"cpu": cpu, "memory": "64Mi"}}}
        self.kube.add(
            SWARM_TASK,
            {
                "apiVersion": SWARM_TASK.api_version,
                "kind": "SwarmTask",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"container": container, "priority": priority},
            },
            status={"phase": "Queued"} if cpu == "64" else None,
        )

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        for number in range(self.waiting):
            self.add(f"large-{number}", "64")
        operator = Operator(self.kube, (self.engine,), OperatorSettings(), self.clock, random.Random(1))
        stop, ready = asyncio.Event(), asyncio.Event()
        running = asyncio.create_task(operator.run(stop=stop, ready=ready))
        try:
            await asyncio.wait_for(ready.wait(), LIMIT_S)
            began = time.monotonic()
            # It looks at every task once; nothing tells when it has.
            while operator.executor.backlog > 200 and time.monotonic() - began < LIMIT_S:  # noqa: ASYNC110
                await asyncio.sleep(PAUSE_S)
            yield
        finally:
            stop.set()
            await running

    async def delay_s(self, name: str) -> float:
        """From the accepted urgent task to its stored node, in seconds."""
        began = time.perf_counter()
        self.add(name, "500m", priority=900)
        while time.perf_counter() - began < LIMIT_S:
            status = (self.kube.peek(SWARM_TASK, name, "default") or {}).get("status") or {}
            if status.get("attempts"):
                return time.perf_counter() - began
            await asyncio.sleep(0.001)
        raise TimeoutError(f"{name} has not started within {LIMIT_S} s")


async def delays_s(waiting: int) -> list[float]:
    """Of TRIES urgent tasks, one after another."""
    cluster = Cluster(waiting)
    found = []
    async with cluster.at_work():
        for number in range(TRIES):
            await asyncio.sleep(PAUSE_S)
            found.append(await cluster.delay_s(f"urgent-{number}"))
    return found


def start_delay(effort: Effort) -> list[Figure]:
    """B7. The empty queue is measured before and after the long one in turn."""
    waiting = effort.sized(100_000, 2_000)
    empty: list[float] = []
    behind: list[float] = []
    for _ in range(max(1, effort.pairs)):
        empty.append(Spread.of(asyncio.run(delays_s(0))).median)
        behind.append(Spread.of(asyncio.run(delays_s(waiting))).median)
    what = f"start delay of an urgent task behind {waiting:,} queued"
    return [
        Figure(
            "B7",
            f"{what} / into an empty queue",
            "x",
            Spread.of([b / a for a, b in zip(empty, behind, strict=True)]),
            Goal("<=", 1.2),
        ),
        Figure("B7", what, "s", Spread.of(behind), Goal("<=", 1.0), {"empty_queue_s": Spread.of(empty).median}),
    ]
