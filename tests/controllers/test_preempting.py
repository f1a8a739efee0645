"""A whole operator: preemption from the decision to the victim's second attempt, moves to the front, large ones among small."""

from __future__ import annotations

from datetime import timedelta

import pytest

from swarmtask.controllers.cache import Cache
from swarmtask.resources.kinds import SWARM_TASK
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome


async def test_a_victim_is_stopped_queued_again_and_finishes_later() -> None:
    async with running(World("n1")) as world:
        world.add_queue("fast", preemption="LowerPriority")
        for name in ("low-1", "low-2"):
            world.engine.script(name, Outcome(duration_s=60))
            world.add_task(name, cpu="2")
        await world.until(lambda: [world.phase(name) for name in ("low-1", "low-2")] == ["Running"] * 2)
        world.engine.script("urgent", Outcome(duration_s=5))
        world.add_task("urgent", cpu="2", queue="fast", priorityClass="high")
        await world.until(lambda: world.task("urgent").status.reason == "Preempting")
        await world.until(lambda: world.phase("urgent") == "Running")
        (victim,) = [name for name in ("low-1", "low-2") if world.phase(name) == "Queued"]
        other = "low-1" if victim == "low-2" else "low-2"
        assert world.phase(other) == "Running"
        assert world.task(victim).status.attempts[0].stop_reason == "Preempted"
        await world.until(lambda: set(world.phases().values()) == {"Succeeded"}, 300)
        assert [len(world.task(name).status.attempts) for name in (victim, other, "urgent")] == [2, 1, 1]
        assert world.task(victim).status.failures == 0, "it is not the task's fault"


@pytest.mark.slow
async def test_several_urgent_tasks_stop_no_more_than_they_need() -> None:
    async with running(World("n1", "n2")) as world:
        world.add_queue("fast", preemption="LowerPriority")
        for number in range(8):
            world.engine.script(f"low-{number}", Outcome(duration_s=100))
            world.add_task(f"low-{number}")
        await world.until(lambda: list(world.phases().values()) == ["Running"] * 8)
        for number in range(3):
            world.engine.script(f"urgent-{number}", Outcome(duration_s=30))
            world.add_task(f"urgent-{number}", queue="fast", priorityClass="high")
        await world.until(lambda: all(world.phase(f"urgent-{number}") == "Running" for number in range(3)))
        assert [world.phase(f"low-{number}") for number in range(8)].count("Queued") == 3
        await world.until(lambda: set(world.phases().values()) == {"Succeeded"}, 600)
        attempts = [len(world.task(f"low-{number}").status.attempts) for number in range(8)]
        assert sorted(attempts) == [1] * 5 + [2] * 3


async def test_who_has_aged_enough_starts_although_nothing_else_happens() -> None:
    """The node is kept for a larger task of a higher priority until then."""
    async with running(World("n1")) as world:
        world.add_queue("aging", agingSeconds=2)
        world.engine.script("long", Outcome(duration_s=None))
        world.add_task("long", cpu="2")
        await world.until(lambda: world.phase("long") == "Running")
        world.add_task("large", cpu="4")
        await world.until(lambda: "is kept for it" in (world.task("large").status.message or ""))
        world.add_task("small", queue="aging", priority=-5)
        await world.until(lambda: world.task("small").status.reason == "Reserved")
        began = world.clock.now()
        await world.until(lambda: world.phase("small") == "Succeeded", 60)
        assert (world.clock.now() - began).total_seconds() > 5 * 2
        assert world.phase("large") == "Queued"


async def test_a_preemption_survives_the_death_of_the_operator() -> None:
    async with running(World("n1")) as world:
        world.add_queue("fast", preemption="LowerPriority")
        world.engine.script("low", Outcome(duration_s=60))
        world.add_task("low", cpu="4")
        await world.until(lambda: world.phase("low") == "Running")
        world.add_task("urgent", cpu="4", queue="fast", priorityClass="high")
        await world.until(lambda: world.task("low").status.reason == "Preempted")
        await world.crash()
        await world.start()
        await world.until(lambda: set(world.phases().values()) == {"Succeeded"}, 300)
        assert [len(world.task(name).status.attempts) for name in ("low", "urgent")] == [2, 1]


async def test_a_large_task_starts_in_spite_of_a_stream_of_small_ones() -> None:
    async with running(World("n1", "n2")) as world:
        made = 0

        def small() -> None:
            nonlocal made
            world.engine.script(f"small-{made}", Outcome(duration_s=3 + made % 4))
            world.add_task(f"small-{made}")
            made += 1

        def busy() -> bool:
            while sum(phase in ("Queued", "Pending", "") for phase in world.phases().values()) < 6:
                small()
            return world.phase("large") == "Succeeded"

        for _ in range(12):
            small()
        await world.until(lambda: "Running" in world.phases().values())
        world.add_task("large", cpu="4")
        await world.until(busy, 60)
        assert made > 14, "others went on meanwhile"


async def test_a_task_that_is_moved_to_the_front_is_next() -> None:
    async with running(World("n1")) as world:
        world.engine.script("first", Outcome(duration_s=30))
        world.add_task("first", cpu="4")
        await world.until(lambda: world.phase("first") == "Running")
        for number in range(3):
            world.add_task(f"t{number}", cpu="4", priority=10 - number)
        await world.until(lambda: world.task("t2").status.queue_position == 3)
        at = world.clock.now().isoformat()
        world.kube.edit(SWARM_TASK, "t2", "default", {"metadata": {"annotations": {"swarmtask.io/front": at}}})
        world.kube.edit(SWARM_TASK, "t1", "default", {"metadata": {"annotations": {"swarmtask.io/front": "now, please"}}})
        await world.until(lambda: [world.task(f"t{number}").status.queue_position for number in range(3)] == [2, 3, 1])
        order: list[str] = []

        def watch() -> bool:
            order.extend(name for name, phase in world.phases().items() if phase != "Queued" and name not in order)
            return set(world.phases().values()) == {"Succeeded"}

        await world.until(watch, 300)
        assert order == ["first", "t2", "t0", "t1"]


@pytest.mark.slow
async def test_a_move_to_the_front_that_lies_ahead_counts_when_its_time_has_come() -> None:
    """Nothing else happens then: the scheduler wakes up for it."""
    async with running(World("n1")) as world:
        world.engine.script("first", Outcome(duration_s=None))
        world.add_task("first", cpu="4")
        await world.until(lambda: world.phase("first") == "Running")
        for number in range(2):
            world.add_task(f"t{number}", cpu="4", priority=10 - number)
        await world.until(lambda: world.task("t1").status.queue_position == 2)
        at = (world.clock.now() + timedelta(seconds=600)).isoformat()
        begin = world.clock.now()
        world.kube.edit(SWARM_TASK, "t1", "default", {"metadata": {"annotations": {"swarmtask.io/front": at}}})
        await world.until(lambda: [world.task(f"t{number}").status.queue_position for number in range(2)] == [2, 1], 400)
        assert timedelta(seconds=300) <= world.clock.now() - begin < timedelta(seconds=320)


async def test_a_preemption_that_is_not_stored_is_forgotten() -> None:
    async with running(World("n1")) as world:
        world.engine.script("low", Outcome(duration_s=None))
        world.add_task("low", cpu="4")
        await world.until(lambda: world.phase("low") == "Running")
        assert world.operator is not None
        cache: Cache = world.operator.cache
        key, by = ("default", "low"), ("default", "urgent")
        assert not cache.assume_preempted(key, 7, by), "there is no such attempt"
        assert cache.assume_preempted(key, 1, by)
        assert not cache.assume_preempted(key, 1, by), "once is enough"
        (one,) = cache.running_tasks(0.0)
        assert (one.stopping, one.makes_room_for) == (True, by)
        assert cache.settle_preemption(key)
        assert not cache.settle_preemption(key)
        (one,) = cache.running_tasks(0.0)
        assert (one.stopping, one.makes_room_for) == (False, None)
