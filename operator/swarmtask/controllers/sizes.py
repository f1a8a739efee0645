"""How much memory each task asks for: its plan, and which waiting tasks must hear of what others have shown.

Called by the cache alone, for every task that changes. What was learned is lost with the process, and learned again from the
finished tasks that are still there. Decides nothing: the rules are `scheduler.peaks` and `lifecycle.memory`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import TYPE_CHECKING

from swarmtask.lifecycle.memory import limit_bytes, planned
from swarmtask.lifecycle.messages import Reason
from swarmtask.resources import units
from swarmtask.resources.fields import AUTO
from swarmtask.resources.task import LABEL_TEMPLATE, MemoryPlan, Phase, SwarmTask
from swarmtask.scheduler.model import TaskKey
from swarmtask.scheduler.peaks import Peak, Peaks, Sizing

if TYPE_CHECKING:
    from swarmtask.controllers.entries import TaskEntry


def memory_template_of(task: SwarmTask) -> str:
    """What kind of work a task is, as far as memory is concerned. As for durations (`learning.template_of`), but whatever it
    requests: tasks with a fixed request teach those with `auto`."""
    label = task.metadata.labels.get(LABEL_TEMPLATE)
    if label:
        return f"{task.key[0]}/{label}"
    container = task.spec.container
    identity = (container.image, container.command, container.working_dir)
    return hashlib.blake2b(repr(identity).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


class Sizes:
    """Peaks by template, and the tasks that wait with `auto`.

    Attributes:
        largest_bytes: what the largest node offers; 0 while there is none.
    """

    def __init__(self) -> None:
        self.largest_bytes = 0
        self._offers: dict[str, int] = {}
        self._peaks = Peaks()
        self._waiting: dict[str, dict[TaskKey, None]] = {}
        self._template_of: dict[TaskKey, str] = {}

    def plan(self, task: SwarmTask) -> MemoryPlan | None:
        """What its next attempt asks for; None: what its spec says."""
        if task.spec.container.resources.requests.memory != AUTO:
            return None if task.status.memory is None else planned(task.spec, task.status)
        return planned(task.spec, task.status, plan_of(self._peaks.sizing(memory_template_of(task), self.largest_bytes)))

    def note(self, key: TaskKey, old: TaskEntry | None, new: TaskEntry | None) -> Collection[TaskKey]:
        """A task was `old` and is `new`. Returns the waiting tasks that may ask for another amount now."""
        waits = new is not None and new.pending is not None and new.task.spec.container.resources.requests.memory == AUTO
        template = memory_template_of(new.task) if new is not None and waits else None
        before = self._template_of.get(key)
        if before is not None and before != template:
            del self._template_of[key]
            del self._waiting[before][key]
            if not self._waiting[before]:
                del self._waiting[before]
        if template is not None and before != template:
            self._template_of[key] = template
            self._waiting.setdefault(template, {})[key] = None
        peak = None if new is None else peak_of(new.task)
        if new is None or peak is None or (old is not None and peak_of(old.task) == peak):
            return ()
        learned = memory_template_of(new.task)
        size = self._peaks.sizing(learned, self.largest_bytes)
        self._peaks.learn(learned, peak)
        alike = self._waiting.get(learned)
        return tuple(alike) if alike and self._peaks.sizing(learned, self.largest_bytes) != size else ()

    def offer(self, node: str, memory_bytes: int) -> Collection[TaskKey]:
        """A node offers so much; 0: it is gone. Returns the waiting tasks that may ask for another amount now."""
        if memory_bytes == self._offers.get(node, 0):
            return ()
        if memory_bytes:
            self._offers[node] = memory_bytes
        else:
            del self._offers[node]
        before, self.largest_bytes = self.largest_bytes, max(self._offers.values(), default=0)
        return tuple(self._template_of) if before != self.largest_bytes else ()


def plan_of(sizing: Sizing) -> MemoryPlan:
    """What was learned, as a status shows it."""
    amount = units.format_memory(sizing.request_bytes)
    basis = "Learned" if sizing.samples else "Default"
    return MemoryPlan.model_validate(
        {"request": amount, "limit": amount, "basis": basis, "samples": sizing.samples, "message": sizing.words}
    )


def peak_of(task: SwarmTask) -> Peak | None:
    """What a task that ended shows of its kind; None where it shows nothing: it goes on, nobody measured, or it was stopped early.

    Only how the task ended counts, not the steps that it took: one that ran wild is one sample and not four.
    """
    status, current = task.status, task.status.current
    if status.phase not in (Phase.SUCCEEDED, Phase.FAILED) or current is None or current.finished_at is None:
        return None
    killed = current.reason == Reason.OOM_KILLED
    if not killed and current.reason != Reason.COMPLETED:
        return None
    peak, limit = units.memory_bytes(current.peak_memory or "0"), limit_bytes(task.spec, current)
    if killed:
        peak = max(peak, limit)
    return Peak(current.finished_at.timestamp(), task.metadata.uid, peak, killed, limit) if peak else None
