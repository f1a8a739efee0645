"""Clean seeds of every workload; the few for every day, the many for `make test`."""

from __future__ import annotations

import asyncio
import random

import pytest

from swarmtask.controllers import crashpoints
from swarmtask.resources.task import SwarmTask
from tests.simulation import batch
from tests.simulation.batch import Sums, runs
from tests.simulation.chances import KINDS
from tests.simulation.expectations import cut_short, doomed
from tests.simulation.story import simulate
from tests.simulation.workload import Group, Program, draw, load, names, small
from tests.simulation.world import World

FEW = range(30)
MANY = range(FEW.stop, 1000)


def all_clean(seeds: range) -> Sums:
    sums, dirty = Sums(), []
    for seed, workload in runs(seeds):
        result = simulate(seed, workload)
        sums.add(result)
        if result.failures:
            dirty.append(f"{result.failures[0]}\n  replay: {result.replay}")
    told = "\n".join(dirty)
    assert not dirty, f"{len(dirty)} of {len(seeds)} runs were not clean:\n{told}"
    return sums


def test_a_few_seeds_run_clean() -> None:
    all_clean(FEW)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_many_seeds_run_clean_and_meet_every_fault_at_every_write() -> None:
    sums = all_clean(MANY)
    assert set(KINDS) <= sums.faults.keys()
    assert set(crashpoints.POINTS) <= sums.died_at.keys()


@pytest.mark.parametrize("workload", names())
def test_every_workload_can_be_read_and_drawn(workload: str) -> None:
    births = draw(load(workload), random.Random(1))
    assert 10 <= sum(max(1, len(birth.members)) for birth in births) <= 60
    assert [birth.at_s for birth in births] == sorted(birth.at_s for birth in births)


@pytest.mark.slow
@pytest.mark.parametrize("workload", names())
def test_what_a_workload_expects_holds_where_nothing_goes_wrong(workload: str) -> None:
    result = simulate(1, workload, scope="calm")
    assert result.failures == ()
    assert result.operators == 1
    assert not result.faults


@pytest.mark.parametrize("workload", names())
def test_a_small_run_has_something_of_every_group(workload: str) -> None:
    plan = load(workload)
    for seed in range(20):
        part = small(plan, random.Random(seed))
        assert len(part.tasks) == len(plan.tasks)
        assert all(1 <= few.count <= many.count for few, many in zip(part.tasks, plan.tasks, strict=True))
        assert 1 <= sum(group.count for group in part.nodes) <= sum(group.count for group in plan.nodes)
        assert part.chaos_s <= plan.chaos_s


@pytest.mark.parametrize(
    ("program", "limit", "dies"),
    [
        ("good", 0, False), ("bad", 3, True), ("flaky", 0, True), ("flaky", 1, False), ("oom", 0, True), ("no_image", 1, False),
        ("refused", 0, True), ("endless", 2, True), ("stuck", 1, False), ("stubborn", 0, False),
    ],
)  # fmt: skip
def test_what_dies_is_known_from_the_program(program: Program, limit: int, dies: bool) -> None:
    group = Group(count=1, programs={program: 1.0}, spec={"backoffLimit": limit})
    (birth,) = draw(load("steady").model_copy(update={"tasks": [group]}), random.Random(1))
    assert doomed(birth) is dies


def attempt(number: int, state: str, stop_reason: str | None = None) -> dict[str, object]:
    return {
        "number": number, "id": f"st-{number}", "node": "n1", "engine": "swarm", "engineNodeId": "n1", "requested": {},
        "boundAt": "2026-01-01T00:00:00Z", "state": state, "stopReason": stop_reason,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("attempts", "submitted", "dies"),
    [
        ([attempt(1, "Failed")], ["st-1"], True),
        ([attempt(1, "Stopped", "Preempted"), attempt(2, "Succeeded")], ["st-1", "st-2"], False),
        ([attempt(1, "Stopped", "Preempted"), attempt(2, "Succeeded")], ["st-1", "st-1", "st-2"], False),
        ([attempt(1, "Stopped", "Preempted"), attempt(2, "Failed")], ["st-2"], True),  # stopped before it took its turn
        ([attempt(1, "Stopped", "Suspended"), attempt(2, "Failed")], ["st-1", "st-2"], True),
        ([attempt(2, "Failed")], ["st-1", "st-2"], None),
    ],
)  # fmt: skip
def test_a_turn_that_was_cut_short_to_make_room_does_not_count(
    attempts: list[dict[str, object]], submitted: list[str], dies: bool | None
) -> None:
    """A program that fails in its first turn only, and may not."""
    group = Group(count=1, programs={"flaky": 1.0}, spec={"backoffLimit": 0})
    (birth,) = draw(load("steady").model_copy(update={"tasks": [group]}), random.Random(1))
    task = SwarmTask.model_validate(
        {"metadata": {"name": birth.name}, "spec": birth.spec, "status": {"attempts": attempts, "attempt": attempts[-1]["number"]}}
    )
    cut = cut_short(task, submitted)
    assert (None if cut is None else doomed(birth, cut)) is dies


@pytest.mark.slow
def test_the_command_replays_the_scope_that_was_asked_for() -> None:
    assert simulate(1, "giant", scope="calm").replay.endswith("--seed 1 --workload giant --scope calm")
    assert simulate(1, "giant").replay.endswith("--seed 1 --workload giant")


def test_a_run_that_goes_round_within_one_step_is_told_as_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def circling(_world: World, _name: str) -> None:
        while True:
            pass

    with monkeypatch.context() as patch:
        patch.setattr(World, "create_task", circling)
        stopped = batch._one((0, "steady", (), "small"), most_cpu_s=0.2)
    assert stopped.failures == ("BUG the run does not end: still busy after 0.2 s of CPU time",)
    assert stopped.replay == "python -m tests.simulation --seed 0 --workload steady --scope small"
    assert batch._one((0, "steady", (), "small")).failures == (), "the next run of the same process is not the worse for it"


def test_an_operator_that_is_killed_as_the_run_ends_does_not_keep_it_from_ending() -> None:
    def source(purpose: str) -> random.Random:
        return random.Random(f"killed at the end/{purpose}")

    world = World(1, load("steady"), [], source, without=KINDS)

    async def story() -> None:
        world.start_operator()
        await asyncio.sleep(2)
        # The loop stops in the second iteration from here, and nothing that is put onto it in that one is reached any more.
        world.loop.call_soon(lambda: world.loop.call_soon(world.kill_operator, "as the run ends", 60.0))

    world.run(story)
    assert world.operator is None
    assert world.failures == []
    assert world.loop.is_closed()
