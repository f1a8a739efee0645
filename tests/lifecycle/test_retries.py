"""Failures: what is tried again, when, and what ends as a dead letter."""

from __future__ import annotations

from swarmtask.lifecycle.messages import (
    Reason,
    SubmitRefused,
)
from swarmtask.lifecycle.messages import WorkloadState as W
from swarmtask.resources.task import ANNOTATION_RETRY, LABEL_DEAD_LETTER, Phase
from tests.lifecycle.story import Story


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


def test_a_rejected_pull_fails_at_once() -> None:
    story = Story()
    story.reconcile()
    story.bind()
    story.observe(W.REJECTED, reason=Reason.IMAGE_PULL_FAILED, message="No such image: acme/lint")
    assert (story.phase, story.current.reason, story.status.failures) == (Phase.BACKOFF, "ImagePullFailed", 1)


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


def test_only_the_newest_ten_attempts_are_kept() -> None:
    story = Story(backoffLimit=50, backoff={"initialSeconds": 0})
    for _ in range(13):
        story.run()
        story.exit(1)
    assert [attempt.number for attempt in story.status.attempts] == list(range(4, 14))


def test_a_rejection_keeps_the_reason_that_the_engine_gave_before() -> None:
    story = Story()
    story.reconcile()
    story.bind()
    story.observe(W.PREPARING, reason=Reason.IMAGE_PULL_FAILED, message="No such image")
    story.observe(W.REJECTED)
    assert story.current.reason == "ImagePullFailed"


def test_a_label_that_a_crash_kept_from_being_written_is_asked_for_again() -> None:
    story = Story(backoffLimit=0)
    story.run()
    story.exit(1)
    story.task.metadata.labels.clear()
    transition = story.reconcile()
    assert not transition.changed
    assert transition.labels == {LABEL_DEAD_LETTER: "true"}
