"""Server-side apply and field ownership."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from swarmtask.apiserver.patch import merge
from swarmtask.apiserver.types import ResourceType
from swarmtask.errors import BadRequest


def server_side_apply(
    rt: ResourceType, live: dict[str, Any] | None, applied: dict[str, Any], *, manager: str, force: bool, now: datetime, subresource: str
) -> dict[str, Any]:
    """The object after the apply."""
    if (applied.get("metadata") or {}).get("managedFields") is not None:
        raise BadRequest("metadata.managedFields must be nil")
    return dict(merge(live or {}, applied))


def record_update(
    rt: ResourceType, old: dict[str, Any] | None, new: dict[str, Any], *, manager: str, now: datetime, subresource: str
) -> None:
    """Note, in `new`, which fields `manager` changed."""
