"""Ways out of the queue other than starting: cancelled at once, expired with an Event. What people see of it."""

from __future__ import annotations

from swarmtask.resources.kinds import EVENT, SWARM_QUEUE, SWARM_TASK
from swarmtask.resources.task import ANNOTATION_CANCEL
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome


async def test_cancelling_a_queued_task_is_at_once_and_no_matter_of_the_engine() -> None:
    async with running(World("n1")) as world:
        world.engine.script("holder", Outcome(duration_s=None))
        world.add_task("holder", cpu="4")
        await world.until(lambda: world.phase("holder") == "Running")
        world.add_task("waits", cpu="4")
        await world.until(lambda: world.task("waits").status.queue_position == 1)
        world.engine.calls.clear()
        asked = world.clock.monotonic()
        world.kube.edit(SWARM_TASK, "waits", "default", {"metadata": {"annotations": {ANNOTATION_CANCEL: "by me"}}})
        await world.until(lambda: world.phase("waits") == "Cancelled")
        assert world.clock.monotonic() - asked <= 0.2
        await world.pass_time(3)
        assert [world.engine.called(method) for method in ("submit", "stop", "remove")] == [[], [], []]
        status = world.task("waits").status
        assert (status.reason, status.queue_position, status.estimated_start_time) == ("Cancelled", None, None)
        assert status.attempts == []


async def test_what_does_not_start_in_time_expires_with_an_event() -> None:
    async with running(World("n1", status_refresh_s=1.0)) as world:
        world.engine.script("teacher", Outcome(duration_s=20))
        world.add_task("teacher", cpu="4")
        await world.until(lambda: world.phase("teacher") == "Succeeded")
        world.engine.script("holder", Outcome(duration_s=None))
        world.add_task("holder", cpu="4")
        await world.until(lambda: world.phase("holder") == "Running")
        world.add_task("waits", cpu="4", queueDeadlineSeconds=10)
        came = world.clock.monotonic()
        await world.until(lambda: world.task("waits").status.estimated_start_time is not None)
        await world.until(lambda: world.phase("waits") == "Expired")
        assert 10 <= world.clock.monotonic() - came <= 13
        status = world.task("waits").status
        assert (status.reason, status.message) == ("QueueDeadline", "not started within 10s of entering the queue")
        assert (status.queue_position, status.estimated_start_time) == (None, None)
        await world.until(lambda: "Expired" in dict(world.events("waits")))
        (told,) = [event for event in world.kube.all(EVENT) if event["reason"] == "Expired"]
        assert (told["type"], told["message"]) == ("Warning", status.message)
        await world.until(lambda: (world.kube.peek(SWARM_QUEUE, "default", "default") or {})["status"]["queued"] == 0)


async def test_tasks_of_one_second_stand_in_the_order_in_which_they_came() -> None:
    async with running(World("n1")) as world:
        world.engine.script("holder", Outcome(duration_s=None))
        world.add_task("holder", cpu="4")
        await world.until(lambda: world.phase("holder") == "Running")
        names = [f"came-{place}" for place in range(8)]  # their uids are in no order
        for name in names:
            world.add_task(name, cpu="4")
            await world.pass_time(0.01)
        await world.until(lambda: all(world.task(name).status.queue_position for name in names))
        assert [world.task(name).status.queue_position for name in names] == list(range(1, 9))
