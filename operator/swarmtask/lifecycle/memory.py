"""How much memory the next attempt asks for: the spec's words, what was learned for `auto`, and the ladder.

Called by `Draft` when an attempt fails and when one is bound, and by the controllers before a task is placed and for a person.
Pure. What was learned comes in as a plan; it is made elsewhere. The rules: docs/memory.md.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

from swarmtask.lifecycle.messages import Reason
from swarmtask.resources import units
from swarmtask.resources.failures import FailureRule
from swarmtask.resources.fields import AUTO, AUTO_MEMORY
from swarmtask.resources.node import NodeAttempt
from swarmtask.resources.task import Attempt, MemoryPlan, Resources, TaskSpec, TaskStatus

AUTO_FACTOR = 2.0
"""With `auto`, an attempt that was OOMKilled is followed by one with so many times its memory, unless a rule says otherwise."""
_MIB = 2**20
_MOST = 2**60
"""No machine has more; a step beyond it would be no quantity any more."""


def planned(spec: TaskSpec, status: TaskStatus, learned: MemoryPlan | None = None) -> MemoryPlan | None:
    """What the next attempt asks for; None: what the spec says.

    An earlier step of the ladder holds, unless the spec (edited since) or what was learned asks for more.

    Args:
        learned: for `auto`, of the task's template; None while nothing is known. Without meaning for other tasks.
    """
    resources, ladder = spec.container.resources, _ladder(status)
    if resources.requests.memory == AUTO:
        plan = _within(learned or _default(), resources)
        if ladder is None:
            return plan
        if _request(plan) < _request(ladder):
            return ladder
        return plan.model_copy(update={"limit": _larger(plan.limit, ladder.limit)})
    if ladder is None:
        return None
    request = units.memory_bytes(resources.requests.memory)
    limit = max(request, units.memory_bytes(resources.limits.memory or "0"))
    if request >= _request(ladder) and limit >= units.memory_bytes(ladder.limit):
        return None
    return ladder.model_copy(
        update={
            "request": _larger(ladder.request, resources.requests.memory),
            "limit": _larger(ladder.limit, resources.limits.memory or resources.requests.memory),
        }
    )


def climb(spec: TaskSpec, attempt: Attempt, reason: Reason, rule: FailureRule | None) -> MemoryPlan | None:
    """The next step of the ladder after an attempt that failed; None where there is none: no rule asks for one, the bound has been
    reached, or the attempt had no limit.

    Request and limit grow by the same factor, so that what killed the attempt is not met again at once. Up to whole mebibytes.

    Args:
        rule: of `failurePolicy`, the one that matched.
    """
    resources = spec.container.resources
    factor = None if rule is None else rule.memory_factor
    most = None if rule is None or rule.max_memory is None else units.memory_bytes(rule.max_memory)
    if factor is None:
        if resources.requests.memory != AUTO or reason is not Reason.OOM_KILLED:
            return None
        # A limit that a person has set is not stretched without being told to.
        factor, most = AUTO_FACTOR, None if resources.limits.memory is None else units.memory_bytes(resources.limits.memory)
    request, limit = units.memory_bytes(attempt.requested.memory), limit_bytes(spec, attempt)
    grown_request, grown_limit = _grown(request, factor, most), _grown(limit, factor, most)
    if grown_limit == limit:
        return None  # the same limit would kill it again, whatever is set aside for it
    words = f"{factor:g} times the {_words(request, limit)} of attempt {attempt.number}, which ended {reason.value}"
    if most is not None and grown_limit == max(most, limit):
        words += f", and no more than {units.humanize_memory(most)}"
    return MemoryPlan(
        request=units.format_memory(grown_request), limit=units.format_memory(max(grown_limit, grown_request)), basis="Ladder",
        message=words,
    )  # fmt: skip


def limit_bytes(spec: TaskSpec, attempt: Attempt) -> int:
    """The most that an attempt may use, in bytes; 0: it has no limit. Never less than it requested."""
    request = units.memory_bytes(attempt.requested.memory)
    told = attempt.requested.memory_limit or spec.container.resources.limits.memory
    return max(request, units.memory_bytes(told or "0"))


def climbs_still(status: TaskStatus) -> bool:
    """Whether the newest attempt is what the ladder has climbed from: no attempt had its last step yet. Where one had it, some node
    could give so much, and may come back."""
    ladder, newest = _ladder(status), status.current
    if ladder is None or newest is None:
        return False
    return units.memory_bytes(newest.requested.memory) < _request(ladder)


def usage_of(spec: TaskSpec, attempt: Attempt, record: NodeAttempt, capacity_bytes: int) -> tuple[str | None, float | None]:
    """Peak memory and seconds of CPU time of an attempt, as its node told them. The peak is no more than the attempt can have used:
    its limit, and all that its node has; None where neither is known.

    Args:
        capacity_bytes: of the node; 0: not known.
    """
    bounds = [count for count in (limit_bytes(spec, attempt), capacity_bytes) if count]
    if record.peak_memory is None or not bounds:
        return None, record.cpu_seconds
    most = min(*bounds, _MOST)
    return record.peak_memory if units.memory_bytes(record.peak_memory) <= most else str(most), record.cpu_seconds


def _ladder(status: TaskStatus) -> MemoryPlan | None:
    return status.memory if status.memory is not None and status.memory.basis == "Ladder" else None


def _default() -> MemoryPlan:
    return MemoryPlan(request=AUTO_MEMORY, limit=AUTO_MEMORY, basis="Default", message="no attempt of its template was seen yet")


def _within(plan: MemoryPlan, resources: Resources) -> MemoryPlan:
    """With a limit that a person has set: no request above it, and that limit."""
    most = resources.limits.memory
    if most is None:
        return plan
    request = plan.request if _request(plan) <= units.memory_bytes(most) else most
    return plan.model_copy(update={"request": request, "limit": most})


def _grown(count: int, factor: float, most: int | None) -> int:
    """`factor` times as much in whole mebibytes, no more than `most`, never less than it is."""
    if count >= _MOST:
        return count
    mebibytes = (count * Decimal(str(factor)) / _MIB).to_integral_value(ROUND_CEILING)
    grown = min(int(mebibytes) * _MIB, _MOST) if factor > 1 else count
    return max(count, grown if most is None else min(grown, most))


def _request(plan: MemoryPlan) -> int:
    return units.memory_bytes(plan.request)


def _larger(one: str, other: str) -> str:
    return one if units.memory_bytes(one) >= units.memory_bytes(other) else other


def _words(request: int, limit: int) -> str:
    if request == limit:
        return units.humanize_memory(request)
    return f"{units.humanize_memory(request)} (limit {units.humanize_memory(limit)})"
