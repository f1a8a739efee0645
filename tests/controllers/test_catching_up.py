"""Tasks that come from a backup, while engines run attempts of them that it does not know."""

from __future__ import annotations

from typing import Any

import pytest

from swarmtask.engines.base import EngineNode, Workload
from swarmtask.kube import Object
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.resources.meta import FINALIZER
from swarmtask.resources.restored import ANNOTATION_RESTORED, mark_restored
from swarmtask.resources.task import ANNOTATION_CANCEL, attempt_id
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome

AT = "2026-01-01T00:00:00Z"
FOR_EVER = Outcome(duration_s=None)
STUBBORN = Outcome(duration_s=None, honours_term=False)
FORGOTTEN_UID = "99999999-8888-7777-6666-555555555555"


def restored(world: World, name: str = "a", status: dict[str, Any] | None = None, **spec: Any) -> Object:
    """A task as `swarmtask restore` leaves it."""
    obj = world.add_task(name, **spec)
    if status is not None:
        world.kube.edit(SWARM_TASK, name, "default", {"status": status}, status=True)
    return world.kube.edit(SWARM_TASK, name, "default", {"metadata": {"annotations": {ANNOTATION_RESTORED: AT}}}) or obj


def record(obj: Object, number: int, node: str = "n1", **facts: Any) -> dict[str, Any]:
    """What the backup knows of an attempt."""
    return {
        "number": number, "id": attempt_id(obj["metadata"]["uid"], number), "node": node, "engine": "fake", "engineNodeId": node,
        "state": "Running", "observed": True, "requested": {"cpu": "1", "memory": "1Gi"}, "boundAt": AT, "startedAt": AT, **facts,
    }  # fmt: skip


def runs(world: World, name: str, number: int, node: str = "n1", outcome: Outcome = FOR_EVER) -> str:
    """An engine has an attempt of the task that was begun after the backup; its name there."""
    obj = world.kube.peek(SWARM_TASK, name, "default")
    assert obj is not None
    uid = obj["metadata"]["uid"]
    workload = attempt_id(uid, number)
    world.engine.adopt(Workload(workload, uid, "default", name, number, node, "busybox"), outcome)
    return workload


def marked(world: World, name: str = "a") -> bool:
    return ANNOTATION_RESTORED in world.task(name).metadata.annotations


async def test_an_attempt_that_the_backup_does_not_know_goes_on() -> None:
    """Attempt 1, which nobody remembers to have been lost, is not begun beside it."""
    async with running(World("n1", "n2"), start=False) as world:
        restored(world, status={"phase": "Queued"})
        name = runs(world, "a", 2, "n2")
        await world.start(wait=False)
        await world.until(lambda: world.phase("a") == "Running" and not marked(world))
        status = world.task("a").status
        assert (status.attempt, status.node_name, [one.id for one in status.attempts]) == (2, "n2", [name])
        assert ("Restored", 1) in world.events("a")
        await world.pass_time(60)
        assert not world.engine.called("submit")
        assert {run.name for run in world.engine.intervals()} == {name}
        assert world.operator is not None
        assert world.operator.cache.requested("n2").cpu_milli == 1000, "its room counts"


async def test_one_that_has_ended_since_is_taken_as_it_ended() -> None:
    async with running(World("n1"), start=False) as world:
        restored(world, status={"phase": "Queued"})
        runs(world, "a", 3, outcome=Outcome(duration_s=1))
        await world.pass_time(5)
        await world.start(wait=False)
        await world.until(lambda: world.phase("a") == "Succeeded")
        assert world.task("a").status.attempt == 3
        assert not world.engine.called("submit")


async def test_of_several_the_newest_goes_on_and_the_others_end() -> None:
    """A node that was lost has come back with the attempt that had been replaced: both ran before there was an operator."""
    world = World("n1", "n2")
    restored(world, status={"phase": "Queued"})
    old, new = runs(world, "a", 1, "n1"), runs(world, "a", 2, "n2")
    await world.start(wait=False)
    try:
        await world.until(lambda: old not in world.engine.names())
        assert world.task("a").status.attempt == 2
        assert new in world.engine.names()
        assert not world.engine.called("submit")
    finally:
        await world.stop()


async def test_the_attempt_that_the_backup_knows_makes_way() -> None:
    async with running(World("n1", "n2"), start=False) as world:
        obj = restored(world)
        status = {"phase": "Running", "attempt": 1, "nodeName": "n1", "engine": "fake", "attempts": [record(obj, 1)]}
        world.kube.edit(SWARM_TASK, "a", "default", {"status": status}, status=True)
        runs(world, "a", 2, "n2")
        await world.start(wait=False)
        await world.until(lambda: world.task("a").status.attempt == 2 and world.phase("a") == "Running")
        first, second = world.task("a").status.attempts
        assert (first.state, first.reason, second.node) == ("Failed", "WorkloadLost", "n2")
        assert world.task("a").status.infrastructure_losses == 0, "nobody pays for a backup"


async def test_nothing_is_begun_before_every_engine_has_said_what_it_runs() -> None:
    async with running(World("n1"), start=False) as world:
        restored(world, status={"phase": "Queued"})
        name = runs(world, "a", 2)
        world.engine.delay("workloads", 30)
        await world.start(wait=False)
        await world.pass_time(20)
        assert (world.phase("a"), marked(world)) == ("Queued", True)
        assert not world.engine.called("submit")
        assert ("Restored", 1) in world.events("a"), "a person is told what it waits for"
        await world.until(lambda: world.phase("a") == "Running", 300)
        assert world.task("a").status.current is not None
        assert world.task("a").status.current.id == name


async def test_a_task_of_which_nothing_runs_is_like_any_other() -> None:
    async with running(World("n1"), start=False) as world:
        restored(world, status={"phase": "Queued"})
        await world.start(wait=False)
        await world.until(lambda: world.phase("a") == "Succeeded")
        assert (world.task("a").status.attempt, marked(world)) == (1, False)


async def test_what_is_wished_meanwhile_is_done_to_the_attempt_that_runs() -> None:
    async with running(World("n1"), start=False) as world:
        restored(world, status={"phase": "Queued"})
        name = runs(world, "a", 2)
        world.kube.edit(SWARM_TASK, "a", "default", {"metadata": {"annotations": {ANNOTATION_CANCEL: "me"}}})
        await world.start(wait=False)
        await world.until(lambda: world.phase("a") == "Cancelled")
        (run,) = world.engine.intervals()
        assert (run.name, run.ended is not None) == (name, True)


async def test_a_task_that_is_being_deleted_takes_everything_with_it() -> None:
    async with running(World("n1"), start=False) as world:
        restored(world, status={"phase": "Queued"})
        name = runs(world, "a", 2)
        world.kube.edit(SWARM_TASK, "a", "default", {"metadata": {"finalizers": [FINALIZER]}})
        world.kube.remove(SWARM_TASK, "a", "default")
        await world.start(wait=False)
        await world.until(lambda: world.gone("a") and name not in world.engine.names())


async def test_a_task_that_had_ended_stays_so() -> None:
    """Somebody had retried it after the backup: what was begun then ends."""
    async with running(World("n1"), start=False) as world:
        obj = restored(world)
        ended = record(obj, 1, state="Failed", reason="Error", exitCode=1, finishedAt=AT)
        world.kube.edit(SWARM_TASK, "a", "default", {"status": {"phase": "Failed", "attempt": 1, "attempts": [ended]}}, status=True)
        name = runs(world, "a", 2)
        await world.start(wait=False)
        await world.until(lambda: name not in world.engine.names() and not marked(world))
        assert (world.phase("a"), world.task("a").status.attempt) == ("Failed", 1)


def acting(world: World) -> list[int]:
    """Attempts whose programs run, whether their engine shows them or not."""
    return sorted(int(name.rpartition("-")[2]) for name in world.engine.acting())


async def test_what_a_retry_had_begun_has_its_grace_before_the_next_retry_may_begin() -> None:
    async with running(World("n1"), start=False) as world:
        obj = restored(world, terminationGracePeriodSeconds=20)
        ended = record(obj, 1, state="Failed", reason="Error", exitCode=1, finishedAt=AT)
        world.kube.edit(SWARM_TASK, "a", "default", {"status": {"phase": "Failed", "attempt": 1, "attempts": [ended]}}, status=True)
        name = runs(world, "a", 2, outcome=STUBBORN)
        await world.start(wait=False)
        await world.until(lambda: world.engine.called("stop"))
        await world.pass_time(15)
        assert (acting(world), name in world.engine.names(), marked(world)) == ([2], True, True)
        await world.until(lambda: not marked(world), 30)
        assert (acting(world), world.engine.names()) == ([], set())
        assert world.task("a").status.attempt == 1


@pytest.mark.parametrize("backup", ["Queued", "Running"])
@pytest.mark.parametrize("polite", [False, True], ids=["killed", "polite"])
async def test_what_acts_on_a_node_that_nobody_knows_is_stopped_and_has_its_grace(backup: str, polite: bool) -> None:
    """Its engine runs it, but does not list its node."""
    async with running(World("n1", "away"), start=False) as world:
        obj = restored(world, status={"phase": "Queued"}, terminationGracePeriodSeconds=20)
        if backup == "Running":
            before = record(obj, 1, engine=world.engine.name)
            status = {"phase": "Running", "attempt": 1, "nodeName": "n1", "engine": before["engine"], "attempts": [before]}
            world.kube.edit(SWARM_TASK, "a", "default", {"status": status}, status=True)
        runs(world, "a", 2, "away", Outcome(duration_s=None, term_exit_code=0) if polite else STUBBORN)
        world.engine.script("a", Outcome(duration_s=3))
        listed = world.engine.nodes

        async def without_it() -> list[EngineNode]:
            return [node for node in await listed() if node.id != "away"]

        world.engine.nodes = without_it  # type: ignore[method-assign]
        await world.start(wait=False)
        await world.until(lambda: world.engine.called("stop"))
        if not polite:
            await world.pass_time(15)
            assert acting(world) == [2]
            assert not world.engine.called("submit")
        await world.until(lambda: world.phase("a") == "Succeeded", 90)
        status = world.task("a").status
        assert [one.number for one in status.attempts][-2:] == [2, 3]
        assert (status.attempts[-2].state, status.attempts[-2].reason, status.node_name) == ("Failed", "WorkloadLost", "n1")
        assert (status.failures, status.infrastructure_losses) == (0, 0), "nobody pays for a backup"
        first, second = world.engine.intervals()
        assert first.ended is not None
        assert first.ended <= second.started


async def test_a_mark_that_somebody_sets_later_holds_nothing_up() -> None:
    """Or whoever may write a task could keep it from being stopped."""
    async with running(World("n1"), start=False) as world:
        restored(world, status={"phase": "Queued"})
        runs(world, "a", 2)
        operator = await world.start(wait=False)
        await world.until(lambda: world.phase("a") == "Running" and not marked(world))
        again = {"metadata": {"annotations": {ANNOTATION_RESTORED: AT, ANNOTATION_CANCEL: "me"}}}
        operator.cache.apply(SWARM_TASK, world.kube.edit(SWARM_TASK, "a", "default", again))
        assert not operator.executor.held(("default", "a"))
        await world.until(lambda: world.phase("a") == "Cancelled" and not marked(world))


async def test_work_of_a_task_that_is_made_anew_ends_before_it_begins_again() -> None:
    """A run of an array that was begun after the backup, or a task that a person submits once more: the same work, another UID."""
    async with running(World("n1", "n2"), start=False) as world:
        world.engine.script("a", FOR_EVER)
        forgotten = Workload(attempt_id(FORGOTTEN_UID, 1), FORGOTTEN_UID, "default", "a", 1, "n1", "busybox")
        world.engine.adopt(forgotten, FOR_EVER)
        world.add_task("a")
        await world.start(wait=False)
        await world.until(lambda: world.phase("a") == "Running")
        uid = world.task("a").metadata.uid
        before, anew = ([run for run in world.engine.intervals() if run.task_uid == one] for one in (FORGOTTEN_UID, uid))
        assert (len(before), len(anew)) == (1, 1)
        assert before[0].ended is not None
        assert before[0].ended <= anew[0].started
        assert world.task("a").status.attempt == 1, "it was bound, and waited for its turn"


@pytest.mark.parametrize("point", [
    "before:add-finalizer", "after:add-finalizer", "before:write-status", "after:write-status",
])  # fmt: skip
async def test_a_crash_on_the_way_repeats_nothing(point: str) -> None:
    async with running(World("n1"), start=False) as world:
        restored(world, status={"phase": "Queued"})
        name = runs(world, "a", 2)
        world.arm(point)
        await world.start(wait=False)
        await world.until(lambda: world.phase("a") == "Running" and not marked(world), restart=True)
        assert world.crashes == [point]
        assert (world.task("a").status.attempt, {run.name for run in world.engine.intervals()}) == (2, {name})


@pytest.mark.parametrize(("obj", "wanted"), [
    ({"kind": "SwarmTask", "apiVersion": "swarmtask.io/v1alpha1", "metadata": {}, "spec": {}}, True),
    ({"kind": "SwarmTask", "apiVersion": "swarmtask.io/v1alpha1", "metadata": {"annotations": None}, "status": {}}, True),
    ({"kind": "SwarmTask", "apiVersion": "swarmtask.io/v1alpha1", "metadata": {}, "status": {"phase": "Failed"}}, True),
    ({"kind": "SwarmTask", "apiVersion": "swarmtask.io/v1alpha1", "metadata": {}, "status": {"phase": "Succeeded"}}, False),
    ({"kind": "SwarmTask", "apiVersion": "swarmtask.io/v1alpha1", "metadata": {}, "spec": {"completions": 3}}, False),
    ({"kind": "SwarmTask", "apiVersion": "example.com/v1", "metadata": {}}, False),
    ({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {}}, False),
])  # fmt: skip
def test_which_objects_are_marked(obj: dict[str, Any], wanted: bool) -> None:
    mark_restored(obj, AT)
    assert (obj["metadata"].get("annotations") == {ANNOTATION_RESTORED: AT}) is wanted
