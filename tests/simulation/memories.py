"""What attempts may ask for after others have ended, and what a machine that runs out of memory may cost.

Used by `world`, which shows every stored version of every task. Rules that hold whatever goes wrong: who was killed at his limit
and is to climb asks for more the next time, and nobody else does; an eviction is not paid by the task; what was learned is used.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from swarmtask.lifecycle.messages import Reason
from swarmtask.resources import units
from swarmtask.resources.fields import AUTO
from swarmtask.resources.task import Attempt, Phase, SwarmTask

PROMPT_S = 2.0
"""What is stored within this of being decided was decided by what the operator knows now."""


class Memories:
    """See the module.

    Args:
        now: the operator's wall clock.
        taught: had the operator known for a while what a task of this one's template has used, when it placed this one?
    """

    def __init__(self, now: Callable[[], datetime], taught: Callable[[SwarmTask], bool]) -> None:
        self._now, self._taught = now, taught
        self._before: dict[str, SwarmTask] = {}
        """UID -> the version of the task before this one."""
        self._budgets: dict[str, str | None] = {}
        """Attempt -> the retry by a person that its budget began with."""

    def seen(self, task: SwarmTask) -> str | None:
        """A version was stored. What is wrong with it, in words."""
        before = self._before.get(task.metadata.uid)
        self._before[task.metadata.uid] = task
        if before is None or task.is_array:
            return None
        return self._paid(before, task) or self._ladder(before, task) or self._sizing(before, task)

    def _paid(self, before: SwarmTask, task: SwarmTask) -> str | None:
        current, old = task.status.current, before.status.current
        ends = current is not None and old is not None and old.number == current.number and old.live and not current.live
        if not ends or current is None or current.reason != Reason.EVICTED:
            return None
        if task.status.failures != before.status.failures:
            return f"attempt {current.number} was evicted, and that was paid from backoffLimit"
        return None

    def _ladder(self, before: SwarmTask, task: SwarmTask) -> str | None:
        status = task.status
        if status.attempt == before.status.attempt or status.current is None:
            return None
        self._budgets[status.current.id] = status.observed_retry
        if len(status.attempts) < 2:
            return None
        last, new = status.attempts[-2:]
        if last.id not in self._budgets or self._budgets[last.id] != status.observed_retry:
            return None  # a person has retried it: it begins anew
        auto = task.spec.container.resources.requests.memory == AUTO
        climbs = auto or any(rule.memory_factor for rule in task.spec.failure_policy)
        if last.reason == Reason.OOM_KILLED and climbs:
            return (
                None
                if _limit(new) > _limit(last)
                else f"attempt {new.number} asks for no more than {last.number}, which was OOMKilled"
            )
        if auto or _limit(new) == _limit(last):
            return None
        return f"attempt {new.number} asks for another amount than {last.number}, which ended {last.reason}"

    def _sizing(self, before: SwarmTask, task: SwarmTask) -> str | None:
        status, plan = task.status, task.status.memory
        current = status.current
        if task.spec.container.resources.requests.memory != AUTO or status.attempt == before.status.attempt or current is None:
            return None
        bound_at = current.bound_at or datetime.min.replace(tzinfo=self._now().tzinfo)
        prompt = timedelta() <= self._now() - bound_at < timedelta(seconds=PROMPT_S)
        if prompt and status.phase is Phase.STARTING and (plan is None or plan.basis == "Default") and self._taught(task):
            return f"attempt {current.number} asks for the default, though it is known what such tasks use"
        return None


def _limit(attempt: Attempt) -> int:
    return units.memory_bytes(attempt.requested.memory_limit or attempt.requested.memory)
