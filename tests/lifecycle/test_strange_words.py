"""What a node or another version may say that makes no sense here: it neither raises nor makes a status that cannot be stored."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from swarmtask.lifecycle.loss import news_of
from swarmtask.lifecycle.messages import Bound, NodeTold, Observation, Preempt, Reason
from swarmtask.lifecycle.messages import WorkloadState as W
from swarmtask.resources.fields import MOST_BOOT_ID
from swarmtask.resources.meta import EARLIEST, LATEST, possible
from swarmtask.resources.node import NodeAttempt, NodeStatus, SwarmNode
from swarmtask.resources.task import ANNOTATION_CANCEL, Attempt, AttemptState, Phase, attempt_id
from tests.lifecycle.story import START, UID, Story

STRANGE_TIMES = ("0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "2262-04-12T00:00:00Z",
                 "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-14:00")  # fmt: skip
GIB = 2**30


def record(**told: Any) -> NodeAttempt:
    """As it is read from a stored SwarmNode."""
    entry = {"id": attempt_id(UID, 1), "state": "Exited", **told}
    body = {"metadata": {"name": "laptop-1"}, "status": {"attempts": [entry]}}
    return SwarmNode.model_validate(body).status.attempts[0]


# --- times ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", STRANGE_TIMES)
@pytest.mark.parametrize("field", ["startedAt", "finishedAt"])
@pytest.mark.parametrize("stopping", [False, True])
def test_times_that_no_clock_shows(text: str, field: str, stopping: bool) -> None:
    for code in (0, 1):
        story = Story(backoffLimit=0)
        story.run(boot_id="b1")
        story.wait(5)
        if stopping:
            story.tell(Preempt(1, ("team", "urgent")))
        story.tell(NodeTold(1, record(exitCode=code, **{field: text}), "b1"))
        attempt = story.status.attempts[0]
        assert attempt.state is (AttemptState.STOPPED if stopping else AttemptState.FAILED if code else AttemptState.SUCCEEDED)
        assert attempt.finished_at == START + timedelta(seconds=5), "it ended when that was told"


@pytest.mark.parametrize("text", STRANGE_TIMES)
def test_the_same_times_from_an_engine_and_of_one_that_ran_between_two_looks(text: str) -> None:
    moment = datetime.fromisoformat(text)
    story = Story()
    story.reconcile()
    story.bind()
    story.exit(0, started_at=moment, finished_at=moment)
    assert (story.phase, story.current.started_at, story.current.finished_at) == (Phase.SUCCEEDED, START, START)
    story = Story()
    story.reconcile()
    story.bind()
    story.observe(W.RUNNING, started_at=moment)
    assert story.current.started_at == START


def test_which_times_are_possible() -> None:
    for moment in (EARLIEST, LATEST, START, START.replace(tzinfo=None)):
        assert possible(moment) == moment
    assert possible(None) is None
    for text in STRANGE_TIMES:
        assert possible(datetime.fromisoformat(text)) is None
    assert possible(datetime(9999, 12, 31)) is None  # noqa: DTZ001 - so it may be told
    seen = Observation(
        "st-1-1", "swarm", UID, "team", "lint", 1, W.EXITED, started_at=EARLIEST, finished_at=datetime.max.replace(tzinfo=UTC)
    )
    assert (seen.started_at, seen.finished_at) == (EARLIEST, None)


# --- boots ---------------------------------------------------------------------------------------------------------------


def test_what_a_node_may_say_of_its_boot_an_attempt_can_keep() -> None:
    longest = "b" * MOST_BOOT_ID
    assert NodeStatus.model_validate({"bootID": longest}).boot_id == longest
    story = Story()
    story.reconcile()
    story.tell(Bound("laptop-1", "swarm", "id-of-laptop-1", boot_id=longest))
    assert (story.phase, story.current.boot_id) == (Phase.STARTING, longest)


# --- reasons -------------------------------------------------------------------------------------------------------------


def stored(story: Story, **changes: Any) -> None:
    """Another version has written this into the record of the attempt."""
    changed = Attempt.model_validate({**story.current.to_dict(), **changes})
    status = story.status.model_copy(update={"attempts": [changed]})
    story.task = story.task.model_copy(update={"status": status})


@pytest.mark.parametrize("reason", ["Foo", "Completed", "NodeLost"])
def test_a_stop_for_a_reason_that_is_not_known_here(reason: str) -> None:
    story = Story()
    story.run()
    stored(story, state="Stopping", stopReason=reason, stopRequestedAt="2026-03-01T12:00:00Z")
    story.reconcile()
    story.wait(2)
    story.exit(143)
    first = story.status.attempts[0]
    assert first.state is AttemptState.STOPPED
    assert (story.phase, first.reason) == (Phase.QUEUED, reason), "it is carried, and the task is not over"
    story.run()
    story.exit(0)
    assert story.phase is Phase.SUCCEEDED


def test_a_stronger_wish_replaces_a_stop_that_is_not_known_here() -> None:
    story = Story()
    story.run()
    stored(story, state="Stopping", stopReason="Foo", stopRequestedAt="2026-03-01T12:00:00Z")
    story.tell(Preempt(1, ("team", "urgent")))
    assert story.current.stop_reason == "Foo"
    story.annotate(ANNOTATION_CANCEL, "enough")
    story.reconcile()
    assert story.current.stop_reason == Reason.CANCELLED
    story.exit(143)
    assert story.phase is Phase.CANCELLED


def test_trouble_at_the_start_for_a_reason_that_is_not_known_here() -> None:
    story = Story(startDeadlineSeconds=60, backoffLimit=0)
    story.reconcile()
    story.bind()
    story.observe(W.PREPARING)
    stored(story, reason="Foo", message="words", observed=True)
    story.wait(62)
    story.reconcile()
    assert story.current.stop_reason == Reason.START_DEADLINE
    story.observe(W.STOPPED)
    assert (story.phase, story.status.reason) == (Phase.FAILED, Reason.START_DEADLINE)
    assert "words" in (story.status.message or "")
    story = Story(backoffLimit=0)
    story.reconcile()
    story.bind()
    stored(story, reason="Foo", observed=True)
    story.observe(W.REJECTED)
    assert (story.phase, story.status.reason) == (Phase.FAILED, Reason.ENGINE_REJECTED)


# --- peaks ---------------------------------------------------------------------------------------------------------------

STRANGE_PEAKS = ("9e99", "9" * 19 + "E", "9e18", "9" * 19)


def limited(**resources: Any) -> Story:
    story = Story(container={"image": "busybox", "resources": resources}, backoffLimit=0)
    story.run(boot_id="b1")
    return story


@pytest.mark.parametrize("peak", STRANGE_PEAKS)
@pytest.mark.parametrize(
    ("resources", "capacity", "kept"),
    [
        ({"requests": {"memory": "1Gi"}}, 8 * GIB, GIB),
        ({"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}}, 8 * GIB, 2 * GIB),
        ({"requests": {"memory": "1Gi"}, "limits": {"memory": "64Gi"}}, 8 * GIB, 8 * GIB),
        ({"requests": {"memory": "1Gi"}}, 0, GIB),
        ({"requests": {"memory": "0"}}, 8 * GIB, 8 * GIB),
        ({"requests": {"memory": "0"}}, 0, None),
        ({"requests": {"memory": "0"}}, 2**63 - 1, 2**60),
    ],
)
def test_a_peak_is_no_more_than_the_attempt_can_have_used(
    peak: str, resources: dict[str, Any], capacity: int, kept: int | None
) -> None:
    for live in (True, False):
        story, told = limited(**resources), record(exitCode=1, peakMemory=peak, cpuSeconds=2.5)
        if not live:
            story.exit(1)
        story.tell(NodeTold(1, told, "b1", memory_bytes=capacity))
        attempt = story.status.attempts[0]
        assert (attempt.peak_memory, attempt.cpu_seconds) == (None if kept is None else str(kept), 2.5)
        assert story.status.peak_memory == (None if kept is None else f"{kept // 2**20}Mi")
        assert not news_of(story.task, attempt, told, capacity), "it is not told for ever"


def test_a_peak_that_can_be_is_kept_as_it_was_told() -> None:
    story = limited(requests={"memory": "1Gi"})
    story.tell(NodeTold(1, record(exitCode=0, peakMemory="1Gi"), "b1", memory_bytes=8 * GIB))
    assert (story.current.peak_memory, story.status.peak_memory) == ("1Gi", "1024Mi")
