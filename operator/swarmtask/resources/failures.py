"""What a person says of failures: how long to wait before the next attempt, and what each kind of failure means.

Called by the model of tasks. In the spirit of Job's `podFailurePolicy`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StrictFloat, StrictInt, model_validator

from swarmtask.resources.fields import Quantity, Seconds
from swarmtask.resources.meta import Model

FailureReason = Literal[
    "Error", "OOMKilled", "NodeLost", "NodeRestarted", "WorkloadLost", "ImagePullFailed", "StartDeadline", "ActiveDeadline",
    "EngineRejected", "SecretNotFound", "Preempted", "Evicted",
]  # fmt: skip
"""Reasons for which an attempt fails, of the table in docs/lifecycle.md."""


class Backoff(Model):
    """How long to wait before the next attempt. exponential: initial x factor^n; linear: initial x (n + 1); both up to max."""

    type: Literal["exponential", "linear"] = Field(default="exponential", description="How the delay grows.")
    initial_seconds: Seconds = Field(default=10, description="Delay before the first retry.")
    factor: Annotated[StrictInt, Field(ge=1, le=100)] = Field(default=2, description="Growth of the exponential delay.")
    max_seconds: Seconds = Field(default=600, description="The delay never exceeds this.")
    jitter_percent: Annotated[StrictInt, Field(ge=0, le=100)] = Field(
        default=10, description="The delay is shortened by up to so much, so that tasks that failed together do not retry together."
    )


class NodeLoss(Model):
    """What happens to an attempt whose node does not answer any more."""

    replace: Literal["afterFence", "afterLost", "never"] = Field(
        default="afterFence",
        description="afterFence: it is replaced once its node must have stopped it by itself, so that two never run at once. "
        "afterLost: it is replaced as soon as the node is lost; two may run at once. never: wait for the node, up to the "
        "task's own deadlines. An edit to afterLost or never counts at once; one to afterFence from the next attempt on, because "
        "an attempt that was placed under another word is not stopped by its node: it is waited for as under never.",
    )
    grace_seconds: Annotated[StrictInt, Field(ge=0, le=86_400)] = Field(
        default=30, description="With afterLost: how long the node must have been unreachable."
    )


class FailureRule(Model):
    """What follows from some failures. What is given must all match."""

    on_reasons: Annotated[list[FailureReason], Field(max_length=32)] = Field(
        default_factory=list,
        description="Reasons of the attempt. Empty: any.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    on_exit_codes: Annotated[list[Annotated[StrictInt, Field(ge=0, le=255)]], Field(max_length=255)] = Field(
        default_factory=list,
        description="Exit codes of the attempt. Empty: any, also none. Without onReasons they do not match losses of the "
        "infrastructure, whose exit codes mean nothing.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    action: Literal["Retry", "Ignore", "Fail"] = Field(
        description="Retry: try again and count it against backoffLimit (losses of the infrastructure: against their own bound). "
        "Ignore: try again without counting it against backoffLimit, as often as the operator lets infrastructure fail. Fail: a "
        "dead letter at once."
    )
    memory_factor: Annotated[StrictFloat, Field(ge=1, le=16, allow_inf_nan=False)] | None = Field(
        default=None, description="With Retry: the next attempt gets so many times the memory of this one, request and limit."
    )
    max_memory: Quantity | None = Field(default=None, description="memoryFactor never asks for more than this.")

    @model_validator(mode="after")
    def _says_when(self) -> Self:
        if not self.on_reasons and not self.on_exit_codes:
            raise ValueError("a rule needs onReasons or onExitCodes")
        if self.memory_factor is not None and self.action != "Retry":
            raise ValueError(f"memoryFactor is for action Retry, not {self.action}: change the action or leave memoryFactor out")
        if self.max_memory is not None and self.memory_factor is None:
            raise ValueError("maxMemory bounds memoryFactor: give both, or leave maxMemory out")
        return self
