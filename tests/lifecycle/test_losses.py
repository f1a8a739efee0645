"""Nodes that fall silent, come back, or are gone: nothing of it is the task's fault."""

from __future__ import annotations

from datetime import timedelta

from swarmtask.lifecycle.messages import (
    NodeGone,
    Reason,
    Vanished,
)
from swarmtask.lifecycle.messages import WorkloadState as W
from swarmtask.lifecycle.task import Policy
from swarmtask.resources.task import AttemptState, Phase
from tests.lifecycle.story import START, Story


def test_an_unreachable_node_is_announced_once_and_the_run_goes_on() -> None:
    story = Story()
    story.run()
    for _ in range(3):
        story.observe(W.UNKNOWN)
    assert (story.phase, story.current.state) == (Phase.UNKNOWN, AttemptState.UNKNOWN)
    assert story.condition("Running") == ("Unknown", "NodeUnreachable")
    for _ in range(3):
        story.observe(W.RUNNING)
    assert (story.phase, story.current.state) == (Phase.RUNNING, AttemptState.RUNNING)
    assert [reason for reason in story.reasons() if reason.startswith("Node")] == ["NodeUnreachable", "NodeBack"]


def test_an_attempt_that_was_starting_is_starting_again() -> None:
    story = Story()
    story.reconcile()
    story.bind()
    story.observe(W.PREPARING)
    story.observe(W.UNKNOWN)
    assert story.phase is Phase.UNKNOWN
    story.observe(W.PREPARING)
    assert (story.phase, story.current.state) == (Phase.STARTING, AttemptState.STARTING)


def test_work_that_finished_while_the_node_was_away_is_accepted() -> None:
    story = Story()
    story.run()
    story.observe(W.UNKNOWN)
    story.wait(3600)
    story.exit(0, finished_at=START + timedelta(seconds=100))
    assert (story.phase, story.current.finished_at) == (Phase.SUCCEEDED, START + timedelta(seconds=100))


def test_a_lost_node_costs_nothing_of_the_budget() -> None:
    story = Story(backoffLimit=0)
    story.run("laptop-1")
    story.observe(W.UNKNOWN)
    story.tell(NodeGone(1, "laptop-1 left the swarm"))
    assert (story.phase, story.status.failures, story.status.infrastructure_losses) == (Phase.BACKOFF, 0, 1)
    story.wake()
    story.run("laptop-2")
    story.exit(255, reason=Reason.NODE_RESTARTED)
    story.wake()
    story.run("laptop-3")
    story.tell(Vanished(3))
    assert (story.status.failures, story.status.infrastructure_losses) == (0, 3)
    story.wake()
    story.run("laptop-1")
    story.exit(0)
    assert story.phase is Phase.SUCCEEDED


def test_infrastructure_losses_have_their_own_bound() -> None:
    story = Story(Policy(infrastructure_loss_limit=2), backoffLimit=0)
    for number in (1, 2, 3):
        story.run()
        story.tell(Vanished(number))
        if number < 3:
            story.wake()
    assert (story.phase, story.status.reason, story.status.failures) == (Phase.FAILED, "WorkloadLost", 0)
    assert "limit 2" in story.status.message


def test_a_start_that_nobody_could_see_is_not_the_tasks_fault() -> None:
    story = Story(startDeadlineSeconds=60, terminationGracePeriodSeconds=5, backoffLimit=0)
    story.reconcile()
    story.bind()
    story.wake()
    assert story.current.stop_reason == "StartDeadline"
    story.wake()
    assert (story.phase, story.current.reason, story.status.failures) == (Phase.BACKOFF, "WorkloadLost", 0)
    assert "without proof" in story.current.message
