"""Tasks with the same dedupeKey: which of them does the work, and what the others see of it.

Called by the state machine, and by the controllers, which know all tasks and find each one's `Twin`. Everything here is a function
of stored objects, so that every operator comes to the same answer, also after a restart.

Of all unfinished tasks of one namespace and key exactly one is first: by how far it has come (`Standing`), then by age, then by
UID. It does the work, the others wait for its outcome. A task that has been let into the queue stays ahead of one that has not,
however old that is: being Queued is the claim, written down before anything can start, and a task that turns up late (created
within the same second, resumed, retried) finds it. So two never run at the same time, and because all look at the same first one,
they never wait for each other.
"""

from __future__ import annotations

from enum import IntEnum

from swarmtask.lifecycle.conditions import QUEUE_NOT_FOUND
from swarmtask.lifecycle.messages import Reason, Twin
from swarmtask.resources.task import Phase, SwarmTask, TaskStatus

Precedence = tuple[int, float, str]
"""(standing, creation in seconds since the epoch, UID): smaller comes first. No two tasks have the same."""


class Standing(IntEnum):
    """How far a task has come on the way to doing the work.

    BEGUN: it has had an attempt in this budget, and is never deduplicated. ADMITTED: in the queue. WAITING: it may be let in.
    QUEUE_STOPPED, WAITING_STOPPED: the same two in a queue that is stopped, behind all that can start. HELD: it cannot start for a
    reason of its own (suspended, being deleted, no such queue), so nobody waits for it. DONE: finished.
    """

    BEGUN = 0
    ADMITTED = 1
    WAITING = 2
    QUEUE_STOPPED = 3
    WAITING_STOPPED = 4
    HELD = 5
    DONE = 6


def begun(status: TaskStatus) -> bool:
    """Whether an unfinished task has had an attempt in this budget that ran, failed, was lost, or is live."""
    current = status.current
    live = current is not None and current.live
    return live or status.start_time is not None or status.failures > 0 or status.infrastructure_losses > 0


def standing(task: SwarmTask, *, stopped: bool = False) -> Standing:
    """Where a stored task stands. `stopped`: its queue starts nothing, by a person's word."""
    status = task.status
    if task.finished:
        return Standing.DONE
    if begun(status):
        return Standing.BEGUN
    if status.phase is not Phase.PENDING:
        return Standing.QUEUE_STOPPED if stopped else Standing.ADMITTED
    held = task.spec.suspend or task.metadata.deletion_timestamp is not None or status.reason == QUEUE_NOT_FOUND
    if held:
        return Standing.HELD
    return Standing.WAITING_STOPPED if stopped else Standing.WAITING


def precedence(task: SwarmTask, *, stopped: bool = False) -> Precedence:
    """Where an unfinished task stands among others of its key. One that is held or finished is taken as if it were about to wait:
    that is how it stands when it is resumed or retried."""
    created = task.metadata.creation_timestamp
    rank = min(standing(task, stopped=stopped), Standing.WAITING_STOPPED if stopped else Standing.WAITING)
    return (rank, created.timestamp() if created is not None else 0.0, task.metadata.uid)


def following(status: TaskStatus) -> str | None:
    """Name of the task whose outcome this one waits for; None when it does not."""
    waits = status.phase is Phase.PENDING and status.reason == Reason.DEDUPLICATED
    return status.outcome_of if waits else None


def has_outcome(status: TaskStatus) -> bool:
    """Whether a task has ended in a way that says something about the work: those that were waiting for it take this."""
    return status.phase in (Phase.SUCCEEDED, Phase.FAILED)


def did_the_work(status: TaskStatus) -> bool:
    """Whether a task has succeeded by itself. A success that was taken over does not make the first one any younger."""
    return status.phase is Phase.SUCCEEDED and status.reason != Reason.DEDUPLICATED


def as_twin(task: SwarmTask) -> Twin:
    """A task as the others see it."""
    status = task.status
    return Twin(task.metadata.name, task.metadata.uid, status.phase, status.exit_code, status.message or "")
