"""Preempted: the attempt ends for another task's sake, the task pays nothing for it and goes back to where it was in the queue."""

from __future__ import annotations

from datetime import timedelta

import pytest

from swarmtask.lifecycle.messages import NodeGone, Preempt, Reason, Stop, SubmitRefused, Vanished
from swarmtask.lifecycle.messages import WorkloadState as W
from swarmtask.lifecycle.task import Policy
from swarmtask.resources.task import ANNOTATION_CANCEL, AttemptState, Phase
from tests.lifecycle.story import START, Story

BY = ("team", "urgent")


def preempted(**spec: object) -> Story:
    """A task that is being preempted while it runs."""
    story = Story(**{"backoffLimit": 0, "terminationGracePeriodSeconds": 5, **spec})
    story.run()
    story.wait(60)
    story.tell(Preempt(1, BY))
    return story


def test_it_is_stopped_and_queued_at_once_in_its_old_place() -> None:
    story = Story(backoffLimit=0, terminationGracePeriodSeconds=5)
    story.reconcile()
    queued_at = story.status.queued_time
    story.wait(30)
    story.run()
    story.wait(60)
    transition = story.tell(Preempt(1, BY))
    assert (story.phase, story.current.state, story.status.reason) == (Phase.RUNNING, AttemptState.STOPPING, "Preempted")
    assert "team/urgent" in story.status.message
    warnings = [told for told in transition.announcements if told.type == "Warning"]
    assert [(told.reason, told.message) for told in warnings] == [
        ("Preempted", "Preempted by team/urgent: attempt 1 on laptop-1 is stopped")
    ]
    assert Stop(story.current, 5) in story.commands()
    story.wait(3)
    story.exit(143, message="task: non-zero exit (143)")
    assert (story.phase, story.status.reason, story.status.not_before) == (Phase.QUEUED, None, None)
    assert story.status.queued_time == queued_at, "it keeps its place"
    assert (story.status.failures, story.status.infrastructure_losses) == (0, 1)
    attempt = story.current
    assert (attempt.state, attempt.reason, attempt.exit_code) == (AttemptState.STOPPED, "Preempted", 143)
    assert attempt.message == "preempted by team/urgent: task: non-zero exit (143)"
    story.run("laptop-2")
    story.exit(0)
    assert (story.phase, story.status.attempt) == (Phase.SUCCEEDED, 2)


def test_having_started_it_does_not_expire_in_the_queue() -> None:
    story = preempted(queueDeadlineSeconds=70)
    story.exit(143)
    story.wait(100_000)
    story.reconcile()
    assert story.phase is Phase.QUEUED


def test_before_it_ran_its_queue_deadline_still_counts() -> None:
    story = Story(queueDeadlineSeconds=70)
    story.reconcile()
    story.bind()
    story.tell(Preempt(1, BY))
    story.observe(W.STOPPED)
    assert story.phase is Phase.QUEUED
    story.wake()
    assert (story.phase, story.now - START) == (Phase.EXPIRED, timedelta(seconds=71))


def test_preemptions_have_the_bound_of_the_infrastructure() -> None:
    story = Story(Policy(infrastructure_loss_limit=2), backoffLimit=0)
    for number in (1, 2, 3):
        story.run()
        story.tell(Preempt(number, BY))
        story.exit(143)
    assert (story.phase, story.status.reason, story.status.failures) == (Phase.FAILED, "Preempted", 0)
    assert "lost 3 attempts through no fault of the task (limit 2)" in story.status.message
    assert story.status.message.count("team/urgent") == 1


def test_a_person_may_rule_otherwise() -> None:
    story = preempted(failurePolicy=[{"onReasons": ["Preempted"], "action": "Fail"}])
    story.exit(143)
    assert (story.phase, story.status.reason) == (Phase.FAILED, "Preempted")
    assert story.status.message.endswith("failurePolicy rule 1")


def test_work_that_was_done_before_the_stop_is_kept() -> None:
    story = preempted()
    story.exit(0, finished_at=story.now - timedelta(seconds=20))
    assert story.phase is Phase.SUCCEEDED


def test_a_polite_end_after_the_stop_is_no_success() -> None:
    story = preempted()
    story.wait(1)
    story.exit(0, finished_at=story.now)
    assert (story.phase, story.current.reason) == (Phase.QUEUED, "Preempted")


@pytest.mark.parametrize(
    ("wish", "end"),
    [
        ("suspend", (Phase.PENDING, "Suspended")),
        ("cancel", (Phase.CANCELLED, "Cancelled")),
        ("delete", (Phase.CANCELLED, "Deleted")),
    ],
)
def test_a_wish_during_the_stop_wins(wish: str, end: tuple[Phase, str]) -> None:
    story = preempted()
    if wish == "suspend":
        story.edit(suspend=True)
    elif wish == "cancel":
        story.annotate(ANNOTATION_CANCEL, "x")
    else:
        story.delete()
    story.reconcile()
    story.exit(143)
    assert (story.phase, story.status.reason) == end
    assert story.status.infrastructure_losses == 0


@pytest.mark.parametrize("wish", ["suspend", "cancel", "delete"])
def test_a_wish_before_it_wins_too(wish: str) -> None:
    story = Story()
    story.run()
    if wish == "suspend":
        story.edit(suspend=True)
    elif wish == "cancel":
        story.annotate(ANNOTATION_CANCEL, "x")
    else:
        story.delete()
    story.tell(Preempt(1, BY))
    assert story.current.stop_reason in {"Suspended", "Cancelled", "Deleted"}
    assert "Preempted" not in story.reasons()


@pytest.mark.parametrize("loss", [NodeGone(1, "left"), Vanished(1)])
def test_a_loss_during_the_stop_is_the_end_of_the_stop(loss: NodeGone | Vanished) -> None:
    story = preempted()
    story.tell(loss)
    assert (story.phase, story.current.reason, story.status.infrastructure_losses) == (Phase.QUEUED, "Preempted", 1)


def test_a_refused_submit_ends_the_stop() -> None:
    story = Story()
    story.reconcile()
    story.bind()
    story.tell(Preempt(1, BY))
    story.tell(SubmitRefused(1, Reason.ENGINE_REJECTED, "no"))
    assert (story.phase, story.current.reason, story.status.failures) == (Phase.QUEUED, "Preempted", 0)
    assert story.current.message == "preempted by team/urgent: no"


def test_on_a_silent_node_it_counts_as_stopped_after_a_while() -> None:
    story = Story(Policy(stop_margin_s=10), terminationGracePeriodSeconds=5)
    story.run()
    story.observe(W.UNKNOWN)
    story.tell(Preempt(1, BY))
    assert (story.phase, story.current.state) == (Phase.UNKNOWN, AttemptState.STOPPING)
    story.wait(15)
    story.reconcile()
    assert story.phase is Phase.UNKNOWN
    story.wake()
    assert (story.phase, story.current.reason) == (Phase.QUEUED, "Preempted")
    assert story.current.message == "preempted by team/urgent: counted as stopped without proof: laptop-1 does not answer"


def test_who_it_was_for_is_kept_while_it_is_seen_stopping() -> None:
    story = Story()
    story.reconcile()
    story.bind()
    story.tell(Preempt(1, BY))
    story.observe(W.PREPARING, message="pulling")
    story.observe(W.RUNNING)
    story.exit(143)
    assert story.current.message == "preempted by team/urgent"


def test_repeated_late_and_foreign_ones_change_nothing() -> None:
    story = preempted()
    assert not story.tell(Preempt(1, ("team", "other"))).changed
    story.exit(143)
    assert not story.tell(Preempt(1, BY)).changed
    story.run("laptop-2")
    assert not story.tell(Preempt(1, BY)).changed
    assert not story.tell(Preempt(3, BY)).changed
    assert (story.phase, story.current.number) == (Phase.RUNNING, 2)
    story.exit(0)
    assert not story.tell(Preempt(2, BY)).changed
    waiting = Story()
    waiting.reconcile()
    assert not waiting.tell(Preempt(0, BY)).changed
