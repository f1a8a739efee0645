"""AttemptDeleted: a person ended an attempt; the task pays nothing and keeps its place in the queue."""

from __future__ import annotations

from swarmtask.lifecycle.messages import Reason, Stop
from swarmtask.lifecycle.messages import WorkloadState as W
from swarmtask.lifecycle.task import Policy
from swarmtask.resources.ended import ANNOTATION_END
from swarmtask.resources.task import ANNOTATION_CANCEL, AttemptState, Phase
from tests.lifecycle.story import Story


def end(story: Story, value: str) -> None:
    story.annotate(ANNOTATION_END, value)
    story.reconcile()


def test_the_named_attempt_is_stopped_with_its_grace_and_the_task_queued_in_its_old_place() -> None:
    story = Story(Policy(infrastructure_loss_limit=0), backoffLimit=0, terminationGracePeriodSeconds=5)
    story.reconcile()
    queued_at = story.status.queued_time
    story.wait(30)
    story.run()
    end(story, "1@2026-03-01T12:01:00Z")
    assert (story.phase, story.current.state) == (Phase.RUNNING, AttemptState.STOPPING)
    assert story.current.stop_reason == Reason.ATTEMPT_DELETED
    assert Stop(story.current, 5) in story.commands()
    story.exit(143)
    assert (story.phase, story.current.state, story.current.reason) == (Phase.QUEUED, AttemptState.STOPPED, "AttemptDeleted")
    assert (story.status.failures, story.status.infrastructure_losses) == (0, 0)
    assert story.status.queued_time == queued_at
    story.run()
    assert (story.phase, story.status.attempt) == (Phase.RUNNING, 2), "the next attempt is another one"
    story.exit(0)
    assert story.phase is Phase.SUCCEEDED


def test_one_that_only_starts_is_stopped_too() -> None:
    story = Story()
    story.reconcile()
    story.bind()
    end(story, "1")
    assert (story.phase, story.current.state) == (Phase.STARTING, AttemptState.STOPPING)


def test_others_and_nonsense_are_not_meant() -> None:
    story = Story()
    story.run()
    end(story, "2,11,one,,")
    assert (story.phase, story.current.state) == (Phase.RUNNING, AttemptState.RUNNING)


def test_a_node_that_does_not_answer_is_asked_when_it_is_back() -> None:
    story = Story()
    story.run()
    story.observe(W.UNKNOWN)
    end(story, "1")
    assert (story.phase, story.current.stop_reason) == (Phase.UNKNOWN, None)
    story.observe(W.RUNNING)
    assert (story.phase, story.current.stop_reason) == (Phase.RUNNING, "AttemptDeleted")


def test_a_cancel_wins() -> None:
    story = Story()
    story.run()
    end(story, "1")
    story.annotate(ANNOTATION_CANCEL, "wrong branch")
    story.reconcile()
    assert story.current.stop_reason == "Cancelled"
    story.exit(143)
    assert story.phase is Phase.CANCELLED


def test_a_deadline_that_passes_during_the_stop_is_not_held_against_the_task() -> None:
    story = Story(activeDeadlineSeconds=60, backoffLimit=0)
    story.run()
    end(story, "1")
    story.wait(120)
    story.reconcile()
    story.exit(143)
    assert (story.phase, story.current.reason) == (Phase.QUEUED, "AttemptDeleted")


def test_what_is_over_stays_as_it_is() -> None:
    story = Story()
    story.run()
    story.exit(0)
    end(story, "1")
    assert (story.phase, story.current.state) == (Phase.SUCCEEDED, AttemptState.SUCCEEDED)
