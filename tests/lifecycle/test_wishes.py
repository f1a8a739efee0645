"""What people ask for: cancel, suspend, resume, delete, and a queue that does not exist."""

from __future__ import annotations

from datetime import timedelta

import pytest

from swarmtask.lifecycle.messages import (
    Remove,
    Stop,
)
from swarmtask.lifecycle.messages import WorkloadState as W
from swarmtask.resources.task import ANNOTATION_CANCEL, ANNOTATION_RETRY, AttemptState, Phase
from tests.lifecycle.story import START, Story


def test_cancel_in_the_queue_is_immediate() -> None:
    story = Story()
    story.reconcile()
    story.annotate(ANNOTATION_CANCEL, "by anna")
    story.reconcile()
    assert (story.phase, story.status.reason) == (Phase.CANCELLED, "Cancelled")
    assert story.condition("Failed") == ("True", "Cancelled")
    assert "by anna" in story.status.message


def test_cancel_stops_the_container_first() -> None:
    story = Story(terminationGracePeriodSeconds=30)
    story.run()
    story.annotate(ANNOTATION_CANCEL, "")
    story.reconcile()
    assert (story.phase, story.current.state) == (Phase.RUNNING, AttemptState.STOPPING)
    assert story.commands() == (Stop(story.current, 30),)
    story.observe(W.RUNNING)
    assert story.current.state is AttemptState.STOPPING
    story.wait(2)
    story.exit(143)
    assert (story.phase, story.current.state, story.current.exit_code) == (Phase.CANCELLED, AttemptState.STOPPED, 143)
    assert story.status.failures == 0


def test_a_graceful_exit_after_a_cancel_is_a_cancel() -> None:
    story = Story()
    story.run()
    story.annotate(ANNOTATION_CANCEL, "x")
    story.reconcile()
    story.exit(0)
    assert (story.phase, story.current.exit_code) == (Phase.CANCELLED, 0)


@pytest.mark.parametrize("wish", ["cancel", "suspend", "delete"])
def test_work_that_was_done_before_the_stop_is_kept(wish: str) -> None:
    story = Story()
    story.run()
    story.observe(W.UNKNOWN)
    story.wait(60)
    if wish == "cancel":
        story.annotate(ANNOTATION_CANCEL, "x")
    elif wish == "delete":
        story.delete()
    else:
        story.edit(suspend=True)
    story.reconcile()
    story.wait(5)
    story.exit(0, finished_at=START + timedelta(seconds=30))
    assert story.phase is Phase.SUCCEEDED


def test_a_retry_after_a_cancel_is_not_cancelled_by_the_old_annotation() -> None:
    story = Story()
    story.reconcile()
    story.annotate(ANNOTATION_CANCEL, "first")
    story.reconcile()
    story.annotate(ANNOTATION_RETRY, "1")
    story.reconcile()
    assert story.phase is Phase.QUEUED
    story.annotate(ANNOTATION_CANCEL, "second")
    story.reconcile()
    assert story.phase is Phase.CANCELLED
    story.annotate(ANNOTATION_RETRY, "2")
    story.annotate(ANNOTATION_CANCEL, None)
    story.reconcile()
    assert (story.phase, story.status.observed_cancel) == (Phase.QUEUED, None)
    story.annotate(ANNOTATION_CANCEL, "second")
    story.reconcile()
    assert story.phase is Phase.CANCELLED


def test_suspend_and_resume_use_no_budget() -> None:
    story = Story(backoffLimit=0)
    story.run()
    story.edit(suspend=True)
    story.reconcile()
    assert story.current.state is AttemptState.STOPPING
    story.exit(143)
    assert (story.phase, story.status.reason, story.status.failures) == (Phase.PENDING, "Suspended", 0)
    assert story.condition("Admitted") == ("False", "Suspended")
    assert not story.commands()
    story.edit(suspend=False)
    story.reconcile()
    assert story.phase is Phase.QUEUED
    assert "Resumed" in story.reasons()
    story.run("laptop-9")
    story.exit(0)
    assert (story.phase, story.status.attempt) == (Phase.SUCCEEDED, 2)


def test_resume_while_the_stop_is_under_way_queues_again_when_it_has_stopped() -> None:
    story = Story()
    story.run()
    story.edit(suspend=True)
    story.reconcile()
    story.edit(suspend=False)
    story.reconcile()
    assert story.current.state is AttemptState.STOPPING
    story.exit(143)
    assert story.phase is Phase.QUEUED


def test_suspend_does_not_shorten_a_backoff() -> None:
    story = Story(backoff={"initialSeconds": 100})
    story.run()
    story.exit(1)
    story.edit(suspend=True)
    story.reconcile()
    assert story.phase is Phase.PENDING
    story.edit(suspend=False)
    story.reconcile()
    assert story.phase is Phase.BACKOFF
    story.wake()
    assert (story.phase, story.now) == (Phase.QUEUED, START + timedelta(seconds=100))


def test_a_missing_queue_holds_the_task_until_it_exists() -> None:
    story = Story(queue="gpu")
    story.reconcile(queue_exists=False)
    assert (story.phase, story.status.reason) == (Phase.PENDING, "QueueNotFound")
    assert story.condition("Admitted") == ("False", "QueueNotFound")
    story.bind()
    assert story.phase is Phase.PENDING
    story.reconcile()
    assert (story.phase, story.condition("Admitted")) == (Phase.QUEUED, ("True", "Admitted"))
    story.reconcile(queue_exists=False)
    assert story.phase is Phase.PENDING


def test_a_cancel_on_a_silent_node_ends_after_grace_and_margin() -> None:
    story = Story(terminationGracePeriodSeconds=5)
    story.run()
    story.observe(W.UNKNOWN)
    story.annotate(ANNOTATION_CANCEL, "x")
    story.reconcile()
    assert story.phase is Phase.UNKNOWN
    story.wait(10)
    story.reconcile()
    assert story.phase is Phase.UNKNOWN
    story.wake()
    assert story.phase is Phase.CANCELLED
    assert "does not answer" in story.current.message
    zombie = story.seen(W.RUNNING)
    assert Stop(story.current, 5) in story.commands([zombie])
    story.delete()
    assert Stop(story.current, 5) in story.commands([zombie]), "what is removed is out of sight and still has its grace"
    assert Remove(story.current) in story.commands([story.seen(W.EXITED, exit_code=143)])
    assert Remove(story.current) in story.commands([story.seen(W.UNKNOWN)])


def test_deleting_a_running_task_stops_removes_and_lets_go() -> None:
    story = Story()
    story.run()
    story.delete()
    story.reconcile()
    running = story.seen(W.RUNNING)
    assert [type(command).__name__ for command in story.commands([running])] == ["Stop"]
    story.exit(143)
    assert (story.phase, story.status.reason) == (Phase.CANCELLED, "Deleted")
    exited = story.seen(W.EXITED, exit_code=143)
    assert [type(command).__name__ for command in story.commands([exited])] == ["Remove"]
    assert story.commands(None) == (), "nothing is released before the engine has answered"
    assert [type(command).__name__ for command in story.commands([])] == ["ReleaseFinalizer"]


def test_deleting_a_queued_task_lets_go_at_once() -> None:
    story = Story()
    story.reconcile()
    story.delete()
    story.reconcile()
    assert [type(command).__name__ for command in story.commands(None)] == ["ReleaseFinalizer"]
    story.bind()
    assert story.status.attempt == 0


def test_a_stronger_wish_replaces_a_weaker_one() -> None:
    story = Story()
    story.run()
    story.edit(suspend=True)
    story.reconcile()
    since = story.current.stop_requested_at
    story.wait(2)
    story.annotate(ANNOTATION_CANCEL, "x")
    story.reconcile()
    assert (story.current.stop_reason, story.current.stop_requested_at) == ("Cancelled", since)
    story.delete()
    story.reconcile()
    assert story.current.stop_reason == "Deleted"
    story.exit(143)
    assert (story.phase, story.status.reason) == (Phase.CANCELLED, "Deleted")


def test_a_weaker_wish_does_not_replace_a_stronger_one() -> None:
    story = Story()
    story.run()
    story.annotate(ANNOTATION_CANCEL, "x")
    story.reconcile()
    story.edit(suspend=True)
    story.reconcile()
    assert story.current.stop_reason == "Cancelled"
    story.exit(143)
    assert story.phase is Phase.CANCELLED


def test_a_cancel_ends_a_retry_that_a_deadline_would_have_had() -> None:
    story = Story(activeDeadlineSeconds=10)
    story.run()
    story.wake()
    story.annotate(ANNOTATION_CANCEL, "x")
    story.reconcile()
    story.exit(143)
    assert (story.phase, story.current.reason) == (Phase.CANCELLED, "Cancelled")


def test_a_cancel_that_came_too_late_does_not_end_the_retry() -> None:
    story = Story(backoffLimit=0)
    story.run()
    story.exit(1)
    story.annotate(ANNOTATION_CANCEL, "too late")
    story.reconcile()
    assert story.phase is Phase.FAILED
    story.annotate(ANNOTATION_RETRY, "1")
    story.reconcile()
    assert story.phase is Phase.QUEUED
