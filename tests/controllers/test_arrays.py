"""Arrays from their creation to their end: the window, the record, and whatever a person does in between."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from swarmtask.errors import Conflict, Forbidden
from swarmtask.kube import Object
from swarmtask.lifecycle.intervals import parse
from swarmtask.resources.kinds import SWARM_QUEUE, SWARM_TASK, Kind
from swarmtask.resources.task import ANNOTATION_CANCEL, ANNOTATION_RETRY, ArrayStatus
from tests.controllers.world import World, running
from tests.fakes.engine import Outcome

FAILS, FOR_EVER = Outcome(exit_code=3), Outcome(duration_s=None)


def add_array(world: World, name: str, completions: int, **spec: Any) -> Object:
    return world.add_task(name, completions=completions, cpu="100m", memory="64Mi", **spec)


def record(world: World, name: str) -> ArrayStatus:
    status = world.task(name).status.array
    assert status is not None
    return status


def members(world: World, name: str) -> dict[int, str]:
    """Index -> phase of the members that are there."""
    found = {}
    for obj in world.kube.all(SWARM_TASK):
        labels = obj["metadata"].get("labels") or {}
        if labels.get("swarmtask.io/array") == name:
            found[int(labels["swarmtask.io/index"])] = (obj.get("status") or {}).get("phase", "")
    return found


def created(world: World) -> list[str]:
    """Names of the members that were created, in order."""
    return [call.name for call in world.kube.calls if call.verb == "create" and call.kind == "SwarmTask"]


def edit(world: World, name: str, **spec: Any) -> None:
    world.kube.edit(SWARM_TASK, name, "default", {"spec": spec})


def annotate(world: World, name: str, annotation: str, text: str | None) -> None:
    world.kube.edit(SWARM_TASK, name, "default", {"metadata": {"annotations": {annotation: text}}})


async def test_every_index_runs_once_and_is_recorded() -> None:
    async with running(World("n1", "n2")) as world:
        add_array(world, "many", 30, parallelism=8)
        await world.until(lambda: world.phase("many") == "Succeeded")
        status, done = world.task("many").status, record(world, "many")
        assert (done.completed_indexes, done.failed_indexes, done.progress) == ("0-29", "", "30/30")
        assert (done.succeeded, done.failed, done.active, done.failures) == (30, 0, 0, [])
        assert status.message == "30 of 30 succeeded"
        assert status.start_time is not None and status.completion_time is not None
        assert status.attempt == 0 and not status.attempts, "the array itself never runs"
        assert len(created(world)) == 30 and len(world.engine.intervals()) == 30
        environments = [dict(call.arguments["workload"].env) for call in world.engine.called("submit")]
        assert sorted(int(env["SWARMTASK_INDEX"]) for env in environments) == list(range(30))
        assert {env["SWARMTASK_COMPLETIONS"] for env in environments} == {"30"}
        assert ("Completed", 1) in world.events("many")


async def test_the_newest_that_succeeded_stay_for_their_output_and_go_with_the_array() -> None:
    async with running(World("n1", keep_array_members=3)) as world:
        add_array(world, "many", 10, parallelism=2)
        await world.until(lambda: world.phase("many") == "Succeeded" and len(members(world, "many")) == 3)
        assert min(members(world, "many")) >= 6
        world.kube.remove(SWARM_TASK, "many", "default")
        await world.until(lambda: not world.kube.all(SWARM_TASK) and not world.engine.names())


async def test_no_more_than_parallelism_are_there_at_once() -> None:
    async with running(World("n1", keep_array_members=0)) as world:
        for number in range(12):
            world.engine.script(f"many-{number}", FOR_EVER if number < 3 else Outcome())
        add_array(world, "many", 12, parallelism=4)
        await world.until(lambda: record_is(world, "many", succeeded=9))
        await world.until(lambda: sorted(members(world, "many")) == [0, 1, 2])
        assert record(world, "many").active == 3
        assert world.task("many").status.message == "9 of 12 succeeded, 3 wait or run"


def record_is(world: World, name: str, **fields: Any) -> bool:
    status = world.task(name).status.array
    return status is not None and all(getattr(status, field) == value for field, value in fields.items())


@pytest.mark.slow
async def test_failures_are_told_kept_up_to_ten_and_end_the_array_as_failed() -> None:
    async with running(World("n1", "n2", keep_array_members=0)) as world:
        lost = [1, 2, 3, 5, 8, 13, 21, 22, 23, 34, 41, 42]
        for index in lost:
            world.engine.script(f"many-{index}", FAILS)
        add_array(world, "many", 50, parallelism=10, backoffLimit=0)
        await world.until(lambda: world.phase("many") == "Failed")
        done = record(world, "many")
        assert (done.succeeded, done.failed, done.failed_indexes) == (38, 12, "1-3,5,8,13,21-23,34,41-42")
        assert len(done.failures) == 10
        assert done.failures[0].startswith("1: Failed: attempt 1 on n") and "exit code 3" in done.failures[0]
        status = world.task("many").status
        assert (status.reason, status.message) == ("FailedIndexes", "38 of 50 succeeded; failed: 1-3,5,8,13,21-23,34,41-42")
        kept = {int(text.partition(":")[0]) for text in done.failures}
        await world.until(lambda: members(world, "many") == dict.fromkeys(kept, "Failed"))
        await world.until(lambda: world.task("many").metadata.labels.get("swarmtask.io/dead-letter") == "true")


async def test_backoff_limit_is_for_each_index() -> None:
    async with running(World("n1")) as world:
        for index in range(4):
            world.engine.script(f"many-{index}", FAILS, Outcome())
        add_array(world, "many", 4, backoffLimit=1, backoff={"initialSeconds": 1})
        await world.until(lambda: world.phase("many") == "Succeeded")
        assert len(world.engine.intervals()) == 8


async def test_too_many_failures_end_the_rest() -> None:
    async with running(World("n1")) as world:
        for index in range(20):
            world.engine.script(f"many-{index}", FAILS if index in (1, 2) else FOR_EVER)
        add_array(world, "many", 20, parallelism=5, backoffLimit=0, maxFailedIndexes=1)
        await world.until(lambda: world.phase("many") == "Failed")
        status, done = world.task("many").status, record(world, "many")
        assert status.reason == "MaxFailedIndexesExceeded"
        assert {1, 2} <= set(parse(done.failed_indexes)) and done.succeeded == 0 and done.active == 0
        assert done.failed < 20, "what never started is not counted as failed"
        assert not world.engine.acting()


async def test_a_cancel_ends_what_runs_and_begins_nothing_more() -> None:
    async with running(World("n1")) as world:
        for index in range(3, 20):
            world.engine.script(f"many-{index}", FOR_EVER)
        add_array(world, "many", 20, parallelism=4)
        await world.until(lambda: record_is(world, "many", succeeded=3))
        await world.until(lambda: len(world.engine.acting()) == 4)
        annotate(world, "many", ANNOTATION_CANCEL, "wrong branch")
        await world.until(lambda: world.phase("many") == "Cancelled")
        assert not world.engine.acting()
        status, done = world.task("many").status, record(world, "many")
        assert status.message == "cancelled: wrong branch; 3 of 20 succeeded; failed: 3-6"
        assert (done.succeeded, done.failed_indexes, done.progress) == (3, "3-6", "7/20")
        assert len(created(world)) == 7


async def test_a_run_that_cannot_be_cancelled_because_of_a_conflict_is_cancelled_again() -> None:
    async with running(World("n1")) as world:
        world.engine.script("many-0", FOR_EVER)
        add_array(world, "many", 1)
        await world.until(lambda: len(world.engine.acting()) == 1)
        edit(world, "many", suspend=True)
        await world.until(lambda: world.phase("many") == "Pending")
        await world.pass_time(5)  # nothing else is on its way that could wake the array
        faster = Conflict("somebody was faster, and it looks as before")
        world.kube.fail("patch", lambda: faster, kind=SWARM_TASK, name="many-0", subresource="", times=2)
        annotate(world, "many", ANNOTATION_CANCEL, "no")
        await world.until(lambda: world.phase("many") == "Cancelled")


async def test_a_run_that_is_retried_while_its_array_is_being_cancelled_is_cancelled_again() -> None:
    async with running(World("n1")) as world:
        world.engine.script("many-0", FOR_EVER)
        world.engine.script("many-1", Outcome(duration_s=None, honours_term=False))
        add_array(world, "many", 4, parallelism=2, terminationGracePeriodSeconds=20)
        await world.until(lambda: len(world.engine.acting()) == 2)
        retried = 0

        def retry_at_once(kind: Kind, obj: Object, gone: bool) -> None:
            nonlocal retried
            ended = kind is SWARM_TASK and not gone and (obj.get("status") or {}).get("phase") == "Cancelled"
            if ended and obj["metadata"]["name"] == "many-0" and retried < 3:
                retried += 1
                asyncio.get_running_loop().call_soon(annotate, world, "many-0", ANNOTATION_RETRY, str(retried))

        world.kube.on_commit.append(retry_at_once)
        annotate(world, "many", ANNOTATION_CANCEL, "no")
        await world.until(lambda: world.phase("many") == "Cancelled")
        assert retried == 3
        assert record(world, "many").failed_indexes == "0-1"
        assert not world.engine.acting()


async def test_a_suspended_array_begins_nothing_and_stops_what_runs_until_it_is_resumed() -> None:
    async with running(World("n1")) as world:
        for index in range(6):
            world.engine.script(f"many-{index}", FOR_EVER, Outcome())
        add_array(world, "many", 6, parallelism=3, suspend=True)
        await world.until(lambda: world.phase("many") == "Pending")
        await world.pass_time(5)
        assert not members(world, "many")
        edit(world, "many", suspend=False)
        await world.until(lambda: len(world.engine.acting()) == 3)
        edit(world, "many", suspend=True)
        await world.until(lambda: world.phase("many") == "Pending" and not world.engine.acting())
        assert set(members(world, "many").values()) == {"Pending"}
        assert world.task("many").status.reason == "Suspended"
        edit(world, "many", suspend=False)
        for index in range(3, 6):
            world.engine.script(f"many-{index}", Outcome())
        await world.until(lambda: world.phase("many") == "Succeeded")


async def test_a_retry_runs_only_what_has_not_succeeded() -> None:
    async with running(World("n1")) as world:
        for index in (2, 4):
            world.engine.script(f"many-{index}", FAILS, Outcome())
        add_array(world, "many", 6, backoffLimit=0)
        await world.until(lambda: world.phase("many") == "Failed")
        annotate(world, "many", ANNOTATION_RETRY, "1")
        await world.until(lambda: world.phase("many") == "Succeeded")
        assert record(world, "many").completed_indexes == "0-5"
        assert len(world.engine.intervals()) == 8
        assert sorted(created(world))[2:6] == ["many-2", "many-2", "many-3", "many-4"]
        assert "swarmtask.io/dead-letter" not in world.task("many").metadata.labels


async def test_a_retry_of_a_cancelled_array_goes_on_with_the_rest() -> None:
    async with running(World("n1")) as world:
        for index in range(8):
            world.engine.script(f"many-{index}", FOR_EVER, Outcome())
        add_array(world, "many", 8, parallelism=2)
        await world.until(lambda: len(world.engine.acting()) == 2)
        annotate(world, "many", ANNOTATION_CANCEL, "no")
        await world.until(lambda: world.phase("many") == "Cancelled")
        for index in range(2, 8):
            world.engine.script(f"many-{index}", Outcome())
        annotate(world, "many", ANNOTATION_RETRY, "1")
        await world.until(lambda: world.phase("many") == "Succeeded")


async def test_deleting_the_array_stops_and_removes_everything() -> None:
    async with running(World("n1")) as world:
        for index in range(2, 10):
            world.engine.script(f"many-{index}", FOR_EVER)
        add_array(world, "many", 10, parallelism=5)
        await world.until(lambda: len(world.engine.acting()) == 5)
        world.kube.remove(SWARM_TASK, "many", "default")
        await world.until(lambda: not world.kube.all(SWARM_TASK) and not world.engine.names())
        before = len(created(world))
        await world.pass_time(5)
        assert len(created(world)) == before


@pytest.mark.slow
async def test_parallelism_can_be_raised_and_lowered_while_it_runs() -> None:
    async with running(World("n1", "n2", keep_array_members=0)) as world:
        for index in range(40):
            world.engine.script(f"many-{index}", Outcome(duration_s=20))
        add_array(world, "many", 40, parallelism=2)
        await world.until(lambda: len(world.engine.acting()) == 2)
        edit(world, "many", parallelism=12)
        await world.until(lambda: len(world.engine.acting()) == 12)
        edit(world, "many", parallelism=1)
        await world.until(lambda: len(world.engine.acting()) == 1, 200)
        await world.until(lambda: [phase for phase in members(world, "many").values() if phase != "Succeeded"] == ["Running"])
        edit(world, "many", parallelism=20)
        await world.until(lambda: world.phase("many") == "Succeeded", 400)


@pytest.mark.slow
async def test_waiting_members_beyond_a_lowered_parallelism_go() -> None:
    async with running(World("n1")) as world:
        world.add_queue("closed", stopped=True)
        add_array(world, "many", 40, parallelism=20, queue="closed")
        await world.until(lambda: len(members(world, "many")) == 20)
        assert world.phase("many") == "Queued"
        edit(world, "many", parallelism=5)
        await world.until(lambda: sorted(members(world, "many")) == list(range(5)))
        world.kube.edit(SWARM_QUEUE, "closed", "default", {"spec": {"stopped": False}})
        await world.until(lambda: world.phase("many") == "Succeeded")


async def test_a_raised_number_is_honoured_and_a_lowered_one_too() -> None:
    async with running(World("n1")) as world:
        world.add_queue("q", stopped=True)
        add_array(world, "many", 4, queue="q")
        await world.until(lambda: len(members(world, "many")) == 4)
        edit(world, "many", completions=8)
        await world.until(lambda: len(members(world, "many")) == 8)
        edit(world, "many", completions=3)
        await world.until(lambda: sorted(members(world, "many")) == [0, 1, 2])
        world.kube.edit(SWARM_QUEUE, "q", "default", {"spec": {"stopped": False}})
        await world.until(lambda: world.phase("many") == "Succeeded")
        assert record(world, "many").progress == "3/3"


async def test_what_runs_and_what_failed_beyond_a_lowered_number_is_not_waited_for_and_does_not_count() -> None:
    async with running(World("n1")) as world:
        world.engine.script("many-7", FAILS)
        world.engine.script("many-9", FOR_EVER)
        world.engine.script("many-0", Outcome(duration_s=30))
        add_array(world, "many", 10, backoffLimit=0)
        await world.until(lambda: (status := world.task("many").status.array) is not None and status.failed_indexes == "7")
        edit(world, "many", completions=5)
        await world.until(lambda: world.phase("many") == "Succeeded")
        assert record(world, "many").progress == "5/5"
        assert world.task("many").status.message == "5 of 5 succeeded"
        assert not world.engine.acting()


async def test_an_array_without_a_number_any_more_ends() -> None:
    async with running(World("n1")) as world:
        world.engine.script("many", FOR_EVER)
        for index in range(4):
            world.engine.script(f"many-{index}", FOR_EVER)
        add_array(world, "many", 4)
        await world.until(lambda: len(world.engine.acting()) == 4)
        edit(world, "many", completions=None)
        await world.until(lambda: world.phase("many") == "Failed")
        assert "spec.completions was removed" in (world.task("many").status.message or "")
        assert not world.engine.acting() and world.task("many").status.attempt == 0


async def test_a_member_that_somebody_deletes_is_run_again_unless_it_is_recorded() -> None:
    async with running(World("n1")) as world:
        world.engine.script("many-1", FOR_EVER, Outcome())
        add_array(world, "many", 3)
        await world.until(lambda: record_is(world, "many", completed_indexes="0,2"))
        first = world.task("many-1").metadata.uid
        world.kube.remove(SWARM_TASK, "many-1", "default")
        world.kube.remove(SWARM_TASK, "many-0", "default")
        await world.until(lambda: world.phase("many") == "Succeeded")
        assert world.task("many-1").metadata.uid != first
        assert world.gone("many-0") and created(world).count("many-0") == 1


async def test_a_name_that_is_taken_is_told_and_never_adopted() -> None:
    async with running(World("n1")) as world:
        world.engine.script("many-1", FOR_EVER)
        world.add_task("many-1", cpu="100m", memory="64Mi")
        await world.until(lambda: world.phase("many-1") == "Running")
        foreign = world.task("many-1").metadata.uid
        add_array(world, "many", 3)
        await world.until(lambda: record_is(world, "many", completed_indexes="0,2"))
        await world.until(lambda: "SwarmTask many-1 exists" in (world.task("many").status.message or ""))
        assert ("MemberBlocked", 1) in world.events("many")
        await world.pass_time(30)
        assert world.task("many-1").metadata.uid == foreign and world.phase("many") == "Running"
        world.engine.script("many-1", Outcome())
        world.kube.remove(SWARM_TASK, "many-1", "default")
        await world.until(lambda: world.phase("many") == "Succeeded")


async def test_an_array_that_takes_the_name_of_one_that_goes_waits_for_its_members() -> None:
    async with running(World("n1")) as world:
        for index in range(3):
            world.engine.script(f"many-{index}", FOR_EVER, Outcome())
        add_array(world, "many", 3)
        await world.until(lambda: len(world.engine.acting()) == 3)
        world.kube.remove(SWARM_TASK, "many", "default")
        add_array(world, "many", 3)
        await world.until(lambda: world.phase("many") == "Succeeded")
        assert len(world.engine.intervals()) == 6
        assert not [reason for reason, _ in world.events("many") if reason == "MemberBlocked"]


@pytest.mark.slow
async def test_a_refusal_of_the_api_is_told_and_tried_again_without_a_storm() -> None:
    async with running(World("n1")) as world:
        world.kube.fail("create", lambda: Forbidden("the quota of the namespace is used up"), kind=SWARM_TASK, times=60)
        add_array(world, "many", 40)
        await world.until(lambda: "quota" in (world.task("many").status.message or ""))
        before = len(created(world))
        await world.pass_time(5)
        assert len(created(world)) == before
        await world.until(lambda: world.phase("many") == "Succeeded")
        assert "quota" not in (world.task("many").status.message or "")


async def test_a_missing_queue_is_told_and_made_good() -> None:
    async with running(World("n1")) as world:
        add_array(world, "many", 3, queue="night")
        await world.until(lambda: "there is no SwarmQueue night" in (world.task("many").status.message or ""))
        assert world.phase("many") == "Pending"
        await world.pass_time(3)
        assert not members(world, "many")
        world.add_queue("night")
        await world.until(lambda: world.phase("many") == "Succeeded")


async def test_the_queue_counts_runs_and_not_the_array() -> None:
    async with running(World("n1")) as world:
        world.add_queue("q", stopped=True)
        add_array(world, "many", 20, parallelism=7, queue="q")

        def counts() -> tuple[int, int, int]:
            status = (world.kube.peek(SWARM_QUEUE, "q", "default") or {}).get("status") or {}
            return status.get("queued", 0), status.get("running", 0), status.get("deadLetters", 0)

        await world.until(lambda: counts() == (7, 0, 0))
        await world.pass_time(3)
        assert counts() == (7, 0, 0) and world.phase("many") == "Queued"


async def test_it_is_deleted_with_its_runs_when_its_time_is_over() -> None:
    async with running(World("n1")) as world:
        add_array(world, "many", 4, ttlSecondsAfterFinished=5)
        await world.until(lambda: world.phase("many") == "Succeeded")
        await world.pass_time(3)
        assert not world.gone("many") and len(members(world, "many")) == 4, "the runs do not go before it"
        await world.until(lambda: not world.kube.all(SWARM_TASK) and not world.engine.names())


async def test_a_time_to_live_of_nothing_loses_no_index() -> None:
    async with running(World("n1")) as world:
        add_array(world, "many", 10, parallelism=3, ttlSecondsAfterFinished=0)
        await world.until(lambda: world.gone("many") and not world.kube.all(SWARM_TASK))
        assert len(world.engine.intervals()) == 10


async def test_a_run_that_expires_in_the_queue_is_a_failed_index() -> None:
    async with running(World("n1")) as world:
        world.add_queue("q", stopped=True)
        add_array(world, "many", 3, queue="q", queueDeadlineSeconds=5)
        await world.until(lambda: world.phase("many") == "Failed")
        assert record(world, "many").failures[0].startswith("0: Expired: not started within 5s")


async def test_a_late_create_of_a_recorded_index_never_starts() -> None:
    async with running(World("n1", keep_array_members=0)) as world:
        world.engine.script("many-1", FOR_EVER)
        add_array(world, "many", 2)
        await world.until(lambda: record_is(world, "many", completed_indexes="0"))
        await world.until(lambda: world.gone("many-0"))
        body = next(call.body for call in world.kube.calls if call.verb == "create" and call.name == "many-0")
        world.kube.add(SWARM_TASK, body)
        await world.until(lambda: world.gone("many-0"))
        assert len(world.engine.intervals()) == 2


async def test_what_was_done_while_the_operator_was_down_is_made_good() -> None:
    async with running(World("n1")) as world:
        for index in range(4):
            world.engine.script(f"many-{index}", Outcome(duration_s=3))
        add_array(world, "many", 8, parallelism=4)
        await world.until(lambda: len(world.engine.acting()) == 4)
        await world.stop()
        await world.pass_time(20)
        await world.start()
        await world.until(lambda: world.phase("many") == "Succeeded")
        assert len(world.engine.intervals()) == 8


@pytest.mark.slow
async def test_lost_answers_and_failing_calls_lose_and_repeat_nothing() -> None:
    async with running(World("n1", "n2")) as world:
        for verb in ("create", "patch", "delete"):
            for after in (True, False):
                world.kube.fail(verb, kind=SWARM_TASK, skip=7, times=5, after=after)
        add_array(world, "many", 40, parallelism=10)
        await world.until(lambda: world.phase("many") == "Succeeded", 300)
        assert len(world.engine.intervals()) == 40


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
async def test_a_crash_anywhere_loses_and_repeats_no_index(seed: int) -> None:
    rng = random.Random(seed)
    async with running(World("n1", "n2", seed=seed, keep_array_members=2)) as world:
        for index in range(50):
            outcome = FAILS if index % 9 == 4 else Outcome(duration_s=rng.uniform(0.2, 4))
            world.engine.script(f"many-{index}", outcome)
        add_array(world, "many", 50, parallelism=12, backoffLimit=0)
        for _ in range(8):
            await world.pass_time(rng.uniform(0.05, 2.0))
            await world.crash()
            await world.start(wait=False)
        await world.until(lambda: world.phase("many") == "Failed", 300)
        done = record(world, "many")
        assert (done.succeeded, done.failed_indexes) == (44, "4,13,22,31,40,49")
        assert len(world.engine.intervals()) == 50


@pytest.mark.slow
async def test_many_runs_are_few_writes_of_the_array() -> None:
    async with running(World(*(f"n{number}" for number in range(4)), keep_array_members=5)) as world:
        add_array(world, "many", 300, parallelism=100)
        await world.until(lambda: world.phase("many") == "Succeeded", 900)
        began, ended = world.task("many").status.start_time, world.task("many").status.completion_time
        assert began is not None and ended is not None
        writes = [call for call in world.kube.calls if call.name == "many" and call.verb == "patch"]
        assert len(writes) <= (ended - began).total_seconds() + 10
        assert len(world.engine.intervals()) == 300
        await world.until(lambda: len(world.kube.all(SWARM_TASK)) == 6)
