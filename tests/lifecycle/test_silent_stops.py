"""Stops that nobody can see, because the node fell silent: what the task is to follow waits as `nodeLoss` says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from swarmtask.lifecycle.messages import Drain, Evict, NodeSilent, Observed, Preempt, Vanished, WakeAt
from swarmtask.lifecycle.messages import WorkloadState as W
from swarmtask.resources.ended import ANNOTATION_END
from swarmtask.resources.task import ANNOTATION_CANCEL, AttemptState, Phase
from tests.lifecycle.story import Story

HOUR_S = 3600
STOPS: dict[str, Callable[[Story], object]] = {
    "drain": lambda story: story.tell(Drain(1, "laptop-1")),
    "preempt": lambda story: story.tell(Preempt(1, ("team", "urgent"))),
    "evict": lambda story: story.tell(Evict(1, "laptop-1", "no memory")),
    "end": lambda story: story.annotate(ANNOTATION_END, "1"),
    "suspend": lambda story: story.edit(suspend=True),
}


def silent(stop: str, replace: str, *, boot_id: str = "b1", grace_s: int = HOUR_S, **spec: object) -> Story:
    """It was stopped two seconds after its lid was closed, which is seen six seconds later."""
    story = Story(nodeLoss={"replace": replace, "graceSeconds": grace_s}, terminationGracePeriodSeconds=10, **spec)
    story.run(boot_id=boot_id)
    story.wait(2)
    STOPS[stop](story)
    story.reconcile()
    assert story.current.state is AttemptState.STOPPING
    story.wait(6)
    story.tell(NodeSilent(1, 8.0, fenced=bool(boot_id)))
    assert (story.phase, story.current.state) == (Phase.UNKNOWN, AttemptState.STOPPING)
    return story


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("boot_id", ["b1", ""])
def test_never_waits_for_the_node_whoever_asked_for_the_stop(stop: str, boot_id: str) -> None:
    story = silent(stop, "never", boot_id=boot_id)
    for _ in range(3):
        story.wait(24 * HOUR_S)
        story.reconcile()
        story.tell(NodeSilent(1, 24.0 * HOUR_S, fenced=bool(boot_id)))
        assert (story.phase, story.current.state) == (Phase.UNKNOWN, AttemptState.STOPPING)
    assert not [command for command in story.commands() if isinstance(command, WakeAt)]
    story.observe(W.RUNNING)
    story.exit(143)
    assert not story.current.live and story.phase in (Phase.QUEUED, Phase.PENDING, Phase.BACKOFF)
    assert "without proof" not in (story.current.message or "")


@pytest.mark.parametrize("stop", STOPS)
def test_after_lost_is_replaced_when_its_own_time_is_over(stop: str) -> None:
    story = silent(stop, "afterLost", grace_s=60)
    story.wait(56)
    story.reconcile()
    story.tell(NodeSilent(1, 64.4, fenced=True))
    assert (story.phase, story.current.state) == (Phase.UNKNOWN, AttemptState.STOPPING)
    story.tell(NodeSilent(1, 64.5, fenced=True))
    assert not story.current.live
    assert "may still run there" in (story.current.message or "")


@pytest.mark.parametrize("fenced", [True, False])
def test_after_lost_is_not_replaced_before_a_stop_has_had_its_time(fenced: bool) -> None:
    story = silent("drain", "afterLost", grace_s=0, boot_id="b1" if fenced else "")
    story.wait(14)
    assert not story.tell(NodeSilent(1, 22.0, fenced=fenced)).changed, "10 s of grace and 10 s of margin are not over"
    story.wait(1)
    story.tell(NodeSilent(1, 23.0, fenced=fenced))
    assert story.phase is Phase.QUEUED


@pytest.mark.parametrize("replace", ["never", "afterLost"])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("wish", ["cancel", "delete"])
def test_what_nothing_follows_is_not_waited_for(replace: str, before: bool, wish: str) -> None:
    story = Story(nodeLoss={"replace": replace, "graceSeconds": HOUR_S}, terminationGracePeriodSeconds=10)
    story.run(boot_id="b1")
    if before:
        story.tell(Drain(1, "laptop-1"))
        story.tell(NodeSilent(1, 5.0, fenced=True))
        story.wait(HOUR_S)
    if wish == "cancel":
        story.annotate(ANNOTATION_CANCEL, "x")
    else:
        story.delete()
    story.reconcile()
    if not before:
        story.tell(NodeSilent(1, 5.0, fenced=True))
        story.wake()
    assert story.phase is Phase.CANCELLED
    assert "without proof" in (story.status.attempts[0].message or "")


@pytest.mark.parametrize("stop", ["drain", "suspend", "end"])
@pytest.mark.parametrize("replace", ["never", "afterLost"])
def test_the_tasks_own_deadline_ends_the_wait(stop: str, replace: str) -> None:
    story = silent(stop, replace, activeDeadlineSeconds=600)
    story.wait(500)
    story.reconcile()
    assert story.phase is Phase.UNKNOWN
    story.wake()
    assert story.status.attempts[0].reason == "ActiveDeadline"
    assert story.phase in (Phase.BACKOFF, Phase.PENDING)


def test_a_deadline_that_passes_while_the_stop_can_be_seen_changes_nothing() -> None:
    story = Story(activeDeadlineSeconds=60, nodeLoss={"replace": "never"})
    story.run()
    story.wait(59)
    story.tell(Drain(1, "laptop-1"))
    story.wait(10)
    story.reconcile()
    story.exit(143)
    assert (story.phase, story.current.reason, story.status.failures) == (Phase.QUEUED, "Drained", 0)


def test_a_wait_is_over_when_the_engine_no_longer_has_it() -> None:
    story = silent("drain", "never")
    story.tell(Vanished(1))
    assert (story.phase, story.current.reason) == (Phase.QUEUED, "Drained")


# --- agents that spoke after the attempt had begun ---


@pytest.mark.parametrize("state", [W.PREPARING, W.RUNNING, W.UNKNOWN])
def test_an_attempt_learns_its_boot_when_the_agent_speaks_at_last(state: W) -> None:
    story = Story()
    story.reconcile()
    story.bind()
    story.observe(W.PREPARING if state is W.PREPARING else W.RUNNING)
    assert story.current.boot_id is None
    story.tell(Observed(story.seen(state), "b1"))
    assert story.current.boot_id == "b1"
    assert not story.tell(Observed(story.seen(state), "b2")).changed, "what is known stays: another boot is a restart"


def test_an_end_teaches_no_boot() -> None:
    story = Story()
    story.run()
    story.tell(Observed(story.seen(W.EXITED, exit_code=255), "b2"))
    assert story.current.boot_id is None


def test_silence_of_an_agent_proves_that_there_is_one() -> None:
    story = Story(terminationGracePeriodSeconds=10)
    story.run()
    story.tell(Drain(1, "laptop-1"))
    story.tell(NodeSilent(1, 5.0, fenced=True, boot_id="b1"))
    assert story.current.boot_id == "b1"
    story.wait(30)
    story.reconcile()
    assert (story.phase, story.current.state) == (Phase.UNKNOWN, AttemptState.STOPPING)
    story.tell(NodeSilent(1, 40.0, fenced=True, boot_id="b1"))
    assert (story.phase, story.current.reason) == (Phase.QUEUED, "Drained")
