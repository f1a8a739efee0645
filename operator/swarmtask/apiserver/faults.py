"""Errors about objects, in the words that Kubernetes' clients know.

Called by admission, the object service and the handlers. kubectl and the client libraries match on reason, details and some of the
messages, so they are written once, here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from swarmtask.apiserver.schema_checks import MAX_CAUSES
from swarmtask.apiserver.types import ResourceType
from swarmtask.errors import AlreadyExists, BadRequest, Cause, Conflict, Forbidden, Invalid, MethodNotAllowed, NotFound


def details(rt: ResourceType, name: str = "", uid: str = "") -> dict[str, Any]:
    """`details` of a Status about one object: `kind` is the plural, as Kubernetes has it."""
    return {"name": name, "group": rt.group, "kind": rt.plural, "uid": uid}


def not_found(rt: ResourceType, name: str) -> NotFound:
    return NotFound(f'{rt.qualified_plural} "{name}" not found', details=details(rt, name))


def no_such_path() -> NotFound:
    return NotFound("the server could not find the requested resource")


def method_not_allowed() -> MethodNotAllowed:
    return MethodNotAllowed("the server does not allow this method on the requested resource")


def already_exists(rt: ResourceType, name: str) -> AlreadyExists:
    return AlreadyExists(f'{rt.qualified_plural} "{name}" already exists', details=details(rt, name))


def conflict(rt: ResourceType, name: str, why: str = "") -> Conflict:
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    return Conflict(f'Operation cannot be fulfilled on {rt.qualified_plural} "{name}": {why}', details=details(rt, name))


def precondition(rt: ResourceType, name: str, wanted: str, actual: str) -> Conflict:
    """A PUT of another object of that name, by its UID."""
    return conflict(rt, name, f"Precondition failed: UID in precondition: {wanted}, UID in object meta: {actual}")


def delete_precondition(rt: ResourceType, name: str, what: str, wanted: str, actual: str) -> Conflict:
    """A DELETE that names another object, or another state of it; here Kubernetes says the kind."""
    kind = f"{rt.kind}.{rt.group}" if rt.group else rt.kind
    became = "deleted and then recreated" if what == "UID" else "modified"
    why = f"the {what} in the precondition ({wanted}) does not match the {what} in record ({actual}). "
    why += f"The object might have been {became}"
    return Conflict(f'Operation cannot be fulfilled on {kind} "{name}": {why}', details=details(rt, name))


def forbidden(rt: ResourceType, name: str, why: str, causes: Sequence[Cause] = ()) -> Forbidden:
    return Forbidden(f'{rt.qualified_plural} "{name}" is forbidden: {why}', details=details(rt, name), causes=causes)


def invalid(rt: ResourceType, name: str, causes: Sequence[Cause]) -> Invalid:
    """422 with every cause; `details.kind` is the kind itself here, as Kubernetes has it. The message tells the first ones."""
    kind = f"{rt.kind}.{rt.group}" if rt.group else rt.kind
    parts = [f"{cause.field}: {cause.message}" if cause.field else cause.message for cause in causes[:MAX_CAUSES]]
    if len(causes) > MAX_CAUSES:
        parts.append(f"and {len(causes) - MAX_CAUSES} more")
    text = parts[0] if len(parts) == 1 else f"[{', '.join(parts)}]"
    return Invalid(f'{kind} "{name}" is invalid: {text}', details={"name": name, "group": rt.group, "kind": rt.kind}, causes=causes)


def unreadable(rt: ResourceType, why: str) -> BadRequest:
    """The body is JSON but not an object of this kind."""
    return BadRequest(f'{rt.kind} in version "{rt.version}" cannot be handled as a {rt.kind}: {why}')


def bad_value(field: str, value: Any, why: str) -> Cause:
    return Cause(field, "FieldValueInvalid", f"Invalid value: {shown(value)}: {why}")


def shown(value: Any) -> str:
    """A value as errors quote it, its beginning where it is long."""
    return (f'"{value}"' if isinstance(value, str) else _as_json(value))[:400]


def _as_json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # a number of more than 64 bits
        return str(value)


def required(field: str, why: str = "") -> Cause:
    return Cause(field, "FieldValueRequired", f"Required value: {why}" if why else "Required value")


def not_allowed(field: str, why: str) -> Cause:
    return Cause(field, "FieldValueForbidden", f"Forbidden: {why}")
