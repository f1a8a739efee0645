"""Nodes that fall silent: when their attempts may be replaced, and what their agents' words add to what an engine shows.

Called by `observed` and by the controllers that listen to nodes. Pure: what was heard, and how long ago by the operator's own
clock, goes in. No stored or told time decides here, because clocks of laptops are wrong and operators restart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from swarmtask.lifecycle.deadlines import Policy, promised_grace_s, replacing
from swarmtask.lifecycle.memory import usage_of
from swarmtask.lifecycle.messages import FINAL_WORKLOAD_STATES, Observation, Reason, WorkloadState
from swarmtask.lifecycle.reasons import RULES
from swarmtask.resources.node import NodeAttempt
from swarmtask.resources.task import Attempt, AttemptState, Phase, SwarmTask, TaskSpec

RECORDS_S = 20.0
"""A node that is heard again has told within this how the attempts ended that it stopped or finished meanwhile."""
RECORD_S = 5.0
"""The same of a failure on a node that is heard all the time: its agent tells news every three seconds at most."""
EARLY_S = 6.0
"""A fence may begin so much before the operator thinks: it saw the last renewal up to three seconds after it was made, and its last
complete read of the Leases, up to which it counts the silence, may be as old."""


class Hearing(StrEnum):
    """What is heard of a node's agent.

    NONE: it has none, and the engine alone is asked. NEW: not heard yet since this operator began to listen, and not long enough to
    be lost. HEARD: it renews its Lease. SILENT: it does not, and the node counts as lost. VOUCHED: it does not, but its engine
    reaches the node: either the agent alone is dead, or it cannot reach the API and has stopped what carries the fence.
    """

    NONE = "None"
    NEW = "New"
    HEARD = "Heard"
    SILENT = "Silent"
    VOUCHED = "Vouched"


@dataclass(frozen=True, slots=True)
class NodeWord:
    """What is known of one node.

    Attributes:
        since_s: HEARD: seconds since it was heard again, or for the first time. SILENT: seconds since its last sign of life, in
            which it could have been heard. VOUCHED: the same, since the last renewal.
        exact: that sign of life was a renewal that this operator saw, not its own start.
        boot_id: as its Lease says.
        holds_s: for so long its agent holds its Lease, as it says itself: it fences no earlier.
        heard_s: SILENT and VOUCHED: for how long it had been heard before, since the silence before this one.
    """

    hearing: Hearing
    since_s: float = 0.0
    exact: bool = True
    boot_id: str = ""
    holds_s: float = 0.0
    heard_s: float = RECORDS_S

    @property
    def told_all(self) -> bool:
        """Before it fell silent it had the time to tell what a silence before had ended, and the beginning of this one is known."""
        return self.exact and self.heard_s >= RECORDS_S

    def silent_beyond_s(self, fence_s: float) -> float:
        """Seconds of its silence, less those by which its agent fences later than `fence_s`: it may not have been told yet that
        this was made shorter, and one that is away cannot be."""
        return max(0.0, self.since_s - max(0.0, self.holds_s - fence_s))


_BY_SIGNAL = (137, 143)
"""SIGKILL, SIGTERM."""
_STOPPED_UNSEEN = (Reason.PREEMPTED, Reason.DRAINED, Reason.EVICTED, Reason.ATTEMPT_DELETED, Reason.SUSPENDED)
"""Stops after which the task goes on: one that nobody saw take effect may have come too late."""
_WAITING = (Phase.BACKOFF, Phase.QUEUED, Phase.PENDING)
NO_AGENT = NodeWord(Hearing.NONE)


def replace_after_s(spec: TaskSpec, attempt: Attempt, policy: Policy, *, fenced: bool) -> float | None:
    """Seconds of silence after which an attempt on a lost node may be replaced; None: not because of silence.

    Args:
        fenced: its node has an agent, which stops it by itself. Where it has none, `afterFence` has nothing to wait for and waits
            for the node.
    """
    match replacing(spec, attempt):
        case "afterFence" if fenced:
            return _fence_end_s(spec, attempt, policy)
        case "afterLost":
            return (policy.unreachable_s if fenced else 0.0) + spec.node_loss.grace_seconds
        case _:
            return None


def weigh(
    seen: Observation,
    attempt: Attempt,
    spec: TaskSpec,
    policy: Policy,
    word: NodeWord,
    *,
    record: NodeAttempt | None,
    unknown: bool,
    waited_s: float,
) -> Observation | None:
    """What an engine shows of a live attempt, in the light of what its node says; None: not to be believed yet.

    Args:
        record: what the agent has told of the attempt.
        unknown: the task is Unknown, because its node was silent.
        waited_s: since the engine showed its end for the first time.
    """
    if seen.state not in FINAL_WORKLOAD_STATES:
        silent = word.hearing is Hearing.SILENT or (word.hearing is Hearing.NEW and unknown)
        return None if silent else seen
    told = _complete(seen, attempt, word, record)
    if told.reason is not None or told.state is not WorkloadState.EXITED or _ended(record):
        return told
    in_fence = _in_fence(spec, attempt, policy, word, waited_s, unknown=unknown)
    fence_goes_on = in_fence and word.since_s <= _fence_end_s(spec, attempt, policy)
    if _may_be_explained(told, attempt, word, waited_s, in_fence=fence_goes_on if word.hearing is Hearing.VOUCHED else in_fence):
        return None
    if word.hearing is Hearing.VOUCHED and in_fence:
        words = "it ended when its node's agent may have stopped it, and the agent says nothing"
        return replace(told, reason=Reason.NODE_LOST, message=words)
    return told


def finished_away(task: SwarmTask, attempt: Attempt, record: NodeAttempt) -> bool:
    """Whether this attempt was given up with its node, had completed there, and nothing has followed it yet.

    A program that was told to end may say 0 of unfinished work. Where a stop had been asked for it must be known that none reached
    it; else it is enough that no signal is known of.
    """
    done = record.state == "Exited" and record.exit_code == 0 and not record.reason
    if attempt.reason == Reason.NODE_LOST:
        own = record.told_to_end is not True
    else:
        own = attempt.reason in _STOPPED_UNSEEN and attempt.exit_code is None and record.told_to_end is False
    current = task.status.current
    newest = current is not None and current.id == attempt.id
    return done and own and newest and task.status.phase in _WAITING and task.metadata.deletion_timestamp is None


def news_of(task: SwarmTask, attempt: Attempt, record: NodeAttempt, memory_bytes: int = 0) -> bool:
    """Whether a record says anything of an attempt that is over which is not written down yet. `memory_bytes`: see `NodeTold`."""
    told = usage_of(task.spec, attempt, record, memory_bytes)
    usage = told not in ((None, None), (attempt.peak_memory, attempt.cpu_seconds))
    return usage or finished_away(task, attempt, record)


def observation_of(attempt: Attempt, record: NodeAttempt, boot_id: str, *, reached: bool = True) -> Observation:
    """The agent's record of an end in the words of an engine: as good as if the engine had shown it.

    Args:
        reached: its engine reaches the node. Where it does not, the node has left it or is being shut down, and Docker ends
            containers by signals on the way; nobody else had told this one to stop.
    """
    seen = Observation(
        name=attempt.id, engine=attempt.engine, task_uid="", namespace="", task_name="", attempt=attempt.number,
        state=WorkloadState.EXITED, node_id=attempt.engine_node_id, exit_code=record.exit_code, message=record.message or "",
        started_at=record.started_at, finished_at=record.finished_at,
    )  # fmt: skip
    told = _complete(seen, attempt, NodeWord(Hearing.HEARD, boot_id=boot_id), record)
    # A polite end would pass for finished work, so there the engine need not have seen yet that it has lost the node.
    polite = told.exit_code == 0 and record.told_to_end is True
    signalled = polite or (not reached and told.exit_code in _BY_SIGNAL)
    if told.reason is not None or not signalled or attempt.state is AttemptState.STOPPING:
        return told
    blind = "showed nothing of" if reached else "had lost"
    words = f"a signal ended it (exit code {told.exit_code}) while {attempt.engine} {blind} {attempt.node}"
    return replace(told, reason=Reason.NODE_LOST, message=words)


def _ended(record: NodeAttempt | None) -> bool:
    return record is not None and record.state == "Exited"


def _complete(seen: Observation, attempt: Attempt, word: NodeWord, record: NodeAttempt | None) -> Observation:
    """Add the reason that only the node knows. A record with a reason counts also while the agent still stops the attempt."""
    if seen.state is not WorkloadState.EXITED or (seen.reason is not None and RULES[seen.reason].infrastructure):
        return seen
    if record is not None and record.reason:
        match record.reason:
            case "OOMKilled":
                reason, words = Reason.OOM_KILLED, "it met its own memory limit"
            case "Evicted":
                reason, words = Reason.EVICTED, "its node stopped it because the machine ran out of memory"
            case _:
                reason, words = Reason.NODE_LOST, "its node stopped it because it could not reach the API"
        return replace(seen, reason=reason, message=record.message or words, exit_code=_code(seen, record))
    restarted = word.hearing is Hearing.HEARD and attempt.boot_id and word.boot_id and attempt.boot_id != word.boot_id
    done = record is not None and _ended(record) and record.exit_code == 0
    if record is not None and done and record.told_to_end is not None:
        return replace(seen, unasked=not record.told_to_end)
    if restarted and not done:
        code = "" if seen.exit_code is None else f" (exit code {seen.exit_code} means nothing)"
        return replace(seen, reason=Reason.NODE_RESTARTED, message=f"{attempt.node} was restarted while it ran{code}")
    return seen


def _code(seen: Observation, record: NodeAttempt) -> int | None:
    return seen.exit_code if seen.exit_code is not None else record.exit_code


def _may_be_explained(seen: Observation, attempt: Attempt, word: NodeWord, waited_s: float, *, in_fence: bool) -> bool:
    """Whether the agent may still say that it was the node and not the program that ended it. A program that ends politely on
    SIGTERM exits with 0: that would pass for finished work."""
    fenced = _may_carry_the_fence(attempt)
    match word.hearing:
        case Hearing.NONE:
            return False
        case Hearing.NEW:
            return fenced or seen.exit_code != 0
        case Hearing.HEARD:
            return (fenced and word.since_s < RECORDS_S) or (seen.exit_code != 0 and waited_s < RECORD_S)
        case Hearing.SILENT:
            return fenced and (not word.told_all or in_fence)
        case Hearing.VOUCHED:
            return in_fence


def _in_fence(spec: TaskSpec, attempt: Attempt, policy: Policy, word: NodeWord, waited_s: float, *, unknown: bool) -> bool:
    """Whether it ended while an agent that cannot reach the API stops what carries the fence. Where the beginning of the silence is
    not known, or the node had not told yet of the silence before, that may have been at any time before. One that nobody has seen
    running may have started as late as its node came back, and an agent that has not renewed its Lease by then stops it at once.
    One that was Unknown until its engine came back with its end has ended at any time since."""
    began_s = word.since_s - waited_s
    over = attempt.started_at is not None and not unknown and began_s > _fence_end_s(spec, attempt, policy)
    inside = not over and (not word.told_all or began_s >= policy.fence_s - EARLY_S)
    return _may_carry_the_fence(attempt) and inside


def _may_carry_the_fence(attempt: Attempt) -> bool:
    """Its node's agent may stop it, whatever its task says by now. Where nothing was recorded, that is possible too."""
    return attempt.fence is not False


def _fence_end_s(spec: TaskSpec, attempt: Attempt, policy: Policy) -> float:
    return policy.fence_s + promised_grace_s(spec, attempt) + policy.fence_margin_s
