"""dedupeKey: waiting for a twin, taking its outcome, and who comes first."""

from __future__ import annotations

from typing import Any

import pytest

from swarmtask.lifecycle.messages import Bound, Preempt, Twin, Unplaced
from swarmtask.lifecycle.twins import Standing, following, precedence, standing
from swarmtask.resources.task import ANNOTATION_CANCEL, ANNOTATION_RETRY, LABEL_DEAD_LETTER, TERMINAL_PHASES, Phase
from tests.lifecycle.story import UID, Story, make_task

UNFINISHED = sorted(set(Phase) - TERMINAL_PHASES)


def twin(phase: Phase = Phase.RUNNING, name: str = "first", **facts: Any) -> Twin:
    return Twin(name, f"uid-of-{name}", phase, **facts)


def follower(**spec: Any) -> Story:
    story = Story(dedupeKey="k", **spec)
    story.reconcile(twin=twin(Phase.QUEUED))
    return story


@pytest.mark.parametrize("phase", UNFINISHED)
def test_it_waits_for_an_unfinished_twin(phase: Phase) -> None:
    story = Story(dedupeKey="k", queueDeadlineSeconds=10)
    story.reconcile(twin=twin(phase))
    assert (story.phase, story.status.reason, story.status.outcome_of) == (Phase.PENDING, "Deduplicated", "first")
    assert story.status.message == "waits for the outcome of first, which has the same dedupeKey"
    assert story.condition("Admitted") == ("False", "Deduplicated")
    assert not story.commands(), "nothing is due, however long the twin takes"
    story.wait(100_000)
    assert not story.reconcile(twin=twin(Phase.BACKOFF)).changed
    assert not story.tell(Bound("laptop-1", "swarm", "id")).changed
    assert not story.tell(Unplaced(1, "NoNodeFits", "0/1")).changed


@pytest.mark.parametrize("phase", [Phase.SUCCEEDED, Phase.FAILED])
def test_it_takes_the_outcome(phase: Phase) -> None:
    story = follower()
    code = 0 if phase is Phase.SUCCEEDED else 3
    story.reconcile(twin=twin(phase, exit_code=code, message="attempt 1 on laptop-1"))
    status = story.status
    assert (story.phase, status.reason, status.outcome_of, status.exit_code) == (phase, "Deduplicated", "first", code)
    assert status.message == "took the outcome of first, which has the same dedupeKey: attempt 1 on laptop-1"
    assert story.condition("Complete" if phase is Phase.SUCCEEDED else "Failed") == ("True", "Deduplicated")
    assert (LABEL_DEAD_LETTER in story.task.metadata.labels) == (phase is Phase.FAILED)
    assert (status.attempt, status.failures, status.completion_time) == (0, 0, story.now)
    assert story.reasons()[-1] == ("Completed" if phase is Phase.SUCCEEDED else "DeadLetter")
    assert not story.reconcile(twin=twin(Phase.QUEUED)).changed, "what the twin does later changes nothing"


@pytest.mark.parametrize("phase", [Phase.CANCELLED, Phase.EXPIRED, None])
def test_an_end_that_is_no_outcome_lets_it_run(phase: Phase | None) -> None:
    story = follower()
    story.wait(5)
    story.reconcile(twin=None if phase is None else twin(phase))
    assert (story.phase, story.status.outcome_of, story.status.queued_time) == (Phase.QUEUED, None, story.now)
    story.run()
    story.exit(0)
    assert (story.phase, story.status.reason) == (Phase.SUCCEEDED, "Completed")


def test_the_next_twin_takes_the_place_of_the_first() -> None:
    story = follower()
    story.reconcile(twin=twin(name="second"))
    assert (story.phase, story.status.outcome_of) == (Phase.PENDING, "second")
    story.reconcile(twin=twin(Phase.FAILED, name="first"))
    assert (story.phase, story.status.outcome_of) == (Phase.QUEUED, None), "it no longer waited for that one"


def test_a_recent_success_is_taken_at_once_an_old_failure_never() -> None:
    story = Story(dedupeKey="k")
    story.reconcile(twin=twin(Phase.FAILED, exit_code=1))
    assert story.phase is Phase.QUEUED
    story.reconcile(twin=twin(Phase.SUCCEEDED, exit_code=0))
    assert (story.phase, story.status.reason) == (Phase.SUCCEEDED, "Deduplicated")


def test_let_into_the_queue_it_may_still_have_to_step_back() -> None:
    story = Story(dedupeKey="k")
    story.reconcile()
    assert story.phase is Phase.QUEUED
    story.reconcile(twin=twin(Phase.STARTING))
    assert (story.phase, story.status.queue_position, story.status.queued_time) == (Phase.PENDING, None, None)
    assert not story.tell(Bound("laptop-1", "swarm", "id")).changed


@pytest.mark.parametrize("how", ["running", "backoff", "queued again", "preempted", "suspended"])
def test_a_task_that_has_begun_is_never_deduplicated(how: str) -> None:
    story = Story(dedupeKey="k")
    story.run()
    if how == "preempted":
        story.tell(Preempt(1, ("team", "urgent")))
        story.exit(143)
    elif how == "suspended":
        story.edit(suspend=True)
        story.reconcile()
        story.exit(143)
        story.edit(suspend=False)
    elif how != "running":
        story.exit(1)
    if how == "queued again":
        story.wake()
    story.reconcile(twin=twin(Phase.SUCCEEDED))
    story.reconcile(twin=twin(Phase.RUNNING))
    assert story.status.reason != "Deduplicated"
    assert story.status.outcome_of is None


def test_a_new_budget_is_as_good_as_a_new_task() -> None:
    story = follower()
    story.reconcile(twin=twin(Phase.FAILED, exit_code=3))
    story.annotate(ANNOTATION_RETRY, "1")
    story.reconcile(twin=twin(Phase.FAILED, exit_code=3))
    assert (story.phase, story.status.outcome_of, story.status.exit_code) == (Phase.QUEUED, None, None)
    assert LABEL_DEAD_LETTER not in story.task.metadata.labels
    story.run()
    story.exit(1)
    story.edit(backoff_limit=0)
    story.wake()
    story.run()
    story.exit(1)
    assert story.phase is Phase.FAILED
    story.annotate(ANNOTATION_RETRY, "2")
    story.reconcile(twin=twin(Phase.QUEUED, name="other"))
    assert (story.phase, story.status.outcome_of) == (Phase.PENDING, "other"), "somebody else is at it"
    story.reconcile(twin=twin(Phase.SUCCEEDED, name="other"))
    assert story.phase is Phase.SUCCEEDED


def test_wishes_win_over_waiting() -> None:
    story = follower()
    story.edit(suspend=True)
    story.reconcile(twin=twin(Phase.SUCCEEDED))
    assert (story.phase, story.status.reason, story.status.outcome_of) == (Phase.PENDING, "Suspended", None)
    story.edit(suspend=False)
    story.reconcile(twin=twin())
    assert (story.phase, story.status.reason) == (Phase.PENDING, "Deduplicated")
    story.annotate(ANNOTATION_CANCEL, "x")
    story.reconcile(twin=twin())
    assert (story.phase, story.status.reason, story.status.outcome_of) == (Phase.CANCELLED, "Cancelled", None)


def test_a_deleted_follower_is_let_go() -> None:
    story = follower()
    story.delete()
    story.reconcile(twin=twin())
    assert (story.phase, story.status.reason, story.status.outcome_of) == (Phase.CANCELLED, "Deleted", None)


def test_a_key_that_is_taken_away_lets_it_run() -> None:
    story = follower()
    story.edit(dedupe_key="")
    story.reconcile()
    assert (story.phase, story.status.outcome_of) == (Phase.QUEUED, None)


def test_nobody_waits_for_itself() -> None:
    story = Story(dedupeKey="k")
    story.reconcile(twin=Twin("lint", UID, Phase.SUCCEEDED))
    assert story.phase is Phase.QUEUED


# --- who comes first -----------------------------------------------------------------------------------------------------


def test_standing() -> None:
    story = Story(dedupeKey="k")
    assert standing(story.task) is Standing.WAITING
    story.edit(suspend=True)
    assert standing(story.task) is Standing.HELD
    story.edit(suspend=False)
    story.reconcile(queue_exists=False)
    assert standing(story.task) is Standing.HELD
    story.reconcile(twin=twin())
    assert (standing(story.task), following(story.status)) == (Standing.WAITING, "first")
    story.reconcile()
    assert (standing(story.task), following(story.status)) == (Standing.ADMITTED, None)
    story.bind()
    assert standing(story.task) is Standing.BEGUN
    story.exit(1)
    assert standing(story.task) is Standing.BEGUN, "between two attempts it is still the one that does the work"
    story.edit(suspend=True)
    story.reconcile()
    assert standing(story.task) is Standing.BEGUN
    story.annotate(ANNOTATION_CANCEL, "x")
    story.reconcile()
    assert standing(story.task) is Standing.DONE
    story.edit(suspend=False)
    story.annotate(ANNOTATION_RETRY, "1")
    story.reconcile()
    assert standing(story.task) is Standing.ADMITTED
    story.delete()
    story.reconcile()
    assert standing(story.task) is Standing.DONE


def test_precedence_is_standing_then_age_then_uid() -> None:
    def at(second: int, uid: str, **status: Any) -> tuple[int, float, str]:
        task = make_task(dedupeKey="k")
        created = task.metadata.creation_timestamp
        assert created is not None
        metadata = task.metadata.model_copy(update={"creation_timestamp": created.replace(second=second), "uid": uid})
        return precedence(task.model_copy(update={"metadata": metadata, "status": task.status.model_copy(update=status)}))

    in_order = [
        at(9, "z", phase=Phase.BACKOFF, failures=1), at(8, "b", phase=Phase.QUEUED), at(8, "c", phase=Phase.QUEUED), at(1, "a"),
        at(1, "b"), at(2, "a"), at(3, "a", phase=Phase.FAILED, failures=4),
    ]  # fmt: skip
    assert sorted(in_order) == in_order
