"""Field types that several kinds use: each knows its grammar, and how to say it in a structural CRD schema.

Called by the models. A grammar is written once, here, and reaches the CRD, the API server and the operator from this one place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictInt, WithJsonSchema

from swarmtask.resources import units

TEXT_PATTERN = r"^([^{\x00]|\{[^{\x00])*\{?$"
"""No NUL, and no `{{`: Docker Swarm and Nomad would read it as a template. Put such text into a Secret or into the image."""

IMAGE_PATTERN = (
    r"^([a-zA-Z0-9]([-a-zA-Z0-9.]*[a-zA-Z0-9])?(:[0-9]{1,5})?/)?"
    r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"
    r"(:[A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?(@sha256:[a-f0-9]{64})?$"
)


_WRITTEN = (int, str)
"""How a quantity may be written; here once, because `int | str` would be made anew for every one that is read."""


def _quantity_text(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, _WRITTEN):
        raise ValueError("write a quantity as an integer or a string, for example 2, 500m or 1.5Gi")
    text = str(value)
    units.parse_quantity(text)
    return text


@dataclass(frozen=True, slots=True)
class SchemaKnows:
    """Marks a field whose validator refuses no value of this type that the schema accepts."""

    type: type


Quantity = Annotated[
    str,
    BeforeValidator(_quantity_text),
    SchemaKnows(str),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": units.QUANTITY_PATTERN,
            "maxLength": 40,
        }
    ),
]
"""A Kubernetes quantity that is not negative; kept as the text that the user wrote."""

AUTO = "auto"
"""Instead of a request for memory: as much as tasks of the same template were seen to need."""
AUTO_MEMORY = "512Mi"
"""What `auto` asks for while nothing has been seen."""


def _memory_request_text(value: Any) -> Any:
    return value if value == AUTO else _quantity_text(value)


MemoryRequest = Annotated[
    str,
    BeforeValidator(_memory_request_text),
    SchemaKnows(str),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": f"^{AUTO}$|{units.QUANTITY_PATTERN}",
            "maxLength": 40,
        }
    ),
]
"""A quantity, or `auto`. Who compares it reads what an attempt was given (`Requested`), or `lifecycle.memory.planned`."""

Text = Annotated[str, Field(max_length=32768, pattern=TEXT_PATTERN)]
"""A string that reaches a container: no NUL, no `{{`, at most 32 KiB."""

Name = Annotated[str, Field(min_length=1, max_length=253, pattern=units.DNS_SUBDOMAIN_PATTERN)]
OptionalName = Annotated[str, Field(max_length=253, pattern=rf"^$|{units.DNS_SUBDOMAIN_PATTERN}")]
Capability = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-zA-Z0-9]([-a-zA-Z0-9_.]*[a-zA-Z0-9])?$")]
LabelValue = Annotated[str, Field(max_length=63, pattern=units.LABEL_VALUE_PATTERN)]
Seconds = Annotated[StrictInt, Field(ge=0, le=31_536_000)]
"""Whole seconds, at most a year."""


def _limit_names(limits: Mapping[str, int]) -> Mapping[str, int]:
    for name in limits:
        if len(name) > 253 or not re.fullmatch(units.LIMIT_NAME_PATTERN, name):
            raise ValueError(
                f"{name[:300]!r} is not the name of a limit: write for example model/x, at most 253 letters, digits, -_./:@"
            )
    return limits


LimitNames = AfterValidator(_limit_names)
"""For mappings from names of limits. (A structural schema has no words for keys; the API server asks the models, too.)"""
Slots = Annotated[StrictInt, Field(ge=0, le=1_000_000)]
"""Slots of a limit."""

MOST_BOOT_ID = 128
BootId = Annotated[str, Field(max_length=MOST_BOOT_ID)]
"""Which boot of a machine: as its agent says, and as it is kept in an attempt. Linux writes 36 characters."""

Strategy = Literal["balanced", "pack", "spread", "least-busy", "round-robin"]
"""Which of the nodes that fit is chosen: docs/scheduler.md."""
OptionalStrategy = Literal[Strategy, ""]
