"""SwarmTask: one batch container that must finish once.

Called by everyone. Holds what a person declares (`TaskSpec`) and what the operator found out (`TaskStatus`); decides nothing.
Field names follow Kubernetes' Job and Container. A field exists here only when it takes effect.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StrictBool, StrictInt, model_validator

from swarmtask.resources import units
from swarmtask.resources.failures import Backoff, FailureRule, NodeLoss
from swarmtask.resources.fields import (
    AUTO,
    IMAGE_PATTERN,
    BootId,
    LimitNames,
    MemoryRequest,
    Name,
    OptionalName,
    Quantity,
    Seconds,
    Slots,
    Text,
)
from swarmtask.resources.meta import API_VERSION, Condition, MicroTime, Model, ObjectMeta, OwnerReference, Time
from swarmtask.resources.placement import GivenGpu, Placement

PRIORITY_CLASSES = {"high": 1000, "normal": 0, "low": -1000}
MAX_ATTEMPT_RECORDS = 10
"""The newest ones. Of earlier attempts only counts are kept."""

ANNOTATION_CANCEL = "swarmtask.io/cancel"
"""Set (to any text: who and why) to end a task as Cancelled. `swarmtask cancel` sets it."""
ANNOTATION_RETRY = "swarmtask.io/retry"
"""Set to a new value to start a new budget for a task that ended otherwise than Succeeded. `swarmtask retry` sets it."""
ANNOTATION_FRONT = "swarmtask.io/front"
"""Set to a time (RFC 3339) to move a waiting task before all others of its queue, latest first. `swarmtask queue front` sets it."""
LABEL_DEAD_LETTER = "swarmtask.io/dead-letter"
LABEL_TEMPLATE = "swarmtask.io/template"
"""Set by a person on tasks that take about equally long: durations are learned, and starts estimated, for all of them together."""
LABEL_ARRAY = "swarmtask.io/array"
"""On each task of an array: the name of the array."""
LABEL_INDEX = "swarmtask.io/index"
"""On each task of an array: its index."""
ENV_INDEX, ENV_COMPLETIONS = "SWARMTASK_INDEX", "SWARMTASK_COMPLETIONS"
"""What each run of an array is told: its index, from 0, and how many runs there are."""
MAX_ENV = 512


class Phase(StrEnum):
    """One word for where a task is. The last four are for ever (until a person retries)."""

    PENDING = "Pending"
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    UNKNOWN = "Unknown"
    BACKOFF = "Backoff"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    EXPIRED = "Expired"


TERMINAL_PHASES = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED, Phase.EXPIRED})
BOUND_PHASES = frozenset({Phase.STARTING, Phase.RUNNING, Phase.UNKNOWN})


class SecretKeyRef(Model):
    """A key of a Secret in the task's namespace."""

    name: Name = Field(description="Name of a Secret in the same namespace.")
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = Field(
        description="Key within the Secret's data."
    )
    optional: StrictBool = Field(default=False, description="Start without the variable when the Secret or the key is missing.")


class EnvVarSource(Model):
    secret_key_ref: SecretKeyRef = Field(description="Take the value from a key of a Secret.")


class EnvVar(Model):
    """One environment variable: a value, or a reference to a Secret."""

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=units.ENV_NAME_PATTERN)] = Field(
        description="Name of the variable."
    )
    value: Text | None = Field(default=None, description="The value itself. Not together with valueFrom.")
    value_from: EnvVarSource | None = Field(default=None, description="Where the value comes from. Not together with value.")
    asks: ClassVar[frozenset[str]] = frozenset({"value_from"})

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.value is not None and self.value_from is not None:
            raise ValueError("value and valueFrom exclude each other: keep one")
        return self


class ResourceRequests(Model):
    """What is set aside on the node for the whole attempt."""

    cpu: Quantity = Field(default="500m", description="Cores, for example 500m or 2.")
    memory: MemoryRequest = Field(
        default="512Mi",
        description="Bytes, for example 512Mi or 2Gi. Also the limit unless limits.memory is set. auto: what tasks of the same "
        "template were seen to need, and some more; 512Mi until one was seen.",
    )
    gpu: Annotated[StrictInt, Field(ge=0, le=64)] = Field(default=0, description="Whole GPUs.")


class ResourceLimits(Model):
    """What the attempt may use at most."""

    cpu: Quantity | None = Field(default=None, description="Cores. Not limited unless set.")
    memory: Quantity | None = Field(default=None, description="Bytes. Defaults to requests.memory.")


class Resources(Model):
    requests: ResourceRequests = Field(default_factory=ResourceRequests, description="Set aside on the node.")
    limits: ResourceLimits = Field(default_factory=ResourceLimits, description="Upper bounds.")
    asks: ClassVar[frozenset[str]] = frozenset({"limits"})

    @model_validator(mode="after")
    def _limits_cover_requests(self) -> Self:
        limit, request = self.limits.memory, self.requests.memory
        if limit is not None and request != AUTO and units.memory_bytes(limit) < units.memory_bytes(request):
            raise ValueError(
                f"limits.memory: {limit} is less than requests.memory ({request}): raise the limit or lower the request"
            )
        limit, request = self.limits.cpu, self.requests.cpu
        if limit is not None and units.cpu_milli(limit) < units.cpu_milli(request):
            raise ValueError(f"limits.cpu: {limit} is less than requests.cpu ({request}): raise the limit or lower the request")
        return self


class Container(Model):
    """What runs. Field names as in Kubernetes' Container."""

    image: Annotated[str, Field(min_length=1, max_length=512, pattern=IMAGE_PATTERN)] = Field(
        description="Image reference, for example ghcr.io/acme/lint:1.4. Ignored by the local engine."
    )
    command: Annotated[list[Text], Field(max_length=1024)] = Field(
        default_factory=list, description="Replaces the image's entry point."
    )
    args: Annotated[list[Text], Field(max_length=1024)] = Field(default_factory=list, description="Replaces the image's arguments.")
    env: Annotated[list[EnvVar], Field(max_length=MAX_ENV)] = Field(
        default_factory=list,
        description="Environment variables.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    working_dir: Annotated[str, Field(max_length=4096, pattern=r"^$|^/([^{\x00]|\{[^{\x00])*\{?$")] = Field(
        default="", description="Absolute path; the image's own when empty."
    )
    resources: Resources = Field(default_factory=Resources, description="What is set aside and what is allowed.")
    asks: ClassVar[frozenset[str]] = frozenset()  # the schema knows that names of env are unique

    @model_validator(mode="after")
    def _env_names_unique(self) -> Self:
        seen: set[str] = set()
        for variable in self.env:
            if variable.name in seen:
                raise ValueError(f"env: {variable.name!r} is given twice: keep one")
            seen.add(variable.name)
        return self


class TaskSpec(Model):
    """What a person wants."""

    queue: Name = Field(default="default", description="A SwarmQueue of the same namespace.")
    priority_class: Literal["high", "normal", "low"] | None = Field(
        default=None, description="high = 1000, normal = 0, low = -1000. normal when neither this nor priority is set."
    )
    priority: Annotated[StrictInt, Field(ge=-1_000_000_000, le=1_000_000_000)] | None = Field(
        default=None, description="A number instead of priorityClass; higher starts first."
    )
    engine: Literal["auto", "swarm", "local"] = Field(
        default="auto", description="What runs the container. auto: whatever the chosen node offers."
    )
    suspend: StrictBool = Field(
        default=False, description="true keeps the task from starting, and stops it (without using a retry) when it runs."
    )
    container: Container = Field(description="What runs.")
    placement: Placement = Field(default_factory=Placement, description="Which nodes may run it.")
    limits: Annotated[dict[str, Annotated[StrictInt, Field(ge=1, le=1_000_000)]], Field(max_length=16), LimitNames] = Field(
        default_factory=dict,
        description="Slots of the cluster's limits that an attempt holds while it is live, whatever its queue and node, for "
        "example model/x: 1. A name that is in spec.limits of no queue is not limited.",
    )
    backoff_limit: Annotated[StrictInt, Field(ge=0, le=1000)] = Field(
        default=3, description="Retries after the first attempt. Losses that are not the task's fault do not count."
    )
    backoff: Backoff = Field(default_factory=Backoff, description="The wait before a retry.")
    node_loss: NodeLoss = Field(default_factory=NodeLoss, description="What happens when its node does not answer any more.")
    failure_policy: Annotated[list[FailureRule], Field(max_length=32)] = Field(
        default_factory=list, description="What follows from which failure; the first rule that matches wins."
    )
    queue_deadline_seconds: Seconds | None = Field(
        default=None, description="Expired when it has not started by then, counted from when it entered the queue."
    )
    start_deadline_seconds: Annotated[StrictInt, Field(ge=1, le=86_400)] = Field(
        default=600, description="Longest time from being placed to running: image pull and start."
    )
    active_deadline_seconds: Annotated[StrictInt, Field(ge=1, le=31_536_000)] | None = Field(
        default=None, description="Longest run of one attempt."
    )
    termination_grace_period_seconds: Annotated[StrictInt, Field(ge=0, le=3600)] = Field(
        default=10, description="Between SIGTERM and SIGKILL."
    )
    ttl_seconds_after_finished: Seconds = Field(default=604_800, description="A finished task is deleted after this.")
    dedupe_key: Annotated[str, Field(max_length=253)] = Field(
        default="",
        description="Work that is the same has the same key: while a task of this namespace with the key is unfinished, or has "
        "succeeded within dedupeWindowSeconds, this one does not run but takes its outcome.",
    )
    dedupe_window_seconds: Seconds = Field(default=3600, description="How long a success counts for dedupeKey.")
    completions: Annotated[StrictInt, Field(ge=1, le=100_000)] | None = Field(
        default=None,
        description="An array: so many runs of the container, each with its own SWARMTASK_INDEX from 0. backoffLimit is for each.",
    )
    parallelism: Annotated[StrictInt, Field(ge=1, le=10_000)] | None = Field(
        default=None, description="Runs of the array that wait or run at the same time. All (at most 1000) unless set."
    )
    max_failed_indexes: Annotated[StrictInt, Field(ge=0, le=100_000)] | None = Field(
        default=None, description="The array fails as soon as more of its runs than this are dead letters. Runs all unless set."
    )

    asks: ClassVar[frozenset[str]] = frozenset({"completions", "parallelism", "max_failed_indexes", "priority"})

    @model_validator(mode="after")
    def _only_arrays(self) -> Self:
        for name in ("parallelism", "max_failed_indexes"):
            if self.completions is None and getattr(self, name) is not None:
                raise ValueError("parallelism and maxFailedIndexes are for arrays: set completions too, or leave them out")
        if self.completions is None:
            return self
        if self.dedupe_key:
            raise ValueError("dedupeKey is for single tasks: leave it out, or leave completions out")
        for variable in self.container.env:
            if variable.name in (ENV_INDEX, ENV_COMPLETIONS):
                raise ValueError(f"container.env: {variable.name} is set for each run of an array: use another name")
        if len(self.container.env) > MAX_ENV - 2:
            raise ValueError(f"container.env: an array may have {MAX_ENV - 2} variables, two are added for each run")
        return self

    @model_validator(mode="after")
    def _one_priority(self) -> Self:
        if self.priority is not None and self.priority_class is not None:
            raise ValueError("priority and priorityClass exclude each other: keep one")
        return self

    @property
    def effective_priority(self) -> int:
        """The number that orders the queue; higher first."""
        if self.priority is not None:
            return self.priority
        return PRIORITY_CLASSES[self.priority_class or "normal"]


class AttemptState(StrEnum):
    """Where one attempt is. STARTING, RUNNING, STOPPING and UNKNOWN hold their resources on the node."""

    STARTING = "Starting"
    RUNNING = "Running"
    STOPPING = "Stopping"
    UNKNOWN = "Unknown"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    STOPPED = "Stopped"


LIVE_ATTEMPT_STATES = frozenset({AttemptState.STARTING, AttemptState.RUNNING, AttemptState.STOPPING, AttemptState.UNKNOWN})


class Requested(Model):
    """What an attempt holds on its node, as it was when it was bound (the spec may change afterwards)."""

    cpu: Quantity = "0"
    memory: Quantity = "0"
    gpu: int = 0
    queue: OptionalName = Field(default="", description="Queue that it was started from.")
    limits: dict[str, Slots] = Field(default_factory=dict, description="Slots of the queue's limits.")
    gpu_indices: list[StrictInt] = Field(default_factory=list, description="The GPUs of the node that it was given.")
    gpu_devices: list[GivenGpu] = Field(default_factory=list, description="What was known of them then, in the same order.")
    memory_limit: Quantity | None = Field(
        default=None, description="The most bytes that it may use; as many as it requested where this is absent."
    )


class Attempt(Model):
    """One try. Attempt numbers only grow; the ID is the engine-side name."""

    number: Annotated[StrictInt, Field(ge=1)] = Field(description="Counts from 1 and only grows.")
    id: str = Field(description="Name of the engine-side object: a function of task UID and number.")
    node: str = Field(description="SwarmNode that it was bound to.")
    engine: str = Field(description="Engine that runs it.")
    engine_node_id: str = Field(default="", description="The engine's own ID of the node.")
    state: AttemptState = Field(default=AttemptState.STARTING, description="Where the attempt is.")
    reason: str | None = Field(default=None, description="Why it ended; one of the typed reasons.")
    stop_reason: str | None = Field(default=None, description="Why it is being stopped.")
    message: str | None = Field(default=None, max_length=4096, description="What the engine or the operator said, for a person.")
    exit_code: int | None = Field(default=None, description="Exit code of the container's main process.")
    observed: StrictBool = Field(default=False, description="The engine has shown this attempt, or its node has fallen silent.")
    requested: Requested = Field(default_factory=Requested, description="What it holds on its node.")
    termination_grace_period_seconds: Annotated[StrictInt, Field(ge=0, le=3600)] | None = Field(
        default=None, description="Seconds between SIGTERM and SIGKILL, as the spec said when it was placed."
    )
    fence: StrictBool | None = Field(
        default=None,
        description="Its container was made to be stopped by its node's agent when that cannot reach the API: nodeLoss.replace was "
        "afterFence when it was placed. Absent on one from before this was recorded until its engine has told it.",
    )
    bound_at: Time | None = Field(default=None, description="When it was placed.")
    started_at: Time | None = Field(default=None, description="When its container ran.")
    stop_requested_at: Time | None = Field(default=None, description="When stopping began.")
    finished_at: Time | None = Field(default=None, description="When it ended.")
    boot_id: BootId | None = Field(
        default=None, alias="bootID", description="Boot of its node in which it runs, where the node has an agent."
    )
    peak_memory: Quantity | None = Field(default=None, description="The most bytes it used at once, as its node told.")
    cpu_seconds: Annotated[float, Field(ge=0)] | None = Field(default=None, description="CPU time that it used, as its node told.")

    @property
    def live(self) -> bool:
        """It holds resources, and its container may act."""
        return self.state in LIVE_ATTEMPT_STATES


class ArrayStatus(Model):
    """How far an array has come. Indices are written as Kubernetes' Jobs do: "0-57,60"."""

    progress: str = Field(default="", description="Runs that have ended, of all: 57/200.")
    active: Annotated[StrictInt, Field(ge=0)] = Field(default=0, description="Runs that wait or run.")
    succeeded: Annotated[StrictInt, Field(ge=0)] = Field(default=0, description="Runs that succeeded.")
    failed: Annotated[StrictInt, Field(ge=0)] = Field(default=0, description="Runs that are dead letters, cancelled or expired.")
    completed_indexes: str = Field(default="", description="Indices that succeeded.")
    failed_indexes: str = Field(default="", description="Indices that did not.")
    failures: Annotated[list[str], Field(max_length=10)] = Field(
        default_factory=list, description="Why the first ten that did not succeed ended."
    )


class MemoryPlan(Model):
    """How much memory the next attempt asks for, where that is not simply what the spec says."""

    request: Quantity = Field(description="Bytes set aside on its node.")
    limit: Quantity = Field(description="The most bytes that it may use.")
    basis: Literal["Ladder", "Learned", "Default"] = Field(
        description="Ladder: an attempt of this task needed more. Learned: what others like it needed. Default: none was seen."
    )
    samples: Annotated[StrictInt, Field(ge=0)] = Field(default=0, description="Attempts that it was learned from.")
    message: Annotated[str, Field(max_length=1024)] = Field(default="", description="The same for a person.")


class TaskStatus(Model):
    """What the operator found out. Written by the operator alone."""

    phase: Phase = Field(default=Phase.PENDING, description="One word for where the task is.")
    reason: str | None = Field(default=None, description="Typed reason of the phase.")
    message: str | None = Field(default=None, max_length=4096, description="The same for a person.")
    observed_generation: int | None = Field(default=None, description="Generation of the spec that this status speaks of.")
    queue_position: int | None = Field(default=None, description="1-based place in its queue while Queued.")
    queued_time: MicroTime | None = Field(default=None, description="When it entered the queue (this time round); its age there.")
    estimated_start_time: Time | None = Field(
        default=None, description="When it may start, by how long such tasks took; absent while that is not known."
    )
    outcome_of: str | None = Field(default=None, description="The task with the same dedupeKey whose outcome this one takes.")
    array: ArrayStatus | None = Field(default=None, description="How far an array has come; for arrays only.")
    not_before: Time | None = Field(default=None, description="End of the backoff.")
    node_name: str | None = Field(default=None, description="Node of the current attempt.")
    engine: str | None = Field(default=None, description="Engine of the current attempt.")
    attempt: int = Field(default=0, description="Number of the newest attempt.")
    failures: int = Field(default=0, description="Attempts that used up the user's backoffLimit in this budget.")
    infrastructure_losses: int = Field(default=0, description="Attempts lost through no fault of the task in this budget.")
    attempts: Annotated[list[Attempt], Field(max_length=MAX_ATTEMPT_RECORDS)] = Field(
        default_factory=list, description="Newest 10 attempts, oldest first."
    )
    memory: MemoryPlan | None = Field(
        default=None, description="What the next attempt asks for, where the spec does not say it: auto, or more after a failure."
    )
    exit_code: int | None = Field(default=None, description="Exit code of the newest finished attempt.")
    peak_memory: Quantity | None = Field(
        default=None, description="The most memory that the newest attempt used of which that is known, in whole mebibytes."
    )
    start_time: Time | None = Field(default=None, description="When the first attempt of this budget ran.")
    completion_time: Time | None = Field(default=None, description="When the task reached its terminal phase.")
    observed_retry: str | None = Field(default=None, description="The retry annotation that was last acted on.")
    observed_cancel: str | None = Field(
        default=None, description="The cancel annotation that was last acted on; after a retry only another text cancels again."
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Admitted, Scheduled, Running, Complete, Failed.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )

    @property
    def current(self) -> Attempt | None:
        """The newest attempt, live or not."""
        return self.attempts[-1] if self.attempts else None


class SwarmTask(Model):
    """One batch container that must finish once, on whichever node fits."""

    api_version: Literal["swarmtask.io/v1alpha1"] = API_VERSION
    kind: Literal["SwarmTask"] = "SwarmTask"
    metadata: ObjectMeta = Field(default_factory=ObjectMeta)
    spec: TaskSpec = Field(description="What a person wants.")
    status: TaskStatus = Field(default_factory=TaskStatus, description="What the operator found out.")

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, name)."""
        return (self.metadata.namespace or "default", self.metadata.name)

    @property
    def finished(self) -> bool:
        return self.status.phase in TERMINAL_PHASES

    @property
    def is_array(self) -> bool:
        """Many runs as one object. What it was when its first run or attempt began, it stays, whatever is edited."""
        return self.status.array is not None or (self.spec.completions is not None and self.status.attempt == 0)

    @property
    def array_owner(self) -> OwnerReference | None:
        """The array whose run this is; None for every other task."""
        owners = self.metadata.owner_references
        ours = (self.api_version, self.kind)
        return next((owner for owner in owners if owner.controller and (owner.api_version, owner.kind) == ours), None)


def attempt_id(uid: str, number: int) -> str:
    """Engine-side name of an attempt: a function of task UID and number alone (LIFECYCLE I4).

    Sixteen hexadecimal digits of the UID (60 random bits) keep names apart among millions of tasks and stay within the 63
    characters that Swarm and DNS allow.
    """
    return f"st-{uid.replace('-', '')[:16]}-{number}"
