"""Deadlines that pass, and clocks that lie."""

from __future__ import annotations

from datetime import timedelta

from swarmtask.lifecycle.messages import (
    Reason,
    SubmitRefused,
)
from swarmtask.lifecycle.messages import WorkloadState as W
from swarmtask.resources.task import AttemptState, Phase
from tests.lifecycle.story import START, Story


def test_the_start_deadline_stops_first_and_then_fails() -> None:
    story = Story(startDeadlineSeconds=60)
    story.reconcile()
    story.bind()
    story.observe(W.PREPARING, message="pulling ghcr.io/acme/lint:1.4")
    story.wake()
    assert story.now == START + timedelta(seconds=61)
    assert (story.phase, story.current.stop_reason) == (Phase.STARTING, "StartDeadline")
    story.observe(W.STOPPED)
    assert (story.phase, story.status.reason, story.status.failures) == (Phase.BACKOFF, "StartDeadline", 1)
    assert "pulling ghcr.io/acme/lint:1.4" in story.current.message


def test_a_known_pull_failure_is_the_reason_even_when_the_deadline_ends_it() -> None:
    story = Story(startDeadlineSeconds=60)
    story.reconcile()
    story.bind()
    story.observe(W.PREPARING, reason=Reason.IMAGE_PULL_FAILED, message="No such image: acme/lint")
    assert story.status.reason == "ImagePullFailed"
    story.wake()
    story.observe(W.STOPPED)
    assert story.current.reason == "ImagePullFailed"
    assert "No such image: acme/lint" in story.current.message


def test_the_active_deadline() -> None:
    story = Story(activeDeadlineSeconds=3600, backoffLimit=0)
    story.run()
    story.wake()
    assert story.current.stop_reason == "ActiveDeadline"
    story.wait(1)
    story.exit(143)
    assert (story.phase, story.status.reason) == (Phase.FAILED, "ActiveDeadline")


def test_the_queue_deadline_goes_on_while_the_queue_is_missing() -> None:
    """Its user has said how long the task is worth waiting for, whatever it waits for in the line."""
    story = Story(queueDeadlineSeconds=100)
    story.reconcile(queue_exists=False)
    story.wait(50)
    story.reconcile()
    assert (story.phase, story.status.queued_time) == (Phase.QUEUED, START)
    story.wait(10)
    story.reconcile(queue_exists=False)
    assert (story.phase, story.status.queued_time) == (Phase.PENDING, START)
    story.wake()
    assert (story.phase, story.status.reason) == (Phase.EXPIRED, "QueueDeadline")


def test_who_comes_to_a_missing_queue_after_a_backoff_goes_to_its_end() -> None:
    story = Story()
    story.run()
    story.exit(1)
    story.wait(600)
    story.reconcile(queue_exists=False)
    came = story.now
    story.wait(600)
    story.reconcile()
    assert (story.phase, story.status.queued_time) == (Phase.QUEUED, came)


def test_the_queue_deadline_expires_only_what_never_started() -> None:
    story = Story(queueDeadlineSeconds=100)
    story.reconcile()
    story.wait(50)
    story.reconcile()
    assert story.phase is Phase.QUEUED
    story.wake()
    assert (story.phase, story.status.reason) == (Phase.EXPIRED, "QueueDeadline")
    assert story.condition("Failed") == ("True", "QueueDeadline")

    started = Story(queueDeadlineSeconds=100)
    started.run()
    started.exit(1)
    started.wake()
    started.wait(1000)
    started.reconcile()
    assert started.phase is Phase.QUEUED


def test_a_binding_that_comes_after_the_queue_deadline_is_refused() -> None:
    story = Story(queueDeadlineSeconds=10)
    story.reconcile()
    story.wait(20)
    story.bind()
    assert (story.phase, story.status.attempt) == (Phase.EXPIRED, 0)


def test_a_clock_that_goes_backwards() -> None:
    story = Story(backoff={"initialSeconds": 10, "maxSeconds": 60}, activeDeadlineSeconds=100)
    story.wait(86_400)
    story.run()
    story.wait(-86_400)
    story.reconcile()
    assert story.phase is Phase.RUNNING, "no deadline has come"
    story.exit(1, started_at=START, finished_at=START)
    assert story.current.finished_at >= story.current.started_at
    story.wait(-3600)
    story.reconcile()
    assert (story.status.not_before - story.now).total_seconds() <= 61
    story.wait(61)
    story.reconcile()
    assert story.phase is Phase.QUEUED


def test_a_nodes_clock_does_not_bring_a_deadline_forward() -> None:
    story = Story(activeDeadlineSeconds=100)
    story.wait(1000)
    story.reconcile()
    story.bind()
    story.observe(W.RUNNING, started_at=START)
    assert story.current.started_at == story.now
    story.reconcile()
    assert story.current.state is AttemptState.RUNNING


def test_the_time_in_the_queue_goes_on_until_something_has_run() -> None:
    story = Story(queueDeadlineSeconds=100, backoff={"initialSeconds": 10})
    story.reconcile()
    story.bind()
    story.tell(SubmitRefused(1, Reason.SECRET_NOT_FOUND, "no secret"))
    story.wake()
    assert story.status.queued_time == START
    story.wait(10)
    story.run()
    story.exit(1)
    story.wait(1000)
    story.reconcile()
    assert story.phase is Phase.QUEUED
    assert story.status.queued_time == START + timedelta(seconds=1020)


def test_a_suspension_starts_the_time_in_the_queue_anew() -> None:
    story = Story(queueDeadlineSeconds=100)
    story.reconcile()
    story.edit(suspend=True)
    story.reconcile()
    story.wait(1000)
    story.reconcile()
    assert story.phase is Phase.PENDING
    story.edit(suspend=False)
    story.reconcile()
    assert (story.phase, story.status.queued_time) == (Phase.QUEUED, START + timedelta(seconds=1000))
