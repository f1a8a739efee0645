"""The runs of an array as tasks of their own: what they are called, what they contain, and how the array sees them.

Called by `array`, by the controller of arrays and by the cache. A run is a plain SwarmTask for everybody else: queue, placement,
limits, retries and fencing know nothing of arrays. Pure.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from swarmtask.lifecycle.intervals import parse
from swarmtask.lifecycle.messages import Reason
from swarmtask.resources.meta import API_VERSION
from swarmtask.resources.task import (
    ANNOTATION_CANCEL,
    ENV_COMPLETIONS,
    ENV_INDEX,
    LABEL_ARRAY,
    LABEL_DEAD_LETTER,
    LABEL_INDEX,
    TERMINAL_PHASES,
    Phase,
    SwarmTask,
)

MAX_NAME, MAX_LABEL = 253, 63
TTL_S = 31_536_000
"""The longest that there is: a run is deleted once the array has recorded it, and never before."""
_ARRAY_ONLY = (
    "completions", "parallelism", "maxFailedIndexes", "suspend", "dedupeKey", "dedupeWindowSeconds", "ttlSecondsAfterFinished",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """One run of an array, as it is stored.

    Attributes:
        started: it has had an attempt.
        live: an attempt holds its node.
        deleting: somebody has asked for its deletion.
        cancelling: somebody has asked for its end, and no retry has come after that.
        retry: the newest retry that was acted on or noted.
        why: how it ended, or why it waits.
        version: the resourceVersion of what was summed up here.
        started_at, finished_at: of the run, None while that has not happened.
    """

    index: int
    name: str
    uid: str
    phase: Phase
    reason: str | None = None
    why: str = ""
    started: bool = False
    live: bool = False
    deleting: bool = False
    suspended: bool = False
    cancelling: bool = False
    retry: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    version: str = ""

    @property
    def unfinished(self) -> bool:
        return self.phase not in TERMINAL_PHASES

    @property
    def ended(self) -> bool:
        """It has an outcome. One that was deleted before it had ended has none: as if it had never been."""
        return not self.unfinished and self.reason != Reason.DELETED


def member_of(task: SwarmTask, index: int) -> Member:
    """The summary of a run."""
    status, current = task.status, task.status.current
    asked = task.metadata.annotations.get(ANNOTATION_CANCEL)
    ends = current is not None and current.live and current.stop_reason == Reason.CANCELLED
    return Member(
        index=index,
        name=task.metadata.name,
        uid=task.metadata.uid,
        phase=status.phase,
        reason=status.reason,
        why=status.message or status.reason or "",
        started=status.attempt > 0,
        live=current is not None and current.live,
        deleting=task.metadata.deletion_timestamp is not None,
        suspended=task.spec.suspend,
        # One that was acted on and has no attempt to end belongs to the budget before a retry.
        cancelling=asked is not None and (asked != status.observed_cancel or ends),
        retry=status.observed_retry,
        started_at=status.start_time,
        finished_at=status.completion_time,
        version=task.metadata.resource_version,
    )


def member_name(array: str, index: int) -> str:
    """The name of a run: a function of the array's name and the index alone, so that "already exists" means "done"."""
    return f"{_short(array, MAX_NAME - len(str(index)) - 1)}-{index}"


def index_of(array: str, name: str) -> int | None:
    """The index of the run of this name; None where no run of the array can be called so."""
    digits = name.rpartition("-")[2]
    if not digits.isascii() or not digits.isdigit() or len(digits) > 6:
        return None
    return int(digits) if member_name(array, int(digits)) == name else None


def is_recorded(array: SwarmTask, name: str) -> bool:
    """The array has taken down how the run of this name ended. (A status that cannot be read has taken down nothing.)"""
    index, status = index_of(array.metadata.name, name), array.status.array
    if index is None or status is None:
        return False
    try:
        return index in parse(status.completed_indexes) or index in parse(status.failed_indexes)
    except ValueError:
        return False


def array_label(array: str) -> str:
    """The value of `swarmtask.io/array`: the array's name, shortened where it is longer than a label may be."""
    return _short(array, MAX_LABEL)


def member_object(array: SwarmTask, index: int) -> dict[str, Any]:
    """The SwarmTask to create for one index, from the array as it is now."""
    spec = {name: value for name, value in array.spec.to_dict().items() if name not in _ARRAY_ONLY}
    told = ((ENV_INDEX, str(index)), (ENV_COMPLETIONS, str(array.spec.completions)))
    env = [*spec["container"].get("env", ()), *({"name": name, "value": value} for name, value in told)]
    labels = {name: value for name, value in array.metadata.labels.items() if name != LABEL_DEAD_LETTER}
    owner = {
        "apiVersion": API_VERSION, "kind": array.kind, "name": array.metadata.name, "uid": array.metadata.uid,
        "controller": True, "blockOwnerDeletion": True,
    }  # fmt: skip
    return {
        "apiVersion": API_VERSION,
        "kind": array.kind,
        "metadata": {
            "name": member_name(array.metadata.name, index),
            "namespace": array.key[0],
            "labels": labels | {LABEL_ARRAY: array_label(array.metadata.name), LABEL_INDEX: str(index)},
            "ownerReferences": [owner],
        },
        "spec": spec | {"container": spec["container"] | {"env": env}, "ttlSecondsAfterFinished": TTL_S},
    }


def _short(text: str, limit: int) -> str:
    """The text, or its beginning and a digest of all of it where it is too long."""
    if len(text) <= limit:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    return f"{text[: limit - 11].rstrip('-.')}-{digest}"
