"""What the API answers: objects, watch events, and Status objects turned into our errors.

Called by the client only. The one place that knows Kubernetes' Status.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx2
import orjson

from swarmtask.errors import BY_REASON, BadRequest, Cause, Conflict, Expired, ServiceUnavailable, SwarmTaskError
from swarmtask.kube.api import Object, WatchEvent
from swarmtask.kube.connection import Connection


def json_object(content: bytes | str, connection: Connection) -> Object:
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ServiceUnavailable(f"{connection.server} answered something that is not JSON: is it a Kubernetes API?") from error
    if not isinstance(value, dict):
        raise ServiceUnavailable(f"{connection.server} answered a {type(value).__name__} instead of an object")
    return value


def watch_event(line: str, connection: Connection) -> WatchEvent:
    event = json_object(line, connection)
    type_, obj = event.get("type"), event.get("object") or {}
    if type_ in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"):
        return WatchEvent(type_, obj)
    if type_ == "ERROR":
        raise error_from_status(obj, int(obj.get("code") or 500))
    raise ServiceUnavailable(f"{connection.server} sent an unknown watch event {type_!r}")


def error_from_response(response: httpx2.Response, connection: Connection) -> SwarmTaskError:
    """The error of a failed answer; a Status where the server sent one, else made from the code."""
    try:
        status = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        status = None
    if not isinstance(status, dict) or status.get("kind") != "Status":
        text = response.text.strip()[:200] or response.reason_phrase
        status = {"message": f"{connection.server} answered {response.status_code}: {text}"}
    error = error_from_status(status, response.status_code)
    retry_after = response.headers.get("Retry-After", "")
    if error.retry_after_s is None and retry_after.isdigit():
        error.retry_after_s = int(retry_after)
    return error


def error_from_status(status: Mapping[str, Any], code: int) -> SwarmTaskError:
    """A Kubernetes Status as one of ours: by its reason, else by its code."""
    details = status.get("details") or {}
    causes = [
        Cause(str(cause.get("field", "")), str(cause.get("reason", "")), str(cause.get("message", "")))
        for cause in details.get("causes") or ()
    ]
    cls = BY_REASON.get(str(status.get("reason", ""))) or _by_code(int(status.get("code") or code))
    if any(cause.reason == "ResourceVersionTooLarge" for cause in causes):
        cls = Expired  # the store was replaced by an older one: what we know of it is void, list again
    if any(cause.field == "metadata.uid" for cause in causes):
        cls = Conflict  # the object that was meant has gone, and another one has its name; to a patch Kubernetes says Invalid
    return cls(
        str(status.get("message") or f"the Kubernetes API answered {code}"),
        details={key: value for key, value in details.items() if key != "causes"},
        causes=causes,
        retry_after_s=details.get("retryAfterSeconds"),
    )


_BY_CODE: dict[int, type[SwarmTaskError]] = {cls.code: cls for cls in BY_REASON.values()} | {409: Conflict}


def _by_code(code: int) -> type[SwarmTaskError]:
    return _BY_CODE.get(code) or (ServiceUnavailable if code >= 500 else BadRequest)
