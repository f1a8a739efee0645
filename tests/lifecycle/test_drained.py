"""Drained: the attempt ends because a person wants its node empty; the task pays nothing and keeps its place in the queue."""

from __future__ import annotations

from datetime import timedelta

import pytest

from swarmtask.lifecycle.messages import Drain, NodeGone, Preempt, Reason, Stop, SubmitRefused, Vanished
from swarmtask.lifecycle.messages import WorkloadState as W
from swarmtask.lifecycle.task import Policy
from swarmtask.resources.task import ANNOTATION_CANCEL, AttemptState, Phase
from tests.lifecycle.story import Story

NODE = "laptop-1"


def drained(**spec: object) -> Story:
    """A task whose node is being drained while it runs."""
    story = Story(**{"backoffLimit": 0, "terminationGracePeriodSeconds": 5, **spec})
    story.run()
    story.wait(60)
    story.tell(Drain(1, NODE))
    return story


def test_it_is_stopped_with_its_grace_and_queued_at_once_in_its_old_place() -> None:
    story = Story(backoffLimit=0, terminationGracePeriodSeconds=5)
    story.reconcile()
    queued_at = story.status.queued_time
    story.wait(30)
    story.run()
    story.wait(60)
    story.tell(Drain(1, NODE))
    assert (story.phase, story.current.state, story.status.reason) == (Phase.RUNNING, AttemptState.STOPPING, "Drained")
    assert story.status.message == "stopping attempt 1 on laptop-1: laptop-1 is being drained"
    assert Stop(story.current, 5) in story.commands()
    story.wait(3)
    story.exit(143, message="task: non-zero exit (143)")
    assert (story.phase, story.status.reason, story.status.not_before) == (Phase.QUEUED, None, None)
    assert story.status.queued_time == queued_at, "it keeps its place"
    attempt = story.current
    assert (attempt.state, attempt.reason, attempt.exit_code) == (AttemptState.STOPPED, "Drained", 143)
    assert attempt.message == "laptop-1 is being drained: task: non-zero exit (143)"
    story.run("laptop-2")
    story.exit(0)
    assert (story.phase, story.status.attempt) == (Phase.SUCCEEDED, 2)


def test_no_budget_bounds_it() -> None:
    story = Story(Policy(infrastructure_loss_limit=0), backoffLimit=0)
    for number in range(1, 30):
        story.run()
        story.tell(Drain(number, NODE))
        story.exit(1)
        assert story.phase is Phase.QUEUED
    assert (story.status.failures, story.status.infrastructure_losses) == (0, 0)


def test_a_failure_policy_does_not_speak_of_it() -> None:
    story = drained(failurePolicy=[{"onExitCodes": [143], "action": "Fail"}])
    story.exit(143)
    assert story.phase is Phase.QUEUED


def test_work_that_was_done_before_the_stop_is_kept() -> None:
    story = drained()
    story.exit(0, finished_at=story.now - timedelta(seconds=20))
    assert story.phase is Phase.SUCCEEDED


def test_a_polite_end_after_the_stop_is_no_success() -> None:
    story = drained()
    story.wait(1)
    story.exit(0, finished_at=story.now)
    assert (story.phase, story.current.reason) == (Phase.QUEUED, "Drained")


def test_a_node_that_does_not_answer_is_left_to_node_loss() -> None:
    story = Story()
    story.run()
    story.observe(W.UNKNOWN)
    assert not story.tell(Drain(1, NODE)).changed
    assert (story.phase, story.current.state) == (Phase.UNKNOWN, AttemptState.UNKNOWN)
    story.observe(W.RUNNING)
    story.tell(Drain(1, NODE))
    assert story.current.stop_reason == "Drained"


@pytest.mark.parametrize(
    ("wish", "end"),
    [
        ("suspend", (Phase.PENDING, "Suspended")),
        ("cancel", (Phase.CANCELLED, "Cancelled")),
        ("delete", (Phase.CANCELLED, "Deleted")),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_a_wish_wins_whether_it_comes_before_or_during_the_stop(wish: str, end: tuple[Phase, str], before: bool) -> None:
    story = Story() if before else drained()
    if before:
        story.run()
    if wish == "suspend":
        story.edit(suspend=True)
    elif wish == "cancel":
        story.annotate(ANNOTATION_CANCEL, "x")
    else:
        story.delete()
    if before:
        story.tell(Drain(1, NODE))
        assert story.current.stop_reason == end[1]
    story.reconcile()
    story.exit(143)
    assert (story.phase, story.status.reason) == end


def test_who_was_stopped_first_keeps_that_reason() -> None:
    story = drained()
    assert not story.tell(Preempt(1, ("team", "urgent"))).changed
    story.exit(143)
    assert (story.current.reason, story.status.infrastructure_losses) == ("Drained", 0)


@pytest.mark.parametrize("loss", [NodeGone(1, "left"), Vanished(1)])
def test_a_loss_during_the_stop_is_the_end_of_the_stop(loss: NodeGone | Vanished) -> None:
    story = drained()
    story.tell(loss)
    assert (story.phase, story.current.reason, story.status.infrastructure_losses) == (Phase.QUEUED, "Drained", 0)


def test_a_refused_submit_ends_the_stop() -> None:
    story = Story()
    story.reconcile()
    story.bind()
    story.tell(Drain(1, NODE))
    story.tell(SubmitRefused(1, Reason.ENGINE_REJECTED, "no"))
    assert (story.phase, story.current.reason, story.status.failures) == (Phase.QUEUED, "Drained", 0)


def test_late_repeated_and_foreign_ones_change_nothing() -> None:
    story = drained()
    assert not story.tell(Drain(1, NODE)).changed
    story.exit(143)
    assert not story.tell(Drain(1, NODE)).changed
    story.run("laptop-2")
    assert not story.tell(Drain(1, NODE)).changed
    assert not story.tell(Drain(3, NODE)).changed
    assert (story.phase, story.current.number) == (Phase.RUNNING, 2)
