"""What follows from one failed attempt: a person's rule where one matches, else the row of its reason.

Called by `Draft` when an attempt has failed or was preempted. Pure, and about one attempt only: the counters and what is done
about them are the Draft's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarmtask.lifecycle.messages import Reason
from swarmtask.lifecycle.reasons import RULES, Action
from swarmtask.resources.failures import FailureRule


@dataclass(frozen=True, slots=True)
class Verdict:
    """Attributes:
    counts: uses up one of the user's `backoffLimit`; otherwise one of `Policy.infrastructure_loss_limit`.
    gives_up: a dead letter at once, whatever is left of either.
    rule: number of the rule of `failurePolicy` that says so, counted from 1; None: no rule matched.
    """

    counts: bool
    gives_up: bool
    rule: int | None = None


def rule_of(rules: Sequence[FailureRule], verdict: Verdict) -> FailureRule | None:
    """The rule that the verdict names."""
    return None if verdict.rule is None else rules[verdict.rule - 1]


def judge(rules: Sequence[FailureRule], reason: Reason, exit_code: int | None) -> Verdict:
    """The verdict about an attempt that ended with this reason and exit code.

    The first rule that matches wins. Retry pays from the budget of the reason's row, so that a loss of the infrastructure never
    uses the user's (LIFECYCLE I8), whatever a rule says.
    """
    row = RULES[reason]
    for number, rule in enumerate(rules, start=1):
        if matches(rule, reason, exit_code):
            return Verdict(row.counts and rule.action != "Ignore", rule.action == "Fail", number)
    return Verdict(row.counts, row.action is Action.FAIL)


def matches(rule: FailureRule, reason: Reason, exit_code: int | None) -> bool:
    """Whether a rule speaks of such an attempt: all that it gives must be so.

    A rule of exit codes alone does not speak of losses of the infrastructure: a node that restarts leaves an exit code too, but it
    is not the program's. A rule that names such a reason as well does.
    """
    if rule.on_reasons:
        if reason.value not in rule.on_reasons:
            return False
    elif RULES[reason].infrastructure:
        return False
    return not rule.on_exit_codes or exit_code in rule.on_exit_codes
