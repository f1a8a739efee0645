"""failurePolicy and preemption with a whole operator: what a person says of a failure, and what the scheduler does to a task."""

from __future__ import annotations

import pytest

from swarmtask.lifecycle.messages import Preempt
from swarmtask.resources.kinds import SWARM_TASK
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome


async def test_a_failure_that_must_not_be_repeated_is_a_dead_letter_at_once() -> None:
    async with running(World("n1")) as world:
        world.engine.script("usage", Outcome(exit_code=2))
        world.add_task("usage", backoffLimit=5, failurePolicy=[{"onExitCodes": [2], "action": "Fail"}])
        await world.until(lambda: world.phase("usage") == "Failed")
        task = world.task("usage")
        assert task.status.attempt == 1
        assert "failurePolicy rule 1" in (task.status.message or "")
        assert task.metadata.labels["swarmtask.io/dead-letter"] == "true"
        await world.until(lambda: "DeadLetter" in dict(world.events("usage")))


async def test_what_is_ignored_goes_on_until_the_infrastructures_bound() -> None:
    async with running(World("n1", infrastructure_loss_limit=2)) as world:
        world.checker = type(world.checker)(infrastructure_loss_limit=2)
        world.engine.script("busy", Outcome(exit_code=75))
        world.add_task(
            "busy", backoffLimit=0, backoff={"initialSeconds": 0}, failurePolicy=[{"onExitCodes": [75], "action": "Ignore"}]
        )
        await world.until(lambda: world.phase("busy") == "Failed")
        status = world.task("busy").status
        assert (status.attempt, status.failures, status.infrastructure_losses) == (3, 0, 3)


async def test_the_policy_can_be_edited_while_it_runs() -> None:
    async with running(World("n1")) as world:
        world.engine.script("edited", Outcome(exit_code=3, duration_s=10))
        world.add_task("edited", backoffLimit=5)
        await world.until(lambda: world.phase("edited") == "Running")
        policy = [{"onReasons": ["Error"], "onExitCodes": [3], "action": "Fail"}]
        world.kube.edit(SWARM_TASK, "edited", "default", {"spec": {"failurePolicy": policy}})
        await world.until(lambda: world.phase("edited") == "Failed")
        assert world.task("edited").status.attempt == 1


@pytest.mark.slow
@pytest.mark.parametrize("crash", [False, True])
async def test_a_preempted_task_runs_again_and_pays_nothing(crash: bool) -> None:
    async with running(World("n1")) as world:
        world.engine.script("victim", Outcome(duration_s=None), Outcome())
        world.add_task("victim", backoffLimit=0)
        await world.until(lambda: world.phase("victim") == "Running")
        before = world.task("victim")
        world.add_queue("closed", stopped=True)
        world.add_task("urgent", queue="closed", priority=100)
        await world.until(lambda: world.phase("urgent") == "Queued")
        assert world.operator is not None
        world.operator.executor.offer(before.key, before.metadata.uid, Preempt(1, ("default", "urgent")))
        await world.until(lambda: world.task("victim").status.reason == "Preempted")
        if crash:
            await world.crash()
            await world.start(wait=False)
        await world.until(lambda: world.phase("victim") == "Succeeded")
        status = world.task("victim").status
        assert [(attempt.state, attempt.reason) for attempt in status.attempts] == [
            ("Stopped", "Preempted"), ("Succeeded", "Completed")
        ]  # fmt: skip
        assert (status.failures, status.infrastructure_losses) == (0, 1)
        assert status.queued_time == before.status.queued_time
        await world.until(lambda: "Preempted" in dict(world.events("victim")))
