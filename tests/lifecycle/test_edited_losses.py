"""Edits of `spec.nodeLoss` while an attempt runs: whether its node fences it was settled when it was placed."""

from __future__ import annotations

from typing import Any

import pytest

from swarmtask.controllers.submission import build_workload
from swarmtask.lifecycle.deadlines import replacing
from swarmtask.lifecycle.loss import Hearing, NodeWord, replace_after_s, weigh
from swarmtask.lifecycle.messages import MadeWith, NodeSilent, Observation, Reason
from swarmtask.lifecycle.messages import WorkloadState as W
from swarmtask.resources.failures import NodeLoss
from swarmtask.resources.task import ANNOTATION_CANCEL, AttemptState, Phase
from tests.lifecycle.story import Story

DAY_S = 86_400.0
FENCE_END_S = 20 + 10 + 10
LOST_S = 4.5 + 30


def edited(before: str, after: str, **spec: Any) -> Story:
    """It runs on a node with an agent; a person edits what is to happen when that is lost."""
    story = Story(nodeLoss={"replace": before}, terminationGracePeriodSeconds=10, **spec)
    story.run(boot_id="b1")
    story.edit(node_loss=NodeLoss(replace=after))  # type: ignore[arg-type]
    return story


def silent(story: Story, silent_s: float) -> None:
    story.tell(NodeSilent(1, silent_s, fenced=True, boot_id="b1"))


@pytest.mark.parametrize("before", ["never", "afterLost"])
def test_nothing_fences_an_attempt_that_was_not_made_to_be_fenced(before: str) -> None:
    """Else both would run: the agent leaves the container alone that does not carry the fence."""
    story = edited(before, "afterFence")
    silent(story, DAY_S)
    assert (story.phase, story.current.state) == (Phase.UNKNOWN, AttemptState.UNKNOWN)
    assert not build_workload(story.task, story.current, ()).fence


@pytest.mark.parametrize("silent_first", [True, False])
def test_an_edit_to_never_counts_at_once_and_one_back_to_the_fence_does_too(silent_first: bool) -> None:
    story = Story(terminationGracePeriodSeconds=10)
    story.run(boot_id="b1")
    if silent_first:
        silent(story, 5.0)
    story.edit(node_loss=NodeLoss(replace="never"))
    silent(story, DAY_S)
    assert story.phase is Phase.UNKNOWN
    assert build_workload(story.task, story.current, ()).fence
    story.edit(node_loss=NodeLoss())
    silent(story, FENCE_END_S - 0.1)
    assert story.phase is Phase.UNKNOWN
    silent(story, FENCE_END_S)
    assert story.current.reason == "NodeLost"
    assert "its agent must have stopped" in (story.current.message or "")


@pytest.mark.parametrize("before", ["never", "afterFence"])
def test_who_accepts_two_at_once_need_not_wait(before: str) -> None:
    story = edited(before, "afterLost")
    silent(story, LOST_S - 0.1)
    assert story.phase is Phase.UNKNOWN
    silent(story, LOST_S)
    assert story.current.reason == "NodeLost"
    assert "may still run there" in (story.current.message or "")


def test_who_accepts_two_at_once_no_longer_waits_from_now_on() -> None:
    story = edited("afterLost", "never")
    silent(story, DAY_S)
    assert story.phase is Phase.UNKNOWN


def test_the_next_attempt_is_as_the_task_says_by_then() -> None:
    story = edited("never", "afterFence")
    story.exit(1)
    story.wake()
    story.run(boot_id="b1")
    assert build_workload(story.task, story.current, ()).fence
    story.tell(NodeSilent(2, FENCE_END_S, fenced=True, boot_id="b1"))
    assert story.current.reason == "NodeLost"


@pytest.mark.parametrize(("before", "after"), [("never", "afterFence"), ("afterFence", "never")])
def test_a_stop_on_a_silent_node_is_waited_for_as_for_what_is_not_fenced(before: str, after: str) -> None:
    story = edited(before, after)
    story.edit(suspend=True)
    story.reconcile()
    silent(story, 5.0)
    story.wait(DAY_S)
    story.reconcile()
    silent(story, DAY_S)
    assert (story.phase, story.current.state) == (Phase.UNKNOWN, AttemptState.STOPPING)
    story.annotate(ANNOTATION_CANCEL, "x")
    story.reconcile()
    assert story.phase is Phase.CANCELLED
    assert "without proof" in (story.current.message or "")


@pytest.mark.parametrize("after", ["never", "afterLost"])
def test_a_polite_end_by_a_fence_passes_for_no_success_whatever_the_task_says_by_then(after: str) -> None:
    story = edited("afterFence", after)
    assert judged(story, NodeWord(Hearing.SILENT, 25.0)) == "held"
    assert judged(story, NodeWord(Hearing.HEARD, 3.0, boot_id="b1")) == "held"
    assert judged(story, NodeWord(Hearing.VOUCHED, 50.0), waited_s=25.0) is Reason.NODE_LOST


@pytest.mark.parametrize("before", ["never", "afterLost"])
def test_an_end_of_what_no_fence_stops_is_believed_at_once(before: str) -> None:
    story = edited(before, "afterFence")
    for word in (NodeWord(Hearing.SILENT, 25.0), NodeWord(Hearing.HEARD, 3.0, boot_id="b1"), NodeWord(Hearing.VOUCHED, 25.0)):
        assert judged(story, word) is None


def judged(story: Story, word: NodeWord, *, waited_s: float = 1.0) -> Reason | str | None:
    """What is believed of an end with 0; "held": nothing yet."""
    seen: Observation = story.seen(W.EXITED, exit_code=0)
    told = weigh(seen, story.current, story.task.spec, story.policy, word, record=None, unknown=False, waited_s=waited_s)
    return "held" if told is None else told.reason


def from_before(replace: str) -> Story:
    """Its attempt was placed by a version that did not record whether it is fenced."""
    story = Story(nodeLoss={"replace": replace}, terminationGracePeriodSeconds=10)
    story.run(boot_id="b1")
    unknown = story.current.model_copy(update={"fence": None})
    story.task = story.task.model_copy(update={"status": story.status.model_copy(update={"attempts": [unknown]})})
    return story


@pytest.mark.parametrize("replace", ["afterFence", "afterLost", "never"])
def test_of_an_attempt_from_before_this_was_recorded_the_worse_is_taken(replace: str) -> None:
    """It may carry the fence or not: no fence is relied on, and its end is believed as if there were one."""
    story = from_before(replace)
    assert replacing(story.task.spec, story.current) == ("afterLost" if replace == "afterLost" else "never")
    due_s = replace_after_s(story.task.spec, story.current, story.policy, fenced=True)
    assert due_s == (LOST_S if replace == "afterLost" else None)
    assert judged(story, NodeWord(Hearing.SILENT, 25.0)) == "held"
    assert build_workload(story.task, story.current, ()).fence == (replace == "afterFence")


def test_an_attempt_from_before_is_replaced_once_its_engine_has_told_of_its_fence() -> None:
    story = from_before("afterFence")
    silent(story, DAY_S)
    assert (story.phase, story.current.state) == (Phase.UNKNOWN, AttemptState.UNKNOWN)
    assert "whether its node's agent stops it was not recorded" in (story.status.message or "")
    story.tell(MadeWith(1, fence=True))
    assert (story.phase, story.current.state) == (Phase.UNKNOWN, AttemptState.UNKNOWN)
    assert "recorded" not in (story.status.message or "")
    silent(story, FENCE_END_S - 0.1)
    assert story.phase is Phase.UNKNOWN
    silent(story, FENCE_END_S)
    assert story.current.reason == "NodeLost"


def test_an_attempt_from_before_that_its_node_does_not_stop_is_waited_for() -> None:
    story = from_before("afterFence")
    story.tell(MadeWith(1, fence=False))
    silent(story, DAY_S)
    assert story.phase is Phase.UNKNOWN
    assert judged(story, NodeWord(Hearing.SILENT, 25.0)) is None
    assert not build_workload(story.task, story.current, ()).fence


@pytest.mark.parametrize("replace", ["afterFence", "never"])
def test_what_was_recorded_stays(replace: str) -> None:
    story = Story(nodeLoss={"replace": replace})
    story.run(boot_id="b1")
    for event in (MadeWith(1, fence=replace == "never"), MadeWith(2, fence=False)):
        assert not story.tell(event).changed
