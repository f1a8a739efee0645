"""What an engine's facts do to the attempt that they speak of.

Called by `task.handle` for `Observed`, `MadeWith`, `Vanished`, `SubmitRefused`, `NodeGone`, `NodeSilent` and `NodeTold`. Reports
may be late, repeated, reordered or about something else: whatever does not speak of a live attempt of this very task changes
nothing (LIFECYCLE I3, I5). The one exception is what a node tells of an attempt that was given up (`hear_late`).
"""

from __future__ import annotations

from datetime import timedelta

from swarmtask.lifecycle.deadlines import replacing, silence_decides, stop_over, whole
from swarmtask.lifecycle.draft import EXPLAINED_STOPS, Draft, clip
from swarmtask.lifecycle.loss import finished_away, observation_of, replace_after_s
from swarmtask.lifecycle.messages import (
    FINAL_WORKLOAD_STATES,
    MadeWith,
    NodeGone,
    NodeSilent,
    NodeTold,
    Observation,
    Observed,
    Reason,
    SubmitRefused,
    Vanished,
    WorkloadState,
)
from swarmtask.lifecycle.reasons import RULES, named
from swarmtask.resources.task import Attempt, AttemptState, Phase

_DEADLINES = (Reason.START_DEADLINE, Reason.ACTIVE_DEADLINE)

EngineFact = Observed | MadeWith | Vanished | SubmitRefused | NodeGone | NodeSilent | NodeTold


def find_live(draft: Draft, event: EngineFact) -> Attempt | None:
    """The live attempt that the fact speaks of, or None when the fact is late or foreign."""
    live = draft.live
    if live is None:
        return None
    if isinstance(event, Observed):
        seen = event.observation
        ours = seen.task_uid == draft.task.metadata.uid and seen.name == live.id and seen.attempt == live.number
        return live if ours else None
    if isinstance(event, NodeTold) and event.record.id != live.id:
        return None
    return live if event.attempt == live.number else None


def apply(draft: Draft, live: Attempt, event: EngineFact) -> None:
    """Change the draft by a fact about its live attempt."""
    match event:
        case Observed(observation=seen, boot_id=boot_id):
            if seen.state not in FINAL_WORKLOAD_STATES:
                live = _learn_boot(draft, live, boot_id)
            _observe(draft, live, seen, boot_id)
        case MadeWith(fence=fence) if live.fence is None:
            draft.update(live, fence=fence)
        case NodeSilent():
            _miss(draft, live, event)
        case NodeTold(record=record) if record.state == "Exited":
            _end(draft, draft.note_usage(live, event), observation_of(live, record, event.boot_id, reached=event.reached))
        case Vanished():
            _lose(
                draft,
                live,
                Reason.WORKLOAD_LOST,
                f"{live.engine} {'no longer lists' if live.observed else 'never had'} the workload",
            )
        case NodeGone(message=message):
            _lose(draft, live, Reason.NODE_LOST, message)
        case SubmitRefused(reason=reason, message=message) if not live.observed:
            # Once the engine has shown the workload, a refusal answers a repeated submit and says nothing about the one that runs.
            if live.state is AttemptState.STOPPING:
                draft.stopped(draft.update(live, reason=reason.value, message=_kept(live) or clip(message)), message)
            else:
                draft.fail(live, reason, message)
        case _:
            pass


def hear_late(draft: Draft, event: NodeTold) -> bool:
    """A node tells of an attempt that is over already. Work that was done there is kept if nothing has followed it; otherwise only
    what it used is noted. False: the task has no such attempt."""
    record = event.record
    known = next((one for one in draft.status.attempts if one.id == record.id and not one.live), None)
    if known is None or record.state != "Exited":
        return False
    known = draft.note_usage(known, event)
    if finished_away(draft.task, known, record):
        draft.accept_late(known, observation_of(known, record, event.boot_id))
    return True


def _miss(draft: Draft, live: Attempt, event: NodeSilent) -> None:
    """Its node is silent: nobody knows what it does, until it must have been stopped by its node."""
    _lose_sight(draft, _learn_boot(draft, live, event.boot_id))
    live, spec = draft.live or live, draft.task.spec
    due_s = replace_after_s(spec, live, draft.policy, fenced=event.fenced)
    if due_s is None or event.silent_s < due_s:
        return
    stopped = event.fenced and replacing(spec, live) == "afterFence"
    over = stop_over(spec, live, draft.policy)
    if not stopped and over is not None and over > draft.now and silence_decides(spec, live, draft.status.phase):
        return  # a node that is not as lost as it seems may still be at it
    then = "its agent must have stopped the attempt by now" if stopped else "the attempt may still run there"
    _lose(draft, live, Reason.NODE_LOST, f"{live.node} is lost: nothing was heard of it for {due_s:g} s; {then}")


def _learn_boot(draft: Draft, live: Attempt, boot_id: str) -> Attempt:
    """The agent of its node has spoken for the first time since it was bound: from now on it is known that it is fenced. That boot
    is no older than the one in which the attempt began, so it never passes for restarted that was not."""
    return draft.update(live, boot_id=boot_id) if boot_id and live.boot_id is None else live


def _lose(draft: Draft, live: Attempt, reason: Reason, message: str) -> None:
    """It is gone without a word. A deadline that ran out because the infrastructure lost it is not the task's fault (I8)."""
    by_deadline = live.stop_reason == Reason.START_DEADLINE and live.reason is None
    by_deadline = by_deadline or (live.stop_reason == Reason.ACTIVE_DEADLINE and reason is Reason.NODE_LOST)
    if live.state is AttemptState.STOPPING and not by_deadline:
        draft.stopped(live, message)
    else:
        draft.fail(live, reason, message)


def _observe(draft: Draft, live: Attempt, seen: Observation, boot_id: str) -> None:
    match seen.state:
        case WorkloadState.UNKNOWN:
            _lose_sight(draft, live)
        case WorkloadState.PENDING | WorkloadState.PREPARING:
            _prepare(draft, live, seen)
        case WorkloadState.RUNNING:
            _run(draft, live, seen, boot_id)
        case WorkloadState.EXITED | WorkloadState.REJECTED | WorkloadState.STOPPED:
            _end(draft, live, seen)


def _lose_sight(draft: Draft, live: Attempt) -> None:
    if draft.status.phase is Phase.UNKNOWN:
        return
    state = live.state if live.state is AttemptState.STOPPING else AttemptState.UNKNOWN
    draft.update(live, state=state, observed=True)
    draft.status.phase = Phase.UNKNOWN
    draft.announce("NodeUnreachable", f"{live.node} does not answer: attempt {live.number} may or may not be running", "Warning")


def _see_again(draft: Draft, live: Attempt) -> Attempt:
    """The engine shows it, so its node answers: back to what it was before."""
    status = draft.status
    if status.phase is Phase.UNKNOWN:
        status.phase = Phase.RUNNING if live.started_at else Phase.STARTING
        draft.announce("NodeBack", f"{live.node} answers again")
    if live.state is AttemptState.UNKNOWN:
        live = draft.update(live, state=AttemptState.RUNNING if live.started_at else AttemptState.STARTING)
    return live


def _prepare(draft: Draft, live: Attempt, seen: Observation) -> None:
    live = _see_again(draft, live)
    if live.started_at is not None:
        return  # an old report that was overtaken by a newer one
    if not live.observed:
        words = f": {seen.message}" if seen.message else ""
        draft.announce("Preparing", f"{live.engine} has attempt {live.number} for {live.node}{words}")
    reason = seen.reason.value if seen.reason is not None else live.reason
    if reason is not None and reason != live.reason:
        draft.announce(reason, seen.message or f"attempt {live.number} on {live.node}", "Warning")
    draft.update(live, observed=True, reason=reason, message=_kept(live) or clip(seen.message) or live.message)


def _run(draft: Draft, live: Attempt, seen: Observation, boot_id: str) -> None:
    live = _see_again(draft, live)
    if live.started_at is not None:
        draft.update(live, observed=True)
        return
    # The node's clock may be wrong: the start lies between the binding and now, else deadlines would come early.
    started = whole(seen.started_at) if seen.started_at is not None else draft.at
    started = min(max(started, live.bound_at or started), draft.at)
    state = live.state if live.state is AttemptState.STOPPING else AttemptState.RUNNING
    draft.update(
        live, state=state, observed=True, started_at=started, reason=None, message=_kept(live), boot_id=boot_id or live.boot_id
    )
    draft.status.phase = Phase.RUNNING
    draft.status.start_time = draft.status.start_time or started
    draft.announce("Started", f"attempt {live.number} runs on {live.node}")


def _kept(live: Attempt) -> str | None:
    """While an attempt is being stopped for another's sake, its message says for whose; that stays."""
    return live.message if live.stop_reason in EXPLAINED_STOPS else None


def _end(draft: Draft, live: Attempt, seen: Observation) -> None:
    live = draft.update(live, observed=True)
    if live.started_at is None and seen.state is WorkloadState.EXITED:
        # It ran and ended between two reports.
        end = min(whole(seen.finished_at), draft.at) if seen.finished_at is not None else draft.at
        started = whole(seen.started_at) if seen.started_at is not None else end
        live = draft.update(live, started_at=min(max(started, live.bound_at or started), max(end, live.bound_at or end)))
        draft.status.start_time = draft.status.start_time or live.started_at
        draft.announce("Started", f"attempt {live.number} ran on {live.node}")
    reason = _reason_of(live, seen)
    if live.stop_reason in _DEADLINES and seen.reason is not None and RULES[seen.reason].infrastructure:
        # The node failed under it before the stop could: not the task's fault (I8).
        draft.fail(live, seen.reason, seen.message, seen.exit_code, seen.finished_at)
    elif live.state is AttemptState.STOPPING and not (reason is Reason.COMPLETED and _ended_before_stop(draft, live, seen)):
        if seen.reason is not None and live.started_at is None:
            live = draft.update(live, reason=seen.reason.value, message=_kept(live) or clip(seen.message))
        draft.stopped(live, seen.message, seen.exit_code, seen.finished_at)
    elif reason is Reason.COMPLETED:
        draft.succeed(live, seen)
    else:
        draft.fail(live, reason, seen.message, seen.exit_code, seen.finished_at)


def _reason_of(live: Attempt, seen: Observation) -> Reason:
    if seen.reason is not None and seen.reason is not Reason.COMPLETED:
        return seen.reason
    match seen.state:
        case WorkloadState.REJECTED:
            return named(live.reason) or Reason.ENGINE_REJECTED
        case WorkloadState.EXITED if seen.exit_code == 0:
            return Reason.COMPLETED
        case WorkloadState.EXITED if seen.exit_code is not None:
            return Reason.ERROR
        case _:
            # STOPPED though nobody here asked for it, or EXITED with an exit code that the engine has lost.
            return Reason.WORKLOAD_LOST


def _ended_before_stop(draft: Draft, live: Attempt, seen: Observation) -> bool:
    """Proof that the work was done before that it should stop reached it, or before anybody asked for that, by more than clocks may
    differ: it is never run again. What its node knows counts more than the times, because clocks of laptops are wrong."""
    if seen.unasked is not None:
        return seen.unasked
    if seen.finished_at is None or live.stop_requested_at is None:
        return False
    return whole(seen.finished_at) + timedelta(seconds=draft.policy.clock_skew_s) < live.stop_requested_at
