"""What must hold of task objects over time: I1, I3, I4, I5, I8, and of one object at a time I2."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from swarmtask.lifecycle.messages import Reason
from swarmtask.lifecycle.reasons import RULES
from swarmtask.resources.task import TERMINAL_PHASES, Attempt, Phase, SwarmTask, attempt_id
from tests.checker.violation import ViolationLog, digits_of

_FINAL_FIELDS = ("id", "node", "engine", "state", "reason", "exit_code", "bound_at", "started_at", "finished_at", "message")
_FIXED_FIELDS = ("id", "node", "engine", "engine_node_id", "bound_at", "requested")


@dataclass
class _Known:
    """What is remembered of one task."""

    namespace: str
    name: str
    uid: str
    last: SwarmTask | None = None
    acknowledged_at: datetime | None = None
    delete_requested: bool = False
    deleted_at: datetime | None = None
    highest_version: int = 0

    @property
    def subject(self) -> str:
        return f"{self.namespace}/{self.name} ({self.uid})"


class TaskRules:
    """Compares each version of a task with the one before."""

    def __init__(self, log: ViolationLog, infrastructure_loss_limit: int) -> None:
        self._log = log
        self._limit = infrastructure_loss_limit
        self._tasks: dict[str, _Known] = {}
        self._by_digits: dict[str, _Known] = {}

    # --- facts -----------------------------------------------------------------------------------------------------------

    def acknowledged(self, namespace: str, name: str, uid: str, at: datetime) -> None:
        self._known(namespace, name, uid).acknowledged_at = at

    def delete_requested(self, uid: str) -> None:
        if uid in self._tasks:
            self._tasks[uid].delete_requested = True

    def seen(self, task: SwarmTask, at: datetime) -> None:
        namespace, name = task.key
        known = self._known(namespace, name, task.metadata.uid)
        if known.deleted_at is not None:
            self._log.add("I10", known.subject, at, f"shown again after it was deleted at {known.deleted_at.isoformat()}")
            return
        self._check_version(known, task, at)
        self._check_one(known, task, at)
        if known.last is not None:
            self._check_pair(known, known.last, task, at)
        known.last = task

    def deleted(self, uid: str, at: datetime) -> None:
        known = self._tasks.get(uid)
        if known is None:
            return
        known.deleted_at = at
        asked = known.delete_requested or (known.last is not None and known.last.metadata.deletion_timestamp is not None)
        asked = asked or _run_of_an_array(known)
        if not asked and not self._lived_out(known, at):
            phase = known.last.status.phase.value if known.last is not None else "never seen"
            self._log.add("I1", known.subject, at, f"is gone, but nobody deleted it (phase {phase}, time to live not over)")
        if known.last is not None and any(attempt.live for attempt in known.last.status.attempts):
            self._log.add("I6", known.subject, at, "is gone while an attempt is live")

    def listed(self, uids: set[str], at: datetime) -> None:
        for known in self._tasks.values():
            if known.uid in uids or known.deleted_at is not None or self._lived_out(known, at) or known.delete_requested:
                continue
            if known.acknowledged_at is None and known.last is None:
                continue
            if known.last is not None and (known.last.metadata.deletion_timestamp is not None or _run_of_an_array(known)):
                continue
            acked = f", acknowledged at {known.acknowledged_at.isoformat()}" if known.acknowledged_at else ""
            self._log.add("I1", known.subject, at, f"is not in the full list{acked}, and nobody deleted it")

    # --- reading ---------------------------------------------------------------------------------------------------------

    def unfinished(self) -> list[str]:
        lines = []
        for known in self._tasks.values():
            if known.deleted_at is None and (known.last is None or not known.last.finished):
                lines.append(f"{known.namespace}/{known.name} {known.last.status.phase.value if known.last else 'never seen'}")
        return sorted(lines)

    def owner(self, digits: str) -> tuple[SwarmTask | None, datetime | None] | None:
        """(last version, when it was deleted) of the task with these UID digits; None when no such task is known."""
        known = self._by_digits.get(digits)
        return None if known is None else (known.last, known.deleted_at)

    def subject(self, digits: str) -> str:
        known = self._by_digits.get(digits)
        return known.subject if known is not None else f"unknown task {digits}"

    # --- rules -----------------------------------------------------------------------------------------------------------

    def _known(self, namespace: str, name: str, uid: str) -> _Known:
        if uid not in self._tasks:
            self._tasks[uid] = self._by_digits[digits_of(uid)] = _Known(namespace, name, uid)
        return self._tasks[uid]

    def _lived_out(self, known: _Known, at: datetime) -> bool:
        last = known.last
        if last is None or not last.finished or last.status.completion_time is None:
            return False
        return last.status.completion_time + timedelta(seconds=last.spec.ttl_seconds_after_finished) <= at

    def _check_version(self, known: _Known, task: SwarmTask, at: datetime) -> None:
        if not task.metadata.resource_version.isdigit():
            return
        version = int(task.metadata.resource_version)
        if version < known.highest_version:
            self._log.add("I10", known.subject, at, f"resourceVersion {version} after {known.highest_version}")
        elif version == known.highest_version and known.last is not None and known.last.status != task.status:
            self._log.add("I10", known.subject, at, f"two different objects with resourceVersion {version}")
        known.highest_version = max(known.highest_version, version)

    def _check_one(self, known: _Known, task: SwarmTask, at: datetime) -> None:
        status = task.status
        live = [attempt for attempt in status.attempts if attempt.live]
        numbers = [attempt.number for attempt in status.attempts]
        if len(live) > 1:
            self._log.add("I2", known.subject, at, f"attempts {[attempt.number for attempt in live]} are live at once")
        if live and live[-1].number != status.attempt:
            self._log.add("I5", known.subject, at, f"attempt {live[-1].number} is live, but {status.attempt} is the current one")
        if live and status.phase in TERMINAL_PHASES:
            self._log.add("I3", known.subject, at, f"{status.phase.value} while attempt {live[-1].number} is live")
        if numbers != sorted(set(numbers)) or (numbers and numbers[-1] != status.attempt):
            self._log.add("I4", known.subject, at, f"attempt records {numbers}, current attempt {status.attempt}")
        for attempt in status.attempts:
            if attempt.id != attempt_id(known.uid, attempt.number):
                self._log.add("I4", known.subject, at, f"attempt {attempt.number} is named {attempt.id}")
        complete = {condition.type: condition.status == "True" for condition in status.conditions}
        if complete.get("Complete", False) != (status.phase is Phase.SUCCEEDED) and status.conditions:
            self._log.add("I3", known.subject, at, f"phase {status.phase.value} with condition Complete={complete.get('Complete')}")

    def _check_pair(self, known: _Known, old: SwarmTask, new: SwarmTask, at: datetime) -> None:
        before, after = old.status, new.status
        retried = after.observed_retry != before.observed_retry and before.phase is not Phase.SUCCEEDED
        if before.phase in TERMINAL_PHASES and not retried:
            if after.phase is not before.phase:
                self._log.add("I3", known.subject, at, f"{before.phase.value} became {after.phase.value} without a retry")
            elif after.attempt != before.attempt:
                self._log.add(
                    "I3", known.subject, at, f"{before.phase.value}, yet attempt {after.attempt} followed {before.attempt}"
                )
        if after.attempt < before.attempt:
            self._log.add("I4", known.subject, at, f"attempt number went from {before.attempt} back to {after.attempt}")
        records = {attempt.number: attempt for attempt in before.attempts}
        for attempt in after.attempts:
            earlier = records.get(attempt.number)
            if earlier is None:
                if attempt.number <= before.attempt:
                    self._log.add("I4", known.subject, at, f"attempt {attempt.number} appeared after attempt {before.attempt}")
                continue
            fields = _FIXED_FIELDS if earlier.live else _FINAL_FIELDS
            changed = [name for name in fields if getattr(earlier, name) != getattr(attempt, name)]
            if earlier.live and "bound_at" in changed and _set_back(earlier, attempt):
                changed.remove("bound_at")
            if changed and not _finished_away(earlier, attempt, old, new):
                ended = "" if earlier.live else f" though it had ended ({earlier.state.value})"
                self._log.add("I5", known.subject, at, f"attempt {attempt.number} changed {', '.join(changed)}{ended}")
        if not (retried and before.phase in TERMINAL_PHASES):
            self._check_budget(known, old, new, at)

    def _check_budget(self, known: _Known, old: SwarmTask, new: SwarmTask, at: datetime) -> None:
        before, after = old.status, new.status
        was_live = {attempt.number for attempt in before.attempts if attempt.live}
        ended = [a for a in after.attempts if not a.live and (a.number in was_live or a.number > before.attempt)]
        unseen = after.attempt - before.attempt > len(after.attempts)  # more attempts went by than are recorded
        counting = [attempt for attempt in ended if _counts(attempt, new)]
        if after.failures - before.failures > len(counting) and not unseen:
            told = ", ".join(f"{attempt.number} {attempt.reason}" for attempt in ended) or "none"
            self._log.add(
                "I8", known.subject, at, f"failures went from {before.failures} to {after.failures}; attempts that ended: {told}"
            )
        gave_up = after.phase is Phase.FAILED and before.phase is not Phase.FAILED and bool(ended)
        fails = bool(ended) and _wished(ended[-1], new) == "Fail"
        bounded = bool(ended) and (_infrastructure(ended[-1]) or _wished(ended[-1], new) == "Ignore")
        if gave_up and not fails and bounded and after.infrastructure_losses <= self._limit:
            self._log.add(
                "I8", known.subject, at,
                f"Failed by {ended[-1].reason} after {after.infrastructure_losses} losses, limit {self._limit}",
            )  # fmt: skip
        newest = after.attempts[-1] if after.attempts else None
        later = after.phase is Phase.FAILED and before.phase is not Phase.FAILED and not ended and newest is not None
        if later and after.reason == newest.reason and _infrastructure(newest) and _wished(newest, new) is None:
            self._log.add("I8", known.subject, at, f"Failed while it waited, for {newest.reason} of attempt {newest.number}")


def _run_of_an_array(known: _Known) -> bool:
    """Its array deletes it, and answers for it (`tests.checker.arrays`)."""
    return known.last is not None and known.last.array_owner is not None


_STOPPED = (Reason.DRAINED, Reason.PREEMPTED, Reason.EVICTED, Reason.ATTEMPT_DELETED, Reason.SUSPENDED)


def _set_back(earlier: Attempt, later: Attempt) -> bool:
    """The clock was set back, and a time that lay ahead was taken as now."""
    return earlier.bound_at is not None and later.bound_at is not None and later.bound_at < earlier.bound_at


def _finished_away(earlier: Attempt, later: Attempt, old: SwarmTask, new: SwarmTask) -> bool:
    """It was given up unseen, with its node or when it was to stop, nothing had followed it, and its node told that it had
    completed there."""
    current = old.status.attempt == new.status.attempt == later.number and old.status.phase not in TERMINAL_PHASES
    done = later.reason == Reason.COMPLETED and new.status.phase is Phase.SUCCEEDED
    unseen = earlier.exit_code is None and earlier.reason in _STOPPED
    return current and (unseen or earlier.reason == Reason.NODE_LOST) and done


def _row(attempt: Attempt) -> Reason | None:
    return Reason(attempt.reason) if attempt.reason in set(Reason) else None


def _counts(attempt: Attempt, task: SwarmTask) -> bool:
    reason = _row(attempt)
    return reason is not None and RULES[reason].counts and _wished(attempt, task) != "Ignore"


def _wished(attempt: Attempt, task: SwarmTask) -> str | None:
    """What the person's failurePolicy says of the attempt; None: nothing. Exit codes alone say nothing of infrastructure."""
    for rule in task.spec.failure_policy:
        reason_fits = attempt.reason in rule.on_reasons if rule.on_reasons else not _infrastructure(attempt)
        if reason_fits and (not rule.on_exit_codes or attempt.exit_code in rule.on_exit_codes):
            return rule.action
    return None


def _infrastructure(attempt: Attempt) -> bool:
    reason = _row(attempt)
    return reason is not None and RULES[reason].infrastructure
