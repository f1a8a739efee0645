"""How many tasks wait in each queue: which task counts, and the counts.

Called by the store, which tells every write when it is staged and again when it could not be committed, and by the admission of
queues, which asks. Pure: no clock, no I/O, and no decision about anything.

What is stored was valid when it was written, which may have been under another version's schema: nothing here fails on its shape.

A task waits while it is unfinished and not bound to a node. What does not count: tasks that are being deleted (they will never
start), and the tasks of an array, which were accepted together with it: the array counts as one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from swarmtask.resources.meta import GROUP
from swarmtask.resources.task import BOUND_PHASES, LABEL_ARRAY, TERMINAL_PHASES, TaskSpec

if TYPE_CHECKING:
    from swarmtask.apiserver.records import Change, Key, Record

TASKS = (GROUP, "swarmtasks")
"""The collection in which SwarmTasks are stored."""
DEFAULT_QUEUE: str = TaskSpec.model_fields["queue"].default
_NOT_WAITING = frozenset(phase.value for phase in BOUND_PHASES | TERMINAL_PHASES)


def waits_in(key: Key, obj: Mapping[str, Any]) -> str:
    """The queue (of the object's namespace) in which this stored object waits; empty for everything that does not wait in one."""
    if key.collection != TASKS:
        return ""
    status = obj.get("status")
    phase = status.get("phase") if isinstance(status, dict) else None
    if isinstance(phase, str) and phase in _NOT_WAITING:
        return ""
    metadata = obj["metadata"]
    if "deletionTimestamp" in metadata or is_array_member(metadata):
        return ""
    return sys.intern(queue_of(obj))


def queue_of(obj: Mapping[str, Any]) -> str:
    """The queue that a SwarmTask names, checked or not; the one that it gets where it names none."""
    spec = obj.get("spec")
    queue = spec.get("queue") if isinstance(spec, dict) else None
    return queue if isinstance(queue, str) and queue else DEFAULT_QUEUE


def is_array_member(metadata: Mapping[str, Any]) -> bool:
    """It was made for an array: labelled with its name, and controlled by a SwarmTask. `metadata` has its proper shape."""
    if not (metadata.get("labels") or {}).get(LABEL_ARRAY):
        return False
    return any(
        reference.get("controller") is True
        and reference.get("kind") == "SwarmTask"
        and str(reference.get("apiVersion", "")).partition("/")[0] == GROUP
        for reference in metadata.get("ownerReferences") or ()
    )


class WaitingCounts:
    """Tasks that wait, by namespace and queue, as the next writer will find them: writes on their way to the disk included."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}

    def of(self, namespace: str, queue: str) -> int:
        return self._counts.get((namespace, queue), 0)

    def load(self, records: Iterable[Record]) -> None:
        """Count what is on disk; once, at the start."""
        for record in records:
            self._add(record, 1)

    def staged(self, change: Change) -> None:
        """A write has joined the queue of commits."""
        if change.previous is not None:
            self._add(change.previous, -1)
        if change.type != "DELETED":
            self._add(change.record, 1)

    def undone(self, change: Change) -> None:
        """A staged write could not be committed. The order in which several are undone does not matter."""
        if change.type != "DELETED":
            self._add(change.record, -1)
        if change.previous is not None:
            self._add(change.previous, 1)

    def _add(self, record: Record, number: int) -> None:
        if not record.waits_in:
            return
        place = (record.key.namespace, record.waits_in)
        count = self._counts.get(place, 0) + number
        if count:
            self._counts[place] = count
        else:
            del self._counts[place]  # queues come and go: nothing is kept of those in which nobody waits
