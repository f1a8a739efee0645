"""Stored times that lie ahead: a clock was set back, and nobody waits longer for it than he would have."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from swarmtask.lifecycle.deadlines import Policy
from swarmtask.lifecycle.messages import Bound, Observation, Observed, Reconcile, WorkloadState
from swarmtask.lifecycle.task import handle
from swarmtask.resources.meta import ObjectMeta
from swarmtask.resources.task import Attempt, AttemptState, Container, Phase, SwarmTask, TaskSpec, attempt_id

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
BACK = NOW - timedelta(hours=1)
UID = "0123456789abcdef-0123"


def running_task(**spec: object) -> SwarmTask:
    task = SwarmTask(
        metadata=ObjectMeta(name="t", namespace="default", uid=UID), spec=TaskSpec(container=Container(image="busybox"), **spec)
    )
    seen = Observation(
        name=attempt_id(UID, 1), engine="swarm", task_uid=UID, namespace="default", task_name="t", attempt=1,
        state=WorkloadState.RUNNING, node_id="n1", started_at=NOW,
    )  # fmt: skip
    for event in (Reconcile(), Bound("n1", "swarm", "n1"), Observed(seen)):
        task = task.model_copy(update={"status": handle(task, event, NOW, Policy()).status})
    assert task.status.phase is Phase.RUNNING
    return task


def later(task: SwarmTask, now: datetime) -> SwarmTask:
    return task.model_copy(update={"status": handle(task, Reconcile(), now, Policy()).status})


def attempt(task: SwarmTask) -> Attempt:
    assert task.status.current is not None
    return task.status.current


def test_an_active_deadline_counts_from_the_moment_at_which_the_clock_was_set_back() -> None:
    task = later(running_task(active_deadline_seconds=60), BACK)
    assert attempt(task).state is AttemptState.RUNNING
    assert attempt(later(task, BACK + timedelta(seconds=59))).state is AttemptState.RUNNING
    assert attempt(later(task, BACK + timedelta(seconds=62))).state is AttemptState.STOPPING


def queued_at(since: datetime) -> SwarmTask:
    task = SwarmTask(
        metadata=ObjectMeta(name="t", namespace="default", uid=UID), spec=TaskSpec(container=Container(image="busybox"))
    )
    return task.model_copy(update={"status": handle(task, Reconcile(), since, Policy()).status})


def test_who_waits_in_a_queue_keeps_the_place_whenever_each_is_looked_at() -> None:
    waits = [NOW - timedelta(seconds=age) for age in (7200, 600, 599.9, 5, 0.002, 0)]
    policy, places = Policy(clock_from=BACK), []
    for late_s, since in enumerate(reversed(waits)):
        task = queued_at(since)
        mended = task.model_copy(update={"status": handle(task, Reconcile(), BACK + timedelta(seconds=late_s), policy).status})
        assert not handle(mended, Reconcile(), BACK + timedelta(seconds=20), policy).changed
        places.append(mended.status.queued_time)
    assert places == sorted(places, reverse=True) and len(set(places)) == len(places)
    assert all(BACK - timedelta(seconds=10) <= place <= BACK for place in places[:-1] if place is not None)


@pytest.mark.parametrize(("ahead_s", "age_s"), [(0.2, 0), (2, 10)])
def test_a_clock_that_was_corrected_a_little_makes_nobody_wait_for_days(ahead_s: float, age_s: float) -> None:
    task = queued_at(NOW + timedelta(seconds=ahead_s))
    task = task.model_copy(update={"spec": task.spec.model_copy(update={"queue_deadline_seconds": 60})})
    policy = Policy(clock_from=NOW - timedelta(days=1))
    for event in (Reconcile(), Bound("n1", "swarm", "n1")):
        status = handle(task, event, NOW, policy).status
        assert status.phase is (Phase.QUEUED if isinstance(event, Reconcile) else Phase.STARTING)
        assert status.queued_time is not None
        assert NOW - timedelta(seconds=age_s) <= status.queued_time <= NOW


def test_times_never_move_forward() -> None:
    task = running_task()
    assert later(task, NOW + timedelta(hours=1)).status == task.status


def test_a_time_to_live_does_not_grow() -> None:
    task = running_task()
    ended = Observation(
        name=attempt_id(UID, 1), engine="swarm", task_uid=UID, namespace="default", task_name="t", attempt=1,
        state=WorkloadState.EXITED, node_id="n1", exit_code=0, finished_at=NOW,
    )  # fmt: skip
    task = task.model_copy(update={"status": handle(task, Observed(ended), NOW, Policy()).status})
    assert task.status.completion_time == NOW
    assert later(task, BACK).status.completion_time == BACK
    assert later(task, BACK).status.phase is Phase.SUCCEEDED
