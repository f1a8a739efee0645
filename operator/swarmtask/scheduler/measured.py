"""Memory that others than tasks use on a node, from what its agent measured.

Called by the controllers, which keep one `Foreign` for each node that is measured, and give what it takes from the offer to
`NodeInfo.foreign_bytes`. Pure. The formula and why: docs/scheduler.md.

Requests are promises: a task may use all that it asked for, whatever it uses now. So what a node can give away is not what is free
at this moment, but `capacity - foreign - requested`, where `foreign` is what was measured less what tasks account for. Kubernetes'
kubelet reserves a fixed share for the system instead (Node Allocatable); a laptop's owner uses what she likes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

BAND_PERCENT = 5
"""Of the capacity: a fall by less than this is believed when the next measurement agrees. (The agent reports moves by as much.)"""


@dataclass(frozen=True, slots=True)
class Attempted:
    """A live attempt on the node, as it was when the measurement came.

    Attributes:
        peak_bytes: the most that the agent has seen it use; None where it does not say.
        started: its container runs, as far as the operator knew; one that does not uses nothing.
    """

    request_bytes: int
    peak_bytes: int | None = None
    started: bool = True


@dataclass(frozen=True, slots=True)
class Foreign:
    """Attributes:
    bytes: what counts as used by others than tasks.
    measured: what the last measurement said, before hysteresis.
    """

    bytes: int
    measured: int


def held_bytes(attempts: Iterable[Attempted]) -> int:
    """How much of what was measured tasks account for. Of an attempt of which the agent says nothing that is all it asked for: then
    what counts as foreign is what was measured less all that could be the tasks', never too much."""
    total = 0
    for attempt in attempts:
        if attempt.peak_bytes is not None:
            total += min(attempt.request_bytes, attempt.peak_bytes)
        elif attempt.started:
            total += attempt.request_bytes
    return total


def foreign_memory(usage_bytes: int, held: int, capacity_bytes: int, before: Foreign | None = None) -> Foreign:
    """What others than tasks use, after a new measurement.

    A rise counts at once, and so does a fall by more than BAND_PERCENT of the capacity. A smaller fall counts as far as the next
    measurement agrees: at the edge nothing flaps, and nothing is kept for ever.
    """
    measured = max(0, usage_bytes - held)
    if before is None or measured >= before.bytes or (before.bytes - measured) * 100 > BAND_PERCENT * capacity_bytes:
        return Foreign(measured, measured)
    return Foreign(max(measured, min(before.measured, before.bytes)), measured)


def taken_from_offer(foreign_bytes: int, capacity_bytes: int, allocatable_bytes: int) -> int:
    """How much of what a node offers to tasks others use: what is reserved for the owner is used up first. Between 0 and the
    offer."""
    return max(0, min(allocatable_bytes, foreign_bytes - max(0, capacity_bytes - allocatable_bytes)))
