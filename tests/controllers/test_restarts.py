"""The operator dies, at every named point and anywhere else, and a fresh one goes on."""

from __future__ import annotations

import random

import pytest

from swarmtask.controllers.crashpoints import POINTS
from swarmtask.engines.base import Workload
from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.resources.task import ANNOTATION_CANCEL, attempt_id
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome

FOREIGN_UID = "99999999-8888-7777-6666-555555555555"


async def everything_happens(world: World) -> None:
    """Work that passes every write: two nodes, retries, a cancel, a deletion, an end of life, an orphan, arrays."""
    world.engine.script("flaky", Outcome(exit_code=1), Outcome())
    world.engine.script("cancelled", Outcome(duration_s=None))
    world.engine.script("deleted", Outcome(duration_s=None))
    for number in range(4):
        world.add_task(f"plain{number}")
    world.add_task("flaky", backoff={"initialSeconds": 1})
    world.add_task("cancelled")
    world.add_task("deleted")
    world.add_task("brief", ttlSecondsAfterFinished=5)
    for index in range(2):
        world.engine.script(f"halted-{index}", Outcome(duration_s=None))
    world.add_task("several", completions=3, cpu="100m", memory="64Mi")
    world.add_task("halted", completions=2, cpu="100m", memory="64Mi")
    world.engine.adopt(
        Workload(attempt_id(FOREIGN_UID, 1), FOREIGN_UID, "default", "nobody", 1, "n1", "busybox"), Outcome(duration_s=None)
    )
    await world.until(lambda: world.phase("cancelled") == "Running" and world.phase("deleted") == "Running", restart=True)
    await world.until(lambda: [world.phases().get(f"halted-{index}") for index in range(2)] == ["Running"] * 2, restart=True)
    for name in ("cancelled", "halted"):
        world.kube.edit(SWARM_TASK, name, "default", {"metadata": {"annotations": {ANNOTATION_CANCEL: "me"}}})
    world.kube.remove(SWARM_TASK, "deleted", "default")

    def done() -> bool:
        phases = world.phases()
        succeeded = all(phases.get(name) == "Succeeded" for name in ("plain0", "plain1", "plain2", "plain3", "flaky", "several"))
        gone = "deleted" not in phases and "brief" not in phases
        clean = attempt_id(FOREIGN_UID, 1) not in world.engine.names()
        ended = {phases.get(name) for name in ("cancelled", "halted")} == {"Cancelled"}
        recorded = not any(f"several-{index}" in phases for index in range(3))
        return succeeded and gone and clean and ended and recorded

    await world.until(done, 300, restart=True)


@pytest.mark.parametrize("point", POINTS)
async def test_a_crash_at_this_point_loses_and_repeats_nothing(point: str) -> None:
    async with running(World("n1", "n2", orphan_grace_s=5.0, keep_array_members=0), start=False) as world:
        world.arm(point)
        await world.start(wait=False)
        await everything_happens(world)
        assert world.crashes == [point], "the point must have been passed"
        for number in range(4):
            assert world.task(f"plain{number}").status.attempt == 1
        assert world.task("flaky").status.attempt == 2
        assert world.task("flaky").status.failures == 1
        for name, completed, failed in (("several", "0-2", ""), ("halted", "", "0-1")):
            array = world.task(name).status.array
            assert array is not None
            assert (array.completed_indexes, array.failed_indexes) == (completed, failed)
        runs = [call.arguments["workload"].task_name for call in world.engine.called("submit")]
        started = {name for name in runs if name.startswith(("several-", "halted-"))}
        uids = {run.task_uid for run in world.engine.intervals()}
        assert len(started) == 5
        assert len(uids) == len(world.engine.intervals()) - 1 == 4 + 1 + 3 + 5 + 1, "nothing but the retry of flaky ran twice"


@pytest.mark.parametrize("seed", range(4))
async def test_a_crash_anywhere_loses_and_repeats_nothing(seed: int) -> None:
    rng = random.Random(seed)
    async with running(World("n1", "n2", "n3", seed=seed)) as world:
        names = [f"t{number}" for number in range(20)]
        for name in names:
            world.engine.script(name, Outcome(duration_s=rng.uniform(0.5, 6)))
            world.add_task(name)
        for _ in range(8):
            await world.pass_time(rng.uniform(0.05, 2.0))
            await world.crash()
            await world.start(wait=False)
        await world.until(lambda: set(world.phases().values()) == {"Succeeded"}, 300)
        assert {world.task(name).status.attempt for name in names} == {1}
        assert len(world.engine.intervals()) == 20


async def test_running_work_is_found_again() -> None:
    async with running(World("n1")) as world:
        world.engine.script("long", Outcome(duration_s=30))
        world.add_task("long")
        await world.until(lambda: world.phase("long") == "Running")
        await world.crash()
        await world.pass_time(10)
        await world.start()
        await world.until(lambda: world.phase("long") == "Succeeded")
        assert world.task("long").status.attempt == 1
        assert len(world.engine.called("submit")) == 1


async def test_what_was_deleted_while_the_operator_was_down_is_finished() -> None:
    async with running(World("n1")) as world:
        world.engine.script("long", Outcome(duration_s=None))
        world.add_task("long")
        await world.until(lambda: world.phase("long") == "Running")
        await world.stop()
        world.kube.remove(SWARM_TASK, "long", "default")
        assert not world.gone("long"), "the finalizer holds it"
        await world.start()
        await world.until(lambda: world.gone("long"))
        assert not world.engine.names()


async def test_what_ended_while_the_operator_was_down_is_recorded() -> None:
    async with running(World("n1")) as world:
        world.engine.script("short", Outcome(duration_s=5))
        world.add_task("short")
        await world.until(lambda: world.phase("short") == "Running")
        await world.stop()
        await world.pass_time(60)
        await world.start()
        await world.until(lambda: world.phase("short") == "Succeeded")


async def test_an_orphan_is_removed_after_its_grace_and_what_is_owned_is_not() -> None:
    async with running(World("n1", orphan_grace_s=20.0)) as world:
        world.engine.script("owned", Outcome(duration_s=None))
        world.add_task("owned")
        await world.until(lambda: world.phase("owned") == "Running")
        orphan = Workload(attempt_id(FOREIGN_UID, 1), FOREIGN_UID, "default", "nobody", 1, "n1", "busybox")
        world.engine.adopt(orphan, Outcome(duration_s=None))
        adopted = world.clock.monotonic()
        await world.until(lambda: orphan.name not in world.engine.names())
        assert world.clock.monotonic() - adopted >= 20
        assert world.phase("owned") == "Running"


async def test_an_orphan_is_not_removed_while_the_api_cannot_say() -> None:
    async with running(World("n1", orphan_grace_s=5.0)) as world:
        orphan = Workload(attempt_id(FOREIGN_UID, 1), FOREIGN_UID, "default", "nobody", 1, "n1", "busybox")
        world.engine.adopt(orphan, Outcome(duration_s=None))
        world.kube.fail("get", kind=SWARM_TASK, name="nobody", times=10**6)
        await world.pass_time(60)
        assert orphan.name in world.engine.names()


async def test_a_workload_of_an_earlier_task_of_the_same_name_is_an_orphan() -> None:
    async with running(World("n1", orphan_grace_s=5.0)) as world:
        world.engine.script("twin", Outcome(duration_s=None))
        earlier = Workload(attempt_id(FOREIGN_UID, 1), FOREIGN_UID, "default", "twin", 1, "n1", "busybox")
        world.engine.adopt(earlier, Outcome(duration_s=None))
        world.add_task("twin")
        await world.until(lambda: world.phase("twin") == "Running")
        await world.until(lambda: earlier.name not in world.engine.names())
        assert world.phase("twin") == "Running"


async def test_finished_workloads_are_kept_for_their_logs_up_to_a_number() -> None:
    async with running(World("n1", keep_finished_workloads=3)) as world:
        for number in range(8):
            world.engine.script(f"t{number}", Outcome(duration_s=1 + number))
            world.add_task(f"t{number}", cpu="100m", memory="64Mi")
        await world.until(lambda: set(world.phases().values()) == {"Succeeded"})
        await world.until(lambda: len(world.engine.names()) == 3)
        newest = {attempt_id(world.task(f"t{number}").metadata.uid, 1) for number in (5, 6, 7)}
        assert world.engine.names() == newest


async def test_the_output_of_failed_attempts_can_still_be_read_after_a_retry() -> None:
    async with running(World("n1", keep_finished_workloads=2)) as world:
        world.engine.script("flaky", Outcome(exit_code=1), Outcome(exit_code=1), Outcome())
        world.add_task("flaky", backoff={"initialSeconds": 1})
        await world.until(lambda: world.phase("flaky") == "Succeeded")
        uid = world.task("flaky").metadata.uid
        await world.until(lambda: world.engine.names() == {attempt_id(uid, 2), attempt_id(uid, 3)})
        await world.pass_time(30)
        assert world.engine.names() == {attempt_id(uid, 2), attempt_id(uid, 3)}
        world.kube.remove(SWARM_TASK, "flaky", "default")
        await world.until(lambda: world.gone("flaky"))
        assert not world.engine.names()


async def test_the_end_of_a_task_is_told_after_a_crash_and_only_once() -> None:
    world = World("n1")
    world.engine.script("fails", Outcome(exit_code=1))
    world.engine.script("many-1", Outcome(exit_code=1))
    async with running(world):
        world.add_queue("held", stopped=True)
        world.add_task("late", queue="held", queueDeadlineSeconds=3)
        await world.until(lambda: "Waiting" in dict(world.events("late")))
        world.arm("before:post-event")
        await world.until(lambda: "Expired" in dict(world.events("late")), restart=True)
        assert world.crashes == ["before:post-event"]
        world.add_task("works")
        world.add_task("fails", backoffLimit=0)
        world.add_task("many", completions=2, backoffLimit=0)
        world.add_task("stops", queue="held")
        await world.until(lambda: world.phases().get("stops") == "Queued")
        world.kube.edit(SWARM_TASK, "stops", "default", {"metadata": {"annotations": {ANNOTATION_CANCEL: "me"}}})
        ends = {"late": "Expired", "works": "Completed", "fails": "DeadLetter", "many": "DeadLetter", "stops": "Cancelled"}
        for _ in range(2):
            await world.until(lambda: all(dict(world.events(name)).get(reason) == 1 for name, reason in ends.items()))
            await world.crash()
            await world.start()
            await world.pass_time(5)
        told = {name: [count for reason, count in world.events(name) if reason == ends[name]] for name in ends}
        assert told == {name: [1] for name in ends}
