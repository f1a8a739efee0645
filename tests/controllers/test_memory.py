"""Memory with a whole operator: the ladder across restarts, `auto`, and nodes that are busy with other things."""

from __future__ import annotations

from typing import Any

import pytest

from swarmtask.controllers.cache import Cache
from swarmtask.controllers.explaining import explain_stored
from swarmtask.controllers.measures import Measures
from swarmtask.engines.base import EngineNode, NodeState
from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_NODE, SWARM_TASK
from swarmtask.resources.node import SwarmNode
from swarmtask.resources.task import Attempt
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome

MIB, GIB = 2**20, 2**30
RULE = {"onReasons": ["OOMKilled"], "action": "Retry", "memoryFactor": 2.0}


def machine(name: str, gib: int) -> EngineNode:
    return EngineNode(
        id=name, hostname=name, state=NodeState.READY, available=True, cpu_milli=4000, memory_bytes=gib * GIB, arch="x86_64",
        os="linux",
    )  # fmt: skip


def requested(world: World, name: str) -> list[tuple[str, str]]:
    return [(attempt.node, attempt.requested.memory) for attempt in world.task(name).status.attempts]


def hungry(world: World, name: str, *, kills: int, **spec: Any) -> None:
    world.engine.script(name, *[Outcome(oom=True)] * kills, Outcome())
    world.add_task(name, **{"failurePolicy": [RULE], "backoffLimit": 9, "backoff": {"initialSeconds": 0}} | spec)


def use(world: World, node: str, memory: str, **conditions: str) -> None:
    """What the agent of a node measures."""
    told = [
        {"type": type_, "status": status, "reason": "Told", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for type_, status in conditions.items()
    ]
    others = [one for one in world.node(node)["status"].get("conditions", []) if one["type"] not in conditions]
    patch = {"status": {"usage": {"memory": memory}, "conditions": [*others, *told]}}
    world.kube.edit(SWARM_NODE, node, None, patch, status=True)


# --- the ladder ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crash", [False, True])
async def test_a_task_that_needs_more_climbs_to_the_smallest_node_that_has_it(crash: bool) -> None:
    async with running(World(machine("small", 2), machine("middle", 4), machine("large", 32))) as world:
        hungry(world, "hog", kills=2, memory="1Gi", backoff={"initialSeconds": 5, "jitterPercent": 0})
        await world.until(lambda: world.task("hog").status.failures == 2)
        if crash:
            await world.crash()
            await world.start(wait=False)
        await world.until(lambda: world.phase("hog") == "Succeeded")
        assert requested(world, "hog")[1:] == [("small", "2Gi"), ("middle", "4Gi")]
        submitted = [call.arguments["workload"] for call in world.engine.called("submit")]
        assert {workload.memory_limit_bytes // GIB for workload in submitted} == {1, 2, 4}


async def test_one_that_never_fits_is_a_dead_letter_and_does_not_wait() -> None:
    async with running(World(machine("small", 2), machine("large", 3))) as world:
        hungry(world, "hog", kills=9, memory="1Gi")
        await world.until(lambda: world.phase("hog") == "Failed")
        status = world.task("hog").status
        assert [memory for _, memory in requested(world, "hog")] == ["1Gi", "2Gi"]
        assert status.reason == "OOMKilled"
        assert "needs 4Gi of memory, and the largest of 2 nodes that may run it offers 3Gi" in (status.message or "")
        assert status.attempt == 2
        await world.until(lambda: "DeadLetter" in dict(world.events("hog")))


async def test_a_crash_while_it_waits_out_of_reach_changes_nothing() -> None:
    """A stored refusal may be all that a fresh operator finds: it says it again, and then that it is the end."""
    async with running(World(machine("small", 2), machine("large", 8))) as world:
        world.engine.script("owner", Outcome(duration_s=None))
        world.add_task("owner", memory="8Gi", cpu="100m")
        await world.until(lambda: world.phase("owner") == "Running")
        hungry(world, "hog", kills=9, memory="2Gi")
        await world.until(lambda: world.task("hog").status.reason == "NoNodeFits")
        await world.crash()
        world.engine.remove_node("large")
        await world.start(wait=False)
        await world.until(lambda: world.phase("hog") == "Failed", 600)


async def test_a_node_that_sleeps_is_waited_for() -> None:
    async with running(World(machine("small", 2), machine("large", 8))) as world:
        world.engine.power_off("large")
        await world.until(lambda: world.node("large")["status"]["phase"] != "Ready")
        hungry(world, "hog", kills=1, memory="2Gi")
        await world.until(lambda: world.task("hog").status.reason == "NoNodeFits")
        await world.pass_time(60)
        assert world.phase("hog") == "Queued"
        world.engine.reconnect("large")
        await world.until(lambda: world.phase("hog") == "Succeeded")


async def test_a_step_whose_node_has_left_its_swarm_is_waited_for() -> None:
    async with running(World(machine("small", 2), machine("large", 8))) as world:
        world.engine.script("hog", Outcome(oom=True), Outcome(duration_s=500))
        world.add_task("hog", memory="2Gi", failurePolicy=[RULE], backoff={"initialSeconds": 0})
        await world.until(lambda: world.task("hog").status.attempt == 2 and world.phase("hog") == "Running")
        world.engine.remove_node("large")
        await world.until(lambda: world.task("hog").status.reason == "NoNodeFits")
        await world.pass_time(30)
        assert (world.phase("hog"), world.task("hog").status.infrastructure_losses) == ("Queued", 1)
        world.engine.add_node(machine("other", 8))
        await world.until(lambda: world.phase("hog") == "Running")


# --- auto ----------------------------------------------------------------------------------------------------------------


def measured(world: World, name: str, peak: str) -> None:
    """What the node tells of the newest attempt."""
    attempts = world.kube.peek(SWARM_TASK, name, "default")["status"]["attempts"]  # type: ignore[index]
    attempts[-1]["peakMemory"] = peak
    world.kube.edit(SWARM_TASK, name, "default", {"status": {"attempts": attempts}}, status=True)


async def test_auto_asks_for_what_its_kind_has_needed_also_after_a_restart() -> None:
    async with running(World(machine("n1", 16))) as world:
        world.add_task("before", memory="auto", cpu="100m")
        await world.until(lambda: world.phase("before") == "Succeeded")
        assert requested(world, "before") == [("n1", "512Mi")]
        for number in range(4):  # a fixed request teaches as well
            world.add_task(f"t{number}", memory="auto" if number % 2 else "2Gi", cpu="100m")
            await world.until(lambda name=f"t{number}": world.phase(name) == "Succeeded")
            assert requested(world, f"t{number}") == [("n1", "1200Mi" if number % 2 else "2Gi")]
            measured(world, f"t{number}", "1000Mi")
        await world.stop()
        await world.start()
        world.add_task("again", memory="auto", cpu="100m")
        await world.until(lambda: world.phase("again") == "Succeeded")
        plan = world.task("again").status.memory
        assert plan is not None
        assert (plan.request, plan.basis, plan.samples) == ("1200Mi", "Learned", 4)
        assert plan.message == "p95 of 4 attempts + 20 %"


async def test_a_waiting_task_hears_of_what_was_learned() -> None:
    async with running(World(machine("n1", 4))) as world:
        world.add_task("teacher", memory="3Gi", cpu="100m")
        await world.until(lambda: world.phase("teacher") == "Succeeded")
        world.engine.script("full", Outcome(duration_s=60))
        world.add_task("full", memory="1Gi", cpu="4")
        await world.until(lambda: world.phase("full") == "Running")
        world.add_task("waits", memory="auto", cpu="1")
        await world.until(lambda: world.task("waits").status.memory is not None)
        assert world.task("waits").status.memory.basis == "Default"  # type: ignore[union-attr]
        measured(world, "teacher", "2Gi")
        await world.until(lambda: world.phase("waits") == "Succeeded")
        assert requested(world, "waits") == [("n1", "2458Mi")]


async def test_auto_leaves_its_room_to_spare_rather_than_wait_for_ever() -> None:
    async with running(World(machine("n1", 4))) as world:
        world.add_task("first", memory="4Gi")
        await world.until(lambda: world.phase("first") == "Succeeded")
        measured(world, "first", "3800Mi")
        world.add_task("second", memory="auto")
        await world.until(lambda: world.phase("second") == "Succeeded")
        assert requested(world, "second") == [("n1", "4Gi")]


async def test_auto_that_was_killed_climbs_and_the_next_begins_where_it_ended() -> None:
    async with running(World(machine("n1", 16))) as world:
        hungry(world, "first", kills=2, memory="auto", failurePolicy=[])
        await world.until(lambda: world.phase("first") == "Succeeded")
        assert [memory for _, memory in requested(world, "first")] == ["512Mi", "1Gi", "2Gi"]
        measured(world, "first", "1500Mi")
        world.add_task("second", memory="auto")
        await world.until(lambda: world.phase("second") == "Succeeded")
        assert requested(world, "second") == [("n1", "1800Mi")]


async def test_what_is_held_is_what_was_recorded_and_explained() -> None:
    async with running(World(machine("n1", 4))) as world:
        world.engine.script("long", Outcome(duration_s=None))
        world.add_task("long", memory="auto")
        await world.until(lambda: world.phase("long") == "Running")
        await world.until(lambda: world.node("n1")["status"].get("requested", {}).get("memory") == "512Mi")
        found = await explain_stored(world.kube, ("default", "long"), world.clock.now().timestamp())
        assert found.memory is not None
        assert found.memory.basis == "Default"


# --- what others use -----------------------------------------------------------------------------------------------------


async def test_what_the_owner_uses_is_not_given_away_and_comes_back() -> None:
    async with running(World(machine("n1", 8))) as world:
        await world.until(lambda: world.node("n1")["status"]["capacity"]["memory"] == "8Gi")
        use(world, "n1", "5Gi")
        await world.pass_time(1)
        world.add_task("large", memory="4Gi")
        await world.until(lambda: world.task("large").status.reason == "NoNodeFits")
        assert "1 would fit but for at least 5Gi that others than tasks use" in (world.task("large").status.message or "")
        use(world, "n1", "2Gi")
        await world.until(lambda: world.phase("large") == "Succeeded")


@pytest.mark.parametrize("condition", ["MemoryPressure", "DiskPressure"])
async def test_a_node_under_pressure_takes_nothing_until_it_is_over(condition: str) -> None:
    async with running(World("n1")) as world:
        await world.until(lambda: "usage" not in world.node("n1").get("status", {}))
        use(world, "n1", "1Gi", **{condition: "True"})
        await world.pass_time(1)
        world.add_task("t", memory="0", cpu="100m")
        await world.until(lambda: world.task("t").status.reason == "NoNodeFits")
        assert f"1 under {condition.removesuffix('Pressure').lower()} pressure" in (world.task("t").status.message or "")
        use(world, "n1", "1Gi", **{condition: "False"})
        await world.until(lambda: world.phase("t") == "Succeeded")


# --- measurements --------------------------------------------------------------------------------------------------------


def swarm_node(memory: str | None, attempts: list[dict[str, Any]] | None = None) -> SwarmNode:
    status: dict[str, Any] = {"capacity": {"cpu": "4", "memory": "8Gi"}, "attempts": attempts or []}
    if memory is not None:
        status["usage"] = {"memory": memory}
    return SwarmNode.model_validate({"metadata": {"name": "n1"}, "status": status})


def attempt(name: str, *, started: bool = True) -> Attempt:
    facts = {"number": 1, "id": name, "node": "n1", "engine": "swarm", "requested": {"memory": "2Gi"}}
    return Attempt.model_validate(facts | ({"startedAt": "2026-01-01T00:00:00Z"} if started else {}))


def taken(measures: Measures) -> int:
    return measures.taken("n1", 8 * GIB, 8 * GIB) // GIB


def test_what_tasks_use_is_not_foreign_and_what_ended_since_still_counts_in_the_measurement() -> None:
    measures = Measures()
    one, other = attempt("one"), attempt("other", started=False)
    measures.attempt(None, one, first_sight=False)
    measures.attempt(None, other, first_sight=False)
    measures.node("n1", swarm_node("5Gi"))
    assert taken(measures) == 3, "an attempt that has not started uses nothing yet"
    measures.attempt(one, None, first_sight=False)
    assert taken(measures) == 3, "it was measured while it ran"
    measures.node("n1", swarm_node("3Gi"))
    assert taken(measures) == 3
    measures.node("n1", None)
    assert taken(measures) == 0


def test_what_the_agent_saw_of_an_attempt_counts_for_it() -> None:
    measures = Measures()
    measures.attempt(None, attempt("one"), first_sight=False)
    measures.node("n1", swarm_node("5Gi", [{"id": "one", "state": "Running", "peakMemory": "1Gi"}]))
    assert taken(measures) == 4


def test_after_a_restart_tasks_and_nodes_may_be_read_in_any_order() -> None:
    first, second = Measures(), Measures()
    node = swarm_node("5Gi", [{"id": "one", "state": "Running", "peakMemory": "1Gi"}])
    for name in ("one", "two"):
        first.attempt(None, attempt(name), first_sight=True)
    first.node("n1", node)
    second.node("n1", node)
    for name in ("one", "two"):
        second.attempt(None, attempt(name), first_sight=True)
    assert taken(first) == taken(second) == 2


def test_a_node_without_an_agent_is_not_measured() -> None:
    measures = Measures()
    measures.node("n1", swarm_node(None))
    assert taken(measures) == 0
    measures.node("n1", swarm_node("5Gi"))
    measures.node("n1", swarm_node(None))
    assert taken(measures) == 0


# --- what the cache keeps ------------------------------------------------------------------------------------------------


def waiting(name: str, version: int, memory: str = "auto") -> Object:
    return {
        "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask",
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", "resourceVersion": str(version)},
        "spec": {"container": {"image": "busybox", "resources": {"requests": {"memory": memory}}}},
        "status": {"phase": "Queued", "queuedTime": "2026-01-01T00:00:00Z"},
    }  # fmt: skip


def ended(name: str, version: int, peak: str) -> Object:
    task = waiting(name, version, "64Gi")
    done = {"number": 1, "id": name, "node": "n", "engine": "e", "state": "Succeeded", "reason": "Completed", "peakMemory": peak}
    task["status"] = {"phase": "Succeeded", "attempt": 1, "attempts": [done | {"finishedAt": "2026-01-01T00:00:00Z"}]}
    task["status"]["attempts"][0]["requested"] = {"memory": "64Gi"}
    return task


def asks(cache: Cache, name: str = "a") -> int:
    pending = cache.tasks["default", name].pending
    assert pending is not None
    assert {one.shape.request for one in cache.waiting() if one.key[1] == name} <= {pending.shape.request}
    return pending.shape.request.memory_bytes // MIB


def test_a_placement_counts_what_it_was_decided_with_until_it_is_stored() -> None:
    """What is learned between the decision and the write must not take the room away from under it."""
    cache = Cache()
    cache.apply(SWARM_TASK, waiting("a", 1))
    before = cache.tasks["default", "a"].pending
    assert before is not None
    assert cache.assume(before, "n")
    cache.apply(SWARM_TASK, ended("b", 2, "1000Mi"))
    cache.refresh_sizes()
    cache.apply(SWARM_TASK, waiting("a", 3))  # its finalizer was written
    assert cache.assumption(("default", "a")) == ("n", ())
    assert cache.requested("n").memory_bytes == 512 * MIB
    assert cache.drop_assumption(("default", "a"))
    cache.refresh_sizes()
    assert asks(cache) == 1200


def test_an_edit_after_the_decision_takes_it_back() -> None:
    cache = Cache()
    cache.apply(SWARM_TASK, waiting("a", 1))
    pending = cache.tasks["default", "a"].pending
    assert pending is not None
    assert cache.assume(pending, "n")
    cache.apply(SWARM_TASK, waiting("a", 2, "2Gi"))
    assert cache.assumption(("default", "a")) is None
    assert asks(cache) == 2048


def test_the_largest_node_that_is_there_bounds_what_is_asked_for() -> None:
    cache = Cache()

    def node(name: str, version: int, gib: int, phase: str = "Ready") -> Object:
        status = {"phase": phase, "capacity": {"cpu": "4", "memory": f"{gib}Gi"}}
        return {"metadata": {"name": name, "resourceVersion": str(version)}, "spec": {}, "status": status}

    cache.apply(SWARM_TASK, ended("b", 1, "7000Mi"))
    cache.apply(SWARM_TASK, waiting("a", 2))
    assert asks(cache) == 8400
    for version, gib, phase, expected in (
        (3, 8, "Ready", 8192),
        (4, 16, "NotReady", 8400),
        (5, 8, "Ready", 8192),
        (6, 8, "Gone", 8400),
    ):
        cache.apply(SWARM_NODE, node("n", version, gib, phase))
        cache.refresh_sizes()
        assert asks(cache) == expected
    cache.apply(SWARM_NODE, node("n", 7, 8))
    cache.remove(SWARM_NODE, ("", "n"))
    cache.refresh_sizes()
    assert asks(cache) == 8400
