"""What the stored object asks for right now.

Called by the controllers after every successful write, after a restart and on every resync, and offered as
`lifecycle.task.outstanding`. Level-triggered: the answer is a function of the stored object and of what the engine lists, so a
command that was lost in a crash is given again, and every command is safe to repeat.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from swarmtask.lifecycle.deadlines import Policy, attempt_deadline, expiry, queue_deadline, unseen_stop_deadline
from swarmtask.lifecycle.messages import (
    FINAL_WORKLOAD_STATES,
    Command,
    DeleteTask,
    Observation,
    ReleaseFinalizer,
    Remove,
    Stop,
    Submit,
    WakeAt,
    WorkloadState,
)
from swarmtask.resources.meta import FINALIZER
from swarmtask.resources.task import Attempt, AttemptState, Phase, SwarmTask


def outstanding(
    task: SwarmTask, now: datetime, policy: Policy, present: Collection[Observation] | None = None
) -> tuple[Command, ...]:
    """Commands that the stored object implies, in the order in which to perform them.

    Args:
        task: as stored, never a status that has not been written.
        present: what the engines list of this task, as one full list shows it; None while that is not known (an engine has not
            answered yet), in which case nothing is released. A list that is older than the object only delays commands.

    Returns:
        Remove: a workload whose attempt is over for us though the engine shows it unfinished (a node came back with it), and, when
        the task is being deleted, everything that is left. Submit: the current attempt was bound, no engine has shown it, and
        nothing has to be removed first. Stop: an attempt is being stopped. ReleaseFinalizer: being deleted and nothing is left.
        DeleteTask: its time to live is over. WakeAt: the earliest deadline, always last.
    """
    if present is not None:
        present = [seen for seen in present if seen.task_uid == task.metadata.uid]
    deleting = task.metadata.deletion_timestamp is not None
    live = _live(task)
    commands = _removals(task, live, present, deleting)
    if live is not None and live.state is AttemptState.STARTING and not live.observed and not deleting:
        # An older attempt that is back is removed first: two never act at the same time (I2).
        if not commands and (present is None or all(seen.name != live.id for seen in present)):
            commands.append(Submit(live))
    elif live is not None and live.state is AttemptState.STOPPING:
        commands.append(Stop(live, task.spec.termination_grace_period_seconds))
    if deleting:
        never_bound = task.status.attempt == 0
        gone = live is None and (never_bound or (present is not None and not present))
        if gone and FINALIZER in task.metadata.finalizers:
            commands.append(ReleaseFinalizer())
    else:
        expires = expiry(task.spec, task.status)
        if expires is not None and expires <= now:
            commands.append(DeleteTask())
    wake = next_deadline(task, now, policy)
    if wake is not None:
        commands.append(WakeAt(wake))
    return tuple(commands)


def next_deadline(task: SwarmTask, now: datetime, policy: Policy) -> datetime | None:
    """The earliest time at which `Reconcile` (or, for the time to live, `outstanding`) has something to do; None: no such time."""
    spec, status, live = task.spec, task.status, _live(task)
    if task.finished:
        expires = expiry(spec, status)
        return None if expires is None or expires <= now or task.metadata.deletion_timestamp is not None else expires
    if live is not None:
        moments = [attempt_deadline(spec, live, status.phase), unseen_stop_deadline(spec, live, status.phase, policy)]
    elif spec.suspend:
        return None
    else:
        waits = status.not_before if status.phase is Phase.BACKOFF else None
        moments = [waits, queue_deadline(spec, status)]
    return min((moment for moment in moments if moment is not None), default=None)


def _live(task: SwarmTask) -> Attempt | None:
    current = task.status.current
    return current if current is not None and current.live else None


def _removals(task: SwarmTask, live: Attempt | None, present: Collection[Observation] | None, deleting: bool) -> list[Command]:
    records = {attempt.number: attempt for attempt in task.status.attempts}
    removals: list[Command] = []
    for seen in sorted(present or (), key=lambda seen: seen.attempt):
        if live is not None and seen.attempt == live.number:
            continue
        # A number beyond the stored one means that this object is older than the list: whoever reads the newer one decides.
        over = seen.attempt <= task.status.attempt and seen.state not in FINAL_WORKLOAD_STATES
        if over and seen.state is WorkloadState.UNKNOWN and _proven(records.get(seen.attempt)):
            over = False  # its node told how it ended before its engine could: it stays, for its output
        if deleting or over:
            removals.append(Remove(records.get(seen.attempt) or _record_of(seen)))
    return removals


def _proven(record: Attempt | None) -> bool:
    return record is not None and record.exit_code is not None


def _record_of(seen: Observation) -> Attempt:
    """The record of an attempt that has dropped out of the newest ten."""
    return Attempt(
        number=max(1, seen.attempt), id=seen.name, node="", engine=seen.engine, engine_node_id=seen.node_id,
        state=AttemptState.STOPPED, observed=True,
    )  # fmt: skip
