"""SwarmQueue: where tasks wait, and how many may run.

Called by the scheduling controller and the CLI. Namespaced; `default` exists in every namespace that has tasks.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StrictBool, StrictInt, model_validator

from swarmtask.resources.fields import LimitNames, OptionalName, Seconds, Slots, Strategy
from swarmtask.resources.meta import API_VERSION, Condition, Model, ObjectMeta, Time


class ClientRateLimit(Model):
    """How fast one client may create tasks of this queue (a token bucket for each client)."""

    per_minute: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = Field(description="Tasks per minute in the long run.")
    burst: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = Field(default=100, description="Tasks at once after a pause.")


class TaskDefaults(Model):
    """What tasks of this queue get, at their creation, where they do not say."""

    priority_class: Literal["high", "normal", "low"] | None = Field(
        default=None, description="Where neither it nor priority is set."
    )
    backoff_limit: Annotated[StrictInt, Field(ge=0, le=1000)] | None = Field(default=None, description="Retries.")
    queue_deadline_seconds: Seconds | None = Field(default=None, description="Expired when not started by then.")
    start_deadline_seconds: Annotated[StrictInt, Field(ge=1, le=86_400)] | None = Field(
        default=None, description="From being placed to running."
    )
    active_deadline_seconds: Annotated[StrictInt, Field(ge=1, le=31_536_000)] | None = Field(
        default=None, description="Longest run of one attempt."
    )
    termination_grace_period_seconds: Annotated[StrictInt, Field(ge=0, le=3600)] | None = Field(
        default=None, description="Between SIGTERM and SIGKILL."
    )
    ttl_seconds_after_finished: Seconds | None = Field(default=None, description="A finished task is deleted after this.")


class ScoreWeights(Model):
    """What counts how much in the strategy balanced. Only their proportions matter; not all may be 0."""

    capability: Annotated[StrictInt, Field(ge=0, le=1000)] = Field(
        default=40, description="Nodes that offer no more than is asked for, so that special ones stay free."
    )
    load: Annotated[StrictInt, Field(ge=0, le=1000)] = Field(default=30, description="Nodes with most left.")
    latency: Annotated[StrictInt, Field(ge=0, le=1000)] = Field(default=20, description="Nodes that are near.")
    cost: Annotated[StrictInt, Field(ge=0, le=1000)] = Field(default=10, description="Nodes that are cheap.")

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if not (self.capability or self.load or self.latency or self.cost):
            raise ValueError("at least one weight must be above 0")
        return self


class QueueSpec(Model):
    max_running: Annotated[StrictInt, Field(ge=0, le=1_000_000)] | None = Field(
        default=None, description="Tasks bound at the same time. Not limited unless set."
    )
    max_running_per_node: Annotated[StrictInt, Field(ge=0, le=10_000)] | None = Field(
        default=None, description="Tasks of this queue bound to one node at the same time. Not limited unless set."
    )
    max_queued: Annotated[StrictInt, Field(ge=0, le=10_000_000)] | None = Field(
        default=None,
        description="Unfinished tasks that are not bound to a node. A create beyond it is refused with 429; what was accepted "
        "stays. Not limited unless set.",
    )
    client_rate_limit: ClientRateLimit | None = Field(
        default=None, description="How fast one client may create tasks; beyond it 429. Not limited unless set."
    )
    defaults: TaskDefaults = Field(default_factory=TaskDefaults, description="For tasks that do not say, at their creation.")
    limits: Annotated[dict[str, Slots], Field(max_length=256), LimitNames] = Field(
        default_factory=dict,
        description="Limits of the whole cluster, for example model/x: 5: live attempts of all queues and namespaces never hold "
        "more slots of that name together. Where several queues say a number, the smallest is in force.",
    )
    cohort: OptionalName = Field(
        default="",
        description="Queues that name the same cohort, in any namespace, share the cluster by weight among equal priorities. "
        "Empty: tasks start in the order of their age.",
    )
    weight: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = Field(
        default=1,
        description="What this queue is due within its cohort, compared to the others. Without a cohort it has no effect.",
    )
    strategy: Strategy = Field(
        default="balanced",
        description="Which of the nodes that fit, for tasks that do not say: balanced weighs capability, load, latency and cost, "
        "pack takes the fullest, spread the one with the fewest tasks, least-busy the one with most CPU left, round-robin the one "
        "that has waited longest for a task.",
    )
    weights: ScoreWeights = Field(default_factory=ScoreWeights, description="What counts how much in the strategy balanced.")
    preemption: Literal["LowerPriority", "Never"] = Field(
        default="Never",
        description="LowerPriority: a task of this queue that fits nowhere may stop tasks of lower priority, of any queue, which "
        "are queued again.",
    )
    aging_seconds: Annotated[StrictInt, Field(ge=1, le=31_536_000)] | None = Field(
        default=None, description="A waiting task gains one point of priority per so many seconds. It gains none unless set."
    )
    stopped: StrictBool = Field(default=False, description="true: nothing of this queue starts; what runs goes on.")


class QueueStatus(Model):
    queued: Annotated[StrictInt, Field(ge=0)] = Field(default=0, description="Tasks that wait.")
    running: Annotated[StrictInt, Field(ge=0)] = Field(default=0, description="Tasks bound to a node.")
    dead_letters: Annotated[StrictInt, Field(ge=0)] = Field(default=0, description="Failed tasks that wait for a person.")
    oldest_queued_time: Time | None = Field(default=None, description="Since when the oldest one waits.")
    throughput_per_minute: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Tasks that ended after they had run, per minute over the last ten minutes."
    )
    wait_seconds_p50: Annotated[StrictInt, Field(ge=0)] | None = Field(
        default=None, description="Half of the tasks that started in the last hour waited no longer; absent when none did."
    )
    wait_seconds_p99: Annotated[StrictInt, Field(ge=0)] | None = Field(default=None, description="The same for 99 of 100.")
    limits_held: dict[str, Slots] = Field(
        default_factory=dict, description="Slots held of each of spec.limits, by tasks of all queues."
    )
    observed_generation: int | None = None
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Active.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class SwarmQueue(Model):
    """Where tasks wait."""

    api_version: Literal["swarmtask.io/v1alpha1"] = API_VERSION
    kind: Literal["SwarmQueue"] = "SwarmQueue"
    metadata: ObjectMeta = Field(default_factory=ObjectMeta)
    spec: QueueSpec = Field(default_factory=QueueSpec, description="Limits of the queue.")
    status: QueueStatus = Field(default_factory=QueueStatus, description="What is in it.")
