"""A whole operator: attempts that a person has ended (`kubectl delete pod`)."""

from __future__ import annotations

from swarmtask.resources.ended import ANNOTATION_END
from swarmtask.resources.kinds import SWARM_TASK
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome


async def test_an_attempt_that_is_named_is_stopped_and_followed_by_another() -> None:
    async with running(World("n1")) as world:
        world.engine.script("t", Outcome(duration_s=60))
        world.add_task("t", backoffLimit=0)
        await world.until(lambda: world.phases() == {"t": "Running"})
        world.kube.edit(SWARM_TASK, "t", "default", {"metadata": {"annotations": {ANNOTATION_END: "1@2026-01-01T00:00:00Z"}}})
        await world.until(lambda: world.task("t").status.attempt == 2)
        first = world.task("t").status.attempts[0]
        assert (first.state, first.reason) == ("Stopped", "AttemptDeleted")
        await world.until(lambda: world.phases() == {"t": "Succeeded"}, 300)
        status = world.task("t").status
        assert (status.attempt, status.failures, status.infrastructure_losses) == (2, 0, 0)
