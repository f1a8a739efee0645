"""The checker finds what it is for: every invariant is broken on purpose, and a clean history is not accused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from swarmtask.lifecycle.intervals import parse
from swarmtask.resources.task import attempt_id
from tests.checker.checker import Checker

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
UID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
ARRAY_UID = "aaaaaaaa-4b5a-6978-8796-a5b4c3d2e1f0"


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def stamp(seconds: float) -> str:
    return at(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def attempt(number: int, state: str, *, uid: str = UID, **fields: Any) -> dict[str, Any]:
    known = {"number": number, "id": attempt_id(uid, number), "node": "laptop-1", "engine": "swarm", "state": state}
    return {**known, "requested": {"cpu": "1", "memory": "1Gi"}, "boundAt": stamp(0), **fields}


def task(
    phase: str, *attempts: dict[str, Any], uid: str = UID, name: str = "lint", version: str = "", **status: Any
) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "team", "uid": uid, "resourceVersion": version}
    number = attempts[-1]["number"] if attempts else 0
    return {
        "metadata": metadata,
        "spec": {"container": {"image": "lint:1"}, "ttlSecondsAfterFinished": 100},
        "status": {"phase": phase, "attempt": number, "attempts": list(attempts), **status},
    }


def deleting(obj: dict[str, Any]) -> dict[str, Any]:
    return {**obj, "metadata": {**obj["metadata"], "deletionTimestamp": stamp(0)}}


def node(*, cpu: str = "2", memory: str = "2Gi", gpu: int = 0, max_tasks: int | None = None, tasks: int = 0) -> dict[str, Any]:
    return {
        "metadata": {"name": "laptop-1"},
        "spec": {"maxTasks": max_tasks},
        "status": {"allocatable": {"cpu": cpu, "memory": memory, "gpu": gpu}, "tasks": tasks},
    }


RUNNING = task("Running", attempt(1, "Running"))
DONE = task("Succeeded", attempt(1, "Succeeded", reason="Completed", exitCode=0), completionTime=stamp(10))
LOST = attempt(1, "Failed", reason="NodeLost")
ERROR = attempt(1, "Failed", reason="Error", exitCode=1)


def found(checker: Checker) -> set[str]:
    return {violation.invariant for violation in checker.violations()}


def test_a_clean_history_is_not_accused() -> None:
    checker = Checker()
    checker.node_seen(node(), at(0))
    checker.acknowledged_create("team", "lint", UID, at(0))
    checker.write_acknowledged(10, at(0))
    checker.watch_opened("operator", 9, at(0))
    checker.watch_event("operator", 10, at(0))
    checker.foreign_listed("swarm", {"portainer": "id1"}, at(0))
    checker.task_seen(task("Queued", version="10"), at(0))
    checker.task_seen(task("Starting", attempt(1, "Starting"), version="11"), at(1))
    checker.container_started("laptop-1", attempt_id(UID, 1), at(2))
    checker.task_seen(task("Backoff", LOST, version="12", infrastructureLosses=1), at(3))
    checker.container_stopped("laptop-1", attempt_id(UID, 1), at(4))
    checker.task_seen(task("Running", LOST, attempt(2, "Running"), version="13", infrastructureLosses=1), at(5))
    checker.container_started("laptop-2", attempt_id(UID, 2), at(4))
    checker.engine_listed("swarm", [attempt_id(UID, 1), attempt_id(UID, 2)], at(6))
    assert checker.unfinished() == ["team/lint Running"]
    checker.container_stopped("laptop-2", attempt_id(UID, 2), at(7))
    done = attempt(2, "Succeeded", reason="Completed")
    checker.task_seen(task("Succeeded", LOST, done, version="14", infrastructureLosses=1, completionTime=stamp(8)), at(8))
    checker.tasks_listed([], at(110))
    checker.task_deleted(UID, at(110))
    checker.engine_listed("swarm", [], at(180))
    checker.foreign_listed("swarm", {"portainer": "id1"}, at(180))
    checker.node_seen(node(), at(200))
    checker.assert_ok()
    assert checker.unfinished() == []


def _never_seen(checker: Checker) -> None:
    checker.acknowledged_create("team", "lint", UID, at(0))
    checker.tasks_listed([], at(1))


def _disappears(checker: Checker) -> None:
    checker.task_seen(RUNNING, at(0))
    checker.tasks_listed([], at(1))


def _deleted_by_nobody(checker: Checker) -> None:
    checker.task_seen(task("Queued"), at(0))
    checker.task_deleted(UID, at(1))


def _deleted_before_its_time(checker: Checker) -> None:
    checker.task_seen(DONE, at(10))
    checker.task_deleted(UID, at(109))


def _two_live(checker: Checker) -> None:
    checker.task_seen(task("Running", attempt(1, "Unknown"), attempt(2, "Running")), at(0))


def _overlap(checker: Checker) -> None:
    checker.task_seen(RUNNING, at(0))
    checker.container_started("laptop-2", attempt_id(UID, 2), at(5))
    checker.container_started("laptop-1", attempt_id(UID, 1), at(0))
    checker.container_stopped("laptop-1", attempt_id(UID, 1), at(6))


def _overlap_with_one_that_never_ended(checker: Checker) -> None:
    checker.container_started("laptop-1", attempt_id(UID, 1), at(0))
    checker.container_started("laptop-2", attempt_id(UID, 2), at(500))


def _runs_twice(checker: Checker) -> None:
    for begin in (0, 10):
        checker.container_started("laptop-1", attempt_id(UID, 1), at(begin))
        checker.container_stopped("laptop-1", attempt_id(UID, 1), at(begin + 5))


def _leaves_terminal(checker: Checker) -> None:
    checker.task_seen(DONE, at(0))
    checker.task_seen(task("Queued", attempt(1, "Succeeded", reason="Completed", exitCode=0)), at(1))


def _changes_terminal(checker: Checker) -> None:
    checker.task_seen(task("Failed", ERROR, failures=1), at(0))
    checker.task_seen(task("Cancelled", ERROR, failures=1), at(1))


def _runs_again_after_success(checker: Checker) -> None:
    checker.task_seen(DONE, at(0))
    done = attempt(1, "Succeeded", reason="Completed", exitCode=0)
    checker.task_seen(task("Running", done, attempt(2, "Running"), observedRetry="1"), at(1))


def _terminal_with_live_attempt(checker: Checker) -> None:
    checker.task_seen(task("Cancelled", attempt(1, "Running")), at(0))


def _complete_without_success(checker: Checker) -> None:
    condition = {"type": "Complete", "status": "True", "reason": "Completed", "lastTransitionTime": stamp(0)}
    checker.task_seen(task("Failed", conditions=[condition]), at(0))


def _number_shrinks(checker: Checker) -> None:
    checker.task_seen(task("Running", ERROR, attempt(2, "Running"), failures=1), at(0))
    checker.task_seen(task("Running", attempt(1, "Running")), at(1))


def _wrong_name(checker: Checker) -> None:
    checker.task_seen(task("Running", attempt(1, "Running", id="st-0000000000000000-1")), at(0))


def _number_used_again(checker: Checker) -> None:
    checker.task_seen(task("Queued", attempt(2, "Failed", reason="Error")), at(0))
    checker.task_seen(task("Queued", ERROR, attempt(2, "Failed", reason="Error")), at(1))


def _nameless_container(checker: Checker) -> None:
    checker.container_started("laptop-1", "lint", at(0))


def _final_record_changes(checker: Checker) -> None:
    checker.task_seen(task("Backoff", ERROR, failures=1), at(0))
    late = attempt(1, "Succeeded", reason="Completed", exitCode=0)
    checker.task_seen(task("Backoff", late, failures=1), at(1))


def _older_attempt_is_live(checker: Checker) -> None:
    checker.task_seen(task("Running", attempt(1, "Running"), attempt(2, "Failed", reason="Error")), at(0))


def _live_attempt_moves(checker: Checker) -> None:
    checker.task_seen(RUNNING, at(0))
    checker.task_seen(task("Running", attempt(1, "Running", node="laptop-9")), at(1))


def _left_on_the_engine(checker: Checker) -> None:
    checker.task_seen(deleting(DONE), at(0))
    checker.task_deleted(UID, at(10))
    checker.engine_listed("swarm", [attempt_id(UID, 1)], at(71))


def _gone_while_live(checker: Checker) -> None:
    checker.task_seen(deleting(RUNNING), at(0))
    checker.task_deleted(UID, at(1))


def _reservation_stays(checker: Checker) -> None:
    checker.task_seen(RUNNING, at(0))
    checker.task_seen(DONE, at(10))
    checker.node_seen(node(tasks=1), at(11))
    checker.node_seen(node(tasks=1), at(72))


def _orphan(checker: Checker) -> None:
    for seconds in (0, 61):
        checker.engine_listed("swarm", ["st-ffffffffffffffff-1"], at(seconds))


def _orphan_of_a_known_task(checker: Checker) -> None:
    checker.task_seen(RUNNING, at(0))
    for seconds in (0, 61):
        checker.engine_listed("swarm", [attempt_id(UID, 1), attempt_id(UID, 5)], at(seconds))


def _foreign_removed(checker: Checker) -> None:
    checker.foreign_listed("swarm", {"portainer": "id1"}, at(0))
    checker.foreign_listed("swarm", {}, at(1))


def _foreign_changed(checker: Checker) -> None:
    checker.foreign_listed("swarm", {"portainer": "id1"}, at(0))
    checker.foreign_listed("swarm", {"portainer": "id2"}, at(1))


def _loss_uses_the_budget(checker: Checker) -> None:
    checker.task_seen(RUNNING, at(0))
    checker.task_seen(task("Backoff", LOST, failures=1), at(1))


def _loss_ends_the_task(checker: Checker) -> None:
    checker.task_seen(RUNNING, at(0))
    checker.task_seen(task("Failed", LOST, infrastructureLosses=1), at(1))


def _loss_ends_the_task_that_waits_after_it(checker: Checker) -> None:
    checker.task_seen(RUNNING, at(0))
    checker.task_seen(task("Queued", LOST, infrastructureLosses=1), at(1))
    checker.task_seen(task("Failed", LOST, infrastructureLosses=1, reason="NodeLost"), at(2))


def _one_failure_counts_twice(checker: Checker) -> None:
    checker.task_seen(RUNNING, at(0))
    checker.task_seen(task("Backoff", ERROR, failures=2), at(1))


def _bind_three(checker: Checker) -> None:
    for number in range(3):
        uid = f"{number}{UID[1:]}"
        checker.task_seen(task("Starting", attempt(1, "Starting", uid=uid), uid=uid, name=f"lint-{number}"), at(number))


def _too_much_on_a_node(checker: Checker) -> None:
    checker.node_seen(node(), at(0))
    _bind_three(checker)


def _too_many_on_a_node(checker: Checker) -> None:
    checker.node_seen(node(cpu="64", memory="64Gi", max_tasks=2), at(0))
    _bind_three(checker)


def _too_many_of_a_queue(checker: Checker) -> None:
    checker.queue_seen({"metadata": {"name": "default", "namespace": "team"}, "spec": {"maxRunning": 2}}, at(0))
    _bind_three(checker)


def _too_many_of_a_queue_on_a_node(checker: Checker) -> None:
    checker.queue_seen({"metadata": {"name": "default", "namespace": "team"}, "spec": {"maxRunningPerNode": 2}}, at(0))
    _bind_three(checker)


def _too_many_slots_of_a_limit(checker: Checker) -> None:
    checker.queue_seen({"metadata": {"name": "default", "namespace": "team"}, "spec": {"limits": {"model/x": 2}}}, at(0))
    for number in range(3):
        uid = f"{number}{UID[1:]}"
        live = attempt(1, "Starting", uid=uid) | {"requested": {"limits": {"model/x": 1}}}
        checker.task_seen(task("Starting", live, uid=uid, name=f"lint-{number}"), at(number))


def _too_many_slots_taken_from_another_queue(checker: Checker) -> None:
    for name, slots in (("default", 9), ("night", 2)):
        checker.queue_seen({"metadata": {"name": name, "namespace": name}, "spec": {"limits": {"model/x": slots}}}, at(0))
    for number in range(3):
        uid = f"{number}{UID[1:]}"
        live = attempt(1, "Starting", uid=uid) | {"requested": {"limits": {"model/x": 1}}}
        checker.task_seen(task("Starting", live, uid=uid, name=f"lint-{number}"), at(number))


def _bind_with_gpus(checker: Checker, *given: list[int]) -> None:
    checker.node_seen(node(cpu="64", memory="64Gi", gpu=4), at(0))
    for number, indices in enumerate(given):
        uid = f"{number}{UID[1:]}"
        live = attempt(1, "Starting", uid=uid) | {"requested": {"gpu": 1, "gpuIndices": indices}}
        checker.task_seen(task("Starting", live, uid=uid, name=f"lint-{number}"), at(number))


def _gpu_given_twice(checker: Checker) -> None:
    _bind_with_gpus(checker, [0], [1], [0])


def _gpu_given_twice_under_another_number(checker: Checker) -> None:
    checker.node_seen(node(cpu="64", memory="64Gi", gpu=4), at(0))
    for number in range(2):
        uid = f"{number}{UID[1:]}"
        device = {"index": number, "number": number, "vendor": "nvidia", "uuid": "GPU-a"}
        live = attempt(1, "Starting", uid=uid) | {"requested": {"gpu": 1, "gpuIndices": [number], "gpuDevices": [device]}}
        checker.task_seen(task("Starting", live, uid=uid, name=f"lint-{number}"), at(number))


def _more_gpus_than_asked_for(checker: Checker) -> None:
    _bind_with_gpus(checker, [0, 1])


def _version_shrinks(checker: Checker) -> None:
    checker.resource_version_seen("100", at(0))
    checker.resource_version_seen("99", at(1))


def _object_version_shrinks(checker: Checker) -> None:
    checker.task_seen(task("Queued", version="8"), at(0))
    checker.task_seen(task("Queued", version="7"), at(1))


def _same_version_other_object(checker: Checker) -> None:
    checker.task_seen(task("Queued", version="8"), at(0))
    checker.task_seen(task("Pending", version="8"), at(1))


def _watch_skips(checker: Checker) -> None:
    checker.watch_opened("operator", 5, at(0))
    for version in (6, 7, 8):
        checker.write_acknowledged(version, at(1))
    checker.watch_event("operator", 6, at(2))
    checker.watch_event("operator", 8, at(2))


def _bookmark_passes_a_write(checker: Checker) -> None:
    checker.watch_opened("operator", 5, at(0))
    checker.write_acknowledged(6, at(1))
    checker.watch_event("operator", 6, at(2), bookmark=True)


def _watch_goes_back(checker: Checker) -> None:
    checker.watch_opened("operator", 5, at(0))
    checker.watch_event("operator", 7, at(1))
    checker.watch_event("operator", 6, at(1))


def _comes_back_from_the_dead(checker: Checker) -> None:
    checker.task_seen(deleting(DONE), at(0))
    checker.task_deleted(UID, at(1))
    checker.task_seen(DONE, at(2))


def array(completed: str = "", failed: str = "", *, phase: str = "Running", **fields: Any) -> dict[str, Any]:
    """The array `many` of two runs, one at a time."""
    counts = {"succeeded": len(parse(completed)), "failed": len(parse(failed))} | fields
    shown = task(phase, uid=ARRAY_UID, name="many", array={"completedIndexes": completed, "failedIndexes": failed, **counts})
    shown["spec"] |= {"completions": 2, "parallelism": 1}
    return shown


def run_of(index: int, phase: str, *attempts: dict[str, Any], uid: str = UID) -> dict[str, Any]:
    shown = task(phase, *attempts, uid=uid, name=f"many-{index}")
    owner = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask", "name": "many", "uid": ARRAY_UID, "controller": True}
    shown["metadata"]["ownerReferences"] = [owner]
    return shown


SUCCESS = attempt(1, "Succeeded", reason="Completed", exitCode=0)


def _recorded_without_an_end(checker: Checker) -> None:
    checker.task_seen(run_of(0, "Running", attempt(1, "Running")), at(0))
    checker.task_seen(array("0"), at(1))


def _recorded_otherwise_than_it_ended(checker: Checker) -> None:
    checker.task_seen(run_of(0, "Succeeded", SUCCESS), at(0))
    checker.task_seen(array("", "0"), at(1))


def _recorded_as_both(checker: Checker) -> None:
    checker.task_seen(run_of(0, "Succeeded", SUCCESS), at(0))
    checker.task_seen(array("0", "0"), at(1))


def _a_record_is_taken_back(checker: Checker) -> None:
    checker.task_seen(run_of(0, "Succeeded", SUCCESS), at(0))
    checker.task_seen(array("0"), at(1))
    checker.task_seen(array(), at(2))


def _counts_do_not_add_up(checker: Checker) -> None:
    checker.task_seen(array(succeeded=1), at(0))


def _a_recorded_index_runs_again(checker: Checker) -> None:
    checker.task_seen(run_of(0, "Succeeded", SUCCESS), at(0))
    checker.task_seen(array("0"), at(1))
    checker.task_deleted(UID, at(2))
    other = f"9{UID[1:]}"
    checker.task_seen(run_of(0, "Starting", attempt(1, "Starting", uid=other), uid=other), at(3))


def _an_index_runs_twice_at_once(checker: Checker) -> None:
    for uid in (UID, f"9{UID[1:]}"):
        checker.task_seen(run_of(0, "Starting", attempt(1, "Starting", uid=uid), uid=uid), at(0))


def _more_than_parallelism(checker: Checker) -> None:
    checker.task_seen(array(), at(0))
    for index, uid in enumerate((UID, f"9{UID[1:]}")):
        checker.task_seen(run_of(index, "Starting", attempt(1, "Starting", uid=uid), uid=uid), at(1))


def _succeeded_with_one_missing(checker: Checker) -> None:
    checker.task_seen(run_of(0, "Succeeded", SUCCESS), at(0))
    checker.task_seen(array("0", phase="Succeeded"), at(1))


PLANTED: list[tuple[str, Callable[[Checker], None]]] = [
    ("I1", _never_seen),
    ("I1", _disappears),
    ("I1", _deleted_by_nobody),
    ("I1", _deleted_before_its_time),
    ("I2", _two_live),
    ("I2", _overlap),
    ("I2", _overlap_with_one_that_never_ended),
    ("I2", _runs_twice),
    ("I3", _leaves_terminal),
    ("I3", _changes_terminal),
    ("I3", _runs_again_after_success),
    ("I3", _terminal_with_live_attempt),
    ("I3", _complete_without_success),
    ("I4", _number_shrinks),
    ("I4", _wrong_name),
    ("I4", _number_used_again),
    ("I4", _nameless_container),
    ("I5", _final_record_changes),
    ("I5", _older_attempt_is_live),
    ("I5", _live_attempt_moves),
    ("I6", _left_on_the_engine),
    ("I6", _gone_while_live),
    ("I6", _reservation_stays),
    ("I7", _orphan),
    ("I7", _orphan_of_a_known_task),
    ("I7", _foreign_removed),
    ("I7", _foreign_changed),
    ("I8", _loss_uses_the_budget),
    ("I8", _loss_ends_the_task),
    ("I8", _loss_ends_the_task_that_waits_after_it),
    ("I8", _one_failure_counts_twice),
    ("I9", _too_much_on_a_node),
    ("I9", _too_many_on_a_node),
    ("I9", _too_many_of_a_queue),
    ("I9", _too_many_of_a_queue_on_a_node),
    ("I9", _too_many_slots_of_a_limit),
    ("I9", _too_many_slots_taken_from_another_queue),
    ("I9", _gpu_given_twice),
    ("I9", _gpu_given_twice_under_another_number),
    ("I9", _more_gpus_than_asked_for),
    ("I3", _recorded_without_an_end),
    ("I3", _recorded_otherwise_than_it_ended),
    ("I3", _recorded_as_both),
    ("I3", _a_record_is_taken_back),
    ("I3", _counts_do_not_add_up),
    ("I3", _a_recorded_index_runs_again),
    ("I2", _an_index_runs_twice_at_once),
    ("I9", _more_than_parallelism),
    ("I1", _succeeded_with_one_missing),
    ("I10", _version_shrinks),
    ("I10", _object_version_shrinks),
    ("I10", _same_version_other_object),
    ("I10", _watch_skips),
    ("I10", _bookmark_passes_a_write),
    ("I10", _watch_goes_back),
    ("I10", _comes_back_from_the_dead),
]


@pytest.mark.parametrize(("invariant", "plant"), PLANTED, ids=[f"{name}{plant.__name__}" for name, plant in PLANTED])
def test_a_planted_violation_is_found(invariant: str, plant: Callable[[Checker], None]) -> None:
    checker = Checker()
    plant(checker)
    assert invariant in found(checker)
    with pytest.raises(AssertionError, match=rf"(?m)^{invariant} .+ at 2026-"):
        checker.assert_ok()


def test_every_invariant_is_planted() -> None:
    assert {invariant for invariant, _ in PLANTED} == {f"I{number}" for number in range(1, 11)}


def test_what_is_within_its_time_is_not_accused() -> None:
    checker = Checker()
    checker.task_seen(deleting(DONE), at(0))
    checker.task_deleted(UID, at(10))
    checker.engine_listed("swarm", [attempt_id(UID, 1), "st-ffffffffffffffff-1"], at(70))
    checker.engine_listed("swarm", [], at(71))
    checker.engine_listed("swarm", ["st-ffffffffffffffff-1"], at(140))
    checker.assert_ok()


def test_single_gpus_that_differ_or_are_not_recorded_break_nothing() -> None:
    checker = Checker()
    _bind_with_gpus(checker, [0], [1], [], [])
    checker.assert_ok()


def test_a_node_that_shrinks_under_what_runs_breaks_nothing() -> None:
    checker = Checker()
    checker.node_seen(node(), at(0))
    checker.task_seen(RUNNING, at(1))
    checker.node_seen(node(cpu="500m", max_tasks=0), at(2))
    checker.task_seen(task("Running", attempt(1, "Running", startedAt=stamp(3))), at(3))
    checker.assert_ok()


def test_a_retry_by_a_person_may_leave_a_terminal_phase() -> None:
    checker = Checker()
    checker.task_seen(task("Failed", ERROR, failures=1), at(0))
    checker.task_seen(task("Queued", ERROR, observedRetry="1"), at(1))
    checker.assert_ok()


def test_a_deletion_that_was_asked_for_is_not_a_loss() -> None:
    checker = Checker()
    checker.acknowledged_create("team", "lint", UID, at(0))
    checker.delete_requested(UID, at(1))
    checker.tasks_listed([], at(2))
    checker.task_deleted(UID, at(2))
    checker.assert_ok()


def test_an_array_that_records_deletes_and_is_retried_is_not_accused() -> None:
    checker = Checker()
    checker.task_seen(array(), at(0))
    checker.task_seen(run_of(0, "Running", attempt(1, "Running")), at(0))
    checker.task_seen(run_of(0, "Failed", ERROR), at(1))
    checker.task_seen(array("", "0"), at(2))
    checker.task_deleted(UID, at(2))
    uids = [f"{number}{UID[1:]}" for number in (7, 8)]
    done = [attempt(1, "Succeeded", uid=uid, reason="Completed", exitCode=0) for uid in uids]
    checker.task_seen(run_of(1, "Succeeded", done[0], uid=uids[0]), at(3))
    checker.task_seen(array("1", "0", phase="Failed"), at(4))
    retried = array("1")
    retried["status"]["observedRetry"] = "1"
    checker.task_seen(retried, at(5))
    checker.task_seen(run_of(0, "Running", attempt(1, "Running", uid=uids[1]), uid=uids[1]), at(6))
    checker.task_seen(run_of(0, "Succeeded", done[1], uid=uids[1]), at(7))
    ended = array("0-1", phase="Succeeded")
    ended["status"]["observedRetry"] = "1"
    checker.task_seen(ended, at(8))
    checker.assert_ok()


def test_a_violation_is_told_once() -> None:
    checker = Checker()
    for seconds in (0, 1, 2):
        checker.task_seen(task("Cancelled", attempt(1, "Running")), at(seconds))
    assert len(checker.violations()) == 1
