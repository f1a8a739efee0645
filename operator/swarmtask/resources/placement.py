"""What tasks say of nodes and nodes of themselves: taints and tolerations, GPUs, regions, latency, cost, power.

Called by the models of tasks and nodes. Taints and tolerations are Kubernetes'; costs are US dollars per hour, latencies
milliseconds to the API.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, StrictInt, model_validator

from swarmtask.resources import units
from swarmtask.resources.fields import Capability, LabelValue, OptionalName, OptionalStrategy, Quantity
from swarmtask.resources.meta import Model

TaintKey = Annotated[str, Field(min_length=1, max_length=316, pattern=units.LABEL_KEY_PATTERN)]
Region = Annotated[str, Field(min_length=1, max_length=63, pattern=units.LABEL_VALUE_PATTERN)]
OptionalRegion = Annotated[str, Field(max_length=63, pattern=units.LABEL_VALUE_PATTERN)]
OnBattery = Literal["allow", "avoid", "never"]


class Taint(Model):
    """A node keeps tasks away that do not tolerate it. Kubernetes' `v1.Taint`."""

    key: TaintKey = Field(description="Name of the taint.")
    value: LabelValue = Field(default="", description="Compared by tolerations with operator Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = Field(
        description="NoSchedule: no new attempts. PreferNoSchedule: only when they fit nowhere else. NoExecute: no new attempts."
    )


class Toleration(Model):
    """A taint that does not keep this task away. Kubernetes' `v1.Toleration`."""

    key: Annotated[str, Field(max_length=316, pattern=rf"^$|{units.LABEL_KEY_PATTERN}")] = Field(
        default="", description="Name of the taint. Empty, with operator Exists: every taint."
    )
    operator: Literal["Equal", "Exists"] = Field(default="Equal", description="Equal compares the value, Exists does not.")
    value: LabelValue = Field(default="", description="Value of the taint. Only with operator Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute", ""] = Field(
        default="", description="Effect of the taint. Empty: every effect."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.key and self.operator != "Exists":
            raise ValueError("a toleration without a key needs operator Exists: it then tolerates every taint")
        if self.operator == "Exists" and self.value:
            raise ValueError("operator Exists compares no value: leave value out, or use operator Equal")
        return self


class GpuWish(Model):
    """Which GPUs count. How many is `resources.requests.gpu`."""

    vendor: Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]*$")] = Field(
        default="", description="nvidia, amd or intel. Empty: any but those of AMD and Intel that have no memory of their own."
    )
    model: Annotated[str, Field(max_length=128)] = Field(
        default="", description="A part of the model's name, in any case, for example a100. Empty: any."
    )
    memory: Quantity | None = Field(default=None, description="Each GPU has at least this much memory.")


class Placement(Model):
    """Which nodes may run it. Every rule must hold."""

    capabilities: Annotated[list[Capability], Field(max_length=64)] = Field(
        default_factory=list,
        description="Every one must be offered by the node (SwarmNode spec.capabilities).",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    node_selector: Annotated[dict[str, LabelValue], Field(max_length=64)] = Field(
        default_factory=dict, description="Labels that the SwarmNode must carry."
    )
    node_name: OptionalName = Field(default="", description="Only this SwarmNode.")
    gpu: GpuWish = Field(default_factory=GpuWish, description="Which GPUs count for resources.requests.gpu.")
    tolerations: Annotated[list[Toleration], Field(max_length=64)] = Field(
        default_factory=list, description="Taints of nodes that do not keep this task away."
    )
    regions: Annotated[list[Region], Field(max_length=64)] = Field(
        default_factory=list,
        description="Only nodes in one of these regions (SwarmNode spec.region). Empty: any.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    preferred_regions: Annotated[list[Region], Field(max_length=64)] = Field(
        default_factory=list,
        description="Nodes of other regions only when it fits in none of these.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    max_latency_milliseconds: Annotated[StrictInt, Field(ge=0, le=3_600_000)] = Field(
        default=0, description="Only nodes whose latency is known and not larger. 0: any."
    )
    max_cost_per_hour: Quantity | None = Field(
        default=None, description="Only nodes that cost at most so many dollars per hour (SwarmNode spec.costPerHour)."
    )
    on_battery: OnBattery = Field(
        default="avoid", description="Nodes that run on battery: allow; avoid: only when it fits nowhere else; never."
    )
    strategy: OptionalStrategy = Field(
        default="",
        description="Which of the nodes that fit: balanced, pack, spread, least-busy or round-robin. Empty: as the queue says.",
    )


class GpuUsage(Model):
    """What is used of a GPU, by tasks and by everybody else. What its driver does not say is left out."""

    memory: Quantity | None = Field(default=None, description="Bytes on the device.")
    percent: Annotated[StrictInt, Field(ge=0, le=100)] | None = Field(default=None, description="Of its time.")


class Gpu(Model):
    """One GPU of a node."""

    index: Annotated[StrictInt, Field(ge=0, le=1023)] = Field(
        description="Number on its node: NVIDIA's as their driver counts them, others 64 more than that of their card."
    )
    vendor: str = Field(default="", max_length=63, description="nvidia, amd or intel.")
    model: str = Field(default="", max_length=128, description="Name of the model.")
    uuid: str = Field(default="", max_length=128, description="As the driver tells it.")
    memory: Quantity = Field(default="0", description="Bytes on the device.")
    usage: GpuUsage | None = Field(default=None, description="As its node agent measured it last.")


class GivenGpu(Model):
    """One GPU as an attempt was given it: what its node lists may be numbered anew while it runs."""

    index: StrictInt = Field(description="Number on its node.")
    vendor: str = Field(default="", description="nvidia, amd or intel. Empty: not known.")
    uuid: str = Field(default="", description="As the driver told it. Empty: not known.")
    number: StrictInt = Field(description="By which its vendor's software counted it.")


class Power(Model):
    """Where the node's power comes from."""

    on_battery: bool = Field(default=False, description="It runs on battery now.")
    percent: Annotated[StrictInt, Field(ge=0, le=100)] | None = Field(default=None, description="Charge of the battery.")


def dollars(amount: str | None) -> Decimal:
    """A cost as a number; 0 where none is said."""
    return Decimal(0) if amount is None else units.parse_quantity(amount)
