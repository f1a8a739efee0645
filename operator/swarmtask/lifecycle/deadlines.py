"""Every moment at which something is due, computed from the stored object.

Called by the state machine (is it due?) and by `commands` (when to look again), so that both always agree. Never decides what
happens then.

Times are stored in whole seconds, cut off; a deadline that counts from a stored time is therefore due one second later than the
plain sum: up to a second late, never early.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from swarmtask.lifecycle.messages import Reason
from swarmtask.resources.failures import Backoff
from swarmtask.resources.task import TERMINAL_PHASES, Attempt, AttemptState, Phase, TaskSpec, TaskStatus

_CUT = timedelta(seconds=1)
_SQUEEZED_S = 10.0
_FOR_GOOD = frozenset({Reason.DELETED.value, Reason.CANCELLED.value, Reason.START_DEADLINE.value, Reason.ACTIVE_DEADLINE.value})
"""Stops after which nothing follows by itself, and deadlines, which end an attempt without proof by the word of its task."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator's settings say about all tasks.

    Attributes:
        infrastructure_loss_limit: attempts lost through no fault of the task before it becomes a dead letter.
        stop_margin_s: an attempt that cannot be seen (node silent; or never shown by its engine, and cancelled or that engine not
            driven) counts as stopped this long after its grace period.
        clock_skew_s: how far clocks of nodes may be apart; work counts as finished before a stop only when it is by more.
        unreachable_s: a node whose agent has been silent for so long is lost.
        fence_s: an agent that cannot reach the API begins to stop attempts after this; the agents are told the same.
        fence_margin_s: between the end of the last grace period of a fence and the replacement.
        engines: what the operator drives; None: not known, as good as all.
        clock_from: since when the wall clock has run without being set back, by that clock; None: not known.
    """

    infrastructure_loss_limit: int = 20
    stop_margin_s: int = 10
    clock_skew_s: int = 5
    unreachable_s: float = 4.5
    fence_s: float = 20.0
    fence_margin_s: float = 10.0
    clock_from: datetime | None = None
    engines: frozenset[str] | None = None

    def drives(self, engine: str) -> bool:
        """Whether a list of this engine will ever say anything."""
        return self.engines is None or engine in self.engines


def whole(moment: datetime) -> datetime:
    """UTC, cut to the whole second: what is stored."""
    return exact(moment).replace(microsecond=0)


def exact(moment: datetime) -> datetime:
    """UTC, to the microsecond."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def before(moment: datetime, ahead: datetime) -> datetime:
    """A stored time that lies ahead, as one of the seconds before `moment`: of two the earlier one stays the earlier one, if they
    are a millisecond apart (and the clock was not set back by many hours)."""
    ahead_s = (ahead - moment).total_seconds()
    return moment - timedelta(seconds=_SQUEEZED_S - _SQUEEZED_S * ahead_s / (ahead_s + 3600))


def retry_delay_s(backoff: Backoff, earlier: int, salt: str) -> int:
    """Whole seconds to wait before a retry when `earlier` failures of the same budget came before this one.

    exponential: initial x factor^earlier; linear: initial x (earlier + 1); never more than maxSeconds. Shortened by up to
    jitterPercent, by a part that is a function of `salt` (what was tried), so that the same question has the same answer.
    """
    steps = max(0, earlier)
    growth = steps + 1 if backoff.type == "linear" else backoff.factor**steps
    longest = min(backoff.initial_seconds * growth, backoff.max_seconds)
    choices = longest * backoff.jitter_percent // 100 + 1
    return longest - int.from_bytes(hashlib.sha256(salt.encode()).digest()[:8]) % choices


def retry_at(now: datetime, delay_s: int) -> datetime:
    """End of a backoff that starts now: a whole second, never early; at once when there is no delay."""
    start = whole(now)
    if delay_s == 0:
        return start
    return start + timedelta(seconds=delay_s) + (_CUT if start < now else timedelta())


def queue_deadline(spec: TaskSpec, status: TaskStatus) -> datetime | None:
    """When a waiting task expires; None once it has started in this budget, or when there is no such deadline."""
    limit = spec.queue_deadline_seconds
    if limit is None or status.queued_time is None or status.start_time is not None:
        return None
    return status.queued_time + timedelta(seconds=limit) + _CUT


def attempt_deadline(spec: TaskSpec, attempt: Attempt, phase: Phase) -> datetime | None:
    """When a live attempt that is not being stopped has to be: by its start deadline, once started by its active deadline. The same
    of one whose stop nobody can see, where it may be waited for without end."""
    if not attempt.live:
        return None
    if attempt.state is AttemptState.STOPPING and (_fenced(spec, attempt) or not silence_decides(spec, attempt, phase)):
        return None
    if attempt.started_at is not None:
        limit = spec.active_deadline_seconds
        return None if limit is None else attempt.started_at + timedelta(seconds=limit) + _CUT
    if attempt.bound_at is None:
        return None
    return attempt.bound_at + timedelta(seconds=spec.start_deadline_seconds) + _CUT


def promised_grace_s(spec: TaskSpec, attempt: Attempt) -> int:
    """Seconds between SIGTERM and SIGKILL that its container was made with; no edit of the spec reaches that any more."""
    promised = attempt.termination_grace_period_seconds
    return spec.termination_grace_period_seconds if promised is None else promised


def promised_fence(spec: TaskSpec, attempt: Attempt) -> bool:
    """Whether its container is made to be stopped by the agent of its node; no edit of the spec reaches that any more."""
    return spec.node_loss.replace == "afterFence" if attempt.fence is None else attempt.fence


def replacing(spec: TaskSpec, attempt: Attempt) -> Literal["afterFence", "afterLost", "never"]:
    """What `nodeLoss.replace` comes to for a live attempt. An edit counts at once, except that no fence is relied on which its
    container does not carry, or of which nothing was recorded: the node is waited for instead (until its engine has told with what
    an attempt of an older version was made: `MadeWith`)."""
    wish = spec.node_loss.replace
    return "never" if wish == "afterFence" and not attempt.fence else wish


def silence_decides(spec: TaskSpec, attempt: Attempt, phase: Phase) -> bool:
    """Whether an attempt that is being stopped on a silent node is waited for as if nobody stopped it: `NodeSilent` or the node
    itself says when it is over, because the task is to run again and the attempt may run on. Not where nothing fences what carries
    the fence. Where something does, only a deletion is not waited for; else nothing that ends the attempt for good is."""
    if attempt.state is not AttemptState.STOPPING or phase is not Phase.UNKNOWN or not attempt.observed:
        return False
    if replacing(spec, attempt) == "afterFence":
        return _fenced(spec, attempt) and attempt.stop_reason != Reason.DELETED
    return attempt.stop_reason not in _FOR_GOOD


def _fenced(spec: TaskSpec, attempt: Attempt) -> bool:
    """The agent of its node stops it when it cannot reach the API."""
    return replacing(spec, attempt) == "afterFence" and attempt.boot_id is not None


def unseen_stop_deadline(spec: TaskSpec, attempt: Attempt, phase: Phase, policy: Policy) -> datetime | None:
    """When an attempt that is being stopped and cannot be seen counts as stopped; None while its engine shows it, and where the
    silence of its node decides. One that its engine has never shown may still turn up: where something is to follow, a list of the
    engine says that it has not (`Vanished`), not the time, unless nobody will ever ask that engine."""
    if attempt.observed and phase is not Phase.UNKNOWN:
        return None
    awaited = attempt.stop_reason not in (Reason.CANCELLED, Reason.DELETED) and policy.drives(attempt.engine)
    if not attempt.observed and awaited:
        return None
    return None if silence_decides(spec, attempt, phase) else stop_over(spec, attempt, policy)


def stop_over(spec: TaskSpec, attempt: Attempt, policy: Policy) -> datetime | None:
    """When a stop has had the time to take effect, with a margin; None: it is not being stopped."""
    if attempt.state is not AttemptState.STOPPING or attempt.stop_requested_at is None:
        return None
    grace_s = max(spec.termination_grace_period_seconds, promised_grace_s(spec, attempt))
    return attempt.stop_requested_at + timedelta(seconds=grace_s + policy.stop_margin_s) + _CUT


def expiry(spec: TaskSpec, status: TaskStatus) -> datetime | None:
    """When a finished task has lived out its time to live."""
    if status.phase not in TERMINAL_PHASES or status.completion_time is None:
        return None
    return status.completion_time + timedelta(seconds=spec.ttl_seconds_after_finished)
