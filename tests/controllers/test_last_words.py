"""What was removed is out of its engine's sight at once, and its program still has its grace: nothing follows it before that."""

from __future__ import annotations

import pytest

from swarmtask.controllers.submission import LANDING_S
from swarmtask.engines.base import Workload
from swarmtask.errors import EngineUnavailable
from swarmtask.resources.kinds import SWARM_TASK
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome

STUBBORN = Outcome(duration_s=None, honours_term=False)


def attempts_that_act(world: World, name: str = "work") -> list[int]:
    uid = world.task(name).metadata.uid
    return sorted(int(work.rpartition("-")[2]) for work, owner in world.engine.acting().items() if owner == uid)


async def suspended_unanswered(world: World, *, grace_s: int) -> None:
    """The answer to the submit of a task was lost, the manager is away, and a person has suspended the task."""
    world.engine.script("work", STUBBORN)
    world.engine.fail("submit", EngineUnavailable("the answer was lost"), after=True)
    world.add_task("work", terminationGracePeriodSeconds=grace_s)
    await world.until(lambda: world.engine.called("submit"))
    world.engine.unavailable = True
    await world.pass_time(1)
    world.kube.edit(SWARM_TASK, "work", "default", {"spec": {"suspend": True}})


@pytest.mark.slow
async def test_an_attempt_that_turns_up_after_it_was_given_up_has_its_grace_before_the_next_one_starts() -> None:
    async with running(World("n1", "n2")) as world:
        await suspended_unanswered(world, grace_s=20)
        await world.pass_time(120)
        world.engine.unavailable = False
        await world.pass_time(3)
        world.kube.edit(SWARM_TASK, "work", "default", {"spec": {"suspend": None}})
        await world.pass_time(5)
        assert attempts_that_act(world) == [1]
        await world.until(lambda: attempts_that_act(world) == [2], 40)


@pytest.mark.slow
@pytest.mark.parametrize("away_s", [5, 25, 90])
async def test_a_submit_whose_answer_was_lost_is_looked_for_before_the_next_attempt(away_s: float) -> None:
    """The manager is away, and the task is suspended and resumed meanwhile."""
    async with running(World("n1", "n2")) as world:
        await suspended_unanswered(world, grace_s=10)
        await world.pass_time(2)
        world.kube.edit(SWARM_TASK, "work", "default", {"spec": {"suspend": None}})
        await world.pass_time(away_s)
        assert world.task("work").status.attempts[0].state == "Stopping"
        world.engine.unavailable = False
        await world.until(lambda: attempts_that_act(world) == [2], 90)


async def test_a_submit_that_never_arrived_is_given_up_by_a_list_that_is_late_enough() -> None:
    async with running(World("n1")) as world:
        world.engine.script("work", Outcome(duration_s=5))
        world.engine.fail("submit", EngineUnavailable("nobody is there"))
        world.add_task("work")
        await world.until(lambda: world.engine.called("submit"))
        world.kube.edit(SWARM_TASK, "work", "default", {"spec": {"suspend": True}})
        began = world.clock.monotonic()
        await world.until(lambda: world.phase("work") == "Pending", 60)
        assert world.clock.monotonic() - began >= LANDING_S - 1
        world.kube.edit(SWARM_TASK, "work", "default", {"spec": {"suspend": None}})
        await world.until(lambda: world.phase("work") == "Succeeded", 60)


async def test_who_was_removed_by_hand_has_its_grace_before_the_next_one_starts() -> None:
    async with running(World("n1", "n2")) as world:
        world.engine.script("work", STUBBORN)
        world.add_task("work", terminationGracePeriodSeconds=60, backoff={"initialSeconds": 1})
        await world.until(lambda: world.phase("work") == "Running")
        world.engine.lose(world.task("work").status.attempts[0].id)
        await world.pass_time(55)
        assert attempts_that_act(world) == [1]
        await world.until(lambda: attempts_that_act(world) == [2], 40)
        assert world.task("work").status.attempts[0].reason == "WorkloadLost"


async def test_a_task_that_was_deleted_stays_until_its_program_has_ended() -> None:
    """An attempt that its task has given up comes back while the task is being deleted."""
    async with running(World("n1")) as world:
        world.engine.script("work", STUBBORN)
        world.add_task("work", terminationGracePeriodSeconds=5)
        await world.until(lambda: world.phase("work") == "Running")
        world.engine.disconnect("n1")
        world.kube.remove(SWARM_TASK, "work", "default")
        await world.pass_time(10)
        world.engine.reconnect("n1")
        await world.until(lambda: world.gone("work"), 60)
        assert not world.engine.acting()


async def test_an_orphan_stays_in_sight_until_it_has_ended() -> None:
    async with running(World("n1")) as world:
        world.engine.adopt(
            Workload(
                name="st-0123456789abcdef-1", task_uid="nobody", namespace="default", task_name="work", attempt=1, node_id="n1",
                image="busybox", grace_s=20,
            ),
            STUBBORN,
        )  # fmt: skip
        await world.until(lambda: world.engine.called("stop"), 60)
        await world.until(lambda: not world.engine.names(), 60)
        assert not world.engine.acting()
