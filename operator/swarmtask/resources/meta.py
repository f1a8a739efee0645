"""What all kinds share: metadata, conditions, and the base model with Kubernetes' spelling.

Called by the models of each kind. Knows nothing of any one kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer
from pydantic.alias_generators import to_camel

GROUP = "swarmtask.io"
VERSION = "v1alpha1"
API_VERSION: Final = "swarmtask.io/v1alpha1"
FINALIZER = f"{GROUP}/engine-cleanup"
FIELD_MANAGER = "swarmtask-operator"


def _format(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")[:19] + "Z"  # strftime is four times as slow, and this is written all the time


Time = Annotated[datetime, PlainSerializer(_format, return_type=str, when_used="json")]
"""RFC 3339 in whole seconds."""


def _format_micro(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds")[:26] + "Z"


EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2262, 4, 11, tzinfo=UTC)
"""What a clock can show: nanoseconds since 1970, in 63 bits."""


def possible(moment: datetime | None) -> datetime | None:
    """A time as somebody else tells it; None for one that no clock can show, and with which no sum could be made."""
    if moment is None:
        return None
    known = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return moment if EARLIEST <= known <= LATEST else None


MicroTime = Annotated[datetime, PlainSerializer(_format_micro, return_type=str, when_used="json")]
"""RFC 3339 in microseconds, for what tells an order; whole seconds can be read too."""


class Model(BaseModel):
    """Base of every part of a resource: camelCase on the wire, snake_case in Python.

    Reading ignores unknown fields: the API server has already refused or pruned them, and an operator must be able to read what a
    newer version wrote. Use `to_dict` for what goes on the wire.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="ignore",
        validate_assignment=False,
        defer_build=True,
    )

    asks: ClassVar[frozenset[str] | None] = None
    """Of a model with rules of its own: one of these must be said for a rule to object to what the schema accepts. None: any."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, camelCase, without fields that are None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class OwnerReference(Model):
    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class ObjectMeta(Model):
    """The part of Kubernetes' ObjectMeta that is read here. Written back only by patches, never as a whole."""

    name: str = ""
    namespace: str | None = None
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    finalizers: list[str] = Field(default_factory=list)
    owner_references: list[OwnerReference] = Field(default_factory=list)


class Condition(Model):
    """Kubernetes' `metav1.Condition`."""

    type: str = Field(max_length=316)
    status: Literal["True", "False", "Unknown"]
    observed_generation: int | None = Field(default=None, ge=0)
    last_transition_time: Time
    reason: str = Field(max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    message: str = Field(default="", max_length=32768)


def set_condition(
    conditions: Sequence[Condition],
    type_: str,
    status: bool | None,
    *,
    reason: str,
    message: str = "",
    now: datetime,
    observed_generation: int | None = None,
) -> list[Condition]:
    """Return the conditions with one of them set; the transition time moves only when the status changes.

    Args:
        status: True, False or None for "Unknown".
    """
    word: Literal["True", "False", "Unknown"] = "Unknown" if status is None else "True" if status else "False"
    same = get_condition(conditions, type_)
    if same is not None and _content(same) == (word, reason, message[:32768], observed_generation):
        return list(conditions)  # most of the time nothing changes, and to make a condition costs
    fresh = Condition(
        type=type_, status=word, reason=reason, message=message[:32768], last_transition_time=now,
        observed_generation=observed_generation,
    )  # fmt: skip
    result = []
    found = False
    for old in conditions:
        if old.type != type_:
            result.append(old)
            continue
        found = True
        if old.status == word:
            fresh.last_transition_time = old.last_transition_time
        result.append(fresh)
    if not found:
        result.append(fresh)
    return result


def _content(condition: Condition) -> tuple[str, str, str, int | None]:
    return condition.status, condition.reason, condition.message, condition.observed_generation


def get_condition(conditions: Sequence[Condition], type_: str) -> Condition | None:
    """The condition of that type, or None."""
    return next((c for c in conditions if c.type == type_), None)
