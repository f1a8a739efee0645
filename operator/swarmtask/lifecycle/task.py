"""The state machine of one task: `handle` turns an event into the next status.

Called by the controllers for every event, and by the simulator. Pure: the task, the event, `now` and the policy go in, a
`Transition` comes out; the task that went in is never changed. What the stored object asks for is `outstanding`, kept in
`commands` and offered here as the other half of the surface.

`handle` works in two steps: the event's own effect, then `_settle`, which applies every rule that holds whatever the event was
(deletion, cancel, suspend, deadlines, end of a backoff) until nothing changes. So a crash between two events loses nothing: the
next event of any kind, or `Reconcile`, comes to the same status.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from swarmtask.lifecycle import conditions, observed
from swarmtask.lifecycle.commands import outstanding
from swarmtask.lifecycle.deadlines import Policy, attempt_deadline, queue_deadline, unseen_stop_deadline
from swarmtask.lifecycle.draft import Draft
from swarmtask.lifecycle.messages import (
    Bound,
    Drain,
    Evict,
    InvalidObject,
    NodeTold,
    Preempt,
    Reason,
    Reconcile,
    TaskEvent,
    Transition,
    Unplaced,
)
from swarmtask.lifecycle.reasons import RULES
from swarmtask.lifecycle.twins import begun, following
from swarmtask.resources.ended import ended
from swarmtask.resources.meta import get_condition
from swarmtask.resources.task import (
    ANNOTATION_CANCEL,
    ANNOTATION_RETRY,
    TERMINAL_PHASES,
    Attempt,
    AttemptState,
    Phase,
    SwarmTask,
)

_MAX_SETTLE_STEPS = 8


def handle(task: SwarmTask, event: TaskEvent, now: datetime, policy: Policy) -> Transition:
    """The next status of the task.

    Args:
        task: as stored; not changed.
        event: may be late, repeated or about something else; such an event gives `changed=False`.
        now: aware; need not grow from call to call.

    Returns:
        `changed` is False when no status must be written; then there are no announcements either. After `Bound` the caller looks at
        the phase: anything but Starting means that the task could not be bound (any more).
    """
    draft = Draft(task, now, policy)
    match event:
        case Reconcile():
            _settle(draft, event)
        case Bound():
            if draft.status.phase is not Phase.QUEUED:
                return _nothing(task)
            _settle(draft, None)
            if draft.status.phase is Phase.QUEUED:
                draft.bind(event)
        case Unplaced():
            if draft.status.phase is not Phase.QUEUED:
                return _nothing(task)
            _settle(draft, None)
            if draft.status.phase is Phase.QUEUED:
                draft.place_in_queue(event)
        case Preempt(attempt=number, by=by):
            return _take_away(draft, number, lambda live: draft.preempt(live, "/".join(by)), unseen=True)
        case Drain(attempt=number):
            return _take_away(draft, number, draft.drain)
        case Evict(attempt=number, message=message):
            return _take_away(draft, number, lambda live: draft.evict(live, message))
        case InvalidObject():
            _refuse(draft, event)
        case _:
            live = observed.find_live(draft, event)
            if live is None:
                late = isinstance(event, NodeTold) and observed.hear_late(draft, event)
                return draft.finish() if late else _nothing(task)
            observed.apply(draft, live, event)
            _settle(draft, None)
    return draft.finish()


def _take_away(draft: Draft, number: int, end: Callable[[Attempt], None], *, unseen: bool = False) -> Transition:
    """End the live attempt of this number for the sake of others, unless it has ended or is being stopped by then.

    Args:
        unseen: also where its node does not answer. Else nobody could see the stop, and what becomes of it is up to spec.nodeLoss.
    """

    def stoppable() -> Attempt | None:
        live = draft.live
        if live is None or live.number != number or live.state is AttemptState.STOPPING:
            return None
        return live if unseen or draft.status.phase is not Phase.UNKNOWN else None

    if stoppable() is None:
        return _nothing(draft.task)
    _settle(draft, None)
    live = stoppable()
    if live is not None:
        end(live)
    return draft.finish()


def _nothing(task: SwarmTask) -> Transition:
    return Transition(task.status, changed=False)


def _refuse(draft: Draft, event: InvalidObject) -> None:
    """An object that cannot be read: it must not start, but what already runs is left alone. Looks at no field of the spec."""
    if draft.terminal:
        return
    if draft.live is None:
        draft.end(Phase.FAILED, Reason.INVALID_OBJECT, event.message)
        return
    admitted = get_condition(draft.status.conditions, conditions.ADMITTED)
    if admitted is None or admitted.reason != Reason.INVALID_OBJECT:
        draft.announce(Reason.INVALID_OBJECT, event.message, "Warning")
    draft.invalid = event.message


def _settle(draft: Draft, world: Reconcile | None) -> None:
    """Apply the rules that need no event until none applies. `world`: what is around the task; None: as it was known before."""
    draft.mend_times()
    _take_retry(draft)
    for _ in range(_MAX_SETTLE_STEPS):
        before = (draft.status.phase, draft.status.reason, draft.live)
        if draft.terminal:
            return
        live = draft.live
        if live is None:
            _settle_waiting(draft, world)
        else:
            _settle_live(draft, live)
        if before == (draft.status.phase, draft.status.reason, draft.live):
            return


def _take_retry(draft: Draft) -> None:
    """A new retry text starts a new budget of a task that ended; before the end, or after success, it is noted and does nothing."""
    request, status = draft.task.metadata.annotations.get(ANNOTATION_RETRY), draft.status
    if request is None or request == status.observed_retry:
        return
    if draft.terminal and status.phase is not Phase.SUCCEEDED and draft.task.metadata.deletion_timestamp is None:
        # The cancel that ended it, if any, has been acted on and must not end the new budget too.
        status.observed_cancel = draft.task.metadata.annotations.get(ANNOTATION_CANCEL)
        draft.new_budget(request)
    else:
        status.observed_retry = request


def _wish_to_end(draft: Draft) -> tuple[Reason, str] | None:
    """Deletion, or a cancel that has not been acted on."""
    meta = draft.task.metadata
    if meta.deletion_timestamp is not None:
        return Reason.DELETED, "the task is being deleted"
    text = meta.annotations.get(ANNOTATION_CANCEL)
    if text is None:
        draft.status.observed_cancel = None
    elif text != draft.status.observed_cancel:
        return Reason.CANCELLED, f"cancelled: {text}" if text else "cancelled"
    return None


def _settle_waiting(draft: Draft, world: Reconcile | None) -> None:
    """No attempt is live: end it, hold it, let it wait for another one's outcome, expire it, or let it queue."""
    status, spec = draft.status, draft.task.spec
    if wish := _wish_to_end(draft):
        if wish[0] is Reason.CANCELLED:
            status.observed_cancel = draft.task.metadata.annotations.get(ANNOTATION_CANCEL)
        draft.end(Phase.CANCELLED, *wish)
        return
    if spec.suspend:
        if status.phase is not Phase.PENDING or status.reason != Reason.SUSPENDED:
            draft.hold(Reason.SUSPENDED, "spec.suspend is set")
        return
    if _done_elsewhere(draft, world):
        return
    expires = queue_deadline(spec, status)
    if expires is not None and expires <= draft.now:
        draft.end(Phase.EXPIRED, Reason.QUEUE_DEADLINE, f"not started within {spec.queue_deadline_seconds}s of entering the queue")
        return
    if status.not_before is not None and _backing_off(draft):
        return
    if not _queue_known(draft, world):
        if status.phase is not Phase.PENDING or status.reason != conditions.QUEUE_NOT_FOUND:
            draft.hold(conditions.QUEUE_NOT_FOUND, f"there is no SwarmQueue {spec.queue} in this namespace: create it")
        return
    if status.phase is not Phase.QUEUED:
        draft.enter_queue()


def _backing_off(draft: Draft) -> bool:
    """Whether the backoff goes on; a task that was suspended meanwhile goes back to it."""
    status = draft.status
    assert status.not_before is not None  # noqa: S101 - the caller has looked
    # A clock that was set back must not make the wait longer than the longest one that the spec allows.
    latest = draft.at + timedelta(seconds=draft.task.spec.backoff.max_seconds + 1)
    status.not_before = min(status.not_before, latest)
    if status.not_before <= draft.now:
        return False
    if status.phase is not Phase.BACKOFF:
        status.phase, status.reason, status.message = Phase.BACKOFF, "BackOff", "the wait before the next attempt goes on"
    return True


def _done_elsewhere(draft: Draft, world: Reconcile | None) -> bool:
    """Whether another task does this task's work or has done it: then wait for its outcome, or take it.

    A failure is taken only from the task that was waited for: one that happened before is no reason not to try.
    """
    status, follows = draft.status, following(draft.status)
    if not draft.task.spec.dedupe_key or begun(status):
        return False
    if world is None:
        return follows is not None
    twin = world.twin
    if twin is None or twin.uid == draft.task.metadata.uid:
        return False
    if twin.phase is Phase.SUCCEEDED or (twin.phase is Phase.FAILED and follows == twin.name):
        draft.take_outcome(twin)
        return True
    if twin.phase in TERMINAL_PHASES:
        return False
    if follows != twin.name:
        draft.follow(twin)
    return True


def _queue_known(draft: Draft, world: Reconcile | None) -> bool:
    if world is not None:
        return world.queue_exists
    admitted = get_condition(draft.status.conditions, conditions.ADMITTED)
    return admitted is None or admitted.reason != conditions.QUEUE_NOT_FOUND


def _settle_live(draft: Draft, live: Attempt) -> None:
    """An attempt holds its node: ask for its end when somebody wishes it or a deadline has passed."""
    spec, now = draft.task.spec, draft.now
    if wish := _wish_to_end(draft):
        if wish[0] is Reason.CANCELLED:
            draft.status.observed_cancel = draft.task.metadata.annotations.get(ANNOTATION_CANCEL)
        draft.begin_stop(live, *wish)
    elif spec.suspend:
        draft.begin_stop(live, Reason.SUSPENDED, "spec.suspend is set")
    elif draft.status.phase is not Phase.UNKNOWN and live.number in ended(draft.task.metadata.annotations):
        # Where it is Unknown nobody could see the stop: spec.nodeLoss says what becomes of it.
        draft.begin_stop(live, Reason.ATTEMPT_DELETED, "its end was asked for")
    live = draft.live or live
    limit = attempt_deadline(spec, live, draft.status.phase)
    if limit is not None and limit <= now:
        reason = Reason.START_DEADLINE if live.started_at is None else Reason.ACTIVE_DEADLINE
        draft.begin_stop(live, reason, RULES[reason].meaning)
        live = draft.live or live
    unseen = unseen_stop_deadline(spec, live, draft.status.phase, draft.policy)
    if unseen is not None and unseen <= now:
        _give_up_seeing(draft, live)


def _give_up_seeing(draft: Draft, live: Attempt) -> None:
    """The stop cannot be confirmed. A start that nobody saw is the infrastructure's loss, not the task's (I8)."""
    unshown = (
        f"{live.engine} never showed it" if draft.policy.drives(live.engine) else f"this operator does not drive {live.engine}"
    )
    why = f"{live.node} does not answer" if live.observed else unshown
    message = f"counted as stopped without proof: {why}"
    if live.stop_reason == Reason.START_DEADLINE and live.reason is None:
        draft.fail(live, Reason.NODE_LOST if live.observed else Reason.WORKLOAD_LOST, message)
    else:
        draft.stopped(live, message)


__all__ = ["Policy", "handle", "outstanding"]
