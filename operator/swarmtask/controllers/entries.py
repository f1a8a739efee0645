"""What the operator's cache holds of each task, and what it tells of a change. Values only.

Made by the cache; read by everyone who is told of changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, repeat

from swarmtask.resources.kinds import Kind
from swarmtask.resources.task import Attempt, MemoryPlan, SwarmTask
from swarmtask.scheduler.model import Amounts, PendingTask, QueueKey, RunningTask, TaskKey

HeldGpu = tuple[int, str]
"""Index and UUID; the latter empty where it is not known."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What one task holds: its place on a node and in its queue, slots of the queue's limits (sorted pairs), and the indices of its
    GPUs (none where they were not recorded: `amounts` has their number), with their UUIDs in the same order where those are."""

    node: str
    queue: QueueKey
    amounts: Amounts
    limits: tuple[tuple[str, int], ...] = ()
    gpus: tuple[int, ...] = ()
    gpu_uuids: tuple[str, ...] = ()

    @property
    def held_gpus(self) -> tuple[HeldGpu, ...]:
        return tuple(zip(self.gpus, chain(self.gpu_uuids, repeat("")), strict=False))


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """One task as it was last seen.

    Attributes:
        invalid: why its spec cannot be read, else None.
        pending: how it stands before the scheduler, where it waits.
        holding: what its live attempt holds.
        running: how its live attempt stands before the scheduler.
        template: what kind of work it is, as far as durations are concerned.
        memory: what its next attempt asks for; None: what its spec says. Kept up while it waits.
    """

    task: SwarmTask
    version: int
    invalid: str | None
    pending: PendingTask | None
    holding: Holding | None
    running: RunningTask | None = None
    template: str = ""
    memory: MemoryPlan | None = None

    @property
    def live(self) -> Attempt | None:
        current = self.task.status.current
        return current if current is not None and current.live else None

    @property
    def queue(self) -> QueueKey:
        return (self.task.key[0], self.task.spec.queue)


@dataclass(frozen=True, slots=True)
class Change:
    """What one piece of news did.

    Attributes:
        key: (namespace, name); the namespace of a node is empty.
        gone: the object was deleted.
        placement: something that a scheduling cycle looks at has changed.
        own: the executor wrote it, and goes on with it by itself.
        uid: of the object, where it is a task.
    """

    kind: Kind
    key: TaskKey
    gone: bool
    placement: bool
    own: bool = False
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Assumption:
    """A placement that is decided and not stored yet."""

    pending: PendingTask
    holding: Holding
