"""How large a stored object may become: patches make one grow without end, each within the bound of a body.

Called by the object service before it writes. An object is measured in three parts, each with a bound of its own: its status where
that is written on its own, its managedFields, and the rest. So whoever fills one part keeps nobody from writing the others, and who
is written down as the owner of a field costs no room for fields. What is stored already and larger stays readable, and whatever
makes no part grow goes through: it can be deleted, and made smaller step by step. The operator has some room beyond the bound of
others: nobody makes a task or node so large that what becomes of it cannot be written.
Source of the idea: etcd's limit of a request, 1.5 MiB; here a Secret or ConfigMap of the most that Kubernetes allows fits as JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from swarmtask.apiserver.faults import details
from swarmtask.apiserver.types import ResourceType
from swarmtask.errors import RequestEntityTooLarge

OBJECT_LIMIT_BYTES = 2 * 2**20
"""Of an object as JSON, without its managedFields, and without its status where that is a subresource."""
STATUS_LIMIT_BYTES = 2**20
OWNERSHIP_LIMIT_BYTES = 2 * 2**20
"""Of managedFields. They stay far below it by themselves (`apply.MOST_TRACKED_BYTES`), unless the names of fields are most of an
object, or a client writes managedFields itself."""
RESERVED_BYTES = 2**18
"""What the operator may write beyond the bound of others: finalizers, annotations, what has become of a task or a node."""

Object = Mapping[str, Any]


def check_size(rt: ResourceType, new: Object, old: Object | None, *, size: int, subresource: str | None, reserved: bool) -> None:
    """Refuse what grows beyond its bound.

    Args:
        old: what is stored; None at create.
        size: bytes of `new` as JSON.
        subresource: through which it is written.
        reserved: the operator writes.

    Raises:
        RequestEntityTooLarge: says how large it would be, and what to do.
    """
    if size <= min(OBJECT_LIMIT_BYTES, STATUS_LIMIT_BYTES, OWNERSHIP_LIMIT_BYTES):
        return
    for (what, after, limit), (_, stored, _) in zip(_parts(rt, new, subresource), _parts(rt, old or {}, subresource), strict=True):
        part, before = _size(after), _size(stored)
        # What was stored larger by an older version must still be finished: its label and its finalizer are the operator's.
        most = max(limit, before) + RESERVED_BYTES if reserved else limit
        if part > most and part > before:
            name = new["metadata"].get("name", "")
            raise RequestEntityTooLarge(
                f'{rt.qualified_plural} "{name}" is too large: {what} would have {part} bytes as JSON, and may have {most}: take '
                "something out of it first, or keep large data in several objects or in files",
                details=details(rt, name),
            )


def _parts(rt: ResourceType, obj: Object, subresource: str | None) -> Iterator[tuple[str, Any, int]]:
    """What a write reaches: a name of each part, the part, and its bound."""
    metadata = obj.get("metadata") or {}
    if subresource == "status":
        yield "its status", obj.get("status"), STATUS_LIMIT_BYTES
    else:
        apart = "status" in rt.subresources
        rest = {key: value for key, value in obj.items() if not (apart and key == "status")}
        rest["metadata"] = {key: value for key, value in metadata.items() if key != "managedFields"}
        yield "without managedFields and status it" if apart else "without managedFields it", rest, OBJECT_LIMIT_BYTES
    yield "metadata.managedFields", metadata.get("managedFields"), OWNERSHIP_LIMIT_BYTES


def _size(value: Any) -> int:
    return len(orjson.dumps(value))
