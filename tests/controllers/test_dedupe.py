"""dedupeKey with a whole operator: one of several tasks does the work, whatever happens to it, the others, and the operator."""

from __future__ import annotations

import random
from typing import Any

import pytest

from swarmtask.controllers.crashpoints import POINTS
from swarmtask.errors import ServiceUnavailable
from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_QUEUE, SWARM_TASK
from swarmtask.resources.task import ANNOTATION_CANCEL, ANNOTATION_RETRY
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome

NAMES = [f"twin{number}" for number in range(5)]


def add_twins(world: World, *names: str, **spec: object) -> None:
    for name in names or NAMES:
        world.add_task(name, **{"dedupeKey": "lint main", "backoff": {"initialSeconds": 0}, **spec})


def runners(world: World) -> list[str]:
    """Tasks that had an attempt, by name."""
    return sorted(name for name in world.phases() if world.task(name).status.attempt > 0)


def waiting(world: World) -> dict[str, str | None]:
    """Tasks that wait for another one -> for whom."""
    statuses = {name: world.task(name).status for name in world.phases()}
    return {
        name: status.outcome_of for name, status in statuses.items() if (status.phase, status.reason) == ("Pending", "Deduplicated")
    }


def others(name: str) -> set[str]:
    return set(NAMES) - {name}


async def first_runs(world: World) -> str:
    """Until one runs and all others wait for it; its name."""
    await world.until(lambda: sorted(world.phases().values()) == ["Pending"] * 4 + ["Running"] and len(waiting(world)) == 4)
    name = next(name for name, phase in world.phases().items() if phase == "Running")
    assert set(waiting(world).values()) == {name}
    return name


async def test_one_of_five_runs_and_all_succeed() -> None:
    async with running(World("n1", "n2")) as world:
        for name in NAMES:
            world.engine.script(name, Outcome(duration_s=20))
        add_twins(world)
        first = await first_runs(world)
        assert "waits for the outcome" in (world.task(next(iter(others(first)))).status.message or "")
        await world.until(lambda: set(world.phases().values()) == {"Succeeded"})
        assert len(world.engine.called("submit")) == 1
        assert runners(world) == [first]
        for name in others(first):
            status = world.task(name).status
            assert (status.reason, status.outcome_of, status.exit_code) == ("Deduplicated", first, 0)
            assert f"attempt 1 on {world.task(first).status.attempts[0].node} completed" in (status.message or "")


async def test_a_failure_is_everybodys_and_a_retry_is_ones_own() -> None:
    async with running(World("n1", "n2")) as world:
        for name in NAMES:
            world.engine.script(name, Outcome(exit_code=7))
        add_twins(world, backoffLimit=1)
        await world.until(lambda: set(world.phases().values()) == {"Failed"})
        assert len(runners(world)) == 1
        first = runners(world)[0]
        assert world.task(first).status.attempt == 2
        follower = min(others(first))
        task = world.task(follower)
        assert (task.status.reason, task.status.exit_code, task.status.outcome_of) == ("Deduplicated", 7, first)
        assert task.metadata.labels["swarmtask.io/dead-letter"] == "true"

        world.engine.script(follower, Outcome())
        world.kube.edit(SWARM_TASK, follower, "default", {"metadata": {"annotations": {ANNOTATION_RETRY: "mended"}}})
        await world.until(lambda: world.phase(follower) == "Succeeded")
        assert world.task(follower).status.attempt == 1
        assert sorted(world.phases().values()) == ["Failed"] * 4 + ["Succeeded"], "a follower that failed stays so"


async def test_all_dead_letters_retried_at_once_run_once() -> None:
    async with running(World("n1", "n2")) as world:
        for name in NAMES:
            world.engine.script(name, Outcome(exit_code=7))
        add_twins(world, backoffLimit=0)
        await world.until(lambda: set(world.phases().values()) == {"Failed"})
        for name in NAMES:
            world.engine.script(name, Outcome(duration_s=5))
            world.kube.edit(SWARM_TASK, name, "default", {"metadata": {"annotations": {ANNOTATION_RETRY: "mended"}}})
        await world.until(lambda: set(world.phases().values()) == {"Succeeded"})
        assert len(world.engine.called("submit")) == 2


@pytest.mark.parametrize("end", ["cancel", "delete", "suspend"])
async def test_who_gives_up_is_followed_by_the_next(end: str) -> None:
    async with running(World("n1", "n2")) as world:
        for name in NAMES:
            world.engine.script(name, Outcome(duration_s=20))
        world.engine.script("blocker", Outcome(duration_s=60))
        world.add_task("blocker", cpu="8")
        world.add_queue("later", stopped=True)
        add_twins(world, queue="later")
        await world.until(lambda: len(waiting(world)) == 4)
        first = next(name for name in NAMES if world.phase(name) == "Queued")
        if end == "cancel":
            world.kube.edit(SWARM_TASK, first, "default", {"metadata": {"annotations": {ANNOTATION_CANCEL: "me"}}})
        elif end == "delete":
            world.kube.remove(SWARM_TASK, first, "default")
        else:
            world.kube.edit(SWARM_TASK, first, "default", {"spec": {"suspend": True}})
        await world.until(lambda: len(waiting(world)) == 3 and set(waiting(world).values()) != {first})
        world.kube.edit(SWARM_QUEUE, "later", "default", {"spec": {"stopped": False}})
        await world.until(lambda: all(world.phase(name) == "Succeeded" for name in others(first)))
        assert len([name for name in runners(world) if name in NAMES]) == 1
        if end == "suspend":
            world.kube.edit(SWARM_TASK, first, "default", {"spec": {"suspend": False}})
            await world.until(lambda: world.phase(first) == "Succeeded")
            assert world.task(first).status.attempt == 0, "resumed, it takes the outcome of the one that ran meanwhile"


@pytest.mark.parametrize("end", ["cancel", "delete"])
async def test_who_runs_and_is_stopped_is_followed_by_the_next(end: str) -> None:
    async with running(World("n1", "n2")) as world:
        for name in NAMES:
            world.engine.script(name, Outcome(duration_s=30))
        add_twins(world)
        first = await first_runs(world)
        if end == "cancel":
            world.kube.edit(SWARM_TASK, first, "default", {"metadata": {"annotations": {ANNOTATION_CANCEL: "me"}}})
        else:
            world.kube.remove(SWARM_TASK, first, "default")
        await world.until(lambda: all(world.phase(name) == "Succeeded" for name in others(first)))
        ran = set(runners(world)) - {first}
        assert len(ran) == 1
        assert {world.task(name).status.outcome_of for name in others(first) - ran} == ran


async def test_an_outcome_is_not_lost_when_its_task_is_deleted_at_once() -> None:
    async with running(World("n1", "n2")) as world:
        add_twins(world, ttlSecondsAfterFinished=0)
        await world.until(lambda: not world.phases())
        assert len(world.engine.called("submit")) == 1


def slow_down(world: World, before_s: float, after_s: float, rng: random.Random | None = None) -> None:
    """Every patch takes effect and is answered late, within these times if there is a source of chance."""
    patch = world.kube.patch

    async def slow(*args: Any, **options: Any) -> Object:
        await world.clock.sleep(before_s if rng is None else rng.uniform(0, before_s))
        answer = await patch(*args, **options)
        await world.clock.sleep(after_s if rng is None else rng.uniform(0, after_s))
        return answer

    world.kube.patch = slow  # type: ignore[method-assign]


async def test_nor_when_one_who_waits_for_it_cannot_be_written() -> None:
    async with running(World("n1", "n2")) as world:
        for name in NAMES:
            world.engine.script(name, Outcome(duration_s=5))
        add_twins(world, ttlSecondsAfterFinished=0)
        first = await first_runs(world)
        world.kube.fail("patch", kind=SWARM_TASK, name=min(others(first)), times=9)
        await world.until(lambda: not world.phases())
        assert len(world.engine.called("submit")) == 1


@pytest.mark.parametrize("seed", range(8))
async def test_two_that_are_decided_at_the_same_time_do_not_both_go_ahead(seed: int) -> None:
    world = World("n1", seed=seed)
    slow_down(world, 0.5, 0.5)
    async with running(world):
        world.engine.script("one", Outcome(duration_s=10))
        world.engine.script("two", Outcome(duration_s=10))
        add_twins(world, "one")
        await world.until(lambda: world.operator is not None and world.operator.executor.backlog > 0)
        add_twins(world, "two")  # within the same second: which one is older is up to their UIDs
        await world.until(lambda: set(world.phases().values()) == {"Succeeded"})
        assert len(world.engine.called("submit")) == 1
        assert [reason for name in ("one", "two") for reason, _ in world.events(name)].count("Queued") == 1, "none steps back"


async def test_two_in_the_queue_do_not_both_start() -> None:
    """As after a write that an operator had sent before it died, and that came late."""
    async with running(World("n1", "n2")) as world:
        assert world.operator is not None
        world.operator.executor.look = lambda key: None  # type: ignore[method-assign] - the placement comes before the look
        for name in ("one", "two"):
            world.engine.script(name, Outcome(duration_s=10))
            body = {
                "apiVersion": SWARM_TASK.api_version, "kind": "SwarmTask", "metadata": {"name": name, "namespace": "default"},
                "spec": {"container": {"image": "busybox"}, "dedupeKey": "k"},
            }  # fmt: skip
            world.kube.add(SWARM_TASK, body, status={"phase": "Queued", "queuedTime": "2026-01-01T00:00:00Z"})
        await world.until(lambda: sorted(world.phases().values()) == ["Pending", "Running"])
        await world.pass_time(5)
        assert len(world.engine.called("submit")) == 1


async def test_one_that_is_held_with_its_queue_is_not_waited_for() -> None:
    """It waits for the one that went ahead, then; and what is in no queue has no deadline."""
    async with running(World("n1")) as world:
        world.add_queue("held", stopped=True)
        world.add_queue("open")
        world.engine.script("second", Outcome(duration_s=20))
        add_twins(world, "first", queue="held", queueDeadlineSeconds=60)
        await world.until(lambda: world.task("first").status.reason == "QueueStopped")
        add_twins(world, "second", queue="open", queueDeadlineSeconds=5)
        await world.until(lambda: world.phase("second") == "Running")
        await world.until(lambda: waiting(world) == {"first": "second"})
        await world.until(lambda: set(world.phases().values()) == {"Succeeded"})
        assert runners(world) == ["second"]


async def test_of_two_in_stopped_queues_the_one_whose_queue_opens_does_the_work() -> None:
    async with running(World("n1")) as world:
        for name in ("one", "two"):
            world.add_queue(name, stopped=True)
            add_twins(world, f"in-{name}", queue=name)
        await world.until(
            lambda: {world.task(f"in-{name}").status.reason for name in ("one", "two")} == {"QueueStopped", "Deduplicated"}
        )
        calls = len(world.kube.calls)
        await world.pass_time(30)
        assert len(world.kube.calls) - calls < 40, "they do not stir each other"
        world.kube.edit(SWARM_QUEUE, "two", "default", {"spec": {"stopped": False}})
        await world.until(lambda: set(world.phases().values()) == {"Succeeded"})
        assert runners(world) == ["in-two"]


@pytest.mark.slow
async def test_a_success_counts_for_a_while() -> None:
    async with running(World("n1")) as world:
        add_twins(world, "early", dedupeWindowSeconds=0)
        await world.until(lambda: world.phase("early") == "Succeeded")
        await world.pass_time(100)
        add_twins(world, "soon", dedupeWindowSeconds=3600)
        await world.until(lambda: world.phase("soon") == "Succeeded")  # one that waits would be waited for
        add_twins(world, "anew", dedupeWindowSeconds=0)
        world.add_task("elsewhere", namespace="other", dedupeKey="lint main")
        await world.until(lambda: world.phase("anew") == "Succeeded")
        await world.until(lambda: world.phase("elsewhere", "other") == "Succeeded")
        assert world.task("soon").status.outcome_of == "early"
        assert world.task("soon").status.attempt == 0
        assert world.task("anew").status.attempt == 1
        assert world.task("elsewhere", "other").status.attempt == 1
        await world.pass_time(120)
        add_twins(world, "late", dedupeWindowSeconds=60)
        await world.until(lambda: world.phase("late") == "Succeeded")
        assert world.task("late").status.attempt == 1


async def test_a_restart_changes_nothing() -> None:
    async with running(World("n1", "n2")) as world:
        for name in NAMES:
            world.engine.script(name, Outcome(duration_s=30))
        add_twins(world)
        first = await first_runs(world)
        await world.crash()
        await world.start()
        await world.pass_time(5)
        assert set(waiting(world).values()) == {first}
        await world.crash()
        await world.pass_time(60)  # it ends while nobody looks
        await world.start()
        await world.until(lambda: set(world.phases().values()) == {"Succeeded"})
        assert runners(world) == [first]


async def test_nobody_begins_while_the_end_of_the_first_cannot_be_stored() -> None:
    """The first one was suspended before it ran, and has stopped; as long as that is not written down, it is the one at work."""
    async with running(World("n1", "n2")) as world:
        world.engine.script("first", Outcome(prepare_s=float("inf")))
        add_twins(world, "first")
        await world.until(lambda: world.phase("first") == "Starting")
        add_twins(world, "second")
        await world.until(lambda: world.task("second").status.reason == "Deduplicated")
        world.kube.edit(SWARM_TASK, "first", "default", {"spec": {"suspend": True}})
        await world.until(lambda: world.task("first").status.attempts[0].state.value == "Stopping")
        world.kube.fail("patch", lambda: ServiceUnavailable("down"), kind=SWARM_TASK, name="first", subresource="status", times=9)
        world.kube.latency_s = 1.0  # it takes its time to fail, and meanwhile the others decide
        await world.until(lambda: world.phase("second") != "Pending")
        assert world.task("first").status.reason == "Suspended"
        assert world.phase("first") == "Pending"
        await world.until(lambda: world.phase("second") == "Succeeded")


async def test_deleted_while_nobody_looked() -> None:
    async with running(World("n1", "n2"), start=False) as world:
        for name in NAMES:
            world.engine.script(name, Outcome(duration_s=30))
        world.add_queue("later", stopped=True)
        add_twins(world, queue="later")
        await world.start()
        await world.until(lambda: len(waiting(world)) == 4)
        first = next(name for name in NAMES if world.phase(name) == "Queued")
        await world.crash()
        world.kube.remove(SWARM_TASK, first, "default")
        world.clock.advance(2)
        add_twins(world, first, queue="later")  # the same name, but younger than all others
        await world.start()
        await world.until(lambda: len(waiting(world)) == 4 and world.phase(first) == "Pending")
        assert first not in waiting(world).values()


WRITES_OF_TASKS = ("write-status", "add-finalizer", "release-finalizer", "delete-task")


@pytest.mark.parametrize("point", [point for point in POINTS if point.partition(":")[2] in WRITES_OF_TASKS])
async def test_a_crash_at_any_write_keeps_it_to_one_at_a_time(point: str) -> None:
    async with running(World("n1", "n2"), start=False) as world:
        for name in NAMES:
            world.engine.script(name, Outcome(duration_s=3))
        world.arm(point)
        add_twins(world, ttlSecondsAfterFinished=30)
        await world.start(wait=False)
        await world.until(lambda: set(world.phases().values()) == {"Succeeded"}, restart=True)
        assert len(runners(world)) == 1
        await world.until(lambda: not world.phases(), restart=True)
        end = world.clock.monotonic() + 1  # the last write may have been the one
        await world.until(lambda: world.clock.monotonic() >= end, restart=True)
        assert world.crashes == [point], "the point must have been passed"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
async def test_many_keys_created_edited_and_killed_at_random(seed: int) -> None:
    """The checker judges: of one key never two at a time; in the end nobody waits for ever."""
    rng = random.Random(seed)
    world = World("n1", "n2", seed=seed)
    if seed % 2:
        slow_down(world, 0.3, 0.3, rng)
    async with running(world):
        names: list[str] = []
        for step in range(60):
            roll = rng.random()
            if roll < 0.5 or not names:
                name = f"t{step}"
                names.append(name)
                world.engine.script(name, Outcome(exit_code=rng.choice([0, 0, 0, 1]), duration_s=rng.choice([0.2, 1, 5])))
                world.add_task(
                    name, dedupeKey=rng.choice("abc"), dedupeWindowSeconds=rng.choice([0, 5, 3600]), backoffLimit=1,
                    backoff={"initialSeconds": rng.choice([0, 2])},
                )  # fmt: skip
            else:
                name = rng.choice(names)
                patch = rng.choice(
                    [
                        {"spec": {"suspend": True}}, {"spec": {"suspend": False}}, {"spec": {"dedupeKey": rng.choice("abc")}},
                        {"metadata": {"annotations": {ANNOTATION_CANCEL: str(step)}}},
                        {"metadata": {"annotations": {ANNOTATION_RETRY: str(step)}}}, None,
                    ]
                )  # fmt: skip
                if world.kube.peek(SWARM_TASK, name, "default") is not None:
                    if patch is None:
                        world.kube.remove(SWARM_TASK, name, "default")
                    else:
                        world.kube.edit(SWARM_TASK, name, "default", patch)
            if rng.random() < 0.1:
                world.kube.fail("patch", lambda: ServiceUnavailable("busy"), after=rng.random() < 0.5)
            if rng.random() < 0.08:
                await world.crash()
                await world.start(wait=False)
            await world.pass_time(rng.choice([0.0, 0.0, 0.1, 1.0]))
        for name in names:
            if world.kube.peek(SWARM_TASK, name, "default") is not None:
                world.kube.edit(SWARM_TASK, name, "default", {"spec": {"suspend": False}})
        terminal = {"Succeeded", "Failed", "Cancelled"}
        await world.until(lambda: set(world.phases().values()) <= terminal, 300)
