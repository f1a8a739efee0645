"""One task from creation to its end, and the ways off the straight path."""

from __future__ import annotations

import pytest

from swarmtask.resources.kinds import SWARM_NODE, SWARM_QUEUE, SWARM_TASK
from swarmtask.resources.meta import FINALIZER
from swarmtask.resources.task import ANNOTATION_CANCEL, ANNOTATION_RETRY
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome


async def test_a_task_runs_to_its_end() -> None:
    async with running(World("n1")) as world:
        world.add_task("hello")
        await world.until(lambda: world.phase("hello") == "Running")
        await world.until(lambda: world.phase("hello") == "Succeeded")
        task = world.task("hello")
        assert task.metadata.finalizers == [FINALIZER]
        assert [(attempt.number, attempt.node, attempt.reason) for attempt in task.status.attempts] == [(1, "n1", "Completed")]
        assert len(world.engine.called("submit")) == 1
        await world.until(lambda: "Completed" in dict(world.events("hello")))
        assert {"Queued", "Scheduled", "Started", "Completed"} <= {reason for reason, _ in world.events("hello")}


async def test_a_failure_is_retried_after_its_backoff() -> None:
    async with running(World("n1")) as world:
        world.engine.script("flaky", Outcome(exit_code=3), Outcome())
        world.add_task("flaky", backoff={"initialSeconds": 20})
        await world.until(lambda: world.phase("flaky") == "Backoff")
        failed_at = world.clock.monotonic()
        await world.until(lambda: world.phase("flaky") == "Succeeded")
        assert world.clock.monotonic() - failed_at >= 19
        status = world.task("flaky").status
        assert [(attempt.state, attempt.exit_code) for attempt in status.attempts] == [("Failed", 3), ("Succeeded", 0)]
        assert status.failures == 1


async def test_spent_retries_make_a_dead_letter_that_a_person_can_retry() -> None:
    async with running(World("n1")) as world:
        world.engine.script("broken", Outcome(exit_code=1))
        world.add_task("broken", backoffLimit=1, backoff={"initialSeconds": 0})
        await world.until(lambda: world.phase("broken") == "Failed")
        task = world.task("broken")
        assert task.metadata.labels["swarmtask.io/dead-letter"] == "true"
        assert len(task.status.attempts) == 2
        await world.until(lambda: (world.kube.peek(SWARM_QUEUE, "default") or {}).get("status", {}).get("deadLetters") == 1)

        world.engine.script("broken", Outcome())
        world.kube.edit(SWARM_TASK, "broken", "default", {"metadata": {"annotations": {ANNOTATION_RETRY: "please"}}})
        await world.until(lambda: world.phase("broken") == "Succeeded")
        task = world.task("broken")
        assert "swarmtask.io/dead-letter" not in task.metadata.labels
        assert task.status.attempt == 3


async def test_cancelling_stops_the_workload() -> None:
    async with running(World("n1")) as world:
        world.engine.script("long", Outcome(duration_s=None))
        world.add_task("long")
        await world.until(lambda: world.phase("long") == "Running")
        world.kube.edit(SWARM_TASK, "long", "default", {"metadata": {"annotations": {ANNOTATION_CANCEL: "by me"}}})
        await world.until(lambda: world.phase("long") == "Cancelled")
        assert not world.engine.acting()


async def test_deleting_a_running_task_leaves_nothing() -> None:
    async with running(World("n1")) as world:
        world.engine.script("long", Outcome(duration_s=None))
        world.add_task("long")
        await world.until(lambda: world.phase("long") == "Running")
        world.kube.remove(SWARM_TASK, "long", "default")
        await world.until(lambda: world.gone("long"))
        assert not world.engine.names()
        assert not world.engine.acting()


async def test_deleting_a_queued_task_is_immediate() -> None:
    async with running(World("n1")) as world:
        world.add_task("big", cpu="64")
        await world.until(lambda: world.phase("big") == "Queued")
        world.kube.remove(SWARM_TASK, "big", "default")
        assert world.gone("big")
        world.add_task("small")
        await world.until(lambda: world.phase("small") == "Succeeded")


async def test_a_suspended_task_waits_and_stops() -> None:
    async with running(World("n1")) as world:
        world.engine.script("later", Outcome(duration_s=None))
        world.add_task("later", suspend=True)
        await world.until(lambda: world.phase("later") == "Pending")
        world.kube.edit(SWARM_TASK, "later", "default", {"spec": {"suspend": False}})
        await world.until(lambda: world.phase("later") == "Running")
        world.kube.edit(SWARM_TASK, "later", "default", {"spec": {"suspend": True}})
        await world.until(lambda: world.phase("later") == "Pending")
        assert not world.engine.acting()
        assert world.task("later").status.failures == 0


async def test_an_active_deadline_ends_an_attempt() -> None:
    async with running(World("n1")) as world:
        world.engine.script("slow", Outcome(duration_s=None))
        world.add_task("slow", activeDeadlineSeconds=5, backoffLimit=0)
        await world.until(lambda: world.phase("slow") == "Failed")
        assert world.task("slow").status.reason == "ActiveDeadline"
        assert not world.engine.acting()


async def test_time_to_live_deletes_a_finished_task_and_its_workload() -> None:
    async with running(World("n1")) as world:
        world.add_task("brief", ttlSecondsAfterFinished=30)
        await world.until(lambda: world.phase("brief") == "Succeeded")
        await world.until(lambda: world.gone("brief"))
        assert not world.engine.names()


async def test_a_missing_queue_is_awaited() -> None:
    async with running(World("n1")) as world:
        world.add_task("odd", queue="night")
        await world.until(lambda: world.task("odd").status.reason == "QueueNotFound")
        assert world.phase("odd") == "Pending"
        world.add_queue("night")
        await world.until(lambda: world.phase("odd") == "Succeeded")


async def test_the_default_queue_appears_where_there_are_tasks_and_counts_them() -> None:
    async with running(World("n1")) as world:
        assert world.kube.peek(SWARM_QUEUE, "default") is None
        world.add_task("fits")
        world.add_task("big", cpu="64")
        await world.until(lambda: world.kube.peek(SWARM_QUEUE, "default") is not None)

        def counts() -> tuple[int, int]:
            status = (world.kube.peek(SWARM_QUEUE, "default") or {}).get("status") or {}
            return status.get("queued", 0), status.get("running", 0)

        await world.until(lambda: counts() == (1, 1))
        await world.until(lambda: counts() == (1, 0))


async def test_a_stopped_queue_starts_nothing() -> None:
    async with running(World("n1")) as world:
        world.add_queue("night", stopped=True)
        world.add_task("dream", queue="night")
        await world.until(lambda: world.task("dream").status.reason == "QueueStopped")
        await world.pass_time(5)
        assert not world.engine.called("submit")
        world.kube.edit(SWARM_QUEUE, "night", "default", {"spec": {"stopped": False}})
        await world.until(lambda: world.phase("dream") == "Succeeded")


async def test_why_a_task_waits_is_said_and_forgotten() -> None:
    async with running(World("n1")) as world:
        world.add_task("big", memory="16Gi")
        await world.until(lambda: world.task("big").status.message is not None)
        status = world.task("big").status
        assert status.queue_position == 1
        assert "too little memory" in (status.message or "")
        world.engine.add_node("n2")
        world.kube.edit(SWARM_TASK, "big", "default", {"spec": {"container": {"resources": {"requests": {"memory": "1Gi"}}}}})
        await world.until(lambda: world.phase("big") == "Running")
        assert world.task("big").status.queue_position is None
        assert world.task("big").status.message is None


@pytest.mark.slow
async def test_a_task_that_fits_nowhere_starts_soon_after_a_node_that_fits_appears() -> None:
    async with running(World("n1")) as world:
        world.add_task("picky", placement={"nodeName": "n2"})
        await world.until(lambda: world.phase("picky") == "Queued")
        await world.pass_time(3)
        world.engine.add_node("n2")
        appeared = world.clock.monotonic()
        await world.until(lambda: world.phase("picky") == "Starting")
        assert world.clock.monotonic() - appeared <= 2.5


async def test_a_cordoned_node_takes_nothing_new() -> None:
    async with running(World("n1")) as world:
        await world.until(lambda: world.kube.peek(SWARM_NODE, "n1") is not None)
        world.kube.edit(SWARM_NODE, "n1", None, {"spec": {"unschedulable": True}})
        world.add_task("patient")
        await world.until(lambda: "cordoned" in (world.task("patient").status.message or ""))
        world.kube.edit(SWARM_NODE, "n1", None, {"spec": {"unschedulable": False}})
        await world.until(lambda: world.phase("patient") == "Succeeded")


async def test_an_image_that_cannot_be_pulled_fails_with_the_engines_words() -> None:
    async with running(World("n1")) as world:
        world.engine.script("ghost", Outcome(pull_error="no such image: ghost:1"))
        world.add_task("ghost", backoffLimit=0)
        await world.until(lambda: world.phase("ghost") == "Failed")
        status = world.task("ghost").status
        assert status.reason == "ImagePullFailed"
        assert "no such image: ghost:1" in (status.message or "")


async def test_a_refused_workload_fails_with_the_engines_words() -> None:
    async with running(World("n1")) as world:
        world.engine.script("evil", Outcome(refused="no binds of /"))
        world.add_task("evil")
        await world.until(lambda: world.phase("evil") == "Failed")
        assert "no binds of /" in (world.task("evil").status.message or "")
