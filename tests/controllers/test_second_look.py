"""A decision that waits for a write that fails is looked at again before it is carried out."""

from __future__ import annotations

from typing import Any

import pytest

from swarmtask.errors import ServiceUnavailable
from swarmtask.resources.kinds import SWARM_NODE, SWARM_TASK
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome

CLOSED: dict[str, dict[str, Any]] = {
    "cordoned": {"unschedulable": True},
    "full": {"maxTasks": 0},
    "drained": {"drain": True},
    "quiet": {"quietHours": "00:00-23:59"},
    "tainted": {"taints": [{"key": "mine", "effect": "NoSchedule"}]},
    "reserved": {"reserved": {"cpu": "4"}},
}


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("how", CLOSED)
async def test_a_placement_that_waits_for_its_write_is_given_up_when_its_node_takes_nothing_any_more(how: str, skip: int) -> None:
    """skip 0: the write of the finalizer fails; 1: that of the status."""
    async with running(World("n1", time_zone="UTC")) as world:
        world.engine.script("work", Outcome(duration_s=None))
        await world.until(lambda: world.kube.peek(SWARM_NODE, "n1"))
        assert world.operator is not None
        cache = world.operator.cache
        world.kube.fail("patch", lambda: ServiceUnavailable("away"), kind=SWARM_TASK, skip=1 + skip, times=7)
        world.add_task("work")
        await world.until(lambda: cache._assumed)
        world.kube.edit(SWARM_NODE, "n1", None, {"spec": CLOSED[how]})
        await world.pass_time(60)
        assert (world.phase("work"), world.task("work").status.attempt) == ("Queued", 0)
        world.kube.edit(SWARM_NODE, "n1", None, {"spec": dict.fromkeys(CLOSED[how])})
        await world.until(lambda: world.phase("work") == "Running", 60)


@pytest.mark.slow
async def test_a_placement_on_a_node_that_was_lost_meanwhile_is_given_up() -> None:
    async with running(World("n1")) as world:
        await world.until(lambda: world.kube.peek(SWARM_NODE, "n1"))
        assert world.operator is not None
        cache = world.operator.cache
        world.kube.fail("patch", lambda: ServiceUnavailable("away"), kind=SWARM_TASK, skip=1, times=12)
        world.add_task("work")
        await world.until(lambda: cache._assumed)
        world.engine.disconnect("n1")
        await world.pass_time(100)
        assert (world.phase("work"), world.task("work").status.attempt) == ("Queued", 0)


@pytest.mark.parametrize("how", ["deleted", "lowered"])
async def test_nobody_is_stopped_for_a_task_that_does_not_need_the_room_any_more(how: str) -> None:
    async with running(World("n1")) as world:
        world.add_queue("urgent", preemption="LowerPriority")
        for name in ("work", "boss"):
            world.engine.script(name, Outcome(duration_s=600))
        world.add_task("work", cpu="4", priority=50)
        await world.until(lambda: world.phase("work") == "Running")
        await world.pass_time(2)
        world.kube.fail("patch", lambda: ServiceUnavailable("away"), kind=SWARM_TASK, name="work", times=8)
        world.add_task("boss", cpu="4", priority=100, queue="urgent")
        assert world.operator is not None
        preempted = world.operator.cache._occupants._preempted
        await world.until(lambda: preempted)
        if how == "deleted":
            world.kube.remove(SWARM_TASK, "boss", "default")
        else:
            world.kube.edit(SWARM_TASK, "boss", "default", {"spec": {"priority": 50}})
        await world.pass_time(60)
        assert (world.phase("work"), world.task("work").status.attempt, len(preempted)) == ("Running", 1, 0)
