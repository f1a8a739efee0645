"""The table of reasons: complete, and consistent with the promises made about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmtask.lifecycle.messages import Reason
from swarmtask.lifecycle.reasons import RULES, Action, Blame

DOCUMENT = Path(__file__).parents[2] / "docs" / "lifecycle.md"


def test_every_reason_has_a_row() -> None:
    assert set(RULES) == set(Reason)


@pytest.mark.parametrize("reason", Reason)
def test_infrastructure_never_uses_the_users_budget(reason: Reason) -> None:
    rule = RULES[reason]
    assert not (rule.infrastructure and rule.counts)


@pytest.mark.parametrize("reason", [Reason.NODE_LOST, Reason.NODE_RESTARTED, Reason.WORKLOAD_LOST])
def test_losses_are_the_infrastructures(reason: Reason) -> None:
    assert RULES[reason].blame is Blame.INFRASTRUCTURE
    assert RULES[reason].action is Action.RETRY


@pytest.mark.parametrize("reason", Reason)
def test_what_is_retried_is_paid_from_some_budget(reason: Reason) -> None:
    rule = RULES[reason]
    if rule.action is Action.RETRY:
        assert rule.counts != rule.infrastructure, "a retry that nothing bounds goes on for ever"
    else:
        assert not rule.counts


@pytest.mark.parametrize("reason", Reason)
def test_the_document_shows_the_same_row(reason: Reason) -> None:
    rule = RULES[reason]
    elsewhere = "yes" if rule.prefers_another_node else "no"
    row = f"| {reason.value} | {rule.blame.value} | {'yes' if rule.counts else 'no'} | {rule.action.value} | {elsewhere} |"
    assert row in DOCUMENT.read_text(encoding="utf-8"), f"docs/lifecycle.md lacks: {row}"
