"""Whom a person has moved to the front of a queue: he comes before all others of it.

Used by `world` of a run in which nothing goes wrong, where the operator hears of everything at once; it shows every stored version
of every task. Nobody else of the queue may be placed on a node while the moved one waits and would fit there. He may be placed
where it does not fit yet: whether he holds it up then is not asked here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from swarmtask.controllers.task_facts import holding_of
from swarmtask.resources import units
from swarmtask.resources.task import ANNOTATION_FRONT, Phase, SwarmTask
from swarmtask.scheduler.model import Amounts

HEARD_S = 0.2
"""The operator has heard of a move after this, and the cycle before has written what it had decided."""
CUT = timedelta(seconds=1)
"""When a task was placed is stored in whole seconds, cut off."""
TOGETHER_S = 0.01
"""Deciding and writing take no time where nothing goes wrong, and two cycles lie further apart: so who is placed within this is
placed together, and what ended within it may have come too late to be counted."""


@dataclass
class _Moved:
    """One who waits at the front. `since_s`: when he came there."""

    at: datetime
    since_s: float
    overtaken: list[_Overtaking] = field(default_factory=list)


@dataclass
class _Overtaking:
    """Who may have been wrong to come before. `left`: what the node had left then, without those who rightly came before too."""

    at_s: float
    by: str
    node: str
    left: Amounts


class Fronts:
    """See the module. `nodes`: name -> what it offers."""

    def __init__(self, nodes: Callable[[], Mapping[str, Amounts]]) -> None:
        self._nodes = nodes
        self._waiting: dict[str, tuple[SwarmTask, _Moved]] = {}
        self._held: dict[str, tuple[str, Amounts]] = {}
        """Attempt -> its node and what it holds."""
        self._released: list[tuple[float, str, Amounts]] = []
        self._placed: dict[str, int] = {}

    def seen(self, task: SwarmTask, now_s: float) -> str | None:
        """A version was stored at this moment of the run. Who was overtaken by whom though it fitted, in words."""
        uid, attempt = task.metadata.uid, task.status.attempt
        placed = attempt > self._placed.get(uid, 0)
        self._placed[uid] = max(attempt, self._placed.get(uid, 0))
        wrong = self._place(task, now_s) if placed else None
        self._hold(task, now_s)
        self._stand(task, now_s)
        return wrong

    def _place(self, task: SwarmTask, now_s: float) -> str | None:
        known = self._waiting.pop(task.metadata.uid, None)
        current = task.status.current
        for other, moved in self._waiting.values() if current is not None else ():
            assert current is not None
            if other.spec.queue != task.spec.queue or now_s - moved.since_s <= HEARD_S:
                continue
            if known is not None and known[1].at > moved.at:  # who is moved last comes first
                self._excuse(other, moved, task, current.node, now_s)
            elif _wish(other).fits_in(left := self._free(current.node, now_s)):
                moved.overtaken.append(_Overtaking(now_s, task.metadata.name, current.node, left))
        for one in known[1].overtaken if known is not None else ():
            if now_s - one.at_s > TOGETHER_S:  # else both were placed together
                return f"was moved to the front, yet {one.by} was placed at {one.at_s:.1f} s where it fitted"
        return None

    def _excuse(self, other: SwarmTask, moved: _Moved, rightful: SwarmTask, node: str, now_s: float) -> None:
        """`rightful` may take the room before `other`. Whom the same cycle placed there, and who was written first, took what was
        left after that."""
        for one in moved.overtaken:
            if one.node == node and now_s - one.at_s <= TOGETHER_S:
                one.left = one.left - _wish(rightful)
        moved.overtaken = [one for one in moved.overtaken if _wish(other).fits_in(one.left)]

    def _free(self, node: str, now_s: float) -> Amounts:
        self._released = [one for one in self._released if now_s - one[0] <= TOGETHER_S]
        free = self._nodes().get(node, Amounts())
        for name, held in [*self._held.values(), *(one[1:] for one in self._released)]:
            if name == node:
                free = free - held
        return free

    def _hold(self, task: SwarmTask, now_s: float) -> None:
        holding, uid = holding_of(task), task.metadata.uid
        before = self._held.pop(uid, None)
        if holding is not None:
            self._held[uid] = (holding.node, holding.amounts)
        elif before is not None:
            self._released.append((now_s, *before))

    def _stand(self, task: SwarmTask, now_s: float) -> None:
        """A move counts until the task is placed, and only while it waits."""
        uid, text, current = task.metadata.uid, task.metadata.annotations.get(ANNOTATION_FRONT), task.status.current
        at = None if text is None else datetime.fromisoformat(text)
        spent = at is not None and current is not None and current.bound_at is not None and at < current.bound_at + CUT
        if at is None or spent or task.status.phase is not Phase.QUEUED:
            self._waiting.pop(uid, None)
        elif uid not in self._waiting or self._waiting[uid][1].at != at:
            self._waiting[uid] = (task, _Moved(at, now_s))


def _wish(task: SwarmTask) -> Amounts:
    requests = task.spec.container.resources.requests
    return Amounts(units.cpu_milli(requests.cpu), units.memory_bytes(requests.memory), requests.gpu)
