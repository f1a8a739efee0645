"""A status in the making: the moves that the state machine is made of.

Called by `task` and `observed` only. A Draft starts as a copy of the stored status, is changed by named moves, and ends as a
`Transition`. It never touches the task it was made from, and it knows no event: which move follows which fact is decided by its
callers.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

from swarmtask.lifecycle import conditions
from swarmtask.lifecycle.deadlines import Policy, before, exact, retry_at, retry_delay_s, whole
from swarmtask.lifecycle.endings import ending
from swarmtask.lifecycle.memory import climb, climbs_still, planned, usage_of
from swarmtask.lifecycle.messages import Announcement, Bound, NodeTold, Observation, Reason, Transition, Twin, Unplaced
from swarmtask.lifecycle.reasons import RULES, named
from swarmtask.lifecycle.verdicts import judge, rule_of
from swarmtask.resources import units
from swarmtask.resources.fields import AUTO
from swarmtask.resources.meta import set_condition
from swarmtask.resources.task import (
    LABEL_DEAD_LETTER,
    LIVE_ATTEMPT_STATES,
    MAX_ATTEMPT_RECORDS,
    TERMINAL_PHASES,
    Attempt,
    AttemptState,
    MemoryPlan,
    Phase,
    Requested,
    SwarmTask,
    attempt_id,
)

MESSAGE_LIMIT = 4096
TOLD_LIMIT = MESSAGE_LIMIT - 256
"""Of the attempt that ended a task: leaves room for why there is no other one."""
EVIDENCE_LIMIT = 400
CORRECTED = timedelta(seconds=0.5)
"""A stored time that lies ahead by less is one of a clock that was only corrected."""
MENDED_WITHIN = timedelta(minutes=10)
"""Long after a clock was set back nothing waits any more that was stored before."""
_STOP_RANK: Mapping[str, int] = {
    Reason.PREEMPTED: 0, Reason.DRAINED: 0, Reason.EVICTED: 0, Reason.ATTEMPT_DELETED: 0, Reason.SUSPENDED: 1,
    Reason.START_DEADLINE: 2,
    Reason.ACTIVE_DEADLINE: 2, Reason.CANCELLED: 3, Reason.DELETED: 4,
}  # fmt: skip
"""Of a stop for anything else, which another version may have asked for: 0."""


EXPLAINED_STOPS = frozenset({Reason.PREEMPTED.value, Reason.DRAINED.value, Reason.EVICTED.value})
"""While an attempt is being stopped for one of these, its message says for whose sake; that stays."""


def clip(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """Engines' words as they may be stored: valid text without NUL, not longer than the field allows."""
    clean = text.replace("\x00", "").encode("utf-8", "replace").decode()
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


class Draft:
    """One status being written, with what people are told about it."""

    def __init__(self, task: SwarmTask, now: datetime, policy: Policy) -> None:
        self.task = task
        self.now = now
        self.at = whole(now)
        self.policy = policy
        self.status = task.status.model_copy(update={"attempts": list(task.status.attempts)})
        self.invalid: str | None = None
        """What is wrong with the object, when a live attempt keeps it from being given up."""
        self._announcements: list[Announcement] = []

    # --- reading ---------------------------------------------------------------------------------------------------------

    @property
    def terminal(self) -> bool:
        return self.status.phase in TERMINAL_PHASES

    @property
    def live(self) -> Attempt | None:
        """The current attempt while it holds its resources."""
        current = self.status.current
        return current if current is not None and current.state in LIVE_ATTEMPT_STATES else None

    # --- telling ---------------------------------------------------------------------------------------------------------

    def announce(self, reason: str, message: str, type_: Literal["Normal", "Warning"] = "Normal") -> None:
        self._announcements.append(Announcement(type_, str(reason), clip(message, 1024)))

    def mend_times(self) -> None:
        """A stored time that lies ahead was written before the clock was set back: it counts as now, so that nobody waits longer by
        as much. Who waits in a queue keeps the place among the others."""
        status, live = self.status, self.live
        if status.queued_time is not None and status.queued_time > exact(self.now):
            status.queued_time = self._mended(status.queued_time)
        for name in ("start_time", "completion_time"):
            moment = getattr(status, name)
            if moment is not None and moment > self.at:
                setattr(status, name, self.at)
        if live is not None:
            moments = {name: getattr(live, name) for name in ("bound_at", "started_at", "stop_requested_at")}
            ahead = {name: self.at for name, moment in moments.items() if moment is not None and moment > self.at}
            if ahead:
                self.update(live, **ahead)

    def _mended(self, queued: datetime) -> datetime:
        """For a time in the queue that lies ahead. All that wait get the same moment, whenever each is looked at: or the last one
        would become the first. That is when the clock was set back, if it was just now; nobody is made older by more."""
        now = exact(self.now)
        if queued - now < CORRECTED:
            return now
        since = exact(self.policy.clock_from or self.now)
        return before(since if now - MENDED_WITHIN <= since <= now else now, queued)

    # --- moves of the task -----------------------------------------------------------------------------------------------

    def hold(self, reason: str, message: str) -> None:
        """Pending: it may not queue. Its time in the queue starts anew when it may; where only the queue is missing it goes on."""
        status = self.status
        if status.phase is not Phase.PENDING or status.reason != reason:
            self.announce(reason, message)
        if reason != conditions.QUEUE_NOT_FOUND:
            status.queued_time = None
        elif status.phase is not Phase.QUEUED or status.queued_time is None:
            status.queued_time = exact(self.now)
        self._leave_node()
        status.phase, status.reason, status.message = Phase.PENDING, str(reason), clip(message)
        status.outcome_of = None

    def follow(self, twin: Twin) -> None:
        """Pending: another task does the same work, and this one waits for its outcome."""
        self.hold(Reason.DEDUPLICATED, f"waits for the outcome of {twin.name}, which has the same dedupeKey")
        self.status.outcome_of = twin.name

    def take_outcome(self, twin: Twin) -> None:
        """The same work was done by another task: end as that one has."""
        words = f": {twin.message}" if twin.message else ""
        self.status.exit_code = twin.exit_code
        self.end(twin.phase, Reason.DEDUPLICATED, f"took the outcome of {twin.name}, which has the same dedupeKey{words}")
        self.status.outcome_of = twin.name

    def enter_queue(self, *, keep_place: bool = False) -> None:
        """Queued, at the end of the backoff or as soon as it may.

        Args:
            keep_place: it goes where it was before it started, not to the end.
        """
        status = self.status
        retrying = status.phase is Phase.BACKOFF
        keep_place = keep_place or (status.phase is Phase.PENDING and status.reason == conditions.QUEUE_NOT_FOUND)
        if status.phase is Phase.PENDING and status.reason == Reason.SUSPENDED:
            self.announce("Resumed", "spec.suspend is off again")
        self._leave_node()
        status.phase, status.reason, status.message, status.not_before = Phase.QUEUED, None, None, None
        status.outcome_of = None
        if status.queued_time is None or (status.start_time is not None and not keep_place):
            status.queued_time = exact(self.now)  # tasks of one second keep the order in which they came
        if retrying:
            self.announce("Retrying", f"queued for attempt {status.attempt + 1}")
        else:
            self.announce("Queued", f"waiting in queue {self.task.spec.queue}")

    def place_in_queue(self, news: Unplaced) -> None:
        """Why it waits and until when, in the scheduler's words. One that has climbed too high for every node ends here."""
        status = self.status
        if news.out_of_reach and status.current is not None and climbs_still(status):
            self._give_up_climbing(status.current, news.out_of_reach)
            return
        self._note_memory(news.memory)
        if status.reason != news.reason:
            self.announce("Waiting", news.message or news.reason)
        status.queue_position, status.reason, status.message = max(1, news.position), news.reason, clip(news.message)
        status.estimated_start_time = None if news.estimated_start is None else whole(news.estimated_start)
        status.conditions = set_condition(
            status.conditions, conditions.SCHEDULED, False, reason=news.reason,
            message="; ".join(filter(None, (news.message, news.unknown))), now=self.at, observed_generation=self._generation(),
        )  # fmt: skip

    def bind(self, bound: Bound) -> None:
        """A new attempt on the chosen node. From here on it holds what it requested."""
        status = self.status
        number = status.attempt + 1
        attempt = Attempt(
            number=number, id=attempt_id(self.task.metadata.uid, number), node=bound.node, engine=bound.engine,
            engine_node_id=bound.engine_node_id, requested=self._requested(bound), bound_at=self.at,
            boot_id=bound.boot_id or None, termination_grace_period_seconds=self.task.spec.termination_grace_period_seconds,
            fence=self.task.spec.node_loss.replace == "afterFence",
        )  # fmt: skip
        self._note_memory(bound.memory)
        status.attempts = [*status.attempts, attempt][-MAX_ATTEMPT_RECORDS:]
        status.attempt, status.phase, status.node_name, status.engine = number, Phase.STARTING, bound.node, bound.engine
        status.queue_position, status.not_before, status.reason, status.message = None, None, None, None
        status.estimated_start_time = None
        self.announce("Scheduled", f"bound to {bound.node} (attempt {number}, engine {bound.engine})")

    def _requested(self, bound: Bound) -> Requested:
        spec, requests = self.task.spec, self.task.spec.container.resources.requests
        # With auto the scheduler has counted what was learned by then; between then and now nothing else may be recorded.
        counted = bound.memory if requests.memory == AUTO else None
        plan = counted or planned(spec, self.status)
        return Requested(
            cpu=requests.cpu, memory=requests.memory if plan is None else plan.request, gpu=requests.gpu, queue=spec.queue,
            limits=spec.limits, gpu_indices=list(bound.gpus), gpu_devices=list(bound.devices),
            memory_limit=spec.container.resources.limits.memory if plan is None else plan.limit,
        )  # fmt: skip

    def _note_memory(self, plan: MemoryPlan | None) -> None:
        """Show how much was learned, while the spec asks for that. A step of the ladder stays: a restart must know it."""
        status = self.status
        if status.memory is not None and status.memory.basis == "Ladder":
            return
        if self.task.spec.container.resources.requests.memory != AUTO:
            status.memory = None
        elif plan is not None and plan.basis != "Ladder":
            status.memory = plan

    def _give_up_climbing(self, attempt: Attempt, why: str) -> None:
        """A dead letter for what killed its newest attempt: the next one would need more than any node can give."""
        reason = attempt.reason or Reason.OOM_KILLED.value
        self.end(Phase.FAILED, reason, f"{describe(attempt, TOLD_LIMIT)}; {why}")

    def back_off(self, reason: str, message: str, earlier: int) -> None:
        """Wait before the next attempt. `earlier`: failures of the same budget before this one."""
        status = self.status
        delay_s = retry_delay_s(self.task.spec.backoff, earlier, attempt_id(self.task.metadata.uid, status.attempt))
        self._leave_node()
        status.phase, status.reason, status.message = Phase.BACKOFF, str(reason), clip(message)
        status.not_before = retry_at(self.now, delay_s)
        self.announce("BackOff", f"attempt {status.attempt + 1} in {delay_s}s")

    def end(self, phase: Phase, reason: str, message: str) -> None:
        """The terminal phase, left only by an explicit retry."""
        status = self.status
        status.phase, status.reason, status.message = phase, str(reason), clip(message)
        status.queue_position, status.not_before, status.outcome_of = None, None, None
        status.estimated_start_time = None
        status.completion_time = self.at if status.start_time is None else max(self.at, status.start_time)
        self._announcements.append(ending(phase, str(reason), status.message))

    def new_budget(self, request: str) -> None:
        """A person retries: counters and conditions start anew, attempt numbers go on growing (I4)."""
        status = self.status
        status.phase, status.reason, status.message = Phase.PENDING, None, None
        status.failures, status.infrastructure_losses = 0, 0
        status.start_time, status.completion_time, status.exit_code, status.queued_time = None, None, None, None
        status.peak_memory = None
        status.observed_retry, status.outcome_of, status.memory = request, None, None
        status.conditions = []
        self._leave_node()
        self.announce("RetryRequested", "a new budget of attempts begins")

    # --- moves of the attempt --------------------------------------------------------------------------------------------

    def update(self, attempt: Attempt, **changes: Any) -> Attempt:
        """Replace one record; returns the new one."""
        fresh = attempt.model_copy(update=changes)
        self.status.attempts = [fresh if old.number == attempt.number else old for old in self.status.attempts]
        return fresh

    def begin_stop(self, attempt: Attempt, reason: Reason, message: str) -> None:
        """Ask for the end of the attempt. A stronger wish replaces a weaker one, and the clock of the first goes on."""
        if attempt.state is AttemptState.STOPPING:
            if _STOP_RANK[reason] <= _STOP_RANK.get(attempt.stop_reason or Reason.SUSPENDED, 0):
                return
            self.update(attempt, stop_reason=reason.value)
        else:
            self.update(attempt, state=AttemptState.STOPPING, stop_reason=reason.value, stop_requested_at=self.at)
        self.announce("Stopping", f"attempt {attempt.number} on {attempt.node}: {message}")

    def preempt(self, attempt: Attempt, by: str) -> None:
        """Ask for the end of the attempt, to make room. `by`: who needs it, as "namespace/name"; kept as evidence."""
        words = f"preempted by {by}"
        self.begin_stop(self.update(attempt, reason=None, message=clip(words)), Reason.PREEMPTED, words)
        self.announce(Reason.PREEMPTED, f"Preempted by {by}: attempt {attempt.number} on {attempt.node} is stopped", "Warning")

    def drain(self, attempt: Attempt) -> None:
        """Ask for the end of the attempt, because its node is to be empty."""
        words = f"{attempt.node} is being drained"
        self.begin_stop(self.update(attempt, reason=None, message=words), Reason.DRAINED, words)

    def evict(self, attempt: Attempt, message: str) -> None:
        """Ask for the end of the attempt, because its node runs out of memory."""
        words = clip(f"{attempt.node} runs out of memory{': ' if message else ''}{message}", EVIDENCE_LIMIT)
        self.begin_stop(self.update(attempt, reason=None, message=words), Reason.EVICTED, words)

    def note_usage(self, attempt: Attempt, told: NodeTold) -> Attempt:
        """What its node measured; told once, at the end."""
        peak, cpu_s = usage_of(self.task.spec, attempt, told.record, told.memory_bytes)
        if peak is None and cpu_s is None:
            return attempt
        attempt = self.update(attempt, peak_memory=peak, cpu_seconds=cpu_s)
        peaks = [one.peak_memory for one in self.status.attempts if one.peak_memory is not None]
        if peaks:
            self.status.peak_memory = f"{-(-units.memory_bytes(peaks[-1]) // 2**20)}Mi"
        return attempt

    def accept_late(self, attempt: Attempt, observation: Observation) -> None:
        """Its node was given up, but the work was done there, and nothing has followed it yet: finished work is not run again."""
        status = self.status
        if attempt.started_at is None and observation.started_at is not None:
            attempt = self.update(attempt, started_at=min(whole(observation.started_at), self.at))
        status.start_time = status.start_time or attempt.started_at
        status.node_name, status.engine = attempt.node, attempt.engine
        self.announce("FinishedWhileAway", f"attempt {attempt.number} had completed on {attempt.node} while it was away")
        self.succeed(attempt, observation)

    def succeed(self, attempt: Attempt, observation: Observation) -> None:
        """The work is done."""
        attempt = self._close(
            attempt,
            AttemptState.SUCCEEDED,
            Reason.COMPLETED,
            exit_code=0,
            message=observation.message,
            finished_at=observation.finished_at,
        )
        self.end(Phase.SUCCEEDED, Reason.COMPLETED, f"attempt {attempt.number} on {attempt.node} completed")

    def fail(
        self, attempt: Attempt, reason: Reason, message: str, exit_code: int | None = None, finished_at: datetime | None = None
    ) -> None:
        """The attempt failed: pay from the budget that the reason's row names, then try again or give up."""
        attempt = self._close(attempt, AttemptState.FAILED, reason, exit_code=exit_code, message=message, finished_at=finished_at)
        told = describe(attempt, TOLD_LIMIT)
        self.announce("AttemptFailed", told, "Warning")
        why, earlier = self._pay(attempt, reason)
        if why is not None:
            self.end(Phase.FAILED, reason, f"{told}; {why}" if why else told)
        else:
            self.back_off(reason, told, earlier)

    def _pay(self, attempt: Attempt, reason: Reason) -> tuple[str | None, int]:
        """Take the attempt from the budget that its verdict names.

        Returns:
            (why there is no further attempt, or None when there is; how many were taken from that budget before).
        """
        status, limit = self.status, self.policy.infrastructure_loss_limit
        rules = self.task.spec.failure_policy
        verdict = judge(rules, reason, attempt.exit_code)
        rule = "" if verdict.rule is None else f"failurePolicy rule {verdict.rule}"
        if verdict.counts:
            status.failures += 1
            paid, limit = status.failures, self.task.spec.backoff_limit
            bound = f"backoffLimit {limit} is used up"
        else:
            status.infrastructure_losses += 1
            paid = status.infrastructure_losses
            bound = f"lost {paid} attempts through no fault of the task (limit {limit})"
            if rule and not RULES[reason].infrastructure:
                bound = f"{paid} attempts were lost or, as by {rule}, ignored (limit {limit})"
        if verdict.gives_up:
            return rule, paid - 1
        if paid > limit:
            return bound, paid - 1
        step = climb(self.task.spec, attempt, reason, rule_of(rules, verdict))
        if step is not None:
            status.memory = step
            self.announce("MoreMemory", f"attempt {attempt.number + 1} asks for {step.request}: {step.message}")
        return None, paid - 1

    def stopped(self, attempt: Attempt, message: str, exit_code: int | None = None, finished_at: datetime | None = None) -> None:
        """A stop that was asked for has taken effect; what follows depends on who asked."""
        name = attempt.stop_reason or Reason.SUSPENDED.value
        reason = named(name)
        if reason in (Reason.START_DEADLINE, Reason.ACTIVE_DEADLINE):
            cause: Reason = reason
            words = message or attempt.message or ""
            if reason is Reason.START_DEADLINE and attempt.reason is not None:
                cause, words = named(attempt.reason) or reason, attempt.message or message
            limit = f"stopped by {reason.value}" if cause is not reason else RULES[reason].meaning.removesuffix(".")
            self.fail(attempt, cause, f"{limit}{': ' if words else ''}{words}", exit_code, finished_at)
            return
        if reason in EXPLAINED_STOPS and attempt.message:
            message = f"{attempt.message}: {message}" if message else attempt.message
        if reason is Reason.EVICTED:
            self.fail(attempt, reason, message, exit_code, finished_at)  # as where its node had to act alone
            return
        attempt = self._close(attempt, AttemptState.STOPPED, name, exit_code=exit_code, message=message, finished_at=finished_at)
        if reason is Reason.PREEMPTED:
            why, _ = self._pay(attempt, reason)
            if why is not None:
                self.end(Phase.FAILED, reason, f"{describe(attempt, TOLD_LIMIT)}; {why}")
            else:
                self.enter_queue(keep_place=True)
        elif reason is Reason.SUSPENDED:
            self.hold(Reason.SUSPENDED, f"attempt {attempt.number} was stopped because spec.suspend was set")
        elif reason in (Reason.CANCELLED, Reason.DELETED):
            self.end(Phase.CANCELLED, name, describe(attempt))
        else:
            # Drained, or its end was asked for: costs nothing, no budget bounds how often a person may do that. The same where only
            # another version knows the reason: whatever that asks for, the task is not over.
            self.enter_queue(keep_place=True)

    def finish(self) -> Transition:
        """What is to be written and told."""
        status = self.status
        self._describe_live()
        status.observed_generation = self._generation()
        status.conditions = conditions.derive(status, self.at, self._generation(), self.evidence())
        if self.invalid is not None:
            status.conditions = set_condition(
                status.conditions, conditions.ADMITTED, False, reason=Reason.INVALID_OBJECT.value, message=self.invalid,
                now=self.at, observed_generation=self._generation(),
            )  # fmt: skip
        changed = status != self.task.status
        return Transition(status, changed, tuple(self._announcements) if changed else (), self._label_changes())

    def evidence(self) -> str:
        """How every recorded attempt ended, for the one who looks at a task that did not succeed."""
        lines = [describe(attempt, EVIDENCE_LIMIT) for attempt in self.status.attempts]
        if not lines:
            return self.status.message or ""
        told, newest = self.status.message or "", describe(self.status.attempts[-1], TOLD_LIMIT)
        # The newest attempt is why it ended: that is said once, with why there is no other one.
        told = lines.pop() + told[len(newest) :] if told.startswith(newest) else clip(told, EVIDENCE_LIMIT)
        return "; ".join([told, *lines])

    # --- inside ----------------------------------------------------------------------------------------------------------

    def _close(
        self,
        attempt: Attempt,
        state: AttemptState,
        reason: str,
        *,
        exit_code: int | None,
        message: str,
        finished_at: datetime | None,
    ) -> Attempt:
        # The engine's clock may be ahead or behind: an attempt ends neither in the future nor before it began.
        end = self.at if finished_at is None else min(whole(finished_at), self.at)
        begin = attempt.started_at or attempt.bound_at or end
        self.status.exit_code = exit_code
        return self.update(
            attempt, state=state, reason=str(reason), exit_code=exit_code, message=clip(message) or None,
            finished_at=max(end, begin),
        )  # fmt: skip

    def _leave_node(self) -> None:
        self.status.node_name, self.status.engine, self.status.queue_position = None, None, None
        self.status.estimated_start_time = None

    def _describe_live(self) -> None:
        attempt, status = self.live, self.status
        if attempt is None:
            return
        if attempt.state is AttemptState.STOPPING:
            words = f": {attempt.message}" if attempt.stop_reason in EXPLAINED_STOPS and attempt.message else ""
            status.reason = attempt.stop_reason
            status.message = clip(f"stopping attempt {attempt.number} on {attempt.node}{words}")
        elif status.phase is Phase.UNKNOWN:
            status.reason = conditions.NODE_UNREACHABLE
            status.message = f"{attempt.node} does not answer: attempt {attempt.number} may or may not be running"
            if attempt.fence is None:
                status.message += (
                    f"; whether its node's agent stops it was not recorded and {attempt.engine} has not told: nodeLoss.replace "
                    "afterFence waits for the node"
                )
        else:
            status.reason, status.message = attempt.reason, attempt.message

    def _label_changes(self) -> dict[str, str | None]:
        # Labels are another write than the status. They follow from the phase, so that a crash between the two is made good.
        wanted = "true" if self.status.phase is Phase.FAILED else None
        return {} if self.task.metadata.labels.get(LABEL_DEAD_LETTER) == wanted else {LABEL_DEAD_LETTER: wanted}

    def _generation(self) -> int | None:
        return self.task.metadata.generation or None


def describe(attempt: Attempt, limit: int = MESSAGE_LIMIT) -> str:
    """One attempt in one line: "attempt 2 on laptop-3: Error, exit code 1: words of the engine"."""
    code = "" if attempt.exit_code is None else f", exit code {attempt.exit_code}"
    code += _memory_words(attempt)
    words = f": {attempt.message}" if attempt.message else ""
    return clip(f"attempt {attempt.number} on {attempt.node}: {attempt.reason or attempt.state.value}{code}{words}", limit)


def _memory_words(attempt: Attempt) -> str:
    """How much it used of how much it had, where that is known or was what ended it."""
    had = units.memory_bytes(attempt.requested.memory_limit or attempt.requested.memory)
    if attempt.peak_memory is None and (attempt.reason != Reason.OOM_KILLED or not had):
        return ""
    if attempt.peak_memory is None:  # its node may tell later, or has no agent
        return f", with {units.humanize_memory(had)} of memory"
    peak = units.humanize_memory(units.memory_bytes(attempt.peak_memory))
    return f", peak memory {peak}" + (f" of {units.humanize_memory(had)}" if had else "")
