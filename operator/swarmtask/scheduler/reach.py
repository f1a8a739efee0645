"""Whether any node could ever take a task: what the memory ladder asks before it lets one wait.

Called by the controllers for tasks that have climbed it and were refused. Looks at what nodes offer and at what the task says of
its place, not at what changes by itself: a node that is asleep, cordoned, full, far away or on battery may take it tomorrow.
"""

from __future__ import annotations

from collections.abc import Iterable

from swarmtask.resources.units import format_memory, humanize_memory
from swarmtask.scheduler.filters import untolerated
from swarmtask.scheduler.gpus import ANY_GPU, listed, matches, offered
from swarmtask.scheduler.model import NodeInfo, PendingTask, Snapshot, TaskShape

OTHERS_PATIENCE_S = 3600.0
"""A task that has waited longer no longer hopes for memory that others than tasks use."""


class Reach:
    """The answers for one snapshot, each given once."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._known: dict[tuple[TaskShape, bool], str] = {}

    def lacks(self, task: PendingTask) -> str:
        """Why no node can take the task, as `out_of_reach` says."""
        waited_s = self._snapshot.now - task.queued_at
        key = (task.shape, waited_s > OTHERS_PATIENCE_S)
        if key not in self._known:
            self._known[key] = out_of_reach(self._snapshot.nodes, task.shape, waited_s)
        return self._known[key]


def out_of_reach(nodes: Iterable[NodeInfo], shape: TaskShape, waited_s: float) -> str:
    """Why no node can take so much memory, for a person; empty where one can, or where memory is not what keeps it away.

    Args:
        waited_s: how long the task has waited since it came to its queue.
    """
    able = [node for node in nodes if _able_but_for_memory(node, shape)]
    patient = waited_s <= OTHERS_PATIENCE_S
    offers = [node.allocatable.memory_bytes - (0 if patient else node.foreign_bytes) for node in able]
    need, most = shape.request.memory_bytes, max(offers, default=0)
    if not able or most >= need:
        return ""
    words = humanize_memory if humanize_memory(need) != humanize_memory(most) else format_memory
    largest = "the only node" if len(able) == 1 else f"the largest of {len(able)} nodes"
    spare = "offers" if patient else f"has had for {OTHERS_PATIENCE_S / 3600:g} h, beside what others than tasks use,"
    return f"the next attempt needs {words(need)} of memory, and {largest} that may run it {spare} {words(max(0, most))}"


def _able_but_for_memory(node: NodeInfo, shape: TaskShape) -> bool:
    """It could run the task, if it had nothing else to do and all the memory in the world."""
    wants, offers = shape.request, node.allocatable
    gpus = offered(node) if shape.gpu == ANY_GPU and not node.gpus else sum(matches(gpu, shape.gpu) for gpu in listed(node))
    return (
        not node.gone
        and wants.cpu_milli <= offers.cpu_milli
        and wants.gpus <= gpus
        # What does not answer now has no engine now.
        and (not shape.engine or not node.engines or shape.engine in node.engines)
        and shape.node_name in {"", node.name}
        and all(node.labels.get(key) == value for key, value in shape.node_selector)
        and (not shape.regions or node.region in shape.regions)
        and not untolerated(shape, node.taints)
        and shape.capabilities <= node.capabilities
        and (shape.max_cost_per_hour is None or node.cost_per_hour <= shape.max_cost_per_hour)
    )
