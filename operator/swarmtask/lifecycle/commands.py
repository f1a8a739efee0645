"""What the stored object asks for right now.

Called by the controllers after every successful write, after a restart and on every resync, and offered as
`lifecycle.task.outstanding`. Level-triggered: the answer is a function of the stored object and of what the engine lists, so a
command that was lost in a crash is given again, and every command is safe to repeat.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from swarmtask.lifecycle.deadlines import (
    Policy,
    attempt_deadline,
    expiry,
    promised_grace_s,
    queue_deadline,
    unseen_stop_deadline,
)
from swarmtask.lifecycle.messages import (
    FINAL_WORKLOAD_STATES,
    Command,
    DeleteTask,
    Observation,
    Reason,
    ReleaseFinalizer,
    Remove,
    Stop,
    Submit,
    WakeAt,
    WorkloadState,
)
from swarmtask.resources.meta import FINALIZER
from swarmtask.resources.task import Attempt, AttemptState, Phase, SwarmTask

_NEVER_RAN = (Reason.IMAGE_PULL_FAILED, Reason.ENGINE_REJECTED, Reason.SECRET_NOT_FOUND)


def outstanding(
    task: SwarmTask,
    now: datetime,
    policy: Policy,
    present: Collection[Observation] | None = None,
    silent: Collection[str] = (),
) -> tuple[Command, ...]:
    """Commands that the stored object implies, in the order in which to perform them.

    Args:
        task: as stored, never a status that has not been written.
        present: what the engines that answer list of this task; None while none of them has. A list that is older than the object
            only delays commands.
        silent: engines of which that does not say all. While there is one nothing is released, and nothing is submitted after an
            attempt there that may still act. An engine that the operator does not drive keeps a task from being released, too, but
            not from being run again: it would wait for ever.

    Returns:
        Stop: an attempt is being stopped, or is over for us though the engine shows that it acts (a node came back with it): what
        is removed instead is not shown any more while it still has its grace. Remove: such a workload whose node does not answer,
        and, when the task is being deleted, everything that is left. Submit: the current attempt was bound, no engine has shown it,
        and no other one has to be stopped or removed first. ReleaseFinalizer: being deleted and nothing is left.
        DeleteTask: its time to live is over. WakeAt: the earliest deadline, always last.
    """
    if present is not None:
        present = [seen for seen in present if seen.task_uid == task.metadata.uid]
    deleting = task.metadata.deletion_timestamp is not None
    live = _live(task)
    commands = _clearances(task, live, present, deleting)
    if live is not None and live.state is AttemptState.STARTING and not live.observed and not deleting:
        # An older attempt that is back ends first: two never act at the same time (I2).
        doubtful = {engine for engine in in_doubt(task) if policy.drives(engine)}
        known = not doubtful or (present is not None and doubtful.isdisjoint(silent))
        if not commands and known and all(seen.name != live.id for seen in present or ()):
            commands.append(Submit(live))
    elif live is not None and live.state is AttemptState.STOPPING:
        commands.append(Stop(live, task.spec.termination_grace_period_seconds))
    if deleting:
        never_bound = task.status.attempt == 0
        all_say = present is not None and not silent and all(policy.drives(one.engine) for one in task.status.attempts)
        gone = live is None and (never_bound or (all_say and not present))
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


def in_doubt(task: SwarmTask) -> frozenset[str]:
    """Engines on which an earlier attempt may still act."""
    current = task.status.current
    earlier = (one for one in task.status.attempts if current is None or one.number != current.number)
    return frozenset(one.engine for one in earlier if not _proven(one))


def _live(task: SwarmTask) -> Attempt | None:
    current = task.status.current
    return current if current is not None and current.live else None


def _clearances(task: SwarmTask, live: Attempt | None, present: Collection[Observation] | None, deleting: bool) -> list[Command]:
    records = {attempt.number: attempt for attempt in task.status.attempts}
    clearances: list[Command] = []
    for seen in sorted(present or (), key=lambda seen: seen.attempt):
        if live is not None and seen.attempt == live.number:
            continue
        # A number beyond the stored one means that this object is older than the list: whoever reads the newer one decides.
        over = seen.attempt <= task.status.attempt and seen.state not in FINAL_WORKLOAD_STATES
        if over and seen.state is WorkloadState.UNKNOWN and _proven(records.get(seen.attempt)):
            over = False  # its node told how it ended before its engine could: it stays, for its output
        record = records.get(seen.attempt) or _record_of(seen)
        if over and seen.state is not WorkloadState.UNKNOWN:
            clearances.append(Stop(record, promised_grace_s(task.spec, record)))
        elif deleting or over:
            clearances.append(Remove(record))
    return clearances


def _proven(record: Attempt | None) -> bool:
    """It has ended, or has never run."""
    return record is not None and (record.exit_code is not None or record.reason in _NEVER_RAN)


def _record_of(seen: Observation) -> Attempt:
    """The record of an attempt that has dropped out of the newest ten."""
    return Attempt(
        number=max(1, seen.attempt), id=seen.name, node="", engine=seen.engine, engine_node_id=seen.node_id,
        state=AttemptState.STOPPED, observed=True,
    )  # fmt: skip
