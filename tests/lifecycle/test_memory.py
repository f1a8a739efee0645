"""The memory ladder: what the next attempt asks for, what bounds it, what is kept of it, and what happens at its end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmtask.lifecycle.memory import climb, limit_bytes, planned
from swarmtask.lifecycle.messages import Bound, NodeGone, Reason, Unplaced
from swarmtask.lifecycle.messages import WorkloadState as W
from swarmtask.resources import units
from swarmtask.resources.failures import FailureRule
from swarmtask.resources.meta import get_condition
from swarmtask.resources.task import ANNOTATION_RETRY, Attempt, MemoryPlan, Phase, Requested
from tests.lifecycle.story import Story, make_task

MIB = 2**20


def climbing(factor: float = 1.5, most: str | None = "8Gi", **spec: Any) -> Story:
    rule = {"onReasons": ["OOMKilled"], "action": "Retry", "memoryFactor": factor} | ({"maxMemory": most} if most else {})
    return Story(**{"failurePolicy": [rule], "backoffLimit": 9, "backoff": {"initialSeconds": 0}} | spec)


def auto(**spec: Any) -> Story:
    spec["container"] = {"image": "busybox", "resources": {"requests": {"memory": "auto"}, **spec.pop("resources", {})}}
    return Story(**{"backoffLimit": 9, "backoff": {"initialSeconds": 0}} | spec)


def killed(story: Story) -> None:
    """One more attempt that was OOMKilled, and the wait after it."""
    story.run()
    story.exit(137, reason=Reason.OOM_KILLED)
    story.wait(2)
    story.reconcile()


def asked(story: Story) -> list[str]:
    return [attempt.requested.memory for attempt in story.status.attempts]


def learned(request: str, limit: str | None = None) -> MemoryPlan:
    return MemoryPlan(request=request, limit=limit or request, basis="Learned", samples=5, message="p95 of 5 attempts + 20 %")


# --- climbing ------------------------------------------------------------------------------------------------------------


def test_without_a_rule_the_same_is_asked_for_again() -> None:
    story = Story(backoff={"initialSeconds": 0})
    for _ in range(2):
        killed(story)
    assert asked(story) == ["512Mi", "512Mi"]
    assert story.status.memory is None
    assert story.status.failures == 2


def test_each_step_is_a_factor_higher_up_to_the_most() -> None:
    story = climbing(2, "1536Mi")
    for _ in range(4):
        killed(story)
    assert asked(story) == ["512Mi", "1Gi", "1536Mi", "1536Mi"]
    assert [attempt.requested.memory_limit for attempt in story.status.attempts][1:] == ["1Gi", "1536Mi", "1536Mi"]
    assert story.status.failures == 4, "every step uses up one of backoffLimit"
    assert story.phase is Phase.QUEUED


def test_the_next_step_is_in_the_status_before_it_is_taken() -> None:
    story = climbing()
    story.run()
    story.exit(137, reason=Reason.OOM_KILLED)
    plan = story.status.memory
    assert (plan.request, plan.limit, plan.basis) == ("768Mi", "768Mi", "Ladder")
    assert plan.message == "1.5 times the 512Mi of attempt 1, which ended OOMKilled"
    assert "MoreMemory" in story.reasons()


def test_the_limit_grows_with_the_request() -> None:
    resources = {"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}}
    story = climbing(1.5, "4Gi", container={"image": "busybox", "resources": resources})
    for _ in range(4):
        killed(story)
    assert asked(story) == ["1Gi", "1536Mi", "2304Mi", "2304Mi"], "to set more aside under the same limit does not help"
    assert [attempt.requested.memory_limit for attempt in story.status.attempts] == ["2Gi", "3Gi", "4Gi", "4Gi"]
    assert "and no more than 4Gi" in story.status.memory.message


def test_other_failures_and_losses_keep_the_step() -> None:
    story = climbing()
    killed(story)
    story.run()
    story.exit(1)
    story.wait(2)
    story.run("laptop-2")
    story.tell(NodeGone(3, "left the swarm"))
    story.wait(2)
    story.run()
    assert asked(story) == ["512Mi", "768Mi", "768Mi", "768Mi"]


def test_a_rule_may_name_other_failures_than_oomkilled() -> None:
    rule = {"onExitCodes": [3], "action": "Retry", "memoryFactor": 2.0}
    story = Story(failurePolicy=[rule], backoff={"initialSeconds": 0})
    story.run()
    story.exit(3)
    assert story.status.memory.request == "1Gi"


def test_an_edit_of_the_spec_that_asks_for_more_wins_and_one_that_asks_for_less_does_not() -> None:
    story = climbing()
    killed(story)
    container = story.task.spec.container
    for memory, expected in (("4Gi", "4Gi"), ("256Mi", "768Mi")):
        requests = container.resources.requests.model_copy(update={"memory": memory})
        resources = container.resources.model_copy(update={"requests": requests})
        spec = story.task.spec.model_copy(update={"container": container.model_copy(update={"resources": resources})})
        plan = planned(spec, story.status)
        assert (memory if plan is None else plan.request) == expected


def test_a_retry_by_hand_begins_at_the_bottom() -> None:
    story = climbing(backoffLimit=0)
    killed(story)
    assert story.phase is Phase.FAILED
    assert story.status.memory is None, "there is no next attempt"
    story = climbing(backoffLimit=1)
    killed(story)
    killed(story)
    assert story.phase is Phase.FAILED
    story.annotate(ANNOTATION_RETRY, "1")
    story.run()
    assert asked(story)[-1] == "512Mi"
    assert story.status.memory is None


def test_an_attempt_without_a_limit_has_nothing_to_climb() -> None:
    story = climbing(container={"image": "busybox", "resources": {"requests": {"memory": "0"}}})
    killed(story)
    assert story.status.memory is None


@given(
    st.sampled_from(["1", "100Mi", "1Gi", "0", "999999999999999999E"]), st.sampled_from([None, "1Gi", "3Gi", "8Ei"]),
    st.floats(1, 16), st.sampled_from([None, "0", "512Mi", "3Gi", "1Ei"]),
)  # fmt: skip
def test_a_step_never_goes_down_and_never_above_the_most(request_: str, limit: str | None, factor: float, most: str | None) -> None:
    if limit is not None and units.memory_bytes(limit) < units.memory_bytes(request_):
        limit = request_
    limits = {} if limit is None else {"limits": {"memory": limit}}
    spec = make_task(container={"image": "busybox", "resources": {"requests": {"memory": request_}, **limits}}).spec
    attempt = Attempt(number=1, id="a", node="n", engine="e", requested=Requested(memory=request_, memory_limit=limit))
    rule = FailureRule(on_reasons=["OOMKilled"], action="Retry", memory_factor=factor, max_memory=most)
    step, before = climb(spec, attempt, Reason.OOM_KILLED, rule), limit_bytes(spec, attempt)
    if step is None:
        assert factor == 1 or before == 0 or before >= 2**60 or (most is not None and units.memory_bytes(most) <= before)
        return
    request, grown = units.memory_bytes(step.request), units.memory_bytes(step.limit)
    assert units.memory_bytes(request_) <= request <= grown
    assert grown >= before
    if most is not None:
        assert grown <= max(units.memory_bytes(most), before)
    assert grown <= before * factor + MIB


# --- auto ----------------------------------------------------------------------------------------------------------------


def test_auto_asks_for_what_was_counted_when_it_was_placed() -> None:
    story = auto()
    story.reconcile()
    story.tell(Bound("laptop-1", "swarm", "id", memory=learned("1200Mi")))
    assert (story.current.requested.memory, story.current.requested.memory_limit) == ("1200Mi", "1200Mi")
    assert story.status.memory == learned("1200Mi")


def test_auto_without_anything_known_is_the_default() -> None:
    story = auto()
    story.run()
    assert (story.current.requested.memory, story.current.requested.memory_limit) == ("512Mi", "512Mi")


def test_a_waiting_task_shows_what_it_would_ask_for() -> None:
    story = auto()
    story.reconcile()
    story.tell(Unplaced(1, "NoNodeFits", "0/1 nodes fit", memory=learned("3Gi")))
    assert story.status.memory.message == "p95 of 5 attempts + 20 %"


def test_auto_climbs_without_a_rule_and_only_when_it_was_killed_for_memory() -> None:
    story = auto()
    story.run()
    story.exit(1)
    story.wait(2)
    for _ in range(2):
        killed(story)
    story.run()
    assert asked(story) == ["512Mi", "512Mi", "1Gi", "2Gi"]


def test_the_larger_of_ladder_and_learned_is_asked_for_and_the_step_is_not_forgotten() -> None:
    story = auto()
    killed(story)
    story.tell(Unplaced(1, "NoNodeFits", "0/1 nodes fit", memory=learned("3Gi")))
    assert story.status.memory.basis == "Ladder"
    assert planned(story.task.spec, story.status, learned("3Gi")) == learned("3Gi")
    assert planned(story.task.spec, story.status, learned("600Mi")) == story.status.memory
    story.tell(Bound("laptop-1", "swarm", "id", memory=learned("3Gi")))
    assert story.current.requested.memory == "3Gi"
    assert story.status.memory.request == "1Gi"


def test_a_limit_that_a_person_has_set_bounds_auto_and_its_ladder() -> None:
    story = auto(resources={"limits": {"memory": "768Mi"}})
    assert planned(story.task.spec, story.status, learned("3Gi")) == learned("768Mi")
    for _ in range(3):
        killed(story)
    assert asked(story) == ["512Mi", "512Mi", "512Mi"]
    assert {attempt.requested.memory_limit for attempt in story.status.attempts} == {"768Mi"}


def test_a_rule_stretches_the_limit_of_auto() -> None:
    rule = {"onReasons": ["OOMKilled"], "action": "Retry", "memoryFactor": 2.0}
    story = auto(resources={"limits": {"memory": "768Mi"}}, failurePolicy=[rule])
    killed(story)
    story.run()
    assert story.current.requested.memory_limit == "1536Mi"


# --- the end of the ladder -----------------------------------------------------------------------------------------------

WHY = "the next attempt needs 1152Mi of memory, and the only node that may run it offers 1Gi"


def test_a_step_that_no_node_can_take_is_a_dead_letter_with_the_peaks_of_every_attempt() -> None:
    story = climbing()
    for peak in ("500Mi", "760Mi"):
        killed(story)
        attempts = [*story.status.attempts[:-1], story.current.model_copy(update={"peak_memory": peak})]
        story.task = story.task.model_copy(update={"status": story.status.model_copy(update={"attempts": attempts})})
    assert story.phase is Phase.QUEUED
    story.tell(Unplaced(1, "NoNodeFits", "0/1 node fits: 1 too little memory", out_of_reach=WHY))
    assert (story.phase, story.status.reason) == (Phase.FAILED, "OOMKilled")
    assert story.status.message == f"attempt 2 on laptop-1: OOMKilled, exit code 137, peak memory 760Mi of 768Mi; {WHY}"
    failed = get_condition(story.status.conditions, "Failed")
    assert failed is not None
    assert "attempt 1 on laptop-1: OOMKilled, exit code 137, peak memory 500Mi of 512Mi" in failed.message
    assert story.task.metadata.labels["swarmtask.io/dead-letter"] == "true"
    assert "DeadLetter" in story.reasons()


@pytest.mark.parametrize("fails", [False, True])
def test_one_that_has_not_climbed_waits(fails: bool) -> None:
    story = climbing()
    if fails:
        story.run()
        story.exit(1)
        story.wait(2)
    story.reconcile()
    story.tell(Unplaced(1, "NoNodeFits", "0/1 node fits", out_of_reach=WHY))
    assert story.phase is Phase.QUEUED


@pytest.mark.parametrize("ends", ["lost", "fails"])
def test_a_step_that_some_node_could_give_is_waited_for(ends: str) -> None:
    """The node that gave it has gone with the attempt: that is no failure of the task, and another one as large may come."""
    story = climbing()
    killed(story)
    story.run()
    assert asked(story) == ["512Mi", "768Mi"]
    if ends == "lost":
        story.tell(NodeGone(2, "left the swarm"))
    else:
        story.exit(1)
    story.wait(2)
    story.reconcile()
    assert story.phase is Phase.QUEUED
    story.tell(Unplaced(1, "NoNodeFits", "0/1 node fits", out_of_reach=WHY))
    assert (story.phase, story.status.reason) == (Phase.QUEUED, "NoNodeFits")
    killed(story)
    story.tell(Unplaced(1, "NoNodeFits", "0/1 node fits", out_of_reach=WHY))
    assert (story.phase, story.status.reason) == (Phase.FAILED, "OOMKilled")


def test_an_attempt_that_nobody_measured_says_so() -> None:
    story = climbing(backoffLimit=0)
    killed(story)
    assert "OOMKilled, exit code 137, with 512Mi of memory" in story.status.message


def test_a_peak_is_told_of_any_failure_where_it_is_known() -> None:
    story = climbing(backoffLimit=0)
    story.run()
    story.task = story.task.model_copy(
        update={"status": story.status.model_copy(update={"attempts": [story.current.model_copy(update={"peak_memory": "1Gi"})]})}
    )
    story.observe(W.EXITED, exit_code=2)
    assert "Error, exit code 2, peak memory 1Gi of 512Mi" in story.status.message
