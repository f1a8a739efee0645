"""Who ends when a node has run out of memory and its agent asks. Pure.

Called by the controller that hears the agents. The agent knows who uses how much; the operator knows what priority each task has by
now, and whose end is near anyway. The agent acts alone when it hears nothing for a few seconds (`nodeagent.eviction`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from swarmtask.resources.task import Attempt, AttemptState


@dataclass(frozen=True, slots=True)
class Occupant:
    """A live attempt on the node. `priority`: of its task, as it is now."""

    attempt: Attempt
    priority: int


def choose(wanted: str, occupants: Sequence[Occupant]) -> Occupant | None:
    """Whom to stop; None: nobody.

    The lowest priority goes first; among equals the one that the agent names, for it has measured; if it names none of these, the
    youngest. Nobody goes while another one there is ending already, because that makes room; nor when the one that is named is not
    there any more: the wish is old.

    Args:
        wanted: ID of the attempt that the agent names.
    """
    if all(one.attempt.id != wanted for one in occupants):
        return None
    if any(one.attempt.state is AttemptState.STOPPING for one in occupants):
        return None
    running = [one for one in occupants if one.attempt.state is AttemptState.RUNNING]
    lowest = min((one.priority for one in running), default=0)
    first = datetime.min.replace(tzinfo=UTC)
    return max(
        (one for one in running if one.priority == lowest),
        key=lambda one: (one.attempt.id == wanted, one.attempt.started_at or first, one.attempt.id),
        default=None,
    )
