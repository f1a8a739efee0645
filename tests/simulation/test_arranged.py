"""Meetings too rare for seeds to find them soon, arranged: the world finds nothing wrong, and does when the fault is planted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from swarmtask.controllers import scheduling
from swarmtask.errors import EngineUnavailable, ServiceUnavailable
from swarmtask.lifecycle import commands, deadlines
from swarmtask.lifecycle import task as machine
from swarmtask.resources.kinds import SWARM_NODE, SWARM_TASK
from tests.fakes.agent import FakeAgent
from tests.fakes.engine import Outcome
from tests.simulation.chances import KINDS
from tests.simulation.workload import Birth, load
from tests.simulation.world import World

SPEC: dict[str, Any] = {"container": {"image": "work:1"}, "terminationGracePeriodSeconds": 10}


def arranged(story: Callable[[World], Awaitable[None]], workload: str = "steady") -> list[str]:
    """What is found wrong in a run in which nothing else happens, by the invariant's name."""
    world = World(1, load(workload), [], lambda purpose: random.Random(f"arranged/{purpose}"), without=KINDS)

    async def whole() -> None:
        world.start_operator()
        await asyncio.sleep(15)
        await story(world)
        world.look_closely()

    world.run(whole)
    return [failure.split()[0] for failure in world.failures]


async def until(holds: Callable[[], object]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within 10 s")


async def resumed_while_the_manager_is_away(world: World) -> None:
    """The answer to a submit is lost; the task is suspended and resumed before the engine answers again."""
    world.engine.fail("submit", EngineUnavailable("the answer was lost"), after=True)
    world.create_task(Birth(0.0, "work", SPEC, (Outcome(duration_s=None, honours_term=False),), 0))
    await until(lambda: world.engine.called("submit"))
    world.engine.unavailable = True
    await asyncio.sleep(1)
    world.kube.edit(SWARM_TASK, "work", "default", {"spec": {"suspend": True}})
    await asyncio.sleep(2)
    world.kube.edit(SWARM_TASK, "work", "default", {"spec": {"suspend": None}})
    await asyncio.sleep(25)
    world.engine.unavailable = False
    for _ in range(200):
        await asyncio.sleep(0.2)
        world.look_closely()


def test_a_submit_whose_answer_was_lost_is_looked_for() -> None:
    assert arranged(resumed_while_the_manager_is_away) == []


def test_who_counts_it_as_stopped_by_the_clock_is_found() -> None:
    def by_the_clock(spec: Any, attempt: Any, phase: Any, policy: Any) -> Any:
        return deadlines.stop_over(spec, attempt, policy)

    with ExitStack() as planted:
        for module in (commands, machine):
            planted.enter_context(patch.object(module, "unseen_stop_deadline", by_the_clock))
        planted.enter_context(patch.object(commands, "_proven", lambda record: True))
        assert arranged(resumed_while_the_manager_is_away) == ["I2"]


async def removed_after_its_agent_has_told(world: World) -> None:
    """Its SwarmNode, a moment after the agent has told of a polite end by the fence, and before the engine shows that end."""
    spec = SPEC | {"nodeLoss": {"replace": "afterFence"}}
    polite = Outcome(duration_s=600, term_exit_code=0)
    world.create_task(Birth(0.0, "work", spec, (polite, Outcome(duration_s=1)), 0))
    await asyncio.sleep(10)
    (task,) = world.tasks()
    name = task.status.node_name
    assert name is not None
    world.engine.disconnect(name)
    await asyncio.sleep(16)
    world.engine.unavailable = True
    world.engine.reconnect(name)

    def told() -> bool:
        node = world.kube.peek(SWARM_NODE, name)
        return node is not None and any(item["state"] == "Exited" for item in (node.get("status") or {}).get("attempts") or ())

    await until(told)
    world.kube.remove(SWARM_NODE, name)
    await asyncio.sleep(30)
    world.engine.unavailable = False
    await asyncio.sleep(60)


def test_what_an_agent_has_told_into_a_node_that_was_removed_is_told_again() -> None:
    assert arranged(removed_after_its_agent_has_told, "partitions") == []


def test_who_does_not_tell_it_again_is_found() -> None:
    with patch.object(FakeAgent, "_forget_another_node", lambda *given: None):
        assert set(arranged(removed_after_its_agent_has_told, "partitions")) == {"FENCE", "POLITE"}


async def closed_while_a_placement_waits(world: World) -> None:
    """The write of a placement fails for a while, in which its nodes are bounded to nothing."""
    world.kube.fail("patch", lambda: ServiceUnavailable("away"), kind=SWARM_TASK, skip=1, times=7)
    world.create_task(Birth(0.0, "work", SPEC, (Outcome(duration_s=None),), 0))
    assert world.operator is not None
    cache = world.operator.cache
    await until(lambda: cache._assumed)
    for node in cache.nodes:
        world.kube.edit(SWARM_NODE, node, None, {"spec": {"maxTasks": 0}})
    for _ in range(60):
        await asyncio.sleep(1)
        world.look_closely()


def test_a_placement_that_waited_is_not_carried_out_on_a_node_that_is_closed() -> None:
    assert arranged(closed_while_a_placement_waits) == []


def test_who_carries_it_out_is_found() -> None:
    with patch.object(scheduling, "still_takes", lambda *given, **options: True):
        assert arranged(closed_while_a_placement_waits) == ["I9"]
