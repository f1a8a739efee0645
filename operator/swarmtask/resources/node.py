"""SwarmNode: one machine, as its engines and its node agent report it.

Called by the controllers and the CLI. Cluster-scoped; created by the operator from the engines' node lists. A person may edit
`spec`; `status` belongs to the operator.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StrictBool, StrictInt

from swarmtask.resources import quiet_hours
from swarmtask.resources.fields import BootId, Capability, Quantity
from swarmtask.resources.meta import API_VERSION, Condition, Model, ObjectMeta, Time
from swarmtask.resources.placement import Gpu, OptionalRegion, Power, Taint

LABEL_CAPABILITY = "swarmtask.io/capability."
"""Before a capability's name, with the value `true`: on a SwarmNode, or on its engine's node, whose labels are copied to it."""


def _quiet_hours_text(text: str) -> str:
    quiet_hours.parse(text)
    return text


QuietHoursText = Annotated[str, AfterValidator(_quiet_hours_text), Field(max_length=128, pattern=r"^[-A-Za-z0-9_+/:, ]*$")]
"""See `resources.quiet_hours`. (A structural schema has no words for the grammar; the API server asks the model, too.)"""


class NodePhase(StrEnum):
    READY = "Ready"
    NOT_READY = "NotReady"
    UNREACHABLE = "Unreachable"
    DRAINING = "Draining"
    ASLEEP = "Asleep"
    GONE = "Gone"


class Reserved(Model):
    """Kept for the machine's owner; never given to tasks."""

    cpu: Quantity = Field(default="0", description="Cores.")
    memory: Quantity = Field(default="0", description="Bytes.")


class NodeSpec(Model):
    """What a person says of a node."""

    unschedulable: StrictBool = Field(default=False, description="true: cordoned, no new attempts.")
    capabilities: Annotated[list[Capability], Field(max_length=64)] = Field(
        default_factory=list,
        description="What the node offers, for example coding or browser; beside it counts what its agent tells "
        "(status.capabilities) and what its labels say (swarmtask.io/capability.NAME: true).",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    taints: Annotated[list[Taint], Field(max_length=64)] = Field(
        default_factory=list,
        description="Keep tasks away that do not tolerate them.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["key", "effect"]},
    )
    region: OptionalRegion = Field(default="", description="Where it is, for example home; compared with placement.regions.")
    cost_per_hour: Quantity = Field(default="0", description="US dollars per hour, for example 0.02.")
    max_tasks: Annotated[StrictInt, Field(ge=0, le=10_000)] | None = Field(
        default=None, description="Attempts at the same time. Not limited unless set."
    )
    reserved: Reserved = Field(default_factory=Reserved, description="Kept for the machine's owner.")
    drain: StrictBool = Field(
        default=False, description="true: no new attempts, and those that run are stopped and started elsewhere."
    )
    quiet_hours: QuietHoursText = Field(
        default="",
        description="When no new attempts start here, for example 22:00-07:00 or Mon-Fri 09:00-17:30 Europe/Berlin, or several "
        "with commas between them. What runs goes on. Without a time zone, the operator's. Never unless set.",
    )
    min_battery_percent: Annotated[StrictInt, Field(ge=0, le=100)] | None = Field(
        default=None,
        description="No new attempts while it runs on battery with less charge. 0: whatever the charge. Unless set, as the "
        "operator's settings say.",
    )


class NodeResources(Model):
    cpu: Quantity = "0"
    memory: Quantity = "0"
    gpu: Annotated[StrictInt, Field(ge=0)] = 0


class NodeEngine(Model):
    """How one engine knows this node."""

    name: str = Field(description="swarm or local.")
    id: str = Field(description="The engine's own ID of the node.")
    version: str | None = Field(default=None, description="Version of the engine there.")
    gpu_vendors: list[str] | None = Field(
        default=None,
        description="Whose GPUs it can give to attempts; those of other vendors in status.gpus do not count. Absent: everybody's.",
    )


class NodePressure(Model):
    """Percent of the last ten seconds in which somebody waited."""

    memory: Annotated[StrictInt, Field(ge=0, le=100)] = Field(default=0, description="For memory.")
    cpu: Annotated[StrictInt, Field(ge=0, le=100)] = Field(default=0, description="For CPU.")


class NodeUsage(Model):
    """What the machine uses, by tasks and by everybody else, as its node agent measured it last."""

    cpu: Quantity = Field(default="0", description="Cores.")
    memory: Quantity = Field(default="0", description="Bytes that are not available.")
    swap: Quantity = Field(default="0", description="Bytes.")
    disk_free: Quantity = Field(default="0", description="Bytes left where images and containers are kept.")
    load1: Quantity = Field(default="0", description="Processes that ran or wanted to, over a minute.")
    temperature_celsius: StrictInt | None = Field(default=None, description="Of the processor.")
    pressure: NodePressure = Field(default_factory=NodePressure, description="How hard tasks wait.")


class NodeAttempt(Model):
    """One attempt as the agent of its node knows it: what it uses, and how it ended, kept on the node's disk until the operator has
    recorded it."""

    id: Annotated[str, Field(max_length=63)] = Field(description="The attempt's ID.")
    state: Literal["Running", "Exited"] = Field(description="Whether its container runs.")
    started_at: Time | None = Field(default=None, description="When its container ran, by the node's clock.")
    finished_at: Time | None = Field(default=None, description="When it ended, by the node's clock.")
    exit_code: StrictInt | None = Field(default=None, description="Of its main process.")
    reason: Literal["", "OOMKilled", "Evicted", "Fenced"] = Field(
        default="",
        description="What the node did to it. OOMKilled: the kernel killed its main process at its own memory limit. Evicted: the "
        "agent stopped it because the machine ran out of memory. Fenced: the agent stopped it because it could not reach the API.",
    )
    told_to_end: bool | None = Field(
        default=None,
        description="Whether somebody had sent it a signal to end before it ended; absent where the agent cannot say, because it "
        "was not there all the time.",
    )
    message: Annotated[str, Field(max_length=1024)] | None = Field(default=None, description="The same for a person.")
    peak_memory: Quantity | None = Field(default=None, description="The most bytes it used at once.")
    cpu_seconds: Annotated[float, Field(ge=0)] | None = Field(default=None, description="CPU time that it used.")


class NodeEviction(Model):
    """The agent's wish that an attempt ends, because memory is short. Who gets no answer within seconds acts alone."""

    id: Annotated[str, Field(max_length=63)] = Field(description="The attempt that the agent would stop.")
    requested_at: Time = Field(description="When it began to ask, by the node's clock.")
    message: Annotated[str, Field(max_length=1024)] | None = Field(default=None, description="Why, for a person.")


class NodeStatus(Model):
    phase: NodePhase = Field(default=NodePhase.NOT_READY, description="One word for the node.")
    message: str | None = Field(default=None, max_length=4096, description="The same for a person.")
    engines: Annotated[list[NodeEngine], Field(max_length=8)] = Field(
        default_factory=list,
        description="Engines that reach this node.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    capacity: NodeResources = Field(default_factory=NodeResources, description="Total.")
    allocatable: NodeResources = Field(default_factory=NodeResources, description="Offered to tasks: capacity less reserved.")
    requested: NodeResources = Field(default_factory=NodeResources, description="Sum of what bound attempts hold.")
    tasks: Annotated[StrictInt, Field(ge=0)] = Field(default=0, description="Attempts bound here now.")
    gpus: Annotated[list[Gpu], Field(max_length=1024)] = Field(
        default_factory=list,
        description="Its GPUs, where something on the node reports them.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["index"]},
    )
    capabilities: Annotated[list[Capability], Field(max_length=64)] = Field(
        default_factory=list,
        description="What its agent says that it offers: what it was told at its start, and what it has found (docker, "
        "browser, kvm, gpu).",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    power: Power = Field(default_factory=Power, description="Where its power comes from.")
    latency_milliseconds: Annotated[StrictInt, Field(ge=0)] | None = Field(
        default=None, description="Round trip between the node and the API; absent while not known."
    )
    usage: NodeUsage | None = Field(default=None, description="What the machine uses; absent without a node agent.")
    kernel: str | None = Field(default=None, max_length=256, description="Release of the kernel, as the node agent tells it.")
    boot_id: BootId | None = Field(
        default=None, alias="bootID", description="Another one means that the machine was restarted; as the node agent tells it."
    )
    agent_version: str | None = Field(default=None, max_length=256, description="Version of the node agent.")
    attempts: Annotated[list[NodeAttempt], Field(max_length=256)] = Field(
        default_factory=list,
        description="Attempts on this node, as its agent tells; those that ended stay until the operator has recorded them.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"]},
    )
    eviction: NodeEviction | None = Field(default=None, description="Memory is short: whose end the agent asks for.")
    address: str | None = Field(default=None, description="Address by which the engine reaches the node.")
    arch: str | None = None
    os: str | None = None
    last_heartbeat_time: Time | None = Field(default=None, description="When an engine last reported a change of the node.")
    conditions: Annotated[list[Condition], Field(max_length=64)] = Field(
        default_factory=list,
        description="Ready.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class SwarmNode(Model):
    """One machine that runs attempts."""

    api_version: Literal["swarmtask.io/v1alpha1"] = API_VERSION
    kind: Literal["SwarmNode"] = "SwarmNode"
    metadata: ObjectMeta = Field(default_factory=ObjectMeta)
    spec: NodeSpec = Field(default_factory=NodeSpec, description="What a person says of the node.")
    status: NodeStatus = Field(default_factory=NodeStatus, description="What was reported.")


def capabilities_of(node: SwarmNode) -> frozenset[str]:
    """All that a node offers: what a person says, what its agent tells, what its labels say. That its agent sees GPUs offers
    nothing where none of them can be given to anybody."""
    labelled = (
        key.removeprefix(LABEL_CAPABILITY)
        for key, value in node.metadata.labels.items()
        if value == "true" and key.startswith(LABEL_CAPABILITY)
    )
    told = set(node.status.capabilities)
    if node.status.gpus and not usable_gpus(node.status.gpus, node.status.engines):
        told.discard("gpu")
    return frozenset((*node.spec.capabilities, *told, *labelled))


def usable_gpus(gpus: Iterable[Gpu], engines: Collection[NodeEngine]) -> list[Gpu]:
    """Of the GPUs that a node lists, those that count: every engine that reaches it can give them to an attempt. Those of unknown
    vendor are taken for NVIDIA's."""
    givers = [set(engine.gpu_vendors) for engine in engines if engine.gpu_vendors is not None]
    return [gpu for gpu in gpus if all((gpu.vendor.lower() or "nvidia") in vendors for vendors in givers)]
