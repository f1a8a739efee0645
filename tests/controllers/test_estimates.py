"""Estimated starts: learned, written, counted down by the clock alone, and forgotten when the task leaves the queue."""

from __future__ import annotations

from datetime import timedelta

import pytest

from swarmtask.resources.kinds import SWARM_QUEUE, SWARM_TASK
from swarmtask.resources.meta import get_condition
from swarmtask.resources.task import LABEL_TEMPLATE
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome


def condition(world: World, name: str) -> str:
    found = get_condition(world.task(name).status.conditions, "Scheduled")
    return found.message if found is not None else ""


def lint(world: World, name: str, duration_s: float | None = 20.0, **spec: object) -> None:
    """One task of a kind, differing in its arguments; four fill the node."""
    world.engine.script(name, Outcome(duration_s=duration_s, prepare_s=0.0))
    world.add_task(name, container={"command": ["lint"], "args": [name]}, **spec)


async def test_a_start_is_unknown_until_one_like_it_has_finished() -> None:
    async with running(World("n1")) as world:
        for number in range(4):
            lint(world, f"first{number}")
        await world.until(lambda: list(world.phases().values()).count("Running") == 4)
        lint(world, "waits", None)
        await world.until(lambda: "too little CPU" in condition(world, "waits"))
        assert condition(world, "waits").endswith("; estimated start unknown: no task like this has finished yet")
        assert world.task("waits").status.estimated_start_time is None
        assert "unknown" not in (world.task("waits").status.message or "")
        await world.until(lambda: world.phase("waits") == "Running")

        for number in range(4):
            lint(world, f"second{number}")
        lint(world, "last", None, priorityClass="low")
        await world.until(lambda: world.task("last").status.estimated_start_time is not None)
        promised = world.task("last").status.estimated_start_time
        assert promised is not None
        assert "unknown" not in condition(world, "last")
        await world.until(lambda: world.phase("last") == "Running")
        assert abs(world.clock.now() - promised) <= timedelta(seconds=5)
        assert world.task("last").status.estimated_start_time is None


async def test_estimates_survive_a_restart_because_the_finished_tasks_do() -> None:
    async with running(World("n1")) as world:
        lint(world, "teacher")
        await world.until(lambda: world.phase("teacher") == "Succeeded")
        for number in range(4):
            lint(world, f"t{number}")
        await world.until(lambda: list(world.phases().values()).count("Running") == 4)
        await world.stop()
        lint(world, "waits")
        await world.start()
        await world.until(lambda: world.task("waits").status.estimated_start_time is not None)


async def test_a_persons_label_groups_what_looks_different() -> None:
    async with running(World("n1")) as world:

        def add(name: str, **labels: str) -> None:
            world.engine.script(name, Outcome(duration_s=15))
            world.add_task(name, cpu="4", container={"command": [name]})
            world.kube.edit(SWARM_TASK, name, "default", {"metadata": {"labels": labels}})

        add("teacher", **{LABEL_TEMPLATE: "nightly"})
        await world.until(lambda: world.phase("teacher") == "Succeeded")
        add("holder", **{LABEL_TEMPLATE: "nightly"})
        await world.until(lambda: world.phase("holder") == "Running")
        add("waits")
        await world.until(lambda: world.task("waits").status.estimated_start_time is not None)


@pytest.mark.slow
async def test_an_estimate_is_written_once_while_nothing_unexpected_happens() -> None:
    async with running(World("n1", status_refresh_s=1.0)) as world:
        lint(world, "teacher", 60.0)
        await world.until(lambda: world.phase("teacher") == "Succeeded")
        for number in range(12):
            lint(world, f"t{number}", 60.0)
        names = [f"t{number}" for number in range(12)]
        await world.until(
            lambda: sum(world.task(name).status.estimated_start_time is not None for name in names) == 8,
        )
        await world.pass_time(3)
        before = len(world.kube.calls)
        await world.pass_time(40)
        writes = [call for call in list(world.kube.calls)[before:] if call.kind == "SwarmTask" and call.verb == "patch"]
        assert writes == [], "time passing is no news"


@pytest.mark.slow
async def test_what_never_ends_leaves_an_estimate_that_is_given_up_and_rests() -> None:
    async with running(World("n1", status_refresh_s=1.0)) as world:
        lint(world, "teacher", 30.0, cpu="4")
        await world.until(lambda: world.phase("teacher") == "Succeeded")
        lint(world, "hangs", None, cpu="4")
        await world.until(lambda: world.phase("hangs") == "Running")
        lint(world, "waits", cpu="4")
        await world.until(lambda: world.task("waits").status.estimated_start_time is not None)
        await world.until(lambda: world.task("waits").status.estimated_start_time is None, 300)
        assert "estimated start unknown" in condition(world, "waits")
        before = len(world.kube.calls)
        await world.pass_time(300)
        assert [call for call in list(world.kube.calls)[before:] if call.verb not in ("get", "list", "watch")] == []


async def test_a_stopped_queue_promises_nothing() -> None:
    async with running(World("n1")) as world:
        lint(world, "teacher", cpu="4")
        await world.until(lambda: world.phase("teacher") == "Succeeded")
        lint(world, "holder", 60.0, cpu="4")
        await world.until(lambda: world.phase("holder") == "Running")
        lint(world, "waits", cpu="4")
        await world.until(lambda: world.task("waits").status.estimated_start_time is not None)
        world.kube.edit(SWARM_QUEUE, "default", "default", {"spec": {"stopped": True}})
        await world.until(lambda: world.task("waits").status.reason == "QueueStopped")
        assert world.task("waits").status.estimated_start_time is None
        assert "unknown" not in condition(world, "waits")
