"""What each typed reason means: one row per `Reason`, nothing else.

Called by the state machine (may it try again, whose budget pays), by the CLI and by the documentation's test. A new reason is a new
row here; code elsewhere asks the row and never compares reasons to decide a policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from swarmtask.lifecycle.messages import Reason


class Blame(StrEnum):
    """Who caused it. USER: the task itself. INFRASTRUCTURE: node, engine or operator. POLICY: a rule or a person's wish."""

    USER = "user"
    INFRASTRUCTURE = "infrastructure"
    POLICY = "policy"


class Action(StrEnum):
    """What follows by default. RETRY: another attempt while the budget lasts. FAIL: a dead letter at once. STOP: no failure; the
    rule that caused it says what is next."""

    RETRY = "retry"
    FAIL = "fail"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class ReasonRule:
    """One row.

    Attributes:
        counts: uses up one of the user's `backoffLimit` (never for infrastructure: LIFECYCLE I8).
        prefers_another_node: the next attempt has better chances elsewhere.
        meaning: one sentence for a person.
    """

    blame: Blame
    counts: bool
    action: Action
    prefers_another_node: bool
    meaning: str

    @property
    def infrastructure(self) -> bool:
        """Bounded by `Policy.infrastructure_loss_limit` instead of `backoffLimit`."""
        return self.blame is Blame.INFRASTRUCTURE


RULES: Mapping[Reason, ReasonRule] = MappingProxyType(
    {
        Reason.COMPLETED: ReasonRule(Blame.USER, False, Action.STOP, False, "The main process ended with exit code 0."),
        Reason.ERROR: ReasonRule(Blame.USER, True, Action.RETRY, False, "The main process ended with another exit code."),
        Reason.OOM_KILLED: ReasonRule(Blame.USER, True, Action.RETRY, False, "The task used more memory than its own limit."),
        Reason.NODE_LOST: ReasonRule(
            Blame.INFRASTRUCTURE, False, Action.RETRY, True, "The node was lost, or left its engine, while the attempt was on it."
        ),
        Reason.NODE_RESTARTED: ReasonRule(
            Blame.INFRASTRUCTURE, False, Action.RETRY, False, "The node restarted under the attempt; its exit code means nothing."
        ),
        Reason.WORKLOAD_LOST: ReasonRule(
            Blame.INFRASTRUCTURE, False, Action.RETRY, False, "The engine lost the workload, or how it ended."
        ),
        Reason.IMAGE_PULL_FAILED: ReasonRule(Blame.USER, True, Action.RETRY, True, "The node could not get the image."),
        Reason.START_DEADLINE: ReasonRule(
            Blame.POLICY, True, Action.RETRY, True, "Not running within startDeadlineSeconds of being placed."
        ),
        Reason.ACTIVE_DEADLINE: ReasonRule(Blame.POLICY, True, Action.RETRY, False, "Ran longer than activeDeadlineSeconds."),
        Reason.QUEUE_DEADLINE: ReasonRule(
            Blame.POLICY, False, Action.STOP, False, "Did not start within queueDeadlineSeconds of entering the queue."
        ),
        Reason.ENGINE_REJECTED: ReasonRule(Blame.USER, True, Action.RETRY, True, "The engine or the node refused the workload."),
        Reason.SECRET_NOT_FOUND: ReasonRule(
            Blame.USER, True, Action.RETRY, False, "A Secret or a key that the task needs does not exist (yet)."
        ),
        Reason.EVICTED: ReasonRule(
            Blame.INFRASTRUCTURE, False, Action.RETRY, True, "The node stopped it because the machine ran out of memory."
        ),
        Reason.PREEMPTED: ReasonRule(
            Blame.INFRASTRUCTURE, False, Action.RETRY, False, "A task of higher priority needed the room."
        ),
        Reason.DRAINED: ReasonRule(
            Blame.POLICY, False, Action.STOP, False, "A person drained its node: it is queued again in its old place."
        ),
        Reason.ATTEMPT_DELETED: ReasonRule(
            Blame.POLICY, False, Action.STOP, False, "A person ended the attempt: the task is queued again in its old place."
        ),
        Reason.DEDUPLICATED: ReasonRule(
            Blame.POLICY, False, Action.STOP, False, "Another task with the same dedupeKey did the work."
        ),
        Reason.SUSPENDED: ReasonRule(Blame.POLICY, False, Action.STOP, False, "spec.suspend was set."),
        Reason.CANCELLED: ReasonRule(Blame.POLICY, False, Action.STOP, False, "A person cancelled the task."),
        Reason.DELETED: ReasonRule(Blame.POLICY, False, Action.STOP, False, "The task was deleted."),
        Reason.INVALID_OBJECT: ReasonRule(
            Blame.USER, False, Action.FAIL, False, "The stored object does not satisfy the model of its kind."
        ),
    }
)


def named(name: str | None) -> Reason | None:
    """The reason of that name; None for one that has no row here: a newer version may have written it."""
    return None if name is None else _BY_NAME.get(name)


_BY_NAME = {reason.value: reason for reason in Reason}
