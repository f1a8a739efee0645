"""Phase -> conditions. The conditions are derived, so that they cannot contradict the phase.

Called by `Draft.finish` with the status that is about to be written. `Scheduled` while Queued carries the scheduler's words, which
only the event has; it is set where the event is handled and kept here.
"""

from __future__ import annotations

from datetime import datetime

from swarmtask.resources.meta import Condition, get_condition, set_condition
from swarmtask.resources.task import BOUND_PHASES, TERMINAL_PHASES, Phase, TaskStatus

ADMITTED, SCHEDULED, RUNNING, COMPLETE, FAILED = "Admitted", "Scheduled", "Running", "Complete", "Failed"
QUEUE_NOT_FOUND = "QueueNotFound"
NODE_UNREACHABLE = "NodeUnreachable"
WAITING = "Waiting"


def derive(status: TaskStatus, now: datetime, generation: int | None, evidence: str) -> list[Condition]:
    """The five conditions of this status.

    Args:
        now: whole seconds; becomes the transition time of those whose status word changes.
        generation: of the spec that the status speaks of.
        evidence: message of Failed when it is True: what every recorded attempt ended with.
    """
    phase, terminal = status.phase, status.phase in TERMINAL_PHASES
    conditions = list(status.conditions)

    def put(type_: str, value: bool | None, reason: str, message: str = "") -> None:
        nonlocal conditions
        conditions = set_condition(
            conditions, type_, value, reason=reason, message=message, now=now, observed_generation=generation
        )  # fmt: skip

    if phase is Phase.PENDING:
        put(ADMITTED, False, status.reason or "NotAdmitted", status.message or "")
    elif not terminal or get_condition(conditions, ADMITTED) is None:
        put(ADMITTED, not terminal, "Admitted" if not terminal else status.reason or phase.value)

    _put_scheduled = get_condition(conditions, SCHEDULED)
    if phase in BOUND_PHASES:
        put(SCHEDULED, True, "Bound", f"bound to {status.node_name}")
    elif phase is Phase.PENDING:
        put(SCHEDULED, False, "NotAdmitted")
    elif phase is Phase.BACKOFF:
        put(SCHEDULED, False, "BackOff", status.message or "")
    elif phase is Phase.QUEUED and status.queue_position is None:
        put(SCHEDULED, False, WAITING, "waiting for the next scheduling cycle")
    elif _put_scheduled is None:
        put(SCHEDULED, False, status.reason or phase.value, status.message or "")

    running = {Phase.RUNNING: True, Phase.UNKNOWN: None}.get(phase, False)
    put(RUNNING, running, NODE_UNREACHABLE if running is None else phase.value, (status.message or "") if running is None else "")
    put(COMPLETE, phase is Phase.SUCCEEDED, (status.reason or "Completed") if phase is Phase.SUCCEEDED else _unfinished(phase))
    if terminal and phase is not Phase.SUCCEEDED:
        put(FAILED, True, status.reason or phase.value, evidence)
    else:
        put(FAILED, False, _unfinished(phase) if not terminal else "Completed")
    return conditions


def _unfinished(phase: Phase) -> str:
    return phase.value if phase in TERMINAL_PHASES else "NotFinished"
