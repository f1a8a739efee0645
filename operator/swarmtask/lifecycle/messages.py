"""What goes into the lifecycle (events) and what comes out (commands).

Called by the controllers, which turn engine and API facts into events and perform the commands, and by the engines, whose
`Observation` is the vocabulary in which every engine says what it sees. Immutable values only; nothing here does anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal

from swarmtask.resources.meta import possible
from swarmtask.resources.node import NodeAttempt, NodeEviction
from swarmtask.resources.placement import GivenGpu
from swarmtask.resources.task import Attempt, MemoryPlan, Phase, SwarmTask, TaskStatus

# --- typed reasons -------------------------------------------------------------------------------------------------------


class Reason(StrEnum):
    """Why an attempt or a task ended. `lifecycle.reasons` has one row of policy for each."""

    COMPLETED = "Completed"
    ERROR = "Error"
    OOM_KILLED = "OOMKilled"
    NODE_LOST = "NodeLost"
    NODE_RESTARTED = "NodeRestarted"
    WORKLOAD_LOST = "WorkloadLost"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    START_DEADLINE = "StartDeadline"
    ACTIVE_DEADLINE = "ActiveDeadline"
    QUEUE_DEADLINE = "QueueDeadline"
    ENGINE_REJECTED = "EngineRejected"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason, not a secret
    EVICTED = "Evicted"
    PREEMPTED = "Preempted"
    DRAINED = "Drained"
    ATTEMPT_DELETED = "AttemptDeleted"
    DEDUPLICATED = "Deduplicated"
    SUSPENDED = "Suspended"
    CANCELLED = "Cancelled"
    DELETED = "Deleted"
    INVALID_OBJECT = "InvalidObject"


# --- what an engine says -------------------------------------------------------------------------------------------------


class WorkloadState(StrEnum):
    """Where the engine-side object of an attempt is, in every engine's common words.

    PENDING: accepted, not yet on its node. PREPARING: pulling or creating. RUNNING: the main process runs. EXITED: it ran and
    ended (`exit_code` set unless the engine lost it). REJECTED: the engine will not run it (`reason`, `message`). STOPPED: ended
    before it ran because it was told to stop. UNKNOWN: its node does not answer, the last known state proves nothing.
    """

    PENDING = "Pending"
    PREPARING = "Preparing"
    RUNNING = "Running"
    EXITED = "Exited"
    REJECTED = "Rejected"
    STOPPED = "Stopped"
    UNKNOWN = "Unknown"


FINAL_WORKLOAD_STATES = frozenset({WorkloadState.EXITED, WorkloadState.REJECTED, WorkloadState.STOPPED})


@dataclass(frozen=True, slots=True)
class Observation:
    """One workload as its engine shows it.

    Attributes:
        name: engine-side name, that is the attempt ID.
        task_uid, namespace, task_name, attempt: read from the labels that we put on it; the owner.
        engine: name of the engine that shows it.
        node_id: the engine's own ID of the node, empty while unknown.
        exit_code: of the main process; None while it runs or when the engine does not know.
        reason: set by the engine only where it knows more than the exit code (ImagePullFailed, EngineRejected, NodeRestarted,
            OOMKilled); otherwise None, and the lifecycle derives it.
        message: the engine's own words.
        started_at, finished_at: as the engine or the node's agent tells, else None; None also for what no clock can show.
        unasked: whether its program ended without having been told to, where its node knows that.
        fence: it was made to be stopped by its node's agent when that cannot reach the API; None: the engine does not know.
    """

    name: str
    engine: str
    task_uid: str
    namespace: str
    task_name: str
    attempt: int
    state: WorkloadState
    node_id: str = ""
    exit_code: int | None = None
    reason: Reason | None = None
    message: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    unasked: bool | None = None
    fence: bool | None = None

    def __post_init__(self) -> None:
        # Here every time comes in that a node tells: of a laptop of which anybody may have taken hold.
        for name in ("started_at", "finished_at"):
            if possible(getattr(self, name)) is None:
                object.__setattr__(self, name, None)


# --- events --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Twin:
    """The task with the same dedupeKey whose outcome matters to this one.

    The one that it waited for, if that has ended with an outcome; else the newest that succeeded in time; else the one that comes
    first among the unfinished (`lifecycle.twins`), unless that is the task itself.

    Attributes:
        message: how it ended, where it has.
    """

    name: str
    uid: str
    phase: Phase
    exit_code: int | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Reconcile:
    """The object was created, changed, or found again after a restart; also sent when a deadline has come (`Command.WakeAt`).

    Attributes:
        queue_exists: the SwarmQueue named by the spec exists.
        twin: who does the same work; None when nobody else does, and for a task without dedupeKey.
    """

    queue_exists: bool = True
    twin: Twin | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """The scheduler chose a node; the resources are already assumed in the cache.

    Attributes:
        gpus: indices of the GPUs that it was given. devices: what the node says of each of them.
        memory: how much memory was counted, where the spec says `auto`; None for other tasks.
        boot_id: of the node, where it has an agent; empty: it has none.
    """

    node: str
    engine: str
    engine_node_id: str
    gpus: tuple[int, ...] = ()
    devices: tuple[GivenGpu, ...] = ()
    memory: MemoryPlan | None = None
    boot_id: str = ""


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A scheduling cycle left the task in the queue.

    Attributes:
        position: 1-based place in its queue.
        estimated_start: None while nothing is known.
        unknown: why nothing is known of the start, for a person; for the condition only.
        message: counts per filter, for example "0/3 nodes fit: 2 too little memory (needs 16Gi, largest free 7.4Gi), 1 cordoned".
        memory: how much memory it asks for, where the spec says `auto`; None for other tasks.
        out_of_reach: it has climbed the ladder, and this says why no node can take so much; empty: one can, sooner or later.
    """

    position: int
    reason: str
    message: str
    estimated_start: datetime | None = None
    unknown: str = ""
    memory: MemoryPlan | None = None
    out_of_reach: str = ""


@dataclass(frozen=True, slots=True)
class Preempt:
    """The scheduler needs the room of this attempt for a task of higher priority.

    Attributes:
        by: (namespace, name) of that task.
    """

    attempt: int
    by: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Drain:
    """A person wants the node of this attempt empty: it is stopped, and the task queued again."""

    attempt: int
    node: str


@dataclass(frozen=True, slots=True)
class Evict:
    """The agent of the node asked for room in memory, and this attempt was chosen.

    Attributes:
        message: the agent's words.
        wish: as it was heard. Whoever carries this out late looks whether the agent still has it.
    """

    attempt: int
    node: str
    message: str = ""
    wish: NodeEviction | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """The engine showed a workload of this task.

    Attributes:
        boot_id: of its node at that moment, as its agent tells; empty while nobody tells. An attempt that was bound, or began,
            before the agent spoke for the first time learns it so.
    """

    observation: Observation
    boot_id: str = ""


@dataclass(frozen=True, slots=True)
class MadeWith:
    """With what the workload of this attempt was made, as its engine shows it whatever its node does; of attempts that were bound
    by a version that did not record it.

    Attributes:
        fence: as in `Observation`.
    """

    attempt: int
    fence: bool


@dataclass(frozen=True, slots=True)
class Vanished:
    """The engine's full list, taken after the attempt was bound and submitted, does not contain this attempt."""

    attempt: int


@dataclass(frozen=True, slots=True)
class SubmitRefused:
    """The engine, or the operator before it, refused the workload for good (EngineRejected, SecretNotFound)."""

    attempt: int
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class NodeGone:
    """The node of this attempt was removed from its engine (`docker swarm leave` and `docker node rm`)."""

    attempt: int
    message: str


@dataclass(frozen=True, slots=True)
class NodeSilent:
    """Nothing is heard of the node of this attempt, though whoever says so could hear.

    Attributes:
        silent_s: seconds since its last sign of life, by the operator's own clock.
        fenced: it has an agent, which stops the attempt by itself; otherwise only its engine says that it is lost.
        boot_id: of its node, as its agent told last.
    """

    attempt: int
    silent_s: float
    fenced: bool
    boot_id: str = ""


@dataclass(frozen=True, slots=True)
class NodeTold:
    """The agent of the node told how an attempt ended. It may be over already, and another one may have followed.

    Attributes:
        reached: the attempt's engine reaches the node, by its newest list.
        memory_bytes: that the node has, as its engine tells; 0: not known.
    """

    attempt: int
    record: NodeAttempt
    boot_id: str = ""
    reached: bool = True
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class InvalidObject:
    """The stored object does not satisfy its model (possible on a real cluster whose CRD is older)."""

    message: str


TaskEvent = (
    Reconcile | Bound | Unplaced | Preempt | Drain | Evict | Observed | MadeWith | Vanished | SubmitRefused | NodeGone | NodeSilent
    | NodeTold | InvalidObject
)  # fmt: skip


# --- commands ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submit:
    """Create the workload of this attempt. Idempotent: the name is `attempt.id`."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Stop:
    """SIGTERM, after `grace_s` seconds SIGKILL; the engine-side object stays."""

    attempt: Attempt
    grace_s: int


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove the engine-side object of this attempt."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class ReleaseFinalizer:
    """Everything of this task is gone from the engines: let the object go."""


@dataclass(frozen=True, slots=True)
class DeleteTask:
    """Time to live is over."""


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send `Reconcile` at this time: the next deadline."""

    when: datetime


Command = Submit | Stop | Remove | ReleaseFinalizer | DeleteTask | WakeAt


@dataclass(frozen=True, slots=True)
class Announcement:
    """Becomes a Kubernetes Event of the task."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Transition:
    """The answer of the lifecycle to one event.

    The status is written first (with the object's resourceVersion as precondition); only when that has succeeded are the
    announcements posted and `lifecycle.task.outstanding(task, now, policy, present)` performed. A crash in between loses nothing:
    `outstanding` is a function of the stored object, so it is computed again after the restart.

    Attributes:
        status: the new status; `changed` is False when it equals the old one and nothing must be written.
        labels: label changes on the task's metadata (None removes), for example the dead-letter mark. They follow from the phase,
            not from the event: after a crash between the two writes they are asked for again, then with `changed` False.
    """

    status: TaskStatus
    changed: bool
    announcements: tuple[Announcement, ...] = ()
    labels: dict[str, str | None] = field(default_factory=dict)


__all__ = [
    "FINAL_WORKLOAD_STATES", "Announcement", "Bound", "Command", "DeleteTask", "Drain", "Evict", "InvalidObject", "MadeWith",
    "NodeGone", "NodeSilent", "NodeTold", "Observation", "Observed", "Preempt", "Reason", "Reconcile", "ReleaseFinalizer", "Remove",
    "Stop", "Submit", "SubmitRefused", "SwarmTask", "TaskEvent", "Transition", "Twin", "Unplaced", "Vanished", "WakeAt",
    "WorkloadState",
]  # fmt: skip
