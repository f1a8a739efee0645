"""What must hold of arrays: each index recorded once and never run again (I3), none lost (I1), counts that add up."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from swarmtask.lifecycle.array import DEFAULT_PARALLELISM
from swarmtask.lifecycle.intervals import Intervals, parse
from swarmtask.lifecycle.members import index_of
from swarmtask.resources.task import ArrayStatus, Phase, SwarmTask
from tests.checker.violation import ViolationLog


@dataclass
class _Run:
    """One member, by its UID."""

    index: int
    attempt: int = 0
    live: bool = False
    retried: bool = False
    """By a person, one by one: such a run goes on beside the waves of its array."""
    phase: Phase = Phase.PENDING


@dataclass
class _Array:
    last: SwarmTask | None = None
    completed: Intervals = field(default_factory=Intervals)
    failed: Intervals = field(default_factory=Intervals)
    widest: int = 0
    """The largest parallelism that it ever had: what runs goes on when it is lowered."""
    runs: dict[str, _Run] = field(default_factory=dict)
    outcomes: dict[int, set[Phase]] = field(default_factory=dict)
    """How members of an index were seen to end, since the last retry."""


class ArrayRules:
    """Compares each version of an array with the one before, and with what its members were seen to do."""

    def __init__(self, log: ViolationLog) -> None:
        self._log = log
        self._arrays: dict[str, _Array] = {}

    def seen(self, task: SwarmTask, at: datetime) -> None:
        if task.status.array is not None:
            self._check_array(task, task.status.array, at)
        owner = task.array_owner
        index = index_of(owner.name, task.metadata.name) if owner is not None else None
        if owner is not None and index is not None:
            self._check_member(self._arrays.setdefault(owner.uid, _Array()), task, index, at)

    def gone(self, uid: str) -> None:
        """A task was deleted. (An array's runs may be shown after it.)"""
        for array in self._arrays.values():
            if uid in array.runs:
                array.runs[uid].live = False

    # --- the array ---

    def _check_array(self, task: SwarmTask, status: ArrayStatus, at: datetime) -> None:
        known = self._arrays.setdefault(task.metadata.uid, _Array())
        completed, failed = parse(status.completed_indexes), parse(status.failed_indexes)
        total = task.spec.completions
        known.widest = max(known.widest, task.spec.parallelism or DEFAULT_PARALLELISM)

        def wrong(invariant: str, evidence: str) -> None:
            self._log.add(invariant, f"{'/'.join(task.key)} ({task.metadata.uid})", at, evidence)

        retried = known.last is not None and known.last.status.observed_retry != task.status.observed_retry
        if retried and known.last is not None and known.last.finished:
            known.failed = Intervals()
            known.outcomes = {index: phases for index, phases in known.outcomes.items() if index in known.completed}
        # What a person has just changed is not known to the array yet, and what has ended does not change any more.
        ended_before = known.last is not None and known.last.finished and task.finished
        judged = task.status.observed_generation in (None, task.metadata.generation) and not ended_before
        counts = tuple(len(indices if total is None else indices.within(total)) for indices in (completed, failed))
        if judged and (status.succeeded, status.failed) != counts:
            wrong("I3", f"counts {status.succeeded} and {status.failed}, but {completed!r} succeeded and {failed!r} did not")
        if both := [index for index in failed if index in completed]:
            wrong("I3", f"indices {both} are recorded as succeeded and as failed")
        for name, before, after in (("succeeded", known.completed, completed), ("failed", known.failed, failed)):
            if (before | after) != after:
                wrong("I3", f"{before!r} had {name} and now {after!r}: a record was taken back without a retry")
            for index in after:
                wanted = {Phase.SUCCEEDED} if name == "succeeded" else {Phase.FAILED, Phase.CANCELLED, Phase.EXPIRED}
                if index not in before and not known.outcomes.get(index, set()) & wanted:
                    wrong("I3", f"index {index} is recorded as {name}, but no run of it ended so")
        if judged and task.status.phase is Phase.FAILED and task.status.reason == "FailedIndexes" and not failed.below(total or 0):
            wrong("I8", f"Failed for {failed!r}, of which none is below {total}")
        if judged and task.status.phase is Phase.SUCCEEDED and completed.below(total or 0) != total:
            wrong("I1", f"Succeeded with {completed!r} of {total}")
        known.completed, known.failed, known.last = completed, failed, task

    # --- its members ---

    def _check_member(self, array: _Array, task: SwarmTask, index: int, at: datetime) -> None:
        uid, status = task.metadata.uid, task.status
        run = array.runs.setdefault(uid, _Run(index))
        subject = f"{'/'.join(task.key)} ({uid})"
        if status.attempt > run.attempt and status.observed_retry is None:
            if index in array.completed or index in array.failed:
                self._log.add("I3", subject, at, f"attempt {status.attempt} began after index {index} was recorded")
            others = [other for other in array.runs.values() if other is not run and other.live and not other.retried]
            if any(other.index == index for other in others):
                self._log.add("I2", subject, at, f"two runs of index {index} are live")
            if array.last is not None and len(others) + 1 > array.widest:
                self._log.add("I9", subject, at, f"{len(others) + 1} runs are live, parallelism was never above {array.widest}")
        run.attempt, run.phase, run.retried = status.attempt, status.phase, status.observed_retry is not None
        run.live = any(attempt.live for attempt in status.attempts)
        if task.finished:
            array.outcomes.setdefault(index, set()).add(status.phase)
