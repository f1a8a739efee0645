"""The plain life of a task, and reports that must not disturb it."""

from __future__ import annotations

from datetime import timedelta

from swarmtask.lifecycle.messages import (
    InvalidObject,
    NodeGone,
    Observation,
    Observed,
    Submit,
    Unplaced,
    Vanished,
)
from swarmtask.lifecycle.messages import WorkloadState as W
from swarmtask.resources.task import Phase, attempt_id
from tests.lifecycle.story import START, UID, Story


def test_a_task_that_works_at_once() -> None:
    story = Story()
    story.reconcile()
    assert (story.phase, story.condition("Scheduled")) == (Phase.QUEUED, ("False", "Waiting"))
    story.tell(Unplaced(4, "NoNodeFits", "0/3 nodes fit: 3 too little memory"))
    assert story.status.queue_position == 4
    assert story.condition("Scheduled") == ("False", "NoNodeFits")
    story.bind("laptop-2")
    assert (story.phase, story.status.node_name, story.status.queue_position) == (Phase.STARTING, "laptop-2", None)
    assert story.current.id == attempt_id(UID, 1)
    assert (story.current.requested.cpu, story.current.requested.memory) == ("500m", "512Mi")
    assert isinstance(story.commands()[0], Submit)
    story.observe(W.PREPARING, message="pulling")
    assert story.condition("Running") == ("False", "Starting")
    story.wait(3)
    story.observe(W.RUNNING)
    assert (story.phase, story.status.start_time) == (Phase.RUNNING, START + timedelta(seconds=3))
    assert story.condition("Running") == ("True", "Running")
    story.wait(60)
    story.exit(0)
    assert (story.phase, story.status.reason, story.status.exit_code) == (Phase.SUCCEEDED, "Completed", 0)
    assert story.condition("Complete") == ("True", "Completed")
    assert story.condition("Failed") == ("False", "Completed")
    assert story.reasons() == ["Queued", "Waiting", "Scheduled", "Preparing", "Started", "Completed"]


def test_what_ran_and_ended_between_two_reports_still_tells_the_whole_story() -> None:
    story = Story()
    story.reconcile()
    story.bind("laptop-2")
    story.exit(0)
    assert story.reasons() == ["Queued", "Scheduled", "Started", "Completed"]


def test_the_evidence_of_a_dead_letter_says_nothing_twice() -> None:
    story = Story(backoffLimit=0)
    story.run("laptop-1")
    story.exit(3)
    told = next(condition.message for condition in story.status.conditions if condition.type == "Failed")
    assert told.count("attempt 1 on laptop-1") == 1, told
    assert "backoffLimit 0 is used up" in told


def test_late_and_foreign_reports_change_nothing() -> None:
    story = Story()
    story.run("laptop-1")
    story.exit(1)
    story.wake()
    story.run("laptop-2")
    before = story.status
    late = story.seen(W.EXITED, number=1, exit_code=0)
    foreign = Observation(attempt_id(UID, 2), "swarm", "another-uid", "team", "lint", 2, W.EXITED, exit_code=0)
    renamed = story.seen(W.EXITED, number=2, name="st-0000000000000000-2", exit_code=0)
    for seen in (late, foreign, renamed, story.seen(W.EXITED, number=7, exit_code=0)):
        assert not story.tell(Observed(seen)).changed
    assert not story.tell(Vanished(1)).changed
    assert not story.tell(NodeGone(1, "gone")).changed
    assert story.status == before


def test_an_edit_while_it_runs_takes_effect_at_the_next_attempt() -> None:
    story = Story()
    story.run()
    container = story.task.spec.container
    requests = container.resources.requests.model_copy(update={"memory": "4Gi"})
    resources = container.resources.model_copy(update={"requests": requests})
    story.edit(container=container.model_copy(update={"resources": resources}))
    story.reconcile()
    assert story.current.requested.memory == "512Mi"
    assert story.status.observed_generation == 2
    story.exit(1)
    story.wake()
    story.bind()
    assert story.current.requested.memory == "4Gi"


def test_an_unreadable_object_does_not_start_and_does_not_kill() -> None:
    waiting = Story()
    waiting.reconcile()
    waiting.tell(InvalidObject("spec.container: field required"))
    assert (waiting.phase, waiting.status.reason) == (Phase.FAILED, "InvalidObject")

    running = Story()
    running.run()
    running.tell(InvalidObject("spec.container: field required"))
    assert (running.phase, running.condition("Admitted")) == (Phase.RUNNING, ("False", "InvalidObject"))
    assert running.reasons().count("InvalidObject") == 1
    running.reconcile()
    assert running.condition("Admitted") == ("True", "Admitted")


def test_the_end_is_seen_although_the_run_was_not() -> None:
    story = Story()
    story.reconcile()
    story.bind()
    story.wait(5)
    story.exit(0, started_at=START + timedelta(seconds=1), finished_at=START + timedelta(seconds=2))
    assert (story.phase, story.status.start_time) == (Phase.SUCCEEDED, START + timedelta(seconds=1))
    assert story.current.finished_at == START + timedelta(seconds=2)


def test_words_of_any_length_and_kind_fit_the_status() -> None:
    story = Story()
    story.run()
    story.exit(1, message="\x00bad \ud800 " + "x" * 100_000)
    assert len(story.current.message) <= 4096
    assert len(story.status.message) <= 4096
    assert "\x00" not in story.current.message
