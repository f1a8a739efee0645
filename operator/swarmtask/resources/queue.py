"""SwarmQueue: where tasks wait, and how many may run.

Called by the scheduling controller and the CLI. Namespaced; `default` exists in every namespace that has tasks.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt

from swarmtask.resources.fields import LimitNames, OptionalName, Slots, Strategy
from swarmtask.resources.meta import API_VERSION, Condition, Model, ObjectMeta, Time


class QueueSpec(Model):
    max_running: Annotated[StrictInt, Field(ge=0, le=1_000_000)] | None = Field(
        default=None, description="Tasks bound at the same time. Not limited unless set."
    )
    max_running_per_node: Annotated[StrictInt, Field(ge=0, le=10_000)] | None = Field(
        default=None, description="Tasks of this queue bound to one node at the same time. Not limited unless set."
    )
    limits: Annotated[dict[str, Slots], Field(max_length=256), LimitNames] = Field(
        default_factory=dict,
        description="Cluster-wide limits, for example model/x: 5. The live attempts of this queue never hold more slots together.",
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
        description="Which of the nodes that fit, for tasks that do not say: balanced takes the one with most left "
        "of its scarcest resource, pack the fullest, spread the one with the fewest tasks, least-busy the one with most CPU left, "
        "round-robin the one that has waited longest for a task.",
    )
    stopped: StrictBool = Field(default=False, description="true: nothing of this queue starts; what runs goes on.")


class QueueStatus(Model):
    queued: Annotated[StrictInt, Field(ge=0)] = Field(default=0, description="Tasks that wait.")
    running: Annotated[StrictInt, Field(ge=0)] = Field(default=0, description="Tasks bound to a node.")
    dead_letters: Annotated[StrictInt, Field(ge=0)] = Field(default=0, description="Failed tasks that wait for a person.")
    oldest_queued_time: Time | None = Field(default=None, description="Since when the oldest one waits.")
    limits_held: dict[str, Slots] = Field(default_factory=dict, description="Slots held of each of spec.limits.")
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
