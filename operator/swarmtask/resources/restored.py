"""Tasks that come from a backup: the annotation that says that engines may know more of them than they do.

Written by `apiserver.restore` on what it restores, read and removed by the operator (`controllers.catching_up`). Pure.
"""

from __future__ import annotations

from typing import Any

from swarmtask.resources.kinds import SWARM_TASK
from swarmtask.resources.meta import API_VERSION
from swarmtask.resources.task import Phase, SwarmTask

ANNOTATION_RESTORED = "swarmtask.io/restored"
"""When the backup was made. While a task has it, nothing is decided about the task: engines are asked first what ran since."""


def mark_restored(obj: dict[str, Any], created: str) -> None:
    """Mark a stored object, in place, where it is a task of which something may have been begun since its backup was made.

    A task that had succeeded is never begun again, and an array runs nothing itself.
    """
    if obj.get("kind") != SWARM_TASK.kind or obj.get("apiVersion") != API_VERSION:
        return
    spec, status = obj.get("spec"), obj.get("status")
    if isinstance(spec, dict) and spec.get("completions") is not None:
        return
    if isinstance(status, dict) and status.get("phase") == Phase.SUCCEEDED.value:
        return
    annotations = obj["metadata"].get("annotations")
    obj["metadata"]["annotations"] = {**(annotations if isinstance(annotations, dict) else {}), ANNOTATION_RESTORED: created}


def is_restored(task: SwarmTask) -> bool:
    """Whether nothing may be decided about it yet."""
    return ANNOTATION_RESTORED in task.metadata.annotations and not task.is_array
