"""Queues that are deleted, made again, edited while something is being placed, or that nobody can read."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from swarmtask.controllers.cache import Cache
from swarmtask.controllers.snapshots import queue_info
from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_QUEUE, SWARM_TASK
from swarmtask.resources.task import BOUND_PHASES
from tests.controllers.test_cache import task
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome

BOUNDS = {"maxRunning": 1, "limits": {"model/x": 1}}
NO_WEIGHTS = {"capability": 0, "load": 0, "latency": 0, "cost": 0}
KEY = ("default", "q")


def crowd(world: World, count: int, queue: str) -> None:
    """Tasks that never end, each of which would find room on the nodes."""
    for number in range(count):
        world.engine.script(f"t{number}", Outcome(duration_s=None))
        world.add_task(f"t{number}", cpu="100m", memory="64Mi", queue=queue, limits={"model/x": 1})


def bound(world: World) -> int:
    return sum(phase in BOUND_PHASES for phase in world.phases().values())


def reasons(world: World) -> set[str | None]:
    return {(obj.get("status") or {}).get("reason") for obj in world.kube.view(SWARM_TASK)}


@pytest.mark.parametrize("queue", ["default", "other"])
@pytest.mark.parametrize("gap_s", [0.0, 0.05, 0.2, 3.0])
async def test_a_queue_that_is_deleted_and_made_again_starts_no_more_than_it_may(queue: str, gap_s: float) -> None:
    async with running(World("n1", "n2")) as world:
        world.add_queue(queue, **BOUNDS)
        crowd(world, 12, queue)
        await world.until(lambda: bound(world) == 1 and list(world.phases().values()).count("Queued") == 11)
        world.kube.latency_s = 0.05
        world.kube.remove(SWARM_QUEUE, queue, "default")
        await world.pass_time(gap_s)
        assert world.kube.peek(SWARM_QUEUE, queue, "default") is None, "it was created by somebody who does not know its bounds"
        world.add_queue(queue, **BOUNDS)
        await world.until(lambda: list(world.phases().values()).count("Queued") == 11)
        await world.pass_time(3)
        assert bound(world) == 1


async def test_tasks_of_a_deleted_queue_say_what_to_do_and_start_when_it_is_back() -> None:
    async with running(World("n1")) as world:
        world.add_queue("default", maxRunning=0)
        world.add_task("waits")
        await world.until(lambda: world.task("waits").status.reason == "QueueFull")
        world.kube.remove(SWARM_QUEUE, "default", "default")
        await world.until(lambda: world.task("waits").status.reason == "QueueNotFound")
        assert world.task("waits").status.message == "there is no SwarmQueue default in this namespace: create it"
        world.add_task("late")
        await world.until(lambda: world.task("late").status.reason == "QueueNotFound")
        world.add_queue("default")
        await world.until(lambda: set(world.phases().values()) == {"Succeeded"})


async def in_line(world: World) -> None:
    """c, b and a wait one behind the other."""
    world.add_queue("q", maxRunning=1)
    world.engine.script("runs", Outcome(duration_s=None))
    world.add_task("runs", queue="q")
    await world.until(lambda: world.phase("runs") == "Running")
    for name in "cba":
        world.add_task(name, queue="q")
        await world.until(lambda name=name: world.task(name).status.queue_position)
    assert line(world) == ["c", "b", "a"]


def line(world: World) -> list[str]:
    return sorted("abc", key=lambda name: world.task(name).status.queue_position or 0)


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_queue_that_is_made_again_has_its_tasks_in_their_order(restarted: bool) -> None:
    async with running(World("n1")) as world:
        await in_line(world)
        if restarted:
            await world.crash()
            await world.start()
        world.kube.remove(SWARM_QUEUE, "q", "default")
        await world.until(lambda: world.task("a").status.reason == world.task("c").status.reason == "QueueNotFound")
        world.add_queue("q", maxRunning=1)
        await world.until(lambda: all(world.task(name).status.queue_position for name in "abc"))
        assert line(world) == ["c", "b", "a"]


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_clock_that_is_set_back_leaves_a_queue_in_its_order(restarted: bool) -> None:
    async with running(World("n1")) as world:
        await in_line(world)
        if restarted:
            await world.crash()
        world.clock._start -= timedelta(hours=1)
        if restarted:
            await world.start()
        world.add_task("d", queue="q")
        await world.pass_time(40)
        assert world.task("d").status.queue_position == 4
        moments = [world.task(name).status.queued_time for name in "cba"]
        assert all(moment is not None and moment < world.clock.now() for moment in moments)
        assert line(world) == ["c", "b", "a"] and len(set(moments)) == 3


async def test_work_that_comes_back_to_a_queue_that_was_deleted_meanwhile_says_what_to_do() -> None:
    """Seed 3951 of the workload `vanishing` is where nothing else made the operator look at it again."""
    async with running(World("n1")) as world:
        world.add_queue("q")
        world.engine.script("lost", Outcome(duration_s=None), Outcome())
        world.add_task("lost", queue="q")
        await world.until(lambda: world.task("lost").status.phase == "Running")
        world.kube.remove(SWARM_QUEUE, "q", "default")
        await world.pass_time(1)
        for name in world.engine.names():
            world.engine.lose(name)  # as `docker service rm` by hand
        await world.until(lambda: world.task("lost").status.reason == "QueueNotFound")
        assert world.task("lost").status.phase == "Pending"
        world.add_queue("q")
        await world.until(lambda: world.task("lost").status.phase == "Succeeded")


async def test_a_default_that_was_deleted_while_nobody_worked_is_not_made_without_its_bounds() -> None:
    async with running(World("n1")) as world:
        world.add_queue("default", **BOUNDS)
        crowd(world, 5, "default")
        await world.until(lambda: bound(world) == 1 and list(world.phases().values()).count("Queued") == 4)
        await world.stop()
        world.kube.remove(SWARM_QUEUE, "default", "default")
        await world.start()
        await world.until(lambda: "QueueNotFound" in reasons(world))
        assert world.kube.peek(SWARM_QUEUE, "default", "default") is None
        assert bound(world) == 1


async def test_a_namespace_that_was_empty_gets_its_default_anew() -> None:
    async with running(World("n1")) as world:
        world.add_task("first")
        await world.until(lambda: world.phase("first") == "Succeeded")
        world.kube.remove(SWARM_QUEUE, "default", "default")
        world.kube.remove(SWARM_TASK, "first", "default")
        await world.until(lambda: world.gone("first"))
        world.add_task("second")
        await world.until(lambda: world.phase("second") == "Succeeded")


async def test_the_first_task_of_a_namespace_waits_for_its_default_a_moment_only() -> None:
    async with running(World("n1", status_refresh_s=5.0)) as world:
        await world.pass_time(7.5)
        world.engine.script("first", Outcome(duration_s=None))
        came = world.clock.monotonic()
        world.add_task("first")
        await world.until(lambda: bound(world) == 1)
        assert world.clock.monotonic() - came <= 0.1
        assert "QueueUnknown" not in reasons(world)


async def test_bounds_that_are_lowered_hold_for_what_is_about_to_be_placed() -> None:
    async with running(World("n1")) as world:
        world.add_queue("q", stopped=True)
        crowd(world, 12, "q")
        await world.until(lambda: reasons(world) == {"QueueStopped"})
        world.kube.latency_s = 0.3
        world.kube.edit(SWARM_QUEUE, "q", "default", {"spec": {"stopped": None}})
        cache = world.operator.cache if world.operator is not None else Cache()
        await world.until(lambda: cache.running(KEY) == 12)
        assert not bound(world), "nothing of it is stored yet"
        world.kube.edit(SWARM_QUEUE, "q", "default", {"spec": BOUNDS})
        await world.until(lambda: reasons(world) >= {"QueueFull"})
        await world.pass_time(3)
        assert bound(world) == 1


# --- what nobody can read ---


def queue(version: int, uid: str = "u", **spec: Any) -> Object:
    metadata = {"name": "q", "namespace": "default", "resourceVersion": str(version), "uid": uid}
    return {"apiVersion": SWARM_QUEUE.api_version, "kind": "SwarmQueue", "metadata": metadata, "spec": spec}


def test_a_queue_that_cannot_be_read_any_more_keeps_its_bounds() -> None:
    cache = Cache()
    cache.apply(SWARM_QUEUE, queue(1, **BOUNDS))
    for version in (2, 3):
        cache.apply(SWARM_QUEUE, queue(version, maxRunning=7, weights=NO_WEIGHTS))
        info = queue_info(cache, KEY)
        assert (info.unknown, info.max_running, cache.limits()["model/x"].most) == ("", 1, 1)
        assert "at least one weight must be above 0" in info.outdated
        assert cache.queues[KEY].metadata.resource_version == str(version)
    cache.apply(SWARM_QUEUE, queue(4, maxRunning=7))
    assert (queue_info(cache, KEY).max_running, queue_info(cache, KEY).outdated) == (7, "")


def test_a_queue_that_could_never_be_read_starts_nothing() -> None:
    cache = Cache()
    for version in (1, 2):
        cache.apply(SWARM_QUEUE, queue(version, maxRunning=-3))
        assert cache.queue_exists(KEY)
        assert queue_info(cache, KEY).unknown == (
            "starts nothing until it is corrected: the stored object cannot be read: "
            "spec.maxRunning: Input should be greater than or equal to 0"
        )
    cache.remove(SWARM_QUEUE, KEY, 3)
    assert not cache.queue_exists(KEY)
    assert "has no SwarmQueue any more" in queue_info(cache, KEY).unknown


def test_a_status_that_cannot_be_read_hides_no_bounds() -> None:
    cache = Cache()
    cache.apply(SWARM_QUEUE, queue(1, **BOUNDS) | {"status": {"queued": -1}})
    assert (queue_info(cache, KEY).unknown, queue_info(cache, KEY).max_running) == ("", 1)
    assert cache.known_queues.mute == {KEY}


async def test_a_queue_that_cannot_be_read_says_so_and_its_tasks_do() -> None:
    async with running(World("n1")) as world:
        world.add_queue("q", **BOUNDS)
        crowd(world, 3, "q")
        await world.until(lambda: bound(world) == 1 and "QueueFull" in reasons(world))
        world.unreadable.add("q")
        world.kube.edit(SWARM_QUEUE, "q", "default", {"spec": {"maxRunning": 5, "limits": None, "weights": NO_WEIGHTS}})

        def active() -> Object:
            status = (world.kube.peek(SWARM_QUEUE, "q", "default") or {}).get("status") or {}
            return next((one for one in status.get("conditions") or () if one["type"] == "Active"), {})

        await world.until(lambda: active().get("reason") == "Unreadable")
        assert active()["status"] == "True"
        waiting = [f"t{number}" for number in range(3) if world.phase(f"t{number}") == "Queued"]
        await world.until(lambda: all("weight must be above 0" in (world.task(name).status.message or "") for name in waiting))
        assert bound(world) == 1
        await world.stop()
        await world.start()
        await world.until(lambda: "QueueUnknown" in reasons(world) and active()["status"] == "False")
        assert bound(world) == 1
        world.unreadable.discard("q")
        world.kube.edit(SWARM_QUEUE, "q", "default", {"spec": {"maxRunning": 2, "weights": None}})
        await world.until(lambda: bound(world) == 2 and active().get("reason") == "Open")


# --- what is assumed, and what the queue says by now ---


@pytest.mark.parametrize(
    ("spec", "room"),
    [
        ({}, True),
        ({"maxRunning": 2}, True),
        ({"maxRunning": 1}, False),
        ({"maxRunningPerNode": 2}, True),
        ({"maxRunningPerNode": 1}, False),
        ({"limits": {"model/x": 2, "model/y": 0}}, True),
        ({"limits": {"model/x": 1}}, False),
        ({"stopped": True}, False),
        (None, False),
    ],
)
def test_an_assumed_placement_needs_room_in_its_queue_as_it_is_now(spec: dict[str, Any] | None, *, room: bool) -> None:
    cache = Cache()
    cache.apply(SWARM_QUEUE, queue(1))
    cache.apply(SWARM_TASK, task("runs", 2, phase="Running", node="n1", queue="q"))
    for version, name in enumerate(("a", "b"), 3):
        cache.apply(SWARM_TASK, task(name, version, queue="q", limits={"model/x": 1}))
    pending = {one.key[1]: one for one in cache.waiting()}
    assert cache.assume(pending["a"], "n1")
    if "limits" in (spec or {}):
        assert cache.assume(pending["b"], "n2")
    if spec is None:
        cache.remove(SWARM_QUEUE, KEY, 9)
    else:
        cache.apply(SWARM_QUEUE, queue(9, **spec))
    assert cache.has_room(("default", "a")) is room
    assert cache.has_room(("default", "runs")), "what is stored already is not asked"


def test_an_assumed_placement_needs_room_in_the_limits_that_other_queues_name_too() -> None:
    cache = Cache()
    cache.apply(SWARM_QUEUE, queue(1))
    cache.apply(SWARM_TASK, task("a", 2, queue="q", limits={"model/x": 2}))
    assert cache.assume(next(iter(cache.waiting())), "n1")
    for version, slots in enumerate((2, 1), 3):
        assert cache.has_room(("default", "a"))
        other = queue(version, limits={"model/x": slots})
        cache.apply(SWARM_QUEUE, other | {"metadata": other["metadata"] | {"namespace": "lab"}})
    assert not cache.has_room(("default", "a"))
