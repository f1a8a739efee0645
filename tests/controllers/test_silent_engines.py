"""One of several engines says nothing for long, or is not driven any more: whom that may hold up, and what a person is told."""

from __future__ import annotations

from swarmtask.controllers.sight import SILENT_S
from swarmtask.errors import EngineUnavailable
from swarmtask.resources.kinds import EVENT, SWARM_TASK
from tests.controllers.world import World, running
from tests.fakes.engine import FakeEngine, Outcome


def two_engines() -> tuple[World, FakeEngine]:
    """A world whose node n1 is reached by `swarm`, and m1 by `local`."""
    world = World("n1")
    local = FakeEngine(world.clock, nodes=("m1",), name="local")
    world.engines = (world.engine, local)
    return world, local


def words(world: World, name: str, reason: str) -> list[str]:
    return [
        event["message"] for event in world.kube.all(EVENT) if (event["involvedObject"]["name"], event["reason"]) == (name, reason)
    ]


async def drive_one_alone(world: World) -> None:
    """The operator is started again with `swarm` as its only engine."""
    await world.stop()
    world.engines = (world.engine,)
    await world.start()


async def lost_on_local(world: World, local: FakeEngine, engine: str = "swarm") -> None:
    """The first attempt of `work` ran on `local` and told no exit code; the task is told to go on with another engine."""
    world.engine.script("work", Outcome(duration_s=5))
    local.script("work", Outcome(duration_s=None))
    world.add_task("work", backoff={"initialSeconds": 1}, engine="local", terminationGracePeriodSeconds=1)
    await world.until(lambda: world.phase("work") == "Running")
    world.kube.edit(SWARM_TASK, "work", "default", {"spec": {"engine": engine}})
    local.lose(world.task("work").status.attempts[0].id)
    await world.until(lambda: world.phase("work") == "Backoff")


async def test_an_engine_that_has_nothing_of_a_task_does_not_keep_its_next_attempt_from_starting() -> None:
    world, local = two_engines()
    async with running(world):
        world.engine.script("work", Outcome(duration_s=None), Outcome(duration_s=5))
        world.add_task("work", backoff={"initialSeconds": 1}, engine="swarm", terminationGracePeriodSeconds=1)
        await world.until(lambda: world.phase("work") == "Running")
        local.unavailable = True
        world.engine.lose(world.task("work").status.attempts[0].id)
        await world.until(lambda: world.phase("work") == "Succeeded", 60)


async def test_an_engine_that_may_have_an_attempt_is_waited_for_and_named() -> None:
    world, local = two_engines()
    async with running(world):
        await lost_on_local(world, local)
        local.unavailable = True
        await world.until(lambda: world.phase("work") == "Starting")
        await world.pass_time(SILENT_S / 2)
        assert not words(world, "work", "EngineSilent")
        await world.pass_time(2 * SILENT_S)
        assert not world.engine.called("submit")
        (word,) = words(world, "work", "EngineSilent")
        assert "engine local does not list" in word and "attempt 2 starts when it does" in word
        local.unavailable = False
        await world.until(lambda: world.phase("work") == "Succeeded", 60)


async def test_an_engine_that_is_not_driven_any_more_is_not_waited_for() -> None:
    world, local = two_engines()
    async with running(world):
        await lost_on_local(world, local)
        await drive_one_alone(world)
        await world.until(lambda: world.phase("work") == "Succeeded", 120)
        (word,) = words(world, "work", "EngineMissing")
        assert "may still run there" in word


async def never_shown(world: World, local: FakeEngine) -> None:
    """The submit to `local` had no answer, and nothing of it is ever listed."""
    local.fail("submit", EngineUnavailable("nobody is there"), times=100)
    world.add_task("work", engine="local", terminationGracePeriodSeconds=1)
    await world.until(lambda: world.phase("work") == "Starting" and local.called("submit"))


async def test_a_stop_that_a_silent_engine_keeps_from_ending_says_so() -> None:
    world, local = two_engines()
    async with running(world):
        await never_shown(world, local)
        local.unavailable = True
        await world.pass_time(1)
        world.kube.edit(SWARM_TASK, "work", "default", {"spec": {"suspend": True}})
        await world.pass_time(2 * SILENT_S)
        assert world.task("work").status.attempts[0].state == "Stopping"
        (word,) = words(world, "work", "EngineSilent")
        assert "attempt 1 stops when it does" in word
        local.unavailable = False
        await world.until(lambda: world.phase("work") == "Pending", 60)


async def test_a_stop_on_an_engine_that_is_not_driven_any_more_ends_by_the_clock() -> None:
    world, local = two_engines()
    async with running(world):
        await never_shown(world, local)
        world.kube.edit(SWARM_TASK, "work", "default", {"spec": {"suspend": True}})
        await world.until(lambda: world.task("work").status.attempts[0].state == "Stopping")
        await drive_one_alone(world)
        await world.until(lambda: world.phase("work") == "Pending", 30)
        assert "does not drive local" in (world.task("work").status.attempts[0].message or "")
        assert len(words(world, "work", "EngineMissing")) == 1
