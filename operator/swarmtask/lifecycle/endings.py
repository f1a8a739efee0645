"""What people are told of a task that has ended: a function of what is stored, so that it can be told again.

Called by `Draft` when a task ends, and by the controllers after a start: an operator that died between the write of an end and its
Event has told nobody. Pure.
"""

from __future__ import annotations

from swarmtask.lifecycle.messages import Announcement
from swarmtask.resources.task import Phase, SwarmTask

TOLD_CHARACTERS = 1024
"""An Event holds no more."""
_REASONS = {Phase.SUCCEEDED: "Completed", Phase.FAILED: "DeadLetter", Phase.EXPIRED: "Expired"}
_WARNINGS = {Phase.FAILED, Phase.EXPIRED}


def ending(phase: Phase, reason: str, message: str) -> Announcement:
    """The Event of an end. `phase`: a terminal one; `message`: as it is stored."""
    told = message if len(message) <= TOLD_CHARACTERS else message[: TOLD_CHARACTERS - 1] + "…"
    return Announcement("Warning" if phase in _WARNINGS else "Normal", _REASONS.get(phase, reason), told)


def ending_of(task: SwarmTask) -> Announcement | None:
    """That of a task as it is stored; None where it has not ended."""
    status = task.status
    if not task.finished or status.completion_time is None:
        return None
    return ending(status.phase, status.reason or status.phase.value, status.message or "")
