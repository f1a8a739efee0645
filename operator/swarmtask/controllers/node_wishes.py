"""What a person has said of a node, as its status shows it: drained, in quiet hours. Pure.

Called by `node_facts.status_of`. Takes what the engines say of the node, returns what to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from swarmtask.resources.meta import Condition, set_condition
from swarmtask.resources.node import NodePhase, SwarmNode
from swarmtask.resources.quiet_hours import Stand

CONDITION_DRAINED = "Drained"
CONDITION_QUIET = "QuietHours"
WHY_LENGTH = 2000
"""So many characters of why it cannot be read are shown; a value that is refused may be long."""

_SILENT = frozenset({NodePhase.UNREACHABLE, NodePhase.ASLEEP})

Phase = tuple[NodePhase, str, str]
"""(phase, CamelCase reason, words for a person)."""


def phase_as_wished(node: SwarmNode, tasks: int, found: Phase, unreadable: str = "") -> Phase:
    """The phase of a node that its engines show as `found`.

    Args:
        tasks: attempts that hold something there.
        unreadable: why something of the stored node cannot be read: then nobody knows what is wished.
    """
    if found[0] not in (NodePhase.READY, NodePhase.DRAINING):
        return found
    if unreadable:
        return NodePhase.NOT_READY, "Unreadable", f"nothing new starts here until it is corrected: {unreadable[:WHY_LENGTH]}"
    if not node.spec.drain:
        return found
    if tasks:
        return NodePhase.DRAINING, "Draining", f"being drained: {_attempts(tasks)} left"
    return NodePhase.DRAINING, "Drained", "drained: nothing of SwarmTask runs here, and nothing starts"


def conditions_as_wished(
    conditions: Sequence[Condition], node: SwarmNode, tasks: int, *, phase: NodePhase, stand: Stand, now: datetime
) -> list[Condition]:
    """The conditions, with Drained where the node is to be empty, and QuietHours where it has some.

    Args:
        phase: of the node, as it is shown.
        stand: of its quiet hours.
    """
    shown = list(conditions)
    if node.spec.drain:
        silent = "" if phase is NodePhase.DRAINING else f"; the node is {phase.value}"
        silent += ": spec.nodeLoss says what becomes of them" if phase in _SILENT else ""
        shown = set_condition(
            shown, CONDITION_DRAINED, tasks == 0, reason="Draining" if tasks else "Drained",
            message=f"{_attempts(tasks)} left{silent}" if tasks else "nothing of SwarmTask runs here",
            now=now, observed_generation=node.metadata.generation or None,
        )  # fmt: skip
    else:
        shown = [condition for condition in shown if condition.type != CONDITION_DRAINED]
    if not node.spec.quiet_hours:
        return [condition for condition in shown if condition.type != CONDITION_QUIET]
    return set_condition(
        shown, CONDITION_QUIET, stand.quiet, reason="QuietHours" if stand.quiet else "Open", message=quiet_words(stand), now=now,
        observed_generation=node.metadata.generation or None,
    )  # fmt: skip


def quiet_words(stand: Stand) -> str:
    """How it stands, and until when."""
    if stand.quiet:
        return f"quiet hours: no new attempts until {stand.words}" if stand.words else "quiet hours without an end: no new attempts"
    return f"no new attempts from {stand.words}" if stand.words else "no quiet hours within a week"


def _attempts(count: int) -> str:
    return f"{count} attempt{'' if count == 1 else 's'}"
