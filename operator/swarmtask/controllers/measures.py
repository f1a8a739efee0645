"""What others than tasks use on each node, as its agent's measurements come in.

Called by the cache alone. Knows which attempts were live when a measurement came, because what they use is in it. Decides nothing:
the rule is `scheduler.measured`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from swarmtask.resources import units
from swarmtask.resources.node import NodeUsage, SwarmNode
from swarmtask.resources.task import Attempt
from swarmtask.scheduler.measured import Attempted, Foreign, foreign_memory, held_bytes, taken_from_offer


@dataclass(slots=True)
class _Measurement:
    """The newest one of a node.

    Attributes:
        peaks: what the agent said of its attempts with it, by attempt ID.
        held: what tasks account for in it. before: what counted before it. foreign: what counts now.
    """

    usage: NodeUsage
    capacity_bytes: int
    peaks: Mapping[str, int]
    held: int
    before: Foreign | None
    foreign: Foreign = field(init=False)

    def __post_init__(self) -> None:
        self.judge()

    def judge(self) -> None:
        """After `held` has changed."""
        self.foreign = foreign_memory(units.memory_bytes(self.usage.memory), self.held, self.capacity_bytes, self.before)


class Measures:
    """See the module."""

    def __init__(self) -> None:
        self._live: dict[str, dict[str, Attempt]] = {}
        self._newest: dict[str, _Measurement] = {}

    def attempt(self, old: Attempt | None, new: Attempt | None, *, first_sight: bool) -> None:
        """The live attempt of a task was `old` and is `new`; None: there is none.

        Args:
            first_sight: its task was not known before, so it may have run for long, and is in what was measured already.
        """
        if old is not None and (new is None or new.id != old.id):
            here = self._live.get(old.node, {})
            here.pop(old.id, None)
            if not here:
                self._live.pop(old.node, None)
        if new is None:
            return
        self._live.setdefault(new.node, {})[new.id] = new
        newest = self._newest.get(new.node)
        if first_sight and newest is not None:
            newest.held += held_bytes([_attempted(new, newest.peaks)])
            newest.judge()

    def node(self, name: str, node: SwarmNode | None) -> None:
        """A node is like this now; None: it is gone. One without an agent is not measured."""
        usage = None if node is None else node.status.usage
        if node is None or usage is None:
            self._newest.pop(name, None)
            return
        known = self._newest.get(name)
        if known is not None and known.usage == usage:
            return
        peaks = {
            told.id: units.memory_bytes(told.peak_memory)
            for told in node.status.attempts
            if told.peak_memory is not None and told.state == "Running"
        }
        held = held_bytes(_attempted(attempt, peaks) for attempt in self._live.get(name, {}).values())
        capacity = units.memory_bytes(node.status.capacity.memory)
        self._newest[name] = _Measurement(usage, capacity, peaks, held, None if known is None else known.foreign)

    def taken(self, name: str, capacity_bytes: int, allocatable_bytes: int) -> int:
        """How much of what the node offers others than tasks use; 0 where nobody measures."""
        newest = self._newest.get(name)
        return 0 if newest is None else taken_from_offer(newest.foreign.bytes, capacity_bytes, allocatable_bytes)


def _attempted(attempt: Attempt, peaks: Mapping[str, int]) -> Attempted:
    request = units.memory_bytes(attempt.requested.memory)
    return Attempted(request, peaks.get(attempt.id), started=attempt.started_at is not None)
