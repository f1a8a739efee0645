"""The state machine of an array: many runs of one container as one object.

Called by the controller of arrays alone; an array never reaches `task.handle`. Two halves, as for a task: `advance` is what is to
be written into the array, from its members as they are stored; `outstanding` is what the stored array asks for. A member is
deleted, and an index created, by what is stored in the array and by nothing else. So every crash is safe: an index is recorded
before its member goes, a recorded index never gets another member, and an index without record and member has not run
(docs/adr/0005-arrays.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from swarmtask.lifecycle import conditions
from swarmtask.lifecycle.deadlines import expiry, whole
from swarmtask.lifecycle.draft import clip
from swarmtask.lifecycle.intervals import Intervals, parse
from swarmtask.lifecycle.members import Member
from swarmtask.lifecycle.messages import Announcement, DeleteTask, Reason, Transition, WakeAt
from swarmtask.resources.meta import get_condition, set_condition
from swarmtask.resources.task import (
    ANNOTATION_CANCEL,
    ANNOTATION_RETRY,
    LABEL_DEAD_LETTER,
    TERMINAL_PHASES,
    ArrayStatus,
    Phase,
    SwarmTask,
    TaskStatus,
)

DEFAULT_PARALLELISM = 1000
KEPT_FAILURES = 10
"""Failed members that stay for their evidence: those whose end `status.array.failures` tells."""
TOO_MANY_FAILED = "MaxFailedIndexesExceeded"
FAILED_INDEXES = "FailedIndexes"
_SHOWN = 200
"""Characters of one list or one failure in a message."""


@dataclass(frozen=True, slots=True)
class Around:
    """What an array needs to know besides itself and its members.

    Attributes:
        queue_exists: the SwarmQueue named by the spec exists.
        invalid: why the stored spec cannot be read, if it cannot; then nothing is begun and nothing is ended.
        trouble: why some members cannot be created, for a person.
        blocked: indices that are not to be created now. may_create: any at all.
        keep_succeeded: newest members that succeeded which stay for their output.
    """

    queue_exists: bool = True
    invalid: str | None = None
    trouble: str = ""
    blocked: Collection[int] = ()
    may_create: bool = True
    keep_succeeded: int = 20


@dataclass(frozen=True, slots=True)
class CreateMember:
    """Create the run of this index."""

    index: int


@dataclass(frozen=True, slots=True)
class DeleteMember:
    member: Member


@dataclass(frozen=True, slots=True)
class CancelMember:
    member: Member
    why: str


@dataclass(frozen=True, slots=True)
class SuspendMember:
    """Set or take away `spec.suspend` of a run."""

    member: Member
    suspend: bool


ArrayCommand = CreateMember | DeleteMember | CancelMember | SuspendMember | DeleteTask | WakeAt


# --- what is to be written -----------------------------------------------------------------------------------------------


def advance(task: SwarmTask, members: Mapping[int, Member], now: datetime, around: Around) -> Transition:
    """The next status of the array.

    Args:
        task: as stored; not changed.
        members: index -> its run as stored, finished and recorded ones included.

    Raises:
        ValueError: the indices in the stored status cannot be read.
    """
    draft = _Draft(task, now)
    if not retry_due(task):
        draft.note_retry()
    elif any(True for _ in _of_the_old_budget(members, draft.completed)):
        return Transition(task.status, changed=False)  # these have to go first
    else:
        draft.new_budget()
    if draft.status.phase not in TERMINAL_PHASES:
        draft.record(members)
        draft.settle(members, around)
    return draft.finish(around)


class _Draft:
    """A status in the making."""

    def __init__(self, task: SwarmTask, now: datetime) -> None:
        self.task, self.at = task, whole(now)
        self.status: TaskStatus = task.status.model_copy()
        array = task.status.array or ArrayStatus()
        self.completed, self.failed = parse(array.completed_indexes), parse(array.failed_indexes)
        self.failures, self.active = list(array.failures), array.active
        self.renewed = False
        """A person has retried it."""
        self.cause = ""
        """Beginning of the message: why it is where it is, where the counts do not say it."""
        self._announcements: list[Announcement] = []

    def tell(self, reason: str, message: str, *, warning: bool = False) -> None:
        self._announcements.append(Announcement("Warning" if warning else "Normal", reason, clip(message, 1024)))

    def note_retry(self) -> None:
        """A retry before the end, or after success, does nothing."""
        request = self.task.metadata.annotations.get(ANNOTATION_RETRY)
        if request is not None:
            self.status.observed_retry = request

    def new_budget(self) -> None:
        """A person retries: whatever has not succeeded runs again."""
        status, annotations = self.status, self.task.metadata.annotations
        self.tell("RetryRequested", f"runs again: {_listed(self.failed) or 'what has not run yet'}")
        self.failed, self.failures, self.active, self.renewed = Intervals(), [], 0, True
        # The cancel that ended it, if any, has been acted on and must not end the new budget too.
        status.observed_retry, status.observed_cancel = annotations.get(ANNOTATION_RETRY), annotations.get(ANNOTATION_CANCEL)
        status.phase, status.reason, status.message = Phase.PENDING, None, None
        status.queued_time = status.start_time = status.completion_time = None
        status.conditions = []

    def recorded(self, index: int) -> bool:
        return index in self.completed or index in self.failed

    def record(self, members: Mapping[int, Member]) -> None:
        """Take down every run that has ended and is not recorded."""
        fresh = [member for index, member in members.items() if not self.recorded(index)]
        ended = [members[index] for index in sorted(members) if members[index].ended and not self.recorded(index)]
        self.completed |= Intervals.of(member.index for member in ended if member.phase is Phase.SUCCEEDED)
        lost = [member for member in ended if member.phase is not Phase.SUCCEEDED]
        self.failed |= Intervals.of(member.index for member in lost)
        total = self.task.spec.completions
        self.failures = [told for told in self.failures if total is None or _index_of(told) < total]
        wanted = [member for member in lost if total is None or member.index < total]
        for member in wanted[: KEPT_FAILURES - len(self.failures)]:
            told = clip(f"{member.index}: {member.phase.value}: {member.why}", _SHOWN)
            self.failures.append(told)
            self.tell("IndexFailed", told, warning=True)
        self.active = sum(member.unfinished and not self.recorded(index) for index, member in members.items())
        # One that was recorded before and is kept may have started in an earlier budget.
        starts = [member.started_at for member in fresh if member.started_at is not None]
        if self.status.start_time is None and starts:
            self.status.start_time = min((*starts, self.at))
            self.tell("Started", "the first run has started")

    def settle(self, members: Mapping[int, Member], around: Around) -> None:
        """The phase that follows from what is recorded, what is there, and what is wished."""
        task, status = self.task, self.status
        if around.invalid is not None:
            admitted = get_condition(status.conditions, conditions.ADMITTED)
            if admitted is None or admitted.reason != Reason.INVALID_OBJECT:
                self.tell(Reason.INVALID_OBJECT, around.invalid, warning=True)
            return
        if task.metadata.deletion_timestamp is not None:
            return
        if ANNOTATION_CANCEL not in task.metadata.annotations:
            status.observed_cancel = None
        wish = wish_to_end(task, len(self.wanted(self.failed)))
        if not self.active and self.complete() and not self.wanted(self.failed):
            self.end((Phase.SUCCEEDED, Reason.COMPLETED, ""))
        elif not self.active and wish is not None:
            self.end(wish)
        elif not self.active and self.complete():
            self.end((Phase.FAILED, FAILED_INDEXES, ""))
        elif wish is not None:
            self.go(Phase.RUNNING, wish[1], wish[2])
        elif task.spec.suspend and not any(member.live for member in members.values()):
            self.go(Phase.PENDING, Reason.SUSPENDED, "spec.suspend is set")
        elif not around.queue_exists and not self.active:
            self.go(
                Phase.PENDING, conditions.QUEUE_NOT_FOUND, f"there is no SwarmQueue {task.spec.queue} in this namespace: create it"
            )
        elif status.start_time is None:
            self.go(Phase.QUEUED, None, "")
        else:
            self.go(Phase.RUNNING, Reason.SUSPENDED if task.spec.suspend else None, "")

    def wanted(self, indices: Intervals) -> Intervals:
        """What counts of them: a record beyond a number that was lowered stays, and means nothing unless it is raised again."""
        total = self.task.spec.completions
        return indices if total is None else indices.within(total)

    def complete(self) -> bool:
        """Every index is recorded."""
        total = self.task.spec.completions
        return total is not None and self.completed.below(total) + self.failed.below(total) >= total

    def go(self, phase: Phase, reason: str | None, message: str) -> None:
        status = self.status
        if reason is None and status.reason == Reason.SUSPENDED:
            self.tell("Resumed", "spec.suspend is off again")
        elif (status.phase, status.reason) != (phase, reason and str(reason)) and (reason or phase is Phase.QUEUED):
            self.tell(str(reason or phase.value), message or self.words())
        status.phase, status.reason, self.cause = phase, reason and str(reason), message
        if phase is Phase.PENDING:
            status.queued_time = None
        elif status.queued_time is None:
            status.queued_time = self.at

    def end(self, wish: tuple[Phase, str, str]) -> None:
        status, (phase, reason, self.cause) = self.status, wish
        status.phase, status.reason = phase, str(reason)
        status.completion_time = self.at if status.start_time is None else max(self.at, status.start_time)
        if phase is Phase.CANCELLED:
            status.observed_cancel = self.task.metadata.annotations.get(ANNOTATION_CANCEL)
        told = {Phase.SUCCEEDED: "Completed", Phase.FAILED: "DeadLetter"}.get(phase, str(reason))
        self.tell(told, _joined(self.cause, self.words()), warning=phase is Phase.FAILED)

    def words(self) -> str:
        """Counts for a person: "198 of 200 succeeded; failed: 7,133"."""
        parts, failed = (
            [f"{len(self.wanted(self.completed))} of {self.task.spec.completions or 0} succeeded"],
            self.wanted(self.failed),
        )
        if self.active:
            parts[0] += f", {self.active} wait or run"
        if failed:
            parts.append(f"failed: {_listed(failed)}")
        return "; ".join(parts)

    def finish(self, around: Around) -> Transition:
        task, status = self.task, self.status
        # One that is cancelled as soon as it was retried has ended twice, and says what holds for the second time.
        if status.array is None or not task.finished or self.renewed or status.phase not in TERMINAL_PHASES:
            succeeded, failed = len(self.wanted(self.completed)), len(self.wanted(self.failed))
            status.array = ArrayStatus(
                progress=f"{succeeded + failed}/{task.spec.completions or succeeded + failed}",
                active=self.active,
                succeeded=succeeded,
                failed=failed,
                completed_indexes=str(self.completed),
                failed_indexes=str(self.failed),
                failures=self.failures,
            )
            self._describe(around)
        status.observed_generation = task.metadata.generation or None
        changed = status != task.status
        wanted = "true" if status.phase is Phase.FAILED else None
        labels = {} if task.metadata.labels.get(LABEL_DEAD_LETTER) == wanted else {LABEL_DEAD_LETTER: wanted}
        return Transition(status, changed, tuple(self._announcements) if changed else (), labels)

    def _describe(self, around: Around) -> None:
        """Message and conditions, derived so that they cannot contradict the phase."""
        status, phase = self.status, self.status.phase
        ended = phase in TERMINAL_PHASES
        status.message = clip(_joined(self.cause, self.words(), around.invalid or ("" if ended else around.trouble)))
        if around.invalid is not None:
            self._set(conditions.ADMITTED, False, Reason.INVALID_OBJECT, around.invalid)
        elif not ended:
            waits = phase is Phase.PENDING
            self._set(conditions.ADMITTED, not waits, str(status.reason or phase.value) if waits else "Admitted")
        unfinished = phase.value if ended else "NotFinished"
        self._set(conditions.COMPLETE, phase is Phase.SUCCEEDED, "Completed" if phase is Phase.SUCCEEDED else unfinished)
        lost = ended and phase is not Phase.SUCCEEDED
        evidence = _joined(status.message, *self.failures) if lost else ""
        self._set(conditions.FAILED, lost, str(status.reason or phase.value) if lost else "Completed" if ended else unfinished,
                  evidence)  # fmt: skip

    def _set(self, type_: str, value: bool, reason: str, message: str = "") -> None:
        self.status.conditions = set_condition(
            self.status.conditions, type_, value, reason=reason, message=message, now=self.at,
            observed_generation=self.task.metadata.generation or None,
        )  # fmt: skip


def _joined(*parts: str | None) -> str:
    return "; ".join(part for part in parts if part)


def _listed(indices: Intervals) -> str:
    return clip(str(indices), _SHOWN)


# --- what it asks for ----------------------------------------------------------------------------------------------------


def retry_due(task: SwarmTask) -> bool:
    """A person has asked for a new budget, and it may be given: the array has ended otherwise than Succeeded."""
    request = task.metadata.annotations.get(ANNOTATION_RETRY)
    return (
        request is not None
        and request != task.status.observed_retry
        and task.finished
        and task.status.phase is not Phase.SUCCEEDED
        and task.metadata.deletion_timestamp is None
    )


def wish_to_end(task: SwarmTask, failed: int) -> tuple[Phase, str, str] | None:
    """How the array is to end before all its indices have run: (phase, reason, message); None when it is not to."""
    spec, text = task.spec, task.metadata.annotations.get(ANNOTATION_CANCEL)
    if text is not None and text != task.status.observed_cancel:
        return Phase.CANCELLED, Reason.CANCELLED, f"cancelled: {text}" if text else "cancelled"
    if spec.completions is None:
        return Phase.FAILED, Reason.INVALID_OBJECT, "spec.completions was removed, so nobody knows how many runs it needs"
    if spec.max_failed_indexes is not None and failed > spec.max_failed_indexes:
        return Phase.FAILED, TOO_MANY_FAILED, f"{failed} runs failed (maxFailedIndexes {spec.max_failed_indexes})"
    return None


def outstanding(task: SwarmTask, members: Mapping[int, Member], now: datetime, around: Around) -> tuple[ArrayCommand, ...]:
    """Commands that the stored array implies; every one is safe to repeat.

    Args:
        task: as stored, never a status that has not been written.

    Raises:
        ValueError: the indices in the stored status cannot be read.
    """
    array = task.status.array
    if array is None or task.metadata.deletion_timestamp is not None:
        return ()  # not recorded as an array yet; or going away, and its members with it
    completed, failed = parse(array.completed_indexes), parse(array.failed_indexes)
    if retry_due(task):
        return tuple(DeleteMember(member) for member in _of_the_old_budget(members, completed) if not member.deleting)
    counts = len(failed) if task.spec.completions is None else failed.below(task.spec.completions)
    wish = None if around.invalid is not None else wish_to_end(task, counts)
    kept = _kept_failures(array) | _newest_succeeded(members, completed, around.keep_succeeded)
    commands: list[ArrayCommand] = []
    running: list[Member] = []
    for index in sorted(members):
        member = members[index]
        if index in completed or index in failed:
            # One that has not run is a create that came late: it keeps nothing to be read, and must not run again.
            late = member.unfinished and member.retry is None
            if (late or index not in kept) and not member.deleting:
                commands.append(DeleteMember(member))
        elif task.finished:
            commands += [] if member.deleting else [DeleteMember(member)]
        elif member.unfinished:
            running.append(member)
    if task.finished:
        commands += _end_of_life(task, now)
    elif around.invalid is None:
        commands += _end_runs(running, wish) if wish is not None else _run(task, members, running, completed | failed, around)
    return tuple(commands)


def _of_the_old_budget(members: Mapping[int, Member], completed: Intervals) -> Iterator[Member]:
    """What a retry does away with: all but those whose success stays recorded, which are kept for their output."""
    return (member for index, member in members.items() if index not in completed or member.phase is not Phase.SUCCEEDED)


def _end_of_life(task: SwarmTask, now: datetime) -> list[ArrayCommand]:
    expires = expiry(task.spec, task.status)
    if expires is None:
        return []
    return [DeleteTask() if expires <= now else WakeAt(expires)]


def _end_runs(running: list[Member], wish: tuple[Phase, str, str]) -> list[ArrayCommand]:
    """What has never started leaves no trace; what has started is cancelled and recorded."""
    commands: list[ArrayCommand] = []
    for member in running:
        if member.deleting:
            continue
        if not member.started:
            commands.append(DeleteMember(member))
        elif not member.cancelling:
            # Words that a person's retry of the run has not answered yet: the same ones again would change nothing.
            again = "" if member.retry is None else f" (after its retry {clip(member.retry, _SHOWN)})"
            commands.append(CancelMember(member, f"the array ends: {wish[2]}{again}"))
    return commands


def _run(
    task: SwarmTask, members: Mapping[int, Member], running: list[Member], recorded: Intervals, around: Around
) -> list[ArrayCommand]:
    """Keep the window: as many unfinished members as parallelism allows, of the lowest indices.

    Beyond a number that was lowered nothing is wanted any more, also of what runs: it is deleted and not recorded, so that it can
    run should the number be raised again."""
    spec, total = task.spec, task.spec.completions or 0
    window = spec.parallelism or DEFAULT_PARALLELISM
    steered = [member for member in running if not member.deleting]
    surplus = {member.index for member in steered if member.index >= total}
    for member in reversed(steered):
        if len(running) - len(surplus) <= window:
            break
        if not member.started:
            surplus.add(member.index)
    commands: list[ArrayCommand] = [DeleteMember(members[index]) for index in sorted(surplus)]
    commands += [
        SuspendMember(member, spec.suspend)
        for member in steered
        if member.suspended is not spec.suspend and member.index not in surplus
    ]
    if around.may_create and around.queue_exists and not spec.suspend:
        room = max(0, window - len(running))
        taken = members.keys() | set(around.blocked)
        commands += [CreateMember(index) for index in islice(recorded.missing(total, taken), room)]
    return commands


def _kept_failures(array: ArrayStatus) -> frozenset[int]:
    return frozenset(map(_index_of, array.failures))


def _index_of(told: str) -> int:
    """Whose end a line of `failures` tells; -1 where it does not say."""
    head = told.partition(":")[0]
    return int(head) if head.isascii() and head.isdigit() else -1


def _newest_succeeded(members: Mapping[int, Member], completed: Intervals, keep: int) -> frozenset[int]:
    ended = [
        (member.finished_at.timestamp() if member.finished_at is not None else 0.0, index)
        for index, member in members.items()
        if index in completed and not member.deleting
    ]
    ended.sort(reverse=True)
    return frozenset(index for _, index in ended[:keep])
