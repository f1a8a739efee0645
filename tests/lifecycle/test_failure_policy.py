"""failurePolicy: what a person says of a failure wins over the row of its reason, within the bounds that keep retries finite."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmtask.lifecycle.messages import NodeGone, Reason, Vanished
from swarmtask.lifecycle.messages import WorkloadState as W
from swarmtask.lifecycle.reasons import RULES, Action
from swarmtask.lifecycle.task import Policy
from swarmtask.lifecycle.verdicts import Verdict, judge
from swarmtask.resources.failures import FailureRule
from swarmtask.resources.task import LABEL_DEAD_LETTER, Phase
from tests.lifecycle.story import Story

FAILING = [reason for reason, row in RULES.items() if row.action is Action.RETRY]


def rule(action: str, reasons: tuple[str, ...] = (), codes: tuple[int, ...] = ()) -> dict[str, Any]:
    return {"action": action, "onReasons": list(reasons), "onExitCodes": list(codes)}


def rules(*items: dict[str, Any]) -> list[FailureRule]:
    return [FailureRule.model_validate(item) for item in items]


# --- the verdict ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule_", "reason", "code", "fits"),
    [
        (rule("Fail", codes=(2, 3)), Reason.ERROR, 3, True),
        (rule("Fail", codes=(2, 3)), Reason.ERROR, 4, False),
        (rule("Fail", codes=(2, 3)), Reason.IMAGE_PULL_FAILED, None, False),
        (rule("Fail", codes=(137,)), Reason.OOM_KILLED, 137, True),
        (rule("Fail", codes=(255,)), Reason.NODE_RESTARTED, 255, False),
        (rule("Fail", ("NodeRestarted",), (255,)), Reason.NODE_RESTARTED, 255, True),
        (rule("Fail", ("NodeRestarted", "Error")), Reason.NODE_RESTARTED, 255, True),
        (rule("Fail", ("Error",), (1,)), Reason.ERROR, 1, True),
        (rule("Fail", ("Error",), (1,)), Reason.ERROR, 2, False),
        (rule("Fail", ("Error",), (137,)), Reason.OOM_KILLED, 137, False),
        (rule("Fail", ("StartDeadline",)), Reason.START_DEADLINE, None, True),
        (rule("Fail", codes=(143,)), Reason.ACTIVE_DEADLINE, 143, True),
        (rule("Fail", codes=(143,)), Reason.PREEMPTED, 143, False),
    ],
)
def test_all_that_a_rule_gives_must_match(rule_: dict[str, Any], reason: Reason, code: int | None, fits: bool) -> None:
    verdict = judge(rules(rule_), reason, code)
    assert (verdict.rule, verdict.gives_up) == ((1, True) if fits else (None, False))


def test_the_first_rule_that_matches_wins() -> None:
    policy = rules(rule("Ignore", codes=(7,)), rule("Retry", ("Error",)), rule("Fail", ("Error", "OOMKilled")))
    assert judge(policy, Reason.ERROR, 7) == Verdict(counts=False, gives_up=False, rule=1)
    assert judge(policy, Reason.ERROR, 1) == Verdict(counts=True, gives_up=False, rule=2)
    assert judge(policy, Reason.OOM_KILLED, 137) == Verdict(counts=True, gives_up=True, rule=3)
    assert judge(policy, Reason.NODE_LOST, None) == Verdict(counts=False, gives_up=False)


@given(
    st.lists(
        st.builds(
            rule, st.sampled_from(["Retry", "Ignore", "Fail"]),
            st.lists(st.sampled_from([reason.value for reason in FAILING]), max_size=3).map(tuple),
            st.lists(st.integers(0, 255), min_size=1, max_size=3).map(tuple),
        ),
        max_size=5,
    ),
    st.sampled_from(FAILING), st.none() | st.integers(0, 255),
)  # fmt: skip
def test_no_rule_lets_a_loss_of_the_infrastructure_use_the_users_budget(
    policy: list[dict[str, Any]], reason: Reason, code: int | None
) -> None:
    verdict = judge(rules(*policy), reason, code)
    assert not (verdict.counts and RULES[reason].infrastructure)
    if verdict.rule is None:
        assert verdict == Verdict(RULES[reason].counts, RULES[reason].action is Action.FAIL)
    else:
        assert verdict.gives_up == (policy[verdict.rule - 1]["action"] == "Fail")


# --- in the life of a task -----------------------------------------------------------------------------------------------


def test_fail_is_a_dead_letter_at_once_and_names_the_rule() -> None:
    story = Story(backoffLimit=5, failurePolicy=[rule("Ignore", codes=(7,)), rule("Fail", codes=(2,))])
    story.run()
    story.exit(2, message="bad usage")
    assert (story.phase, story.status.reason, story.status.failures) == (Phase.FAILED, "Error", 1)
    assert story.task.metadata.labels[LABEL_DEAD_LETTER] == "true"
    for words in ("failurePolicy rule 2", "exit code 2", "bad usage", "laptop-1"):
        assert words in story.status.message
    failed = next(condition for condition in story.status.conditions if condition.type == "Failed")
    assert "failurePolicy rule 2" in failed.message
    assert failed.message.count("bad usage") == 1


def test_ignore_does_not_use_the_budget_but_is_bounded() -> None:
    story = Story(Policy(infrastructure_loss_limit=3), backoffLimit=0, failurePolicy=[rule("Ignore", codes=(7,))])
    for number in range(1, 5):
        story.run()
        story.exit(7)
        if number < 4:
            assert (story.phase, story.status.failures, story.status.infrastructure_losses) == (Phase.BACKOFF, 0, number)
            story.wake()
    assert (story.phase, story.status.failures) == (Phase.FAILED, 0)
    assert "4 attempts were lost or, as by failurePolicy rule 1, ignored (limit 3)" in story.status.message


def test_retry_before_a_broader_rule_is_an_exception_from_it() -> None:
    story = Story(backoffLimit=1, failurePolicy=[rule("Retry", codes=(75,)), rule("Fail", ("Error",))])
    story.run()
    story.exit(75)
    assert (story.phase, story.status.failures) == (Phase.BACKOFF, 1)
    story.wake()
    story.run()
    story.exit(75)
    assert (story.phase, story.status.failures) == (Phase.FAILED, 2)
    assert "backoffLimit 1 is used up" in story.status.message


@pytest.mark.parametrize("action", ["Retry", "Ignore"])
def test_a_retried_loss_of_the_infrastructure_stays_on_its_own_bound(action: str) -> None:
    story = Story(Policy(infrastructure_loss_limit=1), backoffLimit=0, failurePolicy=[rule(action, ("NodeLost",))])
    story.run()
    story.tell(NodeGone(1, "left"))
    assert (story.phase, story.status.failures, story.status.infrastructure_losses) == (Phase.BACKOFF, 0, 1)
    story.wake()
    story.run()
    story.tell(NodeGone(2, "left"))
    assert story.phase is Phase.FAILED
    assert "lost 2 attempts through no fault of the task (limit 1)" in story.status.message


def test_a_loss_that_must_not_be_repeated() -> None:
    story = Story(failurePolicy=[rule("Fail", ("NodeLost", "WorkloadLost"))])
    story.run()
    story.tell(Vanished(1))
    assert (story.phase, story.status.reason) == (Phase.FAILED, "WorkloadLost")
    assert "failurePolicy rule 1" in story.status.message


@pytest.mark.parametrize(("started", "reason"), [(False, "StartDeadline"), (True, "ActiveDeadline")])
def test_deadlines_can_be_ruled(started: bool, reason: str) -> None:
    story = Story(activeDeadlineSeconds=50, startDeadlineSeconds=50, failurePolicy=[rule("Fail", (reason,))])
    story.reconcile()
    story.bind()
    story.observe(W.RUNNING if started else W.PREPARING)
    story.wake()
    story.observe(W.STOPPED)
    assert (story.phase, story.status.reason) == (Phase.FAILED, reason)
    assert "failurePolicy rule 1" in story.status.message


def test_an_edit_of_the_policy_is_for_the_next_failure() -> None:
    story = Story(backoffLimit=5, failurePolicy=[rule("Ignore", ("Error",))])
    story.run()
    story.exit(1)
    story.edit(failure_policy=rules(rule("Fail", ("Error",))))
    story.reconcile()
    assert story.phase is Phase.BACKOFF
    story.wake()
    story.run()
    story.exit(1)
    assert (story.phase, story.status.failures, story.status.infrastructure_losses) == (Phase.FAILED, 1, 1)


def test_why_there_is_no_other_attempt_is_never_cut_off() -> None:
    story = Story(failurePolicy=[rule("Fail", ("Error",))])
    story.run()
    story.exit(1, message="ü" * 10_000)
    assert story.status.message.endswith("failurePolicy rule 1")
    failed = next(condition for condition in story.status.conditions if condition.type == "Failed")
    assert failed.message.endswith("failurePolicy rule 1")


def test_a_dead_letter_of_lost_attempts_shows_each_of_the_newest_ten() -> None:
    story = Story(Policy(infrastructure_loss_limit=20), backoff={"initialSeconds": 0})
    for number in range(1, 22):
        story.run(f"node-{number}")
        story.tell(NodeGone(number, f"gone {number}"))
    assert (story.phase, story.status.reason, story.status.failures) == (Phase.FAILED, "NodeLost", 0)
    assert "lost 21 attempts through no fault of the task (limit 20)" in story.status.message
    failed = next(condition for condition in story.status.conditions if condition.type == "Failed")
    for number in range(12, 22):
        assert f"attempt {number} on node-{number}: NodeLost: gone {number}" in failed.message
        assert failed.message.count(f"gone {number}") == 1
    assert "gone 11" not in failed.message
    assert "lost 21 attempts" in failed.message
