"""Which SwarmQueues there are, what each allows, and why that is not known of some.

Kept by the cache; read by `snapshots`, for the scheduler, and by `queues`, which tells it. A queue whose bounds nobody knows starts
nothing: one whose object was deleted, or cannot be read and never could be. What cannot be read any more keeps the bounds that it
had. Never talks to anybody.
"""

from __future__ import annotations

import logging

from swarmtask.controllers.reading import read_queue
from swarmtask.kube import Object
from swarmtask.resources.queue import QueueSpec, SwarmQueue
from swarmtask.scheduler.model import QueueKey
from swarmtask.scheduler.ordering import NO_OBJECT

logger = logging.getLogger(__name__)

DEFAULT_QUEUE = "default"
NEVER_READ = QueueSpec(stopped=True)
"""Stands in for a spec of which no version could be read."""
NOT_YET = (
    "has no SwarmQueue yet, and nothing of it starts before: the operator creates it; where it may not (see its log), create it"
)


class KnownQueues:
    """See the module.

    Attributes:
        objects: every queue that there is.
        unreadable: why the newest version of a queue cannot be read.
        mute: queues whose status cannot be read either: nothing is to be written there.
    """

    def __init__(self) -> None:
        self.objects: dict[QueueKey, SwarmQueue] = {}
        self.unreadable: dict[QueueKey, str] = {}
        self.mute: set[QueueKey] = set()
        self._without_default: set[str] = set()
        """Namespaces whose queue `default` was deleted: only a person knows what it is to allow."""

    def put(self, key: QueueKey, obj: Object) -> bool:
        """A version of it was read. True when a scheduling cycle would see a difference."""
        old, said = self.objects.get(key), self.unreadable.get(key)
        read = read_queue(obj)
        spec = read.spec or (NEVER_READ if old is None else old.spec)
        self.objects[key] = SwarmQueue(metadata=read.metadata, spec=spec, status=read.status or (old or SwarmQueue()).status)
        if key[1] == DEFAULT_QUEUE:
            self._without_default.discard(key[0])
        (self.mute.add if read.status is None else self.mute.discard)(key)
        if read.invalid is None:
            self.unreadable.pop(key, None)
        else:
            self.unreadable[key] = read.invalid
            if said != read.invalid:
                holds = "it starts nothing" if spec is NEVER_READ else "the version before stays in force"
                logger.error("SwarmQueue %s/%s: %s; %s", *key, read.invalid, holds)
        return old is None or old.spec != spec or said != read.invalid

    def drop(self, key: QueueKey, *, named: bool) -> None:
        """It was deleted. `named`: there are tasks in its namespace."""
        self.objects.pop(key, None)
        self.unreadable.pop(key, None)
        self.mute.discard(key)
        if named and key[1] == DEFAULT_QUEUE:
            self._without_default.add(key[0])

    def forget(self, namespace: str) -> None:
        """No task is left there: whoever comes next finds it as if nobody had ever been there."""
        self._without_default.discard(namespace)

    def exists(self, key: QueueKey) -> bool:
        """The queue `default` counts as there until it has been deleted: the operator creates it in every namespace that has
        tasks."""
        return key in self.objects or (key[1] == DEFAULT_QUEUE and key[0] not in self._without_default)

    def unknown(self, key: QueueKey) -> str:
        """Why nobody knows what it allows, as the words after its name; empty: that is known."""
        queue = self.objects.get(key)
        if queue is None:
            return NOT_YET if self.exists(key) else NO_OBJECT
        return f"starts nothing until it is corrected: {self.unreadable[key]}" if queue.spec is NEVER_READ else ""

    def outdated(self, key: QueueKey) -> str:
        """Why what it allows is what an earlier version of it said; empty: it is not so."""
        why = self.unreadable.get(key)
        return "" if why is None else f"this is from before its last edits, for {why}"
