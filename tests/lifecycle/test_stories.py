"""What happens to a task, told as a person would see it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.lifecycle.story import START, UID, Story

from swarmtask.lifecycle.messages import (
    InvalidObject,
    NodeGone,
    Observation,
    Observed,
    Reason,
    Remove,
    Stop,
    Submit,
    SubmitRefused,
    Unplaced,
    Vanished,
)
from swarmtask.lifecycle.messages import WorkloadState as W
from swarmtask.lifecycle.task import Policy
from swarmtask.resources.task import ANNOTATION_CANCEL, ANNOTATION_RETRY, LABEL_DEAD_LETTER, AttemptState, Phase, attempt_id


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


def test_retries_grow_apart_and_end_as_a_dead_letter_with_all_evidence() -> None:
    story = Story(backoffLimit=2, backoff={"type": "exponential", "initialSeconds": 10, "factor": 3, "maxSeconds": 25})
    waits = []
    for code in (1, 2):
        story.run(f"laptop-{code}")
        story.exit(code, message=f"task: non-zero exit ({code})")
        assert story.phase is Phase.BACKOFF
        assert story.status.node_name is None
        waits.append((story.status.not_before - story.now).total_seconds())
        story.reconcile()
        assert story.phase is Phase.BACKOFF, "retried before its time"
        story.wake()
        assert story.phase is Phase.QUEUED
    assert waits == [10, 25]
    story.run("laptop-3")
    story.exit(137)
    assert (story.phase, story.status.reason, story.status.failures) == (Phase.FAILED, "Error", 3)
    assert story.task.metadata.labels[LABEL_DEAD_LETTER] == "true"
    assert story.condition("Failed") == ("True", "Error")
    message = next(condition.message for condition in story.status.conditions if condition.type == "Failed")
    for words in ("laptop-1", "exit code 1", "laptop-2", "exit code 2", "laptop-3", "exit code 137", "backoffLimit 2"):
        assert words in message
    assert story.reasons()[-2:] == ["AttemptFailed", "DeadLetter"]


def test_linear_backoff() -> None:
    story = Story(backoffLimit=5, backoff={"type": "linear", "initialSeconds": 7, "maxSeconds": 20})
    waits = []
    for _ in range(4):
        story.run()
        story.exit(1)
        waits.append((story.status.not_before - story.now).total_seconds())
        story.wake()
    assert waits == [7, 14, 20, 20]


def test_no_backoff_queues_at_once() -> None:
    story = Story(backoff={"initialSeconds": 0})
    story.run()
    story.exit(1)
    assert story.phase is Phase.QUEUED


def test_a_person_retries_a_dead_letter() -> None:
    story = Story(backoffLimit=0)
    story.run()
    story.exit(1)
    assert story.phase is Phase.FAILED
    story.annotate(ANNOTATION_RETRY, "please")
    story.reconcile()
    assert (story.phase, story.status.failures, story.status.start_time) == (Phase.QUEUED, 0, None)
    assert LABEL_DEAD_LETTER not in story.task.metadata.labels
    assert story.condition("Failed") == ("False", "NotFinished")
    story.run()
    assert story.current.number == 2
    story.exit(1)
    assert story.phase is Phase.FAILED, "the same annotation must not retry twice"
    story.reconcile()
    assert story.phase is Phase.FAILED
    story.annotate(ANNOTATION_RETRY, "once more")
    story.run()
    story.exit(0)
    assert (story.phase, story.status.attempt) == (Phase.SUCCEEDED, 3)
    story.annotate(ANNOTATION_RETRY, "again")
    story.reconcile()
    assert story.phase is Phase.SUCCEEDED, "finished work is never run again"


def test_a_retry_that_was_asked_for_while_it_ran_is_not_kept_for_later() -> None:
    story = Story(backoffLimit=0)
    story.run()
    story.annotate(ANNOTATION_RETRY, "early")
    story.reconcile()
    story.exit(1)
    story.reconcile()
    assert story.phase is Phase.FAILED


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


def test_a_rejected_pull_fails_at_once() -> None:
    story = Story()
    story.reconcile()
    story.bind()
    story.observe(W.REJECTED, reason=Reason.IMAGE_PULL_FAILED, message="No such image: acme/lint")
    assert (story.phase, story.current.reason, story.status.failures) == (Phase.BACKOFF, "ImagePullFailed", 1)


def test_the_active_deadline() -> None:
    story = Story(activeDeadlineSeconds=3600, backoffLimit=0)
    story.run()
    story.wake()
    assert story.current.stop_reason == "ActiveDeadline"
    story.wait(1)
    story.exit(143)
    assert (story.phase, story.status.reason) == (Phase.FAILED, "ActiveDeadline")


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
    assert Remove(story.current) in story.commands([zombie])


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


def test_a_secret_that_is_missing_is_tried_again() -> None:
    story = Story()
    story.reconcile()
    story.bind()
    story.tell(SubmitRefused(1, Reason.SECRET_NOT_FOUND, "secret forge has no key token"))
    assert (story.phase, story.status.reason, story.status.failures) == (Phase.BACKOFF, "SecretNotFound", 1)


def test_a_refusal_of_a_repeated_submit_does_not_end_what_runs() -> None:
    story = Story()
    story.run()
    transition = story.tell(SubmitRefused(1, Reason.ENGINE_REJECTED, "exists with another specification"))
    assert not transition.changed
    assert story.phase is Phase.RUNNING


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


def test_only_the_newest_ten_attempts_are_kept() -> None:
    story = Story(backoffLimit=50, backoff={"initialSeconds": 0})
    for _ in range(13):
        story.run()
        story.exit(1)
    assert [attempt.number for attempt in story.status.attempts] == list(range(4, 14))


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
